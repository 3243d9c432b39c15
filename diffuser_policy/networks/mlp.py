r"""Residual MLP: a denoiser network for windows of a few planning steps.

The whole window is one vector: no convolution assumes that neighboring steps belong
together, and nothing is shared between them. With one to about eight steps this learns
in minutes what a temporal U-Net over 32 steps needs hours for, which suits feedback
control: plan a little ahead, act, and plan anew (Hansen-Estruch et al. 2023, "IDQL",
use this network for one action; Lu et al. 2025 plan four steps).

    x = W vec(window) + b
    x = x + f_k([LayerNorm(x), e(i)])   for every block k and denoising step i
    window = W' LayerNorm(x) + b'

The number of planning steps is fixed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffuser_policy.networks.perceptron import perceptron
from diffuser_policy.networks.unet import time_embedding

EMBEDDING_DIM = 32  # of the denoising step
EXPANSION = 2  # hidden units of a block, as a multiple of its width


class ResidualMLP(nn.Module):
    """Maps flattened windows to the prediction target."""

    def __init__(
        self,
        transition_dim: int,
        *,
        num_planning_steps: int,
        dim: int = 256,
        depth: int = 3,
    ) -> None:
        """Build the network.

        Args:
            transition_dim: Columns of a trajectory.
            num_planning_steps: Planning steps of every plan.
            dim: Width.
            depth: Number of blocks.
        """
        super().__init__()
        self.num_planning_steps = num_planning_steps
        size = num_planning_steps * transition_dim
        self.time_embedding = time_embedding(EMBEDDING_DIM)
        self.enter = nn.Linear(size, dim)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(depth))
        self.blocks = nn.ModuleList(
            perceptron(dim + EMBEDDING_DIM, EXPANSION * dim, dim, activation=nn.Mish)
            for _ in range(depth)
        )
        self.leave = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, size))

    @property
    def horizon_multiple(self) -> int:
        """Planning steps must come in multiples of this number."""
        return self.num_planning_steps

    def forward(self, trajectories: Tensor, i: Tensor) -> Tensor:
        """Map noisy trajectories to the prediction target.

        Args:
            trajectories: `[batch, horizon, transition]`, normalized.
            i: `[batch]` denoising steps.

        Returns:
            `[batch, horizon, transition]`.
        """
        step = self.time_embedding(i)
        x = self.enter(trajectories.flatten(1))
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x = x + block(torch.cat([norm(x), step], dim=-1))
        out: Tensor = self.leave(x).view_as(trajectories)
        return out
