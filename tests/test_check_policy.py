"""check_policy finds every fault that it has a rule for."""

from __future__ import annotations

import collections
import dataclasses
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from diffuser_policy.errors import ConfigError
from diffuser_policy.testing import (
    RULES,
    PolicyContractError,
    check_policy,
    toy_policy,
)


class _Broken:
    """A policy with one fault, wrapped around one without."""

    def __init__(self, fault: Callable[..., Any]) -> None:
        self.policy, self.fault = toy_policy(), fault
        self.observation_space = self.policy.observation_space
        self.action_space = self.policy.action_space
        self.memory = 0

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> Any:
        return self.fault(self, observation, state, episode_start, deterministic)


def _answer(broken: _Broken, *arguments: Any) -> tuple[np.ndarray, Any]:
    return broken.policy.predict(*arguments)


def _wrong_dtype(broken: _Broken, *arguments: Any) -> Any:
    action, state = _answer(broken, *arguments)
    return action.astype(np.float64), state


def _wrong_shape(broken: _Broken, *arguments: Any) -> Any:
    action, state = _answer(broken, *arguments)
    return np.atleast_2d(action), state


def _out_of_bounds(broken: _Broken, *arguments: Any) -> Any:
    action, state = _answer(broken, *arguments)
    return action + 3, state


def _random(broken: _Broken, *arguments: Any) -> Any:
    return _answer(broken, *arguments[:3], False)


def _remembers(broken: _Broken, observation: Any, state: Any, *rest: Any) -> Any:
    action, new_state = _answer(broken, observation, state, *rest)
    broken.memory += state is not None
    return (-action if broken.memory and state is None else action), new_state


def _alternates(broken: _Broken, observation: Any, state: Any, *rest: Any) -> Any:
    action, new_state = _answer(broken, observation, state, *rest)
    broken.memory += state is not None
    return (-action if state is not None and broken.memory % 2 else action), new_state


def _minds_a_batch_of_one(broken: _Broken, observation: Any, *rest: Any) -> Any:
    action, state = _answer(broken, observation, *rest)
    return (-action if action.shape == (1, 2) else action), state


def _writes_state(broken: _Broken, observation: Any, state: Any, *rest: Any) -> Any:
    result = _answer(broken, observation, state, *rest)
    if state is not None:
        state.ages[:] += 1
    return result


def _writes_flags(broken: _Broken, observation: Any, state: Any, *rest: Any) -> Any:
    result = _answer(broken, observation, state, *rest)
    if rest[0] is not None:
        rest[0][:] = False
    return result


def _keeps_flags(broken: _Broken, observation: Any, state: Any, *rest: Any) -> Any:
    action, state = _answer(broken, observation, state, *rest)
    return action, state if rest[0] is None else state._replace(ages=rest[0])


def _ignores_starts(broken: _Broken, observation: Any, state: Any, *rest: Any) -> Any:
    return _answer(broken, observation, state, None, rest[1])


def _centers(broken: _Broken, observation: Any, *rest: Any) -> Any:
    goal = observation["desired_goal"]
    if np.ndim(goal) == 2:
        goal = 2 * goal - goal.mean(axis=0)
    return _answer(broken, {**observation, "desired_goal": goal}, *rest)


def _global_noise(broken: _Broken, *arguments: Any) -> Any:
    random.random()
    return _answer(broken, *arguments)


def _takes_tuples(broken: _Broken, observation: Any, *rest: Any) -> Any:
    if isinstance(observation, tuple):
        observation = observation[0]
    return _answer(broken, observation, *rest)


def _takes_nan(broken: _Broken, observation: Any, *rest: Any) -> Any:
    if isinstance(observation, dict):
        observation = {k: np.nan_to_num(part) for k, part in observation.items()}
    return _answer(broken, observation, *rest)


def _takes_any_shape(broken: _Broken, observation: Any, *rest: Any) -> Any:
    sizes = {"observation": 4, "achieved_goal": 2, "desired_goal": 2}
    if isinstance(observation, dict):
        observation = {k: observation[k][..., : sizes[k]] for k in sizes}
    return _answer(broken, observation, *rest)


FAULTS = [
    (_wrong_dtype, "dtype"),
    (_wrong_shape, "shapes"),
    (_out_of_bounds, "bounds"),
    (_random, "determinism"),
    (_remembers, "memory"),
    (_alternates, "state_repeats"),
    (_minds_a_batch_of_one, "batch_of_one"),
    (_writes_state, "state_unchanged"),
    (_writes_flags, "input_unchanged"),
    (_keeps_flags, "flags_copied"),
    (_ignores_starts, "episode_start"),
    (_centers, "row_independence"),
    (_global_noise, "global_randomness"),
    (_takes_tuples, "refuses_tuple"),
    (_takes_nan, "refuses_nan"),
    (_takes_any_shape, "refuses_shape"),
]


