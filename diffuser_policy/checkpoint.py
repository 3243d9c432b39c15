"""Planners on disk: config.json, model.safetensors, README.md; never a pickle.

`write_planner` and `read_planner` are the two ends; `locate` finds a planner by path,
by the name of a shipped one, or by hub id, in this order.

`config.json` holds the checksum of its weights, and replacing it replaces the planner.
By then, the new weights lie beside it under a hidden name; they move into place
afterwards. A reader whose weights do not match the checksum looks for the hidden ones:
whenever the writer is killed, the folder holds the old planner or the new one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save

from diffuser_policy.build import (
    PlannerNetworks,
    build_networks,
    num_parameters,
    num_weights,
)
from diffuser_policy.choices import RUNS
from diffuser_policy.config import PolicyConfig
from diffuser_policy.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    ConfigError,
    MissingExtraError,
    require_extra,
    suggestion,
)
from diffuser_policy.files import (
    check_writable,
    hidden_sibling,
    is_abandoned,
    json_text,
    remove,
    replaced_file,
    storage_error,
    synced,
    usable_path,
)
from diffuser_policy.numerics import plain_arithmetic
from diffuser_policy.versions import versions
from diffuser_policy.words import counted

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
SHIPPED = Path(__file__).parent / "pretrained"
CHECKSUM = "weights_sha256"  # in config.json
PENDING = "pending"  # suffix of weights that are still to be moved into place
WRITING = (0.0, 0.05, 0.5)  # seconds to wait for a process that is writing the planner
HUB_TIMEOUT = 5.0  # seconds
HUB_ID = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


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
        StorageError: Out of space, not permitted, or NaN in the provenance; the files
            stay as they were.
    """
    merged = {**config.provenance, "versions": versions(), **(provenance or {})}
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in networks.state_dict().items()
    }
    weights = save(tensors, metadata={"format": "diffuser-policy"})
    config = dataclasses.replace(
        config, provenance={**_figures(folder, config, weights), **merged}
    )
    data = config.to_json()
    data = {"schema": data.pop("schema"), CHECKSUM: checksum(weights), **data}
    text = json_text(folder / CONFIG, data)
    place = Path(os.path.realpath(folder / WEIGHTS))
    pending = hidden_sibling(place, PENDING)
    check_writable(folder / WEIGHTS)  # before the settings are replaced
    with replaced_file(folder / CARD) as described:
        described.write_bytes(card(config, networks).encode())
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with replaced_file(folder / CONFIG) as settings:
                settings.write_bytes(text.encode())
                pending.write_bytes(weights)
                synced(pending)
        finally:  # an interrupt may come after the settings have been replaced
            _finish(folder, pending, place)
    settle(folder)


def _figures(folder: Path, config: PolicyConfig, weights: bytes) -> dict[str, Any]:
    """Return what `evaluate --card` found of this planner, if the folder holds it."""
    try:
        data = dict(json.loads((folder / CONFIG).read_text(encoding="utf-8")))
        found = data.pop("provenance").get("results")
    except (OSError, ValueError, LookupError, AttributeError, RecursionError):
        return {}
    now = json.loads(json.dumps(config.to_json())) | {CHECKSUM: checksum(weights)}
    del now["provenance"]
    return {"results": found} if found and data == now else {}


def settle(folder: Path) -> None:
    """Finish what a killed writer of a planner began, and delete what it left.

    Args:
        folder: Of the planner; nothing happens in one that holds none.

    Raises:
        StorageError: The weights cannot be moved into place.
    """
    place = Path(os.path.realpath(folder / WEIGHTS))
    for path in _pending(place):
        if is_abandoned(path):
            _finish(folder, path, place)


def checksum(weights: bytes) -> str:
    """Return the checksum of a weights file."""
    return hashlib.sha256(weights).hexdigest()


def planner_checksum(source: str | Path) -> str:
    """Return a checksum of a planner's weights and settings, provenance left out.

    Raises:
        CheckpointNotFoundError: No planner of that name.
        CheckpointError: It cannot be read.
    """
    data, weights = _read_files(locate(source))
    kept = data
    if isinstance(data, Mapping):
        kept = {k: v for k, v in data.items() if k not in ("provenance", CHECKSUM)}
    settings = json.dumps(kept, sort_keys=True)
    return checksum(settings.encode() + (weights or b""))


