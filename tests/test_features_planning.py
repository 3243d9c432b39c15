"""Planning, choosing and acting in derived columns; goals that plans don't pin."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from torch import Tensor

from diffuser_policy.columns.features import (
    FeaturizerError,
)
from diffuser_policy.config import (
    ExecutionConfig,
    PlannerConfig,
)
from diffuser_policy.errors import ConfigError, MemoryLimitError
from diffuser_policy.evaluation import evaluate
from diffuser_policy.guides.trajectory import Trajectory
from diffuser_policy.plotting import Scene
from diffuser_policy.policy import DiffuserPolicy
from diffuser_policy.testing import (
    check_policy,
    toy_dataset,
    toy_policy,
)
from tests.features_helpers import Turned, config, register_known, turned_policy
from tests.point_env import POINT, PointEnv
from tests.policy_helpers import count_plans, observe


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    register_known(monkeypatch)


# --- planning and acting ------------------------------------------------------------


def test_plans_start_at_the_planning_columns_of_the_observation() -> None:
    rows = observe(3)["observation"]
    plan = turned_policy().plan(rows)
    assert plan.candidates.shape == (3, 4, 16, 3)
    np.testing.assert_allclose(
        plan.observations[:, 0], Turned().features(rows), atol=1e-5
    )


def test_the_way_back_leads_along_the_plan() -> None:
    policy, rows = turned_policy(), observe(3)["observation"]
    state = policy.initial_state(3, np.arange(3))
    plan = policy.plan(rows, state=state)
    actions, state = policy.predict(rows, state)
    expected = 5 * (-plan.observations[:, 1, :2] - rows[:, :2])
    np.testing.assert_allclose(actions, np.clip(expected, -1, 1), atol=1e-5)
    np.testing.assert_array_equal(state.observations, plan.observations)


def test_the_contract_of_predict_is_kept() -> None:
    policy = turned_policy(replan_interval=4)
    assert "row_independence" in check_policy(policy)
    assert "refuses_nan" in check_policy(policy, PointEnv().observation_space)


def test_a_copying_featurizer_plans_and_acts_bit_for_bit_as_none() -> None:
    """The detour through planning columns changes nothing by itself."""
    tracking: dict[str, Any] = {
        "execution": ExecutionConfig(position_gain=10.0, replan_deviation=0.2),
        "planner": PlannerConfig(num_sampling_steps=2, num_candidates=2),
    }
    flat, rows = toy_dataset(goals=False), observe(3)["observation"]
    runs = []
    for name in (None, "copied"):
        policy = toy_policy(config(name, **tracking), flat=flat)
        state, seen = None, []
        for shift in (0.0, 0.1, 0.5):
            state = state or policy.initial_state(3, np.arange(3))
            action, state = policy.predict(rows + np.float32(shift), state)
            seen.append(action)
        runs.append((np.array(seen), state))
    (plain, plain_state), (copied, copied_state) = runs
    np.testing.assert_array_equal(plain, copied)
    for field in ("observations", "progress", "num_plans", "ages"):
        a, b = getattr(plain_state, field), getattr(copied_state, field)
        np.testing.assert_array_equal(a, b, err_msg=field)


def test_deviation_is_measured_in_planning_columns() -> None:
    """Turned, an observation is as far from the plan as it is; unturned, it is not."""
    policy = turned_policy(replan_deviation=0.3)
    made = count_plans(policy)
    row = observe()["observation"] + np.float32(2)
    _, state = policy.predict(row)
    planned = state.observations[0, 1]
    back = np.concatenate([-planned[:2], row[2:]])
    _, state = policy.predict(back, state)
    assert made == [1]
    _, state = policy.predict(back + np.float32(1), state)
    assert made == [1, 1]


# --- goals that are not pinned --------------------------------------------------------


def follow_goals(policy: DiffuserPolicy, *goals: Any) -> list[int]:
    """Return the number of plans that each call made, with goals given in turn."""
    made, state, counts = count_plans(policy), None, []
    for goal in goals:
        before = len(made)
        seen = observe(2)
        if goal is not None:
            seen = {**seen, "desired_goal": np.full((2, np.size(goal)), goal)}
        _, state = policy.predict(
            seen if goal is not None else seen["observation"], state
        )
        counts.append(len(made) - before)
    return counts


def test_goal_dictionaries_are_planned_from_without_their_goals() -> None:
    policy, seen = turned_policy(), observe(2)
    flat, _ = policy.predict(seen["observation"], deterministic=True)
    for goal in (np.zeros((2, 7)), seen["desired_goal"]):
        action, state = policy.predict(
            {**seen, "desired_goal": goal}, deterministic=True
        )
        np.testing.assert_array_equal(action, flat)
        assert state.goals.shape == goal.shape


def test_a_goal_of_any_width_that_changes_calls_for_a_plan() -> None:
    wide = np.arange(12.0)
    assert follow_goals(turned_policy(), 1.0, 1.0, 2.0, 2.0) == [1, 0, 1, 0]
    assert follow_goals(turned_policy(), wide, wide, wide + 1) == [1, 0, 1]
    assert follow_goals(turned_policy(), None, None, wide, wide, None, None) == [
        *(1, 0),
        *(1, 0),
        *(1, 0),
    ]


def test_a_plan_that_ran_out_is_made_anew_for_goal_dictionaries_too() -> None:
    policy = turned_policy()
    assert policy.executor.holds_goal
    assert sum(follow_goals(policy, *[1.0] * 17)) == 2


def test_an_interval_makes_plans_anew_as_without_goals() -> None:
    assert follow_goals(turned_policy(replan_interval=2), *[1.0] * 5) == [1, 0, 1, 0, 1]


def test_shrinking_horizons_do_not_shrink_towards_goals_that_are_not_pinned() -> None:
    policy = toy_policy(
        config(planner=PlannerConfig(horizon="shrinking")), replan_interval=8
    )
    seen, state = observe(), None
    for _ in range(10):
        _, state = policy.predict(seen, state)
    assert state is not None
    assert state.lengths.tolist() == [16]


def test_no_route_leads_to_goals_that_are_not_pinned() -> None:
    policy = turned_policy()
    with pytest.raises(ConfigError, match="no goals, so no route"):
        policy.routes(observe(2))
    assert Scene.of_policy(policy, object(), observe()).route is None


def test_guides_see_the_goal() -> None:
    def near_goal(trajectory: Trajectory) -> Tensor:
        assert trajectory.desired_goal is not None
        shapes.append(tuple(trajectory.desired_goal.shape))
        off = trajectory.position - trajectory.desired_goal
        return -off.square().sum(dim=(1, 2))

    shapes: list[tuple[int, ...]] = []
    policy = turned_policy().with_guide(near_goal, guide_scale=0.1)
    seen = observe(2)
    ends = [
        policy.plan({**seen, "desired_goal": np.full((2, 2), goal)}).observations
        for goal in (-1.0, 1.0)
    ]
    assert set(shapes) == {(8, 1, 2)}
    assert (ends[0][:, 1:, :2].mean(axis=1) < ends[1][:, 1:, :2].mean(axis=1)).all()


def test_environments_with_goals_are_accepted() -> None:
    policy = turned_policy()
    policy.spaces.fitted(PointEnv())
    result = evaluate(policy, POINT, episodes=3, num_envs=2, progress=False)
    alone = evaluate(policy, POINT, episodes=3, num_envs=1, progress=False)
    assert [r.episode_return for r in result.episodes] == pytest.approx(
        [r.episode_return for r in alone.episodes], abs=1e-3
    )


def test_pinned_goals_end_the_plan() -> None:
    policy = toy_policy(config("pinned"))
    plan = policy.plan(observe(2))
    np.testing.assert_allclose(plan.observations[:, -1, :2], 0.5, atol=1e-5)


# --- choosing -----------------------------------------------------------------------


def test_the_most_feasible_candidate_is_taken() -> None:
    plan = turned_policy().plan(observe(3)["observation"])
    ends = plan.candidates[:, :, -1, 0]
    np.testing.assert_allclose(plan.values, ends, atol=1e-5)
    np.testing.assert_array_equal(plan.chosen, ends.argmax(axis=1))
    assert len(set(ends[0].tolist())) == 4


def test_a_guide_chooses_among_the_feasible() -> None:
    def left(trajectory: Trajectory) -> Tensor:
        return -trajectory.position[:, -1, 0]

    rows = observe(3)["observation"]
    settings = {"guide_scale": 0.0, "ranking": "guide"}
    for tolerance, wanted in ((0.0, np.argmax), (1e6, np.argmin)):
        policy = turned_policy().with_guide(
            left, ranking_tolerance=tolerance, **settings
        )
        plan = policy.plan(rows)
        expected = wanted(plan.candidates[:, :, -1, 0], axis=1)
        np.testing.assert_array_equal(plan.chosen, expected)
    assert policy.with_guide(None).config.planner.ranking == "feasibility"


@pytest.mark.parametrize("weight", [None, 0.5, -3.0])
def test_the_sum_is_feasibility_and_the_guides_value(weight: float | None) -> None:
    def high(trajectory: Trajectory) -> Tensor:
        return trajectory.position[:, -1, 1]

    rows = observe(3)["observation"]
    settings = {} if weight is None else {"ranking_weight": weight}
    unguided = turned_policy(ranking="sum", **settings)
    plain, alone = turned_policy().plan(rows), unguided.plan(rows)
    np.testing.assert_array_equal(alone.values, plain.values)
    np.testing.assert_array_equal(alone.observations, plain.observations)

    plan = unguided.with_guide(high, guide_scale=0.0).plan(rows)
    np.testing.assert_array_equal(plan.candidates, plain.candidates)
    liked = plan.candidates[:, :, -1, 1]
    expected = plain.values + (1.0 if weight is None else weight) * liked
    np.testing.assert_allclose(plan.values, expected, atol=1e-5)
    np.testing.assert_array_equal(plan.chosen, expected.argmax(axis=1))


def test_choosing_and_acting_need_what_the_featurizer_may_lack() -> None:
    plain = ExecutionConfig()
    lacking = r"='feasibility' needs .* a method `feasibility`.*Copied has none"
    with pytest.raises(ConfigError, match=lacking):
        toy_policy(config("copied", execution=plain))
    added = PlannerConfig(num_sampling_steps=2, ranking="sum")
    lacking = r"ranking='sum' needs .* a method `feasibility`.*no featurizer"
    with pytest.raises(ConfigError, match=lacking):
        toy_policy(config(None, execution=plain, planner=added))
    smooth = PlannerConfig(num_sampling_steps=2, ranking="smoothness")
    with pytest.raises(ConfigError, match=r"a method `act`.*Copied has none"):
        toy_policy(config("copied", planner=smooth))
    with pytest.raises(ConfigError, match=r"a method `act`.*no featurizer"):
        toy_policy(config(None, planner=smooth))
    path = ExecutionConfig(executor="path", seconds_per_step=0.1)
    with pytest.raises(ConfigError, match="velocity"):
        toy_policy(config(execution=path))


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros(3),
        np.zeros((1, 2)),
        np.zeros((2, 1)),  # which would be broadcast to both numbers of an action
        np.zeros((2, 3)),
        np.full((2, 2), np.nan),
    ],
)
def test_wrong_answers_of_a_featurizer_are_named(
    wrong: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = turned_policy()
    monkeypatch.setattr(Turned, "act", lambda *_: wrong)
    with pytest.raises(FeaturizerError, match=r"`act` .* shape \(2, 2\), got"):
        policy.predict(observe(2)["observation"])
    monkeypatch.setattr(Turned, "feasibility", lambda *_: wrong)
    with pytest.raises(FeaturizerError, match=r"`feasibility` .* 8 candidates"):
        policy.plan(observe(2)["observation"])


def fails(*_: object) -> object:
    raise IndexError("inner")


@pytest.mark.parametrize(
    ("method", "given"),
    [
        ("act", r"plans and observations of shape \[2, 4\]"),
        ("feasibility", r"candidates of shape \[8, 16, 3\] and the stride 1"),
    ],
)
def test_a_featurizer_that_fails_or_returns_no_numbers_is_named(
    method: str, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, seen = turned_policy(), observe(2)["observation"]
    for answer, message in (
        (fails, f"Turned failed: IndexError: inner. Its `{method}` .* {given}"),
        (lambda *_: [[1.0], [1.0, 2.0]], "Turned failed: ValueError"),
        (lambda *_: "text", f"returned values of type <U4 from `{method}`"),
        (lambda *_: np.full((2, 2), 1j), "returned values of type complex128"),
    ):
        monkeypatch.setattr(Turned, method, answer)
        with pytest.raises(FeaturizerError, match=message):
            policy.predict(seen)


def test_a_featurizer_that_runs_out_of_memory_is_told_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def demanding(*_: object) -> object:
        raise MemoryError

    monkeypatch.setattr(Turned, "act", demanding)
    with pytest.raises(MemoryLimitError, match="The featurizer Turned needs more"):
        turned_policy().predict(observe(2)["observation"])