@pytest.mark.parametrize(("fault", "rule"), FAULTS)
def test_the_check_finds(fault: Callable[..., Any], rule: str) -> None:
    broken = _Broken(fault)
    broken.policy = toy_policy(position_gain=0.05, velocity_gain=0.05)
    with pytest.raises(PolicyContractError, match=f"^{rule}: ") as caught:
        check_policy(broken)
    assert caught.value.rule == rule


def test_every_rule_has_a_fault_that_breaks_it() -> None:
    assert {rule for _, rule in FAULTS} == RULES.keys()


REFUSALS = {rule for rule in RULES if rule.startswith("refuses_")}


class _Averaging:
    """A policy with any state, which it may write to."""

    observation_space = spaces.Box(-1, 1, (2,))
    action_space = spaces.Box(-1, 1, (1,))

    def __init__(
        self, make: Callable[[], Any], write: Callable[[Any], Any] | None = None
    ) -> None:
        self.make, self.write = make, write

    def predict(self, observation: Any, state: Any = None, *_: Any, **__: Any) -> Any:
        if state is not None and self.write is not None:
            self.write(state)
        return observation.mean(-1, keepdims=True), self.make()


class _Plain:
    """A state that says nothing of how it compares."""

    def __init__(self, held: Any) -> None:
        self.held = held


class _Slotted:
    __slots__ = ("held",)

    def __init__(self, held: Any) -> None:
        self.held = held


@dataclasses.dataclass
class _Record:
    held: Any


def _linked() -> _Plain:
    parent = _Plain([])
    parent.held.append(_Plain(parent))
    return parent


STATES: dict[str, Callable[[], Any]] = {
    "objects that know each other": _linked,
    "dataclass of an array": lambda: _Record(np.zeros(3)),
    "object": lambda: _Plain({"plan": np.ones(2)}),
    "object with slots": lambda: _Slotted([np.ones(2)]),
    "tensor with NaN": lambda: torch.tensor([1.0, np.nan]),
    "complex array with NaN": lambda: np.array([1j, np.nan]),
    "array of objects": lambda: np.array([None, _Plain(1)], object),
    "number that is NaN": lambda: {"last": float("nan")},
    "NumPy's number": lambda: (np.float32(np.nan), np.int64(3)),
    "generator of NumPy": lambda: np.random.default_rng(0),
    "generator of Python": lambda: random.Random(0),
    "queue": lambda: collections.deque([np.ones(2)], maxlen=3),
}


@pytest.mark.parametrize("make", STATES.values(), ids=STATES)
def test_states_may_be_anything_that_can_be_copied(make: Callable[[], Any]) -> None:
    found = check_policy(_Averaging(make), skip=REFUSALS)
    assert set(found) == RULES.keys() - REFUSALS


def _in_record(state: Any) -> None:
    state.held += 1


def _in_parts(state: Any) -> None:
    state.held[0][0] += 1


WRITTEN: list[tuple[Callable[[], Any], Callable[[Any], Any]]] = [
    (lambda: _Record(np.zeros(3)), _in_record),
    (lambda: _Plain([np.zeros(3)]), _in_parts),
    (lambda: _Slotted(np.zeros(3)), _in_record),
    (lambda: torch.tensor([0.0, np.nan]), lambda state: state.add_(1)),
    (lambda: np.random.default_rng(0), lambda state: state.random()),
    (lambda: random.Random(0), lambda state: state.random()),
    (lambda: collections.deque([1]), lambda state: state.append(2)),
]


@pytest.mark.parametrize(("make", "write"), WRITTEN)
def test_states_of_any_kind_must_not_be_written_to(
    make: Callable[[], Any], write: Callable[[Any], Any]
) -> None:
    with pytest.raises(PolicyContractError, match=r"^state_unchanged: "):
        check_policy(_Averaging(make, write), skip=REFUSALS)


def test_rules_can_be_skipped_by_name() -> None:
    broken = _Broken(_wrong_dtype)
    assert "dtype" not in check_policy(broken, skip=["dtype"])
    with pytest.raises(LookupError, match="Did you mean 'dtype'"):
        check_policy(broken, skip=["dtypes"])


@pytest.mark.parametrize("collect", [list, tuple, set, frozenset, dict.fromkeys])
def test_any_collection_of_rules_can_be_skipped(collect: Callable[[Any], Any]) -> None:
    policy = _Averaging(lambda: None)
    found = check_policy(policy, skip=collect([*REFUSALS, "dtype"]))
    assert set(found) == RULES.keys() - REFUSALS - {"dtype"}


def test_a_negative_tolerance_is_refused_before_the_policy_is_blamed() -> None:
    with pytest.raises(ConfigError, match=r"tolerance must be 0 or more, got -1\.0"):
        check_policy(toy_policy(), tolerance=-1.0)


def test_a_text_is_no_collection_of_rules() -> None:
    with pytest.raises(ConfigError, match="skip must be a list of texts, got 'dtype'"):
        check_policy(_Averaging(lambda: None), skip="dtype")