@plain_arithmetic()
def read_planner(source: str | Path) -> tuple[PolicyConfig, PlannerNetworks]:
    """Read a planner by path, by the name of a shipped one, or by hub id.

    Args:
        source: For example "runs/mine", "multi2d-large", "someone/their-planner" or,
            with a commit, branch or tag, "someone/their-planner@v2".

    Raises:
        CheckpointNotFoundError: No planner of that name; the shipped ones are named.
        CheckpointError: Truncated, damaged, foreign, or of another schema. Nothing is
            ever unpickled.
    """
    folder = locate(source)
    data, weights = _read_files(folder)
    config = PolicyConfig.from_json(data)
    try:
        _results(config.provenance.get("results", {}))
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(
            f"{folder / CONFIG} has figures that no model card can show: {error!r}. "
            f"Delete 'results' from its 'provenance', and evaluate it again (--card)."
        ) from error
    try:
        described = num_weights(config)
        if weights is not None and described > len(weights):  # a byte each, at least
            raise CheckpointError(
                f"{folder / CONFIG} describes {described:,} weights, and "
                f"{folder / WEIGHTS} has {len(weights):,} bytes: it is missing, "
                f"truncated, or no safetensors file of this planner. Pickled "
                f"checkpoints are never loaded."
            )
        networks = build_networks(config)
    except (ConfigError, LookupError, RuntimeError, OverflowError) as error:
        raise CheckpointError(
            f"{folder / CONFIG} describes impossible networks: {error}"
        ) from error
    try:
        if weights is None:
            raise FileNotFoundError("no such file")
        networks.load_state_dict(load(weights))
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
    expected = data.get(CHECKSUM)  # planners of earlier versions have none
    if expected is not None and checksum(weights) != expected:
        raise CheckpointError(
            f"{folder / WEIGHTS} does not hold the weights that {CONFIG} describes: "
            "their checksum differs. One of the two is damaged, or belongs to "
            "another planner: copy both again. If you changed the weights on "
            f"purpose, delete {CHECKSUM!r} from {CONFIG}."
        )
    return config, networks.requires_grad_(False).eval()


def _read_files(folder: Path) -> tuple[Any, bytes | None]:
    """Return the settings of a planner, and the weights of their checksum.

    The weights in place if there are no others; none if there are none at all. Another
    process may be replacing the planner at this moment, so this looks several times.
    """
    place = Path(os.path.realpath(folder / WEIGHTS))
    for pause in WRITING:
        time.sleep(pause)
        try:
            data = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            if not (folder / CONFIG).exists() and (folder / "training").is_dir():
                raise CheckpointError(
                    f"The training in {folder} has not saved a planner yet. If it has "
                    f"stopped, the command that began it resumes it; it saves a "
                    f"planner every save_interval gradient steps (--save-interval)."
                ) from error
            raise CheckpointError(
                f"{folder / CONFIG} cannot be read: {error}. A planner folder holds "
                f"{CONFIG} and {WEIGHTS}, written by save_pretrained or "
                f"`diffuser-policy train`."
            ) from error
        expected = data.get(CHECKSUM) if isinstance(data, dict) else None
        found: bytes | None = None
        for path in (place, *_pending(place)):
            try:
                weights = path.read_bytes()
            except OSError:
                continue
            if expected is None or checksum(weights) == expected:
                return data, weights
            found = weights if path == place else found
    return data, found


def _pending(place: Path) -> Iterator[Path]:
    """Yield the weights that wait to be moved to `place`."""
    name = hidden_sibling(place, PENDING).name.partition(f".{os.getpid()}-")[0]
    return place.parent.glob(f"{name}.*.{PENDING}")


def _finish(folder: Path, pending: Path, place: Path) -> None:
    """Move waiting weights to `place` if the settings are theirs, or else delete them.

    Raises:
        StorageError: They cannot be moved; readers still find them.
    """
    if not _is_in_use(folder, pending):
        remove(pending)
        return
    try:
        pending.replace(place)
    except OSError as error:
        raise storage_error(place, error) from error


def _is_in_use(folder: Path, pending: Path) -> bool:
    """Return whether the settings beside waiting weights are theirs."""
    try:
        data = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        return bool(checksum(pending.read_bytes()) == data.get(CHECKSUM))
    except (OSError, ValueError, AttributeError):
        return False


