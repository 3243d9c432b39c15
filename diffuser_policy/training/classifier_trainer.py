"""Training a classifier of states for a planner that is trained already.

A batch holds single rows of the planner's data, each noised to a random denoising step
of its schedule; the classifier learns which labels held before the noise.
"""

from __future__ import annotations

import copy
import dataclasses
import zlib

import numpy as np
import torch
from torch import Tensor

from diffuser_policy.build import build_classifier, seeded
from diffuser_policy.columns.features import Featurizer
from diffuser_policy.columns.labels import labelled
from diffuser_policy.config import ClassifierConfig, ClassifierTrainConfig
from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.data.windows import PlanningRows
from diffuser_policy.errors import ConfigError, DatasetError, UnknownNameError
from diffuser_policy.networks.classifiers import StateClassifier
from diffuser_policy.training.companion import Batch, CompanionTrainer


class ClassifierTrainer(CompanionTrainer[StateClassifier]):
    """Trains a classifier and writes it to a folder, with the planner it is for.

    Attributes:
        rows: The planner's data.
        targets: `[rows, labels]`, bool.
    """

    part = "classifier"
    config: ClassifierTrainConfig

    def prepare(
        self, flat: FlatDataset, featurizer: Featurizer
    ) -> tuple[StateClassifier, dict[str, int]]:
        """Return the network, balanced by the data, and a checksum of the labels.

        Raises:
            UnknownNameError: No such labels.
            ConfigError: Some labels, or another order, for a classifier of pairs.
            DatasetError: Labels that hold always or never in the data.
        """
        layout, settings = self.policy_config.layout, self.config.classifier
        self.rows = PlanningRows(flat, featurizer, layout)
        every, found = labelled(self.config.labels, self.rows, layout)
        names, targets = _chosen(settings, every, found)
        settings = dataclasses.replace(settings, classes=names)
        self.policy_config = dataclasses.replace(
            self.policy_config, classifier=settings
        )
        with seeded(self.config.seed):
            network = build_classifier(self.policy_config, settings)
        network.set_balance(_shares(names, targets, flat))
        self.normalizer = copy.deepcopy(self.planner_networks.normalizer).cpu()
        self.targets = torch.from_numpy(targets)
        return network, {"labels": zlib.crc32(np.ascontiguousarray(targets).data)}

    def draw(
        self,
        step: int,  # noqa: ARG002 (states have no length to draw)
        generator: torch.Generator,
    ) -> Batch:
        """Return single rows, and which labels hold there."""
        size = (self.config.optimization.batch_size,)
        drawn = torch.randint(len(self.targets), size, generator=generator)
        targets = self.targets[drawn][:, None].float()
        return self.read(drawn)[:, None], None, targets

    @torch.no_grad()
    def read(self, rows: Tensor) -> Tensor:
        """Return the rows of these numbers `[rows]`, normalized."""
        return self.normalizer.normalize(torch.from_numpy(self.rows.take(rows)))


def _chosen(
    classifier: ClassifierConfig, names: tuple[str, ...], targets: np.ndarray
) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the labels named in the settings; all of them if none are named.

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
        DatasetError: A label holds in all rows or in none: there is nothing to learn.
    """
    shares = targets.mean(axis=0, dtype=np.float64)
    for name, share in zip(names, shares.tolist(), strict=True):
        if share in (0.0, 1.0):
            raise DatasetError(
                f"The label {name!r} holds in {'all' if share else 'none'} of the "
                f"{flat.num_rows:,} rows of {flat!r}: there is nothing to learn. "
                "Record data in which it varies, or choose others with --classes."
            )
    return torch.from_numpy(shares).float()
