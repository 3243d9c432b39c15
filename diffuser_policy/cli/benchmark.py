"""`diffuser-policy benchmark`: methods side by side, on the same data and episodes."""

from __future__ import annotations

import dataclasses
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from diffuser_policy.choices import EngineName
from diffuser_policy.cli.options import (
    Assignments,
    Flag,
    parse_assignments,
    print_table,
    shown_as,
    table,
)
from diffuser_policy.errors import ConfigError
from diffuser_policy.words import counted

if TYPE_CHECKING:
    from diffuser_policy.benchmark.cells import Cell
    from diffuser_policy.benchmark.suites import Suite

OVERVIEW = """\
Compare methods that train on the same data and act in the same episodes.

commands:
{commands}

  -h, --help  this page; after a command, its options

for example:
  diffuser-policy benchmark run tiny
  diffuser-policy benchmark report runs/benchmark-tiny"""

COMMANDS = {
    "run": "Train and evaluate the methods of a suite, or resume that.",
    "report": "Write tables and figures of the results.",
    "suites": "List the suites, or the problems and methods of one.",
}
EXIT_FAILED = 1
# Options that may be given several times, each time with several values.
Lists = tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]]


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Train every method of a suite on every problem, evaluate it, keep the results.

    One method on one problem with one training seed is a cell, which runs in its own
    process with one thread. Stop the run at any time: the same command resumes it and
    does not repeat finished cells. If a cell fails, the others continue.
    """

    suite: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SUITE")]
    """Name of a suite (`diffuser-policy benchmark suites`), or a TOML file."""
    methods: Annotated[Lists, shown_as("NAME …")] = ()
    """Run only these methods of the suite, or others: by name, as module:function or as
    file.py:function."""
    problems: Annotated[Lists, shown_as("NAME …", aliases=["--envs"])] = ()
    """Run only these problems of the suite: names such as multi2d-large, or ids of
    environments."""
    seeds: Annotated[Lists, shown_as("N …")] = ()
    """Training seeds, instead of the suite's."""
    budget: Annotated[int | None, shown_as("N")] = None
    """Exact number of gradient steps of every method that learns."""
    episodes: Annotated[int | None, shown_as("N")] = None
    """Episodes for each evaluation seed, instead of the suite's."""
    engine: EngineName = "process"
    """Where cells run: on this machine, on Slurm (extra `cluster`), on Ray (extra
    `ray`)."""
    engine_option: Assignments = ()
    """Setting of the engine; may be given several times. For example
    slurm_partition=cpu, timeout_min=600 or mem_gb=8 for submitit, address=auto or
    num_gpus=1 for Ray. In double quotes, none, true and false are texts."""
    workers: Annotated[int | None, shown_as("N")] = None
    """Cells that run at the same time (default: one per core of this machine)."""
    output: Annotated[Path | None, shown_as("FOLDER")] = None
    """Folder for the results (default: runs/benchmark-SUITE)."""
    retry: bool = True
    """Run cells again that failed in an earlier run."""
    mixed_versions: Flag = False
    """Accept results in the folder that other versions of packages made."""

    def chosen(self) -> tuple[Suite, tuple[Cell, ...]]:
        """Return the suite with the settings that were given, and its chosen cells.

        Raises:
            ConfigError: An option without a value, or seeds that are no numbers.
            UnknownNameError: No such suite or problem.
        """
        from diffuser_policy.benchmark.suites import load_suite

        suite = load_suite(self.suite)
        if self.budget is not None:
            suite = dataclasses.replace(
                suite, num_steps=self.budget, max_steps=None, num_steps_of={}
            )
        if self.episodes is not None:
            changed = dataclasses.replace(suite.evaluation, episodes=self.episodes)
            suite = dataclasses.replace(suite, evaluation=changed)
        given: dict[str, list[str] | None] = {}
        for option in ("methods", "problems", "seeds"):
            lists: tuple[tuple[str, ...], ...] = getattr(self, option)
            if not all(lists):
                raise ConfigError(f"--{option} needs at least one value, got none.")
            given[option] = [value for values in lists for value in values] or None
        names: dict[str, list[str]] = {}
        for problem in suite.problems:
            names.setdefault(problem.env, []).append(problem.name)
        problems = given["problems"] and [
            found for name in given["problems"] for found in names.get(name, [name])
        ]
        try:
            texts = given["seeds"]
            seeds = None if texts is None else [int(text) for text in texts]
        except ValueError as error:  # the parser's own error is a page long
            raise ConfigError(
                f"--seeds takes whole numbers with spaces between them, such as "
                f"--seeds 0 1 2; got {' '.join(given['seeds'] or ())!r}."
            ) from error
        cells = suite.cells(methods=given["methods"], problems=problems, seeds=seeds)
        return suite, cells


@dataclass(frozen=True, kw_only=True)
class SuitesSettings:
    """List the suites, or the problems and methods of one."""

    suite: Annotated[tyro.conf.Positional[str | None], shown_as("[SUITE]")] = None
    """Name of a suite, or a TOML file."""


@dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """Write the report of a benchmark: Markdown, and one self-contained HTML page.

    Cells without a result are listed, and take no part in any figure.
    """

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
    """Folder of the benchmark."""
    output: Annotated[Path | None, shown_as("FOLDER")] = None
    """Where to write report.md, report.html and figures/ (default: DIR/report)."""
    mixed_versions: Flag = False
    """Accept cells that different versions made; the report names them."""


