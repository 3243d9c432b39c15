"""Where blocks stand: what is drawn, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from diffuser_envs.errors import KukaArrangementError
from diffuser_envs.kuka.arrangements import (
    MAX_AZIMUTH,
    MAX_RADIUS,
    MIN_RADIUS,
    SPACING,
    TABLE,
    check_arrangement,
    check_order,
    matched,
    on_top,
    order_of_pairs,
    random_place,
    random_places,
    random_rearrangement,
    random_stacks,
    scattered,
    supports,
    within_ring,
)
from diffuser_envs.kuka.columns import ordered_pairs


def pairs_of(*pairs: tuple[int, int]) -> list[float]:
    return [float(pair in pairs) for pair in ordered_pairs(4)]


def test_scattered_blocks_are_apart_and_fill_the_sector_evenly() -> None:
    rng = np.random.default_rng(0)
    blocks = np.stack([scattered(4, rng) for _ in range(1000)])
    gaps = np.linalg.norm(blocks[:, :, None, :2] - blocks[:, None, :, :2], axis=-1)
    assert gaps[:, ~np.eye(4, dtype=bool)].min() >= SPACING
    radius = np.hypot(blocks[..., 0], blocks[..., 1])
    azimuth = np.arctan2(blocks[..., 1], blocks[..., 0])
    assert radius.min() >= MIN_RADIUS
    assert radius.max() <= MAX_RADIUS
    assert np.abs(azimuth).max() <= MAX_AZIMUTH
    assert (blocks[..., 2] == 0.03).all()
    # Left and right alike; uniform over the area, so squared radii are uniform.
    assert abs(azimuth.mean()) < 4 * azimuth.std() / np.sqrt(azimuth.size)
    middle = (MIN_RADIUS**2 + MAX_RADIUS**2) / 2
    assert abs((radius**2 < middle).mean() - 0.5) < 0.04


@pytest.mark.parametrize("max_height", [2, 3])
def test_stacks_are_valid_and_never_higher_than_asked(max_height: int) -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        blocks = random_stacks(4, rng, max_height=max_height)
        check_arrangement(blocks, 4)
        layers = np.round((blocks[:, 2] - 0.03) / 0.06).astype(int)
        assert 1 <= layers.max() < max_height


def test_jitter_shifts_stacked_blocks_within_its_limits() -> None:
    rng = np.random.default_rng(2)
    shifts = []
    for _ in range(200):
        blocks = random_stacks(4, rng, jitter=0.004)
        check_arrangement(blocks, 4)
        for block, below in enumerate(supports(blocks)):
            if below != TABLE:
                shifts.append(np.abs(blocks[block, :2] - blocks[below, :2]).max())
    assert 0.003 < np.mean(shifts) < 0.006
    assert max(shifts) <= 0.012 + 1e-9


def test_stacks_may_lean_over_every_edge_of_the_sector() -> None:
    rng = np.random.default_rng(3)
    beyond = 0
    for _ in range(1000):
        blocks = random_stacks(4, rng, jitter=0.006)
        check_arrangement(blocks, 4)
        azimuth = np.arctan2(blocks[:, 1], blocks[:, 0])
        beyond += bool((np.abs(azimuth) > MAX_AZIMUTH).any())
    assert beyond


@pytest.mark.parametrize("side", [-1, 1])
def test_a_block_may_be_beyond_the_sector_by_what_counts_as_the_same_place(
    side: int,
) -> None:
    def at(beyond: float) -> list[tuple[float, float, float]]:
        azimuth = side * (MAX_AZIMUTH + beyond / 0.5)
        return [(0.5 * np.cos(azimuth), 0.5 * np.sin(azimuth), 0.03)]

    check_arrangement(at(0.029), 1)
    with pytest.raises(KukaArrangementError, match=r"block 0 .* is out of reach"):
        check_arrangement(at(0.031), 1)


def test_a_rearrangement_moves_every_block_between_valid_arrangements() -> None:
    rng = np.random.default_rng(3)
    taken_over = 0
    for _ in range(200):
        start, goal = random_rearrangement(4, rng)
        check_arrangement(start, 4)
        check_arrangement(goal, 4)
        assert not matched(start, goal).any()
        near = np.linalg.norm(start[:, None, :2] - goal[None, :, :2], axis=-1)
        taken_over += bool((near < 1e-9).any())
    assert 40 < taken_over < 160


def test_no_place_is_found_where_none_is() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(KukaArrangementError, match="30 places do not fit"):
        random_places(30, rng)
    with pytest.raises(KukaArrangementError, match="fewer blocks"):
        random_place(rng, np.mgrid[0.0:0.7:8j, -0.7:0.7:15j].reshape(2, -1).T)
    with pytest.raises(KukaArrangementError, match="two blocks"):
        random_stacks(1, rng)


def test_what_lies_on_what() -> None:
    blocks = np.array(
        [(0.5, 0.0, 0.03), (0.52, 0.01, 0.09), (0.5, 0.2, 0.03), (0.52, 0.0, 0.15)]
    )
    on = on_top(blocks)
    assert set(zip(*np.nonzero(on), strict=True)) == {(1, 0), (3, 1)}
    assert supports(blocks) == [TABLE, 0, TABLE, 1]
    held = np.array([False, False, False, True])
    assert set(zip(*np.nonzero(on_top(blocks, held)), strict=True)) == {(1, 0)}
    assert on_top(np.stack((blocks, blocks))).shape == (2, 4, 4)


@pytest.mark.parametrize(("shift", "stacked"), [(0.049, True), (0.051, False)])
def test_half_a_block_beside_is_not_on_it(shift: float, stacked: bool) -> None:
    blocks = [(0.5, 0.0, 0.03), (0.5, shift, 0.09)]
    assert bool(on_top(blocks)[1, 0]) is stacked


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({0: (0.3, 0.0, 0.03)}, r"block 0 at \(0.300, 0.000\) is out of reach"),
        ({1: (0.0, -0.9, 0.03)}, "block 1 .* is out of reach"),
        ({2: (0.1, 0.5, 0.03), 3: (0.1, 0.55, 0.03)}, "blocks 2 and 3 overlap"),
        ({3: (0.55, 0.2, 0.09)}, "block 3 at .* stands on nothing"),
        ({3: (0.55, 0.2, float("nan"))}, "finite"),
    ],
)
def test_impossible_arrangements_are_refused(
    changes: dict[int, tuple[float, float, float]], reason: str
) -> None:
    blocks = np.array(
        [(0.5, -0.3, 0.03), (0.5, 0.0, 0.03), (0.5, 0.0, 0.09), (0.4, 0.3, 0.03)]
    )
    np.testing.assert_array_equal(check_arrangement(blocks, 4), blocks)
    for block, position in changes.items():
        blocks[block] = position
    with pytest.raises(KukaArrangementError, match=reason):
        check_arrangement(blocks, 4)


def test_an_arrangement_of_another_shape_is_refused() -> None:
    with pytest.raises(KukaArrangementError, match="4 times"):
        check_arrangement(np.zeros((3, 3)), 4)
    with pytest.raises(KukaArrangementError, match="4 times"):
        check_arrangement("nonsense", 4)


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 1, 2, 2), (0, 1, 2, 4)])
def test_a_tower_names_every_block_once(order: Sequence[int]) -> None:
    assert check_order([2, 0, 1, 3], 4) == (2, 0, 1, 3)
    with pytest.raises(KukaArrangementError, match="once"):
        check_order(order, 4)


@pytest.mark.parametrize("order", [(0, 1.7), (0.0, 1.0), "01", 3])
def test_a_tower_names_blocks_by_whole_numbers(order: Any) -> None:
    with pytest.raises(KukaArrangementError, match="whole numbers"):
        check_order(order, 2)
    assert check_order(tuple(np.array([1, 0])), 2) == (1, 0)


def test_pairs_become_the_tower_they_describe() -> None:
    assert order_of_pairs(pairs_of((0, 2), (3, 0), (1, 3)), 4) == (2, 0, 3, 1)


@pytest.mark.parametrize(
    ("pairs", "reason"),
    [
        ([(0, 1), (0, 2), (3, 0)], "block 0 is named twice"),
        ([(0, 1), (2, 1), (3, 0)], "block 1 is named twice"),
        ([(0, 1), (1, 2), (2, 3), (3, 0)], "form a cycle"),
        ([(0, 1), (1, 2), (2, 0)], "form a cycle"),
        ([(0, 1), (2, 3)], r"blocks \[1, 3\] have nothing below"),
    ],
)
def test_pairs_that_are_no_tower_are_refused(
    pairs: list[tuple[int, int]], reason: str
) -> None:
    with pytest.raises(KukaArrangementError, match=reason):
        order_of_pairs(pairs_of(*pairs), 4)
    with pytest.raises(KukaArrangementError, match="12 numbers"):
        order_of_pairs(np.zeros(11), 4)


def test_places_beyond_the_ring_are_brought_to_its_edge() -> None:
    np.testing.assert_allclose(within_ring((0.3, 0.0)), (MIN_RADIUS, 0.0))
    np.testing.assert_allclose(within_ring((0.0, -0.8)), (0.0, -MAX_RADIUS))
    np.testing.assert_allclose(within_ring((0.4, 0.3)), (0.4, 0.3))
