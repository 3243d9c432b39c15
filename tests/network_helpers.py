"""Small networks with weights that tell every tensor apart."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from diffuser_policy.networks.unet import TemporalUNet

AUTHORS_NAME_OF = {  # Hugging Face's name → the authors', upstream's main branch
    r"time_mlp\.linear_1": "time_mlp.1",
    r"time_mlp\.linear_2": "time_mlp.3",
    r"conv_in\.conv1d": "blocks.0.block.0",
    r"conv_in\.group_norm": "blocks.0.block.2",
    r"conv_out\.conv1d": "blocks.1.block.0",
    r"conv_out\.group_norm": "blocks.1.block.2",
    r"time_emb\.": "time_mlp.1.",
}


def in_authors_names(
    weights: Mapping[str, Tensor], others: Mapping[str, str]
) -> dict[str, Tensor]:
    """Return weights of Hugging Face's networks under the authors' names.

    Args:
        weights: By Hugging Face's names.
        others: Patterns of the parts that this network alone has, and what replaces
            them.
    """
    patterns = {**AUTHORS_NAME_OF, **others}

    def renamed(name: str) -> str:
        for pattern, replacement in patterns.items():
            name = re.sub(pattern, replacement, name)
        return name

    return {renamed(name): tensor for name, tensor in weights.items()}


def random_network(
    transition_dim: int = 4, *, seed: int = 0, **settings: Any
) -> TemporalUNet:
    """Return a network in which no two weights are equal, biases included."""
    settings = {"dim": 8, "multipliers": (1, 2), **settings}
    network = TemporalUNet(transition_dim, **settings)
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 10
    return network


def batch(network: TemporalUNet, horizon: int = 8, size: int = 3) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    shape = (size, horizon, network.transition_dim)
    steps = torch.tensor([0, 5, 19])[:size]
    return torch.randn(shape, generator=generator), steps
