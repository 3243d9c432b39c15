"""The next pick-and-place: by hand-made arrangements, and by carrying moves out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from diffuser_envs.errors import KukaArrangementError
from diffuser_envs.kuka.arrangements import (
    SPACING,
    matched,
    random_rearrangement,
    random_stacks,
    scattered,
)
from diffuser_envs.kuka.columns import ordered_pairs
from diffuser_envs.kuka.stages import Stages, count_blocks, next_stages, pair_labels
from diffuser_envs.kuka.task_planner import plan_rearrangement, plan_tower
from diffuser_envs.kuka.tasks import matched_share, on_pairs, tower_goal

A, B, C, D = (0.5, -0.4), (0.5, -0.1), (0.5, 0.2), (0.5, 0.5)  # places, 0.3 m apart


def at(*where: tuple[tuple[float, float], int]) -> np.ndarray:
    """Return positions of blocks, each at a place and in a layer."""
    return np.array([(*place, 0.03 + 0.06 * layer) for place, layer in where])


def ask(positions: np.ndarray, goal: np.ndarray, held: int | None = None) -> Stages:
    flags = np.zeros(len(positions))
    if held is not None:
        flags[held] = 1.0
    return next_stages(positions[None], flags[None], np.ravel(goal)[None])


def answer(*given: Any, **more: Any) -> tuple[int, int, list[float], int]:
    """Return block, support, target and number of moves of one episode."""
    stages = ask(*given, **more)
    target = stages.target[0].round(6).tolist()
    return int(stages.block[0]), int(stages.support[0]), target, int(stages.moves[0])


SCATTERED = at((A, 0), (B, 0), (C, 0), (D, 0))


# --- pairs --------------------------------------------------------------------------


def test_a_tower_is_built_from_the_bottom_up() -> None:
    goal = tower_goal((2, 0, 3, 1), 4)
    assert answer(SCATTERED, goal) == (0, 2, [*C, 0.09], 3)
    one = at((C, 1), (B, 0), (C, 0), (D, 0))
    assert answer(one, goal) == (3, 0, [*C, 0.15], 2)
    two = at((C, 1), (B, 0), (C, 0), (C, 2))
    assert answer(two, goal) == (1, 3, [*C, 0.21], 1)
    done = at((C, 1), (C, 3), (C, 0), (C, 2))
    assert answer(done, goal) == (-1, -1, [0, 0, 0], 0)


def test_a_block_that_is_in_the_way_goes_to_the_free_part_of_the_table() -> None:
    """Block 1 stands on the bottom block, where block 0 belongs."""
    block, support, target, moves = answer(
        at((A, 0), (C, 1), (C, 0), (D, 0)), tower_goal((2, 0, 3, 1), 4)
    )
    assert (block, support, moves) == (1, -1, 4)
    assert target[2] == 0.03
    for place in (A, C, D):
        assert np.hypot(target[0] - place[0], target[1] - place[1]) > SPACING


def test_a_block_in_the_way_that_can_go_where_it_belongs_does() -> None:
    """Block 3 is on block 0, on which nothing belongs, and belongs on block 2."""
    start = at((A, 0), (B, 0), (C, 0), (A, 1))
    assert answer(start, tower_goal((2, 3, 0), 4)) == (3, 2, [*C, 0.09], 2)


def test_a_lower_pair_that_fails_takes_the_tower_down() -> None:
    """0 on 3 holds, but 3 is not on 2: block 0 has to make way."""
    start = at((D, 1), (B, 0), (C, 0), (D, 0))
    block, support, _, moves = answer(start, tower_goal((2, 3, 0), 4))
    assert (block, support, moves) == (0, -1, 3)


def test_a_block_hanging_over_another_is_none_that_stands_on_it() -> None:
    """Off by more than half a width, it does not count, and is put right."""
    start = at((A, 0), (B, 0), (C, 0), (D, 0))
    start[0] = (C[0], C[1] + 0.06, 0.09)
    assert answer(start, tower_goal((2, 0), 4)) == (0, 2, [*C, 0.09], 1)
    block, support, _, moves = answer(start, tower_goal((2, 1), 4))
    assert (block, support, moves) == (0, -1, 2)


def test_no_episodes_have_no_stages() -> None:
    goals = tower_goal((2, 0, 3, 1), 4)[None]
    some = next_stages(SCATTERED[None], np.zeros((1, 4)), goals)
    none = next_stages(SCATTERED[None][:0], np.zeros((0, 4)), goals[:0])
    for field in ("block", "support", "target", "held", "moves"):
        expected = getattr(some, field)[:0]
        assert getattr(none, field).shape == expected.shape
        assert getattr(none, field).dtype == expected.dtype


# --- blocks that are held -----------------------------------------------------------


def test_a_held_block_goes_on_with_its_move() -> None:
    goal = tower_goal((2, 0, 3, 1), 4)
    carried = SCATTERED.copy()
    carried[0] = (0.5, -0.2, 0.3)
    stages = ask(carried, goal, held=0)
    assert stages.held.tolist() == [0]
    assert answer(carried, goal, held=0) == answer(SCATTERED, goal)


def test_a_held_block_whose_turn_it_is_not_is_put_aside() -> None:
    carried = SCATTERED.copy()
    carried[1] = (0.5, -0.2, 0.3)
    block, support, _, moves = answer(carried, tower_goal((2, 0, 3, 1), 4), held=1)
    assert (block, support, moves) == (1, -1, 4)


def test_the_last_block_does_not_count_as_placed_while_it_is_held() -> None:
    done = at((C, 1), (C, 3), (C, 0), (C, 2))
    assert answer(done, tower_goal((2, 0, 3, 1), 4), held=1) == (1, 3, [*C, 0.21], 1)


# --- places -------------------------------------------------------------------------


def test_blocks_are_brought_to_their_places() -> None:
    goal = at((A, 0), (B, 0), (A, 1), (D, 0))
    assert answer(SCATTERED, goal) == (2, 0, [*A, 0.09], 1)
    assert answer(goal, goal) == (-1, -1, [0, 0, 0], 0)
    off = goal.copy()
    off[1, 0] += 0.029
    assert answer(off, goal)[0] == -1
    off[1, 0] += 0.002
    assert answer(off, goal) == (1, -1, [*B, 0.03], 1)
    assert answer(goal, goal, held=1) == (1, -1, [*B, 0.03], 1)  # not let go yet


def test_two_blocks_that_change_places_need_a_third_place() -> None:
    goal = at((B, 0), (A, 0), (C, 0), (D, 0))
    block, support, target, moves = answer(SCATTERED, goal)
    assert (block, support, moves) == (0, -1, 3)
    assert np.hypot(target[0] - A[0], target[1] - A[1]) > SPACING


def test_the_upper_of_two_exchanged_blocks_is_moved_though_it_matches() -> None:
    """Block 1 is at its place, on the wrong block: what is beneath must get out."""
    goal = at((A, 0), (A, 1), (C, 0), (D, 0))
    start = at((B, 0), (A, 1), (A, 0), (D, 0))
    block, support, _, moves = answer(start, goal)
    assert (block, support, moves) == (1, -1, 4)


def test_a_place_is_taken_as_soon_as_a_block_would_be_touched() -> None:
    goal = at((A, 0), (B, 0), (C, 0), (D, 0))
    near = at(((C[0], C[1] - 0.15), 0), (B, 0), (A, 0), (D, 0))
    near[1] = (*B, 0.03)
    block, support, _, moves = answer(near, goal)
    assert (block, support, moves) == (0, -1, 3)
    near[0, 1] = C[1] - 0.17  # far enough for block 2 to be put down beside it
    assert answer(near, goal) == (2, -1, [*C, 0.03], 2)


def test_a_block_on_another_leaves_the_places_beside_it_free() -> None:
    """Block 3 leans from block 2 to block 0's place, above it."""
    place = (C[0], C[1] + 0.18)
    goal = at((place, 0), (B, 0), (C, 0), ((0.5, -0.7), 0))
    start = at((A, 0), (B, 0), (C, 0), ((C[0], C[1] + 0.03), 1))
    assert answer(start, goal) == (0, -1, [*place, 0.03], 2)


