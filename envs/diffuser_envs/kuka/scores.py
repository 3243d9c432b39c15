"""What a state of the blocks is worth: pairs, towers and the three tasks' scores.

"i is on j" holds if their centers are less than half a block's width apart
horizontally, i's center is one block's height (+- 12 mm) above j's, and the tool holds
neither. Pairs are listed as `diffuser_envs.kuka.columns.ordered_pairs` orders them, in
arrays of shape `[..., n (n - 1)]`. All functions take any leading dimensions.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from diffuser_envs.kuka.arrangements import matched, on_top
from diffuser_envs.kuka.columns import (
    BLOCK_WIDTH,
    BoolArray,
    FloatArray,
    IntArray,
    ordered_pairs,
)

LATCH_DISTANCE = BLOCK_WIDTH
LATCH_HEIGHT = 0.05


def on_pairs(positions: npt.ArrayLike, held: npt.ArrayLike | None = None) -> FloatArray:
    """Tell which blocks stand on which.

    Args:
        positions: Centers, shape `[..., n, 3]`, m.
        held: Whether the tool holds each block, shape `[..., n]`; nothing held if none.

    Returns:
        1 for each ordered pair that holds and 0 otherwise, shape `[..., n (n - 1)]`.
    """
    on = on_top(positions, False if held is None else held)
    top, bottom = pair_indices(on.shape[-1])
    return on[..., top, bottom].astype(np.float64)


def latching_pairs(
    positions: npt.ArrayLike, held: npt.ArrayLike | None = None
) -> FloatArray:
    """Tell which pairs the authors' rule counts, which then never unlatch.

    Their rule asks for centers less than a block's width apart and at least 0.05 m of
    height between them (of blocks 0.06 m high), and that the upper block is not held.
    It means to ask the same of the lower one, but their code tests the upper one twice.

    Args:
        positions: Centers, shape `[..., n, 3]`, m.
        held: Whether the tool holds each block, shape `[..., n]`; nothing held if none.

    Returns:
        Like `on_pairs`.
    """
    centers = np.asarray(positions, dtype=np.float64)
    top, bottom = pair_indices(centers.shape[-2])
    offset = centers[..., top, :] - centers[..., bottom, :]
    away = np.hypot(offset[..., 0], offset[..., 1])
    counted: BoolArray = (away < LATCH_DISTANCE) & (offset[..., 2] > LATCH_HEIGHT)
    if held is not None:
        taken: BoolArray = np.asarray(held, dtype=np.bool_)
        counted &= ~taken[..., top]
    return counted.astype(np.float64)


def tower_height(pairs: npt.ArrayLike) -> IntArray:
    """Return the number of blocks of the tallest tower.

    Args:
        pairs: Shape `[..., n (n - 1)]`.

    Returns:
        Shape `[...]`; 1 where nothing is stacked.
    """
    on = pair_matrix(pairs)
    num_blocks = on.shape[-1]
    heights = np.ones((*on.shape[:-2], num_blocks), dtype=np.int64)
    for _ in range(num_blocks - 1):
        below = np.where(on, heights[..., None, :], 0).max(axis=-1)
        heights = np.maximum(heights, 1 + below)
    # Pairs that contradict each other (a cycle) would count without end.
    return np.asarray(np.minimum(heights.max(axis=-1), num_blocks))


def built_share(pairs: npt.ArrayLike) -> FloatArray:
    """Return the Unconditional task's share: (tallest tower - 1) / (n - 1).

    Args:
        pairs: Shape `[..., n (n - 1)]`.
    """
    heights = tower_height(pairs)
    num_blocks = num_blocks_of_pairs(np.shape(pairs)[-1])
    return np.asarray((heights - 1) / max(num_blocks - 1, 1), dtype=np.float64)


def met_pairs(achieved: npt.ArrayLike, desired: npt.ArrayLike) -> FloatArray:
    """Tell which desired pairs hold, each with all that should be beneath it.

    A pair counts only if the desired pairs that its bottom block stands on count. For
    a tower this is the longest correct prefix, from the ground up.

    Args:
        achieved: Pairs of a state, shape `[..., n (n - 1)]`.
        desired: Wanted pairs, broadcast against them.

    Returns:
        1 for each wanted pair that counts and 0 otherwise.
    """
    wanted = pair_matrix(desired)
    holds = wanted & pair_matrix(achieved)
    num_blocks = wanted.shape[-1]
    # To begin with, the blocks that the goal puts on no other.
    based = np.broadcast_to(~wanted.any(axis=-1), holds.shape[:-1])
    counted = np.zeros_like(holds)
    for _ in range(num_blocks - 1):
        counted = holds & based[..., None, :]
        based = np.asarray((counted | ~wanted).all(axis=-1))
    top, bottom = pair_indices(num_blocks)
    return counted[..., top, bottom].astype(np.float64)


def matched_share(achieved: npt.ArrayLike, desired: npt.ArrayLike) -> FloatArray:
    """Return the Conditional task's share: met pairs of the wanted ones.

    A goal without any pair is met by a state without any pair.

    Args:
        achieved: Pairs of a state, shape `[..., n (n - 1)]`.
        desired: Wanted pairs, broadcast against them.
    """
    wanted = np.asarray(desired, dtype=np.float64) > 0.5
    count = wanted.sum(axis=-1)
    met = met_pairs(achieved, desired).sum(axis=-1)
    nothing = ~(np.asarray(achieved, dtype=np.float64) > 0.5).any(axis=-1)
    share = np.where(count > 0, met / np.maximum(count, 1), nothing)
    return np.asarray(share, dtype=np.float64)


def matched_places(achieved: npt.ArrayLike, desired: npt.ArrayLike) -> FloatArray:
    """Tell which blocks are within 30 mm of their places.

    Args:
        achieved: Positions, shape `[..., 3 n]`, m.
        desired: Places, broadcast against them.

    Returns:
        1 or 0 for each block, shape `[..., n]`.
    """
    have = np.asarray(achieved, dtype=np.float64)
    want = np.asarray(desired, dtype=np.float64)
    have = have.reshape(*have.shape[:-1], -1, 3)
    want = want.reshape(*want.shape[:-1], -1, 3)
    return matched(have, want).astype(np.float64)


def latched_tower_share(latched: npt.ArrayLike) -> FloatArray:
    """Return the authors' Unconditional score: the fullest row of latched pairs.

    Args:
        latched: Pairs that were ever counted, shape `[..., n (n - 1)]`.

    Returns:
        Share of the greatest possible row sum, n - 1.
    """
    table = pair_matrix(latched)
    most = table.sum(axis=-1).max(axis=-1)
    return np.asarray(most / max(table.shape[-1] - 1, 1), dtype=np.float64)


@lru_cache
def pair_indices(num_blocks: int) -> tuple[IntArray, IntArray]:
    """Return the top and the bottom block of every ordered pair.

    Args:
        num_blocks: Number of blocks.
    """
    pairs = np.array(ordered_pairs(num_blocks), dtype=np.int64).reshape(-1, 2)
    pairs.flags.writeable = False
    return pairs[:, 0], pairs[:, 1]


def pair_matrix(pairs: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Write pairs as tables: entry [..., i, j] tells whether i is on j.

    Args:
        pairs: Shape `[..., n (n - 1)]`.
    """
    values = np.asarray(pairs, dtype=np.float64) > 0.5
    num_blocks = num_blocks_of_pairs(values.shape[-1])
    table = np.zeros((*values.shape[:-1], num_blocks, num_blocks), dtype=np.bool_)
    top, bottom = pair_indices(num_blocks)
    table[..., top, bottom] = values
    return table


def num_blocks_of_pairs(num_pairs: int) -> int:
    """Return how many blocks have so many ordered pairs.

    Args:
        num_pairs: n (n - 1).
    """
    return (1 + math.isqrt(1 + 4 * num_pairs)) // 2
