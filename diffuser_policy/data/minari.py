"""Minari datasets: found by id, read once, written in one piece.

A dataset `<namespace>/<name>-v<N>` is a folder of that name under
`$MINARI_DATASETS_PATH` (`~/.minari/datasets`) with `data/metadata.json` and one HDF5
file in which every episode is a group:

    episode_0/observations[/observation, …]  [L + 1, size]
    episode_0/actions  rewards  terminations  truncations  [L, …]

Opening thousands of small arrays one by one is slow in any format. So `load_flat` reads
a dataset once and then keeps it as long arrays in a cache:

    <cache>/diffuser--multi2d-large-v1-<digest of the path>/<digest of the files>/

The second digest covers names, sizes and modification times of the data files: a
dataset that has changed is read again, and its old entry deleted. Entries appear
complete or not at all; one that cannot be read is rebuilt.

Reading never makes the environment: official datasets hold step limits that Gymnasium
refuses.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from tqdm import tqdm

from diffuser_policy.data.flat import (
    GOALS,
    META_FILE,
    SCHEMA,
    Episode,
    FlatDataset,
    flatten,
)
from diffuser_policy.envs import Env, Space
from diffuser_policy.errors import (
    ConfigError,
    DatasetError,
    DatasetNotFoundError,
    StorageError,
    require_extra,
    suggestion,
)
from diffuser_policy.files import replaced_folder, user_folder

ROOT_VARIABLE = "MINARI_DATASETS_PATH"
CACHE_VARIABLE = "DIFFUSER_POLICY_CACHE"
DATASET_ID = re.compile(r"([\w-][\w/-]*[\w-]/)?[\w-]+-v\d+")
COLLECTION = "collection"  # our own entry in Minari's metadata
HDF5_FILE = "main_data.hdf5"
HDF5_RESERVE = 2**20  # bytes that closing a file may still need
ABANDONED = 24 * 3600.0  # seconds after which a half-written entry has no writer


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
        DatasetNotFoundError: No such dataset on this machine; the message says how to
            get it.
        DatasetError: Spaces that are not flat boxes or goal dictionaries, damaged
            files, or values that are not finite.
        StorageError: The cache cannot be written.
        MissingExtraError: The extra `data` is not installed.
    """
    source = _existing_folder(dataset_id) / "data"
    cache = Path(cache_dir or user_folder(CACHE_VARIABLE, ".cache", "diffuser-policy"))
    entry = _cache_entry(cache, dataset_id, source)
    with contextlib.suppress(DatasetError):
        return FlatDataset.load(entry)
    dataset = read_minari(source, progress=progress)
    if entry != _cache_entry(cache, dataset_id, source):
        return dataset  # the files changed meanwhile: don't keep it
    if not (entry / META_FILE).is_file():  # a complete entry has one
        shutil.rmtree(entry, ignore_errors=True)
    try:
        dataset.save(entry)
    except StorageError as error:
        raise StorageError(
            error.errno,
            f"{error.strerror or error} To move the cache elsewhere, set the "
            f"environment variable {CACHE_VARIABLE}.",
        ) from error
    _delete_old_entries(entry)
    with contextlib.suppress(DatasetError):
        return FlatDataset.load(entry)
    return dataset  # another process is replacing the entry at this moment


def read_minari(data_folder: Path, *, progress: bool = True) -> FlatDataset:
    """Read a dataset's `data` folder, without the cache.

    Raises:
        DatasetError: As `load_flat`.
        MissingExtraError: As `load_flat`.
    """
    facts = recorded_facts(data_folder.parent)
    _check_spaces(facts)
    if facts.get("data_format", "hdf5") == "hdf5":
        episodes = _hdf5_episodes(data_folder / HDF5_FILE, facts["total_episodes"])
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
    """Write episodes as a Minari dataset, complete or not at all; return its folder.

    Args:
        dataset_id: `namespace/name-v0`.
        episodes: Read one at a time.
        env: Where they come from; its spec and spaces are stored.
        collection: JSON-able facts on how they were collected, stored under
            "collection" with the environment's names for columns of its observation.
        overwrite: Replace a dataset of the same id.

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
    columns = dict(env.unwrapped.metadata.get("observation_columns", {}))
    if namespace and namespace not in list_local_namespaces():
        create_namespace(namespace)  # first: a kill must not leave it out
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
                COLLECTION: {"observation_columns": columns, **collection},
            }
        )
        storage.update_episodes(_buffers(episodes, env.observation_space, partial))
    return folder


def datasets_root() -> Path:
    """Return the folder in which Minari keeps its datasets."""
    return user_folder(ROOT_VARIABLE, ".minari", "datasets")


def check_spaces(env: Env) -> None:
    """Refuse an environment whose episodes `load_flat` could not read.

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
    """Return the folder of a new dataset.

    Raises:
        ConfigError: The id is malformed.
        DatasetError: The dataset exists and `overwrite` is false.
    """
    if not DATASET_ID.fullmatch(dataset_id):
        raise ConfigError(
            f"{dataset_id!r} is not a Minari id. Expected namespace/name-v0 with at "
            "least two letters of namespace, for example diffuser/my-maze-v0."
        )
    folder = datasets_root() / dataset_id
    if folder.exists() and not overwrite:
        raise DatasetError(
            f"The dataset {dataset_id!r} already exists, in {folder}. Choose another "
            "id (--dataset) or replace it (--overwrite)."
        )
    return folder


