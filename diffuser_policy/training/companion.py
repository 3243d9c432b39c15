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
from diffuser_policy.diffusion.conditions import Inpainting
from diffuser_policy.diffusion.denoiser import Denoiser
from diffuser_policy.errors import SpaceMismatchError
from diffuser_policy.settings import to_json
from diffuser_policy.training.derive import space_spec
from diffuser_policy.training.loss import step_generator
from diffuser_policy.training.processes import Processes
from diffuser_policy.training.trainer import TrainingRun

Network = TypeVar("Network", bound=nn.Module)


class CompanionLoss(nn.Module):
    """Loss of a companion on a fresh batch of noisy trajectories.

    Subclasses implement `draw`.

    Attributes:
        part: The network's name among `PlannerNetworks`.
    """

    part: ClassVar[str]

    def __init__(
        self,
        network: nn.Module,
        denoiser: Denoiser,
        *,
        config: CompanionTrainConfig,
        device: torch.device,
    ) -> None:
        """Hold the network.

        Args:
            network: `loss(noisy, i, targets)` returns a scalar.
            denoiser: Of the planner; its schedule says how noisy step i is.
            config: Batch size and seed.
            device: Where the networks are.
        """
        super().__init__()
        self.network, self.config, self.device = network, config, device
        self._process = (denoiser,)  # a tuple: it is neither trained nor saved

    def draw(
        self, step: int, generator: Generator
    ) -> tuple[Tensor, Inpainting | None, Tensor]:
        """Return what one batch learns from.

        Args:
            step: Gradient step.
            generator: Source of randomness, advanced by the call.

        Returns:
            Clean trajectories `[batch, planning steps, transition]`, normalized, the
            conditions that are written back into noisy ones, if any, and the targets.
        """
        raise NotImplementedError

    def forward(self, step: int, process: int, accumulation: int) -> dict[str, Tensor]:
        """Return the scalar loss, by the network's name.

        Args:
            step: Gradient step.
            process: Rank of this process.
            accumulation: Which of the batches that make up one gradient step.
        """
        [denoiser] = self._process
        generator = step_generator(self.config.seed, step, 1 + process, accumulation)
        clean, given, targets = self.draw(step, generator)
        num_steps = denoiser.schedule.num_denoising_steps
        i = torch.randint(num_steps, (len(clean),), generator=generator)
        noise = torch.randn(clean.shape, generator=generator)
        noisy = denoiser.add_noise(clean, noise, i)
        if given is not None:
            noisy = given.apply(noisy)
        arguments = (part.to(self.device) for part in (noisy, i, targets))
        return {self.part: self.network.loss(*arguments)}  # type: ignore[operator]


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
