"""Where blocks stand: random starts, random stacks, goals, and validity checks.

An arrangement is the centers of all blocks, shape `[n, 3]`, meters in the frame of the
arm's base; the table's top is at z = 0 and blocks keep their sides parallel to the
axes. Blocks stand in a ring sector that the arm reaches at every height of a tower.
They stand at least `SPACING` apart, so that a carried block fits between any two.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from diffuser_envs.errors import KukaArrangementError
from diffuser_envs.kuka.columns import (
    BLOCK_HEIGHT,
    BLOCK_WIDTH,
    FloatArray,
    layer_height,
    ordered_pairs,
)

MIN_RADIUS, MAX_RADIUS = 0.42, 0.68
MAX_AZIMUTH = 1.4
SPACING = 0.16  # between the centers of blocks on the table; their diagonal is 0.141
TABLE = -1  # the support of a block that stands on no other block

STACKED_XY = 0.5 * BLOCK_WIDTH
STACKED_Z = 0.012
MATCHED = 0.03  # how far from its goal position a block may be

_ATTEMPTS = 200


def random_place(rng: np.random.Generator, occupied: npt.ArrayLike = ()) -> FloatArray:
    """Draw a place on the table, uniform over the free part of the work sector.

    Args:
        rng: Source of randomness.
        occupied: Centers to keep away from by `SPACING`, shape `[k, 2]`.

    Returns:
        x and y.

    Raises:
        KukaArrangementError: No free place was found.
    """
    taken = np.asarray(occupied, dtype=np.float64).reshape(-1, 2)
    for _ in range(_ATTEMPTS):
        radius = math.sqrt(rng.uniform(MIN_RADIUS**2, MAX_RADIUS**2))
        azimuth = rng.uniform(-MAX_AZIMUTH, MAX_AZIMUTH)
        x, y = radius * math.cos(azimuth), radius * math.sin(azimuth)
        if all(math.hypot(x - a, y - b) >= SPACING for a, b in taken.tolist()):
            return np.array((x, y))
    raise KukaArrangementError(
        f"no free place is left in the work sector beside {len(taken)} others,"
        f" {SPACING} m apart; use fewer blocks"
    )


def random_places(num_places: int, rng: np.random.Generator) -> FloatArray:
    """Draw places at a distance of `SPACING` from each other, or more.

    Args:
        num_places: Number of places.
        rng: Source of randomness.

    Returns:
        Shape `[num_places, 2]`.

    Raises:
        KukaArrangementError: The places do not fit.
    """
    error = None
    for _ in range(20):  # an unlucky first choice can leave no room for the rest
        taken = np.empty((0, 2))
        try:
            for _ in range(num_places):
                taken = np.vstack((taken, random_place(rng, taken)))
        except KukaArrangementError as failed:
            error = failed
            continue
        return taken
    raise KukaArrangementError(
        f"{num_places} places do not fit into the work sector, {SPACING} m apart; use"
        " fewer blocks"
    ) from error


def scattered(num_blocks: int, rng: np.random.Generator) -> FloatArray:
    """Draw an arrangement in which every block stands on the table.

    Args:
        num_blocks: Number of blocks.
        rng: Source of randomness.

    Returns:
        Shape `[num_blocks, 3]`.

    Raises:
        KukaArrangementError: So many blocks do not fit.
    """
    places = random_places(num_blocks, rng)
    return np.column_stack((places, np.full(num_blocks, layer_height(0))))


def random_stacks(
    num_blocks: int,
    rng: np.random.Generator,
    *,
    max_height: int = 3,
    jitter: float = 0.0,
) -> FloatArray:
    """Draw random piles, at least one of them of two blocks or more.

    Args:
        num_blocks: At least two.
        rng: Source of randomness.
        max_height: Height of the highest pile, in blocks.
        jitter: Standard deviation, meters, of a block's offset from the one below; cut
            at three standard deviations.

    Returns:
        Shape `[num_blocks, 3]`.

    Raises:
        KukaArrangementError: Fewer than two blocks, or the piles do not fit.
    """
    if num_blocks < 2 or max_height < 2:
        raise KukaArrangementError(
            f"a pile needs two blocks, got num_blocks={num_blocks} and"
            f" max_height={max_height}"
        )
    heights: list[int] = []
    while max(heights, default=1) == 1:
        heights = []
        while sum(heights) < num_blocks:
            left = num_blocks - sum(heights)
            heights.append(int(rng.integers(1, min(max_height, left) + 1)))
    blocks = rng.permutation(num_blocks)
    positions = np.empty((num_blocks, 3))
    places = random_places(len(heights), rng)
    first = 0
    for place, height in zip(places, heights, strict=True):
        center = place
        for layer, block in enumerate(blocks[first : first + height]):
            positions[block, :2] = center
            positions[block, 2] = layer_height(layer)
            if jitter > 0.0:
                shift = rng.normal(0.0, jitter, 2)
                center = within_ring(center + shift.clip(-3 * jitter, 3 * jitter))
        first += height
    return positions


def within_ring(place: npt.ArrayLike) -> FloatArray:
    """Return the nearest place within the ring in which blocks may stand.

    Args:
        place: x and y.
    """
    xy = np.asarray(place, dtype=np.float64)
    radius = float(np.hypot(xy[0], xy[1]))
    return xy * (min(max(radius, MIN_RADIUS), MAX_RADIUS) / radius)


def random_rearrangement(
    num_blocks: int, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    """Draw two arrangements of stacks; no block starts at its goal.

    Any blocks may occupy the goal's places at the start.

    Args:
        num_blocks: At least two.
        rng: Source of randomness.

    Returns:
        Start and goal, each of shape `[num_blocks, 3]`.

    Raises:
        KukaArrangementError: The piles do not fit.
    """
    start = random_stacks(num_blocks, rng)
    for _ in range(_ATTEMPTS):
        goal: FloatArray | None = random_stacks(num_blocks, rng)
        if goal is not None and rng.random() < 0.5:
            goal = _moved_onto(goal, start, rng)  # take over an occupied place
        if goal is not None and not matched(start, goal).any():
            return start, goal
    raise KukaArrangementError(
        f"found no goal that moves all {num_blocks} blocks; use fewer blocks"
    )


def _moved_onto(
    goal: FloatArray, start: FloatArray, rng: np.random.Generator
) -> FloatArray | None:
    """Move a pile of the goal to a place of the start, if the others leave room."""
    bases = goal[goal[:, 2] < BLOCK_HEIGHT, :2]
    base = bases[rng.integers(len(bases))]
    occupied = start[start[:, 2] < BLOCK_HEIGHT, :2]
    place = occupied[rng.integers(len(occupied))]
    others = bases[(bases != base).any(axis=1)]
    if (np.linalg.norm(others - place, axis=1) < SPACING).any():
        return None
    pile = (goal[:, :2] == base).all(axis=1)
    moved = goal.copy()
    moved[pile, :2] = place
    return moved


def matched(positions: npt.ArrayLike, goal: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Return which blocks are within `MATCHED` of their goal.

    Args:
        positions: Shape `[..., n, 3]`.
        goal: Shape `[..., n, 3]`.

    Returns:
        Shape `[..., n]`.
    """
    difference = np.asarray(positions) - np.asarray(goal)
    return np.asarray(np.linalg.norm(difference, axis=-1) <= MATCHED)


