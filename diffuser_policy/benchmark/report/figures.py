"""The figures: small pictures, one per problem, so that they fit any page width.

A method has the same color, marker and line in every figure. The colors are Okabe and
Ito's, which any color vision tells apart, without their yellow, faint on white.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from diffuser_policy.benchmark.cells import CellFolder
from diffuser_policy.benchmark.report.scores import Group, comparisons
from diffuser_policy.benchmark.report.study import PLANNER, Row, Study, curve_of
from diffuser_policy.benchmark.report.tables import number
from diffuser_policy.errors import require_extra
from diffuser_policy.evaluation.statistics import Interval
from diffuser_policy.files import replaced_file, save_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 4.7  # inches
INK, GRID, AXIS = "#2a3142", "#e1e5ee", "#9aa3b5"
MARK_SIZE, STAR_SIZE = 8, 13
FEW, SPREAD = 12, 0.02  # different values; share of their range
STYLES = {
    "diffuser": ("#0072b2", "o"),
    "bcq": ("#56b4e9", "s"),
    "cql": ("#009e73", "^"),
    "iql": ("#e69f00", "D"),
    "td3-bc": ("#cc79a7", "v"),
    "rebrac": ("#d55e00", "P"),
    "bc": ("#8c8c8c", "X"),
    "demonstrator": ("#111111", "*"),
}
OTHER_STYLES = (
    *(("#882255", "<"), ("#44aa99", ">"), ("#332288", "p"), ("#aa8800", "h")),
    *(("#aa4499", "d"), ("#117733", "8"), ("#661100", "s"), ("#6699cc", "^")),
)
LINES = ("-", ":", "-.")  # of other methods: each time that their colors are used up
MOST_COLUMNS, LEGEND_ROW = 4, 0.2  # of legends; inches
MOST_PLANS = 4  # pictures of each cell
PNG_HEADER = b"\x89PNG\r\n\x1a\n"


class Panel(NamedTuple):
    """A picture in a file.

    Attributes:
        path: A PNG file.
        alt: What it shows, for those who cannot see it.
        caption: Shown below it.
    """

    path: Path
    alt: str
    caption: str = ""


class Picture(NamedTuple):
    """A figure of one or more panels, side by side where there is room.

    Attributes:
        title: Shown above it.
        panels: Its pictures.
        note: Shown below it.
        wide: Whether panels are large: at most two in a row.
    """

    title: str
    panels: tuple[Panel, ...]
    note: str = ""
    wide: bool = False


class Kind(NamedTuple):
    """A kind of figure.

    Attributes:
        name: Begins the names of its files.
        title: Follows the problems' subject in its title.
        draw: Draws a problem; returns false where there is nothing to draw.
        note: Shown below the figure.
        height: Height of a panel in inches, to which `draw` may add what a legend
            needs; None makes it grow with the methods.
    """

    name: str
    title: str
    draw: Callable[[Axes, Study, Row], bool]
    note: str
    height: float | None = None


class Style(NamedTuple):
    """How a method is drawn: Matplotlib's color, marker and line style."""

    color: str
    marker: str
    line: str


def styles(methods: Sequence[str]) -> dict[str, Style]:
    """Return the style of each method of a report."""
    found = {m: Style(*STYLES[m], LINES[0]) for m in methods if m in STYLES}
    for i, method in enumerate(m for m in methods if m not in STYLES):
        again, which = divmod(i, len(OTHER_STYLES))
        found[method] = Style(*OTHER_STYLES[which], LINES[again % len(LINES)])
    return found


def picture(
    kind: Kind, study: Study, group: Group, rows: Sequence[Row], folder: Path
) -> Picture | None:
    """Draw one panel per problem that has anything to draw; None if no problem has.

    Raises:
        MissingExtraError: Matplotlib or Pillow is not installed.
        StorageError: A picture could not be written.
    """
    figures, panels = require_extra("matplotlib.figure", "plot"), []
    for row in rows:
        entries = study.entries_of([row])
        height = kind.height or 1.0 + 0.32 * len(entries)
        figure = figures.Figure((WIDTH, height), layout="constrained")
        ax = figure.subplots()
        if not kind.draw(ax, study, row):
            continue
        ax.set_title(row.title, fontsize=11, color=INK, loc="left", weight="bold")
        path = folder / f"{kind.name}-{row.name}.png"
        save_png(figure, path)
        means = [f"{study.label(e.method)} {number(e.score.mean)}" for e in entries]
        alt = f"{row.title}, {kind.title}. Means: {', '.join(means)}"
        panels.append(Panel(path, alt))
    title = f"{group.subject}: {kind.title}"
    return Picture(title, tuple(panels), kind.note) if panels else None


def plan_pictures(study: Study, place: Path, folder: Path) -> list[Picture]:
    """Return the pictures of plans that cells left, one figure per method.

    They are `cells/<id>/pictures/*.png`, each with a caption in a JSON file of the same
    name, `{"caption": "…"}`.

    Pictures below the report's folder, `place`, are shown where they are; the others
    are copied to `folder`.

    Raises:
        StorageError: A copy could not be written.
    """
    found = []
    for method in study.methods:
        panels = []
        for row in study.rows:
            for result in getattr(study.entry(row, method), "results", ()):
                cell = CellFolder(study.folder, result.cell.id).path
                paths = sorted((cell / "pictures").glob("*.png"))[:MOST_PLANS]
                for path in paths:
                    data = path.read_bytes()
                    if not data.startswith(PNG_HEADER):
                        continue
                    caption, shown = f"{row.title}: {_caption(path)}", path
                    if not path.resolve().is_relative_to(place.resolve()):
                        shown = folder / f"{cell.name}-{path.name}"
                        with replaced_file(shown) as partial:
                            partial.write_bytes(data)
                    panels.append(Panel(shown, caption, caption))
        if panels:
            title = f"{study.label(method)}: plans"
            found.append(Picture(title, tuple(panels), wide=True))
    return found


