"""Planners on disk: config.json, model.safetensors, README.md; never a pickle.

`write_planner` and `read_planner` are the two ends; `locate` finds a planner by path,
by the name of a shipped one, or by hub id, in this order.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save

from diffuser_policy.build import PlannerNetworks, build_networks
from diffuser_policy.config import PolicyConfig
from diffuser_policy.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    MissingExtraError,
    require_extra,
    suggestion,
)
from diffuser_policy.files import replaced_file
from diffuser_policy.numerics import plain_arithmetic
from diffuser_policy.versions import versions

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
SHIPPED = Path(__file__).parent / "pretrained"
HUB_TIMEOUT = 5.0  # seconds
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def write_planner(
    folder: Path,
    config: PolicyConfig,
    networks: PlannerNetworks,
    *,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write a planner, and replace its files once all of them are complete.

    Args:
        folder: Created if it does not exist.
        config: Settings.
        networks: Weights.
        provenance: Added to the config's own.

    Raises:
        StorageError: Out of space, or not permitted; the files stay as they were.
    """
    merged = {**config.provenance, **(provenance or {}), "versions": versions()}
    config = dataclasses.replace(config, provenance=merged)
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in networks.state_dict().items()
    }
    contents = {
        CARD: card(config, networks).encode(),
        CONFIG: (json.dumps(config.to_json(), indent=1) + "\n").encode(),
        WEIGHTS: save(tensors, metadata={"format": "diffuser-policy"}),
    }
    # All are written before the first replaces its predecessor: weights beside the
    # settings of another planner would be worse than no planner.
    with contextlib.ExitStack() as stack:
        for name, content in contents.items():
            partial = stack.enter_context(replaced_file(folder / name))
            partial.write_bytes(content)


@plain_arithmetic()
def read_planner(source: str | Path) -> tuple[PolicyConfig, PlannerNetworks]:
    """Read a planner by path, by the name of a shipped one, or by hub id.

    Args:
        source: For example "runs/mine", "multi2d-large", or "someone/their-planner".

    Raises:
        CheckpointNotFoundError: No planner of that name; the shipped ones are named.
        CheckpointError: Truncated, foreign, or of another schema. Nothing is ever
            unpickled.
    """
    folder = locate(source)
    try:
        data = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder / CONFIG} cannot be read: {error}. A planner folder holds "
            f"{CONFIG} and {WEIGHTS}, written by save_pretrained or "
            f"`diffuser-policy train`."
        ) from error
    config = PolicyConfig.from_json(data)
    networks = build_networks(config)
    try:
        networks.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder / WEIGHTS} is missing, truncated, or no safetensors file "
            f"({error}). Pickled checkpoints are never loaded: for the authors' .pt "
            f"files see diffuser_policy.interop."
        ) from error
    except RuntimeError as error:
        raise CheckpointError(
            f"{folder / WEIGHTS} does not hold the weights that {CONFIG} describes: "
            f"{error}"
        ) from error
    return config, networks.requires_grad_(False).eval()


