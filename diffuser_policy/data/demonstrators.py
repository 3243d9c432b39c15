"""Scripted experts that produce data, found by name.

A demonstrator follows Stable-Baselines3's contract, like every policy here:

    action, state = demonstrator.predict(observation, state, episode_start)

and says with `has_reached` when its target is reached. It is built by a class method
`from_env(env, seed=…, **options)`. Any installed distribution offers one through the
entry-point group `diffuser_policy.demonstrators`; an environment names its own in its
class's `metadata["demonstrator"]`.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any, Protocol

import numpy as np

from diffuser_policy.envs import Env
from diffuser_policy.errors import ConfigError, UnknownNameError

GROUP = "diffuser_policy.demonstrators"
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


def find_demonstrator(name: str) -> type[Demonstrator]:
    """Return the class behind a demonstrator's name.

    Args:
        name: A name of the entry-point group, or `package.module:Class`.

    Raises:
        UnknownNameError: Neither registered nor importable.
    """
    registered = {point.name: point for point in entry_points(group=GROUP)}
    if name in registered:
        factory: type[Demonstrator] = registered[name].load()
        return factory
    module, _, attribute = name.partition(":")
    if attribute:
        try:
            factory = getattr(importlib.import_module(module), attribute)
        except (ModuleNotFoundError, AttributeError) as error:
            raise UnknownNameError("demonstrator", name, registered) from error
        return factory
    raise UnknownNameError("demonstrator", name, registered)


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
        ConfigError: It has no such option.
    """
    return all_options(f"demonstrator {name!r}", find_demonstrator(name), given)


def all_options(
    what: str, factory: Callable[..., object], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the keyword arguments of a class: its defaults, and the given ones.

    Args:
        what: How errors call it.
        factory: The class; what has no default is no option, and neither is `seed`.
        given: Keyword arguments.

    Raises:
        ConfigError: It has no such option.
    """
    parameters = inspect.signature(factory).parameters
    options = {
        key: parameter.default
        for key, parameter in parameters.items()
        if parameter.default is not parameter.empty and key != "seed"
    }
    unknown = [key for key in given if key not in options]
    if unknown:
        raise ConfigError(
            f"The {what} has no option {', '.join(unknown)}. "
            f"It has: {', '.join(options) or 'none'}."
        )
    return {**options, **given}
