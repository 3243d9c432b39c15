"""Tables, and the facts of a report in them, but for the scores.

`templates/reading.j2` explains the words of all tables.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffuser_policy.benchmark.cells import CellResult
from diffuser_policy.benchmark.context import POINTS, rise_of
from diffuser_policy.benchmark.report.study import (
    PLANNER,
    Entry,
    Row,
    Study,
    critic_of,
    curve_end,
    curve_of,
    is_loaded,
    mixed_versions,
)
from diffuser_policy.evaluation.records import scores_in
from diffuser_policy.evaluation.statistics import Interval, run_interval
from diffuser_policy.words import counted

MINUTE, HOUR = 60.0, 3600.0
UNKNOWN, NO_RESULT, LOADED = "–", "missing", "trained before"
MOST_NAMED = 8  # cells of a kind that are listed by name
LONG = 1500  # characters of settings that a table can bear
# In other columns or tables; "flat" is in older results.
SHOWN_FACTS = {"num_steps", "num_parameters", "settings", "values", "flat"}
NOT_ACTING = {"class", "seed"}  # facts of a policy that do not affect how it acts
EXECUTORS: dict[str, str] = {
    "actions": "the planned actions",
    "tracking": "a controller tracking the planned states",
    "pursuit": "a controller pursuing the planned path",
    "path": "a controller keeping to the planned path",
    "inverse-dynamics": "learned inverse dynamics of the planned states",
    "features": "the inverse of the planned features",
}
GOALS = {"none": "one task", "hindsight": "relabelled in hindsight"}


@dataclass(frozen=True)
class Cell:
    """A cell of a table, as plain text; templates escape it.

    Attributes:
        text: First line.
        small: Further lines, less prominent.
        strong: Whether the first line stands out.
        published: Whether others measured it, on other data.
    """

    text: str
    small: tuple[str, ...] = ()
    strong: bool = False
    published: bool = False


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table.

    Attributes:
        title: Shown above it.
        header: Names of the columns; the first is that of the rows' names.
        rows: Each has as many cells as the header; the first cell names the row.
        note: Shown below it.
        published: Whether others measured the figures, on other data.
        averages: Indices of the rows that average others.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    published: bool = False
    averages: frozenset[int] = frozenset()

    @property
    def text_columns(self) -> set[int]:
        """Indices of the columns that hold text, which reads from the left."""
        return {
            column
            for row in self.rows
            for column, cell in enumerate(row)
            if cell.text not in (NO_RESULT, LOADED)
            and cell.text[:1] not in "0123456789+-−–"
        }


def table_of(title: str, rows: Iterable[Mapping[str, object]]) -> Table | None:
    """Return a table of rows, each from header to text; None without rows."""
    found = [*rows]
    if not found:
        return None
    cells = tuple(tuple(Cell(str(text)) for text in row.values()) for row in found)
    return Table(title=title, header=tuple(found[0]), rows=cells)


def _name(study: Study, entry: Entry) -> str:
    return f"{entry.row.title}, {study.label(entry.method)}"


def number(value: float | None, digits: int = 1) -> str:
    """Return a number, or a dash where there is none."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    text = f"{value:,.{digits}f}"
    return text.removeprefix("-") if float(text.replace(",", "")) == 0 else text


def signed(value: float) -> str:
    """Return a difference with its sign."""
    text = number(value)
    return text if value <= 0 or text == UNKNOWN else f"+{text}"


def ends(interval: Interval, *, digits: int = 1, scale: float = 1.0) -> str:
    """Return the ends of an interval, as "[1.0, 2.0]"; nothing if they are unknown."""
    if not math.isfinite(interval.low):
        return ""
    low, high = (number(scale * end, digits) for end in (interval.low, interval.high))
    return f"[{low}, {high}]"


def estimate(interval: Interval | None, *, digits: int = 1, scale: float = 1.0) -> str:
    """Return a mean with its interval, as "1.5 [1.0, 2.0]"."""
    if interval is None:
        return UNKNOWN
    mean = number(scale * interval.mean, digits)
    return f"{mean} {ends(interval, digits=digits, scale=scale)}".rstrip()


def duration(seconds: float) -> str:
    """Return a time in the unit that suits it."""
    if seconds < 2 * MINUTE:
        return f"{seconds:.1f} s"
    if seconds < 2 * HOUR:
        return f"{seconds / MINUTE:.1f} min"
    return f"{seconds / HOUR:.1f} h"


