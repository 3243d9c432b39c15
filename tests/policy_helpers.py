"""Observations of the toy world, and ways to watch a policy in it."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from diffuser_policy.config import TrainConfig
from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.planning.state import PolicyState
from diffuser_policy.policy import DiffuserPolicy
from diffuser_policy.training.derive import initial_networks, policy_config


def observe(num_envs: int | None = None, *, goal: float = 0.5, seed: int = 0) -> Any:
    """Return one observation, or a batch."""
    shape = () if num_envs is None else (num_envs,)
    rng = np.random.default_rng(seed)
    observation = rng.uniform(-0.5, 0.5, (*shape, 4)).astype(np.float32)
    return {
        "observation": observation,
        "achieved_goal": observation[..., :2],
        "desired_goal": np.full((*shape, 2), goal, np.float32),
    }


def count_plans(policy: DiffuserPolicy) -> list[int]:
    """Return a list that grows by the number of rows of every plan that is made."""
    made: list[int] = []
    plan = policy.planner.plan

    def counted(observations: np.ndarray, *rest: Any, **settings: Any) -> Any:
        made.append(len(observations))
        return plan(observations, *rest, **settings)

    policy.planner.plan = counted  # type: ignore[method-assign]
    return made


def unchanged(before: PolicyState, after: PolicyState) -> bool:
    return all(map(np.array_equal, before, after))


def copied(state: PolicyState) -> PolicyState:
    return PolicyState(*(part.copy() for part in state))


def follow(
    policy: DiffuserPolicy,
    num_steps: int,
    observation: Any = None,
    **settings: Any,
) -> PolicyState:
    """Call predict with the same observation and return the last state."""
    observation = observe() if observation is None else observation
    state: PolicyState | None = None
    for _ in range(num_steps):
        _, state = policy.predict(observation, state, **settings)
    return state or policy.initial_state(1)


def untrained_policy(env_id: str, *, horizon: int) -> DiffuserPolicy:
    """Return a policy of an environment without goals, as random rows would have it.

    Args:
        env_id: Of an environment whose observations are a vector.
        horizon: Env steps of a plan.
    """
    env = gymnasium.make(env_id)
    seen: Any = env.observation_space
    acted: Any = env.action_space
    rng, rows = np.random.default_rng(0), 60
    fields = {
        "observation": rng.normal(size=(rows, *seen.shape)),
        "action": rng.uniform(acted.low, acted.high, (rows, *acted.shape)),
        "reward": rng.normal(size=rows),
        "terminated": np.zeros(rows, np.bool_),
    }
    facts = {"env_id": env_id, "dataset_id": "test/random-v0"}
    box = {"action_low": acted.low.tolist(), "action_high": acted.high.tolist()}
    flat = FlatDataset(fields, np.array([0, 30, rows]), {**facts, **box})
    config = TrainConfig.for_dataset(flat, window={"horizon": horizon})
    settings = policy_config(config, flat)
    return DiffuserPolicy(settings, initial_networks(settings, flat, 0))
