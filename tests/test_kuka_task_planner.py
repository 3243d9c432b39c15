"""Orders of moves: carried out on paper, and compared with exhaustive search."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from diffuser_envs.errors import KukaArrangementError
from diffuser_envs.kuka.arrangements import (
    SPACING,
    TABLE,
    check_arrangement,
    matched,
    random_place,
    random_rearrangement,
    random_stacks,
    scattered,
    supports,
)
from diffuser_envs.kuka.task_planner import Move, plan_rearrangement, plan_tower


def carry_out(blocks: np.ndarray, moves: Sequence[Move]) -> np.ndarray:
    """Apply moves one by one, checking that each is possible."""
    state = blocks.copy()
    for move in moves:
        below = supports(state)
        assert move.block not in below, "it carries another block"
        others = np.delete(state, move.block, axis=0)
        if move.place is None:
            assert move.onto != move.block
            assert move.onto not in below, "another block lies there"
            state[move.block] = state[move.onto] + (0.0, 0.0, 0.06)
        else:
            assert move.onto == TABLE
            gaps = np.linalg.norm(others[:, :2] - move.place, axis=1)
            assert gaps.min() >= SPACING - 1e-9, "another block stands there"
            state[move.block] = (*move.place, 0.03)
        check_arrangement(state, len(state))
    return state


def fewest_tower_moves(below: Sequence[int], order: Sequence[int]) -> int:
    """Search all states breadth-first; the table always has room."""
    wanted = dict(zip(order[1:], order[:-1], strict=True)) | {order[0]: TABLE}
    frontier, seen, count = {tuple(below)}, {tuple(below)}, 0
    while not any(all(s[b] == wanted[b] for b in order) for s in frontier):
        following = set()
        for state in frontier:
            clear = [block for block in order if block not in state]
            for block in clear:
                for onto in (TABLE, *(other for other in clear if other != block)):
                    following.add((*state[:block], onto, *state[block + 1 :]))
        frontier = following - seen
        seen |= following
        count += 1
    return count


@pytest.mark.parametrize("seed", range(40))
def test_towers_are_built_from_stacks_in_as_few_moves_as_can_be(seed: int) -> None:
    rng = np.random.default_rng(seed)
    blocks = random_stacks(4, rng)
    order = rng.permutation(4).tolist()
    moves = plan_tower(blocks, order, rng)
    state = carry_out(blocks, moves)
    assert [supports(state)[block] for block in order] == [TABLE, *order[:-1]]
    assert len(moves) == fewest_tower_moves(supports(blocks), order)


@pytest.mark.parametrize("seed", range(20))
def test_a_tower_stands_where_it_is_asked_to(seed: int) -> None:
    rng = np.random.default_rng(seed)
    blocks = random_stacks(4, rng)
    order = rng.permutation(4).tolist()
    base = random_place(rng, blocks[:, :2])
    state = carry_out(blocks, plan_tower(blocks, order, rng, base=base))
    assert [supports(state)[block] for block in order] == [TABLE, *order[:-1]]
    np.testing.assert_allclose(state[order[0], :2], base)


@pytest.mark.parametrize("seed", range(60))
def test_rearrangements_end_where_they_are_to(seed: int) -> None:
    rng = np.random.default_rng(seed)
    start, goal = random_rearrangement(4, rng)
    moves = plan_rearrangement(start, goal, rng)
    assert matched(carry_out(start, moves), goal).all()
    assert 4 <= len(moves) <= 7


def test_two_towers_change_places() -> None:
    here, there = (0.5, -0.2), (0.5, 0.2)
    start = np.array(
        [(*here, 0.03), (*here, 0.09), (*there, 0.03), (*there, 0.09)], dtype=float
    )
    goal = start[[2, 3, 0, 1]]
    moves = plan_rearrangement(start, goal, np.random.default_rng(0))
    assert matched(carry_out(start, moves), goal).all()
    # Both top blocks and one base step aside, the other base goes home at once.
    assert len(moves) == 7


def test_a_goal_half_under_the_block_itself_needs_one_move() -> None:
    start = np.array([(0.5, -0.4, 0.03), (0.5, 0.0, 0.03), (0.5, 0.4, 0.03)])
    goal = start + np.array([(0.0, 0.0, 0.0), (0.06, 0.05, 0.0), (0.0, 0.0, 0.0)])
    moves = plan_rearrangement(start, goal, _rng())
    assert [move.block for move in moves] == [1]


def test_what_is_done_needs_no_moves() -> None:
    tower = np.array([(0.5, 0.1, 0.03 + 0.06 * layer) for layer in range(4)])
    rng = np.random.default_rng(0)
    assert plan_tower(tower, [0, 1, 2, 3], rng) == []
    assert plan_rearrangement(tower, tower, rng) == []
    assert len(plan_tower(tower, [3, 2, 1, 0], rng)) == 4


def test_chance_decides_between_equal_plans_and_the_seed_fixes_it() -> None:
    blocks = random_stacks(4, np.random.default_rng(5))

    def plan(seed: int) -> tuple[tuple[int, int], ...]:
        moves = plan_tower(blocks, [2, 0, 3, 1], np.random.default_rng(seed))
        return tuple((move.block, move.onto) for move in moves)

    assert plan(3) == plan(3)
    assert len({plan(seed) for seed in range(40)}) > 1


def test_an_impossible_order_is_refused() -> None:
    with pytest.raises(KukaArrangementError, match="once"):
        plan_tower(scattered(4, np.random.default_rng(0)), [0, 1, 1, 2], _rng())


def _rng() -> np.random.Generator:
    return np.random.default_rng(0)
