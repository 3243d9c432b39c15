r"""Featurizers: planning in columns that are derived from the observation.

    observation o ──features──▶ columns x = φ(o) ──planner──▶ plan x_0 … x_{L-1}
                                                                      │
    action a ◀──────────────────────── act ───────────────────────────┘

A robot observes joint angles, but a small denoiser learns where the tool goes much
sooner than seven angles that agree on it. An environment's package may therefore supply
a *featurizer*: a map φ from observations to the columns that are planned in, and the
way back, an executor that turns the plan and the current observation into an action.
Without one, plans are made of the observation itself (`Identity`).

    @register_featurizer("polar")
    class Polar: ...

    WindowConfig(features="polar"), ExecutionConfig(executor="features")

A distribution offers featurizers in the entry-point group
`diffuser_policy.featurizers`, names to `module:attribute`. They need nothing of this
package: whatever has the attributes of `Featurizer` is one. Checkpoints keep the name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol, TypeVar

import numpy as np

from diffuser_policy.errors import ConfigError, UnknownNameError, suggestion

GROUP = "diffuser_policy.featurizers"
NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
CHUNK = 65_536  # rows that are mapped at once: bounds the memory of what φ computes
NEEDED = ("observation_size", "columns", "num_columns", "objects", "features")
Registrable = TypeVar("Registrable", bound=Callable[..., Any])


class FeaturizerError(ConfigError):
    """A featurizer that is missing, broken, or not the one that was trained with."""


class Followed(Protocol):
    """What `Featurizer.act` sees of the plans that are followed, one per row.

    Attributes:
        observations: `[rows, steps, columns]` planned columns.
        actions: `[rows, steps, action]` planned actions; no columns if there are none.
        lengths: `[rows]` planning steps.
        progress: `[rows]` how far each plan has been followed, in planned env steps.
        stride: Env steps between two planning steps.
    """

    observations: np.ndarray
    actions: np.ndarray
    lengths: np.ndarray
    progress: np.ndarray
    stride: int

    def reference(self, ahead: float = 0.0) -> np.ndarray:
        """Return planned columns `[rows, columns]`, some env steps ahead."""


class Featurizer(Protocol):
    """A map from observations to planning columns, and perhaps the way back.

    Two more methods are optional. `act(plans, observations)` returns actions
    `[rows, action]` for `Followed` plans and the environment's own observations
    `[rows, observation_size]`; the executor "features" needs it.
    `feasibility(candidates, stride)` returns `[n]` for candidates
    `[n, steps, num_columns]`, higher is better: how well a plan can be executed. The
    first planning step of a candidate is the current observation. The ranking
    "feasibility" needs it.

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
        """Store how many columns there are."""
        self.observation_size = self.num_columns = observation_size

    def features(self, observations: np.ndarray) -> np.ndarray:
        """Return the observations themselves."""
        return observations


_IN_PROCESS: dict[str, Callable[..., Any]] = {}


