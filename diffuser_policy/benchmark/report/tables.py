"""Tables, and the facts of a report in them, but for the scores.

`templates/reading.j2` explains the words of all tables.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, TypeVar

from diffuser_policy.benchmark.cells import CellResult
from diffuser_policy.benchmark.context import POINTS, rise_of
from diffuser_policy.benchmark.report.estimates import run_interval
from diffuser_policy.benchmark.report.study import (
    PLANNER,
    Critic,
    Curve,
    Entry,
    OpenCell,
    Row,
    Study,
    critic_of,
    curve_end,
    curve_of,
    is_loaded,
    mixed_versions,
)
from diffuser_policy.evaluation.statistics import Interval

MINUTE, HOUR = 60.0, 3600.0
UNKNOWN, NO_RESULT, LOADED = "–", "missing", "trained before"
LONG = 1500  # characters of settings that a table can bear
# In other columns or tables; "flat" is in older results.
SHOWN_FACTS = {"num_steps", "num_parameters", "settings", "values", "flat"}
NOT_ACTING = {"class", "seed"}  # facts of a policy that do not affect how it acts
EXECUTORS = {
    "pursuit": "a controller pursuing the planned path",
    "path": "a controller keeping to the planned path",
    "features": "the inverse of the planned features",
}
GOALS = {"none": "one task", "hindsight": "relabelled in hindsight"}

Item = TypeVar("Item")
Columns = dict[str, Callable[[Item], object]]  # header → text of an item


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


def table_of(title: str, items: Iterable[Item], columns: Columns[Item]) -> Table | None:
    """Return a table with a row for each item; None without items."""
    rows = [tuple(Cell(str(text(item))) for text in columns.values()) for item in items]
    return Table(title=title, header=tuple(columns), rows=tuple(rows)) if rows else None


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


# Overview and warnings


def scope_table(study: Study) -> Table | None:
    """Return what the benchmark consists of."""
    done = len(study.results)
    episodes = sum(len(result.episodes) for result in study.results)
    facts = {
        "suite": ", ".join(study.suites),
        "problems": str(len(study.rows)),
        "methods": str(len(study.methods)),
        "cells with a result": f"{done} of {done + len(study.open_cells)}",
        "episodes": number(episodes, 0),
        "scores": study.note,
    }
    known = [(name, text) for name, text in facts.items() if text]
    return table_of("Scope", known, {"fact": itemgetter(0), "value": itemgetter(1)})


def method_table(study: Study) -> Table | None:
    """Return what each method learned from, and what turns its plans into actions."""

    def acting(results: Sequence[CellResult]) -> str:
        names = {r.policy.get("execution", {}).get("executor") for r in results}
        ways = sorted(EXECUTORS[name] for name in names if name in EXECUTORS)
        return ", ".join(ways) or "its own actions"

    def guides(results: Sequence[CellResult]) -> str:
        parts = [part for r in results for part in r.policy.get("guide") or ()]
        names = {str(part.get("guide", "unnamed")) for part in parts}
        return ", ".join(sorted(names)) or UNKNOWN

    columns: Columns[list[CellResult]] = {
        "method": lambda results: study.label(results[0].cell.method),
        "training": lambda results: _learned_from(results)[0],
        "data": lambda results: _learned_from(results)[1],
        "acts through": acting,
        "guides": guides,
        "training seeds": lambda results: len({r.cell.seed for r in results}),
    }
    return table_of("Methods", _by_method(study), columns)


def _by_method(study: Study) -> list[list[CellResult]]:
    return [[r for r in study.results if r.cell.method == m] for m in study.methods]


def _learned_from(results: Sequence[CellResult]) -> tuple[str, str]:
    """Return how a method came to its policy, and from which data."""
    loaded = [result for result in results if is_loaded(result)]
    if loaded:
        known = sorted({str(r.policy.get("dataset") or "") for r in loaded} - {""})
        return LOADED, ", ".join(known) or "not recorded"
    if any(result.dataset is not None for result in results):
        return "trained here", "the problem's dataset"
    return UNKNOWN, "no dataset"


def warning_table(study: Study) -> Table | None:
    """Return what to know before comparing: gaps, differences, odd trainings."""
    results = study.results
    repeated = {
        entry.method
        for entry in study.entries.values()
        if sum(map(is_loaded, entry.results)) > 1
    }
    critics = [(r.cell.id, critic_of(r)) for r in results]
    found = {
        f"cell {kind}": [cell.name for cell in study.open_cells if cell.kind == kind]
        for kind in ("failed", "unfinished", "not begun")
    }
    found |= {
        "package in several versions": [
            f"{package} {', '.join(f'{v} ({len(c)} cells)' for v, c in groups.items())}"
            for package, groups in mixed_versions(study.versions).items()
        ],
        "methods ran different episodes": [
            row.title for row in study.rows if _episodes_differ(study, row)
        ],
        "training seeds share one planner": [
            study.label(method) for method in study.methods if method in repeated
        ],
        "planner trained on other data": [r.cell.id for r in results if _is_foreign(r)],
    }
    found |= {
        f"learning curve {kind} at the end": [
            result.cell.id for result in results if curve_end(result) == kind
        ]
        for kind in ("rising", "falling", "constant")
    }
    found |= {
        f"critic's values {verdict}": [
            name for name, critic in critics if critic and critic.verdict == verdict
        ]
        for verdict in ("too high", "too low")
    }
    warnings = [(text, names) for text, names in found.items() if names]
    columns: Columns[tuple[str, list[str]]] = {
        "warning": itemgetter(0),
        "number": lambda warning: len(warning[1]),
        "where": lambda warning: ", ".join(warning[1]),
    }
    return table_of("Check before comparing", warnings, columns)


def _is_foreign(result: CellResult) -> bool:
    """Return whether a planner was trained before, on other data than the problem's."""
    known = (None, result.cell.problem.dataset)
    return is_loaded(result) and result.policy.get("dataset") not in known


