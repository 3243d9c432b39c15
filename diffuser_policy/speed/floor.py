r"""The floor: a network's floating point operations over what the cores deliver.

A convolution from C to C' channels with k taps and L outputs takes $2kCC'L$ operations,
a linear layer from C to C' takes $2CC'$, counting a multiplication and an addition as
two. Norms and activations are left out: they add percents to the count, and memory
traffic that a perfect implementation would hide.

No implementation of the same network is faster than operations / throughput; how far a
measurement is above it is what an implementation can still gain.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from diffuser_policy.networks.unet import (
    ATTENTION_HEAD_DIM,
    ATTENTION_HEADS,
    LinearAttention,
    MidStage,
    ResidualBlock,
    Stage,
    TemporalUNet,
)

MATRIX_SIZE = 512  # large enough for full speed, and over in milliseconds
CHANNELS, KERNEL_SIZE, IMAGE = 128, 5, (64, 16)  # of the measured convolution
ROUNDS = 50


def network_flops(network: TemporalUNet, batch: int, horizon: int) -> int:
    """Return the floating point operations of one call, from the layers' shapes.

    Args:
        network: Its weights don't matter.
        batch: Trajectories.
        horizon: Planning steps of each.
    """
    length, total = horizon, _dense(network.time_embedding)
    for stage in (cast("Stage", module) for module in network.downs):
        total += _stage(stage, length)
        if isinstance(stage.resample, nn.Conv1d):
            length //= 2
            total += _convolution(stage.resample, length)
    total += _stage(network.mid, length)
    for stage in (cast("Stage", module) for module in network.ups):
        total += _stage(stage, length)
        total += _convolution(cast("nn.ConvTranspose1d", stage.resample), length)
        length *= 2
    for module in network.head.modules():
        if isinstance(module, nn.Conv1d):
            total += _convolution(module, length)
    return batch * total


def throughput() -> dict[str, float]:
    """Return measured operations per second, with as many threads as PyTorch uses.

    Returns:
        "matmul": a square matrix product; "convolution": one with the shapes of the
        network's, in a large batch.
    """
    square = torch.randn(MATRIX_SIZE, MATRIX_SIZE)
    images = torch.randn(IMAGE[0], CHANNELS, IMAGE[1])
    taps = torch.randn(CHANNELS, CHANNELS, KERNEL_SIZE)
    outputs = IMAGE[0] * IMAGE[1]
    with torch.inference_mode():
        return {
            "matmul": 2 * MATRIX_SIZE**3 / _seconds(lambda: square @ square),
            "convolution": 2
            * KERNEL_SIZE
            * CHANNELS**2
            * outputs
            / _seconds(lambda: F.conv1d(images, taps, padding=KERNEL_SIZE // 2)),
        }


def _seconds(work: Callable[[], object]) -> float:
    """Return the shortest time of some work, when nothing else disturbed it."""
    taken = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return min(taken)


def _stage(stage: Stage | MidStage, length: int) -> int:
    total = _residual(stage.first, length) + _residual(stage.second, length)
    if isinstance(stage.attention, LinearAttention):
        total += _attention(stage.attention, length)
    return total


def _residual(block: ResidualBlock, length: int) -> int:
    total = _dense(block.time)
    for module in block.modules():
        if isinstance(module, nn.Conv1d):
            total += _convolution(module, length)
    return total


def _attention(attention: LinearAttention, length: int) -> int:
    heads = 2 * 2 * ATTENTION_HEADS * ATTENTION_HEAD_DIM**2 * length
    convolutions = (attention.to_qkv, attention.to_out)
    return heads + sum(_convolution(conv, length) for conv in convolutions)


def _convolution(conv: nn.Conv1d | nn.ConvTranspose1d, length: int) -> int:
    """Count for `length` outputs, or inputs if it is a transposed convolution."""
    return 2 * conv.weight.numel() * length


def _dense(layers: nn.Module) -> int:
    linear = (module for module in layers.modules() if isinstance(module, nn.Linear))
    return sum(2 * module.weight.numel() for module in linear)
