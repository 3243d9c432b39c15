"""The subcommand `train-value`."""

from __future__ import annotations

from dataclasses import dataclass, field

import tyro

from diffuser_policy.cli.training import (
    CompanionSettings,
    candidate_options,
    evaluate_command,
    train_companion,
)
from diffuser_policy.config import OptimizationConfig, ValueConfig, ValueTrainConfig


@dataclass(frozen=True, kw_only=True)
class TrainValueSettings(CompanionSettings):
    """Train the value network of a planner: the return that its plans lead to.

    It learns from the rewards of the dataset. The planner is not changed. The output
    folder holds a copy of it with the value network: `evaluate --guide value` follows
    its gradient, with `--ranking guide` it chooses among candidates. Stop it at any
    time: the same command resumes.
    """

    part = "value"
    suitable = "with rewards"
    config_type = ValueTrainConfig

    optimization: tyro.conf.OmitArgPrefixes[OptimizationConfig] = (
        ValueTrainConfig.optimization
    )
    value: tyro.conf.OmitArgPrefixes[ValueConfig] = field(default_factory=ValueConfig)


def train_value(settings: TrainValueSettings) -> int:
    """Train, and say where the planner with its value network is."""
    from diffuser_policy.training.value_trainer import ValueTrainer

    return train_companion(
        settings,
        ValueTrainer,
        lambda trainer: (
            f"Next: {evaluate_command(trainer)} --guide value "
            f"--guide-scale 0 --ranking guide {candidate_options(trainer, 16)}"
        ),
    )