# --- many episodes ------------------------------------------------------------------


def test_rows_are_answered_one_by_one_whatever_their_goals() -> None:
    rng = np.random.default_rng(0)
    positions = np.stack([scattered(4, rng) for _ in range(5)])[[0, 0, 1, 2, 1]]
    pairs, places = tower_goal((0, 1, 2, 3), 4), at((A, 0), (A, 1), (B, 0), (B, 1))
    goals = np.stack([np.ravel(g) for g in (pairs, pairs, places, pairs, pairs)])
    flags = np.zeros((5, 4))
    together = next_stages(positions, flags, goals)
    for row in range(5):
        alone = next_stages(positions[[row]], flags[[row]], goals[[row]])
        for name in ("block", "support", "target", "held", "moves"):
            found = getattr(together, name)[row]
            np.testing.assert_array_equal(found, getattr(alone, name)[0])


def carry_out(start: np.ndarray, goal: np.ndarray, seed: int) -> tuple[int, np.ndarray]:
    """Apply the moves that are asked for; return how many, and where it ended.

    Each is asked for again in mid-air, and carried out with an error of 2 mm.
    """
    rng, positions = np.random.default_rng(seed), start.copy()
    for moves in range(12):
        stages = ask(positions, goal)
        block, target = int(stages.block[0]), stages.target[0]
        if block < 0:
            return moves, positions
        others = np.delete(positions, block, axis=0)
        upon = np.hypot(*(others - positions[block]).T[:2]) < 0.1
        assert not (upon & (others[:, 2] > positions[block, 2])).any()  # it is clear
        apart = np.hypot(*(others - target).T[:2]) >= SPACING - 0.03
        assert (apart | (np.abs(others[:, 2] - target[2]) > 0.05)).all()  # it fits
        aloft = positions.copy()
        aloft[block] = (*rng.uniform(0.3, 0.6, 2), 0.3)
        again = ask(aloft, goal, held=block)
        assert again.block[0] == again.held[0] == block
        np.testing.assert_allclose(again.target[0], target, atol=1e-6)
        positions[block] = target
        positions[block, :2] += rng.normal(0, 0.002, 2)
    raise AssertionError("twelve moves did not reach the goal")


