"""When a plan is made anew, and when a new one replaces the old."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from diffuser_policy.config import WindowConfig
from diffuser_policy.errors import ConfigError
from diffuser_policy.policy import DiffuserPolicy
from diffuser_policy.testing import toy_config, toy_dataset, toy_policy
from tests.policy_helpers import count_plans, follow, observe

NO_GOAL = toy_config(
    time_to_goal=None, window=WindowConfig(horizon=16, hindsight_goal="none")
)


@pytest.fixture
def policy() -> DiffuserPolicy:
    return toy_policy()


@pytest.fixture
def goalless() -> DiffuserPolicy:
    return toy_policy(NO_GOAL, flat=toy_dataset(goals=False))


def test_a_plan_is_followed_until_something_happens(policy: DiffuserPolicy) -> None:
    made = count_plans(policy)
    state = follow(policy, 40)  # far beyond its end: the goal is held
    assert made == [1]
    assert state.ages.tolist() == [39]
    assert state.progress.tolist() == [39.0]


def test_without_a_state_every_call_plans(policy: DiffuserPolicy) -> None:
    made = count_plans(policy)
    for _ in range(3):
        policy.predict(observe())
    assert made == [1, 1, 1]


def test_without_a_goal_a_plan_is_made_when_the_last_has_run_out(
    goalless: DiffuserPolicy,
) -> None:
    made = count_plans(goalless)
    observation = observe()["observation"]
    state = follow(goalless, 16, observation)
    assert made == [1]
    _, state = goalless.predict(observation, state)  # its age would be 16
    assert made == [1, 1]
    assert state.ages.tolist() == [0]


def test_a_pursued_plan_without_a_goal_runs_out_too() -> None:
    goalless = toy_policy(NO_GOAL, flat=toy_dataset(goals=False), executor="pursuit")
    made = count_plans(goalless)
    follow(goalless, 17, observe()["observation"])
    assert len(made) >= 2


def test_rows_with_a_new_goal_plan_anew_in_one_call(policy: DiffuserPolicy) -> None:
    made = count_plans(policy)
    observation = observe(4)
    _, state = policy.predict(observation)
    changed = {**observation, "desired_goal": observation["desired_goal"].copy()}
    changed["desired_goal"][[1, 3]] = -0.3
    _, after = policy.predict(changed, state)
    assert made == [4, 2]
    assert after.ages.tolist() == [1, 0, 1, 0]
    np.testing.assert_array_equal(after.goals, changed["desired_goal"])
    for kept in (0, 2):
        assert np.array_equal(after.observations[kept], state.observations[kept])


def test_a_new_goal_gets_a_whole_horizon() -> None:
    """What is left of the way to the old goal says nothing about the new one."""
    policy = toy_policy(horizon="shrinking")
    observation = observe()
    _, state = policy.predict(observation)
    for _ in range(12):
        _, state = policy.predict(observation, state)
    _, state = policy.predict(observe(goal=-0.2), state)
    assert state.lengths.tolist() == [16]


@pytest.mark.parametrize(("age", "length"), [(1, 16), (5, 12), (9, 8), (30, 8)])
def test_straying_from_a_shrinking_plan_leaves_its_arrival_time(
    age: int, length: int
) -> None:
    policy = toy_policy(horizon="shrinking")
    state = follow(policy, age)  # of age - 1
    policy = policy.with_settings(replan_deviation=1e-6)
    made = count_plans(policy)
    _, state = policy.predict(observe(seed=5), state)
    assert made == [1]
    assert state.lengths.tolist() == [length]


def test_straying_from_the_plan_makes_a_new_one() -> None:
    policy = toy_policy(replan_deviation=0.5)
    made = count_plans(policy)
    observation = observe(2)
    _, state = policy.predict(observation)
    planned = state.observations[:, 1].copy()

    def at(offset: float) -> dict[str, np.ndarray]:
        moved = planned.copy()
        moved[1, 0] += offset
        return {**observation, "observation": moved}

    policy.predict(at(0.49), state)
    assert made == [2]
    _, after = policy.predict(at(0.51), state)
    assert made == [2, 1]
    assert after.ages.tolist() == [1, 0]
    np.testing.assert_allclose(
        after.observations[1, 0], at(0.51)["observation"][1], atol=1e-5
    )


def test_the_velocity_is_no_deviation() -> None:
    policy = toy_policy(replan_deviation=0.5)
    observation = observe()
    _, state = policy.predict(observation)
    moved = state.observations[0, 1].copy()
    moved[2:] += 10.0
    made = count_plans(policy)
    policy.predict({**observation, "observation": moved}, state)
    assert made == []


class _Arrival:
    """Decides how many env steps the next plans take."""

    def __init__(self, policy: DiffuserPolicy, env_steps: float) -> None:
        self.env_steps = env_steps
        policy.planner.horizons.predict_time = self.predict_time  # type: ignore[method-assign]

    def predict_time(
        self,
        observations: np.ndarray,
        goals: np.ndarray,  # noqa: ARG002 (decided already)
    ) -> np.ndarray:
        return np.full(len(observations), self.env_steps)


@pytest.mark.parametrize(
    ("env_steps", "adopted"),
    [
        (7, True),  # eight planning steps arrive 7 env steps from now
        (9, True),
        (10, False),  # the incumbent arrives in 10, at the next multiple of two: 11
        (15, False),
    ],
)
def test_at_intervals_an_earlier_arrival_replaces_the_plan(
    env_steps: int, adopted: bool
) -> None:
    policy = toy_policy(horizon="predicted", replan_interval=5)
    arrival = _Arrival(policy, env_steps=15)
    state = follow(policy, 5)
    made = count_plans(policy)
    arrival.env_steps = env_steps
    _, after = policy.predict(observe(), state)
    assert made == [1]
    if adopted:
        assert after.ages.tolist() == [0]
        assert after.lengths.tolist() == [8 if env_steps == 7 else 10]
    else:
        assert after.ages.tolist() == [5]
        assert np.array_equal(after.observations, state.observations)
        assert after.lengths.tolist() == [16]


def test_intervals_count_from_the_plan_and_end_with_it() -> None:
    policy = toy_policy(horizon="predicted", replan_interval=5)
    _Arrival(policy, env_steps=15)
    made = count_plans(policy)
    calls = []
    state: Any = None
    for _ in range(30):
        _, state = policy.predict(observe(), state)
        calls.append(len(made))
    # At ages 5 and 10; at 15 the plan has been followed to its end.
    assert calls == [1] * 5 + [2] * 5 + [3] * 20


def test_without_a_goal_intervals_always_replace(goalless: DiffuserPolicy) -> None:
    goalless = goalless.with_settings(replan_interval=4)
    made = count_plans(goalless)
    state = follow(goalless, 9, observe()["observation"])
    assert made == [1, 1, 1]
    assert state.ages.tolist() == [0]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("replan_interval", 0),
        ("replan_deviation", 0.0),
        ("replan_deviation", -1.0),
        ("replan_deviation", float("nan")),
    ],
)
def test_impossible_replanning_is_refused(setting: str, value: float) -> None:
    with pytest.raises(ConfigError, match=setting):
        toy_policy().with_settings(**{setting: value})


def test_one_sampling_call_per_length() -> None:
    policy = toy_policy(horizon="predicted", ranking="first")

    def predict_time(observations: np.ndarray, goals: np.ndarray) -> np.ndarray:
        times: np.ndarray = 20.0 * observations[:, 0] + 0 * goals[:, 0]
        return times

    policy.planner.horizons.predict_time = predict_time  # type: ignore[method-assign]
    sampled = []
    sample = policy.planner.sampler.sample

    def spy(inpainting: Any, *rest: Any, **settings: Any) -> Any:
        sampled.append(tuple(inpainting.values.shape[:2]))
        return sample(inpainting, *rest, **settings)

    policy.planner.sampler.sample = spy  # type: ignore[method-assign]
    observation = observe(5)
    observation["observation"][:, 0] = [0.0, 0.5, 0.0, 0.5, 9.0]
    _, state = policy.predict(observation)
    assert sampled == [(2, 8), (2, 12), (1, 16)]
    assert state.lengths.tolist() == [8, 12, 8, 12, 16]


def test_a_plan_that_arrives_at_the_same_time_is_fresher() -> None:
    policy = toy_policy(horizon="predicted", replan_interval=6)
    arrival = _Arrival(policy, env_steps=15)
    state = follow(policy, 6)
    arrival.env_steps = 9  # as many as are left of 15
    _, after = policy.predict(observe(), state)
    assert (after.ages.tolist(), after.lengths.tolist()) == ([0], [10])


def test_planned_actions_cannot_hold_the_goal() -> None:
    """So the end of such a plan calls for another, goal or not."""
    policy = toy_policy(executor="actions")
    made = count_plans(policy)
    state = follow(policy, 16)
    assert made == [1]
    _, state = policy.predict(observe(), state)
    assert made == [1, 1]
    assert state.ages.tolist() == [0]
