"""Demonstrations of towers that are computed without physics."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from diffuser_envs.errors import KukaOptionError
from diffuser_envs.kuka.arm import HOME, JOINT_SPEED, tool_position
from diffuser_envs.kuka.arrangements import MAX_AZIMUTH, check_arrangement, supports
from diffuser_envs.kuka.generators import (
    MAX_SCATTER,
    Demonstration,
    KinematicGenerator,
    carried_blocks,
)
from diffuser_envs.kuka.motions import NOTHING, Trajectory

NUM = 300


@pytest.fixture(scope="module")
def demonstrations() -> list[Demonstration]:
    generator = KinematicGenerator()
    return [generator.demonstrate((5, seed)) for seed in range(NUM)]


def blocks_of(demonstration: Demonstration) -> np.ndarray:
    rows = demonstration.observations
    return rows[:, 7:].reshape(len(rows), -1, 8)


def starts_stacked(demonstration: Demonstration) -> bool:
    return supports(blocks_of(demonstration)[0, :, :3]) != [-1] * 4


def test_each_ends_in_the_tower_it_names_and_rests(
    demonstrations: list[Demonstration],
) -> None:
    for each in demonstrations:
        blocks = blocks_of(each)
        below = supports(blocks[-1, :, :3])
        assert [below[block] for block in each.order] == [-1, *each.order[:-1]]
        assert each.rewards[-1] == 1.0
        assert (blocks[-41:, :, 7] == 0.0).all()
        assert np.abs(np.diff(each.observations[-41:], axis=0)).max() == 0.0
        assert len(each.actions) >= 128


def test_rewards_are_the_share_of_the_tower_after_each_step(
    demonstrations: list[Demonstration],
) -> None:
    towers = [each for each in demonstrations if not starts_stacked(each)]
    for each in towers[:50]:
        flags = blocks_of(each)[:, :, 7].sum(axis=1)
        releases = np.flatnonzero((flags[:-1] == 1) & (flags[1:] == 0))
        assert len(releases) == 3
        expected = np.searchsorted(releases, np.arange(len(each.rewards)), "right") / 3
        np.testing.assert_allclose(each.rewards, expected)


def test_nothing_is_inside_anything_else(demonstrations: list[Demonstration]) -> None:
    for each in demonstrations[:100]:
        check_arrangement(blocks_of(each)[0, :, :3], 4)
        centres = blocks_of(each)[:, :, :3].astype(np.float64)
        gap = np.abs(centres[:, :, None] - centres[:, None])
        inside = (gap < (0.0999, 0.0999, 0.0599)).all(axis=-1)
        assert not (inside & ~np.eye(4, dtype=bool)).any()
        assert centres[..., 2].min() >= 0.03 - 1e-6


def test_actions_are_the_next_joints_and_respect_the_speed_limits(
    demonstrations: list[Demonstration],
) -> None:
    for each in demonstrations:
        joints = each.observations[:, :7].astype(np.float64)
        np.testing.assert_array_equal(each.actions[:, :7], each.observations[1:, :7])
        share = np.abs(np.diff(joints, axis=0)) / (1.5 * 0.05 * JOINT_SPEED)
        assert share.max() < 1.0
        held = blocks_of(each)[1:, :, 7].any(axis=1)
        np.testing.assert_array_equal(each.actions[:, 7] > 0.5, held)


def test_held_blocks_move_with_the_tool_and_others_do_not(
    demonstrations: list[Demonstration],
) -> None:
    for each in demonstrations[:100]:
        blocks = blocks_of(each).astype(np.float64)
        tool = tool_position(each.observations[:, :7])
        moved = np.linalg.norm(np.diff(blocks[:, :, :3], axis=0), axis=-1) > 1e-6
        assert not (moved & (blocks[1:, :, 7] == 0.0)).any()
        held = (blocks[1:, :, 7] == 1.0) & (blocks[:-1, :, 7] == 1.0)
        step, block = np.nonzero(held)
        with_tool = np.diff(blocks[..., :3], axis=0)[step, block]
        np.testing.assert_allclose(with_tool, np.diff(tool, axis=0)[step], atol=1e-5)
        # Grasped at the top, at most 20 mm off the middle along each axis and in all.
        offset = tool[step] - blocks[step, block, :3]
        np.testing.assert_allclose(offset[:, 2], 0.03, atol=1e-5)
        assert np.hypot(offset[:, 0], offset[:, 1]).max() < 0.0201


def test_the_shares_are_as_asked(demonstrations: list[Demonstration]) -> None:
    rebuilt = np.mean([starts_stacked(each) for each in demonstrations])
    home = np.array([np.allclose(d.observations[0, :7], HOME) for d in demonstrations])
    assert abs(rebuilt - 0.25) < 4 * np.sqrt(0.25 * 0.75 / NUM)
    assert abs(home.mean() - 0.5) < 4 * np.sqrt(0.25 / NUM)


def test_blocks_and_sides_are_alike(demonstrations: list[Demonstration]) -> None:
    bases = np.bincount([each.order[0] for each in demonstrations], minlength=4)
    assert np.abs(bases - NUM / 4).max() < 4 * np.sqrt(NUM * 3 / 16)
    lefts = np.array([blocks_of(d)[0, :, 1].mean() for d in demonstrations])
    assert abs(lefts.mean()) < 4 * lefts.std() / np.sqrt(NUM)


def test_episodes_are_a_function_of_options_and_seed() -> None:
    first, again = (KinematicGenerator().demonstrate(9) for _ in range(2))
    other = KinematicGenerator().demonstrate(10)
    np.testing.assert_array_equal(first.observations, again.observations)
    assert (
        first.observations.shape != other.observations.shape
        or (first.observations != other.observations).any()
    )


def test_options_change_what_is_shown() -> None:
    plain = KinematicGenerator(
        rebuild_share=0.0, off_centre_share=0.0, detour_share=0.0, scatter=0.0
    )
    for seed in range(20):
        each = plain.demonstrate(seed)
        blocks = blocks_of(each).astype(np.float64)
        assert not starts_stacked(each)
        np.testing.assert_allclose(
            blocks[-1, :, :2] - blocks[-1, :1, :2], 0.0, atol=1e-6
        )
        tool = tool_position(each.observations[:, :7])
        step, block = np.nonzero(blocks[..., 7])
        sideways = tool[step, :2] - blocks[step, block, :2]
        np.testing.assert_allclose(sideways, 0.0, atol=1e-5)


def test_five_blocks_make_a_tower_of_five() -> None:
    each = KinematicGenerator(num_blocks=5, rebuild_share=1.0).demonstrate(1)
    assert each.observations.shape[1] == 47
    assert each.rewards[-1] == 1.0
    assert blocks_of(each)[-1, :, 2].max() == pytest.approx(0.27)


@pytest.mark.parametrize("seed", range(8))
def test_two_blocks_always_start_beside_each_other(seed: int) -> None:
    each = KinematicGenerator(num_blocks=2, rebuild_share=0.5).demonstrate(seed)
    assert supports(blocks_of(each)[0, :, :3]) == [-1, -1]
    assert each.rewards[-1] == 1.0


def test_stacks_that_lean_over_the_edge_of_the_sector_can_be_started_from() -> None:
    each = KinematicGenerator().demonstrate(455)
    start = blocks_of(each)[0, :, :3]
    assert np.abs(np.arctan2(start[:, 1], start[:, 0])).max() > MAX_AZIMUTH
    check_arrangement(start, 4)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rebuild_share", 1.5),
        ("scatter", -0.1),
        ("scatter", 0.01),
        ("clearance_low", 0.2),
        ("clearance_high", 0.3),
        ("detour", np.nan),
        ("off_centre", "x"),
        ("num_blocks", 1),
        ("num_blocks", 6),
        ("grasp_steps", 0),
        ("grasp_steps", 2.7),
        ("hold_steps", np.inf),
        ("min_steps", None),
    ],
)
def test_impossible_options_are_refused(name: str, value: object) -> None:
    with pytest.raises(KukaOptionError, match=name):
        replace(KinematicGenerator(), **{name: value})  # type: ignore[arg-type]


def test_steps_may_be_whole_floats() -> None:
    generator = KinematicGenerator(hold_steps=5.0, min_steps=16.0)  # type: ignore[arg-type]
    each = generator.demonstrate(0)
    whole = replace(generator, hold_steps=5, min_steps=16).demonstrate(0)
    np.testing.assert_array_equal(each.observations, whole.observations)


@pytest.mark.parametrize("seed", range(4))
def test_blocks_as_scattered_as_possible_stay_on_their_stacks(seed: int) -> None:
    generator = KinematicGenerator(scatter=MAX_SCATTER, rebuild_share=1.0)
    each = generator.demonstrate(seed)
    check_arrangement(blocks_of(each)[0, :, :3], 4)
    assert each.rewards[-1] == 1.0


@pytest.mark.parametrize("seed", range(4))
def test_detours_that_are_out_of_reach_are_left_out(seed: int) -> None:
    generator = KinematicGenerator(detour=0.5, detour_share=1.0)
    assert generator.demonstrate(seed).rewards[-1] == 1.0


def test_a_block_that_is_held_at_first_is_carried_too() -> None:
    tool = np.linspace((0.5, 0.0, 0.2), (0.5, 0.1, 0.2), 6)
    held = np.array([1, 1, 1, NOTHING, NOTHING, NOTHING])
    start = np.array([(0.6, -0.3, 0.03), (0.5, 0.01, 0.17)])
    paths = carried_blocks(Trajectory(tool, np.zeros((6, 7)), held), start)
    np.testing.assert_allclose(paths[2, 1], start[1] + (0.0, 0.04, 0.0))
    np.testing.assert_allclose(paths[5], paths[2])
    np.testing.assert_allclose(paths[:, 0], start[[0] * 6])
