r"""Decision Transformer (Chen et al. 2021) through d3rlpy: actions that earn a return.

    (return to go, input, action) of the last `context` steps → next action

Every stretch of data as long as an episode counts as one: its return to go at step j is
what it pays from step j to its end. While the policy acts, the return to go starts at
what the best stretches of the data paid, and falls by what it earns. `predict` is told
no rewards, so the policy computes them from the goals in the observation or, without
goals, by a network that learned the rewards of the data.

| setting | here | paper |
|---|---|---|
| context, batch | 20, 64 | 20, 64 |
| width, layers, heads | 64, 2, 1, which a CPU can train | 128, 3, 1 |
| AdamW | 1e-4, decay 1e-4, gradient norm 0.25 | the same, with a warm-up |
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from diffuser_policy.baselines.d3rlpy_methods import MODULES, NUM_STEPS, take_steps
from diffuser_policy.baselines.dynamics import DynamicsConfig
from diffuser_policy.baselines.mbop import learn_outcomes
from diffuser_policy.baselines.shooting import check_rows
from diffuser_policy.baselines.transitions import (
    Codec,
    SingleTask,
    check_goals,
    check_share,
)
from diffuser_policy.benchmark.context import MethodContext, flat_observation
from diffuser_policy.benchmark.methods import register_method
from diffuser_policy.benchmark.problem import Problem
from diffuser_policy.build import num_parameters
from diffuser_policy.envs import reward_of_goals
from diffuser_policy.errors import ConfigError, require_extra
from diffuser_policy.settings import positive

TOLD_NO_REWARDS = (
    "A Decision Transformer has to know what it has earned so far, but predict is told "
    "no rewards"
)
REWARD_STEPS = 3_000  # gradient steps of the network that predicts rewards
Memory = tuple[np.ndarray, ...]  # inputs, actions, returns to go, steps, return left


class Stretches:
    """Windows of stretches of data, each stretch as long as an episode of `num_steps`.

    A run that is shorter than an episode is one stretch. `returns` are what the
    stretches paid; they are divided by `scale`, the largest in size.

    Raises:
        ConfigError: No stretch pays anything.
    """

    def __init__(self, data: SingleTask, num_steps: int) -> None:
        self.data, self.num_steps = data, num_steps
        flat = data.flat
        lengths = np.minimum(flat.run_lengths, num_steps)
        counts = flat.run_lengths - lengths + 1
        run = np.repeat(np.arange(flat.num_runs), counts)
        first = np.cumsum(counts) - counts
        self.starts = flat.run_starts[run] + np.arange(len(run)) - first[run]
        self.lengths = lengths[run]
        rewards = data.reward.astype(np.float64)
        self.paid = np.concatenate([[0.0], np.cumsum(rewards)])
        ends = self.starts + self.lengths
        self.returns = self.paid[ends] - self.paid[self.starts]
        self.scale = float(np.abs(self.returns).max())
        if not self.scale:
            raise ConfigError(
                f"No stretch of {num_steps} steps of {flat!r} has a return other than "
                "0: a Decision Transformer has no return to aim at."
            )

    def target(self, best_share: float) -> float:
        """Return the mean return of the best stretches, this share of all, or of one.

        Args:
            best_share: In (0, 1].
        """
        number = max(1, int(best_share * len(self.returns)))
        return float(np.partition(self.returns, -number)[-number:].mean())

    def draw(
        self, rng: np.random.Generator, size: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw stretches and a step of each, from 0; every step is as likely."""
        ends = np.cumsum(self.lengths)
        drawn = rng.integers(ends[-1], size=size)
        chosen = np.searchsorted(ends, drawn, side="right")
        return chosen, drawn - ends[chosen] + self.lengths[chosen]

    def batch(self, rng: np.random.Generator, size: int, context: int) -> Any:
        """Draw windows as d3rlpy takes them; what is before a stretch is masked."""
        chosen, last = self.draw(rng, size)
        starts, lengths = self.starts[chosen], self.lengths[chosen]
        steps = last[:, None] + np.arange(1 - context, 1)
        mask = steps >= 0
        rows = np.where(mask, starts[:, None] + steps, starts[:, None])
        to_go = (self.paid[starts + lengths][:, None] - self.paid[rows]) / self.scale
        data, flat_rows = self.data, rows.ravel()
        here = data.observation[flat_rows]
        inputs = data.inputs(here, data.goals(len(here)))
        actions = data.codec.encode(data.action[flat_rows], here)
        rewards = data.reward[rows] / self.scale

        def masked(values: np.ndarray) -> np.ndarray:
            shaped = values.reshape(size, context, -1) * mask[..., None]
            return np.asarray(shaped, np.float32)

        return require_extra("d3rlpy.dataset", "baselines").TrajectoryMiniBatch(
            observations=masked(inputs),
            actions=masked(actions),
            rewards=masked(rewards),
            returns_to_go=masked(to_go),
            terminals=np.zeros((size, context, 1), np.float32),
            timesteps=np.where(mask, steps + 1, 0).astype(np.float32),
            masks=mask.astype(np.float32),
            length=context,
        )


