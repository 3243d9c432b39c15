"""Arrays of a file, found by what they are for.

    file → its arrays, unread → one for each role that the environment has

Roles are the fields of `ArrayNames`, and OGBench's `masks` and `valids`. An array is
read when its rows are asked for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from diffuser_policy.choices import GOAL_KEYS
from diffuser_policy.data.flat import as_flags
from diffuser_policy.envs import Env, env_name
from diffuser_policy.errors import (
    ConfigError,
    DatasetError,
    DatasetNotFoundError,
    DiffuserPolicyError,
    require_extra,
    suggestion,
)
from diffuser_policy.words import counted

# What h5py and NumPy raise for files with wrong bits.
DAMAGE = (
    OSError,
    ValueError,
    KeyError,
    RuntimeError,
    EOFError,
    SyntaxError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
HDF5_MAGIC, ZIP_MAGIC = b"\x89HDF\r\n\x1a\n", b"PK"
SHOWN = 20  # names of arrays in a message
D4RL_GOALS = "infos/goal"  # the other names are those of their roles
GOAL_ROLES = ("achieved_goals", "desired_goals")
ONE_PER_ROW = ("rewards", "terminals", "timeouts", "masks", "valids")


@dataclass(frozen=True, kw_only=True)
class ArrayNames:
    """The names of the arrays in a file, by default those of D4RL.

    If `terminals` is given, it marks steps that terminated, as in D4RL.

    Attributes:
        observations: `[N, …]`, before each step.
        actions: `[N, …]`.
        rewards: `[N]`; zeros without such an array.
        terminals: `[N]`, 1 where an episode terminated; OGBench: where it is over.
        timeouts: `[N]`, 1 where an episode was cut.
        next_observations: `[N, …]`, after each step.
        achieved_goals: `[N, goal]`; columns of the observations without it.
        desired_goals: `[N, goal]`; without it, what an episode achieved in the end.
    """

    observations: str | None = None
    actions: str | None = None
    rewards: str | None = None
    terminals: str | None = None
    timeouts: str | None = None
    next_observations: str | None = None
    achieved_goals: str | None = None
    desired_goals: str | None = None


AS_USUAL = ArrayNames()


@contextlib.contextmanager
def open_arrays(file: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the arrays of a file by their names, such as `infos/goal`.

    What it yields reads an array, or rows of it, when they are asked for, and raises
    DatasetError where the file is damaged.

    Raises:
        DatasetNotFoundError: No such file.
        DatasetError: Neither HDF5 nor `.npz`, or damaged.
    """
    try:
        with file.open("rb") as stream:
            magic = stream.read(8)
    except FileNotFoundError as error:
        raise DatasetNotFoundError(f"There is no file {file}.") from error
    except OSError as error:
        raise DatasetError(f"{file} cannot be read: {error.strerror}.") from error
    with contextlib.ExitStack() as stack:
        with _reading(file):
            if magic == HDF5_MAGIC:
                h5py: Any = require_extra("h5py", "data")
                stored = stack.enter_context(h5py.File(file, "r"))
                found: dict[str, Any] = {}

                def add(name: str, item: Any) -> None:
                    if isinstance(item, h5py.Dataset):
                        found[name] = _Dataset(file, item)

                stored.visititems(add)
            elif magic.startswith(ZIP_MAGIC):
                stream = stack.enter_context(file.open("rb"))
                found = _LazyArrays(file, stack.enter_context(np.load(stream)))
            else:
                raise DatasetError(
                    f"{file} is neither HDF5 nor NumPy's .npz. Convert it, for example "
                    f"with numpy.savez(file, observations=…, actions=…, …)."
                )
        # Not in the block: what fails while the arrays are used may not be the file.
        yield found


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Raise that a file is damaged if reading it in the block fails."""
    try:
        yield
    except DAMAGE as error:
        if isinstance(error, DiffuserPolicyError):
            raise
        reason = str(error) or type(error).__name__
        raise DatasetError(f"{file} is damaged: {reason}.") from error


@dataclass(frozen=True)
class _Dataset:
    """An array of an HDF5 file, whose rows are read when they are asked for."""

    file: Path
    stored: Any

    @property
    def shape(self) -> tuple[int, ...]:
        with _reading(self.file):
            return tuple(self.stored.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        with _reading(self.file):
            found: np.dtype[Any] = self.stored.dtype
            return found

    def __getitem__(self, rows: Any) -> np.ndarray:
        with _reading(self.file):
            return np.asarray(self.stored[rows])


class _LazyArrays(dict[str, Any]):
    """The arrays of an `.npz`, each read when it is first asked for."""

    def __init__(self, file: Path, stored: Any) -> None:
        super().__init__(dict.fromkeys(stored.files))
        self.file, self.stored = file, stored

    def __getitem__(self, name: str) -> Any:
        if super().__getitem__(name) is None:
            with _reading(self.file):
                self[name] = self.stored[name]
        return super().__getitem__(name)


@dataclass(frozen=True)
class Array:
    """An array of a file, whose rows have the shape that is asked for.

    Attributes:
        name: What the file calls it.
        stored: `[N, …]`, as NumPy or h5py holds it.
        shape: Of a row; the stored ones may have others with as many numbers.
    """

    name: str
    stored: Any
    shape: tuple[int, ...]

    def __len__(self) -> int:
        """Return the number of rows."""
        return int(self.stored.shape[0])

    @property
    def row_size(self) -> int:
        """Bytes of a row."""
        return int(math.prod(self.shape) * self.stored.dtype.itemsize)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Read rows `[stop - start, *shape]`."""
        return np.asarray(self.stored[start:stop]).reshape(stop - start, *self.shape)

    def flags(self, where: str) -> np.ndarray:
        """Return all of it as bool; refuse anything but 0 and 1."""
        return as_flags(f"{where}: {self.name}", self.rows(0, len(self)))


