"""Runs the cells of a suite, a number at a time, each in a process of its own.

A run may end at any moment, by Ctrl-C, a kill or a power cut: the same command resumes
it. It skips finished cells, reports those that fail, and continues with the others.
"""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from diffuser_policy.benchmark.cells import Cell, CellFolder, held
from diffuser_policy.benchmark.engines import Ended, Engine, EngineError, Job
from diffuser_policy.benchmark.lifeline import BUSY
from diffuser_policy.benchmark.preflight import HOLDER_FILE, LOCK_FILE
from diffuser_policy.benchmark.progress import Display, Watched
from diffuser_policy.benchmark.results import read_result
from diffuser_policy.errors import ConfigError

MODULE = "diffuser_policy.benchmark.cell_process"
WAIT = 0.5  # seconds between two looks at the cells
REFUSED = 60.0  # seconds until a cluster that took no more jobs is asked again


class Failure(NamedTuple):
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
    """The outcome of a run.

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
    holder = output / HOLDER_FILE
    with held(output / LOCK_FILE) as is_held:
        if not is_held:
            name = holder.read_text().strip() if holder.is_file() else ""
            raise ConfigError(
                f"Another benchmark is being run in {output}, by "
                f"{name or 'a process that is just starting'}. Wait for it, end it, or "
                f"choose another folder with --output; nothing was changed."
            )
        holder.write_text(f"process {os.getpid()} on {platform.node()}\n")
        try:
            yield
        finally:
            holder.unlink(missing_ok=True)


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
        self._queue: list[str] = []
        self._watched: dict[str, Watched] = {}
        self._resume_at = 0.0

    def run(self, cells: Sequence[Cell], finished: Mapping[str, Any]) -> Outcome:
        """Run cells to their ends.

        Args:
            cells: In the order of their starts.
            finished: Ids of cells that are finished.
        """
        self.outcome.before = [cell.id for cell in cells if cell.id in finished]
        for cell in cells:
            folder = CellFolder(self.output, cell.id)
            folder.prepare(cell)
            if cell.id in finished:
                continue
            if not self.retry and folder.read("error") is not None:
                self._fail(folder)
            else:
                self._queue.append(cell.id)
        try:
            while self._queue or self.engine.running:
                if time.monotonic() >= self._resume_at or not self.engine.running:
                    self._start()
                self.display.update(self._watched, self._counts(len(cells)))
                for end in self.engine.wait(WAIT):
                    self._end(end)
        except KeyboardInterrupt:
            self.display.say("Stopping the cells at work; Ctrl-C again kills them.")
            raise
        return self.outcome

    def _start(self) -> None:
        """Start as many cells as there is room for.

        A cell that a process of an earlier, killed run is still at work on stays in the
        queue until that process is done with it.

        Raises:
            EngineError: None is running, and the engine takes none.
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
                        f"{name}: another process is at work on it; waiting"
                    )
                continue
            self._queue.remove(name)
            if self._settle(folder):
                continue
            folder.remove("error")
            folder.remove("progress")
            job = Job(
                cell=name,
                arguments=("-m", MODULE, str(self.output), name),
                log=str(folder.log),
                folder=str(Path.cwd()),
            )
            try:
                self.engine.start(job)
            except EngineError as error:
                if not self.engine.running:
                    raise
                self._queue.insert(0, name)
                self._resume_at = time.monotonic() + REFUSED
                self.display.say(f"{name}: not taken now, tried again later: {error}")
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
        self.outcome.finished.append(name)
        self.display.say(f"{name}: finished in {watched.elapsed}, score {score:.1f}")
        return True

    def _fail(self, folder: CellFolder) -> None:
        """Note that a cell failed, as its `error.json` says."""
        error, name = folder.read("error"), folder.path.name
        what = f"{error.get('type', 'Error')}: {error.get('message', 'unknown')}"
        self.outcome.failures.append(Failure(name, what, folder.log))
        watched = self._watched.pop(name, None)
        how = f"FAILED after {watched.elapsed}" if watched else "left alone"
        self.display.say(f"{name}: {how}: {what}", style="red")

    def _counts(self, total: int) -> str:
        """Return how many cells are finished, waiting and failed, as a line."""
        done = len(self.outcome.before) + len(self.outcome.finished)
        parts = [f"{done} of {total} cells finished"]
        waiting, failed = len(self._queue), len(self.outcome.failures)
        parts += [f"{waiting} waiting"] if waiting else []
        parts += [f"{failed} failed"] if failed else []
        return ", ".join(parts)


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
        told = "the engine lost the process"
    reason = f": {end.reason.strip()}" if end.reason.strip() else ""
    return {"type": "Ended", "message": f"{told}{reason}; see {log}", "traceback": ""}
