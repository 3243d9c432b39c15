r"""The objectives that planning by trial maximizes.

| objective | a trajectory is worth, per step |
|---|---|
| `"reward"` | the environment's reward, by its `compute_reward` |
| `"dense"` | $\exp(-distance)$ to the goal, D4RL's dense reward of the mazes |

Sparse rewards are zero for nearly every sequence of random actions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from diffuser_policy.envs import Env
from diffuser_policy.errors import ConfigError, UnknownNameError
from diffuser_policy.spaces import GOAL_KEYS, SpaceSpec, find_goal_columns

# States `[…, steps, state]` and a goal `[goal]`, both in environment units, to the mean
# reward a step `[…]`.
Objective = Callable[[np.ndarray, np.ndarray], np.ndarray]
NUM_RESETS = 8  # observations in which to look for the goal's columns


def goal_reward(env: Any, columns: Sequence[int]) -> Objective:
    """Return the environment's own reward of states as an objective.

    Args:
        env: Offers `compute_reward(achieved, desired, info)` for arrays.
        columns: Of the state, that hold the achieved goal.
    """

    def mean_reward(states: np.ndarray, goal: np.ndarray) -> np.ndarray:
        achieved = states[..., list(columns)]
        desired = np.broadcast_to(goal, achieved.shape)
        rewards = np.asarray(env.compute_reward(achieved, desired, {}))
        mean: np.ndarray = rewards.mean(axis=-1)
        return mean

    return mean_reward


def goal_nearness(columns: Sequence[int]) -> Objective:
    """Return nearness to the goal as an objective: it is above zero everywhere.

    Args:
        columns: Of the state, that hold the achieved goal.
    """

    def mean_nearness(states: np.ndarray, goal: np.ndarray) -> np.ndarray:
        offset = states[..., list(columns)] - goal
        distance = np.sqrt(np.square(offset).sum(axis=-1))
        mean: np.ndarray = np.exp(-distance).mean(axis=-1)
        return mean

    return mean_nearness


def make_objective(name: str, env: Env, spaces: SpaceSpec) -> Objective:
    """Return an objective by name.

    Args:
        name: "reward" or "dense".
        env: The environment; its `compute_reward` is used.
        spaces: What `env_spaces` returns.

    Raises:
        UnknownNameError: No objective of that name.
        ConfigError: The environment has no `compute_reward`.
    """
    if name == "dense":
        return goal_nearness(spaces.goal_columns)
    if name != "reward":
        raise UnknownNameError("objective", name, ("reward", "dense"))
    if not hasattr(env.unwrapped, "compute_reward"):
        raise ConfigError(
            f"{type(env.unwrapped).__name__} has no compute_reward, so the reward of "
            f'imagined states is not known. Use the objective "dense".'
        )
    return goal_reward(env.unwrapped, spaces.goal_columns)


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
