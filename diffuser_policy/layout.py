"""Columns of a trajectory: actions first, then observation fields.

A trajectory is an array `[batch, horizon, transition]`. Each row (a *transition*)
holds one planning step. `TrajectoryLayout` names its columns, so that no other
module slices a trajectory by number:

    | action (A columns) | observation (O columns) | further fields … |

A layout without actions (`action_dim = 0`) describes states-only trajectories.
*Aliases* name subsets of the observation, for example `position`; the alias `goal`
marks the columns that a goal of the environment pins down.
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
    """

    action_dim: int
    observation_dim: int
    aliases: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check sizes and aliases; freeze the aliases as tuples."""
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

    @property
    def transition_dim(self) -> int:
        """Number of columns of a trajectory."""
        return self.action_dim + self.observation_dim

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
        return {
            "action_dim": self.action_dim,
            "observation_dim": self.observation_dim,
            "aliases": {name: list(columns) for name, columns in self.aliases.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TrajectoryLayout:
        """Rebuild a layout from `to_json`."""
        aliases: Mapping[str, Sequence[int]] = data["aliases"]
        return cls(
            action_dim=int(data["action_dim"]),
            observation_dim=int(data["observation_dim"]),
            aliases={name: tuple(columns) for name, columns in aliases.items()},
        )
