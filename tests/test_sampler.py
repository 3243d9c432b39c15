"""Samplers against the truth: Gaussian moments, order of convergence, diffusers."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from diffuser_policy.choices import PredictionTarget
from diffuser_policy.diffusion.conditions import Inpainting
from diffuser_policy.diffusion.denoiser import PREDICTION_TARGETS, Denoiser
from diffuser_policy.diffusion.sampler import (
    DDIMSampler,
    DDPMSampler,
    DPMSolverSampler,
    Prediction,
    Sampler,
    WarmStart,
    Weights,
)
from diffuser_policy.diffusion.schedule import NoiseSchedule
from diffuser_policy.errors import ConfigError
from diffuser_policy.networks.unet import TemporalUNet
from diffuser_policy.testing import GaussianDenoiser

MEAN = torch.tensor([[0.5], [-0.2]])
COVARIANCE = torch.tensor([[0.6, 0.45], [0.45, 0.5]])
TARGETS = pytest.mark.parametrize("target", PREDICTION_TARGETS)
Make = Callable[[Denoiser], Sampler]
MAKERS = [DDPMSampler, DDIMSampler, DPMSolverSampler]


def gaussian(
    num_steps: int = 50, target: PredictionTarget = "clean"
) -> GaussianDenoiser:
    return GaussianDenoiser(
        MEAN, COVARIANCE, NoiseSchedule(num_steps), prediction_target=target
    )


def free(rows: int, horizon: int = 2, transition_dim: int = 1) -> Inpainting:
    """Return conditions that pin nothing."""
    mask = torch.zeros(1, horizon, transition_dim, dtype=torch.bool)
    return Inpainting(mask, torch.zeros(rows, horizon, transition_dim))


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def many(sampler: Sampler, num_candidates: int = 40_000) -> Tensor:
    """Return `[candidates, entries]` unconditional samples."""
    samples = sampler.sample(free(1), generators(0), num_candidates=num_candidates)
    return samples.trajectories[0].flatten(1).double()


def network_denoiser(num_steps: int = 12, **settings: Any) -> Denoiser:
    """Return a denoiser with a small random network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = TemporalUNet(3, dim=8, multipliers=(1, 2))
    return Denoiser(network.eval(), NoiseSchedule(num_steps), **settings)


# --- moments ----------------------------------------------------------------------


def linear_moments(denoiser: GaussianDenoiser, eta: float) -> tuple[Tensor, Tensor]:
    """Return mean and covariance of ancestral sampling, by propagating matrices.

    Every step is x' = A x + b + sigma z, written here from the definitions of the
    posterior mean and of DDIM (Song et al. 2021, eq. 12 and 16), eigenbasis-free.
    """
    identity = torch.eye(2, dtype=torch.float64)
    mu, cov = MEAN.flatten().double(), COVARIANCE.double()
    mean, spread = torch.zeros(2, dtype=torch.float64), identity
    bars = [*denoiser.schedule.alpha_bars.tolist()]
    for i in reversed(range(len(bars))):
        here, there = bars[i], bars[i - 1] if i else 1.0
        gain = here**0.5 * cov @ torch.linalg.inv(here * cov + (1 - here) * identity)
        shift = mu - here**0.5 * gain @ mu  # predicted clean = gain x + shift
        sigma = eta * ((1 - there) / (1 - here) * (1 - here / there)) ** 0.5
        along = max(1 - there - sigma**2, 0.0) ** 0.5
        along /= (1 - here) ** 0.5
        matrix = (there**0.5 - along * here**0.5) * gain + along * identity
        mean = matrix @ mean + (there**0.5 - along * here**0.5) * shift
        spread = matrix @ spread @ matrix.T + (sigma**2 if i else 0.0) * identity
    return mean, spread


@TARGETS
@pytest.mark.parametrize("kind", ["ddpm", "ddim"])
def test_moments_are_those_of_the_linear_recursion(
    kind: str, target: PredictionTarget
) -> None:
    denoiser = gaussian(target=target)
    make: dict[str, Make] = {
        "ddpm": DDPMSampler,
        "ddim": DDIMSampler,
    }
    eta = {"ddpm": 1.0, "ddim": 0.0}[kind]
    mean, covariance = linear_moments(denoiser, eta)
    found = many(make[kind](denoiser))
    torch.testing.assert_close(found.mean(0), mean, rtol=0, atol=0.015)
    torch.testing.assert_close(found.T.cov(), covariance, rtol=0, atol=0.015)


