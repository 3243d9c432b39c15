"""The errors that users of the package may want to catch.

All derive from `DiffuserPolicyError` and from the built-in they refine, so both
`except DiffuserPolicyError` and `except ValueError` work. A message says what was
given, what was expected, and what to do about it.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType
from typing import Any

SHOWN = 200  # characters of a value in an error
# What to know before an extra is installed.
ADVICE = {
    "baselines": (
        "Best installed in a virtual environment of its own: it downgrades gymnasium "
        "to 1.0.0, gymnasium-robotics to 1.3.1 and mujoco to 3.1.6. Where mujoco 4 "
        "is installed, first: pip uninstall mujoco mujoco-core mujoco-studio"
    )
}


class DiffuserPolicyError(Exception):
    """Base of all errors raised on purpose by this package."""


class ConfigError(DiffuserPolicyError, ValueError):
    """A setting, or a combination of settings, that cannot work."""


class HorizonError(ConfigError):
    """A horizon that the network or the stride cannot represent."""


class ConditionError(DiffuserPolicyError, ValueError):
    """A condition that does not fit a plan, or clashes with another or with a goal."""


class ObservationError(DiffuserPolicyError, ValueError):
    """An observation of the wrong structure, shape, or with non-finite values."""


class SpaceMismatchError(DiffuserPolicyError, ValueError):
    """An environment whose spaces differ from those the planner was trained on."""


class EnvContractError(DiffuserPolicyError, ValueError):
    """An environment or policy that breaks its contract, or episodes without end."""


class DatasetError(DiffuserPolicyError, ValueError):
    """A dataset that cannot be used as asked."""


class DatasetNotFoundError(DatasetError, FileNotFoundError):
    """No dataset of that name is on this machine."""


class CheckpointError(DiffuserPolicyError, ValueError):
    """A checkpoint that is truncated, foreign, unsafe, or of another schema."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """Neither a shipped planner, a folder, nor a reachable hub repository.

    Attributes:
        planner: What was asked for.
    """

    def __init__(self, message: str, planner: str = "") -> None:
        """Build the error of a planner that was not found."""
        super().__init__(message)
        self.planner = planner


class NotFiniteError(DiffuserPolicyError, ArithmeticError):
    """A loss, a plan or an action became NaN or infinite; it was not passed on."""


class DivergedError(DiffuserPolicyError, ArithmeticError):
    """A critic's values left the possible range, or are all the same.

    The last good state is kept.
    """


class MemoryLimitError(DiffuserPolicyError, MemoryError):
    """More was asked for than fits into memory."""


class StorageError(DiffuserPolicyError, OSError):
    """Files could not be written: no space, no permission. Nothing was changed."""


class UnknownNameError(DiffuserPolicyError, LookupError):
    """A name that is not registered; the nearest registered ones are offered."""

    def __init__(
        self,
        kind: str,
        name: str,
        known: Iterable[str] | None,
        remark: str = "",
        advice: str = "",
    ) -> None:
        """Build the message from the lookup.

        Args:
            kind: What was looked up, for example "planner".
            name: The name that was given.
            known: All names that would have been accepted; None if that is not known.
            remark: Said after the name.
            advice: Said after the known names, sentences.
        """
        self.kind, self.name, self.known = kind, name, sorted(known or ())
        accepted = f"Known: {', '.join(self.known) or 'none'}."
        if known is None:
            accepted = ""
        text = f"Unknown {kind} {name!r}{remark}. {suggestion(name, self.known)}"
        super().__init__(f"{text}{accepted} {advice}".strip())


# Options of `train` that give a planner columns of a name.
TRAINED_COLUMNS = {
    "position": "--window.position and the numbers of its columns",
    "velocity": "--window.velocity and the numbers of its columns",
    "action": "--window.actions",
}


class MissingColumnsError(UnknownNameError, AttributeError):  # type: ignore[misc]
    """A guide asks for columns that the planner's trajectories don't have."""

    def __init__(self, name: str, known: Iterable[str], guide: str = "") -> None:
        self.guide = guide
        asked = f" (asked for by the guide {guide})" if guide else ""
        advice = []
        if guide:
            advice.append(
                "Use other columns: columns='observation', if the guide has the "
                "parameter `columns`, or trajectory['observation'] in a guide of "
                "your own."
            )
        if name in TRAINED_COLUMNS:
            advice.append(
                f"A planner has {name!r} if it is trained with {TRAINED_COLUMNS[name]}."
            )
        super().__init__("trajectory column", name, known, asked, " ".join(advice))


class GuideError(DiffuserPolicyError, ValueError):
    """A guide that cannot steer: NaN, a wrong shape, no gradient, a bad parameter."""


class MissingExtraError(DiffuserPolicyError, ImportError):
    """An optional dependency is not installed."""

    def __init__(
        self, module: str, extra: str, advice: str = "", *, needed_by: str = "This"
    ) -> None:
        """Build the message with the command that installs the extra.

        Args:
            module: The module that could not be imported.
            extra: The extra of this distribution that brings it.
            advice: What else to know, a sentence.
            needed_by: What needs the module, the subject of the sentence.
        """
        self.module, self.extra, self.advice = module, extra, advice
        super().__init__(
            f"{needed_by} needs the module {module!r}, which is not installed. "
            f'Install it, in a clone of diffuser-policy: pip install ".[{extra}]"'
            f"{'. ' if advice else ''}{advice}"
        )


def shown(value: Any) -> str:
    """Return a value for an error: its `repr`, cut if it is long."""
    try:
        text = repr(value)
    except ValueError:  # of a whole number with thousands of digits
        text = "a number with thousands of digits"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return "Did you mean …? " for the nearest known names, or an empty string."""
    names = sorted(known)
    folded = {candidate.lower(): candidate for candidate in names}
    near = difflib.get_close_matches(name.lower(), folded, n=3, cutoff=0.5)
    if not near:
        return ""
    return f"Did you mean {' or '.join(repr(folded[match]) for match in near)}? "


def require_extra(module: str, extra: str) -> ModuleType:
    """Import and return an optional module, or say which extra brings it.

    Args:
        module: Dotted name of the module to import.
        extra: The extra of this distribution that installs it.

    Raises:
        MissingExtraError: The module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(module, extra, ADVICE.get(extra, "")) from error
