"""Training a critic for a planner that is trained already."""

from __future__ import annotations

import dataclasses

from torch import Tensor, nn

from diffuser_policy.build import build_critic, seeded
from diffuser_policy.columns.features import Featurizer
from diffuser_policy.config import CriticTrainConfig
from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.data.returns import return_scale, returns_to_go
from diffuser_policy.data.steps import StepDataset
from diffuser_policy.data.windows import WindowDataset, in_planning_columns
from diffuser_policy.networks.critic import Critic, Values
from diffuser_policy.numerics import stream_generator
from diffuser_policy.training.companion import CompanionTrainer


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
        generator = stream_generator(
            trainer.config.seed, step, 1 + process, accumulation
        )
        size, device = trainer.config.optimization.batch_size, trainer.processes.device
        batch = trainer.steps.sample(size, generator, device)
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
        steps: The data.
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
        settings = self.config.critic
        self.policy_config = dataclasses.replace(self.policy_config, critic=settings)
        layout, normalizer = self.policy_config.layout, self.planner_networks.normalizer
        planned = in_planning_columns(flat, featurizer)
        windows = WindowDataset(planned, layout=layout, normalizer=normalizer)
        self.steps = StepDataset(flat, windows, layout)
        returns = returns_to_go(flat, settings.discount)
        with seeded(self.config.seed):
            network = build_critic(self.policy_config, settings)
        network.set_scale(*return_scale(returns, flat))
        return network, {"rewards": self.steps.checksum}

    def critic_values(self) -> Values:
        """Return what the averaged critic says of the data."""
        return self.steps.values(self.average, self.config.critic.discount)

    def make_loss(self, network: Critic) -> nn.Module:
        """Return the critic's own loss: steps are not noised."""
        return CriticLoss(self, network)
