"""The order of moves: a search over the support of every block.

A state is a tuple with the support of each block: the block below it, or its place on
the table, numbered from `num_blocks` on. A move takes a block that carries nothing and
puts it

* on its support in the goal, if that is free;
* on another block that carries nothing; or
* on a spare place of the table.

Blocks that already stand as in the goal, down to the table, stay. The search is A*. Its
bound is the number of the other blocks, each of which moves at least once, so plans are
as short as possible. Among equally short ones, it chooses at random.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from diffuser_envs.errors import KukaArrangementError
from diffuser_envs.kuka.arrangements import (
    SPACING,
    TABLE,
    check_order,
    random_place,
    supports,
)
from diffuser_envs.kuka.columns import FloatArray

State = tuple[int, ...]

NUM_SPARES = 3
_ANYWHERE = -1  # goal of a tower's bottom block that may stand anywhere
_MAX_EXPANSIONS = 20_000


@dataclass(frozen=True, eq=False)
class Move:
    """One pick-and-place.

    Attributes:
        block: The block to move.
        onto: The block on which to put it, or `TABLE`.
        place: Its place on the table, (x, y); None on another block.
    """

    block: int
    onto: int
    place: FloatArray | None = None


def plan_tower(
    positions: npt.ArrayLike,
    order: Sequence[int],
    rng: np.random.Generator,
    *,
    base: npt.ArrayLike | None = None,
) -> list[Move]:
    """Return the moves that build a tower.

    Args:
        positions: Centers of all blocks, shape `[n, 3]`.
        order: Order of the tower, bottom to top.
        rng: Draws spare places, and one of equally short plans.
        base: Place of its bottom block, (x, y); anywhere by default.

    Returns:
        The moves; an empty list if the tower already stands.

    Raises:
        KukaArrangementError: The order does not name every block once, or no plan
            was found.
    """
    centers = np.asarray(positions, dtype=np.float64)
    names = check_order(order, len(centers))
    places = [] if base is None else [np.asarray(base, dtype=np.float64)]
    table = _Table(centers, places, rng)
    goal = [_ANYWHERE if base is None else table.goal_place(0)] * len(centers)
    for below, above in itertools.pairwise(names):
        goal[above] = below
    return table.moves(_search(table, tuple(goal), rng))


def plan_rearrangement(
    positions: npt.ArrayLike, goal: npt.ArrayLike, rng: np.random.Generator
) -> list[Move]:
    """Return the moves that bring every block to its goal position.

    Args:
        positions: Centers of all blocks, shape `[n, 3]`.
        goal: Their goal positions, shape `[n, 3]`; a valid arrangement.
        rng: Draws spare places, and one of equally short plans.

    Returns:
        The moves; an empty list if all blocks are in place.

    Raises:
        KukaArrangementError: No plan was found.
    """
    centers = np.asarray(positions, dtype=np.float64)
    targets = np.asarray(goal, dtype=np.float64)
    below = supports(targets)
    bases = [block for block, support in enumerate(below) if support == TABLE]
    table = _Table(centers, [targets[block, :2] for block in bases], rng)
    wanted = list(below)
    for number, block in enumerate(bases):
        wanted[block] = table.goal_place(number)
    return table.moves(_search(table, tuple(wanted), rng))


class _Table:
    """The places of one problem: goal places, spare places, and the blocks' own.

    A block within `SNAP` of a goal place stands on it. Every other block has a place of
    its own at the start, to which it does not return.

    Args:
        centers: Centers of all blocks, shape `[n, 3]`.
        goals: Places (x, y) of the goal.
        rng: Draws the spare places.
    """

    SNAP = 0.02

    def __init__(
        self,
        centers: FloatArray,
        goals: Sequence[FloatArray],
        rng: np.random.Generator,
    ) -> None:
        self.num_blocks = len(centers)
        self.num_goals = len(goals)
        self.places: list[FloatArray] = list(goals)
        start = supports(centers)
        for block, support in enumerate(start):
            if support == TABLE:
                start[block] = self._place_at(centers[block, :2])
        self.start: State = tuple(start)
        first = len(self.places)
        for _ in range(NUM_SPARES):
            try:
                self.places.append(random_place(rng, self.places))
            except KukaArrangementError:
                break  # a crowded table: the search goes on with fewer
        self.spares = range(self.num_blocks + first, self.num_blocks + len(self.places))
        places = np.asarray(self.places)
        gaps = np.linalg.norm(places[:, None] - places[None], axis=-1)
        self.conflicts = [
            tuple((np.flatnonzero(row < SPACING - 1e-9) + self.num_blocks).tolist())
            for row in gaps
        ]

    def goal_place(self, number: int) -> int:
        """Return the support number of a goal place."""
        return self.num_blocks + number

    def is_free(self, support: int, state: State, block: int) -> bool:
        """Return whether a block can be put on a place or on another block."""
        others = (*state[:block], *state[block + 1 :])
        if support < self.num_blocks:
            return support not in others
        return not any(
            each in others for each in self.conflicts[support - self.num_blocks]
        )

    def moves(self, steps: Sequence[tuple[int, int]]) -> list[Move]:
        """Turn the (block, support) pairs of the search into moves."""
        return [
            Move(block, support)
            if support < self.num_blocks
            else Move(block, TABLE, self.places[support - self.num_blocks])
            for block, support in steps
        ]

    def _place_at(self, xy: FloatArray) -> int:
        """Return the goal place at which a block stands, or add a place of its own."""
        for number, place in enumerate(self.places[: self.num_goals]):
            if np.hypot(*(place - xy)) < self.SNAP:
                return self.num_blocks + number
        self.places.append(xy)
        return self.num_blocks + len(self.places) - 1


def _search(
    table: _Table, goal: State, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Return the shortest sequence of (block, new support)."""
    start = table.start
    numbers = itertools.count()
    queue = [(len(_unsettled(start, goal)), 0.0, next(numbers), start)]
    steps: dict[State, tuple[int, tuple[int, int] | None, State]] = {
        start: (0, None, start)
    }
    for _ in range(_MAX_EXPANSIONS):
        if not queue:
            break
        _, _, _, state = heapq.heappop(queue)
        unsettled = _unsettled(state, goal)
        if not unsettled:
            return _traced(steps, state)
        cost = steps[state][0] + 1
        for block, support in _options(table, state, goal, unsettled, rng):
            following = (*state[:block], support, *state[block + 1 :])
            if following in steps and steps[following][0] <= cost:
                continue
            steps[following] = (cost, (block, support), state)
            bound = cost + len(_unsettled(following, goal))
            heapq.heappush(queue, (bound, rng.random(), next(numbers), following))
    raise KukaArrangementError(
        "no sequence of moves leads to the goal: the work sector is too crowded; use"
        " fewer blocks or goals further apart"
    )


