"""The next pick-and-place, from the positions of the blocks and a goal.

An episode is a sequence of stages, each of which moves one block. The next one is the
first of a shortest sequence that reaches the goal. A breadth-first search over
arrangements finds it: which block is on which, on its goal place, or out of the way.
The stage is a function of the state alone, so a guide may ask for it at any moment. A
held block is put down first, at its goal if possible.

A goal is the environment's: ordered pairs (Conditional) or positions of all blocks
(Rearrangement). Their values tell them apart: pairs are all 0 or 1.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from diffuser_envs.errors import KukaArrangementError
from diffuser_envs.kuka.arrangements import (
    SPACING,
    TABLE,
    matched,
    on_top,
    supports,
)
from diffuser_envs.kuka.columns import (
    BLOCK_HEIGHT,
    BLOCK_WIDTH,
    FloatArray,
    IntArray,
    layer_height,
    ordered_pairs,
)
from diffuser_envs.kuka.tasks import on_pairs

NONE = -1  # no block
RADII, AZIMUTHS = np.linspace(0.45, 0.65, 5), np.linspace(-1.3, 1.3, 27)
SPOTS = np.stack(
    [np.outer(RADII, np.cos(AZIMUTHS)), np.outer(RADII, np.sin(AZIMUTHS))], axis=-1
).reshape(-1, 2)


@dataclass(frozen=True)
class Stages:
    """The next pick-and-place of each of several episodes.

    Attributes:
        block: `[rows]` the block to move; -1 if the goal is reached.
        support: `[rows]` the block on which to put it; -1 for the table.
        target: `[rows, 3]` where to put its center, m; zero if the goal is reached.
        held: `[rows]` the held block; -1 for none.
        moves: `[rows]` number of pick-and-places left, including this one.
    """

    block: IntArray
    support: IntArray
    target: FloatArray
    held: IntArray
    moves: IntArray


def pair_labels(columns: Mapping[str, Any]) -> dict[str, npt.NDArray[np.bool_]]:
    """Return which block is on which, by name: the labels of a classifier.

    Args:
        columns: "block_0", "flag_0" and so on, `[rows, columns]`, m.

    Returns:
        "on_0_1" (block 0 on block 1) and so on, `[rows]`, bool.
    """
    count = max(count_blocks(columns), 1)
    positions = [np.asarray(columns[f"block_{k}"]) for k in range(count)]
    flags = [np.asarray(columns[f"flag_{k}"])[..., 0] for k in range(count)]
    on = on_pairs(np.stack(positions, axis=-2), np.stack(flags, axis=-1) > 0.5)
    pairs = ordered_pairs(count)
    return {f"on_{i}_{j}": on[..., k] > 0.5 for k, (i, j) in enumerate(pairs)}


def count_blocks(columns: Container[str]) -> int:
    """Return the number of blocks that have columns."""
    count = 0
    while f"block_{count}" in columns and f"flag_{count}" in columns:
        count += 1
    return count


def next_stages(positions: np.ndarray, flags: np.ndarray, goals: np.ndarray) -> Stages:
    """Return the next pick-and-place of each episode.

    Args:
        positions: `[rows, blocks, 3]` of the centers, m.
        flags: `[rows, blocks]`, above 0.5 while held.
        goals: `[rows, goal]`, ordered pairs or positions of all blocks.

    Raises:
        KukaArrangementError: A goal of another size, or one that no moves reach.
    """
    rows, count = positions.shape[:2]
    _check_size(goals, count)
    if not rows:
        none = np.zeros(0, np.int64)
        return Stages(none, none, np.zeros((0, 3)), none, none)
    flat = np.concatenate(
        [positions.reshape(rows, -1), flags > 0.5, goals], axis=1, dtype=np.float32
    )
    # Candidates of one plan share their state and come one after the other.
    fresh = np.ones(rows, dtype=bool)
    fresh[1:] = (flat[1:] != flat[:-1]).any(axis=1)
    found = [_stage(row.tobytes(), count) for row in flat[fresh]]
    inverse = np.cumsum(fresh) - 1
    block, support, target, held, moves = (
        np.array([one[part] for one in found])[inverse] for part in range(5)
    )
    return Stages(block, support, target, held, moves)


Stage = tuple[int, int, tuple[float, ...], int, int]


@lru_cache(maxsize=4096)
def _stage(data: bytes, count: int) -> Stage:
    """Return the next pick-and-place of one episode: one row of `Stages`."""
    row = np.frombuffer(data, dtype=np.float32).astype(np.float64)
    positions = row[: 3 * count].reshape(count, 3)
    flags, goal = row[3 * count : 4 * count], row[4 * count :]
    places = None if _is_pairs(goal) else goal.reshape(count, 3)
    puzzle = _puzzle(positions, flags > 0.5, goal, places)
    move = _solve(puzzle)
    held = puzzle.held.index(True) if any(puzzle.held) else NONE
    if move is None:
        return NONE, NONE, (0.0, 0.0, 0.0), held, 0
    block, away, moves = move
    if away:
        target = _free_spot(np.delete(positions, block, axis=0), places)
        return block, TABLE, tuple(target), held, moves
    support = puzzle.wanted[block]
    if places is None:
        target = positions[support] + (0.0, 0.0, BLOCK_HEIGHT)
    else:
        target = places[block]
    return block, support, tuple(target), held, moves


def _check_size(goals: np.ndarray, count: int) -> None:
    sizes = {count * (count - 1), 3 * count}
    if goals.shape[-1] not in sizes:
        raise KukaArrangementError(
            f"A goal of {count} blocks is {count * (count - 1)} ordered pairs or "
            f"{3 * count} coordinates; got {goals.shape[-1]} numbers."
        )


def _is_pairs(goal: np.ndarray) -> bool:
    """Return whether a goal is ordered pairs: places are never all 0 or 1."""
    return bool(((goal == 0) | (goal == 1)).all())


# --- arrangements, as the search sees them ------------------------------------------

START, HOME, AWAY = range(3)  # a block's place: at first, in the goal, put aside
ANYWHERE = -2  # the wanted support of a block that the goal does not mention


@dataclass(frozen=True)
class Puzzle:
    """An arrangement and a goal, without coordinates.

    Attributes:
        state: Each block's place: `HOME` if it is in its goal, otherwise `START`.
        held: Whether the tool holds each block.
        resting: The blocks on which each one stands, or over which it hangs.
        wanted: The goal's support of each block: a block, `TABLE` for a place of its
            own, or `ANYWHERE`.
        covering: The blocks in whose places on the table each one stands.
    """

    state: tuple[int, ...]
    held: tuple[bool, ...]
    resting: tuple[frozenset[int], ...]
    wanted: tuple[int, ...]
    covering: tuple[frozenset[int], ...]


def _puzzle(
    positions: FloatArray, held: np.ndarray, goal: FloatArray, places: FloatArray | None
) -> Puzzle:
    """Return the puzzle of some coordinates."""
    count = len(positions)
    offset = positions[:, None] - positions[None]
    above = np.abs(offset[..., 2] - BLOCK_HEIGHT) < BLOCK_HEIGHT / 2
    rests = above & (np.hypot(offset[..., 0], offset[..., 1]) < BLOCK_WIDTH)
    rests &= ~held[:, None] & ~held
    covers = np.zeros((count, count), dtype=bool)
    if places is None:
        wanted = _wanted(goal, count)
        on = on_top(positions, held)
        home = np.array([to >= 0 and on[k, to] for k, to in enumerate(wanted)])
    else:
        wanted = supports(places)
        settled = [to == TABLE or rests[k, to] for k, to in enumerate(wanted)]
        home = matched(positions, places) & settled & ~held
        off = positions[:, None, :2] - places[:, :2]
        covers = np.hypot(off[..., 0], off[..., 1]) < SPACING
        covers &= ((positions[:, 2] < BLOCK_HEIGHT) & ~home & ~held)[:, None]
        np.fill_diagonal(covers, False)
    return Puzzle(
        state=tuple(np.where(home, HOME, START).tolist()),
        held=tuple(held.tolist()),
        resting=tuple(frozenset(np.flatnonzero(row).tolist()) for row in rests),
        wanted=tuple(wanted),
        covering=tuple(frozenset(np.flatnonzero(row).tolist()) for row in covers),
    )


def _wanted(goal: FloatArray, count: int) -> list[int]:
    """Return the support of each block by a goal of ordered pairs.

    Raises:
        KukaArrangementError: A block on two others or under two others, or a cycle.
    """
    every = zip(ordered_pairs(count), goal, strict=True)
    pairs = [pair for pair, on in every if on > 0.5]
    below = dict(pairs)
    wrong = len(below) < len(pairs) or len(set(below.values())) < len(pairs)
    for first in below:
        block, steps = first, 0
        while block in below and steps <= count:
            block, steps = below[block], steps + 1
        wrong |= steps > count
    if wrong:
        named = ", ".join(f"{top} on {bottom}" for top, bottom in pairs)
        raise KukaArrangementError(
            f"Blocks cannot stand as the goal asks: {named}. Each block lies on at "
            "most one other and carries at most one, and pairs form no cycle."
        )
    return [below.get(block, ANYWHERE) for block in range(count)]


@lru_cache(maxsize=4096)
def _solve(puzzle: Puzzle) -> tuple[int, bool, int] | None:
    """Return the first move of a shortest sequence, and the number of moves.

    A move takes a block home, or away to a free spot of the table; on another block it
    would still be in the way. The first move is that of the held block, if there is
    one.

    Returns:
        The block, whether it moves away, and the number of moves; None if all is done.
    """
    queue: deque[tuple[tuple[int, ...], tuple[int, bool] | None, int]]
    queue = deque([(puzzle.state, None, 0)])
    seen = {puzzle.state}
    while queue:
        state, first, moves = queue.popleft()
        lifted = any(puzzle.held) and moves == 0
        if not lifted and _solved(puzzle, state):
            return None if first is None else (*first, moves)
        for block, away in _moves(puzzle, state, lifted=lifted):
            after = (*state[:block], AWAY if away else HOME, *state[block + 1 :])
            if after not in seen:
                seen.add(after)
                queue.append((after, first or (block, away), moves + 1))
    raise KukaArrangementError(f"No sequence of moves leads to the goal of {puzzle}.")


def _solved(puzzle: Puzzle, state: tuple[int, ...]) -> bool:
    pairs = zip(state, puzzle.wanted, strict=True)
    return all(at == HOME or to == ANYWHERE for at, to in pairs)


def _moves(
    puzzle: Puzzle, state: tuple[int, ...], *, lifted: bool
) -> list[tuple[int, bool]]:
    """Return the possible moves, those into the goal first."""
    blocks = range(len(state))
    carried: list[set[int]] = [set() for _ in blocks]
    taken: set[int] = set()
    for k in blocks:
        if state[k] == START:
            taken |= puzzle.covering[k]
            for below in puzzle.resting[k]:
                carried[below].add(k)
        elif state[k] == HOME and puzzle.wanted[k] >= 0:
            carried[puzzle.wanted[k]].add(k)
    clear = [k for k in blocks if (puzzle.held[k] if lifted else not carried[k])]
    homewards = []
    for k in clear:
        to = puzzle.wanted[k]
        if to == TABLE:
            ready = k not in taken
        else:
            settled = to >= 0 and (state[to] == HOME or puzzle.wanted[to] == ANYWHERE)
            ready = settled and carried[to] <= {k}
        if ready and state[k] != HOME:
            homewards.append((k, False))
    return homewards + [(k, True) for k in clear if state[k] != AWAY]


def _free_spot(others: FloatArray, places: FloatArray | None) -> FloatArray:
    """Return the spot of the table that is furthest from blocks and places, m.

    The position of the moved block does not count, so that the spot stays the same
    while the arm carries it there.

    Args:
        others: `[blocks, 3]` positions of the other blocks, m.
        places: `[blocks, 3]` the goal's places, m.
    """
    points = others if places is None else np.concatenate([others, places])
    away = SPOTS[:, None] - points[:, :2]
    nearest = np.hypot(away[..., 0], away[..., 1]).min(axis=1)
    return np.append(SPOTS[nearest.argmax()], layer_height(0))
