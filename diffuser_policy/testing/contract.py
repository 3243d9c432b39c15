"""The conformance check of Stable-Baselines3's `predict` contract.

    action, state = policy.predict(observation, state, episode_start, deterministic)

`check_policy` asks a policy for actions in every way a Gymnasium loop does, and raises
`PolicyContractError` with the name and the text of the first rule that is broken. It
works on any object with such a `predict`, from this package or not.
"""

from __future__ import annotations

import copy
import dataclasses
import random
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from diffuser_policy.envs import check_predicts
from diffuser_policy.errors import (
    ConfigError,
    DiffuserPolicyError,
    UnknownNameError,
    shown,
)
from diffuser_policy.observations import batched
from diffuser_policy.settings import converted, seed_or_drawn

RULES = {
    "shapes": "One observation gives one action, a batch of n gives n actions.",
    "dtype": "Actions have the action space's dtype.",
    "bounds": "Every action lies inside the action space.",
    "determinism": "With deterministic=True, equal observations give equal actions.",
    "memory": "predict(observation) without a state remembers no earlier call.",
    "state_unchanged": "predict does not write into the state that it is given.",
    "input_unchanged": "predict does not write into observations or episode_start.",
    "state_repeats": "The same observation and state give the same action again.",
    "episode_start": "A row that begins an episode acts as if it had no state, and "
    "other rows are not affected.",
    "flags_copied": "A caller may overwrite its episode_start array after the call.",
    "batch_of_one": "A batch of one gives the action of the single observation.",
    "row_independence": "An action does not depend on the other rows of the batch.",
    "global_randomness": "The random states of torch, numpy and random are untouched.",
    "refuses_tuple": "(observation, info) is refused, and changes nothing.",
    "refuses_nan": "NaN observations are refused, and change nothing.",
    "refuses_shape": "Observations of the wrong shape are refused, and change nothing.",
}


class PolicyContractError(DiffuserPolicyError, AssertionError):
    """A policy broke a rule of the contract.

    Attributes:
        rule: Its name, a key of `RULES`.
    """

    def __init__(self, rule: str, found: str) -> None:
        self.rule = rule
        super().__init__(f"{rule}: {RULES[rule]} Found: {found}")


def check_policy(
    policy: Any,
    observation_space: spaces.Space[Any] | None = None,
    action_space: spaces.Space[Any] | None = None,
    *,
    num_envs: int = 3,
    tolerance: float = 1e-4,
    seed: int = 0,
    skip: Collection[str] = (),
    observe: Callable[[], Any] | None = None,
) -> list[str]:
    """Check that a policy keeps the contract of `predict`.

    Args:
        policy: Anything with `predict`.
        observation_space: Of one environment; the policy's own if not given.
        action_space: Of one environment; the policy's own if not given.
        num_envs: Rows of a batch, at least 2.
        tolerance: Largest difference between actions that should be equal but are
            computed in batches of different size, in action units.
        seed: Fixes the observations.
        skip: Rules not to check; policies of other libraries may keep fewer.
        observe: Returns one valid observation per call, where samples of the
            observation space are none.

    Returns:
        The names of the rules that were checked. A rule that can't be checked in this
        observation space, such as NaN in a space of integers, is left out.

    Raises:
        PolicyContractError: The first rule that is broken.
        UnknownNameError: A rule to skip that does not exist.
        ConfigError: Something without `predict`, or without spaces where none are
            given; fewer than two rows; or an impossible seed or tolerance.
    """
    is_text = isinstance(skip, str)
    given = list(skip) if isinstance(skip, Collection) and not is_text else skip
    for name in converted(given, tuple[str, ...], "skip"):
        if name not in RULES:
            raise UnknownNameError("rule", name, RULES)
    check_predicts(policy)
    num_envs = converted(num_envs, int, "num_envs")
    tolerance = converted(tolerance, float, "tolerance")
    if num_envs < 2:
        raise ConfigError(f"num_envs must be at least 2, got {num_envs}.")
    if tolerance < 0:
        raise ConfigError(f"tolerance must be 0 or more, got {tolerance}.")
    observation_space = _space(policy, "observation_space", observation_space)
    action_space = _space(policy, "action_space", action_space)
    if observe is None:
        sampled = copy.deepcopy(observation_space)  # its own randomness is left alone
        sampled.seed(seed_or_drawn(seed))
        observe = sampled.sample
    first, later = ([observe() for _ in range(num_envs)] for _ in range(2))
    check = _Check(policy, action_space, tolerance, skip, first, later)
    with_global_randomness = _global_randomness()
    check.actions()
    check.determinism()
    check.states()
    check.episode_starts()
    check.rows()
    check.refusals()
    check.require(
        "global_randomness",
        _same(with_global_randomness, _global_randomness()),
        "a global random state changed during the check.",
    )
    return [rule for rule in RULES if rule in check.done]


