r"""Batches of transitions $(s_t, a_t, r_t, s_{t+1})$ for off-policy learning.

Row t of the data and row t + 1 of the same run make a transition; the reward is that of
arriving, $r_t = r(s_{t+1}, g)$.

- `SingleTask`: one reward. Data with goals are relabelled to the one goal that the
  environment has; other data keep their rewards.
- `Hindsight`: every drawn transition gets a goal that its run reached k steps later,
  $k \sim \mathrm{Geometric}(1 - \gamma_g)$, cut at the end of the run (Andrychowicz et
  al. 2017, "future"; the geometric form is that of Eysenbach et al. 2022), and the
  reward of that goal.

A transition terminates only if the data say so, which data with relabelled goals may
not do: reaching a goal does not end an episode here.

`Codec` scales what networks see:

- Inputs are the observation and, for problems with goals, then the desired goal, each
  column with mean 0 and standard deviation 1 over the data. A column whose standard
  deviation is at most 0.001 only loses its mean: it counts as constant.
- Actions are scaled to [-1, 1]. An action column that is a target for an observation
  column (an environment says so in `metadata["action_targets"]`) is first taken
  relative to it: as in the baselines of Janner et al. (2022) for the arm, networks
  learn by how much to move, and the range is that of the data.
- Action columns that never change are left out, and put back in for the environment.
  Blown up to [-1, 1] they would let a critic tell actions of the data from all others
  by numbers that move nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from gymnasium import spaces

from diffuser_policy.benchmark.problem import (
    Problem,
    achieved_goals,
    fixed_goal,
    task_rewards,
)
from diffuser_policy.choices import GOAL_PARTS
from diffuser_policy.data.flat import FlatDataset, run_returns
from diffuser_policy.envs import Env, env_name, reward_of_goals
from diffuser_policy.errors import ConfigError, DatasetError
from diffuser_policy.spaces import into_box
from diffuser_policy.words import counted

MIN_SPREAD = 1e-3  # of a column; what never changes must not be blown up
MARGIN = 1.02  # so that no recorded action is at the very end of tanh
MIN_RANGE = 1e-6  # of an action column, as a share of the space's


@dataclass(frozen=True, kw_only=True, eq=False)
class Codec:
    """Scales inputs and actions; what networks see is float32."""

    mean: np.ndarray  # [inputs]
    std: np.ndarray  # [inputs]
    columns: tuple[int, ...]  # of actions, which networks see; others keep their middle
    low: np.ndarray  # [actions], of relative actions where `targets` has a column
    high: np.ndarray  # [actions]
    space: spaces.Box  # of actions
    targets: tuple[int, ...]  # observation column that an action is a target for, or -1

    @classmethod
    def fit(
        cls,
        env: Env,
        observations: np.ndarray,
        actions: np.ndarray,
        goals: np.ndarray | None = None,
    ) -> Self:
        """Return the codec of observations and actions `[rows, …]`.

        Problems with goals also have achieved goals `[rows, goal]`.

        Raises:
            ConfigError: The environment names targets that are no columns, its actions
                have no bounds, or its observations are no flat arrays.
            DatasetError: The actions never change.
        """
        _check_flat(env)
        parts = [observations] if goals is None else [observations, goals]
        mean = np.concatenate([part.mean(axis=0, dtype=np.float64) for part in parts])
        std = np.concatenate([part.std(axis=0, dtype=np.float64) for part in parts])
        space: Any = env.action_space
        targets = _targets(env, observations.shape[1], actions.shape[1])
        low, high = (
            bound.astype(np.float32).reshape(-1) for bound in (space.low, space.high)
        )
        if not np.isfinite([low, high]).all():
            raise ConfigError(
                "Actions are scaled by their bounds, but the action space has none: "
                f"{space}. Wrap the environment so that it has."
            )
        moved = actions - _base(targets, observations)
        least, most = moved.min(axis=0), moved.max(axis=0)
        changing = most - least > MIN_RANGE * (high - low)
        if not changing.any():
            raise DatasetError(
                "The actions of the data never change: there is nothing to learn."
            )
        aimed = np.array(targets) >= 0
        half = (most - least) / 2 * MARGIN
        by_data = aimed | ~changing
        low = np.where(by_data, (least + most) / 2 - half, low)
        high = np.where(by_data, (least + most) / 2 + half, high)
        return cls(
            mean=mean.astype(np.float32),
            std=np.where(std > MIN_SPREAD, std, 1.0).astype(np.float32),
            columns=tuple(np.flatnonzero(changing).tolist()),
            low=low.astype(np.float32),
            high=high.astype(np.float32),
            space=space,
            targets=targets,
        )

    @property
    def num_actions(self) -> int:
        """Numbers of an action that networks see."""
        return len(self.columns)

    def inputs(self, rows: np.ndarray) -> np.ndarray:
        """Return scaled `[..., inputs]` of observations, or observations and goals.

        Raises:
            ConfigError: Rows of another size.
        """
        if rows.shape[-1] != len(self.mean):
            raise ConfigError(
                f"This policy takes {counted(len(self.mean), 'number')} (observation, "
                f"then goal), got {rows.shape[-1]:,}."
            )
        return np.asarray((rows - self.mean) / self.std, np.float32)

    def encode(self, actions: np.ndarray, observations: np.ndarray) -> np.ndarray:
        """Return what networks see of actions: `[n, num_actions]` in [-1, 1].

        They were taken in observations `[n, size]`.
        """
        moved, kept = actions - _base(self.targets, observations), list(self.columns)
        low, high = self.low[kept], self.high[kept]
        scaled = 2 * (moved[:, kept] - low) / (high - low) - 1
        return np.asarray(scaled.clip(-1, 1), np.float32)

    def decode(self, encoded: np.ndarray, observations: np.ndarray) -> np.ndarray:
        """Return actions `[n, actions]` inside of the environment's space, in its type.

        They are taken in observations `[n, at least size]`.
        """
        whole = np.zeros((len(encoded), len(self.low)), np.float32)
        whole[:, list(self.columns)] = encoded
        moved = self.low + (whole + 1) / 2 * (self.high - self.low)
        actions: np.ndarray = moved + _base(self.targets, observations)
        return into_box(self.space, actions)


def _check_flat(env: Env) -> None:
    """Refuse observations that `flat_observation` does not read, before training.

    Raises:
        ConfigError: Anything but a Box of one axis, or a dictionary of such boxes that
            are the parts of a goal dictionary.
    """
    space: Any = env.observation_space
    is_dict = isinstance(space, spaces.Dict)
    parts = dict(space.items()) if is_dict else {"observation": space}
    needed = {"observation", "desired_goal"} if is_dict else {"observation"}
    flat = [isinstance(p, spaces.Box) and len(p.shape) == 1 for p in parts.values()]
    if not all(flat) or not needed <= {*parts} <= {*GOAL_PARTS}:
        raise ConfigError(
            f"This method reads flat observations, and goal dictionaries of flat "
            f"arrays without other keys; {env_name(env)} has {space}. Wrap the "
            f"environment: gymnasium.wrappers.FilterObservation leaves keys out, and "
            f"FlattenObservation makes one flat array."
        )


def _base(targets: tuple[int, ...], observations: np.ndarray) -> np.ndarray:
    """Return the values `[n, actions]` that actions are relative to; zero for none."""
    columns = np.array(targets)
    return np.where(columns >= 0, observations[..., columns], 0.0)


def _targets(env: Env, num_columns: int, num_actions: int) -> tuple[int, ...]:
    """Return the observation column that each action column is a target for, or -1."""
    metadata = getattr(env.unwrapped, "metadata", {})
    given = metadata.get("action_targets", [-1] * num_actions)
    if len(given) != num_actions or not all(-1 <= c < num_columns for c in given):
        raise ConfigError(
            f"The environment's metadata['action_targets'] has to name an observation "
            f"column (or -1) for each of {num_actions} action columns, got {given}."
        )
    return tuple(int(column) for column in given)


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Transitions, scaled; float32."""

    observations: np.ndarray  # [n, inputs], with the goal behind the observation
    actions: np.ndarray  # [n, actions]
    rewards: np.ndarray  # [n, 1]
    next_observations: np.ndarray  # [n, inputs]
    next_actions: np.ndarray  # [n, actions]
    terminals: np.ndarray  # [n, 1], 1 where the data terminated


