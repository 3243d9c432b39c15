r"""Featurizers: planning in columns that are derived from the observation.

    observation o ──features──▶ columns x = φ(o) ──planner──▶ plan x_0 … x_{L-1}
                                                                      │
    action a ◀──────────────────────── act ───────────────────────────┘

A robot observes joint angles, but a small denoiser learns where the tool goes much
sooner than which seven angles take it there. An environment's package may therefore
supply a *featurizer*: a map φ from observations to the columns that are planned in, and
the way back, an executor that turns the plan and the current observation into an
action. Without one, plans are made of the observation itself (`Identity`).

    @register_featurizer("polar")
    class Polar: ...

    WindowConfig(features="polar"), ExecutionConfig(executor="features")

A distribution offers featurizers in the entry-point group
`diffuser_policy.featurizers` (`diffuser_policy.plugins` has the rules). A featurizer
imports nothing of this package: whatever has the attributes of `Featurizer` is one.
Checkpoints keep its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from diffuser_policy.columns.layout import rows_at_once
from diffuser_policy.errors import ConfigError, DiffuserPolicyError, shown
from diffuser_policy.numerics import within_memory
from diffuser_policy.plugins import Kind, Registrable
from diffuser_policy.words import counted

CHUNK = 65_536  # rows that are mapped at once, at most: φ needs memory for them
NEEDED = ("observation_size", "columns", "num_columns", "objects", "features")


class FeaturizerError(ConfigError):
    """A featurizer that is missing, broken, or not the one that was trained with."""


class Featurizer(Protocol):
    """A map from observations to planning columns, and perhaps the way back.

    Two more methods are optional. `act(plans, observations)` returns actions
    `[rows, action]` for the plans that are followed
    (`diffuser_policy.planning.plan.Following`) and the environment's own observations
    `[rows, observation_size]`; the executor "features" needs it.
    `feasibility(candidates, stride)` returns `[n]` for candidates
    `[n, steps, num_columns]`, higher is better: how well a plan can be executed. The
    first planning step of a candidate is the current observation. The ranking
    "feasibility" needs it. An attribute `feasible` says from which value on a plan is
    good enough not to be compared with others.

    Attributes:
        observation_size: Columns of the environment's observation.
        columns: Name → planning columns; the aliases of the layout. Those of "goal",
            if there are any, are what a desired goal of the environment pins.
        num_columns: Number of planning columns.
        objects: Interchangeable groups of planning columns, equally long and in the
            same order, such as one per block; empty if there are none.
    """

    observation_size: int
    num_columns: int
    objects: tuple[tuple[int, ...], ...]

    @property
    def columns(self) -> Mapping[str, tuple[int, ...]]:
        """Name → planning columns."""

    def features(self, observations: np.ndarray) -> np.ndarray:
        """Return planning columns `[..., num_columns]`, float32, finite.

        Args:
            observations: `[..., observation_size]`, float32.
        """


class Identity:
    """Plans in the columns of the observation."""

    columns: Mapping[str, tuple[int, ...]] = {}
    objects: tuple[tuple[int, ...], ...] = ()

    def __init__(self, observation_size: int) -> None:
        self.observation_size = self.num_columns = observation_size

    def features(self, observations: np.ndarray) -> np.ndarray:
        """Return the observations themselves."""
        return observations


def who_lacks_it(featurizer: Any) -> str:
    """Return the end of a message about a method that a featurizer may have."""
    if isinstance(featurizer, Identity):
        return "this planner has no featurizer"
    return f"{type(featurizer).__name__} has none"


def _check_factory(target: Any) -> None:
    if not callable(target):
        raise FeaturizerError(
            f"A featurizer is registered as a class, or as a function without "
            f"arguments that makes one; got {target!r}."
        )


FEATURIZERS = Kind(
    name="featurizer",
    group="diffuser_policy.featurizers",
    example="kuka-blocks",
    check=_check_factory,
    error=FeaturizerError,
    addresses=False,
)


def register_featurizer(name: str) -> Callable[[Registrable], Registrable]:
    """Return a decorator that makes a featurizer known by name.

    It takes a class, or a function that makes a featurizer, without arguments.
    Defining the same one anew, as in a notebook, replaces it.

    Args:
        name: Lower-case words joined by dashes, as "kuka-blocks".

    Raises:
        FeaturizerError: The name is malformed or taken, or the decorated object cannot
            be called.
    """
    return FEATURIZERS.register(name)


def make_featurizer(name: str, user: str | None = None) -> Featurizer:
    """Return the featurizer of that name, checked.

    Args:
        name: Registered name.
        user: What names it, such as "This planner", if a file does.

    Raises:
        UnknownNameError: No featurizer of that name; the nearest are offered.
        FeaturizerError: It is offered twice, cannot be loaded or made, or is none; or a
            file names it, and it is not registered here.
    """
    kind = FEATURIZERS
    plugin = kind.find(name) if user is None else kind.find_saved(name, user)
    try:
        featurizer: Featurizer = plugin.target()
        missing = [part for part in NEEDED if not hasattr(featurizer, part)]
    except Exception as error:  # whatever another package's code raises
        raise FeaturizerError(
            f"The featurizer {name!r} ({plugin.address}) cannot be made: "
            f"{type(error).__name__}: {error}. It is called without arguments."
        ) from error
    if missing:
        raise FeaturizerError(
            f"The featurizer {name!r} ({type(featurizer).__name__}) lacks "
            f"{', '.join(missing)}. A featurizer has {', '.join(NEEDED)}, see "
            f"diffuser_policy.columns.features.Featurizer."
        )
    for part in ("observation_size", "num_columns"):
        size = getattr(featurizer, part)
        if not isinstance(size, (int, np.integer)) or size < 1:
            raise FeaturizerError(
                f"The featurizer {name!r} has {part}={size!r}, expected a positive "
                f"whole number."
            )
    if not isinstance(featurizer.columns, Mapping) or not callable(featurizer.features):
        raise FeaturizerError(
            f"The featurizer {name!r} needs `columns`, names to planning columns, and "
            f"a method `features`; got {featurizer.columns!r} and "
            f"{featurizer.features!r}."
        )
    return featurizer


def numbers_of(featurizer: Any, method: str, *arguments: Any, given: str) -> np.ndarray:
    """Return what a method of a featurizer returns, as an array of real numbers.

    Args:
        featurizer: Has the method.
        method: Its name.
        arguments: What it is called with; it may change them.
        given: Describes the arguments, in errors.

    Raises:
        FeaturizerError: It fails, or returned something other than real numbers.
        MemoryLimitError: It needs more memory than there is.
    """
    name = type(featurizer).__name__
    try:
        with within_memory(f"The featurizer {name}", "Pass fewer rows at a time."):
            found = np.asarray(getattr(featurizer, method)(*arguments))
    except DiffuserPolicyError:
        raise
    except Exception as error:  # whatever another package's code raises
        raise FeaturizerError(
            f"The featurizer {name} failed: {type(error).__name__}: {error}. Its "
            f"`{method}` is called with {given}."
        ) from error
    if found.dtype.kind not in "biuf":
        raise FeaturizerError(
            f"The featurizer {name} returned values of type {found.dtype} from "
            f"`{method}`, expected real numbers."
        )
    return found


def planning_columns(featurizer: Featurizer, observations: np.ndarray) -> np.ndarray:
    """Return the planning columns `[rows, num_columns]` of observations, checked.

    Args:
        featurizer: Maps them; `Identity` returns them unchanged.
        observations: `[rows, observation_size]`.

    Raises:
        FeaturizerError: It takes observations of another size, fails, or returned
            something other than finite numbers of the shape it promised.
    """
    if isinstance(featurizer, Identity):
        return observations
    name, size = type(featurizer).__name__, featurizer.observation_size
    if observations.shape[1:] != (size,):
        raise FeaturizerError(
            f"The featurizer {name} takes observations of "
            f"{counted(size, 'column')}, got {list(observations.shape)}. "
            "It belongs to another environment, or to one with other options."
        )
    planned = np.empty((len(observations), featurizer.num_columns), np.float32)
    count = rows_at_once(observations[:1].nbytes + planned[:1].nbytes, CHUNK)
    for begin in range(0, len(observations), count):
        part = observations[begin : begin + count]
        given = f"observations of shape {list(part.shape)}"
        # On a copy: it may compute in place.
        found = numbers_of(featurizer, "features", part.copy(), given=given)
        if found.shape != (len(part), featurizer.num_columns):
            raise FeaturizerError(
                f"The featurizer {name} returned the shape {list(found.shape)} for "
                f"{len(part)} observations, expected "
                f"{[len(part), featurizer.num_columns]}."
            )
        planned[begin : begin + count] = found
        bad = ~np.isfinite(planned[begin : begin + count]).all(axis=1)
        if bad.any():
            row = int(np.argmax(bad))
            made = planned[begin + row]
            column = int(np.argmin(np.isfinite(made)))
            raise FeaturizerError(
                f"The featurizer {name} made NaN or infinite columns of "
                f"{int(bad.sum())} observations; the first is that of row "
                f"{begin + row}, where planning column {column} is {made[column]:g}: "
                f"{shown(part[row].tolist())}."
            )
    return planned
