"""Files of other projects, turned into Minari datasets.

Such files hold a few long arrays, one row for every env step `t` of all episodes:

    observations[t]  actions[t]  rewards[t]          before the step, and what it paid
    terminals[t]  timeouts[t]                        whether the episode ended there
    next_observations[t]                             often left out

They agree on the names and not on their meaning. Two conventions are read:

| | D4RL (Fu et al., 2020), HDF5 | OGBench (Park et al., 2025), NumPy |
|---|---|---|
| `terminals` | the episode terminated | the episode is over, however it ended |
| `timeouts` | the episode was cut | not there |
| `masks` | not there | 0 where the task was done: that step terminates |
| goals | `infos/goal` (maze2d) | none |

An episode of L rows has L + 1 observations, and the last one is rarely in the file:

- with `next_observations`, it is the last of those;
- where an episode was cut, its last row becomes that observation, without its action;
- where one terminated, its last observation is repeated: the reward of the last step
  counts, and no method learns from what follows.

Files of OGBench that were made for single tasks go on after success. Their steps
terminate there: an episode ends with the first step from a state in which the task is
done, and the next one begins when it is no longer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from diffuser_policy.choices import GOAL_KEYS
from diffuser_policy.columns.layout import rows_at_once
from diffuser_policy.data.arrays import (
    AS_USUAL,
    D4RL_GOALS,
    GOAL_ROLES,
    Array,
    ArrayNames,
    find_arrays,
    open_arrays,
    shapes_of,
)
from diffuser_policy.data.flat import (
    FLOAT32_MOST,
    Episode,
    first_not_finite,
    remark_on_size,
)
from diffuser_policy.data.minari import (
    at_work,
    check_spaces,
    own_dataset_id,
    recorded_facts,
    write_minari,
)
from diffuser_policy.envs import (
    POINT_MAZES,
    Env,
    check_one,
    env_name,
    glimpses,
    make_env,
    step_limit,
)
from diffuser_policy.errors import (
    DatasetError,
    DatasetNotFoundError,
    require_extra,
    shown,
)
from diffuser_policy.files import usable_path
from diffuser_policy.spaces import find_goal_columns, outside
from diffuser_policy.versions import RECORDERS, versions
from diffuser_policy.words import counted

BLOCK = 100_000  # rows compared at a time, at most


@dataclass(frozen=True, kw_only=True)
class Imported:
    """The result of an import.

    Attributes:
        folder: The dataset's.
        dataset_id: Its Minari id.
        num_episodes: Number of episodes.
        num_steps: Number of env steps.
        num_rows: Rows of the file; some have no step in the dataset.
        remarks: What was missing in the file and how that was made up for, in
            sentences.
    """

    folder: Path
    dataset_id: str
    num_episodes: int
    num_steps: int
    num_rows: int
    remarks: tuple[str, ...]


def import_file(
    file: str | Path,
    env: str | Env,
    *,
    dataset_id: str | None = None,
    names: ArrayNames = AS_USUAL,
    overwrite: bool = False,
    progress: bool = True,
) -> Imported:
    """Make a Minari dataset of a file of D4RL, of OGBench, or of similar arrays.

    Args:
        file: HDF5, or NumPy's `.npz`.
        env: The environment that the data is from, or its id. Its spaces say what the
            arrays must look like.
        dataset_id: Minari id; made of the file's name by default.
        names: What the file calls its arrays.
        overwrite: Replace a dataset of the same id.
        progress: Show a bar, on a terminal.

    Raises:
        DatasetNotFoundError: No such file.
        DatasetError: The file is damaged or of another kind, lacks an array, or holds
            arrays that do not fit the environment or each other; or the dataset exists.
        ConfigError: No environment, a malformed id, goals for an environment without
            any, one array named for two roles, or another process is writing this
            dataset.
        StorageError: The disk is full, or cannot be written.
        MissingExtraError: The extra `data`, or the simulator, is not installed.
    """
    require_extra("minari", "data")
    file = usable_path(file, DatasetNotFoundError)
    check_one(env)
    if dataset_id is None:
        dataset_id = own_dataset_id(file.stem)
    with contextlib.ExitStack() as stack:
        arrays = stack.enter_context(open_arrays(file))
        stack.enter_context(at_work(dataset_id, overwrite=overwrite))
        if isinstance(env, str):
            env = make_env(env)
            stack.callback(env.close)
        check_spaces(env)
        source = Source.read(arrays, names, env, str(file))
        bar = stack.enter_context(
            tqdm(
                total=source.num_rows,
                desc=f"Importing {file.name}",
                unit="row",
                unit_scale=True,
                disable=None if progress else True,
            )
        )
        folder = write_minari(
            dataset_id,
            source.episodes(bar),
            env=env,
            collection={
                "policy": "imported",
                "file": file.name,
                "arrays": dataclasses.asdict(names),
                "remarks": list(source.remarks),
                "versions": versions(*RECORDERS),
            },
            overwrite=overwrite,
        )
    facts = recorded_facts(folder)
    return Imported(
        folder=folder,
        dataset_id=dataset_id,
        num_episodes=facts["total_episodes"],
        num_steps=facts["total_steps"],
        num_rows=source.num_rows,
        remarks=tuple(source.remarks),
    )


@dataclass(frozen=True, kw_only=True)
class Source:
    """The arrays of a file, checked, and where its episodes are.

    Attributes:
        where: The file, for messages.
        env: The environment.
        arrays: Role → array: observations and actions, and whatever else is there.
        terminal: `[N]`: the step terminated.
        last: `[N]`: the last row of an episode.
        done: `[N]`: the task is done in this state, where rows go on after that.
        achieved: Columns of observations that are the achieved goal, if any.
        goal: Whether observations become goal dictionaries.
        maze2d: Whether the goals are those of D4RL's maze2d.
        remarks: What was missing, in sentences.
    """

    where: str
    env: Env
    arrays: Mapping[str, Array]
    terminal: np.ndarray
    last: np.ndarray
    done: np.ndarray | None
    achieved: tuple[int, ...] | None
    goal: bool
    maze2d: bool
    remarks: list[str]

    @property
    def num_rows(self) -> int:
        """Number of rows of the file."""
        return len(self.terminal)

    @classmethod
    def read(
        cls, stored: Mapping[str, Any], names: ArrayNames, env: Env, where: str
    ) -> Source:
        """Find the arrays and the ends of episodes.

        Raises:
            DatasetError: An array is missing, or of another length or shape; or the
            environment observes more than an array or a goal dictionary.
        """
        shapes = shapes_of(env)
        goal = GOAL_ROLES[0] in shapes
        arrays = find_arrays(stored, names, shapes, env, where)
        remarks: list[str] = []
        if goal and names.desired_goals is None:
            _refuse_maze2d(stored, env, where)
        _relabel(arrays, stored, env, remarks)
        terminal, last, done = _ends(arrays, names, env, where, remarks)
        space: Any = env.observation_space
        inner = space["observation"] if goal else space
        if beyond := _num_outside(arrays["observations"], inner):
            remarks.append(
                f"{beyond:,} of {len(terminal):,} observations lie outside of the "
                f"space of {env_name(env)}, {inner}. Are the data from this "
                "environment?"
            )
        if "rewards" not in arrays:
            remarks.append("The file has no rewards: all are 0.")
        achieved = None
        if goal and "achieved_goals" not in arrays:
            achieved = _achieved_columns(env, where)
        if goal and "desired_goals" not in arrays:
            remarks.append(
                "The file has no goals: the goal of an episode is what it achieved "
                "in the end."
            )
        return cls(
            where=where,
            env=env,
            arrays=arrays,
            terminal=terminal,
            last=last,
            done=done,
            achieved=achieved,
            goal=goal,
            maze2d=names.desired_goals is None
            and "desired_goals" in arrays
            and arrays["desired_goals"].name == D4RL_GOALS,
            remarks=remarks,
        )

    def episodes(self, bar: Any) -> Iterator[Episode]:
        """Yield the episodes in order; the bar counts their rows.

        Raises:
            DatasetError: Values that are not finite or not allowed, or no episode of
                at least one step.
        """
        begin, found = 0, False
        for end in (np.flatnonzero(self.last) + 1).tolist():
            for start, stop in self._parts(begin, end):
                episode = self._episode(start, stop, end)
                if episode is not None:
                    found = True
                    yield episode
            bar.update(end - begin)
            begin = end
        if not found:
            raise DatasetError(
                f"{self.where} holds no episode of two rows or more. Does it really "
                f"mark the last row of each episode, in terminals and timeouts?"
            )

    def _parts(self, begin: int, end: int) -> list[tuple[int, int]]:
        """Return the rows of an episode from which one is made, cut at success."""
        if self.done is None:
            return [(begin, end)]
        parts, start = [], None
        for row in range(begin, end):
            if start is None and not self.done[row]:
                start = row
            if start is not None and (self.done[row] or row == end - 1):
                parts.append((start, row + 1))
                start = None
        return parts

    def _episode(self, start: int, stop: int, end: int) -> Episode | None:
        """Make the episode of some rows; none if no step is left of them.

        Args:
            start: First row.
            stop: Behind the last row.
            end: Behind the last row of the recorded episode.
        """
        terminated = bool(self.terminal[stop - 1])
        observations = self._rows("observations", start, stop)
        if "next_observations" in self.arrays:
            final = self._rows("next_observations", stop - 1, stop)
        elif stop < end:  # the recording goes on
            final = self._rows("observations", stop, stop + 1)
        elif terminated:
            final = observations[-1:]
        else:
            final, observations = observations[-1:], observations[:-1]
            stop -= 1
        length = stop - start
        if length == 0:
            return None
        observations = np.concatenate([observations, final])
        actions = self._rows("actions", start, stop)
        rewards = np.zeros(length)
        if "rewards" in self.arrays:
            rewards = self._rows("rewards", start, stop).astype(np.float64)
        self._check_actions(actions, start)
        fields = {"observation": observations}
        if self.goal:
            fields |= self._goals(
                observations, [*range(start, stop), min(stop, end - 1)]
            )
        read = getattr(self.env.unwrapped, "from_d4rl", None)
        if read is not None and self.maze2d:
            try:
                fields, actions = read(fields, actions)
            except ValueError as error:
                raise DatasetError(
                    f"{self.where}, rows {start} to {stop}: {error}."
                ) from error
        ends = np.zeros((2, length), np.bool_)
        ends[0 if terminated else 1, -1] = True
        return Episode(
            observations=fields,
            actions=actions,
            rewards=rewards,
            terminations=ends[0],
            truncations=ends[1],
        )

    def _goals(
        self, observations: np.ndarray, rows: list[int]
    ) -> dict[str, np.ndarray]:
        """Return achieved and desired goals `[L + 1, goal]` of an episode.

        Args:
            observations: `[L + 1, ...]`.
            rows: Where each of them is in the file. The last one may not be there;
                then it has the goals of the row before.
        """

        def taken(role: str) -> np.ndarray:
            found = self._rows(role, rows[0], rows[-1] + 1)
            return np.take(found, np.array(rows) - rows[0], axis=0)

        if self.achieved is not None:
            achieved = observations[:, list(self.achieved)]
        else:
            achieved = taken("achieved_goals")
        desired = np.repeat(achieved[-1:], len(achieved), axis=0)
        if "desired_goals" in self.arrays:
            desired = taken("desired_goals")
        return {GOAL_KEYS[0]: achieved, GOAL_KEYS[1]: desired}

    def _rows(self, role: str, start: int, stop: int) -> np.ndarray:
        """Return rows of an array as floating-point numbers, checked."""
        array = self.arrays[role]
        rows = np.asarray(array.rows(start, stop))
        # The comparison is false for NaN too. The limit is infinite in float16.
        good = np.abs(rows.astype(np.float64)) <= FLOAT32_MOST
        bad = ~good.reshape(len(rows), -1).all(axis=1)
        if bad.any():
            row = start + int(np.argmax(bad))
            raise DatasetError(
                f"{self.where}: {array.name} is not finite in row {row}: "
                f"{first_not_finite(rows[row - start])}. Remove or repair its episode."
                f"{remark_on_size(rows[row - start])}"
            )
        return rows if rows.dtype.kind == "f" else rows.astype(np.float32)

    def _check_actions(self, actions: np.ndarray, start: int) -> None:
        space: Any = self.env.action_space
        beyond = outside(actions, space)
        if beyond.any():
            row = int(np.argmax(beyond))
            raise DatasetError(
                f"{self.where}: the action of row {start + row} is "
                f"{shown(actions[row].tolist())}, and those of {env_name(self.env)} "
                f"lie in {space}. Name the environment that the data is from (--env), "
                f"or scale or clip the actions."
            )
        if not np.issubdtype(space.dtype, np.floating):
            split = (actions != np.rint(actions)).reshape(len(actions), -1).any(axis=1)
            if split.any():
                row = int(np.argmax(split))
                raise DatasetError(
                    f"{self.where}: the action of row {start + row} is "
                    f"{shown(actions[row].tolist())}, and those of "
                    f"{env_name(self.env)} are whole numbers. Name the environment "
                    f"that the data is from (--env), or round the actions."
                )


def _relabel(
    arrays: dict[str, Array], stored: Mapping[str, Any], env: Env, remarks: list[str]
) -> None:
    """Add the rewards of OGBench's single tasks, which its files leave out."""
    name = env_name(env)
    if "rewards" in arrays or "-singletask" not in name or "qpos" not in stored:
        return
    relabel: Any = require_extra("ogbench.relabel_utils", "ogbench")
    needed = ("qpos", "button_states")
    facts = {key: stored[key][()] for key in needed if key in stored}
    relabel.relabel_dataset(name, env, facts)
    for role in ("rewards", "masks"):
        arrays[role] = Array(f"{role} of {name}", facts[role], ())
    remarks.append(f"Rewards are those of {name}, worked out from qpos.")


