"""Runs the cells of a suite, a number at a time, each in a process of its own.

Everything that can be checked is checked before any cell runs, so that a typing error
does not cost a night: methods, their settings and libraries; environments; data; and
the output folder. A run may end at any moment, by Ctrl-C, a kill or a power cut: the
same command resumes it. It skips finished cells, reports those that fail, and continues
with the others. A terminal shows the cells at work as a table that stays up to date; a
log gets lines of text.
"""

from __future__ import annotations

import contextlib
import datetime
import math
import os
import platform
import shlex
import signal
import time
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gymnasium import spaces
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from diffuser_policy.benchmark.cells import (
    RECORDED,
    SUITE_FILE,
    THEN,
    Cell,
    CellFolder,
    read_result,
)
from diffuser_policy.benchmark.engines import BUSY, Ended, Engine, EngineError, Job
from diffuser_policy.benchmark.methods import check_reachable, find_method
from diffuser_policy.benchmark.problem import Problem, check_task
from diffuser_policy.benchmark.suites import Suite, check_suite
from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.data.minari import load_flat, local_dataset_ids, recorded_by
from diffuser_policy.envs import evaluation_tasks, is_other_version
from diffuser_policy.errors import (
    ConfigError,
    DatasetError,
    DatasetNotFoundError,
    MissingExtraError,
)
from diffuser_policy.files import alone_in, write_text
from diffuser_policy.observations import ObservationColumns, parts_of
from diffuser_policy.versions import versions
from diffuser_policy.words import counted

MODULE = "diffuser_policy.benchmark.cell_process"
LOCK_FILE, HOLDER_FILE = "run.lock", "run.txt"  # held by the runner; who that is
WAIT = 0.5  # seconds between two looks at the cells
REFUSED = 60.0  # seconds until a cluster that took no more jobs is asked again
LINE_SECONDS = 60.0  # between two lines of a log about the same cell

# --- before a run -------------------------------------------------------------------


def check_cells(cells: Sequence[Cell], *, progress: bool = False) -> None:
    """Refuse cells that could not be run.

    With `progress`, a bar is shown while data is read for the first time.

    Raises:
        ConfigError: No cells, two of the same name, a method that cannot do a problem
            or lacks a setting, or an environment whose goals are not as stated.
        UnknownNameError: No method or environment of a name.
        MissingExtraError: Methods or environments need a module that is missing; says
            which, and what can be run without it.
        DatasetError: Data that is missing or of another environment.
    """
    if not cells:
        raise ConfigError("No cells are left to run: ask for more methods or problems.")
    named: dict[str, Cell] = {}
    for cell in cells:
        other = named.setdefault(cell.id, cell)
        if other is not cell:
            raise ConfigError(
                f"The methods {other.method!r} and {cell.method!r} would share the "
                f"cell folder {cell.id!r}. Name each method once, and give functions "
                f"different names."
            )
    for method in dict.fromkeys(cell.method for cell in cells):
        check_reachable(method)
        find_method(method)
    # First of all: checks of methods make environments as well.
    problems = {cell.problem.name: cell.problem for cell in cells}
    lacking: list[tuple[str, MissingExtraError]] = []
    for name, problem in problems.items():
        try:
            problem.make_env().close()
        except MissingExtraError as error:
            lacking.append((name, error))
    _refuse_lacking("problem", problems, lacking)
    # Some checks make environments; cells that differ in their seed need one alone.
    different = {repr((c.problem, c.method, c.settings)): c for c in cells}
    for cell in different.values():
        try:
            find_method(cell.method).check(cell.problem, cell.settings)
        except MissingExtraError as error:
            lacking.append((cell.method, error))
    _refuse_lacking("method", [cell.method for cell in cells], lacking)
    for problem in problems.values():
        own = [cell for cell in cells if cell.problem == problem]
        env = problem.make_env()
        try:
            space: Any = env.observation_space
            names = space.spaces if isinstance(space, spaces.Dict) else ()
            if problem.goals == "hindsight" and "desired_goal" not in names:
                raise ConfigError(
                    f"The problem {problem.name} has goals='hindsight', but "
                    f"observations of {problem.env} carry no desired_goal. Use "
                    f"goals='none', or an environment with goals "
                    f"(gymnasium_robotics.core.GoalEnv)."
                )
            for cell in own:
                cell.evaluation.check_tasks(len(evaluation_tasks(env)))
            methods = [find_method(cell.method) for cell in own]
            if any(m.learns(c.settings) for m, c in zip(methods, own, strict=True)):
                # Planners that are trained here learn the data, not a task.
                rewarded = any(method.needs_dataset is True for method in methods)
                _check_data(problem, env, rewarded=rewarded, progress=progress)
        finally:
            env.close()


