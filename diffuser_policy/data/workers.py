"""Independent jobs on several processes.

Workers are spawned, not forked (simulators and their threads do not survive a fork).
They run single-threaded, ignore Ctrl-C (the parent decides), and end with the parent.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from diffuser_policy.errors import DiffuserPolicyError
from diffuser_policy.interrupts import interrupts_delayed

Job = TypeVar("Job")
Result = TypeVar("Result")
MOST_ON_WINDOWS = 61  # processes that Python can wait for there
ONE_THREAD = dict.fromkeys(  # variables of a process
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"
)


def map_unordered(
    function: Callable[[Job], Result], jobs: Sequence[Job], *, num_workers: int
) -> Generator[Result, None, None]:
    """Yield the results of independent jobs as they finish.

    When the iterator is closed, or a job raises, the running jobs finish and no others
    start.

    Args:
        function: Picklable.
        jobs: Each is the argument of one call.
        num_workers: Number of processes, on Windows 61 at most; with one, the jobs run
            in this process.

    Raises:
        WorkerError: A worker process died.
    """
    num_workers = min(num_workers, len(jobs))
    if sys.platform == "win32":
        num_workers = min(num_workers, MOST_ON_WINDOWS)
    if num_workers <= 1:
        yield from map(function, jobs)
        return
    with _single_threaded_children():
        executor = ProcessPoolExecutor(
            num_workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start_worker,
        )
        waiting = iter(jobs)
        running: set[Future[Result]] = set()
        try:
            while True:
                # Each worker has one job at most, so that an interrupt waits for no
                # other.
                for job in itertools.islice(waiting, num_workers - len(running)):
                    with interrupts_delayed():  # submitting may start a worker
                        running.add(executor.submit(function, job))
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        except BrokenProcessPool as error:
            raise WorkerError(
                "A worker process died; finished jobs are kept. If memory ran out, use "
                "fewer workers. A script that starts workers must keep its own work "
                'under `if __name__ == "__main__":`.'
            ) from error
        finally:
            executor.shutdown(wait=True, cancel_futures=True)


class WorkerError(DiffuserPolicyError, RuntimeError):
    """A worker process ended without a result."""


def num_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and end with it even if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:

        def exit_with_parent() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=exit_with_parent, daemon=True).start()


@contextlib.contextmanager
def _single_threaded_children() -> Iterator[None]:
    """Limit child processes to one thread each: together they use all cores."""
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(ONE_THREAD)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
