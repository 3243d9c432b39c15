"""What pictures are made of: each function draws one thing on Matplotlib axes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from diffuser_policy.errors import require_extra
from diffuser_policy.guides.guide import Mark
from diffuser_policy.planning.plan import Plan
from diffuser_policy.plotting.scene import HIDDEN_WALL, MazeMap, Scene

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import LineCollection
    from matplotlib.colors import Colormap

FLOOR, WALL = "#f4f5f8", "#3d465c"
START, GOAL = "#159560", "#d63031"
PLAN, CANDIDATE = "#2b5fd9", "#8b97b5"
MARK = "#7b3fb5"
TIME_COLORS = (START, "#f0b429", GOAL)  # from start to goal, visible on floor and wall
SETTLED = 0.03  # of the path's size: how near to its end a path counts as over


def draw_maze(ax: Axes, maze_map: MazeMap, *, cell_size: float = 1.0) -> None:
    """Draw the walls of a maze, and limit the axes to it and a rim of outer wall.

    Args:
        ax: Matplotlib axes.
        maze_map: Rows of cells from top to bottom; 1 is a wall.
        cell_size: Side of a cell in meters.
    """
    colors = require_extra("matplotlib.colors", "plot")
    walls = np.array([[cell == 1 for cell in row] for row in maze_map])
    x, y = np.array(walls.shape[::-1]) * cell_size / 2
    ax.imshow(
        walls,
        cmap=colors.ListedColormap([FLOOR, WALL]),
        vmin=0,
        vmax=1,
        extent=(-x, x, -y, y),
        interpolation="nearest",
        zorder=0,
    )
    x, y = (half - HIDDEN_WALL * cell_size for half in (x, y))
    ax.set(xlim=(-x, x), ylim=(-y, y), xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def draw_scene(ax: Axes, scene: Scene) -> None:
    """Draw the maze, or an empty plane, and the goal's disc."""
    patches = require_extra("matplotlib.patches", "plot")
    if scene.maze_map is not None:
        draw_maze(ax, scene.maze_map, cell_size=scene.cell_size)
    else:
        ax.set(xlabel=scene.labels[0], ylabel=scene.labels[1], facecolor=FLOOR)
        ax.grid(color="white")
        ax.set_axisbelow(True)
        ax.spines[:].set_visible(False)
    ax.set_aspect(
        "equal", adjustable="box" if scene.maze_map is not None else "datalim"
    )
    if scene.goal is not None and scene.goal_radius is not None:
        x, y = scene.goal
        ax.add_patch(
            patches.Circle(
                (x, y), scene.goal_radius, facecolor=GOAL, alpha=0.18, zorder=1
            )
        )
        ax.add_patch(
            patches.Circle(
                (x, y), scene.goal_radius, fill=False, edgecolor=GOAL, lw=1, zorder=1
            )
        )
    for mark in scene.marks:
        draw_mark(ax, mark)


def draw_mark(ax: Axes, mark: Mark) -> None:
    """Draw a region or point of a guide; what is to be avoided is hatched."""
    patches = require_extra("matplotlib.patches", "plot")
    low, high = np.array(mark.low[:2]), np.array(mark.high[:2])
    center, size = (low + high) / 2, high - low
    if not size.any():
        ax.plot(
            *center,
            marker="X",
            ms=11,
            ls="none",
            mfc=MARK,
            mec="white",
            zorder=6,
            label=mark.kind,
        )
        return
    style: dict[str, Any] = {"edgecolor": MARK, "lw": 1.4, "zorder": 2}
    style["label"] = mark.kind
    if mark.kind == "avoid":
        style |= {"facecolor": MARK + "40", "hatch": "////"}
    else:
        style |= {"fill": False, "ls": (0, (4, 2))}
    shape = (
        patches.Ellipse(center, *size, **style)
        if mark.round
        else patches.Rectangle(low, *size, **style)
    )
    ax.add_patch(shape)


