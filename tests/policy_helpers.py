"""Observations of the toy world, and ways to watch a policy in it."""

from __future__ import annotations

from typing import Any

import numpy as np

from diffuser_policy.policy import DiffuserPolicy, PolicyState


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