def _options(
    table: _Table,
    state: State,
    goal: State,
    unsettled: Sequence[int],
    rng: np.random.Generator,
) -> Iterator[tuple[int, int]]:
    """Yield the moves worth trying, each as (block, new support)."""
    clear = [block for block in range(table.num_blocks) if block not in state]
    for block in clear:
        if block not in unsettled:
            continue
        if goal[block] != _ANYWHERE and table.is_free(goal[block], state, block):
            yield block, goal[block]
        spares = [each for each in table.spares if table.is_free(each, state, block)]
        if spares:
            yield block, spares[int(rng.integers(len(spares)))]
        for other in clear:
            if other not in (block, goal[block]):
                yield block, other


def _unsettled(state: State, goal: State) -> list[int]:
    """Return the blocks that do not stand as in the goal, down to the table."""
    num_blocks = len(state)
    found = []
    for first in range(num_blocks):
        block = first
        while block < num_blocks:
            on_table = goal[block] == _ANYWHERE and state[block] >= num_blocks
            if state[block] != goal[block] and not on_table:
                found.append(first)
                break
            block = state[block]
    return found


def _traced(
    steps: dict[State, tuple[int, tuple[int, int] | None, State]], state: State
) -> list[tuple[int, int]]:
    """Return the moves that led to a state."""
    moves: list[tuple[int, int]] = []
    while True:
        _, move, before = steps[state]
        if move is None:
            return moves[::-1]
        moves.append(move)
        state = before
