"""Cells as tasks of a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Mapping
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
from diffuser_policy.errors import require_extra


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
        del folder
        super().__init__(workers)
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
                f"or leave --executor-option address out for one of this machine."
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
