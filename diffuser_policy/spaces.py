"""What a planner reads of an environment: its spaces, as plain data.

Observations are a `Box` of any shape, or `Dict` and `Tuple` spaces of such boxes, which
are flattened into named columns (`diffuser_policy.observations`). A *goal dictionary*
holds an achieved and a desired goal beside the observation.

Planners that were trained without goals take goal dictionaries as well: they plan from
`observation`, and hand `desired_goal` on to guides. Planners with goals read nothing
but such dictionaries: a flat array does not say which of its columns are the goal. If
Gymnasium's wrapper `FlattenObservation` made the array, the wrapper knows, and
`SpaceSpec.fitted` returns spaces that read its observations as if they were not flat.

Plans are made of observations, so a goal has to be some columns of them. If the
achieved goal repeats columns of the observation (a maze's position), those are the
goal's columns; otherwise it is appended to the observation for planning.

Actions are a bounded `Box` of any shape, and keep its type. In a box of integers they
are rounded to the nearest.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from gymnasium import spaces

from diffuser_policy.choices import GOAL_PARTS
from diffuser_policy.errors import (
    ConfigError,
    DatasetError,
    ObservationError,
    SpaceMismatchError,
    shown,
)
from diffuser_policy.observations import (
    ObservationColumns,
    Part,
    assembled,
    flat_order,
    is_dictionary_inside,
    is_finite,
    joined,
    parts_of,
    single_space,
    whole_numbers,
)
from diffuser_policy.ogbench import is_ogbench

ROUNDING = 4 * float(np.finfo(np.float32).eps)  # a few steps of float32 numbers near 1
WHOLE = 2.0**53  # largest whole number up to which float64 skips none


@dataclass(frozen=True, kw_only=True)
class SpaceSpec:
    """Columns of an environment's observations, and bounds of its actions.

    Attributes:
        observation_size: Columns of the observation, without goals.
        goal_size: Columns of the goal; zero for observations without.
        goal_columns: Where the goal lies in the *planned* observation.
        action_low: `[action]` lowest action.
        action_high: `[action]` highest action.
        action_shape: Shape of an action; `(action,)` if not given.
        action_dtype: NumPy's name for the type of actions.
        columns: Where the columns are in an observation; if not given, a flat box, or
            a goal dictionary of three.

    Raises:
        ConfigError: They contradict each other.
    """

    observation_size: int
    goal_size: int = 0
    goal_columns: tuple[int, ...] = ()
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    action_shape: tuple[int, ...] | None = None
    action_dtype: str = "float32"
    columns: ObservationColumns | None = None

    def __post_init__(self) -> None:
        if self.columns is None:
            usual = ObservationColumns.usual(self.observation_size, self.goal_size)
            object.__setattr__(self, "columns", usual)
        if self.action_shape is None:
            object.__setattr__(self, "action_shape", (len(self.action_low),))
        sizes = self.parts.size, self.parts.goal_size
        if sizes != (self.observation_size, self.goal_size):
            raise ConfigError(
                f"The spaces have {self.observation_size} observation and "
                f"{self.goal_size} goal columns, but their parts have {sizes[0]} and "
                f"{sizes[1]}."
            )
        counts = {len(self.action_low), len(self.action_high)}
        if counts != {math.prod(self.action_shape or ())}:
            raise ConfigError(
                f"Actions of shape {self.action_shape} need a bound for each number, "
                f"got {len(self.action_low)} and {len(self.action_high)}."
            )
        pairs = zip(self.action_low, self.action_high, strict=True)
        if any(low > high for low, high in pairs):
            raise ConfigError(
                f"Actions need low <= high, got low={list(self.action_low)} and "
                f"high={list(self.action_high)}."
            )
        last = self.observation_size + self.goal_size
        if self.goal_columns and (
            len(self.goal_columns) != self.goal_size
            or not all(0 <= column < last for column in self.goal_columns)
        ):
            raise ConfigError(
                f"goal_columns must be {self.goal_size} numbers in 0..{last - 1}, got "
                f"{self.goal_columns}."
            )
        try:
            known = np.dtype(self.action_dtype).kind in "fiub"
        except TypeError:
            known = False
        if not known:
            raise ConfigError(
                "action_dtype must be the NumPy name of a numeric type, got "
                f"{self.action_dtype!r}."
            )

    @property
    def parts(self) -> ObservationColumns:
        """Where the columns are in an observation."""
        return self.columns or ObservationColumns.usual(self.observation_size)

    @property
    def planned_size(self) -> int:
        """Columns of the observation that is planned, with an appended goal."""
        appended = self.goal_size if self.appends_goal else 0
        return self.observation_size + appended

    @cached_property
    def appends_goal(self) -> bool:
        """Whether the achieved goal is appended to the observation for planning."""
        return bool(self.goal_columns) and self.goal_columns[0] >= self.observation_size

    @property
    def has_goal(self) -> bool:
        """Whether observations are goal dictionaries."""
        return self.goal_size > 0

    def observation_space(self) -> spaces.Space[Any]:
        """Return the observation space, unbounded, float64."""
        return self.parts.space()

    def action_space(self) -> spaces.Box:
        """Return the action space, in its type.

        No bound lies outside of the environment's, even where the type is coarser.
        """
        dtype: Any = np.dtype(self.action_dtype)
        low = _within(self.action_low, dtype, upwards=True)
        high = _within(self.action_high, dtype, upwards=False)
        shape = self.action_shape
        return spaces.Box(low.reshape(shape), high.reshape(shape), dtype=dtype)

    def fitted(self, env: Any) -> SpaceSpec:
        """Return these spaces, adapted to the observations of an environment.

        Args:
            env: An environment, or several: Gymnasium's or Stable-Baselines3's.

        Returns:
            Itself, or spaces for flat arrays whose order the wrappers of the
            environment show.

        Raises:
            SpaceMismatchError: Both spaces are named, the expected and the given.
        """
        fitted = self._reader(env)
        given = single_space(env, "action")
        if _actions(given) != _actions(self.action_space(), self):
            raise self._mismatch("action", self.action_space(), given)
        return fitted

    def _reader(self, env: Any) -> SpaceSpec:
        """Return the spaces that read the observations of an environment."""
        given, why = single_space(env, "observation"), ""
        try:
            if self._fits(parts_of(given)):
                return self
            order = flat_order(env) if isinstance(given, spaces.Box) else None
            if order is not None and self._fits(order):
                own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
                return FlattenedSpaces(**own, order=order, original=self)
        except DatasetError as error:
            why = f" {error}"
        spec = getattr(env, "spec", None)
        if not why and spec is not None and is_ogbench(spec) and self.has_goal:
            why = (
                " OGBench returns goals in `info`: make the environment with "
                "diffuser_policy.envs.make_env, which puts them into observations."
            )
        if not why and isinstance(given, spaces.Box) and self.parts.observation[0].path:
            why = (
                " A flat observation is read only if Gymnasium's FlattenObservation "
                "makes it from these parts; otherwise it is unknown which columns "
                "are the goal."
            )
            if is_dictionary_inside(env):
                why += " Leave out the wrapper that flattens it."
        raise self._mismatch("observation", self.observation_space(), given, why)

    def _mismatch(
        self, name: str, expected: Any, given: Any, why: str = ""
    ) -> SpaceMismatchError:
        return SpaceMismatchError(
            f"This planner expects the {name} space {expected}, but the environment "
            f"has {given}. Use the environment it was trained for, with the settings "
            f"and wrappers that its data was recorded with, or train a planner on data "
            f"of this one.{why}"
        )

    def _fits(self, given: Sequence[Part]) -> bool:
        """Return whether observations of these parts have all columns, and no others.

        Goals that plans do not depend on may be there or not.
        """
        columns, every = self._readable(given), set(given)
        achieved, desired = columns.goal_keys
        needed = {*columns.observation}
        needed |= {*columns.desired_goal} if self.has_goal else set()
        needed |= {*columns.achieved_goal} if self.appends_goal else set()
        if columns != self.parts and not any(part.below(desired) for part in given):
            return False
        return needed <= every and all(
            part.below(achieved) or (part.below(desired) and not self.has_goal)
            for part in every - needed
        )

    def _readable(self, given: Sequence[Part]) -> ObservationColumns:
        """Return where to look for columns in observations of these parts.

        Planners of a flat box without goals also read it in a goal dictionary.
        """
        plain = ObservationColumns.usual(self.observation_size)
        if self.columns == plain and len(given) > 1:
            path: tuple[str | int, ...] = ("observation",)
            inner = Part(path=path, shape=(self.observation_size,))
            return dataclasses.replace(plain, observation=(inner,))
        return self.parts

    def read(
        self, observation: Any
    ) -> tuple[np.ndarray, np.ndarray | None, tuple[int, ...]]:
        """Return planned observations and goals of one or many rows.

        Args:
            observation: What `env.reset` or `env.step` returned, single or batched.

        Returns:
            Observations `[n, planned]`, goals `[n, goal]` or none, and the batch
            shape: `()` for a single observation, `(n,)` for a batch. Goals of a
            planner that was trained without any are of any size, and none if they are
            no vector for each row, but an image or a number.

        Raises:
            ObservationError: Structure, shape, or values that cannot be planned from.
        """
        columns = self.parts
        if isinstance(observation, tuple) and not columns.is_tuple:
            raise ObservationError(
                "Got a tuple instead of an observation. Gymnasium's reset() returns "
                "(observation, info); pass the observation alone: "
                "observation, info = env.reset()."
            )
        fields = self._fields
        if isinstance(observation, Mapping) and columns.observation[0].path == ():
            fields = self._guided(observation)
        blocks: dict[str, np.ndarray] = {}
        batch: tuple[int, ...] | None = None
        for name, parts in fields.items():
            rows = []
            for part in parts:
                try:
                    values = part.of(observation)
                except LookupError:
                    raise self._lacking(observation, fields) from None
                block, shape = _rows(part, values)
                batch = shape if batch is None else batch
                if shape != batch:
                    raise ObservationError(
                        f"{fields['observation'][0].name} has the batch shape {batch}, "
                        f"but {part.name} {shape}."
                    )
                rows.append(block)
            blocks[name] = joined(rows)
        planned = blocks["observation"]
        if self.appends_goal:
            planned = joined([planned, blocks["achieved_goal"]])
        return planned, blocks.get("desired_goal"), batch or ()

    @cached_property
    def _fields(self) -> dict[str, tuple[Part, ...]]:
        """The parts that are read."""
        fields = {"observation": self.parts.observation}
        if self.has_goal:
            fields["desired_goal"] = self.parts.desired_goal
        if self.appends_goal:
            fields["achieved_goal"] = self.parts.achieved_goal
        return fields

    def _guided(self, observation: Mapping[str, Any]) -> dict[str, tuple[Part, ...]]:
        """Return the parts of a goal dictionary whose goal is for guides alone."""
        size, goal = self.observation_size, observation.get("desired_goal")
        parts: dict[str, tuple[Part, ...]] = {
            "observation": (Part(path=("observation",), shape=(size,)),)
        }
        batch, shape = _shape(observation.get("observation"))[:-1], _shape(goal)
        # Guides take a vector for each row, and no number, image or parts for each.
        others = shape[: len(batch)] == batch and len(shape) != len(batch) + 1
        is_aside = isinstance(goal, tuple | Mapping) or (
            others and not isinstance(goal, list)
        )
        if "desired_goal" not in observation:  # the error names it
            parts["desired_goal"] = (Part(path=("desired_goal",), shape=(0,)),)
        elif not is_aside:
            parts["desired_goal"] = (Part(path=("desired_goal",), shape=shape[-1:]),)
        return parts

    def _lacking(
        self, observation: Any, fields: Mapping[str, Sequence[Part]]
    ) -> ObservationError:
        """Return the error for an observation without all parts."""
        missing, in_tuples = [], False
        for part in (part for parts in fields.values() for part in parts):
            try:
                part.of(observation)
            except LookupError:
                missing.append(part.name)
                in_tuples |= any(isinstance(step, int) for step in part.path)
        taken = [part.name for parts in self.parts.fields.values() for part in parts]
        takes = f"goal dictionaries with {taken}"
        if not self.has_goal:
            takes = f"observations with {taken}"
            if self.parts.observation[0].path == ():
                takes = (
                    f"flat observations [{self.observation_size}], or goal "
                    f"dictionaries with {list(GOAL_PARTS)}"
                )
        if isinstance(observation, Mapping):
            has = f"it has {sorted(map(str, observation))}"
        else:
            has = f"got {type(observation).__name__} of shape {_shape(observation)}"
        advice = ""
        if in_tuples and isinstance(observation, Mapping | tuple | list):
            advice = (
                " Where the space is a Tuple, pass the tuple that env.reset returned, "
                "and no list."
            )
        elif not isinstance(observation, Mapping | tuple):
            advice = (
                " A flat array does not say what its columns are: leave out the "
                "wrapper that flattens observations, or use policy.for_env(env). "
                "Make OGBench's environments with diffuser_policy.envs.make_env."
            )
        return ObservationError(
            f"The observation lacks {missing}; {has}. This planner takes {takes}."
            f"{advice}"
        )


@dataclass(frozen=True, kw_only=True)
class FlattenedSpaces(SpaceSpec):
    """The spaces of an environment that flattens its observations.

    Attributes:
        order: Parts of a flat observation.
        original: The planner's own spaces.
    """

    order: tuple[Part, ...]
    original: SpaceSpec

    def observation_space(self) -> spaces.Box:
        """Return the observation space, unbounded, float64."""
        size = sum(part.size for part in self.order)
        return spaces.Box(-np.inf, np.inf, (size,), np.float64)

    def fitted(self, env: Any) -> SpaceSpec:
        """Return the spaces that read the observations of another environment."""
        return self.original.fitted(env)

    def read(
        self, observation: Any
    ) -> tuple[np.ndarray, np.ndarray | None, tuple[int, ...]]:
        """Return planned observations and goals, as `SpaceSpec.read` does.

        Flat arrays and observations of the planner's own structure are read.
        """
        return self.original.read(self.in_parts(observation))

    def in_parts(self, observation: Any) -> Any:
        """Return an observation as it was before a wrapper flattened it.

        Args:
            observation: Single or batched; if it is no flat array, it stays as it is.

        Raises:
            ObservationError: A flat array of another shape, or that holds no numbers.
        """
        if isinstance(observation, Mapping | tuple):
            return observation
        _, batch = _rows(Part(shape=self.observation_space().shape), observation)
        ends = np.cumsum([part.size for part in self.order])
        blocks = np.split(np.asarray(observation), ends[:-1], axis=-1)
        pairs = zip(self.order, blocks, strict=True)
        return assembled({p.path: b.reshape((*batch, *p.shape)) for p, b in pairs})


def into_box(box: spaces.Box, values: np.ndarray) -> np.ndarray:
    """Return actions inside of their space, and in its type.

    Args:
        box: Space of a single action.
        values: `[n, action]` the numbers of each action, in any type.

    Returns:
        `[n, *box.shape]`, clipped to the bounds; whole numbers are rounded to the
        nearest first.
    """
    low, high = box.low.reshape(-1), box.high.reshape(-1)
    if box.dtype.kind == "f":
        inside = np.minimum(np.maximum(values, low), high)  # quicker than np.clip
    else:  # beyond `WHOLE`, a bound may have no equal among float64
        bounds = (
            np.clip(bound.astype(np.float64), -WHOLE, WHOLE) for bound in (low, high)
        )
        inside = np.clip(np.rint(values.astype(np.float64)), *bounds)
    actions: np.ndarray = inside.astype(box.dtype)
    return actions.reshape(len(values), *box.shape)


def outside(rows: np.ndarray, space: spaces.Box) -> np.ndarray:
    """Return which rows `[n]` lie outside of a space, by more than rounding explains.

    That is a thousandth of the range or, where one bound is infinite or both are the
    same, a few float32 steps.

    Args:
        rows: `[n, *space.shape]`.
        space: Space of a single row.
    """
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        spread = high - low
        is_wide = np.isfinite(spread) & (spread > 0)
        share = np.where(is_wide, 1e-3 * spread, ROUNDING)
        below, above = (
            np.maximum(share, ROUNDING * np.abs(bound)) for bound in (low, high)
        )
        beyond = (rows < low - below) | (rows > high + above)
    return np.asarray(beyond.reshape(len(rows), -1).any(axis=1))


def _within(bounds: Sequence[float], dtype: Any, *, upwards: bool) -> np.ndarray:
    """Return bounds in a type, each moved inwards where it is rounded outwards."""
    exact = np.asarray(bounds, np.float64)
    if not np.issubdtype(dtype, np.floating):
        whole = [math.ceil(b) if upwards else math.floor(b) for b in exact.tolist()]
        return whole_numbers(whole, dtype)
    cast = exact.astype(dtype)
    outside = cast < exact if upwards else cast > exact
    inner = np.nextafter(cast, np.asarray(np.inf if upwards else -np.inf, dtype))
    return np.where(outside, inner, cast)


def find_goal_columns(observation: np.ndarray, achieved: np.ndarray) -> tuple[int, ...]:
    """Return where the achieved goal lies in the planned observation.

    Args:
        observation: `[num_rows, size]`, all of it or some rows.
        achieved: `[num_rows, goal]`, the same rows.

    Returns:
        Columns of the observation that repeat the goal, up to 1e-5 or, in small units,
        a thousandth of the goal's range; the closest ones if several do. Or the columns
        it takes when appended behind the observation.
    """
    columns: list[int] = []
    for goal in achieved.T.astype(np.float64):
        gaps = np.abs(observation - goal[:, None]).max(axis=0)
        range_ = float(np.ptp(goal))
        rounding = ROUNDING * float(np.abs(goal).max())
        tolerance = min(1e-5, max(1e-3 * range_, rounding)) if range_ else 1e-5
        equal = np.flatnonzero(gaps < tolerance)
        free = [int(column) for column in equal if column not in columns]
        if not free:
            size = observation.shape[1]
            return tuple(range(size, size + achieved.shape[1]))
        columns.append(min(free, key=gaps.__getitem__))
    return tuple(columns)


def _shape(values: Any) -> tuple[int, ...]:
    """Return the shape of an array; of what is none, that of a number."""
    try:
        return np.shape(values)
    except ValueError:  # nested lists of different lengths
        return ()


def _actions(space: Any, spec: SpaceSpec | None = None) -> Any:
    """Return what has to agree between action spaces, to single precision."""
    if not isinstance(space, spaces.Box):
        return space
    bounds = (space.low, space.high)
    if spec is not None:  # before they were moved inwards
        bounds = (np.asarray(spec.action_low), np.asarray(spec.action_high))
    kind = "float" if np.issubdtype(space.dtype, np.floating) else "whole"
    rounded = [bound.astype(np.float32).reshape(-1).tolist() for bound in bounds]
    return kind, space.shape, rounded


def _rows(part: Part, values: Any) -> tuple[np.ndarray, tuple[int, ...]]:
    """Return `[n, size]` float32 rows of a single or batched array: a checked copy.

    PyTorch takes no array that is read-only or runs backwards.
    """
    shape = part.shape
    try:
        given = np.asarray(values)
        if given.dtype.kind not in "biuf":
            raise TypeError(f"{given.dtype} is not a real number")
        array = np.array(given, np.float32, order="C")
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise ObservationError(
            f"{part.name} is not numeric ({error}): {shown(values)}."
        ) from error
    axes = array.ndim - len(shape)
    batch = array.shape[: max(axes, 0)]
    if axes not in (0, 1) or array.shape[axes:] != shape or 0 in batch:
        many = ", ".join(map(str, ("num_envs", *shape)))
        raise ObservationError(
            f"{part.name} must have shape {shape}, or ({many}) for a batch; "
            f"got {array.shape}."
        )
    if not is_finite(array):
        raise ObservationError(f"{part.name} holds NaN or infinite values: {array}.")
    return array.reshape(batch[0] if batch else 1, part.size), batch


def action_box(space: Any) -> spaces.Box:
    """Return a space of actions that is a bounded box.

    Raises:
        ConfigError: It is of another kind, or a bound is infinite.
    """
    if isinstance(space, spaces.Box) and space.is_bounded():
        return space
    raise ConfigError(
        f"Actions have to lie in a Box with finite bounds, and the action space is "
        f"{space}. Wrap the environment so that it is one, or choose another method."
    )


def action_bounds(low: Any, high: Any, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the bounds of actions that data name, float64 `[size]` each.

    Args:
        low: A number for each number of an action, in any shape; None, in JSON, is
            infinite.
        high: The same.
        size: Numbers of an action.

    Raises:
        DatasetError: They are no numbers, or not one for each number of an action; one
            is infinite, or low is above high.
    """
    named = f"got action_low={shown(low)} and action_high={shown(high)}"
    try:
        given = [np.asarray(end) for end in (low, high)]
        if any(end.dtype.kind not in "biufO" for end in given):
            raise TypeError("text, times and complex numbers are none")
        ends = [end.astype(np.float64).reshape(-1) for end in given]
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise DatasetError(
            f"The bounds of actions must be numbers, {named} ({error}). Correct them "
            f"in the metadata."
        ) from error
    if any(end.size != size for end in ends):
        raise DatasetError(
            f"The bounds of actions need {size} numbers each, as many as an action "
            f"has, {named}. Correct them in the metadata."
        )
    first, last = ends
    if not np.isfinite(ends).all():
        raise DatasetError(
            f"Planning needs a bounded Box of actions, and a bound is infinite: "
            f"{named}. Wrap the environment so that its actions have finite bounds "
            f"(gymnasium.wrappers.TransformAction), and record the data again; or make "
            f"a FlatDataset, whose metadata may set 'action_low' and 'action_high'."
        )
    if (first > last).any():
        raise DatasetError(
            f"The bounds of actions need low <= high, {named}. Correct them in the "
            f"metadata."
        )
    return first, last


def fitted(policy: Any, env: Any) -> Any:
    """Return the policy, adapted to an environment.

    Args:
        policy: Anything with `predict`.
        env: The environment.

    Raises:
        SpaceMismatchError: It is one for other spaces.
    """
    if callable(getattr(policy, "for_env", None)):
        return policy.for_env(env)
    return policy
