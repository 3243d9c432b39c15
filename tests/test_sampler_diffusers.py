"""Samplers against an independent implementation: Hugging Face diffusers' schedulers.

Both run whole reverse processes from the same noise, with the same noise in every step.
"""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor

from diffuser_policy.choices import PredictionTarget, Spacing
from diffuser_policy.diffusion.conditions import Inpainting
from diffuser_policy.diffusion.denoiser import PREDICTION_TARGETS, Denoiser
from diffuser_policy.diffusion.sampler import (
    DDIMSampler,
    DDPMSampler,
    DPMSolverSampler,
    Sampler,
)
from diffuser_policy.diffusion.schedule import SPACINGS, NoiseSchedule, step_grid
from diffuser_policy.networks.unet import TemporalUNet
from diffuser_policy.testing import GaussianDenoiser

# Tensors passed to NumPy, inside diffusers.
pytestmark = pytest.mark.filterwarnings("ignore:.*__array_:DeprecationWarning")

N = 32
HORIZON, DIM = 8, 3
THEIR_TARGET = {"clean": "sample", "noise": "epsilon", "velocity": "v_prediction"}
THEIR_COMMON = {"num_train_timesteps": N, "beta_schedule": "squaredcos_cap_v2"}
SAMPLERS: dict[str, type[Sampler]] = {
    "ddpm": DDPMSampler,
    "ddim": DDIMSampler,
    "dpm": DPMSolverSampler,
}
TARGETS = pytest.mark.parametrize("target", PREDICTION_TARGETS)


def exact_denoiser(target: PredictionTarget) -> GaussianDenoiser:
    """Return an exact denoiser of correlated entries; it amplifies no rounding."""
    source = torch.Generator().manual_seed(1)
    mean = torch.randn(HORIZON, DIM, generator=source)
    factor = torch.randn(24, 24, generator=source) / 24**0.5
    schedule, covariance = NoiseSchedule(N), factor @ factor.T
    return GaussianDenoiser(mean, covariance, schedule, prediction_target=target)


def scheduler(name: str, target: PredictionTarget, **settings: Any) -> Any:
    """Return diffusers' scheduler of that name, set up as the method is published."""
    diffusers = pytest.importorskip("diffusers")  # here: it takes long to import
    common = THEIR_COMMON | {"prediction_type": THEIR_TARGET[target]} | settings
    if name == "ddpm":
        return diffusers.DDPMScheduler(
            **common, variance_type="fixed_small_log", clip_sample=False
        )
    if name == "ddim":
        return diffusers.DDIMScheduler(
            **common, clip_sample=False, set_alpha_to_one=True
        )
    return diffusers.DPMSolverMultistepScheduler(
        **common, algorithm_type="dpmsolver++", solver_type="midpoint"
    )


def their_loop(theirs: Any, denoiser: Denoiser, **settings: Any) -> Tensor:
    """Run a whole reverse process with a scheduler whose steps are set already."""
    source = torch.Generator().manual_seed(7)
    x = torch.randn(2, HORIZON, DIM, generator=source)
    for step in theirs.timesteps:
        output = denoiser.network(x, step.repeat(2))
        x = theirs.step(output, step, x, generator=source, **settings).prev_sample
    return x


def our_loop(sampler: Sampler) -> Tensor:
    mask = torch.zeros(1, HORIZON, DIM, dtype=torch.bool)
    given = Inpainting(mask, torch.zeros(1, HORIZON, DIM))
    source = [torch.Generator().manual_seed(7)]
    return sampler.sample(given, source, num_candidates=2).trajectories[0]


def assert_agree(ours: Tensor, theirs: Tensor, tolerance: float = 2e-5) -> None:
    error = (ours - theirs).abs().max() / theirs.abs().max()
    assert error < tolerance, f"relative error {error:.1e}"


def test_betas_are_those_of_diffusers() -> None:
    ours, theirs = NoiseSchedule(N), scheduler("ddpm", "clean")
    torch.testing.assert_close(ours.betas.float(), theirs.betas, rtol=1e-5, atol=1e-7)


@TARGETS
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("name", ["ddpm", "ddim"])
@torch.no_grad()
def test_one_step_methods_agree_on_grids_of_their_making(
    name: str, spacing: Spacing, target: PredictionTarget
) -> None:
    denoiser = exact_denoiser(target)
    for num_steps in (2, 8, N):
        theirs = scheduler(name, target, timestep_spacing=spacing)
        theirs.set_timesteps(num_steps)
        sampler = SAMPLERS[name](denoiser, num_steps, spacing=spacing)
        assert sampler.grid[:-1] == theirs.timesteps.tolist()
        assert_agree(our_loop(sampler), their_loop(theirs, denoiser))


@TARGETS
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("dpm", 2)])
@torch.no_grad()
def test_deterministic_methods_agree_on_every_grid(
    name: str, order: int, spacing: Spacing, target: PredictionTarget
) -> None:
    """Of first order, their DPM-Solver++ is DDIM, and it takes any grid."""
    denoiser = exact_denoiser(target)
    for num_steps in (1, 3, 5, 14, 15, N):
        theirs = scheduler("dpm", target, solver_order=order)
        sampler = SAMPLERS[name](denoiser, num_steps, spacing=spacing)
        theirs.set_timesteps(timesteps=sampler.grid[:-1])
        assert_agree(our_loop(sampler), their_loop(theirs, denoiser))


@TARGETS
@pytest.mark.parametrize("spacing", SPACINGS)
@torch.no_grad()
def test_ddpm_agrees_on_every_grid(spacing: Spacing, target: PredictionTarget) -> None:
    denoiser = exact_denoiser(target)
    for num_steps in (3, 5, 15):
        theirs = scheduler("ddpm", target)
        sampler = DDPMSampler(denoiser, num_steps, spacing=spacing)
        theirs.set_timesteps(timesteps=sampler.grid[:-1])
        assert_agree(our_loop(sampler), their_loop(theirs, denoiser))


@TARGETS
@pytest.mark.parametrize("name", SAMPLERS)
@torch.no_grad()
def test_whole_networks_agree(name: str, target: PredictionTarget) -> None:
    """Untrained, a network multiplies rounding errors from step to step."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = TemporalUNet(DIM, dim=8, multipliers=(1, 2)).eval()
    denoiser = Denoiser(network, NoiseSchedule(N), prediction_target=target, clip=False)
    theirs = scheduler(name, target, timestep_spacing="trailing")
    theirs.set_timesteps(8)
    sampler = SAMPLERS[name](denoiser, 8, spacing="trailing")
    assert_agree(our_loop(sampler), their_loop(theirs, denoiser), tolerance=2e-3)


@pytest.mark.parametrize("name", ["ddpm", "ddim"])
@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
def test_grids_are_theirs(name: str, spacing: Spacing) -> None:
    theirs = scheduler(name, "clean", timestep_spacing=spacing)
    for num_steps in (2, 3, 5, 7, 10, 20, N):
        theirs.set_timesteps(num_steps)
        ours = step_grid(NoiseSchedule(N), num_steps, spacing=spacing, first=N - 1)
        assert ours[:-1] == theirs.timesteps.tolist()


def test_trailing_grids_are_those_of_their_dpm_solver() -> None:
    theirs = scheduler("dpm", "clean", timestep_spacing="trailing")
    for num_steps in (1, 2, 3, 5, 8, 20):
        theirs.set_timesteps(num_steps)
        ours = step_grid(NoiseSchedule(N), num_steps, spacing="trailing", first=N - 1)
        assert ours[:-1] == cast("Tensor", theirs.timesteps).tolist()
