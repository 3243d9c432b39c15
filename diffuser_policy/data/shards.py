"""Unfinished collections on disk: finished shards, and the settings they share.

    <root>/diffuser/.multi2d-large-v1.collecting/
        settings.json       the settings and versions of all shards
        shard-00000.npz …   some episodes each (or one long run), written at once

Only a call with the same settings and versions resumes the work; otherwise the episodes
of one dataset would come from different generators.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffuser_policy.data.flat import Episode
from diffuser_policy.errors import ConfigError, DatasetError
from diffuser_policy.files import replaced_file
from diffuser_policy.settings import differences

OBSERVATION_PREFIX = "observations."
STEP_ARRAYS = ("actions", "rewards", "terminations", "truncations")
NO_SEED = -1


@dataclass(frozen=True)
class Shard:
    """Episodes that one job recorded.

    Attributes:
        episodes: At least one.
        failures: Number of failed attempts, which are left out.
    """

    episodes: Sequence[Episode]
    failures: int = 0


@dataclass(frozen=True)
class ShardFolder:
    """The finished shards of one unfinished dataset.

    Attributes:
        path: The hidden folder.
        identity: Everything that determines the episodes, JSON-able.
    """

    path: Path
    identity: Mapping[str, Any]

    @classmethod
    def beside(cls, dataset_folder: Path, identity: Mapping[str, Any]) -> ShardFolder:
        """Return the folder that belongs to a dataset's folder."""
        name = f".{dataset_folder.name}.collecting"
        return cls(dataset_folder.with_name(name), json.loads(json.dumps(identity)))

    def open(self, *, discard: bool) -> None:
        """Create the folder, or check that the work in it has the same settings.

        Args:
            discard: Delete work with other settings instead of raising.

        Raises:
            ConfigError: The folder holds unfinished work with other settings.
            StorageError: The folder cannot be written.
        """
        settings = self.path / "settings.json"
        if settings.is_file():
            found = json.loads(settings.read_text())
            if found == self.identity:
                return
            if not discard:
                different = "; ".join(differences(found, self.identity))
                raise ConfigError(
                    f"{self.path} holds unfinished work with other settings: "
                    f"{different}. Finish it with its own settings, choose another "
                    f"dataset id, or discard it (--overwrite)."
                )
        if self.path.exists():
            shutil.rmtree(self.path)
        with replaced_file(settings) as partial:
            partial.write_text(json.dumps(self.identity, indent=1))

    def has(self, index: int) -> bool:
        """Return whether a shard is finished."""
        return self._file(index).is_file()

    def save(self, index: int, shard: Shard) -> None:
        """Write a finished shard.

        Raises:
            StorageError: The file could not be written; nothing is left behind.
        """
        episodes = shard.episodes
        arrays = {
            f"{OBSERVATION_PREFIX}{name}": np.concatenate(
                [episode.observations[name] for episode in episodes]
            )
            for name in episodes[0].observations
        }
        for name in STEP_ARRAYS:
            arrays[name] = np.concatenate([getattr(each, name) for each in episodes])
        arrays["lengths"] = np.array([len(episode) for episode in episodes])
        seeds = [NO_SEED if each.seed is None else each.seed for each in episodes]
        arrays["seeds"] = np.array(seeds)
        arrays["failures"] = np.asarray(shard.failures)
        with replaced_file(self._file(index)) as partial, partial.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)

    def load(self, index: int) -> Shard:
        """Read a finished shard.

        Raises:
            DatasetError: The file is damaged.
        """
        with self._opened(index) as stored:
            arrays = dict(stored)
            return Shard(_split(arrays), int(arrays["failures"]))

    def facts(self, index: int) -> tuple[list[int], int]:
        """Return the seeds of a finished shard's episodes, and its failures.

        Raises:
            DatasetError: The file is damaged.
        """
        with self._opened(index) as stored:
            return stored["seeds"].tolist(), int(stored["failures"])

    def remove(self) -> None:
        """Delete everything."""
        shutil.rmtree(self.path, ignore_errors=True)

    @contextmanager
    def _opened(self, index: int) -> Iterator[Mapping[str, np.ndarray]]:
        """Open a finished shard; an error within the block means that it is damaged."""
        path = self._file(index)
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                yield stored
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DatasetError(
                f"{path} is damaged: {error}. Delete it and collect again; the other "
                "shards are kept."
            ) from error

    def _file(self, index: int) -> Path:
        return self.path / f"shard-{index:05d}.npz"


def _split(arrays: Mapping[str, np.ndarray]) -> list[Episode]:
    """Cut a shard's arrays into episodes of L steps and L + 1 observations."""
    lengths = arrays["lengths"]
    steps = np.cumsum(lengths)[:-1]
    rows = np.cumsum(lengths + 1)[:-1]
    observations = {
        name.removeprefix(OBSERVATION_PREFIX): np.split(values, rows)
        for name, values in arrays.items()
        if name.startswith(OBSERVATION_PREFIX)
    }
    parts = {name: np.split(arrays[name], steps) for name in STEP_ARRAYS}
    return [
        Episode(
            observations={name: cut[i] for name, cut in observations.items()},
            seed=None if seed == NO_SEED else seed,
            **{name: cut[i] for name, cut in parts.items()},
        )
        for i, seed in enumerate(arrays["seeds"].tolist())
    ]
