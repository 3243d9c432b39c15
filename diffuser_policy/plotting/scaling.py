"""How latency grows: one panel per size, measurements above their floor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffuser_policy.errors import require_extra
from diffuser_policy.plotting.drawing import CANDIDATE, PLAN

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANEL = (3.4, 2.9)  # inches


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Latency against one size.

    Attributes:
        sizes: What was varied.
        medians: Of each size, in milliseconds.
        lows: Fastest measurement of each size.
        highs: Slowest measurement of each size.
        floors: Least possible time of each size, where it is known.
    """

    sizes: Sequence[float]
    medians: Sequence[float]
    lows: Sequence[float]
    highs: Sequence[float]
    floors: Sequence[float] | None = None


def scaling_figure(curves: Mapping[str, Curve], *, title: str = "") -> Figure:
    """Draw latency against each size on doubly logarithmic axes.

    Args:
        curves: By the label of their horizontal axis.
        title: Above everything.

    Raises:
        MissingExtraError: Matplotlib is not installed.
    """
    figures = require_extra("matplotlib.figure", "plot")
    ticker = require_extra("matplotlib.ticker", "plot")
    figure: Figure = figures.Figure(
        figsize=(PANEL[0] * len(curves), PANEL[1]), layout="constrained"
    )
    panels = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    for ax, (label, curve) in zip(panels, curves.items(), strict=True):
        ax.fill_between(curve.sizes, curve.lows, curve.highs, color=PLAN, alpha=0.2)
        ax.plot(curve.sizes, curve.medians, "o-", color=PLAN, ms=4, label="measured")
        if curve.floors is not None:
            ax.plot(curve.sizes, curve.floors, "--", color=CANDIDATE, label="floor")
        ax.set(xscale="log", yscale="log", xlabel=label)
        ax.set_xticks(curve.sizes)
        ax.xaxis.set_major_formatter(ticker.FormatStrFormatter("%d"))
        ax.xaxis.set_minor_locator(ticker.NullLocator())
        ax.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        ax.grid(visible=True, which="major", alpha=0.3)
    panels[0].set_ylabel("ms for all plans")
    panels[0].legend(frameon=False)
    figure.suptitle(title, fontsize=10)
    return figure
