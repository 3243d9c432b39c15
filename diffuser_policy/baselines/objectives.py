r"""What planning by trial maximizes, and what it reads of an environment.

| objective | a trajectory is worth, per step |
|---|---|
| `"reward"` | the environment's reward, by its `compute_reward` |
| `"dense"` | $\exp(-distance)$ to the goal, D4RL's dense reward of the mazes |

Sparse rewards are zero for nearly every sequence of random actions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from diffuser_policy.envs import Env
from diffuser_policy.errors import ConfigError, UnknownNameError
from diffuser_policy.spaces import GOAL_KEYS, SpaceSpec, find_goal_columns

ObjectiveName = Literal["reward", "dense"]
NUM_RESETS = 8  # observations in which the goal's columns are looked for


@dataclass(frozen=True)
class GoalReward:
    """The environment's own reward of states.

    Attributes:
        env: Offers `compute_reward(achieved, desired, info)` for arrays.
        columns: Of the state, that hold the achieved goal.
    """

    env: Any
    columns: tuple[int, ...]

    def __call__(self, states: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """Return the mean reward a step `[…]`.

        Args:
            states: `[…, steps, state]`, environment units.
            goal: `[goal]`, environment units.
        """
        achieved = states[..., list(self.columns)]
        desired = np.broadcast_to(goal, achieved.shape)
        rewards = np.asarray(self.env.compute_reward(achieved, desired, {}))
        mean: np.ndarray = rewards.mean(axis=-1)
        return mean


@dataclass(frozen=True)
class GoalNearness:
    """Nearness to the goal, which is above zero everywhere.

    Attributes:
        columns: Of the state, that hold the achieved goal.
    """

    columns: tuple[int, ...]

    def __call__(self, states: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """Return the mean nearness a step `[…]`.

        Args:
            states: `[…, steps, state]`, environment units.
            goal: `[goal]`, environment units.
        """
        offset = states[..., list(self.columns)] - goal
        distance = np.sqrt(np.square(offset).sum(axis=-1))
        mean: np.ndarray = np.exp(-distance).mean(axis=-1)
        return mean


def make_objective(name: str, env: Env, spaces: SpaceSpec) -> GoalReward | GoalNearness:
    """Return an objective by name.

    Args:
        name: An `ObjectiveName`.
        env: The environment; its `compute_reward` is used.
        spaces: What `env_spaces` returns.

    Raises:
        UnknownNameError: No objective of that name.
        ConfigError: The environment has no `compute_reward`.
    """
    if name == "dense":
        return GoalNearness(spaces.goal_columns)
    if name != "reward":
        raise UnknownNameError("objective", name, get_args(ObjectiveName))
    if not hasattr(env.unwrapped, "compute_reward"):
        raise ConfigError(
            f"{type(env.unwrapped).__name__} has no compute_reward, so the reward of "
            f'imagined states is not known. Use the objective "dense".'
        )
    return GoalReward(env.unwrapped, spaces.goal_columns)


def env_spaces(env: Env) -> SpaceSpec:
    """Read the spaces of a goal environment; resets it.

    Args:
        env: Its observations are goal dictionaries.

    Raises:
        ConfigError: Other observations.
    """
    space: Any = env.observation_space
    parts = getattr(space, "spaces", {})
    if not set(GOAL_KEYS) <= set(parts):
        raise ConfigError(
            f"Planning by trial needs observations with {', '.join(GOAL_KEYS)}; this "
            f"environment has {space}."
        )
    seen = [env.reset(seed=seed)[0] for seed in range(NUM_RESETS)]
    observation, achieved = (
        np.stack([each[key] for each in seen]) for key in ("observation", GOAL_KEYS[0])
    )
    action_space: Any = env.action_space
    return SpaceSpec(
        observation_size=observation.shape[1],
        goal_size=achieved.shape[1],
        goal_columns=find_goal_columns(observation, achieved),
        action_low=tuple(map(float, action_space.low)),
        action_high=tuple(map(float, action_space.high)),
    )
