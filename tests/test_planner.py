"""Planner: how long plans are, what they are pinned to, and which one is taken."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from diffuser_policy.conditions import Conditions, Inpainting
from diffuser_policy.config import NetworkConfig, WindowConfig
from diffuser_policy.errors import ConditionError, ConfigError, HorizonError
from diffuser_policy.guides.trajectory import Trajectory
from diffuser_policy.layout import TrajectoryLayout
from diffuser_policy.normalizers import LimitsNormalizer
from diffuser_policy.planner import HorizonChoice, Planner
from diffuser_policy.ranking import Ranking
from diffuser_policy.sampler import DDIMSampler, Sampler, Samples, WarmStart
from diffuser_policy.schedule import NoiseSchedule
from diffuser_policy.testing import GaussianDenoiser, toy_config, toy_policy
from diffuser_policy.time_to_goal import TimeToGoal

LAYOUT = TrajectoryLayout(
    action_dim=2,
    observation_dim=4,
    aliases={"position": (0, 1), "velocity": (2, 3), "goal": (0, 1)},
)
NORMALIZER = LimitsNormalizer(
    torch.tensor([0.0, 0, 5, 5, 0, 0]), torch.tensor([1.0, 1, 10, 10, 2, 2])
)


class WhiteNoise(Sampler):
    """Returns its noise with the conditions applied, and counts its calls."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, int]] = []

    def sample(
        self,
        inpainting: Inpainting,
        generators: Any,
        *,
        num_candidates: int = 1,
        steering: Any = None,
        warm_start: WarmStart | None = None,
        step_noise: bool = True,
        keep_chain: bool = False,
    ) -> Samples:
        self.steering, self.warm_start = steering, warm_start
        rows, *shape = inpainting.values.shape
        self.batches.append((rows, shape[0]))
        self.step_noise = step_noise
        noise = [torch.randn(num_candidates, *shape, generator=g) for g in generators]
        chosen = inpainting.repeat(num_candidates).apply(torch.cat(noise))
        chosen = chosen.reshape(rows, num_candidates, *shape)
        return Samples(chosen, chosen[None] if keep_chain else None)


class Distance(TimeToGoal):
    """Ten env steps per normalized unit of distance."""

    def __init__(self) -> None:
        super().__init__(4, 2, width=1, max_steps=1)

    def forward(self, observations: Tensor, goals: Tensor) -> Tensor:
        off: Tensor = torch.linalg.vector_norm(observations[..., :2] - goals, dim=-1)
        return 10 * off


def make_planner(**settings: Any) -> Planner:
    defaults: dict[str, Any] = {
        "layout": LAYOUT,
        "normalizer": NORMALIZER,
        "horizon": 48,
        "min_horizon": 12,
        "stride": 3,
        "horizon_multiple": 2,
        "time_to_goal": Distance(),
    }
    return Planner(settings.pop("sampler", WhiteNoise()), **{**defaults, **settings})


def observations(*positions: tuple[float, float]) -> np.ndarray:
    return np.array([[*position, 0.5, -0.5] for position in positions], np.float32)


def generators(num_rows: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + row) for row in range(num_rows)]


START = observations((0, 0), (1, 2), (3, 3))
GOALS = np.array([[10, 0], [1, 2], [300, 3]], np.float32)


# --- lengths ----------------------------------------------------------------------


def test_fixed_plans_cover_the_training_horizon() -> None:
    planner = make_planner(horizon_choice="fixed")
    remaining = np.array([5, 0, -1])
    assert planner.planning_steps(START, GOALS, remaining).tolist() == [16, 16, 16]


