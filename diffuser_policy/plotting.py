"""Pictures of plans: the maze, the candidates, the rollout, the denoising chain.

    scene = Scene.of(env, policy.planner.layout, observation)
    plan = policy.plan(observation, keep_chain=True)
    save_figure(plan_figure(plan, scene), Path("plan.png"))
    save_chain_gif(plan, scene, Path("chain.gif"))

Drawn with Matplotlib's objects on its Agg canvas: no display, no global state.

x points to the right and y upwards, as in PointMaze: the cell in row i and column j of
a maze of h rows and w columns is centered at (j + 1/2 - w/2, h/2 - i - 1/2) times the
cell size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from diffuser_policy.columns.layout import TrajectoryLayout
from diffuser_policy.envs import goal_radius
from diffuser_policy.errors import ConfigError, require_extra
from diffuser_policy.files import replaced_file
from diffuser_policy.guides.guide import Guide, Mark
from diffuser_policy.observations import numbers
from diffuser_policy.planning.plan import Plan, interpolate
from diffuser_policy.walls import Walls
from diffuser_policy.words import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import LineCollection
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

    from diffuser_policy.policy import DiffuserPolicy

FLOOR, WALL = "#f4f5f8", "#3d465c"
START, GOAL = "#159560", "#d63031"
PLAN, CANDIDATE = "#2b5fd9", "#8b97b5"
MARK = "#7b3fb5"
TIME_COLORS = (START, "#f0b429", GOAL)  # from start to goal, visible on floor and wall
PINNED = 1e-3  # meters: plans are pinned to goals, up to rounding
SETTLED = 0.03  # of the path's size: how near to its end a path counts as over
CHAIN_PANELS = 6  # denoising steps in one row, evenly spaced
PANEL_WIDTH = 5.2  # inches
MOST_COLUMNS = 3  # of panels
DPI = 130
GIF_DPI = 90
GIF_SECONDS, GIF_FRAME_LIMIT, GIF_LAST = 3.0, (0.05, 0.6), 2.0


# --- where --------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """What a plan is drawn in.

    Attributes:
        columns: The two columns of a planned observation to draw, as x and y.
        labels: Names of the axes.
        walls: Of the maze; none: an open plane.
        goal: `[2]` goal, in meters, if there is one.
        goal_radius: Distance in meters that counts as reaching it, if it is known.
        marks: What guides want, in the columns that are drawn.
        route: `[places, 2]` where plans lead one after the other, if not straight to
            the goal.
    """

    columns: tuple[int, int]
    labels: tuple[str, str] = ("x (m)", "y (m)")
    walls: Walls | None = None
    goal: np.ndarray | None = None
    goal_radius: float | None = None
    marks: tuple[Mark, ...] = ()
    route: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        env: Any,
        layout: TrajectoryLayout,
        observation: Any,
        *,
        goal: np.ndarray | None = None,
        guide: Guide | None = None,
        route: np.ndarray | None = None,
    ) -> Scene:
        """Read the scene off an environment that was just reset.

        Args:
            env: Any; `Walls.of` knows which are mazes.
            layout: The planner's; its "position", or its goal, is what is drawn.
            observation: What `reset` returned.
            goal: What plans lead to; the observation's `desired_goal` if not given.
            guide: What the plans are steered by.
            route: `[places, goal]` of `DiffuserPolicy.routes`.

        Raises:
            ConfigError: Observations of a single column have no map.
        """
        every = tuple(range(layout.observation_dim))
        goal_columns = layout.aliases.get("goal", ())
        named = layout.aliases.get("position", ())
        columns = next((c for c in (named, goal_columns, every) if len(c) >= 2), None)
        if columns is None:
            raise ConfigError(
                "A picture needs two columns of the observation, and there is one."
            )
        if goal is None and isinstance(observation, Mapping):
            goal = observation.get("desired_goal")
        if goal is not None:
            aimed = goal_columns[:2] == columns[:2]
            goal = np.array(numbers(goal)[:2]) if aimed else None
        if goal is None or (route is not None and len(route) < 2):
            route = None
        walls = Walls.of(env)
        return cls(
            columns=(columns[0], columns[1]),
            labels=("x (m)", "y (m)")
            if walls is not None
            else (_column_label(layout, columns[0]), _column_label(layout, columns[1])),
            walls=walls,
            goal=goal,
            goal_radius=goal_radius(env),
            route=None if route is None else route[:, :2],
            marks=tuple(
                mark
                for mark in ([] if guide is None else guide.marks())
                if mark.columns in layout.aliases
                and layout.aliases[mark.columns][:2] == columns[:2]
            ),
        )

    @classmethod
    def of_policy(cls, policy: DiffuserPolicy, env: Any, observation: Any) -> Scene:
        """Read the scene off an environment, with what a policy plans for in it.

        Args:
            policy: Its goal, its guide and its route are drawn.
            env: Just reset.
            observation: What `reset` returned.

        Raises:
            ConfigError: Observations of a single column have no map.
            ObservationError: An observation that cannot be planned from.
        """
        _, goals = policy.read(observation)
        layout = policy.planner.layout
        return cls.of(
            env,
            layout,
            observation,
            goal=None if goals is None else goals[0],
            guide=policy.config.guide,
            route=policy.routes(observation)[0] if layout.goal_conditioned else None,
        )

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
        near = np.flatnonzero(distance <= max(self.goal_radius or 0.0, PINNED))
        return int(near[0]) if len(near) else None

    def points(self, observations: np.ndarray) -> np.ndarray:
        """Return the points `[..., 2]` of observations `[..., observation]`."""
        drawn: np.ndarray = np.asarray(observations)[..., list(self.columns)]
        return drawn


def _column_label(layout: TrajectoryLayout, column: int) -> str:
    """Return a name of a planned observation's column, as "tool[0]"."""
    for name, columns in layout.aliases.items():
        if name not in {"position", "velocity", "goal"} and column in columns:
            return f"{name}[{columns.index(column)}]"
    return f"observation[{column}]"


