"""Labels of states: functions of named columns, found by name.

A function of labels says for every row which of its labels hold:

    def above(columns):
        return {"above_table": columns["height"][:, 0] > 0}

It gets a mapping from the names of planning columns to arrays `[rows, columns]` in
environment units, and returns one boolean array `[rows]` per label. It is called
several times, each with some of the rows. It needs nothing of this package.

A distribution offers such functions in the entry-point group
`diffuser_policy.labels`; `module:function` and `file.py:function` work too
(`diffuser_policy.plugins`). `diffuser-policy train-classifier` trains a planner's
classifier to predict them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from diffuser_policy.columns.layout import Rows, TrajectoryLayout, rows_at_once
from diffuser_policy.errors import (
    ConfigError,
    DatasetError,
    DiffuserPolicyError,
    MissingColumnsError,
)
from diffuser_policy.plugins import Kind

CHUNK = 65_536  # rows that are labelled at once, at most: they bound the memory
Labels = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]


class NamedColumns(dict[str, np.ndarray]):
    """Rows of trajectories `[rows, columns]` by the names of their columns."""

    def __init__(self, rows: np.ndarray, layout: TrajectoryLayout) -> None:
        super().__init__({n: rows[:, list(layout.columns(n))] for n in layout.names})

    def __missing__(self, name: str) -> np.ndarray:
        raise MissingColumnsError(name, self)


def _check_labels(target: Any) -> None:
    if not callable(target):
        raise ConfigError(
            f"Labels are a function of named columns that returns one boolean array "
            f"for each label; got {target!r}."
        )


LABELS = Kind(
    name="labels",
    group="diffuser_policy.labels",
    example="kuka-pairs",
    check=_check_labels,
)


def labelled(
    name: str, rows: Rows, layout: TrajectoryLayout
) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the names of labels, and which of them hold in each row.

    Args:
        name: Registered name, `module:function`, or `file.py:function`.
        rows: `[rows, transition]`, environment units; read some at a time.
        layout: Names of the columns.

    Returns:
        Names, and bool `[rows, labels]`.

    Raises:
        UnknownNameError: Neither registered nor importable.
        ConfigError: The labels are offered twice, fail, or are no function.
        MissingColumnsError: The planner lacks columns that they depend on.
        DatasetError: Labels of another shape, or none.
    """
    function: Labels = LABELS.find(name).target
    names: tuple[str, ...] = ()
    found = []
    count = rows_at_once(4 * rows.shape[1], CHUNK)
    for begin in range(0, rows.shape[0], count):
        some, columns = _labelled(name, function, rows[begin : begin + count], layout)
        if names and some != names:
            raise DatasetError(
                f"The labels {name!r} are {', '.join(names)} for some rows and "
                f"{', '.join(some)} for others. Return the same ones for all rows."
            )
        names = some
        found.append(columns)
    return names, np.concatenate(found)


def _labelled(
    name: str,
    function: Labels,
    rows: np.ndarray,
    layout: TrajectoryLayout,
) -> tuple[tuple[str, ...], np.ndarray]:
    """Return what the labels of some rows are, as `labelled` does.

    Args:
        name: For messages.
        function: The labels.
        rows: `[rows, transition]`.
        layout: Names of the columns.
    """
    try:
        found = function(NamedColumns(rows, layout))
        pairs = found.items() if isinstance(found, Mapping) else ()
        arrays = {key: np.asarray(value) for key, value in pairs}
    except DiffuserPolicyError:
        raise
    except Exception as error:  # whatever other people's code raises
        raise ConfigError(
            f"The labels {name!r} failed: {type(error).__name__}: {error}. They are "
            f"called with columns by name: {', '.join(layout.names)}."
        ) from error
    shapes = {key: array.shape for key, array in arrays.items()}
    if not shapes or set(shapes.values()) != {(len(rows),)}:
        raise DatasetError(
            f"The labels {name!r} must be one array of shape ({len(rows)},) for each "
            f"name; got {shapes or 'none'}. Were they written for other columns than "
            f"{', '.join(layout.aliases) or 'observation'}?"
        )
    for key, array in arrays.items():
        real = array.dtype.kind in "biuf"
        if not real or not np.isin(array, (0, 1)).all():
            values = np.unique(array) if real else array  # objects may have no order
            raise DatasetError(
                f"The labels {name!r} must be true or false in each row; "
                f"{key!r} holds {values[:3].tolist()}."
            )
    columns = [array.astype(np.bool_) for array in arrays.values()]
    return tuple(arrays), np.stack(columns, axis=1)
