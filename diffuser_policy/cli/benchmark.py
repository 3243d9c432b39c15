"""`diffuser-policy benchmark`: methods side by side, on the same data and episodes."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from diffuser_policy.cli import EXIT_INTERRUPTED
from diffuser_policy.cli.options import parse_assignments, shown_as
from diffuser_policy.errors import ConfigError, UnknownNameError

if TYPE_CHECKING:
    from diffuser_policy.benchmark.cells import Cell
    from diffuser_policy.benchmark.runner import Outcome
    from diffuser_policy.benchmark.suites import Suite

OVERVIEW = """\
usage: diffuser-policy benchmark COMMAND [OPTIONS]

Methods side by side: trained on the same data, evaluated on the same episodes.

commands:
  run      Train and evaluate the methods of a suite, or go on where it stopped.
  report   Write the tables and pictures of what was run.
  suites   List the suites, or the problems and methods of one.

  -h, --help  this page; after a command, its options

for example:
  diffuser-policy benchmark run tiny
  diffuser-policy benchmark report runs/benchmark-tiny"""

EXIT_FAILED = 1


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Train every method of a suite on every problem, evaluate it, keep the results.

    A cell is one method on one problem with one training seed, and one process with one
    thread. Stop it at any time: the same command goes on where it was, and does not
    repeat what is finished. A cell that fails is reported, and the others go on.
    """

    suite: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SUITE")]
    """Name of a suite (`diffuser-policy benchmark suites`), or a TOML file."""
    methods: Annotated[tuple[str, ...] | None, shown_as("NAME …")] = None
    """Only these of the suite, or others: by name, as module:function or
    file.py:function."""
    problems: Annotated[
        tuple[str, ...] | None,
        tyro.conf.arg(metavar="NAME …", help_behavior_hint="", aliases=["--envs"]),
    ] = None
    """Only these of the suite, such as multi2d-large; ids of environments will do."""
    seeds: Annotated[tuple[str, ...] | None, shown_as("N …")] = None
    """Training seeds, instead of the suite's."""
    budget: Annotated[int | None, shown_as("N")] = None
    """Gradient steps of every method that learns; exactly so many."""
    episodes: Annotated[int | None, shown_as("N")] = None
    """Episodes for each evaluation seed, instead of the suite's."""
    executor: Literal["process", "submitit", "ray"] = "process"
    """Where cells run: on this machine, on Slurm (extra `cluster`), on Ray (extra
    `ray`)."""
    executor_option: tyro.conf.UseAppendAction[
        Annotated[tuple[str, ...], shown_as("KEY=VALUE")]
    ] = ()
    """Setting of the executor; may be given several times.
    For submitit slurm_partition=cpu, timeout_min=600 or mem_gb=8, for example;
    for Ray address=auto or num_gpus=1."""
    workers: Annotated[int | None, shown_as("N")] = None
    """Cells at a time (default: one per core of this machine)."""
    output: Annotated[Path | None, shown_as("FOLDER")] = None
    """Where results go (default: runs/benchmark-SUITE)."""
    retry: bool = True
    """Run cells again that failed in an earlier run."""
    mixed_versions: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Accept results in the folder that were made with other versions of packages."""

    def chosen_suite(self) -> Suite:
        """Return the suite, with the settings that were given."""
        from diffuser_policy.benchmark.suites import load_suite

        suite = load_suite(self.suite)
        if self.budget is not None:
            suite = dataclasses.replace(suite, num_steps=self.budget, max_steps=None)
        if self.episodes is not None:
            plan = dataclasses.replace(suite.evaluation, episodes=self.episodes)
            suite = dataclasses.replace(suite, evaluation=plan)
        return suite

    def chosen_cells(self, suite: Suite) -> tuple[Cell, ...]:
        """Return the cells that were asked for.

        Raises:
            ConfigError: An option that names nothing.
            UnknownNameError: No such problem.
        """
        for option in ("methods", "problems", "seeds"):
            if getattr(self, option) == ():
                raise ConfigError(f"--{option} needs at least one value, got none.")
        names = {problem.env: problem.name for problem in suite.problems}
        problems = self.problems and [names.get(name, name) for name in self.problems]
        seeds = None if self.seeds is None else _whole_numbers("--seeds", self.seeds)
        return suite.cells(methods=self.methods, problems=problems, seeds=seeds)

    def folder(self, suite: Suite) -> Path:
        """Return the output folder."""
        return self.output or Path("runs") / f"benchmark-{suite.name}"


@dataclass(frozen=True, kw_only=True)
class SuitesSettings:
    """List the suites, or the problems and methods of one."""

    suite: Annotated[
        tyro.conf.Positional[str | None],
        tyro.conf.arg(metavar="[SUITE]", help_behavior_hint=""),
    ] = None
    """Name of a suite, or a TOML file."""


@dataclass(frozen=True)
class Command:
    """A subcommand and its settings."""

    function: Callable[[Any], int]
    settings: Any


def parse(arguments: list[str]) -> Command:
    """Read the command line behind `benchmark`.

    Raises:
        UnknownNameError: No such subcommand.
    """
    if not arguments or arguments[0] in {"-h", "--help", "help"}:
        print(OVERVIEW)
        raise SystemExit(0 if arguments else 2)
    name, *rest = arguments
    if name not in {"run", "report", "suites"}:
        raise UnknownNameError(
            "command of benchmark", name, ("run", "report", "suites")
        )
    if name == "report":
        module = importlib.import_module("diffuser_policy.cli.benchmark_report")
        function, settings = module.run, module.ReportSettings
    elif name == "run":
        function, settings = run_suite, RunSettings
    else:
        function, settings = list_suites, SuitesSettings
    parsed = tyro.cli(
        settings,
        prog=f"diffuser-policy benchmark {name}",
        args=rest,
        use_underscores=False,
    )
    return Command(function, parsed)


def run(command: Command) -> int:
    """Run the subcommand.

    Returns:
        The exit status.
    """
    return command.function(command.settings)


def run_suite(settings: RunSettings) -> int:
    """Check everything, run the cells, and say what came of it.

    Args:
        settings: What to run.

    Returns:
        The exit status: 1 if a cell failed.
    """
    from diffuser_policy.benchmark.engines import check_engine, make_engine
    from diffuser_policy.benchmark.preflight import check_cells, check_folder
    from diffuser_policy.benchmark.progress import make_display
    from diffuser_policy.benchmark.runner import (
        Runner,
        run_lock,
        stops_as_interrupt,
    )
    from diffuser_policy.benchmark.suite_file import write_suite
    from diffuser_policy.data.workers import num_cores

    options = parse_assignments(settings.executor_option, option="--executor-option")
    suite = settings.chosen_suite()
    output = settings.folder(suite)
    cells = settings.chosen_cells(suite)
    workers = num_cores() if settings.workers is None else settings.workers
    keep = settings.mixed_versions
    check_engine(settings.executor, workers=workers, options=options)
    check_folder(output, suite, cells, mixed_versions=keep)
    check_cells(cells, progress=True)
    try:
        with run_lock(output):
            # Once more: another run may have ended between the look and the lock.
            done = check_folder(output, suite, cells, mixed_versions=keep)
            write_suite(output, suite, settings.suite)
            with (
                make_engine(
                    settings.executor, workers=workers, options=options, folder=output
                ) as engine,
                stops_as_interrupt(),  # after Ray, which has handlers of its own
                make_display() as display,
            ):
                display.say(_announcement(settings, suite, len(cells), len(done)))
                outcome = Runner(output, engine, display, retry=settings.retry).run(
                    cells, done
                )
    except KeyboardInterrupt:
        print(
            f"Stopped; nothing is running any more. The same command goes on in "
            f"{output}.",
            file=sys.stderr,
        )
        return EXIT_INTERRUPTED
    return _conclusion(outcome, output)


def list_suites(settings: SuitesSettings) -> int:
    """List all suites, or the problems and methods of one.

    Returns:
        The exit status.
    """
    from rich.console import Console
    from rich.table import Table

    from diffuser_policy.benchmark.suites import SUITES, load_suite

    if settings.suite is None:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for title in ("suite", "what for", "problems", "cells"):
            table.add_column(title, overflow="fold")
        for name, make in SUITES.items():
            suite, purpose = make(), (make.__doc__ or "").partition("\n")[0]
            table.add_row(
                name, purpose, str(len(suite.problems)), str(len(suite.cells()))
            )
        Console().print(table)
        print("\nOne of them: diffuser-policy benchmark suites SUITE")
        return 0
    suite = load_suite(settings.suite)
    cells = suite.cells()
    for problem in suite.problems:
        names = dict.fromkeys(c.method for c in cells if c.problem == problem)
        print(f"{problem.name}: {', '.join(names)}")
        print(f"    {problem.env}, goals: {problem.goals}, data: {problem.dataset}")
    print(f"\n{len(cells)} cells. {_settings_in_words(suite)}")
    return 0


def _whole_numbers(option: str, given: tuple[str, ...]) -> tuple[int, ...]:
    """Read numbers of the command line; the parser's own error is a page long."""
    try:
        return tuple(int(text) for text in given)
    except ValueError as error:
        raise ConfigError(
            f"{option} takes whole numbers with spaces between them, such as {option} "
            f"0 1 2; got {' '.join(given)!r}."
        ) from error