def _existing_folder(dataset_id: str) -> Path:
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


def recorded_facts(folder: Path) -> dict[str, Any]:
    """Return a dataset's metadata; those of its collection are under "collection".

    Args:
        folder: The dataset's, as `write_minari` returns it.

    Raises:
        DatasetError: The metadata cannot be read.
    """
    path = folder / "data" / "metadata.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        facts["total_episodes"] = int(facts["total_episodes"])
        facts["total_steps"] = int(facts["total_steps"])
        for name in ("observation_space", "action_space"):
            if name in facts:
                facts[name] = json.loads(facts[name])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{path} cannot be read: {error!r}.") from error
    return dict(facts)


def _flat_metadata(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts that stay with the arrays and with what is trained on them."""
    collection = facts.get(COLLECTION) or {}
    spec = json.loads(facts.get("env_spec") or "null") or {}
    action = facts.get("action_space") or {}
    columns = collection.get("observation_columns")
    if not columns and str(spec.get("id")).startswith("PointMaze_"):
        columns = {"position": [0, 1], "velocity": [2, 3]}  # names none itself
    return {
        "dataset_id": facts["dataset_id"],
        "env_id": spec.get("id"),
        "env_spec": facts.get("env_spec"),
        "minari_version": facts.get("minari_version"),
        "action_low": action.get("low"),
        "action_high": action.get("high"),
        "observation_columns": columns or {},
        COLLECTION: collection,
    }


def _check_spaces(facts: Mapping[str, Any]) -> None:
    """Raise unless the spaces, if known, fit into flat columns."""
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


def _buffers(episodes: Iterable[Episode], space: Space, folder: Path) -> Iterator[Any]:
    """Yield Minari's buffers; raise before one for which the disk may have no room.

    HDF5 does not survive a full disk: it reports errors when its objects are freed,
    where Python cannot raise them, and then crashes.
    """
    from minari.data_collector.episode_buffer import EpisodeBuffer

    is_dict = isinstance(space, gym.spaces.Dict)
    for episode in episodes:
        fields = dict(episode.observations)
        arrays = (*fields.values(), episode.actions, episode.rewards)
        needed = HDF5_RESERVE + 2 * sum(array.nbytes for array in arrays)
        if shutil.disk_usage(folder).free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        yield EpisodeBuffer(
            seed=episode.seed,
            observations=fields if is_dict else fields["observation"],
            actions=episode.actions,
            rewards=episode.rewards,
            terminations=episode.terminations,
            truncations=episode.truncations,
        )


def _hdf5_episodes(path: Path, num_episodes: int) -> Iterator[Episode]:
    """Yield the episodes of a Minari file in order, without their infos.

    Such a file costs time per array, not per byte, and an episode is a dozen arrays.
    So this opens and reads them through HDF5's own interface, which also converts to
    float32, instead of h5py's convenient one.

    Args:
        path: `main_data.hdf5`.
        num_episodes: The file must hold episodes 0 … num_episodes - 1.

    Raises:
        DatasetError: The file is damaged, lacks an episode or one of its arrays, or
            holds an array of something other than numbers.
        MissingExtraError: h5py is not installed.
    """
    h5py: Any = require_extra("h5py", "data")

    def read(group: Any, name: bytes, dtype: type[np.generic]) -> np.ndarray:
        dataset = h5py.h5d.open(group, name)
        array = np.empty(dataset.shape, dtype)
        if array.size:
            dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, array)
        return array

    number = -1
    try:
        with h5py.File(path, "r") as file:
            for number in range(num_episodes):
                group = h5py.h5g.open(file.id, f"episode_{number}".encode())
                observed = h5py.h5o.open(group, b"observations")
                if isinstance(observed, h5py.h5g.GroupID):
                    fields = {
                        n.decode(): read(observed, n, np.float32) for n in observed
                    }
                else:
                    fields = {"observation": read(group, b"observations", np.float32)}
                yield Episode(
                    observations=fields,
                    actions=read(group, b"actions", np.float32),
                    rewards=read(group, b"rewards", np.float32),
                    terminations=read(group, b"terminations", np.bool_),
                    truncations=read(group, b"truncations", np.bool_),
                )
    except (OSError, KeyError, RuntimeError, TypeError, ValueError) as error:
        where = f", episode {number}," if number >= 0 else ""
        raise DatasetError(f"{path}{where} cannot be read: {error}.") from error


def _cache_entry(cache: Path, name: str, source: Path) -> Path:
    files = [f"schema {SCHEMA}"]
    for path in sorted(source.rglob("*")):
        stat = path.stat()
        name_in_source = path.relative_to(source).as_posix()
        files.append(f"{name_in_source} {stat.st_size} {stat.st_mtime_ns}")
    place, digest = (
        hashlib.sha256(text.encode()).hexdigest()
        for text in (str(source.resolve()), "\n".join(files))
    )
    return cache / f"{name.replace('/', '--')}-{place[:8]}" / digest[:16]


def _delete_old_entries(entry: Path) -> None:
    """Delete older states of a dataset, and what interrupted writers left."""
    for other in entry.parent.iterdir():
        with contextlib.suppress(OSError):
            age = time.time() - other.stat().st_mtime
            if other != entry and (not other.name.startswith(".") or age > ABANDONED):
                shutil.rmtree(other)
