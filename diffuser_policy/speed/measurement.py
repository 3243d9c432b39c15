"""One measurement: all cases in turns, their floor, and the machine.

Cases are interleaved: A B C, A B C, … instead of A A A, B B B. Other work on a machine
comes and goes. When cases take turns, it slows all of them alike, and the ratios
between them hold. A case's figure is the median over the rounds; lowest and highest
show how quiet the machine was.
"""

from __future__ import annotations

import platform
import time
import timeit
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diffuser_policy.envs import make_env
from diffuser_policy.errors import ConfigError
from diffuser_policy.guides.registry import guide_record
from diffuser_policy.policy import DiffuserPolicy
from diffuser_policy.settings import converted, seed_or_drawn, to_json
from diffuser_policy.speed.cases import (
    PAPER,
    TOGETHER,
    Case,
    Subject,
    all_cases,
    flops_of,
)
from diffuser_policy.versions import versions

MIN_SECONDS = 0.02  # a round repeats what is shorter than this
MATRIX_SIZE = 512  # large enough for full speed, and over in milliseconds
GPU_SCALE = 16  # of matrix and images, likewise
CHANNELS, KERNEL_SIZE, IMAGE = 128, 5, (64, 16)  # of the measured convolution
CPU_INFO = Path("/proc/cpuinfo")


@dataclass(kw_only=True)
class Timing:
    """What a case took."""

    case: Case
    seconds: list[float] = field(default_factory=list)  # of one run, for each round
    # What the process computed in that time, of all threads; less than `seconds` where
    # it had to wait for other work on the machine.
    cpu_seconds: list[float] = field(default_factory=list)
    plans: int = 1  # made by one run

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
        """Return the least time of one planning call, in ms, at operations a second."""
        flops, calls = self.case.flops, self.plans / self.case.batch
        return None if flops is None else 1e3 * flops / throughput / calls


def measure(
    cases: Iterable[Case],
    *,
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    cpu_clock: Callable[[], float] = time.process_time,
    progress: Callable[[float], None] | None = None,
) -> list[Timing]:
    """Time all cases in turns, `rounds` times each.

    `torch.utils.benchmark.Timer` times one case after the other, and has no clock
    besides that of passing seconds; `cpu_clock` tells those that this process computes.

    Raises:
        ConfigError: No rounds, or no whole number of them.
    """
    rounds = converted(rounds, int, "rounds")
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


def throughput(device: torch.device | str = "cpu") -> dict[str, float]:
    """Return measured operations per second, with as many threads as PyTorch uses.

    Args:
        device: What computes.

    Returns:
        "matmul": a square matrix product; "convolution": one with the shapes of the
        network's, in a large batch.
    """
    device, source = torch.device(device), torch.Generator(device)
    draw = partial(torch.randn, generator=source, dtype=torch.float32, device=device)
    scale = 1 if device.type == "cpu" else GPU_SCALE
    square = draw((scale * MATRIX_SIZE, scale * MATRIX_SIZE))
    images = draw((scale * IMAGE[0], CHANNELS, scale * IMAGE[1]))
    taps = draw((CHANNELS, CHANNELS, KERNEL_SIZE))
    kinds: dict[str, Callable[[], Tensor]] = {
        "matmul": lambda: square @ square,
        "convolution": lambda: F.conv1d(images, taps, padding=KERNEL_SIZE // 2),
    }

    def seconds(work: Callable[[], Tensor]) -> float:
        """Return the shortest time: when nothing else disturbed it."""

        def finished() -> None:
            work()[..., 0].cpu()  # waits for all of it, and copies little

        return min(timeit.repeat(finished, number=1, repeat=50))

    counted = {name: flops_of(work) for name, work in kinds.items()}
    with torch.inference_mode():
        return {name: flops / seconds(kinds[name]) for name, flops in counted.items()}


@dataclass(frozen=True, kw_only=True)
class SpeedMeasurement:
    """What was measured, and on what."""

    timings: list[Timing]  # one per case; the first is the paper's setting
    throughput: dict[str, float]  # floating point operations per second, by kind
    settings: dict[str, Any]  # planner, environment and sizes
    machine: dict[str, Any]  # processor, threads and device
    versions: dict[str, str]  # of the packages that results depend on

    def group(self, name: str) -> list[Timing]:
        """Return the timings of one table, in the order of its rows."""
        return [timing for timing in self.timings if timing.case.group == name]

    @property
    def baseline(self) -> Timing:
        """The paper's setting with this planner's network."""
        return self.group(PAPER)[0]

    @property
    def default(self) -> Timing:
        """The planner as it is, one environment at a time."""
        return self.group(TOGETHER)[0]

    @property
    def peak(self) -> float:
        """The most floating point operations per second that were measured."""
        return max(self.throughput.values())


def measure_speed(
    policy: DiffuserPolicy,
    env_id: str,
    *,
    rounds: int = 7,
    seed: int | None = 0,
    quick: bool = False,
    compiled: bool = False,
    progress: Callable[[float], None] | None = None,
) -> SpeedMeasurement:
    """Measure how fast a policy plans, beside the paper's setting and the floor.

    Observations are those of the environment; every case has its turn `rounds` times.
    A `quick` measurement has a few cases, and the paper's setting from 4 of its steps.
    `compiled` adds `torch.compile`, which may take minutes to start. `progress` is told
    the share that is done. `seed` is a whole number from 0 to 2**63 - 1; None: drawn at
    random.

    Raises:
        ConfigError: No rounds, or a number of another kind.
        SpaceMismatchError: An environment of other spaces.
        MissingExtraError: The environment's simulator is not installed.
    """
    rounds, seed = converted(rounds, int, "rounds"), seed_or_drawn(seed)
    lines = (
        CPU_INFO.read_text(encoding="utf-8").splitlines() if CPU_INFO.exists() else ()
    )
    names = (line.partition(":")[2] for line in lines if line.startswith("model name"))
    model = next(names, "").strip()
    with closing(make_env(env_id)) as env:
        policy = policy.for_env(env)
    subject = Subject(policy, env_id, seed=seed, quick=quick, compiled=compiled)
    device = policy.planner.normalizer.shift.device
    timings = measure(all_cases(subject), rounds=rounds, progress=progress)
    return SpeedMeasurement(
        timings=timings,
        throughput=throughput(device),
        settings={
            "env": env_id,
            "seed": seed,
            "rounds": rounds,
            "quick": quick,
            "guide": None if policy.guide is None else guide_record(policy.guide),
            "planner": to_json(policy.config.planner),
            "execution": to_json(policy.config.execution),
        },
        machine={
            "cpu": model or platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "device": str(device),
        },
        versions=versions(),
    )