@pytest.mark.parametrize(
    ("remaining", "steps"),
    [
        (-1, 16),  # no plan before: the training horizon
        (45, 16),  # 15 strides and the current observation
        (44.5, 14),
        (44, 14),  # 14.7 strides: 14 and the current one, down to an even number
        (39, 14),
        (30, 10),
        (3, 4),  # never below the shortest window of training
        (0, 4),
        (1000, 16),
    ],
)
def test_shrinking_plans_arrive_no_later_than_before(
    remaining: float, steps: int
) -> None:
    planner = make_planner(horizon_choice="shrinking")
    found = planner.planning_steps(START[:1], GOALS[:1], np.array([remaining]))
    assert found.tolist() == [steps]
    assert planner.planning_steps(START[:1], GOALS[:1]).tolist() == [16]


def test_predicted_plans_cover_the_predicted_time() -> None:
    planner = make_planner(horizon_choice="predicted")
    # Distances in normalized units: 1, 0 and 29.7.
    assert planner.predict_time(START, GOALS)[:2] == pytest.approx([10.0, 0.0])
    assert planner.planning_steps(START, GOALS).tolist() == [6, 4, 16]


def test_the_offset_moves_predicted_times_only() -> None:
    late = make_planner(horizon_choice="predicted", horizon_offset=6)
    assert late.planning_steps(START, GOALS).tolist() == [8, 4, 16]
    early = make_planner(horizon_choice="predicted", horizon_offset=-6)
    assert early.planning_steps(START, GOALS).tolist() == [4, 4, 16]
    shrinking = make_planner(horizon_choice="shrinking", horizon_offset=6)
    remaining = np.array([30])
    assert shrinking.planning_steps(START[:1], GOALS[:1], remaining).tolist() == [10]


@pytest.mark.parametrize("choice", ["fixed", "shrinking", "predicted"])
def test_without_a_goal_plans_are_of_full_length(choice: HorizonChoice) -> None:
    planner = make_planner(horizon_choice=choice)
    assert planner.planning_steps(START, None, np.array([5, 5, 5])).tolist() == [16] * 3


@pytest.mark.parametrize(
    ("choice", "steps"),
    [("fixed", [16, 16]), ("shrinking", [2, 2]), ("predicted", [6, 2])],
)
def test_without_a_shortest_window_the_network_sets_it(
    choice: HorizonChoice, steps: list[int]
) -> None:
    planner = make_planner(horizon_choice=choice, min_horizon=None)
    found = planner.planning_steps(START[:2], GOALS[:2], np.array([0, 0]))
    assert found.tolist() == steps


@pytest.mark.parametrize("horizon", [0, 5, 9, 47, -6])
def test_a_horizon_that_does_not_fit_the_network_is_refused(horizon: int) -> None:
    with pytest.raises(HorizonError, match=f"multiple of 6 env steps .* got {horizon}"):
        make_planner(horizon=horizon)


# --- plans ------------------------------------------------------------------------


def test_plans_start_here_and_end_at_the_goal() -> None:
    planner = make_planner(horizon_choice="predicted")
    plan = planner.plan(START, GOALS, generators(3))
    assert plan.lengths.tolist() == [6, 4, 16]
    assert plan.durations.tolist() == [15, 9, 45]
    np.testing.assert_allclose(plan.observations[:, 0], START, atol=1e-5)
    for row, path in enumerate(map(plan.path, range(3))):
        np.testing.assert_allclose(path[-1, :2], GOALS[row], rtol=1e-5)
        assert abs(path[-1, 2:]).max() > 1e-3  # the velocity is free
        assert len(path) == plan.lengths[row]


def test_short_plans_repeat_their_last_observation() -> None:
    planner = make_planner(horizon_choice="predicted", num_candidates=3)
    plan = planner.plan(START, GOALS, generators(3))
    for row, length in enumerate(plan.lengths):
        last = plan.candidates[row, :, length - 1 : length]
        assert (plan.candidates[row, :, length:] == last).all()
        assert (plan.actions[row, length:] == 0).all()


def test_the_goal_may_be_pinned_at_rest() -> None:
    plan = make_planner(pin_goal_velocity=True).plan(START, GOALS, generators(3))
    np.testing.assert_allclose(plan.observations[:, -1, 2:], 0, atol=1e-6)


