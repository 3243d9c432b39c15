"""Whole pictures: a plan and how it was followed, and how it came out of noise."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from diffuser_policy.errors import ConfigError, require_extra
from diffuser_policy.files import replaced_file
from diffuser_policy.planning.plan import Plan
from diffuser_policy.plotting.drawing import (
    counted,
    draw_chain_step,
    draw_ends,
    draw_plan,
    draw_rollout,
    draw_scene,
)
from diffuser_policy.plotting.scene import Scene

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL_WIDTH = 5.2  # inches
DPI = 130
GIF_DPI = 90
GIF_SECONDS, GIF_FRAME_LIMIT, GIF_LAST = 3.0, (0.05, 0.6), 2.0


def plan_figure(
    plan: Plan,
    scene: Scene,
    *,
    row: int = 0,
    rollout: np.ndarray | None = None,
    title: str = "",
) -> Figure:
    """Draw a plan among its candidates and, beside it, how it was followed.

    Args:
        plan: What was planned.
        scene: Where.
        row: Which plan of the batch.
        rollout: `[steps + 1, observation]` what happened.
        title: Above everything.

    Raises:
        MissingExtraError: Matplotlib is not installed.
    """
    num_panels = 1 if rollout is None else 2
    figure, panels = _figure(scene, num_panels, header=0.35)
    draw_scene(panels[0], scene)
    draw_plan(panels[0], plan, scene, row=row)
    draw_ends(panels[0], scene, scene.points(plan.path(row))[0])
    count = plan.values.shape[1]
    steps = counted(int(plan.durations[row]), "env step")
    steps += "" if scene.goal is None else " to the goal"
    panels[0].set_title(f"plan: {steps}, best of {counted(count, 'candidate')}")
    if rollout is not None:
        draw_scene(panels[1], scene)
        draw_plan(panels[1], plan, scene, row=row, candidates=False)
        colored = draw_rollout(panels[1], scene.points(rollout))
        draw_ends(panels[1], scene, scene.points(rollout)[0])
        panels[1].set_title(f"executed: {counted(len(rollout) - 1, 'env step')}")
        beside = panels[1].inset_axes((1.02, 0.0, 0.03, 1.0))
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


def chain_figure(
    plan: Plan, scene: Scene, *, row: int = 0, max_panels: int = 6, title: str = ""
) -> Figure:
    """Draw how a plan came out of noise, in a row of panels.

    Args:
        plan: Planned with `keep_chain=True`.
        scene: Where.
        row: Which plan of the batch.
        max_panels: Denoising steps to show, evenly spaced.
        title: Above everything.

    Raises:
        ConfigError: The plan was made without keeping the chain.
        MissingExtraError: Matplotlib is not installed.
    """
    chain = _chain(plan, scene, row)
    count = min(max_panels, len(chain))
    shown = np.linspace(0, len(chain) - 1, count).round().astype(int)
    figure, panels = _figure(scene, count, header=0.4, columns=3, width=3.4)
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
    _pixels(figure, GIF_DPI)
    figure.set_layout_engine("none")  # laid out once: the frames must not jump
    frames = []
    for index in range(len(chain)):
        panel.clear()
        draw_chain_step(panel, chain, index, scene)
        frames.append(image.fromarray(_pixels(figure, GIF_DPI)))
    low, high = GIF_FRAME_LIMIT
    seconds = min(max(GIF_SECONDS / len(frames), low), high)
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
    """Write a picture; its format is the path's suffix.

    Raises:
        StorageError: It could not be written; what was there before is intact.
    """
    with replaced_file(path) as partial:
        figure.savefig(
            partial,
            format=path.suffix.lstrip(".") or "png",
            dpi=DPI,
            bbox_inches="tight",
            pad_inches=0.12,
        )


def _figure(
    scene: Scene,
    num_panels: int,
    *,
    header: float,
    columns: int = 3,
    width: float = PANEL_WIDTH,
) -> tuple[Figure, list[Axes]]:
    """Return a figure with panels of the maze's shape, `header` inches of text."""
    figures = require_extra("matplotlib.figure", "plot")
    columns = min(columns, num_panels)
    rows = -(-num_panels // columns)
    x, y = scene.extent or (1.0, 1.0)
    height = rows * (width * y / x + 0.35) + header
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


def _pixels(figure: Figure, dpi: int) -> np.ndarray:
    agg = require_extra("matplotlib.backends.backend_agg", "plot")
    figure.set_dpi(dpi)
    canvas = agg.FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]