def draw_ends(ax: Axes, scene: Scene, start: np.ndarray) -> None:
    """Mark the start `[2]` and the goal."""
    style: dict[str, Any] = {"ls": "none", "mec": "white", "mew": 1.2, "zorder": 6}
    ax.plot(*start, marker="o", ms=10, mfc=START, label="start", **style)
    if scene.goal is not None:
        ax.plot(*scene.goal, marker="*", ms=16, mfc=GOAL, label="goal", **style)


def draw_plan(
    ax: Axes, plan: Plan, scene: Scene, *, row: int = 0, candidates: bool = True
) -> None:
    """Draw one plan of a batch: a dot for each planning step.

    Args:
        ax: Matplotlib axes.
        plan: What was planned.
        scene: Where.
        row: Which plan of the batch.
        candidates: Draw what it was chosen from as well.
    """
    length, label = plan.lengths[row], "other candidates"
    for index, candidate in enumerate(scene.points(plan.candidates[row, :, :length])):
        if candidates and index != plan.chosen[row]:
            ax.plot(
                *candidate.T, color=CANDIDATE, lw=1, alpha=0.6, label=label, zorder=2
            )
            label = "_"  # one entry in the legend stands for all
    points = scene.points(plan.path(row))
    ax.plot(
        *points.T,
        color=PLAN,
        lw=2 if candidates else 1,
        ls="-" if candidates else (0, (3, 2)),
        marker="o" if candidates else None,
        ms=3.5,
        label="plan",
        zorder=4 if candidates else 3,
    )


def draw_rollout(ax: Axes, points: np.ndarray) -> LineCollection:
    """Draw the executed path, colored by env step up to when it came to rest.

    Args:
        ax: Matplotlib axes.
        points: `[steps + 1, 2]`.

    Returns:
        What a color bar explains.
    """
    collections = require_extra("matplotlib.collections", "plot")
    segments = np.stack([points[:-1], points[1:]], axis=1)
    colored: LineCollection = collections.LineCollection(
        segments, cmap=_time_colors(), linewidths=2.6, capstyle="round", zorder=5
    )
    colored.set_array(np.arange(len(segments)))
    away = np.linalg.norm(points - points[-1], axis=1)
    last = np.flatnonzero(away > SETTLED * np.ptp(points, axis=0).max())
    colored.set_clim(0, max(last[-1] + 1 if len(last) else 0, 1))
    ax.add_collection(colored, autolim=True)
    return colored


def draw_chain_step(ax: Axes, chain: np.ndarray, index: int, scene: Scene) -> None:
    """Draw one denoising step of a plan, colored from its start to its end.

    Args:
        ax: Matplotlib axes.
        chain: `[denoising steps + 1, steps, 2]`.
        index: Which denoising step; 0 is noise.
        scene: Where.
    """
    draw_scene(ax, scene)
    points, last = chain[index], len(chain) - 1
    ax.plot(*points.T, color=CANDIDATE, lw=0.8, alpha=0.5, zorder=3)
    ax.scatter(
        points[:, 0],
        points[:, 1],
        c=np.arange(len(points)),
        cmap=_time_colors(),
        s=18,
        zorder=4,
        edgecolors="white",
        linewidths=0.4,
    )
    if scene.maze_map is None:
        _limit_to(ax, chain[-1] if scene.goal is None else [*chain[-1], scene.goal])
    draw_ends(ax, scene, points[0])
    names = {0: "noise", last: f"plan, after {counted(last, 'denoising step')}"}
    ax.set_title(names.get(index, f"denoising step {index} of {last}"), fontsize=10)


def _limit_to(ax: Axes, points: ArrayLike) -> None:
    """Show a square around points `[n, 2]`, wherever else noise may lie."""
    low, high = np.min(points, axis=0), np.max(points, axis=0)
    middle, half = (low + high) / 2, 0.75 * (high - low).max() + 1e-6
    (left, bottom), (right, top) = middle - half, middle + half
    ax.set_aspect("equal", adjustable="box")
    ax.set(xlim=(left, right), ylim=(bottom, top))


def counted(number: int, noun: str) -> str:
    """Return a number with its noun in singular or plural."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _time_colors() -> Colormap:
    colors = require_extra("matplotlib.colors", "plot")
    colormap: Colormap = colors.LinearSegmentedColormap.from_list("time", TIME_COLORS)
    return colormap