def _space(policy: Any, name: str, given: Any) -> spaces.Space[Any]:
    """Return a space that was given, or else the policy's own.

    Raises:
        ConfigError: It is none.
    """
    found = getattr(policy, name, None) if given is None else given
    if isinstance(found, spaces.Space):
        return found
    raise ConfigError(
        f"{name} must be a space of Gymnasium, got {shown(found)}. Pass that of the "
        f"environment: check_policy(policy, env.observation_space, env.action_space)."
    )


@dataclass
class _Check:
    """One check of one policy: its observations, and the rules done so far."""

    policy: Any
    action_space: spaces.Space[Any]
    tolerance: float
    skip: Collection[str]
    first: list[Any]
    later: list[Any]
    done: set[str] = field(default_factory=set)

    def require(self, rule: str, kept: bool, found: str) -> None:
        if rule in self.skip:
            return
        if not kept:
            raise PolicyContractError(rule, found)
        self.done.add(rule)

    def predict(self, observation: Any, *memory: Any) -> tuple[np.ndarray, Any]:
        action, state = self.policy.predict(observation, *memory, deterministic=True)
        return np.asarray(action), state

    def same_actions(self, rule: str, found: str, a: np.ndarray, b: np.ndarray) -> None:
        off = float(np.abs(np.subtract(a, b, dtype=np.float64)).max())
        self.require(rule, off <= self.tolerance, f"{found} differ by {off:.3g}.")

    def actions(self) -> None:
        """Check shape, type and bounds, with and without determinism."""
        single, batch = self.first[0], batched(self.first)
        shape, dtype = self.action_space.shape or (), self.action_space.dtype
        for deterministic in (True, False):
            cases = ((single, shape), (batch, (len(self.first), *shape)))
            for observation, expected in cases:
                given = copy.deepcopy(observation)
                action, _ = self.policy.predict(
                    observation, deterministic=deterministic
                )
                action = np.asarray(action)
                self.require(
                    "shapes",
                    action.shape == expected,
                    f"an action of shape {action.shape}, expected {expected}.",
                )
                found = f"{action.dtype} instead of {dtype}."
                self.require("dtype", action.dtype == dtype, found)
                for row in action.reshape(-1, *shape):
                    self.require(
                        "bounds",
                        self.action_space.contains(np.asarray(row, dtype)),
                        f"{row} is not in {self.action_space}.",
                    )
                self.require(
                    "input_unchanged",
                    _same(given, observation),
                    "the observation was changed.",
                )

    def determinism(self) -> None:
        """Check that actions depend only on the observation, not on earlier calls."""
        for observation in (*self.first, batched(self.first)):
            action, _ = self.predict(observation)
            again, _ = self.predict(observation)
            self.require(
                "determinism", _same(action, again), f"{action}, and then {again}."
            )
        action, state = self.predict(self.first[0])
        self.predict(self.later[0], state)
        again, _ = self.predict(self.first[0])
        found = f"{action}, and {again} after another observation."
        self.require("memory", _same(action, again), found)

    def states(self) -> None:
        """Check that states are values: kept by the caller, never written to."""
        first, later = batched(self.first), batched(self.later)
        _, state = self.predict(first)
        kept = copy.deepcopy(state)
        action, _ = self.predict(later, state)
        self.require("state_unchanged", _same(kept, state), "the state was written to.")
        again, _ = self.predict(later, state)
        self.require("state_repeats", _same(action, again), f"{action}, then {again}.")

    def episode_starts(self) -> None:
        """Check the flags as SB3's loops use them: one array, overwritten in place."""
        first, later = batched(self.first), batched(self.later)
        flags = np.ones(len(self.first), np.bool_)
        _, state = self.predict(first, None, flags)
        self.require("input_unchanged", bool(flags.all()), "episode_start was changed.")
        kept = copy.deepcopy(state)
        flags[:] = False
        found = "the state changed with the caller's array."
        self.require("flags_copied", _same(kept, state), found)
        going_on, state = self.predict(later, state, flags)
        going_on, _ = self.predict(later, state, flags)
        flags[0] = True
        started, _ = self.predict(later, state, flags)
        fresh, _ = self.predict(later)
        self.same_actions(
            "episode_start", "a fresh and a restarted row", started[0], fresh[0]
        )
        self.same_actions(
            "episode_start", "rows beside a restarted one", started[1:], going_on[1:]
        )

    def rows(self) -> None:
        """Check that batching changes nothing."""
        together, _ = self.predict(batched(self.first))
        backwards, _ = self.predict(batched(self.first[::-1]))
        self.same_actions(
            "row_independence", "rows in another order", together, backwards[::-1]
        )
        for index, observation in enumerate(self.first):
            alone, _ = self.predict(observation)
            batch_of_one, _ = self.predict(batched([observation]))
            self.same_actions(
                "batch_of_one", "a single action and its batch", alone, batch_of_one[0]
            )
            self.same_actions(
                "row_independence",
                "an action alone and in a batch",
                alone,
                together[index],
            )

    def refusals(self) -> None:
        """Check that bad input raises and leaves the policy as it was."""
        good = self.first[0]
        expected, state = self.predict(good)
        kept = copy.deepcopy(state)
        cases = {"refuses_tuple": (good, {}), **_damaged(good)}
        for rule, bad in cases.items():
            for memory in ((), (state,)):
                refused = False
                try:
                    self.predict(bad, *memory)
                except Exception:  # any error is a refusal
                    refused = True
                self.require(rule, refused, "no error.")
            again, _ = self.predict(good)
            self.require(
                rule,
                _same(expected, again) and _same(kept, state),
                "the policy or its state changed after the error.",
            )


