"""Interleaved timing: A B C, A B C, … instead of A A A, B B B.

Other work on a machine comes and goes. When the cases take turns, it slows all of them
alike, and their ratios hold. A case's figure is the median over the rounds; lowest and
highest show how quiet the machine was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import median

from diffuser_policy.errors import ConfigError

MIN_SECONDS = 0.02  # a round repeats what is shorter than this


@dataclass(frozen=True, kw_only=True)
class Case:
    """Something to time.

    Attributes:
        group: Table that it belongs to.
        name: Row of that table.
        run: Does the work, and returns for how many plans; calls are independent.
        flops: Floating point operations of its networks in one call, if counted.
        batch: Environments that share a planning call.
        share: Which share of the work `run` does; the rest takes as long again.
        once: Too long to be repeated, or even warmed up.
    """

    group: str
    name: str
    run: Callable[[], int]
    flops: int | None = None
    batch: int = 1
    share: float = 1.0
    once: bool = False


@dataclass(kw_only=True)
class Timing:
    """What a case took.

    Attributes:
        case: What was timed.
        seconds: Of one run, a number for each round.
        cpu_seconds: What the process computed in that time, of all threads; less than
            `seconds` where it had to wait for other work on the machine.
        plans: Made by one run.
    """

    case: Case
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    plans: int = 1

    @property
    def plan_ms(self) -> float:
        """Median time of one plan, in milliseconds."""
        return 1e3 * median(self.seconds) / self.plans

    @property
    def call_ms(self) -> float:
        """Median time of one planning call, in milliseconds."""
        return self.plan_ms * self.case.batch

    @property
    def cpu_ms(self) -> float:
        """Median processor time of one planning call, in milliseconds."""
        return 1e3 * median(self.cpu_seconds) * self.case.batch / self.plans

    @property
    def spread(self) -> tuple[float, float]:
        """Shortest and longest time of one planning call, in milliseconds."""
        scale = 1e3 * self.case.batch / self.plans
        return scale * min(self.seconds), scale * max(self.seconds)

    @property
    def plans_per_second(self) -> float:
        """Plans made in the median time."""
        return 1e3 / self.plan_ms

    def floor_ms(self, throughput: float) -> float | None:
        """Return the least time of one planning call, in milliseconds.

        Args:
            throughput: Operations per second.
        """
        if self.case.flops is None:
            return None
        return 1e3 * self.case.flops / throughput * self.case.batch / self.plans


def measure(
    cases: Iterable[Case],
    *,
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    cpu_clock: Callable[[], float] = time.process_time,
    progress: Callable[[float], None] | None = None,
) -> list[Timing]:
    """Time all cases in turns.

    Args:
        cases: What to time.
        rounds: Figures per case.
        clock: Seconds that pass.
        cpu_clock: Seconds that this process computes.
        progress: Told the share that is done.

    Raises:
        ConfigError: No rounds.
    """
    if rounds < 1:
        raise ConfigError(f"rounds must be at least 1, got {rounds}.")
    timings = [Timing(case=case) for case in cases]
    for timing in timings:
        if not timing.case.once:
            timing.case.run()  # libraries set up and allocate in the first call
    for number in range(rounds):
        for index, timing in enumerate(timings):
            start, cpu_start, calls = clock(), cpu_clock(), 0
            repeatable = not timing.case.once
            while not calls or (repeatable and clock() - start < MIN_SECONDS):
                timing.plans = timing.case.run()
                calls += 1
            whole = calls * timing.case.share
            timing.seconds.append((clock() - start) / whole)
            timing.cpu_seconds.append((cpu_clock() - cpu_start) / whole)
            if progress is not None:
                progress((number + (index + 1) / len(timings)) / rounds)
    return timings
