"""Steadiness: what is left of a plan competes with the new ones, with a bonus."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from torch import Tensor

from diffuser_policy.columns.layout import TrajectoryLayout
from diffuser_policy.config import PlannerConfig, WindowConfig
from diffuser_policy.errors import ConfigError
from diffuser_policy.guides.guide import as_guide
from diffuser_policy.guides.trajectory import Trajectory
from diffuser_policy.planning.plan import Following, Plan
from diffuser_policy.planning.ranking import GuideRanking, Ranking
from diffuser_policy.planning.state import PolicyState
from diffuser_policy.policy import DiffuserPolicy
from diffuser_policy.testing import check_policy, toy_config, toy_dataset, toy_policy
from tests.planner_helpers import (
    GOALS,
    LAYOUT,
    START,
    WhiteNoise,
    generators,
    make_planner,
)
from tests.policy_helpers import copied, observe, unchanged

FREE = TrajectoryLayout(
    action_dim=2, observation_dim=4, aliases={"position": (0, 1), "velocity": (2, 3)}
)
SURE = 1e6  # no new plan is better by that much
STEPS, STRIDE = 16, 3


class EndsRight(Ranking):
    """Values candidates by the first coordinate of their last step."""

    def __call__(self, trajectory: Trajectory, num_candidates: int) -> Tensor:
        ends: Tensor = trajectory.position[:, -1, 0]
        return ends.reshape(-1, num_candidates)


class NearGoal(Ranking):
    """Values candidates by the distance of their last step to the desired goal."""

    def __call__(self, trajectory: Trajectory, num_candidates: int) -> Tensor:
        assert trajectory.desired_goal is not None
        off = trajectory.position[:, -1] - trajectory.desired_goal[:, 0]
        distances: Tensor = off.norm(dim=-1)
        return -distances.reshape(-1, num_candidates)


def running(progress: Any = (6.0, 7.5, 0.0), lengths: Any = (16, 16, 16)) -> Following:
    """Return plans of which every entry has its own value; linear between steps."""
    time = np.arange(STEPS, dtype=np.float64)[None, :, None]
    row = np.arange(3)[:, None, None]
    slopes = np.array([1.0, -2.0, 0.5, 3.0, 0.25, -0.75])
    joined = 10 * row + slopes * time
    return Following(
        observations=joined[..., 2:],
        actions=joined[..., :2],
        lengths=np.array(lengths),
        progress=np.array(progress),
        stride=STRIDE,
    )


def expected(previous: Following, row: int, times: np.ndarray) -> np.ndarray:
    """Return a row of `running` at env steps of it, `[times, 6]`, actions first."""
    planned = np.concatenate(
        [previous.actions[row], previous.observations[row]], axis=1
    )
    at = np.minimum(previous.progress[row] + times, previous.durations[row]) / STRIDE
    steps = np.arange(STEPS)
    return np.stack([np.interp(at, steps, planned[:, c]) for c in range(6)], axis=1)


def plan(previous: Following | None = None, **settings: Any) -> Plan:
    """Return plans without goals, of three rows with three candidates each."""
    chosen: dict[str, Any] = {
        "layout": FREE,
        "num_candidates": 3,
        "ranking": EndsRight(),
        "steadiness": SURE,
    }
    planner = make_planner(**{**chosen, **settings})
    return planner.plan(START, None, generators(3), previous=previous)


def same(a: Plan, b: Plan) -> bool:
    names = ("observations", "actions", "lengths", "values", "chosen", "candidates")
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in names)


# --- one more candidate -------------------------------------------------------------


def test_what_is_left_is_one_more_candidate_that_begins_here() -> None:
    previous = running()
    found = plan(previous)
    assert found.candidates.shape == (3, 4, STEPS, 4)
    assert found.values.shape == (3, 4)
    assert found.chosen.tolist() == [3, 3, 3]
    for row in range(3):
        left = expected(previous, row, STRIDE * np.arange(STEPS))
        np.testing.assert_allclose(found.actions[row], left[:, :2], atol=1e-4)
        np.testing.assert_allclose(found.observations[row, 0], START[row], atol=1e-5)
        np.testing.assert_allclose(
            found.observations[row, 1:], left[1:, 2:], atol=1e-4, rtol=1e-5
        )
    np.testing.assert_array_equal(found.observations, found.candidates[:, 3])


def test_new_candidates_are_those_of_a_planner_without() -> None:
    """Nothing is drawn for what is left, and `None` is as if there were none."""
    before = plan(steadiness=None)
    assert same(before, plan(running(), steadiness=None))
    assert same(before, plan(None))
    after = plan(running())
    np.testing.assert_array_equal(after.candidates[:, :3], before.candidates)
    np.testing.assert_array_equal(after.values[:, :3], before.values)


@pytest.mark.parametrize("beyond", [-0.01, 0.01])
def test_a_new_plan_has_to_be_better_by_that_much(beyond: float) -> None:
    previous = running()
    free = plan(previous, steadiness=0.0)
    gains = free.values[:, :3].max(axis=1) - free.values[:, 3]
    assert len({*gains.tolist()}) == 3
    found = plan(previous, steadiness=float(gains[0]) + beyond)
    best = int(free.values[0, :3].argmax())
    assert found.chosen[0] == (3 if beyond > 0 else best)
    np.testing.assert_array_equal(
        found.observations[0], found.candidates[0, found.chosen[0]]
    )


def test_its_value_is_that_of_the_ranking_and_the_bonus() -> None:
    previous = running()
    found = plan(previous, steadiness=2.5)
    ends = [expected(previous, r, np.array([45.0]))[0, 2] for r in range(3)]
    np.testing.assert_allclose(found.values[:, 3], np.array(ends) + 2.5, rtol=1e-5)
    np.testing.assert_allclose(found.values[:, :3], found.candidates[:, :3, -1, 0])


def test_rows_without_a_plan_never_get_one() -> None:
    previous = running(lengths=(16, 0, 16))
    found, fresh = plan(previous, steadiness=1e30), plan(steadiness=None)
    assert found.chosen[[0, 2]].tolist() == [3, 3]
    assert found.values[1, 3] == -np.inf
    assert found.chosen[1] == fresh.chosen[1]
    np.testing.assert_array_equal(found.observations[1], fresh.observations[1])
    np.testing.assert_array_equal(found.candidates[1, 3], found.candidates[1, 0])
    assert found.num_candidates.tolist() == [4, 3, 4]
    nobody = plan(running(lengths=(0, 0, 0)), steadiness=1e30)
    assert same(nobody, fresh)
    assert nobody.num_candidates.tolist() == [3, 3, 3]


@pytest.mark.parametrize("failed", [(0, 0, 0), (0, 99, 0)])
def test_the_chain_of_what_is_left_is_itself(failed: tuple[int, ...]) -> None:
    """Also where some rows have other numbers of candidates than others."""
    ranking = EndsRight()
    ranking.good_enough = lambda stride: -1e9 * stride  # type: ignore[method-assign]
    planner = make_planner(
        num_candidates=3, ranking=ranking, steadiness=SURE, satisficing=True
    )
    found = planner.plan(
        START,
        GOALS,
        generators(3),
        previous=running(lengths=(16, 16, 0)),
        failed=np.array(failed),
        keep_chain=True,
    )
    assert found.num_candidates.tolist() == [2, 2 if not any(failed) else 4, 1]
    assert found.chain is not None
    np.testing.assert_allclose(found.chain[-1], found.candidates, rtol=1e-5)
    for row in (0, 1):
        left = found.chain[:, row, found.chosen[row]]
        np.testing.assert_allclose(left, left[:1].repeat(len(left), 0), rtol=1e-6)


@pytest.mark.parametrize("end", [-900.0, 900.0])
def test_what_is_left_has_to_be_feasible_beside_the_others(end: float) -> None:
    """A guide likes the running plan best; feasibility is to end on the right."""
    liked = as_guide(lambda t: t["velocity"][:, -1, 0])
    ranking = GuideRanking(liked, EndsRight(), tolerance=100.0)
    previous = running(lengths=(16, 0, 16))
    previous.observations[:, -1, 0] = end
    found = plan(previous, ranking=ranking, steadiness=10.0)
    if end < 0:
        assert (found.values[:, 3] == -np.inf).all()
        assert np.isfinite(found.values[:, :3]).any(axis=1).all()
    else:
        assert (found.values[[0, 2], :3] == -np.inf).all()
        assert found.chosen[[0, 2]].tolist() == [3, 3]
    fresh = plan(ranking=ranking, steadiness=None)
    assert found.chosen[1] == fresh.chosen[1]
    np.testing.assert_array_equal(found.values[1, :3], fresh.values[1])


def test_states_only_plans_have_something_left_as_well() -> None:
    policy = toy_policy(
        toy_config(
            time_to_goal=None,
            window=WindowConfig(horizon=16, actions=False, hindsight_goal="none"),
        ),
        flat=toy_dataset(goals=False),
        steadiness=SURE,
        replan_interval=1,
    )
    going = Following(
        observations=running().observations / 20,
        actions=np.zeros((3, STEPS, 0)),
        lengths=np.full(3, STEPS),
        progress=np.ones(3),
        stride=1,
    )
    found = policy.planner.plan(START, None, generators(3), previous=going)
    np.testing.assert_allclose(
        found.observations[:, 1:-1], going.observations[:, 2:], atol=1e-5
    )


# --- goals, lengths, warm starts ------------------------------------------------------


def test_plans_to_a_goal_are_stretched_to_their_new_length() -> None:
    previous = running(progress=(6.0, 7.5, 0.0))
    found = plan_to_goals(previous, choice="predicted")
    assert found.lengths.tolist() == [6, 4, 16]
    assert found.candidates.shape == (3, 4, STEPS, 4)
    assert found.chosen.tolist() == [3, 3, 3]
    for row, length in enumerate(found.lengths):
        share = np.arange(length) / (length - 1)
        rest = previous.durations[row] - previous.progress[row]
        left = expected(previous, row, rest * share)
        path = found.path(row)
        np.testing.assert_allclose(path[0], START[row], atol=1e-5)
        np.testing.assert_allclose(path[1:], left[1:, 2:], atol=1e-4, rtol=1e-5)
        assert (found.observations[row, length:] == path[-1]).all()


def plan_to_goals(
    previous: Following | None, *, choice: str = "fixed", **settings: Any
) -> Plan:
    chosen: dict[str, Any] = {"num_candidates": 3, "steadiness": SURE}
    planner = make_planner(horizon={"choice": choice}, **{**chosen, **settings})
    return planner.plan(START, GOALS, generators(3), previous=previous)


def test_a_row_does_not_depend_on_the_plans_of_others() -> None:
    previous = running(lengths=(16, 0, 9), progress=(6.0, 3.0, 2.0))
    settings: dict[str, Any] = {"ranking": EndsRight(), "steadiness": 1.0}
    together = plan_to_goals(previous, choice="predicted", **settings)
    planner = make_planner(
        horizon={"choice": "predicted"}, num_candidates=3, **settings
    )
    for row in range(3):
        alone = planner.plan(
            START[[row]],
            GOALS[[row]],
            generators(1, seed=row),
            previous=previous.rows(np.array([row])),
        )
        assert alone.chosen[0] == together.chosen[row]
        np.testing.assert_array_equal(alone.path(), together.path(row))
        count = alone.num_candidates[0]
        assert count == together.num_candidates[row]
        np.testing.assert_array_equal(alone.values[0], together.values[row, :count])


@pytest.mark.parametrize("layout", [LAYOUT, FREE])
def test_what_is_left_is_valued_by_the_goal_of_its_row(
    layout: TrajectoryLayout,
) -> None:
    """Whether the goal is pinned at new plans, or only shown to guides."""
    previous = running()
    found = plan_to_goals(
        previous, layout=layout, ranking=NearGoal(), steadiness=0.0, num_candidates=2
    )
    ends = np.stack([expected(previous, r, np.array([45.0]))[0, 2:4] for r in range(3)])
    off = np.linalg.norm(ends - GOALS, axis=1)
    np.testing.assert_allclose(found.values[:, 2], -off, rtol=1e-5)


def test_warm_and_cold_rows_compete_in_batches_of_their_own() -> None:
    sampler = WhiteNoise()
    planner = make_planner(
        sampler,
        layout=FREE,
        num_candidates=2,
        warm_start=0.5,
        steadiness=SURE,
    )
    previous = running(lengths=(16, 0, 16))
    found = planner.plan(START, None, generators(3), previous=previous)
    assert sorted(sampler.batches) == [(1, STEPS), (2, STEPS)]
    assert found.candidates.shape == (3, 3, STEPS, 4)
    assert found.num_candidates.tolist() == [3, 2, 3]
    assert found.chosen.tolist() == [2, 0, 2]


# --- in a policy ----------------------------------------------------------------------


def steady_policy(steadiness: float | None = SURE, **settings: Any) -> DiffuserPolicy:
    config = toy_config(
        time_to_goal=None,
        window=WindowConfig(horizon=16, hindsight_goal="none"),
        planner=PlannerConfig(
            num_sampling_steps=2, num_candidates=3, steadiness=steadiness
        ),
    )
    flat = toy_dataset(goals=False)
    return toy_policy(config, flat=flat, **{"replan_interval": 2, **settings})


def drive(policy: DiffuserPolicy, num_calls: int) -> list[PolicyState]:
    """Return the states of calls with an observation that never changes."""
    states: list[PolicyState] = []
    state = policy.initial_state(2, np.arange(2))
    for _ in range(num_calls):
        _, state = policy.predict(observe(2)["observation"], state)
        states.append(state)
    return states


def test_a_steady_policy_goes_on_with_its_plan() -> None:
    first, *_, last = states = drive(steady_policy(), 9)
    assert last.num_plans.tolist() == [5, 5]
    assert last.ages.tolist() == [0, 0]
    assert [state.progress[0] for state in states] == [0, 1, 0, 1, 0, 1, 0, 1, 0]
    np.testing.assert_allclose(
        last.observations[:, 1:8], first.observations[:, 9:], atol=1e-5
    )
    np.testing.assert_allclose(last.actions[:, :8], first.actions[:, 8:], atol=1e-5)
    fickle = drive(steady_policy(None), 9)[-1]
    off = np.abs(fickle.observations[:, 1:8] - first.observations[:, 9:])
    assert off.max() > 0.01


@pytest.mark.parametrize("settings", [{}, {"warm_start": 0.5}])
def test_finished_plans_are_not_gone_on_with(settings: dict[str, Any]) -> None:
    policy = steady_policy(**settings).with_settings(replan_interval=None)
    state = drive(policy, 1)[0]._replace(progress=np.array([14.0, 15.0]))
    rows = observe(2)["observation"]
    _, after = policy.predict(rows, state)
    assert after.ages.tolist() == [1, 0]
    assert after.num_plans.tolist() == [1, 2]
    unsteady = steady_policy(None, **settings).with_settings(replan_interval=None)
    _, fresh = unsteady.predict(rows, state)
    np.testing.assert_array_equal(after.observations[1], fresh.observations[1])
    stands = np.broadcast_to(state.observations[1, -1], (15, 4))
    assert np.abs(after.observations[1, 1:] - stands).max() > 0.01


def test_a_plan_that_was_strayed_from_or_of_another_episode_is_given_up() -> None:
    policy = steady_policy(replan_deviation=0.5)
    fresh = steady_policy(None, replan_deviation=0.5)
    state = drive(policy, 2)[-1]
    rows = state.observations[:, 1].copy()
    rows[0, 0] += 5
    flags = np.array([False, True])
    for each in (policy, fresh):
        each.set_random_seed(0)
    after, other = (each.predict(rows, state, flags)[1] for each in (policy, fresh))
    np.testing.assert_array_equal(after.observations, other.observations)
    assert after.ages.tolist() == [0, 0]


def test_the_contract_is_kept_and_the_state_not_written_to() -> None:
    policy = steady_policy(0.1)
    check_policy(policy)
    rows = observe(2)["observation"]
    _, state = policy.predict(rows)
    kept = copied(state)
    for part in state:
        part.setflags(write=False)
    first, again = (policy.predict(rows, state)[1] for _ in range(2))
    first, again = (
        policy.predict(rows, each, None, True)[1] for each in (first, again)
    )
    assert unchanged(first, again)
    assert unchanged(kept, state)


@pytest.mark.parametrize("value", [-0.1, np.nan, np.inf, -np.inf, "0.1"])
def test_impossible_settings_are_refused(value: Any) -> None:
    if isinstance(value, float):
        with pytest.raises(ConfigError, match="steadiness must be"):
            PlannerConfig(steadiness=value)
    policy = steady_policy(0.0)
    with pytest.raises(ConfigError, match="steadiness"):
        policy.with_settings(steadiness=value)
    assert policy.planner.steadiness == 0.0
    assert policy.with_settings(steadiness=None).planner.steadiness is None
