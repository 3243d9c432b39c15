"""Minari datasets: found by id, read once, written in one piece.

A dataset `<namespace>/<name>-v<N>` is a folder of that name under
`$MINARI_DATASETS_PATH` (`~/.minari/datasets`) with `data/metadata.json` and one HDF5
file in which every episode is a group:

    episode_0/observations[/observation, …]  [L + 1, size]
    episode_0/actions  rewards  terminations  truncations  [L, …]

Opening thousands of small arrays one by one is slow in any format, so reading goes
through a cache of long arrays (`cache.py`). The environment is never made: official
datasets hold step limits that Gymnasium refuses.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
from tqdm import tqdm

from diffuser_policy.data.cache import DatasetCache
from diffuser_policy.data.episodes import Episode, flatten
from diffuser_policy.data.flat import GOALS, FlatDataset
from diffuser_policy.data.hdf5 import hdf5_episodes
from diffuser_policy.envs import Env, Space
from diffuser_policy.errors import (
    ConfigError,
    DatasetError,
    DatasetNotFoundError,
    require_extra,
    suggestion,
)
from diffuser_policy.files import replaced_folder

ROOT_VARIABLE = "MINARI_DATASETS_PATH"
DATASET_ID = re.compile(r"([\w-][\w/-]*[\w-]/)?[\w-]+-v\d+")
COLLECTION = "collection"  # our own entry in Minari's metadata
HDF5_FILE = "main_data.hdf5"
HDF5_RESERVE = 2**20  # bytes that closing a file may still need


def load_flat(
    dataset_id: str,
    *,
    cache_dir: str | Path | None = None,
    progress: bool = True,
) -> FlatDataset:
    """Return a Minari dataset as long arrays, from the cache if it was read before.

    Args:
        dataset_id: For example `diffuser/multi2d-large-v1` or
            `D4RL/pointmaze/umaze-v2`.
        cache_dir: By default `$DIFFUSER_POLICY_CACHE`, or `~/.cache/diffuser-policy`.
        progress: Show a bar while reading, on a terminal.

    Raises:
        DatasetNotFoundError: No such dataset on this machine; what to do is said.
        DatasetError: Spaces that are not flat boxes or goal dictionaries, damaged
            files, or values that are not finite.
        StorageError: The cache cannot be written.
        MissingExtraError: The extra `data` is not installed.
    """
    folder = _existing_folder(dataset_id)
    cache = DatasetCache(cache_dir)
    return cache.get(
        dataset_id,
        folder / "data",
        lambda: read_minari(folder / "data", progress=progress),
    )


def read_minari(data_folder: Path, *, progress: bool = True) -> FlatDataset:
    """Read a dataset's `data` folder, without the cache.

    Raises:
        DatasetError: As `load_flat`.
        MissingExtraError: As `load_flat`.
    """
    facts = _read_metadata(data_folder)
    _check_spaces(facts)
    episodes: Iterator[Episode]
    if facts.get("data_format", "hdf5") == "hdf5":
        episodes = hdf5_episodes(data_folder / HDF5_FILE, facts["total_episodes"])
    else:
        episodes = _any_episodes(data_folder)
    bar = tqdm(
        episodes,
        total=facts["total_episodes"],
        desc=f"Reading {facts['dataset_id']}",
        unit="episode",
        disable=None if progress else True,
    )
    return flatten(bar, num_rows=facts["total_steps"], metadata=_flat_metadata(facts))


def write_minari(
    dataset_id: str,
    episodes: Iterable[Episode],
    *,
    env: Env,
    collection: Mapping[str, Any],
    overwrite: bool = False,
) -> Path:
    """Write episodes as a Minari dataset; it appears complete or not at all.

    Args:
        dataset_id: `namespace/name-v0`.
        episodes: Consumed one at a time.
        env: Where they come from: its spec and spaces are stored.
        collection: JSON-able settings of the generator, stored under "collection".
        overwrite: Replace a dataset of the same id.

    Returns:
        The dataset's folder.

    Raises:
        ConfigError: The id is malformed.
        DatasetError: The dataset exists.
        StorageError: It cannot be written.
    """
    minari = require_extra("minari", "data")
    from minari.dataset.minari_storage import MinariStorage
    from minari.namespace import create_namespace, list_local_namespaces

    folder = new_folder(dataset_id, overwrite=overwrite)
    namespace = dataset_id.rpartition("/")[0]
    with replaced_folder(folder) as partial:
        storage = MinariStorage.new(
            partial / "data",
            observation_space=env.observation_space,
            action_space=env.action_space,
            env_spec=env.spec,
            data_format="hdf5",
        )
        storage.update_metadata(
            {
                "dataset_id": dataset_id,
                "minari_version": minari.__version__,
                "algorithm_name": str(collection.get("policy", "unknown")),
                "requirements": [
                    f"{name}=={version}"
                    for name, version in collection.get("versions", {}).items()
                    if name in {"gymnasium", "gymnasium-robotics", "mujoco", "pybullet"}
                ],
                COLLECTION: dict(collection),
            }
        )
        with_room = _while_there_is_room(episodes, partial)
        storage.update_episodes(_buffers(with_room, env.observation_space))
    if namespace and namespace not in list_local_namespaces():
        create_namespace(namespace)
    return folder


def recorded_facts(folder: Path) -> dict[str, Any]:
    """Return what a dataset's metadata say of it; our own are under "collection".

    Args:
        folder: Of the dataset, as `write_minari` returns it.

    Raises:
        DatasetError: They cannot be read.
    """
    return _read_metadata(folder / "data")


def datasets_root() -> Path:
    """Return the folder that Minari keeps its datasets in."""
    default = Path.home() / ".minari" / "datasets"
    return Path(os.environ.get(ROOT_VARIABLE) or default)


def check_spaces(env: Env) -> None:
    """Refuse an environment whose episodes could not be read again.

    Raises:
        DatasetError: Its spaces are not flat boxes or goal dictionaries.
        MissingExtraError: The extra `data` is not installed.
    """
    serialize = require_extra("minari.serialization", "data").serialize_space
    facts = {
        "dataset_id": env.spec.id if env.spec else type(env.unwrapped).__name__,
        "observation_space": serialize(env.observation_space, to_string=False),
        "action_space": serialize(env.action_space, to_string=False),
    }
    _check_spaces(facts)


def local_dataset_ids() -> list[str]:
    """Return the ids of all datasets on this machine, sorted."""
    root = datasets_root()
    return sorted(
        file.parent.parent.relative_to(root).as_posix()
        for file in root.glob("**/data/metadata.json")
        if not any(part.startswith(".") for part in file.relative_to(root).parts)
    )


def new_folder(dataset_id: str, *, overwrite: bool = False) -> Path:
    """Return where a new dataset goes.

    Raises:
        ConfigError: The id is malformed.
        DatasetError: The dataset exists, and may not be replaced.
    """
    if not DATASET_ID.fullmatch(dataset_id):
        raise ConfigError(
            f"{dataset_id!r} is not a Minari id. Expected namespace/name-v0, the "
            "namespace at least two letters long, for example diffuser/my-maze-v0."
        )
    folder = datasets_root() / dataset_id
    if folder.exists() and not overwrite:
        raise DatasetError(
            f"The dataset {dataset_id!r} exists already, in {folder}. Choose another "
            "id (--dataset) or replace it (--overwrite)."
        )
    return folder


def _existing_folder(dataset_id: str) -> Path:
    """Return a dataset's folder, or say what was looked for and what to do."""
    root = datasets_root()
    folder = root / dataset_id
    if dataset_id and (folder / "data" / "metadata.json").is_file():
        return folder
    known = local_dataset_ids()
    listed = ", ".join(known) or "none"
    raise DatasetNotFoundError(
        f"No dataset {dataset_id!r} in {root}. {suggestion(dataset_id, known)}"
        f"On this machine: {listed}. Record one with `diffuser-policy collect ENV_ID`, "
        f"download an official one with `minari download {dataset_id}`, or set "
        f"{ROOT_VARIABLE} to the folder that holds it."
    )


