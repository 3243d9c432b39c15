"""One measurement: all cases in turns, the floor, and on what they were measured."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diffuser_policy.policy import DiffuserPolicy
from diffuser_policy.settings import to_json
from diffuser_policy.speed.cases import PAPER, TOGETHER, Subject, all_cases
from diffuser_policy.speed.timing import Timing, measure, throughput
from diffuser_policy.versions import versions

CPU_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, kw_only=True)
class SpeedMeasurement:
    """What was measured, and on what.

    Attributes:
        timings: One per case; the first is the paper's setting.
        throughput: Floating point operations per second, by kind of operation.
        settings: Planner, environment and sizes.
        machine: Processor, threads and device.
        versions: Of the packages that results depend on.
    """

    timings: list[Timing]
    throughput: dict[str, float]
    settings: dict[str, Any]
    machine: dict[str, Any]
    versions: dict[str, str]

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
    seed: int = 0,
    quick: bool = False,
    compiled: bool = False,
    progress: Callable[[float], None] | None = None,
) -> SpeedMeasurement:
    """Measure how fast a policy plans, beside the paper's setting and the floor.

    Args:
        policy: What to measure, on the device that it is on.
        env_id: Environment that observations are taken from.
        rounds: Times that every case has its turn.
        seed: Of the observations.
        quick: A few cases, and the paper's setting from 4 of its steps.
        compiled: Also `torch.compile`, which may take minutes to start.
        progress: Told the share that is done.

    Raises:
        ConfigError: No rounds.
        SpaceMismatchError: An environment of other spaces.
        MissingExtraError: The environment's simulator is not installed.
    """
    subject = Subject(policy, env_id, seed=seed, quick=quick, compiled=compiled)
    timings = measure(all_cases(subject), rounds=rounds, progress=progress)
    return SpeedMeasurement(
        timings=timings,
        throughput=throughput(),
        settings={
            "env": env_id,
            "seed": seed,
            "rounds": rounds,
            "quick": quick,
            "planner": to_json(policy.config.planner),
        },
        machine={
            "cpu": processor(),
            "threads": torch.get_num_threads(),
            "device": str(policy.planner.normalizer.shift.device),
        },
        versions=versions(),
    )


def processor() -> str:
    """Return the processor's name, or its kind where the system does not tell it."""
    if CPU_INFO.exists():
        for line in CPU_INFO.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