def _damaged(observation: Any) -> dict[str, Any]:
    """Return broken copies of a good observation, by the rule that refuses them."""
    broken = {"refuses_shape": _changed(observation, _longer)}
    kinds: set[str] = set()
    _changed(observation, lambda part: kinds.add(part.dtype.kind))
    if kinds == {"f"}:
        broken["refuses_nan"] = _changed(observation, lambda part: part * np.nan)
    return broken


def _changed(observation: Any, change: Callable[[np.ndarray], Any]) -> Any:
    """Return a copy of an observation with every array in it changed."""
    if isinstance(observation, Mapping):
        return {key: _changed(part, change) for key, part in observation.items()}
    if isinstance(observation, tuple):
        return tuple(_changed(part, change) for part in observation)
    return change(np.asarray(observation))


def _longer(part: np.ndarray) -> np.ndarray:
    """Return an array with a column too many; of a number, one with too many axes."""
    if part.ndim == 0:
        return part.reshape(1, 1, 1)
    return np.append(part, part[..., :1], -1)


def _global_randomness() -> tuple[Any, ...]:
    """Return the random states that belong to the caller's program."""
    legacy = np.random.get_state()  # noqa: NPY002 (it is to stay as it is)
    return (random.getstate(), legacy, torch.random.get_rng_state())


def _same(a: Any, b: Any, above: frozenset[tuple[int, int]] = frozenset()) -> bool:
    """Compare nested containers and objects of arrays, bit for bit; NaN equals NaN.

    Args:
        a: One of them.
        b: The other one.
        above: Pairs that hold these two, which a cycle leads back to.
    """
    pair = id(a), id(b)
    if a is b or pair in above:
        return True
    if type(a) is not type(b):
        return False
    above |= {pair}
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(_same(a[key], b[key], above) for key in a)
    if isinstance(a, (list, tuple, deque)):
        pairs = zip(a, b, strict=False)
        return len(a) == len(b) and all(_same(x, y, above) for x, y in pairs)
    if isinstance(a, torch.Tensor):
        alike = a.dtype == b.dtype and a.shape == b.shape
        return alike and bool(((a == b) | (a.isnan() & b.isnan())).all())
    if isinstance(a, np.ndarray):
        if a.dtype.kind in "OV":  # of objects, or of records
            return a.shape == b.shape and _same(a.tolist(), b.tolist(), above)
        return bool(np.array_equal(a, b, equal_nan=a.dtype.kind in "fcmM"))
    identity: Any = object.__eq__
    if type(a).__eq__ is identity or dataclasses.is_dataclass(a):
        return _same(_parts(a), _parts(b), above)
    return bool(a == b or (a != a and b != b))


def _parts(value: Any) -> list[Any]:
    """Return what a copy of an object is made of, also of generators and slots."""
    parts = value.__reduce_ex__(4)  # as `copy.deepcopy` asks for it
    return [list(part) if isinstance(part, Iterator) else part for part in parts]
