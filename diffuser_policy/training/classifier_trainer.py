"""Training a classifier of states for a planner that is trained already.

A batch holds single rows of the planner's data, each noised to a random denoising step
of its schedule; the classifier learns which labels held before the noise.
"""

from __future__ import annotations

import copy
import dataclasses
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffuser_policy.build import (
    PlannerNetworks,
    build_classifier,
    config_featurizer,
    seeded,
)
from diffuser_policy.columns.labels import labelled
from diffuser_policy.config import ClassifierConfig, ClassifierTrainConfig, PolicyConfig
from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.data.windows import in_planning_columns, join_rows
from diffuser_policy.errors import ConfigError, DatasetError, UnknownNameError
from diffuser_policy.networks.classifiers import StateClassifier
from diffuser_policy.training.companion import (
    CompanionLoss,
    CompanionTrainer,
    check_spaces,
)
from diffuser_policy.training.processes import Processes
from diffuser_policy.training.state import data_facts


class ClassifierLoss(CompanionLoss):
    """Loss of a classifier on a fresh batch of noisy states."""

    part = "classifier"

    def __init__(
        self, *parts: Any, rows: Tensor, targets: Tensor, **settings: Any
    ) -> None:
        """Hold the network and the data.

        Args:
            parts: As for `CompanionLoss`.
            rows: `[rows, transition]`, normalized, on the CPU.
            targets: `[rows, labels]`, bool.
            settings: As for `CompanionLoss`.
        """
        super().__init__(*parts, **settings)
        self.rows, self.targets = rows, targets

    def draw(
        self,
        step: int,  # noqa: ARG002 (states have no length to draw)
        generator: torch.Generator,
    ) -> tuple[Tensor, None, Tensor]:
        """Return single rows, and which labels hold there."""
        size = (self.config.optimization.batch_size,)
        drawn = torch.randint(len(self.rows), size, generator=generator)
        return self.rows[drawn][:, None], None, self.targets[drawn][:, None].float()


class ClassifierTrainer(CompanionTrainer[StateClassifier]):
    """Trains a classifier and writes it to a folder, with the planner it is for."""

    part = "classifier"
    config: ClassifierTrainConfig

    def __init__(
        self,
        config: ClassifierTrainConfig,
        planner: tuple[PolicyConfig, PlannerNetworks],
        flat: FlatDataset,
        output: Path,
        *,
        processes: Processes | None = None,
    ) -> None:
        """Build network and data, and restore the latest checkpoint if there is one.

        Args:
            config: Settings; saved with the planner.
            planner: What `read_planner` returns; left as it is.
            flat: The data.
            output: Folder of the run, created on the first save.
            processes: How several processes share the work; one process if not given.

        Raises:
            ConfigError: The folder holds a run with other settings, data or planner.
            SpaceMismatchError: Data of another environment than the planner's.
            UnknownNameError: No such labels.
            DatasetError: Labels that hold always or never in the data.
        """
        processes = processes or Processes.single()
        planner_config, networks = planner[0], copy.deepcopy(planner[1])
        rows, names, targets = _examples(config, planner_config, flat)
        classifying = dataclasses.replace(
            planner_config,
            classifier=dataclasses.replace(config.classifier, classes=names),
        )
        with seeded(config.seed):
            network = build_classifier(classifying)
        network.set_balance(_shares(names, targets, flat))
        network.to(processes.device)
        loss = ClassifierLoss(
            network,
            networks.denoiser,
            rows=networks.normalizer.normalize(torch.from_numpy(rows)),
            targets=torch.from_numpy(targets),
            config=config,
            device=processes.device,
        )
        super().__init__(
            network,
            loss,
            config=config,
            planner=(classifying, networks),
            data=_facts(flat, targets),
            output=output,
            processes=processes,
        )

    @property
    def classifier(self) -> StateClassifier:
        """The averaged classifier, with which to steer."""
        return self.average.average


def _examples(
    config: ClassifierTrainConfig, planner: PolicyConfig, flat: FlatDataset
) -> tuple[np.ndarray, tuple[str, ...], np.ndarray]:
    """Return rows `[rows, transition]`, names of labels, and `[rows, labels]`.

    Raises:
        SpaceMismatchError: Data of another environment than the planner's.
        UnknownNameError: No such labels.
    """
    featurizer = config_featurizer(planner)
    check_spaces(planner, flat, featurizer)
    rows = join_rows(in_planning_columns(flat, featurizer), planner.layout)
    names, targets = labelled(config.labels, rows, planner.layout)
    return rows, *_chosen(config.classifier, names, targets)


def _facts(flat: FlatDataset, targets: np.ndarray) -> dict[str, int]:
    """Return what tells a labelled dataset from another one."""
    labels = zlib.crc32(np.ascontiguousarray(targets).data)
    return {**data_facts(flat), "labels": labels}


def _chosen(
    classifier: ClassifierConfig, names: tuple[str, ...], targets: np.ndarray
) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the labels that are asked for, all of them if none are named.

    Raises:
        UnknownNameError: No label of that name.
        ConfigError: Some labels, or another order, for a classifier of pairs.
    """
    wanted = classifier.classes
    for name in wanted:
        if name not in names:
            raise UnknownNameError("label", name, names)
    if not wanted or wanted == names:
        return names, targets
    if classifier.architecture == "pairs":
        raise ConfigError(
            "architecture='pairs' has one output for each ordered pair of objects, and "
            "learns all labels in their own order. Leave classes (--classes) out, or "
            "use architecture='mlp'."
        )
    return wanted, targets[:, [names.index(name) for name in wanted]]


def _shares(names: tuple[str, ...], targets: np.ndarray, flat: FlatDataset) -> Tensor:
    """Return the share of the rows in which each label holds.

    Raises:
        DatasetError: All or none: there is nothing to learn.
    """
    shares = targets.mean(axis=0, dtype=np.float64)
    for name, share in zip(names, shares.tolist(), strict=True):
        if share in (0.0, 1.0):
            raise DatasetError(
                f"The label {name!r} holds in {'all' if share else 'none'} of the "
                f"{flat.num_rows:,} rows of {flat!r}: there is nothing to learn. "
                f"Record data in which it comes and goes, or choose others with "
                f"--classes."
            )
    return torch.from_numpy(shares).float()
