"""The subcommand `train-critic`."""

from __future__ import annotations

from dataclasses import dataclass, field

import tyro

from diffuser_policy.cli.training import (
    CompanionSettings,
    candidate_options,
    evaluate_command,
    train_companion,
)
from diffuser_policy.config import CriticConfig, CriticTrainConfig, OptimizationConfig


@dataclass(frozen=True, kw_only=True)
class TrainCriticSettings(CompanionSettings):
    """Train the critic of a planner: the value of what its plans do first.

    It learns from the rewards of the dataset, by implicit Q-learning. The planner is
    not changed. The output folder holds a copy of it with the critic, which chooses
    among candidates: `evaluate --ranking critic`. Stop it at any time: the same command
    resumes.
    """

    part = "critic"
    suitable = "with rewards"
    config_type = CriticTrainConfig

    optimization: tyro.conf.OmitArgPrefixes[OptimizationConfig] = (
        CriticTrainConfig.optimization
    )
    critic: tyro.conf.OmitArgPrefixes[CriticConfig] = field(
        default_factory=CriticConfig
    )


def train_critic(settings: TrainCriticSettings) -> int:
    """Train, and say where the planner with its critic is."""
    from diffuser_policy.training.critic_trainer import CriticTrainer

    return train_companion(
        settings,
        CriticTrainer,
        lambda trainer: (
            f"Next: {evaluate_command(trainer)} --ranking critic "
            f"{candidate_options(trainer, 32)}"
        ),
    )
