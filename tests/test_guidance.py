"""Guidance moves what it says, where it says, and nothing that is pinned."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from diffuser_policy.choices import Placement
from diffuser_policy.columns.layout import TrajectoryLayout
from diffuser_policy.columns.normalizers import LimitsNormalizer
from diffuser_policy.diffusion.conditions import Inpainting
from diffuser_policy.diffusion.guidance import Guidance, Steering
from diffuser_policy.diffusion.sampler import (
    DDIMSampler,
    DDPMSampler,
    DPMSolverSampler,
    Sampler,
)
from diffuser_policy.diffusion.schedule import NoiseSchedule, half_log_snr
from diffuser_policy.guides.guide import FunctionGuide
from diffuser_policy.guides.trajectory import Trajectory
from diffuser_policy.testing import GaussianDenoiser
from diffuser_policy.testing.toys import toy_policy
from tests.policy_helpers import observe

HORIZON, NUM_STEPS = 3, 10
MEAN = torch.tensor([[0.5], [-0.2], [0.1]])
COVARIANCE = torch.tensor([[0.6, 0.3, 0.1], [0.3, 0.5, 0.2], [0.1, 0.2, 0.4]])
SCALE = 4.0  # environment units per normalized unit
SLOPE = torch.tensor([1.0, -2.0, 0.5])
PLACEMENTS: tuple[Placement, ...] = ("clean", "mean", "noisy")


def linear(trajectory: Trajectory) -> Tensor:
    """A guide whose gradient in environment units is SLOPE everywhere."""
    return (trajectory["observation"].squeeze(-1) * SLOPE).sum(dim=1)


def view(normalized: Tensor, denoising_step: int) -> Trajectory:
    return Trajectory(
        normalized=normalized,
        layout=TrajectoryLayout(action_dim=0, observation_dim=1),
        normalizer=LimitsNormalizer(torch.tensor([7.0]), torch.tensor([SCALE])),
        denoising_step=denoising_step,
    )


def unpinned(rows: int = 1) -> Inpainting:
    mask = torch.zeros(1, HORIZON, 1, dtype=torch.bool)
    return Inpainting(mask, torch.zeros(rows, HORIZON, 1))


def sampled(
    sampler: Sampler, guidance: Guidance | None, given: Inpainting | None = None
) -> Tensor:
    """Return five trajectories `[5, HORIZON]` from one seed."""
    schedule = sampler.denoiser.schedule

    def steering(given: Inpainting) -> Steering:
        assert guidance is not None
        return guidance.steering(schedule, given, view, scales=torch.tensor([SCALE]))

    samples = sampler.sample(
        unpinned() if given is None else given,
        [torch.Generator().manual_seed(0)],
        num_candidates=5,
        steering=None if guidance is None else steering,
    )
    return samples.trajectories[0, :, :, 0]


def exact_denoiser() -> GaussianDenoiser:
    return GaussianDenoiser(MEAN, COVARIANCE, NoiseSchedule(NUM_STEPS))


def expected_shift(guidance: Guidance, sampler: Sampler) -> Tensor:
    """Return what a linear guide adds to every sample, from the definitions.

    Denoiser and steps are linear, so that the noise cancels: the shift d obeys
    clean' = G d, and d' = a clean' + b d with the step's coefficients. DPM-Solver++
    extrapolates clean' to the middle of the step, from that of the step before.
    """
    schedule, eye = sampler.denoiser.schedule, torch.eye(HORIZON).double()
    covariance, slope = COVARIANCE.double(), SLOPE.double()
    shift, before = torch.zeros(HORIZON).double(), None
    for i, j in pairwise(sampler.grid):
        here, there = schedule.alpha_bar(i), schedule.alpha_bar(j)
        variance = (1 - there) / (1 - here) * (1 - here / there)
        assert guidance.num_steps is not None
        size = guidance.num_steps * guidance.scale * (i >= guidance.cutoff)
        if guidance.placement == "noisy":
            shift = shift + size * variance * SCALE * slope
        spread = here * covariance + (1 - here) * eye
        clean = here**0.5 * covariance @ torch.linalg.inv(spread) @ shift
        if guidance.placement == "clean":
            clean = clean + size * slope / SCALE
        if isinstance(sampler, DDPMSampler):
            of_clean = (1 - here / there) * there**0.5 / (1 - here)
            of_noisy = (1 - there) * (here / there) ** 0.5 / (1 - here)
        else:
            of_noisy = ((1 - there) / (1 - here)) ** 0.5
            of_clean = there**0.5 - here**0.5 * of_noisy
        middle = clean
        if isinstance(sampler, DPMSolverSampler) and before is not None and j >= 0:
            h, earlier = before
            at_h, at_i, at_j = (half_log_snr(schedule, step) for step in (h, i, j))
            middle = clean + (at_j - at_i) / (2 * (at_i - at_h)) * (clean - earlier)
        shift, before = of_clean * middle + of_noisy * shift, (i, clean)
        if guidance.placement == "mean":
            shift = shift + size * variance * SCALE * slope
    return shift


@pytest.mark.parametrize("make", [DDPMSampler, DDIMSampler, DPMSolverSampler])
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize(("num_steps", "cutoff"), [(1, 0), (3, 4)])
def test_a_linear_guide_shifts_samples_as_the_definition_says(
    make: type[Sampler], placement: Placement, num_steps: int, cutoff: int
) -> None:
    guidance = Guidance(
        guide=FunctionGuide(linear),
        placement=placement,
        scale=0.3,
        num_steps=num_steps,
        cutoff=cutoff,
    )
    sampler = make(exact_denoiser(), 6)
    shift = sampled(sampler, guidance) - sampled(sampler, None)
    expected = expected_shift(guidance, sampler).float().expand(5, -1)
    assert expected.abs().max() > 0.05
    torch.testing.assert_close(shift, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_the_last_step_has_no_variance_to_scale_by(placement: Placement) -> None:
    guidance = Guidance(
        guide=FunctionGuide(linear), placement=placement, num_steps=1, scale=0.5
    )
    steering = guidance.steering(
        NoiseSchedule(NUM_STEPS), unpinned(), view, scales=torch.tensor([SCALE])
    )
    move = getattr(steering, placement)
    moved = move(torch.zeros(1, HORIZON, 1), 0, -1).squeeze()
    expected = 0.5 / SCALE * SLOPE if placement == "clean" else torch.zeros(HORIZON)
    torch.testing.assert_close(moved, expected)


def test_a_guide_of_the_mean_sees_no_noise_of_the_step() -> None:
    """If the clean trajectory is known, the first mean follows from the first noise."""
    seen: list[Tensor] = []

    def watching(trajectory: Trajectory) -> Tensor:
        seen.append(trajectory.normalized.detach().clone())
        return linear(trajectory)

    certain = torch.zeros(HORIZON, HORIZON)
    sampler = DDPMSampler(GaussianDenoiser(MEAN, certain, NoiseSchedule(NUM_STEPS)))
    guidance = Guidance(guide=FunctionGuide(watching), placement="mean", num_steps=1)
    sampled(sampler, guidance)

    noise = torch.randn(5, HORIZON, 1, generator=torch.Generator().manual_seed(0))
    first, second, *_ = sampler.grid
    of_clean, of_noisy, _ = sampler.denoiser.schedule.posterior(first, second)
    torch.testing.assert_close(seen[0], of_clean * MEAN + of_noisy * noise)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_pinned_entries_stay_and_guides_and_denoisers_see_them(
    placement: Placement,
) -> None:
    seen: list[Tensor] = []
    denoised: list[Tensor] = []

    class Watching(GaussianDenoiser):
        def forward(self, noisy: Tensor, i: int) -> Tensor:
            denoised.append(noisy[:, 0, 0].clone())
            return super().forward(noisy, i)

    def watching(trajectory: Trajectory) -> Tensor:
        seen.append(trajectory.normalized[:, 0, 0].detach().clone())
        return linear(trajectory)

    mask = torch.zeros(1, HORIZON, 1, dtype=torch.bool)
    mask[:, 0] = True
    given = Inpainting(mask, torch.full((1, HORIZON, 1), 0.25))
    guidance = Guidance(guide=FunctionGuide(watching), placement=placement, num_steps=2)
    denoiser = Watching(MEAN, COVARIANCE, NoiseSchedule(NUM_STEPS))
    found = sampled(DDPMSampler(denoiser), guidance, given)
    assert found[:, 0].tolist() == [0.25] * 5
    assert len(seen) >= NUM_STEPS - 1
    assert len(denoised) == NUM_STEPS
    assert all(values.tolist() == [0.25] * 5 for values in seen + denoised)


def test_guides_are_told_how_noisy_what_they_see_is() -> None:
    steps: dict[str, list[int]] = {}

    def telling(name: str) -> Callable[[Trajectory], Tensor]:
        def guide(trajectory: Trajectory) -> Tensor:
            steps.setdefault(name, []).append(trajectory.denoising_step)
            return linear(trajectory)

        return guide

    sampler = DDPMSampler(exact_denoiser(), 3)
    for placement in PLACEMENTS:
        guidance = Guidance(
            guide=FunctionGuide(telling(placement)),
            placement=placement,
            num_steps=1,
        )
        sampled(sampler, guidance)
    first, middle, last, clean = sampler.grid
    # The last step has no variance: neither "noisy" nor "mean" climbs there.
    assert steps["noisy"] == [first, middle]
    assert steps["mean"] == [middle, last]
    assert set(steps["clean"]) == {clean}


@pytest.mark.parametrize(
    ("placement", "count"),
    [("clean", 6), ("mean", 1), ("noisy", 2)],  # "clean" looks at its last step, too
)
def test_each_placement_has_its_number_of_gradient_steps(
    placement: Placement, count: int
) -> None:
    calls: list[int] = []

    def counting(trajectory: Trajectory) -> Tensor:
        calls.append(len(trajectory))
        return linear(trajectory)

    guidance = Guidance(guide=FunctionGuide(counting), placement=placement)
    steering = guidance.steering(
        NoiseSchedule(NUM_STEPS), unpinned(), view, scales=torch.tensor([SCALE])
    )
    getattr(steering, placement)(torch.zeros(1, HORIZON, 1), 5, 4)
    assert len(calls) == count


def test_guided_plans_take_more_denoising_steps_than_plain_ones() -> None:
    policy = toy_policy(num_sampling_steps=1)
    guided = policy.with_guide(linear)
    assert [p.planner.sampler.num_steps for p in (policy, guided)] == [1, 3]
    assert guided.with_settings(min_guided_steps=1).planner.sampler.num_steps == 1
    assert guided.with_settings(guide_scale=0.0).planner.sampler.num_steps == 1
    assert guided.with_settings(num_sampling_steps=5).planner.sampler.num_steps == 5
    assert guided.with_settings(num_sampling_steps=None).planner.sampler.num_steps == 8


def test_guidance_of_one_row_does_not_depend_on_the_others() -> None:
    policy = toy_policy(horizon="predicted").with_guide(
        lambda t: -t.position.square().sum(dim=(1, 2)), guide_scale=0.1
    )
    together = observe(3)
    plan = policy.plan(together)
    for row in range(3):
        alone = policy.plan({key: value[row] for key, value in together.items()})
        np.testing.assert_allclose(alone.path(), plan.path(row), rtol=1e-4, atol=1e-5)


def test_a_guide_can_ask_for_the_goal_of_its_row() -> None:
    """Also where the caller has turned gradients off."""
    seen: list[Tensor] = []

    def towards(trajectory: Trajectory) -> Tensor:
        assert trajectory.desired_goal is not None
        seen.append(trajectory.desired_goal.clone())
        return (trajectory.position * trajectory.desired_goal).sum(dim=(1, 2))

    policy = toy_policy(num_candidates=2).with_guide(towards)
    observation = observe(2)
    observation["desired_goal"][1] = -0.75
    with torch.inference_mode():
        policy.plan(observation)
    assert seen[0].squeeze(1).tolist() == [[0.5, 0.5]] * 2 + [[-0.75, -0.75]] * 2


# --- clean plans are never made worse ---------------------------------------------


@pytest.mark.parametrize("curvature", [0.5, 2.0, 3.0, 100.0])
def test_a_guide_that_curves_too_much_settles_instead_of_diverging(
    curvature: float,
) -> None:
    """Plain gradient steps on -c/2 x² diverge from c = 2 on."""

    def towards_zero(trajectory: Trajectory) -> Tensor:
        return -0.5 * curvature * trajectory["observation"].square().sum(dim=(1, 2))

    guidance = Guidance(guide=FunctionGuide(towards_zero), num_steps=20)
    steering = guidance.steering(
        NoiseSchedule(NUM_STEPS), unpinned(2), view, scales=torch.tensor([SCALE])
    )
    start = torch.tensor([0.5, -1.0, 1.5])[None, :, None].repeat(2, 1, 1)
    start[1] *= 3
    found = view(steering.clean(start, 5, 4), -1)["observation"]
    before = view(start, -1)["observation"]
    assert (found.abs() < 0.2 * before.abs()).all()


def test_a_row_that_a_step_makes_worse_does_not_hold_up_the_others() -> None:
    """A gradient step on -y⁴ / 4 is right near zero, and throws far rows out."""

    def flat_bottom(trajectory: Trajectory) -> Tensor:
        return -0.25 * (trajectory["observation"] - 7.0).pow(4).sum(dim=(1, 2))

    guidance = Guidance(guide=FunctionGuide(flat_bottom), num_steps=6)
    steering = guidance.steering(
        NoiseSchedule(NUM_STEPS), unpinned(2), view, scales=torch.tensor([SCALE])
    )
    start = torch.tensor([0.1, 1.0])[:, None, None].expand(2, HORIZON, 1)
    near, far = steering.clean(start, 5, 4)
    y = 0.1 * SCALE
    for _ in range(6):
        y -= y**3
    torch.testing.assert_close(near, torch.full_like(near, y / SCALE))
    assert (far.abs() < 1.0).all()


def test_a_negative_scale_descends_and_settles_too() -> None:
    def square(trajectory: Trajectory) -> Tensor:
        return 5.0 * trajectory["observation"].square().sum(dim=(1, 2))

    guidance = Guidance(guide=FunctionGuide(square), scale=-1.0, num_steps=20)
    steering = guidance.steering(
        NoiseSchedule(NUM_STEPS), unpinned(), view, scales=torch.tensor([SCALE])
    )
    found = view(steering.clean(torch.ones(1, HORIZON, 1), 5, 4), -1)["observation"]
    assert found.abs().max() < 1.0
