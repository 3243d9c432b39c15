"""The temporal transformer: planning steps are tokens, and plans have any length."""

from __future__ import annotations

import copy

import pytest
import torch

from diffuser_policy.config import NetworkConfig, WindowConfig
from diffuser_policy.errors import ConfigError
from diffuser_policy.networks.transformer import TemporalTransformer
from diffuser_policy.testing import toy_config, toy_dataset, toy_policy
from diffuser_policy.training.derive import initial_networks, policy_config


def network() -> TemporalTransformer:
    """Return a small network with weights as after a training, for three columns."""
    torch.manual_seed(0)
    made = TemporalTransformer(3, dim=16, depth=2)
    for weights in made.parameters():
        weights.data += 0.1 * torch.randn_like(weights)
    return made


def test_rows_of_a_batch_do_not_affect_each_other() -> None:
    made, plans = network(), torch.randn(5, 7, 3)
    steps = torch.tensor([0, 3, 1, 2, 3])
    together = made(plans, steps)
    for row in range(5):
        alone = made(plans[row : row + 1], steps[row : row + 1])
        torch.testing.assert_close(alone[0], together[row])


@pytest.mark.parametrize("horizon", [1, 2, 7])
def test_every_entry_of_a_plan_can_change_every_other(horizon: int) -> None:
    jacobian = torch.autograd.functional.jacobian(  # type: ignore[no-untyped-call]
        lambda x: network()(x, torch.tensor([1])), torch.randn(1, horizon, 3)
    )
    assert (jacobian.reshape(3 * horizon, 3 * horizon) != 0).all()


def test_a_step_is_told_from_the_others_by_its_place_alone() -> None:
    """Without the sines and cosines, exchanged steps would give exchanged output."""
    made, plan, i = network(), torch.randn(1, 5, 3), torch.tensor([2])
    order = [3, 0, 4, 1, 2]
    assert not torch.allclose(made(plan[:, order], i), made(plan, i)[:, order])
    blind = copy.deepcopy(made)
    blind.position.frequencies.zero_()
    torch.testing.assert_close(blind(plan[:, order], i), blind(plan, i)[:, order])
    assert not torch.allclose(made(plan, i), made(plan, torch.tensor([3])))


def test_at_first_it_predicts_almost_nothing() -> None:
    out = TemporalTransformer(3, dim=64, depth=3)(torch.randn(8, 12, 3), torch.zeros(8))
    assert out.shape == (8, 12, 3)
    assert out.abs().max() < 0.5


def test_settings_choose_it() -> None:
    config = toy_config(
        window=WindowConfig(horizon=5, hindsight_goal="none"),
        network=NetworkConfig(architecture="transformer", dim=16, depth=1),
        time_to_goal=None,
    )
    flat = toy_dataset(goals=False)
    networks = initial_networks(policy_config(config, flat), flat, 0)
    made = networks.denoiser.network
    assert isinstance(made, TemporalTransformer)
    assert (made.write.in_features, len(made.blocks)) == (16, 1)
    assert networks.denoiser.horizon_multiple == 1


def test_a_width_that_the_heads_do_not_share_is_refused() -> None:
    config = toy_config(network=NetworkConfig(architecture="transformer", dim=18))
    with pytest.raises(ConfigError, match="multiples of 4, got 18"):
        toy_policy(config)
