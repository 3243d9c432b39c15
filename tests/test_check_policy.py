"""check_policy finds every fault that it has a rule for."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

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


def test_rules_can_be_skipped_by_name() -> None:
    broken = _Broken(_wrong_dtype)
    assert "dtype" not in check_policy(broken, skip=["dtype"])
    with pytest.raises(LookupError, match="Did you mean 'dtype'"):
        check_policy(broken, skip=["dtypes"])
