"""Columns of a trajectory: actions first, then observation fields.

A trajectory is an array `[batch, horizon, transition]`. Each row (a *transition*)
holds one planning step. `TrajectoryLayout` names its columns, so that no other
module slices a trajectory by number:

    | action (A columns) | observation (O columns) | further fields … |

A layout without actions (`action_dim = 0`) describes states-only trajectories.
*Aliases* name subsets of the observation, for example `position`; the alias `goal`
marks the columns that a goal of the environment pins down. *Objects* are groups of
observation columns that mean the same of interchangeable things, such as blocks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from diffuser_policy.errors import ConfigError, UnknownNameError
from diffuser_policy.settings import converted, typed

MOST_COLUMNS = 1_000_000
PIECE = 2**24  # bytes that are read at a time


class Rows(Protocol):
    """An array `[num_rows, columns]`, or what reads some rows of it from a file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """`[num_rows, columns]`."""

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        """Return successive rows."""


def rows_at_once(size: int, most: int) -> int:
    """Return how many rows are read at a time: `PIECE` bytes, and at least one row.

    Args:
        size: Bytes of a row.
        most: No more rows than these, however narrow.
    """
    return min(most, max(1, PIECE // max(1, size)))


@dataclass(frozen=True, kw_only=True)
class TrajectoryLayout:
    """Names of the columns of a trajectory.

    Attributes:
        action_dim: Number of action columns; zero for states-only trajectories.
        observation_dim: Number of observation columns.
        aliases: Name → indices into the *observation* (not into the trajectory).
        objects: Groups of indices into the observation, one per interchangeable
            thing: equally long, without overlap, column k of each meaning the same.
    """

    action_dim: int
    observation_dim: int
    aliases: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    objects: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        typed(self)
        if self.action_dim < 0 or self.observation_dim < 1:
            raise ConfigError(
                f"A layout needs action_dim >= 0 and observation_dim >= 1, "
                f"got {self.action_dim} and {self.observation_dim}."
            )
        if self.transition_dim > MOST_COLUMNS:
            raise ConfigError(
                f"A layout has at most {MOST_COLUMNS:,} columns, got "
                f"{self.transition_dim:,}."
            )
        for name, columns in self.aliases.items():
            if name in {"action", "observation"}:
                raise ConfigError(f"{name!r} is a field and cannot be an alias too.")
            if not columns or not all(0 <= c < self.observation_dim for c in columns):
                raise ConfigError(
                    f"Alias {name!r} names columns {columns}, expected indices in "
                    f"0..{self.observation_dim - 1} of the observation."
                )
        self._check_objects()

    def _check_objects(self) -> None:
        """Refuse objects that could not be exchanged for each other."""
        every = [column for columns in self.objects for column in columns]
        if len({len(columns) for columns in self.objects}) > 1 or () in self.objects:
            raise ConfigError(
                "Objects are interchangeable, so all must have the same number of "
                f"columns; got {self.objects}."
            )
        if not all(0 <= column < self.observation_dim for column in every):
            raise ConfigError(
                f"Objects name columns {self.objects}, expected indices in "
                f"0..{self.observation_dim - 1} of the observation."
            )
        if len(set(every)) < len(every):
            raise ConfigError(
                f"A column belongs to one object at most, got {self.objects}."
            )

    @property
    def transition_dim(self) -> int:
        """Number of columns of a trajectory."""
        return self.action_dim + self.observation_dim

    @property
    def ties(self) -> tuple[tuple[int, ...], ...]:
        """Groups of trajectory columns that are measured in the same way.

        Column k of every object, and with it column k of the alias "position".
        """
        if not self.objects:
            return ()
        groups = [
            tuple(self.action_dim + column for column in columns)
            for columns in zip(*self.objects, strict=True)
        ]
        position = self.columns("position") if "position" in self.aliases else ()
        for k, column in enumerate(position[: len(groups)]):
            groups[k] = (column, *groups[k])
        return tuple(groups)

    @property
    def names(self) -> list[str]:
        """Names of fields and aliases."""
        actions = ["action"] if self.action_dim else []
        return [*actions, "observation", *self.aliases]

    @property
    def actions(self) -> slice:
        """The action columns."""
        return slice(0, self.action_dim)

    @property
    def observations(self) -> slice:
        """The observation columns."""
        return slice(self.action_dim, self.transition_dim)

    @property
    def goal_conditioned(self) -> bool:
        """Whether a goal of the environment maps to columns of the observation."""
        return "goal" in self.aliases

    def columns(self, name: str) -> tuple[int, ...]:
        """Return the trajectory columns of a field or alias.

        Args:
            name: "action", "observation", or one of the aliases.

        Raises:
            UnknownNameError: No field or alias of that name.
        """
        if name not in self._columns:
            raise UnknownNameError("trajectory column", name, self.names)
        return self._columns[name]

    @cached_property
    def _columns(self) -> dict[str, tuple[int, ...]]:
        first, every = self.action_dim, range(self.transition_dim)
        fields = {"action": every[:first], "observation": every[first:]}
        named = {key: [first + c for c in value] for key, value in self.aliases.items()}
        return {key: tuple(value) for key, value in {**fields, **named}.items()}

    def observation_columns(self, name: str) -> tuple[int, ...]:
        """Return the indices *into the observation* of an alias, or of all.

        Args:
            name: "observation" or one of the aliases.

        Raises:
            UnknownNameError: No field or alias of that name.
        """
        if name == "observation":
            return tuple(range(self.observation_dim))
        if name not in self.aliases:
            raise UnknownNameError("trajectory column", name, self.names)
        return self.aliases[name]

    def to_json(self) -> dict[str, Any]:
        """Return JSON data; `settings.from_json` reads it."""
        data = dataclasses.asdict(self)
        if not self.objects:
            del data["objects"]
        return data


def named_columns(metadata: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the names that a dataset's metadata give to columns of observations.

    Raises:
        ConfigError: They are not lists of column numbers.
    """
    names = converted(
        metadata.get("observation_columns", {}),
        dict[str, tuple[int, ...]],
        "metadata['observation_columns']",
    )
    return dict(names)
