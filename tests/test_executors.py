"""Executors: which planned state each action steers towards, step by step."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffuser_policy.columns.layout import TrajectoryLayout
from diffuser_policy.errors import ConfigError
from diffuser_policy.planning.executors import (
    Executor,
    PathExecutor,
    PlannedActions,
    PursuitExecutor,
    TrackingExecutor,
)
from diffuser_policy.planning.plan import Following, interpolate

LAYOUT = TrajectoryLayout(
    action_dim=1, observation_dim=2, aliases={"position": (0,), "velocity": (1,)}
)
POSITIONS = [0.0, 10.0, 20.0, 30.0]
VELOCITIES = [1.0, 2.0, 3.0, 4.0]
HERE = np.zeros((1, 2))


def following(progress: float, *, stride: int = 1, length: int = 4) -> Following:
    observations = np.stack([POSITIONS, VELOCITIES], axis=1)[None]
    return Following(
        observations=observations,
        actions=np.array([[[0.1], [0.2], [0.3], [0.4]]]),
        lengths=np.array([length]),
        progress=np.array([progress]),
        stride=stride,
    )


# --- the table of indices ---------------------------------------------------------


@pytest.mark.parametrize(
    ("age", "action"), [(0, 0.1), (1, 0.2), (2, 0.3), (3, 0.4), (4, 0.4), (99, 0.4)]
)
def test_planned_actions_start_with_the_first(age: int, action: float) -> None:
    executor = PlannedActions(LAYOUT, stride=1)
    assert executor.act(following(age), HERE).tolist() == [[action]]


def test_planned_actions_end_with_the_plans_length() -> None:
    executor = PlannedActions(LAYOUT, stride=1)
    assert executor.act(following(7, length=2), HERE).tolist() == [[0.2]]


@pytest.mark.parametrize(
    ("age", "position", "velocity"),
    [
        (0, 10.0, 2.0),  # steers towards s_1
        (1, 20.0, 3.0),
        (2, 30.0, 4.0),  # the last planned state, at its planned velocity
        (3, 30.0, 0.0),  # then it holds the position, at rest
        (50, 30.0, 0.0),
    ],
)
def test_tracking_steers_one_step_ahead_and_holds_the_goal(
    age: int, position: float, velocity: float
) -> None:
    executor = TrackingExecutor(LAYOUT, position_gain=1.0, velocity_gain=100.0)
    assert executor.act(following(age), HERE).item() == position + 100 * velocity


@pytest.mark.parametrize(
    ("age", "position", "velocity"),
    [(0, 2.5, 1.25), (3, 10.0, 2.0), (4, 12.5, 2.25), (11, 30.0, 4.0), (12, 30.0, 0)],
)
def test_tracking_interpolates_between_planning_steps(
    age: int, position: float, velocity: float
) -> None:
    executor = TrackingExecutor(LAYOUT, position_gain=1.0, velocity_gain=100.0)
    found = executor.act(following(age, stride=4), HERE).item()
    assert found == pytest.approx(position + 100 * velocity)


def test_tracking_is_proportional_to_both_errors() -> None:
    executor = TrackingExecutor(LAYOUT, position_gain=3.0, velocity_gain=0.5)
    observation = np.array([[4.0, -1.0]])
    found = executor.act(following(0), observation).item()
    assert found == pytest.approx(3.0 * (10 - 4) + 0.5 * (2 + 1))


@pytest.mark.parametrize(
    "executor", [PlannedActions(LAYOUT, 1), TrackingExecutor(LAYOUT)]
)
def test_plans_are_followed_by_the_clock(executor: Executor) -> None:
    assert executor.progress(following(5), HERE).tolist() == [6.0]


def test_rows_have_their_own_progress() -> None:
    one = following(0)
    both = Following(
        observations=np.repeat(one.observations, 2, axis=0),
        actions=np.repeat(one.actions, 2, axis=0),
        lengths=np.array([4, 2]),
        progress=np.array([1.0, 1.0]),
        stride=1,
    )
    assert both.durations.tolist() == [3, 1]
    executor = TrackingExecutor(LAYOUT, velocity_gain=100.0)
    found = executor.act(both, np.zeros((2, 2)))
    assert found.tolist() == [[20.0 + 300.0], [10.0 + 0.0]]


# --- pursuit ----------------------------------------------------------------------


def pursuit(**settings: Any) -> PursuitExecutor:
    return PursuitExecutor(
        LAYOUT,
        **{"position_gain": 1.0, "velocity_gain": 100.0, "lookahead": 2.0, **settings},
    )


def test_pursuit_steers_further_ahead() -> None:
    assert pursuit().act(following(0), HERE).item() == 20.0 + 300.0
    assert pursuit().act(following(1), HERE).item() == 30.0 + 400.0
    assert pursuit().act(following(2), HERE).item() == 30.0  # past the end: at rest


@pytest.mark.parametrize(
    ("position", "progress"),
    [
        (0.0, 1.0),  # behind the plan: the clock still runs
        (10.0, 1.0),
        (21.0, 2.0),  # ahead of it: the nearest planned state
        (99.0, 3.0),  # never beyond the end
    ],
)
def test_pursuit_advances_to_the_nearest_point(
    position: float, progress: float
) -> None:
    """Whatever the velocity is."""
    observation = np.array([[position, -100.0]])
    assert pursuit().progress(following(0), observation).tolist() == [progress]


def test_pursuit_never_goes_back() -> None:
    start = np.array([[0.0, 0.0]])
    assert pursuit().progress(following(2), start).tolist() == [3.0]


def test_past_the_end_the_clock_runs_on() -> None:
    """A plan without a goal is made anew when its end has passed."""
    assert pursuit().progress(following(3), HERE).tolist() == [4.0]


def test_pursuit_looks_only_as_far_as_it_may() -> None:
    observation = np.array([[30.0, 0.0]])
    far = pursuit().progress(following(0, stride=8), observation)
    assert far.tolist() == [20.0]
    near = pursuit().progress(following(0, stride=4), observation)
    assert near.tolist() == [12.0]


# --- interpolation and refusals ---------------------------------------------------


@given(
    env_step=st.floats(-9, 100),
    stride=st.integers(1, 7),
    length=st.integers(1, 4),
)
def test_interpolation_is_numpys(env_step: float, stride: int, length: int) -> None:
    plan = following(0)
    found = interpolate(
        plan.observations, np.array([length]), stride, np.array([env_step])
    )
    grid = np.arange(length) * stride
    expected = np.interp(env_step, grid, POSITIONS[:length])
    assert found[0, 0] == pytest.approx(expected)


def test_planned_actions_need_actions_at_every_step() -> None:
    with pytest.raises(ConfigError, match="stride 3"):
        PlannedActions(LAYOUT, stride=3)
    with pytest.raises(ConfigError, match="0 action columns"):
        PlannedActions(TrajectoryLayout(action_dim=0, observation_dim=2), stride=1)


@pytest.mark.parametrize("make", [TrackingExecutor, PursuitExecutor])
def test_tracking_needs_a_position(make: type[TrackingExecutor]) -> None:
    layout = TrajectoryLayout(action_dim=1, observation_dim=2)
    with pytest.raises(ConfigError, match=r"'position'.*--window\.position, WindowCon"):
        make(layout)


def test_keeping_to_a_path_needs_planned_velocities() -> None:
    with pytest.raises(
        ConfigError, match=r"'velocity' \(--window\.velocity, WindowConf"
    ):
        PathExecutor(POSITION_ONLY, seconds_per_step=0.1)


# --- without a velocity -------------------------------------------------------------

POSITION_ONLY = TrajectoryLayout(
    action_dim=1, observation_dim=2, aliases={"position": (0,)}
)


@pytest.mark.parametrize(
    ("progress", "stride", "velocity"),
    [(0, 1, 10.0), (1.5, 1, 10.0), (3, 1, 0.0), (0, 4, 2.5), (12, 4, 0.0)],
)
def test_an_unobserved_velocity_is_how_far_a_step_moves(
    progress: float, stride: int, velocity: float
) -> None:
    """In the plan, and in the environment: here 7 in the last env step."""
    executor = TrackingExecutor(POSITION_ONLY, position_gain=0.0, velocity_gain=1.0)
    plan = following(progress, stride=stride)
    moved = dataclasses.replace(plan, previous=np.array([[1.0, 0.0]]))
    found = executor.act(moved, np.array([[8.0, 0.0]])).item()
    assert found == pytest.approx(velocity - 7.0)
    assert executor.act(plan, np.array([[8.0, 0.0]])).item() == pytest.approx(velocity)


def test_a_velocity_ahead_is_how_far_the_plan_moves_there() -> None:
    executor = PursuitExecutor(POSITION_ONLY, position_gain=0.0, lookahead=3.0)
    plan = following(0)
    plan.observations[0, :, 0] = [0.0, 1.0, 10.0, 16.0]
    assert executor.act(plan, HERE).item() == 16.0 - 10.0


@pytest.mark.parametrize(("progress", "lookahead"), [(0.0, 0.25), (0.25, 0.5)])
def test_a_velocity_at_the_start_is_that_of_the_way_from_there(
    progress: float, lookahead: float
) -> None:
    """No planned state is an env step back, and the end of the plan is not the one."""
    executor = PursuitExecutor(POSITION_ONLY, position_gain=0.0, lookahead=lookahead)
    assert executor.act(following(progress), HERE).item() == pytest.approx(10.0)


def test_a_mass_comes_to_rest_though_its_velocity_is_not_observed() -> None:
    """It would swing forever if only its position counted."""
    executor = TrackingExecutor(POSITION_ONLY, position_gain=0.02, velocity_gain=0.3)
    plan = dataclasses.replace(following(99), observations=np.zeros((1, 4, 2)))
    position, velocity, before = 1.0, 0.0, 1.0
    for _ in range(200):
        seen = dataclasses.replace(plan, previous=np.array([[before, 0.0]]))
        velocity += executor.act(seen, np.array([[position, 0.0]])).item()
        before, position = position, position + velocity
    assert abs(position) + abs(velocity) < 1e-3
