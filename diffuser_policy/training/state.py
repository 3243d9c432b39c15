"""Checkpoints of a training run: complete or absent, and free of pickle.

A checkpoint is a folder `step-00012000` with

    tensors.safetensors   network/…, average/…, optimizer/<parameter>/<moment>
    state.json            gradient step, schema, checksum of the tensors

Random state is not saved: every step seeds its own generators. A folder is written
under another name and renamed when it is complete, so a kill at any moment leaves the
previous checkpoint as the latest one.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from diffuser_policy.checkpoint import checksum
from diffuser_policy.errors import CheckpointError
from diffuser_policy.files import replaced_folder

Parts = Mapping[str, nn.Module | torch.optim.Optimizer]

SCHEMA = 1
TENSORS = "tensors.safetensors"
FOLDER = re.compile(r"step-\d{8,}")
NUM_KEPT = 2


def save_state(folder: Path, step: int, parts: Parts) -> Path:
    """Write a checkpoint atomically and delete all but the newest ones.

    Args:
        folder: Holds the checkpoints of one run.
        step: Gradient steps done.
        parts: Networks and optimizers by name, as `tensors_of` takes them.

    Raises:
        StorageError: Nothing was changed; the previous checkpoint is intact.
    """
    target = folder / f"step-{step:08d}"
    with replaced_folder(target) as partial:
        tensors = save(tensors_of(parts))
        (partial / TENSORS).write_bytes(tensors)
        state = {"schema": SCHEMA, "step": step, "sha256": checksum(tensors)}
        (partial / "state.json").write_bytes(json.dumps(state).encode())
    for old in checkpoints(folder)[:-NUM_KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def checkpoints(folder: Path) -> list[Path]:
    """Return complete checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if FOLDER.fullmatch(path.name)]
    complete = (path for path in found if (path / "state.json").is_file())
    return sorted(complete, key=step_of)


def step_of(checkpoint: Path) -> int:
    """Return the gradient step that a checkpoint's folder is named after."""
    return int(checkpoint.name.rpartition("-")[2])


def load_state(checkpoint: Path, parts: Parts) -> int:
    """Restore a run and return the gradient steps it had done.

    Args:
        checkpoint: A folder of `checkpoints`.
        parts: Restored in place; an optimizer keeps its hyperparameters.

    Raises:
        CheckpointError: Truncated, damaged, of another schema, or of another network.
    """
    try:
        state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
        data = (checkpoint / TENSORS).read_bytes()
        tensors = load(data)
        if state.get("schema") == SCHEMA and state["sha256"] != checksum(data):
            raise ValueError("its checksum differs: it is damaged")
        if step_of(checkpoint) != state["step"]:
            raise ValueError(f"it claims to be of step {state['step']}")
    except (OSError, ValueError, LookupError, AttributeError, SafetensorError) as error:
        raise CheckpointError(
            f"{checkpoint} cannot be read ({error}). Delete it to resume from the "
            f"checkpoint before it."
        ) from error
    if state.get("schema") != SCHEMA:
        raise CheckpointError(
            f"{checkpoint} has schema {state.get('schema')!r}, this version reads "
            f"{SCHEMA}. Resume with the version that wrote it, or start anew."
        )
    try:
        restore(parts, tensors)
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{checkpoint} does not hold the network that the settings describe: "
            f"{error}"
        ) from error
    return int(state["step"])


def tensors_of(parts: Parts) -> dict[str, Tensor]:
    """Return the weights of modules and the moments of optimizers, on the CPU.

    Args:
        parts: By name; none is a prefix of another.

    Returns:
        By `module/parameter` and `optimizer/index/moment`.
    """
    found: dict[str, Tensor] = {}
    for name, part in parts.items():
        if isinstance(part, torch.optim.Optimizer):
            for index, moments in part.state_dict()["state"].items():
                found |= {f"{name}/{index}/{key}": v for key, v in moments.items()}
        else:
            found |= {f"{name}/{key}": v for key, v in part.state_dict().items()}
    # Copies: modules may share tensors, and safetensors wants each of them once.
    return {
        key: value.detach().cpu().contiguous().clone() for key, value in found.items()
    }


def restore(parts: Parts, tensors: Mapping[str, Tensor]) -> None:
    """Load what `tensors_of` returned; an optimizer keeps its hyperparameters.

    Raises:
        RuntimeError, ValueError, KeyError: Tensors of other parts.
    """
    for name, part in parts.items():
        mine = {
            key.removeprefix(f"{name}/"): value
            for key, value in tensors.items()
            if key.startswith(f"{name}/")
        }
        if isinstance(part, torch.optim.Optimizer):
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in mine.items():
                index, _, moment = key.partition("/")
                state.setdefault(int(index), {})[moment] = value
            groups = part.state_dict()["param_groups"]
            part.load_state_dict({"state": state, "param_groups": groups})
        else:
            part.load_state_dict(mine)