@pytest.mark.parametrize("make", MAKERS)
def test_moments_approach_those_of_the_data(make: type[Sampler]) -> None:
    """With an exact denoiser, samples are the data's Gaussian up to the step size."""
    found = many(make(gaussian(200)))
    torch.testing.assert_close(
        found.mean(0), MEAN.flatten().double(), rtol=0, atol=0.02
    )
    torch.testing.assert_close(found.T.cov(), COVARIANCE.double(), rtol=0, atol=0.03)
    eta = 1.0 if make is DDPMSampler else 0.0
    errors = [
        (linear_moments(gaussian(n), eta)[1] - COVARIANCE).abs().max().item()
        for n in (25, 50, 100, 200)
    ]
    assert all(finer < 0.6 * coarser for coarser, finer in pairwise(errors))


# --- temperature --------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.5])
@pytest.mark.parametrize("kind", ["ddpm", "ddim"])
def test_temperature_scales_all_noise(kind: str, temperature: float) -> None:
    """The denoiser is linear, so the covariance scales by its square, exactly."""
    eta = {"ddpm": 1.0, "ddim": 0.0}[kind]
    denoiser = gaussian()
    mean, covariance = linear_moments(denoiser, eta)
    sampler = (
        DDPMSampler(denoiser, temperature=temperature)
        if kind == "ddpm"
        else DDIMSampler(denoiser, temperature=temperature)
    )
    found = many(sampler)
    expected = temperature**2 * covariance
    torch.testing.assert_close(found.mean(0), mean, rtol=0, atol=0.02)
    torch.testing.assert_close(found.T.cov(), expected, rtol=0.03, atol=1e-6)


@pytest.mark.parametrize("make", MAKERS)
def test_temperature_one_changes_nothing(make: type[Sampler]) -> None:
    plain, warm = make(gaussian()), make(gaussian(), temperature=1.0)
    assert torch.equal(many(plain, 10), many(warm, 10))
    assert not torch.equal(many(plain, 10), many(make(gaussian(), temperature=0.9), 10))


def test_temperature_scales_the_noise_of_a_warm_start() -> None:
    start = WarmStart(trajectories=MEAN[None], level=0.5, num_steps=5)
    chains = [
        DDIMSampler(gaussian(), temperature=temperature)
        .sample(free(1), generators(0), warm_start=start, keep_chain=True)
        .chain
        for temperature in (0.0, 1.0, 2.0)
    ]
    still, plain, hot = (chain[0] for chain in chains if chain is not None)
    signal = gaussian().schedule.alpha_bar(24) ** 0.5
    torch.testing.assert_close(still[0, 0], signal * MEAN)
    torch.testing.assert_close(hot - still, 2 * (plain - still))


@pytest.mark.parametrize("temperature", [-0.1, float("nan"), float("inf")])
def test_temperatures_that_are_none_are_refused(temperature: float) -> None:
    with pytest.raises(ConfigError, match=f"temperature must .* got {temperature}"):
        DDIMSampler(gaussian(), temperature=temperature)


# --- DDIM -------------------------------------------------------------------------


def slope(make: type[Sampler], num_steps: list[int]) -> float:
    """Return by which power of the number of steps the error grows.

    The truth is the exact flow from the same start. Steps are even in log-SNR, the
    variable in which both methods are expansions, and leave out the schedule's noisy
    end, which is one long step however many there are, and the last one to clean.
    """
    schedule = NoiseSchedule(4000)
    denoiser = GaussianDenoiser(MEAN.double(), COVARIANCE, schedule)
    noise = torch.randn(200, 2, 1, generator=generators(0)[0], dtype=torch.float64)
    errors = []
    for count in num_steps:
        sampler, x = make(denoiser, count, spacing="log-snr"), noise
        before: Prediction | None = None
        first, *between, last = sampler.grid_from(0.95, count)[:-1]
        for i, j in pairwise([first, *between, last]):
            clean = denoiser(x, i)
            x, _ = sampler.step(x, clean, i, j, before)
            before = Prediction(clean, i)
        off = denoiser.flow(x, last) - denoiser.flow(noise, first)
        errors.append(off.square().mean().sqrt().item())
    return float(np.polyfit(np.log(num_steps), np.log(errors), 1)[0])


def test_the_error_of_ddim_falls_at_first_order() -> None:
    """Halving the steps doubles the error."""
    assert -1.15 < slope(DDIMSampler, [20, 40, 80, 160]) < -0.85


def test_the_error_of_dpm_solver_falls_at_second_order() -> None:
    """Halving the steps makes it four times as large."""
    assert -2.3 < slope(DPMSolverSampler, [20, 40, 80, 160]) < -1.7


