r"""Temporal transformer: a denoiser network whose tokens are planning steps.

Each planning step of the noisy plan is one token. Attention connects every step with
every other from the first block on, where a temporal U-Net sees only neighbors and
reaches further by halving the number of steps. The blocks are those of the diffusion
transformer, modulated by the denoising step (adaLN: Peebles & Xie 2023, "Scalable
Diffusion Models with Transformers", section 3.2); Dong et al. 2024 ("DiffuserLite") and
Lu et al. 2025 ("What Makes a Good Diffusion Planner") plan with such a network.

    x(t) = W plan(t) + b + s(t)
    x = block_k(x, e(i))   for every block k and denoising step i
    plan(t) = W' LayerNorm(x(t)) + b'

The sines and cosines s(t) tell the position, so plans may have any number of steps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffuser_policy.errors import ConfigError
from diffuser_policy.networks.perceptron import perceptron
from diffuser_policy.networks.unet import SinusoidalEmbedding

NUM_HEADS = 4  # of attention
EMBEDDING_DIM = 64  # of the denoising step


def step_embedding(dim: int) -> nn.Sequential:
    """Return what maps denoising steps `[batch]` to `[batch, dim]`."""
    return nn.Sequential(
        SinusoidalEmbedding(EMBEDDING_DIM),
        nn.Linear(EMBEDDING_DIM, dim),
        nn.SiLU(),
        nn.Linear(dim, dim),
        nn.SiLU(),
    )


def almost_zero(head: nn.Linear) -> nn.Linear:
    """Return a last layer, changed so that it gives almost nothing at first."""
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    return head


class ModulatedBlock(nn.Module):
    """Attention over all tokens and a two-layer perceptron, modulated by the step."""

    def __init__(self, dim: int) -> None:
        """Build the block; at first it modulates nothing.

        Args:
            dim: Width of a token, a multiple of `NUM_HEADS`.
        """
        super().__init__()
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.merge = nn.Linear(dim, dim)
        self.perceptron = perceptron(dim, 2 * dim, dim, activation=nn.SiLU)
        self.modulation = nn.Linear(dim, 6 * dim)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, tokens: Tensor, step: Tensor) -> Tensor:
        """Map `[batch, tokens, dim]` to the same shape, given steps `[batch, dim]`."""
        scale, shift, gate, scale_2, shift_2, gate_2 = self.modulation(step)[
            :, None
        ].chunk(6, dim=-1)
        x = self.norm(tokens) * (1 + scale) + shift
        heads = torch.unflatten(self.qkv(x), 2, (3, NUM_HEADS, -1))
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v)
        x = self.merge(x.transpose(1, 2).flatten(2))
        tokens = tokens + (1 + gate) * x
        x = self.norm(tokens) * (1 + scale_2) + shift_2
        out: Tensor = tokens + (1 + gate_2) * self.perceptron(x)
        return out


class TemporalTransformer(nn.Module):
    """Denoises plans of any length, with attention between their steps."""

    def __init__(self, transition_dim: int, *, dim: int = 128, depth: int = 4) -> None:
        """Build the network.

        Args:
            transition_dim: Columns of a trajectory.
            dim: Width, a multiple of `NUM_HEADS`.
            depth: Number of transformer blocks.

        Raises:
            ConfigError: A width that the heads don't share.
        """
        super().__init__()
        if dim % NUM_HEADS:
            raise ConfigError(
                f"A transformer needs dim in multiples of {NUM_HEADS}, got {dim}."
            )
        self.read = nn.Linear(transition_dim, dim)
        self.position = SinusoidalEmbedding(dim)
        self.step = step_embedding(dim)
        self.blocks = nn.ModuleList(ModulatedBlock(dim) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.write = almost_zero(nn.Linear(dim, transition_dim))

    def forward(self, trajectories: Tensor, i: Tensor) -> Tensor:
        """Map noisy trajectories to the prediction target.

        Args:
            trajectories: `[batch, horizon, transition]`, normalized.
            i: `[batch]` denoising steps.

        Returns:
            `[batch, horizon, transition]`.
        """
        places = torch.arange(trajectories.shape[1], device=trajectories.device)
        tokens = self.read(trajectories) + self.position(places).to(trajectories.dtype)
        step = self.step(i)
        for block in self.blocks:
            tokens = block(tokens, step)
        out: Tensor = self.write(self.norm(tokens))
        return out
