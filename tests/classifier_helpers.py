"""Labels of the toy points, and settings of classifiers small enough for a test."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffuser_policy.config import (
    ClassifierConfig,
    ClassifierTrainConfig,
    OptimizationConfig,
)
from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.policy import DiffuserPolicy
from diffuser_policy.testing import toy_dataset, toy_policy
from diffuser_policy.training.classifier_trainer import ClassifierTrainer
from diffuser_policy.training.processes import Processes

SIDES = "tests.classifier_helpers:sides"


def sides(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tell on which sides of the middle a point is, and whether it is slow."""
    x, y = columns["position"].T
    speed = np.linalg.norm(columns["velocity"], axis=1)
    return {"right": x > 0.0, "above": y > 0.5, "slow": speed < 0.4}


def never(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tell of something that does not happen."""
    return {"far": columns["position"][:, 0] > 1e6}


def misshapen(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return one label too many for each row."""
    return {"right": columns["position"] > 0.0}


def elsewhere(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Ask for columns that points do not have."""
    return {"high": columns["altitude"][:, 0] > 0.0}


def classifier_config(**parts: Any) -> ClassifierTrainConfig:
    """Return settings of a small classifier of the toy points."""
    settings: dict[str, Any] = {
        "dataset": "toy/point-v0",
        "labels": SIDES,
        "classifier": ClassifierConfig(width=16, depth=2),
        "optimization": OptimizationConfig(num_steps=6, batch_size=8),
    }
    return ClassifierTrainConfig(**{**settings, **parts})


def make_trainer(
    output: Path,
    *,
    policy: DiffuserPolicy | None = None,
    flat: FlatDataset | None = None,
    **parts: Any,
) -> ClassifierTrainer:
    """Return a training of a small classifier of the toy points on the CPU."""
    policy = toy_policy() if policy is None else policy
    return ClassifierTrainer(
        classifier_config(**parts),
        (policy.config, policy.networks),
        toy_dataset() if flat is None else flat,
        output,
        processes=Processes.single("cpu"),
    )
