"""A cache of long arrays, keyed by what they were read from.

    <cache>/diffuser--multi2d-large-v1-<digest of the path>/<digest of the files>/

The second digest covers names, sizes and modification times of the data files, so a
dataset that was changed is read again, and its old entry deleted. Entries appear
complete or not at all; one that cannot be read is rebuilt.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from diffuser_policy.data.flat import META_FILE, SCHEMA, FlatDataset
from diffuser_policy.errors import DatasetError, StorageError

VARIABLE = "DIFFUSER_POLICY_CACHE"
ABANDONED = 24 * 3600.0  # seconds after which a half-written entry has no writer


class DatasetCache:
    """Saved `FlatDataset`s by origin."""

    def __init__(self, folder: str | Path | None = None) -> None:
        """Choose the folder; nothing is created yet.

        Args:
            folder: By default `$DIFFUSER_POLICY_CACHE`, or `~/.cache/diffuser-policy`.
        """
        default = Path.home() / ".cache" / "diffuser-policy"
        self.folder = Path(folder or os.environ.get(VARIABLE) or default)

    def get(
        self, name: str, source: Path, read: Callable[[], FlatDataset]
    ) -> FlatDataset:
        """Return the entry of a dataset, reading the dataset if there is none.

        Args:
            name: Of the dataset; for people who look into the folder.
            source: Folder of files that the entry is made from.
            read: Reads them.

        Raises:
            StorageError: The entry cannot be written; there is none then.
        """
        entry = self.entry(name, source)
        with contextlib.suppress(DatasetError):
            return FlatDataset.load(entry)
        dataset = read()
        if entry != self.entry(name, source):
            return dataset  # the files changed meanwhile: don't keep it
        if not (entry / META_FILE).is_file():  # whole entries appear with it
            shutil.rmtree(entry, ignore_errors=True)
        try:
            dataset.save(entry)
        except StorageError as error:
            raise StorageError(
                error.errno,
                f"{error.strerror or error} The cache can be moved elsewhere with the "
                f"environment variable {VARIABLE}.",
            ) from error
        self._drop_others(entry)
        with contextlib.suppress(DatasetError):
            return FlatDataset.load(entry)
        return dataset  # another process is replacing the entry at this moment

    def entry(self, name: str, source: Path) -> Path:
        """Return the folder of a dataset's entry, whether or not it exists."""
        place = _digest(str(source.resolve()))[:8]
        files = []
        for path in sorted(source.rglob("*")):
            stat = path.stat()
            name_in_source = path.relative_to(source).as_posix()
            files.append(f"{name_in_source} {stat.st_size} {stat.st_mtime_ns}")
        digest = _digest("\n".join([f"schema {SCHEMA}", *files]))[:16]
        return self.folder / f"{name.replace('/', '--')}-{place}" / digest

    @staticmethod
    def _drop_others(entry: Path) -> None:
        """Delete older states of the same dataset, and what interrupts left."""
        for other in entry.parent.iterdir():
            with contextlib.suppress(OSError):
                age = time.time() - other.stat().st_mtime
                if other != entry and (
                    not other.name.startswith(".") or age > ABANDONED
                ):
                    shutil.rmtree(other)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