class TransformerPolicy:
    """Acts to earn the return `target`, by Stable-Baselines3's contract.

    Its state is the last `context` steps of every environment. Without a state, each
    call is the first step of an episode. Returns are divided by `scale`. What was
    earned is computed from goals (`compute_reward`) or predicted from observations
    `[n, size]` and actions (`predict_reward`), whichever is given.
    """

    def __init__(
        self,
        algorithm: Any,
        codec: Codec,
        *,
        target: float,
        scale: float,
        compute_reward: Any = None,
        predict_reward: Any = None,
    ) -> None:
        self.algorithm, self.codec = algorithm, codec
        self.compute_reward = compute_reward
        self.predict_reward = predict_reward
        self.target, self.scale = target, scale
        self.context: int = algorithm.config.context_size
        self.max_step: int = algorithm.config.max_timestep - 1

    def predict(
        self,
        observation: Any,
        state: Memory | None = None,
        episode_start: Any = None,
        deterministic: bool = False,  # noqa: ARG002 (nothing is drawn)
    ) -> tuple[np.ndarray, Memory]:
        """Return actions and the memory of each environment, one a row.

        `episode_start` `[n]` says which environments begin an episode; `state`, as
        returned last, is not changed.

        Raises:
            ObservationError: A state of another number of environments.
        """
        rows = flat_observation(observation)
        batch = np.atleast_2d(rows)
        memory = self._fresh(len(batch)) if state is None else state
        check_rows(memory[0], len(batch))
        memory = tuple(part.copy() for part in memory)
        if episode_start is not None:
            begins = np.broadcast_to(np.asarray(episode_start, np.bool_), len(batch))
            for part, fresh in zip(memory, self._fresh(len(batch)), strict=True):
                part[begins] = fresh[begins]
        inputs, actions, to_go, steps, left = memory
        if self.compute_reward is not None:
            earned = self.compute_reward(
                np.atleast_2d(observation["achieved_goal"]),
                np.atleast_2d(observation["desired_goal"]),
                {},
            )
            left -= np.where(steps > 0, earned, 0.0)  # nothing before the first step
        steps += 1
        for table, newest in (
            (inputs, self.codec.inputs(batch)),
            (actions, np.zeros_like(actions[:, 0])),
            (to_go, left / self.scale),
        ):
            table[:, :-1], table[:, -1] = table[:, 1:].copy(), newest
        actions[:, -1] = encoded = self._act(memory)
        decoded = self.codec.decode(encoded, batch)
        if self.predict_reward is not None:  # by the next step, it will be earned
            left -= self.predict_reward(batch, decoded.reshape(len(batch), -1))
        return (decoded[0] if rows.ndim == 1 else decoded), memory

    def _fresh(self, num_envs: int) -> Memory:
        shape = (num_envs, self.context)
        return (
            np.zeros((*shape, len(self.codec.mean)), np.float32),
            np.zeros((*shape, self.codec.num_actions), np.float32),
            np.zeros(shape, np.float32),
            np.zeros(num_envs, np.int64),
            np.full(num_envs, self.target, np.float64),
        )

    @torch.no_grad()
    def _act(self, memory: Memory) -> np.ndarray:
        """Return the actions `[n, actions]` of the last step.

        d3rlpy's own `predict` takes one environment at a time.
        """
        inputs, actions, to_go, steps, _ = memory
        numbers = steps[:, None] + np.arange(1 - self.context, 1)
        times = torch.from_numpy(numbers.clip(0, self.max_step))
        hidden = torch.from_numpy((numbers < 1).astype(np.float32))
        transformer = self.algorithm.impl.modules.transformer
        transformer.eval()
        predicted = transformer(
            torch.from_numpy(inputs),
            torch.from_numpy(actions),
            torch.from_numpy(to_go)[..., None],
            times,
            hidden,
        )
        return np.asarray(predicted[:, -1])


