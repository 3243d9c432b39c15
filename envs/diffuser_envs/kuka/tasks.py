"""The three tasks: how an episode starts, what it asks for, what a state is worth.

| | Unconditional | Conditional | Rearrangement |
|---|---|---|---|
| start | blocks scattered | blocks scattered | random stacks |
| goal | a tower, in any order | a tower, in a given order | other random stacks |
| goal's numbers | none | ordered pairs, 0 or 1 | x, y, z of every block, m |
| score | (tallest tower - 1) / (n - 1) | longest correct prefix | blocks in place |

The tasks are those of Janner et al. (2022), section 5.2. The paper's Rearrangement
matches a set of reference locations, and so does this one; the authors' code asks for
pairs instead.

"i is on j" holds if their centers are less than half a block's width apart
horizontally, i's center is one block's height (+- 12 mm) above j's, and the tool holds
neither. Pairs are listed as `diffuser_envs.kuka.columns.ordered_pairs` orders them, in
arrays of shape `[..., n (n - 1)]`. All functions take any leading dimensions.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from diffuser_envs.errors import KukaArrangementError, KukaOptionError, check_known
from diffuser_envs.kuka.arrangements import (
    block_numbers,
    check_arrangement,
    check_order,
    matched,
    on_top,
    order_of_pairs,
    random_rearrangement,
    scattered,
)
from diffuser_envs.kuka.columns import (
    BLOCK_WIDTH,
    FARTHEST,
    NUM_BLOCKS,
    NUM_JOINTS,
    BoolArray,
    FloatArray,
    IntArray,
    observation_size,
    ordered_pairs,
)

LATCH_DISTANCE = BLOCK_WIDTH
LATCH_HEIGHT = 0.05


def on_pairs(positions: npt.ArrayLike, held: npt.ArrayLike | None = None) -> FloatArray:
    """Return which blocks stand on which.

    Args:
        positions: Centers, shape `[..., n, 3]`, m.
        held: Whether the tool holds each block, shape `[..., n]`; by default no block.

    Returns:
        1 for each ordered pair that holds and 0 otherwise, shape `[..., n (n - 1)]`.
    """
    on = on_top(positions, False if held is None else held)
    top, bottom = pair_indices(on.shape[-1])
    return on[..., top, bottom].astype(np.float64)


def latching_pairs(
    positions: npt.ArrayLike, held: npt.ArrayLike | None = None
) -> FloatArray:
    """Return which pairs latch by the authors' rule.

    A pair latches for the rest of the episode if its centers are less than a block's
    width apart, at least 0.05 m of height lies between them (blocks are 0.06 m high),
    and the upper block is not held. The rule means to ask the same of the lower block,
    but the authors' code tests the upper one twice.

    Args:
        positions: Centers, shape `[..., n, 3]`, m.
        held: Whether the tool holds each block, shape `[..., n]`; by default no block.

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
        Shape `[...]`; 1 for states without a stack.
    """
    on = pair_matrix(pairs)
    num_blocks = on.shape[-1]
    heights = np.ones((*on.shape[:-2], num_blocks), dtype=np.int64)
    for _ in range(num_blocks - 1):
        below = np.where(on, heights[..., None, :], 0).max(axis=-1)
        heights = np.maximum(heights, 1 + below)
    # A cycle of pairs, which contradicts itself, would count beyond all blocks.
    return np.asarray(np.minimum(heights.max(axis=-1), num_blocks))


def built_share(pairs: npt.ArrayLike) -> FloatArray:
    """Return the share of the Unconditional task: (tallest tower - 1) / (n - 1).

    Args:
        pairs: Shape `[..., n (n - 1)]`.
    """
    heights = tower_height(pairs)
    num_blocks = num_blocks_of_pairs(np.shape(pairs)[-1])
    return np.asarray((heights - 1) / max(num_blocks - 1, 1), dtype=np.float64)


def met_pairs(achieved: npt.ArrayLike, desired: npt.ArrayLike) -> FloatArray:
    """Return which desired pairs hold together with all desired pairs beneath.

    A pair counts only if the desired pairs beneath its bottom block count. For a tower
    this is the longest correct prefix, from the ground up.

    Args:
        achieved: Pairs of a state, shape `[..., n (n - 1)]`.
        desired: Wanted pairs, broadcast against `achieved`.

    Returns:
        1 for each wanted pair that counts and 0 otherwise.
    """
    wanted = pair_matrix(desired)
    holds = wanted & pair_matrix(achieved)
    num_blocks = wanted.shape[-1]
    # At first, the blocks that the goal puts on no other.
    based = np.broadcast_to(~wanted.any(axis=-1), holds.shape[:-1])
    counted = np.zeros_like(holds)
    for _ in range(num_blocks - 1):
        counted = holds & based[..., None, :]
        based = np.asarray((counted | ~wanted).all(axis=-1))
    top, bottom = pair_indices(num_blocks)
    return counted[..., top, bottom].astype(np.float64)


def matched_share(achieved: npt.ArrayLike, desired: npt.ArrayLike) -> FloatArray:
    """Return the share of the Conditional task: the share of wanted pairs that count.

    A goal without pairs is met by a state without pairs.

    Args:
        achieved: Pairs of a state, shape `[..., n (n - 1)]`.
        desired: Wanted pairs, broadcast against `achieved`.
    """
    wanted = np.asarray(desired, dtype=np.float64) > 0.5
    count = wanted.sum(axis=-1)
    met = met_pairs(achieved, desired).sum(axis=-1)
    nothing = ~(np.asarray(achieved, dtype=np.float64) > 0.5).any(axis=-1)
    share = np.where(count > 0, met / np.maximum(count, 1), nothing)
    return np.asarray(share, dtype=np.float64)


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
    """Return pairs as tables: entry [..., i, j] tells whether i is on j.

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
    """Return the number of blocks that have so many ordered pairs.

    Args:
        num_pairs: n (n - 1).
    """
    return (1 + math.isqrt(1 + 4 * num_pairs)) // 2


