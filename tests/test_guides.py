"""The guides of the library: what they prefer, how they add, what they refuse."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from diffuser_policy.columns.layout import TrajectoryLayout
from diffuser_policy.columns.normalizers import IdentityNormalizer
from diffuser_policy.errors import GuideError, MissingColumnsError, UnknownNameError
from diffuser_policy.guides.builtin import (
    ActionEffort,
    GoalDistance,
    KeepIn,
    KeepOut,
    LearnedValue,
    Smoothness,
    SpeedLimit,
    Waypoint,
)
from diffuser_policy.guides.guide import (
    FunctionGuide,
    Guide,
    as_guide,
    cost_guide,
    described,
    value_and_gradient,
    value_of,
)
from diffuser_policy.guides.trajectory import Trajectory
from diffuser_policy.testing.toys import toy_policy
from tests.policy_helpers import observe

ALIASES = {"position": (0, 1), "velocity": (2, 3), "goal": (0, 1)}
LAYOUT = TrajectoryLayout(action_dim=2, observation_dim=4, aliases=ALIASES)


def moving(
    position: Any, *, velocity: Any = 0.0, action: Any = 0.0, **parts: Any
) -> Trajectory:
    """Return trajectories along positions `[steps, 2]` or `[batch, steps, 2]`."""
    path = torch.as_tensor(position, dtype=torch.float64)
    path = path if path.ndim == 3 else path[None]
    values = torch.zeros(*path.shape[:2], 6, dtype=torch.float64)
    values[..., 0:2] = torch.as_tensor(action)
    values[..., 2:4] = path
    values[..., 4:6] = torch.as_tensor(velocity)
    return shown(values, **parts)


def shown(values: Tensor, **parts: Any) -> Trajectory:
    normalizer = IdentityNormalizer.blank(6).double()
    return Trajectory(normalized=values, layout=LAYOUT, normalizer=normalizer, **parts)


def climbed(guide: Guide, trajectory: Trajectory, scale: float = 1.0) -> Trajectory:
    """Return a trajectory after one gradient step."""
    values = trajectory.normalized
    return shown(values + scale * value_and_gradient(guide, values, shown)[1])


# --- where a trajectory goes ------------------------------------------------------


def test_keep_out_sees_a_path_that_cuts_the_disc_between_planning_steps() -> None:
    guide = KeepOut(center=(0.0, 0.2), radius=0.5, margin=0.0)
    value = guide(moving([[-2.0, 0.0], [2.0, 0.0]]))
    assert value.tolist() == pytest.approx([-0.5 * 0.3**2])


def test_keep_out_is_zero_outside_disc_and_margin() -> None:
    path = moving([[-2.0, 0.0], [2.0, 0.0]])
    assert KeepOut(center=(0.0, 0.7), radius=0.5, margin=0.1)(path).item() == 0.0
    assert KeepOut(center=(0.0, 0.7), radius=0.5, margin=0.3)(path).item() < 0.0


def test_keep_out_measures_segments_as_a_fine_sampling_does() -> None:
    """Against the least distance of a thousand points on each segment."""
    generator = torch.Generator().manual_seed(1)
    path = torch.randn(20, 2, 2, generator=generator, dtype=torch.float64)
    share = torch.linspace(0, 1, 1001, dtype=torch.float64)[:, None]
    points = path[:, :1] + share * (path[:, 1:] - path[:, :1])
    center = torch.tensor([0.2, -0.1]).double()
    nearest = (points - center).norm(dim=-1).amin(dim=1)
    expected = -0.5 * torch.relu(1.5 - nearest).square()
    guide = KeepOut(center=(0.2, -0.1), radius=1.5, margin=0.0)
    torch.testing.assert_close(guide(moving(path)), expected, rtol=0, atol=1e-5)


def test_a_path_that_grazes_the_disc_leaves_it_in_one_step_of_scale_one() -> None:
    guide = KeepOut(center=(0.0, 0.0), radius=0.5, margin=0.0)
    line = [[x, 0.3] for x in (-2.0, -1.0, 0.0, 1.0, 2.0)]
    moved = climbed(guide, moving(line))
    assert moved.position[0, 2].tolist() == pytest.approx([0.0, 0.7])
    assert guide(moved).item() == 0.0
    assert moved.position[0, ::4].tolist() == [line[0], line[4]]


@pytest.mark.parametrize("turn", [0.0, 1.0, 2.5])
def test_a_path_through_the_very_center_is_pushed_to_its_left(turn: float) -> None:
    along = torch.tensor([math.cos(turn), math.sin(turn)]).double()
    left = torch.tensor([-along[1], along[0]])
    path = torch.tensor([[-1.0], [1.0]]).double() * along
    guide = KeepOut(center=(0.0, 0.0), radius=0.5, margin=0.0)
    moved = climbed(guide, moving(path)).position[0] - path
    assert (moved @ left).tolist() == pytest.approx([0.25, 0.25], rel=1e-3)
    assert (moved @ along).abs().max() < 1e-3


def test_a_path_straight_up_through_the_very_center_is_pushed_aside() -> None:
    """It has no left in the first two columns."""
    path = torch.tensor([[[0.0, 0.0, -1.0], [0.0, 0.0, 1.0]]], requires_grad=True)
    guide = KeepOut(center=(0.0, 0.0, 0.0), radius=0.5, margin=0.0)
    value = guide({"position": path})  # type: ignore[arg-type]
    (slope,) = torch.autograd.grad(value.sum(), path)
    assert slope[0, :, :2].norm(dim=-1).tolist() == pytest.approx([0.25] * 2, rel=1e-3)


def test_keep_out_of_the_goal_uses_the_columns_it_is_given() -> None:
    guide = KeepOut(center=(1.0, 0.0), radius=0.5, columns="velocity")
    still = [[0.0, 0.0]] * 3
    assert guide(moving(still)).item() == 0.0
    assert guide(moving(still, velocity=(1.0, 0.0))).item() < 0.0


def test_keep_in_charges_the_distance_to_a_box_and_to_a_disc() -> None:
    path = moving([[3.0, 0.0], [0.0, 0.0], [2.0, 3.0]])
    box = KeepIn(low=(-1.0, -1.0), high=(1.0, 1.0))
    assert box(path).item() == pytest.approx(-0.5 * (2**2 + 0 + 1 + 2**2))
    tight = KeepIn(low=(-1.0, -1.0), high=(1.0, 1.0), margin=0.5)
    assert tight(path).item() == pytest.approx(-0.5 * (2.5**2 + 1.5**2 + 2.5**2))
    disc = KeepIn(center=(0.0, 0.0), radius=1.0)
    expected = -0.5 * (2**2 + (13**0.5 - 1) ** 2)
    assert disc(path).item() == pytest.approx(expected, rel=1e-5)
    assert disc(moving([[0.5, 0.0], [0.0, 0.9]])).item() == 0.0
    wider = KeepIn(center=(0.0, 0.0), radius=1.5, margin=0.5)
    assert wider(path).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("size", [1.0, 1e-3])
def test_a_penalty_begins_at_the_edge_whatever_the_units(size: float) -> None:
    path = moving([[1.005 * size, 0.0]] * 2, velocity=[[0.0, 1.005 * size]] * 2)
    expected = -((0.005 * size) ** 2)
    for guide in (KeepIn(center=(0.0, 0.0), radius=size), SpeedLimit(speed=size)):
        assert guide(path).item() == pytest.approx(expected, rel=0.5)


def test_penalties_from_zero_on_have_a_gradient_where_nothing_moves() -> None:
    still = torch.zeros(1, 2, 2, requires_grad=True)
    for guide in (KeepIn(center=(0.0, 0.0), radius=1e-9), SpeedLimit(speed=0.0)):
        value = guide({"position": still, "velocity": still})  # type: ignore[arg-type]
        (slope,) = torch.autograd.grad(value.sum(), still)
        assert (slope == 0.0).all()


def test_a_waypoint_at_a_time_is_where_the_plan_is_then() -> None:
    path = moving([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]], stride=10)
    for time, x in [(0.0, 0.0), (5.0, 0.5), (10.0, 1.0), (18.0, 1.8), (99.0, 2.0)]:
        value = Waypoint(position=(0.0, 1.0), time=time)(path)
        assert value.item() == pytest.approx(-0.5 * (x**2 + 1))


def test_a_waypoint_at_any_time_counts_the_nearest_part_of_the_path() -> None:
    path = moving([[0.0, 0.0], [1.0, 0.0], [5.0, 0.0], [6.0, 0.0]])
    sharp = Waypoint(position=(3.0, 1.0), softness=0.05)(path).item()
    assert sharp == pytest.approx(-0.5, abs=0.05)
    soft = Waypoint(position=(3.0, 1.0), softness=50.0)(path).item()
    mean = -0.5 * (2**2 + 1 + 1 + 2**2 + 1) / 3
    assert soft == pytest.approx(mean, rel=0.01)


def test_the_goal_is_the_environments_or_a_given_one() -> None:
    path = [[0.0, 0.0], [3.0, 0.0]]
    goal = torch.tensor([[[3.0, 4.0]]])
    own = GoalDistance()(moving(path, desired_goal=goal)).item()
    given = GoalDistance(goal=(3.0, 4.0))(moving(path)).item()
    assert own == given == pytest.approx(-0.088, abs=0.0003)
    with pytest.raises(GuideError, match=r"has none.*goal="):
        GoalDistance()(moving(path))


@pytest.mark.parametrize("unit", [1.0, 0.01])
def test_how_a_path_is_drawn_to_the_goal_does_not_depend_on_units(unit: float) -> None:
    """Half a meter from the goal, and then at it, in meters or on a small table."""
    guide = GoalDistance(pull=0.01 * unit, goal=(0.5 * unit, 0.0))
    before = moving([[0.0, 0.0], [0.5 * unit, 0.0]])
    distance = math.sqrt(0.5**2 + 0.1**2) - 0.1
    assert guide(before).item() == pytest.approx(-0.01 * unit**2 * distance)
    moved = climbed(guide, before).position[0, :, 0] / unit
    assert moved.tolist() == pytest.approx([0.01 * 0.5 / (distance + 0.1), 0.5])


def test_no_pull_at_the_goal_is_none() -> None:
    path = moving([[3.0, 4.0]])
    guide = GoalDistance(pull=0.0, goal=(3.0, 4.0))
    assert torch.equal(climbed(guide, path).position, path.position)


# --- how it moves -----------------------------------------------------------------


def test_a_speed_limit_charges_the_excess_and_removes_it() -> None:
    path = moving([[0.0, 0.0]] * 3, velocity=[[3.0, 4.0], [0.3, 0.4], [0.0, -2.0]])
    guide = SpeedLimit(speed=1.0)
    assert guide(path).item() == pytest.approx(-0.5 * (4**2 + 1), rel=1e-5)
    for same in (guide, SpeedLimit(speed=1.25, margin=0.25)):
        assert same(path).item() == guide(path).item()
        speeds = climbed(same, path)["velocity"].norm(dim=-1)[0]
        assert speeds.tolist() == pytest.approx([1.0, 0.5, 1.0], abs=1e-5)


def test_effort_shrinks_by_the_share_that_the_scale_is() -> None:
    path = moving([[0.0, 0.0]] * 2, action=[[1.0, -0.5], [0.2, 0.0]])
    assert ActionEffort()(path).item() == pytest.approx(-0.5 * 1.29)
    shrunk = climbed(ActionEffort(), path, 0.1).actions
    torch.testing.assert_close(shrunk, 0.9 * path.actions)


def test_smoothness_is_zero_on_a_steady_line_and_climbing_never_overshoots() -> None:
    line = [[0.3 * t, -0.1 * t] for t in range(7)]
    assert Smoothness()(moving(line)).item() == pytest.approx(0.0, abs=1e-15)
    zigzag = moving([[0.3 * t, 0.2 * (-1.0) ** t] for t in range(7)])
    values = [Smoothness()(zigzag).item()]
    for _ in range(5):
        zigzag = climbed(Smoothness(), zigzag)
        values.append(Smoothness()(zigzag).item())
    assert values == sorted(values)
    assert values[-1] > 0.01 * values[0]


# --- learned ----------------------------------------------------------------------


def test_a_learned_value_is_bound_to_its_planner_and_told_the_step() -> None:
    def network(trajectories: Tensor, i: Tensor) -> Tensor:
        return trajectories.sum(dim=(1, 2)) + 100.0 * i

    guide = LearnedValue().bind(SimpleNamespace(value=network))
    ones = torch.ones(2, 3, 6).double()
    assert guide(shown(ones, denoising_step=7)).tolist() == [718.0, 718.0]
    assert guide(shown(ones)).tolist() == [18.0, 18.0]  # clean ones as of step 0
    assert guide == LearnedValue()
    assert repr(guide) == "LearnedValue()"


def test_a_planner_without_a_value_network_says_how_to_get_one() -> None:
    with pytest.raises(GuideError, match="train-value"):
        toy_policy().with_guide(LearnedValue())
    with pytest.raises(GuideError, match="train-value"):
        toy_policy().with_guide(2.0 * LearnedValue() - ActionEffort())
    with pytest.raises(GuideError, match="with_guide"):
        LearnedValue()(moving([[0.0, 0.0]]))


# --- algebra ----------------------------------------------------------------------

A, B, C = KeepOut(center=(0.0, 0.0), radius=1.0), ActionEffort(), SpeedLimit(speed=0.5)


def values(guide: Guide) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return guide(shown(torch.randn(4, 5, 6, generator=generator).double()))


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (A + B, B + A),
        ((A + B) + C, A + (B + C)),
        (2.0 * (A + B), 2.0 * A + 2.0 * B),
        (A * 2.0, 2 * A),
        (-1.0 * -A, 1.0 * A),
        (A - B, A + -1.0 * B),
        (A + A, 2.0 * A),
        (6.0 * A, 2.0 * (3.0 * A)),
        (A + 0.0 * B, A),
        (A / 4, 0.25 * A),
    ],
)
def test_guides_add_and_scale_as_numbers_do(left: Guide, right: Guide) -> None:
    torch.testing.assert_close(values(left), values(right), rtol=1e-12, atol=1e-12)
    assert values(left).abs().min() > 0


def test_functions_take_part_on_either_side() -> None:
    def far(trajectory: Trajectory) -> Tensor:
        return trajectory.position.square().sum(dim=(1, 2))

    expected = values(A) + values(as_guide(far))
    torch.testing.assert_close(values(A + far), expected)
    torch.testing.assert_close(values(far + A), expected)
    torch.testing.assert_close(values(A - far), values(A) - values(as_guide(far)))
    torch.testing.assert_close(values(far - A), values(as_guide(far)) - values(A))
    torch.testing.assert_close(values(cost_guide(far)), -values(as_guide(far)))
    assert as_guide(A) is A
    assert (2.0 * as_guide(far)).name.endswith("far")


def test_sums_are_flat_and_describe_themselves() -> None:
    guide = 2.0 * (A + B) - C
    assert [weight for weight, _ in guide.parts()] == [2.0, 2.0, -1.0]
    assert guide.name == "2 * KeepOut + 2 * ActionEffort + -1 * SpeedLimit"
    assert "radius=1.0" in described(guide)


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_factors_that_are_not_finite_are_refused(factor: float) -> None:
    with pytest.raises(GuideError, match="KeepOut"):
        factor * A


@pytest.mark.parametrize("divisor", [0, 0.0, B])
def test_guides_are_divided_by_numbers_other_than_zero(divisor: Any) -> None:
    with pytest.raises(TypeError):
        A / divisor


@pytest.mark.parametrize("other", ["far", 3.0, None])
def test_only_guides_and_functions_add(other: Any) -> None:
    with pytest.raises(TypeError):
        A + other
    with pytest.raises(GuideError, match="make_guide"):
        as_guide(other)


# --- scale zero -------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpm"])
@pytest.mark.parametrize("placement", ["clean", "mean", "noisy"])
def test_scale_zero_is_bit_equal_to_no_guide(sampler: str, placement: str) -> None:
    plain, observation = toy_policy(sampler=sampler, num_candidates=4), observe(3)
    guided = plain.with_guide(
        Waypoint(position=(2.0, 2.0)) + A, guide_placement=placement
    ).with_settings(guide_scale=0.0)
    assert_same(plain.plan(observation), guided.plan(observation))
    streams = np.arange(3)
    states = [policy.initial_state(3, streams) for policy in (plain, guided)]
    for _ in range(3):
        acted = [
            policy.predict(observation, state)
            for policy, state in zip((plain, guided), states, strict=True)
        ]
        np.testing.assert_array_equal(acted[0][0], acted[1][0])
        states = [state for _, state in acted]
    full = guided.with_settings(guide_scale=1.0).plan(observation)
    assert not np.array_equal(full.candidates, plain.plan(observation).candidates)


def assert_same(one: Any, other: Any) -> None:
    for name in ("candidates", "observations", "actions", "values", "chosen"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


# --- errors -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: KeepOut(center=(0.0, math.nan), radius=1.0), "KeepOut.center"),
        (lambda: KeepOut(center=3.0, radius=1.0), "KeepOut.center"),  # type: ignore[arg-type]
        (lambda: KeepOut(center=(), radius=1.0), "KeepOut.center"),
        (lambda: KeepOut(center=(0.0, 0.0), radius=-1.0), "KeepOut.radius"),
        (lambda: KeepOut(center=(0.0, 0.0), radius=0.0), "a positive number"),
        (lambda: KeepOut(center=(0.0, 0.0), radius=math.inf), "KeepOut.radius"),
        (lambda: KeepOut(center=(0.0, 0.0), radius=1.0, margin=-0.1), "KeepOut.margin"),
        (KeepIn, "neither"),
        (lambda: KeepIn(low=(0.0, 0.0)), "got low"),
        (lambda: KeepIn(low=(0.0,), high=(1.0,), radius=1.0), "low and high and rad"),
        (lambda: KeepIn(low=(0.0, 0.0), high=(1.0,)), "of one size"),
        (lambda: KeepIn(low=(0.0, 2.0), high=(1.0, 1.0)), "no room"),
        (lambda: KeepIn(low=(0.0, 0.0), high=(1.0, 1.0), margin=0.6), "no room"),
        (lambda: KeepIn(center=(0.0, 0.0), radius=1.0, margin=1.5), "no room"),
        (lambda: Waypoint(position=(0.0, math.inf)), "Waypoint.position"),
        (lambda: Waypoint(position=(0.0, 0.0), time=-1.0), "Waypoint.time"),
        (lambda: Waypoint(position=(0.0, 0.0), softness=0.0), "Waypoint.softness"),
        (lambda: GoalDistance(goal=(math.nan, 0.0)), "GoalDistance.goal"),
        (lambda: SpeedLimit(speed=-1.0), "SpeedLimit.speed"),
        (lambda: SpeedLimit(speed="fast"), "SpeedLimit.speed"),  # type: ignore[arg-type]
        (lambda: SpeedLimit(speed=1.0, margin=2.0), "leaves nothing"),
    ],
)
def test_parameters_that_cannot_be_meant_are_refused(make: Any, words: str) -> None:
    with pytest.raises(GuideError, match=words):
        make()


def test_points_of_another_size_than_the_columns_are_refused() -> None:
    path = moving([[0.0, 0.0]] * 3)
    with pytest.raises(GuideError, match=r"KeepOut.*there are 2"):
        KeepOut(center=(0.0, 0.0, 0.0), radius=1.0)(path)
    with pytest.raises(GuideError, match=r"Waypoint.*there are 4"):
        Waypoint(position=(0.0, 0.0), columns="observation")(path)


def test_columns_that_the_planner_lacks_are_listed() -> None:
    with pytest.raises(UnknownNameError, match=r"'altitude'.*position, velocity"):
        KeepOut(center=(0.0,), radius=1.0, columns="altitude")(moving([[0.0, 0.0]]))
    plain = TrajectoryLayout(action_dim=0, observation_dim=6, aliases={})
    lacking = Trajectory(
        normalized=torch.zeros(1, 3, 6),
        layout=plain,
        normalizer=IdentityNormalizer.blank(6),
    )
    for guide in (SpeedLimit(speed=1.0), ActionEffort(), Smoothness()):
        with pytest.raises(UnknownNameError, match="Known: observation"):
            guide(lacking)


@pytest.mark.parametrize(
    ("guide", "option"),
    [
        (KeepOut(center=(0.0, 0.0), radius=1.0), "--window.position"),
        (SpeedLimit(speed=1.0), "--window.velocity"),
        (ActionEffort(), "--window.actions"),
    ],
)
def test_missing_columns_say_what_to_take_and_how_to_get_them(
    guide: Guide, option: str
) -> None:
    lacking = Trajectory(
        normalized=torch.zeros(1, 3, 6),
        layout=TrajectoryLayout(action_dim=0, observation_dim=6, aliases={}),
        normalizer=IdentityNormalizer.blank(6),
    )
    with pytest.raises(MissingColumnsError) as caught:
        value_of(guide, lacking)
    assert "columns='observation'" in str(caught.value)
    assert f"trained with {option}" in str(caught.value)
    with pytest.raises(MissingColumnsError) as caught:
        lacking["altitude"]
    assert str(caught.value).endswith("Known: observation.")


def wrong_shape(trajectory: Trajectory) -> Tensor:
    return trajectory.position.sum(dim=2)


def not_a_tensor(trajectory: Trajectory) -> Any:
    return float(trajectory.position.detach().sum())


def not_a_number(trajectory: Trajectory) -> Tensor:
    return (trajectory.position.sum(dim=(1, 2)) - 1e9).sqrt()


def no_gradient(trajectory: Trajectory) -> Tensor:
    return trajectory.position.detach().sum(dim=(1, 2))


def complex_values(trajectory: Trajectory) -> Tensor:
    return torch.complex(*[trajectory.position.sum(dim=(1, 2))] * 2)


def elsewhere(trajectory: Trajectory) -> Tensor:
    return trajectory.position.sum(dim=(1, 2)).to("meta")


def sparse(trajectory: Trajectory) -> Tensor:
    return trajectory.position.sum(dim=(1, 2)).to_sparse()


def steep(trajectory: Trajectory) -> Tensor:
    values: Tensor = (0.0 * trajectory.position).norm(dim=2).pow(0.5).sum(dim=1)
    return values


def with_numpy(trajectory: Trajectory) -> Any:
    return torch.as_tensor(-np.linalg.norm(trajectory.position, axis=-1).sum(axis=1))


def with_an_array(trajectory: Trajectory) -> Any:
    off: Any = np.zeros(2) - trajectory.position
    return off.square().sum(dim=(1, 2))


def with_a_number(trajectory: Trajectory) -> Any:
    return -math.sqrt(trajectory.position.square())


def with_a_condition(trajectory: Trajectory) -> Any:
    return 1.0 if (trajectory.position > 0.0) else 0.0


def in_place(trajectory: Trajectory) -> Any:
    trajectory.normalized[..., 0] = 0.0
    return trajectory.position.sum(dim=(1, 2))


def in_place_behind_a_gradient(trajectory: Trajectory) -> Any:
    grown = trajectory.position.exp()
    value = grown.sum(dim=(1, 2))
    grown += 1.0
    return value


def with_a_gradient_of_its_own(trajectory: Trajectory) -> Any:
    value: Any = trajectory.position.square().sum(dim=(1, 2))
    value.sum().backward()
    return value


@pytest.mark.parametrize(
    "function",
    [
        with_numpy,
        with_an_array,
        with_a_number,
        with_a_condition,
        in_place,
        in_place_behind_a_gradient,
        with_a_gradient_of_its_own,
    ],
)
@pytest.mark.parametrize("weight", [None, 2.0])
def test_a_guide_that_fails_is_named_and_told_to_compute_with_pytorch(
    function: Any, weight: float | None
) -> None:
    guide = as_guide(function) if weight is None else A + weight * as_guide(function)
    variable = torch.zeros(2, 3, 6).double()
    message = rf"(?s){function.__name__} failed: \w+Error: .*with PyTorch"
    with pytest.raises(GuideError, match=message) as caught:
        value_and_gradient(guide, variable, shown)
    assert isinstance(caught.value.__cause__, RuntimeError | TypeError | ValueError)
    assert "Use tensor.detach()" not in str(caught.value)


def test_a_guide_for_which_memory_does_not_suffice_is_not_to_blame() -> None:
    def large(trajectory: Trajectory) -> Tensor:
        raise torch.OutOfMemoryError(repr(trajectory))

    with pytest.raises(torch.OutOfMemoryError):
        value_of(as_guide(large), moving([[0.0, 0.0]]))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (
            wrong_shape,
            r"wrong_shape must return one value .*\(2,\); got shape \(2, 3\)",
        ),
        (not_a_tensor, "not_a_tensor must return one value .* got float. Return a"),
        (not_a_number, "not_a_number returned NaN"),
        (complex_values, "complex_values must return real .* got torch.complex128"),
        (elsewhere, "elsewhere must return .* cpu; got torch.float64 on meta"),
        (sparse, "sparse must return real .* torch.sparse_coo"),
        (no_gradient, "no_gradient has no gradient"),
        (steep, "gradient of the guide steep"),
    ],
)
def test_a_guide_that_cannot_steer_is_named(function: Any, words: str) -> None:
    variable = torch.zeros(2, 3, 6).double()
    with pytest.raises(GuideError, match=words):
        value_and_gradient(FunctionGuide(function), variable, shown)[1]


def test_the_failing_part_of_a_sum_is_named() -> None:
    guide = A + 0.5 * FunctionGuide(not_a_number)
    with pytest.raises(GuideError, match="guide not_a_number returned NaN"):
        value_of(guide, moving([[0.0, 0.0]] * 3))
