"""A problem: an environment, the data to learn from, and which rewards and goals count.

Single-task problems (`goals="none"`) have one reward: that of the data or, where the
data carry goals, that of the environment's fixed goal, recomputed for every row.
Multi-task problems (`goals="hindsight"`) have a goal in every episode: methods learn
from goals that the data reached later (Andrychowicz et al. 2017), as in appendix A of
Janner et al. (2022).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from diffuser_policy.choices import GOAL_KEYS, Goals
from diffuser_policy.data.flat import FlatDataset, run_returns
from diffuser_policy.envs import (
    Env,
    env_name,
    make_env,
    reset_env,
    reward_of_goals,
)
from diffuser_policy.errors import ConfigError, DatasetError, shown
from diffuser_policy.evaluation.scores import score_of_returns
from diffuser_policy.settings import MisfitError, plain, to_json, typed

LABEL = re.compile(r"(?=.{1,60}$)[A-Za-z0-9]+([._-][A-Za-z0-9]+)*")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What methods are compared on.

    Attributes:
        env: Id of the environment that they are evaluated in.
        dataset: Minari id of the data that they learn from.
        goals: Whether they learn one task, or to reach goals.
        env_options: Settings of the environment, as `gymnasium.make` takes them.
        label: Title in tables, such as "Hopper-medium"; by default the environment's
            name. Problems of one environment need different ones.
    """

    env: str
    dataset: str
    goals: Goals = "none"
    env_options: Mapping[str, Any] = field(default_factory=dict)
    label: str | None = None

    def __post_init__(self) -> None:
        typed(self)
        if self.label is not None and not LABEL.fullmatch(self.label):
            raise ConfigError(
                "The label of a problem names folders: it has at most 60 letters and "
                "digits with single dashes, dots or underscores between them; got "
                f"{shown(self.label)}."
            )
        try:
            plain(self.env_options)
        except MisfitError as error:
            raise ConfigError(
                f"env_options must be plain, finite values, got "
                f"{dict(self.env_options)}."
            ) from error

    @property
    def title(self) -> str:
        """The label, or the environment's name without namespace and version."""
        return self.label or re.sub(r"^.*[/:]|-v\d+$", "", self.env)

    @property
    def name(self) -> str:
        """The title in lower case: what the command line and folders call it."""
        return self.title.lower()

    def make_env(self) -> Env:
        """Make the environment.

        Raises:
            UnknownNameError: There is none of that id.
            MissingExtraError: Its simulator is not installed.
        """
        return make_env(self.env, **self.env_options)

    def to_json(self) -> dict[str, Any]:
        """Return the problem as JSON data.

        A label that is not given is left out, as in results from before there were any.
        """
        data = to_json(self)
        return {k: v for k, v in data.items() if k != "label" or v is not None}


