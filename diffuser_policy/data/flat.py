"""Episodes as recorded, and a dataset of them as a few long arrays.

Offline data arrives as thousands of short episodes. Training wants long arrays and
the ranges in which time is continuous. With `N` rows (one per environment step) and
`R` *runs* (stretches without a reset):

    fields["observation"][t]   the observation before step t          [N, O]
    fields["action"][t]        the action of step t                   [N, A]
    fields["reward"][t]        the reward of step t                   [N]
    run_starts[r] … run_starts[r + 1]      the rows of run r          [R + 1]

Rows `t` and `t + 1` of one run are successive states of the system, whichever episodes
they come from. The last observation of a run has no action and no row.

An episode of `L` steps has `L + 1` observations. `flatten` lays episodes end to end and
decides which of them form one run:

* An episode *continues the run* of the one before if it begins in the very observation
  in which that one ended, achieved goal and all other columns but the desired goal
  included, and that one was cut rather than terminated. Some recorders cut a stream at
  every success without a reset (Minari's `D4RL/pointmaze/*`). Whole episodes that this
  package recorded never do.
* The first `desired_goal` of a continued episode is still the previous episode's,
  because the observation is older than the new goal. `flatten` replaces it by the goal
  of the rest of the episode.
* Every other episode begins with a reset and so begins a new run.

A saved dataset is mapped into memory: a process holds the rows that it is reading, and
`release` frees them, so that data may be larger than memory.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from gymnasium import spaces

from diffuser_policy.choices import GOAL_KEYS
from diffuser_policy.columns.layout import rows_at_once
from diffuser_policy.errors import (
    DatasetError,
    DatasetNotFoundError,
    StorageError,
    shown,
)
from diffuser_policy.files import (
    LEFT_BY_SYSTEMS,
    json_text,
    replaced_folder,
    usable_path,
)
from diffuser_policy.settings import json_data
from diffuser_policy.spaces import action_bounds, outside
from diffuser_policy.words import counted

SCHEMA = 1
META_FILE = "meta.json"
SUMMED = ("observation", "action", "run_starts")  # the first fields of checksums
FLOAT32_MOST = float(np.finfo(np.float32).max)  # greatest number of a field
SPREAD = 10_000  # rows that stand for all of an array
REQUIRED = ("observation", "action", "reward", "terminated")
FLAGS = ("terminated",)  # everything else is float32
PER_ROW = ("reward", "terminated")  # one number a row, not a vector


@dataclass(frozen=True, eq=False, kw_only=True)
class Episode:
    """One recorded episode of `L` steps.

    Attributes:
        observations: Field → `[L + 1, size]`: `observation`, and for goal
            environments `achieved_goal` and `desired_goal`. As recorded, before it is
            flattened: the environment's observations, stacked.
        actions: `[L, A]`.
        rewards: `[L]`.
        terminations: bool `[L]`.
        truncations: bool `[L]`.
        seed: The seed of the reset, if known.
    """

    observations: Mapping[str, np.ndarray]
    actions: np.ndarray
    rewards: np.ndarray
    terminations: np.ndarray
    truncations: np.ndarray
    seed: int | None = None

    def __len__(self) -> int:
        return len(self.rewards)

    @classmethod
    def cut(
        cls,
        observations: Mapping[str, np.ndarray],
        actions: np.ndarray,
        rewards: np.ndarray,
        seed: int,
    ) -> Episode:
        """Return an episode that was cut at its end, not terminated."""
        truncations = np.zeros(len(rewards), np.bool_)
        truncations[-1] = True
        return cls(
            observations=observations,
            actions=actions,
            rewards=np.asarray(rewards, np.float64),
            terminations=np.zeros(len(rewards), np.bool_),
            truncations=truncations,
            seed=seed,
        )


def run_returns(rewards: np.ndarray, run_starts: np.ndarray) -> np.ndarray:
    """Return what each run earned, float64 `[R]`.

    Args:
        rewards: `[N]`.
        run_starts: `[R + 1]`, as of a `FlatDataset`.
    """
    starts, returns = run_starts[:-1], np.empty(len(run_starts) - 1)
    # Some runs at a time, but none in two parts: that would be rounded in another way.
    group = starts // rows_at_once(returns.itemsize, len(rewards))
    for runs in np.split(np.arange(len(starts)), np.flatnonzero(np.diff(group)) + 1):
        begin, end = starts[runs[0]], run_starts[runs[-1] + 1]
        returns[runs] = np.add.reduceat(
            rewards[begin:end].astype(np.float64), starts[runs] - begin
        )
        release(rewards)
    return returns


@dataclass(frozen=True, eq=False)
class FlatDataset:
    """Observations, actions and rewards of many runs, one row per environment step.

    Its arrays are read-only. Those that are given in the right type are not copied, as
    data may be larger than memory: leave them as they are, or make a dataset of copies.

    Attributes:
        fields: Name → array. `observation` `[N, O]`, `action` `[N, A]` and `reward`
            `[N]` in float32, `terminated` `[N]` in bool; with goals also
            `achieved_goal` and `desired_goal` `[N, G]`. Environment units.
        run_starts: int64 `[R + 1]`; run `r` is rows `run_starts[r]` to
            `run_starts[r + 1] - 1`.
        metadata: JSON-able facts about the origin: dataset and env id, how it was
            collected, names of observation columns.

    Raises:
        DatasetError: Fields are missing, of different lengths, no real numbers, or not
            finite, `terminated` is neither 0 nor 1, the runs don't tile the rows, or
            the two goals are exchanged or of different sizes.
    """

    fields: Mapping[str, np.ndarray]
    run_starts: np.ndarray
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        missing = [name for name in REQUIRED if name not in self.fields]
        if missing:
            raise DatasetError(
                f"A dataset needs the fields {', '.join(REQUIRED)}; "
                f"{', '.join(missing)} missing, got {', '.join(self.fields) or 'none'}"
                f". Without rewards or terminations, pass zeros."
            )
        arrays = {
            name: _read_only(
                as_flags(name, array)
                if name in FLAGS
                else _as_array(name, array, np.float32)
            )
            for name, array in self.fields.items()
        }
        object.__setattr__(self, "fields", arrays)
        num_rows = len(arrays["action"])
        for name, array in arrays.items():
            if not name.isidentifier() or name == "run_starts":  # a file of its own
                raise DatasetError(
                    f"{name!r} cannot name a field: it is not an identifier, or taken."
                )
            shape = "[rows]" if name in PER_ROW else "[rows, size]"
            if array.ndim != 1 + (name not in PER_ROW):
                raise DatasetError(
                    f"{name} must have shape {shape}, got {list(array.shape)}."
                )
            if len(array) != num_rows:
                raise DatasetError(
                    f"{name} has {counted(len(array), 'row')} and action has "
                    f"{num_rows:,}; every field needs one entry per step."
                )
        if (GOAL_KEYS[0] in arrays) != (GOAL_KEYS[1] in arrays):
            raise DatasetError(
                f"A dataset needs both {GOAL_KEYS[0]} and {GOAL_KEYS[1]}, or neither."
            )
        if self.has_goals and len({arrays[key].shape for key in GOAL_KEYS}) > 1:
            sizes = " and ".join(f"{k} {list(arrays[k].shape)}" for k in GOAL_KEYS)
            raise DatasetError(
                f"Both goals must have the same columns, got {sizes}. Cut both to the "
                f"columns that they share."
            )
        for name in ("env_id", "dataset_id"):
            known = self.metadata.get(name)
            if known is not None and not isinstance(known, str):
                raise DatasetError(
                    f"{name} in the metadata must be a text or None, got "
                    f"{shown(known)}. Correct it."
                )
        starts = _as_array("run_starts", self.run_starts, np.float64)
        if (
            starts.ndim != 1
            or len(starts) < 2
            or starts[0] != 0
            or starts[-1] != self.num_rows
            or bool((np.diff(starts) < 1).any())
            or bool((starts != np.rint(starts)).any())
        ):
            raise DatasetError(
                f"run_starts must rise from 0 to the number of rows "
                f"({self.num_rows:,}) in whole numbers, without an empty run; got "
                f"{shown(self.run_starts)}."
            )
        starts = _read_only(_as_array("run_starts", self.run_starts, np.int64))
        object.__setattr__(self, "run_starts", starts)
        for name, array in arrays.items():
            check_finite(f"{self.metadata.get('dataset_id', 'dataset')}: {name}", array)
        if self.has_goals:
            achieved, desired = (arrays[key] for key in GOAL_KEYS)
            if not _moves(achieved, starts) and _moves(desired, starts):
                raise DatasetError(
                    "achieved_goal never changes between two resets, but "
                    "desired_goal does: they seem to be exchanged. Exchange them "
                    "(--goal-keys of `train`, --achieved-goals and --desired-goals "
                    "of `import`)."
                )

    def __repr__(self) -> str:
        shapes = ", ".join(f"{n} {list(a.shape)}" for n, a in self.fields.items())
        origin = self.metadata.get("dataset_id", "unnamed")
        return f"FlatDataset({origin!r}: {counted(self.num_runs, 'run')}, {shapes})"

    @property
    def num_rows(self) -> int:
        """Number of environment steps."""
        return len(self.fields["action"])

    @property
    def num_runs(self) -> int:
        """Number of stretches without a reset."""
        return len(self.run_starts) - 1

    @property
    def run_lengths(self) -> np.ndarray:
        """Steps of each run, int64 `[R]`."""
        return np.diff(self.run_starts)

    @property
    def run_ends(self) -> np.ndarray:
        """The first row behind the run of each row, int64 `[N]`."""
        return np.repeat(self.run_starts[1:], self.run_lengths)

    @property
    def followed(self) -> np.ndarray:
        """Whether another row of its run comes after each row, bool `[N]`."""
        followed = np.ones(self.num_rows, np.bool_)
        followed[self.run_starts[1:] - 1] = False
        return followed

    def known_steps(self) -> np.ndarray:
        """Return the rows of the steps whose outcome is known, int64 `[steps]`.

        Another row of the run follows them, or they terminated: all but the last steps
        of runs that were cut off.

        Raises:
            DatasetError: There are none.
        """
        return np.delete(np.arange(self.num_rows), self.unknown_steps())

    def unknown_steps(self) -> np.ndarray:
        """Return the rows of the other steps, int64 `[steps]`: one in a run, at most.

        Raises:
            DatasetError: All steps are.
        """
        last = self.run_starts[1:] - 1
        rows: np.ndarray = last[~self.fields["terminated"][last]]
        if len(rows) == self.num_rows:
            raise DatasetError(
                f"No step of {self!r} is followed by another, and none terminated: "
                f"there is nothing to learn. Record longer episodes."
            )
        return rows

    def best_runs(self, share: float, rewards: np.ndarray | None = None) -> np.ndarray:
        """Return which runs belong to a share of them, those with the highest returns.

        Args:
            share: In (0, 1]. At least one run belongs to it.
            rewards: `[N]`, by default those of the data.

        Returns:
            Bool `[R]`.
        """
        if share == 1:
            return np.ones(self.num_runs, np.bool_)
        rewards = self.fields["reward"] if rewards is None else rewards
        returns = run_returns(rewards, self.run_starts)
        number = max(1, round(share * self.num_runs))
        best = np.zeros(self.num_runs, np.bool_)
        best[np.argsort(returns, kind="stable")[-number:]] = True
        return best

    @property
    def observation_size(self) -> int:
        """Number of observation columns."""
        return int(self.fields["observation"].shape[1])

    @property
    def action_size(self) -> int:
        """Number of action columns."""
        return int(self.fields["action"].shape[1])

    @property
    def has_action_bounds(self) -> bool:
        """Whether the metadata name the bounds of the actions."""
        return all(
            self.metadata.get(f"action_{e}") is not None for e in ("low", "high")
        )

    @property
    def action_bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest action, float64 `[A]` each, from the metadata.

        Raises:
            DatasetError: They are not there, or no bounds of these actions.
        """
        if not self.has_action_bounds:
            raise DatasetError(
                f"{self!r} does not name the bounds of its actions. Set 'action_low' "
                f"and 'action_high' in its metadata."
            )
        low, high = (self.metadata[f"action_{end}"] for end in ("low", "high"))
        try:
            return action_bounds(low, high, self.action_size)
        except DatasetError as error:
            raise DatasetError(f"{self!r}: {error}") from error

    def check_actions(self) -> None:
        """Refuse actions outside of the bounds that the data name, if they name any.

        Raises:
            DatasetError: Names the first such action, or bounds that are none.
        """
        if not self.has_action_bounds:
            return
        low, high = self.action_bounds
        actions = self.fields["action"]
        space = spaces.Box(low, high, dtype=np.float64)
        row = 0
        for part in pieces(actions):
            beyond = outside(part, space)
            if beyond.any():
                at = int(np.argmax(beyond))
                raise DatasetError(
                    f"{self!r}: the action of row {row + at:,} is "
                    f"{shown(part[at].tolist())}, and the environment's lie between "
                    f"{shown(low.tolist())} and {shown(high.tolist())}. Clip the "
                    f"actions, or scale them, and write the dataset again."
                )
            row += len(part)
        release(actions)

    @property
    def goal_size(self) -> int:
        """Number of goal columns; zero when the observations carry no goal."""
        return int(self.fields[GOAL_KEYS[0]].shape[1]) if self.has_goals else 0

    @property
    def has_goals(self) -> bool:
        """Whether rows hold the achieved and the desired goal."""
        return GOAL_KEYS[0] in self.fields

    @cached_property
    def checksum(self) -> int:
        """A number that tells these observations, actions and runs from others."""
        arrays = {name: self.fields[name] for name in SUMMED[:2]}
        return _checksums({**arrays, "run_starts": self.run_starts})["run_starts"]

    @cached_property
    def full_checksum(self) -> int:
        """A number that tells all fields and runs from others."""
        return _last(_checksums({**self.fields, "run_starts": self.run_starts}))

    @property
    def facts(self) -> dict[str, int]:
        """The number of rows, and checksums that tell this data from other data.

        `checksum` is that of observations, actions and runs, `others` that of all
        fields.
        """
        return {
            "num_rows": self.num_rows,
            "checksum": self.checksum,
            "others": self.full_checksum,
        }

    def save(self, folder: str | Path) -> Path:
        """Write one `.npy` file per field and `meta.json`, all or nothing.

        Args:
            folder: Created; replaced if it holds a dataset saved earlier.

        Raises:
            StorageError: No space, no permission, NaN in the metadata, or the folder
                holds other files.
            DatasetError: The metadata is not JSON-able.
        """
        folder = usable_path(folder)
        if _is_foreign(folder):
            raise StorageError(
                f"{folder} exists and is not a saved dataset, or holds other files as "
                f"well. Choose another folder, or delete it."
            )
        try:
            json_text(folder / META_FILE, dict(self.metadata))
        except TypeError as error:
            raise DatasetError(f"The metadata must be JSON-able: {error}.") from error
        with replaced_folder(folder) as partial:
            for name, array in self.fields.items():
                np.save(partial / f"{name}.npy", array, allow_pickle=False)
            self.complete(partial)
        return folder

    def complete(self, folder: Path) -> None:
        """Write what makes a folder with the files of all fields a saved dataset."""
        np.save(folder / "run_starts.npy", self.run_starts, allow_pickle=False)
        meta = {
            "schema": SCHEMA,
            "num_rows": self.num_rows,
            "fields": list(self.fields),
            "metadata": dict(self.metadata),
            "forms": {name: _form(array) for name, array in self.fields.items()},
            "checksums": _checksums({**self.fields, "run_starts": self.run_starts}),
        }
        sealed = {**meta, "seal": _seal(meta)}
        path = folder / META_FILE
        path.write_text(json_text(path, sealed), encoding="utf-8", newline="\n")

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Map a saved dataset into memory.

        Processes that load the same folder share its pages. The arrays are read-only:
        copy one to change it.

        Raises:
            DatasetNotFoundError: The folder holds no saved dataset.
            DatasetError: A file is missing, damaged, or of another schema.
        """
        folder = usable_path(folder, DatasetNotFoundError)
        if not (folder / META_FILE).is_file():
            raise DatasetNotFoundError(f"{folder} holds no saved dataset.")
        try:
            meta = json.loads((folder / META_FILE).read_text(encoding="utf-8"))
            if meta["schema"] != SCHEMA:
                raise DatasetError(
                    f"{folder} has schema {meta['schema']!r}, but this version reads "
                    f"schema {SCHEMA}. Save the dataset again."
                )
            arrays = {
                name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
                for name in meta["fields"]
            }
            starts = np.load(folder / "run_starts.npy", allow_pickle=False)
            sums = {}
            if meta.keys() & {"seal", "checksums"}:  # earlier versions wrote neither
                if meta.pop("seal", None) != _seal(meta):
                    raise ValueError(f"{META_FILE} is damaged")
                sums = _checksums({**arrays, "run_starts": starts})
                forms = {name: _form(array) for name, array in arrays.items()}
                for known, now in ((meta["checksums"], sums), (meta["forms"], forms)):
                    for name, value in known.items():
                        if now[name] != value:
                            raise ValueError(f"{name}.npy is damaged")
            num_rows = int(meta["num_rows"])
            # Earlier versions wrote NaN and infinity, which JSON lacks.
            dataset = cls(arrays, starts, json_data(meta["metadata"]))
            if sums:
                dataset.__dict__["checksum"] = sums["run_starts"]
                dataset.__dict__["full_checksum"] = _last(sums)
        except Exception as error:  # whatever NumPy makes of a damaged header
            raise DatasetError(f"{folder} cannot be read: {error}") from error
        if dataset.num_rows != num_rows:
            raise DatasetError(
                f"{folder} should have {counted(num_rows, 'row')} and has "
                f"{dataset.num_rows:,}."
            )
        return dataset


def _is_foreign(folder: Path) -> bool:
    """Return whether a folder holds anything other than the files of a saved dataset.

    Looks twice, because another process may be replacing the folder at this moment.
    """
    for pause in (0.0, 0.1):
        time.sleep(pause)
        try:
            names = {path.name for path in folder.iterdir()} - LEFT_BY_SYSTEMS
        except FileNotFoundError:
            return False
        except NotADirectoryError:
            return True
        if not names:
            return False
        damaged = ValueError, LookupError, TypeError, RecursionError
        with contextlib.suppress(OSError, *damaged):
            meta = json.loads((folder / META_FILE).read_text(encoding="utf-8"))
            arrays = {f"{name}.npy" for name in ("run_starts", *meta["fields"])}
            if "schema" in meta and names <= {META_FILE, *arrays}:
                return False
    return True


def _as_array(name: str, values: Any, dtype: Any) -> np.ndarray:
    """Return values as an array of a type, without a copy if they are one.

    Raises:
        DatasetError: Text, times, complex numbers, or rows of different lengths.
    """
    try:
        given = np.asarray(values)
        if given.dtype.kind == "O":
            given = np.asarray(given.tolist())
        if given.dtype.kind in "biuf":
            with np.errstate(over="ignore"):  # `check_finite` will find it
                return np.ascontiguousarray(given, dtype)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise DatasetError(f"{name} must be an array of numbers: {error}.") from error
    raise DatasetError(
        f"{name} must be an array of numbers (bool, integer or float), got "
        f"{given.dtype}. Convert it first: text to floats, times to seconds, a complex "
        f"number to its two parts."
    )


def _read_only(array: np.ndarray) -> np.ndarray:
    """Return a view that cannot be written to: checksums are computed only once."""
    view = array.view()
    view.flags.writeable = False
    return view


def as_flags(name: str, values: Any) -> np.ndarray:
    """Return flags as bool.

    Args:
        name: What they are called in the error.
        values: Bool, or the numbers 0 and 1.

    Raises:
        DatasetError: Anything else.
    """
    flags = _as_array(name, values, None)
    if flags.dtype == np.bool_:
        return flags
    others = flags[~np.isin(flags, (0, 1))]
    if len(others):
        raise DatasetError(f"{name} must be 0 or 1, got {others[:5].tolist()}.")
    return flags.astype(np.bool_)


def check_finite(name: str, array: np.ndarray) -> None:
    """Raise at the first NaN or infinity.

    The sum of float32 numbers is finite exactly if all of them are and it does not
    overflow: one pass without a temporary array. Only if it is not finite, a second
    pass looks for the rows.
    """
    if array.dtype == np.bool_:
        return
    with np.errstate(over="ignore", invalid="ignore"):
        sums = [np.isfinite(np.sum(part, dtype=np.float32)) for part in pieces(array)]
    if all(sums):
        return
    rows = [~np.isfinite(part).reshape(len(part), -1).all(1) for part in pieces(array)]
    bad = np.concatenate(rows)
    if not bad.any():
        return
    row = int(np.argmax(bad))
    raise DatasetError(
        f"{name} is not finite in {int(bad.sum()):,} of {len(array):,} rows; the first "
        f"is row {row}: {first_not_finite(array[row])}. Remove or repair these steps."
        f"{remark_on_size(array[row])}"
    )


def first_not_finite(values: np.ndarray) -> str:
    """Return the first number of a step that is not finite, and its column.

    Args:
        values: Those of the step, of which one is not finite in single precision.
    """
    given = np.ravel(values).astype(np.float64)
    column = int(np.argmax(~(np.abs(given) <= FLOAT32_MOST)))  # no NaN is
    where = f"column {column} is " if len(given) > 1 else ""
    return f"{where}{given[column]:g}"


def remark_on_size(values: np.ndarray) -> str:
    """Return what to know of numbers that are not finite in single precision.

    Args:
        values: Those of one step; there is nothing to know of NaN.
    """
    if np.isnan(values).any():
        return ""
    return (
        f" Numbers above {FLOAT32_MOST:.2g} are too large for single precision "
        f"(float32): scale them down."
    )


def _moves(array: np.ndarray, starts: np.ndarray) -> bool:
    """Return whether rows of one run differ; not always read to the end."""
    begin = 0
    for part in pieces(array):
        changed = (part[1:] != part[:-1]).any(axis=1)
        within = starts[(starts > begin) & (starts < begin + len(part))]
        changed[within - begin - 1] = False
        if changed.any():
            return True
        begin += len(part)
    return False


def pieces(array: np.ndarray) -> Iterator[np.ndarray]:
    """Yield slices of rows; of a mapped array, memory holds one slice at a time."""
    rows = rows_at_once(array[:1].nbytes, max(1, len(array)))
    for begin in range(0, len(array), rows):
        yield array[begin : begin + rows]
        release(array)


def release(*arrays: np.ndarray) -> None:
    """Release the memory pages of arrays that are mapped from files.

    The system maps a page again when it is read; a file that was read lately is still
    in its cache.
    """
    for array in arrays:
        mapped: Any = array
        mode = "c"  # what was written into pages of one's own would be lost
        while isinstance(mapped, np.ndarray):
            mode = getattr(mapped, "mode", mode)
            mapped = mapped.base
        can = hasattr(mmap, "MADV_DONTNEED")  # not on Windows
        if can and isinstance(mapped, mmap.mmap) and mode != "c":
            mapped.madvise(mmap.MADV_DONTNEED)


def spread_rows(array: np.ndarray) -> np.ndarray:
    """Return `SPREAD` rows of an array, or all if it has no more than these.

    They are spread evenly; the memory of the others is released.
    """
    index = np.linspace(0, len(array) - 1, min(len(array), SPREAD)).astype(np.int64)
    found = []
    for part in np.array_split(index, max(1, len(index) // 1000)):
        found.append(array[part])
        release(array)
    return np.concatenate(found)


def _checksums(arrays: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Return a checksum for each array, of it and those before it."""
    names = [*SUMMED, *sorted(arrays.keys() - set(SUMMED))]
    found, checksum = {}, 0
    for name in names:
        for part in pieces(arrays[name]):
            checksum = zlib.crc32(np.ascontiguousarray(part).data, checksum)
        found[name] = checksum
    return found


