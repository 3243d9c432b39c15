"""Engines: where the processes of a benchmark run.

Every engine runs the same command for a cell, `python -m
diffuser_policy.benchmark.cell_process FOLDER CELL`, with one thread and its output in
the cell's log.txt. So results do not depend on the engine, and nothing but strings
travels to other machines.

`process`
    Processes of this machine.
`submitit`
    Jobs of a Slurm cluster, or of this machine where there is none. The runner waits on
    a login node; every cell is one job. A job that reaches its time limit returns to
    the queue and resumes from the cell's last checkpoint.
`ray`
    Tasks of a Ray cluster: one that is running (`address=auto`), or one of this machine
    that is started for the run.

submitit and Ray submit, poll and cancel; written here is what they and plain processes
have in common, and how each ends a job so that it can save a checkpoint.

More than one machine needs a file system that all of them see: the benchmark's folder,
the datasets (MINARI_DATASETS_PATH) and the same Python environment at the same place.
Its locks have to reach over machines, as those of NFS 4, Lustre (mounted with `flock`)
and GPFS do. `examples/benchmark_cluster.md` has the steps.
"""

from __future__ import annotations

import abc
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from diffuser_policy.benchmark.lifeline import (
    GRACE,
    hear_interrupts,
    release,
    start_child,
    stop_children,
)
from diffuser_policy.errors import (
    ConfigError,
    DiffuserPolicyError,
    UnknownNameError,
    require_extra,
)

ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"
)
# Variables that change what a cell does or finds; other machines get them too.
PASSED_ON = ("DIFFUSER_POLICY_", "HF_", "MINARI_", "MUJOCO_", "PYOPENGL_", "PYTHON")
MARGIN = 5.0  # seconds that a cluster needs to stop a job, besides the job's own
POLL = 0.1  # seconds between two looks at the jobs
DAY = 24 * 60  # minutes


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
    options: ClassVar[tuple[str, ...] | None] = ()  # none: the library checks them

    def __init__(self, workers: int, options: Mapping[str, Any], folder: Path) -> None:
        """Connect to the cluster.

        Args:
            workers: Jobs at a time.
            options: The engine's own.
            folder: Of the benchmark, for what the engine writes itself.

        Raises:
            MissingExtraError: Its library is not installed.
            ConfigError: Options that the library does not take.
            EngineError: It cannot be started.
        """
        del options, folder  # for those that have some
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
        """Return the jobs that have ended; wait at most `seconds` for one."""
        deadline = time.monotonic() + seconds
        while True:
            found = [self._ended(cell, job) for cell, job in self._running.items()]
            ended = [end for end in found if end is not None]
            for end in ended:
                del self._running[end.cell]
            left = deadline - time.monotonic()
            if ended or left <= 0:
                return ended
            time.sleep(min(left, POLL))

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
        """Start a job; return the handle that the engine knows it by."""

    @abc.abstractmethod
    def _ended(self, cell: str, handle: Any) -> Ended | None:
        """Return how a job ended, if it has."""

    @abc.abstractmethod
    def _stop(self, handles: list[Any]) -> None:
        """End jobs."""

    def _close(self) -> None:
        """Let go of the cluster."""
        return


