"""Engines: where the processes of a benchmark run.

Every engine runs the same command for a cell, `python -m
diffuser_policy.benchmark.cell_process FOLDER CELL`, with one thread and its output in
the cell's log.txt. So results do not depend on the engine, and only a `Job`, which
holds nothing but strings, travels to other machines.

`process`
    Processes of this machine.
`submitit`
    Jobs of a Slurm cluster, or of this machine where there is none. The runner waits on
    a login node; every cell is one job. A job that reaches its time limit returns to
    the queue and resumes from the cell's last checkpoint.
`ray`
    Tasks of a Ray cluster: one that is running (`address=auto`), or one of this machine
    that is started for the run.

submitit and Ray submit, poll and cancel. This module adds what they share with plain
processes, and ends each job so that it can save a checkpoint.

More than one machine needs a file system that all of them see: the benchmark's folder,
the datasets (MINARI_DATASETS_PATH) and the same Python environment at the same place.
Its locks have to work across machines, as those of NFS 4, Lustre (mounted with `flock`)
and GPFS do. `examples/benchmark_cluster.md` has the steps.

A cell's process ends when its parent does, however the parent ends. The parent holds
the writing end of a pipe that is the child's standard input, its lifeline, and never
writes to it. When the parent closes it, exits or is killed, the child reads the end of
the pipe, interrupts itself as Ctrl-C would (so that a training saves a checkpoint), and
is killed if it still runs some seconds later. `concurrent.futures` and `subprocess`
leave such children behind; Linux's signal at the parent's death gives them no time.
"""

from __future__ import annotations

import abc
import contextlib
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

from diffuser_policy.choices import EngineName
from diffuser_policy.data.workers import ONE_THREAD
from diffuser_policy.errors import (
    ConfigError,
    DiffuserPolicyError,
    UnknownNameError,
    require_extra,
)
from diffuser_policy.interrupts import hear_interrupts, interrupts_delayed
from diffuser_policy.settings import converted

# Variables that change what a cell does or finds; other machines get them too.
PASSED_ON = ("DIFFUSER_POLICY_", "HF_", "MINARI_", "MUJOCO_", "PYOPENGL_", "PYTHON")
MARGIN = 5.0  # seconds that a cluster needs to stop a job, besides the job's own
POLL = 0.1  # seconds between two looks at the jobs
DAY = 24 * 60  # minutes
LIFELINE = "DIFFUSER_POLICY_LIFELINE"  # variable that a child with a lifeline has
GRACE = 10.0  # seconds that a process has to save what it wants to save
BUSY = 75  # exit status of a cell that another process is at work on: EX_TEMPFAIL


def _passed_on() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k.startswith(PASSED_ON)}


@dataclass(frozen=True)
class Job:
    """The process of one cell.

    Attributes:
        cell: The cell's id.
        arguments: Command-line arguments of Python.
        log: File that its output is appended to.
        folder: To run in.
        variables: Environment variables, besides those that the process inherits.
    """

    cell: str
    arguments: tuple[str, ...]
    log: str
    folder: str
    variables: Mapping[str, str] = field(default_factory=_passed_on)


class Ended(NamedTuple):
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
    """An engine that could not be started, or rejects jobs."""


class Engine(abc.ABC):
    """Runs jobs, a number of them at a time.

    A context manager: leaving it ends the jobs that are running.

    Attributes:
        workers: Jobs at a time.
        running: The cells whose jobs are with the engine, and the handles of the jobs.
    """

    needs: ClassVar[tuple[str, str] | None] = None  # module, and extra that brings it
    options: ClassVar[tuple[str, ...] | None] = ()  # none: the library checks them

    def __init__(self, workers: int, options: Mapping[str, Any], folder: Path) -> None:
        """Connect to the cluster.

        The engine writes its own files into the benchmark's `folder`.

        Raises:
            ConfigError: Options that the library does not take.
            EngineError: It cannot be started.
        """
        del options, folder  # only some engines use them
        self.workers = workers
        self.running: dict[str, Any] = {}

    @property
    def has_room(self) -> bool:
        """Whether another job may be started."""
        return len(self.running) < self.workers

    def start(self, job: Job) -> None:
        """Hand a job over; it runs at once, or when the cluster has a place."""
        self.running[job.cell] = self._start(job)

    def wait(self, seconds: float) -> list[Ended]:
        """Return the jobs that have ended; wait at most `seconds` for one."""
        deadline = time.monotonic() + seconds
        while True:
            found = [self._ended(cell, job) for cell, job in self.running.items()]
            ended = [end for end in found if end is not None]
            for end in ended:
                del self.running[end.cell]
            left = deadline - time.monotonic()
            if ended or left <= 0:
                return ended
            time.sleep(min(left, POLL))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End what is running, and release the cluster."""
        try:
            self._stop(list(self.running.values()))
            self.running.clear()
        finally:
            self._close()

    @abc.abstractmethod
    def _start(self, job: Job) -> Any:
        """Start a job; return the handle that the engine knows it by."""

    @abc.abstractmethod
    def _ended(self, cell: str, handle: Any) -> Ended | None:
        """Return how a job ended, if it has."""

    @abc.abstractmethod
    def _stop(self, handles: list[Any]) -> None:
        """End jobs."""

    def _close(self) -> None:  # noqa: B027 (most have nothing to release)
        """Release the cluster."""


def start_child(job: Job) -> subprocess.Popen[bytes]:
    """Start a job with this Python; its standard input is its lifeline.

    In a session of its own, it does not see a Ctrl-C in the terminal, and all processes
    that it starts can be killed together. A program that does not call
    `end_with_parent` ends in `stop_children` only.
    """
    with Path(job.log).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, *job.arguments],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=job.folder,
            env={**os.environ, **job.variables, **ONE_THREAD, LIFELINE: "1"},
            start_new_session=True,
        )


def stop_children(children: Iterable[subprocess.Popen[bytes]]) -> None:
    """End children and the processes that they started; return when they are gone.

    After `GRACE` seconds they are killed; a Ctrl-C meanwhile kills them at once.
    """
    children = list(children)
    try:
        for child in children:
            release(child)
        deadline = time.monotonic() + GRACE
        for child in children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(max(0.0, deadline - time.monotonic()))
    finally:
        for child in children:
            if child.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()


def release(child: subprocess.Popen[bytes]) -> None:
    """Release a child's lifeline: the child ends by itself, if it has not already."""
    if child.stdin is not None:
        with contextlib.suppress(OSError):
            child.stdin.close()


