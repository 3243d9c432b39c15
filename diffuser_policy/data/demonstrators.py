"""Scripted experts that produce data, found by name.

A demonstrator follows Stable-Baselines3's contract, like every policy here:

    action, state = demonstrator.predict(observation, state, episode_start)

and says with `has_reached` when its target is reached. Its class method
`from_env(env, seed=…, **options)` builds it. Any installed distribution offers one in
the entry-point group `diffuser_policy.demonstrators` (`diffuser_policy.plugins` has the
rules); an environment names its own in its class's `metadata["demonstrator"]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from diffuser_policy.envs import Env
from diffuser_policy.errors import ConfigError
from diffuser_policy.plugins import Kind
from diffuser_policy.settings import all_options

Observation = np.ndarray | dict[str, np.ndarray]
State = tuple[np.ndarray, ...] | None


class Policy(Protocol):
    """Stable-Baselines3's contract."""

    def predict(
        self,
        observation: Observation,
        state: State = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, State]:
        """Return the action, and what to pass as `state` the next time."""


class Demonstrator(Policy, Protocol):
    """A policy that chases the desired goal, whenever that changes."""

    @classmethod
    def from_env(cls, env: Env, **settings: object) -> Demonstrator:
        """Build one for an environment; `seed` is always among the settings."""

    def has_reached(self, achieved_goal: np.ndarray, desired_goal: np.ndarray) -> bool:
        """Return whether it is done with a goal `[G]`."""


def _check_demonstrator(target: Any) -> None:
    if not hasattr(target, "from_env") and not hasattr(target, "generators"):
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


def find_demonstrator(name: str) -> type[Demonstrator]:
    """Return the class behind a demonstrator's name.

    Args:
        name: Registered name, `module:Class`, or `file.py:Class`.

    Raises:
        UnknownNameError: Neither registered nor importable.
        ConfigError: It is offered twice, fails on import, or is no demonstrator.
    """
    found: type[Demonstrator] = DEMONSTRATORS.find(name).target
    return found


def default_demonstrator(env: Env) -> str:
    """Return the demonstrator that an environment names as its own.

    Raises:
        ConfigError: It names none.
    """
    name = getattr(env.unwrapped, "metadata", {}).get("demonstrator")
    if not name:
        raise ConfigError(
            f"{type(env.unwrapped).__name__} names no demonstrator in its metadata. "
            "Name one (--demonstrator), or record a policy of your own with "
            "diffuser_policy.data.collection.collect_episodes."
        )
    return str(name)


def demonstrator_options(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return all options of a demonstrator: its defaults, updated with the given ones.

    Args:
        name: As for `find_demonstrator`.
        given: Keyword arguments of its constructor.

    Raises:
        ConfigError: It has no such option, or the value is of another type.
    """
    return all_options(f"the demonstrator {name!r}", find_demonstrator(name), given)
