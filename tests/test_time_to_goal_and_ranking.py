"""TimeToGoal finds the expectile it is asked for; rankings choose by their rule."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from diffuser_policy.columns.layout import TrajectoryLayout
from diffuser_policy.columns.normalizers import IdentityNormalizer
from diffuser_policy.guides.guide import as_guide
from diffuser_policy.guides.trajectory import Trajectory
from diffuser_policy.networks.critic import Critic
from diffuser_policy.networks.time_to_goal import TimeToGoal
from diffuser_policy.planning.ranking import (
    CriticRanking,
    FirstRanking,
    GuideRanking,
    SmoothnessRanking,
    SumRanking,
    TimeToGoalRanking,
)


def time_to_goal(max_steps: int = 100) -> TimeToGoal:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TimeToGoal(2, 1, width=16, max_steps=max_steps)


def fitted_constant(expectile: float, times: np.ndarray) -> float:
    """Return what a network without inputs learns from these times."""
    network = time_to_goal()
    observations, goals = torch.zeros(len(times), 2), torch.zeros(len(times), 1)
    target = torch.from_numpy(times).float()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        loss = network.loss(observations, goals, target, expectile=expectile)
        torch.autograd.backward(loss)
        optimizer.step()
    return float(network(observations[:1], goals[:1]).item())


def true_expectile(tau: float, values: np.ndarray) -> float:
    """Solve tau E[(x - e)+] = (1 - tau) E[(e - x)+] by bisection."""
    low, high = values.min(), values.max()
    for _ in range(60):
        middle = (low + high) / 2
        above = np.maximum(values - middle, 0).mean()
        below = np.maximum(middle - values, 0).mean()
        low, high = (middle, high) if tau * above > (1 - tau) * below else (low, middle)
    return float(low)


@pytest.mark.parametrize("expectile", [0.05, 0.5, 0.9])
def test_the_loss_is_minimal_at_the_expectile(expectile: float) -> None:
    times = np.random.default_rng(0).uniform(10, 60, size=200)
    found = fitted_constant(expectile, times)
    assert found == pytest.approx(true_expectile(expectile, times), abs=0.5)


def test_half_is_the_mean_and_low_leans_on_short_ways() -> None:
    times = np.array([10.0] * 3 + [50.0] * 7)
    assert true_expectile(0.5, times) == pytest.approx(times.mean())
    assert true_expectile(0.05, times) < 15


def test_times_are_in_env_steps_whatever_the_unit() -> None:
    network = time_to_goal(max_steps=7)
    observations, goals = torch.ones(3, 2, 2), torch.ones(3, 2, 1)
    assert network(observations, goals).shape == (3, 2)
    raw = network.layers(torch.ones(1, 3)).item()
    assert network(observations, goals)[0, 0].item() == pytest.approx(7 * raw)


# --- rankings ---------------------------------------------------------------------


class _Distance(TimeToGoal):
    """Needs ten env steps per unit of distance, known instead of learned."""

    def __init__(self) -> None:
        super().__init__(2, 1, width=1, max_steps=1)

    def forward(self, observations: Tensor, goals: Tensor) -> Tensor:
        return 10 * (observations[..., 0] - goals[..., 0]).abs()


class _Known(Critic):
    """Has two action values: the action itself, and the state's first column."""

    def __init__(self) -> None:
        super().__init__(2, 1, width=1)

    def of_actions(self, observations: Tensor, actions: Tensor) -> Tensor:
        return torch.stack([actions[:, 0], observations[:, 0]])


LAYOUT = TrajectoryLayout(action_dim=1, observation_dim=2, aliases={"goal": (0,)})


def candidates(*paths: list[float]) -> Trajectory:
    """Return candidates; neither the action nor the last column is the goal's."""
    positions = torch.tensor(paths)
    noise = 1000 * positions.flip(-1).square()
    return Trajectory(
        normalized=torch.stack([noise, positions, noise], dim=-1),
        layout=LAYOUT,
        normalizer=IdentityNormalizer.blank(3),
        stride=3,
    )


STEADY = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
JUMPING = [0.0, 0.0, 0.5, 4.5, 5.0, 5.0]
CURVED = [0.0, 2.0, 3.0, 4.0, 4.5, 5.0]


def test_first_takes_the_first() -> None:
    values = FirstRanking()(candidates(JUMPING, STEADY), 2)
    assert values.shape == (1, 2)
    assert values.argmax(dim=1).tolist() == [0]


def test_smoothness_is_the_largest_displacement_of_goal_columns() -> None:
    values = SmoothnessRanking()(candidates(JUMPING, STEADY, CURVED), 3)
    assert values.tolist() == [[-16.0, -1.0, -4.0]]


