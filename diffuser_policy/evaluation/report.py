"""Reports of an evaluation: JSON for machines, a table for people."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from rich.table import Table

from diffuser_policy.evaluation.records import Evaluation

ROWS = {  # name in the summary: (label, unit)
    "success_rate": ("success rate", "%"),
    "final_success_rate": ("at the goal in the end", "%"),
    "time_to_goal": ("time to goal", "env steps"),
    "plan_ms": ("one plan", "ms"),
    "plan_call_ms": ("one planning call", "ms"),
}


def to_json(evaluation: Evaluation) -> dict[str, Any]:
    """Return an evaluation as JSON data.

        {"summary": {"score": {"mean": …, "low": …, "high": …}, "success_rate": …,
                     "time_to_goal": …, "plan_ms": …, …},
         "episodes": [{"seed": …, "return": …, …}, …], "settings": …, "versions": …}

    A figure that was not there to be measured is null, and so are the ends of an
    interval that a single episode says nothing about. Where the environment scores its
    episodes, each has `details`, and the summary counts its `failures` by their reason.
    """
    summary: dict[str, Any] = {}
    for name, interval in evaluation.summary().items():
        ends = {} if interval is None else dataclasses.asdict(interval)
        known = {key: None if math.isnan(end) else end for key, end in ends.items()}
        summary[name] = known or None
    summary["control_rate"] = evaluation.timing.control_rate
    if any(record.details for record in evaluation.episodes):
        summary["failures"] = evaluation.failures()
    episodes = []
    for record in evaluation.episodes:
        data = dataclasses.asdict(record)
        if not record.details:
            del data["details"]
        first = {"seed": data.pop("seed"), "return": data.pop("episode_return")}
        episodes.append(first | data)
    return {
        "summary": summary,
        "episodes": episodes,
        "settings": dict(evaluation.settings),
        "versions": dict(evaluation.versions),
    }


def table(evaluation: Evaluation) -> Table:
    """Return the summary as a table: one figure a row, with its 95 % interval."""
    settings = evaluation.settings
    count = len(evaluation.episodes)
    first = settings.get("seed", 0)
    shown = Table(
        title=str(settings.get("env", "")),
        caption=(
            f"{count} episodes, seeds {first}–{first + count - 1}, "
            f"{min(settings.get('num_envs', 1), count)} environments at a time"
        ),
        min_width=44,
    )
    shown.add_column("")
    shown.add_column("mean", justify="right", style="bold")
    shown.add_column("95 % interval", justify="right")
    shown.add_column("")
    for name, interval in evaluation.summary().items():
        if interval is not None:
            label, unit = ROWS.get(name, (name.replace("_", " "), ""))
            scale = 100 if unit == "%" else 1
            mean, low, high = (
                f"{scale * end:,.1f}"
                for end in (interval.mean, interval.low, interval.high)
            )
            known = not math.isnan(interval.low)
            shown.add_row(label, mean, f"{low} – {high}" if known else "", unit)
    shown.add_row("control rate", f"{evaluation.timing.control_rate:,.0f}", "", "Hz")
    for reason, number in evaluation.failures().items():
        shown.add_row(f"failed: {reason}", str(number), "", f"of {count}")
    return shown
