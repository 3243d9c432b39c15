"""How numbers, times and commands are written."""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffuser_policy.benchmark.cells import Cell
from diffuser_policy.benchmark.report.study import Row, Study
from diffuser_policy.benchmark.suites import SUITES, load_suite
from diffuser_policy.errors import DiffuserPolicyError
from diffuser_policy.evaluation.statistics import Interval

MINUTE, HOUR = 60.0, 3600.0
UNKNOWN = "–"
LONG = 1500  # characters of settings that a table can bear


def number(value: float | None, digits: int = 1) -> str:
    """Return a number, or a dash where there is none."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    text = f"{value:,.{digits}f}"
    return text.removeprefix("-") if float(text.replace(",", "")) == 0 else text


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


def signed(value: float) -> str:
    """Return a difference with its sign."""
    text = number(value)
    return text if value <= 0 or text == UNKNOWN else f"+{text}"


def duration(seconds: float | None) -> str:
    """Return a time in the unit that suits it."""
    if seconds is None or not math.isfinite(seconds):
        return UNKNOWN
    if seconds < 2 * MINUTE:
        return f"{seconds:.1f} s"
    if seconds < 2 * HOUR:
        return f"{seconds / MINUTE:.1f} min"
    return f"{seconds / HOUR:.1f} h"


def spread(values: Iterable[float | None], digits: int = 0) -> str:
    """Return the range of numbers, as "1 – 5", or the one that all are."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return UNKNOWN
    low, high = number(min(known), digits), number(max(known), digits)
    return low if low == high else f"{low} – {high}"


def listed(names: Sequence[str]) -> str:
    """Return names as "a, b and c"."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def compact(data: Any) -> str:
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


def shown_folder(study: Study) -> str:
    """Return the benchmark's folder as commands name it: no path of this machine."""
    relative = Path(os.path.relpath(study.folder)).as_posix()
    return study.folder.name if relative.startswith("..") else relative


def report_command(study: Study) -> str:
    """Return the command that makes the report of the results that are there."""
    return _report_of(shown_folder(study))


def _report_of(folder: str) -> str:
    return f"diffuser-policy benchmark report {shlex.quote(folder)}"


def run_command(study: Study, rows: Sequence[Row], methods: Sequence[str]) -> str:
    """Return the commands that make the results of some problems and methods anew.

    They name another folder: in that of the results, all is finished.

    Args:
        study: The benchmark.
        rows: Problems.
        methods: Names.
    """
    entries = [study.entry(row, method) for row in rows for method in methods]
    cells = [r.cell for entry in entries if entry is not None for r in entry.results]
    alike: dict[tuple[str, ...], list[Cell]] = {}
    for cell in cells:
        start = (_source(study, cell.suite), *_suite_options(study, cell))
        alike.setdefault(start, []).append(cell)
    lines, output = [], f"{shown_folder(study)}-again"
    for start, own in sorted(alike.items()):
        made, solved = {c.method for c in own}, {c.problem.name for c in own}
        parts = ["diffuser-policy", "benchmark", "run", *start]
        parts += ["--methods", *(name for name in methods if name in made)]
        parts += ["--problems", *(row.name for row in rows if row.name in solved)]
        parts += ["--seeds", *map(str, sorted({cell.seed for cell in own}))]
        lines.append(shlex.join([*parts, "--output", output]))
    return "\n".join([*lines, _report_of(output)])


def _source(study: Study, suite: str) -> str:
    """Return a suite as commands name it: by name or file, no path of this machine."""
    known = suite if suite in SUITES else f"{suite}.toml" if suite else "SUITE"
    source = study.sources.get(suite, known)
    if not Path(source).is_absolute():
        return source
    relative = Path(os.path.relpath(source)).as_posix()
    return Path(source).name if relative.startswith("..") else relative


def _suite_options(study: Study, cell: Cell) -> list[str]:
    """Return the options by which a cell's run differs from its suite."""
    try:
        known = load_suite(study.sources.get(cell.suite, cell.suite))
    except DiffuserPolicyError:
        return []  # its file is not here to compare with
    options = []
    budget = (cell.num_steps, cell.max_steps)
    suites = (known.num_steps, known.max_steps)
    if budget != suites and cell.num_steps is not None and cell.max_steps is None:
        options += ["--budget", str(cell.num_steps)]
    if cell.evaluation.episodes != known.evaluation.episodes:
        options += ["--episodes", str(cell.evaluation.episodes)]
    return options
