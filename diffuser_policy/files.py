"""Files that are there completely or not at all.

Everything is written beside its destination under a hidden name, and moved
into place with one rename. An interrupt, a full disk or a second process doing the
same leaves either the old state or the new one.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffuser_policy.errors import StorageError


@contextlib.contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that replaces `folder` when the block succeeds.

    Args:
        folder: Destination; what it held before is deleted in the end.

    Raises:
        StorageError: The files could not be written; `folder` is as it was.
    """
    partial = hidden_sibling(folder, "partial")
    try:
        partial.mkdir(parents=True)
        yield partial
        _swap(partial, folder)
    except OSError as error:
        raise storage_error(folder, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to that replaces `path` when the block succeeds.

    Raises:
        StorageError: The file could not be written; `path` is as it was.
    """
    partial = hidden_sibling(path, "partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(path)
    except OSError as error:
        raise storage_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # such as a parent that is no folder
            partial.unlink()


def write_json(path: Path, data: Any) -> None:
    """Write JSON data, atomically.

    Raises:
        StorageError: It could not be written, or the data hold NaN or infinity; what
            was there before is intact.
    """
    try:
        text = json.dumps(data, indent=1, allow_nan=False)
    except ValueError as error:
        raise StorageError(
            f"{path} was not written: the data hold NaN or infinity, which JSON cannot "
            f"express."
        ) from error
    with replaced_file(path) as partial:
        partial.write_text(text + "\n")


def check_writable(path: Path) -> None:
    """Find out now, instead of after long work, whether a file can be written.

    Leaves nothing behind: folders that are missing are not created yet.

    Raises:
        StorageError: It cannot.
    """
    if path.is_dir():
        raise StorageError(f"{path} is a folder; name a file.")
    try:
        folder = path.parent
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        probe = hidden_sibling(folder / path.name, "probe")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise storage_error(path, error) from error


def hidden_sibling(path: Path, suffix: str) -> Path:
    """Return an unused hidden name beside `path`, of this process alone."""
    name = f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.{suffix}"
    return path.with_name(name)


def storage_error(path: Path, error: OSError) -> StorageError:
    """Return an error that explains why `path` could not be written."""
    if isinstance(error, StorageError):
        return error
    reason = error.strerror or str(error)
    advice = {
        errno.ENOSPC: "Free some space or choose another place.",
        errno.EDQUOT: "Your quota is used up: free some space.",
        errno.EACCES: "You may not write there: choose another place.",
        errno.EROFS: "That file system is read-only: choose another place.",
    }.get(error.errno or 0, "")
    return StorageError(
        error.errno, f"{path} could not be written: {reason}. {advice}".rstrip()
    )


def _swap(partial: Path, folder: Path) -> None:
    """Move `partial` to `folder`, and delete what was there before."""
    old = hidden_sibling(folder, "old")
    try:
        with contextlib.suppress(FileNotFoundError):
            folder.rename(old)
        try:
            partial.rename(folder)
        except OSError as error:
            # Another process was faster: its result is as good as this one.
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                raise
    finally:
        if old.exists() and not folder.exists():
            with contextlib.suppress(OSError):  # filled by another process meanwhile
                old.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
