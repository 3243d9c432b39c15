"""One continuous run of a goal environment: D4RL's maze2d recipe.

A demonstrator chases one target after another, and the system is never reset in
between, so that the run shows how to get from anywhere to anywhere:

    draw a target → act until it is reached, or for `max_steps_per_goal` steps
                  → draw the next → … → stop after `length` steps

Row `t` holds the observation before step `t` with the target that step `t` chases.
(D4RL's script records one stale observation after every switch; this one does not.)
The reward of row `t` is the environment's for the state it leads to and that target.
Source: Fu et al., "D4RL: Datasets for Deep Data-Driven RL" (2020), maze2d.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import gymnasium as gym
import numpy as np

from diffuser_policy.data.demonstrators import Demonstrator, find_demonstrator
from diffuser_policy.data.episodes import Episode
from diffuser_policy.data.shards import Shard
from diffuser_policy.envs import Env
from diffuser_policy.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How targets are chased within one run.

    Attributes:
        demonstrator: Name of the scripted expert.
        max_steps_per_goal: Env steps after which a target is given up.
        action_noise: Standard deviation of Gaussian noise on every action, in units
            of the action; the noisy action is clipped to the space and recorded.
        options: Further keyword arguments of the demonstrator.
    """

    demonstrator: str
    max_steps_per_goal: int
    action_noise: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RunProtocol:
    """Everything that the runs of a dataset depend on."""

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
        """Number of runs that the steps are split into."""
        return -(-self.num_steps // self.run_length)

    def size(self, index: int) -> int:
        """Env steps of a run."""
        return min(self.run_length, self.num_steps - index * self.run_length)

    def record(self, index: int, env: Env) -> Shard:
        """Record one run; it depends on nothing but the protocol and its index."""
        seed = np.random.SeedSequence(self.seed, spawn_key=(index,))
        run = record_run(env, self.recipe, length=self.size(index), seed=seed)
        return Shard([run])


class GoalSwitchingEnv(Protocol):
    """What an environment offers so that targets can change without a reset."""

    action_space: gym.spaces.Box

    def step(self, action: np.ndarray) -> tuple[Any, Any, bool, bool, Any]:
        """Advance, as Gymnasium's `step`."""

    def sample_goal(self) -> np.ndarray:
        """Return a random reachable goal, drawn from the environment's generator."""

    def set_goal(self, goal: np.ndarray) -> None:
        """Make `goal` the desired goal of all later observations and rewards."""


def check_goal_env(env: Env) -> None:
    """Raise ConfigError unless targets of the environment can be switched."""
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

    Wrappers are bypassed: a step limit must not cut the run, and they cost time.

    Args:
        env: A goal environment whose goals can be switched.
        recipe: How targets are chased.
        length: Number of env steps.
        seed: Fixes start, targets, the demonstrator's draws and the action noise.

    Raises:
        ConfigError: The environment terminated, which this recipe has no use for.
    """
    base: Any = env.unwrapped
    env_seed, demonstrator_seed, noise_seed = (
        int(word) for word in seed.generate_state(3)
    )
    observation, _ = base.reset(seed=env_seed)
    demonstrator = find_demonstrator(recipe.demonstrator).from_env(
        env, seed=demonstrator_seed, **recipe.options
    )
    noise = _action_noise(base.action_space, recipe, length, noise_seed)
    trace = _Trace(observation, base.action_space, length)
    _chase(base, demonstrator, observation, trace, recipe=recipe, noise=noise)
    rewards = base.compute_reward(
        trace.fields["achieved_goal"][1:], trace.fields["desired_goal"][:-1], {}
    )
    truncations = np.zeros(length, np.bool_)
    truncations[-1] = True
    return Episode(
        observations=trace.fields,
        actions=trace.actions,
        rewards=np.asarray(rewards, np.float64),
        terminations=np.zeros(length, np.bool_),
        truncations=truncations,
        seed=env_seed,
    )


class _Trace:
    """Preallocated arrays that a run is written into."""

    def __init__(
        self,
        observation: Mapping[str, np.ndarray],
        action_space: gym.spaces.Box,
        length: int,
    ) -> None:
        self.length = length
        self.fields = {
            name: np.empty((length + 1, *np.shape(value)), np.asarray(value).dtype)
            for name, value in observation.items()
        }
        self.actions = np.empty((length, *action_space.shape), action_space.dtype)

    def put(self, step: int, observation: Mapping[str, np.ndarray]) -> None:
        """Write the observation before a step."""
        for name, values in self.fields.items():
            values[step] = observation[name]


def _chase(
    base: GoalSwitchingEnv,
    demonstrator: Demonstrator,
    observation: dict[str, np.ndarray],
    trace: _Trace,
    *,
    recipe: Recipe,
    noise: np.ndarray | None,
) -> None:
    """Fill the trace: the loop in which all the time is spent."""
    continuing = np.array([False])
    low, high = base.action_space.low, base.action_space.high
    observation, since = _switch_goal(base, observation), 0
    state, start = None, np.array([True])
    for step in range(trace.length):
        trace.put(step, observation)
        action, state = demonstrator.predict(observation, state, start, False)
        start = continuing
        if noise is not None:
            action = np.clip(action + noise[step], low, high)
        trace.actions[step] = action
        observation, _, terminated, _, _ = base.step(trace.actions[step])
        if terminated:
            raise ConfigError(
                f"{type(base).__name__} terminated after {step + 1} steps. Runs need "
                "an environment that goes on; record episodes instead."
            )
        since += 1
        reached = demonstrator.has_reached(
            observation["achieved_goal"], observation["desired_goal"]
        )
        if reached or since >= recipe.max_steps_per_goal:
            observation, since = _switch_goal(base, observation), 0
    trace.put(trace.length, observation)


def _switch_goal(
    base: GoalSwitchingEnv, observation: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Draw a new target; return the present observation with that target in it."""
    goal = base.sample_goal()
    base.set_goal(goal)
    return {**observation, "desired_goal": np.array(goal)}


def _action_noise(
    space: gym.spaces.Box, recipe: Recipe, length: int, seed: int
) -> np.ndarray | None:
    """Return the noise of all steps `[length, A]`, or None if there is none."""
    if recipe.action_noise == 0:
        return None
    generator = np.random.default_rng(seed)
    return generator.normal(0.0, recipe.action_noise, (length, *space.shape))
