r"""Training a value network for a planner that is trained already.

A batch is made like the planner's own: windows of its lengths, noised to random
denoising steps of its schedule, with its conditions written back. The network learns
the discounted return-to-go of the first row (`diffuser_policy.data.returns`).
"""

from __future__ import annotations

import dataclasses

import torch

from diffuser_policy.build import build_value_network, seeded
from diffuser_policy.columns.features import Featurizer
from diffuser_policy.config import ValueTrainConfig
from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.data.returns import return_scale, returns_to_go
from diffuser_policy.data.windows import WindowDataset, in_planning_columns
from diffuser_policy.networks.value import ValueNetwork
from diffuser_policy.training.companion import Batch, CompanionTrainer
from diffuser_policy.training.trainer import (
    draw_num_planning_steps,
    window_settings,
)


class ValueTrainer(CompanionTrainer[ValueNetwork]):
    """Trains a value network and writes it to a folder, with the planner it values."""

    part = "value"
    config: ValueTrainConfig

    def prepare(
        self, flat: FlatDataset, featurizer: Featurizer
    ) -> tuple[ValueNetwork, dict[str, int]]:
        """Return the network, scaled to the returns.

        Raises:
            DatasetError: Data without rewards to learn from.
        """
        settings = self.config.value
        self.policy_config = dataclasses.replace(self.policy_config, value=settings)
        returns = returns_to_go(flat, settings.discount, settings.termination_penalty)
        with seeded(self.config.seed):
            network = build_value_network(self.policy_config, settings)
        network.set_scale(*return_scale(returns, flat))
        self.windows = WindowDataset(
            in_planning_columns(flat, featurizer),
            returns=returns,
            **window_settings(self.policy_config, self.planner_networks.normalizer),
        )
        return network, {}

    def draw(self, step: int, generator: torch.Generator) -> Batch:
        """Return windows, their conditions, and the return-to-go of their first row."""
        length = draw_num_planning_steps(
            self.policy_config.window,
            self.config.seed,
            step,
            self.planner_networks.denoiser.horizon_multiple,
        )
        size = self.config.optimization.batch_size
        clean, returns = self.windows.sample_valued(size, length, generator)
        return clean, self.windows.conditions(clean), returns
