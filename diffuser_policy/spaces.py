"""What a planner reads of an environment: its spaces, as plain data.

Two kinds of observation are planned in:

- a flat `Box` of shape `[size]`;
- a goal `Dict` with `observation`, `achieved_goal` and `desired_goal` (each a flat
  `Box`), Gymnasium-Robotics' convention.

Planners that were trained without goals take goal dictionaries as well: they plan from
`observation`, and hand `desired_goal` on to guides. Planners with goals read one, and
it may also come flattened: `[observation, desired_goal]`, or all three
parts in the order of `gymnasium.wrappers.FlattenObservation` (alphabetical).

Plans are made of observations, so a goal has to be some columns of them. If the
achieved goal repeats columns of the observation (a maze's position), those are the
goal's columns; otherwise it is appended to the observation for planning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces

from diffuser_policy.errors import DatasetError, ObservationError, SpaceMismatchError

GOAL_KEYS = ("achieved_goal", "desired_goal", "observation")
ROWS_TO_COMPARE = 10_000


@dataclass(frozen=True, kw_only=True)
class SpaceSpec:
    """Sizes and bounds of an environment's observations and actions.

    Attributes:
        observation_size: Columns of the (inner) observation.
        goal_size: Columns of the goal; zero for flat observations.
        goal_columns: Where the goal lies in the *planned* observation.
        action_low: `[action]` lowest action.
        action_high: `[action]` highest action.
    """

    observation_size: int
    goal_size: int = 0
    goal_columns: tuple[int, ...] = ()
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]

    @property
    def planned_size(self) -> int:
        """Columns of the observation that is planned, with an appended goal."""
        appended = self.goal_size if self.appends_goal else 0
        return self.observation_size + appended

    @property
    def appends_goal(self) -> bool:
        """Whether the achieved goal is appended to the observation for planning."""
        return bool(self.goal_columns) and self.goal_columns[0] >= self.observation_size

    @property
    def has_goal(self) -> bool:
        """Whether observations are goal dictionaries."""
        return self.goal_size > 0

    def observation_space(self) -> spaces.Space[Any]:
        """Return the observation space, unbounded, float64."""

        def box(size: int) -> spaces.Box:
            return spaces.Box(-np.inf, np.inf, (size,), np.float64)

        if not self.has_goal:
            return box(self.observation_size)
        sizes = (self.goal_size, self.goal_size, self.observation_size)
        return spaces.Dict(
            {key: box(size) for key, size in zip(GOAL_KEYS, sizes, strict=True)}
        )

    def action_space(self) -> spaces.Box:
        """Return the action space, float32."""
        low = np.asarray(self.action_low, np.float32)
        high = np.asarray(self.action_high, np.float32)
        return spaces.Box(low, high, dtype=np.float32)

    def check(self, env: Any) -> None:
        """Refuse an environment whose spaces differ.

        Args:
            env: Anything with *single* `observation_space` and `action_space`.

        Raises:
            SpaceMismatchError: Both spaces are named, the expected and the given.
        """
        given = env.observation_space
        if self.has_goal:
            readable = _shapes(given) in [(size,) for size in self._flat_sizes()]
        else:
            readable = (
                isinstance(given, spaces.Dict)
                and set(GOAL_KEYS[1:]) <= set(given.spaces)
                and _shapes(given["observation"]) == (self.observation_size,)
            )
        if readable:
            given = self.observation_space()
        pairs = (
            ("observation", given, self.observation_space(), _shapes),
            ("action", env.action_space, self.action_space(), _bounds),
        )
        for name, given, expected, compared in pairs:
            if compared(given) != compared(expected):
                raise SpaceMismatchError(
                    f"This planner expects the {name} space {expected}, but the "
                    f"environment has {given}. Use the environment it was trained "
                    f"for, or train a planner on data of this one."
                )

    def read(
        self, observation: Any
    ) -> tuple[np.ndarray, np.ndarray | None, tuple[int, ...]]:
        """Return planned observations and goals of one or many rows.

        Args:
            observation: What `env.reset` or `env.step` returned, single or batched.

        Returns:
            Observations `[n, planned]`, goals `[n, goal]` or none, and the batch
            shape: `()` for a single observation, `(n,)` for a batch. Goals of a
            planner that was trained without any are of any size.

        Raises:
            ObservationError: Structure, shape, or values that cannot be planned from.
        """
        if isinstance(observation, tuple):
            raise ObservationError(
                "Got a tuple instead of an observation. Gymnasium's reset() returns "
                "(observation, info); pass the observation alone: "
                "observation, info = env.reset()."
            )
        if self.has_goal and not isinstance(observation, Mapping):
            observation = self._unflatten(observation)
        if not isinstance(observation, Mapping):
            rows, batch = _rows("observation", observation, self.observation_size)
            return rows, None, batch
        needed = GOAL_KEYS if self.appends_goal else GOAL_KEYS[1:]
        missing = [key for key in needed if key not in observation]
        if missing:
            flat = (
                ""
                if self.has_goal
                else f"flat observations [{self.observation_size}], or "
            )
            raise ObservationError(
                f"The observation lacks {missing}; it has "
                f"{sorted(map(str, observation))}. This planner takes {flat}goal "
                f"dictionaries with {list(GOAL_KEYS)}."
            )
        rows, batch = _rows(
            "observation", observation["observation"], self.observation_size
        )
        desired, size = observation["desired_goal"], self.goal_size
        if not self.has_goal:  # for guides alone, so of any size
            size = np.shape(desired)[-1] if np.ndim(desired) else 0
        parts = {"desired_goal": _rows("desired_goal", desired, size)}
        if self.appends_goal:
            achieved = _rows("achieved_goal", observation["achieved_goal"], size)
            parts["achieved_goal"] = achieved
            if achieved[1] == batch:
                rows = np.concatenate([rows, achieved[0]], axis=1)
        for key, (_, other) in parts.items():
            if other != batch:
                raise ObservationError(
                    f"observation has the batch shape {batch}, but {key} {other}."
                )
        return rows, parts["desired_goal"][0], batch

    def _flat_sizes(self) -> tuple[int, int]:
        """Return the sizes of `[observation, goal]` and of all three parts."""
        pair = self.observation_size + self.goal_size
        return pair, pair + self.goal_size

    def _unflatten(self, observation: Any) -> dict[str, np.ndarray]:
        """Return the goal dictionary of a flattened one; its size tells the order."""
        pair, triple = self._flat_sizes()
        shape = np.shape(observation)
        size, goal = self.observation_size, self.goal_size
        if shape and shape[-1] == triple:
            array = np.asarray(observation)
            return {
                "achieved_goal": array[..., :goal],
                "desired_goal": array[..., goal : 2 * goal],
                "observation": array[..., 2 * goal :],
            }
        if shape and shape[-1] == pair and not self.appends_goal:
            array = np.asarray(observation)
            return {
                "observation": array[..., :size],
                "desired_goal": array[..., size:],
            }
        raise ObservationError(
            f"This planner takes goal dictionaries with {list(GOAL_KEYS)}, or them "
            f"flattened to {pair} (observation, goal) or {triple} numbers; got "
            f"{type(observation).__name__} of shape {shape}."
        )


def find_goal_columns(observation: np.ndarray, achieved: np.ndarray) -> tuple[int, ...]:
    """Return where the achieved goal lies in the planned observation.

    Args:
        observation: `[num_rows, size]`.
        achieved: `[num_rows, goal]`.

    Returns:
        Columns of the observation that repeat the goal, or the columns it takes when
        appended behind the observation.
    """
    rows = np.linspace(0, len(observation) - 1, min(len(observation), ROWS_TO_COMPARE))
    index = np.unique(rows.astype(np.int64))
    sample, goals = observation[index], achieved[index]
    columns = []
    for goal in goals.T:
        equal = np.flatnonzero(np.abs(sample - goal[:, None]).max(axis=0) < 1e-5)
        free = [int(column) for column in equal if column not in columns]
        if not free:
            size = observation.shape[1]
            return tuple(range(size, size + achieved.shape[1]))
        columns.append(free[0])
    return tuple(columns)


def _shapes(space: Any) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: _shapes(space[key]) for key in sorted(space.spaces)}
    return space.shape if isinstance(space, spaces.Box) else space


def _bounds(space: Any) -> Any:
    if not isinstance(space, spaces.Box):
        return space
    return [bound.astype(np.float32).tolist() for bound in (space.low, space.high)]


def _rows(name: str, values: Any, size: int) -> tuple[np.ndarray, tuple[int, ...]]:
    """Return `[n, size]` float32 rows of a single or batched array, checked."""
    try:
        array = np.asarray(values, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ObservationError(f"{name} is not numeric: {values!r}.") from error
    if array.ndim not in (1, 2) or array.shape[-1] != size or array.size == 0:
        raise ObservationError(
            f"{name} must have shape ({size},), or (num_envs, {size}) for a batch; "
            f"got {array.shape}."
        )
    if not np.isfinite(array).all():
        raise ObservationError(f"{name} holds NaN or infinite values: {array}.")
    return (array[None], ()) if array.ndim == 1 else (array, array.shape[:1])


def check_action_bounds(low: Sequence[float], high: Sequence[float]) -> None:
    """Refuse an action space that is not a bounded box.

    Raises:
        DatasetError: A bound is infinite.
    """
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise DatasetError(
            f"Planning needs a bounded Box of actions, got low={list(low)}, "
            f"high={list(high)}."
        )
