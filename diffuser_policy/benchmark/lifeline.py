"""Child processes that end when their parent does, however the parent ends.

The parent holds the writing end of a pipe that is the child's standard input, and never
writes to it. When the parent closes it, exits or is killed, the child reads the end of
the pipe, interrupts itself as Ctrl-C would (so that a training saves a checkpoint), and
is killed if it still runs some seconds later. `concurrent.futures` and `subprocess`
leave such children behind; Linux's signal at the parent's death gives them no time.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO

VARIABLE = "DIFFUSER_POLICY_LIFELINE"
GRACE = 10.0  # seconds that a process has to save what it wants to save
BUSY = 75  # exit status of a cell that another process is at work on: EX_TEMPFAIL


def start_child(
    command: Sequence[str],
    *,
    output: IO[bytes],
    folder: Path | str,
    environment: Mapping[str, str],
) -> subprocess.Popen[bytes]:
    """Start a command whose standard input is its lifeline, in a session of its own.

    In its own session, it does not see a Ctrl-C in the terminal, and all processes that
    it starts can be killed together.

    Args:
        command: Program and arguments. A Python program that calls `end_with_parent`
            ends with its parent; others end in `stop_children` only.
        output: Where standard output and error go.
        folder: To run in.
        environment: All its variables.
    """
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        cwd=folder,
        env={**environment, VARIABLE: "1"},
        start_new_session=True,
    )


def stop_children(
    children: Iterable[subprocess.Popen[bytes]], *, grace: float = GRACE
) -> None:
    """End children and the processes that they started; return when they are gone.

    Args:
        children: From `start_child`.
        grace: Seconds after which they are killed. A Ctrl-C meanwhile kills them now.
    """
    children = list(children)
    try:
        for child in children:
            release(child)
        deadline = time.monotonic() + grace
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
    """Let go of a child's lifeline: it ends by itself, if it has not already."""
    if child.stdin is not None:
        with contextlib.suppress(OSError):
            child.stdin.close()


def end_with_parent(*, grace: float = GRACE) -> None:
    """Make this process end when the one that started it lets go of the lifeline.

    Does nothing in a process that was not started by `start_child`, for example by
    hand.

    Args:
        grace: Seconds between the interrupt and the kill.
    """
    if os.environ.pop(VARIABLE, None) is None:
        return
    lifeline = os.dup(0)  # not inherited by processes that this one starts
    with open(os.devnull, "rb") as nothing:  # noqa: PTH123 (descriptors, not files)
        os.dup2(nothing.fileno(), 0)
    hear_interrupts()

    def end() -> None:
        while os.read(lifeline, 1024):
            pass
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(grace)
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=end, name="lifeline", daemon=True).start()


def hear_interrupts() -> None:
    """Let an interrupt raise KeyboardInterrupt in this process, as it does by default.

    Shells let processes in the background ignore it, and some engines block it;
    processes inherit both. Has no effect in other threads than the main one.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