@dataclass(frozen=True)
class _Finder:
    """Finds the arrays of a file, and explains what is wrong with them."""

    stored: Mapping[str, Any]
    where: str
    env: str

    def find(
        self, role: str, name: str, shape: tuple[int, ...], count: int | None
    ) -> Array:
        """Return an array by its name.

        Args:
            role: What it is needed for: a field of `ArrayNames`.
            name: What the file calls it.
            shape: Of a row.
            count: Number of rows; any if none.

        Raises:
            DatasetError: It is missing, not of numbers, or of another shape.
        """
        other = f"name another array ({options_of([role])} NAME)"
        if role not in dataclasses.asdict(AS_USUAL):  # masks, valids
            other = "remove or rename the array in the file"
        if name not in self.stored:
            known = sorted(self.stored)
            _refuse_groups(known, name, self.where)
            listed = ", ".join(known[:SHOWN]) + ", …" * (len(known) > SHOWN)
            raise DatasetError(
                f"{self.where} has no array {name!r}. {suggestion(name, known)}It has: "
                f"{listed or 'none'}. Name the one that holds the {role} "
                f"({options_of([role])} NAME)."
            )
        try:
            stored = self.stored[name]
        except DatasetError as error:
            cause = error.__cause__
            if not isinstance(cause, ValueError):
                raise
            raise DatasetError(  # objects, which only unpickling could read
                f"{self.where}: {name} cannot be read: {cause}. It must hold numbers."
            ) from error
        if stored.dtype.kind not in "biuf":
            raise DatasetError(
                f"{self.where}: {name} must hold numbers, got {stored.dtype}."
            )
        size = int(np.prod(stored.shape[1:], dtype=np.int64))
        if not stored.shape or size != int(np.prod(shape, dtype=np.int64)):
            expected = ", ".join(["rows", *map(str, shape)])
            needed = f"{self.env} needs [{expected}]"
            advice = f"Name the environment that the data is from (--env), or {other}."
            if role in ONE_PER_ROW:
                needed = f"{role} need [{expected}]"
                advice = f"{other[0].upper()}{other[1:]}."
            if _has_another_axis(stored.shape, shape, count):
                advice = (
                    "It seems to have an axis of episodes or environments too: in all "
                    "arrays, put these behind one another along the rows."
                )
            raise DatasetError(
                f"{self.where}: {name} has the shape {list(stored.shape)}, and "
                f"{needed}. {advice}"
            )
        if count is not None and stored.shape[0] != count:
            raise DatasetError(
                f"{self.where}: {name} has {counted(stored.shape[0], 'row')}, and "
                f"the observations have {count:,}. All arrays need a row for every env "
                f"step."
            )
        if not stored.shape[0]:
            raise DatasetError(f"{self.where}: {name} has no rows.")
        return Array(name, stored, shape)


def _has_another_axis(
    stored: tuple[int, ...], row: tuple[int, ...], count: int | None
) -> bool:
    """Return whether an array seems to have one axis more than rows of this shape.

    Args:
        stored: The array's shape.
        row: Shape of a row.
        count: Number of rows; any if none.
    """
    if count is None:
        return stored[2:] == row and len(stored) > 1
    return math.prod(stored[:2]) == count and math.prod(stored[2:]) == math.prod(row)