# --- one thing each -----------------------------------------------------------------


def draw_scene(ax: Axes, scene: Scene) -> None:
    """Draw the maze, or an empty plane, and the goal's disc."""
    patches = require_extra("matplotlib.patches", "plot")
    if scene.walls is not None:
        colors = require_extra("matplotlib.colors", "plot")
        left, right, bottom, top = scene.walls.shown
        ax.imshow(
            scene.walls.cells,
            cmap=colors.ListedColormap([FLOOR, WALL]),
            vmin=0,
            vmax=1,
            extent=scene.walls.extent,
            interpolation="nearest",
            zorder=0,
        )
        ax.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[])
    else:
        ax.set(xlabel=scene.labels[0], ylabel=scene.labels[1], facecolor=FLOOR)
        ax.grid(color="white")
        ax.set_axisbelow(True)
    ax.spines[:].set_visible(False)
    ax.set_aspect("equal", adjustable="box" if scene.walls else "datalim")
    if scene.goal is not None and scene.goal_radius is not None:
        x, y = scene.goal
        for style in (
            {"fc": GOAL, "alpha": 0.18},
            {"fill": False, "ec": GOAL, "lw": 1},
        ):
            disc = patches.Circle((x, y), scene.goal_radius, zorder=1, **style)
            ax.add_patch(disc)
    for mark in scene.marks:
        draw_mark(ax, mark)


def draw_mark(ax: Axes, mark: Mark) -> None:
    """Draw a region or point of a guide; what is to be avoided is hatched."""
    patches = require_extra("matplotlib.patches", "plot")
    style: dict[str, Any]
    low, high = np.array(mark.low[:2]), np.array(mark.high[:2])
    center, size = (low + high) / 2, high - low
    if not size.any():
        style = {"marker": "X", "ms": 11, "ls": "none", "mfc": MARK, "mec": "white"}
        ax.plot(*center, zorder=6, label=mark.kind, **style)
        return
    style = {"ec": MARK, "lw": 1.4, "zorder": 2, "label": mark.kind}
    if mark.kind == "avoid":
        style |= {"fc": MARK + "40", "hatch": "////"}
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


