"""Warm start: new plans begin with what is left of the old ones, noised."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diffuser_policy.build import PlannerNetworks
from diffuser_policy.config import NetworkConfig, WindowConfig
from diffuser_policy.diffusion.denoiser import Denoiser
from diffuser_policy.diffusion.sampler import DDIMSampler, WarmStart
from diffuser_policy.diffusion.schedule import NoiseSchedule
from diffuser_policy.errors import ConditionError, ConfigError, ObservationError
from diffuser_policy.guides.trajectory import Trajectory
from diffuser_policy.planning.plan import Following
from diffuser_policy.planning.state import PolicyState
from diffuser_policy.policy import DiffuserPolicy
from diffuser_policy.testing import (
    check_policy,
    toy_config,
    toy_dataset,
    toy_policy,
)
from tests.policy_helpers import copied, count_plans, observe, unchanged

NO_GOAL = toy_config(
    time_to_goal=None, window=WindowConfig(horizon=16, hindsight_goal="none")
)


class NoNoise(nn.Module):
    """A network that never sees any noise, so that plans stay what they are."""

    def forward(self, noisy: Tensor, _: Tensor) -> Tensor:
        return torch.zeros_like(noisy)


def keeping(policy: DiffuserPolicy) -> DiffuserPolicy:
    """Make a policy's warm plans what is left of the old ones, exactly."""
    denoiser = Denoiser(
        NoNoise(), NoiseSchedule(8), prediction_target="noise", clip=False
    )
    policy.planner.sampler = DDIMSampler(denoiser, 2, temperature=0.0)
    return policy


def warm_policy(config: Any = None, **settings: Any) -> DiffuserPolicy:
    """Return a policy that plans anew in every env step, from what is left."""
    horizon = "fixed" if config is NO_GOAL else "shrinking"
    chosen = {"horizon": horizon, "replan_interval": 1, "warm_start": 0.3}
    flat = toy_dataset(goals=config is not NO_GOAL)
    return toy_policy(config, flat=flat, **{**chosen, **settings})


def watch(policy: DiffuserPolicy) -> list[WarmStart | None]:
    """Return a list that grows by the warm start of every sampling call."""
    started: list[WarmStart | None] = []
    sample = policy.planner.sampler.sample

    def spy(*parts: Any, **settings: Any) -> Any:
        started.append(settings["warm_start"])
        return sample(*parts, **settings)

    policy.planner.sampler.sample = spy  # type: ignore[method-assign]
    return started


def arriving_in(policy: DiffuserPolicy, env_steps: float) -> None:
    """Set the answer of a policy's time-to-goal network."""

    def predict_time(observations: np.ndarray, goals: np.ndarray) -> np.ndarray:
        times: np.ndarray = env_steps + 0.0 * (observations[:, 0] + goals[:, 0])
        return times

    policy.planner.horizons.predict_time = predict_time  # type: ignore[method-assign]


def along(state: PolicyState, ahead: int, *, goal: float = 0.5) -> dict[str, Any]:
    """Return what is observed on the plans, some env steps on."""
    observation = state.observations[:, ahead].copy()
    goals = np.full((len(observation), 2), goal, np.float32)
    return {
        "observation": observation,
        "achieved_goal": observation[:, :2],
        "desired_goal": goals,
    }


def test_a_plan_from_what_is_left_is_the_shifted_plan() -> None:
    policy = keeping(warm_policy())
    rng = np.random.default_rng(0)
    _, state = policy.predict(observe(3))
    state = state._replace(
        observations=rng.uniform(-1, 1, state.observations.shape).astype(np.float32),
        actions=rng.uniform(-1, 1, state.actions.shape).astype(np.float32),
        progress=np.full(3, 3.0),
    )
    _, after = policy.predict(along(state, 4), state)
    assert after.lengths.tolist() == [12] * 3
    assert after.ages.tolist() == [0] * 3
    # The goal is pinned at the last step; the velocity there is the old plan's.
    np.testing.assert_allclose(
        after.observations[:, :11], state.observations[:, 4:15], atol=1e-5
    )
    np.testing.assert_allclose(after.observations[:, 11, :2], 0.5, atol=1e-5)
    np.testing.assert_allclose(
        after.observations[:, 11, 2:], state.observations[:, 15, 2:], atol=1e-5
    )
    np.testing.assert_allclose(after.actions[:, :12], state.actions[:, 4:], atol=1e-5)


def test_without_a_goal_the_plan_is_shifted_and_not_slowed_down() -> None:
    policy = keeping(warm_policy(NO_GOAL, horizon="fixed"))
    _, state = policy.predict(observe(2)["observation"])
    ramp = np.arange(16, dtype=np.float32)[None, :, None] * np.ones((2, 1, 4))
    state = state._replace(observations=ramp.astype(np.float32))
    for step in range(1, 6):
        here = np.full((2, 4), step, np.float32)
        _, state = policy.predict(here, state)
        expected = np.minimum(step + np.arange(16), 15)
        np.testing.assert_allclose(state.observations[0, :, 0], expected, atol=1e-4)


