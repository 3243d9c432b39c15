"""Errors of the environments, and checks of the arguments that all of them take.

Every error derives from `DiffuserEnvsError` and from the built-in exception that it
refines, so `except ValueError` keeps working. Raising one changes no state.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterable, Mapping
from numbers import Integral, Real
from typing import Any


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


class LocomotionObservationError(DiffuserEnvsError, ValueError):
    """An observation lacks what a demonstrator of a robot needs."""


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


def check_known(
    kind: str, name: object, known: Collection[str], error: type[DiffuserEnvsError]
) -> None:
    """Refuse a name that does not exist, and offer the nearest.

    Args:
        kind: What the name stands for, in a message.
        name: What was given.
        known: All names that exist.
        error: Raised if it is none of them.
    """
    if not isinstance(name, str) or name not in known:
        raise error(f"unknown {kind} {name!r}; {nearest_names(str(name), known)}")


def check_options(
    options: Mapping[str, Any] | None,
    known: Collection[str],
    error: type[DiffuserEnvsError],
) -> Mapping[str, Any]:
    """Return the options that `reset` was given, if all of them exist.

    Args:
        options: By name.
        known: All names that exist.
        error: Raised if they are no options, or one of them is unknown.
    """
    if not isinstance(options, Mapping | None):
        raise error(f"reset takes options by name, not {options!r}")
    for name in options or {}:
        check_known("reset option", name, known, error)
    return options or {}


def check_number(
    name: str,
    value: Any,
    error: type[DiffuserEnvsError],
    *,
    least: float = -math.inf,
    most: float = math.inf,
    whole: bool = False,
    why: str = "",
) -> None:
    """Refuse a setting that is not finite or out of its range.

    Args:
        name: Of the setting, in a message.
        value: What was given.
        error: Raised if it is no such number.
        least: The smallest number of the range.
        most: The largest.
        whole: Refuse fractions; 3.0 is none.
        why: The reason for the range, in a message.
    """
    finite = isinstance(value, Real) and math.isfinite(value)
    if finite and least <= value <= most and not (whole and value % 1):
        return
    bounds = "" if least == -math.inf else f", {least:g} or more"
    if most < math.inf:
        bounds = f" from {least:g} to {most:g}"
    raise error(
        f"{name} must be a {'whole' if whole else 'finite'} number{bounds}"
        f"{why and f' ({why})'}, got {value!r}"
    )


def check_size(width: int, height: int, error: type[DiffuserEnvsError]) -> None:
    """Refuse a size that no picture has.

    Args:
        width: In pixels.
        height: In pixels.
        error: Raised if one of them is no whole number, or less than 1.
    """
    for name, size in (("width", width), ("height", height)):
        if not (isinstance(size, Integral) and size >= 1):
            raise error(
                f"{name} must be a whole number of pixels, 1 or more; got {size!r}"
            )
