"""Speed: operations against their definition, and turns under a known clock."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from diffuser_policy.diffusion.denoiser import Denoiser
from diffuser_policy.diffusion.schedule import NoiseSchedule
from diffuser_policy.errors import ConfigError
from diffuser_policy.speed.cases import Case, flops_of, network_flops
from diffuser_policy.speed.measurement import measure, throughput
from tests.network_helpers import random_network


def test_operations_of_a_network_are_those_of_its_layers() -> None:
    """Two linear layers of the time, the rest convolutions."""
    network = random_network(multipliers=(1,))
    total = 0
    for module in network.modules():
        if isinstance(module, nn.Conv1d):
            total += 2 * 8 * module.weight.numel()
        elif isinstance(module, nn.Linear):
            total += 2 * module.weight.numel()
    denoiser = Denoiser(network, NoiseSchedule(4))
    assert network_flops(denoiser, network.transition_dim, 8) == total


def test_attention_is_counted_as_its_matrix_products() -> None:
    q = torch.randn(1, 2, 16, 4)  # heads, tokens, channels
    products = 2 * (2 * 16 * 16 * 4) * 2
    assert flops_of(lambda: F.scaled_dot_product_attention(q, q, q)) == products


def test_throughput_is_within_what_processors_do() -> None:
    measured = throughput()
    assert set(measured) == {"matmul", "convolution"}
    assert all(1e8 < value < 1e14 for value in measured.values())


class Clock:
    """Time that passes only when somebody works."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def __call__(self) -> float:
        return self.now

    def case(self, name: str, *seconds: float, plans: int = 1, **rest: Any) -> Case:
        """Return work that takes the given times in turn, the last one for good."""
        left = list(seconds)

        def run() -> int:
            self.log.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]
            return plans

        return Case(group="g", name=name, run=run, **rest)


def test_cases_take_turns() -> None:
    clock = Clock()
    cases = [clock.case("a", 1.0), clock.case("b", 2.0)]
    measure(cases, rounds=3, clock=clock, cpu_clock=clock)
    assert clock.log == ["a", "b"] + 3 * ["a", "b"]  # each warms up once


def test_a_figure_is_the_median_per_plan_without_the_first_call() -> None:
    clock = Clock()
    case = clock.case("a", 50.0, 2.0, 9.0, 4.0, plans=8, batch=8)
    [timing] = measure([case], rounds=3, clock=clock, cpu_clock=lambda: clock.now / 2)
    assert timing.plan_ms == pytest.approx(500.0)
    assert timing.call_ms == pytest.approx(4000.0)
    assert timing.cpu_ms == pytest.approx(2000.0)
    assert timing.spread == pytest.approx((2000.0, 9000.0))
    assert timing.plans_per_second == pytest.approx(2.0)


def test_short_work_is_repeated_and_long_work_is_not() -> None:
    clock = Clock()
    short, long = clock.case("short", 0.001), clock.case("long", 0.001, once=True)
    timings = measure([short, long], rounds=1, clock=clock, cpu_clock=clock)
    assert clock.log.count("short") >= 20
    assert clock.log.count("long") == 1
    assert [t.plan_ms for t in timings] == pytest.approx([1.0, 1.0])


def test_a_share_of_the_work_stands_for_all_of_it() -> None:
    clock = Clock()
    case = clock.case("a", 3.0, share=0.25, once=True)
    [timing] = measure([case], rounds=1, clock=clock, cpu_clock=clock)
    assert timing.plan_ms == pytest.approx(12_000.0)


def test_the_floor_is_that_of_one_planning_call() -> None:
    clock = Clock()
    together = clock.case("a", 1.0, plans=8, batch=8, flops=8_000_000)
    singly = clock.case("b", 1.0, plans=8, flops=8_000_000)
    unknown = clock.case("c", 1.0)
    timings = measure([together, singly, unknown], rounds=1, clock=clock)
    floors = [timing.floor_ms(1e9) for timing in timings]
    assert floors == [pytest.approx(8.0), pytest.approx(1.0), None]


def test_progress_is_told() -> None:
    clock, told = Clock(), list[float]()
    cases = [clock.case("a", 1.0), clock.case("b", 1.0)]
    measure(cases, rounds=2, clock=clock, progress=told.append)
    assert told == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_no_rounds_are_refused() -> None:
    with pytest.raises(ConfigError, match="rounds must be at least 1, got 0"):
        measure([], rounds=0)
