"""The figures: one small picture per problem, so that they fit any page width."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from diffuser_policy.benchmark.report.curves import curve_of
from diffuser_policy.benchmark.report.document import Panel, Picture
from diffuser_policy.benchmark.report.palette import styles
from diffuser_policy.benchmark.report.study import (
    PLANNER,
    Entry,
    Row,
    Study,
)
from diffuser_policy.benchmark.report.tables import BlockGroup, comparisons
from diffuser_policy.benchmark.report.wording import number, run_command
from diffuser_policy.errors import require_extra
from diffuser_policy.evaluation.statistics import Interval
from diffuser_policy.files import replaced_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, DPI = 4.7, 140  # inches, dots per inch
INK, GRID = "#2a3142", "#e1e5ee"
MARK_SIZE, STAR_SIZE = 8, 13
FEW, SPREAD = 12, 0.02  # different values; share of their range
COLORS = 128  # of a picture's palette: half the size, no visible change
Draw = Callable[["Axes", Study, Row], bool]


@dataclass(frozen=True)
class Kind:
    """A kind of figure.

    Attributes:
        name: In names of files.
        title: Behind the subject of the problems.
        shows: What a panel shows, for those who do not see it.
        draw: Draws a problem; false where there is nothing to draw.
        note: Below the figure.
        height: Of a panel, in inches; by default it grows with the methods.
    """

    name: str
    title: str
    shows: str
    draw: Draw
    note: str
    height: float | None = None


def picture(
    kind: Kind, study: Study, group: BlockGroup, rows: Sequence[Row], folder: Path
) -> Picture | None:
    """Draw one panel per problem.

    Args:
        kind: Of figure.
        study: The benchmark.
        group: That the problems are of.
        rows: Problems; those without anything to draw are left out.
        folder: For the pictures.

    Returns:
        None where no problem has anything to draw.

    Raises:
        MissingExtraError: Matplotlib is not installed.
    """
    drawn = (_panel(kind, study, row, folder) for row in rows)
    panels = tuple(panel for panel in drawn if panel is not None)
    if not panels:
        return None
    return Picture(
        title=f"{group.subject}: {kind.title}",
        panels=panels,
        notes=(kind.note.format(planner=study.label(PLANNER)),),
        command=run_command(study, rows, study.methods_of(rows)),
    )


def _panel(kind: Kind, study: Study, row: Row, folder: Path) -> Panel | None:
    figures = require_extra("matplotlib.figure", "plot")
    height = kind.height or 1.0 + 0.32 * len(study.methods_of([row]))
    figure = figures.Figure((WIDTH, height), layout="constrained")
    ax = figure.subplots()
    if not kind.draw(ax, study, row):
        return None
    ax.set_title(row.title, fontsize=11, color=INK, loc="left", weight="bold")
    path = folder / f"{kind.name}-{row.name}.png"
    save_png(figure, path)
    return Panel(path, _described(kind, study, row))


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG file with a palette, which is small.

    Raises:
        StorageError: It could not be written; what was there before is intact.
        MissingExtraError: Matplotlib or Pillow is not installed.
    """
    agg = require_extra("matplotlib.backends.backend_agg", "plot")
    image = require_extra("PIL.Image", "plot")
    figure.set_dpi(DPI)
    canvas = agg.FigureCanvasAgg(figure)
    canvas.draw()
    pixels = image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    with replaced_file(path) as partial:
        reduced = pixels.quantize(COLORS, dither=image.Dither.NONE)
        reduced.save(partial, format="PNG", optimize=True)


def _described(kind: Kind, study: Study, row: Row) -> str:
    """Return in words what a panel shows."""
    shows = kind.shows.format(planner=study.label(PLANNER))
    means = [
        f"{study.label(entry.method)} {number(entry.score.mean)}"
        for entry in _entries(study, row)
    ]
    return f"{shows} on {row.title}. Means: {', '.join(means)}."


def _entries(study: Study, row: Row) -> list[Entry]:
    found = [study.entry(row, method) for method in study.methods]
    return [entry for entry in found if entry is not None]


def _draw_scores(ax: Axes, study: Study, row: Row) -> bool:
    entries, style = _entries(study, row), styles(study.methods)
    for place, entry in enumerate(entries):
        _draw_interval(ax, place, entry.score, style[entry.method])
    _name_methods(ax, study, [entry.method for entry in entries])
    ax.set_xlabel(row.measure)
    low, high = ax.get_xlim()
    ax.set_xlim(min(low, 0), high)
    return bool(entries)


