"""predict: what it answers, when a plan is made anew, and when an episode begins."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import numpy as np
import pytest
import torch

from diffuser_policy.config import WindowConfig
from diffuser_policy.planning.plan import Following, Plan
from diffuser_policy.planning.state import PolicyState
from diffuser_policy.policy import DiffuserPolicy
from diffuser_policy.testing import check_policy, toy_config, toy_dataset, toy_policy
from tests.policy_helpers import (
    count_plans,
    follow,
    observe,
    unchanged,
    untrained_policy,
)

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


# --- episodes -------------------------------------------------------------------


def test_flagged_rows_forget_their_plan(policy: DiffuserPolicy) -> None:
    made = count_plans(policy)
    _, state = policy.predict(observe(3))
    _, state = policy.predict(observe(3), state, np.array([False, True, False]))
    assert made == [3, 1]
    assert state.ages.tolist() == [1, 0, 1]


def test_an_episode_of_one_step_leaves_nothing_behind(policy: DiffuserPolicy) -> None:
    """A row that begins an episode in two calls in a row has two first plans."""
    made = count_plans(policy)
    first, second = observe(2, seed=1), observe(2, seed=2)
    _, state = policy.predict(first, None, np.array([True, True]))
    _, state = policy.predict(second, state, np.array([False, True]))
    assert made == [2, 1]
    assert state.ages.tolist() == [1, 0]
    begun, _ = policy.read(second)
    np.testing.assert_allclose(state.observations[1, 0], begun[1], atol=1e-5)


def test_executors_know_where_rows_were_an_env_step_ago(
    policy: DiffuserPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the start of an episode, as if they had rested."""
    told: list[Any] = []
    act = policy.executor.act

    def spy(following: Following, observations: np.ndarray) -> np.ndarray:
        told.append(following.previous)
        return act(following, observations)

    monkeypatch.setattr(policy.executor, "act", spy)
    first, second, third = (observe(2, seed=seed) for seed in range(3))
    _, state = policy.predict(first)
    _, state = policy.predict(second, state)
    policy.predict(third, state, [False, True])
    first, second, third = (seen["observation"] for seen in (first, second, third))
    np.testing.assert_array_equal(told[:2], [first, first])
    np.testing.assert_array_equal(told[2], [second[0], third[1]])


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


def test_each_deterministic_plan_of_an_episode_has_noise_of_its_own(
    goalless: DiffuserPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one noise for all, a policy that has come to a halt would stay there."""
    goalless.set_random_seed(5)
    policy = goalless.with_settings(replan_interval=1)
    plan, seeds = policy.planner.plan, []

    def counted(observations: Any, goals: Any, generators: Any, **settings: Any) -> Any:
        seeds.append([generator.initial_seed() for generator in generators])
        return plan(observations, goals, generators, **settings)

    monkeypatch.setattr(policy.planner, "plan", counted)
    here = np.zeros((2, policy.spaces.observation_size), np.float32)
    rounded = here.copy()
    rounded[1] += 1e-7  # as batched arithmetic may do
    _, state = policy.predict(here, deterministic=True)
    _, second = policy.predict(rounded, state, deterministic=True)
    policy.predict(rounded, state, deterministic=True)
    _, third = policy.predict(here, second, deterministic=True)
    _, began = policy.predict(here, third, [True, False], deterministic=True)
    policy.predict(here, began, deterministic=True)
    policy.plan(here)
    policy.set_random_seed(6)
    policy.predict(rounded, state, deterministic=True)

    first, anew, again, later, restarted, onwards, shown, reseeded = seeds
    assert first == shown == [5, 5]
    assert anew == again == [anew[0]] * 2
    assert len({5, anew[0], later[0], restarted[1], onwards[1]}) == 5
    assert restarted[0] == 5  # as if it were new
    assert onwards[0] == anew[0]
    assert {*reseeded}.isdisjoint(anew)


# --- plans that replace others ----------------------------------------------------


def due(**settings: Any) -> tuple[DiffuserPolicy, PolicyState, Any]:
    """Return a policy, two rows with a plan of 15 env steps, and the next of them."""
    policy = toy_policy(horizon="shrinking", replan_interval=1, **settings)
    _, state = policy.predict(observe(2))
    assert state.lengths.tolist() == [16, 16]
    seen = observe(2)
    seen["observation"] = state.observations[:, 1].copy()
    return policy, state, seen


@pytest.mark.parametrize("horizon", [2, 4, 8])
def test_the_last_env_step_of_a_plan_can_be_its_replan_interval(horizon: int) -> None:
    interval = horizon - 1
    policy = untrained_policy("Pendulum-v1", horizon=horizon)
    policy = policy.with_settings(replan_interval=interval)
    state, counts = None, []
    for _ in range(3 * interval):
        _, state = policy.predict(np.zeros(3, np.float32), state)
        counts.append(state.num_plans[0])
    assert counts == np.repeat([1, 2, 3], interval).tolist()


def test_only_a_needed_plan_gets_back_the_time_that_rounding_takes() -> None:
    """Lengths are even: of 15 planning steps, a plan that is due gets 14."""
    policy, state, seen = due(replan_deviation=0.5)
    seen["observation"][1, :2] += 3  # strayed
    _, after = policy.predict(seen, state)
    assert after.ages.tolist() == [0, 0]
    assert after.lengths.tolist() == [14, 16]


def test_a_row_that_strays_when_its_time_is_over_gets_the_shortest_plan() -> None:
    policy, state, seen = due(replan_deviation=0.5)
    seen["observation"] = state.observations[:, -1].copy()
    seen["observation"][1, :2] += 3
    _, after = policy.predict(seen, state._replace(progress=np.full(2, 20.0)))
    assert after.ages.tolist() == [1, 0]
    assert after.lengths[1] == policy.planner.horizons.min_planning_steps < 16


def test_a_plan_to_the_goal_is_not_replaced_by_one_to_a_subgoal() -> None:
    policy, state, seen = due()
    plan = policy.planner.plan

    def astray(*given: Any, **settings: Any) -> Plan:
        made = plan(*given, **settings)
        assert made.aims is not None
        return dataclasses.replace(made, aims=made.aims + np.array([[0.1], [0.0]]))

    policy.planner.plan = astray  # type: ignore[method-assign]
    _, after = policy.predict(seen, state)
    assert after.num_plans.tolist() == [2, 2]
    assert after.ages.tolist() == [1, 0]
    np.testing.assert_array_equal(after.observations[0], state.observations[0])
