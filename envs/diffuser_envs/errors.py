"""Errors of the environments.

Every error derives from `DiffuserEnvsError` and from the built-in exception that it
refines, so `except ValueError` keeps working. Raising one changes no state.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DiffuserEnvsError(Exception):
    """Base of all errors that `diffuser_envs` raises on purpose."""


class MazeError(DiffuserEnvsError, ValueError):
    """A maze environment cannot use what it was given."""


class MazeOptionError(MazeError):
    """`reset(options=...)` or a constructor argument is unknown or malformed."""


class MazePositionError(MazeError):
    """A goal or start lies in a wall, outside the maze, or is not finite."""


class MazeActionError(MazeError):
    """An action has the wrong shape or is not finite."""


class MazeObservationError(MazeError):
    """An observation lacks what a maze demonstrator needs."""


class KukaError(DiffuserEnvsError, ValueError):
    """A block-stacking environment cannot use what it was given."""


class KukaOptionError(KukaError):
    """`reset(options=...)` or a constructor argument is unknown or malformed."""


class KukaArrangementError(KukaError):
    """Blocks cannot stand as asked: out of reach, overlapping, or no tower."""


class KukaActionError(KukaError):
    """An action has the wrong shape or is not finite."""


class ClosedEnvError(DiffuserEnvsError, RuntimeError):
    """An environment was used after `close()`, or before `reset()`."""


class KukaObservationError(KukaError):
    """An observation lacks what a block-stacking demonstrator needs."""


class UnsupportedEnvError(DiffuserEnvsError, TypeError):
    """A demonstrator or wrapper does not support this kind of environment."""


class MissingExtraError(DiffuserEnvsError, ImportError):
    """An optional package is needed and not installed."""


class RenderingError(DiffuserEnvsError, RuntimeError):
    """The requested renderer does not work on this machine."""


class UnknownEnvError(DiffuserEnvsError, LookupError):
    """An environment id has no reference scores."""


def nearest_names(name: str, known: Iterable[str]) -> str:
    """Return the end of an error message: the known names closest to `name`.

    Args:
        name: The unknown name.
        known: All names that exist.
    """
    names = sorted(known)
    lowered = {each.lower(): each for each in names}
    close = difflib.get_close_matches(name.lower(), lowered, n=3, cutoff=0.4)
    if close:
        return "did you mean " + " or ".join(repr(lowered[each]) for each in close)
    return "known names: " + ", ".join(names)
