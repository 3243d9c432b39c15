"""The released value network: by name, by file, and by number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffuser_policy.errors import CheckpointError, ConfigError
from diffuser_policy.interop import (
    load_authors_network,
    load_authors_value_network,
    read_authors_checkpoint,
    to_authors_state_dict,
    to_authors_value_state_dict,
)
from diffuser_policy.networks.value import ValueNetwork
from tests.network_helpers import in_authors_names, random_network
from tests.value_helpers import random_value_network


def noisy(columns: int = 4, length: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn((3, length, columns), generator=generator), torch.arange(3)


def flattening(**settings: Any) -> ValueNetwork:
    return random_value_network(**{"num_planning_steps": 16, **settings})


# --- the authors' names -----------------------------------------------------------


def test_names_are_those_of_the_authors() -> None:
    network = flattening()
    exported = to_authors_value_state_dict(network)
    assert {
        "time_mlp.1.weight",
        "time_mlp.3.bias",
        "blocks.0.0.blocks.0.block.0.weight",
        "blocks.0.0.residual_conv.weight",
        "blocks.1.1.blocks.1.block.2.bias",
        "blocks.1.1.time_mlp.1.weight",
        "blocks.1.2.conv.weight",
        "mid_block1.blocks.0.block.0.weight",
        "mid_down1.conv.bias",
        "mid_block2.residual_conv.weight",
        "mid_down2.conv.weight",
        "final_block.0.weight",
        "final_block.2.bias",
    } <= set(exported)
    assert "blocks.0.1.residual_conv.weight" not in exported  # same channels: no skip
    assert len(exported) == len(list(network.parameters()))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_planning_steps": 64},
        {"multipliers": (1, 2, 4)},
        {"transition_dim": 7, "kernel_size": 3},
    ],
)
def test_weights_round_trip_exactly(settings: dict[str, Any]) -> None:
    network = flattening(**settings)
    length = network.num_planning_steps or 0
    exported = to_authors_value_state_dict(network)
    loaded = load_authors_value_network(exported, num_planning_steps=length)
    again = to_authors_value_state_dict(loaded)
    assert list(again) == list(exported)
    assert all(torch.equal(exported[name], again[name]) for name in again)
    batch = noisy(network.transition_dim, length)
    assert torch.equal(network(*batch), loaded(*batch))


def test_the_scale_goes_into_the_last_layer() -> None:
    """Their networks predict raw returns, ours in units of the data's."""
    network = flattening()
    network.set_scale(250.0, 30.0)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    exported = to_authors_value_state_dict(network)
    loaded = load_authors_value_network(exported, num_planning_steps=16)
    assert (float(loaded.return_mean), float(loaded.return_std)) == (0.0, 1.0)
    torch.testing.assert_close(loaded(*noisy()), network(*noisy()))
    after = network.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_network_that_averages_has_no_counterpart() -> None:
    with pytest.raises(ConfigError, match="pooling='flatten'"):
        to_authors_value_state_dict(random_value_network())


def test_missing_and_extra_tensors_are_named() -> None:
    exported = to_authors_value_state_dict(flattening())

    def load(weights: dict[str, Tensor]) -> None:
        load_authors_value_network(weights, num_planning_steps=16)

    with pytest.raises(CheckpointError, match="no value function"):
        load({})
    with pytest.raises(CheckpointError, match="no value function"):
        load(to_authors_state_dict(random_network()))
    with pytest.raises(CheckpointError, match=r"cond_mlp\.0\.weight"):
        load({**exported, "cond_mlp.0.weight": torch.zeros(2)})
    missing = {k: v for k, v in exported.items() if k != "mid_block2.time_mlp.1.bias"}
    with pytest.raises(CheckpointError, match=r"narrow\.1\.time\.1\.bias"):
        load(missing)
    for name, shape in {
        "mid_down1.conv.weight": (3, 3, 3),
        "final_block.0.weight": (16,),
        "blocks.0.0.blocks.0.block.0.weight": (16,),
    }.items():
        with pytest.raises(CheckpointError, match="don't fit the value function"):
            load({**exported, name: torch.zeros(shape)})


def test_another_horizon_is_told_by_the_features() -> None:
    exported = to_authors_value_state_dict(flattening())
    with pytest.raises(CheckpointError, match="64 planning steps have 64"):
        load_authors_value_network(exported, num_planning_steps=64)


def test_a_value_function_is_no_unet_and_says_what_it_is() -> None:
    exported = to_authors_value_state_dict(flattening())
    with pytest.raises(CheckpointError, match="load_authors_value_network"):
        load_authors_network(exported)


# --- the authors' files -----------------------------------------------------------


def test_a_checkpoint_is_read_and_loads(tmp_path: Path) -> None:
    exported = to_authors_value_state_dict(flattening())
    process = {
        "betas": torch.zeros(20),
        **{f"model.{name}": tensor.clone() for name, tensor in exported.items()},
    }
    torch.save({"step": 200, "model": process, "ema": process}, tmp_path / "state.pt")
    read = read_authors_checkpoint(tmp_path / "state.pt")
    assert (read.step, read.num_denoising_steps, read.horizon) == (200, 20, None)
    loaded = load_authors_value_network(read.weights, num_planning_steps=16)
    assert torch.equal(loaded(*noisy()), flattening()(*noisy()))


# --- an independent implementation ------------------------------------------------


def hugging_face_network(columns: int) -> nn.Module:
    """Return the network under which `diffusers` hosts the authors' value functions."""
    diffusers = pytest.importorskip("diffusers")
    model: nn.Module = diffusers.UNet1DModel(
        in_channels=columns,
        out_channels=columns,
        time_embedding_type="positional",
        use_timestep_embedding=True,
        flip_sin_to_cos=False,
        freq_shift=1.0,
        down_block_types=("DownResnetBlock1D",) * 4,
        up_block_types=(),
        mid_block_type="ValueFunctionMidBlock1D",
        out_block_type="ValueFunction",
        block_out_channels=(32, 64, 128, 256),
        downsample_each_block=True,
        act_fn="mish",
    )
    return model


AUTHORS_NAME_OF = {  # of parts that other networks do not have
    r"down_blocks\.(\d)\.resnets\.": r"blocks.\1.",
    r"down_blocks\.(\d)\.downsample\.": r"blocks.\1.2.",
    r"mid_block\.res(\d)\.": r"mid_block\1.",
    r"mid_block\.down(\d)\.": r"mid_down\1.",
    r"out_block\.final_block\.": "final_block.",
}


def test_outputs_and_gradients_equal_those_of_diffusers() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = hugging_face_network(14)
    weights = in_authors_names(theirs.state_dict(), AUTHORS_NAME_OF)
    ours = load_authors_value_network(weights, num_planning_steps=32)
    batch, i = noisy(14, 32)
    i = torch.tensor([0, 5, 19])
    mine, other = batch.clone().requires_grad_(), batch.clone().requires_grad_()
    found = ours(mine, i)
    expected = theirs(other.transpose(1, 2), i).sample.squeeze(1)
    assert (found - expected).abs().max() < 1e-5
    assert expected.abs().max() > 0.01
    found.sum().backward()
    expected.sum().backward()
    assert mine.grad is not None
    assert other.grad is not None
    assert (mine.grad - other.grad).abs().max() < 1e-5
    assert other.grad.abs().max() > 1e-4