def _refuse_lacking(
    kind: Literal["method", "problem"],
    asked: Iterable[str],
    lacking: Sequence[tuple[str, MissingExtraError]],
) -> None:
    """Refuse methods or problems that lack an extra; name those that can be run.

    Raises:
        MissingExtraError: At least one lacks an extra.
    """
    if not lacking:
        return
    first = lacking[0][1]
    names = dict.fromkeys(
        name for name, error in lacking if error.module == first.module
    )
    unable = {name for name, _ in lacking}
    able = [name for name in dict.fromkeys(asked) if name not in unable]
    needed_by = f"The {kind} {next(iter(names))}"
    if len(names) > 1:
        needed_by = f"Each of the {kind}s {', '.join(names)}"
    advice = [first.advice] if first.advice else []
    if able:
        advice.append(f"To run the others: --{kind}s {shlex.join(able)}")
    raise MissingExtraError(
        first.module, first.extra, ". ".join(advice), needed_by=needed_by
    ) from first


def check_folder(
    output: Path, suite: Suite, cells: Sequence[Cell], *, mixed_versions: bool
) -> set[str]:
    """Refuse a folder whose results would not fit to those of these cells.

    The folder need not exist. With `mixed_versions`, results made with other versions
    of packages are accepted.

    Returns:
        The ids of those of these cells that are finished.

    Raises:
        ConfigError: It holds another suite, or cells of other settings or versions.
        CheckpointError: A result in it is damaged.
    """
    if output.exists() and not output.is_dir():
        raise ConfigError(f"{output} is a file; name a folder for the results.")
    if (output / SUITE_FILE).is_file():
        check_suite(output, suite)
    elif output.is_dir() and any(
        path.name not in (LOCK_FILE, HOLDER_FILE) for path in output.iterdir()
    ):
        raise ConfigError(
            f"{output} is not empty and holds no benchmark: there is no {SUITE_FILE}. "
            f"Choose another folder: --output."
        )
    for cell in cells:
        CellFolder(output, cell.id).check(cell)
    made: dict[str, Mapping[str, str]] = {}
    for path in sorted(output.glob("cells/*/versions.json")):
        folder = CellFolder(output, path.parent.name)
        if folder.holds_work():
            made[path.parent.name] = folder.read("versions")
    results = {
        path.parent.name: read_result(path)
        for path in sorted(output.glob("cells/*/result.json"))
    }
    made |= {name: result.versions for name, result in results.items()}
    current = {} if mixed_versions else versions(*RECORDED)
    for cell_id, known in made.items():
        for package, version in known.items():
            if current.get(package, version) != version:  # not installed: no matter
                install = f"install {package} {version}, "
                if THEN in version:  # two of them, which were accepted
                    install = ""
                raise ConfigError(
                    f"The work on {cell_id} in {output} was done with {package} "
                    f"{version}; installed is {current[package]}. Results would be "
                    f"mixed: choose another folder with --output, {install}or accept "
                    f"it with --mixed-versions."
                )
    finished = {cell.id for cell in cells if cell.id in results}
    for cell in cells:
        if cell.id in finished and not results[cell.id].cell.matches(cell):
            raise ConfigError(
                f"The result in {output / 'cells' / cell.id} is not of the cell that "
                f"cell.json beside it describes. Delete that folder, or choose another "
                f"one with --output."
            )
    return finished


def _check_data(problem: Problem, env: Any, *, rewarded: bool, progress: bool) -> None:
    """Read the data once, so that cells find it in the cache, and compare the sizes.

    With `rewarded`, also check that they hold the problem's task.
    """
    if problem.dataset not in local_dataset_ids():
        raise DatasetNotFoundError(
            f"The problem {problem.name} needs the dataset {problem.dataset!r}, which "
            f"is not on this machine. Record it with: {_recorded_by(problem)}"
        )
    flat = load_flat(problem.dataset, progress=progress)
    _check_origin(problem, flat)
    columns = ObservationColumns.of(parts_of(env.observation_space))
    expected = columns.size, math.prod(env.action_space.shape or ())
    found = flat.observation_size, flat.action_size
    if found != expected:
        raise DatasetError(
            f"{problem.dataset} is not of {problem.env}: its observations and actions "
            f"have {found[0]:,} and {counted(found[1], 'number')}, those of the "
            f"environment {expected[0]:,} and {expected[1]:,}."
        )
    flat.check_actions()
    if rewarded:
        check_task(problem, flat, env)