def test_only_plans_that_are_being_followed_are_started_from() -> None:
    """Rows: on its way, new goal, strayed, arrived, new episode."""
    policy = warm_policy(replan_deviation=0.5)
    started = watch(policy)
    _, state = policy.predict(observe(5))
    assert started == [None]
    state = state._replace(progress=np.array([0.0, 0, 0, 15, 0]))
    observation = along(state, 1)
    observation["desired_goal"][1, 1] = -0.3
    observation["observation"][2, 0] += 0.6
    observation["observation"][3] = state.observations[3, 15]
    started.clear()
    _, after = policy.predict(observation, state, np.arange(5) == 4)
    assert after.ages.tolist() == [0, 0, 0, 1, 0]
    [left] = [each.trajectories for each in started if each is not None]
    assert len(left) == 1
    here = policy.planner.normalizer.unnormalize(left)[0, 0, 2:]
    np.testing.assert_allclose(here, state.observations[0, 1], atol=1e-5)


def test_a_goal_that_nothing_pins_is_no_subgoal_to_leave_behind() -> None:
    """Guides see the goals of the environment, also of plans that lead to none."""
    policy = warm_policy(NO_GOAL)
    started = watch(policy)
    _, state = policy.predict(observe(2))
    policy.predict(along(state, 1), state)
    assert [each is None for each in started] == [True, False]


def test_a_plan_that_has_run_out_leaves_nothing_to_start_from() -> None:
    policy = warm_policy(NO_GOAL).with_settings(replan_interval=None)
    started = watch(policy)
    observation = observe(2)["observation"]
    _, state = policy.predict(observation)
    state = state._replace(progress=np.array([14.0, 15.0]))
    _, after = policy.predict(observation, state)
    assert after.ages.tolist() == [1, 0]
    assert started == [None, None]


@pytest.mark.parametrize("actions", [True, False])
@pytest.mark.parametrize("horizon", ["shrinking", "predicted"])
def test_warm_and_cold_rows_of_a_batch_are_as_alone(
    actions: bool, horizon: str
) -> None:
    window = WindowConfig(horizon=16, min_horizon=8, actions=actions)
    policy = warm_policy(toy_config(window=window), horizon=horizon)
    arriving_in(policy, 15)
    _, state = policy.predict(observe(4), policy.initial_state(4, np.arange(4)))
    arriving_in(policy, 9)
    observation = along(state, 1)
    flags = np.array([False, True, False, True])
    _, together = policy.predict(observation, state, flags)
    for row in range(4):
        one = {key: part[[row]] for key, part in observation.items()}
        _, alone = policy.predict(one, state.rows([row]), flags[[row]])
        assert alone.ages.tolist() == together.ages[[row]].tolist() == [0]
        [length] = alone.lengths
        assert length == together.lengths[row]
        for name in ("observations", "actions"):
            mine, batched = getattr(alone, name)[0], getattr(together, name)[row]
            np.testing.assert_allclose(
                mine[:length], batched[:length], rtol=1e-4, atol=1e-4
            )


@pytest.mark.parametrize(
    ("settings", "config"),
    [
        ({}, None),
        ({"horizon": "predicted", "replan_deviation": 0.1}, None),
        ({"horizon": "fixed", "replan_interval": None}, None),
        ({"horizon": "fixed", "replan_interval": 3}, NO_GOAL),
        ({"executor": "actions", "sampler": "ddpm", "warm_start_steps": 1}, None),
        ({"executor": "pursuit", "warm_start": 1.0, "warm_start_steps": 8}, None),
    ],
)
def test_the_contract_is_kept(settings: dict[str, Any], config: Any) -> None:
    check_policy(warm_policy(config).with_settings(**settings))


def test_deterministic_plans_repeat_and_the_state_is_not_written_to() -> None:
    policy = warm_policy()
    _, state = policy.predict(observe(2), deterministic=True)
    kept = copied(state)
    for part in state:
        part.setflags(write=False)
    results = [policy.predict(along(state, 1), state, None, True) for _ in range(2)]
    assert unchanged(results[0][1], results[1][1])
    assert results[0][1].ages.tolist() == [0, 0]
    assert unchanged(kept, state)
    random = policy.predict(along(state, 1), state)[1]
    assert not np.allclose(random.observations, results[0][1].observations, atol=1e-3)


def test_a_warm_start_costs_the_steps_that_were_asked_for() -> None:
    policy = warm_policy(num_sampling_steps=8, warm_start=0.5, warm_start_steps=2)
    visited: list[int] = []
    denoiser = policy.planner.sampler.denoiser
    denoiser.register_forward_pre_hook(lambda _, inputs: visited.append(inputs[1]))
    _, state = policy.predict(observe(2))
    assert visited == [7, 6, 5, 4, 3, 2, 1, 0]
    visited.clear()
    policy.predict(along(state, 1), state)
    assert visited == [3, 0]


