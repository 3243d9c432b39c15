"""Planner: how long plans are, what they are pinned to, and which one is taken."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from diffuser_policy.columns.layout import TrajectoryLayout
from diffuser_policy.columns.normalizers import LimitsNormalizer
from diffuser_policy.config import NetworkConfig, WindowConfig
from diffuser_policy.diffusion.conditions import Conditions
from diffuser_policy.diffusion.sampler import DDIMSampler
from diffuser_policy.diffusion.schedule import NoiseSchedule
from diffuser_policy.errors import (
    ConditionError,
    ConfigError,
    HorizonError,
    MemoryLimitError,
    ObservationError,
)
from diffuser_policy.guides.trajectory import Trajectory
from diffuser_policy.planning.horizons import Horizons
from diffuser_policy.planning.planner import MOST_AT_ONCE, Planner, Request
from diffuser_policy.planning.ranking import Ranking
from diffuser_policy.testing import GaussianDenoiser, toy_config, toy_policy
from tests.planner_helpers import (
    GOALS,
    START,
    WhiteNoise,
    generators,
    make_planner,
    observations,
)
from tests.policy_helpers import observe

# --- plans ------------------------------------------------------------------------


def test_plans_start_here_and_end_at_the_goal() -> None:
    planner = make_planner(horizon={"choice": "predicted"})
    plan = planner.plan(START, GOALS, generators(3))
    assert plan.lengths.tolist() == [6, 4, 16]
    assert plan.durations.tolist() == [15, 9, 45]
    np.testing.assert_allclose(plan.observations[:, 0], START, atol=1e-5)
    for row, path in enumerate(map(plan.path, range(3))):
        np.testing.assert_allclose(path[-1, :2], GOALS[row], rtol=1e-5)
        assert abs(path[-1, 2:]).max() > 1e-3  # the velocity is free
        assert len(path) == plan.lengths[row]


def test_short_plans_repeat_their_last_observation() -> None:
    planner = make_planner(horizon={"choice": "predicted"}, num_candidates=3)
    plan = planner.plan(START, GOALS, generators(3))
    for row, length in enumerate(plan.lengths):
        last = plan.candidates[row, :, length - 1 : length]
        assert (plan.candidates[row, :, length:] == last).all()
        assert (plan.actions[row, length:] == 0).all()


def test_the_goal_may_be_pinned_at_rest() -> None:
    plan = make_planner(pin_goal_velocity=True).plan(START, GOALS, generators(3))
    np.testing.assert_allclose(plan.observations[:, -1, 2:], 0, atol=1e-6)


def test_more_conditions_pin_more() -> None:
    conditions = Conditions().pin(5, "position", [2.0, 4.0]).pin(-1, "velocity", [0, 1])
    plan = make_planner(num_candidates=2).plan(
        START, GOALS, generators(3), conditions=conditions
    )
    np.testing.assert_allclose(
        plan.candidates[:, :, 5, :2], np.full((3, 2, 2), [2.0, 4.0]), rtol=1e-5
    )
    np.testing.assert_allclose(plan.candidates[..., -1, 2:], np.full((3, 2, 2), [0, 1]))


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        (Conditions().pin(0, "position", [9.0, 9.0]), "'observation' at .* 0 and on"),
        (Conditions().pin(-1, "goal", [9.0, 9.0]), "'goal' at planning step -1 and on"),
        (Conditions().pin(15, "position", GOALS[::-1]), "to 10 and 300. Pin"),
        (
            Conditions().pin(3, "position", [1.0, 2.0]).pin(3, "position", [1.0, 3.0]),
            "column 3 of the trajectory to 2 and 3. Pin each entry once",
        ),
        (
            Conditions().pin(3, "position", [0.0, 0.0])
            | Conditions().pin(-13, "observation", [1.0, 0.0, 0.0, 0.0]),
            "'position' at planning step 3 and on 'observation' at step -13 clash",
        ),
    ],
)
def test_conditions_that_clash_are_refused_before_noise_is_drawn(
    conditions: Conditions, message: str
) -> None:
    planner, sources = make_planner(), generators(3)
    with pytest.raises(ConditionError, match=message):
        planner.plan(START, GOALS, sources, conditions=conditions)
    for drawn, fresh in zip(sources, generators(3), strict=True):
        assert torch.equal(drawn.get_state(), fresh.get_state())


def test_the_same_value_may_be_pinned_twice() -> None:
    planner = make_planner(horizon={"choice": "predicted"}, num_candidates=2)
    plain = planner.plan(START, GOALS, generators(3))
    again = Conditions().pin(0, "position", START[:, :2]).pin(-1, "goal", GOALS)
    plan = planner.plan(START, GOALS, generators(3), conditions=again | again)
    np.testing.assert_array_equal(plan.candidates, plain.candidates)


def test_conditions_outside_the_plan_are_refused() -> None:
    with pytest.raises(ConditionError, match="planning step 16"):
        make_planner().plan(
            START,
            GOALS,
            generators(3),
            conditions=Conditions().pin(16, "position", [0.0, 0.0]),
        )


@pytest.mark.parametrize("number", [2, 4])
def test_conditions_for_other_rows_are_refused(number: int) -> None:
    """As many as one sampling call has rows (2 of length 16) must not do."""
    planner = make_planner(horizon={"choice": "predicted"})
    goals = np.array([GOALS[0], GOALS[0], GOALS[2]])
    conditions = Conditions().pin(3, "position", torch.zeros(number, 2))
    with pytest.raises(ConditionError, match=f"for {number} plans, and there are 3"):
        planner.plan(START, goals, generators(3), conditions=conditions)


def test_one_row_of_values_pins_all_plans() -> None:
    planner = make_planner(horizon={"choice": "predicted"})
    conditions = Conditions().pin(2, "position", torch.tensor([[2.0, 4.0]]))
    plan = planner.plan(START, GOALS, generators(3), conditions=conditions)
    np.testing.assert_allclose(plan.observations[:, 2, :2], [[2.0, 4.0]] * 3, rtol=1e-5)


def test_a_layout_without_goal_ignores_goals() -> None:
    layout = TrajectoryLayout(action_dim=2, observation_dim=4)
    plan = make_planner(layout=layout).plan(START, GOALS, generators(3))
    assert not np.allclose(plan.observations[:, -1, :2], GOALS)


def test_each_length_is_sampled_in_one_batch() -> None:
    sampler = WhiteNoise()
    planner = make_planner(sampler, horizon={"choice": "predicted"})
    rows = np.concatenate([START, START, START[:1]])
    goals = np.concatenate([GOALS, GOALS, GOALS[:1]])
    planner.plan(rows, goals, generators(7))
    assert sorted(sampler.batches) == [(2, 4), (2, 16), (3, 6)]


def test_neighbouring_lengths_are_sampled_apart_if_one_starts_warm() -> None:
    request = Request(
        observations=START[:2],
        goals=None,
        aims=None,
        generators=generators(2),
        lengths=np.array([15, 16]),
        warm=np.array([True, False]),
        previous=None,
        conditions=None,
        step_noise=True,
        keep_chain=False,
    )
    batches = request.batches(np.arange(2), MOST_AT_ONCE)
    assert [rows.tolist() for rows in batches] == [[0], [1]]


def test_a_row_does_not_depend_on_lengths_of_others() -> None:
    planner = make_planner(horizon={"choice": "predicted"}, num_candidates=2)
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
    plan = make_planner(sampler, num_candidates=4, ranking=_Last()).plan(
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
    planner = make_planner(horizon={"choice": "predicted"})
    with pytest.raises(ConditionError, match=r"one length.*\[4, 6, 16\]"):
        planner.plan(START, GOALS, generators(3), keep_chain=True)


def test_nothing_to_plan_for_is_refused() -> None:
    with pytest.raises(ObservationError, match=r"one row of .* shape \(0, 4\)"):
        make_planner().plan(START[:0], GOALS[:0], [])


@pytest.mark.parametrize("choice", ["fixed", "predicted"])
@pytest.mark.parametrize(
    ("rows", "goals", "message"),
    [
        (START[0], GOALS, r"observations \[rows, 4\], got the shape \(4,\)"),
        (START[:, :3], GOALS, r"\[rows, 4\], got the shape \(3, 3\)"),
        (START[None], GOALS, r"\[rows, 4\], got the shape \(1, 3, 4\)"),
        (START, GOALS[:1], r"a goal for each .* \[3, 2\], got the shape \(1, 2\)"),
        (START, GOALS[0], r"\[3, 2\], got the shape \(2,\)"),
        (START, START, r"\[3, 2\], got the shape \(3, 4\)"),
        (START * [[1], [np.nan], [1]], GOALS, r"observations hold NaN .* rows \[1\]"),
        (START, GOALS * [[1], [1], [np.inf]], r"goals hold NaN .* rows \[2\]"),
    ],
)
def test_rows_of_another_shape_or_without_numbers_are_refused(
    rows: np.ndarray, goals: np.ndarray, message: str, choice: str
) -> None:
    planner = make_planner(horizon={"choice": choice})
    with pytest.raises(ObservationError, match=message):
        planner.plan(rows, goals, generators(3))


def test_goals_that_only_guides_see_have_any_width_and_a_row_each() -> None:
    layout = TrajectoryLayout(action_dim=2, observation_dim=4)
    planner = make_planner(layout=layout)
    assert len(planner.plan(START, START, generators(3))) == 3
    with pytest.raises(ObservationError, match=r"\[3, goal\], got the shape \(1, 2\)"):
        planner.plan(START, GOALS[:1], generators(3))


@pytest.mark.parametrize("number", [1, 2, 4])
def test_every_row_has_a_generator(number: int) -> None:
    with pytest.raises(ConfigError, match=f"each row .* got {number} for 3"):
        make_planner().plan(START, GOALS, generators(number))


def test_states_only_plans_have_no_actions() -> None:
    policy = toy_policy(
        toy_config(window=WindowConfig(horizon=16, min_horizon=8, actions=False))
    )
    plan = policy.planner.plan(START, GOALS, generators(3))
    assert plan.actions.shape == (3, 16, 0)


def test_step_noise_is_passed_on() -> None:
    sampler = WhiteNoise()
    planner = make_planner(sampler)
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
    layout = TrajectoryLayout(action_dim=0, observation_dim=1, aliases={"goal": (0,)})
    normalizer = LimitsNormalizer(torch.zeros(1), torch.ones(1))
    planner = Planner(
        DDIMSampler(denoiser),
        layout=layout,
        normalizer=normalizer,
        horizons=Horizons(horizon, layout=layout, normalizer=normalizer),
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
    with pytest.raises(ConfigError, match="num_candidates must be positive, got 0"):
        make_planner(num_candidates=0)
    with pytest.raises(ConfigError, match="columns named 'velocity'"):
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


# --- many at once -------------------------------------------------------------------


@pytest.mark.parametrize("num_candidates", [1, 8])
def test_ten_thousand_observations_are_planned_for_in_parts(
    num_candidates: int,
) -> None:
    sampler = WhiteNoise()
    planner = make_planner(sampler, num_candidates=num_candidates)
    many = np.tile(observations((0, 0)), (10_000, 1))
    plan = planner.plan(many, None, generators(10_000))
    assert len(plan) == 10_000
    assert sum(rows for rows, _ in sampler.batches) == 10_000
    assert max(rows for rows, _ in sampler.batches) * num_candidates <= MOST_AT_ONCE
    last = planner.plan(many[-1:], None, generators(1, seed=9_999))
    np.testing.assert_array_equal(plan.observations[-1:], last.observations)


@pytest.mark.parametrize("num_candidates", [1, 8])
def test_parts_make_the_same_plans_as_the_whole(
    num_candidates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight candidates are more than a part has: each row is a part of its own."""
    policy, seen = toy_policy(num_candidates=num_candidates), observe(7)
    whole = policy.plan(seen, keep_chain=True)
    monkeypatch.setattr("diffuser_policy.planning.planner.MOST_AT_ONCE", 4)
    parts = policy.plan(seen, keep_chain=True)
    assert whole.chain is not None
    assert parts.chain is not None
    np.testing.assert_allclose(parts.candidates, whole.candidates, atol=1e-4)
    np.testing.assert_allclose(parts.chain, whole.chain, atol=1e-4)
    np.testing.assert_array_equal(parts.chosen, whole.chosen)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to …"),
    ],
)
def test_a_lack_of_memory_says_what_to_do(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    planner = make_planner(num_candidates=3)

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(planner.sampler, "sample", fail)
    with pytest.raises(MemoryLimitError, match=r"for 3 observations with 3 cand.*Pass"):
        planner.plan(START, GOALS, generators(3))
    monkeypatch.undo()
    planner.plan(START, GOALS, generators(3))
