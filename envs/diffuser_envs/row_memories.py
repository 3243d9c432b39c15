"""What demonstrators remember between calls of `predict`: a memory for each row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

State: TypeAlias = tuple[npt.NDArray[np.object_], ...]


def row_starts(
    state: tuple[npt.NDArray[Any], ...] | None,
    episode_start: npt.ArrayLike | None,
    num_rows: int,
    *,
    kind: str,
    error: type[Exception],
) -> npt.NDArray[np.bool_]:
    """Return which rows begin anew, shape `[num_rows]`: all without a state.

    Args:
        state: What the last call returned, if there was one.
        episode_start: Which rows start an episode, shape `[num_rows]`.
        num_rows: Rows of the observation.
        kind: NumPy's letter of the type of a state's array.
        error: Raised if the state is of another kind, or if it or `episode_start` is
            for another number of environments.
    """
    if state is not None and not _is_state(state, kind):
        raise error(
            f"the state must be what predict returned last, got {state!r:.100}; pass"
            f" state=None to start over"
        )
    if state is not None and len(state[0]) != num_rows:
        number = len(state[0])
        raise error(
            f"the state is for {number} environment{'s' * (number != 1)}, the"
            f" observation for {num_rows}; pass state=None to start over"
        )
    starts = np.full(num_rows, state is None)
    if episode_start is not None:
        given = np.asarray(episode_start, dtype=np.bool_)
        if given.shape not in ((), starts.shape):
            raise error(
                f"episode_start has the shape {given.shape}, the observation is for"
                f" {num_rows} environments; give one flag for each"
            )
        starts |= given
    return starts


def _is_state(state: Any, kind: str) -> bool:
    """Return whether it looks like a state: a tuple with an array of rows."""
    if not isinstance(state, tuple) or len(state) != 1:
        return False
    rows = state[0]
    return isinstance(rows, np.ndarray) and rows.ndim == 1 and rows.dtype.kind == kind


def row_memories(
    state: State | None,
    episode_start: npt.ArrayLike | None,
    num_rows: int,
    *,
    new: Callable[[], Any],
    error: type[Exception],
) -> npt.NDArray[np.object_]:
    """Copy each row's memory; a row without one, or at a start, gets a new one.

    Args:
        state: What the last call returned, if there was one.
        episode_start: Which rows start an episode, shape `[num_rows]`.
        num_rows: Rows of the observation.
        new: Makes a memory, a dataclass.
        error: Raised if the state is none of these memories, or if it or
            `episode_start` is for another number of environments.
    """
    starts = row_starts(state, episode_start, num_rows, kind="O", error=error)
    memories = np.empty(num_rows, dtype=np.object_)
    for row in range(num_rows):
        memories[row] = fresh = new()
        if state is None or starts[row]:
            continue
        known = state[0][row]
        if type(known) is not type(fresh):
            raise error(
                f"the state must be what predict returned last, but it remembers"
                f" {known!r:.100}; pass state=None to start over"
            )
        memories[row] = replace(known)
    return memories