def _refuse_maze2d(stored: Mapping[str, Any], env: Env, where: str) -> None:
    """Refuse D4RL's maze2d for mazes that write positions in another way.

    Raises:
        DatasetError: The file is one of D4RL's.
    """
    if D4RL_GOALS in stored and env_name(env).startswith(POINT_MAZES):
        raise DatasetError(
            f"{where} seems to be of D4RL's maze2d, whose coordinates are not those of "
            f"{env_name(env)}. Import it for diffuser_envs/Maze2D-UMaze-v1 (or Medium, "
            f"Large), which converts them."
        )


def _ends(
    arrays: Mapping[str, Array],
    names: ArrayNames,
    env: Env,
    where: str,
    remarks: list[str],
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return where steps terminate, where episodes end, and where a task is done.

    Raises:
        DatasetError: Nothing says where episodes end.
    """
    flags = {
        role: arrays[role].flags(where)
        for role in ("terminals", "timeouts", "masks", "valids")
        if role in arrays
    }
    num_rows = len(arrays["observations"])
    none = np.zeros(num_rows, np.bool_)
    done = None
    is_ogbench = (
        names.terminals is None
        and "timeouts" not in flags
        and ("masks" in flags or "valids" in flags or "rewards" not in arrays)
    )
    # Masks alone could mean that an episode terminated, or that it went on.
    seen = "next_observations" in arrays and "masks" not in flags
    if is_ogbench and ("terminals" in flags or "valids" in flags):
        last = ~flags["valids"] if "valids" in flags else flags["terminals"].copy()
        if "masks" in flags:
            done = ~flags["masks"]
            remarks.append(
                "Steps terminate where masks are 0; rows in which the task stays done "
                "are left out."
            )
        terminal = none if done is None else done
    elif "terminals" in flags or "timeouts" in flags or seen:
        terminal, cut = (flags.get(role, none) for role in ("terminals", "timeouts"))
        last = terminal | cut
        if both := int((terminal & cut).sum()):
            # If that is so of every cut, `terminals` marks all ends of episodes.
            taken = "terminated"
            if both == cut.sum():
                terminal = terminal & ~cut
                taken = f"cut: {arrays['terminals'].name} marks every end"
            remarks.append(
                f"Steps that both terminated and were cut ({counted(both, 'row')}) "
                f"count as {taken}."
            )
    else:
        raise _endless(where, ())
    if not last.any() or not (is_ogbench or "timeouts" in flags):
        last = last | _resets(arrays, last, env, remarks)
    tells = "next_observations" in arrays or num_rows <= (step_limit(env) or 0)
    if not last.any() and not tells:
        raise _endless(where, [arrays[role].name for role in flags if role != "masks"])
    last = last.copy()
    last[-1] = True
    return terminal, last, done


def _endless(where: str, flags: Collection[str]) -> DatasetError:
    """Return the error for a file without the ends of episodes.

    Args:
        where: The file.
        flags: Its arrays that should mark them.
    """
    found = f": no row of {' and '.join(flags)} marks one" if flags else ""
    return DatasetError(
        f"{where} does not say where episodes end{found}. Name the arrays that do: "
        f"--terminals NAME (it terminated), --timeouts NAME (it was cut), or "
        f"--next-observations NAME (they are not those of the next row). A file of one "
        f"episode needs a 1 in the last row of terminals or timeouts."
    )


def _num_outside(array: Array, space: Any) -> int:
    """Return how many rows lie outside of a space, rounding aside."""
    if not (space.bounded_below.any() or space.bounded_above.any()):
        return 0
    size = rows_at_once(array.row_size, BLOCK)
    count = 0
    for begin in range(0, len(array), size):
        rows = array.rows(begin, min(begin + size, len(array)))
        count += int(outside(rows, space).sum())
    return count


def _digits(dtype: np.dtype[Any]) -> float:
    """Return how many digits a type holds; more than any other for whole numbers."""
    return np.finfo(dtype).nmant if dtype.kind == "f" else math.inf


def _resets(
    arrays: Mapping[str, Array], last: np.ndarray, env: Env, remarks: list[str]
) -> np.ndarray:
    """Return where episodes were cut `[N]`, for files without timeouts.

    The next observation of such a row is not that of the next row. Without next
    observations, D4RL cuts at the environment's step limit.
    """
    cut = np.zeros(len(last), np.bool_)
    if "next_observations" in arrays:
        size = rows_at_once(arrays["observations"].row_size, BLOCK)
        for begin in range(0, len(last) - 1, size):
            end = min(begin + size, len(last) - 1)
            following = arrays["next_observations"].rows(begin, end)
            now = arrays["observations"].rows(begin + 1, end + 1)
            # One of them may be rounded: to float16, or from float64.
            kind = min(following.dtype, now.dtype, np.dtype(np.float32), key=_digits)
            with np.errstate(over="ignore"):  # refused by name, when they are taken
                differ = following.astype(kind) != now.astype(kind)
            cut[begin:end] = differ.reshape(end - begin, -1).any(axis=1)
    elif (limit := step_limit(env)) is not None:
        begin = 0
        for end in [*(np.flatnonzero(last) + 1).tolist(), len(last)]:
            cut[begin + limit - 1 : end : limit] = True
            begin = end
    elif last.any():
        remarks.append(
            f"The file marks no timeouts, and {env_name(env)} names no step limit: "
            "episodes end only where they terminated. If some were cut, name the array "
            "that says where (--timeouts)."
        )
    if (num := int((cut & ~last).sum())) > 0:
        remarks.append(
            f"The file marks no timeouts: {num:,} ends of episodes were found by "
            + (
                "next observations that are not those of the next row."
                if "next_observations" in arrays
                else f"the step limit of {env_name(env)}."
            )
        )
    return cut


def _achieved_columns(env: Env, where: str) -> tuple[int, ...]:
    """Return which columns of an observation are the achieved goal.

    Raises:
        DatasetError: None are.
    """
    seen = glimpses(env)
    observations, achieved = (
        np.stack([each[key] for each in seen]) for key in ("observation", GOAL_KEYS[0])
    )
    columns = find_goal_columns(observations, achieved)
    if any(column >= observations.shape[1] for column in columns):
        raise DatasetError(
            f"The achieved goal of {env_name(env)} is no part of its observation, and "
            f"{where} does not hold it. Name the array that does (--achieved-goals "
            f"NAME)."
        )
    return columns
