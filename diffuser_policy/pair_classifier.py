r"""Pair classifier: which ordered pairs of objects are in a relation, such as "on".

The log-likelihood ratio of a pair (a, b) is quadratic in the offset of their positions,

$$\ell_{ab} = \beta_i - \tfrac12 \sum_k \lambda_{i,k}\,
(p_a - p_b - \mu_i)_k^2 + g_i(e_a, e_b)$$

as it is for Gaussian classes of shared shape (quadratic discriminant analysis), with
offset μ, precision λ and bias β learnt for every denoising step i, and a small network
g of the objects' other columns e. All pairs share the weights. Unlike those of a
network that is free to be flat or crooked where there are no data, its gradient leads
to the relation from anywhere, which is what a guide needs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diffuser_policy.classifier import TIME_DIM, StateClassifier
from diffuser_policy.errors import ConfigError


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
            ConfigError: As many labels as there are pairs of objects are needed.
        """
        super().__init__(transition_dim, labels, width=width, depth=1)
        count = len(objects)
        if count < 2 or len(labels) != count * (count - 1) or place < 1:
            raise ConfigError(
                f"A classifier of pairs needs objects with positions, and one label "
                f"for each of their {count * (count - 1)} ordered pairs; got "
                f"{len(labels)} labels. Use architecture='mlp', or plan in the columns "
                f"of a featurizer that names objects."
            )
        self.place = place
        pairs = [(a, b) for a in range(count) for b in range(count) if a != b]
        self.register_buffer("first", torch.tensor([objects[a] for a, _ in pairs]))
        self.register_buffer("second", torch.tensor([objects[b] for _, b in pairs]))
        others = len(objects[0]) - place
        self.shape = nn.Sequential(
            nn.Linear(TIME_DIM, width), nn.Mish(), nn.Linear(width, 2 * place + 1)
        )
        self.layers = nn.Sequential(
            nn.Linear(2 * others + TIME_DIM, width), nn.Mish(), nn.Linear(width, 1)
        )

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
