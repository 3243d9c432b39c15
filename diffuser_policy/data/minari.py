"""Minari datasets: found by id, read once, written in one piece.

A dataset `<namespace>/<name>-v<N>` is a folder of that name under
`$MINARI_DATASETS_PATH` (`~/.minari/datasets`) with `data/metadata.json` and one HDF5
file in which every episode is a group:

    episode_0/observations[/observation, …]  [L + 1, …]
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
import copy
import errno
import hashlib
import json
import math
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from tqdm import tqdm

from diffuser_policy.choices import GOAL_KEYS
from diffuser_policy.data.demonstrators import DEMONSTRATORS, import_environments
from diffuser_policy.data.flat import (
    SCHEMA,
    Episode,
    FlatDataset,
    flatten,
)
from diffuser_policy.envs import POINT_MAZES, Env, Space, env_name, env_spec
from diffuser_policy.errors import (
    ConfigError,
    DatasetError,
    DatasetNotFoundError,
    DiffuserPolicyError,
    EnvContractError,
    StorageError,
    require_extra,
    shown,
    suggestion,
)
from diffuser_policy.files import (
    LEFT_BY_SYSTEMS,
    LOCK_FILE,
    alone_in,
    remove,
    replaced_folder,
    tidy,
    usable_path,
    user_folder,
)
from diffuser_policy.observations import (
    ObservationColumns,
    Part,
    arrays_in,
    described,
    joined,
    parts_of,
)
from diffuser_policy.plugins import address
from diffuser_policy.settings import json_data, to_json
from diffuser_policy.spaces import action_bounds
from diffuser_policy.versions import SIMULATORS

ROOT_VARIABLE = "MINARI_DATASETS_PATH"

# How some arrays come to hold no numbers, or steps of another shape.
PICTURES = " (Minari before 0.5.4 writes arrays of bytes as pictures)"
CACHE_VARIABLE = "DIFFUSER_POLICY_CACHE"
DATASET_ID = re.compile(r"([\w-][\w/-]*[\w-]/)?[\w-]+-v\d+")
COLLECTION = "collection"  # our own entry in Minari's metadata
HDF5_FILE = "main_data.hdf5"
READER = 2  # grows when the same files are read as other columns
HDF5_RESERVE = 2**20  # bytes that closing a file may still need


def load_flat(
    dataset_id: str,
    *,
    goal_keys: tuple[str, str] = GOAL_KEYS,
    cache_dir: str | Path | None = None,
    progress: bool = True,
) -> FlatDataset:
    """Return a Minari dataset as long arrays, from the cache if it was read before.

    Observations are flattened into the columns that the metadata name under "columns"
    (`diffuser_policy.observations`).

    Args:
        dataset_id: For example `diffuser/multi2d-large-v1` or
            `D4RL/pointmaze/umaze-v2`.
        goal_keys: Where observations have the achieved and the desired goal: keys,
            joined by slashes. Without the usual ones, the dataset has no goals.
        cache_dir: By default `$DIFFUSER_POLICY_CACHE`, or `~/.cache/diffuser-policy`.
        progress: Show a bar while reading, on a terminal.

    Raises:
        DatasetNotFoundError: No such dataset on this machine; the message says how to
            get it.
        ConfigError: Goal keys that are not two different texts, or that observations
            do not have.
        DatasetError: Spaces that are not made of boxes of numbers, damaged files, or
            values that are not finite.
        StorageError: The cache cannot be written.
        MissingExtraError: The extra `data` is not installed.
    """
    _check_goal_keys(goal_keys)
    source = _existing_folder(dataset_id) / "data"
    cache = Path(cache_dir or user_folder(CACHE_VARIABLE, ".cache", "diffuser-policy"))
    entry = _cache_entry(cache, dataset_id, source, goal_keys)
    with contextlib.suppress(DatasetError):
        return FlatDataset.load(entry)
    try:
        # Not synced: a damaged entry is read anew. Nor kept in a variable, which would
        # keep the files mapped: Windows renames no folder with such files.
        with replaced_folder(entry, durable=False) as partial:
            read_minari(
                source, goal_keys=goal_keys, progress=progress, into=partial
            ).complete(partial)
            if entry != _cache_entry(cache, dataset_id, source, goal_keys):
                raise _ChangedError
    except _ChangedError:  # the files, while they were read: nothing is kept
        return read_minari(source, goal_keys=goal_keys, progress=progress)
    except StorageError as error:
        # Perhaps because others read the entry that another process was faster to make:
        # Windows replaces no files that are mapped.
        with contextlib.suppress(DatasetError):
            return FlatDataset.load(entry)
        raise StorageError(
            error.errno,
            f"{error.strerror or error} To move the cache elsewhere, set the "
            f"environment variable {CACHE_VARIABLE}.",
        ) from error
    _delete_old_entries(entry)
    with contextlib.suppress(DatasetError):
        return FlatDataset.load(entry)
    # Another process is replacing the entry at this moment.
    return read_minari(source, goal_keys=goal_keys, progress=progress)


class _ChangedError(Exception):
    """A dataset changed while it was read."""


def _check_goal_keys(given: Any) -> None:
    texts = isinstance(given, tuple | list) and all(isinstance(k, str) for k in given)
    if not (texts and len(given) == 2 and given[0] != given[1]):
        raise ConfigError(
            f"goal_keys must be two different keys, of the achieved and of the desired "
            f"goal; got {shown(given)}."
        )


def read_minari(
    data_folder: Path,
    *,
    goal_keys: tuple[str, str] = GOAL_KEYS,
    progress: bool = True,
    into: Path | None = None,
) -> FlatDataset:
    """Read a dataset's `data` folder, without the cache.

    Args:
        data_folder: With `metadata.json`.
        goal_keys: As `load_flat`.
        progress: As `load_flat`.
        into: Folder for the arrays, as `flatten` takes it; not given: memory.

    Raises:
        OSError: The arrays could not be written.
        ConfigError: As `load_flat`.
        DatasetError: As `load_flat`.
        MissingExtraError: As `load_flat`.
    """
    facts = recorded_facts(data_folder.parent)
    in_hdf5 = facts.get("data_format", "hdf5") == "hdf5"
    if in_hdf5 and "observation_space" not in facts:
        facts["observation_space"] = _hdf5_space(data_folder / HDF5_FILE)
    parts = _checked_parts(facts)
    columns = ObservationColumns.of(parts, goal_keys)
    if in_hdf5:
        path, count = data_folder / HDF5_FILE, facts["total_episodes"]
        shape = (facts.get("action_space") or {}).get("shape")
        shape = None if shape is None else tuple(shape)
        episodes = _hdf5_episodes(path, count, columns, shape)
    else:
        episodes = _any_episodes(data_folder, columns)
    bar = tqdm(
        episodes,
        total=facts["total_episodes"],
        desc=f"Reading {facts['dataset_id']}",
        unit="episode",
        disable=None if progress else True,
    )
    # A run that was cut into episodes is recorded with its number of steps instead.
    whole = "num_episodes" in (facts.get(COLLECTION) or {})
    return flatten(
        bar,
        num_rows=facts["total_steps"],
        all_reset=whole,
        metadata=_flat_metadata(facts, columns),
        folder=into,
    )


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
        DatasetError: The dataset exists, or its folder holds other files.
        StorageError: It cannot be written.
    """
    minari = require_extra("minari", "data")
    from minari.dataset.minari_storage import MinariStorage
    from minari.namespace import create_namespace, list_local_namespaces

    folder = dataset_folder(dataset_id)
    _check_is_free(dataset_id, overwrite=overwrite)
    namespace = dataset_id.rpartition("/")[0]
    spec, columns = stored_spec(env), observation_columns(env)
    with replaced_folder(folder) as partial:
        storage = MinariStorage.new(
            partial / "data",
            observation_space=env.observation_space,
            action_space=env.action_space,
            env_spec=spec,
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
                    if name in SIMULATORS
                ],
                COLLECTION: {
                    "observation_columns": columns,
                    **collection,
                    "env_id": env.spec.id if env.spec else None,
                },
            }
        )
        storage.update_episodes(_buffers(episodes, env.observation_space, partial))
        if namespace and namespace not in list_local_namespaces():
            create_namespace(namespace)  # now: a kill must not leave it out
    return folder


