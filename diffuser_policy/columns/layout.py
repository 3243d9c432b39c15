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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from diffuser_policy.errors import ConfigError, UnknownNameError


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
        """Check sizes, aliases and objects; freeze them as tuples."""
        if self.action_dim < 0 or self.observation_dim < 1:
            raise ConfigError(
                f"A layout needs action_dim >= 0 and observation_dim >= 1, "
                f"got {self.action_dim} and {self.observation_dim}."
            )
        frozen = {name: tuple(columns) for name, columns in self.aliases.items()}
        for name, columns in frozen.items():
            if name in {"action", "observation"}:
                raise ConfigError(f"{name!r} is a field and cannot be an alias too.")
            if not columns or not all(0 <= c < self.observation_dim for c in columns):
                raise ConfigError(
                    f"Alias {name!r} names columns {columns}, expected indices in "
                    f"0..{self.observation_dim - 1} of the observation."
                )
        object.__setattr__(self, "aliases", frozen)
        objects = tuple(tuple(columns) for columns in self.objects)
        object.__setattr__(self, "objects", objects)
        self._check_objects()

    def _check_objects(self) -> None:
        """Refuse objects that could not be exchanged for each other."""
        every = [column for columns in self.objects for column in columns]
        if len({len(columns) for columns in self.objects}) > 1 or () in self.objects:
            raise ConfigError(
                f"Objects are interchangeable, so they have equally many columns; got "
                f"{self.objects}."
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
        if name == "action":
            return tuple(range(self.action_dim))
        if name == "observation":
            return tuple(range(self.action_dim, self.transition_dim))
        return tuple(self.action_dim + c for c in self.observation_columns(name))

    def observation_columns(self, name: str) -> tuple[int, ...]:
        """Return the indices *into the observation* of an alias.

        Args:
            name: "observation" or one of the aliases.

        Raises:
            UnknownNameError: No alias of that name.
        """
        if name == "observation":
            return tuple(range(self.observation_dim))
        if name not in self.aliases:
            known = ["action", "observation", *self.aliases]
            raise UnknownNameError("trajectory column", name, known)
        return self.aliases[name]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-serialisable description."""
        data: dict[str, Any] = {
            "action_dim": self.action_dim,
            "observation_dim": self.observation_dim,
            "aliases": {name: list(columns) for name, columns in self.aliases.items()},
        }
        if self.objects:
            data["objects"] = [list(columns) for columns in self.objects]
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TrajectoryLayout:
        """Rebuild a layout from `to_json`."""
        aliases: Mapping[str, Sequence[int]] = data["aliases"]
        return cls(
            action_dim=int(data["action_dim"]),
            observation_dim=int(data["observation_dim"]),
            aliases={name: tuple(columns) for name, columns in aliases.items()},
            objects=tuple(tuple(columns) for columns in data.get("objects", ())),
        )