def _read_metadata(data_folder: Path) -> dict[str, Any]:
    """Return metadata.json with the spaces decoded into dictionaries."""
    path = data_folder / "metadata.json"
    try:
        facts = json.loads(path.read_text())
        facts["total_episodes"] = int(facts["total_episodes"])
        facts["total_steps"] = int(facts["total_steps"])
        for name in ("observation_space", "action_space"):
            if name in facts:
                facts[name] = json.loads(facts[name])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{path} cannot be read: {error!r}.") from error
    return dict(facts)


def _flat_metadata(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts worth keeping with the arrays and with what is trained."""
    collection = facts.get(COLLECTION) or {}
    spec = json.loads(facts.get("env_spec") or "null") or {}
    action = facts.get("action_space") or {}
    return {
        "dataset_id": facts["dataset_id"],
        "env_id": spec.get("id"),
        "env_spec": facts.get("env_spec"),
        "minari_version": facts.get("minari_version"),
        "action_low": action.get("low"),
        "action_high": action.get("high"),
        "observation_columns": collection.get("observation_columns")
        or known_columns(str(spec.get("id"))),
        COLLECTION: collection,
    }


def known_columns(env_id: str) -> dict[str, list[int]]:
    """Return the observation columns of environments that don't name them themselves.

    Args:
        env_id: Gymnasium-Robotics' `PointMaze_*` observe position and velocity.
    """
    if env_id.startswith("PointMaze_"):
        return {"position": [0, 1], "velocity": [2, 3]}
    return {}


def _check_spaces(facts: Mapping[str, Any]) -> None:
    """Raise unless the spaces, where known, can be laid out in flat columns."""
    observation, action = facts.get("observation_space"), facts.get("action_space")
    if observation is None or action is None:
        return
    parts = {"action": action, "observation": observation}
    if observation["type"] == "Dict":
        parts = {"action": action, **observation["subspaces"]}
        expected = {"action", "observation", *GOALS}
        if set(parts) != expected:
            raise DatasetError(
                f"{facts['dataset_id']!r} has dictionary observations with the keys "
                f"{sorted(observation['subspaces'])}. Dictionaries must be goal "
                f"observations with exactly {sorted(expected - {'action'})}; flatten "
                "others into one Box when recording (gymnasium.wrappers."
                "FlattenObservation)."
            )
    for name, space in parts.items():
        if space["type"] != "Box" or len(space["shape"]) != 1:
            shape = f" of shape {space['shape']}" if "shape" in space else ""
            raise DatasetError(
                f"{facts['dataset_id']!r}: {name} is a {space['type']} space{shape}. "
                "Planning needs one-dimensional Box spaces (no images, no discrete "
                "actions)."
            )


def _any_episodes(data_folder: Path) -> Iterator[Episode]:
    """Yield the episodes of a dataset in any of Minari's formats."""
    minari = require_extra("minari", "data")
    for episode in minari.MinariDataset(data_folder).iterate_episodes():
        observations = episode.observations
        if not isinstance(observations, dict):
            observations = {"observation": observations}
        yield Episode(
            observations=observations,
            actions=episode.actions,
            rewards=episode.rewards,
            terminations=episode.terminations,
            truncations=episode.truncations,
        )


def _while_there_is_room(
    episodes: Iterable[Episode], folder: Path
) -> Iterator[Episode]:
    """Yield episodes, but raise before one that the disk may have no room for.

    HDF5 does not survive a full disk: it reports errors when its objects are freed,
    where Python cannot raise them, and then crashes.
    """
    for episode in episodes:
        arrays = (*episode.observations.values(), episode.actions, episode.rewards)
        needed = HDF5_RESERVE + 2 * sum(array.nbytes for array in arrays)
        if shutil.disk_usage(folder).free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        yield episode


def _buffers(episodes: Iterable[Episode], space: Space) -> Iterator[Any]:
    """Yield Minari's buffers, with arrays instead of dictionaries for Box spaces."""
    from minari.data_collector.episode_buffer import EpisodeBuffer

    for episode in episodes:
        fields = dict(episode.observations)
        yield EpisodeBuffer(
            seed=episode.seed,
            observations=fields
            if isinstance(space, gym.spaces.Dict)
            else fields["observation"],
            actions=episode.actions,
            rewards=episode.rewards,
            terminations=episode.terminations,
            truncations=episode.truncations,
        )