def stored_spec(env: Env) -> EnvSpec | None:
    """Return an environment's registration in the form that files can hold.

    A class or function that was registered itself is named by its module. None if that
    does not find it again, or if the settings cannot be written as JSON: such a file
    would be of no use to make the environment.
    """
    if env.spec is None:
        return None
    spec = copy.deepcopy(env.spec)
    if callable(spec.entry_point):
        module, _, name = address(spec.entry_point).partition(":")
        found = getattr(sys.modules.get(module), name, None)
        if found is not env.spec.entry_point or module == "__main__":
            return None
        spec.entry_point = f"{module}:{name}"
    try:
        spec.to_json()
    except (TypeError, ValueError):  # classes, functions, arrays
        return None
    return spec


def observation_columns(env: Env) -> dict[str, list[int]]:
    """Return the names that an environment gives to columns of its observations.

    Raises:
        EnvContractError: They are not lists of column numbers.
    """
    columns = env.metadata.get("observation_columns") or {}
    parts = ObservationColumns.of(parts_of(env.observation_space))
    size = parts.size + parts.goal_size  # which may be appended
    try:
        return {
            str(name): [range(size).index(each) for each in np.ravel(numbers).tolist()]
            for name, numbers in dict(columns).items()
        }
    except (TypeError, ValueError) as error:
        raise EnvContractError(
            f"{env_name(env)}: metadata['observation_columns'] must name columns by "
            f"their numbers, such as {{'position': [0, 1]}}, and its observations have "
            f"{size}; got {columns!r}."
        ) from error


