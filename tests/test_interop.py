"""The released network: by count, by name, by file, and by number."""

from __future__ import annotations

import contextlib
import pickle
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffuser_policy.errors import CheckpointError, ConfigError, UnknownNameError
from diffuser_policy.interop import (
    AuthorsLayout,
    load_authors_network,
    read_authors_checkpoint,
    to_authors_state_dict,
)
from diffuser_policy.networks.unet import TemporalUNet
from tests.file_helpers import Malicious
from tests.network_helpers import batch, in_authors_names, random_network

HEAD = "model.final_conv.0.block.0.weight"
LAYOUTS = pytest.mark.parametrize("layout", ["main", "maze2d"])


@pytest.mark.parametrize(
    ("transition_dim", "settings", "layout", "num_weights", "num_tensors"),
    [
        pytest.param(
            6, {"multipliers": (1, 4, 8)}, "maze2d", 3_682_118, 148, id="maze2d"
        ),
        pytest.param(
            14, {"multipliers": (1, 2, 4, 8)}, "main", 3_956_302, 196, id="hopper"
        ),
        pytest.param(
            23, {"multipliers": (1, 2, 4, 8)}, "main", 3_958_327, 196, id="walker2d"
        ),
        pytest.param(
            23,
            {"multipliers": (1, 4, 8), "attention": True},
            "main",
            4_114_423,
            178,
            id="halfcheetah",
        ),
    ],
)
def test_the_released_networks_have_the_released_sizes(
    transition_dim: int,
    settings: dict[str, Any],
    layout: AuthorsLayout,
    num_weights: int,
    num_tensors: int,
) -> None:
    network = TemporalUNet(transition_dim, dim=32, **settings)
    exported = to_authors_state_dict(network, layout=layout)
    assert sum(tensor.numel() for tensor in exported.values()) == num_weights
    assert len(exported) == num_tensors
    assert len(set(exported)) == len(network.state_dict())


# --- the authors' names -----------------------------------------------------------


@LAYOUTS
def test_names_are_those_of_the_authors(layout: AuthorsLayout) -> None:
    resampling = {"main": 3, "maze2d": 2}[layout]
    names = set(to_authors_state_dict(random_network(), layout=layout))
    assert {
        "time_mlp.1.weight",
        "time_mlp.3.bias",
        "downs.0.0.blocks.0.block.0.weight",
        "downs.0.0.blocks.1.block.2.bias",
        "downs.0.0.time_mlp.1.weight",
        "downs.0.0.residual_conv.weight",
        f"downs.0.{resampling}.conv.weight",
        "mid_block1.blocks.0.block.0.weight",
        "mid_block2.time_mlp.1.bias",
        "ups.0.1.blocks.1.block.0.weight",
        f"ups.0.{resampling}.conv.bias",
        "final_conv.0.block.0.weight",
        "final_conv.0.block.2.weight",
        "final_conv.1.bias",
    } <= names
    assert "downs.0.1.residual_conv.weight" not in names  # same channels: no skip
    assert not any(name.startswith(f"downs.1.{resampling}.") for name in names)


def test_attention_has_the_authors_names_and_shapes() -> None:
    network = random_network(attention=True)
    exported = to_authors_state_dict(network)
    assert exported["downs.1.2.fn.norm.g"].shape == (1, 16, 1)
    assert exported["mid_attn.fn.norm.b"].shape == (1, 16, 1)
    assert exported["ups.0.2.fn.fn.to_qkv.weight"].shape == (384, 8, 1)
    assert exported["ups.0.2.fn.fn.to_out.bias"].shape == (8,)
    assert "mid_attn.fn.fn.to_qkv.bias" not in exported


@pytest.mark.parametrize(
    ("layout", "settings"),
    [
        ("main", {}),
        ("maze2d", {}),
        ("main", {"attention": True}),
        ("main", {"multipliers": (1,)}),
        ("maze2d", {"multipliers": (1, 4, 8), "kernel_size": 3}),
    ],
)
def test_weights_round_trip_exactly(
    layout: AuthorsLayout, settings: dict[str, Any]
) -> None:
    network = random_network(**settings)
    exported = to_authors_state_dict(network, layout=layout)
    loaded = load_authors_network(exported)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    again = to_authors_state_dict(loaded, layout=layout)
    assert list(again) == list(exported)
    assert all(torch.equal(exported[name], again[name]) for name in again)
    noisy, steps = batch(network)
    assert torch.equal(network(noisy, steps), loaded(noisy, steps))


def test_the_maze2d_branch_has_no_attention() -> None:
    with pytest.raises(ConfigError, match="no attention"):
        to_authors_state_dict(random_network(attention=True), layout="maze2d")


