"""Labels of states: functions of named columns, found by name.

A function of labels tells of every row which of its labels hold:

    def above(columns):
        return {"above_table": columns["height"][:, 0] > 0}

It gets a mapping from the names of planning columns to arrays `[rows, columns]` in
environment units, and returns one boolean array `[rows]` by name. A distribution offers
such functions in the entry-point group `diffuser_policy.columns.labels`, names to
`module:attribute`; they need nothing of this package. `diffuser-policy
train-classifier` teaches them to a planner's classifier.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import entry_points

import numpy as np

from diffuser_policy.columns.layout import TrajectoryLayout
from diffuser_policy.errors import DatasetError, MissingColumnsError, UnknownNameError

GROUP = "diffuser_policy.labels"
Labels = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]


class NamedColumns(Mapping[str, np.ndarray]):
    """Rows of trajectories by the names of their columns."""

    def __init__(self, rows: np.ndarray, layout: TrajectoryLayout) -> None:
        """Store the rows.

        Args:
            rows: `[rows, transition]`, environment units.
            layout: Names of the columns.
        """
        self._rows, self._layout = rows, layout
        actions = ["action"] if layout.action_dim else []
        self._names = [*actions, "observation", *layout.aliases]

    def __getitem__(self, name: str) -> np.ndarray:
        """Return columns `[rows, columns]`.

        Raises:
            MissingColumnsError: There are none of that name.
        """
        if name not in self._names:
            raise MissingColumnsError(name, self._names)
        return self._rows[:, list(self._layout.columns(name))]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self._names)

    def __contains__(self, name: object) -> bool:
        """Return whether there are columns of that name."""
        return name in self._names

    def __len__(self) -> int:
        """Return how many names there are."""
        return len(self._names)


def find_labels(name: str) -> Labels:
    """Return a function of labels.

    Args:
        name: Registered name, or `module:attribute`.

    Raises:
        UnknownNameError: Neither registered nor importable.
    """
    registered = {point.name: point for point in entry_points(group=GROUP)}
    if name in registered:
        found: Labels = registered[name].load()
        return found
    module, _, attribute = name.partition(":")
    try:
        if not attribute:
            raise AttributeError(name)
        found = getattr(importlib.import_module(module), attribute)
    except (ModuleNotFoundError, AttributeError) as error:
        raise UnknownNameError("labels", name, registered) from error
    return found


def labelled(
    name: str, rows: np.ndarray, layout: TrajectoryLayout
) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the names of labels, and which of them hold in which row.

    Args:
        name: As for `find_labels`.
        rows: `[rows, transition]`, environment units.
        layout: Names of the columns.

    Returns:
        Names, and bool `[rows, labels]`.

    Raises:
        UnknownNameError: No such labels.
        MissingColumnsError: The planner lacks columns that they are of.
        DatasetError: Labels of another shape, or none.
    """
    found = find_labels(name)(NamedColumns(rows, layout))
    shapes = {key: np.shape(value) for key, value in found.items()}
    if not shapes or set(shapes.values()) != {(len(rows),)}:
        raise DatasetError(
            f"The labels {name!r} must be one array of shape ({len(rows)},) for each "
            f"name; got {shapes or 'none'}. Are they made for other columns than "
            f"{', '.join(layout.aliases) or 'observation'}?"
        )
    columns = [np.asarray(value, dtype=np.bool_) for value in found.values()]
    return tuple(found), np.stack(columns, axis=1)