def datasets_root() -> Path:
    """Return the folder in which Minari keeps its datasets."""
    return user_folder(ROOT_VARIABLE, ".minari", "datasets")


def check_spaces(env: Env) -> None:
    """Refuse an environment whose episodes `load_flat` could not read.

    Raises:
        DatasetError: Its spaces are not made of boxes of numbers.
        EnvContractError: Its names of columns are of another form.
        MissingExtraError: The extra `data` is not installed.
    """
    require_extra("minari", "data")
    spaces = {"observation": env.observation_space, "action": env.action_space}
    described_spaces = {f"{k}_space": described(space) for k, space in spaces.items()}
    _checked_parts({"dataset_id": env_name(env), **described_spaces})
    actions = env.action_space
    if isinstance(actions, gym.spaces.Box):
        action_bounds(actions.low.tolist(), actions.high.tolist(), actions.low.size)
    observation_columns(env)


def local_dataset_ids() -> list[str]:
    """Return the ids of all datasets on this machine, sorted."""
    root = datasets_root()
    return sorted(
        file.parent.parent.relative_to(root).as_posix()
        for file in root.glob("**/data/metadata.json")
        if not any(part.startswith(".") for part in file.relative_to(root).parts)
    )


def own_dataset_id(name: str) -> str:
    """Return `diffuser/<name>` as a Minari id, with a version if the name has none."""
    name = re.sub(r"\W+", "-", name).strip("-").lower() or "unnamed"
    return f"diffuser/{name}" + ("" if re.search(r"-v\d+$", name) else "-v0")


def dataset_folder(dataset_id: str) -> Path:
    """Return the folder of a dataset id, whether or not it exists.

    Raises:
        ConfigError: The id is malformed.
    """
    if not isinstance(dataset_id, str) or not DATASET_ID.fullmatch(dataset_id):
        raise ConfigError(
            f"{dataset_id!r} is not a Minari id. Expected namespace/name-v0 with at "
            "least two letters of namespace, for example diffuser/my-maze-v0."
        )
    return usable_path(datasets_root() / dataset_id, ConfigError)


