"""A small training and a small planner that several test files use."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diffuser_policy.checkpoint import read_planner
from diffuser_policy.config import (
    ExecutionConfig,
    NetworkConfig,
    TrainConfig,
    WindowConfig,
)
from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.policy import DiffuserPolicy
from diffuser_policy.testing import toy_config, toy_dataset, toy_policy
from diffuser_policy.training.run import TrainingRun
from diffuser_policy.training.trainer import Trainer


def trained(output: Path, config: TrainConfig | None = None, **run: Any) -> Trainer:
    """Return a trainer that has run to its last step on the CPU."""
    trainer = Trainer(config or toy_config(), toy_dataset(), output, device="cpu")
    trainer.run(progress=False, **run)
    return trainer


def weights(output: Path) -> dict[str, Tensor]:
    """Return the weights of a planner by name."""
    return read_planner(output)[1].state_dict()


def press_ctrl_c_in_the_third_step(
    trainer: type[TrainingRun[Any]], patch: pytest.MonkeyPatch
) -> None:
    """Interrupt trainings of this kind; the step is finished all the same."""
    descend = trainer._descend

    def interrupted(self: TrainingRun[Any]) -> dict[str, float]:
        if self.step == 2:
            signal.raise_signal(signal.SIGINT)
        return descend(self)

    patch.setattr(trainer, "_descend", interrupted)


def has_batches_of_its_own(loss: nn.Module) -> bool:
    """Return whether steps, processes and accumulations see other data, repeatably."""
    batches = [*product((0, 1), repeat=3)]
    with torch.no_grad():
        found, again = (
            [torch.stack([*loss(*batch).values()]).sum().item() for batch in batches]
            for _ in range(2)
        )
    return found == again and len({*found}) == len(batches)


def seed_of(output: Path) -> int:
    """Return the seed of the training in a folder."""
    settings = output / "training" / "settings.json"
    return int(json.loads(settings.read_text())["seed"])


def is_fixed_by_its_seed(make: Callable[[int], TrainingRun[Any]]) -> bool:
    """Return whether the seed decides the first weights, and by itself the batches."""
    run, same, other = (make(seed) for seed in (3, 3, 4))
    first, again, others = (
        nn.utils.parameters_to_vector(each.networks.parameters())
        for each in (run, same, other)
    )
    weights_follow = torch.equal(first, again) and not torch.equal(first, others)
    losses = []
    for each in (run, same, other):
        for network in (each.networks, each.average):
            network.load_state_dict(run.networks.state_dict())
        with torch.no_grad():
            losses.append(torch.stack([*each.loss(0, 0, 0).values()]).sum().item())
    return weights_follow and losses[0] == losses[1] != losses[2]


def pendulum_policy(**metadata: Any) -> DiffuserPolicy:
    """Return an untrained planner of single actions for Gymnasium's Pendulum."""
    config = toy_config(
        window=WindowConfig(horizon=1, hindsight_goal="none"),
        network=NetworkConfig(architecture="mlp", dim=8, depth=1),
        time_to_goal=None,
        execution=ExecutionConfig(executor="actions"),
    )
    rng = np.random.default_rng(0)
    fields = {
        "observation": rng.normal(size=(60, 3)),
        "action": rng.uniform(-2, 2, (60, 1)),
        "reward": np.zeros(60),
        "terminated": np.zeros(60, np.bool_),
    }
    bounds = {"action_low": [-2.0], "action_high": [2.0]}
    metadata = {"env_id": "Pendulum-v1", **bounds, **metadata}
    flat = FlatDataset(fields, np.array([0, 60]), metadata)
    return toy_policy(config, flat=flat)
