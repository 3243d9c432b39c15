"""Obstacles on a path: the two largest discs that leave a way around.

A disc keeps the ball's *center* out, and walls keep it at a distance of the ball's
radius. The search for a way runs on a fine grid of positions of the center.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffuser_envs.maze.layouts import BoolArray, FloatArray

GRID = 0.025  # m
BALL_RADIUS = 0.1  # m
CLEARANCE = 0.1  # m, to walls and discs, on a way around
END_CLEARANCE = 0.2  # m, of start and goal
DETOUR = 1.0  # m that a way around may be longer, counting a diagonal step as one
ARRIVED = 0.1  # m
RADII = (0.5, 0.45, 0.4, 0.35, 0.3, 0.25, 0.2, 0.15, 0.1)  # m


@dataclass(frozen=True, kw_only=True, eq=False)
class Discs:
    """Discs of one size.

    Attributes:
        centers: `[n, 2]` in meters.
        radius: In meters.
    """

    centers: FloatArray
    radius: float

    def gap(self, path: FloatArray) -> float:
        """Return the least distance of a path's points to a disc; negative inside.

        Args:
            path: `[steps, 2]` in meters, one point for every env step.
        """
        off = np.linalg.norm(path[:, None] - self.centers, axis=-1)
        return float(off.min() - self.radius)


class FreeSpace:
    """The grid positions in a maze where the ball's center may be."""

    def __init__(self, maze_map: Sequence[Sequence[int]]) -> None:
        """Measure the distance of every grid point to the walls.

        Args:
            maze_map: Rows of cells of 1 m from top to bottom, 1 is a wall.
        """
        walls = np.array(maze_map) == 1
        height, width = walls.shape
        x = np.arange(GRID / 2, width, GRID) - width / 2
        y = np.arange(GRID / 2, height, GRID) - height / 2
        self.points: FloatArray = np.stack(np.meshgrid(x, y, indexing="ij"), axis=-1)
        self.distance = np.full(self.points.shape[:2], np.inf)
        for row, column in np.argwhere(walls):
            center = np.array([column + 0.5 - width / 2, height / 2 - row - 0.5])
            off = np.maximum(np.abs(self.points - center) - 0.5, 0.0)
            self.distance = np.minimum(self.distance, np.linalg.norm(off, axis=-1))
        self.free: BoolArray = self.distance >= BALL_RADIUS + CLEARANCE

    def place_discs(self, path: FloatArray, goal: FloatArray) -> Discs | None:
        """Return the largest two discs on a path that leave a way around, if any do.

        Their centers are at a third and two thirds of the path's length. Start and goal
        lie outside, and the way around is not much longer than the direct one.

        Args:
            path: `[steps, 2]` positions from the start on, in meters; steps after the
                arrival do not count.
            goal: `[2]` in meters.
        """
        near = np.linalg.norm(path - goal, axis=1)
        arrived = np.flatnonzero(near < ARRIVED)
        path = path[: (arrived[0] if len(arrived) else near.argmin()) + 1]
        steps = np.linalg.norm(np.diff(path, axis=0), axis=1)
        length = np.concatenate([[0.0], steps.cumsum()])
        centers = path[np.searchsorted(length, length[-1] * np.array([1, 2]) / 3)]
        direct = self.way(path[0], goal)
        if direct is None:
            return None
        ends = np.linalg.norm(centers[:, None] - np.stack([path[0], goal]), axis=-1)
        for radius in RADII:
            discs = Discs(centers=centers, radius=radius)
            if ends.min() < radius + END_CLEARANCE:
                continue
            around = self.way(path[0], goal, discs)
            if around is not None and around <= direct + DETOUR:
                return discs
        return None

    def distance_to_walls(self, point: FloatArray) -> float:
        """Return the distance of a point `[2]` to the nearest wall in meters."""
        off = np.linalg.norm(self.points - point, axis=-1)
        return float(self.distance.flat[off.argmin()])

    def way(
        self, start: FloatArray, goal: FloatArray, discs: Discs | None = None
    ) -> float | None:
        """Return the Chebyshev length of the shortest way in meters, if there is one.

        The way leads from the free point nearest to the start to that nearest to the
        goal.

        Args:
            start: `[2]` in meters.
            goal: `[2]` in meters.
            discs: Obstacles.
        """
        free = self.free
        if discs is not None:
            off = np.linalg.norm(self.points[:, :, None] - discs.centers, axis=-1)
            free = free & (off.min(axis=-1) >= discs.radius + CLEARANCE)
        first, last = self._nearest(start), self._nearest(goal)
        if not free[first] or not free[last]:
            return None
        seen = np.zeros_like(free)
        seen[first] = True
        front, count = seen.copy(), 0
        while not seen[last]:
            front = _spread(_spread(front).T).T & free & ~seen
            if not front.any():
                return None
            seen |= front
            count += 1
        return count * GRID

    def _nearest(self, point: FloatArray) -> tuple[int, int]:
        """Return the index of the nearest free grid point."""
        off = np.linalg.norm(self.points - point, axis=-1)
        index = np.where(self.free, off, np.inf).argmin()
        row, column = np.unravel_index(index, off.shape)
        return int(row), int(column)


def _spread(front: BoolArray) -> BoolArray:
    """Return a set of grid points and their neighbors along the first axis."""
    wider = front.copy()
    wider[1:] |= front[:-1]
    wider[:-1] |= front[1:]
    return wider