def test_an_unknown_layout_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="maze2d"):
        to_authors_state_dict(random_network(), layout="kuka")  # type: ignore[arg-type]


def test_missing_and_extra_tensors_are_named() -> None:
    exported = to_authors_state_dict(random_network())
    with pytest.raises(CheckpointError, match="no temporal U-Net"):
        load_authors_network({})
    extra = {**exported, "cond_mlp.0.weight": torch.zeros(2)}
    with pytest.raises(CheckpointError, match=r"cond_mlp\.0\.weight"):
        load_authors_network(extra)
    missing = {k: v for k, v in exported.items() if k != "mid_block1.time_mlp.1.bias"}
    with pytest.raises(CheckpointError, match=r"mid\.first\.time\.1\.bias"):
        load_authors_network(missing)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("downs.1.0.blocks.0.block.0.weight", (24, 8, 5)),
        ("downs.1.0.blocks.0.block.0.weight", ()),
        ("final_conv.0.block.0.weight", ()),
        ("final_conv.1.weight", (4, 8)),
        ("final_conv.1.weight", (4, 0, 1)),
    ],
)
def test_tensors_of_other_shapes_are_refused(name: str, shape: tuple[int, ...]) -> None:
    exported = to_authors_state_dict(random_network())
    with pytest.raises(CheckpointError, match=r"don't fit the temporal U-Net"):
        load_authors_network({**exported, name: torch.zeros(shape)})


# --- the authors' files -----------------------------------------------------------


def authors_process(network: TemporalUNet, *, horizon: int = 8) -> dict[str, Tensor]:
    """Return the state dict of one of the authors' diffusion processes."""
    exported = to_authors_state_dict(network)
    return {
        "betas": torch.zeros(20),
        "alphas_cumprod": torch.zeros(20),
        "posterior_variance": torch.zeros(20),
        **{f"model.{name}": tensor.clone() for name, tensor in exported.items()},
        "loss_fn.weights": torch.ones(horizon, network.transition_dim),
    }


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "state_100.pt"
    trained, averaged = random_network(seed=1), random_network(seed=2)
    processes = {"model": authors_process(trained), "ema": authors_process(averaged)}
    torch.save({"step": 100, **processes}, path)
    return path


def test_a_checkpoint_is_read_and_loads(checkpoint: Path) -> None:
    read = read_authors_checkpoint(checkpoint)
    assert (read.step, read.num_denoising_steps, read.horizon) == (100, 20, 8)
    assert not any(
        "model." in n or "loss_fn" in n or n == "betas" for n in read.weights
    )
    network, expected = load_authors_network(read.weights), random_network(seed=2)
    noisy, steps = batch(network)
    assert torch.equal(network(noisy, steps), expected(noisy, steps))


@pytest.mark.parametrize(
    "change",
    [
        lambda saved: saved.update(step=None),
        lambda saved: saved.update(step="last"),
        lambda saved: saved["ema"].update(betas=torch.tensor(3.0)),
        lambda saved: saved["ema"].update({"loss_fn.weights": 2}),
    ],
)
def test_facts_of_another_kind_are_refused(checkpoint: Path, change: Any) -> None:
    saved = torch.load(checkpoint, weights_only=True)
    change(saved)
    torch.save(saved, checkpoint)
    with pytest.raises(CheckpointError, match="'step' must be a number, 'betas'"):
        read_authors_checkpoint(checkpoint)


def test_weights_of_another_name_are_refused(checkpoint: Path) -> None:
    wrong: Any = "emaa"
    with pytest.raises(UnknownNameError, match="Did you mean 'ema'"):
        read_authors_checkpoint(checkpoint, weights=wrong)


def test_the_trained_weights_are_there_too(checkpoint: Path) -> None:
    read = read_authors_checkpoint(checkpoint, weights="model")
    expected = to_authors_state_dict(random_network(seed=1))
    assert all(torch.equal(read.weights[name], expected[name]) for name in expected)


def test_pickled_code_is_refused_and_not_run(tmp_path: Path) -> None:
    """The error tells to save what `checkpoint` here saves."""
    path, witness = tmp_path / "evil.pt", tmp_path / "witness"
    torch.save({"step": 0, "ema": {"weight": Malicious(witness)}}, path)
    advice = r"nothing of it was run.*save\(\{'step': …, 'model': …, 'ema': …\}, path"
    with pytest.raises(CheckpointError, match=advice):
        read_authors_checkpoint(path)
    assert not witness.exists()


