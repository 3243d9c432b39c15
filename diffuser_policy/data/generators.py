"""Datasets of whole episodes, made by a generator that the demonstrator offers.

Where episodes have a beginning and an end worth showing (a tower is built), one run of
many goals makes no sense. Such a demonstrator names generators of episodes:

    class MyDemonstrator:
        generators = {"physics": MyGenerator}   # the first is the default

    class MyGenerator:
        dataset_id = "me/my-task-v1"            # optional
        def __init__(self, …, *, option=…): …
        @classmethod
        def from_env(cls, env, **options): …
        def record(self, seed): …               # an episode; None if it failed
        def verify(self, seed): …               # optional: does a replay confirm it?

Options and seed determine an episode, so the dataset is the same whatever the number of
workers. A failed attempt is left out, counted, and replaced by another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from diffuser_policy.data.demonstrators import find_demonstrator
from diffuser_policy.data.flat import Episode
from diffuser_policy.data.shards import Shard
from diffuser_policy.envs import Env
from diffuser_policy.errors import ConfigError, DatasetError

EPISODES_PER_SHARD = 10
MAX_ATTEMPTS = 20  # for one episode
VERIFIED_EPISODES = 20


class EpisodeGenerator(Protocol):
    """Makes episodes from seeds; the module's docstring shows one."""

    @classmethod
    def from_env(cls, env: Env, **options: Any) -> EpisodeGenerator:
        """Build a generator for an environment."""

    def record(self, seed: int) -> Any:
        """Return the episode of a seed, or None if the demonstrator failed.

        An episode of `L` steps, cut at its end, has the attributes `observations`
        (`[L + 1, size]`, or a dictionary of such arrays for goal environments),
        `actions` `[L, A]` and `rewards` `[L]`.
        """


def generators_of(demonstrator: str) -> Mapping[str, type[EpisodeGenerator]]:
    """Return the generators that a demonstrator offers, by name; none if it makes runs.

    Args:
        demonstrator: As for `find_demonstrator`.
    """
    found: Mapping[str, type[EpisodeGenerator]] = getattr(
        find_demonstrator(demonstrator), "generators", {}
    )
    return found


@dataclass(frozen=True, kw_only=True)
class EpisodeProtocol:
    """Everything that determines the episodes of a dataset.

    Attributes:
        env_id: The environment.
        num_episodes: Number of episodes.
        demonstrator: Name of the expert.
        generator: Name of one of its generators.
        seed: Fixes all episodes.
        options: All options of the generator.
        versions: Versions of the packages involved.
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
        """Number of shards, each of up to ten episodes."""
        return -(-self.num_episodes // EPISODES_PER_SHARD)

    @property
    def factory(self) -> type[EpisodeGenerator]:
        """The generator's class."""
        return generators_of(self.demonstrator)[self.generator]

    def size(self, index: int) -> int:
        """Number of episodes of a shard."""
        return min(EPISODES_PER_SHARD, self.num_episodes - index * EPISODES_PER_SHARD)

    def make(self, env: Env) -> EpisodeGenerator:
        """Return the generator.

        Raises:
            ConfigError: It refuses the environment or the options.
        """
        try:
            return self.factory.from_env(env, **self.options)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"The generator {self.generator!r} of {self.demonstrator!r} cannot be "
                f"made: {error}"
            ) from error

    def record(self, index: int, env: Env) -> Shard:
        """Record one shard; it depends on the protocol and its index alone.

        Raises:
            DatasetError: All attempts at an episode failed.
        """
        generator = self.make(env)
        first = index * EPISODES_PER_SHARD
        recorded = [
            self._succeed(generator, number)
            for number in range(first, first + self.size(index))
        ]
        episodes, failures = zip(*recorded, strict=True)
        return Shard(episodes, sum(failures))

    def _succeed(self, generator: EpisodeGenerator, number: int) -> tuple[Episode, int]:
        """Return one episode, and how many attempts at it failed before."""
        for attempt in range(MAX_ATTEMPTS):
            sequence = np.random.SeedSequence(self.seed, spawn_key=(number, attempt))
            seed = int(sequence.generate_state(1)[0])
            recorded = generator.record(seed)
            if recorded is not None:
                fields = recorded.observations
                if not isinstance(fields, Mapping):
                    fields = {"observation": fields}
                episode = Episode.cut(fields, recorded.actions, recorded.rewards, seed)
                return episode, attempt
        raise DatasetError(
            f"The generator {self.generator!r} of {self.demonstrator!r} failed "
            f"{MAX_ATTEMPTS} times in a row at episode {number}. Look at its options: "
            f"{dict(self.options)}."
        )


def verify_sample(
    generator: EpisodeGenerator, seeds: list[int]
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