@pytest.mark.parametrize(
    ("level", "sampled", "expected"),
    [
        (0.3, 8, 3),
        (0.5, 8, 4),
        (0.01, 8, 1),
        (0.07, 100, 7),  # in floating point the product is a little more than 7
    ],
)
def test_by_default_a_share_of_the_steps_is_taken(
    level: float, sampled: int, expected: int
) -> None:
    network = NetworkConfig(dim=8, multipliers=(1, 2), num_denoising_steps=100)
    config = toy_config(network=network)
    policy = warm_policy(config, warm_start=level, num_sampling_steps=sampled)
    assert policy.planner.warm_start_steps == expected


def test_guided_warm_plans_keep_the_guides_constraint() -> None:
    """A full step of this guide ends at the waypoint, whatever the denoiser says."""

    def waypoint(trajectory: Trajectory) -> Tensor:
        return -0.5 * (trajectory.position[:, 4] - 0.25).square().sum(dim=-1)

    policy = warm_policy(warm_start_steps=1).with_guide(waypoint)
    started = watch(policy)
    _, state = policy.predict(observe(2))
    for _ in range(3):
        _, state = policy.predict(along(state, 1), state)
        assert state.ages.tolist() == [0, 0]
        np.testing.assert_allclose(state.observations[:, 4, :2], 0.25, atol=1e-4)
    assert all(each is not None for each in started[1:])
    plain = policy.with_guide(None)  # the same weights: it goes on from these plans
    _, state = plain.predict(along(state, 1), state)
    assert not np.allclose(state.observations[:, 4, :2], 0.25, atol=1e-2)


# --- what is refused --------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: toy_policy(seed=1), "another planner"),
        (lambda: toy_policy(toy_config(window=WindowConfig(horizon=8))), "planner"),
    ],
)
def test_a_state_of_another_policy_is_refused(
    other: Callable[[], DiffuserPolicy], message: str
) -> None:
    policy = warm_policy()
    _, state = other().predict(observe(2))
    kept, made = copied(state), count_plans(policy)
    with pytest.raises(ObservationError, match=message):
        policy.predict(observe(2), state)
    assert made == []
    assert unchanged(kept, state)
    twin = warm_policy()
    assert unchanged(policy.predict(observe(2))[1], twin.predict(observe(2))[1])


def test_weights_of_any_type_can_be_told_apart() -> None:
    fingerprints = set()
    for seed in (0, 1):
        networks = warm_policy().networks
        denoiser = networks.denoiser.to(torch.bfloat16 if seed else torch.float64)
        fresh = PlannerNetworks(denoiser, networks.normalizer)
        fingerprints.add(fresh.fingerprint)
    assert len(fingerprints) == 2


def test_planners_are_told_apart_by_their_weights_and_not_by_their_settings() -> None:
    """So a state survives a change of settings, and no exchange of weights."""
    policy, other = warm_policy(), toy_policy(seed=1)
    changed = policy.with_settings(num_candidates=5, warm_start=None)
    fingerprints = [each.planner.fingerprint for each in (policy, changed, other)]
    assert fingerprints[0] == fingerprints[1] == warm_policy().planner.fingerprint
    assert fingerprints[0] != fingerprints[2]


def test_planners_are_told_apart_by_their_stride() -> None:
    """The same weights, and yet a planning step is another time."""
    fine = warm_policy()
    window = dataclasses.replace(fine.config.window, stride=2)
    coarse = DiffuserPolicy(
        dataclasses.replace(fine.config, window=window), fine.networks
    )
    assert coarse.planner.fingerprint != fine.planner.fingerprint


@pytest.mark.parametrize(
    ("setting", "value"),
    [("warm_start", value) for value in (0.0, -0.1, 1.01, np.nan, np.inf, "0.3")]
    + [("warm_start_steps", value) for value in (0, -1, 1.5)],
)
def test_impossible_settings_are_refused(setting: str, value: Any) -> None:
    policy = warm_policy()
    with pytest.raises(ConfigError, match=setting):
        policy.with_settings(**{setting: value})
    assert policy.planner.warm_start == 0.3


@pytest.mark.parametrize("share", [1e-12, 5e-324])
def test_a_warm_start_from_next_to_no_noise_takes_one_step(share: float) -> None:
    policy = warm_policy(warm_start=share)
    _, state = policy.predict(observe(2))
    started = watch(policy)
    policy.predict(along(state, 1), state)
    assert [start and start.num_steps for start in started] == [1]


def test_a_chain_of_warm_and_cold_plans_is_refused() -> None:
    policy = warm_policy()
    _, state = policy.predict(observe(2))
    lengths = np.array([16, 0])
    with pytest.raises(ConditionError, match="1 of 2 are warm"):
        policy.planner.plan(
            state.observations[:, 1],
            state.goals,
            [torch.Generator() for _ in range(2)],
            previous=Following(
                observations=state.observations,
                actions=state.actions,
                lengths=lengths,
                progress=np.ones(2),
                stride=1,
            ),
            keep_chain=True,
        )
