"""Cells as jobs of a Slurm cluster, through submitit."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from diffuser_policy.benchmark.engines.base import (
    MARGIN,
    Ended,
    Engine,
    EngineError,
    Job,
    run_job,
    shipped,
)
from diffuser_policy.benchmark.lifeline import GRACE
from diffuser_policy.errors import ConfigError, require_extra

DAY = 24 * 60  # minutes


class SubmititEngine(Engine):
    """Jobs of Slurm, or of this machine, through submitit.

    Its options are those of submitit's `AutoExecutor.update_parameters`, such as
    `slurm_partition`, `timeout_min`, `mem_gb` and `cpus_per_task`, and `cluster`: slurm
    or local (by default Slurm where it is installed).
    """

    name, library = "submitit", ("submitit", "cluster")
    options = None
    poll_interval = 0.5

    def __init__(self, workers: int, options: Mapping[str, Any], folder: Path) -> None:
        super().__init__(workers)
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
            told = f"submitit does not take these options: {error}"
            raise ConfigError(told) from error
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
            time.sleep(0.1)

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
        """Return what is left to do: the cell resumes by itself."""
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
