"""Small datasets, settings and planners that build in milliseconds.

The toy world is a point on a plane: the action is a force, the observation is
position and velocity. It has the columns of a maze and no walls.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from diffuser_policy.build import config_featurizer
from diffuser_policy.config import (
    ExecutionConfig,
    NetworkConfig,
    OptimizationConfig,
    PlannerConfig,
    TimeToGoalConfig,
    TrainConfig,
    WindowConfig,
)
from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.data.windows import in_planning_columns
from diffuser_policy.policy import DiffuserPolicy
from diffuser_policy.settings import seed_or_drawn
from diffuser_policy.training.derive import initial_networks, policy_config

SECONDS_PER_STEP = 0.1


def toy_dataset(
    num_runs: int = 3, run_length: int = 60, *, goals: bool = True, seed: int = 0
) -> FlatDataset:
    """Return runs of a point that is pushed about.

    Args:
        num_runs: Stretches without a reset.
        run_length: Env steps of each.
        goals: With `achieved_goal` and `desired_goal`, the position now and at the
            run's end.
        seed: Fixes the forces and first states.
    """
    rng = np.random.default_rng(seed)
    phases = rng.uniform(0, 2 * np.pi, (num_runs, 1, 2))
    speeds = rng.uniform(0.5, 1.5, (num_runs, 1, 2))
    seconds = SECONDS_PER_STEP * np.arange(run_length)[None, :, None]
    action = np.cos(speeds * seconds + phases)
    velocity = np.cumsum(action, axis=1) * SECONDS_PER_STEP
    position = np.cumsum(velocity, axis=1) * SECONDS_PER_STEP
    position += rng.uniform(-1, 1, (num_runs, 1, 2))
    observation = np.concatenate([position, velocity], axis=2).reshape(-1, 4)
    num_rows = num_runs * run_length
    fields = {
        "observation": observation,
        "action": action.reshape(num_rows, 2),
        "reward": np.zeros(num_rows),
        "terminated": np.zeros(num_rows, np.bool_),
    }
    if goals:
        fields["achieved_goal"] = observation[:, :2]
        fields["desired_goal"] = np.repeat(position[:, -1], run_length, axis=0)
    metadata = {
        "dataset_id": "toy/point-v0",
        "env_id": "toy/Point-v0",
        "observation_columns": {"position": [0, 1], "velocity": [2, 3]},
        "action_low": [-1.0, -1.0],
        "action_high": [1.0, 1.0],
    }
    return FlatDataset(fields, np.arange(num_runs + 1) * run_length, metadata)


def toy_config(**parts: Any) -> TrainConfig:
    """Return settings of a planner small enough for a test.

    Args:
        parts: Fields of `TrainConfig` that differ.
    """
    settings: dict[str, Any] = {
        "dataset": "toy/point-v0",
        "window": WindowConfig(horizon=16, min_horizon=8),
        "network": NetworkConfig(dim=8, multipliers=(1, 2), num_denoising_steps=8),
        "time_to_goal": TimeToGoalConfig(width=16, max_steps=16, batch_size=16),
        "optimization": OptimizationConfig(num_steps=6, batch_size=4),
        "planner": PlannerConfig(num_sampling_steps=2, num_candidates=2),
        "execution": ExecutionConfig(position_gain=10.0),
    }
    return TrainConfig(**{**settings, **parts})


def toy_policy(
    config: TrainConfig | None = None,
    *,
    flat: FlatDataset | None = None,
    seed: int = 0,
    **settings: Any,
) -> DiffuserPolicy:
    """Return a policy with random weights: its plans are bad, their form is right.

    Args:
        config: Settings; those of `toy_config` if not given.
        flat: Data that spaces and normalizer are taken from.
        seed: Fixes the weights and the policy.
        settings: Planning and execution settings, as in
            `DiffuserPolicy.with_settings`.

    Raises:
        ConfigError: A seed that is none, or settings that contradict each other.
    """
    seed = seed_or_drawn(seed)
    flat = toy_dataset() if flat is None else flat
    made = policy_config(toy_config() if config is None else config, flat)
    planned = in_planning_columns(flat, config_featurizer(made))
    networks = initial_networks(made, planned, seed)
    policy = DiffuserPolicy(made, networks.requires_grad_(False).eval(), seed=seed)
    return policy.with_settings(**settings) if settings else policy
