"""Weights and optimizers' moments of foreign algorithms, in safetensors: no pickle.

    <module>/<parameter>       the state dict of each module
    <optimizer>/<index>/<moment>

Random state is not saved: every gradient step has its own seed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from diffuser_policy.errors import CheckpointError
from diffuser_policy.files import replaced_file

Parts = Mapping[str, nn.Module | torch.optim.Optimizer]


def save_parts(path: Path, parts: Parts, *, step: int, data: object = None) -> None:
    """Write modules and optimizers atomically.

    Args:
        path: Of the file.
        parts: By name.
        step: Gradient steps done.
        data: JSON-able facts about the data of these steps.
    """
    tensors: dict[str, Tensor] = {}
    for name, part in parts.items():
        if isinstance(part, torch.optim.Optimizer):
            for index, moments in part.state_dict()["state"].items():
                tensors |= {f"{name}/{index}/{key}": v for key, v in moments.items()}
        else:
            tensors |= {f"{name}/{key}": v for key, v in part.state_dict().items()}
    # Modules may share tensors; every name gets a copy of its own.
    tensors = {key: value.detach().cpu().clone() for key, value in tensors.items()}
    with replaced_file(path) as partial:
        save_file(
            tensors, partial, metadata={"step": str(step), "data": json.dumps(data)}
        )


def load_parts(path: Path, parts: Parts, *, data: object = None) -> int:
    """Restore modules and optimizers in place; return the gradient steps done.

    Args:
        path: Of the file.
        parts: By name, as they were saved.
        data: Facts about the data on which training would resume.

    Raises:
        CheckpointError: The file is damaged, or of other parts or data.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            step, saved = int(metadata["step"]), json.loads(metadata["data"])
            if saved != data:
                raise ValueError(f"it was trained on other data: {saved}, not {data}")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        for name, part in parts.items():
            mine = {
                key.removeprefix(f"{name}/"): value
                for key, value in tensors.items()
                if key.startswith(f"{name}/")
            }
            if isinstance(part, torch.optim.Optimizer):
                part.load_state_dict(_optimizer_state(part, mine))
            else:
                part.load_state_dict(mine)
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} cannot be read, or is of another algorithm or other data "
            f"({error}). Delete it to train again from the beginning."
        ) from error
    return step


def num_parameters(*modules: nn.Module) -> int:
    """Return the number of weights of some networks."""
    return sum(part.numel() for module in modules for part in module.parameters())


def _optimizer_state(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> dict[str, object]:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, moment = key.partition("/")
        state.setdefault(int(index), {})[moment] = value
    return {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
