"""Experts that produce data, found by name.

A demonstrator follows Stable-Baselines3's contract, like every policy here:

    action, state = demonstrator.predict(observation, state, episode_start)

Its class method `from_env(env, seed=…, **options)` builds it. Options are its other
arguments with a default and, if it takes `**options`, those of the class. Any installed
distribution offers one in the entry-point group `diffuser_policy.demonstrators`
(`diffuser_policy.plugins` has the rules); an environment names its own in its class's
`metadata["demonstrator"]`.

There are three ways to record data with one.

**Its own episodes**, from reset to end, with the environment's terminations and
rewards, are recorded for a demonstrator that offers neither of the following. Its class
may name the dataset (`dataset_id`) and say how many episodes are usual
(`default_episodes`).

**Runs** show how to get from anywhere to anywhere (D4RL's maze2d recipe). The
demonstrator chases one target after another, says with `has_reached` when one is
reached, and the system is never reset in between:

    draw a target → act until it is reached, or for `max_steps_per_goal` steps
                  → draw the next → … → stop after `length` steps

Row `t` holds the observation before step `t` with the target that step `t` chases.
(D4RL's script records one stale observation after every switch; this one does not.)
The reward of row `t` is the environment's for the next state and that target.
The demonstrator's class may say how many steps are usual (`default_steps`).
Source: Fu et al., "D4RL: Datasets for Deep Data-Driven RL" (2020), maze2d.

**Generated episodes** suit tasks with an end worth showing (a tower is built). Such a
demonstrator names generators of episodes:

    class MyDemonstrator:
        generators = {"physics": MyGenerator}   # the first is the default

    class MyGenerator:
        dataset_id = "me/my-task-v1"            # optional
        env_id = "me/MyTask-v1"                 # optional: the dataset's environment
        default_episodes = 500                  # optional
        def __init__(self, …, *, option=…): …
        @classmethod
        def from_env(cls, env, **options): …
        def record(self, seed): …               # an episode; None if it failed
        def verify(self, seed): …               # optional: does a replay confirm it?

Options and seed determine an episode, so the dataset is the same whatever the number of
workers. A failed attempt is left out, counted, and replaced by another.

`default_steps` and `default_episodes` are numbers or, where it depends on the
environment, functions of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, Self

import gymnasium as gym
import numpy as np

from diffuser_policy.data.episodes import Policy, record_episode
from diffuser_policy.data.flat import Episode
from diffuser_policy.envs import Env, action_and_state, register_namespace
from diffuser_policy.errors import ConfigError, DatasetError, DiffuserPolicyError
from diffuser_policy.plugins import Kind
from diffuser_policy.words import counted

EPISODES_PER_SHARD = 10
MAX_ATTEMPTS = 20  # for one episode
VERIFIED_EPISODES = 20


class Demonstrator(Policy, Protocol):
    """A policy for an environment."""

    @classmethod
    def from_env(cls, env: Env, **settings: object) -> Self:
        """Build one for an environment; `seed` is always among the settings."""


class GoalChaser(Demonstrator, Protocol):
    """A demonstrator that chases the desired goal, whenever that changes."""

    def has_reached(self, achieved_goal: np.ndarray, desired_goal: np.ndarray) -> bool:
        """Return whether it is done with a goal `[G]`."""


def _check_demonstrator(target: Any) -> None:
    acts = isinstance(target, type) and hasattr(target, "from_env")
    if not acts and not hasattr(target, "generators"):
        raise ConfigError(
            f"A demonstrator is a class with `from_env(env, seed=…)` or with "
            f"`generators` of episodes; got {target!r}."
        )


DEMONSTRATORS = Kind(
    name="demonstrator",
    group="diffuser_policy.demonstrators",
    example="maze-waypoint",
    check=_check_demonstrator,
)


def default_demonstrator(env: Env) -> str:
    """Return the demonstrator that an environment names as its own.

    Raises:
        ConfigError: It names none.
    """
    name = (env.metadata or {}).get("demonstrator")
    if not name:
        raise ConfigError(
            f"{type(env.unwrapped).__name__} names no demonstrator in its metadata. "
            "Name one: --demonstrator NAME, or --demonstrator file.py:Class for one "
            "of your own. In Python, diffuser_policy.collect_episodes records any "
            "policy."
        )
    return str(name)


# --- runs ---------------------------------------------------------------------------


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

    def check(self, env: Env) -> None:
        """Make the demonstrator once, to see that it can be.

        Raises:
            ConfigError: It refuses the environment or the options.
        """
        try:
            factory = DEMONSTRATORS.find(self.demonstrator).target
            factory.from_env(env, seed=0, **self.recipe.options)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"The demonstrator {self.demonstrator!r} cannot be made: {error}"
            ) from error

    def record(self, index: int, env: Env) -> tuple[list[Episode], int]:
        """Return one run, and zero failures; protocol and index determine it."""
        seed = np.random.SeedSequence(self.seed, spawn_key=(index,))
        return [record_run(env, self.recipe, length=self.size(index), seed=seed)], 0


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
            f"`collect` needs an environment with the methods {', '.join(needed)}; "
            f"{type(base).__name__} lacks {', '.join(missing)}. Record it in Python, "
            "with diffuser_policy.collect_episodes."
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
        EnvContractError: The demonstrator returned anything but an action and a state.
    """
    base: Any = env.unwrapped
    env_seed, demonstrator_seed, noise_seed = (
        int(word) for word in seed.generate_state(3)
    )
    observation, _ = base.reset(seed=env_seed)
    factory: type[GoalChaser] = DEMONSTRATORS.find(recipe.demonstrator).target
    demonstrator = factory.from_env(env, seed=demonstrator_seed, **recipe.options)
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

    def with_new_goal(observation: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        goal = base.sample_goal()
        base.set_goal(goal)
        return {**observation, "desired_goal": np.array(goal)}

    observation, since = with_new_goal(observation), 0
    state, start, continuing = None, np.array([True]), np.array([False])
    for step in range(length):  # the loop that takes all the time
        for name, values in fields.items():
            values[step] = observation[name]
        action, state = action_and_state(
            demonstrator.predict(observation, state, start, False)
        )
        start = continuing
        if noise is not None:
            action = np.clip(action + noise[step], space.low, space.high)
        actions[step] = action
        # A copy, because some environments clip what they get in place.
        observation, _, terminated, _, _ = base.step(actions[step].copy())
        if terminated:
            raise ConfigError(
                f"{type(base).__name__} terminated after "
                f"{counted(step + 1, 'step')}. A run needs an environment that never "
                "terminates; record episodes instead."
            )
        since += 1
        reached = demonstrator.has_reached(
            observation["achieved_goal"], observation["desired_goal"]
        )
        if reached or since >= recipe.max_steps_per_goal:
            observation, since = with_new_goal(observation), 0
    for name, values in fields.items():
        values[length] = observation[name]
    rewards = base.compute_reward(
        fields["achieved_goal"][1:], fields["desired_goal"][:-1], {}
    )
    return Episode.cut(fields, actions, rewards, env_seed)


# --- episodes -----------------------------------------------------------------------


class EpisodeGenerator(Protocol):
    """Makes episodes from seeds; the module's docstring shows one."""

    @classmethod
    def from_env(cls, env: Env, **options: Any) -> EpisodeGenerator:
        """Build a generator for an environment."""

    def record(self, seed: int) -> Any:
        """Return the episode of a seed, or None if the demonstrator failed.

        An episode of `L` steps, cut at its end, has the attributes `observations`
        (`[L + 1, size]`, or a dictionary of such arrays for goal environments),
        `actions` `[L, A]` and `rewards` `[L]`. An `Episode` may also terminate.
        """


class OwnEpisodes:
    """Generates the episodes of a demonstrator that acts, from reset to end.

    Attributes:
        dataset_id: The demonstrator's own, if it has one.
    """

    def __init__(
        self, factory: type[Demonstrator], env: Env, options: Mapping[str, Any]
    ) -> None:
        """Keep what makes the demonstrator; one is made now, to see that it can be."""
        self.factory, self.env, self.options = factory, env, options
        self.dataset_id: str | None = getattr(factory, "dataset_id", None)
        factory.from_env(env, seed=0, **options)

    def record(self, seed: int) -> Episode:
        """Return the episode of a seed, which fixes the reset and the demonstrator.

        Raises:
            EnvContractError: The environment breaks Gymnasium's rules, returns numbers
                that are not finite, or its episode does not end.
        """
        own_seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
        policy = self.factory.from_env(self.env, seed=own_seed, **self.options)
        return record_episode(self.env, policy, seed)


def generators_of(demonstrator: str) -> Mapping[str, type[EpisodeGenerator]]:
    """Return the generators that a demonstrator offers, by name.

    Args:
        demonstrator: Registered name, `module:Class`, or `file.py:Class`.

    Raises:
        UnknownNameError: Neither registered nor importable.
        ConfigError: It is offered twice, fails on import, or is no demonstrator.
    """
    return getattr(DEMONSTRATORS.find(demonstrator).target, "generators", {})


@dataclass(frozen=True, kw_only=True)
class EpisodeProtocol:
    """Everything that determines the episodes of a dataset.

    Attributes:
        env_id: The environment.
        num_episodes: Number of episodes.
        demonstrator: Name of the expert.
        generator: Name of one of its generators; None: it acts, from reset to end.
        seed: Fixes all episodes.
        options: All options of the generator or, without one, of the demonstrator.
        versions: Versions of the packages involved.
    """

    env_id: str
    num_episodes: int
    demonstrator: str
    generator: str | None
    seed: int
    options: Mapping[str, Any]
    versions: Mapping[str, str]

    unit: ClassVar[str] = "episode"

    @property
    def total(self) -> int:
        """Number of episodes."""
        return self.num_episodes

    @property
    def num_shards(self) -> int:
        """Number of shards, each of up to ten episodes."""
        return -(-self.num_episodes // EPISODES_PER_SHARD)

    @property
    def factory(self) -> Any:
        """Class of the generator or, without one, of the demonstrator."""
        if self.generator is None:
            return DEMONSTRATORS.find(self.demonstrator).target
        return generators_of(self.demonstrator)[self.generator]

    @property
    def title(self) -> str:
        """What makes the episodes, for messages."""
        expert = f"{self.demonstrator!r}"
        if self.generator is None:
            return f"The demonstrator {expert}"
        return f"The generator {self.generator!r} of {expert}"

    def size(self, index: int) -> int:
        """Number of episodes of a shard."""
        return min(EPISODES_PER_SHARD, self.num_episodes - index * EPISODES_PER_SHARD)

    def make(self, env: Env) -> EpisodeGenerator | OwnEpisodes:
        """Return the generator.

        Raises:
            ConfigError: It refuses the environment or the options.
        """
        try:
            if self.generator is None:
                return OwnEpisodes(self.factory, env, self.options)
            made: EpisodeGenerator = self.factory.from_env(env, **self.options)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{self.title} cannot be made: {error}") from error
        return made

    def record(self, index: int, env: Env) -> tuple[list[Episode], int]:
        """Return a shard's episodes, and how many attempts failed.

        They depend on the protocol and the index alone.

        Raises:
            DatasetError: All attempts at an episode failed, or the generator refuses
                its options only now.
        """
        generator, episodes, failures = self.make(env), [], 0
        first = index * EPISODES_PER_SHARD
        for number in range(first, first + self.size(index)):
            for attempt in range(MAX_ATTEMPTS):
                key = (number, attempt)
                sequence = np.random.SeedSequence(self.seed, spawn_key=key)
                seed = int(sequence.generate_state(1)[0])
                try:
                    found = generator.record(seed)
                except DiffuserPolicyError:
                    raise
                except ValueError as error:
                    raise DatasetError(
                        f"{self.title} failed at episode {number}, seed {seed}: "
                        f"{error}. Check its options: {dict(self.options)}."
                    ) from error
                if found is not None:
                    break
                failures += 1
            else:
                raise DatasetError(
                    f"{self.title} failed {MAX_ATTEMPTS} times in a row at episode "
                    f"{number}. Check its options: {dict(self.options)}."
                )
            if isinstance(found, Episode):
                episodes.append(found)
                continue
            fields = found.observations
            if not isinstance(fields, Mapping):
                fields = {"observation": fields}
            episodes.append(Episode.cut(fields, found.actions, found.rewards, seed))
        return episodes, failures


def verify_sample(
    generator: EpisodeGenerator | OwnEpisodes, seeds: Sequence[int]
) -> dict[str, int] | None:
    """Replay a sample of all episodes, evenly spread, if the generator can.

    Args:
        generator: May have a method `verify(seed)`.
        seeds: The seeds of all episodes.

    Returns:
        How many were replayed (`"episodes"`), and how many the replay confirmed
        (`"confirmed"`); None if the generator cannot verify.
    """
    verify = getattr(generator, "verify", None)
    if verify is None:
        return None
    picked = np.linspace(0, len(seeds) - 1, min(VERIFIED_EPISODES, len(seeds)))
    outcomes = [bool(verify(seeds[round(number)])) for number in picked]
    return {"episodes": len(outcomes), "confirmed": sum(outcomes)}


def import_environments() -> dict[str, Exception | None]:
    """Import all packages that offer demonstrators, which register environments.

    Returns:
        What each package raised, or none.
    """
    points = [plugin.point for plugin in DEMONSTRATORS.offers() if plugin.point]
    found: dict[str, Exception | None] = {}
    for package in sorted({point.module.partition(".")[0] for point in points}):
        found[package] = None
        try:
            register_namespace(f"{package}/any")
        except Exception as error:  # whatever other people's code raises
            found[package] = error
    return found
