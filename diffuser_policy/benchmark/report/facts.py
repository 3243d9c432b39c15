"""The tables beside the scores: outcomes, failures, costs, data, versions, gaps."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from diffuser_policy.benchmark.report.curves import Curve, curve_of
from diffuser_policy.benchmark.report.document import Cell, Table
from diffuser_policy.benchmark.report.estimates import run_interval
from diffuser_policy.benchmark.report.study import (
    Entry,
    Row,
    Study,
    entries_of,
    is_loaded,
)
from diffuser_policy.benchmark.report.tables import interval_notes
from diffuser_policy.benchmark.report.versions import version_groups
from diffuser_policy.benchmark.report.wording import (
    UNKNOWN,
    duration,
    estimate,
    number,
    run_command,
    spread,
)
from diffuser_policy.benchmark.results import CellResult, rise_of

SHOWN_FACTS = {"num_steps", "num_parameters", "settings"}  # in columns of their own
WRAPPING = {"class", "seed"}  # of a policy, which say nothing of how it acts
LONG = 1500  # characters of settings that a table can bear


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
            _name(study, entry),
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


def peak_table(study: Study, rows: Sequence[Row]) -> Table | None:
    """Return the highest evaluation of each learning curve.

    Args:
        study: The benchmark.
        rows: Problems.
    """
    curves = {
        (row.name, entry.method): curve
        for row in rows
        for entry in entries_of(study, [row])
        if (curve := curve_of(entry)) is not None
    }
    if not curves:
        return None
    methods = [m for m in study.methods_of(rows) if any(m == key[1] for key in curves)]
    body = []
    for row in rows:
        found = [curves.get((row.name, method)) for method in methods]
        cells = [UNKNOWN if curve is None else _peak(curve) for curve in found]
        body.append((Cell(row.title), *map(Cell, cells)))
    return Table(
        title="The highest evaluation of each learning curve",
        header=("problem", *map(study.label, methods)),
        rows=tuple(body),
        notes=(
            (
                "Mean over the few episodes of one evaluation during training, and its "
                "gradient step. Chosen as the highest of its curve, it flatters: the "
                "scores of this report are those of the last step."
            ),
        ),
        command=run_command(study, rows, methods),
    )


def _peak(curve: Curve) -> str:
    best = int(curve.mean.argmax())
    return f"{number(float(curve.mean[best]))} at {number(float(curve.steps[best]), 0)}"


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
            _name(study, entry),
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


def compute_table(study: Study) -> Table:
    """Return what each method took, over all of its cells."""
    body = []
    for method in study.methods:
        entries = [e for e in entries_of(study, study.rows) if e.method == method]
        results = [result for entry in entries for result in entry.results]
        facts = [result.training for result in results]
        body.append(
            (
                Cell(study.label(method)),
                Cell(str(len(results))),
                Cell(spread(fact.get("num_steps") for fact in facts)),
                Cell(spread(fact.get("num_parameters") for fact in facts)),
                *_training_time(results),
                Cell(duration(_total(results, "evaluate_seconds"))),
                Cell(spread((r.timing.get("act_ms") for r in results), 2)),
                Cell(spread((r.timing.get("plan_ms") for r in results), 1)),
            )
        )
    return Table(
        title="Computing per method",
        header=(
            *("method", "cells", "gradient steps", "parameters"),
            *("training, CPU", "training, clock", "evaluation, clock"),
            *("ms per action", "ms per plan"),
        ),
        rows=tuple(body),
        notes=(
            (
                "Totals over all cells; gradient steps, parameters and milliseconds as "
                "ranges over cells. An action's time is that of predict for one "
                "environment of a batch, planning included. Planners that come trained "
                "took their gradient steps before; how long that was is not recorded."
            ),
        ),
        command=run_command(study, study.rows, study.methods),
    )


def cell_table(study: Study) -> Table:
    """Return every cell's training: steps, curve, costs, settings."""
    body = [
        (
            Cell(result.cell.id),
            Cell(number(result.training.get("num_steps"), 0)),
            Cell(_flatness(result)),
            Cell(number(result.training.get("num_parameters"), 0)),
            *_training_time([result]),
            Cell(duration(_total([result], "evaluate_seconds"))),
            Cell(str(result.timing.get("attempts", UNKNOWN))),
            Cell(str(result.timing.get("machine", UNKNOWN))),
            Cell(str(result.timing.get("finished", UNKNOWN))),
        )
        for result in study.results
    ]
    return Table(
        title="Cells",
        header=(
            *("cell", "gradient steps", "curve in the end", "parameters"),
            *("training, CPU", "training, clock", "evaluation", "attempts"),
            *("machine", "finished"),
        ),
        rows=tuple(body),
        notes=(
            (
                "Curve in the end: the mean score of the last three evaluations during "
                "training minus that of the three before, on the same episodes; flat "
                "if this is at most twice its standard error over episodes. A curve "
                "that still rises is of a training that was cut off: more gradient "
                "steps may have helped."
            ),
        ),
        command=run_command(study, study.rows, study.methods),
    )


def settings_table(study: Study) -> Table:
    """Return each method's settings and further facts of its training, by problem."""
    body = []
    for entry in entries_of(study, study.rows):
        training = entry.results[0].training
        settings = training.get("settings") or entry.results[0].cell.settings
        rest = {k: v for k, v in training.items() if k not in SHOWN_FACTS}
        policy = entry.results[0].policy
        acting = {k: v for k, v in policy.items() if k not in WRAPPING}
        columns = (settings, acting, rest)
        body.append((_name(study, entry), *(Cell(_compact(d)) for d in columns)))
    return Table(
        title="Settings and facts of the trainings",
        header=(
            *("problem", "settings of the training", "of the policy"),
            "facts, of the first training seed",
        ),
        rows=tuple(body),
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
                Cell(_compact(row.problem.env_options)),
                Cell(row.problem.dataset),
                Cell(goals[row.problem.goals]),
                Cell(number(known.get("num_steps"), 0)),
                Cell(_compact(rest)),
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
                    _name(study, entry),
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


def _name(study: Study, entry: Entry) -> Cell:
    return Cell(f"{entry.row.title}, {study.label(entry.method)}")


def _training_time(results: Sequence[CellResult]) -> tuple[Cell, Cell]:
    """Return the CPU's and the clock's time of trainings, not of loading planners."""
    trained = [result for result in results if not is_loaded(result)]
    if not trained:
        return Cell("trained before"), Cell("trained before")
    names = ("train_cpu_seconds", "train_seconds")
    cpu, clock = (Cell(duration(_total(trained, name))) for name in names)
    return cpu, clock


def _total(results: Sequence[CellResult], name: str) -> float:
    return float(np.sum([result.timing.get(name) or 0.0 for result in results]))


def _flatness(result: CellResult) -> str:
    found = rise_of(result.curve)
    if found is None:
        return UNKNOWN
    return f"{found.kind}: {found.mean:+.1f} ± {found.error:.1f}"


def _compact(data: Any) -> str:
    """Return JSON data on one line, as "a: 1; b.c: 2", cut where it gets very long."""
    text = "; ".join(_items(data, ""))
    return (text if len(text) <= LONG else f"{text[:LONG]} …") or UNKNOWN


def _items(data: Any, name: str) -> Iterator[str]:
    """Yield the leaves of a tree, each with the names that lead to it."""
    if isinstance(data, Mapping):
        for key, value in data.items():
            yield from _items(value, f"{name}.{key}" if name else str(key))
    elif data is not None and data != []:
        text = data if isinstance(data, str) else json.dumps(data, default=str)
        yield f"{name}: {text}" if name else text
