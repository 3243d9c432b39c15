"""Bulk reading of Minari's HDF5 files.

The cost of such a file is per array, not per byte: an episode is a dozen of them. So
arrays are opened and read through HDF5's own interface, which converts to float32 on
the way, instead of h5py's convenient one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from diffuser_policy.data.episodes import Episode
from diffuser_policy.errors import DatasetError, require_extra

Handle = Any  # h5py's GroupID; h5py has no types and is imported only when needed


def hdf5_episodes(path: Path, num_episodes: int) -> Iterator[Episode]:
    """Yield the episodes of a Minari file in order, without their infos.

    Args:
        path: `main_data.hdf5`.
        num_episodes: Episodes 0 … num_episodes - 1 must be there.

    Raises:
        DatasetError: The file is damaged, an episode or one of its arrays is missing,
            or an array holds something else than numbers.
        MissingExtraError: h5py is not installed.
    """
    h5py = require_extra("h5py", "data")
    number = -1
    try:
        with h5py.File(path, "r") as file:
            for number in range(num_episodes):
                group = h5py.h5g.open(file.id, f"episode_{number}".encode())
                yield _read_episode(h5py, group)
    except (OSError, KeyError, RuntimeError, TypeError, ValueError) as error:
        where = f", episode {number}," if number >= 0 else ""
        raise DatasetError(f"{path}{where} cannot be read: {error}.") from error


def _read_episode(h5py: ModuleType, group: Handle) -> Episode:
    """Read what training needs of one episode."""
    observations = h5py.h5o.open(group, b"observations")
    if isinstance(observations, h5py.h5g.GroupID):
        fields = {
            name.decode(): _read(h5py, observations, name, np.float32)
            for name in observations
        }
    else:
        fields = {"observation": _read(h5py, group, b"observations", np.float32)}
    return Episode(
        observations=fields,
        actions=_read(h5py, group, b"actions", np.float32),
        rewards=_read(h5py, group, b"rewards", np.float32),
        terminations=_read(h5py, group, b"terminations", np.bool_),
        truncations=_read(h5py, group, b"truncations", np.bool_),
    )


def _read(
    h5py: ModuleType, group: Handle, name: bytes, dtype: type[np.generic]
) -> np.ndarray:
    """Read one whole array, converted."""
    dataset = h5py.h5d.open(group, name)
    array = np.empty(dataset.shape, dtype)
    if array.size:
        dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, array)
    return array
