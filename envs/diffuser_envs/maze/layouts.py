"""Maze layouts, and the map from D4RL's cell coordinates to PointMaze's.

A layout is a grid of square cells (row i from the top, column j from the left), each a
wall or free. D4RL (Fu et al., 2020) and Gymnasium-Robotics simulate the same walls,
ball and forces but write positions differently (h rows, w columns, 1 m cells):

| | D4RL maze2d | PointMaze |
|---|---|---|
| first coordinate | row, downward | x = column, to the right |
| second coordinate | column, to the right | y = row, upward |
| origin | 0.2 down and right of cell (0, 0)'s center | middle of the maze |
| center of cell (i, j) | (i - 0.2, j - 0.2) | (j + 0.5 - w/2, h/2 - i - 0.5) |
| point (i, j) of D4RL | (i, j) | (j + 0.7 - w/2, h/2 - i - 0.7) |

In D4RL's world the ball's body sits at 1.2 and the wall of cell (0, 0) is centered at
1.0. So the integer point (i, j), around which D4RL draws starts and goals, lies 0.2
below and 0.2 to the right of the middle of its cell:

    +-----------+
    |           |     c  center of the cell: PointMaze's starts and goals
    |     c     |     d  D4RL's point (i, j): its starts and goals
    |       d   |
    |           |
    +-----------+

`MazeLayout.cell_to_xy` returns d for D4RL's mazes and c for others (`cell_offset` is
0.2 or 0). The offset comes from D4RL's model, and it matters: on U-Maze a uniform
random policy returns 27.0 +- 1.2 (standard error) with it and 35.8 +- 3.6 without. D4RL
published 23.85 from 100 episodes, which alone leave a standard error of 6
(`examples/experiments/reference_returns.py`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import gymnasium
import numpy as np
import numpy.typing as npt

from diffuser_envs.errors import (
    MazeOptionError,
    MazePositionError,
    UnsupportedEnvError,
    check_known,
    check_options,
)

Cell: TypeAlias = tuple[int, int]
FloatArray: TypeAlias = npt.NDArray[np.float64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]

D4RL_CELL_OFFSET = 0.2
D4RL_NOISE = 0.1
SUCCESS_RADIUS = 0.5  # of a goal's disc, in meters
RESET_OPTIONS = ("goal", "start")


@dataclass(frozen=True, kw_only=True)
class MazeLayout:
    """Walls of a maze and the geometry of its cells.

    Attributes:
        name: Key in `LAYOUTS`.
        title: Name inside environment ids.
        maze_map: Rows of cells from top to bottom; 1 is a wall, 0 is free.
        goal_cell: Row and column of the fixed evaluation goal, if there is one.
        max_episode_steps: Length of an episode in environment steps.
        dataset_steps: Environment steps of D4RL's dataset.
        cell_offset: Distance in meters, downward and to the right, from the center of
            a cell to the point that stands for the cell.
        cell_size: Side of a cell in meters.
    """

    name: str
    title: str
    maze_map: tuple[tuple[int, ...], ...]
    goal_cell: Cell | None = None
    max_episode_steps: int = 300
    dataset_steps: int = 1_000_000
    cell_offset: float = 0.0
    cell_size: float = 1.0

    @classmethod
    def from_map(
        cls, maze_map: Sequence[Sequence[int | str]], *, cell_size: float = 1.0
    ) -> MazeLayout:
        """Make a layout from a map of Gymnasium-Robotics, where any cell but 1 is free.

        Args:
            maze_map: Rows of cells, all of the same length.
            cell_size: Side of a cell in meters.
        """
        return cls(
            name="custom",
            title="Custom",
            maze_map=tuple(tuple(int(cell == 1) for cell in row) for row in maze_map),
            cell_size=cell_size,
        )

    @cached_property
    def walls(self) -> BoolArray:
        """True where a cell is a wall, shape `[rows, columns]`."""
        return np.array(self.maze_map, dtype=np.bool_)

    @cached_property
    def free_cells(self) -> tuple[Cell, ...]:
        """All free cells, row by row."""
        return tuple((int(i), int(j)) for i, j in np.argwhere(~self.walls))

    @cached_property
    def free_points(self) -> FloatArray:
        """The points that stand for the free cells, shape `[num_cells, 2]`."""
        return np.array([self.cell_to_xy(cell) for cell in self.free_cells])

    def cell_to_xy(self, cell: Cell) -> FloatArray:
        """Return the point (x, y) that stands for a cell, shape `[2]`, meters."""
        num_rows, num_columns = self.walls.shape
        x = (cell[1] + 0.5 - num_columns / 2) * self.cell_size + self.cell_offset
        y = (num_rows / 2 - cell[0] - 0.5) * self.cell_size - self.cell_offset
        return np.array([x, y])

    def xy_to_cell(self, x: float, y: float) -> Cell:
        """Return row and column of the cell that contains a point, even outside."""
        num_rows, num_columns = self.walls.shape
        row = np.floor(num_rows / 2 - y / self.cell_size)
        column = np.floor(x / self.cell_size + num_columns / 2)
        return int(row), int(column)

    def is_free(self, xy: npt.ArrayLike) -> BoolArray:
        """Return which points lie inside a free cell; infinite and NaN ones do not.

        Args:
            xy: Points, shape `[..., 2]`, meters.

        Returns:
            Booleans, shape `[...]`.
        """
        points = np.asarray(xy, dtype=np.float64)
        num_rows, num_columns = self.walls.shape
        # Far outside stands for not finite: floor and comparison are then defined.
        points = np.where(np.isfinite(points), points, -1e9)
        rows = np.floor(num_rows / 2 - points[..., 1] / self.cell_size)
        columns = np.floor(points[..., 0] / self.cell_size + num_columns / 2)
        inside = (rows >= 0) & (rows < num_rows)
        inside = inside & (columns >= 0) & (columns < num_columns)
        i = np.where(inside, rows, 0).astype(np.int64)
        j = np.where(inside, columns, 0).astype(np.int64)
        return np.asarray(inside & ~np.asarray(self.walls[i, j]))

    @property
    def most_noise(self) -> float:
        """Meters by which a cell's point may be moved either way within the cell."""
        return self.cell_size / 2 - abs(self.cell_offset)

    def sample_point(
        self, np_random: np.random.Generator, noise: float = D4RL_NOISE
    ) -> FloatArray:
        """Draw a free cell uniformly and add U(-noise, noise) to each coordinate.

        Args:
            np_random: Source of all randomness.
            noise: Half width of the noise in meters.

        Returns:
            A point, shape `[2]`, meters.
        """
        index = int(np_random.integers(len(self.free_cells)))
        offset = np_random.uniform(-noise, noise, size=2)
        return np.asarray(self.free_points[index] + offset)

    def read_point(
        self, name: str, value: npt.ArrayLike, *, sizes: tuple[int, ...]
    ) -> FloatArray:
        """Check a point or state that a user gave, and return it as an array.

        Args:
            name: Its name in messages.
            value: Position (x, y), perhaps followed by a velocity.
            sizes: The allowed counts of numbers.

        Raises:
            MazeOptionError: The value is no array of numbers of an allowed size.
            MazePositionError: The point is in a wall, outside, or not finite.
        """
        try:
            point = np.array(value, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise MazeOptionError(f"{name} must be numbers, not {value!r}") from error
        if point.ndim != 1 or point.size not in sizes:
            wanted = " or ".join(f"({size},)" for size in sizes)
            raise MazeOptionError(f"{name} must have shape {wanted}, not {point.shape}")
        if not np.isfinite(point).all():
            raise MazePositionError(f"{name} must be finite, not {point.tolist()}")
        if not self.is_free(point[:2]):
            off = np.linalg.norm(self.free_points - point[:2], axis=1)
            x, y = self.free_points[off.argmin()]
            raise MazePositionError(
                f"{name} {point[:2].tolist()} is inside a wall or outside of the maze"
                f" {self.name!r}; the nearest free point of the grid is ({x:g}, {y:g})"
            )
        return point


def _d4rl_layout(
    name: str,
    title: str,
    max_episode_steps: int,
    dataset_steps: int,
    rows: Sequence[str],
) -> MazeLayout:
    """Read a drawing of a maze: `#` is a wall, `.` is free, `G` is the fixed goal."""
    (goal_cell,) = [(i, row.index("G")) for i, row in enumerate(rows) if "G" in row]
    return MazeLayout(
        name=name,
        title=title,
        maze_map=tuple(tuple(int(cell == "#") for cell in row) for row in rows),
        goal_cell=goal_cell,
        max_episode_steps=max_episode_steps,
        dataset_steps=dataset_steps,
        cell_offset=D4RL_CELL_OFFSET,
    )


_UMAZE = _d4rl_layout(
    "umaze",
    "UMaze",
    300,
    1_000_000,
    (
        "#####",
        "#G..#",
        "###.#",
        "#...#",
        "#####",
    ),
)
_MEDIUM = _d4rl_layout(
    "medium",
    "Medium",
    600,
    2_000_000,
    (
        "########",
        "#..##..#",
        "#..#...#",
        "##...###",
        "#..#...#",
        "#.#..#.#",
        "#...#.G#",
        "########",
    ),
)
_LARGE = _d4rl_layout(
    "large",
    "Large",
    800,
    4_000_000,
    (
        "############",
        "#....#.....#",
        "#.##.#.#.#.#",
        "#......#...#",
        "#.####.###.#",
        "#..#.#.....#",
        "##.#.#.#.###",
        "#..#...#.G.#",
        "############",
    ),
)

LAYOUTS: dict[str, MazeLayout] = {
    layout.name: layout for layout in (_UMAZE, _MEDIUM, _LARGE)
}


def get_layout(name: str) -> MazeLayout:
    """Return one of D4RL's layouts by its name.

    Raises:
        MazeOptionError: No such layout.
    """
    check_known("maze layout", name, LAYOUTS, MazeOptionError)
    return LAYOUTS[name]


def layout_of(env: gymnasium.Env[Any, Any]) -> MazeLayout:
    """Return the maze layout of an environment, wrapped or not.

    Raises:
        UnsupportedEnvError: The environment is not a maze.
    """
    unwrapped = getattr(env, "unwrapped", env)
    layout = getattr(unwrapped, "layout", None)
    if isinstance(layout, MazeLayout):
        return layout
    maze = getattr(unwrapped, "maze", None)
    if maze is None or not hasattr(maze, "maze_map"):
        raise UnsupportedEnvError(
            f"{unwrapped!r} is not a maze; pass one of diffuser_envs' mazes or a"
            " Gymnasium-Robotics PointMaze"
        )
    return MazeLayout.from_map(maze.maze_map, cell_size=float(maze.maze_size_scaling))


def neighbors(cell: Cell, moves: Sequence[Cell]) -> list[Cell]:
    """Return the cells that moves lead to, in their order."""
    return [(cell[0] + i, cell[1] + j) for i, j in moves]


def steps_to(
    target: Cell, free: Container[Cell], moves: Sequence[Cell]
) -> dict[Cell, int]:
    """Return how many cells it is to a target, from all cells that can reach it.

    The nearest cells come first; of equally near ones, those that come first in the
    order of the moves.

    Args:
        target: Where to.
        free: Cells that can be crossed.
        moves: Rows and columns to a neighbor.
    """
    steps, queue = {target: 0}, deque([target])
    while queue:
        cell = queue.popleft()
        for neighbor in neighbors(cell, moves):
            if neighbor in free and neighbor not in steps:
                steps[neighbor] = steps[cell] + 1
                queue.append(neighbor)
    return steps


def read_reset_options(
    layout: MazeLayout, options: Mapping[str, Any] | None
) -> tuple[FloatArray | None, FloatArray | None]:
    """Read `reset(options={"goal": ..., "start": ...})` of a maze.

    Returns:
        Goal (x, y), shape `[2]`, and start (x, y, vx, vy), shape `[4]`, in meters and
        meters per second; None for an option that is not given.

    Raises:
        MazeOptionError: An option is unknown or has the wrong shape.
        MazePositionError: A goal or start is in a wall, outside, or not finite.
    """
    given = check_options(options, RESET_OPTIONS, MazeOptionError)
    goal, start = given.get("goal"), given.get("start")
    if goal is not None:
        goal = layout.read_point("goal", goal, sizes=(2,))
    if start is not None:
        start = layout.read_point("start", start, sizes=(2, 4))
        start = np.concatenate([start, np.zeros(4 - start.size)])
    return goal, start
