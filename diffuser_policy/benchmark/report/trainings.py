"""The tables of trainings: their curves, critics, settings and costs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diffuser_policy.benchmark.report.critics import critic_of
from diffuser_policy.benchmark.report.curves import Curve, constant_score, curve_of
from diffuser_policy.benchmark.report.document import Cell, Table
from diffuser_policy.benchmark.report.study import (
    Entry,
    Row,
    Study,
    entries_of,
    is_loaded,
)
from diffuser_policy.benchmark.report.wording import (
    UNKNOWN,
    compact,
    duration,
    number,
    run_command,
    spread,
)
from diffuser_policy.benchmark.results import POINTS, CellResult, rise_of

# In columns of their own; "flat" is in older results, which kept their curves as well.
SHOWN_FACTS = {"num_steps", "num_parameters", "settings", "values", "flat"}
WRAPPING = {"class", "seed"}  # of a policy, which say nothing of how it acts


def peak_table(study: Study, rows: Sequence[Row]) -> Table | None:
    """Return the highest and the last evaluations of each learning curve.

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
        cells = [Cell(UNKNOWN) if curve is None else _peak(curve) for curve in found]
        body.append((Cell(row.title), *cells))
    return Table(
        title="The highest and the last evaluations of each learning curve",
        header=("problem", *map(study.label, methods)),
        rows=tuple(body),
        notes=(
            (
                "Highest: the mean over the few episodes of one evaluation during "
                "training, and its gradient step. Chosen as the highest of its curve, "
                "it flatters: the scores of this report are those of the last step. "
                f"Last {POINTS}: the mean of the last evaluations and the standard "
                "deviation between them, which is what another choice of the last "
                "step would have changed. All are on other episodes than the scores, "
                "the same for all methods; these may be easier or harder."
            ),
        ),
        command=run_command(study, rows, methods),
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
            Cell(_values(result)),
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
            *("cell", "gradient steps", "curve in the end", "values", "parameters"),
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
                "steps may have helped. One that falls was better before; one that is "
                "always the same does not tell whether anything is being learned."
            ),
            (
                "Values: the median that the critic gives the data's own actions, and "
                "the range that rewards and discount allow. Far above it, the critic "
                "has diverged; far below it, it is more pessimistic than any policy "
                "deserves. Either way the method may be able to do better."
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
        body.append((entry_name(study, entry), *(Cell(compact(d)) for d in columns)))
    return Table(
        title="Settings and facts of the trainings",
        header=(
            *("problem", "settings of the training", "of the policy"),
            "facts, of the first training seed",
        ),
        rows=tuple(body),
    )


def entry_name(study: Study, entry: Entry) -> Cell:
    """Return what rows of one method on one problem are called."""
    return Cell(f"{entry.row.title}, {study.label(entry.method)}")


def _peak(curve: Curve) -> Cell:
    best, last = int(curve.mean.argmax()), curve.mean[-POINTS:]
    peak = number(float(curve.mean[best]))
    ends = f"last {POINTS}: {number(float(last.mean()))}"
    if len(last) == POINTS:
        ends += f" ± {number(float(last.std(ddof=1)))}"
    return Cell(f"{peak} at {number(float(curve.steps[best]), 0)}", (ends,))


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
    always = constant_score(result)
    if always is not None:
        return f"always {number(always)}"
    return f"{found.kind}: {found.mean:+.1f} ± {found.error:.1f}"


def _values(result: CellResult) -> str:
    critic = critic_of(result)
    if critic is None:
        return UNKNOWN
    return f"{critic}" if critic.kind == "possible" else f"{critic}: {critic.kind}"