def shipped_planners() -> list[str]:
    """Return the names of the planners that come with the package."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{CONFIG}"))


def locate(source: str | Path) -> Path:
    """Return the folder of a planner: a path, a shipped one, or a hub download.

    Raises:
        CheckpointNotFoundError: No planner of that name.
    """
    path, name = usable_path(source, CheckpointNotFoundError), str(source)
    if path.is_dir():
        return path
    if path.is_file():
        raise CheckpointError(
            f"{path} is a file; a planner is a folder with {CONFIG} and {WEIGHTS}. "
            f"For the authors' .pt files see diffuser_policy.interop."
        )
    if name in shipped_planners():
        return SHIPPED / name
    if found := HUB_ID.fullmatch(name):
        return _download(found["repository"], found["revision"])
    raise CheckpointNotFoundError(
        f"No planner {name!r}: there is no such folder, and no shipped planner of "
        f"that name. {_known(name)}",
        planner=name,
    )


def _known(name: str) -> str:
    """Return the planners that a name may mean, and those that are shipped."""
    shipped, folders = shipped_planners(), set[Path]()
    with contextlib.suppress(OSError, ValueError):  # paths that cannot be
        for place in (Path(name).parent, Path(RUNS)):
            folders |= {file.parent for file in place.glob(f"*/{CONFIG}")}
    near = suggestion(name, {*shipped, *map(str, folders)})
    return f"{near}Shipped: {', '.join(shipped) or 'none'}."


def _download(name: str, revision: str | None) -> Path:
    """Fetch a planner from the hub, or from its cache when offline."""
    try:
        hub = require_extra("huggingface_hub", "hub")
    except MissingExtraError as error:
        raise CheckpointNotFoundError(
            f"No folder {name!r}. To fetch it as a hub id, install the extra, in "
            f'a clone of diffuser-policy: pip install ".[hub]". {_known(name)}'
        ) from error
    wanted = [WEIGHTS, CONFIG, CARD]
    fetch = partial(
        hub.snapshot_download, name, revision=revision, allow_patterns=wanted
    )
    with contextlib.suppress(OSError, ValueError):
        cached = Path(fetch(local_files_only=True))
        # An interrupted download leaves a part of the files.
        if all((cached / part).is_file() for part in (WEIGHTS, CONFIG)):
            return cached  # which needs no network
    try:
        # A download may wait forever on a network that swallows packets: ask first.
        hub.HfApi().model_info(name, revision=revision, timeout=HUB_TIMEOUT)
        return Path(fetch())
    except Exception as error:  # its type depends on the hub's HTTP library
        raise CheckpointNotFoundError(
            f"No folder {name!r} here, and the hub repository of that id"
            f"{'' if revision is None else f' and revision {revision!r}'} cannot be "
            f"reached or does not exist ({type(error).__name__}). {_known(name)}"
        ) from error


def card(config: PolicyConfig, networks: PlannerNetworks) -> str:
    """Return the model card: what the planner is, its data, and how to use it."""
    window, network, provenance = config.window, config.network, config.provenance
    dataset = provenance.get("dataset", {})
    count = num_parameters(networks)
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
        f"- Horizon: {counted(window.horizon, 'env step')}, stride {window.stride}",
        f"- Plans: {'actions and ' if window.actions else ''}{columns}",
        f"- Network: {kind}, width {network.dim}",
        f"- Weights: {count:,} numbers, {provenance.get('steps', '?')} gradient steps",
    ]
    if config.value is not None:
        # Trained with the planner, or later by itself.
        steps = provenance.get("value", provenance).get("steps", "?")
        discount = f"return-to-go with discount {config.value.discount:g}"
        lines.append(f"- Value network: {discount}, {steps} gradient steps")
    if config.critic is not None:
        steps = provenance.get("critic", provenance).get("steps", "?")
        lines.append(
            f"- Critic: discount {config.critic.discount:g}, {steps} gradient steps"
        )
    if config.inverse_dynamics is not None:
        reach = config.inverse_dynamics.max_steps
        lines.append(
            f"- Inverse dynamics: to states up to {counted(reach, 'env step')} away"
        )
    if config.landmarks is not None:
        places = counted(config.landmarks.num, "place")
        lines.append(f"- Landmarks: {places} on the way to far goals")
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
    every = {"score": "score", "return": "return", "success_rate": "success"}
    shown = [key for key in every if any(r.get(key) for r in results.values())]
    others = [key for key in shown if key != "return"]
    if all(any(r.get(key) for key in others) for r in results.values()):
        shown = others  # a return says little beside these
    rows = [["environment", "episodes", *(every[key] for key in shown)]]
    for env_id, result in results.items():
        figures = [_figure(key, result.get(key)) for key in shown]
        rows.append([env_id, str(result["episodes"]), *figures])
    head, *lines = [f"| {' | '.join(row)} |" for row in rows]
    return ["", head, "|---" * len(rows[0]) + "|", *lines]


def _figure(name: str, interval: Mapping[str, float | None] | None) -> str:
    """Return a figure of a model card, with its interval if that has ends."""
    if not interval or interval["mean"] is None:
        return ""
    if name == "success_rate":
        return f"{interval['mean']:.0%}"
    if interval["low"] is None or interval["high"] is None:
        return f"{interval['mean']:.1f}"
    return f"{interval['mean']:.1f} [{interval['low']:.1f}, {interval['high']:.1f}]"
