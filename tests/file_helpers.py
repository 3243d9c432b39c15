"""Disks that are full, and files that run a command."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any, NoReturn


def full_disk(*_: object, **__: object) -> NoReturn:
    """Fail as whatever writes to a full disk does."""
    raise OSError(errno.ENOSPC, "No space left on device")


class Malicious:
    """Makes a folder when it is unpickled.

    Args:
        witness: The folder.
    """

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.witness),))
