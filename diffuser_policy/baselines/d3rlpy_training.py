"""Gradient steps with an algorithm of d3rlpy: our batches, its updates.

d3rlpy has neither hindsight nor datasets of several million rows in mind, and draws
batches in Python row by row. So batches are made by `transitions`, and the algorithm
is asked for one `update` at a time. Step i draws from generators of `(seed, i)`, so a
training that was killed goes on to the same result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.random import Generator

from diffuser_policy.baselines.codec import Codec
from diffuser_policy.baselines.transitions import Batch, make_transitions
from diffuser_policy.baselines.values import clip_targets, possible_values, value_facts
from diffuser_policy.baselines.weights import load_parts, save_parts
from diffuser_policy.benchmark.checked import flat_observation
from diffuser_policy.benchmark.training import Training
from diffuser_policy.errors import ConfigError, require_extra
from diffuser_policy.training.state import Parts

CHECKPOINT = "checkpoint.safetensors"
CHECKPOINT_STEPS = 1_000
PROGRESS_STEPS = 100
NUM_RATED = 10_000  # transitions whose rewards and values are looked at


class D3rlpyPolicy:
    """A trained algorithm, by Stable-Baselines3's contract.

    Args:
        algorithm: Of d3rlpy, for scaled inputs and actions.
        codec: Scales them.
    """

    def __init__(self, algorithm: Any, codec: Codec) -> None:
        self.algorithm, self.codec = algorithm, codec

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,  # noqa: ARG002 (it remembers nothing)
        deterministic: bool = False,  # noqa: ARG002 (always its best action)
    ) -> tuple[np.ndarray, Any]:
        """Return the best actions, in the environment's units, and the state as given.

        Args:
            observation: Single or batched; a goal dictionary for problems with goals.
            state: Passed through.
            episode_start: Not used.
            deterministic: Not used.
        """
        rows = flat_observation(observation)
        batch = np.atleast_2d(rows)
        encoded = self.algorithm.predict(self.codec.inputs(batch))
        actions = self.codec.decode(np.asarray(encoded), batch)
        return (actions[0] if rows.ndim == 1 else actions), state


def train_d3rlpy(
    training: Training,
    config: Any,
    *,
    goal_discount: float = 0.99,
    clip_values: bool = False,
) -> D3rlpyPolicy:
    """Train an algorithm until the training is finished.

    Args:
        training: The workplace; a checkpoint in its folder is gone on from.
        config: Of the algorithm, such as `d3rlpy.algos.IQLConfig(...)`.
        goal_discount: For goals in hindsight.
        clip_values: Bootstrap from values that rewards and discount allow, no others.

    Raises:
        ConfigError: Losses are no longer finite.
    """
    torch.set_num_threads(1)
    transitions = make_transitions(
        training.problem, training.dataset, goal_discount=goal_discount
    )
    torch.manual_seed(training.seed)
    algorithm = config.create()
    algorithm.create_impl((transitions.num_inputs,), transitions.num_actions)
    policy = D3rlpyPolicy(algorithm, transitions.codec)
    rated = transitions.batch(np.random.default_rng(training.seed), NUM_RATED)
    if clip_values:
        clip_targets(algorithm, possible_values(rated.rewards, config.gamma))
    step = take_steps(
        training,
        policy,
        lambda rng: mini_batch(transitions.batch(rng, config.batch_size)),
    )
    modules = algorithm.impl.modules.get_torch_modules()
    training.facts |= {
        "num_steps": step,
        "num_parameters": _count(modules),
        "values": value_facts(algorithm, rated),
    }
    return policy


def take_steps(
    training: Training, policy: Any, draw: Callable[[Generator], Any]
) -> int:
    """Go on from the checkpoint in the training's folder, if there is one.

    Args:
        training: Says when to stop.
        policy: For the learning curve; its `algorithm` takes the steps.
        draw: Returns a batch as the algorithm's `update` takes it.

    Returns:
        The number of gradient steps in the end.

    Raises:
        ConfigError: Losses are no longer finite.
        CheckpointError: The checkpoint is damaged, or of another algorithm.
    """
    algorithm, path = policy.algorithm, training.folder / CHECKPOINT
    parts = parts_of(algorithm)
    data = training.data_facts
    step = load_parts(path, parts, data=data) if path.is_file() else 0
    training.forget_curve(step)
    algorithm.set_grad_step(step)
    while not training.finished(step):
        rng = np.random.default_rng((training.seed, step))
        torch.manual_seed(int(rng.integers(2**62)))
        losses = algorithm.update(draw(rng))
        step += 1
        if step % PROGRESS_STEPS == 0:
            _check(losses, step)
            training.progress(step, figures=losses)
        if training.curve_due(step):
            training.curve(step, policy)
        if step % CHECKPOINT_STEPS == 0:
            save_parts(path, parts, step=step, data=data)
    save_parts(path, parts, step=step, data=data)
    return step


def mini_batch(batch: Batch) -> Any:
    """Return a batch as d3rlpy takes it."""
    dataset = require_extra("d3rlpy.dataset", "baselines")
    return dataset.TransitionMiniBatch(
        observations=batch.observations,
        actions=batch.actions,
        rewards=batch.rewards,
        next_observations=batch.next_observations,
        next_actions=batch.next_actions,
        terminals=batch.terminals,
        intervals=np.ones_like(batch.rewards),
        transitions=[],
    )


def parts_of(algorithm: Any) -> Parts:
    """Return the modules and optimizers of an algorithm by name."""
    parts: dict[str, Any] = {}
    for name, value in vars(algorithm.impl.modules).items():
        if isinstance(value, torch.nn.Module):
            parts[name] = value
        elif hasattr(value, "optim"):
            parts[name] = value.optim
    return parts


def _check(losses: dict[str, float], step: int) -> None:
    if not np.isfinite(list(losses.values())).all():
        raise ConfigError(
            f"The losses are not finite after {step} gradient steps: {losses}. Lower "
            f"the learning rate, or look for outliers in the data."
        )


def _count(modules: dict[str, torch.nn.Module]) -> int:
    """Return the number of trained parameters: target networks are copies."""
    return sum(
        parameter.numel()
        for name, module in modules.items()
        if not name.startswith("targ_")
        for parameter in module.parameters()
    )
