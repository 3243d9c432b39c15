"""Guidance moves what it says, where it says, and nothing that is pinned."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from diffuser_policy.conditions import Inpainting
from diffuser_policy.errors import ConfigError, GuideError, UnknownNameError
from diffuser_policy.guidance import Guidance, Placement, Steering
from diffuser_policy.guides.guide import FunctionGuide
from diffuser_policy.guides.trajectory import Trajectory
from diffuser_policy.layout import TrajectoryLayout
from diffuser_policy.normalizers import LimitsNormalizer
from diffuser_policy.policy import DiffuserPolicy
from diffuser_policy.sampler import DDIMSampler, DDPMSampler, Sampler
from diffuser_policy.schedule import NoiseSchedule
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
    clean' = G d, and d' = a clean' + b d with the step's coefficients.
    """
    schedule, eye = sampler.denoiser.schedule, torch.eye(HORIZON).double()
    covariance, slope = COVARIANCE.double(), SLOPE.double()
    shift = torch.zeros(HORIZON).double()
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
        shift = of_clean * clean + of_noisy * shift
        if guidance.placement == "mean":
            shift = shift + size * variance * SCALE * slope
    return shift


@pytest.mark.parametrize("make", [DDPMSampler, DDIMSampler])
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
def test_variance_scaling_can_be_chosen(placement: Placement) -> None:
    """Unscaled, "mean" moves even the last step, whose variance is zero."""
    last = {}
    for scaling in (True, False):
        guidance = Guidance(
            guide=FunctionGuide(linear),
            placement=placement,
            variance_scaling=scaling,
            num_steps=1,
            scale=0.5,
        )
        steering = guidance.steering(
            NoiseSchedule(NUM_STEPS), unpinned(), view, scales=torch.tensor([SCALE])
        )
        move = getattr(steering, placement)
        last[scaling] = move(torch.zeros(1, HORIZON, 1), 0, -1).squeeze()
    assert last[True].abs().max() == 0.0
    factor = 1 / SCALE if placement == "clean" else SCALE
    torch.testing.assert_close(last[False], 0.5 * factor * SLOPE)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_pinned_entries_stay_and_guides_see_them(placement: Placement) -> None:
    seen: list[Tensor] = []

    def watching(trajectory: Trajectory) -> Tensor:
        seen.append(trajectory.normalized[:, 0, 0].detach().clone())
        return linear(trajectory)

    mask = torch.zeros(1, HORIZON, 1, dtype=torch.bool)
    mask[:, 0] = True
    given = Inpainting(mask, torch.full((1, HORIZON, 1), 0.25))
    guidance = Guidance(guide=FunctionGuide(watching), placement=placement, num_steps=2)
    found = sampled(DDPMSampler(exact_denoiser()), guidance, given)
    assert found[:, 0].tolist() == [0.25] * 5
    assert len(seen) >= NUM_STEPS - 1
    assert all(values.tolist() == [0.25] * 5 for values in seen)


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
            variance_scaling=False,
            num_steps=1,
        )
        sampled(sampler, guidance)
    first, middle, last, clean = sampler.grid
    assert steps["noisy"] == [first, middle, last]
    assert steps["mean"] == [middle, last, clean]
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
    seen: list[Tensor] = []

    def towards(trajectory: Trajectory) -> Tensor:
        assert trajectory.desired_goal is not None
        seen.append(trajectory.desired_goal.clone())
        off = trajectory.position - trajectory.desired_goal
        return -off.square().sum(dim=(1, 2))

    policy = toy_policy(num_candidates=2).with_guide(towards)
    observation = observe(2)
    observation["desired_goal"][1] = -0.75
    policy.plan(observation)
    assert seen[0].squeeze(1).tolist() == [[0.5, 0.5]] * 2 + [[-0.75, -0.75]] * 2


# --- the policy -------------------------------------------------------------------


def test_a_guide_changes_plans_and_leaves_its_policy_alone() -> None:
    policy, observation = toy_policy(), observe()
    before = policy.plan(observation)
    guided = policy.with_guide(lambda t: t.position.sum(dim=(1, 2)), guide_scale=0.2)
    assert guided.networks is policy.networks
    moved = guided.plan(observation).path()[1:-1, :2] - before.path()[1:-1, :2]
    assert moved.mean() > 0.05
    np.testing.assert_array_equal(
        policy.plan(observation).observations, before.observations
    )
    np.testing.assert_array_equal(
        guided.with_guide(None).plan(observation).observations, before.observations
    )


def test_settings_of_a_guide_survive_other_settings() -> None:
    guided = toy_policy().with_guide(linear, guide_scale=0.2, guide_placement="mean")
    changed = guided.with_settings(num_candidates=3)
    assert changed.config.guide is guided.config.guide
    assert changed.config.planner.guide_scale == 0.2
    assert changed.planner.guidance is not None
    assert changed.planner.guidance.placement == "mean"


def test_ranking_by_a_guide_selects_without_a_gradient() -> None:
    """Scale zero and ranking "guide": sample and select."""

    def to_the_right(trajectory: Trajectory) -> Tensor:
        return trajectory.position[:, 5, 0].detach()

    policy = toy_policy(num_candidates=16)
    chosen = policy.with_guide(
        to_the_right, guide_scale=0.0, ranking="guide", ranking_tolerance=1e6
    ).plan(observe())
    plain = policy.plan(observe())
    np.testing.assert_array_equal(chosen.candidates, plain.candidates)
    assert chosen.chosen[0] == plain.candidates[0, :, 5, 0].argmax()
    np.testing.assert_allclose(
        chosen.values[0], plain.candidates[0, :, 5, 0], rtol=1e-5, atol=1e-6
    )


