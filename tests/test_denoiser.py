"""Denoiser: three targets for one clean trajectory, and a loss that masks pins."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from diffuser_policy.choices import PredictionTarget
from diffuser_policy.diffusion.conditions import Inpainting
from diffuser_policy.diffusion.denoiser import PREDICTION_TARGETS, Denoiser
from diffuser_policy.diffusion.schedule import NoiseSchedule
from diffuser_policy.errors import UnknownNameError
from diffuser_policy.testing import GaussianDenoiser

SCHEDULE = NoiseSchedule(16)
TARGETS = pytest.mark.parametrize("target", PREDICTION_TARGETS)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inpainting(shape: tuple[int, ...], clean: Tensor) -> Inpainting:
    """Pin the first step, and one entry of the last."""
    mask = torch.zeros(1, *shape[1:], dtype=torch.bool)
    mask[:, 0] = True
    mask[:, -1, 0] = True
    return Inpainting(mask, clean)


class Oracle(nn.Module):
    """Knows the clean trajectories, and outputs the target exactly.

    At pinned entries, where the input carries no noise, it outputs nonsense: whatever
    the loss makes of it is the loss's fault.
    """

    def __init__(self, clean: Tensor, target: PredictionTarget, mask: Tensor) -> None:
        super().__init__()
        self.clean, self.target, self.mask = clean, target, mask

    def forward(self, noisy: Tensor, i: Tensor) -> Tensor:
        signal = SCHEDULE.signal(i)[:, None, None]
        sigma = SCHEDULE.noise(i)[:, None, None]
        noise = (noisy - signal * self.clean) / sigma
        outputs = {
            "clean": self.clean,
            "noise": noise,
            "velocity": signal * noise - sigma * self.clean,
        }
        return torch.where(self.mask, torch.tensor(1e3), outputs[self.target])


@TARGETS
def test_a_perfect_predictor_has_no_loss(target: PredictionTarget) -> None:
    clean = randn(5, 4, 3)
    given = inpainting(clean.shape, clean)
    denoiser = Denoiser(
        Oracle(clean, target, given.mask), SCHEDULE, prediction_target=target
    )
    loss = denoiser.loss(clean, given, torch.Generator().manual_seed(1))
    assert loss.item() < 1e-6


@TARGETS
def test_a_perfect_predictor_recovers_the_clean_trajectory(
    target: PredictionTarget,
) -> None:
    clean = randn(5, 4, 3).clamp(-1, 1)
    nothing = torch.zeros(1, 4, 3, dtype=torch.bool)
    denoiser = Denoiser(
        Oracle(clean, target, nothing), SCHEDULE, prediction_target=target
    )
    for i in range(12):  # later steps divide by almost no signal
        noisy = denoiser.add_noise(clean, randn(5, 4, 3, seed=i), torch.full((5,), i))
        torch.testing.assert_close(denoiser(noisy, i), clean, rtol=1e-3, atol=1e-3)


def test_the_loss_is_the_mean_over_free_entries() -> None:
    """A network that outputs zero is off by the clean trajectory itself."""
    clean = randn(6, 4, 3)
    given = inpainting(clean.shape, clean)
    denoiser = Denoiser(_Zero(), SCHEDULE)
    loss = denoiser.loss(clean, given, torch.Generator().manual_seed(1))
    free = clean[(~given.mask).expand_as(clean)]
    assert loss.item() == pytest.approx(free.square().mean().item(), rel=1e-5)


class _Zero(nn.Module):
    def forward(self, noisy: Tensor, i: Tensor) -> Tensor:  # noqa: ARG002 (a network)
        return torch.zeros_like(noisy)


class _Spy(nn.Module):
    """Keeps its inputs."""

    def forward(self, noisy: Tensor, i: Tensor) -> Tensor:
        self.noisy, self.i = noisy, i
        return noisy


def test_the_network_sees_pinned_entries_without_noise() -> None:
    clean = randn(64, 4, 3)
    given = inpainting(clean.shape, clean)
    spy = _Spy()
    Denoiser(spy, SCHEDULE).loss(clean, given, torch.Generator().manual_seed(1))
    pinned = given.mask.expand_as(clean)
    assert torch.equal(spy.noisy[pinned], clean[pinned])
    assert (spy.noisy != clean)[~pinned].all()
    assert set(spy.i.tolist()) == set(range(16))  # every denoising step is trained


def test_a_fully_pinned_batch_has_zero_loss() -> None:
    clean = randn(2, 4, 3)
    given = Inpainting(torch.ones(1, 4, 3, dtype=torch.bool), clean)
    denoiser = Denoiser(_Zero(), SCHEDULE)
    assert denoiser.loss(clean, given, torch.Generator().manual_seed(1)).item() == 0.0


@pytest.mark.parametrize("i", [0, 7, 15])
def test_noising_has_the_moments_of_the_forward_process(i: int) -> None:
    clean = torch.full((20_000, 1, 1), 0.8)
    noisy = Denoiser(_Zero(), SCHEDULE).add_noise(
        clean, randn(20_000, 1, 1), torch.full((20_000,), i)
    )
    alpha_bar = SCHEDULE.alpha_bar(i)
    assert noisy.mean().item() == pytest.approx(0.8 * alpha_bar**0.5, abs=0.03)
    assert noisy.var().item() == pytest.approx(1 - alpha_bar, rel=0.05, abs=1e-3)


@pytest.mark.parametrize("clip", [True, False])
def test_clipping_is_a_choice(clip: bool) -> None:
    denoiser = Denoiser(_Spy(), SCHEDULE, clip=clip)
    limit = 1.0 if clip else 5.0
    for far in (5.0, -5.0):
        out = denoiser(torch.full((1, 4, 3), far), 3)
        assert out.unique().tolist() == [math.copysign(limit, far)]


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'noise'"):
        Denoiser(_Zero(), SCHEDULE, prediction_target="nois")  # type: ignore[arg-type]


@TARGETS
def test_the_gaussian_denoiser_is_the_best_linear_one(target: PredictionTarget) -> None:
    """Its error is uncorrelated with what it saw, so no linear correction helps."""
    root = randn(4, 4, seed=3)
    mean, covariance = randn(2, 2, seed=4), root @ root.T
    exact = GaussianDenoiser(mean, covariance, SCHEDULE, prediction_target=target)
    clean = mean + (randn(50_000, 4, seed=5) @ root.T).view(-1, 2, 2)
    noisy = exact.add_noise(clean, randn(50_000, 2, 2), torch.full((50_000,), 6))
    error = (exact(noisy, 6) - clean).flatten(1)
    assert error.mean(0).abs().max() < 0.03
    seen = noisy.flatten(1) - noisy.flatten(1).mean(0)
    correlation = error.T @ seen / len(seen)
    assert correlation.abs().max() < 0.05


class ResidualOracle(nn.Module):
    """Knows the clean deviations, and checks what it is told."""

    def __init__(self, clean: Tensor, target: PredictionTarget, mask: Tensor) -> None:
        super().__init__()
        self.clean, self.target, self.mask = clean, target, mask

    def forward(
        self, deviations: Tensor, i: Tensor, *, start: Tensor, signal: Tensor
    ) -> Tensor:
        known = self.clean[:, 0] * self.mask[0, 0]
        torch.testing.assert_close(start, known)
        torch.testing.assert_close(signal, SCHEDULE.signal(i))
        known = self.clean - start[:, None]
        sigma = SCHEDULE.noise(i)[:, None, None]
        noise = (deviations - signal[:, None, None] * known) / sigma
        outputs = {
            "clean": known,
            "noise": noise,
            "velocity": signal[:, None, None] * noise - sigma * known,
        }
        return torch.where(self.mask, torch.tensor(1e3), outputs[self.target])


@TARGETS
@pytest.mark.parametrize("state", [slice(None), slice(1, None)], ids=["all", "some"])
def test_a_residual_denoiser_predicts_the_same_trajectories(
    target: PredictionTarget, state: slice
) -> None:
    """Deviations go through the table of targets, the current state is added back.

    The first action is not pinned: nothing may be measured from its noise.
    """
    clean = randn(5, 4, 3)
    mask = torch.zeros(1, 4, 3, dtype=torch.bool)
    mask[:, 0, state] = True
    given = Inpainting(mask, clean)
    denoiser = Denoiser(
        ResidualOracle(clean, target, mask),
        SCHEDULE,
        prediction_target=target,
        clip=False,
        residual=True,
        state=state,
    )

    loss = denoiser.loss(clean, given, torch.Generator().manual_seed(0))
    steps = torch.full((5,), 9)
    noisy = given.apply(denoiser.add_noise(clean, randn(5, 4, 3, seed=2), steps))
    denoised = denoiser(noisy, 9)

    assert loss < 1e-8
    free = ~mask.expand_as(clean)
    torch.testing.assert_close(denoised[free], clean[free], atol=1e-4, rtol=1e-4)
    again = denoiser.accelerated("off")
    torch.testing.assert_close(again(noisy, 9), denoised)


def test_a_loss_floor_weighs_errors_by_their_noise() -> None:
    """A network that is always off by one loses the mean of 1 / (n_i² + f)."""
    clean = torch.zeros(4000, 2, 1)
    none = Inpainting(torch.zeros(1, 2, 1, dtype=torch.bool), clean)

    class One(nn.Module):
        def forward(self, noisy: Tensor, i: Tensor) -> Tensor:
            return torch.ones_like(noisy) + 0.0 * i[:, None, None]

    weighted = Denoiser(One(), SCHEDULE, loss_floor=0.1).accelerated("off")
    plain = Denoiser(One(), SCHEDULE)
    every = SCHEDULE.noise(torch.arange(16)).square() + 0.1

    loss = weighted.loss(clean, none, torch.Generator().manual_seed(0))

    torch.testing.assert_close(loss, every.reciprocal().mean(), rtol=0.05, atol=0)
    assert plain.loss(clean, none, torch.Generator().manual_seed(0)) == 1.0


def test_first_weights_weigh_the_errors_of_the_first_step_by_column() -> None:
    clean = torch.zeros(3, 4, 2)
    none = Inpainting(torch.zeros(1, 4, 2, dtype=torch.bool), clean)

    class Off(nn.Module):
        def forward(self, noisy: Tensor, i: Tensor) -> Tensor:
            return torch.tensor([1.0, 2.0]).expand_as(noisy) + 0.0 * i[:, None, None]

    weights = torch.tensor([10.0, 1.0])
    weighted = Denoiser(Off(), SCHEDULE, first_weights=weights).accelerated("off")

    loss = weighted.loss(clean, none, torch.Generator().manual_seed(0))

    # Column 0 is off by 1 and column 1 by 2, at four planning steps.
    torch.testing.assert_close(loss, torch.tensor((10 + 3 * 1 + 4 * 4) / 8))
