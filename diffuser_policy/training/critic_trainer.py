"""Training a critic for a planner that is trained already."""

from __future__ import annotations

import dataclasses

from torch import Generator, Tensor

from diffuser_policy.build import build_critic, seeded
from diffuser_policy.columns.features import Featurizer
from diffuser_policy.config import CriticTrainConfig
from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.data.returns import return_scale, returns_to_go
from diffuser_policy.data.steps import StepDataset
from diffuser_policy.data.windows import WindowDataset, in_planning_columns
from diffuser_policy.networks.critic import Critic, Values
from diffuser_policy.training.companion import CompanionTrainer


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
        """Return the network, scaled to the returns.

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
        return network, {}

    def critic_values(self) -> Values:
        """Return what the averaged critic says of the data."""
        return self.steps.values(self.average, self.config.critic.discount)

    def critic_is_dead(self) -> bool:
        """Return whether the critic or its average says the same of everything."""
        return any(map(self.steps.dead, (self.networks, self.average)))

    def losses(
        self,
        step: int,  # noqa: ARG002 (steps have no length to draw)
        generator: Generator,
    ) -> dict[str, Tensor]:
        """Return the critic's loss on a fresh batch of steps, which are not noised."""
        size, device = self.config.optimization.batch_size, self.processes.device
        loss = self.networks.loss(
            self.steps.sample(size, generator, device),
            self.average,
            expectile=self.config.critic.expectile,
            discount=self.config.critic.discount,
        )
        return {"critic": loss}