def end_with_parent() -> None:
    """Make this process end when the one that started it releases the lifeline.

    Does nothing in a process that was not started by `start_child`, for example by
    hand. Between the interrupt and the kill are `GRACE` seconds.
    """
    if os.environ.pop(LIFELINE, None) is None:
        return
    lifeline = os.dup(0)  # not inherited by processes that this one starts
    with open(os.devnull, "rb") as nothing:  # noqa: PTH123 (descriptors, not files)
        os.dup2(nothing.fileno(), 0)
    hear_interrupts()

    def end() -> None:
        while os.read(lifeline, 1024):
            pass
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(GRACE)
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=end, name="lifeline", daemon=True).start()


def run_job(job: Job) -> int:
    """Run a job to its end; what an engine calls on another machine.

    Returns:
        The exit status, minus the signal's number if it was killed.
    """
    hear_interrupts()
    child = start_child(job)
    try:
        # Not child.wait(), during which Ray cannot interrupt a task.
        while (status := child.poll()) is None:
            time.sleep(POLL)
        return status
    finally:
        stop_children([child])


class ProcessEngine(Engine):
    """Processes of this machine; they end when this process does."""

    def _start(self, job: Job) -> subprocess.Popen[bytes]:
        return start_child(job)

    def _ended(self, cell: str, handle: subprocess.Popen[bytes]) -> Ended | None:
        status = handle.poll()
        if status is None:
            return None
        release(handle)
        return Ended(cell, status)

    def _stop(self, handles: list[subprocess.Popen[bytes]]) -> None:
        stop_children(handles)


class SubmititEngine(Engine):
    """Jobs of Slurm, or of this machine, through submitit.

    Its options are those of submitit's `AutoExecutor.update_parameters`, such as
    `slurm_partition`, `timeout_min`, `mem_gb` and `cpus_per_task`, and `cluster`: slurm
    or local (by default Slurm where it is installed).
    """

    needs = ("submitit", "cluster")
    options = None

    def __init__(self, workers: int, options: Mapping[str, Any], folder: Path) -> None:
        super().__init__(workers, options, folder)
        submitit = require_extra(*self.needs)
        # A job's files have its number in their names, and local numbers come again.
        self._folder = folder / "submitit" / f"{int(time.time())}-{os.getpid()}"
        options = {"cpus_per_task": 1, "name": "benchmark", **options}
        cluster = options.pop("cluster", None)
        try:
            self._executor = submitit.AutoExecutor(self._folder, cluster=cluster)
            limit = DAY if self._executor.cluster == "slurm" else 365 * DAY
            self._executor.update_parameters(**{"timeout_min": limit, **options})
        except (NameError, ValueError, AssertionError, RuntimeError) as error:
            raise ConfigError(f"submitit rejects these options: {error}") from error
        self._is_local = self._executor.cluster == "local"
        self._all_ended_well = True

    def _start(self, job: Job) -> Any:
        utils = require_extra("submitit.core.utils", "cluster")
        try:
            with interrupts_delayed():  # a local job would complain of a Ctrl-C
                return self._executor.submit(_Resumable(), job)
        except (utils.FailedJobError, utils.FailedSubmissionError) as error:
            told = f"the cluster rejects the job of {job.cell}: {error}"
            raise EngineError(told.strip()) from error

    def _ended(self, cell: str, handle: Any) -> Ended | None:
        if not handle.done():
            return None
        error = handle.exception()
        end = Ended(cell, None, str(error)) if error else Ended(cell, handle.result())
        self._all_ended_well &= end.status == 0
        return end

    def _stop(self, handles: list[Any]) -> None:
        for handle in handles:
            self._all_ended_well = False
            if not self._is_local:
                handle.cancel(check=False)
            elif not handle.done():
                os.kill(int(handle.job_id), signal.SIGTERM)
        deadline = time.monotonic() + GRACE + MARGIN
        while self._is_local and time.monotonic() < deadline:
            if all(handle.done() for handle in handles):
                return
            time.sleep(POLL)

    def _close(self) -> None:
        if self._all_ended_well:  # else its own logs may say why not
            shutil.rmtree(self._folder, ignore_errors=True)


