"""Step grids: which denoising steps are visited."""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import numpy as np
import pytest
import torch

from diffuser_policy.choices import Spacing
from diffuser_policy.diffusion.conditions import Inpainting
from diffuser_policy.diffusion.sampler import DDIMSampler, WarmStart
from diffuser_policy.diffusion.schedule import (
    SPACINGS,
    NoiseSchedule,
    half_log_snr,
    step_grid,
)
from diffuser_policy.errors import ConfigError, UnknownNameError
from diffuser_policy.testing import GaussianDenoiser

ALL = pytest.mark.parametrize("spacing", SPACINGS)


def denoiser(num_steps: int = 64) -> GaussianDenoiser:
    return GaussianDenoiser(torch.zeros(2, 1), torch.eye(2), NoiseSchedule(num_steps))


def free() -> Inpainting:
    """Return conditions that pin nothing."""
    return Inpainting(torch.zeros(1, 2, 1, dtype=torch.bool), torch.zeros(1, 2, 1))


@ALL
@pytest.mark.parametrize("available", [1, 2, 7, 20, 40])
def test_every_grid_falls_to_clean_without_repeating_a_step(
    spacing: Spacing, available: int
) -> None:
    schedule = NoiseSchedule(available)
    for first in range(available):
        for num_steps in range(1, first + 2):
            grid = step_grid(schedule, num_steps, spacing=spacing, first=first)
            assert len(grid) == num_steps + 1
            assert all(type(step) is int for step in grid)
            assert all(i > j for i, j in pairwise(grid))
            assert grid[-1] == -1
            assert grid[0] <= first
            assert spacing == "leading" or grid[0] == first


@ALL
def test_all_steps_are_all_steps_whatever_the_spacing(spacing: Spacing) -> None:
    sampler = DDIMSampler(denoiser(12), 12, spacing=spacing)
    assert sampler.grid == [*range(11, -2, -1)]


@pytest.mark.parametrize(
    ("spacing", "num_steps", "grid"),
    [
        ("linspace", 1, [63, -1]),
        ("linspace", 2, [63, 0, -1]),
        ("linspace", 4, [63, 42, 21, 0, -1]),
        ("trailing", 1, [63, -1]),
        ("trailing", 2, [63, 31, -1]),
        ("trailing", 4, [63, 47, 31, 15, -1]),
        ("leading", 1, [0, -1]),
        ("leading", 4, [48, 32, 16, 0, -1]),
        ("leading", 5, [48, 36, 24, 12, 0, -1]),
        ("quadratic", 4, [63, 28, 7, 0, -1]),
        ("quadratic", 10, [63, 50, 38, 28, 19, 12, 7, 3, 1, 0, -1]),
    ],
)
def test_grids_by_hand(spacing: Spacing, num_steps: int, grid: list[int]) -> None:
    assert DDIMSampler(denoiser(64), num_steps, spacing=spacing).grid == grid


@pytest.mark.parametrize("num_steps", [2, 3, 5, 8])
def test_log_snr_is_even_up_to_one_step(num_steps: int) -> None:
    schedule = NoiseSchedule(1000)
    grid = step_grid(schedule, num_steps, spacing="log-snr", first=990)[:-1]
    odds = schedule.alpha_bars / (1 - schedule.alpha_bars)
    exact = odds.log().numpy() / 2
    wanted = np.linspace(exact[990], exact[0], num_steps)
    for step, ratio in zip(grid, wanted, strict=True):
        around = exact[max(step - 1, 0) : step + 2]
        assert around.min() <= ratio <= around.max()
    assert half_log_snr(schedule, 7) == pytest.approx(exact[7])
    assert half_log_snr(schedule, -1) == float("inf")


@ALL
def test_crowded_steps_make_way_as_little_as_they_must(spacing: Spacing) -> None:
    """One step fewer than there are: only one is left out, and never the first."""
    grid = DDIMSampler(denoiser(20), 19, spacing=spacing).grid
    assert len({*range(19)} - {*grid}) in (0, 1)
    assert spacing == "leading" or grid[0] == 19


@ALL
def test_samplers_visit_the_grid_from_noise_and_from_a_warm_start(
    spacing: Spacing, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = denoiser()
    sampler, visited = DDIMSampler(exact, 6, spacing=spacing), list[int]()
    forward = GaussianDenoiser.forward

    def watch(self: GaussianDenoiser, noisy: torch.Tensor, i: int) -> torch.Tensor:
        visited.append(i)
        return forward(self, noisy, i)

    monkeypatch.setattr(GaussianDenoiser, "forward", watch)
    start = WarmStart(trajectories=torch.zeros(1, 2, 1), level=0.5, num_steps=3)
    for warm_start in (None, start):
        sampler.sample(
            free(), [torch.Generator().manual_seed(0)], warm_start=warm_start
        )
    cold = step_grid(exact.schedule, 6, spacing=spacing, first=63)
    warm = step_grid(exact.schedule, 3, spacing=spacing, first=31)
    assert visited == [*cold[:-1], *warm[:-1]]


@pytest.mark.parametrize("level", [0.001, 0.5, 1.0])
def test_a_warm_start_takes_no_more_steps_than_there_are(level: float) -> None:
    grid = DDIMSampler(denoiser(), 5).grid_from(level, 40)
    assert grid[0] == max(round(level * 64) - 1, 0)
    assert len(grid) == min(40, grid[0] + 1) + 1


def test_unknown_spacings_are_refused_with_the_nearest() -> None:
    name = cast("Spacing", "logsnr")
    with pytest.raises(UnknownNameError, match="Did you mean 'log-snr'"):
        DDIMSampler(denoiser(), 5, spacing=name)


@pytest.mark.parametrize("num_steps", [0, -3, 11, 2.5, float("nan")])
def test_impossible_numbers_of_steps_are_refused(num_steps: float) -> None:
    steps = cast("int", num_steps)
    with pytest.raises(ConfigError, match=f"1 to 10 of them, got {num_steps}"):
        DDIMSampler(denoiser(10), steps)
