r"""Offline RL of the literature through d3rlpy: our batches, its updates.

| method | paper |
|---|---|
| bc | |
| bc-best | the best tenth of the episodes, as in Chen et al. 2021 |
| bcq | Fujimoto et al. 2019 |
| cql | Kumar et al. 2020 |
| iql | Kostrikov et al. 2022 |
| td3-bc | Fujimoto & Gu 2021 |
| awac | Nair et al. 2020 |
| rebrac | Tarasov et al. 2023 |

All use Adam, see normalized observations, and have the settings of their papers, but
for what follows. d3rlpy's own defaults are batches of 100 for BCQ and of 1024 for AWAC
and ReBRAC, and an actor's β of 0.001; BCQ's paper has networks of 400 and 300 units,
and its authors' code compares 100 actions when it acts. In the code of AWAC's authors,
policies have four hidden layers and a weight decay of 0.0001, and batches 1024. CQL's
values are those of CORL for D4RL's mazes. ReBRAC's paper tunes β, layers and learning
rates for every dataset; its authors' values for D4RL's maze2d are in
`examples/benchmark_rebrac.toml`. The authors of IQL scale the rewards of robots that
walk, so that returns span 1,000 (`return_range`), and let the actor's learning rate
fall to zero, which is constant here.

d3rlpy knows no goals in hindsight, and draws batches in Python row by row, which is too
slow for several million rows. So `transitions` makes the batches, and the algorithm
does one `update` at a time. Step i draws from generators of `(seed, i)`, so a training
that was killed resumes to the same result.

A critic that bootstraps can diverge without any loss becoming infinite (`Values`). The
training then ends with the last checkpoint before that, and the result says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.random import Generator

from diffuser_policy.baselines.learning import (
    family_method,
    load_parts,
    save_parts,
)
from diffuser_policy.baselines.transitions import (
    Batch,
    Codec,
    check_share,
    make_transitions,
)
from diffuser_policy.benchmark.context import FlatPolicy, MethodContext
from diffuser_policy.benchmark.problem import Problem
from diffuser_policy.build import num_parameters
from diffuser_policy.errors import ConfigError, DivergedError, require_extra
from diffuser_policy.networks.critic import Values
from diffuser_policy.settings import converted, positive

MODULES = {"d3rlpy": "baselines"}
NUM_STEPS = 50_000  # without a budget
CHECKPOINT = "checkpoint.safetensors"
CHECKPOINT_STEPS = 1_000
PROGRESS_STEPS = 100
NUM_RATED = 10_000  # transitions whose rewards and values are looked at
# What all have: units of two hidden layers, transitions of a gradient step, and the
# discount of goals in hindsight (`transitions`).
COMMON = {"width": 256, "batch_size": 256, "goal_discount": 0.99}
DISCOUNT = (0.99, "gamma")
BOTH_RATES = "actor_learning_rate", "critic_learning_rate"


class D3rlpyPolicy(FlatPolicy):
    """A trained algorithm in the environment's units; always its best action."""

    def __init__(self, algorithm: Any, codec: Codec) -> None:
        super().__init__(algorithm)
        self.codec = codec

    def act(self, rows: np.ndarray) -> np.ndarray:
        """Return actions `[n, actions]` for rows `[n, inputs]`, both unscaled."""
        return self.codec.decode(super().act(self.codec.inputs(rows)), rows)


def train_d3rlpy(
    context: MethodContext,
    config: Any,
    *,
    goal_discount: float = 0.99,
    best_share: float = 1.0,
    return_range: float | None = None,
) -> D3rlpyPolicy:
    """Train an algorithm of a configuration, such as `d3rlpy.algos.IQLConfig(...)`.

    Args:
        context: The problem, its data and the budget.
        config: Makes the algorithm.
        goal_discount: As of `make_transitions`.
        best_share: It learns from this share of the episodes, those with the highest
            returns.
        return_range: Rewards are scaled so that the returns of the best and the worst
            episode differ by this much; none leaves them as they are.

    Raises:
        ConfigError: Losses are no longer finite; or a setting compares returns where
            goals differ.
        DatasetError: No such share or scale is possible in this data.
    """
    torch.set_num_threads(1)
    transitions = make_transitions(
        context.problem, context.dataset, goal_discount=goal_discount
    )
    if return_range is not None:  # of all episodes, also of those left out
        transitions.scale_rewards(return_range)
    transitions.keep_best(best_share)
    torch.manual_seed(context.seed)
    algorithm = config.create()
    codec = transitions.codec
    algorithm.create_impl((len(codec.mean),), codec.num_actions)
    policy = D3rlpyPolicy(algorithm, codec)
    rated = transitions.batch(np.random.default_rng(context.seed), NUM_RATED)
    mini_batch = require_extra("d3rlpy.dataset", "baselines").TransitionMiniBatch

    def draw(rng: Generator) -> Any:
        batch = vars(transitions.batch(rng, config.batch_size))
        intervals = np.ones_like(batch["rewards"])
        return mini_batch(**batch, intervals=intervals, transitions=[])

    def values() -> Values | None:
        return value_facts(algorithm, rated, transitions.reward)

    step = take_steps(context, policy, draw, values)
    modules = algorithm.impl.modules.get_torch_modules().items()
    found = values()
    context.facts |= {
        "num_steps": step,
        # Target networks are copies.
        "num_parameters": num_parameters(
            *(module for name, module in modules if not name.startswith("targ_"))
        ),
        "values": None if found is None else found._asdict(),
    }
    return policy


