"""The subcommand `train-classifier`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from diffuser_policy.cli.options import changed, shown_as
from diffuser_policy.cli.training import CompanionSettings, train_companion
from diffuser_policy.config import (
    ClassifierConfig,
    ClassifierTrainConfig,
    CompanionTrainConfig,
    OptimizationConfig,
)
from diffuser_policy.needs import CLASSIFIER_NEEDS, refuse_idle


@dataclass(frozen=True, kw_only=True)
class TrainClassifierSettings(CompanionSettings):
    """Train the classifier of a planner: which labels hold at a noisy planning step.

    Guides ask for labels: `evaluate --guide stack-match` for one block on another. The
    planner is not changed. The output folder holds a copy of it with the classifier.
    Stop it at any time: the same command resumes.
    """

    part = "classifier"
    suitable = "of its environment"
    config_type = ClassifierTrainConfig

    labels: Annotated[str, shown_as("NAME")]
    """What to learn: labels that a package offers, such as kuka-pairs (which block is
    on which), module:function, or file.py:function."""
    optimization: tyro.conf.OmitArgPrefixes[OptimizationConfig] = (
        ClassifierTrainConfig.optimization
    )
    classifier: tyro.conf.OmitArgPrefixes[ClassifierConfig] = field(
        default_factory=ClassifierConfig
    )

    def config(self, recorded: str | None) -> CompanionTrainConfig:
        """Return what determines the classifier, as `CompanionSettings` does."""
        network = vars(self.classifier)
        given = changed(network, vars(ClassifierConfig()))
        refuse_idle(given, network, CLASSIFIER_NEEDS)
        return super().config(recorded)


def train_classifier(settings: TrainClassifierSettings) -> int:
    """Train, and say where the planner with its classifier is."""
    from diffuser_policy.training.classifier_trainer import ClassifierTrainer

    return train_companion(
        settings,
        ClassifierTrainer,
        lambda trainer: f"It predicts: {', '.join(trainer.average.labels)}.",
    )