def _settings_in_words(suite: Suite) -> str:
    """Say the training seeds, the budget and the episodes of a suite."""
    plan, budget = suite.evaluation, "each method's own number of gradient steps"
    if suite.num_steps is not None:
        budget = f"{suite.num_steps:,} gradient steps"
        if suite.max_steps not in (None, suite.num_steps):
            budget += f", up to {suite.max_steps:,} while the learning curve rises"
    return (
        f"Training seeds {', '.join(map(str, suite.seeds))}; {budget}; evaluation on "
        f"{plan.episodes} episodes from each of the seeds "
        f"{', '.join(map(str, plan.seeds))}."
    )


def _announcement(
    settings: RunSettings, suite: Suite, num_cells: int, num_done: int
) -> str:
    before = f", {num_done} of them finished before" if num_done else ""
    cells = "1 cell" if num_cells == 1 else f"{num_cells} cells"
    return (
        f"Suite {suite.name}: {cells}{before}, in {settings.folder(suite)} "
        f"({settings.executor})"
    )


def _conclusion(outcome: Outcome, output: Path) -> int:
    """Say what came of a run; the exit status."""
    total = len(outcome.before) + len(outcome.finished) + len(outcome.failures)
    for failure in outcome.failures:
        print(f"{failure.cell} failed: {failure.error}\n  log: {failure.log}")
    if outcome.failures:
        print(
            f"{len(outcome.failures)} of {total} cells failed; the same command runs "
            f"them again."
        )
        return EXIT_FAILED
    all_cells = "The only cell is" if total == 1 else f"All {total} cells are"
    print(f"{all_cells} finished: {output}")
    print(f"Next: diffuser-policy benchmark report {output}")
    return 0
