r"""State classifier: which labels hold at a single planning step of a noisy trajectory.

$$p(y_k | x_{i,t}, i)$$

for labels $y_k$ of the clean state, such as "block 0 is on block 1". (Janner et al.
2022, Appendix B: the final state matching of their block stacking.) It sees one
planning step at a time, so that a guide may ask for a label at any part of a plan.

Labels that seldom hold are weighted as if they held as often as not. The logits are
then the log-likelihood ratios

$$\log \frac{p(x_{i,t} | y_k)}{p(x_{i,t} | \bar y_k)}$$

whatever share of the data the label holds in: what a state says of the label, without
what was known before.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffuser_policy.errors import ConfigError
from diffuser_policy.networks import SinusoidalEmbedding

TIME_DIM = 32


class StateClassifier(nn.Module):
    """Predicts labels of single states, noisy or clean.

    Attributes:
        labels: Names of the labels, in the order of the logits.
        balance: `[labels]` weight of an example in which a label holds.
    """

    balance: Tensor

    def __init__(
        self,
        transition_dim: int,
        labels: Sequence[str],
        *,
        width: int = 256,
        depth: int = 3,
    ) -> None:
        """Build the network.

        Args:
            transition_dim: Columns of a trajectory.
            labels: Names of what is predicted.
            width: Hidden units per layer.
            depth: Hidden layers.

        Raises:
            ConfigError: No labels, or one of them twice.
        """
        super().__init__()
        if not labels or len(set(labels)) < len(labels):
            raise ConfigError(
                f"A classifier needs labels, each of them once; got {tuple(labels)}."
            )
        self.labels = tuple(labels)
        self.time_embedding = SinusoidalEmbedding(TIME_DIM)
        layers: list[nn.Module] = []
        size = transition_dim + TIME_DIM
        for _ in range(depth):
            layers += [nn.Linear(size, width), nn.Mish()]
            size = width
        self.layers = nn.Sequential(*layers, nn.Linear(size, len(labels)))
        self.register_buffer("balance", torch.ones(len(labels)))

    def set_balance(self, shares: Tensor) -> None:
        """Weight examples so that every label counts as often as its absence.

        Args:
            shares: `[labels]` share of the data in which each holds, above 0, below 1.
        """
        self.balance.copy_((1 - shares) / shares)

    def forward(self, states: Tensor, i: Tensor) -> Tensor:
        """Return logits `[batch, steps, labels]`.

        Args:
            states: `[batch, steps, transition]`, normalized.
            i: `[batch]` denoising steps; 0 is the least noisy.
        """
        time = self.time_embedding(i).to(states.dtype)
        time = time[:, None].expand(-1, states.shape[1], -1)
        logits: Tensor = self.layers(torch.cat([states, time], dim=2))
        return logits

    def loss(self, states: Tensor, i: Tensor, targets: Tensor) -> Tensor:
        """Return the balanced cross-entropy, a scalar; ln 2 is chance.

        Args:
            states: `[batch, steps, transition]`, normalized and noisy.
            i: `[batch]` their denoising steps.
            targets: `[batch, steps, labels]`, 0 or 1.
        """
        logits = self(states, i)
        each = F.binary_cross_entropy_with_logits(
            logits, targets, pos_weight=self.balance, reduction="none"
        )
        # Both classes weigh 1 in sum: without this, rare labels would weigh twice.
        share = 1 / (1 + self.balance)
        return (each / (2 * (1 - share))).mean()