def spread(values: Iterable[float | None], digits: int = 0) -> str:
    """Return the range of numbers, as "1 – 5", or the one number that all are."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return UNKNOWN
    low, high = number(min(known), digits), number(max(known), digits)
    return low if low == high else f"{low} – {high}"


def compact(data: Any) -> str:
    """Return JSON data on one line, as "a: 1; b.c: 2", cut where it gets very long."""
    text = "; ".join(_leaves(data, ""))
    return (text if len(text) <= LONG else f"{text[:LONG]} …") or UNKNOWN


def _leaves(data: Any, name: str) -> Iterator[str]:
    """Yield the leaves of a tree, each with the names that lead to it."""
    if isinstance(data, Mapping):
        for key, value in data.items():
            yield from _leaves(value, f"{name}.{key}" if name else str(key))
    elif data is not None and data != []:
        text = data if isinstance(data, str) else json.dumps(data, default=str)
        yield f"{name}: {text}" if name else text


# --- overview and warnings ----------------------------------------------------------


def scope_table(study: Study) -> Table | None:
    """Return what the benchmark consists of."""
    done = len(study.results)
    episodes = sum(len(result.episodes) for result in study.results)
    facts = {
        "suite": ", ".join(study.suites),
        "problems": len(study.rows),
        "methods": len(study.methods),
        "cells with a result": f"{done} of {done + len(study.open_cells)}",
        "episodes": number(episodes, 0),
        "scores": study.note,
    }
    known = [{"fact": name, "value": text} for name, text in facts.items() if text]
    return table_of("Scope", known)


def method_table(study: Study) -> Table | None:
    """Return what each method learned from, and what turns its plans into actions."""
    rows = []
    for method, results in _by_method(study):
        seeds = Counter(result.cell.problem.name for result in results)
        names = {r.policy.get("execution", {}).get("executor") for r in results}
        ways = sorted(EXECUTORS.get(name, name) for name in names if name)
        parts = [part for r in results for part in r.policy.get("guide") or ()]
        guides = {str(part.get("guide", "unnamed")) for part in parts}
        loaded = [result for result in results if is_loaded(result)]
        training, data = UNKNOWN, "no dataset"
        if loaded:
            known = sorted({str(r.policy.get("dataset") or "") for r in loaded} - {""})
            training, data = LOADED, ", ".join(known) or "not recorded"
        elif any(result.dataset is not None for result in results):
            training, data = "trained here", "the problem's dataset"
        row = {
            "method": method,
            "training": training,
            "data": data,
            "acts through": ", ".join(ways) or "its own actions",
            "guides": ", ".join(sorted(guides)) or UNKNOWN,
            "training seeds": spread(seeds.values()),
        }
        rows.append(row)
    return table_of("Methods", rows)


def _by_method(study: Study) -> list[tuple[str, list[CellResult]]]:
    """Return the results of each method, by its name in tables."""
    return [
        (study.label(m), [r for r in study.results if r.cell.method == m])
        for m in study.methods
    ]


def warning_table(study: Study) -> Table | None:
    """Return what to know before comparing: gaps, differences, odd trainings."""
    found: dict[str, list[str]] = {
        f"cell {kind}": [cell.name for cell in study.open_cells if cell.kind == kind]
        for kind in ("failed", "unfinished", "not begun")
    }
    mixed = found["package in several versions"] = []
    for package, groups in mixed_versions(study.versions).items():
        told = [f"{v} ({counted(len(cells), 'cell')})" for v, cells in groups.items()]
        mixed.append(f"{package} {', '.join(told)}")
    found["methods ran different episodes"] = [
        row.title for row in study.rows if _episodes_differ(study, row)
    ]
    entries = study.entries.values()
    repeated = {e.method for e in entries if sum(map(is_loaded, e.results)) > 1}
    numbers: dict[str, set[int]] = {}
    for entry in entries:
        numbers.setdefault(entry.method, set()).add(len(entry.results))
    found["more training seeds on some problems than on others"] = [
        study.label(method) for method in study.methods if len(numbers[method]) > 1
    ]
    found["training seeds share one planner"] = [
        study.label(method) for method in study.methods if method in repeated
    ]
    found["planner trained on other data"] = [
        result.cell.id
        for result in study.results
        if is_loaded(result)
        and result.policy.get("dataset") not in (None, result.cell.problem.dataset)
    ]
    found["critic diverged, and its last good state is shown"] = [
        r.cell.id for r in study.results if r.training.get("diverged_at_step")
    ]
    for end in ("rising", "falling", "constant"):
        found[f"learning curve {end} at the end"] = [
            result.cell.id for result in study.results if curve_end(result) == end
        ]
    critics = [(r.cell.id, c) for r in study.results if (c := critic_of(r))]
    for verdict in ("too high", "too low"):
        found[f"critic's values {verdict}"] = [
            name for name, critic in critics if critic.verdict == verdict
        ]
    rows = [
        {"warning": text, "number": len(names), "where": _some(names)}
        for text, names in found.items()
        if names
    ]
    return table_of("Check before comparing", rows)


def _some(names: Sequence[str]) -> str:
    """Return names, the first of them if they are many."""
    rest = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f", and {rest} more" if rest > 0 else "")


def _episodes_differ(study: Study, row: Row) -> bool:
    runs = [run for e in study.entries_of([row]) for run in e.by_seed(row.measure)]
    return len({frozenset(run) for run in runs}) > 1


def open_table(study: Study) -> Table | None:
    """Return the cells without a result, if any; many that wait, by their method."""
    waiting = [cell.name for cell in study.open_cells if cell.kind == "not begun"]
    many = len(waiting) > MOST_NAMED
    rows = [
        {"cell": cell.name, "state": cell.kind, "detail": cell.detail or UNKNOWN}
        for cell in study.open_cells
        if not (many and cell.kind == "not begun")
    ]
    if many:
        by_method = Counter(name.split("--")[1] for name in waiting)
        rows += [
            {
                "cell": f"{counted(number, 'cell')} of {study.label(method)}",
                "state": "not begun",
                "detail": UNKNOWN,
            }
            for method, number in by_method.items()
        ]
    return table_of("Cells without a result", rows)


# --- trainings ----------------------------------------------------------------------


def curve_table(study: Study) -> Table | None:
    """Return the end and the peak of each learning curve, if any."""
    rows = []
    for entry in study.entries_of(study.rows):
        curve, planner = curve_of(entry), study.entry(entry.row, PLANNER)
        if curve is None:
            continue
        best, points = int(curve.mean.argmax()), curve.mean[-POINTS:]
        last = number(float(points.mean()))
        if len(points) == POINTS:
            last += f" ± {number(float(points.std(ddof=1)))}"
        above = planner and signed(float(curve.mean[best]) - planner.score.mean)
        rises = [rise_of(result.curve) for result in entry.results]
        changes = [f"{r.mean:+.1f} ± {r.error:.1f}" if r else UNKNOWN for r in rises]
        row = {
            "problem, method": _name(study, entry),
            "last": number(curve.mean[-1]),
            f"last {POINTS}": last,
            "peak, at step": f"{number(curve.mean[best])} at "
            f"{number(curve.steps[best], 0)}",
            f"peak − {study.label(PLANNER)}": above or UNKNOWN,
            "change at the end": "; ".join(changes),
            "verdict": "; ".join(curve_end(r) or UNKNOWN for r in entry.results),
        }
        rows.append(row)
    return table_of("Learning curves", rows)


def critic_table(study: Study) -> Table | None:
    """Return critics' values of the data's actions, and the allowed range, if any."""
    headers = ("5 %", "median", "95 %", "lowest allowed", "highest allowed")
    found = [(result.cell.id, critic_of(result)) for result in study.results]
    rows = [
        {
            "cell": name,
            **{text: number(v, 0) for text, v in zip(headers, critic, strict=True)},
            "median is": critic.verdict,
        }
        for name, critic in found
        if critic is not None
    ]
    return table_of("Critics' values of the data's actions", rows)


def compute_table(study: Study) -> Table | None:
    """Return what each method took over all of its cells."""
    rows = []
    for method, results in _by_method(study):
        trainings = [result.training for result in results]
        timings = [result.timing for result in results]
        row = {
            "method": method,
            "cells": len(results),
            "gradient steps": spread(t.get("num_steps") for t in trainings),
            "parameters": spread(t.get("num_parameters") for t in trainings),
            **_times(results),
            "evaluation, clock": _time(results, "evaluate_seconds"),
            "ms per action": spread((t.get("act_ms") for t in timings), 2),
            "ms per plan": spread((t.get("plan_ms") for t in timings), 1),
        }
        rows.append(row)
    return table_of("Computing per method", rows)


def budget_table(study: Study, rows: Sequence[Row]) -> Table | None:
    """Return what one training of each method took on each problem."""
    methods, lines = study.methods_of(rows), []
    for row in rows:
        found = [study.entry(row, method) for method in methods]
        lines.append((Cell(row.title), *map(_budget_cell, found)))
    if not methods:
        return None
    return Table(
        title="CPU minutes of one training",
        header=("problem", *map(study.label, methods)),
        rows=tuple(lines),
        note="Below: gradient steps, and CPU minutes of evaluating one training seed.",
    )


def _budget_cell(entry: Entry | None) -> Cell:
    if entry is None:
        return Cell(NO_RESULT)

    def minutes(name: str) -> str:
        found = [result.timing.get(name) or 0.0 for result in entry.results]
        return number(sum(found) / len(found) / MINUTE)

    steps = spread(result.training.get("num_steps") for result in entry.results)
    small = [] if steps == UNKNOWN else [f"{steps} steps"]
    small.append(f"evaluation {minutes('evaluate_cpu_seconds')}")
    loaded = any(map(is_loaded, entry.results))
    return Cell(LOADED if loaded else minutes("train_cpu_seconds"), tuple(small))


def cell_table(study: Study) -> Table | None:
    """Return the budget, the time and the seeds of every cell."""
    rows = [
        {
            "cell": result.cell.id,
            "gradient steps": number(result.training.get("num_steps"), 0),
            "parameters": number(result.training.get("num_parameters"), 0),
            **_times([result]),
            "evaluation": _time([result], "evaluate_seconds"),
            "evaluation seeds": ", ".join(map(str, result.cell.evaluation.seeds)),
            "episodes of each": result.cell.evaluation.episodes,
            **{
                name: result.timing.get(name, UNKNOWN)
                for name in ("attempts", "machine", "finished")
            },
        }
        for result in study.results
    ]
    return table_of("Cells", rows)


def _time(results: Sequence[CellResult], name: str) -> str:
    return duration(sum(result.timing.get(name) or 0.0 for result in results))


def _times(results: Sequence[CellResult]) -> dict[str, str]:
    """Return the times of trainings; loading a planner is no training."""
    trained = [result for result in results if not is_loaded(result)]
    names = {"CPU": "train_cpu_seconds", "clock": "train_seconds"}
    return {
        f"training, {kind}": _time(trained, name) if trained else LOADED
        for kind, name in names.items()
    }


def settings_table(study: Study) -> Table | None:
    """Return the settings of each method on each problem, and facts it recorded."""

    def rest(facts: Mapping[str, Any], shown: set[str]) -> str:
        return compact({k: v for k, v in facts.items() if k not in shown})

    rows = []
    for entry in study.entries_of(study.rows):
        first = entry.results[0]
        row = {
            "problem, method": _name(study, entry),
            "training": compact(first.training.get("settings") or first.cell.settings),
            "policy": rest(first.policy, NOT_ACTING),
            "recorded, first training seed": rest(first.training, SHOWN_FACTS),
        }
        rows.append(row)
    return table_of("Settings", rows)


# --- outcomes, data, versions -------------------------------------------------------


def outcome_table(study: Study, rows: Sequence[Row]) -> Table | None:
    """Return all figures of episodes, one method on one problem a row."""
    entries = study.entries_of(rows)
    episodes = [e for entry in entries for r in entry.results for e in r.episodes]
    scores = {name for e in episodes for name in scores_in(e.get("details", {}))}
    lines = [
        {
            "problem, method": _name(study, entry),
            "score": estimate(entry.score if entry.row.measure == "score" else None),
            "success, %": estimate(entry.rate("success"), scale=100),
            "success at the end, %": estimate(entry.rate("final_success"), scale=100),
            "env steps to the goal": estimate(entry.time_to_goal),
            **{
                name.replace("_", " "): estimate(run_interval(entry.values(name)))
                for name in (*sorted(scores), "return")
            },
            "episodes": entry.values("return").size,
            "training seeds": ", ".join(str(r.cell.seed) for r in entry.results),
        }
        for entry in entries
    ]
    return table_of("Outcomes", lines)


def failure_table(study: Study, rows: Sequence[Row]) -> Table | None:
    """Return the number of failed episodes by the environments' reasons, if any."""
    found = []
    for entry in study.entries_of(rows):
        details = [e.get("details", {}) for r in entry.results for e in r.episodes]
        reasons = [each.get("failure") for each in details]
        counts = Counter(str(reason) for reason in reasons if reason is not None)
        found.append((_name(study, entry), counts, len(reasons)))
    totals = sum((counts for _, counts, _ in found), Counter[str]())
    ordered = sorted(totals, key=lambda reason: (-totals[reason], reason))
    lines = [
        {
            "problem, method": name,
            **{reason: counts[reason] for reason in ordered},
            "failed": counts.total(),
            "episodes": number_of_episodes,
        }
        for name, counts, number_of_episodes in found
    ]
    return table_of("Failures by reason", lines if totals else [])


def dataset_table(study: Study) -> Table | None:
    """Return each problem's environment and data."""
    rows = []
    for row in study.rows:
        recorded = [entry.results[0].dataset for entry in study.entries_of([row])]
        facts = dict(next(filter(None, recorded), {}))
        num_steps, _ = facts.pop("num_steps", None), facts.pop("id", None)
        line = {
            "problem": row.title,
            "environment": row.problem.env,
            "its settings": compact(row.problem.env_options),
            "dataset": row.problem.dataset,
            "goals": GOALS[row.problem.goals],
            "transitions": number(num_steps, 0),
            "collection": compact(facts),
        }
        rows.append(line)
    return table_of("Problems and data", rows)


def version_table(study: Study) -> Table | None:
    """Return the versions that made the results."""
    rows = [
        {
            "package": package,
            "version": ", ".join(groups),
            "cells": sum(map(len, groups.values())),
        }
        for package, groups in sorted(study.versions.items())
    ]
    return table_of("Versions", rows)
