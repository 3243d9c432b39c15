"""Where the walls of a maze are, in meters, whichever package the maze is from.

`Walls.of(env)` reads the maps of this package's mazes, of Gymnasium-Robotics and of
OGBench. They differ in where the origin is, and in whether the first row is at the top.
Pictures and the playground draw walls. Planners never see them: they learn from data.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RIM = 0.6  # share of the outermost cells that a picture cuts off
BETWEEN = 8  # points of a path that are looked at for each of its steps


@dataclass(frozen=True, kw_only=True, eq=False)
class Walls:
    """The walls of a maze from above.

    Attributes:
        cells: `[rows, columns]`, True is a wall. The first row is at the top: y grows
            towards the first row, x towards the last column.
        cell_size: Side of a cell in meters.
        corner: x and y of the lower left corner in meters.
    """

    cells: np.ndarray
    cell_size: float
    corner: tuple[float, float]

    @classmethod
    def of(cls, env: Any) -> Walls | None:
        """Return the walls of an environment; None if it is no maze that is known."""
        unwrapped = getattr(env, "unwrapped", env)
        maze: Any = getattr(unwrapped, "maze", None)  # Gymnasium-Robotics'
        if _is_map(unwrapped) and hasattr(unwrapped, "cell_size"):
            return cls.centered(unwrapped.maze_map, float(unwrapped.cell_size))
        if _is_map(maze) and hasattr(maze, "maze_size_scaling"):
            return cls.centered(maze.maze_map, float(maze.maze_size_scaling))
        if _is_map(unwrapped) and hasattr(unwrapped, "ij_to_xy"):
            # OGBench's: the first row is the lowest one, and no cell is at the middle.
            first = np.array(unwrapped.ij_to_xy((0, 0)), float)
            size = float(np.max(np.array(unwrapped.ij_to_xy((1, 1))) - first))
            x, y = first - size / 2
            cells = _is_wall(unwrapped.maze_map)[::-1]
            return cls(cells=cells, cell_size=size, corner=(float(x), float(y)))
        return None

    @classmethod
    def centered(
        cls, maze_map: Sequence[Sequence[Any]] | np.ndarray, cell_size: float = 1.0
    ) -> Walls:
        """Return the walls of a map whose middle is the origin.

        Args:
            maze_map: Rows of cells from top to bottom, 1 is a wall.
            cell_size: Side of a cell in meters.
        """
        cells = _is_wall(maze_map)
        x, y = -np.array(cells.shape[::-1]) * cell_size / 2
        return cls(cells=cells, cell_size=cell_size, corner=(float(x), float(y)))

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Left, right, bottom and top in meters."""
        (left, bottom), size = self.corner, self.cell_size
        rows, columns = self.cells.shape
        return left, left + columns * size, bottom, bottom + rows * size

    @property
    def shown(self) -> tuple[float, float, float, float]:
        """Left, right, bottom and top of a picture, which cuts off most of the rim."""
        left, right, bottom, top = self.extent
        cut = RIM * self.cell_size
        return left + cut, right - cut, bottom + cut, top - cut

    def boxes(self) -> np.ndarray:
        """Return the low and high corners `[walls, 2, 2]` of all walls, in meters.

        The outermost cells are cut off where a picture of the maze ends.
        """
        i, j = np.nonzero(self.cells)
        rows = len(self.cells)
        low = np.stack([j, rows - 1 - i], axis=1) * self.cell_size + self.corner
        left, right, bottom, top = self.shown
        corners = np.stack([low, low + self.cell_size], axis=1)
        return corners.clip((left, bottom), (right, top))

    def contain(self, points: np.ndarray) -> np.ndarray:
        """Return which of the points `[..., 2]` are inside a wall, or outside the maze.

        Args:
            points: x and y in meters.
        """
        rows, columns = self.cells.shape
        x, y = np.moveaxis((points - np.array(self.corner)) / self.cell_size, -1, 0)
        inside = (x >= 0) & (x < columns) & (y >= 0) & (y < rows)
        j = np.where(inside, x, 0).astype(int)
        i = rows - 1 - np.where(inside, y, 0).astype(int)
        solid = self.cells[i, j]
        found: np.ndarray = solid | ~inside
        return found

    def cross(self, path: np.ndarray) -> bool:
        """Return whether a path `[n, 2]` leads through a wall.

        Args:
            path: x and y in meters.
        """
        return bool(self.contain(with_between(path)).any())


def with_between(path: np.ndarray) -> np.ndarray:
    """Return points `[m, d]` on the lines that join those of a path `[n, d]`."""
    shares = np.linspace(0.0, 1.0, BETWEEN, endpoint=False)[:, None, None]
    between = path[:-1] + shares * np.diff(path, axis=0)
    return np.concatenate([between.reshape(-1, path.shape[1]), path[-1:]])


def _is_map(maze: Any) -> bool:
    """Return whether something has a map: rows of cells, all of them equally long."""
    rows: Any = getattr(maze, "maze_map", None)
    with contextlib.suppress(TypeError):  # none, or not made of rows
        return len({len(row) for row in rows}) == 1
    return False


def _is_wall(maze_map: Sequence[Sequence[Any]] | np.ndarray) -> np.ndarray:
    """Return which cells are walls; some maps mark starts and goals with letters."""
    return np.array([[cell == 1 for cell in row] for row in maze_map])
