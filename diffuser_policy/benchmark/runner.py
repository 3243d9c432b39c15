"""Runs the cells of a suite, a number at a time, each in a process of its own.

A run may end at any moment, by Ctrl-C, a kill or a power cut: the same command goes on.
Finished cells are not run again; a cell that fails is reported, and the others go on.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffuser_policy.benchmark.cells import BUSY, Cell, CellFolder
from diffuser_policy.benchmark.engines import Ended, Engine, EngineError, Job
from diffuser_policy.benchmark.preflight import LOCK_FILE, all_settings
from diffuser_policy.benchmark.progress import (
    ELSEWHERE,
    Counts,
    Display,
    Watched,
    as_clock,
)
from diffuser_policy.benchmark.results import read_result
from diffuser_policy.errors import ConfigError

MODULE = "diffuser_policy.benchmark.cell_process"
WAIT = 0.5  # seconds between two looks at the cells
REFUSED = 60.0  # seconds until a cluster that took no more jobs is asked again


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A cell that failed.

    Attributes:
        cell: Its id.
        error: What happened, in a sentence.
        log: File with the output of its process.
    """

    cell: str
    error: str
    log: Path


@dataclass(kw_only=True)
class Outcome:
    """What came of a run.

    Attributes:
        before: Cells that were finished before.
        finished: Cells that this run finished.
        failures: Cells that failed in this run, or before if they were left alone.
    """

    before: list[str] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


