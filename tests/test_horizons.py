"""Horizons: how long plans are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from diffuser_policy.choices import HorizonChoice
from diffuser_policy.columns.layout import TrajectoryLayout
from diffuser_policy.errors import ConfigError, HorizonError
from tests.planner_helpers import GOALS, START, make_horizons


def test_fixed_plans_cover_the_training_horizon() -> None:
    horizons = make_horizons(choice="fixed")
    remaining = np.array([5, 0, -1])
    assert horizons.planning_steps(START, GOALS, remaining).tolist() == [
        16,
        16,
        16,
    ]


@pytest.mark.parametrize(
    ("remaining", "steps"),
    [
        (-1, 16),  # no plan before: the training horizon
        (45, 16),  # 15 strides and the current observation
        (44.5, 14),
        (44, 14),  # 14.7 strides: 14 and the current one, down to an even number
        (39, 14),
        (30, 10),
        (3, 4),  # never below the shortest window of training
        (0, 4),
        (1000, 16),
    ],
)
def test_shrinking_plans_arrive_no_later_than_before(
    remaining: float, steps: int
) -> None:
    horizons = make_horizons(choice="shrinking")
    found = horizons.planning_steps(START[:1], GOALS[:1], np.array([remaining]))
    assert found.tolist() == [steps]
    assert horizons.planning_steps(START[:1], GOALS[:1]).tolist() == [16]


def test_predicted_plans_cover_the_predicted_time() -> None:
    horizons = make_horizons(choice="predicted")
    # Distances in normalized units: 1, 0 and 29.7.
    assert horizons.predict_time(START, GOALS)[:2] == pytest.approx([10.0, 0.0])
    assert horizons.planning_steps(START, GOALS).tolist() == [6, 4, 16]


@pytest.mark.parametrize("choice", ["fixed", "shrinking", "predicted"])
def test_without_a_goal_plans_are_of_full_length(choice: HorizonChoice) -> None:
    horizons = make_horizons(choice=choice)
    assert (
        horizons.planning_steps(START, None, np.array([5, 5, 5])).tolist() == [16] * 3
    )


@pytest.mark.parametrize(
    ("choice", "steps"),
    [("fixed", [16, 16]), ("shrinking", [2, 2]), ("predicted", [6, 2])],
)
def test_without_a_shortest_window_the_network_sets_it(
    choice: HorizonChoice, steps: list[int]
) -> None:
    horizons = make_horizons(choice=choice, shortest=None)
    found = horizons.planning_steps(START[:2], GOALS[:2], np.array([0, 0]))
    assert found.tolist() == steps


def test_plans_to_a_goal_have_a_step_for_it_and_one_for_the_observation() -> None:
    single: Any = {"choice": "shrinking", "shortest": None, "multiple": 1}
    assert make_horizons(**single).min_planning_steps == 2
    aimless = TrajectoryLayout(action_dim=2, observation_dim=4)
    assert make_horizons(**single, layout=aimless).min_planning_steps == 1


@pytest.mark.parametrize("horizon", [0, 5, 9, 47, -6])
def test_a_horizon_that_does_not_fit_the_network_is_refused(horizon: int) -> None:
    with pytest.raises(HorizonError, match=f"multiple of 6 env steps .* got {horizon}"):
        make_horizons(longest=horizon)


def test_predictions_need_a_network() -> None:
    with pytest.raises(ConfigError, match="needs a time-to-goal network"):
        make_horizons(choice="predicted", time_to_goal=None)
    with pytest.raises(ConfigError, match="no time-to-goal network"):
        make_horizons(time_to_goal=None).predict_time(START, GOALS)


def test_the_scale_stretches_predicted_times() -> None:
    horizons = make_horizons(choice="predicted", scale=2.5)
    assert horizons.predict_time(START, GOALS)[:2] == pytest.approx([25.0, 0.0])
    assert horizons.planning_steps(START, GOALS).tolist() == [10, 4, 16]


def test_a_row_that_strayed_and_came_no_nearer_gets_twice_the_time() -> None:
    horizons = make_horizons(choice="predicted")
    start, goal = START[:1].repeat(3, axis=0), GOALS[:1].repeat(3, axis=0)
    failed = np.array([0, 6, 8])  # none; one as long as the new one; a longer one
    found = horizons.planning_steps(start, goal, failed=failed)
    assert found.tolist() == [6, 8, 6]


@pytest.mark.parametrize(("choice", "steps"), [("fixed", 16), ("shrinking", 8)])
def test_other_horizons_do_not_change_where_a_row_strayed(
    choice: HorizonChoice, steps: int
) -> None:
    horizons = make_horizons(choice=choice)
    left, failed = np.array([23]), np.array([4])
    found = horizons.planning_steps(START[:1], GOALS[:1], left, failed)
    assert found.tolist() == [steps]