def _episodes_differ(study: Study, row: Row) -> bool:
    runs = [run for e in study.entries_of([row]) for run in e.by_seed(row.measure)]
    return len({frozenset(run) for run in runs}) > 1


def open_table(study: Study) -> Table | None:
    """Return the cells without a result, if any."""
    columns: Columns[OpenCell] = {
        "cell": lambda cell: cell.name,
        "state": lambda cell: cell.kind,
        "detail": lambda cell: cell.detail or UNKNOWN,
    }
    return table_of("Cells without a result", study.open_cells, columns)


# Trainings


def curve_table(study: Study) -> Table | None:
    """Return the end and the peak of each learning curve, if any."""
    entries = study.entries_of(study.rows)
    found = [(entry, curve) for entry in entries if (curve := curve_of(entry))]

    def last(pair: tuple[Entry, Curve]) -> str:
        points = pair[1].mean[-POINTS:]
        mean = number(float(points.mean()))
        if len(points) < POINTS:
            return mean
        return f"{mean} ± {number(float(points.std(ddof=1)))}"

    def peak(pair: tuple[Entry, Curve]) -> str:
        best = int(pair[1].mean.argmax())
        return f"{number(pair[1].mean[best])} at {number(pair[1].steps[best], 0)}"

    def above(pair: tuple[Entry, Curve]) -> str:
        planner = study.entry(pair[0].row, PLANNER)
        highest = float(pair[1].mean.max())
        return UNKNOWN if planner is None else signed(highest - planner.score.mean)

    def change(pair: tuple[Entry, Curve]) -> str:
        rises = [rise_of(result.curve) for result in pair[0].results]
        texts = [f"{r.mean:+.1f} ± {r.error:.1f}" if r else UNKNOWN for r in rises]
        return "; ".join(texts)

    columns: Columns[tuple[Entry, Curve]] = {
        "problem, method": lambda pair: _name(study, pair[0]),
        "last": lambda pair: number(pair[1].mean[-1]),
        f"last {POINTS}": last,
        "peak, at step": peak,
        f"peak − {study.label(PLANNER)}": above,
        "change at the end": change,
        "verdict": lambda pair: "; ".join(
            curve_end(result) or UNKNOWN for result in pair[0].results
        ),
    }
    return table_of("Learning curves", found, columns)


