"""Seconds that a cell takes, by what they were spent on, over all of its attempts."""

from __future__ import annotations

import time

from diffuser_policy.benchmark.cells import CellFolder


class Clock:
    """Adds up seconds by the wall clock and of the processor.

    What a killed process spent since it last told is lost.

    Args:
        folder: Where they are kept between attempts.

    Attributes:
        seconds: `<stage>_seconds` and `<stage>_cpu_seconds`, and `attempts`.
    """

    def __init__(self, folder: CellFolder) -> None:
        self.folder = folder
        self.seconds: dict[str, float] = folder.read("clock") or {"attempts": 0}
        self.seconds["attempts"] += 1
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def count(self, stage: str) -> None:
        """Count what has passed since the last call as spent on a stage.

        Args:
            stage: "train" or "evaluate".
        """
        wall, cpu = time.perf_counter(), time.process_time()
        self._add(f"{stage}_seconds", wall - self.wall)
        self._add(f"{stage}_cpu_seconds", cpu - self.cpu)
        self.wall, self.cpu = wall, cpu
        self.folder.write("clock", self.seconds)

    def _add(self, name: str, seconds: float) -> None:
        self.seconds[name] = round(self.seconds.get(name, 0.0) + seconds, 3)
