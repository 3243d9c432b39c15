"""Weights and optimizers' moments of foreign algorithms, in safetensors: no pickle.

    <module>/<parameter>       the state dict of each module
    <optimizer>/<index>/<moment>

Random state is not saved: every gradient step has its own seed.
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from diffuser_policy.errors import CheckpointError
from diffuser_policy.files import replaced_file
from diffuser_policy.training.state import Parts, restore, tensors_of


def save_parts(path: Path, parts: Parts, *, step: int, data: object = None) -> None:
    """Write modules and optimizers atomically.

    Args:
        path: Of the file.
        parts: By name.
        step: Gradient steps done.
        data: JSON-able facts about the data of these steps.
    """
    with replaced_file(path) as partial:
        metadata = {"step": str(step), "data": json.dumps(data)}
        save_file(tensors_of(parts), partial, metadata=metadata)


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
        restore(parts, tensors)
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} cannot be read, or is of another algorithm or other data "
            f"({error}). Delete it to train again from the beginning."
        ) from error
    return step


def num_parameters(*modules: nn.Module) -> int:
    """Return the number of weights of some networks."""
    return sum(part.numel() for module in modules for part in module.parameters())
