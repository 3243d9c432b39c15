"""Training a critic for a planner that is trained already.

A batch holds steps of the data, with the observation that follows each. The last step
of a run that was cut off has none and is left out; one that terminated stays.
"""

from __future__ import annotations

import dataclasses
import zlib

import numpy as np
import torch
from torch import Tensor, nn

from diffuser_policy.build import build_critic, seeded
from diffuser_policy.columns.features import Featurizer
from diffuser_policy.config import CriticTrainConfig
from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.data.returns import return_scale, returns_to_go
from diffuser_policy.data.windows import WindowDataset, in_planning_columns
from diffuser_policy.errors import DatasetError
from diffuser_policy.networks.critic import Critic, Transitions
from diffuser_policy.training.companion import CompanionTrainer
from diffuser_policy.training.loss import step_generator


class CriticLoss(nn.Module):
    """Loss of a critic on a fresh batch of steps."""

    def __init__(self, trainer: CriticTrainer, network: Critic) -> None:
        """Hold the network; the trainer has the data and the moving average."""
        super().__init__()
        self.network = network
        self._trainer = (trainer,)  # a tuple: it is not saved

    def forward(self, step: int, process: int, accumulation: int) -> dict[str, Tensor]:
        """Return the scalar loss, by the network's name.

        Args:
            step: Gradient step.
            process: Rank of this process.
            accumulation: Which of the batches that make up one gradient step.
        """
        [trainer] = self._trainer
        settings = trainer.config.critic
        generator = step_generator(trainer.config.seed, step, 1 + process, accumulation)
        batch = trainer.transitions(trainer.config.optimization.batch_size, generator)
        loss = self.network.loss(
            batch,
            trainer.average,
            expectile=settings.expectile,
            discount=settings.discount,
        )
        return {"critic": loss}


class CriticTrainer(CompanionTrainer[Critic]):
    """Trains a critic and writes it to a folder, with the planner it judges.

    The moving average of the weights, which is what is saved, is also the slow copy
    that the state values learn from: `ema_decay` is how slow.

    Attributes:
        windows: The data.
        steps: Rows with a step to learn from.
    """

    part = "critic"
    config: CriticTrainConfig

    def prepare(
        self, flat: FlatDataset, featurizer: Featurizer
    ) -> tuple[Critic, dict[str, int]]:
        """Return the network, scaled to the returns, and a checksum of the rewards.

        Raises:
            DatasetError: Data without rewards to learn from, or a planner without
                actions.
        """
        layout, settings = self.policy_config.layout, self.config.critic
        if not layout.action_dim:
            raise DatasetError(
                "A critic values actions, and this planner plans states alone. Train "
                "the planner with --window.actions, or use `train-value`."
            )
        self.policy_config = dataclasses.replace(self.policy_config, critic=settings)
        returns = returns_to_go(flat, settings.discount)
        with seeded(self.config.seed):
            network = build_critic(self.policy_config)
        network.set_scale(*return_scale(returns, flat))
        planned = in_planning_columns(flat, featurizer)
        normalizer = self.planner_networks.normalizer
        self.windows = WindowDataset(planned, layout=layout, normalizer=normalizer)
        self.rewards = torch.from_numpy(flat.fields["reward"].astype(np.float32))
        self.ended = torch.from_numpy(np.array(flat.fields["terminated"], np.bool_))
        last = torch.zeros(flat.num_rows, dtype=torch.bool)
        last[torch.from_numpy(np.array(flat.run_starts[1:])) - 1] = True
        self.steps = torch.nonzero(~last | self.ended).squeeze(1)
        if not len(self.steps):
            raise DatasetError(
                f"No step of {flat!r} is followed by another, and none terminated: "
                f"there is no value to learn. Record longer episodes."
            )
        rewards = zlib.crc32(np.ascontiguousarray(flat.fields["reward"]).data)
        return network, {"rewards": rewards}

    def make_loss(self, network: Critic) -> nn.Module:
        """Return the critic's own loss: steps are not noised."""
        return CriticLoss(self, network)

    def transitions(self, size: int, generator: torch.Generator) -> Transitions:
        """Return steps drawn uniformly.

        Args:
            size: Their number.
            generator: Source of randomness, advanced by the call.
        """
        drawn = torch.randint(len(self.steps), (size,), generator=generator)
        now = self.steps[drawn]
        later = (now + 1).clamp(max=len(self.rewards) - 1)
        layout, device = self.policy_config.layout, self.processes.device
        rows = self.windows.read(now)
        parts = (
            rows[:, layout.observations],
            rows[:, layout.actions],
            self.rewards[now],
            self.windows.read(later)[:, layout.observations],
            self.ended[now],
        )
        return Transitions(*(part.to(device) for part in parts))
