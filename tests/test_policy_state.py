"""predict never writes into what it is given, and errors leave everything as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from diffuser_policy.config import (
    InverseDynamicsConfig,
    LandmarksConfig,
    PlannerConfig,
)
from diffuser_policy.diffusion.conditions import Conditions
from diffuser_policy.errors import ConfigError, GuideError, ObservationError
from diffuser_policy.planning.plan import BY_ROW
from diffuser_policy.planning.state import PolicyState
from diffuser_policy.policy import DiffuserPolicy
from diffuser_policy.testing import toy_config, toy_policy
from tests.policy_helpers import copied, count_plans, follow, observe, unchanged

Observation = dict[str, np.ndarray]


@pytest.fixture
def policy() -> DiffuserPolicy:
    return toy_policy()


# --- immutability and errors ----------------------------------------------------


@pytest.mark.parametrize(
    "then",
    [
        lambda policy, state: policy.predict(observe(3), state),
        lambda policy, state: policy.predict(observe(3, goal=-1), state),
        lambda policy, state: policy.predict(observe(3), state, [True, False, True]),
    ],
)
def test_the_given_state_is_never_written_to(
    policy: DiffuserPolicy, then: Callable[[DiffuserPolicy, PolicyState], object]
) -> None:
    state = follow(policy, 2, observe(3))
    kept = copied(state)
    for part in state:
        part.setflags(write=False)
    then(policy, state)
    assert unchanged(kept, state)


def test_the_flags_stay_as_they_are(policy: DiffuserPolicy) -> None:
    _, state = policy.predict(observe(2))
    flags = np.array([True, False])
    policy.predict(observe(2, seed=1), state, flags)  # with another goal
    assert flags.tolist() == [True, False]


def test_the_observation_is_not_kept(policy: DiffuserPolicy) -> None:
    observation = observe(2)
    _, state = policy.predict(observation)
    kept = copied(state)
    for part in observation.values():
        part[:] = 99.0
    assert unchanged(kept, state)


@pytest.fixture
def warnings_repeat() -> Iterator[None]:
    """Let PyTorch warn each time, not once in a process."""
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(before)


def locked(part: np.ndarray) -> np.ndarray:
    part = part.copy()
    part.setflags(write=False)
    return part


VIEWS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "read-only": locked,
    "backwards": lambda part: part[::-1].copy()[::-1],
    "backwards columns": lambda part: part[:, ::-1].copy()[:, ::-1],
    "every second": lambda part: np.repeat(part, 2, axis=0)[::2],
    "by columns": np.asfortranarray,
}


@pytest.mark.usefixtures("warnings_repeat")
@pytest.mark.parametrize("kind", VIEWS)
def test_observations_may_be_views_of_any_kind(kind: str) -> None:
    config = toy_config(
        inverse_dynamics=InverseDynamicsConfig(), landmarks=LandmarksConfig(num=20)
    )
    policy = toy_policy(
        config, executor="inverse-dynamics", horizon="predicted", subgoal=10.0
    )
    view, plain = VIEWS[kind], observe(3)
    seen = {name: view(part) for name, part in plain.items()}
    expected, state = policy.predict(plain, policy.initial_state(3, np.arange(3)))
    action, same = policy.predict(seen, policy.initial_state(3, np.arange(3)))
    np.testing.assert_array_equal(action, expected)
    assert unchanged(state, same)
    for one, other in zip(policy.routes(seen), policy.routes(plain), strict=True):
        np.testing.assert_array_equal(one, other)
    rows = view(plain["observation"])
    pins = Conditions().pin(1, "observation", rows)
    shown = policy.plan(seen, conditions=pins).observations
    np.testing.assert_allclose(shown[:, 1], plain["observation"], atol=1e-6)
    noise = [torch.Generator() for _ in rows]
    made = policy.planner.plan(rows, view(plain["desired_goal"]), noise)
    np.testing.assert_allclose(made.observations[:, 0], plain["observation"], atol=1e-6)


def test_a_plan_and_a_route_stay_when_the_observation_changes(
    policy: DiffuserPolicy,
) -> None:
    observation = observe(2)
    plan, routes = policy.plan(observation), policy.routes(observation)
    assert plan.aims is not None
    arrays = [*(getattr(plan, name) for name in BY_ROW), plan.aims, *routes]
    kept = [array.copy() for array in arrays]
    for part in observation.values():
        part[:] = 99.0
    assert all(map(np.array_equal, kept, arrays))


def nan_in(key: str) -> Observation:
    observation = observe(2)
    observation[key][1, 0] = np.nan
    return {str(name): part for name, part in observation.items()}


def without(key: str) -> Observation:
    return {name: part for name, part in observe(2).items() if name != key}


BAD_CALLS: dict[str, tuple[Callable[[PolicyState], tuple[Any, ...]], str]] = {
    "info": (lambda state: ((observe(2), {}), state), r"\(observation, info\)"),
    "nan": (lambda state: (nan_in("observation"), state), "observation holds NaN"),
    "nan goal": (lambda state: (nan_in("desired_goal"), state), "desired_goal holds"),
    "infinite": (
        lambda state: ({**observe(2), "desired_goal": np.full((2, 2), np.inf)}, state),
        "infinite",
    ),
    "missing": (lambda state: (without("desired_goal"), state), r"\['desired_goal'\]"),
    "columns": (
        lambda state: ({**observe(2), "observation": np.zeros((2, 5))}, state),
        r"shape \(4,\), or \(num_envs, 4\)",
    ),
    "axes": (
        lambda state: ({**observe(2), "observation": np.zeros((1, 2, 4))}, state),
        "got",
    ),
    "flat": (lambda state: (np.zeros(9), state), "goal dictionaries"),
    "text": (
        lambda state: ({**observe(2), "observation": "north"}, state),
        "not numeric",
    ),
    "more envs": (lambda state: (observe(3), state), "remembers 2 environments"),
    "no envs": (lambda state: (observe(0), state), "shape"),
    "state": (lambda _: (observe(2), "memory"), "state must be"),
    "foreign state": (
        lambda state: (
            observe(2),
            state._replace(observations=state.observations[:, :8]),
        ),
        "state is of another planner",
    ),
    "flags": (lambda state: (observe(2), state, [True]), "1 flag, but"),
    "flags and no state": (lambda _: (observe(2), None, [True]), "1 flag, but"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_input_is_refused_and_changes_nothing(
    policy: DiffuserPolicy, name: str
) -> None:
    arguments, message = BAD_CALLS[name]
    made = count_plans(policy)
    _, state = policy.predict(observe(2))
    kept = copied(state)
    with pytest.raises(ObservationError, match=message):
        policy.predict(*arguments(state))
    assert made == [2]
    assert unchanged(kept, state)
    # Not even the next random stream has moved on.
    twin = toy_policy()
    twin.predict(observe(2))
    assert unchanged(policy.predict(observe(2))[1], twin.predict(observe(2))[1])


def changed(field: str, value: Any) -> Callable[[PolicyState], PolicyState]:
    """Return a function that puts a number into the last place of a field."""

    def change(state: PolicyState) -> PolicyState:
        part = getattr(state, field).copy()
        part.reshape(-1)[-1] = value
        return state._replace(**{field: part})

    return change


DAMAGE: dict[str, Callable[[PolicyState], Any]] = {
    "nan in a plan": changed("observations", np.nan),
    "infinite plan": changed("observations", np.inf),
    "nan in an action": changed("actions", np.nan),
    "nan goal": changed("goals", np.nan),
    "nan progress": changed("progress", np.nan),
    "negative progress": changed("progress", -1.0),
    "negative length": changed("lengths", -1),
    "long plan": changed("lengths", 17),
    "negative age": changed("ages", -5),
    "negative stream": changed("streams", -1),
    "negative number": changed("num_plans", -1),
    "negative replans": changed("num_replans", -1),
    "other weights": changed("planners", 1),
    "short tuple": lambda state: tuple(state)[:-1],
    "list": list,
    "nothing but none": lambda state: (None,) * len(state),
    "array": lambda state: state.observations,
}
FIELD_DAMAGE: dict[str, Callable[[np.ndarray], Any]] = {
    "short": lambda part: part[:1],
    "flat": lambda part: part.reshape(-1)[:1],
    "deep": lambda part: part[..., None],
    "text": lambda part: part.astype(str),
    "complex": lambda part: part.astype(complex),
    "list": lambda part: part.tolist(),
    "none": lambda _: None,
    "number": lambda _: 3,
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_states_are_refused_and_change_nothing(
    policy: DiffuserPolicy, name: str
) -> None:
    _, state = policy.predict(observe(2))
    assert_refused(policy, DAMAGE[name](state))
    policy.predict(observe(2), state)


@pytest.mark.parametrize("kind", FIELD_DAMAGE)
def test_states_with_a_damaged_field_are_refused_and_change_nothing(
    policy: DiffuserPolicy, kind: str
) -> None:
    _, state = policy.predict(observe(2))
    for field, part in state._asdict().items():
        assert_refused(policy, state._replace(**{field: FIELD_DAMAGE[kind](part)}))
    policy.predict(observe(2), state)


def assert_refused(policy: DiffuserPolicy, damaged: Any) -> None:
    before = policy._streams.bit_generator.state
    with pytest.raises(ObservationError, match=r"^state "):
        policy.predict(observe(2), damaged)
    assert policy._streams.bit_generator.state == before


@pytest.mark.parametrize("flags", ["yes", [None, None], [2, 0], [np.nan, 0], [[1], 2]])
def test_flags_are_zeros_and_ones(policy: DiffuserPolicy, flags: Any) -> None:
    with pytest.raises(ObservationError, match="episode_start"):
        policy.predict(observe(2), None, flags)


def test_flags_may_be_numbers(policy: DiffuserPolicy) -> None:
    _, state = policy.predict(observe(2))
    _, state = policy.predict(observe(2), state, [1.0, 0.0])
    assert state.ages.tolist() == [0, 1]


def failing(trajectory: Any) -> Any:
    raise ZeroDivisionError(repr(trajectory))


FAILURES: dict[str, Callable[[DiffuserPolicy, pytest.MonkeyPatch], DiffuserPolicy]] = {
    "guide": lambda policy, _: policy.with_guide(failing),
    "guide without a gradient": lambda policy, _: policy.with_guide(
        lambda t: t.position.detach().sum(dim=(1, 2))
    ),
    "torch": lambda policy, patch: patched(policy, patch, "planner.sampler", "sample"),
    "executor": lambda policy, patch: patched(policy, patch, "executor", "act"),
    "featurizer": lambda policy, patch: patched(policy, patch, "spaces", "read"),
}


def patched(
    policy: DiffuserPolicy, patch: pytest.MonkeyPatch, place: str, name: str
) -> DiffuserPolicy:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    target: Any = policy
    for part in place.split("."):
        target = getattr(target, part)
    patch.setattr(type(target), name, fail)
    return policy


@pytest.mark.parametrize("name", FAILURES)
def test_failures_leave_the_random_streams_where_they_were(
    policy: DiffuserPolicy, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = FAILURES[name](policy, monkeypatch)
    before = failing._streams.bit_generator.state
    for state in (None, failing.initial_state(2, np.arange(2))):
        with pytest.raises((RuntimeError, ZeroDivisionError, ValueError)):
            failing.predict(observe(2), state)
        assert failing._streams.bit_generator.state == before


@pytest.mark.parametrize("has_state", [True, False])
def test_a_failure_takes_back_no_streams_that_others_took_meanwhile(
    policy: DiffuserPolicy, *, has_state: bool
) -> None:
    """Another thread may begin an episode with the same policy."""
    taken: list[np.ndarray] = []

    def failing(trajectory: Any) -> Any:
        taken.append(guided.initial_state(2).streams)
        raise ZeroDivisionError(repr(trajectory))

    guided = policy.with_guide(failing)
    state = guided.initial_state(2) if has_state else None
    with pytest.raises(GuideError, match="ZeroDivisionError"):
        guided.predict(observe(2), state)
    assert not np.isin(guided.initial_state(4).streams, taken).any()


def test_a_state_tells_in_a_line_how_long_and_how_old_plans_are() -> None:
    policy = toy_policy(horizon="shrinking", replan_interval=None)
    none = policy.initial_state(3)
    assert repr(none) == "PolicyState(3 environments, no plan)"
    assert repr(policy.initial_state(0)) == "PolicyState(0 environments, no plan)"
    _, state = policy.predict(observe(3))
    _, state = policy.predict(observe(3), state)
    text = "PolicyState(3 environments, 3 plans of 16 planning steps, made 1 env step"
    assert repr(state) == f"{text} ago)"
    _, state = policy.predict(observe(3), state)
    part = state.rows([0])
    text = "PolicyState(1 environment, 1 plan of 16 planning steps, made 2 env steps"
    assert repr(part) == f"{text} ago)"
    lengths, ages = np.array([0, 8, 16]), np.array([9, 0, 2])
    text = "PolicyState(3 environments, 2 plans of 8 to 16 planning steps, made 0 to 2"
    mixed = state._replace(lengths=lengths, ages=ages)
    assert repr(mixed) == f"{text} env steps ago)"


@pytest.mark.parametrize("count", [-1, 2.5, "2", None, True, 10**30])
def test_states_are_for_a_whole_number_of_environments(
    policy: DiffuserPolicy, count: Any
) -> None:
    before = policy._streams.bit_generator.state
    with pytest.raises(ConfigError, match="num_envs"):
        policy.initial_state(count)
    assert policy._streams.bit_generator.state == before


@pytest.mark.parametrize("streams", [[1], [1, -1], [1.5, 2], "ab", [None, 1], [[1, 2]]])
def test_streams_are_whole_numbers(policy: DiffuserPolicy, streams: Any) -> None:
    with pytest.raises(ConfigError, match="streams must be"):
        policy.initial_state(2, streams)


def test_errors_of_many_environments_name_the_first(policy: DiffuserPolicy) -> None:
    streams = np.arange(20_000)
    streams[[12_345, 19_999]] = -7
    with pytest.raises(ConfigError, match=r"environment 12345 is -7\.$"):
        policy.initial_state(20_000, streams)
    with pytest.raises(ConfigError, match=r"streams must be 3 whole") as raised:
        policy.initial_state(3, streams[:, None])
    assert len(str(raised.value)) < 400
    with pytest.raises(ObservationError, match=r"episode_start must .*…") as refused:
        policy.predict(observe(2), None, [2] * 3000)
    assert len(str(refused.value)) < 400


def test_an_error_while_planning_changes_nothing(
    policy: DiffuserPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, state = policy.predict(observe(2))
    kept = copied(state)

    def fail(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(policy.planner.sampler, "sample", fail)
        with pytest.raises(KeyboardInterrupt):
            policy.predict(observe(2, goal=-1), state)
    assert unchanged(kept, state)
    policy.predict(observe(2, goal=-1), state)


# --- copies with other settings -------------------------------------------------


def test_settings_give_a_copy_with_the_same_weights(policy: DiffuserPolicy) -> None:
    other = policy.with_settings(num_candidates=5, position_gain=2.0)
    assert other.networks is policy.networks
    assert other.planner.num_candidates == 5
    assert policy.planner.num_candidates == 2
    assert other.config.execution.position_gain == 2.0
    assert other.config.planner.num_sampling_steps == 2  # as it was


def test_plan_gives_the_deterministic_plan(policy: DiffuserPolicy) -> None:
    plan = policy.plan(observe(2), keep_chain=True)
    _, state = policy.predict(observe(2), deterministic=True)
    np.testing.assert_array_equal(plan.observations, state.observations)
    assert plan.chain is not None
    assert plan.chain.shape == (3, 2, 2, 16, 4)


def test_actions_follow_the_plans_actions() -> None:
    policy = toy_policy(
        toy_config(planner=PlannerConfig(num_candidates=1)), executor="actions"
    )
    state: Any = None
    for step in range(3):
        action, state = policy.predict(observe(2), state)
        expected = state.actions[:, step].clip(-1, 1)
        np.testing.assert_array_equal(action, expected)
