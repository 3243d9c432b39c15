"""Sizes, names and columns that all parts of block stacking share.

An observation of n blocks has 7 + 8n columns, 39 for the paper's four:

| columns | content | unit |
|---|---|---|
| 0 .. 6 | joints | rad |
| 7 + 8i .. 9 + 8i | position of block i (center) | m |
| 10 + 8i .. 13 + 8i | its quaternion x, y, z, w with w >= 0 | |
| 14 + 8i | its flag: 1 while the tool holds it | |

Positions are in the frame of the arm's base; the table's top is z = 0. This module
needs no simulator.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.float64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]
IntArray: TypeAlias = npt.NDArray[np.int64]

NUM_JOINTS = 7
NUM_BLOCKS = 4
MAX_BLOCKS = 5  # more do not fit side by side in the work sector with room to work
BLOCK_WIDTH = 0.1
BLOCK_HEIGHT = 0.06
STEP_SECONDS = 0.05
# Observed positions are clipped to this many meters, so that spaces are bounded.
FARTHEST = 5.0


def observation_size(num_blocks: int = NUM_BLOCKS) -> int:
    """Return the number of columns of an observation."""
    return NUM_JOINTS + 8 * num_blocks


def observation_columns(num_blocks: int = NUM_BLOCKS) -> dict[str, tuple[int, ...]]:
    """Name the columns of an observation.

    Args:
        num_blocks: Number of blocks.

    Returns:
        `"joints"`, and for each block i `"block_i"` (x, y, z), `"quaternion_i"`
        (x, y, z, w) and `"flag_i"`.
    """
    columns: dict[str, tuple[int, ...]] = {"joints": tuple(range(NUM_JOINTS))}
    for block in range(num_blocks):
        start = NUM_JOINTS + 8 * block
        columns[f"block_{block}"] = tuple(range(start, start + 3))
        columns[f"quaternion_{block}"] = tuple(range(start + 3, start + 7))
        columns[f"flag_{block}"] = (start + 7,)
    return columns


def ordered_pairs(num_blocks: int = NUM_BLOCKS) -> tuple[tuple[int, int], ...]:
    """Return all (top, bottom) pairs in the order in which goals list them.

    Args:
        num_blocks: Number of blocks.
    """
    blocks = range(num_blocks)
    return tuple((top, bottom) for top in blocks for bottom in blocks if top != bottom)


def layer_height(layer: int) -> float:
    """Return the height of a block's center in meters; layer 0 is on the table."""
    return BLOCK_HEIGHT * (layer + 0.5)