def _draw_episodes(ax: Axes, study: Study, row: Row) -> bool:
    entries, style = _entries(study, row), styles(study.methods)
    rng = np.random.default_rng(0)
    for place, entry in enumerate(entries):
        color, _ = style[entry.method]
        scores = entry.values(row.measure).ravel()
        shown = _spread(scores, rng)
        success = entry.values("success").ravel()
        heights = place + rng.uniform(-0.3, 0.3, len(scores))
        failed = success == 0
        for marker, alpha, chosen in (("o", 0.35, ~failed), ("x", 0.5, failed)):
            ax.scatter(
                shown[chosen],
                heights[chosen],
                s=9,
                marker=marker,
                alpha=alpha,
                linewidths=0.7,
                color=color,
            )
        ax.vlines(scores.mean(), place - 0.4, place + 0.4, color="white", lw=4)
        ax.vlines(scores.mean(), place - 0.4, place + 0.4, color=INK, lw=1.8)
    _name_methods(ax, study, [entry.method for entry in entries])
    ax.set_xlabel(f"{row.measure} of an episode")
    return bool(entries)


def _draw_curves(ax: Axes, study: Study, row: Row) -> bool:
    style, trained = styles(study.methods), False
    for entry in _entries(study, row):
        color, marker = style[entry.method]
        name, curve = study.label(entry.method), curve_of(entry)
        if curve is None:
            ax.axhline(
                entry.score.mean, color=color, ls=(0, (5, 3)), lw=1.6, label=name
            )
            continue
        trained = True
        steps = curve.steps / 1000
        ax.fill_between(steps, curve.low, curve.high, color=color, alpha=0.13, lw=0)
        ax.plot(
            steps,
            curve.mean,
            lw=1.6,
            color=color,
            marker=marker,
            ms=4.5,
            mec="white",
            mew=0.5,
            label=name,
        )
    ax.set(xlabel="gradient steps, thousands", ylabel=row.measure)
    ax.set_xlim(left=0)
    _tidy(ax)
    handles, labels = ax.get_legend_handles_labels()
    if handles:
        longest = max(map(len, labels))
        ax.figure.legend(
            handles,
            labels,
            loc="outside lower center",
            ncols=2 if longest > 16 else 3 if longest > 10 else 4,
            frameon=False,
            fontsize=9,
        )
    return trained


def _draw_differences(ax: Axes, study: Study, row: Row) -> bool:
    found, style = comparisons(study, row), styles(study.methods)
    for place, (method, comparison) in enumerate(found.items()):
        _draw_interval(ax, place, comparison.difference, style[method])
    ax.axvline(0, color=INK, lw=1)
    _name_methods(ax, study, list(found))
    ax.set_xlabel(f"{row.measure}: {study.label(PLANNER)} minus the method")
    return bool(found)


def _draw_interval(
    ax: Axes, place: float, interval: Interval, style: tuple[str, str]
) -> None:
    """Draw a mean, and above it the interval, which may be narrower than the mark."""
    color, marker = style
    size = STAR_SIZE if marker == "*" else MARK_SIZE
    ax.plot(interval.mean, place, marker=marker, color=color, ms=size, mec="white")
    if math.isfinite(interval.low):
        ax.errorbar(
            interval.mean,
            place,
            xerr=[[interval.mean - interval.low], [interval.high - interval.mean]],
            color=INK,
            elinewidth=1.2,
            capsize=3.5,
            zorder=5,
        )


def _spread(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return values moved a little where there are few different ones."""
    if len(np.unique(values)) > FEW:
        return values
    width = SPREAD * float(np.ptp(values))
    return values + rng.uniform(-width, width, len(values))


def _name_methods(ax: Axes, study: Study, methods: Sequence[str]) -> None:
    """Put methods on the vertical axis, the first on top."""
    ax.set_yticks(range(len(methods)), [study.label(name) for name in methods])
    ax.set_ylim(len(methods) - 0.4, -0.6)
    _tidy(ax)
    ax.grid(visible=False, axis="y")


def _tidy(ax: Axes) -> None:
    ax.grid(color=GRID, lw=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color("#9aa3b5")
    ax.tick_params(colors=INK, labelsize=9.5, length=3)


SCORES = Kind(
    "scores",
    "scores",
    "Mean scores",
    _draw_scores,
    "Means with 95 % intervals, the same as in the table.",
)
EPISODES = Kind(
    "episodes",
    "every episode",
    "Scores of all episodes",
    _draw_episodes,
    "One mark an episode, spread in height, and where there are few different scores "
    "also in width, to be seen; crosses are episodes without success. The line is the "
    "mean.",
)
CURVES = Kind(
    "curves",
    "learning curves",
    "Learning curves",
    _draw_curves,
    "Evaluations during training, on episodes of their own, which may be easier or "
    "harder than those of the scores. Band: with one training "
    "seed the 95 % interval over these episodes, with several from the lowest to the "
    "highest of their means. Dashed: the final score of methods that are not trained "
    "here.",
    height=3.5,
)
DIFFERENCES = Kind(
    "differences",
    "differences",
    "Differences between {planner} and others",
    _draw_differences,
    "Mean difference on the same episodes with its 95 % interval; right of 0, "
    "{planner} is better.",
)