def draw_route(ax: Axes, scene: Scene, start: np.ndarray) -> None:
    """Draw the way over landmarks from a start `[2]`, if there is one."""
    if scene.route is not None:
        points = np.concatenate([start[None], scene.route])
        ax.plot(*points.T, color=CANDIDATE, lw=1.2, ls=":", zorder=3)
        ax.plot(
            *scene.route[:-1].T, ls="none", marker=".", color=MARK, label="landmark"
        )


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
    sampled = plan.candidates[row, : plan.num_candidates[row], :length]
    for index, candidate in enumerate(scene.points(sampled)):
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
    if scene.walls is None:
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


def _time_colors() -> Colormap:
    colors = require_extra("matplotlib.colors", "plot")
    colormap: Colormap = colors.LinearSegmentedColormap.from_list("time", TIME_COLORS)
    return colormap


# --- whole pictures -----------------------------------------------------------------


def plan_figure(
    plan: Plan,
    scene: Scene,
    *,
    row: int = 0,
    rollout: np.ndarray | None = None,
    title: str = "",
) -> Figure:
    """Draw a plan among its candidates and, beside it, how it was followed.

    A plan of one action has no path: then only what happened is drawn, if it is given.

    Args:
        plan: What was planned.
        scene: Where.
        row: Which plan of the batch.
        rollout: `[steps + 1, observation]` what happened.
        title: Above everything.

    Raises:
        MissingExtraError: Matplotlib is not installed.
    """
    duration = int(plan.durations[row])
    planned = duration > 0 or rollout is None
    figure, panels = _figure(scene, planned + (rollout is not None), header=0.35)
    if planned:
        draw_scene(panels[0], scene)
        draw_route(panels[0], scene, scene.points(plan.path(row))[0])
        draw_plan(panels[0], plan, scene, row=row)
        draw_ends(panels[0], scene, scene.points(plan.path(row))[0])
        count = int(plan.num_candidates[row])
        steps = counted(duration, "env step")
        if scene.goal is not None:
            aim = scene.goal if plan.aims is None else plan.aims[row][:2]
            steps += (
                f" to {'the goal' if np.allclose(aim, scene.goal) else 'a subgoal'}"
            )
        panels[0].set_title(f"plan: {steps}, best of {counted(count, 'candidate')}")
    if rollout is not None:
        panel = panels[-1]
        draw_scene(panel, scene)
        if planned:
            draw_plan(panel, plan, scene, row=row, candidates=False)
        colored = draw_rollout(panel, scene.points(rollout))
        draw_ends(panel, scene, scene.points(rollout)[0])
        panel.set_title(f"executed: {counted(len(rollout) - 1, 'env step')}")
        beside = panel.inset_axes((1.02, 0.0, 0.03, 1.0))
        figure.colorbar(colored, cax=beside, label="env step", extend="max")
    figure.suptitle(title, fontweight="bold")
    # One entry for all marks of a kind.
    handles_labels = zip(*panels[0].get_legend_handles_labels(), strict=True)
    entries = {label: handle for handle, label in handles_labels}
    labels, handles = list(entries), list(entries.values())
    figure.legend(
        handles, labels, loc="outside lower center", ncols=len(labels), frameon=False
    )
    return figure


def chain_figure(plan: Plan, scene: Scene, *, row: int = 0, title: str = "") -> Figure:
    """Draw how a plan came out of noise, in a row of panels.

    Args:
        plan: Planned with `keep_chain=True`.
        scene: Where.
        row: Which plan of the batch.
        title: Above everything.

    Raises:
        ConfigError: The plan was made without keeping the chain.
        MissingExtraError: Matplotlib is not installed.
    """
    chain = _chain(plan, scene, row)
    count = min(CHAIN_PANELS, len(chain))
    shown = np.linspace(0, len(chain) - 1, count).round().astype(int)
    figure, panels = _figure(scene, count, header=0.4, width=3.4)
    for panel, index in zip(panels, shown, strict=True):
        draw_chain_step(panel, chain, int(index), scene)
    figure.suptitle(title, fontweight="bold")
    return figure