def check_task(problem: Problem, flat: FlatDataset, env: Env) -> None:
    """Refuse data from which the task of a problem cannot be learned; resets `env`.

    Raises:
        ConfigError: The environment lacks a fixed goal or `compute_reward`.
        DatasetError: The data records no achieved goals, contains terminal steps, or
            has the same reward everywhere.
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
    observations = [reset_env(env, seed=seed)[0] for seed in (0, 1)]
    if not isinstance(observations[0], dict) or GOAL_KEYS[1] not in observations[0]:
        return None
    first, second = (np.asarray(item[GOAL_KEYS[1]]) for item in observations)
    if not np.array_equal(first, second):
        raise ConfigError(
            f"{env_name(env)} has another goal in every episode, which a single reward "
            f'cannot express. Use goals="hindsight" for this problem, which needs the '
            f"environment's compute_reward(achieved, desired, info)."
        )
    return first


def task_rewards(flat: FlatDataset, env: Env) -> np.ndarray:
    """Return the reward `[rows]` of each row for the environment's one task.

    Raises:
        ConfigError: Goals differ from episode to episode.
        DatasetError: The data records no achieved goals, contains terminal steps, or
            has a reward that never changes.
    """
    goal = fixed_goal(env)
    if goal is None:
        return _varying_reward(flat)
    achieved = achieved_goals(flat, env)
    following = np.minimum(np.arange(flat.num_rows) + 1, flat.run_ends - 1)
    compute: Any = reward_of_goals(env)
    rewards = compute(achieved[following], np.broadcast_to(goal, achieved.shape), {})
    return np.asarray(rewards, dtype=np.float32)


def achieved_goals(flat: FlatDataset, env: Env) -> np.ndarray:
    """Return the goal `[rows, goal]` that each row had achieved before its step.

    The data records it, or the environment computes it by
    `achieved_goals(observations)`.

    Raises:
        ConfigError: The environment has no goals.
        DatasetError: Achieved goals are unknown, or the data contains terminal steps.
    """
    if _has_achieved_goals(flat, env):
        return flat.fields["achieved_goal"]
    base: Any = env.unwrapped
    return np.asarray(base.achieved_goals(flat.fields["observation"]), np.float32)


def behavior_facts(flat: FlatDataset, env: Env) -> dict[str, float] | None:
    """Return what the data's own episodes earned: the number, mean and best of them.

    In returns, and in scores where the environment has some.

    Returns:
        None where data or environment have goals: runs may chase several of them.
    """
    if flat.has_goals or GOAL_KEYS[1] in getattr(env.observation_space, "spaces", ()):
        return None
    returns = run_returns(flat.fields["reward"], flat.run_starts)
    found = {
        "episodes": len(returns),
        "mean_return": float(returns.mean()),
        "best_return": float(returns.max()),
    }
    score_of = score_of_returns(env)
    if score_of is not None:  # by D4RL a linear function of the return, not always
        scores = np.array([float(score_of(each)) for each in returns.tolist()])
        found |= {"mean_score": float(scores.mean()), "best_score": float(scores.max())}
    return found


def _has_achieved_goals(flat: FlatDataset, env: Env) -> bool:
    """Return whether the data records achieved goals; if not, the env has to."""
    base: Any = env.unwrapped
    space: Any = env.observation_space
    if reward_of_goals(env) is None:
        advice = 'Use goals="none" for this problem.'
        if GOAL_KEYS[1] in getattr(space, "spaces", ()):
            advice = "Give it that method."
        raise ConfigError(
            f"{env_name(env)} has no compute_reward(achieved, desired, info): goals "
            f"cannot be relabelled. {advice}"
        )
    if flat.fields["terminated"].any():
        raise DatasetError(
            f"Steps of {flat!r} terminate. The observation after a terminal step is "
            "not kept, so it is unknown whether it reached a relabelled goal, and "
            "arriving would never be rewarded. Record data of an environment that "
            "continues at the goal (continuing_task=True in Gymnasium-Robotics' "
            "mazes)."
        )
    if hasattr(base, "achieved_goals"):
        return False
    size = space["desired_goal"].shape[0]
    if flat.goal_size == size:
        return True
    given = f"goals of size {flat.goal_size}" if flat.has_goals else "no goals"
    raise DatasetError(
        f"{flat!r} has {given}, {env_name(env)} asks for goals of size {size}. Record "
        f"data of this environment, give it achieved_goals(observations), or use "
        f'goals="none" if it has a reward without goals.'
    )


def _varying_reward(flat: FlatDataset) -> np.ndarray:
    """Return the reward `[rows]` of the data; refuse one without information.

    A constant one tells how long an episode lasts, if it can end early.
    """
    reward = flat.fields["reward"]
    lasting = reward[0] and flat.fields["terminated"].any()
    if not np.ptp(reward) and not lasting:
        raise DatasetError(
            f"The reward of {flat.metadata.get('dataset_id', 'the dataset')} is "
            f"{reward[0]} in every step: there is nothing to learn from it. Record "
            f'rewards, or use goals="hindsight" if the environment has goals.'
        )
    return reward