def test_predict_takes_another_guide_between_calls() -> None:
    """Plans that were made under another guide are made anew at once."""
    policy, observation = toy_policy(), observe()
    _, state = policy.predict(observation)
    guided = policy.with_guide(lambda t: t.position.sum(dim=(1, 2)), guide_scale=5.0)
    _, plain = policy.predict(observation, state)
    assert plain.num_plans.tolist() == [1]
    _, steered = guided.predict(observation, state)
    assert steered.num_plans.tolist() == [2]
    moved = steered.observations[0, 1:7, :2] - plain.observations[0, 1:7, :2]
    assert moved.min() > 1.0
    _, steered = guided.predict(observation, steered)
    assert steered.num_plans.tolist() == [2]
    for other in (policy, guided.with_settings(guide_scale=0.0)):
        _, state = other.predict(observation, steered)
        assert state.num_plans.tolist() == [3]


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"guide_scale": float("nan")}, ConfigError, "guide_scale must be finite"),
        ({"guide_steps": 0}, ConfigError, "guide_steps"),
        ({"guide_cutoff": -1}, ConfigError, "guide_cutoff"),
        ({"guide_placement": "cleen"}, UnknownNameError, "'clean'"),
        ({"guide_scal": 1.0}, UnknownNameError, "'guide_scale'"),
    ],
)
def test_bad_settings_are_named(
    settings: dict[str, object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        toy_policy().with_guide(linear, **settings)


def test_ranking_by_a_guide_needs_one() -> None:
    with pytest.raises(ConfigError, match="with_guide"):
        toy_policy(ranking="guide")


def test_columns_that_a_planner_lacks_are_listed() -> None:
    policy = toy_policy().with_guide(lambda t: t.altitude.sum(dim=(1, 2)))
    with pytest.raises(UnknownNameError, match=r"'altitude'.*position, velocity"):
        policy.plan(observe())
    with pytest.raises(AttributeError, match="altitude"):
        policy.plan(observe())


def test_a_failing_guide_leaves_the_state_as_it_was() -> None:
    policy = toy_policy(replan_interval=1, horizon="predicted")
    _, state = policy.predict(observe())
    before = [part.copy() for part in state]
    broken = policy.with_guide(lambda t: t.position.sum(dim=(1, 2)) * float("nan"))
    with pytest.raises(GuideError, match="NaN"):
        broken.predict(observe(), state)
    assert all(map(np.array_equal, before, state))


def test_a_function_without_a_name_cannot_be_saved(tmp_path: Path) -> None:
    guided = toy_policy().with_guide(lambda t: t.position.sum(dim=(1, 2)))
    with pytest.raises(GuideError, match="register_guide"):
        guided.save_pretrained(tmp_path / "guided")
    assert not (tmp_path / "guided" / "config.json").exists()


def test_guides_are_saved_with_the_planner(tmp_path: Path) -> None:
    from diffuser_policy.guides.registry import make_guide

    guide = 2.0 * make_guide("keep-out", center=(0.5, 0.0), radius=0.25)
    guided = toy_policy().with_guide(guide, guide_scale=0.5)
    guided.save_pretrained(tmp_path)
    loaded = DiffuserPolicy.from_pretrained(tmp_path)
    assert loaded.config.guide == guided.config.guide
    np.testing.assert_array_equal(
        loaded.plan(observe()).observations, guided.plan(observe()).observations
    )


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


def test_a_negative_scale_descends_and_settles_too() -> None:
    def square(trajectory: Trajectory) -> Tensor:
        return 5.0 * trajectory["observation"].square().sum(dim=(1, 2))

    guidance = Guidance(guide=FunctionGuide(square), scale=-1.0, num_steps=20)
    steering = guidance.steering(
        NoiseSchedule(NUM_STEPS), unpinned(), view, scales=torch.tensor([SCALE])
    )
    found = view(steering.clean(torch.ones(1, HORIZON, 1), 5, 4), -1)["observation"]
    assert found.abs().max() < 1.0


def test_removing_a_guide_goes_back_to_a_ranking_that_needs_none() -> None:
    guided = toy_policy().with_guide(linear, ranking="guide")
    assert "guide linear" in repr(guided)
    assert guided.guide is not None
    assert guided.with_guide(None).config.planner.ranking == "time_to_goal"
    assert guided.with_guide(None, ranking="first").config.planner.ranking == "first"
    with pytest.raises(ConfigError, match="with_guide"):
        guided.with_settings(guide=None)


@pytest.mark.parametrize("placement", ["mean", "noisy"])
def test_guidance_that_could_do_nothing_is_refused(placement: Placement) -> None:
    """The only denoising step there is has no variance to scale a gradient by."""
    settings = {"num_sampling_steps": 1, "min_guided_steps": 1}
    with pytest.raises(ConfigError, match="at least 2 denoising steps"):
        toy_policy().with_guide(linear, guide_placement=placement, **settings)
    toy_policy().with_guide(linear, **settings)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_warm_replans_are_guided_at_every_placement(placement: Placement) -> None:
    calls: list[int] = []

    def counting(trajectory: Trajectory) -> Tensor:
        calls.append(trajectory.denoising_step)
        return linear_position(trajectory)

    policy = toy_policy(warm_start=0.2, replan_interval=1, horizon="shrinking")
    guided = policy.with_guide(counting, guide_placement=placement, guide_scale=0.1)
    _, state = guided.predict(observe())
    calls.clear()
    guided.predict(observe(), state)
    assert len(calls) > 0


def linear_position(trajectory: Trajectory) -> Tensor:
    return trajectory.position.sum(dim=(1, 2))
