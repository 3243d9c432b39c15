"""When to plan anew: each reason by itself, and what overrides what."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from diffuser_policy.planning.replanning import Reasons
from diffuser_policy.planning.state import PolicyState

DURATION = 20.0


def a_row(**fields: Any) -> PolicyState:
    """Return the memory of one row that follows a plan to its goal."""
    usual = {
        "observations": np.zeros((1, 6, 2)),
        "actions": np.zeros((1, 6, 1)),
        "lengths": [6],
        "ages": [7],
        "progress": [7.0],
        "goals": [[1.0, 1.0]],
        "aims": [[1.0, 1.0]],
        "streams": [0],
        "num_plans": [1],
        "num_replans": [0],
        "planners": [0],
        "guides": [3],
        "previous": np.zeros((1, 2)),
    }
    return PolicyState(**{k: np.asarray(v) for k, v in {**usual, **fields}.items()})


def found(fields: dict[str, Any], **settings: Any) -> set[str]:
    """Return what holds for the row."""
    usual = {"guide": 3, "strayed": [False], "aimed": True, "stays": True}
    asked = {**usual, "interval": None, **settings}
    asked["strayed"] = np.asarray(asked["strayed"])
    why = Reasons.find(a_row(**fields), np.array([DURATION]), **asked)
    return {name for name, flags in vars(why).items() if flags[0]}


DUE = {"ages": [10], "progress": [10.0]}
END = {"ages": [20], "progress": [DURATION]}
OVER = {"progress": [DURATION + 1]}
SUBGOAL = {"aims": [[0.5, 0.5]]}


@pytest.mark.parametrize(
    ("fields", "settings", "expected"),
    [
        ({}, {}, {"underway"}),
        ({"lengths": [0]}, {}, {"needed"}),
        ({}, {"guide": 4}, {"needed", "underway"}),
        ({}, {"strayed": [True]}, {"needed", "strayed"}),
        # Run out: somebody may stay at a goal, and nobody at a subgoal.
        (OVER, {}, set()),
        (OVER, {"stays": False}, {"needed"}),
        (OVER, {"aimed": False}, {"needed"}),
        (OVER | SUBGOAL, {}, {"needed", "on_way"}),
        # Due: to a goal, only an earlier arrival is worth it.
        (DUE, {"interval": 5}, {"welcome", "underway"}),
        (DUE, {"interval": 3}, {"underway"}),
        (DUE, {"interval": 5, "aimed": False}, {"needed", "underway"}),
        (DUE, {"interval": 5, "strayed": [True]}, {"needed", "strayed"}),
        (DUE | SUBGOAL, {"interval": 5}, {"needed", "on_way"}),
        (DUE | SUBGOAL, {}, {"on_way"}),
        # At its very end, a plan is not over, and due unless it arrives at the goal.
        (END, {"interval": 5}, set()),
        (END, {"interval": 5, "stays": False}, set()),
        (END, {"interval": 5, "aimed": False}, {"needed"}),
        (END | SUBGOAL, {"interval": 5}, {"needed", "on_way"}),
        (END, {"interval": 3, "aimed": False}, set()),
    ],
)
def test_age_goal_and_deviation_of_a_plan_are_reasons_to_replan(
    fields: dict[str, Any], settings: dict[str, Any], expected: set[str]
) -> None:
    assert found(fields, **settings) == expected
