"""What guides want is drawn where it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, Rectangle

from diffuser_policy.columns.layout import TrajectoryLayout
from diffuser_policy.guides.builtin import KeepIn, KeepOut, Smoothness, Waypoint
from diffuser_policy.guides.guide import Guide, as_guide
from diffuser_policy.plotting import Scene, draw_scene

LAYOUT = TrajectoryLayout(
    action_dim=2,
    observation_dim=4,
    aliases={"position": (0, 1), "velocity": (2, 3), "goal": (0, 1)},
)
OBSERVATION = {"desired_goal": np.zeros(2)}


def drawn(guide: Guide | None) -> Any:
    """Return axes on which the scene of a guide is drawn."""
    ax = Figure().add_subplot()
    draw_scene(ax, Scene.of(object(), LAYOUT, OBSERVATION, guide=guide))
    return ax


def test_discs_boxes_and_points_are_drawn_where_they_are() -> None:
    guide = (
        2.0 * KeepOut(center=(1.0, -2.0), radius=0.5)
        + KeepIn(low=(-3.0, -4.0), high=(3.0, 5.0))
        + Waypoint(position=(0.5, 0.25))
        + Smoothness()
    )
    ax = drawn(guide)
    disc, box = ax.patches
    assert isinstance(disc, Ellipse)
    assert (*disc.center, disc.width, disc.height) == (1.0, -2.0, 1.0, 1.0)
    assert disc.get_hatch()
    assert isinstance(box, Rectangle)
    assert tuple(box.get_bbox().extents) == (-3.0, -4.0, 3.0, 5.0)
    assert not box.get_hatch()
    [point] = ax.lines
    assert point.get_xydata().tolist() == [[0.5, 0.25]]


@pytest.mark.parametrize(
    "guide",
    [
        None,
        Smoothness(),
        as_guide(lambda t: t.position.sum(dim=(1, 2))),
        KeepOut(center=(1.0, 0.0), radius=0.5, columns="velocity"),
    ],
)
def test_what_does_not_lie_in_the_picture_is_not_drawn(guide: Guide | None) -> None:
    ax = drawn(guide)
    assert len(ax.patches) == len(ax.lines) == 0


def test_a_disc_to_stay_inside_is_an_outline() -> None:
    [disc] = drawn(KeepIn(center=(0.0, 1.0), radius=2.0)).patches
    assert (disc.width, disc.get_fill()) == (4.0, False)