def run(settings: RunSettings) -> int:
    """Check everything, run the cells; return the exit status, 1 if a cell failed."""
    from diffuser_policy.benchmark.cells import CellFolder
    from diffuser_policy.benchmark.engines import ENGINES, check_engine
    from diffuser_policy.benchmark.runner import (
        Display,
        Runner,
        check_cells,
        check_folder,
        run_lock,
    )
    from diffuser_policy.benchmark.suites import write_suite
    from diffuser_policy.data.workers import num_cores
    from diffuser_policy.interrupts import stops_as_interrupt

    options = parse_assignments(settings.engine_option, option="--engine-option")
    suite, cells = settings.chosen()
    output = settings.output or Path("runs") / f"benchmark-{suite.name}"
    workers = num_cores() if settings.workers is None else settings.workers
    keep = settings.mixed_versions
    check_engine(settings.engine, workers=workers, options=options)
    check_folder(output, suite, cells, mixed_versions=keep)
    check_cells(cells, progress=True)
    try:
        with run_lock(output):
            # Once more: another run may have ended between the look and the lock.
            done = check_folder(output, suite, cells, mixed_versions=keep)
            write_suite(output, suite, settings.suite)
            with (
                ENGINES[settings.engine](workers, options, output) as engine,
                stops_as_interrupt(),  # after Ray, which has handlers of its own
                Display() as display,
            ):
                number = counted(len(cells), "cell")
                before = f", {len(done)} of them finished before" if done else ""
                display.say(
                    f"Suite {suite.name}: {number}{before}, in {output} "
                    f"({settings.engine})"
                )
                runner = Runner(output, engine, display, retry=settings.retry)
                runner.run(cells, done)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(
            f"nothing is running any more. The same command resumes the run in "
            f"{output}."
        ) from stop
    for cell, error in runner.failures.items():
        log = CellFolder(output.resolve(), cell).log
        print(f"{cell} failed: {error}\n  log: {log}")
    if runner.failures:
        without = "" if settings.retry else " without --no-retry"
        print(
            f"{len(runner.failures)} of {counted(len(cells), 'cell')} failed; the same "
            f"command{without} runs them again."
        )
        return EXIT_FAILED
    all_cells = "The only cell is" if len(cells) == 1 else f"All {len(cells)} cells are"
    print(f"{all_cells} finished: {output}")
    print(f"Next: diffuser-policy benchmark report {shlex.quote(str(output))}")
    return 0


def suites(settings: SuitesSettings) -> int:
    """List all suites, or the problems and methods of one; return the exit status."""
    from diffuser_policy.benchmark.suites import SUITES, load_suite

    if settings.suite is None:
        rows = (
            (suite.name, suite.purpose, len(suite.problems), len(suite.cells()))
            for suite in map(load_suite, SUITES)
        )
        print_table(table("suite", "purpose", "problems", "cells", rows=rows))
        print("\nOne of them: diffuser-policy benchmark suites SUITE")
        return 0
    suite = load_suite(settings.suite)
    cells = suite.cells()
    for problem in suite.problems:
        names = dict.fromkeys(_named(c) for c in cells if c.problem == problem)
        print(f"{problem.name}: {', '.join(names)}")
        print(f"    {problem.env}, goals: {problem.goals}, data: {problem.dataset}")
    budget = "each method's own number of gradient steps"
    if suite.num_steps is not None:
        budget = f"{suite.num_steps:,} gradient steps"
        if suite.max_steps not in (None, suite.num_steps):
            budget += f", up to {suite.max_steps:,} while the learning curve rises"
    print(
        f"\n{counted(len(cells), 'cell')}. Training seeds "
        f"{', '.join(map(str, suite.seeds))}; {budget}; evaluation on "
        f"{counted(suite.evaluation.episodes, 'episode')} from each of "
        f"the seeds {', '.join(map(str, suite.evaluation.seeds))}."
    )
    for method in suite.methods:
        others = []
        if method in suite.num_steps_of:
            others.append(f"{suite.num_steps_of[method]:,} gradient steps")
        if method in suite.seeds_of:
            seeds = ", ".join(map(str, suite.seeds_of[method]))
            others.append(f"training seeds {seeds}")
        if others:
            print(f"{method}: {', '.join(others)}.")
    return 0


def _named(cell: Cell) -> str:
    """Return a cell's method, and its planner if that is not trained here."""
    planner = cell.settings.get("planner")
    return f"{cell.method} (planner {planner}, not trained)" if planner else cell.method


def report(settings: ReportSettings) -> int:
    """Write the report, print its tables of scores; return the exit status."""
    from diffuser_policy.benchmark.report import compact_tables, write_report

    written = write_report(
        settings.folder, settings.output, mixed=settings.mixed_versions
    )
    print(compact_tables(written.study))
    for cell in written.study.open_cells:
        detail = f": {cell.detail}" if cell.detail else ""
        print(f"No result: {cell.name} ({cell.kind}{detail})")
    print(f"Wrote {written.markdown}")
    print(f"Wrote {written.html}")
    return 0
