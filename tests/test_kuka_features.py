"""Planning columns of block stacking, how plans are followed, and their feasibility."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from diffuser_envs.kuka import arm
from diffuser_envs.kuka.columns import (
    BLOCK_HEIGHT,
    observation_columns,
    observation_size,
)
from diffuser_envs.kuka.features import BlockFeatures, JointFeatures
from diffuser_envs.kuka.generators import KinematicGenerator
from diffuser_policy.columns.features import make_featurizer, planning_columns
from diffuser_policy.columns.layout import TrajectoryLayout
from diffuser_policy.planning.executors import FeaturesExecutor
from diffuser_policy.planning.plan import Following

COLUMNS = observation_columns()

FEATURES = BlockFeatures()
TABLE = BLOCK_HEIGHT / 2
STRIDE = 4


def demonstrations(count: int = 4) -> list[Any]:
    generator = KinematicGenerator()
    return [generator.demonstrate((3, index)) for index in range(count)]


def following(planned: np.ndarray, progress: np.ndarray, stride: int = 1) -> Following:
    """Return one plan that is followed from several points of it, one per row."""
    rows = len(progress)
    return Following(
        observations=np.repeat(planned[None], rows, axis=0),
        actions=np.zeros((rows, len(planned), 0)),
        lengths=np.full(rows, len(planned)),
        progress=progress.astype(np.float64),
        stride=stride,
    )


# --- there ------------------------------------------------------------------------


def test_it_is_registered_and_fits_a_layout() -> None:
    found = make_featurizer("kuka-blocks")
    assert isinstance(found, BlockFeatures)
    layout = TrajectoryLayout(
        action_dim=0,
        observation_dim=found.num_columns,
        aliases=found.columns,
        objects=found.objects,
    )
    assert layout.observation_dim == 19
    assert layout.objects[1] == (7, 8, 9, 10)
    assert layout.aliases["flags"] == (6, 10, 14, 18)
    assert layout.aliases["position"] == layout.aliases["tool"] == (0, 1, 2)
    assert len(layout.aliases["blocks"]) == 12


@pytest.mark.parametrize("num_blocks", [1, 3, 4])
def test_every_planned_column_is_the_observed_one(num_blocks: int) -> None:
    """Each observed column has its own value, so that none is mistaken for another."""
    found, names = BlockFeatures(num_blocks), observation_columns(num_blocks)
    observation = np.arange(observation_size(num_blocks), dtype=np.float32) / 100
    planned = found.features(observation)
    assert planned.dtype == np.float32
    np.testing.assert_allclose(planned[:3], arm.tool_position(observation[:7]), 1e-6)
    for block in range(num_blocks):
        for name in (f"block_{block}", f"flag_{block}"):
            np.testing.assert_array_equal(
                planned[list(found.columns[name])], observation[list(names[name])]
            )


def test_rows_are_independent_of_leading_dimensions() -> None:
    rows = demonstrations(1)[0].observations[:12]
    planned = FEATURES.features(rows)
    assert planned.shape == (12, 19)
    np.testing.assert_array_equal(
        FEATURES.features(rows.reshape(3, 4, 39)), planned.reshape(3, 4, 19)
    )
    np.testing.assert_array_equal(planning_columns(FEATURES, rows), planned)


def test_the_tool_touches_a_block_when_its_flag_goes_up() -> None:
    """Of real observations: the tip is on the top face, off-centre at most."""
    for demonstration in demonstrations():
        planned = FEATURES.features(demonstration.observations)
        flags = planned[:, list(FEATURES.columns["flags"])] > 0.5
        steps, blocks = np.nonzero(flags[1:] & ~flags[:-1])
        assert len(steps) >= 3
        for step, block in zip(steps + 1, blocks, strict=True):
            off = planned[step, :3] - planned[step, list(FEATURES.objects[block][:3])]
            assert off[2] == pytest.approx(TABLE, abs=1e-5)
            assert np.hypot(*off[:2]) < 0.03


# --- and back ---------------------------------------------------------------------


def test_following_a_demonstration_gives_back_its_actions() -> None:
    for demonstration in demonstrations():
        planned = FEATURES.features(demonstration.observations)
        steps = np.arange(len(demonstration.actions))
        actions = FeaturesExecutor(FEATURES, 8).act(
            following(planned, steps), demonstration.observations[:-1]
        )
        np.testing.assert_allclose(actions, demonstration.actions, atol=2e-6)


def test_the_tool_goes_where_the_plan_is_one_env_step_on() -> None:
    rng = np.random.default_rng(0)
    tool = rng.uniform([0.45, -0.3, 0.1], [0.6, 0.3, 0.3], (5, 3))
    planned = np.concatenate([tool, np.zeros((5, 16))], axis=1)
    planned[3:, 6] = 1
    planned[:, [10, 14]] = 0.3  # neither is up
    progress = np.arange(16)
    observations = np.tile(demonstrations(1)[0].observations[:1], (16, 1))
    actions = FEATURES.act(following(planned, progress, STRIDE), observations)
    for step, action in zip(progress, actions, strict=True):
        share = (step + 1) / STRIDE
        before = int(share) if share < 4 else 3
        expected = tool[before] + (share - before) * (tool[before + 1] - tool[before])
        np.testing.assert_allclose(arm.tool_position(action[:7]), expected, atol=1e-6)
        assert action[7] == (share > 2.5)


def test_after_the_end_the_last_position_is_held() -> None:
    planned = FEATURES.features(demonstrations(1)[0].observations)
    observations = demonstrations(1)[0].observations[-1:]
    for progress in (len(planned), 10 * len(planned)):
        plans = following(planned, np.array([progress]))
        [action] = FEATURES.act(plans, observations)
        np.testing.assert_allclose(action[:7], observations[0, :7], atol=2e-6)


@pytest.mark.parametrize("target", [(2.0, 0.0, 0.2), (0.0, 0.0, 3.0), (0.5, 0.1, -2.0)])
def test_targets_out_of_reach_are_approached(target: tuple[float, ...]) -> None:
    """Straight from where the tool is, beside a row that is not affected."""
    observations = np.tile(demonstrations(1)[0].observations[:1], (2, 1))
    planned = np.tile(FEATURES.features(observations[0]), (2, 1, 1)).astype(np.float64)
    planned[0, 0, :3] = target
    planned[1, 0, :3] += 0.02
    plans = Following(
        observations=planned,
        actions=np.zeros((2, 1, 0)),
        lengths=np.ones(2, np.int64),
        progress=np.zeros(2),
        stride=1,
    )
    assert not arm.reachable(target)
    actions = FEATURES.act(plans, observations)
    assert np.isfinite(actions).all()
    start = FEATURES.features(observations[0])[:3]
    reached = arm.tool_position(actions[:, :7])
    way, done = np.array(target) - start, reached[0] - start
    np.testing.assert_allclose(np.cross(way, done), 0, atol=1e-5)
    assert 0 < np.dot(way, done) < np.dot(way, way)
    np.testing.assert_allclose(reached[1], planned[1, 0, :3], atol=1e-6)


def test_the_tool_stays_where_no_way_leads_on() -> None:
    observations = demonstrations(1)[0].observations[:1].copy()
    observations[0, :7] = 0.0  # stretched out upwards: no straight-down posture near
    planned = FEATURES.features(observations)[None].astype(np.float64)
    planned[0, 0, :3] = (0.0, 0.0, 3.0)
    plans = following(planned[0], np.zeros(1))
    [action] = FEATURES.act(plans, observations)
    np.testing.assert_array_equal(action[:7], observations[0, :7])


@pytest.mark.parametrize("released", [False, True])
def test_a_held_block_is_brought_to_where_it_is_planned(released: bool) -> None:
    """However the tool has hold of it; once the plan lets go, the tool is."""
    [demonstration] = demonstrations(1)
    planned = FEATURES.features(demonstration.observations).astype(np.float64)
    flags = planned[:, list(FEATURES.columns["flags"])] > 0.5
    step = int(np.flatnonzero(flags.any(axis=1) & np.roll(flags, -1, 0).any(axis=1))[5])
    [block] = np.flatnonzero(flags[step])
    xyz = list(FEATURES.objects[block][:3])
    observation = demonstration.observations[[step]].copy()
    observation[0, list(COLUMNS[f"block_{block}"])] += (0.01, -0.02, 0.003)
    if released:
        planned[:, FEATURES.objects[block][3]] = 0
    plans = following(planned, np.array([step]))
    [action] = FEATURES.act(plans, observation)
    now, tool = FEATURES.features(observation)[0], arm.tool_position(action[:7])
    if released:
        np.testing.assert_allclose(tool, planned[step + 1, :3], atol=1e-5)
    else:
        brought = tool + now[xyz] - now[:3]
        np.testing.assert_allclose(brought, planned[step + 1, xyz], atol=1e-5)
    assert action[7] == (not released)


DEMONSTRATION = KinematicGenerator().demonstrate((5, 0))
OBSERVATIONS, ACTIONS = DEMONSTRATION.observations, DEMONSTRATION.actions


def test_columns_are_those_of_the_observation() -> None:
    featurizer = make_featurizer("kuka-joints")

    planned = planning_columns(featurizer, OBSERVATIONS)

    np.testing.assert_array_equal(planned, OBSERVATIONS)
    assert featurizer.columns["flag_2"] == (30,)
    assert featurizer.objects[1] == tuple(range(15, 23))
    TrajectoryLayout(
        action_dim=0,
        observation_dim=featurizer.num_columns,
        aliases=featurizer.columns,
        objects=featurizer.objects,
    )


def test_following_a_demonstration_gives_its_actions() -> None:
    """Joint targets of the demonstration are the joints it has a step later."""
    rows = len(ACTIONS)
    plans = Following(
        observations=np.repeat(OBSERVATIONS[None], rows, axis=0),
        actions=np.zeros((rows, len(OBSERVATIONS), 0)),
        lengths=np.full(rows, len(OBSERVATIONS)),
        progress=np.arange(rows, dtype=np.float64),
        stride=1,
    )

    actions = FeaturesExecutor(JointFeatures(), 8).act(plans, OBSERVATIONS[:-1])

    np.testing.assert_allclose(actions[:, :7], ACTIONS[:, :7], atol=1e-5)
    np.testing.assert_array_equal(actions[:, 7], ACTIONS[:, 7])


def test_feasibility_is_that_of_the_blocks() -> None:
    good = OBSERVATIONS[None, ::4]
    floating = good.copy()
    floating[:, 5:, 9] += 0.1  # block 0 is lifted by nothing

    joints, blocks = JointFeatures(), BlockFeatures()
    value = joints.feasibility(np.concatenate([good, floating]), 4)

    np.testing.assert_allclose(
        value[:1], blocks.feasibility(blocks.features(good), 4), atol=1e-6
    )
    assert value[1] < value[0] - 0.05


BLOCKS = np.array([[0.5, 0.0], [0.5, 0.3], [0.5, -0.3], [0.6, 0.15]])
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


@pytest.mark.parametrize("steps", [1, 5, 12])
def test_two_flags_at_once_are_not_to_be_had(steps: int) -> None:
    """For the share of the steps at which they are up; else, nothing is wrong here."""
    holding = np.tile(good_plan()[4:5], (13, 1))
    holding[:steps, 18] = 1
    assert quality(holding) == pytest.approx(-0.5 * steps / 13)


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


@pytest.mark.parametrize("grasps", [1, 2])
def test_blocks_are_interchangeable(grasps: int) -> None:
    """Also two that a plan grasps, and lets go, in the same step."""
    plan = good_plan(grasp=(0.01, 0.02, 0.003), place=(0.01, 0, 0.002))
    if grasps == 2:
        plan[:, FEATURES.objects[2][3]] = plan[:, FEATURES.objects[0][3]]
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