def test_more_conditions_pin_more() -> None:
    conditions = Conditions().pin(5, "position", [2.0, 4.0]).pin(0, "velocity", [0, 1])
    plan = make_planner(num_candidates=2).plan(
        START, GOALS, generators(3), conditions=conditions
    )
    np.testing.assert_allclose(
        plan.candidates[:, :, 5, :2], np.full((3, 2, 2), [2.0, 4.0]), rtol=1e-5
    )
    # Given conditions win over the current observation.
    np.testing.assert_allclose(plan.candidates[..., 0, 2:], np.full((3, 2, 2), [0, 1]))


def test_conditions_outside_the_plan_are_refused() -> None:
    with pytest.raises(ConditionError, match="planning step 16"):
        make_planner().plan(
            START,
            GOALS,
            generators(3),
            conditions=Conditions().pin(16, "position", [0.0, 0.0]),
        )


def test_a_layout_without_goal_ignores_goals() -> None:
    layout = TrajectoryLayout(action_dim=2, observation_dim=4)
    plan = make_planner(layout=layout).plan(START, GOALS, generators(3))
    assert not np.allclose(plan.observations[:, -1, :2], GOALS)


def test_each_length_is_sampled_in_one_batch() -> None:
    sampler = WhiteNoise()
    planner = make_planner(sampler=sampler, horizon_choice="predicted")
    rows = np.concatenate([START, START, START[:1]])
    goals = np.concatenate([GOALS, GOALS, GOALS[:1]])
    planner.plan(rows, goals, generators(7))
    assert sorted(sampler.batches) == [(2, 4), (2, 16), (3, 6)]


def test_a_row_does_not_depend_on_lengths_of_others() -> None:
    planner = make_planner(horizon_choice="predicted", num_candidates=2)
    together = planner.plan(START, GOALS, generators(3))
    for row in range(3):
        alone = planner.plan(
            START[row : row + 1], GOALS[row : row + 1], generators(1, seed=row)
        )
        np.testing.assert_array_equal(alone.path(), together.path(row))


class _Last(Ranking):
    """Values candidates by their number, or by row if there is a tie to break."""

    def __call__(self, trajectory: Trajectory, num_candidates: int) -> Tensor:
        self.seen = trajectory
        rows = len(trajectory) // num_candidates
        return torch.arange(num_candidates).float().expand(rows, -1)


def test_the_highest_value_is_chosen_and_all_are_kept() -> None:
    ranking = _Last()
    plan = make_planner(num_candidates=4, ranking=ranking).plan(
        START, GOALS, generators(3)
    )
    assert plan.chosen.tolist() == [3, 3, 3]
    assert plan.values.tolist() == [[0, 1, 2, 3]] * 3
    assert plan.candidates.shape == (3, 4, 16, 4)
    np.testing.assert_array_equal(plan.candidates[:, 3], plan.observations)
    seen = ranking.seen
    assert seen.denoising_step == -1
    assert seen.desired_goal is not None
    position = seen.position.reshape(3, 4, 16, 2)
    np.testing.assert_allclose(position, plan.candidates[..., :2], rtol=1e-6)
    np.testing.assert_array_equal(
        seen.desired_goal.reshape(3, 4, 2)[:, 3], GOALS.astype(np.float32)
    )


def test_actions_belong_to_the_chosen_candidate() -> None:
    sampler = WhiteNoise()
    plan = make_planner(sampler=sampler, num_candidates=4, ranking=_Last()).plan(
        START[:1], GOALS[:1], generators(1)
    )
    noise = torch.randn(4, 16, 6, generator=generators(1)[0])
    np.testing.assert_array_equal(plan.actions[0], noise[3, :, :2])


def test_ties_go_to_the_first() -> None:
    plan = make_planner(num_candidates=3).plan(START, GOALS, generators(3))
    assert plan.chosen.tolist() == [0, 0, 0]