@pytest.mark.parametrize("num_steps", [1, 2])
def test_one_or_two_steps_of_dpm_solver_are_ddim(num_steps: int) -> None:
    denoiser, given = network_denoiser(), free(2, 8, 3)
    found = [
        make(denoiser, num_steps).sample(given, generators(3, 4)).trajectories
        for make in (DDIMSampler, DPMSolverSampler)
    ]
    assert torch.equal(*found)


@pytest.mark.parametrize("make", MAKERS)
def test_the_weights_of_a_step_are_computed_once(
    make: type[Sampler], monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = []
    weights = make.weights

    def watch(self: Sampler, i: int, j: int, h: int | None) -> Weights:
        computed.append((i, j))
        return weights(self, i, j, h)

    monkeypatch.setattr(make, "weights", watch)
    sampler = make(gaussian(), 5)
    first, second = many(sampler, 3), many(sampler, 3)
    assert computed == [*pairwise(sampler.grid)]
    assert torch.equal(first, second)


class EtaOneSampler(Sampler):
    """DDIM with noise (Song et al. 2021, eq. 12 and 16) at eta = 1."""

    def weights(self, i: int, j: int, h: int | None) -> Weights:  # noqa: ARG002
        schedule = self.denoiser.schedule
        here, there = schedule.alpha_bar(i), schedule.alpha_bar(j)
        variance = (1 - there) / (1 - here) * (1 - here / there)
        along = (max(1 - there - variance, 0.0) / (1 - here)) ** 0.5
        return Weights(along, there**0.5 - along * here**0.5, noise=variance**0.5)


@pytest.mark.parametrize("clip", [True, False])
def test_eta_one_on_the_full_grid_is_ddpm(clip: bool) -> None:
    denoiser = network_denoiser(clip=clip)
    given = free(2, 8, 3)
    ancestral = DDPMSampler(denoiser).sample(given, generators(3, 4))
    eta_one = EtaOneSampler(denoiser).sample(given, generators(3, 4))
    torch.testing.assert_close(
        eta_one.trajectories, ancestral.trajectories, rtol=1e-3, atol=1e-4
    )


def test_eta_zero_needs_the_initial_noise_only() -> None:
    sampler, source = DDIMSampler(network_denoiser(), 4), generators(3)
    sampler.sample(free(1, 8, 3), source)
    expected = generators(3)
    torch.randn(1, 8, 3, generator=expected[0])
    assert torch.equal(source[0].get_state(), expected[0].get_state())


# --- grids ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_steps", "grid"),
    [
        (1, [9, -1]),
        (2, [9, 0, -1]),
        (4, [9, 6, 3, 0, -1]),
        (None, [9, 8, 7, 6, 5, 4, 3, 2, 1, 0, -1]),
    ],
)
def test_grids_start_at_noise_and_end_clean(
    num_steps: int | None, grid: list[int]
) -> None:
    assert DDIMSampler(network_denoiser(10), num_steps).grid == grid


@pytest.mark.parametrize("num_steps", range(1, 65))
def test_no_step_is_visited_twice(num_steps: int) -> None:
    grid = DDIMSampler(network_denoiser(64), num_steps).grid
    assert len(grid) == num_steps + 1
    assert all(i > j for i, j in pairwise(grid))


def test_a_whole_number_of_any_type_counts_steps() -> None:
    made: Any = DDIMSampler
    assert made(network_denoiser(10), 5.0).grid == made(network_denoiser(10), 5).grid


@pytest.mark.parametrize("num_steps", [0, 11, -1, 2.5])
def test_more_steps_than_trained_are_refused(num_steps: int) -> None:
    with pytest.raises(ConfigError, match=f"1 to 10 of them, got {num_steps}"):
        DDPMSampler(network_denoiser(10), num_steps)


# --- conditions, rows, candidates, randomness --------------------------------------


@pytest.mark.parametrize("make", MAKERS)
def test_conditions_are_met_exactly_at_every_step(make: type[Sampler]) -> None:
    mask = torch.zeros(1, 8, 3, dtype=torch.bool)
    mask[0, 0, 1:] = mask[0, -1, 2] = True
    values = torch.randn(2, 8, 3, generator=generators(1)[0]) * 3  # beyond the clip
    samples = make(network_denoiser()).sample(
        Inpainting(mask, values), generators(0, 1), num_candidates=3, keep_chain=True
    )
    assert samples.chain is not None
    assert samples.chain.shape == (13, 2, 3, 8, 3)
    pinned = mask.expand_as(values)
    for rows in samples.chain.movedim(2, 1).flatten(0, 1):
        assert torch.equal(rows[pinned], values[pinned])
    assert torch.equal(samples.chain[-1], samples.trajectories)


