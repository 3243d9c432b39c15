"""Planning columns of block stacking: there, and back to joints."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from diffuser_envs.kuka import arm
from diffuser_envs.kuka.columns import (
    BLOCK_HEIGHT,
    COLUMNS,
    observation_columns,
    observation_size,
)
from diffuser_envs.kuka.features import BlockFeatures
from diffuser_envs.kuka.kinematic import KinematicGenerator
from diffuser_policy.columns.features import make_featurizer, planning_columns
from diffuser_policy.columns.layout import TrajectoryLayout
from diffuser_policy.planning.executors import FeaturesExecutor
from diffuser_policy.planning.plan import Following

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
    np.testing.assert_array_equal(planning_columns(FEATURES, rows, chunk=5), planned)


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
        actions = FeaturesExecutor(FEATURES).act(
            following(planned, steps), demonstration.observations[:-1]
        )
        np.testing.assert_allclose(actions, demonstration.actions, atol=2e-6)


def test_the_tool_goes_where_the_plan_is_one_env_step_on() -> None:
    rng = np.random.default_rng(0)
    tool = rng.uniform([0.45, -0.3, 0.1], [0.6, 0.3, 0.3], (5, 3))
    planned = np.concatenate([tool, np.zeros((5, 16))], axis=1)
    planned[3:, 6] = 1
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
