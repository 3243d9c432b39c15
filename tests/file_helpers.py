"""Disks that are full, files that are mapped, and files that run a command."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any, NoReturn

import pytest


def full_disk(*_: object, **__: object) -> NoReturn:
    """Fail as whatever writes to a full disk does."""
    raise OSError(errno.ENOSPC, "No space left on device")


def mapped(path: Path) -> list[str]:
    """Return the mappings of a file, or of the files in a folder, of this process.

    The test is skipped where the system does not tell.
    """
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("reads /proc")
    lines = maps.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if str(path) in line]


class Malicious:
    """Makes a folder when it is unpickled.

    Args:
        witness: The folder.
    """

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.witness),))
