"""Interleaved timing: A B C, A B C, … instead of A A A, B B B.

Other work on a machine comes and goes. When cases take turns, it slows all of them
alike, and the ratios between them hold. A case's figure is the median over the rounds;
lowest and highest show how quiet the machine was.

The floor of a case is the floating point operations of its networks, as PyTorch counts
them, over what the cores deliver. No implementation of the same network is faster; how
far a measurement is above its floor is what an implementation can still gain.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from statistics import median

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from diffuser_policy.diffusion.denoiser import Denoiser
from diffuser_policy.errors import ConfigError

MIN_SECONDS = 0.02  # a round repeats what is shorter than this
MATRIX_SIZE = 512  # large enough for full speed, and over in milliseconds
CHANNELS, KERNEL_SIZE, IMAGE = 128, 5, (64, 16)  # of the measured convolution
ROUNDS = 50


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


@cache
def network_flops(denoiser: Denoiser, columns: int, length: int) -> int:
    """Return the floating point operations of one call, for one trajectory.

    Args:
        denoiser: Its weights don't matter.
        columns: Of the trajectory.
        length: Planning steps.
    """
    device = next(denoiser.parameters()).device
    noisy = torch.zeros(1, length, columns, device=device)
    plain = denoiser.accelerated("off")
    return flops_of(lambda: plain(noisy, 0))


def flops_of(work: Callable[[], object]) -> int:
    """Return the floating point operations of some work, as PyTorch counts them."""
    counter = FlopCounterMode(display=False)
    # Fused attention is not counted on every device, its matrix products are.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        work()
    return int(counter.get_total_flops())


def throughput() -> dict[str, float]:
    """Return measured operations per second, with as many threads as PyTorch uses.

    Returns:
        "matmul": a square matrix product; "convolution": one with the shapes of the
        network's, in a large batch.
    """
    square = torch.randn(MATRIX_SIZE, MATRIX_SIZE)
    images = torch.randn(IMAGE[0], CHANNELS, IMAGE[1])
    taps = torch.randn(CHANNELS, CHANNELS, KERNEL_SIZE)
    kinds: dict[str, Callable[[], object]] = {
        "matmul": lambda: square @ square,
        "convolution": lambda: F.conv1d(images, taps, padding=KERNEL_SIZE // 2),
    }
    return {name: flops_of(work) / _seconds(work) for name, work in kinds.items()}


@torch.inference_mode()
def _seconds(work: Callable[[], object]) -> float:
    """Return the shortest time of some work, when nothing else disturbed it."""
    taken = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return min(taken)
