"""The value network: its sizes, lengths, scale and gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from diffuser_policy.config import ValueConfig
from diffuser_policy.errors import ConfigError, HorizonError, UnknownNameError
from diffuser_policy.networks.value import ValueNetwork, remaining_steps
from diffuser_policy.settings import from_json, to_json
from tests.value_helpers import random_value_network

RELEASED = [
    # columns, horizon, multipliers, weights, tensors
    pytest.param(14, 32, (1, 2, 4, 8), 2_294_817, 132, id="hopper"),
    pytest.param(23, 32, (1, 2, 4, 8), 2_296_545, 132, id="walker2d"),
    pytest.param(23, 4, (1, 4, 8), 2_180_833, 108, id="halfcheetah"),
]


def noisy(length: int, size: int = 3, columns: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(length)
    shape = (size, length, columns)
    return torch.randn(shape, generator=generator), torch.arange(size)


@pytest.mark.parametrize(
    ("columns", "horizon", "multipliers", "num_weights", "num_tensors"), RELEASED
)
def test_the_released_networks_have_the_released_sizes(
    columns: int,
    horizon: int,
    multipliers: tuple[int, ...],
    num_weights: int,
    num_tensors: int,
) -> None:
    network = ValueNetwork(columns, multipliers=multipliers, num_planning_steps=horizon)
    parameters = list(network.parameters())
    assert sum(parameter.numel() for parameter in parameters) == num_weights
    assert len(parameters) == num_tensors
    assert network(*noisy(horizon, columns=columns)).shape == (3,)


@pytest.mark.parametrize("horizon", [1, 2, 3, 7, 24, 33, 64, 96, 104])
@pytest.mark.parametrize("flatten", [True, False])
def test_any_horizon_is_valued(horizon: int, flatten: bool) -> None:
    """Also those, like 64 and 96, at which the released code fails."""
    network = random_value_network(num_planning_steps=horizon if flatten else None)
    values = network(*noisy(horizon))
    assert values.shape == (3,)
    assert torch.isfinite(values).all()
    assert network(*noisy(horizon, size=1)).shape == (1,)


@pytest.mark.parametrize("horizon", [1, 2, 5, 24, 33, 64])
def test_the_remaining_length_is_what_convolutions_leave(horizon: int) -> None:
    network = random_value_network()
    x = torch.zeros(1, 16, horizon)
    for _ in range(4):
        x = torch.nn.functional.conv1d(x, torch.zeros(16, 16, 3), stride=2, padding=1)
    assert remaining_steps(horizon, 4) == x.shape[2]
    assert len(network.downs) + len(network.narrow) == 4


def test_a_flattening_network_refuses_other_lengths() -> None:
    network = random_value_network(num_planning_steps=24)
    with pytest.raises(HorizonError, match=r"24 planning steps and was given 16"):
        network(*noisy(16))
    random_value_network()(*noisy(16))


def test_both_poolings_agree_where_one_step_is_left() -> None:
    averaging = random_value_network()
    flattening = random_value_network(num_planning_steps=16)
    flattening.load_state_dict(averaging.state_dict())
    assert torch.equal(averaging(*noisy(16)), flattening(*noisy(16)))


def test_averaging_equals_flattening_with_shared_weights() -> None:
    """A mean over two steps is a flattening head that repeats its weights, halved."""
    averaging = random_value_network()
    flattening = random_value_network(num_planning_steps=32)
    weights = averaging.state_dict()
    head = weights["head.0.weight"]
    features = averaging.narrow_resample[1].out_channels
    assert isinstance(features, int)
    convolved, time = head[:, :features], head[:, features:]
    repeated = convolved.repeat_interleave(2, dim=1) / 2
    # Both hidden layers must have the same width: keep the first half of the wide one.
    hidden = len(head)
    wide = flattening.state_dict()
    first = torch.zeros_like(wide["head.0.weight"])
    first[:hidden] = torch.cat([repeated, time], dim=1)
    bias = torch.zeros_like(wide["head.0.bias"])
    bias[:hidden] = weights["head.0.bias"]
    last = torch.zeros_like(wide["head.2.weight"])
    last[:, :hidden] = weights["head.2.weight"]
    flattening.load_state_dict(
        weights | {"head.0.weight": first, "head.0.bias": bias, "head.2.weight": last}
    )
    torch.testing.assert_close(averaging(*noisy(32)), flattening(*noisy(32)))


def test_every_planning_step_counts() -> None:
    """The gradient reaches every entry: nothing is dropped on the way down."""
    network = random_value_network().double()
    trajectories, i = noisy(24)
    variable = trajectories.double().requires_grad_()
    network(variable, i).sum().backward()
    assert variable.grad is not None
    assert (variable.grad != 0).all()


@pytest.mark.parametrize("flatten", [True, False])
def test_the_gradient_is_that_of_finite_differences(flatten: bool) -> None:
    network = random_value_network(num_planning_steps=8 if flatten else None).double()
    network.set_scale(3.0, 20.0)
    trajectories, i = noisy(8, size=1)
    assert torch.autograd.gradcheck(
        lambda x: network(x, i), trajectories.double().requires_grad_()
    )


def test_the_denoising_step_matters() -> None:
    network = random_value_network()
    trajectories, _ = noisy(16, size=1)
    first, last = (network(trajectories, torch.tensor([i])) for i in (0, 7))
    assert (first - last).abs() > 1e-3


def test_values_are_in_units_of_reward() -> None:
    network = random_value_network()
    raw = network(*noisy(16))
    network.set_scale(100.0, 7.0)
    torch.testing.assert_close(network(*noisy(16)), 100.0 + 7.0 * raw)


def test_the_loss_is_in_units_of_the_variance_of_returns() -> None:
    network = random_value_network()
    network.set_scale(100.0, 7.0)
    trajectories, i = noisy(16)
    returns = network(trajectories, i) + torch.tensor([7.0, -14.0, 0.0])
    loss = network.loss(trajectories, i, returns)
    torch.testing.assert_close(loss, torch.tensor((1.0 + 4.0 + 0.0) / 3))


def test_rows_of_a_batch_are_valued_alone() -> None:
    network = random_value_network()
    trajectories, i = noisy(24)
    together = network(trajectories, i)
    for row in range(3):
        alone = network(trajectories[row : row + 1], i[row : row + 1])
        torch.testing.assert_close(alone[0], together[row])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 8, "multipliers": (1, 8)}, "dim=8"),
        ({"dim": 20, "multipliers": (1, 8)}, "dim=20"),
        ({"dim": 16, "multipliers": (1, 2)}, r"multipliers=\(1, 2\)"),
        ({"dim": 24, "multipliers": (1, 3)}, r"multipliers=\(1, 3\)"),
        ({"dim": 16, "multipliers": ()}, r"multipliers=\(\)"),
        ({"dim": 16, "multipliers": (0, 4)}, r"multipliers=\(0, 4\)"),
        ({"dim": 16, "multipliers": (1, 4), "kernel_size": 4}, "odd, got 4"),
    ],
)
def test_widths_that_cannot_be_built_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        ValueNetwork(4, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"discount": 0.0}, r"discount must be in \(0, 1\], got 0"),
        ({"discount": 1.1}, "got 1.1"),
        ({"discount": float("nan")}, "got nan"),
        ({"termination_penalty": float("inf")}, "termination_penalty must be a finite"),
        ({"dim": 0}, "dim must be positive"),
    ],
)
def test_settings_out_of_range_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        ValueConfig(**settings)


def test_an_unknown_pooling_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'flatten'"):
        ValueConfig(pooling="flaten")  # type: ignore[arg-type]


def test_settings_round_trip() -> None:
    config = ValueConfig(multipliers=(1, 4), pooling="flatten", discount=0.9)
    assert from_json(ValueConfig, to_json(config)) == config
