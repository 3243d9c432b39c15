"""Perceptron: linear layers with an activation between them."""

from __future__ import annotations

from itertools import pairwise

from torch import nn


def perceptron(*sizes: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Return the layers between vectors of these sizes, from input to output.

    Args:
        sizes: Sizes of the input, the hidden vectors and the output.
        activation: Activation of the hidden vectors.
    """
    layers: list[nn.Module] = []
    for pair in pairwise(sizes):
        layers += [nn.Linear(*pair), activation()]
    return nn.Sequential(*layers[:-1])
