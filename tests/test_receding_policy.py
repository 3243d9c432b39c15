"""predict: what it answers, when a plan is made anew, and when an episode begins."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from diffuser_policy.config import WindowConfig
from diffuser_policy.errors import ConfigError
from diffuser_policy.policy import DiffuserPolicy
from diffuser_policy.receding import Replanning
from diffuser_policy.testing import check_policy, toy_config, toy_dataset, toy_policy
from tests.policy_helpers import count_plans, follow, observe, unchanged

NO_GOAL = toy_config(
    time_to_goal=None, window=WindowConfig(horizon=16, hindsight_goal="none")
)


@pytest.fixture
def policy() -> DiffuserPolicy:
    return toy_policy()


@pytest.fixture
def goalless() -> DiffuserPolicy:
    return toy_policy(NO_GOAL, flat=toy_dataset(goals=False))


# --- the contract ---------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"horizon": "predicted", "ranking": "time_to_goal"},
        {"executor": "actions", "sampler": "ddpm", "num_sampling_steps": None},
        {"executor": "pursuit", "horizon": "shrinking", "replan_interval": 1},
        {"horizon": "shrinking", "replan_deviation": 0.1},
    ],
)
def test_the_contract_is_kept(settings: dict[str, Any]) -> None:
    checked = check_policy(toy_policy(**settings))
    assert {"bounds", "determinism", "row_independence", "refuses_nan"} <= set(checked)


def test_the_contract_is_kept_without_goals(goalless: DiffuserPolicy) -> None:
    check_policy(goalless)


@pytest.mark.parametrize("num_envs", [None, 1, 3])
def test_output_mirrors_input(policy: DiffuserPolicy, num_envs: int | None) -> None:
    action, state = policy.predict(observe(num_envs))
    assert action.shape == ((2,) if num_envs is None else (num_envs, 2))
    assert action.dtype == np.float32
    assert (np.abs(action) <= 1).all()
    assert len(state.lengths) == (num_envs or 1)


def test_a_batch_of_one_is_the_single_observation(policy: DiffuserPolicy) -> None:
    single, _ = policy.predict(observe(), deterministic=True)
    batch = {key: part[None] for key, part in observe().items()}
    batched, _ = policy.predict(batch, deterministic=True)
    np.testing.assert_array_equal(single, batched[0])


def test_deterministic_actions_repeat_and_others_vary(policy: DiffuserPolicy) -> None:
    policy = policy.with_settings(position_gain=0.1)  # within the bounds
    repeated = [policy.predict(observe(), deterministic=True)[0] for _ in range(3)]
    assert all(np.array_equal(repeated[0], action) for action in repeated)
    varied = [policy.predict(observe())[0] for _ in range(3)]
    assert not np.array_equal(varied[0], varied[1])


def test_deterministic_ddpm_adds_no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = toy_policy(sampler="ddpm", num_sampling_steps=None, num_candidates=1)
    draws: list[tuple[int, ...]] = []
    randn = torch.randn

    def spy(size: tuple[int, ...], **settings: Any) -> torch.Tensor:
        draws.append(size)
        return randn(size, **settings)

    monkeypatch.setattr(torch, "randn", spy)
    policy.predict(observe(), deterministic=True)
    assert len(draws) == 1  # the initial noise
    policy.predict(observe())
    assert len(draws) == 1 + 1 + 7  # and one per step, but for the last


def test_the_seed_decides(policy: DiffuserPolicy) -> None:
    same, other = toy_policy(), toy_policy()
    other.set_random_seed(1)
    first = [policy.predict(observe(3, seed=n))[1] for n in range(2)]
    again = [same.predict(observe(3, seed=n))[1] for n in range(2)]
    assert all(map(unchanged, first, again))
    assert not unchanged(first[0], other.predict(observe(3))[1])


def test_streams_make_rows_reproducible(policy: DiffuserPolicy) -> None:
    """What a row draws depends on its stream alone, wherever in a batch it is."""
    streams = np.array([7, 8, 9])
    _, batch = policy.predict(observe(3), policy.initial_state(3, streams))
    row = {key: part[1] for key, part in observe(3).items()}
    _, alone = policy.predict(row, policy.initial_state(1, streams[1:2]))
    np.testing.assert_allclose(
        batch.observations[1], alone.observations[0], rtol=1e-4, atol=1e-5
    )
    _, other = policy.predict(row, policy.initial_state(1, streams[:1]))
    assert not np.allclose(other.observations[0], alone.observations[0], atol=1e-3)


def test_global_random_state_is_not_touched(policy: DiffuserPolicy) -> None:
    def states() -> tuple[Any, ...]:
        legacy: Any = np.random.get_state()  # noqa: NPY002 (it is to stay as it is)
        ours = torch.random.get_rng_state().tolist()
        return random.getstate(), legacy[1].tolist(), ours

    before = states()
    follow(policy, 3)
    policy.plan(observe(2))
    toy_policy(seed=3)
    assert states() == before


# --- when plans are made --------------------------------------------------------


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
    made = count_plans(policy)
    policy.replanning = Replanning(deviation=1e-6)
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
        policy.planner.predict_time = self.predict_time  # type: ignore[method-assign]

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
    [("replan_interval", 0), ("replan_deviation", 0.0), ("replan_deviation", -1.0)],
)
def test_impossible_replanning_is_refused(setting: str, value: float) -> None:
    with pytest.raises(ConfigError, match=setting):
        toy_policy().with_settings(**{setting: value})


def test_one_sampling_call_per_length() -> None:
    policy = toy_policy(horizon="predicted", ranking="first")

    def predict_time(observations: np.ndarray, goals: np.ndarray) -> np.ndarray:
        times: np.ndarray = 20.0 * observations[:, 0] + 0 * goals[:, 0]
        return times

    policy.planner.predict_time = predict_time  # type: ignore[method-assign]
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


# --- episodes -------------------------------------------------------------------


def test_flagged_rows_forget_their_plan(policy: DiffuserPolicy) -> None:
    made = count_plans(policy)
    _, state = policy.predict(observe(3))
    _, state = policy.predict(observe(3), state, np.array([False, True, False]))
    assert made == [3, 1]
    assert state.ages.tolist() == [1, 0, 1]
    assert state.started.tolist() == [False, True, False]


def test_a_sticky_flag_is_one_episode_start(policy: DiffuserPolicy) -> None:
    """SB3's evaluate_policy leaves the flag of an exhausted env up."""
    made = count_plans(policy)
    _, state = policy.predict(observe(2), None, np.array([True, True]))
    for _ in range(4):
        _, state = policy.predict(observe(2), state, np.array([False, True]))
    assert made == [2]
    assert state.ages.tolist() == [4, 4]
    _, state = policy.predict(observe(2), state, np.array([True, False]))
    assert made == [2, 1]
    _, state = policy.predict(observe(2), state, np.array([False, True]))
    assert made == [2, 1, 1]


def test_every_flag_counts_when_asked_to(policy: DiffuserPolicy) -> None:
    policy.replanning = Replanning(keep_started=False)
    made = count_plans(policy)
    state: Any = None
    for _ in range(3):
        _, state = policy.predict(observe(), state, np.array([True]))
    assert made == [1, 1, 1]


def test_new_plans_draw_new_noise(policy: DiffuserPolicy) -> None:
    _, first = policy.predict(observe())
    _, second = policy.predict(observe(), first, [True])
    assert second.streams.tolist() == first.streams.tolist()
    assert not np.allclose(first.observations, second.observations, atol=1e-3)


def test_rows_can_be_taken_out_and_put_back(policy: DiffuserPolicy) -> None:
    state = follow(policy, 2, observe(3))
    some = state.rows([2, 0])
    assert np.array_equal(some.observations, state.observations[[2, 0]])
    again = state.with_rows([2, 0], some)
    assert unchanged(state, again)
    other = state.with_rows([1], some.rows([0]))
    assert np.array_equal(other.observations[1], state.observations[2])
    assert not np.array_equal(state.observations[1], state.observations[2])