def test_without_a_goal_the_whole_observation_is_to_move_smoothly() -> None:
    layout = dataclasses.replace(LAYOUT, aliases={"position": (0,)})
    rows = torch.tensor([[[9.0, 0, 0], [5.0, 3, 4]], [[1.0, 0, 0], [7.0, 3, 0]]])
    paths = dataclasses.replace(candidates(STEADY), normalized=rows, layout=layout)
    assert SmoothnessRanking()(paths, 2).tolist() == [[-25.0, -9.0]]


def test_time_to_goal_is_the_worst_excess_over_the_planned_time() -> None:
    ranking = TimeToGoalRanking(_Distance(), reach=2)
    values = ranking(candidates(JUMPING, STEADY, CURVED), 3)
    # Two planning steps are six env steps; the largest two-step moves: 4.5, 2, 3.
    assert values.tolist() == [[6 - 45.0, 6 - 20.0, 6 - 30.0]]


def test_a_plan_shorter_than_the_reach_is_judged_by_its_ends() -> None:
    ranking = TimeToGoalRanking(_Distance(), reach=50)
    values = ranking(candidates(JUMPING, STEADY), 2)
    assert values.tolist() == [[15 - 50.0, 15 - 50.0]]


@pytest.mark.parametrize("steps", [2, 4, 5, 9])
@pytest.mark.parametrize(("factor", "enough"), [(1.49, True), (1.51, False)])
def test_plans_of_any_length_may_need_half_as_much_time_again(
    steps: int, factor: float, enough: bool
) -> None:
    ranking, compared = TimeToGoalRanking(_Distance(), reach=4), min(steps - 1, 4)
    plan = candidates([factor * 3 / 10 * step for step in range(steps)])
    values, judged = ranking.judged(plan, 1)
    assert values.item() == pytest.approx((1 - factor) * 3 * compared, rel=1e-4)
    assert (judged.item() >= ranking.good_enough(stride=3)) is enough


def test_a_critic_values_what_is_done_first_by_the_lower_of_its_values() -> None:
    planned = torch.randn(6, 5, 3, generator=torch.Generator().manual_seed(0))
    trajectory = dataclasses.replace(candidates(*[STEADY] * 6), normalized=planned)
    action, state = planned[:, 0, 0], planned[:, 0, 1]
    assert {*(action < state).tolist()} == {True, False}
    values = CriticRanking(_Known())(trajectory, 3)
    assert torch.equal(values, torch.minimum(action, state).reshape(2, 3))


def test_rows_are_ranked_apart() -> None:
    rows = candidates(JUMPING, STEADY, STEADY, JUMPING)
    assert SmoothnessRanking()(rows, 2).argmax(dim=1).tolist() == [1, 0]


def test_a_single_planning_step_leaves_nothing_to_rank() -> None:
    rows = candidates(*[[float(start)] for start in range(6)])
    for ranking in (SmoothnessRanking(), TimeToGoalRanking(_Distance())):
        for values in ranking.judged(rows, 3):
            assert values.tolist() == [[0.0] * 3] * 2


def test_a_guide_chooses_among_the_feasible() -> None:
    """Jerky paths are liked best, and left out unless they are feasible enough."""
    liked = as_guide(lambda t: t["goal"].diff(dim=1).square().sum(dim=(1, 2)))
    paths = candidates(STEADY, CURVED, JUMPING)  # worst displacement 1, 4, 16
    free = GuideRanking(liked)(paths, 3)
    assert free.tolist() == [[5.0, 6.5, 16.5]]
    for tolerance, best in ((0.0, 0), (3.0, 1), (15.0, 2)):
        ranking = GuideRanking(liked, SmoothnessRanking(), tolerance)
        values = ranking(paths, 3)
        assert values.argmax(dim=1).tolist() == [best]
        kept = torch.isfinite(values)
        torch.testing.assert_close(values[kept], free[kept])


@pytest.mark.parametrize("weight", [0.0, 0.5, -2.0])
def test_a_sum_adds_the_guides_value_to_the_feasibility(weight: float) -> None:
    """Row by row; an infeasible candidate can be made up for."""
    liked = as_guide(lambda t: t["goal"].diff(dim=1).square().sum(dim=(1, 2)))
    paths = candidates(STEADY, CURVED, JUMPING, CURVED)
    values = SumRanking(liked, SmoothnessRanking(), weight)(paths, 2)
    feasible, pleased = [[-1.0, -4.0], [-16.0, -4.0]], [[5.0, 6.5], [16.5, 6.5]]
    expected = torch.tensor(feasible) + weight * torch.tensor(pleased)
    torch.testing.assert_close(values, expected)