def _check_origin(problem: Problem, flat: FlatDataset) -> None:
    """Refuse data of another version of the environment: its rewards may differ."""
    recorded = str(flat.metadata.get("env_id") or "")
    if is_other_version(problem.env, recorded):
        raise DatasetError(
            f"{problem.dataset} was recorded in {recorded}, and the problem "
            f"{problem.name} is on {problem.env}: another version is another "
            f"environment. Record data of {problem.env}, or evaluate on {recorded}."
        )


def _recorded_by(problem: Problem) -> str:
    """Return the command that records a dataset, often in another environment.

    Environments share data: Maze2D uses those of Multi2D. The command names the
    environment whose own dataset this is, so that a name always means the same data.
    """
    if found := recorded_by(problem.dataset):
        env_id, option = found
        return f"diffuser-policy collect {env_id}{option}"
    return f"diffuser-policy collect {problem.env} --dataset {problem.dataset}"


@contextlib.contextmanager
def run_lock(output: Path) -> Iterator[None]:
    """Keep other runners off a folder for as long as this process lives.

    Raises:
        ConfigError: Another one is at work there.
        StorageError: The folder cannot be written to.
    """
    holder, name = output / HOLDER_FILE, "a process that is just starting"
    with contextlib.suppress(OSError):
        name = holder.read_text(encoding="utf-8").strip() or name
    refusal = (
        f"Another benchmark is running in {output}: {name}. Wait for it, end it, or "
        "choose another folder with --output; nothing was changed."
    )
    with alone_in(output, refusal, lock=LOCK_FILE):
        try:
            text = f"process {os.getpid()} on {platform.node()}\n"
            write_text(holder, text, durable=False)
            yield
        finally:
            holder.unlink(missing_ok=True)


# --- the display --------------------------------------------------------------------


@dataclass
class Watched:
    """A cell that a process works on.

    Attributes:
        folder: The cell's folder.
        is_elsewhere: Whether the process is not one of this run.
        since: When this run first saw it, in seconds of the monotonic clock.
    """

    folder: CellFolder
    is_elsewhere: bool = False
    since: float = field(default_factory=time.monotonic)

    @property
    def elapsed(self) -> str:
        """How long this run has seen it, as "h:mm:ss"."""
        return str(datetime.timedelta(seconds=int(time.monotonic() - self.since)))

    def columns(self) -> tuple[str, str, str, str]:
        """Return stage, steps, figures (the score first) and elapsed time as text."""
        report: Mapping[str, Any] = self.folder.read("progress") or {}
        stage = report.get("stage", "starting")
        if self.is_elsewhere:
            stage = "in another process"
        done, total = report.get("done") or 0, report.get("total")
        steps = f"{done:,}/{total:,}" if total else f"{done:,}" if done else ""
        figures = report.get("figures") or {}
        names = sorted(figures, key=lambda name: name != "score")
        shown = " ".join(f"{name} {figures[name]:.4g}" for name in names)
        return stage, steps, shown, self.elapsed


class Display(Live):
    """Shows a run; a context manager.

    Args:
        console: By default standard output. A terminal gets a table of the cells at
            work, anything else a line a minute about each of them.
    """

    def __init__(self, console: Console | None = None) -> None:
        super().__init__(
            console=console or Console(), auto_refresh=False, transient=True
        )
        self._said: dict[str, float] = {}

    def say(self, text: str, *, style: str = "") -> None:
        """Write a line that stays."""
        self.console.print(Text(text, style), soft_wrap=True, highlight=False)

    def show(self, watched: Mapping[str, Watched], counts: str) -> None:
        """Show the cells at work and the counts; called several times a second."""
        if self.console.is_terminal:
            self.update(live_table(watched, counts), refresh=True)
            return
        now = time.monotonic()
        for name, cell in watched.items():
            if now - max(self._said.get(name, 0.0), cell.since) >= LINE_SECONDS:
                self._said[name] = now
                self.say(f"{name}: {', '.join(filter(None, cell.columns()))}")


