"""What the data of a problem say of its task: goals that were achieved, rewards."""

from __future__ import annotations

from typing import Any

import numpy as np

from diffuser_policy.benchmark.problem import Problem
from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.envs import Env
from diffuser_policy.errors import ConfigError, DatasetError


def check_task(problem: Problem, flat: FlatDataset, env: Env) -> None:
    """Refuse data from which the task of a problem cannot be learned.

    Args:
        problem: With or without goals.
        flat: Its data.
        env: Its environment, which is reset.

    Raises:
        ConfigError: The environment lacks a fixed goal or `compute_reward`.
        DatasetError: The data don't say which goals were achieved, terminate, or have
            the same reward everywhere.
    """
    if problem.goals == "none" and fixed_goal(env) is None:
        _varying_reward(flat)
    else:
        _has_achieved_goals(flat, env)


def fixed_goal(env: Env) -> np.ndarray | None:
    """Return the goal `[goal]` that all episodes of an environment have.

    Returns:
        None where observations have no goal.

    Raises:
        ConfigError: Goals differ from episode to episode.
    """
    observations = [env.reset(seed=seed)[0] for seed in (0, 1)]
    if not isinstance(observations[0], dict):
        return None
    first, second = (np.asarray(item["desired_goal"]) for item in observations)
    if not np.array_equal(first, second):
        raise ConfigError(
            f"{_name(env)} has another goal in every episode, which a single reward "
            f'cannot tell. Use goals="hindsight" for this problem.'
        )
    return first


def task_rewards(flat: FlatDataset, env: Env) -> np.ndarray:
    """Return the reward `[rows]` of each row for the environment's one task.

    Args:
        flat: The data.
        env: With a fixed goal, or without goals.

    Raises:
        ConfigError: Goals differ from episode to episode.
        DatasetError: The data were recorded for other goals, and don't say which goals
            were achieved, or terminate; or their reward never changes.
    """
    goal = fixed_goal(env)
    if goal is None:
        return _varying_reward(flat)
    achieved = achieved_goals(flat, env)
    following = np.minimum(np.arange(flat.num_rows) + 1, flat.run_ends - 1)
    compute: Any = env.unwrapped.compute_reward  # type: ignore[attr-defined]
    rewards = compute(achieved[following], np.broadcast_to(goal, achieved.shape), {})
    return np.asarray(rewards, dtype=np.float32)


def achieved_goals(flat: FlatDataset, env: Env) -> np.ndarray:
    """Return the goal `[rows, goal]` that each row had achieved before its step.

    That is in the data, or the environment tells by `achieved_goals(observations)`.

    Raises:
        ConfigError: The environment has no goals.
        DatasetError: Neither is the case, or the data terminate.
    """
    if _has_achieved_goals(flat, env):
        return flat.fields["achieved_goal"]
    base: Any = env.unwrapped
    return np.asarray(base.achieved_goals(flat.fields["observation"]), np.float32)


def _has_achieved_goals(flat: FlatDataset, env: Env) -> bool:
    """Return whether achieved goals are in the data; if not, the environment tells."""
    base: Any = env.unwrapped
    space: Any = env.observation_space
    if not hasattr(base, "compute_reward"):
        raise ConfigError(
            f"{_name(env)} has no compute_reward(achieved, desired, info): goals "
            f'cannot be relabelled. Use goals="none" for this problem.'
        )
    if flat.fields["terminated"].any():
        raise DatasetError(
            f"Steps of {flat!r} terminate. What was observed after them is not kept, "
            f"so whether they reached a relabelled goal cannot be told, and arriving "
            f"would never pay. Record data of an environment that goes on at the goal "
            f"(continuing_task=True in Gymnasium-Robotics' mazes)."
        )
    if hasattr(base, "achieved_goals"):
        return False
    size = space["desired_goal"].shape[0]
    if flat.goal_size == size:
        return True
    given = f"goals of size {flat.goal_size}" if flat.has_goals else "no goals"
    raise DatasetError(
        f"{flat!r} has {given}, {_name(env)} asks for goals of size {size}. Record "
        f"data of this environment, give it achieved_goals(observations), or use "
        f'goals="none" if it has a reward without goals.'
    )


def _varying_reward(flat: FlatDataset) -> np.ndarray:
    """Return the reward `[rows]` of the data, which has to say something."""
    reward = flat.fields["reward"]
    if not np.ptp(reward):
        raise DatasetError(
            f"The reward of {flat.metadata.get('dataset_id', 'the dataset')} is "
            f"{reward[0]} in every step: there is nothing to learn from it. Record "
            f'rewards, or use goals="hindsight" if the environment has goals.'
        )
    return reward


def _name(env: Env) -> str:
    return env.spec.id if env.spec else type(env.unwrapped).__name__