@pytest.mark.parametrize("make", MAKERS)
def test_pinning_an_independent_entry_changes_no_other(make: type[Sampler]) -> None:
    """The one case in which inpainting is exact conditional sampling."""
    denoiser = GaussianDenoiser(
        MEAN, torch.diag(torch.tensor([0.6, 0.5])), NoiseSchedule(20)
    )
    sampler, mask = make(denoiser), torch.tensor([[[True], [False]]])
    given = Inpainting(mask, torch.full((1, 2, 1), 0.9))
    pinned = sampler.sample(given, generators(0), num_candidates=50).trajectories
    plain = sampler.sample(free(1), generators(0), num_candidates=50).trajectories
    assert (pinned[..., 0, 0] == 0.9).all()
    torch.testing.assert_close(pinned[..., 1, 0], plain[..., 1, 0])


@pytest.mark.parametrize(
    ("dtype", "rounding"), [(torch.float64, 1e-10), (torch.float32, 1e-3)]
)
@pytest.mark.parametrize("make", MAKERS)
def test_a_row_does_not_depend_on_its_batch(
    make: type[Sampler], dtype: torch.dtype, rounding: float
) -> None:
    """But for rounding, which is the processor's, and grows from step to step."""
    sampler = make(network_denoiser().to(dtype))
    values = torch.randn(3, 8, 3, generator=generators(1)[0]).to(dtype)
    mask = torch.zeros(1, 8, 3, dtype=torch.bool)
    mask[0, 0] = True
    together = sampler.sample(
        Inpainting(mask, values), generators(10, 11, 12), num_candidates=2
    )
    alone = sampler.sample(
        Inpainting(mask, values[1:2]), generators(11), num_candidates=2
    )
    torch.testing.assert_close(
        together.trajectories[1],
        alone.trajectories[0],
        rtol=rounding,
        atol=rounding,
    )


def test_permuting_the_initial_noise_permutes_the_candidates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sampler, order = DDIMSampler(network_denoiser(), 4), [2, 0, 3, 1]
    plain = sampler.sample(free(1, 8, 3), generators(0), num_candidates=4)
    randn = torch.randn

    def permuted(size: Any, **arguments: Any) -> Tensor:
        return randn(size, **arguments)[order]

    monkeypatch.setattr(torch, "randn", permuted)
    again = sampler.sample(free(1, 8, 3), generators(0), num_candidates=4)
    torch.testing.assert_close(
        again.trajectories, plain.trajectories[:, order], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("make", MAKERS)
def test_global_random_state_is_not_touched(make: type[Sampler]) -> None:
    before = torch.random.get_rng_state()
    make(network_denoiser()).sample(free(2, 8, 3), generators(0, 1))
    assert torch.equal(before, torch.random.get_rng_state())


def test_without_step_noise_ddpm_takes_the_mean_of_every_step() -> None:
    sampler, source = DDPMSampler(network_denoiser()), generators(5)
    given = free(1, 8, 3)
    quiet = sampler.sample(given, source, step_noise=False, keep_chain=True)
    assert quiet.chain is not None
    x = quiet.chain[0, 0]
    assert torch.equal(x, torch.randn(1, 8, 3, generator=generators(5)[0]))
    for i in reversed(range(12)):
        of_clean, of_noisy, _ = sampler.denoiser.schedule.posterior(i, i - 1)
        with torch.no_grad():
            x = of_clean * sampler.denoiser(x, i) + of_noisy * x
    torch.testing.assert_close(quiet.trajectories[0], x, rtol=1e-3, atol=1e-3)
    noisy = sampler.sample(given, generators(5)).trajectories
    assert (noisy - quiet.trajectories).abs().max() > 0.01


def test_a_sampler_without_steps_names_those_that_have_some() -> None:
    with pytest.raises(NotImplementedError, match="Use DDPMSampler, DDIMSampler or"):
        Sampler(gaussian()).sample(free(1), generators(0))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_row_has_a_generator(temperature: float) -> None:
    sampler = DDIMSampler(gaussian(), temperature=temperature)
    with pytest.raises(ConfigError, match=r"for each row .* got 1 for 3"):
        sampler.sample(free(3), generators(0))


def test_the_chain_is_kept_only_on_request() -> None:
    samples = DDIMSampler(network_denoiser(), 2).sample(free(1, 8, 3), generators(0))
    assert samples.chain is None
    assert samples.trajectories.shape == (1, 1, 8, 3)
