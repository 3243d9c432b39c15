"""Networks that a trained planner gets beside its denoiser.

A companion reads what the denoiser reads while it samples: trajectories of the
planner's columns, noised to a random denoising step of its schedule. The planner is
left as it is. The output folder is a planner of its own: the same denoiser, and the
companion beside it (`training/trainer.py` shows its files and how it is resumed).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Generator, Tensor, nn

from diffuser_policy.build import PlannerNetworks, weight_checksum
from diffuser_policy.checkpoint import write_planner
from diffuser_policy.columns.features import Featurizer
from diffuser_policy.config import CompanionTrainConfig, PolicyConfig
from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.diffusion.denoiser import Denoiser
from diffuser_policy.errors import SpaceMismatchError
from diffuser_policy.settings import to_json
from diffuser_policy.training.derive import space_spec
from diffuser_policy.training.processes import Processes
from diffuser_policy.training.trainer import TrainingRun

Network = TypeVar("Network", bound=nn.Module)


class CompanionTrainer(TrainingRun[Network]):
    """Trains a network for a planner, and writes both to a folder.

    Subclasses build the network and its loss.

    Attributes:
        part: The network's name among `PlannerNetworks`.
        config: Settings; saved with the planner.
        policy_config: Of the planner with the companion.
        planner_networks: The planner's, and the averaged companion.
    """

    part: ClassVar[str]

    def __init__(
        self,
        network: Network,
        loss: nn.Module,
        *,
        config: CompanionTrainConfig,
        planner: tuple[PolicyConfig, PlannerNetworks],
        data: Mapping[str, int],
        output: Path,
        processes: Processes,
    ) -> None:
        """Restore the latest checkpoint if there is one.

        Args:
            network: Initial weights, on the device of the processes.
            loss: As `TrainingRun` takes it.
            config: Settings.
            planner: Settings that include the companion's, and networks that will.
            data: Tells the dataset from others.
            output: Folder of the run, created on the first save.
            processes: How several processes share the work.

        Raises:
            ConfigError: The folder holds a run with other settings, data or planner.
        """
        self.config, self.flat_facts = config, dict(data)
        self.policy_config, self.planner_networks = planner
        networks = self.planner_networks
        super().__init__(
            network,
            loss,
            optimization=config.optimization,
            settings={
                **to_json(config),
                "data": self.flat_facts,
                "weights": weight_checksum(networks.denoiser, networks.normalizer),
            },
            output=output,
            processes=processes,
        )
        setattr(networks, self.part, self.average.average)

    def write_planner(self) -> None:
        """Write the planner with the averaged companion."""
        trained: dict[str, Any] = {
            "training": to_json(self.config),
            "data": self.flat_facts,
            "steps": self.step,
            "processes": self.processes.num_processes,
        }
        write_planner(
            self.output,
            self.policy_config,
            self.planner_networks,
            provenance={self.part: trained},
        )


def noised(
    denoiser: Denoiser, clean: Tensor, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Return trajectories noised to random denoising steps, and the steps.

    Args:
        denoiser: Its schedule says how noisy step i is.
        clean: `[batch, planning steps, transition]`, normalized.
        generator: Source of steps and noise.

    Returns:
        `[batch, planning steps, transition]` and `[batch]`.
    """
    num_steps = denoiser.schedule.num_denoising_steps
    i = torch.randint(num_steps, (len(clean),), generator=generator)
    noise = torch.randn(clean.shape, generator=generator)
    return denoiser.add_noise(clean, noise, i), i


def check_spaces(
    planner: PolicyConfig, flat: FlatDataset, featurizer: Featurizer
) -> None:
    """Refuse data whose observations or actions are not the planner's."""
    derived = planner.window.features is not None
    given, expected = space_spec(flat, featurizer if derived else None), planner.spaces
    if given != expected:
        raise SpaceMismatchError(
            f"The planner was trained in the spaces {expected}, and {flat!r} was "
            f"recorded in {given}. Use data of the planner's environment."
        )
