"""Networks that a trained planner gets beside its denoiser.

A companion reads what the denoiser reads while it samples: trajectories of the
planner's columns, noised to a random denoising step of its schedule. Training leaves
the planner as it is. The output folder holds a planner of its own: the same denoiser,
and the companion beside it (`training/run.py` lists the files and explains how a
run resumes).
"""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import ClassVar, TypeVar

from torch import Generator, Tensor, nn

from diffuser_policy.build import PlannerNetworks, config_featurizer, weight_checksum
from diffuser_policy.checkpoint import write_planner
from diffuser_policy.columns.features import Featurizer
from diffuser_policy.config import CompanionTrainConfig, PolicyConfig
from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.diffusion.conditions import Inpainting
from diffuser_policy.envs import is_other_version
from diffuser_policy.errors import SpaceMismatchError
from diffuser_policy.numerics import plain_arithmetic
from diffuser_policy.settings import differences, to_json
from diffuser_policy.training.derive import space_spec
from diffuser_policy.training.processes import Processes
from diffuser_policy.training.run import TrainingRun

Network = TypeVar("Network", bound=nn.Module)
Batch = tuple[Tensor, Inpainting | None, Tensor]


class CompanionTrainer(TrainingRun[Network]):
    """Trains a network for a planner, and writes both to a folder.

    Subclasses implement `prepare` and `draw`.

    Attributes:
        part: The network's name among `PlannerNetworks`.
        config: Settings; saved with the planner.
        policy_config: The planner's settings, and those of the companion.
        planner_networks: The planner's networks, and the averaged companion.
    """

    part: ClassVar[str]

    @plain_arithmetic(gradients=True)
    def __init__(
        self,
        config: CompanionTrainConfig,
        planner: tuple[PolicyConfig, PlannerNetworks],
        flat: FlatDataset,
        output: str | Path,
        *,
        processes: Processes | None = None,
    ) -> None:
        """Build network and data, and restore the latest checkpoint if there is one.

        Args:
            config: Settings; saved with the planner.
            planner: The result of `read_planner`; left as it is.
            flat: The data.
            output: Folder of the run, created on the first save.
            processes: How several processes share the work; one process if not given.

        Raises:
            ConfigError: The folder holds a run with other settings, data or planner.
            SpaceMismatchError: Data of another environment than the planner's.
            DatasetError: Data from which there is nothing to learn.
            UnknownNameError: No such labels.
        """
        processes = processes or Processes.single()
        self.config = config
        self.policy_config, networks = planner[0], copy.deepcopy(planner[1])
        self.planner_networks = networks
        featurizer = config_featurizer(self.policy_config)
        check_spaces(self.policy_config, flat, featurizer)
        network, facts = self.prepare(flat, featurizer)
        self.data_facts = {**flat.facts, **facts}
        network.to(processes.device)
        self.processes = processes
        super().__init__(
            network,
            seed=config.seed,
            optimization=config.optimization,
            settings={
                **to_json(config),
                "data": self.data_facts,
                "weights": weight_checksum(networks.denoiser, networks.normalizer),
            },
            output=output,
            processes=processes,
        )
        if getattr(networks, self.part) is not None:  # it may have earned the figures
            self.policy_config = self.policy_config.without_results()
        setattr(networks, self.part, self.average)

    def prepare(
        self, flat: FlatDataset, featurizer: Featurizer
    ) -> tuple[Network, dict[str, int]]:
        """Add the companion to `policy_config`, and hold the data that `draw` needs.

        Args:
            flat: The data.
            featurizer: Makes the planning columns.

        Returns:
            The network with initial weights, and checksums of training targets that
            are not in the data.
        """
        raise NotImplementedError

    def draw(self, step: int, generator: Generator) -> Batch:
        """Return the examples of one batch.

        Args:
            step: Gradient step.
            generator: Source of randomness, advanced by the call.

        Returns:
            Clean trajectories `[batch, planning steps, transition]`, normalized, the
            conditions that are written back into noisy ones, if any, and the targets.
        """
        raise NotImplementedError

    def losses(self, step: int, generator: Generator) -> dict[str, Tensor]:
        """Return the companion's loss on a fresh batch of noisy trajectories."""
        clean, given, targets = self.draw(step, generator)
        noisy, i, _ = self.planner_networks.denoiser.noised(clean, given, generator)
        arguments = (part.to(self.processes.device) for part in (noisy, i, targets))
        return {self.part: self.networks.loss(*arguments)}  # type: ignore[operator]

    def write_planner(self) -> None:
        """Write the planner with the averaged companion."""
        trained = {
            "training": to_json(self.config),
            "data": self.data_facts,
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
    """Refuse data whose spaces, or recorded environment, are not the planner's.

    Raises:
        SpaceMismatchError: They are not.
    """
    ids = [
        str(facts.get("env_id") or "")
        for facts in (flat.metadata, planner.provenance.get("dataset", {}))
    ]
    if is_other_version(*ids):
        raise SpaceMismatchError(
            f"{flat!r} was recorded in {ids[0]}, and the planner was trained on data "
            f"of {ids[1]}: another version is another environment. Use data of the "
            f"planner's environment."
        )
    derived = planner.window.features is not None
    given, expected = space_spec(flat, featurizer if derived else None), planner.spaces
    # Planners saved by earlier versions don't know the type of actions.
    given = dataclasses.replace(given, action_dtype=expected.action_dtype)
    if given != expected:
        differing = differences(to_json(expected), to_json(given))
        raise SpaceMismatchError(
            f"{flat!r} was recorded in other spaces than the planner was trained in: "
            f"{'; '.join(differing)}. Use data of the planner's environment."
        )