def critic_table(study: Study) -> Table | None:
    """Return critics' values of the data's actions, and the allowed range, if any."""
    found = [(r.cell.id, c) for r in study.results if (c := critic_of(r))]
    columns: Columns[tuple[str, Critic]] = {
        "cell": itemgetter(0),
        "5 %": lambda pair: number(pair[1].low, 0),
        "median": lambda pair: number(pair[1].median, 0),
        "95 %": lambda pair: number(pair[1].high, 0),
        "lowest allowed": lambda pair: number(pair[1].lowest, 0),
        "highest allowed": lambda pair: number(pair[1].highest, 0),
        "median is": lambda pair: pair[1].verdict,
    }
    return table_of("Critics' values of the data's actions", found, columns)


def compute_table(study: Study) -> Table | None:
    """Return what each method took over all of its cells."""
    columns: Columns[list[CellResult]] = {
        "method": lambda results: study.label(results[0].cell.method),
        "cells": len,
        "gradient steps": lambda rs: spread(r.training.get("num_steps") for r in rs),
        "parameters": lambda rs: spread(r.training.get("num_parameters") for r in rs),
        "training, CPU": lambda rs: _training_time(rs, "train_cpu_seconds"),
        "training, clock": lambda rs: _training_time(rs, "train_seconds"),
        "evaluation, clock": _evaluation_time,
        "ms per action": lambda rs: spread((r.timing.get("act_ms") for r in rs), 2),
        "ms per plan": lambda rs: spread((r.timing.get("plan_ms") for r in rs), 1),
    }
    return table_of("Computing per method", _by_method(study), columns)


def cell_table(study: Study) -> Table | None:
    """Return the budget, the time and the seeds of every cell."""
    columns: Columns[CellResult] = {
        "cell": lambda result: result.cell.id,
        "gradient steps": lambda r: number(r.training.get("num_steps"), 0),
        "parameters": lambda r: number(r.training.get("num_parameters"), 0),
        "training, CPU": lambda r: _training_time([r], "train_cpu_seconds"),
        "training, clock": lambda r: _training_time([r], "train_seconds"),
        "evaluation": lambda result: _evaluation_time([result]),
        "evaluation seeds": lambda r: ", ".join(map(str, r.cell.evaluation.seeds)),
        "episodes of each": lambda result: result.cell.evaluation.episodes,
        "attempts": lambda result: result.timing.get("attempts", UNKNOWN),
        "machine": lambda result: result.timing.get("machine", UNKNOWN),
        "finished": lambda result: result.timing.get("finished", UNKNOWN),
    }
    return table_of("Cells", study.results, columns)


def _training_time(results: Sequence[CellResult], name: str) -> str:
    """Return the time of trainings; loading a planner is no training."""
    trained = [result for result in results if not is_loaded(result)]
    if not trained:
        return LOADED
    return duration(sum(result.timing.get(name) or 0.0 for result in trained))


def _evaluation_time(results: Sequence[CellResult]) -> str:
    return duration(sum(r.timing.get("evaluate_seconds") or 0.0 for r in results))


def settings_table(study: Study) -> Table | None:
    """Return the settings of each method on each problem, and facts it recorded."""

    def training(entry: Entry) -> str:
        first = entry.results[0]
        return compact(first.training.get("settings") or first.cell.settings)

    def rest(facts: Mapping[str, Any], shown: set[str]) -> str:
        return compact({k: v for k, v in facts.items() if k not in shown})

    columns: Columns[Entry] = {
        "problem, method": lambda entry: _name(study, entry),
        "training": training,
        "policy": lambda entry: rest(entry.results[0].policy, NOT_ACTING),
        "recorded, first training seed": lambda entry: rest(
            entry.results[0].training, SHOWN_FACTS
        ),
    }
    return table_of("Settings", study.entries_of(study.rows), columns)