def _last(checksums: dict[str, int]) -> int:
    """Return the checksum of all arrays."""
    return next(reversed(checksums.values()))


def _form(array: np.ndarray) -> str:
    return f"{array.dtype.str} {array.shape}"


def _seal(meta: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(meta, sort_keys=True).encode())


class FileColumn:
    """A field that is written into a `.npy` file as into an array, in order of rows.

    Not `np.lib.format.open_memmap`: a full disk kills a process that writes into a
    mapped file, where `write` raises an OSError.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: type) -> None:
        """Begin the file.

        Args:
            path: Created.
            shape: `[rows, …]`.
            dtype: Type of the values.
        """
        self.path, self.dtype, self.shape = path, np.dtype(dtype), shape
        self._file = path.open("wb")
        header = {
            "descr": np.lib.format.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": shape,
        }
        np.lib.format.write_array_header_1_0(self._file, header)

    def __setitem__(self, rows: slice, values: Any) -> None:
        data = np.empty((rows.stop - rows.start, *self.shape[1:]), self.dtype)
        data[...] = values
        self._file.write(data.data)

    def mapped(self) -> np.ndarray:
        """Return the finished file as a read-only array."""
        self._file.close()
        array: np.ndarray = np.load(self.path, mmap_mode="r", allow_pickle=False)
        return array

    def __del__(self) -> None:
        with contextlib.suppress(OSError):  # not finished, perhaps for want of space
            self._file.close()


def flatten(
    episodes: Iterable[Episode],
    *,
    num_rows: int,
    all_reset: bool = False,
    metadata: Mapping[str, Any] | None = None,
    folder: Path | None = None,
) -> FlatDataset:
    """Lay episodes end to end in long arrays, in the given order.

    Args:
        episodes: Read one at a time; only one needs to fit in memory.
        num_rows: Total number of steps.
        all_reset: Every episode is known to begin with a reset.
        metadata: Becomes the dataset's.
        folder: Write the fields into files in it, instead of into memory;
            `FlatDataset.complete` makes it a saved dataset.

    Raises:
        OSError: A file could not be written.
        DatasetError: No episodes, a total other than `num_rows`, or values that are
            no real numbers or not finite.
    """
    fields: dict[str, Any] = {}  # arrays, or files that are written like arrays

    def allocate(name: str, shape: tuple[int, ...], dtype: type) -> None:
        fields[name] = (
            np.empty(shape, dtype)
            if folder is None
            else FileColumn(folder / f"{name}.npy", shape, dtype)
        )

    run_starts: list[int] = []
    row = 0
    last: dict[str, np.ndarray] = {}  # the observation that would continue the run
    for number, episode in enumerate(episodes):
        length = len(episode)
        _check_lengths(episode, number)
        if row + length > num_rows:
            raise DatasetError(
                f"The dataset is damaged: from episode {number} on it holds more than "
                f"the {counted(num_rows, 'step')} that it announces."
            )
        if length == 0:
            continue
        if not fields:  # with the sizes of the first episode
            observed, actions = episode.observations, episode.actions
            sizes = {name: v.shape[1:] for name, v in observed.items()}
            sizes |= {"action": actions.shape[1:], "reward": ()}
            for name, size in sizes.items():
                allocate(name, (num_rows, *size), np.float32)
            allocate("terminated", (num_rows,), np.bool_)
        _check_columns(episode, number, fields)
        parts = {n: v for n, v in episode.observations.items() if n != GOAL_KEYS[1]}
        goals = episode.observations.get(GOAL_KEYS[1])
        resets = all_reset or not last
        if resets or any(not np.array_equal(last[n], parts[n][0]) for n in parts):
            run_starts.append(row)
        elif goals is not None and bool((goals[1:] == goals[1]).all()):
            goals = np.concatenate([goals[1:2], goals[1:]])  # the first one is stale
        rows = slice(row, row + length)
        columns = {name: values[:-1] for name, values in parts.items()}
        columns |= {"action": episode.actions, "reward": episode.rewards}
        if goals is not None:
            columns[GOAL_KEYS[1]] = goals[:-1]
        for name, values in columns.items():
            where = f"Episode {number}: {name}"
            fields[name][rows] = _as_array(where, values, np.float32)
        ends = as_flags(f"Episode {number}: terminations", episode.terminations)
        fields["terminated"][rows] = ends
        last = {}
        if not episode.terminations[-1]:
            last = {name: values[-1].copy() for name, values in parts.items()}
        row += length
    if row == 0:
        raise DatasetError("The dataset holds no steps.")
    if row != num_rows:
        raise DatasetError(
            f"The episodes have {counted(row, 'step')}, but the dataset announces "
            f"{num_rows:,}: it is damaged or still being written."
        )
    if folder is not None:
        fields = {name: column.mapped() for name, column in fields.items()}
    return FlatDataset(fields, np.asarray([*run_starts, row]), dict(metadata or {}))


def _check_columns(episode: Episode, number: int, fields: Mapping[str, Any]) -> None:
    """Refuse an episode with other columns than the first.

    Raises:
        DatasetError: It has others.
    """
    given = {name: v.shape[1:] for name, v in episode.observations.items()}
    given |= {"action": episode.actions.shape[1:], "reward": episode.rewards.shape[1:]}
    expected = {n: v.shape[1:] for n, v in fields.items() if n not in FLAGS}
    for name in sorted({*given, *expected}):
        if name not in given:
            raise DatasetError(
                f"Episode {number} has no {name!r}, which the first episode has."
            )
        if name not in expected:
            raise DatasetError(
                f"Episode {number} has {name!r}, which the first episode does not have."
            )
        if given[name] != expected[name]:
            raise DatasetError(
                f"Episode {number}: {name!r} has shape {given[name]} per step; in the "
                f"first episode it has {expected[name]}."
            )


def _check_lengths(episode: Episode, number: int) -> None:
    length = len(episode)
    lengths = {name: len(v) - 1 for name, v in episode.observations.items()}
    lengths["actions"] = len(episode.actions)
    lengths["terminations"] = len(episode.terminations)
    wrong = [name for name, found in lengths.items() if found != length]
    if wrong:
        raise DatasetError(
            f"Episode {number} has {length} rewards, so it needs {length} actions "
            f"and terminations and {length + 1} observations; wrong: "
            f"{', '.join(wrong)}."
        )