def on_top(
    positions: npt.ArrayLike, held: npt.ArrayLike = False
) -> npt.NDArray[np.bool_]:
    """Return which block lies on which.

    Args:
        positions: Shape `[..., n, 3]`.
        held: Which blocks the tool holds, shape `[..., n]`; these lie on none and
            carry none.

    Returns:
        `[..., i, j]`: block i lies on block j.
    """
    centers = np.asarray(positions, dtype=np.float64)
    offset = centers[..., :, None, :] - centers[..., None, :, :]
    on = np.hypot(offset[..., 0], offset[..., 1]) < STACKED_XY
    on &= np.abs(offset[..., 2] - BLOCK_HEIGHT) < STACKED_Z
    free = ~np.broadcast_to(np.asarray(held, dtype=np.bool_), centers.shape[:-1])
    return np.asarray(on & free[..., :, None] & free[..., None, :])


def supports(positions: npt.ArrayLike) -> list[int]:
    """Return the support of each block: another block, or `TABLE`.

    Args:
        positions: Shape `[n, 3]`.
    """
    centers = np.asarray(positions, dtype=np.float64)
    on = on_top(centers)
    found = []
    for block, row in enumerate(on):
        below = np.flatnonzero(row)
        if len(below) > 1:
            gaps = np.linalg.norm(centers[below, :2] - centers[block, :2], axis=1)
            below = below[[int(gaps.argmin())]]
        found.append(int(below[0]) if len(below) else TABLE)
    return found