def check_is_new(dataset_id: str) -> None:
    """Refuse the id of a dataset that exists.

    Raises:
        ConfigError: The id is malformed.
        DatasetError: The dataset exists.
    """
    folder = dataset_folder(dataset_id)
    if folder.exists():
        raise DatasetError(
            f"The dataset {dataset_id!r} already exists, in {folder}. Choose another "
            "id (--dataset) or replace it (--overwrite)."
        )


def _check_is_free(dataset_id: str, *, overwrite: bool) -> None:
    """Refuse the id of a dataset that exists, or whose folder holds other files.

    Args:
        dataset_id: Of the dataset to be written.
        overwrite: It may exist.

    Raises:
        ConfigError: The id is malformed.
        DatasetError: Names the files that would be lost.
    """
    if not overwrite:
        check_is_new(dataset_id)
    folder = dataset_folder(dataset_id)
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        names = {path.name for path in folder.iterdir()} - LEFT_BY_SYSTEMS
        if others := sorted(names - {"data"}):
            raise DatasetError(
                f"The dataset {dataset_id!r} would replace {folder}, which holds "
                f"other files: {', '.join(others[:5])}. Move them, or choose another "
                "id (--dataset)."
            )


def work_folder(folder: Path) -> Path:
    """Return the hidden folder of the unfinished work on the dataset of a folder."""
    return folder.with_name(f".{folder.name}.collecting")


@contextlib.contextmanager
def at_work(dataset_id: str, *, overwrite: bool = False) -> Iterator[None]:
    """Keep other processes from writing the same dataset; delete what killed ones left.

    Args:
        dataset_id: Of the dataset to be written.
        overwrite: It may exist.

    Raises:
        ConfigError: The id is malformed, or another process is at work on the dataset.
        DatasetError: The dataset exists and `overwrite` is false, or its folder holds
            other files.
        StorageError: The folder cannot be written to.
    """
    folder = dataset_folder(dataset_id)
    hidden = work_folder(folder)
    refusal = (
        f"Another process is writing the dataset in {folder}. Wait for it, end it, or "
        f"choose another id (--dataset); nothing was changed."
    )
    with alone_in(hidden, refusal):
        tidy(folder.parent)
        try:
            _check_is_free(dataset_id, overwrite=overwrite)
            yield
        finally:
            with contextlib.suppress(FileNotFoundError):  # the work is done
                if [path.name for path in hidden.iterdir()] == [LOCK_FILE]:
                    shutil.rmtree(hidden, ignore_errors=True)


def _existing_folder(dataset_id: str) -> Path:
    root, dataset_id = datasets_root(), str(dataset_id)
    folder = usable_path(root / dataset_id, DatasetNotFoundError)
    if dataset_id and (folder / "data" / "metadata.json").is_file():
        return folder
    if usable_path(dataset_id, DatasetNotFoundError).is_file():
        raise DatasetNotFoundError(
            f"{dataset_id} is a file, and no dataset of Minari. `diffuser-policy "
            f"import {shlex.quote(dataset_id)} --env ENV_ID` makes a dataset of one."
        )
    known = local_dataset_ids()
    listed = ", ".join(known) or "none"
    env_id, option = "ENV_ID", ""
    official = f"download an official one with `minari download {dataset_id}`, "
    if found := recorded_by(dataset_id):
        env_id, option = found
    own = found or dataset_id.startswith("diffuser/")  # recorded by this package
    if own or not DATASET_ID.fullmatch(dataset_id):
        official = ""
    raise DatasetNotFoundError(
        f"No dataset {dataset_id!r} in {root}. {suggestion(dataset_id, known)}"
        f"On this machine: {listed}. Record one with `diffuser-policy collect "
        f"{env_id}{option}`, {official}or set {ROOT_VARIABLE} to the folder "
        f"that holds it."
    )


