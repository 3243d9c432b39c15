"""Unfinished work on disk: one file per finished run, and what it is part of.

    <root>/diffuser/.multi2d-large-v1.collecting/
        settings.json     what every run was recorded with
        run-00000.npz …   finished runs, each written in one go

Work goes on only with the very same settings and versions; otherwise the runs of one
dataset would come from different generators.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffuser_policy.config import differences
from diffuser_policy.data.episodes import Episode
from diffuser_policy.errors import ConfigError, DatasetError
from diffuser_policy.files import replaced_file

OBSERVATION_PREFIX = "observations."


@dataclass(frozen=True)
class ShardFolder:
    """Finished runs of one dataset in the making.

    Attributes:
        path: The hidden folder.
        identity: JSON-able; everything that the runs depend on.
    """

    path: Path
    identity: Mapping[str, Any]

    @classmethod
    def beside(cls, dataset_folder: Path, identity: Mapping[str, Any]) -> ShardFolder:
        """Return the folder that belongs to a dataset's folder."""
        name = f".{dataset_folder.name}.collecting"
        return cls(dataset_folder.with_name(name), json.loads(json.dumps(identity)))

    def open(self, *, discard: bool) -> None:
        """Create the folder, or check that the work in it is the same.

        Args:
            discard: Delete work with other settings instead of raising.

        Raises:
            ConfigError: There is unfinished work with other settings.
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
        """Return whether a run is finished."""
        return self._file(index).is_file()

    def save(self, index: int, episode: Episode) -> None:
        """Write a finished run.

        Raises:
            StorageError: It could not be written; nothing is left behind.
        """
        arrays = {
            f"{OBSERVATION_PREFIX}{n}": v for n, v in episode.observations.items()
        }
        with replaced_file(self._file(index)) as partial, partial.open("wb") as file:
            np.savez(
                file,
                allow_pickle=False,
                actions=episode.actions,
                rewards=episode.rewards,
                terminations=episode.terminations,
                truncations=episode.truncations,
                seed=np.asarray(episode.seed),
                **arrays,
            )

    def load(self, index: int) -> Episode:
        """Read a finished run.

        Raises:
            DatasetError: The file is damaged.
        """
        path = self._file(index)
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return Episode(
                    observations={
                        name.removeprefix(OBSERVATION_PREFIX): arrays[name]
                        for name in arrays.files
                        if name.startswith(OBSERVATION_PREFIX)
                    },
                    actions=arrays["actions"],
                    rewards=arrays["rewards"],
                    terminations=arrays["terminations"],
                    truncations=arrays["truncations"],
                    seed=int(arrays["seed"]),
                )
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DatasetError(
                f"{path} is damaged: {error}. Delete it and collect again; the other "
                "runs are kept."
            ) from error

    def remove(self) -> None:
        """Delete everything."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _file(self, index: int) -> Path:
        return self.path / f"run-{index:05d}.npz"
