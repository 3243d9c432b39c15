"""A small training that several test files run."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffuser_policy.config import TrainConfig
from diffuser_policy.testing import toy_config, toy_dataset
from diffuser_policy.training.trainer import Trainer


def trained(output: Path, config: TrainConfig | None = None, **run: Any) -> Trainer:
    """Return a trainer that has run to its last step on the CPU."""
    trainer = Trainer(config or toy_config(), toy_dataset(), output, device="cpu")
    trainer.run(progress=False, **run)
    return trainer


def has_batches_of_its_own(loss: nn.Module) -> bool:
    """Return whether steps, processes and accumulations see other data, repeatably."""
    batches = [*product((0, 1), repeat=3)]
    with torch.no_grad():
        found, again = (
            [torch.stack([*loss(*batch).values()]).sum().item() for batch in batches]
            for _ in range(2)
        )
    return found == again and len({*found}) == len(batches)
