"""One continuous run of a goal environment: D4RL's maze2d recipe.

A demonstrator chases one target after another. The system is never reset in between, so
the run shows how to get from anywhere to anywhere:

    draw a target → act until it is reached, or for `max_steps_per_goal` steps
                  → draw the next → … → stop after `length` steps

Row `t` holds the observation before step `t` with the target that step `t` chases.
(D4RL's script records one stale observation after every switch; this one does not.)
The reward of row `t` is the environment's for the next state and that target.
Source: Fu et al., "D4RL: Datasets for Deep Data-Driven RL" (2020), maze2d.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np

from diffuser_policy.data.demonstrators import find_demonstrator
from diffuser_policy.data.flat import Episode
from diffuser_policy.data.shards import Shard
from diffuser_policy.envs import Env
from diffuser_policy.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How targets are chased within one run.

    Attributes:
        demonstrator: Name of the scripted expert.
        max_steps_per_goal: Env steps after which the run gives up a target.
        action_noise: Standard deviation of Gaussian noise on every action, in units
            of the action. The noisy action is clipped to the space and recorded.
        options: Further keyword arguments of the demonstrator.
    """

    demonstrator: str
    max_steps_per_goal: int
    action_noise: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RunProtocol:
    """Everything that determines the runs of a dataset; one shard is one run."""

    env_id: str
    num_steps: int
    run_length: int
    seed: int
    recipe: Recipe
    versions: Mapping[str, str]

    unit: ClassVar[str] = "step"

    @property
    def demonstrator(self) -> str:
        """Name of the expert."""
        return self.recipe.demonstrator

    @property
    def total(self) -> int:
        """Number of steps."""
        return self.num_steps

    @property
    def num_shards(self) -> int:
        """Number of runs."""
        return -(-self.num_steps // self.run_length)

    def size(self, index: int) -> int:
        """Env steps of a run; the last one may be shorter."""
        return min(self.run_length, self.num_steps - index * self.run_length)

    def record(self, index: int, env: Env) -> Shard:
        """Record one run; it depends on the protocol and its index alone."""
        seed = np.random.SeedSequence(self.seed, spawn_key=(index,))
        return Shard([record_run(env, self.recipe, length=self.size(index), seed=seed)])


def check_goal_env(env: Env) -> None:
    """Raise ConfigError unless the environment can change its goal without a reset.

    It needs the methods `sample_goal()`, which returns a random reachable goal drawn
    from the environment's generator; `set_goal(goal)`, which makes it the desired goal
    of all later observations and rewards; and Gymnasium-Robotics' `compute_reward`.
    """
    base = env.unwrapped
    needed = ("sample_goal", "set_goal", "compute_reward")
    missing = [name for name in needed if not callable(getattr(base, name, None))]
    if missing:
        raise ConfigError(
            f"{type(base).__name__} cannot change its goal without a reset: it has no "
            f"method {', '.join(missing)}. Record episodes of it with "
            "diffuser_policy.data.collection.collect_episodes instead."
        )


def record_run(
    env: Env, recipe: Recipe, *, length: int, seed: np.random.SeedSequence
) -> Episode:
    """Record one run without a reset inside.

    It bypasses wrappers: a step limit must not cut the run, and they cost time.

    Args:
        env: A goal environment whose goal can change without a reset.
        recipe: How to chase targets.
        length: Number of env steps.
        seed: Fixes start, targets, the demonstrator's draws and the action noise.

    Raises:
        ConfigError: The environment terminated, which would end the run.
    """
    base: Any = env.unwrapped
    env_seed, demonstrator_seed, noise_seed = (
        int(word) for word in seed.generate_state(3)
    )
    observation, _ = base.reset(seed=env_seed)
    demonstrator = find_demonstrator(recipe.demonstrator).from_env(
        env, seed=demonstrator_seed, **recipe.options
    )
    space: gym.spaces.Box = base.action_space
    noise = None
    if recipe.action_noise != 0:
        generator = np.random.default_rng(noise_seed)
        noise = generator.normal(0.0, recipe.action_noise, (length, *space.shape))
    fields = {
        name: np.empty((length + 1, *np.shape(value)), np.asarray(value).dtype)
        for name, value in observation.items()
    }
    actions = np.empty((length, *space.shape), space.dtype)

    observation, since = _with_new_goal(base, observation), 0
    state, start, continuing = None, np.array([True]), np.array([False])
    for step in range(length):  # the loop that takes all the time
        for name, values in fields.items():
            values[step] = observation[name]
        action, state = demonstrator.predict(observation, state, start, False)
        start = continuing
        if noise is not None:
            action = np.clip(action + noise[step], space.low, space.high)
        actions[step] = action
        observation, _, terminated, _, _ = base.step(actions[step])
        if terminated:
            raise ConfigError(
                f"{type(base).__name__} terminated after {step + 1} steps. A run needs "
                "an environment that never terminates; record episodes instead."
            )
        since += 1
        reached = demonstrator.has_reached(
            observation["achieved_goal"], observation["desired_goal"]
        )
        if reached or since >= recipe.max_steps_per_goal:
            observation, since = _with_new_goal(base, observation), 0
    for name, values in fields.items():
        values[length] = observation[name]
    rewards = base.compute_reward(
        fields["achieved_goal"][1:], fields["desired_goal"][:-1], {}
    )
    return Episode.cut(fields, actions, rewards, env_seed)


def _with_new_goal(
    base: Any, observation: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Draw and set a new target; return the present observation with it."""
    goal = base.sample_goal()
    base.set_goal(goal)
    return {**observation, "desired_goal": np.array(goal)}