def recorded_by(dataset_id: str) -> tuple[str, str] | None:
    """Return the environment and the option with which `collect` records a dataset.

    Args:
        dataset_id: Of a demonstrator or a generator that declares it (`dataset_id`),
            or of this package: `diffuser/<name>`. The name is then an environment's,
            perhaps with the name of a generator in it.

    Returns:
        The id and the option, which may be empty; none if the name does not tell.
    """
    import_environments()
    words = dataset_id.rpartition("/")[2].split("-")
    if made := _declared(dataset_id, words[0]):
        return made
    name = dataset_id.removeprefix("diffuser/")
    if not re.fullmatch(r"[\w-]+", name):  # a namespace, which is not to be imported
        return None
    names = {env_id.rpartition("/")[2].lower(): env_id for env_id in gym.registry}
    tries = {name: ""}
    for place, word in enumerate(words[:-1]):
        others = words[:place] + words[place + 1 :]
        tries["-".join(others)] = f" --generator {word}"
    for tried, option in tries.items():
        with contextlib.suppress(DiffuserPolicyError):
            return names.get(tried) or env_spec(tried).id, option
    return None


def _declared(dataset_id: str, robot: str) -> tuple[str, str] | None:
    """Return what records a dataset that a demonstrator or a generator declares.

    That is in the environment that it declares (`env_id`) or, without one, in the
    newest of the name with which the dataset's begins.
    """
    versions = [spec for spec in gym.registry.values() if spec.name.lower() == robot]
    newest = max(versions, key=lambda spec: spec.version or 0).id if versions else None
    for plugin, error in DEMONSTRATORS.entries():
        if error is not None:
            continue
        generators = getattr(plugin.target, "generators", {})
        for name, maker in {"": plugin.target, **generators}.items():
            env_id = getattr(maker, "env_id", newest)
            if env_id and getattr(maker, "dataset_id", None) == dataset_id:
                generator = f" --generator {name}" if name else ""
                return env_id, f" --demonstrator {plugin.name}{generator}"
    return None


def recorded_facts(folder: Path) -> dict[str, Any]:
    """Return a dataset's metadata; those of its collection are under "collection".

    Args:
        folder: The dataset's, as `write_minari` returns it.

    Raises:
        DatasetError: The metadata cannot be read.
    """
    path = folder / "data" / "metadata.json"
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for name in ("total_episodes", "total_steps"):
            facts[name] = int(facts[name])
        _check_kind("dataset_id", facts["dataset_id"], str)
        for name in ("observation_space", "action_space"):
            if name in facts:
                facts[name] = json.loads(facts[name])
                _check_space(name, facts[name])
        spec = json.loads(facts.get("env_spec") or "null") or {}
        _check_kind("env_spec", spec, dict)
        collection = facts.get(COLLECTION) or {}
        _check_kind(COLLECTION, collection, dict)
        columns = collection.get("observation_columns") or {}
        _check_kind("observation_columns", columns, dict)
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise DatasetError(
            f"{path} cannot be read: {error!r}. Download the dataset or record it "
            f"again."
        ) from error
    return facts


def _check_kind(name: str, value: Any, kind: type) -> None:
    if not isinstance(value, kind):
        raise ValueError(f"{name} is {shown(value)}, not a {kind.__name__}")


def _check_space(name: str, space: Any) -> None:
    """Refuse what `parts_of` cannot read as Minari's form of a space.

    Raises:
        ValueError: It is of another form.
        TypeError: A bound of a box is no number.
    """
    _check_kind(name, space, dict)
    _check_kind(f"the type of {name}", space.get("type"), str)
    inner = space.get("subspaces")
    if space["type"] in ("Dict", "Tuple") and inner is not None:
        if not isinstance(inner, dict):
            _check_kind(f"the subspaces of {name}", inner, list)
        items = inner.items() if isinstance(inner, dict) else enumerate(inner)
        for key, item in items:
            _check_space(f"{name}/{key}", item)
    if space["type"] == "Box":
        shape = space.get("shape") or []
        if not (isinstance(shape, list) and all(type(n) is int for n in shape)):
            raise ValueError(f"the shape of {name} is {shown(shape)}")
        for end in ("low", "high"):
            np.asarray(space.get(end), np.float64)


