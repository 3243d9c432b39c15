"""What engines have in common: a job, how it ends, and a number of them at a time."""

from __future__ import annotations

import abc
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from diffuser_policy.benchmark.lifeline import (
    hear_interrupts,
    start_child,
    stop_children,
)
from diffuser_policy.errors import DiffuserPolicyError

ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"
)
# Variables that change what a cell does or finds; other machines get them too.
PASSED_ON = ("DIFFUSER_POLICY_", "HF_", "MINARI_", "MUJOCO_", "PYOPENGL_", "PYTHON")
MARGIN = 5.0  # seconds that a cluster needs to stop a job, besides the job's own


@dataclass(frozen=True, kw_only=True)
class Job:
    """The process of one cell.

    Attributes:
        cell: The cell's id.
        arguments: Of Python.
        log: File that its output is appended to.
        folder: To run in.
    """

    cell: str
    arguments: tuple[str, ...]
    log: str
    folder: str


@dataclass(frozen=True)
class Ended:
    """A job that has ended.

    Attributes:
        cell: The cell's id.
        status: Exit status of its process, minus the signal's number if it was killed;
            none if the engine lost it.
        reason: Why, where the engine knows.
    """

    cell: str
    status: int | None
    reason: str = ""


class EngineError(DiffuserPolicyError, RuntimeError):
    """An engine that could not be started, or does not take jobs."""


class Engine(abc.ABC):
    """Runs jobs, a number of them at a time.

    A context manager: leaving it ends the jobs that are running.
    """

    name: ClassVar[str]
    library: ClassVar[tuple[str, str] | None] = None  # module, and extra that brings it
    options: ClassVar[tuple[str, ...] | None] = ()  # none: the library knows them
    poll_interval: ClassVar[float] = 0.1  # seconds

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._running: dict[str, Any] = {}

    @property
    def running(self) -> tuple[str, ...]:
        """The cells whose jobs are with the engine."""
        return tuple(self._running)

    @property
    def has_room(self) -> bool:
        """Whether another job may be started."""
        return len(self._running) < self.workers

    def start(self, job: Job) -> None:
        """Hand a job over; it runs at once, or when the cluster has a place."""
        self._running[job.cell] = self._start(job)

    def wait(self, seconds: float) -> list[Ended]:
        """Return the jobs that have ended; waits for one, so many seconds at most."""
        deadline = time.monotonic() + seconds
        while True:
            ended = [
                end
                for cell, handle in list(self._running.items())
                if (end := self._ended(cell, handle)) is not None
            ]
            for end in ended:
                del self._running[end.cell]
            left = deadline - time.monotonic()
            if ended or left <= 0:
                return ended
            time.sleep(min(left, self.poll_interval))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End what is running, and let go of the cluster."""
        try:
            self._stop(list(self._running.values()))
            self._running.clear()
        finally:
            self._close()

    @abc.abstractmethod
    def _start(self, job: Job) -> Any:
        """Start a job; returns what the engine knows it by."""

    @abc.abstractmethod
    def _ended(self, cell: str, handle: Any) -> Ended | None:
        """Return how a job ended, if it has."""

    @abc.abstractmethod
    def _stop(self, handles: list[Any]) -> None:
        """End jobs."""

    def _close(self) -> None:
        """Let go of the cluster."""
        return


def run_job(
    *,
    arguments: list[str],
    log: str,
    folder: str,
    variables: dict[str, str],
    **_: Any,
) -> int:
    """Run the process of a cell to its end; what an engine calls on another machine.

    Returns:
        The exit status, minus the signal's number if it was killed.
    """
    hear_interrupts()
    job = Job(cell="", arguments=tuple(arguments), log=log, folder=folder)
    child = start_cell(job, variables)
    try:
        # Not child.wait(), during which Ray cannot interrupt a task.
        while (status := child.poll()) is None:
            time.sleep(0.1)
        return status
    finally:
        stop_children([child])


def start_cell(job: Job, variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start the process of a cell with this Python."""
    with Path(job.log).open("ab") as log:
        return start_child(
            [sys.executable, *job.arguments],
            output=log,
            folder=job.folder,
            environment={**os.environ, **variables, **ONE_THREAD},
        )


def shipped(job: Job) -> dict[str, Any]:
    """Return the arguments of `run_job` on another machine: strings, nothing else."""
    passed = {k: v for k, v in os.environ.items() if k.startswith(PASSED_ON)}
    return {**asdict(job), "arguments": list(job.arguments), "variables": passed}
