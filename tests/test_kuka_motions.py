"""Motions of the arm: speeds, clearances, and where they lead."""

from __future__ import annotations

import numpy as np
import pytest

from diffuser_envs.errors import KukaArrangementError
from diffuser_envs.kuka.arm import (
    HOME,
    JOINT_SPEED,
    SPEED_FACTOR,
    inverse,
    tool_position,
)
from diffuser_envs.kuka.motions import (
    LIFT,
    NOTHING,
    TOP,
    Route,
    Style,
    lowest_tool,
)

MIDDLE = np.array((0.0, 0.0, TOP))
BLOCKS = np.array(
    [(0.5, -0.4, 0.03), (0.6, 0.0, 0.03), (0.6, 0.0, 0.09), (0.45, 0.35, 0.03)]
)


def pick_and_place(style: Style | None = None) -> Route:
    """Carry block 0 over the pile of blocks 1 and 2 to a place beside block 3."""
    route = Route(tool_position(HOME), style=style)
    route.take(0, BLOCKS, MIDDLE)
    route.put(np.array((0.6, 0.2, 0.03)), BLOCKS, MIDDLE)
    return route


def test_no_joint_turns_faster_than_it_may_and_one_nearly_does() -> None:
    motion = pick_and_place().timed()
    share = np.abs(np.diff(motion.joints, axis=0)) / (SPEED_FACTOR * 0.05 * JOINT_SPEED)
    assert 0.9 < share.max() <= 1.0


def test_motions_are_smooth() -> None:
    motion = pick_and_place().timed()
    change = np.diff(motion.joints, n=2, axis=0) / 0.05**2
    assert np.abs(change).max() < 40.0  # rad/s²: from rest to top speed in 0.06 s
    at_rest = motion.held[1:] != motion.held[:-1]
    assert np.abs(np.diff(motion.joints, axis=0))[at_rest].max() == 0.0


def test_joints_are_the_tools() -> None:
    motion = pick_and_place().timed()
    np.testing.assert_allclose(motion.joints, inverse(motion.tool))
    np.testing.assert_allclose(motion.joints[0], HOME, atol=1e-12)


def test_a_block_is_held_from_where_it_stood_to_where_it_goes() -> None:
    motion = pick_and_place(Style(grasp_steps=5)).timed()
    (first, last) = np.flatnonzero(np.diff(motion.held))
    assert set(motion.held.tolist()) == {NOTHING, 0}
    np.testing.assert_allclose(motion.tool[first : first + 6], BLOCKS[[0] * 6] + MIDDLE)
    rest = np.broadcast_to((0.6, 0.2, 0.06), (6, 3))
    np.testing.assert_allclose(motion.tool[last : last + 6], rest, atol=1e-12)
    assert len(motion.held) == last + 6


@pytest.mark.parametrize("clearance", [0.03, 0.06])
def test_what_is_carried_clears_what_it_passes(clearance: float) -> None:
    motion = pick_and_place(Style(clearance=clearance)).timed()
    loaded = motion.held != NOTHING
    gaps = np.hypot(*(motion.tool[:, :2] - BLOCKS[1, :2]).T)
    over = motion.tool[loaded & (gaps < 0.14)]
    assert len(over) > 0
    lowest = over[:, 2].min() - 2 * TOP
    assert clearance - 1e-9 <= lowest - 0.12 < clearance + 0.01


def test_blocks_are_left_and_approached_straight_up_and_down() -> None:
    motion = pick_and_place().timed()
    grasp = np.flatnonzero(motion.held != NOTHING)[0] - 1
    low = motion.tool[:, 2] < 0.06 + 0.03
    around = low & (np.abs(np.arange(len(low)) - grasp) < 15)
    assert around.sum() > 5
    sideways = np.hypot(*(motion.tool[around, :2] - BLOCKS[0, :2]).T)
    assert sideways.max() < 1e-9


@pytest.mark.parametrize("detour", [(0.4, 0.0, 0.02), (0.0, -0.9, 0.02)])
def test_a_detour_out_of_reach_is_left_out(detour: tuple[float, ...]) -> None:
    routes = [Route(tool_position(HOME)) for _ in range(2)]
    routes[0].take(0, BLOCKS, MIDDLE)
    routes[1].take(0, BLOCKS, MIDDLE, detour)
    plain, spared = (route.timed() for route in routes)
    np.testing.assert_array_equal(spared.joints, plain.joints)


def test_a_detour_comes_down_beside_and_moves_level_over_the_target() -> None:
    route = Route(tool_position(HOME))
    detour = np.array((0.02, -0.03, 0.025))
    route.take(0, BLOCKS, MIDDLE, detour)
    tool = route.timed().tool
    target = BLOCKS[0] + MIDDLE
    np.testing.assert_allclose(tool[-1], target, atol=1e-12)
    beside = np.linalg.norm(tool - (target + detour), axis=1)
    assert beside.min() < 1e-9
    after = tool[beside.argmin() :]
    assert after[:, 2].max() <= target[2] + 0.025 + 1e-9
    lateral = np.hypot(*(after[:, :2] - target[:2]).T)
    assert (after[lateral > 1e-9, 2] > target[2] + 0.025 - 1e-9).all()


def test_a_target_above_all_blocks_is_reached_on_its_level() -> None:
    start = np.array((0.5, -0.2, 0.2))
    route = Route(start)
    route.travel((0.5, 0.2, 0.4), np.array([[0.5, 0.5, 0.03]]))
    tool = route.timed().tool
    on_the_way = np.hypot(*(tool - start)[:, :2].T) > 1e-9
    assert on_the_way.sum() > 5
    np.testing.assert_allclose(tool[on_the_way, 2], 0.4)


def test_rising_and_resting() -> None:
    route = Route(BLOCKS[0] + MIDDLE)
    route.finish(7)
    motion = route.timed()
    np.testing.assert_allclose(motion.tool[-8:, 2], 0.06 + LIFT)
    assert (motion.held == NOTHING).all()
    padded = motion.padded(50)
    assert padded.held.shape == (51,)
    np.testing.assert_array_equal(padded.joints[: len(motion.joints)], motion.joints)
    np.testing.assert_array_equal(padded.joints[-1], motion.joints[-1])
    assert len(motion.padded(3).held) == len(motion.held)


def test_a_route_without_legs_is_where_it_began() -> None:
    motion = Route((0.5, 0.1, 0.2), held=2).timed()
    np.testing.assert_allclose(motion.tool, [(0.5, 0.1, 0.2)])
    assert motion.held.tolist() == [2]


def test_a_way_point_out_of_reach_is_named() -> None:
    route = Route(tool_position(HOME))
    route.travel((0.95, 0.0, 0.1), BLOCKS)
    with pytest.raises(KukaArrangementError, match="does not reach"):
        route.timed()


def test_how_low_the_empty_tool_may_be() -> None:
    pile = np.array([(0.5, 0.0, 0.03), (0.5, 0.0, 0.09), (0.5, 0.0, 0.15)])
    assert lowest_tool((0.5, 0.05), pile) == pytest.approx(0.18)
    assert lowest_tool((0.5, 0.11), pile) == pytest.approx(0.08)  # beside: the wrist
    assert lowest_tool((0.5, 0.13), pile) == 0.0