@contextlib.contextmanager
def run_lock(output: Path) -> Iterator[None]:
    """Keep other runners off a folder for as long as this process lives.

    Raises:
        ConfigError: Another one is at work there.
    """
    output.mkdir(parents=True, exist_ok=True)
    path = output / LOCK_FILE
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise ConfigError(
                f"Another benchmark is being run in {output}, by "
                f"{file.read().strip() or 'a process that is just starting'}. Wait for "
                f"it, end it, or choose another folder with --output; nothing was "
                f"changed."
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        yield


@contextlib.contextmanager
def stops_as_interrupt() -> Iterator[None]:
    """Treat a request to end (SIGTERM) and a closed terminal like Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGTERM, signal.SIGHUP)
    previous = [signal.signal(n, signal.default_int_handler) for n in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)


class Runner:
    """One run of some cells.

    Args:
        output: Folder of the benchmark, which this process holds with `run_lock`.
        engine: Opened.
        display: Opened.
        retry: Run cells again that failed in earlier runs.
    """

    def __init__(
        self, output: Path, engine: Engine, display: Display, *, retry: bool = True
    ) -> None:
        self.output = output.resolve()
        self.engine, self.display, self.retry = engine, display, retry
        self.outcome = Outcome()
        self._cells: dict[str, Cell] = {}
        self._queue: deque[str] = deque()
        self._elsewhere: list[str] = []
        self._watched: dict[str, Watched] = {}
        self._resume_at = 0.0

    def run(self, cells: Sequence[Cell], finished: Mapping[str, Any]) -> Outcome:
        """Run cells to their ends.

        Args:
            cells: In the order of their starts.
            finished: Ids of cells that are finished.

        Returns:
            What came of it.
        """
        self._cells = {cell.id: cell for cell in cells}
        self.outcome.before = [cell.id for cell in cells if cell.id in finished]
        for cell in cells:
            folder = CellFolder(self.output, cell.id)
            folder.prepare(cell, all_settings(cell))
            if cell.id in finished:
                continue
            error = None if self.retry else folder.read("error")
            if error is None:
                self._queue.append(cell.id)
            else:
                self._fail(cell.id, error)
        try:
            while self._queue or self._elsewhere or self.engine.running:
                self._start()
                self._look_elsewhere()
                self.display.update(self._watched, self._counts())
                for end in self.engine.wait(WAIT):
                    self._end(end)
        except KeyboardInterrupt:
            self.display.say("Stopping the cells at work; Ctrl-C again kills them.")
            raise
        return self.outcome

    def _start(self) -> None:
        """Start as many cells as there is room for.

        Raises:
            EngineError: None is running, and the engine takes none.
        """
        if time.monotonic() < self._resume_at and self.engine.running:
            return
        while self._queue and self.engine.has_room:
            name = self._queue.popleft()
            folder = CellFolder(self.output, name)
            if not _is_free(folder):
                self._wait_for(name)
                continue
            folder.remove("error")
            folder.remove("progress")
            try:
                self.engine.start(self._job(name, folder))
            except EngineError as error:
                if not self.engine.running:
                    raise
                self._queue.appendleft(name)
                self._resume_at = time.monotonic() + REFUSED
                self.display.say(f"{name}: not taken now, tried again later: {error}")
                return
            self._watched[name] = Watched(folder)
            self.display.say(f"{name}: started")

    def _wait_for(self, name: str) -> None:
        """Leave a cell to the process that is at work on it."""
        self._elsewhere.append(name)
        self._watched[name] = Watched(CellFolder(self.output, name), ELSEWHERE)
        self.display.say(f"{name}: another process is at work on it; waiting")

    def _job(self, name: str, folder: CellFolder) -> Job:
        return Job(
            cell=name,
            arguments=("-m", MODULE, str(self.output), name),
            log=str(folder.log),
            folder=str(Path.cwd()),
        )

    def _look_elsewhere(self) -> None:
        """Take up cells that other processes have let go of, finished or not.

        Those are processes that an earlier run left behind when it was killed.
        """
        for name in list(self._elsewhere):
            if not _is_free(self._watched[name].folder):
                continue
            self._elsewhere.remove(name)
            if not self._settle(name):
                del self._watched[name]
                self._queue.appendleft(name)

    def _end(self, end: Ended) -> None:
        """Note how a cell's process ended: its result says it, not its status."""
        folder = self._watched[end.cell].folder
        if self._settle(end.cell):
            return
        if end.status == BUSY:  # a job of an earlier run has begun it in the meantime
            self._wait_for(end.cell)
            return
        if folder.read("error") is None:
            folder.write("error", _ended_early(end, folder.log))
        self._fail(end.cell, folder.read("error"))

    def _settle(self, name: str) -> bool:
        """Note that a cell is finished, if it is."""
        watched = self._watched[name]
        path = watched.folder.path / "result.json"
        if not path.is_file():
            return False
        result = read_result(path)
        del self._watched[name]
        self.outcome.finished.append(name)
        took = as_clock(watched.elapsed)
        self.display.say(
            f"{name}: finished in {took}, score {result.scores.mean():.1f}"
        )
        return True

    def _fail(self, name: str, error: Mapping[str, Any]) -> None:
        """Note that a cell failed."""
        what = f"{error.get('type', 'Error')}: {error.get('message', 'unknown')}"
        log = CellFolder(self.output, name).log
        self.outcome.failures.append(Failure(cell=name, error=what, log=log))
        watched = self._watched.pop(name, None)
        how = f"FAILED after {as_clock(watched.elapsed)}" if watched else "left alone"
        self.display.say(f"{name}: {how}: {what}", style="red")

    def _counts(self) -> Counts:
        return Counts(
            total=len(self._cells),
            before=len(self.outcome.before),
            finished=len(self.outcome.finished),
            failed=len(self.outcome.failures),
            waiting=len(self._queue),
        )


def _is_free(folder: CellFolder) -> bool:
    """Whether no process is at work on a cell."""
    with folder.lock() as held:
        return held


def _ended_early(end: Ended, log: Path) -> dict[str, str]:
    """Describe a process that ended without a result and without an error."""
    if end.status is not None and end.status < 0:
        name = signal.Signals(-end.status).name
        told = f"the process was ended by {name}"
        if end.status == -signal.SIGKILL:
            told += ", as by the system when memory runs out (use fewer --workers)"
    elif end.status is not None:
        told = f"the process ended with status {end.status} and no result"
    else:
        told = "the executor lost the process"
    reason = f": {end.reason.strip()}" if end.reason.strip() else ""
    return {"type": "Ended", "message": f"{told}{reason}; see {log}", "traceback": ""}