def _refuse_groups(known: Iterable[str], name: str, where: str) -> None:
    """Refuse a file with a group for each episode, such as `data/demo_0/actions`.

    Args:
        known: The names of its arrays.
        name: The one that is looked for.
        where: The file.

    Raises:
        DatasetError: It is one.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for path in known:
        group = re.fullmatch(r"((?:.*?/)?[^/]*?)(\d+)/(.*)", path)
        if group is not None and group[3].rpartition("/")[2] in ("actions", name):
            episode = f"{group[1]}{group[2]}"
            found.setdefault((group[1], group[3]), []).append(episode)
    for episodes in found.values():
        if len(episodes) > 1:
            raise DatasetError(
                f"{where} has a group of arrays for each episode: "
                f"{', '.join(episodes[:2])} and so on. Join those of all episodes to "
                f"long arrays, with a row for every env step and a 1 in `timeouts` at "
                f"the last row of each episode, or make a FlatDataset in Python."
            )


def shapes_of(env: Env) -> dict[str, tuple[int, ...]]:
    """Return the roles that arrays may have for an environment → shape of a row.

    Raises:
        DatasetError: It observes more than an array or a goal dictionary.
    """
    space: Any = env.observation_space
    goal = isinstance(space, gym.spaces.Dict)
    parts = dict(space.spaces) if goal else {"observation": space}
    wanted = {"observation", *GOAL_KEYS} if goal else {"observation"}
    boxes = {name for name, part in parts.items() if isinstance(part, gym.spaces.Box)}
    if boxes != wanted or len(boxes) != len(parts):
        raise DatasetError(
            f"{env_name(env)} observes {space}. A file can be imported for "
            f"environments that observe one array, or a goal dictionary with "
            f"{', '.join(('observation', *GOAL_KEYS))}. "
            f"gymnasium.wrappers.FlattenObservation makes one array of others."
        )
    observation: Any = parts["observation"].shape
    action: Any = env.action_space.shape
    shapes = {
        "observations": observation,
        "next_observations": observation,
        "actions": action,
    }
    shapes |= dict.fromkeys(ONE_PER_ROW, ())
    if goal:
        shapes |= {
            role: parts[key].shape
            for role, key in zip(GOAL_ROLES, GOAL_KEYS, strict=True)
        }
    return shapes


def find_arrays(
    stored: Mapping[str, Any],
    names: ArrayNames,
    shapes: Mapping[str, tuple[int, ...]],
    env: Env,
    where: str,
) -> dict[str, Array]:
    """Return the arrays of a file that have a role → array.

    Raises:
        ConfigError: Goals are named, and the environment has none; or one array is
            named for two roles.
        DatasetError: An array is missing, or of another length or shape.
    """
    finder = _Finder(stored, where, env_name(env))
    named = dataclasses.asdict(names).items()
    given = {role: name for role, name in named if name is not None}
    if unused := [role for role in given if role not in shapes]:
        raise ConfigError(
            f"{env_name(env)} observes no goals, so {' and '.join(unused)} "
            f"({options_of(unused)}) would have no effect. Leave them out, or name "
            f"an environment that observes a goal dictionary (--env)."
        )
    _refuse_shared(given, stored, where)
    arrays: dict[str, Array] = {}
    for role, shape in shapes.items():
        name = given.get(role, role)
        chosen = role in given or role in ("observations", "actions")
        if role == "desired_goals" and not chosen and D4RL_GOALS in stored:
            # Else goals of another kind.
            chosen = stored[D4RL_GOALS].shape[1:] == shape
            name = D4RL_GOALS if chosen else name
        if chosen or (name in stored and name not in given.values()):
            count = len(arrays["observations"]) if arrays else None
            arrays[role] = finder.find(role, name, shape, count)
    return arrays


def _refuse_shared(
    given: Mapping[str, str], stored: Mapping[str, Any], where: str
) -> None:
    """Refuse an array that is named for two roles; goals may be observations.

    Only `terminals` and `timeouts` may be named after each other: files differ in what
    they call an end.

    Raises:
        ConfigError: There is one.
    """
    usual = {role: role for role in ("observations", "actions", "rewards")}
    owners: dict[str, str] = {}
    for role, name in {**usual, **given}.items():
        if role in GOAL_ROLES or name not in stored:
            continue
        if (other := owners.setdefault(name, role)) != role:
            raise ConfigError(
                f"{where}: {name} cannot hold both the {other} and the {role}. Name "
                f"another array for one of them ({options_of([other, role])})."
            )


def options_of(roles: Iterable[str]) -> str:
    """Return the options of `diffuser-policy import` that name these arrays."""
    return ", ".join(f"--{role.replace('_', '-')}" for role in roles)