def start_cell(job: Job, variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start the process of a cell with this Python."""
    with Path(job.log).open("ab") as log:
        return start_child(
            [sys.executable, *job.arguments],
            output=log,
            folder=job.folder,
            environment={**os.environ, **variables, **ONE_THREAD},
        )


def run_job(*, variables: dict[str, str], **job: Any) -> int:
    """Run the process of a cell to its end; what an engine calls on another machine.

    Returns:
        The exit status, minus the signal's number if it was killed.
    """
    hear_interrupts()
    child = start_cell(Job(**job), variables)
    try:
        # Not child.wait(), during which Ray cannot interrupt a task.
        while (status := child.poll()) is None:
            time.sleep(POLL)
        return status
    finally:
        stop_children([child])


def shipped(job: Job) -> dict[str, Any]:
    """Return the arguments of `run_job` on another machine: strings, nothing else."""
    passed = {k: v for k, v in os.environ.items() if k.startswith(PASSED_ON)}
    return {**asdict(job), "variables": passed}


class ProcessEngine(Engine):
    """Processes of this machine; they end when this process does."""

    name = "process"

    def _start(self, job: Job) -> subprocess.Popen[bytes]:
        return start_cell(job, {})

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

    name, library = "submitit", ("submitit", "cluster")
    options = None

    def __init__(self, workers: int, options: Mapping[str, Any], folder: Path) -> None:
        super().__init__(workers, options, folder)
        submitit = require_extra(*self.library)
        # A job's files have its number in their names, and local numbers come again.
        self._folder = folder / "submitit" / f"{int(time.time())}-{os.getpid()}"
        options = dict(options)
        cluster = options.pop("cluster", None)
        try:
            self._executor = submitit.AutoExecutor(self._folder, cluster=cluster)
            limit = DAY if self._executor.cluster == "slurm" else 365 * DAY
            defaults = {"timeout_min": limit, "cpus_per_task": 1, "name": "benchmark"}
            self._executor.update_parameters(**{**defaults, **options})
        except (NameError, ValueError, AssertionError, RuntimeError) as error:
            raise ConfigError(
                f"submitit does not take these options: {error}"
            ) from error
        self._is_local = self._executor.cluster == "local"
        self._all_ended_well = True

    def _start(self, job: Job) -> Any:
        utils = require_extra("submitit.core.utils", "cluster")
        refusals = (utils.FailedJobError, utils.FailedSubmissionError)
        try:
            with _interrupts_held_back():  # local jobs would complain of a Ctrl-C
                return self._executor.submit(_Resumable(), **shipped(job))
        except refusals as error:
            told = f"the cluster does not take the job of {job.cell}: {error}"
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

    def __call__(self, **job: Any) -> int:
        if os.environ.get("SUBMITIT_EXECUTOR") == "local":
            # Slurm ends a job by itself; there, submitit has to ignore this signal.
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        return run_job(**job)

    def checkpoint(self, **job: Any) -> Any:
        """Return the job that remains: the same one, since cells resume."""
        helpers = require_extra("submitit.helpers", "cluster")
        return helpers.DelayedSubmission(self, **job)


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Start processes that never see a Ctrl-C: they inherit the signal mask."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class RayEngine(Engine):
    """Tasks of a Ray cluster.

    Its options are `address` of a running cluster, such as auto (by default one is
    started on this machine, with as many cores as there are workers), and what Ray
    takes for a task: `num_cpus`, `num_gpus`, `memory` in bytes, `resources`,
    `max_retries`.
    """

    name, library = "ray", ("ray", "ray")
    options = ("address", "num_cpus", "num_gpus", "memory", "resources", "max_retries")

    def __init__(self, workers: int, options: Mapping[str, Any], folder: Path) -> None:
        super().__init__(workers, options, folder)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        self._ray: Any = require_extra(*self.library)
        options = {"num_cpus": 1, "max_retries": 0, **options}
        address = options.pop("address", None)
        here = {} if address else {"num_cpus": workers * max(1, options["num_cpus"])}
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
                f"or leave --engine-option address out for one of this machine."
            ) from error
        self._task = self._ray.remote(**options)(run_job)

    def _start(self, job: Job) -> Any:
        return self._task.remote(**shipped(job))

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


ENGINES: dict[str, type[Engine]] = {
    engine.name: engine for engine in (ProcessEngine, SubmititEngine, RayEngine)
}


def check_engine(name: str, *, workers: int, options: Mapping[str, Any]) -> None:
    """Refuse what can be known to fail before an engine is started.

    Args:
        name: Of `ENGINES`.
        workers: Jobs at a time.
        options: The engine's own.

    Raises:
        UnknownNameError: No engine of that name, or no such option.
        MissingExtraError: Its library is not installed.
        ConfigError: No workers, or options for an engine that takes none.
    """
    if name not in ENGINES:
        raise UnknownNameError("engine", name, ENGINES)
    if workers < 1:
        raise ConfigError(f"--workers must be at least 1, got {workers}.")
    engine = ENGINES[name]
    if engine.library is not None:
        require_extra(*engine.library)
    for option in options:
        if engine.options == ():
            raise ConfigError(
                f"The engine {name!r} takes no options, got {option!r}. Others do: "
                f"--engine submitit or ray."
            )
        if engine.options is not None and option not in engine.options:
            raise UnknownNameError(
                f"option of the engine {name}", option, engine.options
            )
