"""Measured speed as tables and a figure for people, and as JSON for machines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from diffuser_policy.errors import require_extra
from diffuser_policy.plotting import CANDIDATE, PLAN
from diffuser_policy.speed.cases import (
    GUIDE,
    LIBRARY,
    LOOP,
    NETWORK,
    PAPER,
    SAMPLER,
    SCALINGS,
    TOGETHER,
)
from diffuser_policy.speed.measurement import SpeedMeasurement

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLES = {
    PAPER: "The paper's setting: 256 DDPM steps, stride 1, one candidate, eager",
    TOGETHER: "Planning for several environments in one call",
    SAMPLER: "By sampler and steps, unguided, one environment",
    LOOP: "A new plan in every env step, one environment",
    GUIDE: "Unguided and guided, one environment",
    NETWORK: "One call of the network, by acceleration",
    LIBRARY: "Sampling alone, one plan, by library",
    "horizon": "Sampling alone, by horizon in env steps",
    "candidates": "Sampling alone, by candidates",
    "envs": "Sampling alone, by environments",
}


def tables(measured: SpeedMeasurement) -> Iterator[Table]:
    """Yield one table per group of cases that was measured."""
    cases = to_json(measured)["cases"]
    for group, title in TITLES.items():
        rows = [case for case in cases if case["group"] == group]
        table = Table(
            title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
        )
        table.add_column("", min_width=23, no_wrap=True)
        for header in ("ms a call", "range", "plans/s", "×paper", "floor"):
            table.add_column(header, justify="right", no_wrap=True)
        for case in rows:
            plans = case["plans_per_second"] if case["times_paper"] else None
            table.add_row(
                case["name"],
                _digits(case["median_ms"]),
                f"{_digits(case['fastest_ms'])}–{_digits(case['slowest_ms'])}",
                *map(_digits, (plans, case["times_paper"], case["floor_ms"])),
            )
        if rows:
            yield table


def _digits(value: float | None) -> str:
    """Return a number with about three digits, and nothing for none."""
    if value is None:
        return ""
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def facts(measured: SpeedMeasurement) -> Table:
    """Return what matters most, a figure a row."""
    alone, largest = measured.default, measured.group(TOGETHER)[-1]
    loops, floor = measured.group(LOOP), alone.floor_ms(measured.peak)
    faster = measured.baseline.plan_ms / alone.plan_ms
    gain = largest.plans_per_second / alone.plans_per_second
    most = "" if floor is None else f", at most {alone.plan_ms / floor:.1f}"
    rows = [
        ("processor", str(measured.machine["cpu"])),
        ("threads", str(measured.machine["threads"])),
        ("rounds (figures are medians)", str(measured.settings["rounds"])),
        ("fastest product or convolution", f"{measured.peak / 1e9:.0f} GFLOP/s"),
        ("one plan, wall-clock time", f"{alone.plan_ms:.1f} ms"),
        ("times faster than the paper's setting", f"{faster:.0f}"),
        (
            f"times as many plans per second, {largest.case.batch} envs in a call",
            f"{gain:.1f}{most}",
        ),
        ("one plan, processor time", f"{alone.cpu_ms:.1f} ms"),
    ]
    machine = measured.machine
    # Several threads sum up to any time, and waiting for a GPU is no other work.
    if loops and machine["threads"] == 1 and machine["device"] == "cpu":
        busy = 1 - sum(t.cpu_ms for t in loops) / sum(t.call_ms for t in loops)
        rows.append(("processor time of other work", f"{max(busy, 0):.0%}"))
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*row)
    return table


def to_json(measured: SpeedMeasurement) -> dict[str, Any]:
    """Return it as JSON data, times in milliseconds of one planning call.

    `times_paper` says how many times more plans a second than the paper's setting.
    """
    usual = measured.baseline.plan_ms
    return {
        "cases": [
            {
                "group": timing.case.group,
                "name": timing.case.name,
                "envs": timing.case.batch,
                "median_ms": timing.call_ms,
                "cpu_ms": timing.cpu_ms,
                "fastest_ms": timing.spread[0],
                "slowest_ms": timing.spread[1],
                "plans_per_second": timing.plans_per_second,
                "times_paper": None
                if timing.case.group == NETWORK
                else usual / timing.plan_ms,
                "flops": timing.case.flops,
                "floor_ms": timing.floor_ms(measured.peak),
            }
            for timing in measured.timings
        ],
        "flops_per_second": measured.throughput,
        "settings": measured.settings,
        "machine": measured.machine,
        "versions": measured.versions,
    }


def figure(measured: SpeedMeasurement, *, title: str = "") -> Figure:
    """Draw latency against each size on doubly logarithmic axes, above its floor.

    Raises:
        MissingExtraError: Matplotlib is not installed.
    """
    figures = require_extra("matplotlib.figure", "plot")
    ticker = require_extra("matplotlib.ticker", "plot")
    drawn: Figure = figures.Figure(
        figsize=(3.4 * len(SCALINGS), 2.9), layout="constrained"
    )
    panels = drawn.subplots(1, len(SCALINGS), sharey=True)
    for ax, group in zip(panels, SCALINGS, strict=True):
        timings = measured.group(group)
        sizes = [float(timing.case.name) for timing in timings]
        lows, highs = zip(*(timing.spread for timing in timings), strict=True)
        medians = [timing.call_ms for timing in timings]
        ax.fill_between(sizes, lows, highs, color=PLAN, alpha=0.2)
        ax.plot(sizes, medians, "o-", color=PLAN, ms=4, label="measured")
        floors = [timing.floor_ms(measured.peak) for timing in timings]
        ax.plot(sizes, floors, "--", color=CANDIDATE, label="floor")
        label = "env steps" if group == "horizon" else group
        ax.set(xscale="log", yscale="log", xlabel=label)
        ax.set_xticks(sizes)
        ax.xaxis.set_major_formatter(ticker.FormatStrFormatter("%d"))
        ax.xaxis.set_minor_locator(ticker.NullLocator())
        ax.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        ax.grid(visible=True, which="major", alpha=0.3)
    panels[0].set_ylabel("ms for all plans")
    panels[0].legend(frameon=False)
    drawn.suptitle(title, fontsize=10)
    return drawn
