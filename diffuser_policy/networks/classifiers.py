r"""Classifiers: which labels hold at a single planning step of a noisy trajectory.

$$p(y_k | x_{i,t}, i)$$

for labels $y_k$ of the clean state, such as "block 0 is on block 1". (Janner et al.
2022, Appendix B: the final state matching of their block stacking.) It sees one
planning step at a time, so that a guide may ask for a label at any part of a plan.

A label that seldom holds is weighted as if it held half of the time. The logits are
then the log-likelihood ratios

$$\log \frac{p(x_{i,t} | y_k)}{p(x_{i,t} | \bar y_k)}$$

whatever share of the data the label holds in: the evidence of the state, without the
prior.

`PairClassifier` predicts which ordered pairs of objects are in a relation: "on", say.
The log-likelihood ratio of a pair (a, b) is quadratic in the offset of their positions,

$$\ell_{ab} = \beta_i - \tfrac12 \sum_k \lambda_{i,k}\,
(p_a - p_b - \mu_i)_k^2 + g_i(e_a, e_b)$$

as it is for Gaussian classes of shared shape (quadratic discriminant analysis), with
offset μ, precision λ and bias β learned for every denoising step i, and a small network
g of the objects' other columns e. All pairs share the weights. A free network may be
flat or crooked where there are no data; this gradient leads to the relation from
anywhere, as a guide needs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffuser_policy.errors import ConfigError
from diffuser_policy.networks.perceptron import perceptron
from diffuser_policy.networks.unet import SinusoidalEmbedding

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
            labels: Names of the labels to predict.
            width: Hidden units per layer.
            depth: Hidden layers.

        Raises:
            ConfigError: No labels, or one of them twice.
        """
        super().__init__()
        if not labels or len(set(labels)) < len(labels):
            raise ConfigError(
                f"A classifier needs labels without duplicates; got {tuple(labels)}."
            )
        self.labels = tuple(labels)
        self.time_embedding = SinusoidalEmbedding(TIME_DIM)
        sizes = [transition_dim + TIME_DIM, *[width] * depth, len(labels)]
        self.layers = perceptron(*sizes, activation=nn.Mish)
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


class PairClassifier(StateClassifier):
    """Predicts a relation of all ordered pairs of objects."""

    def __init__(
        self,
        transition_dim: int,
        labels: Sequence[str],
        *,
        objects: Sequence[Sequence[int]],
        place: int,
        width: int = 64,
    ) -> None:
        """Build the network.

        Args:
            transition_dim: Columns of a trajectory.
            labels: Names of the ordered pairs: those of the first object with every
                other one, in order, then those of the second, and so on.
            objects: Columns of each object, the first `place` are its position.
            place: Number of coordinates.
            width: Hidden units.

        Raises:
            ConfigError: No two objects with a position, or no label for each pair.
        """
        super().__init__(transition_dim, labels, width=width, depth=1)
        count = len(objects)
        size = min(map(len, objects), default=0)
        if count < 2 or len(labels) != count * (count - 1) or not 1 <= place <= size:
            raise ConfigError(
                f"A classifier of pairs needs objects whose first columns are a "
                f"position, and one label for each of their {count * (count - 1)} "
                f"ordered pairs; got objects {tuple(objects)}, positions of {place} "
                f"columns and {len(labels)} labels. Use architecture='mlp', or plan in "
                f"the columns of a featurizer that names objects."
            )
        self.place = place
        pairs = [(a, b) for a in range(count) for b in range(count) if a != b]
        self.register_buffer("first", torch.tensor([objects[a] for a, _ in pairs]))
        self.register_buffer("second", torch.tensor([objects[b] for _, b in pairs]))
        others = len(objects[0]) - place
        self.shape = perceptron(TIME_DIM, width, 2 * place + 1, activation=nn.Mish)
        inputs = 2 * others + TIME_DIM
        self.layers = perceptron(inputs, width, 1, activation=nn.Mish)

    first: Tensor
    second: Tensor

    def forward(self, states: Tensor, i: Tensor) -> Tensor:
        """Return logits `[batch, steps, pairs]`.

        Args:
            states: `[batch, steps, transition]`, normalized.
            i: `[batch]` denoising steps; 0 is the least noisy.
        """
        time = self.time_embedding(i).to(states.dtype)
        mu, log_precision, bias = torch.split(
            self.shape(time)[:, None, None], [self.place, self.place, 1], dim=3
        )
        a, b = states[:, :, self.first], states[:, :, self.second]
        offset = a[..., : self.place] - b[..., : self.place] - mu
        near = -0.5 * (log_precision.exp() * offset.square()).sum(dim=3)
        told = time[:, None, None].expand(*a.shape[:3], -1)
        others = torch.cat([a[..., self.place :], b[..., self.place :], told], dim=3)
        logits: Tensor = near + bias[..., 0] + self.layers(others)[..., 0]
        return logits