def _flat_metadata(
    facts: Mapping[str, Any], columns: ObservationColumns
) -> dict[str, Any]:
    """Return the facts that stay with the arrays and with planners trained on them."""
    collection = facts.get(COLLECTION) or {}
    spec = json.loads(facts.get("env_spec") or "null") or {}
    action = facts.get("action_space") or {}
    named = collection.get("observation_columns")
    if not named and str(spec.get("id")).startswith(POINT_MAZES):
        named = {"position": [0, 1], "velocity": [2, 3]}  # names none itself
    found = {name: list(numbers) for name, numbers in columns.names.items()}
    bounds = {name: action.get(name) for name in ("low", "high")}
    metadata = {
        "dataset_id": facts["dataset_id"],
        "env_id": spec.get("id") or collection.get("env_id"),
        "env_spec": facts.get("env_spec"),
        "minari_version": facts.get("minari_version"),
        **{
            f"action_{name}": bound if bound is None else np.ravel(bound).tolist()
            for name, bound in bounds.items()
        },
        "action_shape": action.get("shape"),
        "action_dtype": action.get("dtype"),
        "columns": to_json(columns),
        "observation_columns": {**found, **(named or {})},
        COLLECTION: collection,
    }
    checked: dict[str, Any] = json_data(metadata)  # others may write NaN and infinity
    return checked


def _checked_parts(facts: Mapping[str, Any]) -> tuple[Part, ...]:
    """Return the parts of the observations; refuse spaces that are no numbers.

    Raises:
        DatasetError: The space of observations is unknown, or one is of another kind.
    """
    name, action = facts["dataset_id"], facts.get("action_space") or {"type": "Box"}
    if action["type"] != "Box":
        raise DatasetError(
            f"{name!r}: the action is a {action['type']} space. Planning needs "
            "actions in one Box: no discrete actions, and no dictionaries. Wrap the "
            "environment so that it takes an array of numbers "
            "(gymnasium.wrappers.TransformAction), and record the data again."
        )
    if "observation_space" not in facts:
        raise DatasetError(f"{name!r} does not say what its observations are.")
    try:
        return parts_of(facts["observation_space"])
    except DatasetError as error:
        raise DatasetError(f"{name!r}: {error}") from error


def _any_episodes(data_folder: Path, columns: ObservationColumns) -> Iterator[Episode]:
    minari = require_extra("minari", "data")
    try:
        dataset = minari.MinariDataset(data_folder)
    except ImportError as error:  # of the package that reads Arrow files
        raise DatasetError(
            f"{data_folder} is in a format that Minari reads with another package: "
            f'{error}. Install it: pip install "minari[arrow]"'
        ) from error
    for number, episode in enumerate(dataset.iterate_episodes()):
        length = len(episode.rewards)
        try:
            rows = columns.rows(episode.observations, length + 1)
        except (LookupError, ValueError) as error:
            raise DatasetError(
                f"{data_folder}, episode {number}, cannot be read: {error!r}."
            ) from error
        yield Episode(
            observations=rows,
            actions=np.asarray(episode.actions).reshape(length, -1),
            rewards=episode.rewards,
            terminations=episode.terminations,
            truncations=episode.truncations,
        )


def _buffers(episodes: Iterable[Episode], space: Space, folder: Path) -> Iterator[Any]:
    """Yield Minari's buffers; raise before the disk may be too full for the next one.

    HDF5 does not survive a full disk: it reports errors when its objects are freed,
    where Python cannot raise them, and then crashes.
    """
    from minari.data_collector.episode_buffer import EpisodeBuffer

    is_dict = isinstance(space, gym.spaces.Dict)
    for episode in episodes:
        fields = dict(episode.observations)
        every = arrays_in((fields, episode.actions, episode.rewards))
        size = sum(int(np.asarray(array).nbytes) for _, array in every)
        needed = HDF5_RESERVE + 2 * size
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