class _Resumable:
    """`run_job` that submitit puts back into the queue when its time is up."""

    def __call__(self, job: Job) -> int:
        if os.environ.get("SUBMITIT_EXECUTOR") == "local":
            # Slurm ends a job by itself; there, submitit has to ignore this signal.
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        return run_job(job)

    def checkpoint(self, job: Job) -> Any:
        """Return the job that remains: the same one, since cells resume."""
        helpers = require_extra("submitit.helpers", "cluster")
        return helpers.DelayedSubmission(self, job)


class RayEngine(Engine):
    """Tasks of a Ray cluster.

    Its options are `address` of a running cluster, such as auto (by default one is
    started on this machine, with as many cores as there are workers), and what Ray
    takes for a task: `num_cpus`, `num_gpus`, `memory` in bytes, `resources`,
    `max_retries`.
    """

    needs = ("ray", "ray")
    options = ("address", "num_cpus", "num_gpus", "memory", "resources", "max_retries")

    def __init__(self, workers: int, options: Mapping[str, Any], folder: Path) -> None:
        super().__init__(workers, options, folder)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        self._ray: Any = require_extra(*self.needs)
        options = {"num_cpus": 1, "max_retries": 0, **options}
        found = options.pop("address", None)
        address = converted(found, str | None, "The option address of the engine ray")
        try:
            self._task = self._ray.remote(**options)(run_job)
        except (TypeError, ValueError, AssertionError) as error:
            raise ConfigError(f"Ray rejects these options: {error}") from error
        cores = math.ceil(workers * max(1, options["num_cpus"] or 1))
        here = {} if address else {"num_cpus": cores}
        try:
            # "local": not a cluster that RAY_ADDRESS names, unless it was asked for.
            self._ray.init(
                address=address or "local",
                include_dashboard=None if address else False,
                log_to_driver=False,
                logging_level="ERROR",
                **here,
            )
        except (ConnectionError, OSError, ValueError, RuntimeError) as error:
            where = f"at {address!r}" if address else "on this machine"
            raise EngineError(
                f"No Ray cluster {where}: {error}. Start one with `ray start --head`, "
                "or leave --engine-option address out to start one on this machine."
            ) from error

    def _start(self, job: Job) -> Any:
        return self._task.remote(job)

    def _ended(self, cell: str, handle: Any) -> Ended | None:
        done, _ = self._ray.wait([handle], timeout=0)
        if not done:
            return None
        try:
            return Ended(cell, self._ray.get(handle))
        except self._ray.exceptions.RayError as error:
            return Ended(cell, None, str(error))

    def _stop(self, handles: list[Any]) -> None:
        for force in (False, True):
            for handle in handles:
                self._ray.cancel(handle, force=force)
            if handles:
                _, handles = self._ray.wait(
                    handles, num_returns=len(handles), timeout=GRACE + MARGIN
                )

    def _close(self) -> None:
        self._ray.shutdown()


ENGINES: dict[EngineName, type[Engine]] = {
    "process": ProcessEngine,
    "submitit": SubmititEngine,
    "ray": RayEngine,
}


def check_engine(name: EngineName, *, workers: int, options: Mapping[str, Any]) -> None:
    """Refuse what can be known to fail before an engine is started.

    Raises:
        UnknownNameError: The engine has no such option.
        MissingExtraError: Its library is not installed.
        ConfigError: No workers, options for an engine that takes none, or a system
            without POSIX's process groups and signals.
    """
    if os.name != "posix":
        raise ConfigError(
            "Benchmarks run on Linux and macOS: killing a cell with all its processes "
            "needs POSIX. Reports can be made anywhere."
        )
    if workers < 1:
        raise ConfigError(f"--workers must be at least 1, got {workers}.")
    engine = ENGINES[name]
    if engine.needs is not None:
        require_extra(*engine.needs)
    for option in options:
        if engine.options == ():
            raise ConfigError(
                f"The engine {name!r} takes no options, got {option!r}. Others do: "
                f"--engine submitit or ray."
            )
        if engine.options is not None and option not in engine.options:
            kind = f"option of the engine {name}"
            raise UnknownNameError(kind, option, engine.options)
