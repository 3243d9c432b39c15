"""What makes a plan of block stacking feasible: grasps, landings, waiting."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from diffuser_envs.kuka.columns import BLOCK_HEIGHT
from diffuser_envs.kuka.features import BlockFeatures
from diffuser_envs.kuka.kinematic import KinematicGenerator

FEATURES = BlockFeatures()
TABLE = BLOCK_HEIGHT / 2
BLOCKS = np.array([[0.5, 0.0], [0.5, 0.3], [0.5, -0.3], [0.6, 0.15]])
STRIDE = 4
STANDING = np.concatenate([BLOCKS, np.full((4, 1), TABLE)], axis=1)
ON_1 = STANDING[1] + np.array([0, 0, BLOCK_HEIGHT])


def move(standing: np.ndarray, block: int, to: np.ndarray, grasp: Any) -> np.ndarray:
    """Return a plan `[13, 19]` that moves one block.

    Steps 0-3 down to the block, 4 grasped, 5-8 over to its place, 9 let go, 10-12 away.

    Args:
        standing: `[4, 3]` where the blocks are.
        block: The one that is moved.
        to: `[3]` where it is put down.
        grasp: `[3]` offset of the tool from the center of the top face.
    """
    offset = np.array([0, 0, TABLE]) + grasp
    up = np.array([0, 0, 0.2])
    top = standing[block] + offset
    carried = np.linspace(top, to + offset, 5)
    carried[1:4] += up
    tool = np.concatenate(
        [np.linspace(top + up, top, 4), carried, np.tile(carried[-1] + up, (4, 1))]
    )
    tool[9] = carried[-1]
    plan = np.zeros((13, 19))
    plan[:, :3] = tool
    for columns, place in zip(FEATURES.objects, standing, strict=True):
        plan[:, list(columns[:3])] = place
    xyz, flag = list(FEATURES.objects[block][:3]), FEATURES.objects[block][3]
    plan[4:9, xyz] = tool[4:9] - offset
    plan[4:9, flag] = 1
    plan[9:, xyz] = to
    return plan


def good_plan(grasp: Any = (0, 0, 0), place: Any = (0, 0, 0)) -> np.ndarray:
    """Return a plan that puts block 0 on block 1, grasped and placed so far off."""
    return move(STANDING, 0, ON_1 + np.asarray(place), np.asarray(grasp))


def value(plan: np.ndarray, stride: int = STRIDE) -> float:
    [found] = FEATURES.feasibility(plan[None], stride)
    return float(found)


def delay(plan: np.ndarray) -> float:
    """Return what it costs to wait for the first release of a plan, in meters."""
    flags = plan[:, list(FEATURES.columns["flags"])] > 0.5
    for step in range(1, len(plan)):
        if (flags[step - 1] & ~flags[step]).any():
            return 5e-4 * STRIDE * step
    return 5e-4 * STRIDE * (len(plan) - 1)


def quality(plan: np.ndarray) -> float:
    """Return the value but for the delay."""
    return value(plan) + delay(plan)


def test_a_perfect_plan_costs_nothing() -> None:
    assert quality(good_plan()) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("changes", "cost"),
    [
        ({"grasp": (0.03, 0.04, 0.0)}, 0.05),
        ({"grasp": (0.0, 0.0, 0.02)}, 1.5 * 0.02),
        ({"place": (0.0, 0.03, 0.0)}, 0.03),
        ({"place": (0.0, 0.0, 0.025)}, 0.025),
        ({"place": (0.03, 0.0, 0.025)}, 0.055),
    ],
)
def test_misses_cost_their_distance(changes: dict[str, Any], cost: float) -> None:
    assert quality(good_plan(**changes)) == pytest.approx(-cost, abs=1e-12)


def test_the_table_is_something_to_stand_on() -> None:
    off = (0.0, -0.15, -BLOCK_HEIGHT)
    assert quality(good_plan(place=off)) == pytest.approx(0, abs=1e-12)
    above = (0.0, -0.15, -BLOCK_HEIGHT + 0.04)
    assert quality(good_plan(place=above)) == pytest.approx(-0.04, abs=1e-12)


@pytest.mark.parametrize(("since", "landing"), [(9, BLOCK_HEIGHT), (10, 0.0)])
def test_a_held_block_supports_nothing(since: int, landing: float) -> None:
    """Block 1 is grasped at the landing on it, or right after.

    The table is a block's height below; the tool waits that far above block 1, which
    is the second of two grasps.
    """
    plan = good_plan()
    plan[10:, :3] = plan[9, :3]
    plan[since:, FEATURES.objects[1][3]] = 1
    grasp = 1.5 * BLOCK_HEIGHT / 3
    assert quality(plan) == pytest.approx(-grasp - landing, abs=1e-12)


def test_the_grasp_is_measured_at_where_the_block_stands() -> None:
    """A block that slides under the tool in the plan won't do so in the world."""
    plan, slid = good_plan(), good_plan(grasp=(0.05, 0.0, 0.0))
    slid[4:9, 3:5] = slid[4:9, :2]
    slid[4:9, 5] = slid[4:9, 2] - TABLE
    assert quality(slid) <= quality(plan) - 0.05


