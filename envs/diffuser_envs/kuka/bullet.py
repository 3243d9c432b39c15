"""The one place that imports PyBullet, quietly, and says what to do where it is absent.

On import PyBullet writes when it was built to the process's standard error, past
Python's own `sys.stderr`.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

from diffuser_envs.errors import MissingExtraError

__all__ = ["pybullet", "pybullet_data"]

_STDERR = 2


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Send the process's standard error nowhere, if there is one."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        sys.stderr.flush()
    try:
        kept = os.dup(_STDERR)
    except OSError:
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, _STDERR)
        yield
    finally:
        os.dup2(kept, _STDERR)
        os.close(kept)
        os.close(nowhere)


try:
    with _quiet():
        import pybullet
        import pybullet_data
except ImportError as error:
    raise MissingExtraError(
        f"the block-stacking environments need PyBullet ({error}); run"
        ' `pip install "diffuser-policy[kuka]"`. PyBullet 3.2.7 has wheels for CPython'
        " up to 3.11 on Linux (x86-64); elsewhere the extra leaves it out and"
        " `pip install pybullet` has to compile it"
    ) from error
