"""Child processes that end when their parent does, however the parent ends.

The parent holds the writing end of a pipe that is the child's standard input, and never
writes to it. When the parent closes it, exits or is killed, the child reads the end of
the pipe, interrupts itself as Ctrl-C would (so that a training saves a checkpoint), and
is killed if it is still there a while later. Unlike signals at the parent's death, this
needs no help from the operating system.
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


def start_child(
    command: Sequence[str],
    *,
    output: IO[bytes],
    folder: Path | str,
    environment: Mapping[str, str],
) -> subprocess.Popen[bytes]:
    """Start a command whose standard input is its lifeline, in a session of its own.

    A session of its own, so that a Ctrl-C in the terminal reaches the parent only, and
    that all processes the command starts can be killed together.

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
    """End children, and what they started; returns when they are gone.

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

    Does nothing in a process that was started otherwise, by hand for example. To be
    called before anything slow is imported.

    Args:
        grace: Seconds between the interrupt and the kill.
    """
    if os.environ.pop(VARIABLE, None) is None:
        return
    lifeline = os.dup(0)  # not inherited by processes that this one starts
    with open(os.devnull, "rb") as nothing:  # noqa: PTH123 (descriptors, not files)
        os.dup2(nothing.fileno(), 0)
    hear_interrupts()
    threading.Thread(
        target=_end_after, args=(lifeline, grace), name="lifeline", daemon=True
    ).start()


def hear_interrupts() -> None:
    """Let an interrupt raise KeyboardInterrupt in this process, as it does by default.

    It is ignored where a shell runs the parent in the background, and blocked by some
    engines; processes inherit both. Without an effect in other threads than the first.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _end_after(lifeline: int, grace: float) -> None:
    """Wait for the end of the pipe, then end this process and those it started."""
    while os.read(lifeline, 1024):
        pass
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(grace)
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)