def check_arrangement(positions: npt.ArrayLike, num_blocks: int) -> FloatArray:
    """Check that blocks can stand in an arrangement, and return it as an array.

    Args:
        positions: Centers of all blocks.
        num_blocks: Number of blocks.

    Raises:
        KukaArrangementError: Wrong shape, not finite, out of reach, overlapping, or a
            block that stands on nothing.
    """
    try:
        centers = np.array(positions, dtype=np.float64)
    except (TypeError, ValueError):
        raise KukaArrangementError(
            f"positions must be {num_blocks} times (x, y, z), got {positions!r}"
        ) from None
    if centers.shape != (num_blocks, 3) or not np.isfinite(centers).all():
        raise KukaArrangementError(
            f"positions must be {num_blocks} times (x, y, z), all finite, got"
            f" {centers.tolist()}"
        )
    for block, (x, y, _) in enumerate(centers.tolist()):
        radius, azimuth = math.hypot(x, y), math.atan2(y, x)
        near = MIN_RADIUS - MATCHED <= radius <= MAX_RADIUS + MATCHED
        if not near or abs(azimuth) > MAX_AZIMUTH + MATCHED / radius:
            raise KukaArrangementError(
                f"block {block} at ({x:.3f}, {y:.3f}) is out of reach: keep its"
                f" distance from the arm within {MIN_RADIUS}-{MAX_RADIUS} m and its"
                f" direction within {MAX_AZIMUTH} rad (got {radius:.3f} m,"
                f" {azimuth:.3f} rad)"
            )
    _check_room(centers)
    return centers


def _check_room(centers: FloatArray) -> None:
    """Raise unless blocks do not overlap and each stands on something."""
    gap = np.abs(centers[:, None] - centers[None])
    inside = (gap < (BLOCK_WIDTH, BLOCK_WIDTH, BLOCK_HEIGHT - STACKED_Z)).all(axis=-1)
    first, second = np.nonzero(np.triu(inside, k=1))
    if len(first):
        raise KukaArrangementError(
            f"blocks {first[0]} and {second[0]} overlap: centers"
            f" {centers[first[0]].tolist()} and {centers[second[0]].tolist()}; blocks"
            f" are {BLOCK_WIDTH} m wide and {BLOCK_HEIGHT} m high"
        )
    standing = np.abs(centers[:, 2] - layer_height(0)) < STACKED_Z
    for block, below in enumerate(supports(centers)):
        if below == TABLE and not standing[block]:
            raise KukaArrangementError(
                f"block {block} at {centers[block].tolist()} stands on nothing: on the"
                f" table z is {layer_height(0)}, and {BLOCK_HEIGHT} more with every"
                " block below"
            )


def block_numbers(tower: Sequence[int]) -> tuple[int, ...]:
    """Return the blocks that a tower names.

    Args:
        tower: Block numbers, bottom to top.

    Raises:
        KukaArrangementError: One of them is no whole number.
    """
    try:
        return tuple(map(operator.index, tower))
    except TypeError:
        raise KukaArrangementError(
            "a tower names its blocks by whole numbers, bottom to top, as (2, 0, 1),"
            f" got {tower!r}"
        ) from None


def check_order(order: Sequence[int], num_blocks: int) -> tuple[int, ...]:
    """Check that a tower's order names every block once, and return it.

    Args:
        order: Block numbers, bottom to top.
        num_blocks: Number of blocks.

    Raises:
        KukaArrangementError: A block is missing, unknown or named twice, or one of them
            is no whole number.
    """
    names = block_numbers(order)
    if sorted(names) != list(range(num_blocks)):
        raise KukaArrangementError(
            f"a tower names each of the blocks 0 to {num_blocks - 1} once, bottom to"
            f" top, got {list(names)}"
        )
    return names


def order_of_pairs(pairs: npt.ArrayLike, num_blocks: int) -> tuple[int, ...]:
    """Return the tower, bottom to top, that a goal of ordered pairs describes.

    Args:
        pairs: One number for each (top, bottom), top first, 1 where wanted: shape
            `[n (n - 1)]`.
        num_blocks: Number of blocks.

    Raises:
        KukaArrangementError: The pairs do not form a single tower of all blocks.
    """
    wanted = np.asarray(pairs, dtype=np.float64)
    if wanted.shape != (num_blocks * (num_blocks - 1),):
        raise KukaArrangementError(
            f"a goal of pairs has {num_blocks * (num_blocks - 1)} numbers, got shape"
            f" {list(wanted.shape)}"
        )
    below: dict[int, int] = {}
    above: dict[int, int] = {}
    for (top, bottom), value in zip(ordered_pairs(num_blocks), wanted, strict=True):
        if value <= 0.5:
            continue
        if top in below or bottom in above:
            raise KukaArrangementError(
                f"block {top if top in below else bottom} is named twice: a block "
                "lies on at most one other, and carries at most one"
            )
        below[top], above[bottom] = bottom, top
    bases = [block for block in range(num_blocks) if block not in below]
    if len(bases) != 1:
        problem = "no block is at the bottom: the pairs form a cycle"
        if bases:
            problem = f"blocks {bases} have nothing below them"
        raise KukaArrangementError(f"the pairs are no single tower: {problem}")
    order = [bases[0]]
    while order[-1] in above:
        order.append(above[order[-1]])
    if len(order) != num_blocks:
        raise KukaArrangementError(
            f"the pairs are no single tower: only blocks {order} stand on the table, "
            "the others form a cycle"
        )
    return tuple(order)