class Transitions(ABC):
    """The transitions of a dataset.

    Attributes:
        codec: Scales what networks see.
        reward: `[rows]`; none where rewards depend on goals that are yet to be drawn.
    """

    codec: Codec
    reward: np.ndarray | None = None

    def __init__(self, flat: FlatDataset) -> None:
        self.flat = flat
        self.ends = flat.run_ends
        self.rows = flat.known_steps()  # [transitions]
        self.observation = flat.fields["observation"]
        self.action = flat.fields["action"]

    def keep_best(self, share: float) -> None:
        """Leave out all but a share of the runs, those with the highest returns.

        Raises:
            ConfigError: A share that is not in (0, 1], or goals that differ: no run is
                better than another.
            DatasetError: The best runs have a single step each.
        """
        check_share(share)
        if share == 1:
            return
        best = self.flat.best_runs(share, self._rewards("best_share"))
        self.rows = self.rows[np.repeat(best, self.flat.run_lengths)[self.rows]]
        if not len(self.rows):
            raise DatasetError(
                f"The best {share:.0%} of the runs of {self.flat!r} have no "
                f"transitions: each has a single step. Raise best_share."
            )

    def scale_rewards(self, return_range: float) -> None:
        """Scale the rewards so that the best and the worst return differ by this much.

        Raises:
            ConfigError: Goals differ: runs have no returns.
            DatasetError: All runs have the same return.
        """
        rewards = self._rewards("return_range")
        returns = run_returns(rewards, self.flat.run_starts)
        found = float(returns.max() - returns.min())
        if not found > 0:
            raise DatasetError(
                f"All runs of {self.flat!r} have the same return, which no "
                "return_range can spread. Leave it out."
            )
        self.reward = rewards * (return_range / found)

    def _rewards(self, setting: str) -> np.ndarray:
        """Return the rewards, for a setting that compares returns.

        Raises:
            ConfigError: They depend on goals that are yet to be drawn.
        """
        if self.reward is None:
            raise ConfigError(
                f'{setting} compares returns, and with goals="hindsight" runs have '
                f"none. Leave it out."
            )
        return self.reward

    def batch(self, rng: np.random.Generator, size: int) -> Batch:
        """Draw `size` transitions, uniformly over the rows."""
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
    """Transitions with the one reward of an environment where policies will act.

    Raises:
        ConfigError: The environment has another goal in every episode.
    """

    reward: np.ndarray

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

    Achieved goals are those of the data, or computed by the environment; $\gamma_g$ is
    the `discount` of the number of steps to the goal.

    Raises:
        ConfigError: The environment has no goals.
    """

    def __init__(self, flat: FlatDataset, env: Env, *, discount: float = 0.99) -> None:
        super().__init__(flat)
        if not 0 < discount < 1:
            raise ConfigError(f"goal_discount must be in (0, 1), got {discount}.")
        self.achieved = achieved_goals(flat, env)
        self.discount = discount
        self.compute_reward: Any = reward_of_goals(env)
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

    Raises:
        ConfigError: The environment lacks the goal or the reward.
        DatasetError: The data lacks it.
    """
    with closing(problem.make_env()) as env:
        if problem.goals == "hindsight":
            return Hindsight(flat, env, discount=goal_discount)
        return SingleTask(flat, env)


def check_share(best_share: float) -> None:
    """Refuse an impossible share of the data.

    Raises:
        ConfigError: It is not in (0, 1].
    """
    if not 0 < best_share <= 1:
        raise ConfigError(f"best_share must be in (0, 1], got {best_share}.")


def check_goals(env: Env, why: str) -> None:
    """Refuse environments whose observations and rewards are not those of goals.

    Raises:
        ConfigError: Observations carry no goals, or there is no reward of goals; `why`
            says, as a clause, what the method needs them for.
    """
    keys = sorted(getattr(env.observation_space, "spaces", {}))
    if {*GOAL_PARTS} <= {*keys} and reward_of_goals(env) is not None:
        return
    has = f"observes {', '.join(keys) or env.observation_space}"
    if {*GOAL_PARTS} <= {*keys}:
        has = "has no compute_reward(achieved, desired, info)"
    raise ConfigError(
        f"{why}: it needs an environment with compute_reward and observations of "
        f"{', '.join(GOAL_PARTS)}; {env_name(env)} {has}. Leave it out of this problem."
    )
