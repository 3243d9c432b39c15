"""The commands that make a benchmark's results and its report again."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from diffuser_policy.benchmark.cells import Cell
from diffuser_policy.benchmark.report.study import Study
from diffuser_policy.benchmark.suites import SUITES, load_suite
from diffuser_policy.errors import DiffuserPolicyError


def run_commands(study: Study) -> list[str]:
    """Return the commands that run all finished cells again, and report them.

    Cells of different suites or budgets need a command each. The commands name another
    folder, because the cells in the folder of the results are finished.
    """
    alike: dict[tuple[str, ...], list[Cell]] = {}
    for cell in (result.cell for result in study.results):
        start = (_source(study, cell.suite), *_suite_options(study, cell))
        alike.setdefault(start, []).append(cell)
    lines, output = [], f"runs/{study.folder.name}-again"
    for start, cells in sorted(alike.items()):
        methods, problems = {c.method for c in cells}, {c.problem.name for c in cells}
        parts = ["diffuser-policy", "benchmark", "run", *start]
        parts += ["--methods", *(name for name in study.methods if name in methods)]
        parts += ["--problems", *(r.name for r in study.rows if r.name in problems)]
        parts += ["--seeds", *map(str, sorted({cell.seed for cell in cells}))]
        lines.append(shlex.join([*parts, "--output", output]))
    return [*lines, report_command(output)]


def report_command(folder: str) -> str:
    """Return the command that makes the report of a folder."""
    return shlex.join(["diffuser-policy", "benchmark", "report", folder])


def shown_path(path: Path) -> str:
    """Return a path as commands name it: from here, and no path of this machine."""
    relative = Path(os.path.relpath(path)).as_posix()
    return path.name if relative.startswith("..") else relative


def _source(study: Study, suite: str) -> str:
    """Return the name or the file of a suite."""
    known = suite if suite in SUITES else f"{suite}.toml" if suite else "SUITE"
    source = study.sources.get(suite, known)
    return shown_path(Path(source)) if Path(source).is_absolute() else source


def _suite_options(study: Study, cell: Cell) -> list[str]:
    """Return the options by which a cell's run differs from its suite."""
    try:
        known = load_suite(study.sources.get(cell.suite, cell.suite))
    except DiffuserPolicyError:
        return []  # without the suite's file there is nothing to compare with
    options = []
    budget = (cell.num_steps, cell.max_steps)
    suites = (known.num_steps, known.max_steps)
    if budget != suites and cell.num_steps is not None and cell.max_steps is None:
        options += ["--budget", str(cell.num_steps)]
    if cell.evaluation.episodes != known.evaluation.episodes:
        options += ["--episodes", str(cell.evaluation.episodes)]
    return options
