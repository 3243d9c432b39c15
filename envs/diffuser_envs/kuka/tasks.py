"""The three tasks: how an episode starts, what it asks for, what a state is worth.

| | Unconditional | Conditional | Rearrangement |
|---|---|---|---|
| start | blocks scattered | blocks scattered | random stacks |
| goal | a tower, in any order | a tower, in a given order | other random stacks |
| goal's numbers | none | ordered pairs, 0 or 1 | x, y, z of every block, m |
| score | (tallest tower - 1) / (n - 1) | longest correct prefix | blocks in place |

The paper is Janner et al. (2022), section 5.2. Its Rearrangement matches a set of
reference locations; the authors' code asks for pairs instead. This is the paper's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from diffuser_envs.errors import KukaOptionError, nearest_names
from diffuser_envs.kuka.arrangements import (
    check_arrangement,
    check_order,
    order_of_pairs,
    random_rearrangement,
    scattered,
)
from diffuser_envs.kuka.columns import (
    FARTHEST,
    NUM_BLOCKS,
    NUM_JOINTS,
    FloatArray,
    observation_size,
    ordered_pairs,
)
from diffuser_envs.kuka.scores import (
    built_share,
    latched_tower_share,
    matched_places,
    matched_share,
    met_pairs,
    on_pairs,
    tower_height,
)


class Task(ABC):
    """What an environment asks of its blocks.

    Args:
        num_blocks: Number of blocks.
    """

    name: ClassVar[str]
    fewest_blocks: ClassVar[int] = 2
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
        """Return a user's goal as `[goal_size]`, if it can be reached."""

    @abstractmethod
    def achieved(self, positions: FloatArray, held: npt.ArrayLike) -> FloatArray:
        """Return what of the goal's numbers a state has, shape `[..., goal_size]`.

        Args:
            positions: Centers of the blocks, shape `[..., n, 3]`, m.
            held: Whether the tool holds each block, shape `[..., n]`.
        """

    def achieved_goals(self, observations: npt.ArrayLike) -> FloatArray:
        """Return what observations say was achieved, shape `[..., goal_size]`.

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
        """Return the authors' score of the pairs that ever held, in [0, 1].

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

    What it has achieved are the ordered pairs; none is desired in particular.
    """

    name = "unconditional"

    def draw(self, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        """Scatter the blocks."""
        return scattered(self.num_blocks, rng), np.zeros(0)

    def read_goal(self, goal: npt.ArrayLike) -> FloatArray:  # noqa: ARG002
        """Refuse: any tower will do."""
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
        """Return the fullest row of the latched pairs, as a share."""
        return latched_tower_share(latched)


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
        """Return the share of wanted pairs that hold from the ground up."""
        return matched_share(achieved, desired)

    def met(self, achieved: npt.ArrayLike, desired: npt.ArrayLike) -> FloatArray:
        """Return which ordered pairs are wanted and hold from the ground up."""
        return met_pairs(achieved, desired)

    def latched_share(self, latched: FloatArray, desired: FloatArray) -> FloatArray:
        """Return the share of wanted pairs that latched from the ground up."""
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
        """Return positions that blocks can stand in."""
        numbers = self._numbers(goal).reshape(self.num_blocks, 3)
        return check_arrangement(numbers, self.num_blocks).reshape(-1)

    def achieved(self, positions: FloatArray, held: npt.ArrayLike) -> FloatArray:  # noqa: ARG002
        """Return the positions."""
        return positions.reshape(*positions.shape[:-2], -1)

    def share(self, achieved: npt.ArrayLike, desired: npt.ArrayLike) -> FloatArray:
        """Return the share of blocks that are in their places."""
        return np.asarray(self.met(achieved, desired).mean(axis=-1))

    def met(self, achieved: npt.ArrayLike, desired: npt.ArrayLike) -> FloatArray:
        """Return which blocks are in their places, `[n]`."""
        return matched_places(achieved, desired)

    def latched_share(self, latched: FloatArray, desired: FloatArray) -> FloatArray:
        """Return the share of the reference's pairs that ever held.

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
        KukaOptionError: There is no task of that name.
    """
    if name not in TASKS:
        raise KukaOptionError(f"unknown task {name!r}; {nearest_names(name, TASKS)}")
    return TASKS[name](num_blocks)


def observation_space(task: Task) -> Any:
    """Return the space of a task's observations.

    Args:
        task: With goals, the space is a goal dictionary.
    """
    size = observation_size(task.num_blocks)
    state = spaces.Box(-FARTHEST, FARTHEST, (size,), np.float32)
    if not task.goal_size:
        return state
    low, high = task.goal_bounds
    goal = spaces.Box(low, high, (task.goal_size,), np.float32)
    return spaces.Dict(
        {"observation": state, "achieved_goal": goal, "desired_goal": goal}
    )


def tower_goal(order: Sequence[int]) -> FloatArray:
    """Return the Conditional task's goal for a tower.

    Args:
        order: Every block once, bottom to top.

    Returns:
        1 for the pairs that the tower consists of, 0 for the others.

    Raises:
        KukaArrangementError: A block is missing, unknown or named twice.
    """
    names = check_order(order, len(order))
    wanted = set(zip(names[1:], names[:-1], strict=True))
    return np.array([float(pair in wanted) for pair in ordered_pairs(len(names))])
