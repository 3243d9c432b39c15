"""A small training that several test files run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffuser_policy.config import TrainConfig
from diffuser_policy.testing import toy_config, toy_dataset
from diffuser_policy.training.trainer import Trainer


def trained(output: Path, config: TrainConfig | None = None, **run: Any) -> Trainer:
    """Return a trainer that has run to its last step on the CPU."""
    trainer = Trainer(config or toy_config(), toy_dataset(), output, device="cpu")
    trainer.run(progress=False, **run)
    return trainer