def test_the_chain_is_in_environment_units() -> None:
    plan = make_planner(num_candidates=2).plan(
        START, GOALS, generators(3), keep_chain=True
    )
    assert plan.chain is not None
    np.testing.assert_allclose(plan.chain[-1], plan.candidates, rtol=1e-5)
    assert make_planner().plan(START, GOALS, generators(3)).chain is None


def test_a_chain_needs_plans_of_one_length() -> None:
    planner = make_planner(horizon_choice="predicted")
    with pytest.raises(ConditionError, match=r"one length.*\[4, 6, 16\]"):
        planner.plan(START, GOALS, generators(3), keep_chain=True)


def test_states_only_plans_have_no_actions() -> None:
    policy = toy_policy(
        toy_config(window=WindowConfig(horizon=16, min_horizon=8, actions=False))
    )
    plan = policy.planner.plan(START, GOALS, generators(3))
    assert plan.actions.shape == (3, 16, 0)


def test_step_noise_is_passed_on() -> None:
    sampler = WhiteNoise()
    planner = make_planner(sampler=sampler)
    planner.plan(START, GOALS, generators(3), step_noise=False)
    assert sampler.step_noise is False


def test_repr_names_sizes() -> None:
    plan = make_planner(num_candidates=2).plan(START, GOALS, generators(3))
    assert repr(plan) == (
        "Plan(3 rows of up to 16 planning steps, stride 3, 2 candidates)"
    )


def test_plans_of_an_exact_denoiser_pass_through_a_waypoint() -> None:
    """A Gaussian random walk pinned at both ends and at a waypoint in between.

    Inpainting is an approximation, so the mean is compared loosely with the truth,
    straight lines between the pins: it leans the right way on both sides.
    """
    horizon = 9
    steps = torch.arange(horizon)
    walk = torch.minimum(steps[:, None], steps) + 1.0
    denoiser = GaussianDenoiser(torch.zeros(horizon, 1), walk / 10, NoiseSchedule(200))
    planner = Planner(
        DDIMSampler(denoiser),
        layout=TrajectoryLayout(
            action_dim=0, observation_dim=1, aliases={"goal": (0,)}
        ),
        normalizer=LimitsNormalizer(torch.zeros(1), torch.ones(1)),
        horizon=horizon,
        num_candidates=500,
    )
    plan = planner.plan(
        np.zeros((1, 1)),
        np.array([[1.0]]),
        generators(1),
        conditions=Conditions().pin(4, "observation", [-0.5]),
    )
    assert (plan.candidates[0, :, 4, 0] == -0.5).all()
    mean = plan.candidates[0, :, :, 0].mean(axis=0)
    assert mean[3] < mean[2] < 0
    assert mean[4] < mean[5] < mean[6] < mean[8]


# --- refusals ---------------------------------------------------------------------


def test_choices_that_lack_what_they_need_are_refused() -> None:
    with pytest.raises(ConfigError, match="needs a time-to-goal network"):
        make_planner(horizon_choice="predicted", time_to_goal=None)
    with pytest.raises(ConfigError, match="no time-to-goal network"):
        make_planner(time_to_goal=None).predict_time(START, GOALS)
    with pytest.raises(ConfigError, match="num_candidates must be positive, got 0"):
        make_planner(num_candidates=0)
    with pytest.raises(ConfigError, match="alias 'velocity'"):
        make_planner(
            layout=TrajectoryLayout(action_dim=2, observation_dim=4),
            pin_goal_velocity=True,
        )


def test_settings_that_lack_what_they_need_are_refused() -> None:
    config = toy_config(time_to_goal=None)
    for setting in ({"horizon": "predicted"}, {"ranking": "time_to_goal"}):
        with pytest.raises(ConfigError, match="time-to-goal network"):
            toy_policy(config).with_settings(**setting)


def test_a_window_that_the_network_cannot_take_is_refused() -> None:
    config = toy_config(
        window=WindowConfig(horizon=18),
        network=NetworkConfig(dim=8, multipliers=(1, 2, 4)),
    )
    with pytest.raises(HorizonError, match="multiple of 4"):
        toy_policy(config)
