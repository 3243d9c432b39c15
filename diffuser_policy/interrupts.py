"""Ctrl-C: delayed where it would corrupt a state, and enabled where it was ignored.

An interrupt within an optimizer step would leave some weights a step ahead of others,
and a training could not resume exactly from a checkpoint of that. So a loop delays it
until the step is complete.

A fork cuts other threads off, too: in the child, a lock that one of them held would
never be released. So a fork waits for such locks.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from types import FrameType


@contextlib.contextmanager
def held_interrupt() -> Iterator[Callable[[], bool]]:
    """Hold Ctrl-C back; yields a function that says whether it was pressed.

    The first Ctrl-C is noted, and a loop asks for it where it can end; a second one
    interrupts at once. Outside the main thread, where Python delivers no signals,
    nothing is held.
    """
    pressed: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    previous = signal.getsignal(signal.SIGINT)

    def hold(number: int, _: FrameType | None) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    signal.signal(signal.SIGINT, hold)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, previous)


@contextlib.contextmanager
def interrupts_delayed() -> Iterator[None]:
    """Delay Ctrl-C until the block ends; processes started within never receive it.

    A worker inherits the signal mask. Without the mask, a Ctrl-C during its imports
    would end it with a traceback of its own.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def hear_interrupts() -> None:
    """Let an interrupt raise KeyboardInterrupt in this process, as it does by default.

    Shells let processes in the background ignore it, and some engines block it;
    processes inherit both. Has no effect in other threads than the main one.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


@contextlib.contextmanager
def stops_as_interrupt() -> Iterator[None]:
    """Treat a request to end (SIGTERM) and a closed terminal like Ctrl-C.

    What the process ignores stays ignored: under `nohup`, that is the closed terminal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {
        number: signal.signal(number, signal.default_int_handler)
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def forkable_lock() -> AbstractContextManager[bool]:
    """Return a lock that a fork waits for, so that the child can take it."""
    lock = threading.RLock()
    if hasattr(os, "register_at_fork"):  # not on Windows, which cannot fork
        os.register_at_fork(
            before=lock.acquire,
            after_in_parent=lock.release,
            after_in_child=lock.release,
        )
    return lock
