"""Small networks with weights that tell every tensor apart."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffuser_policy.networks.unet import TemporalUNet


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
