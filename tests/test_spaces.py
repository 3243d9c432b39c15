"""SpaceSpec: reading observations, comparing environments, finding goal columns."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from diffuser_policy.config import TrainConfig
from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.errors import DatasetError, ObservationError, SpaceMismatchError
from diffuser_policy.settings import from_json, to_json
from diffuser_policy.spaces import (
    SpaceSpec,
    action_bounds,
    find_goal_columns,
    outside,
)
from diffuser_policy.testing import toy_dataset
from diffuser_policy.training.derive import space_spec

BOUNDS: dict[str, Any] = {"action_low": (-1.0, -2.0), "action_high": (1.0, 2.0)}
FLAT = SpaceSpec(observation_size=4, **BOUNDS)
GOAL = SpaceSpec(observation_size=4, goal_size=2, goal_columns=(0, 1), **BOUNDS)
APPENDED = SpaceSpec(observation_size=4, goal_size=2, goal_columns=(4, 5), **BOUNDS)


def goal_dict(*batch: int) -> dict[str, np.ndarray]:
    return {
        "observation": np.arange(np.prod((*batch, 4)), dtype=float).reshape(*batch, 4),
        "achieved_goal": np.full((*batch, 2), 7.0),
        "desired_goal": np.full((*batch, 2), 9.0),
    }


def env(
    observation_space: spaces.Space[Any], action_space: spaces.Space[Any] | None = None
) -> Any:
    return SimpleNamespace(
        observation_space=observation_space,
        action_space=action_space or GOAL.action_space(),
    )


# --- reading ----------------------------------------------------------------------


@pytest.mark.parametrize("batch", [(), (1,), (3,)])
def test_rows_and_batch_shape_are_told_apart(batch: tuple[int, ...]) -> None:
    rows, goals, found = GOAL.read(goal_dict(*batch))
    assert found == batch
    assert rows.shape == ((*batch, 4) if batch else (1, 4))
    assert goals is not None
    assert goals.tolist() == [[9.0, 9.0]] * len(rows)
    rows, goals, found = FLAT.read(np.zeros((*batch, 4)))
    assert (rows.shape[1], goals, found) == (4, None, batch)


def test_rows_are_float32_whatever_comes() -> None:
    for given in ([0, 1, 2, 3], np.arange(4), np.arange(4.0)):
        assert FLAT.read(given)[0].dtype == np.float32


def test_an_achieved_goal_that_is_no_column_is_appended() -> None:
    rows, _, _ = APPENDED.read(goal_dict(3))
    assert APPENDED.planned_size == 6
    assert rows[1].tolist() == [4.0, 5.0, 6.0, 7.0, 7.0, 7.0]
    assert GOAL.planned_size == 4


def test_the_achieved_goal_is_needed_only_when_appended() -> None:
    partial = goal_dict()
    del partial["achieved_goal"]
    GOAL.read(partial)
    with pytest.raises(ObservationError, match=r"lacks \['achieved_goal'\]"):
        APPENDED.read(partial)


@pytest.mark.parametrize("size", [2, 12])
@pytest.mark.parametrize("batch", [(), (3,)])
def test_planners_without_goals_read_goal_dictionaries(
    batch: tuple[int, ...], size: int
) -> None:
    """They plan from the observation, and hand on goals of any size."""
    seen = {**goal_dict(*batch), "desired_goal": np.full((*batch, size), 7.0)}
    rows, goals, found = FLAT.read(seen)
    plain, none, _ = FLAT.read(seen["observation"])
    np.testing.assert_array_equal(rows, plain)
    assert none is None
    assert goals is not None
    assert goals.tolist() == [[7.0] * size] * len(rows)
    assert found == batch


@pytest.mark.parametrize("shape", [(), (3, 3), (5, 4, 3)])
@pytest.mark.parametrize("batch", [(), (3,)])
def test_goals_that_no_guide_can_take_are_left_aside(
    batch: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    """A number or an image, in place of a vector."""
    seen = {**goal_dict(*batch), "desired_goal": np.full((*batch, *shape), 7.0)}
    rows, goals, found = FLAT.read(seen)
    np.testing.assert_array_equal(rows, FLAT.read(seen["observation"])[0])
    assert (goals, found) == (None, batch)


@pytest.mark.parametrize("size", [6, 8])
def test_a_flat_array_is_not_taken_for_a_goal_dictionary(size: int) -> None:
    """Whether it is the observation and then the goal, nobody can tell."""
    for batch in ((), (3,)):
        with pytest.raises(ObservationError, match="does not say what its columns"):
            GOAL.read(np.zeros((*batch, size)))


@pytest.mark.parametrize(
    ("spec", "observation", "message"),
    [
        (FLAT, (np.zeros(4), {}), r"observation, info = env\.reset\(\)"),
        (GOAL, (goal_dict(), {}), r"observation, info = env\.reset\(\)"),
        (FLAT, {"observation": np.zeros(4)}, "takes flat observations"),
        (FLAT, {"image": np.zeros(4)}, r"has \['image'\].*goal dictionaries with"),
        (GOAL, np.zeros(4), "takes goal dictionaries"),
        (FLAT, np.zeros(5), r"shape \(4,\), or \(num_envs, 4\) for a batch; got \(5,"),
        (FLAT, np.zeros((2, 2, 4)), "got"),
        (FLAT, 3.0, "got"),
        (FLAT, np.zeros((0, 4)), "got"),
        (FLAT, [0, 1, 2, "three"], "not numeric"),
        (FLAT, ["0", "1", "2", "3"], "not numeric"),
        (FLAT, np.zeros(4, complex), "not numeric"),
        (FLAT, [0, 1, 2, None], "not numeric"),
        (FLAT, [0, 1, 2, np.nan], "NaN or infinite"),
        (GOAL, [[0], [1, 2]], "lacks"),
        (GOAL, {**goal_dict(), "desired_goal": [[0], [1, 2]]}, "not numeric"),
        (FLAT, [0, 1, 2, -np.inf], "NaN or infinite"),
        (GOAL, {**goal_dict(), "desired_goal": np.zeros(3)}, "desired_goal must have"),
        (GOAL, {**goal_dict(2), "desired_goal": np.zeros(2)}, "batch shape"),
        (GOAL, {**goal_dict(2), "desired_goal": np.zeros((3, 2))}, "batch shape"),
        (
            APPENDED,
            {**goal_dict(2), "achieved_goal": np.zeros((3, 2))},
            "achieved_goal",
        ),
        (FLAT, {**goal_dict(), "observation": np.zeros(5)}, "observation must have"),
        (GOAL, {**goal_dict(), "desired_goal": np.nan}, "desired_goal must have"),
        (FLAT, {**goal_dict(), "desired_goal": [np.nan]}, "desired_goal holds NaN"),
        (FLAT, {**goal_dict(), "desired_goal": [[0], [1, 2]]}, "not numeric"),
        (FLAT, {**goal_dict(2), "desired_goal": [[0], [1, 2]]}, "not numeric"),
        (FLAT, {**goal_dict(2), "desired_goal": np.zeros(4)}, "batch shape"),
        (FLAT, {**goal_dict(2), "desired_goal": np.zeros((3, 2))}, "batch shape"),
        (GOAL, {"observation": np.zeros(4)}, r"lacks \['desired_goal'\]"),
    ],
)
def test_what_cannot_be_planned_from_is_refused(
    spec: SpaceSpec,
    observation: Any,
    message: str,
) -> None:
    with pytest.raises(ObservationError, match=message):
        spec.read(observation)


# --- environments -----------------------------------------------------------------


def test_spaces_are_those_of_the_observations() -> None:
    space = GOAL.observation_space()
    assert space.contains(goal_dict())
    assert FLAT.observation_space().shape == (4,)
    assert GOAL.action_space() == spaces.Box(
        np.array([-1, -2], np.float32), np.array([1, 2], np.float32)
    )


def test_bounds_and_types_of_observations_do_not_matter() -> None:
    FLAT.fitted(env(spaces.Box(-8, 8, (4,), np.float32)))
    FLAT.fitted(env(spaces.Box(0, np.inf, (4,))))
    GOAL.fitted(env(GOAL.observation_space()))


def test_planners_without_goals_fit_environments_with_goals() -> None:
    FLAT.fitted(env(GOAL.observation_space()))
    larger = SpaceSpec(observation_size=5, goal_size=2, **BOUNDS)
    other = spaces.Dict({"observation": spaces.Box(-1, 1, (4,))})
    for space in (larger.observation_space(), other):
        with pytest.raises(SpaceMismatchError, match="observation space") as caught:
            FLAT.fitted(env(space))
        assert str(space) in str(caught.value)


def test_action_bounds_of_another_precision_are_the_same() -> None:
    spec = SpaceSpec(observation_size=4, action_low=(-0.4,), action_high=(0.4,))
    box = spaces.Box(-1, 1, (4,))
    spec.fitted(env(box, spaces.Box(-0.4, 0.4, (1,), np.float64)))
    spec.fitted(env(box, spaces.Box(-0.4, 0.4, (1,), np.float32)))


@pytest.mark.parametrize(
    ("observation_space", "action_space", "message"),
    [
        (spaces.Box(-1, 1, (4,)), None, "observation space"),
        (spaces.Box(-1, 1, (5,)), None, "observation space"),
        (spaces.Discrete(4), None, "observation space"),
        (
            spaces.Dict({"observation": spaces.Box(-1, 1, (4,))}),
            None,
            "observation space",
        ),
        (GOAL.observation_space(), spaces.Box(-1, 1, (2,)), "action space"),
        (GOAL.observation_space(), spaces.Box(-1, 1, (3,)), "action space"),
        (GOAL.observation_space(), spaces.Discrete(2), "action space"),
    ],
)
def test_another_environment_is_refused_by_both_spaces(
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any] | None,
    message: str,
) -> None:
    other = env(observation_space, action_space)
    with pytest.raises(SpaceMismatchError, match=f"expects the {message}") as caught:
        GOAL.fitted(other)
    which = "observation_space" if "observation" in message else "action_space"
    assert str(getattr(other, which)) in str(caught.value)


# --- data -------------------------------------------------------------------------


def test_goal_columns_are_found_where_they_repeat() -> None:
    rows = np.random.default_rng(0).normal(size=(500, 5)).astype(np.float32)
    assert find_goal_columns(rows, rows[:, [3, 1]]) == (3, 1)
    assert find_goal_columns(rows, rows[:, [2, 2]]) == (5, 6)  # one column, two goals
    assert find_goal_columns(rows, rows[:, [0, 1]] + 0.1) == (5, 6)
    # Only one row differs: it has to be looked at.
    almost = rows[:, [0, 1]].copy()
    almost[321] += 1
    assert find_goal_columns(rows, almost) == (5, 6)


def test_equal_columns_are_used_once_each() -> None:
    rows = np.zeros((10, 3))
    assert find_goal_columns(rows, np.zeros((10, 2))) == (0, 1)


def test_the_closest_of_the_columns_that_repeat_a_goal_is_chosen() -> None:
    rows = np.random.default_rng(0).normal(size=(20, 3)) * 1e-6  # tiny units
    assert find_goal_columns(rows, rows[:, [2, 1]]) == (2, 1)
    assert find_goal_columns(rows, rows[:, [2]] + 1e-9) == (2,)


@pytest.mark.parametrize(
    ("low", "high", "value", "expected"),
    [
        (-1.0, 1.0, 1.0019, False),
        (-1.0, 1.0, 1.0021, True),
        (-1e-3, 1e-3, 1.001e-3, False),
        (-1e-3, 1e-3, 1.9e-3, True),
        (0.0, np.inf, -1e-8, False),
        (0.0, np.inf, -1e-3, True),
        (1e4, np.inf, 1e4 - 2e-3, False),  # two float32 steps
        (-np.inf, 1e4, 1e4 + 0.1, True),
        (-np.inf, np.inf, 1e30, False),
        (0.1, 0.1, float(np.float32(0.1)), False),
    ],
)
def test_rounding_does_not_count_as_outside(
    low: float, high: float, value: float, *, expected: bool
) -> None:
    box = spaces.Box(low, high, (2,), np.float64)
    inside = np.clip(0.5, low, high)
    rows = np.array([[inside, value], [inside, inside]])
    assert outside(rows, box).tolist() == [expected, False]


def test_a_dataset_says_what_its_environment_is_like() -> None:
    assert space_spec(toy_dataset()) == SpaceSpec(
        observation_size=4,
        goal_size=2,
        goal_columns=(0, 1),
        action_low=(-1.0, -1.0),
        action_high=(1.0, 1.0),
    )
    assert not space_spec(toy_dataset(goals=False)).has_goal


def test_json_round_trip() -> None:
    for spec in (FLAT, GOAL, APPENDED):
        assert from_json(SpaceSpec, to_json(spec)) == spec


@pytest.mark.parametrize("unit", [1.0, 1e-6, 1e-9])
def test_goals_in_small_units_are_no_other_columns(unit: float) -> None:
    rng = np.random.default_rng(0)
    observation = unit * rng.normal(size=(100, 3))
    goal = unit * rng.normal(size=(100, 2))
    assert find_goal_columns(observation, goal) == (3, 4)
    rounded = observation[:, [2, 0]].astype(np.float32)
    assert find_goal_columns(observation, rounded) == (2, 0)


def test_a_goal_that_never_moves_is_found_up_to_rounding() -> None:
    observation = np.random.default_rng(0).normal(size=(100, 3))
    observation[:, 1] = 0.5
    goal = observation[:, [1]] + 5e-6
    assert find_goal_columns(observation, goal) == (1,)


def bounded(low: Any, high: Any) -> FlatDataset:
    """Return data whose metadata name these bounds for its actions of two numbers."""
    flat = toy_dataset()
    metadata = {**flat.metadata, "action_low": low, "action_high": high}
    return FlatDataset(flat.fields, flat.run_starts, metadata)


@pytest.mark.parametrize("infinite", [np.inf, None, float("nan")])
def test_unbounded_actions_are_refused(infinite: Any) -> None:
    with pytest.raises(DatasetError, match=r"bounded Box.*a bound is infinite"):
        action_bounds([-1.0], [infinite], 1)
    for settings in (space_spec, TrainConfig.for_dataset):
        with pytest.raises(DatasetError, match=r"infinite.*TransformAction.*FlatDat"):
            settings(bounded([-1.0, -1.0], [1.0, infinite]))


def test_bounds_of_actions_may_be_arrays_of_any_shape() -> None:
    for shape in ((2,), (1, 2)):
        low = np.full(shape, -1.0, np.float32)
        spec = space_spec(bounded(low, 2 * np.ones(shape, np.float32)))
        assert (spec.action_low, spec.action_high) == ((-1.0, -1.0), (2.0, 2.0))


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        ([-1.0], [1.0], "need 2 numbers each"),
        ([-1.0, -1.0], [1.0], "need 2 numbers each"),
        (-1.0, 1.0, "need 2 numbers each"),
        (-np.inf, np.inf, "need 2 numbers each"),
        ([1.0, 1.0], [-1.0, -1.0], "need low <= high"),
        ("low", "high", "must be numbers"),
        (["-1", "-1"], ["1", "1"], "must be numbers"),
        ([[-1.0], [-1.0, -1.0]], [1.0, 1.0], "must be numbers"),
    ],
)
def test_bounds_that_are_none_of_the_actions_are_refused(
    low: Any, high: Any, message: str
) -> None:
    flat = bounded(low, high)
    for settings in (space_spec, TrainConfig.for_dataset, FlatDataset.check_actions):
        with pytest.raises(DatasetError, match=message):
            settings(flat)


def test_a_dataset_without_bounds_is_refused() -> None:
    flat = toy_dataset()
    with pytest.raises(DatasetError, match="does not name the bounds"):
        space_spec(FlatDataset(flat.fields, flat.run_starts, {}))


# --- versions ---------------------------------------------------------------------


def test_data_of_another_version_of_its_environment_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flat = toy_dataset()
    recorded = flat.metadata["env_id"]
    assert recorded == "toy/Point-v0"
    expected = space_spec(flat)  # it is not known here: nothing to compare with
    registry = dict(gym.registry)
    monkeypatch.setattr(gym.envs.registration, "registry", registry)
    monkeypatch.setattr(gym, "registry", registry)
    gym.register("toy/Point-v1", "toy:Point")
    with pytest.raises(DatasetError, match=r"toy/Point-v0, and only toy/Point-v1"):
        space_spec(flat)
    gym.register(recorded, "toy:Point")
    assert space_spec(flat) == expected
    monkeypatch.setitem(flat.metadata, "env_id", "Hopper-v1")
    assert space_spec(flat) == expected  # Gymnasium's own come and go
