r"""Batches of transitions $(s_t, a_t, r_t, s_{t+1})$ for off-policy learning.

Row t of the data and row t + 1 of the same run make a transition; the reward is that of
arriving, $r_t = r(s_{t+1}, g)$.

- `SingleTask`: one reward. Data with goals are relabelled to the one goal that the
  environment has; other data keep their rewards.
- `Hindsight`: every drawn transition gets a goal that its run reached k steps later,
  $k \sim \mathrm{Geometric}(1 - \gamma_g)$, cut at the end of the run (Andrychowicz et
  al. 2017, "future"; the geometric form is that of Eysenbach et al. 2022), and the
  reward of that goal.

Nothing terminates unless the data say so, and data whose goals are relabelled may not:
reaching a goal does not end an episode here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from diffuser_policy.baselines.codec import Codec
from diffuser_policy.benchmark.problem import (
    Problem,
    achieved_goals,
    fixed_goal,
    task_rewards,
)
from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.envs import Env
from diffuser_policy.errors import ConfigError, DatasetError
from diffuser_policy.spaces import GOAL_KEYS


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Transitions, scaled; float32.

    Attributes:
        observations: `[n, inputs]`, with the goal behind the observation.
        actions: `[n, actions]`.
        rewards: `[n, 1]`.
        next_observations: `[n, inputs]`.
        next_actions: `[n, actions]`.
        terminals: `[n, 1]`, 1 where the data terminated.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    next_observations: np.ndarray
    next_actions: np.ndarray
    terminals: np.ndarray


class Transitions(ABC):
    """The transitions of a dataset.

    Attributes:
        codec: Scales what networks see.
        rows: `[transitions]` rows of the data that have a successor, or terminated.
    """

    codec: Codec

    def __init__(self, flat: FlatDataset) -> None:
        """Find the rows.

        Args:
            flat: The data.
        """
        self.flat = flat
        self.ends = flat.run_ends
        index = np.arange(flat.num_rows)
        self.rows = np.flatnonzero((index + 1 < self.ends) | flat.fields["terminated"])
        if not len(self.rows):
            raise DatasetError(
                f"{flat!r} has no transitions: every run has a single step."
            )
        self.observation, self.action = (
            flat.fields["observation"],
            flat.fields["action"],
        )

    @property
    def num_inputs(self) -> int:
        """Numbers that networks see."""
        return len(self.codec.mean)

    @property
    def num_actions(self) -> int:
        """Numbers of an action that networks see."""
        return self.codec.num_actions

    def batch(self, rng: np.random.Generator, size: int) -> Batch:
        """Draw transitions, uniformly over the rows.

        Args:
            rng: Source of randomness.
            size: How many.
        """
        rows = self.rows[rng.integers(len(self.rows), size=size)]
        following = np.minimum(rows + 1, self.ends[rows] - 1)
        goals, rewards = self._task(rng, rows, following)
        here, there = self.observation[rows], self.observation[following]
        return Batch(
            observations=self.inputs(here, goals),
            actions=self.codec.encode(self.action[rows], here),
            rewards=rewards.astype(np.float32)[:, None],
            next_observations=self.inputs(there, goals),
            next_actions=self.codec.encode(self.action[following], there),
            terminals=self.flat.fields["terminated"][rows].astype(np.float32)[:, None],
        )

    def inputs(self, observations: np.ndarray, goals: np.ndarray | None) -> np.ndarray:
        """Return scaled inputs `[n, inputs]` of observations, and of goals if any."""
        if goals is not None:
            observations = np.concatenate([observations, goals], axis=1)
        return self.codec.inputs(observations)

    @abstractmethod
    def _task(
        self, rng: np.random.Generator, rows: np.ndarray, following: np.ndarray
    ) -> tuple[np.ndarray | None, np.ndarray]:
        """Return goals `[n, goal]`, or none, and rewards `[n]` of some rows."""


class SingleTask(Transitions):
    """Transitions with one reward.

    Args:
        flat: The data.
        env: Where its policies will act.

    Raises:
        ConfigError: The environment has another goal in every episode.
    """

    def __init__(self, flat: FlatDataset, env: Env) -> None:
        super().__init__(flat)
        self.reward = task_rewards(flat, env)
        # In goal environments, policies observe a goal, though it is constant.
        goal = fixed_goal(env)
        self.goal = None if goal is None else goal.astype(np.float32)[None]
        self.codec = Codec.fit(env, self.observation, self.action, self.goal)

    def goals(self, number: int) -> np.ndarray | None:
        """Return the one goal, repeated `[number, goal]`; none without goals."""
        return None if self.goal is None else np.repeat(self.goal, number, axis=0)

    def _task(
        self,
        rng: np.random.Generator,  # noqa: ARG002 (nothing is drawn)
        rows: np.ndarray,
        following: np.ndarray,  # noqa: ARG002
    ) -> tuple[np.ndarray | None, np.ndarray]:
        return self.goals(len(rows)), self.reward[rows]


class Hindsight(Transitions):
    r"""Transitions with goals that were reached later.

    Args:
        flat: The data; it has achieved goals, or the environment computes them.
        env: Has `compute_reward`.
        discount: $\gamma_g$ of the number of steps to the goal.

    Raises:
        ConfigError: The environment has no goals.
    """

    def __init__(self, flat: FlatDataset, env: Env, *, discount: float = 0.99) -> None:
        super().__init__(flat)
        if not 0 < discount < 1:
            raise ConfigError(f"goal_discount must be in (0, 1), got {discount}.")
        self.achieved = achieved_goals(flat, env)
        self.discount = discount
        self.compute_reward = env.unwrapped.compute_reward  # type: ignore[attr-defined]
        self.codec = Codec.fit(env, self.observation, self.action, self.achieved)

    def _task(
        self, rng: np.random.Generator, rows: np.ndarray, following: np.ndarray
    ) -> tuple[np.ndarray | None, np.ndarray]:
        later = rows + rng.geometric(1 - self.discount, size=len(rows))
        goals = self.achieved[np.minimum(later, self.ends[rows] - 1)]
        rewards = self.compute_reward(self.achieved[following], goals, {})
        return goals, np.asarray(rewards)


def make_transitions(
    problem: Problem, flat: FlatDataset, *, goal_discount: float = 0.99
) -> Transitions:
    """Return the transitions that a problem lets methods see.

    Args:
        problem: With or without goals.
        flat: Its data.
        goal_discount: For goals in hindsight.

    Raises:
        ConfigError: The environment lacks the goal or the reward.
        DatasetError: The data do.
    """
    env = problem.make_env()
    try:
        if problem.goals == "hindsight":
            return Hindsight(flat, env, discount=goal_discount)
        return SingleTask(flat, env)
    finally:
        env.close()


def check_goals(env: Env, why: str) -> None:
    """Refuse environments whose observations and rewards are not those of goals.

    Args:
        env: Of a problem.
        why: What the method needs them for, as a clause.

    Raises:
        ConfigError: Observations carry no goals, or there is no reward of goals.
    """
    keys = sorted(getattr(env.observation_space, "spaces", {}))
    if not {*GOAL_KEYS} <= {*keys} or not hasattr(env.unwrapped, "compute_reward"):
        raise ConfigError(
            f"{why}: it needs an environment with compute_reward and observations of "
            f"{', '.join(GOAL_KEYS)}; {type(env.unwrapped).__name__} observes "
            f"{', '.join(keys) or env.observation_space}. Leave it out of this problem."
        )
