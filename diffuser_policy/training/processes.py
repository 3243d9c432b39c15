"""One training loop on one process or on several, through Accelerate.

Every process draws its own batches; gradients are averaged in `backward`. Started by
`accelerate launch` or `torchrun`, which set the variables that Accelerate reads.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffuser_policy.errors import ConfigError, require_extra
from diffuser_policy.numerics import find_device


@dataclass(frozen=True, kw_only=True)
class Processes:
    """The processes that share the training loop, as one of them sees it.

    Attributes:
        device: Where this process computes.
        rank: Number of this process.
        num_processes: How many there are.
        prepare: Wraps the loss so that gradients are averaged over processes.
        backward: Runs the backward pass.
    """

    device: torch.device
    rank: int
    num_processes: int
    prepare: Callable[[nn.Module], Callable[..., Any]]
    backward: Callable[[Tensor], None]

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    @classmethod
    def single(cls, device: str = "auto") -> Processes:
        """Return the plain loop on one process.

        Raises:
            ConfigError: There is no such device on this machine.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(
            device=find_device(device),
            rank=0,
            num_processes=1,
            prepare=lambda module: module,
            backward=torch.Tensor.backward,
        )

    @classmethod
    def launched(cls, device: str = "auto") -> Processes:
        """Return all processes that a launcher started, or the single one.

        Args:
            device: "cpu" keeps the processes off the GPUs.

        Raises:
            ConfigError: There is no such device on this machine, or several processes
                would share one of a number.
            MissingExtraError: Several processes without Accelerate installed.
        """
        count = int(os.environ.get("WORLD_SIZE", "1"))
        if count == 1:
            return cls.single(device)
        if device != "auto":
            find_device(device)
        kind, _, number = device.partition(":")
        if number:
            raise ConfigError(
                f"Each of {count} processes computes on a device of its own, got "
                f"{device!r} (--device on the command line). Use {kind!r}; "
                f"CUDA_VISIBLE_DEVICES chooses GPUs."
            )
        accelerate = require_extra("accelerate", "train")
        accelerator = accelerate.Accelerator(
            cpu=device == "cpu",
            mixed_precision="no",  # even if the launcher is configured otherwise
        )
        return cls(
            device=accelerator.device,
            rank=accelerator.process_index,
            num_processes=accelerator.num_processes,
            prepare=accelerator.prepare,
            backward=accelerator.backward,
        )