def take_steps(
    context: MethodContext,
    policy: Any,
    draw: Callable[[Generator], Any],
    values: Callable[[], Values | None] = lambda: None,
) -> int:
    """Take gradient steps until the context ends the training; return their number.

    Training resumes from the checkpoint in the context's folder. `draw` returns a batch
    for the `update` of the policy's algorithm, `values` its critic's values of the
    data. If the critic diverged, the training ends with the last checkpoint, and its
    facts say so.

    Raises:
        ConfigError: Losses are no longer finite.
        DivergedError: The critic diverged before the first checkpoint.
        CheckpointError: The checkpoint is damaged, or of another algorithm.
    """
    algorithm, path = policy.algorithm, context.folder / CHECKPOINT
    parts: dict[str, Any] = {}
    for name, value in vars(algorithm.impl.modules).items():
        if isinstance(value, torch.nn.Module):
            parts[name] = value
        elif hasattr(value, "optim"):
            parts[name] = value.optim
    data = context.data_facts
    step = load_parts(path, parts, data=data) if path.is_file() else 0
    context.forget_curve(step)
    algorithm.set_grad_step(step)
    while not context.finished(step):
        rng = np.random.default_rng((context.seed, step))
        torch.manual_seed(int(rng.integers(2**62)))
        losses = algorithm.update(draw(rng))
        step += 1
        if not np.isfinite(list(losses.values())).all():
            raise ConfigError(
                f"The losses are not finite after {step} gradient steps: {losses}. "
                f"Lower the learning rate, or look for outliers in the data."
            )
        if step % PROGRESS_STEPS == 0:
            context.progress(step, figures=losses)
        if context.curve_due(step):  # before it is saved: a kill loses no point
            context.curve(step, policy)
        if step % CHECKPOINT_STEPS == 0:
            if (found := values()) is not None and found.diverged:
                break
            save_parts(path, parts, step=step, data=data)
    if (found := values()) is not None and found.diverged:
        return _last_good(context, path, parts, step=step, values=found)
    save_parts(path, parts, step=step, data=data)
    return step


def _last_good(
    context: MethodContext,
    path: Path,
    parts: dict[str, Any],
    *,
    step: int,
    values: Values,
) -> int:
    """Go back to the checkpoint before a critic diverged; return its gradient step."""
    if not path.is_file():
        lowest, highest = values.possible
        raise DivergedError(
            f"The critic diverged within the first {step:,} gradient steps: the median "
            f"of its values is {values.median:.4g}, and rewards and discount allow "
            f"{lowest:.4g} to {highest:.4g}. Lower the learning rate or the discount."
        )
    kept = load_parts(path, parts, data=context.data_facts)
    context.forget_curve(kept)
    context.facts["diverged_at_step"] = step
    return kept


def value_facts(
    algorithm: Any, batch: Batch, rewards: np.ndarray | None = None
) -> Values | None:
    """Return a critic's values of the data's own actions.

    Args:
        algorithm: Has the critic.
        batch: Some of the data.
        rewards: All of the data; those of the batch by default.

    Returns:
        None if the algorithm has no critic.
    """
    try:
        found = algorithm.predict_value(batch.observations, batch.actions)
    except NotImplementedError:
        return None
    rewards = batch.rewards if rewards is None else rewards
    return Values.of(found, rewards, algorithm.gamma)


def _method(
    label: str,
    purpose: str,
    *,
    algorithm: str | None = None,
    networks: Sequence[str] = ("actor_", "critic_"),
    normed: str | None = None,
    **settings: tuple[Any, ...],
) -> Callable[..., D3rlpyPolicy]:
    """Register an algorithm of d3rlpy: TD3+BC is td3-bc, configured by TD3PlusBCConfig.

    `algorithm` is d3rlpy's name, where it is not the label. `networks` are what the
    configuration puts before `encoder_factory`; the one that is `normed` has layer
    norm. Each setting is its default, then its names in there.
    """

    def train(
        context: MethodContext,
        *,
        width: int,
        batch_size: int,
        goal_discount: float,
        num_layers: int = 2,
        best_share: float = 1.0,
        return_range: float | None = None,
        **given: Any,
    ) -> D3rlpyPolicy:
        factory = require_extra("d3rlpy.models", "baselines").VectorEncoderFactory
        chosen = {
            f"{network}encoder_factory": factory(
                [width] * num_layers, use_layer_norm=network == normed
            )
            for network in networks
        }
        chosen |= {
            known: value for key, value in given.items() for known in settings[key][1:]
        }
        name = f"{(algorithm or label).replace('+', 'Plus')}Config"
        make = getattr(require_extra("d3rlpy", "baselines").algos, name)
        config = make(batch_size=batch_size, **chosen)
        return train_d3rlpy(
            context,
            config,
            goal_discount=goal_discount,
            best_share=best_share,
            return_range=return_range,
        )

    return family_method(
        train,
        label.lower().replace("+", "-"),
        purpose,
        settings=COMMON | {key: entry[0] for key, entry in settings.items()},
        label=label,
        modules=MODULES,
        num_steps=NUM_STEPS,
        refuses=_refuses,
    )