def test_blocks_move_only_while_they_are_held() -> None:
    plan = good_plan()
    plan[5:, 11] += 0.07
    assert quality(plan) == pytest.approx(-0.07, abs=1e-12)


def test_a_carried_block_keeps_its_place_under_the_tool() -> None:
    plan = good_plan()
    plan[6, 0] += 0.04
    assert quality(plan) == pytest.approx(-0.04, abs=1e-12)


def test_two_flags_at_once_are_not_to_be_had() -> None:
    plan, both = good_plan(), good_plan()
    both[4:9, 18] = 1
    both[4:9, 15:18] = both[4:9, :3]  # the other block hangs at the tool as well
    assert quality(both) < quality(plan) - 0.5 * 5 / 13


def test_doing_nothing_and_never_letting_go_cost_something() -> None:
    plan = good_plan()
    idle, holding = np.tile(plan[:1], (13, 1)), np.tile(plan[4:5], (13, 1))
    assert quality(idle) == pytest.approx(-0.1)
    assert quality(holding) == pytest.approx(-0.1)
    assert value(holding) == pytest.approx(-0.1 - 5e-4 * STRIDE * 12)
    release = holding.copy()
    release[:, 3:6] = plan[9, 3:6]
    release[:, :3] = plan[9, :3]
    release[5:, 6] = 0
    assert quality(release) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("sooner", [1, 2, 3])
def test_an_earlier_landing_is_better(sooner: int) -> None:
    """By half a millimeter for every env step, whatever follows."""
    plan = good_plan()
    kept = [*range(5), *range(5 + sooner, 13), *[12] * sooner]
    earlier = plan[kept]
    assert value(earlier) - value(plan) == pytest.approx(5e-4 * STRIDE * sooner)
    assert value(plan) == pytest.approx(-5e-4 * STRIDE * 9)
    assert value(plan, 2 * STRIDE) == pytest.approx(2 * value(plan))


def test_only_the_first_landing_is_waited_for() -> None:
    later = STANDING.copy()
    later[0] = ON_1
    second = move(later, 2, ON_1 + np.array([0, 0, BLOCK_HEIGHT]), np.zeros(3))
    both = np.concatenate([good_plan(), second])
    assert value(both) == pytest.approx(value(good_plan()), abs=1e-12)


def test_a_finished_tower_is_left_alone() -> None:
    plan = np.tile(good_plan()[:1], (13, 1))
    for block in range(4):
        plan[:, list(FEATURES.objects[block][:3])] = (
            *BLOCKS[1],
            TABLE + block * BLOCK_HEIGHT,
        )
    assert value(plan) == 0
    apart = plan.copy()
    apart[:, 3] += 0.1
    assert value(apart) == pytest.approx(-0.1 - 5e-4 * STRIDE * 12)


@pytest.mark.parametrize(("which", "cost"), [(0, 0.04), (1, 0.02)])
def test_earlier_events_weigh_more(which: int, cost: float) -> None:
    """Of two grasps one misses by 6 cm: their weights are 2/3 and 1/3."""
    misses = np.zeros((2, 3))
    misses[which, 0] = 0.06
    first = move(STANDING, 0, ON_1, misses[0])
    later = STANDING.copy()
    later[0] = ON_1
    second = move(later, 2, ON_1 + np.array([0, 0, BLOCK_HEIGHT]), misses[1])
    assert quality(np.concatenate([first, second])) == pytest.approx(-cost, abs=1e-12)


def test_candidates_are_valued_each_by_itself() -> None:
    plans = np.stack([good_plan(), good_plan(grasp=(0.03, 0, 0)), good_plan()])
    plans[2, 5:, 11] += 0.07
    together = FEATURES.feasibility(plans, STRIDE)
    np.testing.assert_allclose(together, [value(plan) for plan in plans])
    assert together.shape == (3,)


def test_blocks_are_interchangeable() -> None:
    plan = good_plan(grasp=(0.01, 0.02, 0.003), place=(0.01, 0, 0.002))
    order = [2, 0, 3, 1]
    exchanged = plan.copy()
    for target, source in enumerate(order):
        exchanged[:, list(FEATURES.objects[target])] = plan[
            :, list(FEATURES.objects[source])
        ]
    assert quality(exchanged) == pytest.approx(quality(plan), abs=1e-12)


def test_demonstrations_are_feasible_and_disturbed_ones_less() -> None:
    windows = []
    generator = KinematicGenerator()
    for index in range(4):
        demonstration = generator.demonstrate((3, index))
        planned = FEATURES.features(demonstration.observations)
        windows += [planned[s : s + 128 : STRIDE] for s in range(0, 60, 5)]
    real = np.stack(windows)
    found = FEATURES.feasibility(real, STRIDE)
    assert (found + [delay(window) for window in real]).min() > -0.03
    disturbed = real.copy()
    disturbed[:, 1:, 0] += 0.04
    worse = FEATURES.feasibility(disturbed, STRIDE)
    assert (worse < found).all()
    assert np.median(worse) < np.median(found) - 0.02


def test_a_single_step_has_no_events() -> None:
    plan = np.tile(good_plan()[:1], (1, 1))
    assert quality(plan) == pytest.approx(-0.1)