def _refuse(_: Problem, settings: Mapping[str, Any]) -> None:
    check_share(settings["best_share"])
    sizes = "width", "num_layers", "context", "batch_size", "learning_rate"
    positive(SimpleNamespace(**settings), *sizes)


@register_method(
    "dt",
    label="DT",
    goals=("none",),
    modules=MODULES,
    num_steps=NUM_STEPS,
    refuses=_refuse,
)
def decision_transformer(
    method: MethodContext,
    *,
    width: int = 64,
    num_layers: int = 2,
    context: int = 20,
    batch_size: int = 64,
    learning_rate: float = 1e-4,
    best_share: float = 0.001,
    target_scale: float = 1.0,
) -> TransformerPolicy:
    """Model the data as sequences, and ask for those that pay.

    Args:
        method: Its context; training resumes from the checkpoint in its folder.
        width: Width of the transformer.
        num_layers: Layers of the transformer.
        context: Steps that it sees.
        batch_size: Windows of a gradient step.
        learning_rate: Learning rate of AdamW.
        best_share: It aims at the mean return of the best stretches, this share of all.
        target_scale: Factor of that aim. The paper asks for an expert's return.

    Raises:
        ConfigError: The environment has another goal in every episode, or the data pay
            nothing.
    """
    d3rlpy = require_extra("d3rlpy", "baselines")
    torch.set_num_threads(1)
    env = method.make_env()
    data = SingleTask(method.dataset, env)
    told: dict[str, Any] = {}
    if data.goal is not None:
        check_goals(env, TOLD_NO_REWARDS)
        told["compute_reward"] = reward_of_goals(env)
    limit = env.spec.max_episode_steps if env.spec else None
    stretches = Stretches(data, limit or int(data.flat.run_lengths.max()))
    target = target_scale * stretches.target(best_share)
    if not told:
        config = DynamicsConfig(num_members=1, num_steps=REWARD_STEPS, seed=method.seed)
        folder = method.folder / "rewards"
        space: Any = env.action_space
        run = learn_outcomes(method, folder, space=space, discount=0.99, config=config)
        told["predict_reward"] = run.average.dynamics.rewards
    torch.manual_seed(method.seed)
    algorithm = d3rlpy.algos.DecisionTransformerConfig(
        num_layers=num_layers,
        encoder_factory=d3rlpy.models.VectorEncoderFactory(
            [width], exclude_last_activation=True
        ),
        optim_factory=d3rlpy.optimizers.AdamWFactory(
            weight_decay=1e-4, clip_grad_norm=0.25
        ),
        context_size=context,
        max_timestep=stretches.num_steps + 1,
        batch_size=batch_size,
        learning_rate=learning_rate,
    ).create()
    algorithm.create_impl((len(data.codec.mean),), data.codec.num_actions)
    policy = TransformerPolicy(
        algorithm,
        data.codec,
        target=target,
        scale=stretches.scale,
        **told,
    )
    env.close()
    step = take_steps(
        method, policy, lambda rng: stretches.batch(rng, batch_size, context)
    )
    method.facts |= {
        "num_steps": step,
        "num_parameters": num_parameters(algorithm.impl.modules.transformer),
        "target_return": target,
    }
    return policy
