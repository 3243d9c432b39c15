"""Policies of others: brought to one contract, and their actions checked.

- `as_policy` takes anything with Stable-Baselines3's `predict`, and algorithms of
  d3rlpy, whose `predict` takes a batch and returns actions only.
- `CheckedPolicy` refuses actions that are not in the action space, which environments
  would clip in silence.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
from gymnasium import spaces

from diffuser_policy.errors import ConfigError

TOLERANCE = 1e-3  # of the action's range: rounding is not an error


class FlatPolicy:
    """An algorithm of d3rlpy by Stable-Baselines3's contract.

    Observations are flattened: of goal dictionaries, the observation and then the
    desired goal.

    Args:
        algorithm: Its `predict` maps `[n, size]` to `[n, actions]`.
    """

    def __init__(self, algorithm: Any) -> None:
        self.algorithm = algorithm

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,  # noqa: ARG002 (it remembers nothing)
        deterministic: bool = False,  # noqa: ARG002 (it decides that itself)
    ) -> tuple[np.ndarray, Any]:
        """Return actions, and the state as it was given."""
        rows = flat_observation(observation)
        batch = rows[None] if rows.ndim == 1 else rows
        actions = np.asarray(self.algorithm.predict(batch))
        return (actions[0] if rows.ndim == 1 else actions), state


def flat_observation(observation: Any) -> np.ndarray:
    """Return float32 rows: of goal dictionaries, the observation, then the goal."""
    if isinstance(observation, dict):
        parts = [observation["observation"], observation["desired_goal"]]
        return np.concatenate([np.asarray(p, np.float32) for p in parts], axis=-1)
    return np.asarray(observation, dtype=np.float32)


def as_policy(made: Any) -> Any:
    """Return what a method made as a policy with Stable-Baselines3's `predict`.

    Raises:
        ConfigError: It has no `predict`, or one with other arguments.
    """
    predict = getattr(made, "predict", None)
    if not callable(predict):
        raise ConfigError(
            f"A method has to return an object with predict(observation, state, "
            f"episode_start, deterministic); {type(made).__name__} has no predict."
        )
    if isinstance(made, CheckedPolicy):
        return made
    if type(made).__module__.startswith("d3rlpy."):
        return FlatPolicy(made)
    parameters = inspect.signature(predict).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    needed = {"state", "episode_start", "deterministic"}
    if not takes_any and not needed <= parameters.keys():
        raise ConfigError(
            f"predict of {type(made).__name__} takes ({', '.join(parameters)}); "
            f"Stable-Baselines3's contract is predict(observation, state=None, "
            f"episode_start=None, deterministic=False) -> (action, state)."
        )
    return made


def acts_deterministically(policy: Any) -> bool:
    """Return whether a policy is evaluated with `deterministic=True`.

    As Stable-Baselines3's `evaluate_policy` does it: agents act without their
    exploration noise. Policies whose state has a random stream for every episode, such
    as planners, draw from it instead.
    """
    return not hasattr(policy, "initial_state")


class CheckedPolicy:
    """A policy whose actions have to be in the action space; else it is left as it is.

    Args:
        policy: Anything with Stable-Baselines3's `predict`.
        space: Actions of one environment.
        name: How errors call it.
    """

    def __init__(self, policy: Any, space: Any, name: str) -> None:
        self._policy, self._space, self._name = policy, space, name

    def __getattr__(self, attribute: str) -> Any:
        """Offer what the policy offers: its state, spaces and settings."""
        return getattr(self._policy, attribute)

    def predict(self, observation: Any, **rest: Any) -> tuple[np.ndarray, Any]:
        """Return the policy's actions.

        Raises:
            ConfigError: They are of another shape, not finite, or out of bounds.
        """
        actions, state = self._policy.predict(observation, **rest)
        self._check(np.asarray(actions))
        return actions, state

    def _check(self, actions: np.ndarray) -> None:
        space = self._space
        if actions.shape[1:] != space.shape:
            raise ConfigError(
                f"The method {self._name!r} returned actions of shape {actions.shape}; "
                f"expected [environments, {', '.join(map(str, space.shape))}]."
            )
        if not isinstance(space, spaces.Box):
            return
        slack = TOLERANCE * (space.high - space.low)
        within = (actions >= space.low - slack) & (actions <= space.high + slack)
        if within.all():  # false for NaN
            return
        if np.isnan(actions).any():
            raise ConfigError(
                f"The method {self._name!r} returned actions that are not numbers "
                f"(NaN). Look for divisions by zero, or for a training that diverged."
            )
        row = int(np.flatnonzero(~within.reshape(len(actions), -1).all(axis=1))[0])
        raise ConfigError(
            f"The method {self._name!r} returned an action outside of the action "
            f"space: {actions[row].tolist()}, expected low {space.low.tolist()} to "
            f"high {space.high.tolist()}. Clip or rescale it."
        )