def _hdf5_space(path: Path) -> dict[str, Any]:
    """Return the space of the observations in a Minari file that does not say it.

    Raises:
        DatasetError: The file is damaged, or holds no episode.
    """
    h5py: Any = require_extra("h5py", "data")

    def space(item: Any) -> dict[str, Any]:
        if isinstance(item, h5py.Group):
            return {"type": "Dict", "subspaces": {k: space(item[k]) for k in item}}
        return {"type": "Box", "dtype": str(item.dtype), "shape": list(item.shape[1:])}

    try:
        with h5py.File(path, "r") as file:
            return space(file["episode_0"]["observations"])
    except (OSError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise DatasetError(f"{path} cannot be read: {error}.") from error


def _hdf5_episodes(
    path: Path,
    num_episodes: int,
    columns: ObservationColumns,
    action_shape: tuple[int, ...] | None,
) -> Iterator[Episode]:
    """Yield the episodes of a Minari file in order, without their infos.

    Such a file costs time per array, not per byte, and an episode is a dozen arrays.
    So this opens and reads them through HDF5's own interface, which also converts to
    float32, instead of h5py's convenient one.

    Args:
        path: `main_data.hdf5`.
        num_episodes: The file must hold episodes 0 … num_episodes - 1.
        columns: What is read of observations.
        action_shape: Of an action, if the dataset says it.

    Raises:
        DatasetError: The file is damaged, lacks an episode or one of its arrays, or
            holds an array of something other than numbers.
        MissingExtraError: h5py is not installed.
    """
    h5py: Any = require_extra("h5py", "data")

    def read(group: Any, name: bytes, dtype: type[np.generic]) -> np.ndarray:
        dataset = h5py.h5d.open(group, name)
        if dataset.dtype.kind not in "biuf":
            raise ValueError(
                f"{name.decode()} holds something other than numbers{PICTURES}"
            )
        array = np.empty(dataset.shape, dtype)
        if array.size:
            dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, array)
        return array

    def rows(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        if array.shape[1:] != shape:
            raise ValueError(
                f"steps of shape {array.shape[1:]} are not in their space, of shape "
                f"{shape}{PICTURES}"
            )
        return array.reshape(len(array), math.prod(shape))

    places = {
        part: "/".join(
            (
                "observations",
                *(s if isinstance(s, str) else f"_index_{s}" for s in part.path),
            )
        ).encode()
        for parts in columns.fields.values()
        for part in parts
    }
    number = -1
    try:
        with h5py.File(path, "r") as file:
            for number in range(num_episodes):
                group = h5py.h5g.open(file.id, f"episode_{number}".encode())
                actions = read(group, b"actions", np.float32)
                expected = actions.shape[1:] if action_shape is None else action_shape
                yield Episode(
                    observations={
                        name: joined(
                            rows(read(group, places[part], np.float32), part.shape)
                            for part in parts
                        )
                        for name, parts in columns.fields.items()
                    },
                    actions=rows(actions, expected),
                    rewards=read(group, b"rewards", np.float32),
                    terminations=read(group, b"terminations", np.bool_),
                    truncations=read(group, b"truncations", np.bool_),
                )
    except (OSError, KeyError, RuntimeError, TypeError, ValueError) as error:
        where = f", episode {number}," if number >= 0 else ""
        raise DatasetError(f"{path}{where} cannot be read: {error}.") from error


def _cache_entry(
    cache: Path, name: str, source: Path, goal_keys: tuple[str, str]
) -> Path:
    files = [f"schema {SCHEMA}, columns {READER}"]
    for path in sorted(source.rglob("*")):
        stat = path.stat()
        name_in_source = path.relative_to(source).as_posix()
        files.append(f"{name_in_source} {stat.st_size} {stat.st_mtime_ns}")
    where = str(source.resolve())
    if tuple(goal_keys) != GOAL_KEYS:
        where += f" {list(goal_keys)}"  # with quotes: keys contain slashes
    place, digest = (
        hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
        for text in (where, "\n".join(files))
    )
    return cache / f"{name.replace('/', '--')}-{place[:8]}" / digest[:16]


def _delete_old_entries(entry: Path) -> None:
    """Delete older entries of a dataset, and files of interrupted writers."""
    tidy(entry.parent)
    for other in entry.parent.iterdir():
        if other != entry and not other.name.startswith("."):
            remove(other)