def register_featurizer(name: str) -> Callable[[Registrable], Registrable]:
    """Return a decorator that makes a featurizer known by name.

    It takes a class, or a function that makes a featurizer, without arguments.
    Defining the same one anew, as in a notebook, replaces it.

    Args:
        name: Lower-case words joined by dashes, as "kuka-blocks".

    Raises:
        FeaturizerError: The name is of another form or taken, or what is decorated
            cannot be called.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise FeaturizerError(
            f"A featurizer's name is lower-case words joined by dashes, as in "
            f"@register_featurizer('kuka-blocks'); got {name!r}."
        )

    def decorate(target: Registrable) -> Registrable:
        if not callable(target):
            raise FeaturizerError(
                f"@register_featurizer({name!r}) takes a class, or a function without "
                f"arguments that makes a featurizer; got {target!r}."
            )
        takers = {point.name: point.value for point in entry_points(group=GROUP)}
        takers |= {key: _address(known) for key, known in _IN_PROCESS.items()}
        if takers.get(name, _address(target)) != _address(target):
            raise _taken(name, takers[name], _address(target))
        _IN_PROCESS[name] = target
        return target

    return decorate


def make_featurizer(name: str) -> Featurizer:
    """Return the featurizer of that name, checked.

    Raises:
        UnknownNameError: No featurizer of that name; the nearest are offered.
        FeaturizerError: It is offered twice, cannot be loaded, or is none.
    """
    points = [point for point in entry_points(group=GROUP) if point.name == name]
    for other in points[1:]:
        if other.value != points[0].value:
            raise _taken(name, points[0].value, other.value)
    if not points and name not in _IN_PROCESS:
        raise UnknownNameError("featurizer", name, available_featurizers())
    factory = _loaded(points[0]) if points else _IN_PROCESS[name]
    try:
        featurizer: Featurizer = factory()
    except Exception as error:  # whatever another package's code raises
        raise FeaturizerError(
            f"The featurizer {name!r} ({_address(factory)}) cannot be made: "
            f"{type(error).__name__}: {error}. It is called without arguments."
        ) from error
    check_featurizer(featurizer, name)
    return featurizer


def saved_featurizer(name: str) -> Featurizer:
    """Return the featurizer that a saved planner names.

    Raises:
        FeaturizerError: As `make_featurizer`, or none of that name is registered here.
    """
    try:
        return make_featurizer(name)
    except UnknownNameError as error:
        raise FeaturizerError(
            f"This planner plans in the columns of the featurizer {name!r}, which is "
            f"not registered here. The package that offers it may not be installed, or "
            f"the module that registers it not imported. "
            f"{suggestion(name, error.known)}Known: {', '.join(error.known) or 'none'}."
        ) from error


def available_featurizers() -> list[str]:
    """Return the names that are offered, without loading anything."""
    return sorted({*_IN_PROCESS, *(point.name for point in entry_points(group=GROUP))})


def check_featurizer(featurizer: Any, name: str) -> None:
    """Refuse what is no featurizer.

    Args:
        featurizer: Anything.
        name: What it is registered as.

    Raises:
        FeaturizerError: An attribute is missing or of the wrong form.
    """
    missing = [part for part in NEEDED if not hasattr(featurizer, part)]
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


def planning_columns(
    featurizer: Featurizer, observations: np.ndarray, *, chunk: int = CHUNK
) -> np.ndarray:
    """Return the planning columns `[rows, num_columns]` of observations, checked.

    Args:
        featurizer: Maps them; `Identity` hands them back untouched.
        observations: `[rows, observation_size]`.
        chunk: Rows that are mapped at once.

    Raises:
        FeaturizerError: It takes observations of another size, or returned something
            else than finite numbers of the shape it promised.
    """
    if isinstance(featurizer, Identity):
        return observations
    name, size = type(featurizer).__name__, featurizer.observation_size
    if observations.shape[1:] != (size,):
        raise FeaturizerError(
            f"The featurizer {name} takes observations of {size} columns, got "
            f"{list(observations.shape)}. It is of another environment, or of one "
            f"with other options."
        )
    planned = np.empty((len(observations), featurizer.num_columns), np.float32)
    for begin in range(0, len(observations), chunk):
        part = observations[begin : begin + chunk]
        found = np.asarray(featurizer.features(part))
        if found.shape != (len(part), featurizer.num_columns):
            raise FeaturizerError(
                f"The featurizer {name} returned the shape {list(found.shape)} for "
                f"{len(part)} observations, expected "
                f"{[len(part), featurizer.num_columns]}."
            )
        planned[begin : begin + chunk] = found
        bad = ~np.isfinite(planned[begin : begin + chunk]).all(axis=1)
        if bad.any():
            row = int(np.argmax(bad))
            raise FeaturizerError(
                f"The featurizer {name} made NaN or infinite columns of "
                f"{int(bad.sum())} observations; the first is {part[row].tolist()}."
            )
    return planned


def _loaded(point: EntryPoint) -> Callable[..., Any]:
    """Return what an entry point names.

    Raises:
        FeaturizerError: It cannot be imported, or the name has a second meaning here.
    """
    try:
        factory: Callable[..., Any] = point.load()
    except (Exception, SystemExit) as error:  # whatever plug-ins do on import
        raise FeaturizerError(
            f"The featurizer {point.name!r} cannot be loaded from {point.value!r}: "
            f"{type(error).__name__}: {error}. Repair or uninstall that package."
        ) from error
    here = _IN_PROCESS.get(point.name)  # after loading, which may register it
    if here is not None and _address(here) != _address(factory):
        raise _taken(point.name, point.value, _address(here))
    return factory


def _address(target: Any) -> str:
    """Return `module:name` of a class or function."""
    name = getattr(target, "__qualname__", type(target).__qualname__)
    return f"{getattr(target, '__module__', '?')}:{name}"


def _taken(name: str, first: str, second: str) -> FeaturizerError:
    """Return the error of a name with two meanings."""
    return FeaturizerError(
        f"The featurizer name {name!r} is offered twice, by {first} and by {second}. "
        f"Rename one, or uninstall its package."
    )