def shipped_planners() -> list[str]:
    """Return the names of the planners that come with the package."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{CONFIG}"))


def locate(source: str | Path) -> Path:
    """Return the folder of a planner: a path, a shipped one, or a hub download.

    Raises:
        CheckpointNotFoundError: No planner of that name.
    """
    path = Path(source)
    if path.is_dir():
        return path
    if path.is_file():
        raise CheckpointError(
            f"{path} is a file; a planner is a folder with {CONFIG} and {WEIGHTS}. "
            f"For the authors' .pt files see diffuser_policy.interop."
        )
    name = str(source)
    if name in shipped_planners():
        return SHIPPED / name
    if HUB_ID.fullmatch(name):
        return _download(name)
    raise CheckpointNotFoundError(
        f"No planner {name!r}: no folder of that path, and none is shipped under that "
        f"name. {suggestion(name, shipped_planners())}"
        f"Shipped: {', '.join(shipped_planners()) or 'none'}."
    )


def _download(name: str) -> Path:
    """Fetch a planner from the hub, or from its cache when offline."""
    try:
        hub = require_extra("huggingface_hub", "hub")
    except MissingExtraError as error:
        raise CheckpointNotFoundError(
            f"No folder {name!r}. To fetch it as a hub id, install the extra: "
            f'pip install "diffuser-policy[hub]". '
            f"Shipped: {', '.join(shipped_planners()) or 'none'}."
        ) from error
    wanted = [WEIGHTS, CONFIG, CARD]
    try:  # a cached planner needs no network
        return Path(
            hub.snapshot_download(name, allow_patterns=wanted, local_files_only=True)
        )
    except (OSError, ValueError):
        pass
    try:
        # A download may wait forever on a network that swallows packets: ask first.
        hub.HfApi().model_info(name, timeout=HUB_TIMEOUT)
        return Path(hub.snapshot_download(name, allow_patterns=wanted))
    except Exception as error:  # its type depends on the hub's HTTP library
        raise CheckpointNotFoundError(
            f"No folder {name!r} here, and the hub repository of that id cannot be "
            f"reached or does not exist ({type(error).__name__}). "
            f"Shipped: {', '.join(shipped_planners()) or 'none'}."
        ) from error


def card(config: PolicyConfig, networks: PlannerNetworks) -> str:
    """Return the model card: what the planner is, its data, and how to use it."""
    window, network, provenance = config.window, config.network, config.provenance
    dataset = provenance.get("dataset", {})
    count = sum(parameter.numel() for parameter in networks.parameters())
    kind = "residual" if network.residual else "plain"
    kind = f"{kind}, architecture `{network.architecture}`"
    columns = "observations"
    if window.features is not None:
        columns = f"columns of the featurizer `{window.features}`"
    lines = [
        "---",
        "library_name: diffuser-policy",
        "tags: [reinforcement-learning, planning, diffusion, gymnasium]",
        "license: mit",
        "---",
        "# A Diffuser planner",
        "",
        "Plans by denoising a whole trajectory (Janner et al., ICML 2022).",
        "",
        "```python",
        "from diffuser_policy import DiffuserPolicy",
        "",
        'policy = DiffuserPolicy.from_pretrained("path/to/this/folder")',
        "action, state = policy.predict(observation)",
        "```",
        "",
        f"- Environment: {dataset.get('env_id', 'not recorded')}",
        f"- Dataset: {dataset.get('dataset_id', 'not recorded')}",
        f"- Horizon: {window.horizon} env steps, stride {window.stride}",
        f"- Plans: {'actions and ' if window.actions else ''}{columns}",
        f"- Network: {kind}, width {network.dim}",
        f"- Weights: {count:,} numbers, {provenance.get('steps', '?')} gradient steps",
    ]
    if config.value is not None:
        steps = provenance.get("value", {}).get("steps", "?")
        discount = f"return-to-go with discount {config.value.discount:g}"
        lines.append(f"- Value network: {discount}, {steps} gradient steps")
    if config.classifier is not None:
        steps = provenance.get("classifier", {}).get("steps", "?")
        labels = f"{len(config.classifier.classes)} labels of noisy states"
        lines.append(f"- Classifier: {labels}, {steps} gradient steps")
    lines += [
        "",
        f"Everything needed to train it again is in `{CONFIG}` under `provenance`.",
        *_results(provenance.get("results", {})),
    ]
    return "\n".join(lines) + "\n"


def _results(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the lines of a model card with scores by environment."""
    if not results:
        return []
    lines = ["", "| environment | episodes | score | success |", "|---|---|---|---|"]
    for env_id, result in results.items():
        mean, low, high = (result["score"][key] for key in ("mean", "low", "high"))
        lines.append(
            f"| {env_id} | {result['episodes']} | {mean:.1f} [{low:.1f}, {high:.1f}] "
            f"| {result['success_rate']['mean']:.0%} |"
        )
    return lines
