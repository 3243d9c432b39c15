"""The authors' checkpoints: reading them safely, and exporting our networks to them.

The released code (jannerm/diffuser) saves `{step, model, ema}` with `torch.save`.
`model` and `ema` are state dicts of a whole diffusion process: schedule buffers, loss
weights, and under the prefix `model.` a temporal U-Net that equals `TemporalUNet`
under other names. Their branches differ in one slot of a stage:

| layout | members of a stage | released for |
|---|---|---|
| main | block, block, attention or nothing, resampling | locomotion |
| maze2d | block, block, resampling | Maze2D |

    checkpoint = read_authors_checkpoint("state_1980000.pt")
    network = load_authors_network(checkpoint.weights)

Their value functions are files of the same kind, and equal `ValueNetwork`:

    checkpoint = read_authors_checkpoint("values/state_200000.pt")
    value = load_authors_value_network(checkpoint.weights, num_planning_steps=32)

Pickled code is never run: PyTorch's tensors-only loader refuses it. The `.pkl` files
beside the checkpoints can't be read that way; the presets hold their settings.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError  # the error only: nothing is unpickled here
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from diffuser_policy.errors import CheckpointError, ConfigError, UnknownNameError
from diffuser_policy.networks.unet import TemporalUNet
from diffuser_policy.networks.value import NUM_NARROWING, ValueNetwork, remaining_steps

AuthorsLayout = Literal["main", "maze2d"]
AuthorsWeights = Literal["ema", "model"]
NETWORK_PREFIX = "model."

# Our names become theirs by these substitutions, in this order.
_PARTS = (
    (r"\.conv_in\.conv\.", ".blocks.0.block.0."),
    (r"\.conv_in\.norm\.", ".blocks.0.block.2."),
    (r"\.conv_out\.conv\.", ".blocks.1.block.0."),
    (r"\.conv_out\.norm\.", ".blocks.1.block.2."),
    (r"\.time\.1\.", ".time_mlp.1."),
    (r"\.skip\.", ".residual_conv."),
    (r"^time_embedding\.", "time_mlp."),
)
_UNET = (
    *_PARTS,
    (r"\.attention\.gain$", ".attention.fn.norm.g"),
    (r"\.attention\.bias$", ".attention.fn.norm.b"),
    (r"\.attention\.to_", ".attention.fn.fn.to_"),
    (r"^mid\.first\.", "mid_block1."),
    (r"^mid\.second\.", "mid_block2."),
    (r"^mid\.attention\.", "mid_attn."),
    (r"\.first\.", ".0."),
    (r"\.second\.", ".1."),
    (r"\.attention\.", ".2."),
    (r"^head\.0\.conv\.", "final_conv.0.block.0."),
    (r"^head\.0\.norm\.", "final_conv.0.block.2."),
    (r"^head\.1\.", "final_conv.1."),
)
_RULES: dict[AuthorsLayout, tuple[tuple[str, str], ...]] = {
    "main": (*_UNET, (r"\.resample\.", ".3.conv.")),
    "maze2d": (*_UNET, (r"\.resample\.", ".2.conv.")),
}
_VALUE = (
    *_PARTS,
    (r"^downs\.(\d+)\.first\.", r"blocks.\1.0."),
    (r"^downs\.(\d+)\.second\.", r"blocks.\1.1."),
    (r"^downs\.(\d+)\.resample\.", r"blocks.\1.2.conv."),
    (r"^narrow\.0\.", "mid_block1."),
    (r"^narrow\.1\.", "mid_block2."),
    (r"^narrow_resample\.0\.", "mid_down1.conv."),
    (r"^narrow_resample\.1\.", "mid_down2.conv."),
    (r"^head\.", "final_block."),
)
_RESAMPLING = re.compile(r"(?:downs|ups)\.\d+\.([23])\.conv\.weight")
_FIRST_CONVOLUTION = "downs.{}.0.blocks.0.block.0.weight"
_HEAD = ("final_conv.0.block.0.weight", "final_conv.1.weight")
_VALUE_HEAD = ("final_block.0.weight", "final_block.2.weight")
_VALUE_CONVOLUTION = "blocks.{}.0.blocks.0.block.0.weight"
_SCALE = ("return_mean", "return_std")


@dataclass(frozen=True, kw_only=True)
class AuthorsCheckpoint:
    """What can be read from one of the authors' `.pt` files.

    Attributes:
        step: Training steps done.
        weights: The network's state dict under the authors' names, without prefix.
        num_denoising_steps: Length of the noise schedule, if it was saved.
        horizon: Planning steps of the training windows, if they were saved.
    """

    step: int
    weights: Mapping[str, Tensor]
    num_denoising_steps: int | None
    horizon: int | None


def read_authors_checkpoint(
    path: str | Path, *, weights: AuthorsWeights = "ema"
) -> AuthorsCheckpoint:
    """Read one of the authors' `.pt` files on the CPU, without running its code.

    Args:
        path: For example `state_1980000.pt`.
        weights: The averaged weights, with which to plan, or the trained ones.

    Raises:
        CheckpointError: Missing, truncated, with pickled code, or of another kind.
        UnknownNameError: Weights of another name.
    """
    if weights not in (known := get_args(AuthorsWeights)):
        raise UnknownNameError("weights", weights, known)
    path = Path(path)
    saved = _tensors_only(path)
    process = saved.get(weights) if isinstance(saved, Mapping) else None
    if not isinstance(process, Mapping):
        found = sorted(map(str, saved)) if isinstance(saved, Mapping) else type(saved)
        raise CheckpointError(
            f"{path} is no checkpoint of the authors' trainer: expected a dictionary "
            f"with 'step' and the state dicts 'model' and 'ema', got {found}."
        )
    process = {str(name): tensor for name, tensor in process.items()}
    network = {
        name.removeprefix(NETWORK_PREFIX): tensor
        for name, tensor in process.items()
        if name.startswith(NETWORK_PREFIX)
    }
    if _HEAD[0] not in network and _VALUE_HEAD[0] not in network:
        raise CheckpointError(
            f"{path} holds neither a temporal U-Net nor a value function under "
            f"{NETWORK_PREFIX!r}; its first names are {sorted(process)[:3]}. The Kuka "
            "networks have other architectures."
        )
    betas, loss_weights = process.get("betas"), process.get("loss_fn.weights")
    try:
        return AuthorsCheckpoint(
            step=int(saved.get("step", 0)),
            weights=network,
            num_denoising_steps=None if betas is None else len(betas),
            horizon=None if loss_weights is None else len(loss_weights),
        )
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} is no checkpoint of the authors' trainer: 'step' must be a "
            f"number, 'betas' and 'loss_fn.weights' tensors with a row for each step "
            f"({error})."
        ) from error


def load_authors_network(state_dict: Mapping[str, Tensor]) -> TemporalUNet:
    """Return a network with the authors' weights; its sizes are read off the shapes.

    Args:
        state_dict: The network's tensors under the names of either branch.

    Raises:
        CheckpointError: Tensors are missing, left over, or of the wrong shape.
    """
    missing = [name for name in _HEAD if name not in state_dict]
    if missing:
        advice = "Pass AuthorsCheckpoint.weights."
        if _VALUE_HEAD[0] in state_dict:
            advice = "They belong to a value function: use load_authors_value_network."
        raise CheckpointError(
            f"These weights are no temporal U-Net of the authors: {missing} missing. "
            f"{advice}"
        )
    with _fitting("temporal U-Net"):
        transition_dim, dim, _ = state_dict[_HEAD[1]].shape
        widths: list[int] = []
        while (name := _FIRST_CONVOLUTION.format(len(widths))) in state_dict:
            widths.append(state_dict[name].shape[0])
        network = TemporalUNet(
            transition_dim,
            dim=dim,
            multipliers=[width // max(dim, 1) for width in widths],
            kernel_size=state_dict[_HEAD[0]].shape[-1],
            attention=any(name.endswith("to_qkv.weight") for name in state_dict),
        )
        # The slot of the resampling convolutions tells the branch.
        slots = {m[1] for name in state_dict if (m := _RESAMPLING.fullmatch(name))}
        rules = _RULES["maze2d" if slots == {"2"} else "main"]
        ours = {theirs: mine for mine, theirs in _names(network, rules).items()}
        # Names that we don't know stay as they are, and fail to load by name.
        network.load_state_dict({ours.get(k, k): v for k, v in state_dict.items()})
    return network


def to_authors_state_dict(
    network: TemporalUNet, *, layout: AuthorsLayout = "main"
) -> dict[str, Tensor]:
    """Return a network's tensors under the authors' names, without prefix.

    Args:
        network: Any of ours; its tensors are shared, not copied.
        layout: Branch of the authors' code that is to load them.

    Raises:
        ConfigError: Attention, which the branch "maze2d" does not have.
        UnknownNameError: A layout that does not exist.
    """
    if layout not in _RULES:
        raise UnknownNameError("layout", layout, _RULES)
    tensors = network.state_dict()
    if layout == "maze2d" and any(".attention." in name for name in tensors):
        raise ConfigError(
            "The authors' branch 'maze2d' has no attention, and this network does; "
            "export it with layout='main'."
        )
    names = _names(network, _RULES[layout])
    return {theirs: tensors[mine] for mine, theirs in names.items()}


def load_authors_value_network(
    state_dict: Mapping[str, Tensor], *, num_planning_steps: int
) -> ValueNetwork:
    """Return a value network with the authors' weights, in raw units of reward.

    Args:
        state_dict: The network's tensors under the authors' names.
        num_planning_steps: Horizon it was trained with. Its files don't say: 4 for
            the released halfcheetah networks, 32 for the others.

    Raises:
        CheckpointError: Tensors are missing, left over, or of the wrong shape, also
            because the horizon is another one.
    """
    missing = [name for name in _VALUE_HEAD if name not in state_dict]
    missing += [n for n in (_VALUE_CONVOLUTION.format(0),) if n not in state_dict]
    if missing:
        raise CheckpointError(
            f"These weights are no value function of the authors: {missing} missing. "
            f"Pass AuthorsCheckpoint.weights."
        )
    with _fitting("value function"):
        shapes: list[torch.Size] = []
        while (name := _VALUE_CONVOLUTION.format(len(shapes))) in state_dict:
            shapes.append(state_dict[name].shape)
        features = 2 * state_dict[_VALUE_HEAD[0]].shape[0]
        dim = state_dict[_VALUE_HEAD[0]].shape[1] - features
        left = remaining_steps(num_planning_steps, len(shapes) + NUM_NARROWING)
        if (flattened := left * shapes[-1][0] // 4) != features:
            raise CheckpointError(
                f"These weights flatten {features} features, and plans of "
                f"{num_planning_steps} planning steps have {flattened}. Name the "
                f"horizon that the value function was trained with."
            )
        _, transition_dim, kernel_size = shapes[0]
        network = ValueNetwork(
            transition_dim,
            dim=dim,
            multipliers=[shape[0] // max(dim, 1) for shape in shapes],
            kernel_size=kernel_size,
            num_planning_steps=num_planning_steps,
        )
        ours = {theirs: mine for mine, theirs in _names(network, _VALUE).items()}
        weights = {ours.get(k, k): v for k, v in state_dict.items()}
        scale = {name: network.state_dict()[name] for name in _SCALE}
        network.load_state_dict({**weights, **scale})
    return network


def to_authors_value_state_dict(network: ValueNetwork) -> dict[str, Tensor]:
    """Return a value network's tensors under the authors' names, without prefix.

    Their networks predict raw returns: the scale of ours goes into the last layer.
    Their code builds the right shapes for horizons of 4 with multipliers (1, 4, 8) and
    of 32 with (1, 2, 4, 8), and wrong ones for many others.

    Raises:
        ConfigError: A network that averages over the horizon, which theirs never does.
    """
    if network.num_planning_steps is None:
        raise ConfigError(
            "The authors' value functions flatten a fixed horizon, and this network "
            "averages over any. Train one with pooling='flatten'."
        )
    tensors = network.state_dict()
    mean, std = (tensors[name] for name in _SCALE)
    tensors["head.2.weight"] = std * tensors["head.2.weight"]
    tensors["head.2.bias"] = std * tensors["head.2.bias"] + mean
    names = _names(network, _VALUE)
    return {theirs: tensors[mine] for mine, theirs in names.items()}


def _names(network: nn.Module, rules: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the authors' name of each tensor that theirs have too, by ours."""
    names = {}
    for name in (name for name in network.state_dict() if name not in _SCALE):
        theirs = name
        for pattern, replacement in rules:
            theirs = re.sub(pattern, replacement, theirs)
        if theirs == name:
            raise ConfigError(f"{name!r} has no counterpart in the authors' networks.")
        names[name] = theirs
    return names


@contextmanager
def _fitting(network: str) -> Iterator[None]:
    """Raise one error for whatever shapes of another network cause in the block."""
    try:
        yield
    except CheckpointError:
        raise
    except (
        *(RuntimeError, ArithmeticError, AttributeError),
        *(IndexError, TypeError, ValueError),
    ) as error:
        raise CheckpointError(
            f"These weights don't fit the {network} their shapes suggest: {error}"
        ) from error


def _tensors_only(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds pickled code, or is no PyTorch file at all; nothing of it "
            "was run. If you trust its origin, open it in a sandbox, and save its "
            "tensors alone: torch.save({'step': …, 'model': …, 'ema': …}, path), with "
            "the state dicts of the whole diffusion process, as its trainer does."
        ) from error
    except Exception as error:  # whatever the loader makes of a damaged file
        raise CheckpointError(
            f"{path} cannot be read: missing, truncated, or no PyTorch file ({error})."
        ) from error
