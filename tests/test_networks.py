"""TemporalUNet: shapes, horizons, and its parts by their equations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from diffuser_policy.errors import ConfigError, HorizonError
from diffuser_policy.networks.unet import (
    LinearAttention,
    SinusoidalEmbedding,
    StartConditionedUNet,
)
from tests.network_helpers import batch, random_network


@pytest.mark.parametrize("multipliers", [(1,), (1, 4), (1, 2, 4, 8)])
@pytest.mark.parametrize("attention", [False, True])
def test_any_multiple_of_the_down_sampling_is_a_horizon(
    multipliers: tuple[int, ...], attention: bool
) -> None:
    network = random_network(3, dim=16, multipliers=multipliers, attention=attention)
    assert network.horizon_multiple == 2 ** (len(multipliers) - 1)
    for horizon in (network.horizon_multiple, 3 * network.horizon_multiple):
        network.check_horizon(horizon)
        noisy, steps = batch(network, horizon)
        assert network(noisy, steps).shape == noisy.shape


@pytest.mark.parametrize(("horizon", "nearest"), [(0, 4), (6, 8), (13, 12), (-4, 4)])
def test_another_horizon_is_refused_by_name_of_the_nearest(
    horizon: int, nearest: int
) -> None:
    network = random_network(3, multipliers=(1, 2, 4))
    with pytest.raises(HorizonError, match=f"got {horizon}; the nearest is {nearest}"):
        network.check_horizon(horizon)


@pytest.mark.parametrize(
    ("dim", "multipliers", "fits"),
    [(8, (1,), 2), (8, (1, 2), 4), (8, (1, 4, 1), 8), (8, (1, 2, 4), 4), (16, (1,), 1)],
)
def test_plans_for_which_a_group_norm_is_constant_are_refused(
    dim: int, multipliers: tuple[int, ...], fits: int
) -> None:
    """A group of one number is always 0, and PyTorch refuses a batch of one."""
    network = random_network(3, dim=dim, multipliers=multipliers)
    network.check_horizon(fits)
    noisy, steps = batch(network, fits, size=1)
    assert network(noisy, steps).shape == noisy.shape
    if fits > network.horizon_multiple:
        with pytest.raises(HorizonError, match=f"plans of {fits} planning .*dim"):
            network.check_horizon(fits // 2)


@pytest.mark.parametrize(
    "settings",
    [{"dim": 12}, {"dim": 0}, {"multipliers": ()}, {"multipliers": (2, 4)}],
)
def test_widths_that_the_architecture_excludes_are_refused(
    settings: dict[str, Any],
) -> None:
    with pytest.raises(ConfigError, match="first multiplier of 1"):
        random_network(**settings)


def test_even_kernels_are_refused() -> None:
    with pytest.raises(ConfigError, match="odd, got 4"):
        random_network(kernel_size=4)


def test_the_network_does_not_mix_the_batch() -> None:
    network = random_network(multipliers=(1, 2), attention=True)
    noisy, steps = batch(network)
    together = network(noisy, steps)
    for row in range(len(noisy)):
        alone = network(noisy[row : row + 1], steps[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=1e-5)


def test_the_output_depends_on_the_denoising_step() -> None:
    network = random_network()
    noisy, _ = batch(network, size=1)
    early, late = (network(noisy, torch.tensor([i])) for i in (0, 19))
    assert (early - late).abs().max() > 1e-4


def test_a_start_is_read_beside_every_planning_step() -> None:
    """As if each step had the start's columns, after its own."""
    network = StartConditionedUNet(4, dim=8, multipliers=(1, 2))
    plain = random_network(4, input_dim=8)
    network.load_state_dict(plain.state_dict())
    (noisy, steps), start = batch(plain), torch.randn(3, 4)
    wide = torch.stack([torch.cat([noisy[:, t], start], dim=1) for t in range(8)], 1)
    found = network(noisy, steps, start=start, signal=torch.ones(3))
    torch.testing.assert_close(found, plain(wide, steps))
    other = network(noisy, steps, start=-start, signal=torch.ones(3))
    assert (found - other).abs().amax(dim=(1, 2)).min() > 1e-3


def test_the_embedding_is_the_papers() -> None:
    """Frequencies 10000^(-k / (dim/2 - 1)); sines first, then cosines."""
    found = SinusoidalEmbedding(8)(torch.tensor([3]))[0].double()
    frequencies = 10_000.0 ** (-torch.arange(4, dtype=torch.float64) / 3)
    expected = torch.cat([(3 * frequencies).sin(), (3 * frequencies).cos()])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_attention_is_linear_attention_of_a_layer_norm() -> None:
    """Head by head: softmax of the keys over time, contexts, then queries."""
    attention = LinearAttention(8)
    generator = torch.Generator().manual_seed(0)
    for parameter in attention.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    x = torch.randn(2, 8, 6, generator=generator)
    gain, bias = attention.gain[0, :, 0], attention.bias[0, :, 0]
    for row in range(len(x)):
        normed = nn.functional.layer_norm(x[row].T, (8,), gain, bias)  # [time, 8]
        heads = normed @ attention.to_qkv.weight[:, :, 0].T
        query, key, value = heads[:, :128], heads[:, 128:256], heads[:, 256:]
        mixed = torch.zeros(6, 128)
        for head in (slice(32 * n, 32 * n + 32) for n in range(4)):
            context = key[:, head].softmax(dim=0).T @ value[:, head]
            mixed[:, head] = query[:, head] / 32**0.5 @ context
        out = nn.functional.linear(
            mixed, attention.to_out.weight[:, :, 0], attention.to_out.bias
        )
        torch.testing.assert_close(
            attention(x)[row], x[row] + out.T, rtol=1e-4, atol=1e-4
        )
