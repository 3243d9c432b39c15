"""Engines: where the processes of a benchmark run.

Every engine runs the same command for a cell, `python -m
diffuser_policy.benchmark.cell_process FOLDER CELL`, with one thread and its output in
the cell's log.txt. So results do not depend on the engine, and nothing but strings
travels to other machines.

`process`
    Processes of this machine.
`submitit`
    Jobs of a Slurm cluster, or of this machine where there is none. The runner waits on
    a login node; every cell is one job. A job that reaches its time limit is put back
    into the queue and goes on from the cell's last checkpoint.
`ray`
    Tasks of a Ray cluster: one that is running (`address=auto`), or one of this machine
    that is started for the run.

More than one machine takes a file system that all of them see: the benchmark's folder,
the datasets (MINARI_DATASETS_PATH) and the same Python environment at the same place.
Its locks have to reach over machines, as those of NFS 4, Lustre (mounted with `flock`)
and GPFS do. `examples/benchmark_cluster.md` has the steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffuser_policy.benchmark.engines.base import Ended, Engine, EngineError, Job
from diffuser_policy.benchmark.engines.process_engine import ProcessEngine
from diffuser_policy.benchmark.engines.ray_engine import RayEngine
from diffuser_policy.benchmark.engines.submitit_engine import SubmititEngine
from diffuser_policy.errors import ConfigError, UnknownNameError, require_extra

__all__ = [
    "ENGINES",
    "Ended",
    "Engine",
    "EngineError",
    "Job",
    "check_engine",
    "make_engine",
]

ENGINES: dict[str, type[ProcessEngine | SubmititEngine | RayEngine]] = {
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
        raise UnknownNameError("executor", name, ENGINES)
    if workers < 1:
        raise ConfigError(f"--workers must be at least 1, got {workers}.")
    engine = ENGINES[name]
    if engine.library is not None:
        require_extra(*engine.library)
    for option in options:
        if engine.options == ():
            raise ConfigError(
                f"The executor {name!r} takes no options, got {option!r}. Others do: "
                f"--executor submitit or ray."
            )
        if engine.options is not None and option not in engine.options:
            known = engine.options
            raise UnknownNameError(f"option of the executor {name}", option, known)


def make_engine(
    name: str, *, workers: int, options: Mapping[str, Any], folder: Path
) -> Engine:
    """Return an engine, connected to its cluster.

    Args:
        name: Of `ENGINES`.
        workers: Jobs at a time.
        options: The engine's own.
        folder: Of the benchmark, for what the engine writes itself.

    Raises:
        UnknownNameError: As `check_engine`.
        MissingExtraError: As `check_engine`.
        ConfigError: As `check_engine`, or options that the library does not take.
        EngineError: It cannot be started.
    """
    check_engine(name, workers=workers, options=options)
    return ENGINES[name](workers, options, folder)
