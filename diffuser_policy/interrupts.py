"""Ctrl-C where it does no harm: between two steps of a loop.

An interrupt within an optimizer step would leave some weights a step ahead of others,
and a checkpoint of that could not be resumed exactly.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
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
