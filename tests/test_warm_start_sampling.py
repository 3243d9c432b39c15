"""Warm starts of the sampler, and what they start from, beside independent formulas."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from diffuser_policy.diffusion.conditions import Inpainting
from diffuser_policy.diffusion.denoiser import Denoiser
from diffuser_policy.diffusion.sampler import (
    DDIMSampler,
    DDPMSampler,
    Sampler,
    WarmStart,
)
from diffuser_policy.diffusion.schedule import NoiseSchedule
from diffuser_policy.planning.plan import Following
from diffuser_policy.testing import GaussianDenoiser

MEAN = torch.tensor([[0.5], [-0.2], [0.1]])
COVARIANCE = torch.tensor([[0.6, 0.3, 0.1], [0.3, 0.5, 0.2], [0.1, 0.2, 0.4]])
PLAN = torch.tensor([[1.0], [0.4], [-0.7]])


def test_a_level_of_k_over_n_begins_with_step_k() -> None:
    denoiser = GaussianDenoiser(MEAN, COVARIANCE, NoiseSchedule(50))
    sampler = DDIMSampler(denoiser)
    begins = [sampler.grid_from(k / 50, 1)[0] for k in range(1, 51)]
    assert begins == [*range(50)]


# --- what is left of a plan -------------------------------------------------------


def wavy(
    *, progress: tuple[float, ...], lengths: tuple[int, ...], stride: int
) -> Following:
    """Return plans that are nowhere straight, with two action columns."""
    rng = np.random.default_rng(0)
    rows, steps = len(lengths), max(lengths)
    return Following(
        observations=rng.normal(size=(rows, steps, 3)),
        actions=rng.normal(size=(rows, steps, 2)),
        lengths=np.array(lengths),
        progress=np.array(progress),
        stride=stride,
    )


def planned(plan: Following, row: int, env_steps: np.ndarray) -> np.ndarray:
    """Return a plan's transitions at env steps, column by column."""
    columns = np.concatenate([plan.actions[row], plan.observations[row]], axis=1)
    known = plan.stride * np.arange(plan.lengths[row])
    columns = columns[: plan.lengths[row]]
    return np.stack([np.interp(env_steps, known, each) for each in columns.T], axis=1)


@pytest.mark.parametrize("stretched", [True, False])
def test_a_plan_with_as_much_time_left_is_shifted(stretched: bool) -> None:
    plan = wavy(progress=(8.0,), lengths=(10,), stride=4)  # two of ten steps are over
    rest = plan.rest(8, stretched=stretched)
    expected = np.concatenate([plan.actions, plan.observations], axis=2)[:, 2:]
    np.testing.assert_allclose(rest, expected, rtol=1e-12)


def test_what_is_left_is_stretched_or_pressed_to_the_arrival() -> None:
    plan = wavy(progress=(5.0, 0.5, 11.0), lengths=(8, 3, 8), stride=2)
    for new_length in (2, 4, 8, 16):
        rest = plan.rest(new_length, stretched=True)
        for row, (now, end) in enumerate([(5.0, 14.0), (0.5, 4.0), (11.0, 14.0)]):
            times = np.linspace(now, end, new_length)
            np.testing.assert_allclose(rest[row], planned(plan, row, times))


def test_a_shifted_plan_keeps_its_pace_and_stays_at_its_end() -> None:
    plan = wavy(progress=(5.0, 1.0), lengths=(8, 3), stride=2)
    rest = plan.rest(6, stretched=False)
    for row, now in enumerate((5.0, 1.0)):
        times = now + 2.0 * np.arange(6)  # `np.interp` stays at the end, too
        np.testing.assert_allclose(rest[row], planned(plan, row, times))
    assert np.array_equal(rest[1, -1, 2:], plan.observations[1, 2])


# --- the reverse process from the middle ------------------------------------------


def exact(num_steps: int = 20) -> GaussianDenoiser:
    return GaussianDenoiser(MEAN, COVARIANCE, NoiseSchedule(num_steps))


def free(rows: int = 1) -> Inpainting:
    mask = torch.zeros(1, 3, 1, dtype=torch.bool)
    return Inpainting(mask, torch.zeros(rows, 3, 1))


def warm(level: float, num_steps: int) -> WarmStart:
    return WarmStart(trajectories=PLAN[None], level=level, num_steps=num_steps)


def seeded(seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed)]