def save_chain_gif(
    plan: Plan, scene: Scene, path: Path, *, row: int = 0, title: str = ""
) -> None:
    """Write a film of how a plan came out of noise; the last frame stays longest.

    Args:
        plan: Planned with `keep_chain=True`.
        scene: Where.
        path: Replaced atomically.
        row: Which plan of the batch.
        title: Above every frame.

    Raises:
        ConfigError: The plan was made without keeping the chain.
        StorageError: The file could not be written.
        MissingExtraError: Matplotlib or Pillow is not installed.
    """
    image = require_extra("PIL.Image", "plot")
    chain = _chain(plan, scene, row)
    figure, [panel] = _figure(scene, 1, header=0.25)
    figure.suptitle(title, fontweight="bold")
    draw_chain_step(panel, chain, len(chain) - 1, scene)
    _pixels(figure)
    figure.set_layout_engine("none")  # laid out once: the frames must not jump
    frames = []
    for index in range(len(chain)):
        panel.clear()
        draw_chain_step(panel, chain, index, scene)
        frames.append(image.fromarray(_pixels(figure)))
    seconds = float(np.clip(GIF_SECONDS / len(frames), *GIF_FRAME_LIMIT))
    durations = [1000 * seconds] * (len(frames) - 1) + [1000 * GIF_LAST]
    # One palette for all frames: with one each, the walls would flicker.
    palette = frames[-1].quantize(colors=256)
    frames = [frame.quantize(palette=palette, dither=0) for frame in frames]
    with replaced_file(path) as partial:
        frames[0].save(
            partial,
            format="GIF",
            save_all=True,
            append_images=frames[1:],
            duration=durations,
            loop=0,
        )


def save_figure(figure: Figure, path: Path) -> None:
    """Write a picture; its format is the path's suffix, or PNG without one.

    Raises:
        ConfigError: A suffix of a format that Matplotlib does not write.
        StorageError: It could not be written; what was there before is intact.
    """
    suffix = path.suffix.lstrip(".") or "png"
    known = sorted(figure.canvas.get_supported_filetypes())
    if suffix.lower() not in known:
        raise ConfigError(
            f"No picture can be written to {path}: {suffix!r} is no known format. Give "
            f"a path that ends in one of {', '.join(f'.{name}' for name in known)}."
        )
    with replaced_file(path) as partial:
        figure.savefig(
            partial,
            format=suffix,
            dpi=DPI,
            bbox_inches="tight",
            pad_inches=0.12,
        )


def _figure(
    scene: Scene,
    num_panels: int,
    *,
    header: float,
    width: float = PANEL_WIDTH,
) -> tuple[Figure, list[Axes]]:
    """Return a figure with panels of the maze's shape, `header` inches of text."""
    figures = require_extra("matplotlib.figure", "plot")
    columns = min(MOST_COLUMNS, num_panels)
    rows = -(-num_panels // columns)
    shape = 1.0
    if scene.walls is not None:
        left, right, bottom, top = scene.walls.shown
        shape = (top - bottom) / (right - left)
    height = rows * (width * shape + 0.35) + header
    figure: Figure = figures.Figure(
        figsize=(width * columns, height), layout="compressed"
    )
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel in panels[num_panels:]:
        panel.set_visible(False)
    return figure, list(panels[:num_panels])


def _chain(plan: Plan, scene: Scene, row: int) -> np.ndarray:
    """Return the points `[denoising steps + 1, steps, 2]` of the chosen candidate."""
    if plan.chain is None:
        raise ConfigError(
            "The plan was made without its denoising chain. Use "
            "policy.plan(observation, keep_chain=True)."
        )
    return scene.points(plan.chain[:, row, plan.chosen[row], : plan.lengths[row]])


def _pixels(figure: Figure) -> np.ndarray:
    agg = require_extra("matplotlib.backends.backend_agg", "plot")
    figure.set_dpi(GIF_DPI)
    canvas = agg.FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]