# Outcomes, data, versions


def outcome_table(study: Study, rows: Sequence[Row]) -> Table | None:
    """Return all figures of episodes, one method on one problem a row."""
    entries = study.entries_of(rows)
    episodes = [e for entry in entries for r in entry.results for e in r.episodes]
    details = {name for episode in episodes for name in episode.get("details", {})}

    def mean(name: str) -> Callable[[Entry], str]:
        return lambda entry: estimate(run_interval(entry.values(name)))

    columns: Columns[Entry] = {
        "problem, method": lambda entry: _name(study, entry),
        "score": lambda entry: estimate(entry.score),
        "success, %": lambda entry: estimate(entry.rate("success"), scale=100),
        "success at the end, %": lambda entry: estimate(
            entry.rate("final_success"), scale=100
        ),
        "env steps to the goal": lambda entry: estimate(entry.time_to_goal),
        **{
            name.replace("_", " "): mean(name)
            for name in sorted(details)
            if name.endswith("_score")
        },
        "return": mean("return"),
        "episodes": lambda entry: entry.values("return").size,
        "training seeds": lambda e: ", ".join(str(r.cell.seed) for r in e.results),
    }
    return table_of("Outcomes", entries, columns)


def failure_table(study: Study, rows: Sequence[Row]) -> Table | None:
    """Return the number of failed episodes by the environments' reasons, if any."""
    found = []
    for entry in study.entries_of(rows):
        details = [e.get("details", {}) for r in entry.results for e in r.episodes]
        reasons = [each.get("failure") for each in details]
        counts = Counter(str(reason) for reason in reasons if reason is not None)
        found.append((entry, counts, len(reasons)))
    totals = sum((counts for _, counts, _ in found), Counter[str]())
    ordered = sorted(totals, key=lambda reason: (-totals[reason], reason))

    def count(reason: str) -> Callable[[tuple[Entry, Counter[str], int]], int]:
        return lambda item: item[1][reason]

    columns: Columns[tuple[Entry, Counter[str], int]] = {
        "problem, method": lambda item: _name(study, item[0]),
        **{reason: count(reason) for reason in ordered},
        "failed": lambda item: item[1].total(),
        "episodes": itemgetter(2),
    }
    return table_of("Failures by reason", found if totals else [], columns)


def dataset_table(study: Study) -> Table | None:
    """Return each problem's environment and data."""

    def facts(row: Row) -> Mapping[str, Any]:
        found = [entry.results[0].dataset for entry in study.entries_of([row])]
        return next((known for known in found if known), {})

    def collection(row: Row) -> str:
        known = facts(row).items()
        return compact({k: v for k, v in known if k not in ("id", "num_steps")})

    columns: Columns[Row] = {
        "problem": lambda row: row.title,
        "environment": lambda row: row.problem.env,
        "its settings": lambda row: compact(row.problem.env_options),
        "dataset": lambda row: row.problem.dataset,
        "goals": lambda row: GOALS[row.problem.goals],
        "transitions": lambda row: number(facts(row).get("num_steps"), 0),
        "collection": collection,
    }
    return table_of("Problems and data", study.rows, columns)


def version_table(study: Study) -> Table | None:
    """Return the versions that made the results."""
    columns: Columns[tuple[str, Mapping[str, Sequence[str]]]] = {
        "package": itemgetter(0),
        "version": lambda pair: ", ".join(pair[1]),
        "cells": lambda pair: sum(map(len, pair[1].values())),
    }
    return table_of("Versions", sorted(study.versions.items()), columns)
