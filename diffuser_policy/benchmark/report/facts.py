"""The tables beside the scores: outcomes, failures, data, seeds, versions, gaps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diffuser_policy.benchmark.report.document import Cell, Table
from diffuser_policy.benchmark.report.estimates import run_interval
from diffuser_policy.benchmark.report.study import Row, Study, entries_of
from diffuser_policy.benchmark.report.tables import interval_notes
from diffuser_policy.benchmark.report.trainings import entry_name
from diffuser_policy.benchmark.report.versions import version_groups
from diffuser_policy.benchmark.report.wording import (
    compact,
    estimate,
    number,
    run_command,
)


def outcome_table(study: Study, rows: Sequence[Row]) -> Table:
    """Return what else was measured in each episode, one method on one problem a row.

    Args:
        study: The benchmark.
        rows: Problems.
    """
    entries = entries_of(study, rows)
    extra = sorted(
        {
            name
            for entry in entries
            for result in entry.results
            for episode in result.episodes
            for name in episode.get("details", {})
            if name.endswith("_score")
        }
    )
    body = [
        (
            entry_name(study, entry),
            Cell(estimate(entry.score)),
            Cell(estimate(entry.rate("success"), scale=100)),
            Cell(estimate(entry.rate("final_success"), scale=100)),
            Cell(estimate(entry.time_to_goal)),
            *(Cell(estimate(run_interval(entry.values(name)))) for name in extra),
            Cell(estimate(run_interval(entry.values("return")))),
            Cell(str(entry.num_episodes)),
            Cell(", ".join(map(str, entry.seeds))),
        )
        for entry in entries
    ]
    return Table(
        title="Outcomes",
        header=(
            "problem",
            *("score", "success, %", "in the end, %", "env steps to the goal"),
            *(name.replace("_", " ") for name in extra),
            *("return", "episodes", "training seeds"),
        ),
        rows=tuple(body),
        notes=(
            (
                "Means with 95 % intervals. Success: at the goal at least once; in "
                "the end: after the last env step. Env steps are of the episodes that "
                "reach the goal, so a method that reaches only near ones looks fast."
            ),
            *interval_notes(study, entries),
        ),
        command=run_command(study, rows, study.methods_of(rows)),
    )


def failure_table(study: Study, rows: Sequence[Row]) -> Table | None:
    """Return why episodes failed, where environments say so.

    Args:
        study: The benchmark.
        rows: Problems.
    """
    found = [(entry, entry.failures()) for entry in entries_of(study, rows)]
    totals: dict[str, int] = {}
    for _, counts in found:
        for reason, count in counts.items():
            totals[reason] = totals.get(reason, 0) + count
    if not totals:
        return None
    reasons = sorted(totals, key=lambda reason: (-totals[reason], reason))
    body = [
        (
            entry_name(study, entry),
            *(Cell(str(counts.get(reason, 0))) for reason in reasons),
            Cell(str(sum(counts.values()))),
            Cell(str(entry.num_episodes)),
        )
        for entry, counts in found
    ]
    return Table(
        title="Failures by reason",
        header=("problem", *reasons, "failed", "episodes"),
        rows=tuple(body),
        notes=("Number of episodes, as the environment explains them.",),
        command=run_command(study, rows, study.methods_of(rows)),
    )


def dataset_table(study: Study) -> Table:
    """Return each problem's data and goals."""
    body = []
    for row in study.rows:
        found = [e.results[0].dataset for e in entries_of(study, [row])]
        known: Mapping[str, Any] = next((facts for facts in found if facts), {})
        rest = {k: v for k, v in known.items() if k not in ("id", "num_steps")}
        goals = {"none": "one task", "hindsight": "goals relabelled in hindsight"}
        body.append(
            (
                Cell(row.title),
                Cell(row.problem.env),
                Cell(compact(row.problem.env_options)),
                Cell(row.problem.dataset),
                Cell(goals[row.problem.goals]),
                Cell(number(known.get("num_steps"), 0)),
                Cell(compact(rest)),
            )
        )
    return Table(
        title="Problems and their data",
        header=(
            *("problem", "environment", "its settings", "dataset", "seen as"),
            *("transitions", "collection"),
        ),
        rows=tuple(body),
    )


def seed_table(study: Study) -> Table:
    """Return the seeds of trainings and evaluations, by problem."""
    body = []
    for row in study.rows:
        for entry in entries_of(study, [row]):
            plans = [result.cell.evaluation for result in entry.results]
            body.append(
                (
                    entry_name(study, entry),
                    Cell(", ".join(map(str, entry.seeds))),
                    Cell(", ".join(map(str, plans[0].seeds))),
                    Cell(str(plans[0].episodes)),
                )
            )
    return Table(
        title="Seeds",
        header=("problem", "training", "evaluation, first seeds", "episodes of each"),
        rows=tuple(body),
        notes=("Episode i of an evaluation is reset with its first seed + i.",),
    )


def version_table(study: Study) -> Table:
    """Return the versions that made the results."""
    body = [
        (
            Cell(package),
            Cell(", ".join(sorted(groups))),
            Cell(str(sum(map(len, groups.values())))),
        )
        for package, groups in sorted(version_groups(study.results).items())
    ]
    return Table(
        title="Versions", header=("package", "version", "cells"), rows=tuple(body)
    )


def open_table(study: Study) -> Table:
    """Return the cells without a result."""
    return Table(
        title="Cells without a result",
        header=("cell", "state"),
        rows=tuple((Cell(cell.name), Cell(cell.state)) for cell in study.open_cells),
        notes=("They take no part in any figure of this report.",),
    )