def test_the_start_is_the_plan_noised_to_that_step_of_the_schedule() -> None:
    denoiser = exact()
    sampler = DDIMSampler(denoiser)
    chain = sampler.sample(
        free(),
        seeded(),
        num_candidates=3,
        warm_start=warm(0.5, 2),
        keep_chain=True,
    ).chain
    assert chain is not None
    assert len(chain) == 1 + 2
    noise = torch.randn(3, 3, 1, generator=seeded()[0])
    alpha_bar = denoiser.schedule.alpha_bar(9)  # the tenth of twenty
    expected = alpha_bar**0.5 * PLAN + (1 - alpha_bar) ** 0.5 * noise
    torch.testing.assert_close(chain[0, 0], expected)


def test_one_step_gives_the_posterior_mean_of_the_noised_plan() -> None:
    denoiser = exact()
    sampled = DDIMSampler(denoiser).sample(free(), seeded(), warm_start=warm(0.3, 1))
    alpha_bar = denoiser.schedule.alpha_bar(5)
    signal, mean = alpha_bar**0.5, MEAN.flatten().double()
    noise = torch.randn(1, 3, 1, generator=seeded()[0])
    start = (signal * PLAN + (1 - alpha_bar) ** 0.5 * noise).flatten().double()
    covariance = COVARIANCE.double()
    spread = alpha_bar * covariance + (1 - alpha_bar) * torch.eye(3).double()
    off = torch.linalg.solve(spread, start - signal * mean)
    torch.testing.assert_close(
        sampled.trajectories.flatten().double(),
        mean + signal * covariance @ off,
        atol=1e-5,
        rtol=0,
    )


def test_many_steps_follow_the_probability_flow_from_there() -> None:
    denoiser = exact(1000)
    sampled = DDIMSampler(denoiser).sample(
        free(), seeded(), num_candidates=4, warm_start=warm(0.4, 400), keep_chain=True
    )
    assert sampled.chain is not None
    expected = denoiser.flow(sampled.chain[0, 0], 399)
    torch.testing.assert_close(sampled.trajectories[0], expected, atol=5e-3, rtol=0)


@pytest.mark.parametrize("make", [DDPMSampler, DDIMSampler])
def test_from_hardly_any_noise_the_plan_comes_back(
    make: Callable[[Denoiser], Sampler],
) -> None:
    sampled = make(exact(1000)).sample(free(), seeded(), warm_start=warm(1e-9, 5))
    torch.testing.assert_close(sampled.trajectories[0, 0], PLAN, atol=0.05, rtol=0)


def test_ancestral_samples_from_a_plan_have_the_moments_of_the_recursion() -> None:
    """The last K steps of DDPM, with matrices: x' = A x + b + sigma z."""
    denoiser, last = exact(), 5
    eye, covariance = torch.eye(3).double(), COVARIANCE.double()
    mu = MEAN.flatten().double()
    bars = denoiser.schedule.alpha_bars.tolist()
    mean = bars[last - 1] ** 0.5 * PLAN.flatten().double()
    spread = (1 - bars[last - 1]) * eye
    for i in reversed(range(last)):
        here, there = bars[i], bars[i - 1] if i else 1.0
        gain = (
            here**0.5
            * covariance
            @ torch.linalg.inv(here * covariance + (1 - here) * eye)
        )
        of_clean = there**0.5 * (1 - here / there) / (1 - here)
        of_noisy = (here / there) ** 0.5 * (1 - there) / (1 - here)
        matrix = of_clean * gain + of_noisy * eye
        mean = matrix @ mean + of_clean * (mu - here**0.5 * gain @ mu)
        variance = (1 - there) / (1 - here) * (1 - here / there)
        spread = matrix @ spread @ matrix.T + variance * eye
    sampled = DDPMSampler(denoiser).sample(
        free(), seeded(), num_candidates=40_000, warm_start=warm(last / 20, last)
    )
    found = sampled.trajectories[0].flatten(1).double()
    torch.testing.assert_close(found.mean(dim=0), mean, atol=0.01, rtol=0)
    torch.testing.assert_close(found.T.cov(), spread, atol=0.01, rtol=0)


def test_pinned_entries_of_the_start_are_those_of_the_new_plan() -> None:
    mask = torch.tensor([True, False, True])[None, :, None]
    given = Inpainting(mask, torch.tensor([9.0, 0.0, 8.0])[None, :, None])
    chain = (
        DDIMSampler(exact())
        .sample(given, seeded(), warm_start=warm(0.5, 3), keep_chain=True)
        .chain
    )
    assert chain is not None
    assert (chain[:, 0, 0, [0, 2], 0] == torch.tensor([9.0, 8.0])).all()
