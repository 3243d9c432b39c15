r"""A guide for mazes: keep a plan off the walls.

A planner has learned where the walls are from data in which nothing touches them. Other
guides may push a plan away from that data and through a wall; this guide pushes back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffuser_envs.errors import MazeOptionError
from diffuser_envs.maze.layouts import BoolArray, FloatArray, get_layout
from diffuser_policy.errors import GuideError
from diffuser_policy.guides.builtin import checked_number
from diffuser_policy.guides.guide import Guide
from diffuser_policy.guides.trajectory import Trajectory

SOFTENING = 1e-4  # m; at a wall's very corner, distances stay differentiable


@dataclass(frozen=True, kw_only=True)
class MazeWalls(Guide):
    r"""Keeps a path at a distance from the walls of a maze.

    $$J = -\tfrac12 \sum_t \max(c - d_t, 0)^2$$

    with the distance $d_t$ in meters of planning step t to the nearest wall, negative
    inside a wall.

        make_guide("maze-walls", layout="large")

    Attributes:
        layout: The maze: "umaze", "medium" or "large".
        clearance: c, in meters; the ball has a radius of 0.1 m.
        columns: Name of the position columns.
    """

    layout: str
    clearance: float = 0.15
    columns: str = "position"

    def __post_init__(self) -> None:
        """Check the maze and the clearance.

        Raises:
            GuideError: No such maze, or a clearance outside of its corridors.
        """
        try:
            get_layout(self.layout)
        except MazeOptionError as error:
            raise GuideError(f"MazeWalls.layout: {error}.") from error
        checked_number(self, "clearance")
        if self.clearance >= 0.5:
            raise GuideError(
                f"MazeWalls.clearance must be in [0, 0.5) of the corridors' meter, got "
                f"{self.clearance!r}."
            )

    def __call__(self, trajectory: Trajectory) -> Tensor:
        """Return minus half the squared shortfalls of distance."""
        maze = get_layout(self.layout)
        path = trajectory[self.columns] / maze.cell_size
        edge = path.new_tensor(maze.walls.shape[::-1]) / 2  # all beyond it is wall
        walls = _distance(path.clamp(-edge, edge), _centers(maze.walls))
        free = _distance(path, _centers(~maze.walls))
        shortfall = torch.relu(self.clearance - (walls - free) * maze.cell_size)
        return -0.5 * shortfall.square().sum(dim=1)


def _centers(cells: BoolArray) -> FloatArray:
    """Return the centers `[n, 2]` of some cells, in cells from the maze's middle."""
    height, width = cells.shape
    rows, columns = np.nonzero(cells)
    return np.stack([columns + 0.5 - width / 2, height / 2 - rows - 0.5], axis=1)


def _distance(path: Tensor, centers: FloatArray) -> Tensor:
    """Return the distance `[batch, steps]` to the nearest of some unit squares."""
    off = torch.relu((path[:, :, None] - path.new_tensor(centers)).abs() - 0.5)
    squared = off.square().sum(dim=-1).amin(dim=-1)
    return (squared + SOFTENING**2).sqrt() - SOFTENING
