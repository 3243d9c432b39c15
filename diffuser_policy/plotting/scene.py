"""Scene: the maze, the goal and the columns of an observation that are drawn.

x points to the right and y upwards, as in PointMaze: the cell in row i and column j of
a maze of h rows and w columns is centered at (j + 1/2 - w/2, h/2 - i - 1/2) times the
cell size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffuser_policy.columns.layout import TrajectoryLayout
from diffuser_policy.errors import ConfigError
from diffuser_policy.guides.guide import Guide, Mark
from diffuser_policy.planning.plan import Plan, interpolate

MazeMap = Sequence[Sequence[int | str]]

HIDDEN_WALL = 0.6  # share of the outermost cells that a picture cuts off


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """What a plan is drawn in.

    Attributes:
        columns: The two columns of a planned observation to draw, as x and y.
        labels: Names of the axes.
        maze_map: Rows of cells from top to bottom, 1 is a wall; none: an open plane.
        cell_size: Side of a cell in meters.
        goal: `[2]` goal, in meters, if there is one.
        goal_radius: Distance in meters that counts as reaching it, if it is known.
        marks: What guides want, in the columns that are drawn.
    """

    columns: tuple[int, int]
    labels: tuple[str, str] = ("x (m)", "y (m)")
    maze_map: MazeMap | None = None
    cell_size: float = 1.0
    goal: np.ndarray | None = None
    goal_radius: float | None = None
    marks: tuple[Mark, ...] = ()

    @classmethod
    def of(
        cls,
        env: Any,
        layout: TrajectoryLayout,
        observation: Any,
        *,
        guide: Guide | None = None,
    ) -> Scene:
        """Read the scene off an environment that was just reset.

        Args:
            env: Mazes offer `maze_map` and `cell_size`, or Gymnasium-Robotics' `maze`.
            layout: The planner's; its "position", or its goal, is what is drawn.
            observation: What `reset` returned.
            guide: What the plans are steered by.

        Raises:
            ConfigError: Observations of a single column have no map.
        """
        unwrapped = getattr(env, "unwrapped", env)
        every = tuple(range(layout.observation_dim))
        goal_columns = layout.aliases.get("goal", ())
        named = layout.aliases.get("position", ())
        columns = next((c for c in (named, goal_columns, every) if len(c) >= 2), None)
        if columns is None:
            raise ConfigError(
                "A picture needs two columns of the observation, and there is one."
            )
        goal = None
        if goal_columns[:2] == columns[:2]:
            goal = np.asarray(observation["desired_goal"], np.float64)[:2]
        maze_map, cell_size = _find_maze(unwrapped)
        return cls(
            columns=(columns[0], columns[1]),
            labels=("x (m)", "y (m)")
            if maze_map is not None
            else (_column_label(layout, columns[0]), _column_label(layout, columns[1])),
            maze_map=maze_map,
            cell_size=cell_size,
            goal=goal,
            goal_radius=getattr(unwrapped, "success_radius", None),
            marks=tuple(
                mark
                for mark in ([] if guide is None else guide.marks())
                if mark.columns in layout.aliases
                and layout.aliases[mark.columns][:2] == columns[:2]
            ),
        )

    @property
    def extent(self) -> tuple[float, float] | None:
        """Half width and half height of the maze's picture in meters."""
        if self.maze_map is None:
            return None
        sizes = len(self.maze_map[0]), len(self.maze_map)
        x, y = (self.cell_size * (0.5 * size - HIDDEN_WALL) for size in sizes)
        return x, y

    def arrival(self, plan: Plan, row: int = 0) -> int | None:
        """Return the first env step at which a plan is at the goal, if it ever is.

        Args:
            plan: What was planned.
            row: Which plan of the batch.
        """
        if self.goal is None:
            return None
        steps = np.arange(plan.durations[row] + 1)
        every = np.full(len(steps), row)
        planned = interpolate(
            plan.observations[every], plan.lengths[every], plan.stride, steps
        )
        distance = np.linalg.norm(self.points(planned) - self.goal, axis=1)
        near = np.flatnonzero(distance <= (self.goal_radius or 0.0))
        return int(near[0]) if len(near) else None

    def points(self, observations: np.ndarray) -> np.ndarray:
        """Return the points `[..., 2]` of observations `[..., observation]`."""
        drawn: np.ndarray = np.asarray(observations)[..., list(self.columns)]
        return drawn


def _column_label(layout: TrajectoryLayout, column: int) -> str:
    """Return a column of planned observations by a name of its own, as "tool[0]".

    Args:
        layout: Names columns, or does not.
        column: Which one.
    """
    for name, columns in layout.aliases.items():
        if name not in {"position", "velocity", "goal"} and column in columns:
            return f"{name}[{columns.index(column)}]"
    return f"observation[{column}]"


def _find_maze(unwrapped: Any) -> tuple[MazeMap | None, float]:
    """Return a maze's map and cell size, ours or Gymnasium-Robotics'."""
    maze: Any = getattr(unwrapped, "maze", None)
    if hasattr(unwrapped, "maze_map"):
        return unwrapped.maze_map, float(unwrapped.cell_size)
    if hasattr(maze, "maze_map"):
        return maze.maze_map, float(maze.maze_size_scaling)
    return None, 1.0