def _caption(path: Path) -> str:
    try:
        data = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        return str(data["caption"])
    except (OSError, ValueError, LookupError, TypeError):
        return re.sub("[-_]", " ", path.stem)


def _draw_scores(ax: Axes, study: Study, row: Row) -> bool:
    found = {e.method: e.score for e in study.entries_of([row])}
    _draw_intervals(ax, study, found)
    ax.set_xlabel(row.measure)
    low, high = ax.get_xlim()
    ax.set_xlim(min(low, 0), high)
    return bool(found)


def _draw_episodes(ax: Axes, study: Study, row: Row) -> bool:
    entries, style = study.entries_of([row]), styles(study.methods)
    rng = np.random.default_rng(0)
    for place, entry in enumerate(entries):
        color = style[entry.method].color
        scores = entry.values(row.measure).ravel()
        shown = scores
        if len(np.unique(scores)) <= FEW:
            width = SPREAD * float(np.ptp(scores))
            shown = scores + rng.uniform(-width, width, len(scores))
        heights = place + rng.uniform(-0.3, 0.3, len(scores))
        failed = entry.values("success").ravel() == 0
        for marker, alpha, chosen in (("o", 0.35, ~failed), ("x", 0.5, failed)):
            look: Any = {"marker": marker, "alpha": alpha, "color": color}
            ax.scatter(shown[chosen], heights[chosen], s=9, linewidths=0.7, **look)
        ax.vlines(scores.mean(), place - 0.4, place + 0.4, color="white", lw=4)
        ax.vlines(scores.mean(), place - 0.4, place + 0.4, color=INK, lw=1.8)
    _name_methods(ax, study, [entry.method for entry in entries])
    ax.set_xlabel(f"{row.measure} of an episode")
    return bool(entries)


def _draw_curves(ax: Axes, study: Study, row: Row) -> bool:
    style, trained = styles(study.methods), False
    for entry in study.entries_of([row]):
        color, marker, line = style[entry.method]
        name, curve = study.label(entry.method), curve_of(entry)
        if curve is None:
            dashes = (0, (5, 3))
            ax.axhline(entry.score.mean, color=color, ls=dashes, lw=1.6, label=name)
            continue
        trained = True
        steps = curve.steps / 1000
        ax.fill_between(steps, curve.low, curve.high, color=color, alpha=0.13, lw=0)
        mark: Any = {"marker": marker, "ms": 4.5, "mec": "white", "mew": 0.5}
        ax.plot(steps, curve.mean, lw=1.6, ls=line, color=color, label=name, **mark)
    ax.set(xlabel="gradient steps, thousands", ylabel=row.measure)
    ax.set_xlim(left=0)
    _tidy(ax)
    _add_legend(ax)
    return trained


def _add_legend(ax: Axes) -> None:
    """Put a legend below the axes, in as many columns as fit; the figure grows."""
    figure: Any = ax.figure
    handles, labels = ax.get_legend_handles_labels()
    for columns in range(min(MOST_COLUMNS, len(handles)), 0, -1):
        place: Any = {"loc": "outside lower center", "ncols": columns}
        legend = figure.legend(handles, labels, frameon=False, fontsize=9, **place)
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            rows = math.ceil(len(handles) / columns)
            figure.set_figheight(figure.get_figheight() + (rows - 1) * LEGEND_ROW)
            return
        legend.remove()


def _draw_differences(ax: Axes, study: Study, row: Row) -> bool:
    found = {m: c.difference for m, c in comparisons(study, row).items()}
    _draw_intervals(ax, study, found)
    ax.axvline(0, color=INK, lw=1)
    ax.set_xlabel(f"{row.measure}: {study.label(PLANNER)} minus the method")
    return bool(found)


def _draw_intervals(ax: Axes, study: Study, found: Mapping[str, Interval]) -> None:
    """Draw means, and above them intervals, which may be narrower than the marks."""
    for place, (method, interval) in enumerate(found.items()):
        color, marker, _ = styles(study.methods)[method]
        size = STAR_SIZE if marker == "*" else MARK_SIZE
        ax.plot(interval.mean, place, marker=marker, color=color, ms=size, mec="white")
        if math.isfinite(interval.low):
            below, above = interval.mean - interval.low, interval.high - interval.mean
            # All draws of a skewed figure may lie on one side of the mean.
            ends = [[max(below, 0.0)], [max(above, 0.0)]]
            line: Any = {"color": INK, "elinewidth": 1.2, "capsize": 3.5, "zorder": 5}
            ax.errorbar(interval.mean, place, xerr=ends, **line)
    _name_methods(ax, study, list(found))


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
    ax.spines[["left", "bottom"]].set_color(AXIS)
    ax.tick_params(colors=INK, labelsize=9.5, length=3)


SCORES_NOTE = "Means with 95 % intervals, the same as in the table."
SCORES = Kind("scores", "scores", _draw_scores, SCORES_NOTE)
EPISODES = Kind(
    "episodes",
    "every episode",
    _draw_episodes,
    "One mark per episode, spread in height, and where few scores differ also in "
    "width; crosses: episodes without success; line: mean.",
)
CURVES = Kind(
    "curves",
    "learning curves",
    _draw_curves,
    "Evaluations during training, on episodes of their own. Band: with one training "
    "seed the 95 % interval over these episodes, with several the lowest and the "
    "highest of their means. Dashed: final score of methods that are not trained here.",
    height=3.5,
)
DIFFERENCES = Kind(
    "differences",
    "differences",
    _draw_differences,
    "Mean difference on the same episodes with its 95 % interval.",
)
