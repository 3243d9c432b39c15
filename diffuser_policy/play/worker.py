"""One thread that plans, and the changes that wait for it: the newest one wins.

    worker.post("goal", session.move, "goal", (4.5, 3.0, 0.0))
    worker.post("goal", session.move, "goal", (4.6, 3.1, 0.0))     replaces the first

A page leaves changes faster than a planner plans. They wait by name, at most one each.
The thread takes all of them at once, makes them, and calls `advance` once, so a plan
is always for the newest state and none is made for a state that is gone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

Change = tuple[Callable[..., object], tuple[Any, ...]]

PATIENCE = 5.0  # seconds that `stop` waits


class Worker:
    """Makes changes and advances what they change, in one thread of its own.

    Attributes:
        ended: Whether it was stopped: then long changes should return early.
    """

    def __init__(
        self,
        advance: Callable[[], float | None],
        failed: Callable[[Exception], object],
    ) -> None:
        """Store what to do; `start` begins.

        Args:
            advance: Called after changes. It returns in how many seconds to call it
                again, or none to wait for the next change.
            failed: Told of an exception of a change or of `advance`; work goes on.
        """
        self._advance, self._failed = advance, failed
        self._waiting: dict[str, Change] = {}
        self._news = threading.Condition()
        self.ended = False
        self._thread = threading.Thread(target=self._work, name="planner", daemon=True)

    def start(self) -> None:
        """Begin to work, with a first call of `advance`."""
        self._thread.start()

    def post(self, name: str, change: Callable[..., object], *arguments: Any) -> None:
        """Leave a change; one of the same name that still waits is forgotten.

        Args:
            name: What it changes.
            change: Called in the worker's thread.
            arguments: For the call.
        """
        with self._news:
            self._waiting.pop(name, None)  # the order is that of the newest changes
            self._waiting[name] = change, arguments
            self._news.notify()

    def stop(self) -> None:
        """End the thread; wait a while for it to finish what it does."""
        with self._news:
            self.ended = True
            self._news.notify()
        if self._thread.is_alive():
            self._thread.join(PATIENCE)

    def _work(self) -> None:
        pause: float | None = 0.0
        while True:
            with self._news:
                if not self._waiting and not self.ended and pause != 0.0:
                    self._news.wait(pause)
                changes, self._waiting = self._waiting, {}
                if self.ended:
                    return
                if not changes and pause is None:
                    continue  # woken for nothing
            for change, arguments in changes.values():
                try:
                    change(*arguments)
                except Exception as error:
                    self._failed(error)
            try:
                pause = self._advance()
            except Exception as error:
                self._failed(error)
                pause = None
