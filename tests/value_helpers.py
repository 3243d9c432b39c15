"""Value networks with weights that tell every tensor apart, and data with rewards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffuser_policy.config import (
    OptimizationConfig,
    TrainConfig,
    ValueConfig,
    ValueTrainConfig,
    WindowConfig,
)
from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.networks.value import ValueNetwork
from diffuser_policy.policy import DiffuserPolicy
from diffuser_policy.testing import toy_config, toy_dataset, toy_policy
from diffuser_policy.training.processes import Processes
from diffuser_policy.training.value_trainer import ValueTrainer


def random_value_network(
    transition_dim: int = 4, *, seed: int = 0, **settings: Any
) -> ValueNetwork:
    """Return a network in which no two weights are equal, biases included."""
    settings = {"dim": 16, "multipliers": (1, 4), **settings}
    network = ValueNetwork(transition_dim, **settings)
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 5
    return network


def rewarded(seed: int = 0, **facts: Any) -> FlatDataset:
    """Return toy data that pays for being on the right."""
    flat = toy_dataset(num_runs=6, seed=seed)
    fields = dict(flat.fields)
    fields["reward"] = fields["observation"][:, 0]
    return FlatDataset(fields, flat.run_starts, {**flat.metadata, **facts})


def value_config(**parts: Any) -> ValueTrainConfig:
    """Return settings of a value network small enough for a test."""
    settings: dict[str, Any] = {
        "dataset": "toy/point-v0",
        "value": ValueConfig(dim=16, multipliers=(1, 4), discount=0.9),
        "optimization": OptimizationConfig(num_steps=6, batch_size=4),
    }
    return ValueTrainConfig(**{**settings, **parts})


def make_trainer(
    output: Path,
    *,
    policy: DiffuserPolicy | None = None,
    flat: FlatDataset | None = None,
    **parts: Any,
) -> ValueTrainer:
    """Return a training of a small value network on the CPU."""
    policy = toy_policy() if policy is None else policy
    return ValueTrainer(
        value_config(**parts),
        (policy.config, policy.networks),
        rewarded() if flat is None else flat,
        output,
        processes=Processes.single("cpu"),
    )


def fixed_length() -> TrainConfig:
    """Return settings of a planner whose plans have one length."""
    return toy_config(window=WindowConfig(horizon=16))


def with_rewards(rewards: np.ndarray, *, ends: tuple[int, ...] = ()) -> FlatDataset:
    """Return data of three runs with these rewards; some rows terminate."""
    num_rows = len(rewards)
    flat = toy_dataset(num_runs=3, run_length=num_rows // 3)
    terminated = np.zeros(num_rows, np.bool_)
    terminated[list(ends)] = True
    fields = {**flat.fields, "reward": rewards, "terminated": terminated}
    return FlatDataset(fields, flat.run_starts, flat.metadata)