class Task(ABC):
    """The rules of one task.

    Args:
        num_blocks: Number of blocks.
    """

    name: ClassVar[str]
    goal_bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    goal_meaning: ClassVar[str] = ""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.goal_size = 0

    @abstractmethod
    def draw(self, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        """Draw where the blocks start, `[n, 3]`, and a goal, `[goal_size]`."""

    @abstractmethod
    def read_goal(self, goal: npt.ArrayLike) -> FloatArray:
        """Check that a user's goal can be reached, and return it as `[goal_size]`."""

    @abstractmethod
    def achieved(self, positions: FloatArray, held: npt.ArrayLike) -> FloatArray:
        """Return the goal that a state achieves, shape `[..., goal_size]`.

        Unconditional has no goals: the ordered pairs that hold, `[..., n (n - 1)]`.

        Args:
            positions: Centers of the blocks, shape `[..., n, 3]`, m.
            held: Whether the tool holds each block, shape `[..., n]`.
        """

    def achieved_goals(self, observations: npt.ArrayLike) -> FloatArray:
        """Return the goals that observations achieve, shaped as by `achieved`.

        Args:
            observations: Shape `[..., size]`.
        """
        values = np.asarray(observations, dtype=np.float64)
        blocks = values[..., NUM_JOINTS:].reshape(
            *values.shape[:-1], self.num_blocks, -1
        )
        return self.achieved(blocks[..., :3], blocks[..., -1] > 0.5)

    @abstractmethod
    def share(self, achieved: npt.ArrayLike, desired: npt.ArrayLike) -> FloatArray:
        """Return the share of the goal that is met, in [0, 1], shape `[...]`.

        Args:
            achieved: Shape `[..., goal_size]`.
            desired: Shape `[..., goal_size]`.
        """

    @abstractmethod
    def met(self, achieved: npt.ArrayLike, desired: npt.ArrayLike) -> FloatArray:
        """Return which parts of the goal are met: 1 or 0 each."""

    @abstractmethod
    def latched_share(self, latched: FloatArray, desired: FloatArray) -> FloatArray:
        """Return the authors' score, in [0, 1], of the pairs that ever latched.

        Args:
            latched: Ordered pairs, `[n (n - 1)]`.
            desired: The goal, `[goal_size]`.
        """

    def _numbers(self, goal: npt.ArrayLike) -> FloatArray:
        """Return a goal as `[goal_size]` finite numbers; nested lists are flattened."""
        try:
            numbers = np.asarray(goal, dtype=np.float64).reshape(-1)
        except (TypeError, ValueError):
            numbers = np.full(1, np.nan)
        if numbers.shape != (self.goal_size,) or not np.isfinite(numbers).all():
            raise KukaOptionError(
                f"this task's goal has {self.goal_size} finite numbers"
                f" ({self.goal_meaning}), got {goal!r}"
            )
        return numbers


class Unconditional(Task):
    """Build a tower of all blocks, in any order.

    The ordered pairs are what it achieves; no pair is desired.
    """

    name = "unconditional"

    def draw(self, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        """Scatter the blocks."""
        return scattered(self.num_blocks, rng), np.zeros(0)

    def read_goal(self, goal: npt.ArrayLike) -> FloatArray:  # noqa: ARG002
        """Refuse every goal: any tower counts."""
        raise KukaOptionError(
            "the Unconditional task has no goal (any tower counts); use"
            " diffuser_envs/KukaStack-Conditional-v1 to ask for an order"
        )

    def achieved(self, positions: FloatArray, held: npt.ArrayLike) -> FloatArray:
        """Return the ordered pairs that hold."""
        return on_pairs(positions, held)

    def share(self, achieved: npt.ArrayLike, desired: npt.ArrayLike) -> FloatArray:  # noqa: ARG002
        """Return (tallest tower - 1) / (n - 1)."""
        return built_share(achieved)

    def met(self, achieved: npt.ArrayLike, desired: npt.ArrayLike) -> FloatArray:  # noqa: ARG002
        """Return which storeys above the first the tallest tower has, `[n - 1]`."""
        height = np.asarray(tower_height(achieved))[..., None]
        return (height > np.arange(1, self.num_blocks)).astype(np.float64)

    def latched_share(self, latched: FloatArray, desired: FloatArray) -> FloatArray:  # noqa: ARG002
        """Return the fullest row of latched pairs, as a share of n - 1."""
        most = pair_matrix(latched).sum(axis=-1).max(axis=-1)
        return np.asarray(most / max(self.num_blocks - 1, 1), dtype=np.float64)


class Conditional(Task):
    """Build one tower of all blocks in a given order."""

    name = "conditional"
    goal_meaning = "diffuser_envs.kuka.tasks.tower_goal(order), blocks bottom to top"

    def __init__(self, num_blocks: int) -> None:
        super().__init__(num_blocks)
        self.goal_size = num_blocks * (num_blocks - 1)

    def draw(self, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        """Scatter the blocks and draw an order."""
        start = scattered(self.num_blocks, rng)
        return start, tower_goal(rng.permutation(self.num_blocks).tolist())

    def read_goal(self, goal: npt.ArrayLike) -> FloatArray:
        """Return the pairs of one tower."""
        order = order_of_pairs(self._numbers(goal), self.num_blocks)
        return tower_goal(order)

    def achieved(self, positions: FloatArray, held: npt.ArrayLike) -> FloatArray:
        """Return the ordered pairs that hold."""
        return on_pairs(positions, held)

    def share(self, achieved: npt.ArrayLike, desired: npt.ArrayLike) -> FloatArray:
        """Return the share of wanted pairs that hold, from the ground up."""
        return matched_share(achieved, desired)

    def met(self, achieved: npt.ArrayLike, desired: npt.ArrayLike) -> FloatArray:
        """Return which ordered pairs are wanted and hold, from the ground up."""
        return met_pairs(achieved, desired)

    def latched_share(self, latched: FloatArray, desired: FloatArray) -> FloatArray:
        """Return the share of wanted pairs that latched, from the ground up."""
        return matched_share(latched, desired)


class Rearrangement(Task):
    """Take random stacks apart and build others at given places."""

    name = "rearrangement"
    goal_meaning = "(x, y, z) of every block's center in meters"
    goal_bounds = (-FARTHEST, FARTHEST)

    def __init__(self, num_blocks: int) -> None:
        super().__init__(num_blocks)
        self.goal_size = 3 * num_blocks

    def draw(self, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        """Draw two arrangements; no block is in its place at the start."""
        start, goal = random_rearrangement(self.num_blocks, rng)
        return start, goal.reshape(-1)

    def read_goal(self, goal: npt.ArrayLike) -> FloatArray:
        """Check that blocks can stand at the positions, and return them."""
        numbers = self._numbers(goal).reshape(self.num_blocks, 3)
        return check_arrangement(numbers, self.num_blocks).reshape(-1)

    def achieved(self, positions: FloatArray, held: npt.ArrayLike) -> FloatArray:  # noqa: ARG002
        """Return the positions."""
        return positions.reshape(*positions.shape[:-2], -1)

    def share(self, achieved: npt.ArrayLike, desired: npt.ArrayLike) -> FloatArray:
        """Return the share of blocks in their places."""
        return np.asarray(self.met(achieved, desired).mean(axis=-1))

    def met(self, achieved: npt.ArrayLike, desired: npt.ArrayLike) -> FloatArray:
        """Return which blocks are within 30 mm of their places, `[..., n]`."""
        have, want = (
            np.asarray(each, dtype=np.float64).reshape(*np.shape(each)[:-1], -1, 3)
            for each in (achieved, desired)
        )
        return matched(have, want).astype(np.float64)

    def latched_share(self, latched: FloatArray, desired: FloatArray) -> FloatArray:
        """Return the share of the reference's pairs that ever latched.

        The authors score this task by pairs alone, wherever they stand.
        """
        pairs = on_pairs(desired.reshape(self.num_blocks, 3))
        return matched_share(latched, pairs)


TASKS: dict[str, type[Task]] = {
    task.name: task for task in (Unconditional, Conditional, Rearrangement)
}


def make_task(name: str, num_blocks: int = NUM_BLOCKS) -> Task:
    """Return a task.

    Args:
        name: `"unconditional"`, `"conditional"` or `"rearrangement"`.
        num_blocks: Number of blocks.

    Raises:
        KukaOptionError: No such task.
    """
    check_known("task", name, TASKS, KukaOptionError)
    return TASKS[name](num_blocks)


def observation_space(task: Task) -> Any:
    """Return the space of a task's observations; a goal dictionary if it has goals."""
    size = observation_size(task.num_blocks)
    state = spaces.Box(-FARTHEST, FARTHEST, (size,), np.float32)
    if not task.goal_size:
        return state
    low, high = task.goal_bounds
    goal = spaces.Box(low, high, (task.goal_size,), np.float32)
    return spaces.Dict(
        {"observation": state, "achieved_goal": goal, "desired_goal": goal}
    )


def tower_goal(tower: Sequence[int], num_blocks: int | None = None) -> FloatArray:
    """Return the goal of a tower, as ordered pairs.

    Args:
        tower: Two or more blocks from the bottom to the top. Without `num_blocks`
            every block once.
        num_blocks: Number of blocks in the scene.

    Returns:
        1 for the pairs that the tower consists of, 0 for the others,
        shape `[n (n - 1)]`.

    Raises:
        KukaArrangementError: Fewer than two blocks; or a block is missing, unknown or
            named twice, or one of them is no whole number.
    """
    names = block_numbers(tower)
    if num_blocks is None and len(names) < 2:
        raise KukaArrangementError(
            f"A tower names two or more blocks, once each, from the bottom to the top, "
            f"as (2, 0, 1); got {names}."
        )
    if num_blocks is None:
        num_blocks = len(check_order(names, len(names)))
    elif (
        len(names) < 2 or len({*names}) < len(names) or {*names} - {*range(num_blocks)}
    ):
        raise KukaArrangementError(
            f"A tower names two or more different blocks of 0..{num_blocks - 1} from "
            f"the bottom to the top, as (2, 0, 1); got {names}."
        )
    wanted = set(zip(names[1:], names[:-1], strict=True))
    return np.array([float(pair in wanted) for pair in ordered_pairs(num_blocks)])