@pytest.mark.parametrize("kept", [0, 10, 3000])
def test_a_truncated_file_is_refused(checkpoint: Path, kept: int) -> None:
    checkpoint.write_bytes(checkpoint.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=re.escape(str(checkpoint))):
        read_authors_checkpoint(checkpoint)


def test_a_file_of_the_old_format_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.pt"
    saved = {"step": 3, "ema": {"model.weight": torch.zeros(2), "betas": torch.ones(1)}}
    torch.save(saved, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    for kept in range(len(whole)):
        path.write_bytes(whole[:kept])
        with pytest.raises(CheckpointError):
            read_authors_checkpoint(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_a_pickle_cut_anywhere_is_refused(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "cut.pt"
    whole = pickle.dumps({"step": 3, "ema": {"betas": 1}}, protocol=protocol)
    for kept in range(len(whole)):
        path.write_bytes(whole[:kept])
        with pytest.raises(CheckpointError):
            read_authors_checkpoint(path)


def test_flipped_bits_are_refused_or_read(checkpoint: Path) -> None:
    whole, rng = checkpoint.read_bytes(), random.Random(0)
    for _ in range(30):
        damaged = bytearray(whole)
        damaged[rng.randrange(2000)] ^= 1 << rng.randrange(8)
        checkpoint.write_bytes(damaged)
        with contextlib.suppress(CheckpointError):
            read_authors_checkpoint(checkpoint)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="missing"):
        read_authors_checkpoint(tmp_path / "none.pt")


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (torch.zeros(2), "no checkpoint of the authors' trainer"),
        ({"step": 3}, r"got \['step'\]"),
        ({"ema": 3}, "no checkpoint of the authors' trainer"),
        ({"ema": {"denoise_fn.downs": torch.zeros(1)}}, "denoise_fn"),
        ({"ema": {"model.blocks.0.0": torch.zeros(1)}}, "neither a temporal U-Net"),
        ({"ema": {0: torch.zeros(1)}}, "neither a temporal U-Net"),
        *(
            ({"step": step, "ema": {HEAD: torch.zeros(1)}}, "'step' must be a number")
            for step in (float("inf"), float("nan"), None, "many", torch.zeros(2))
        ),
    ],
)
def test_other_contents_are_refused(tmp_path: Path, saved: Any, message: str) -> None:
    path = tmp_path / "other.pt"
    torch.save(saved, path)
    with pytest.raises(CheckpointError, match=message):
        read_authors_checkpoint(path)


# --- an independent implementation ------------------------------------------------


def hugging_face_network(transition_dim: int) -> nn.Module:
    """Return the network under which `diffusers` hosts the authors' weights."""
    diffusers = pytest.importorskip("diffusers")
    model: nn.Module = diffusers.UNet1DModel(
        in_channels=transition_dim,
        out_channels=transition_dim,
        time_embedding_type="positional",
        use_timestep_embedding=True,
        flip_sin_to_cos=False,
        freq_shift=1.0,
        down_block_types=("DownResnetBlock1D",) * 4,
        up_block_types=("UpResnetBlock1D",) * 3,
        mid_block_type="MidResTemporalBlock1D",
        out_block_type="OutConv1DBlock",
        block_out_channels=(32, 64, 128, 256),
        act_fn="mish",
    )
    return model


AUTHORS_NAME_OF = {  # of parts that other networks do not have
    r"down_blocks\.(\d)\.resnets\.": r"downs.\1.",
    r"down_blocks\.(\d)\.downsample\.": r"downs.\1.3.",
    r"up_blocks\.(\d)\.resnets\.": r"ups.\1.",
    r"up_blocks\.(\d)\.upsample\.": r"ups.\1.3.",
    r"mid_block\.resnets\.0\.": "mid_block1.",
    r"mid_block\.resnets\.1\.": "mid_block2.",
    r"out_block\.final_conv1d_1": "final_conv.0.block.0",
    r"out_block\.final_conv1d_gn": "final_conv.0.block.2",
    r"out_block\.final_conv1d_2": "final_conv.1",
}


@pytest.mark.parametrize("horizon", [8, 32])
def test_outputs_equal_those_of_diffusers(horizon: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = hugging_face_network(14)
    weights = in_authors_names(theirs.state_dict(), AUTHORS_NAME_OF)
    ours = load_authors_network(weights)
    noisy, steps = batch(ours, horizon)
    with torch.no_grad():
        expected = theirs(noisy.transpose(1, 2), steps).sample.transpose(1, 2)
        found = ours(noisy, steps)
    assert (found - expected).abs().max() < 1e-5
    assert expected.abs().max() > 0.01
