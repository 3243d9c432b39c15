"""Reports of an evaluation: JSON for machines, a table for people."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from diffuser_policy import files
from diffuser_policy.errors import ConfigError
from diffuser_policy.evaluation.records import OF_TASKS, Evaluation, Summary
from diffuser_policy.evaluation.statistics import Interval
from diffuser_policy.settings import json_data
from diffuser_policy.words import counted

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

    A figure that could not be measured is null, and so are the ends of an interval that
    a single episode does not determine. Where the environment scores its episodes, each
    has `details`, and the summary counts its `failures` by their reason. Where it has
    several tasks, each episode names its own, and the summary has `tasks`. Numbers that
    are not finite, which JSON cannot express, are null.
    """
    summary: dict[str, Any] = _figures(evaluation.summary())
    if tasks := evaluation.tasks():
        summary["tasks"] = {name: _figures(own) for name, own in tasks.items()}
    summary["control_rate"] = evaluation.timing.control_rate
    if any(record.details for record in evaluation.episodes):
        summary["failures"] = evaluation.failures()
    episodes = []
    for record in evaluation.episodes:
        data = json_data(dataclasses.asdict(record))
        for name in ("details", "task"):
            if not data[name]:
                del data[name]
        first = {"seed": data.pop("seed"), "return": data.pop("episode_return")}
        episodes.append(first | data)
    return {
        "summary": summary,
        "episodes": episodes,
        "settings": json_data(evaluation.settings),
        "versions": dict(evaluation.versions),
    }


def check_card(settings: Mapping[str, Any], folder: Path) -> None:
    """Refuse an evaluation whose settings are not those saved with the planner.

    Args:
        settings: Settings of the evaluation.
        folder: The planner's folder.

    Raises:
        ConfigError: No such folder, or settings that are not the planner's own.
        StorageError: The model card could not be written.
    """
    from diffuser_policy.checkpoint import CARD, read_planner  # imports torch

    if not folder.is_dir():
        raise ConfigError(
            f"A model card goes into the folder of a planner, but {str(folder)!r} is "
            "no folder (--card)."
        )
    files.check_writable(folder / CARD)
    used, own = settings["policy"], read_planner(folder)[0].to_json()
    others = [
        key
        for part in ("planner", "execution")
        for key, value in own[part].items()
        if used.get(part, {}).get(key) != value
    ]
    others += ["guide"] * (used.get("guide") != own["guide"])
    others += [*settings.get("env_options", ())]
    others += ["deterministic"] * bool(settings.get("deterministic"))
    if others:
        raise ConfigError(
            "A model card reports a planner with its saved settings, but this "
            f"evaluation has others: {', '.join(others)}. Leave them out (or --card)."
        )


def write_card(evaluation: Evaluation, folder: Path) -> None:
    """Write the figures of a planner into its model card and its provenance.

    They replace those of the same environment.

    Args:
        evaluation: An evaluation of the planner in that folder.
        folder: The planner's folder.

    Raises:
        ConfigError: As `check_card`.
        StorageError: The planner could not be written.
    """
    from diffuser_policy.checkpoint import read_planner, write_planner

    check_card(evaluation.settings, folder)
    config, networks = read_planner(folder)
    summary, settings = _figures(evaluation.summary()), evaluation.settings
    evaluated = settings["policy"].get("trained_steps")
    if config.provenance.get("steps") != evaluated:
        raise ConfigError(
            f"The planner in {folder} was trained further after its evaluation: it "
            f"has {config.provenance.get('steps')} gradient steps, and then had "
            f"{evaluated}. Evaluate it again."
        )
    figures = {name: summary[name] for name in OF_TASKS}
    figures = {
        "episodes": len(evaluation.episodes),
        "first_seed": settings.get("seed", 0),
        **{name: figure for name, figure in figures.items() if figure is not None},
    }
    results = dict(config.provenance.get("results", {}))
    results[str(settings["env"])] = figures
    kept = {"versions": config.provenance.get("versions", {})}  # of the training
    write_planner(folder, config, networks, provenance={"results": results, **kept})


def table(evaluation: Evaluation) -> Table:
    """Return the summary as a table: one figure a row, with its 95 % interval."""
    settings, count = evaluation.settings, len(evaluation.episodes)
    first = settings.get("seed", 0)
    seeds = f"{first}–{first + count - 1}" if count > 1 else f"{first}"
    shown = Table(
        title=str(settings.get("env", "")),
        caption=(
            f"{counted(count, 'episode')}, seed{'s' * (count > 1)} {seeds}, "
            f"{counted(min(settings.get('num_envs', 1), count), 'environment')} at a "
            f"time"
        ),
        min_width=44,
    )
    shown.add_column("")
    shown.add_column("mean", justify="right", style="bold")
    shown.add_column("95 % interval", justify="right")
    shown.add_column("")
    for name, interval in evaluation.summary().items():
        if interval is not None:
            shown.add_row(*_row(name, interval))
    for task, figures in evaluation.tasks().items():
        for name in ("score", "success_rate"):
            if (interval := figures[name]) is not None:
                label, *others = _row(name, interval)
                shown.add_row(f"{label}, {task}", *others)
    shown.add_row("control rate", f"{evaluation.timing.control_rate:,.0f}", "", "Hz")
    for reason, number in evaluation.failures().items():
        shown.add_row(f"failed: {reason}", str(number), "", f"of {count}")
    if wild := int((~np.isfinite(evaluation.returns)).sum()):
        shown.add_row("returns not finite", str(wild), "", f"of {count}")
    return shown


def _figures(summary: Summary) -> dict[str, Any]:
    """Return figures as JSON data."""
    return {
        name: None if interval is None else json_data(dataclasses.asdict(interval))
        for name, interval in summary.items()
    }


def _row(name: str, interval: Interval) -> tuple[str, str, str, str]:
    """Return a figure's label, its mean, its interval and its unit."""
    label, unit = ROWS.get(name, (name.replace("_", " "), ""))
    scale = 100 if unit == "%" else 1
    mean, low, high = (
        f"{scale * end:,.1f}" for end in (interval.mean, interval.low, interval.high)
    )
    return label, mean, "" if math.isnan(interval.low) else f"{low} – {high}", unit