def _refuses(problem: Problem, settings: Mapping[str, Any]) -> None:
    """Refuse settings that would fail in the cell.

    Raises:
        ConfigError: A size or a rate that is not positive, a discount that is not in
            [0, 1), an expectile or a discount of goals that is not in (0, 1), a share
            that is not in (0, 1], a range that is not positive, or either of the last
            two where goals differ.
    """
    share = settings.get("best_share", 1.0)
    scale = converted(settings.get("return_range"), float | None, "return_range")
    check_share(share)
    given = SimpleNamespace(**{**settings, "return_range": scale})
    rates = [name for name in settings if name.endswith("learning_rate")]
    sizes = [n for n in ("num_layers", "num_action_samples") if n in settings]
    positive(given, "width", "batch_size", "return_range", *sizes, *rates)
    if not 0 <= settings.get("discount", 0.0) < 1:
        raise ConfigError(
            f"discount must be in [0, 1), got {settings['discount']}. With 1 or more, "
            "values are unbounded, and a diverged critic cannot be recognized."
        )
    hindsight = problem.goals == "hindsight"
    for name in ("expectile", *(["goal_discount"] if hindsight else [])):
        if not 0 < settings.get(name, 0.5) < 1:
            raise ConfigError(f"{name} must be in (0, 1), got {settings[name]}.")
    if hindsight and (share != 1 or scale is not None):
        setting = "return_range" if share == 1 else "best_share"
        raise ConfigError(
            f'{setting} compares returns, and with goals="hindsight", as '
            f"{problem.name} has them, episodes have none. Leave the method out of "
            f"this problem."
        )


bc = _method(
    "BC",
    "Clone the behavior; with goals, the behavior that led to them.",
    networks=("",),
    learning_rate=(1e-3, "learning_rate"),
)
bc_best = _method(
    "BC-best",
    "Clone the behavior of the episodes with the highest returns.",
    algorithm="BC",
    networks=("",),
    learning_rate=(1e-3, "learning_rate"),
    best_share=(0.1,),
)
bcq = _method(
    "BCQ",
    "Choose among actions that a generative model of the data proposes.",
    networks=("actor_", "critic_", "imitator_"),
    learning_rate=(1e-3, *BOTH_RATES, "imitator_learning_rate"),
    discount=DISCOUNT,
    num_action_samples=(10, "n_action_samples"),
    flexibility=(0.05, "action_flexibility"),
)
# The paper's Lagrangian sets the weight: it lowers it while values elsewhere exceed
# those of the data by less than the gap. Without a learning rate the weight is fixed;
# fixed at 5, values kept falling on U-Maze.
cql = _method(
    "CQL",
    "Learn values that are low where there are no data.",
    actor_learning_rate=(3e-5, "actor_learning_rate", "temp_learning_rate"),
    critic_learning_rate=(3e-4, "critic_learning_rate"),
    discount=DISCOUNT,
    num_action_samples=(10, "n_action_samples"),
    conservative_weight=(10.0, "conservative_weight"),
    conservative_learning_rate=(3e-4, "alpha_learning_rate"),
    conservative_gap=(5.0, "alpha_threshold"),
)
iql = _method(
    "IQL",
    "Learn values from actions of the data alone, and weigh the actions by them.",
    networks=("actor_", "critic_", "value_"),
    learning_rate=(3e-4, *BOTH_RATES),
    discount=DISCOUNT,
    expectile=(0.7, "expectile"),
    temperature=(3.0, "weight_temp"),
    return_range=(None,),
)
td3_bc = _method(
    "TD3+BC",
    "Maximize values and stay close to the actions of the data.",
    learning_rate=(3e-4, *BOTH_RATES),
    discount=DISCOUNT,
    alpha=(2.5, "alpha"),
)
awac = _method(
    "AWAC",
    "Weigh the actions of the data by their advantages.",
    learning_rate=(3e-4, *BOTH_RATES),
    discount=DISCOUNT,
    temperature=(1.0, "lam"),
)
rebrac = _method(
    "ReBRAC",
    "TD3+BC with a behavior penalty on bootstrapped values as well.",
    normed="critic_",
    learning_rate=(1e-3, *BOTH_RATES),
    discount=DISCOUNT,
    actor_beta=(0.01, "actor_beta"),
    critic_beta=(0.01, "critic_beta"),
    num_layers=(2,),
)
