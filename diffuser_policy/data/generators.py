"""Datasets of whole episodes, made by a generator that the demonstrator offers.

Where episodes have a beginning and an end worth showing (a tower is built), one run of
many goals makes no sense. A demonstrator then names generators of episodes:

    class MyDemonstrator:
        generators = {"physics": MyGenerator}   # the first is the default

    class MyGenerator:
        dataset_id = "me/my-task-v1"            # optional
        def __init__(self, …, *, option=…): …
        @classmethod
        def from_env(cls, env, **options): …
        def record(self, seed): …               # an episode; None if it failed
        def verify(self, seed): …               # optional: replayed, is it true?

Every episode is a function of the options and its seed, so the dataset is the same
whatever the number of workers. A failed attempt is left out, counted, and made up for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from diffuser_policy.data.demonstrators import all_options, find_demonstrator
from diffuser_policy.data.episodes import Episode
from diffuser_policy.data.shards import Shard
from diffuser_policy.envs import Env
from diffuser_policy.errors import ConfigError, DatasetError, UnknownNameError

EPISODES_PER_SHARD = 10
MAX_ATTEMPTS = 20  # for one episode
VERIFIED_EPISODES = 20


class Recorded(Protocol):
    """What a generator returns: an episode of `L` steps, cut at its end."""

    @property
    def observations(self) -> np.ndarray | Mapping[str, np.ndarray]:
        """`[L + 1, size]`, or a dictionary of such arrays for goal environments."""

    @property
    def actions(self) -> np.ndarray:
        """`[L, A]`."""

    @property
    def rewards(self) -> np.ndarray:
        """`[L]`."""


class EpisodeGenerator(Protocol):
    """Makes episodes from seeds; see the module's head."""

    @classmethod
    def from_env(cls, env: Env, **options: Any) -> EpisodeGenerator:
        """Build one for an environment."""

    def record(self, seed: int) -> Recorded | None:
        """Return the episode of a seed, or None if the demonstrator failed."""


def generators_of(demonstrator: str) -> Mapping[str, type[EpisodeGenerator]]:
    """Return the generators that a demonstrator offers, by name; none for runs.

    Args:
        demonstrator: As for `find_demonstrator`.
    """
    found: Mapping[str, type[EpisodeGenerator]] = getattr(
        find_demonstrator(demonstrator), "generators", {}
    )
    return found


@dataclass(frozen=True, kw_only=True)
class EpisodeProtocol:
    """Everything that the episodes of a dataset depend on.

    Attributes:
        env_id: Where they are from.
        num_episodes: How many.
        demonstrator: Who makes them.
        generator: Which of its generators.
        seed: Fixes all of them.
        options: All options of the generator.
        versions: Of the packages that matter.
    """

    env_id: str
    num_episodes: int
    demonstrator: str
    generator: str
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
        """Number of shards that the episodes are split into."""
        return -(-self.num_episodes // EPISODES_PER_SHARD)

    def size(self, index: int) -> int:
        """Number of episodes of a shard."""
        return min(EPISODES_PER_SHARD, self.num_episodes - index * EPISODES_PER_SHARD)

    def make(self, env: Env) -> EpisodeGenerator:
        """Return the generator.

        Raises:
            ConfigError: It refuses the environment or the options.
        """
        factory = generators_of(self.demonstrator)[self.generator]
        try:
            return factory.from_env(env, **self.options)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"The generator {self.generator!r} of {self.demonstrator!r} cannot be "
                f"made: {error}"
            ) from error

    def record(self, index: int, env: Env) -> Shard:
        """Record one shard; it depends on nothing but the protocol and its index.

        Raises:
            DatasetError: An episode failed again and again.
        """
        generator = self.make(env)
        first = index * EPISODES_PER_SHARD
        episodes, failures = [], 0
        for number in range(first, first + self.size(index)):
            episode, failed = self._succeed(generator, number)
            episodes.append(episode)
            failures += failed
        return Shard(episodes, failures)

    def _succeed(self, generator: EpisodeGenerator, number: int) -> tuple[Episode, int]:
        """Return one episode, and how often it failed before."""
        for attempt in range(MAX_ATTEMPTS):
            sequence = np.random.SeedSequence(self.seed, spawn_key=(number, attempt))
            seed = int(sequence.generate_state(1)[0])
            recorded = generator.record(seed)
            if recorded is not None:
                return _as_episode(recorded, seed), attempt
        raise DatasetError(
            f"The generator {self.generator!r} of {self.demonstrator!r} failed "
            f"{MAX_ATTEMPTS} times in a row at episode {number}. Look at its options: "
            f"{dict(self.options)}."
        )


def choose_generator(demonstrator: str, name: str | None) -> str:
    """Return the name of the generator to use: the first by default.

    Raises:
        ConfigError: A name is given, but the demonstrator only makes runs.
        UnknownNameError: It has no such generator.
    """
    known = generators_of(demonstrator)
    if name is None:
        return next(iter(known))
    if not known:
        raise ConfigError(
            f"The demonstrator {demonstrator!r} has no generators of episodes; leave "
            "generator (--generator) and num_episodes (--num-episodes) out."
        )
    if name not in known:
        raise UnknownNameError("generator", name, known)
    return name


def generator_options(
    demonstrator: str, name: str, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Return all options of a generator: its defaults, updated with the given ones.

    Raises:
        ConfigError: It has no such option.
    """
    factory = generators_of(demonstrator)[name]
    return all_options(f"generator {name!r} of {demonstrator!r}", factory, given)


def verify_sample(
    generator: EpisodeGenerator, seeds: list[int]
) -> dict[str, int] | None:
    """Replay a sample, evenly spread over all episodes, if the generator can.

    Args:
        generator: May have a method `verify(seed)`.
        seeds: Of all episodes.

    Returns:
        How many were replayed (`"episodes"`), and how many came out as recorded
        (`"confirmed"`); None if the generator cannot verify.
    """
    verify = getattr(generator, "verify", None)
    if verify is None:
        return None
    picked = np.linspace(0, len(seeds) - 1, min(VERIFIED_EPISODES, len(seeds)))
    outcomes = [bool(verify(seeds[round(number)])) for number in picked]
    return {"episodes": len(outcomes), "confirmed": sum(outcomes)}


def _as_episode(recorded: Recorded, seed: int) -> Episode:
    """Return what was recorded as an episode that was cut, not terminated."""
    observations = recorded.observations
    if not isinstance(observations, Mapping):
        observations = {"observation": observations}
    length = len(recorded.rewards)
    truncations = np.zeros(length, np.bool_)
    truncations[-1] = True
    return Episode(
        observations=observations,
        actions=recorded.actions,
        rewards=np.asarray(recorded.rewards, np.float64),
        terminations=np.zeros(length, np.bool_),
        truncations=truncations,
        seed=seed,
    )