@pytest.mark.parametrize("stacked", [False, True])
def test_towers_are_built_in_as_few_moves_as_a_search_needs(stacked: bool) -> None:
    made = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        start = (random_stacks if stacked else scattered)(4, rng)
        order = rng.permutation(4).tolist()
        goal = tower_goal(order, 4)
        moves, end = carry_out(start, goal, seed)
        assert moves == ask(start, goal).moves[0] == len(plan_tower(start, order, rng))
        assert matched_share(on_pairs(end), goal) == 1.0
        made.append(moves)
    assert set(made) == {3} if not stacked else max(made) <= 7


def test_rearrangements_are_made_in_as_few_moves_as_a_search_needs() -> None:
    made = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        start, goal = random_rearrangement(4, rng)
        moves, end = carry_out(start, goal, seed)
        assert moves == len(plan_rearrangement(start, goal, rng))
        assert matched(end, goal).all()
        made.append(moves)
    assert np.mean(made) < 5.2
    assert max(made) <= 7


# --- goals and labels ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("pairs", "count"),
    [([(0, 1), (0, 2)], 4), ([(1, 0), (2, 0)], 4), ([(0, 1), (1, 2), (2, 0)], 4)],
)
def test_goals_that_no_blocks_can_meet_are_refused(
    pairs: list[tuple[int, int]], count: int
) -> None:
    goal = np.array([pair in pairs for pair in ordered_pairs(count)], float)
    with pytest.raises(KukaArrangementError, match=f"{pairs[0][0]} on {pairs[0][1]}"):
        ask(SCATTERED, goal)


def test_goals_for_other_numbers_of_blocks_are_refused() -> None:
    with pytest.raises(KukaArrangementError, match="12 ordered pairs or 12 coord"):
        ask(SCATTERED, np.zeros(6))


@pytest.mark.parametrize("tower", [(0,), (0, 0), (1, 4), (-1, 2)])
def test_towers_that_cannot_be_meant_are_refused(tower: tuple[int, ...]) -> None:
    with pytest.raises(KukaArrangementError, match="from the bottom to the top"):
        tower_goal(tower, 4)


def test_towers_of_some_blocks_name_their_pairs() -> None:
    wanted = {
        pair
        for pair, on in zip(ordered_pairs(3), tower_goal((2, 0), 3), strict=True)
        if on
    }
    assert wanted == {(0, 2)}


def test_labels_say_which_block_is_on_which() -> None:
    positions = np.stack([SCATTERED, at((C, 1), (B, 0), (C, 0), (C, 2))])
    columns = {f"block_{k}": positions[:, k] for k in range(4)}
    columns |= {f"flag_{k}": np.zeros((2, 1)) for k in range(4)}
    labels = pair_labels(columns)
    assert len(labels) == 12
    assert {name for name, holds in labels.items() if holds[1]} == {"on_0_2", "on_3_0"}
    assert not any(holds[0] for holds in labels.values())
    held = {**columns, "flag_3": np.ones((2, 1))}
    assert {n for n, holds in pair_labels(held).items() if holds[1]} == {"on_0_2"}
    assert count_blocks(columns) == 4
    with pytest.raises(KeyError, match="block_0"):
        pair_labels({"tool": np.zeros((2, 3))})
