"""Checkpoints of a training run: complete or absent, and free of pickle.

A checkpoint is a folder `step-00012000` with

    tensors.safetensors   network/…, average/…, optimizer/<parameter>/<moment>
    state.json            gradient step, schema

Random state is not saved: every step seeds its own generators. Folders are written
under another name and renamed when complete, so a kill at any moment leaves the
previous checkpoint as the latest one.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.errors import CheckpointError
from diffuser_policy.files import replaced_folder

SCHEMA = 1
FOLDER = re.compile(r"step-(\d{8})")
NUM_KEPT = 2
LEFTOVER = re.compile(
    r"\.(step-\d{8}|(settings|config)\.json|metrics\.jsonl"
    r"|model\.safetensors|README\.md)\.\d+-[0-9a-f]+\.(partial|old)"
)  # as named by `hidden_sibling`


def save_state(
    folder: Path,
    step: int,
    *,
    network: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> Path:
    """Write a checkpoint atomically and delete all but the newest ones.

    Args:
        folder: Holds the checkpoints of one run.
        step: Gradient steps done.
        network: Trained weights.
        average: Averaged weights.
        optimizer: Its moments are saved too.

    Raises:
        StorageError: Nothing was changed; the previous checkpoint is intact.
    """
    tensors = {f"network/{k}": v for k, v in network.state_dict().items()}
    tensors |= {f"average/{k}": v for k, v in average.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{name}": v for name, v in moments.items()}
    target = folder / f"step-{step:08d}"
    with replaced_folder(target) as partial:
        contiguous = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        (partial / "tensors.safetensors").write_bytes(save(contiguous))
        state = {"schema": SCHEMA, "step": step}
        (partial / "state.json").write_text(json.dumps(state))
    for old in checkpoints(folder)[:-NUM_KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def checkpoints(folder: Path) -> list[Path]:
    """Return complete checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if FOLDER.fullmatch(path.name)]
    return sorted(path for path in found if (path / "state.json").is_file())


def remove_leftovers(output: Path) -> None:
    """Delete what a killed process was writing into the folder of a run.

    Args:
        output: Folder of the run; only hidden names that its files are written under
            are touched.
    """
    for folder in (output, output / "training"):
        if not folder.is_dir():
            continue
        for path in [p for p in folder.iterdir() if LEFTOVER.fullmatch(p.name)]:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    path.unlink()


def data_facts(flat: FlatDataset) -> dict[str, int]:
    """Return the size of a dataset and a checksum that tells it from another one."""
    checksum = 0
    fields = flat.fields
    for array in (fields["observation"], fields["action"], flat.run_starts):
        checksum = zlib.crc32(np.ascontiguousarray(array).data, checksum)
    return {"num_rows": flat.num_rows, "checksum": checksum}


def load_state(
    checkpoint: Path,
    *,
    network: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> int:
    """Restore a run and return the gradient steps it had done.

    Args:
        checkpoint: A folder of `checkpoints`.
        network: Restored in place.
        average: Restored in place.
        optimizer: Restored in place; its hyperparameters stay as they are.

    Raises:
        CheckpointError: Truncated, of another schema, or of another network.
    """
    try:
        state = json.loads((checkpoint / "state.json").read_text())
        tensors = load_file(checkpoint / "tensors.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"{checkpoint} cannot be read ({error}). Delete it to resume from the "
            f"checkpoint before it."
        ) from error
    if state.get("schema") != SCHEMA:
        raise CheckpointError(
            f"{checkpoint} has schema {state.get('schema')}, this version reads "
            f"{SCHEMA}. Train with the version that wrote it, or start anew."
        )
    try:
        network.load_state_dict(_part(tensors, "network/"))
        average.load_state_dict(_part(tensors, "average/"))
        optimizer.load_state_dict(_optimizer_state(tensors, optimizer))
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{checkpoint} holds another network than the settings ask for: {error}"
        ) from error
    return int(state["step"])


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        key.removeprefix(prefix): value
        for key, value in tensors.items()
        if key.startswith(prefix)
    }


def _optimizer_state(
    tensors: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> dict[str, object]:
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in _part(tensors, "optimizer/").items():
        index, _, name = key.partition("/")
        moments.setdefault(int(index), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    return {"state": moments, "param_groups": groups}
