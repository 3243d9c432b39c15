"""The residual MLP: whole windows, one length, rows apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from diffuser_policy.config import NetworkConfig, WindowConfig
from diffuser_policy.errors import ConfigError
from diffuser_policy.networks.mlp import ResidualMLP
from diffuser_policy.testing import toy_config, toy_dataset
from diffuser_policy.training.derive import initial_networks, policy_config


def network() -> ResidualMLP:
    """Return a small network for windows of four steps of three columns."""
    torch.manual_seed(0)
    return ResidualMLP(3, num_planning_steps=4, dim=16, depth=2)


def test_rows_of_a_batch_do_not_affect_each_other() -> None:
    made, windows = network(), torch.randn(5, 4, 3)
    steps = torch.tensor([0, 3, 1, 2, 3])
    together = made(windows, steps)
    for row in range(5):
        alone = made(windows[row : row + 1], steps[row : row + 1])
        torch.testing.assert_close(alone[0], together[row])


def test_every_entry_of_a_window_can_change_every_other() -> None:
    made = network()
    window = torch.randn(1, 4, 3)
    jacobian = torch.autograd.functional.jacobian(  # type: ignore[no-untyped-call]
        lambda x: made(x, torch.tensor([1])), window
    )
    assert (jacobian.reshape(12, 12) != 0).all()


def test_the_denoising_step_changes_the_output() -> None:
    made, window = network(), torch.randn(1, 4, 3)
    assert not torch.equal(
        made(window, torch.tensor([0])), made(window, torch.tensor([3]))
    )


def test_blocks_that_add_nothing_leave_a_normalized_linear_map() -> None:
    made, windows = network(), torch.randn(5, 4, 3)
    assert isinstance(made.leave[1], torch.nn.Linear)
    for block in made.blocks:
        for weight in block[-1].parameters():  # type: ignore[index]
            weight.data.zero_()
    x = windows.reshape(5, 12) @ made.enter.weight.T + made.enter.bias
    x = (x - x.mean(dim=1, keepdim=True)) / x.var(
        dim=1, keepdim=True, correction=0
    ) ** 0.5
    expected = (x @ made.leave[1].weight.T + made.leave[1].bias).view(5, 4, 3)
    found = made(windows, torch.tensor([0, 3, 1, 2, 3]))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_settings_choose_it() -> None:
    config = toy_config(
        window=WindowConfig(horizon=4, hindsight_goal="none"),
        network=NetworkConfig(architecture="mlp", dim=16, depth=1),
        time_to_goal=None,
    )
    flat = toy_dataset(goals=False)
    networks = initial_networks(policy_config(config, flat), flat, 0)
    made = networks.denoiser.network
    assert isinstance(made, ResidualMLP)
    assert (made.num_planning_steps, len(made.blocks)) == (4, 1)


@pytest.mark.parametrize("architecture", ["mlp", "transformer"])
def test_it_sees_the_current_state_as_it_is(architecture: Any) -> None:
    with pytest.raises(ConfigError, match=f"'{architecture}'.* residual=False"):
        NetworkConfig(architecture=architecture, residual=True)
