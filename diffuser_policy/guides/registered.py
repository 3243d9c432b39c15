"""What stands behind the name of a guide, and guides that are made of functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from diffuser_policy.errors import DiffuserPolicyError, GuideError, suggestion
from diffuser_policy.guides.guide import Guide, GuideFunction
from diffuser_policy.guides.parameters import Parameter, converted, split_docstring
from diffuser_policy.guides.trajectory import Trajectory


@dataclass(frozen=True, repr=False)
class RegisteredFunction(Guide):
    """A registered function with values of its parameters.

    Attributes:
        registered_as: Name in the registry.
        parameters: Names and values, in the order of the signature.
        function: Maps a `Trajectory` and parameters to values `[batch]`.
    """

    registered_as: str
    parameters: tuple[tuple[str, Any], ...]
    function: GuideFunction

    def __call__(self, trajectory: Trajectory) -> Tensor:
        """Return the function's values."""
        return self.function(trajectory, **dict(self.parameters))

    @property
    def name(self) -> str:
        """The name in the registry."""
        return self.registered_as

    def __repr__(self) -> str:
        """Return the name with the parameters."""
        values = ", ".join(f"{name}={value!r}" for name, value in self.parameters)
        return f"{self.registered_as}({values})"


@dataclass(frozen=True, kw_only=True)
class RegisteredGuide:
    """What stands behind a name.

    Attributes:
        name: Lower-case words joined by dashes.
        target: A guide's dataclass, or a function of a trajectory.
        origin: The distribution and its version, or the module in this process.
        parameters: Those that it takes.
    """

    name: str
    target: Any = field(repr=False)
    origin: str
    parameters: tuple[Parameter, ...]

    @property
    def summary(self) -> str:
        """First line of its documentation."""
        return split_docstring(self.target)[0].partition("\n")[0]

    def make(self, given: Mapping[str, Any]) -> Guide:
        """Return the guide with values of its parameters.

        Args:
            given: Those that differ from the defaults.

        Raises:
            GuideError: A parameter that it doesn't have, that is missing, or whose
                value it cannot take.
        """
        known = {parameter.name: parameter for parameter in self.parameters}
        unknown = [name for name in given if name not in known]
        if unknown:
            raise GuideError(
                f"The guide {self.name!r} has no parameter {unknown[0]!r}. "
                f"{suggestion(unknown[0], known)}{self._takes()}"
            )
        missing = [
            p.name for p in self.parameters if p.required and p.name not in given
        ]
        if missing:
            raise GuideError(
                f"The guide {self.name!r} needs {' and '.join(missing)}. "
                f"{self._takes()}"
            )
        values = {name: self._value(known[name], v) for name, v in given.items()}
        if not isinstance(self.target, type):
            defaults = {p.name: p.default for p in self.parameters}
            return RegisteredFunction(
                self.name, tuple({**defaults, **values}.items()), self.target
            )
        try:
            guide: Guide = self.target(**values)
        except DiffuserPolicyError:
            raise
        except (TypeError, ValueError) as error:
            raise GuideError(
                f"The guide {self.name!r} refuses its parameters {values}: {error}"
            ) from error
        return guide

    def _takes(self) -> str:
        """Return its parameters in a sentence."""
        listed = ", ".join(map(str, self.parameters))
        return f"Its parameters: {listed}." if listed else "It has no parameters."

    def _value(self, parameter: Parameter, value: Any) -> Any:
        """Return a parameter's value, converted."""
        try:
            return converted(value, parameter.hint)
        except ValueError as error:
            raise GuideError(
                f"The parameter {parameter.name!r} of the guide {self.name!r} must be "
                f"{parameter.kind}, got {value!r}."
            ) from error