def live_table(watched: Mapping[str, Watched], counts: str) -> RenderableType:
    """Return the cells at work as a table, and the counts below it."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for justify in ("left", "left", "right", "left", "right"):
        table.add_column(justify=justify)
    for name, cell in watched.items():
        table.add_row(*map(Text, (name, *cell.columns())))
    return Group(table, Text(counts, "bold"))


# --- the run ------------------------------------------------------------------------


class Runner:
    """One run of some cells.

    Args:
        output: Folder of the benchmark, which this process holds with `run_lock`.
        engine: Opened.
        display: Opened.
        retry: Run cells again that failed in earlier runs.

    Attributes:
        failures: What happened in the cells that failed, by their ids.
    """

    def __init__(
        self, output: Path, engine: Engine, display: Display, *, retry: bool = True
    ) -> None:
        self.output = output.resolve()
        self.engine, self.display, self.retry = engine, display, retry
        self.failures: dict[str, str] = {}
        self._num_finished = 0
        self._queue: list[str] = []
        self._watched: dict[str, Watched] = {}
        self._resume_at = 0.0

    def run(self, cells: Sequence[Cell], finished: Container[str] = ()) -> None:
        """Run cells, in this order, but those with the ids of `finished` ones."""
        for cell in cells:
            folder = CellFolder(self.output, cell.id)
            folder.prepare(cell)
            if cell.id in finished:
                self._num_finished += 1
            elif not self.retry and folder.read("error") is not None:
                self._fail(folder)
            else:
                self._queue.append(cell.id)
        try:
            while self._queue or self.engine.running:
                if time.monotonic() >= self._resume_at or not self.engine.running:
                    self._start()
                told = f"{self._num_finished} of {len(cells)} cells finished"
                told += f", {len(self._queue)} waiting" if self._queue else ""
                told += f", {len(self.failures)} failed" if self.failures else ""
                self.display.show(self._watched, told)
                for end in self.engine.wait(WAIT):
                    self._end(end)
        except KeyboardInterrupt:
            self.display.say("Stopping the running cells; Ctrl-C again kills them.")
            raise

    def _start(self) -> None:
        """Start as many cells as there is room for.

        A cell on which a process of an earlier, killed run is still working stays in
        the queue until that process is done.

        Raises:
            EngineError: No job is running, and the engine accepts none.
        """
        for name in list(self._queue):
            if not self.engine.has_room:
                return
            folder = CellFolder(self.output, name)
            with folder.lock() as is_free:
                pass
            if not is_free:
                if name not in self._watched:
                    self._watched[name] = Watched(folder, is_elsewhere=True)
                    self.display.say(
                        f"{name}: another process is working on it; waiting"
                    )
                continue
            self._queue.remove(name)
            if self._settle(folder):
                continue
            folder.remove("error")
            folder.remove("progress")
            arguments = ("-m", MODULE, str(self.output), name)
            job = Job(name, arguments, log=str(folder.log), folder=str(Path.cwd()))
            try:
                self.engine.start(job)
            except EngineError as error:
                if not self.engine.running:
                    raise
                self._queue.insert(0, name)
                self._resume_at = time.monotonic() + REFUSED
                self.display.say(f"{name}: not started, trying again later: {error}")
                return
            self._watched[name] = Watched(folder)
            self.display.say(f"{name}: started")

    def _end(self, end: Ended) -> None:
        """Note how a cell ended: its result decides, not its process's exit status."""
        folder = CellFolder(self.output, end.cell)
        if self._settle(folder):
            return
        if end.status == BUSY:  # a job of an earlier run has begun it in the meantime
            del self._watched[end.cell]
            self._queue.insert(0, end.cell)
            return
        if folder.read("error") is None:
            folder.write("error", _ended_early(end, folder.log))
        self._fail(folder)

    def _settle(self, folder: CellFolder) -> bool:
        """Note that a cell is finished, if it is."""
        path, name = folder.path / "result.json", folder.path.name
        if not path.is_file():
            return False
        score = read_result(path).scores.mean()
        watched = self._watched.pop(name, Watched(folder))
        self._num_finished += 1
        self.display.say(f"{name}: finished in {watched.elapsed}, score {score:.1f}")
        return True

    def _fail(self, folder: CellFolder) -> None:
        """Note that a cell failed, as its `error.json` says."""
        error, name = folder.read("error"), folder.path.name
        what = f"{error.get('type', 'Error')}: {error.get('message', 'unknown')}"
        self.failures[name] = what
        watched = self._watched.pop(name, None)
        how = f"FAILED after {watched.elapsed}" if watched else "not run again"
        self.display.say(f"{name}: {how}: {what}", style="red")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no names
        return f"signal {number}"


def _ended_early(end: Ended, log: Path) -> dict[str, str]:
    """Describe a process that ended without a result and without an error."""
    if end.status is None:
        told = "the engine lost the process"
    elif end.status >= 0:
        told = f"the process ended with status {end.status} and no result"
    else:
        told = f"{_signal_name(-end.status)} ended the process"
        if end.status == -signal.SIGKILL:
            told += ", as by the system when memory runs out (use fewer --workers)"
    reason = f": {end.reason.strip()}" if end.reason.strip() else ""
    return {"type": "Ended", "message": f"{told}{reason}; see {log}", "traceback": ""}
