"""Plain values and typed values: settings, parameters of guides, options.

    converted([3, 4], tuple[float, float])        (3.0, 4.0)
    checked("the guide 'disc'", parameters_of(Disc), {"center": [3, 4]})
    from_json(PlannerConfig, {"horizon": 64})     a dataclass of settings, and back:
    to_json(config)

Values come from Python, JSON, TOML or the command line, and become the annotated type,
so that what was saved equals what is loaded. `True` is not a number, 8.0 is not a whole
number, and NaN and infinity are refused. Errors name the setting, what it may be, and
what was given.
"""

from __future__ import annotations

import collections.abc
import contextlib
import dataclasses
import functools
import inspect
import json
import math
import numbers
import operator
import secrets
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from diffuser_policy.errors import (
    ConfigError,
    DiffuserPolicyError,
    UnknownNameError,
    shown,
    suggestion,
)

T = TypeVar("T")
LARGEST = 2**63 - 1  # whole number that NumPy and PyTorch can hold
REQUIRED: Any = inspect.Parameter.empty
SEQUENCES = (tuple, list, collections.abc.Sequence)
MAPPINGS = (dict, collections.abc.Mapping)
UNIONS = (types.UnionType, typing.Union)
BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "a text",
    type(None): "none",
    Any: "a value that is finite",
}
NAMED = {"true": True, "false": False, "none": None, "null": None}  # in any case
PLURALS = {int: "whole numbers", float: "numbers", str: "texts"}


class MisfitError(ConfigError):
    """A value that its annotated type does not admit; says what it may be."""

    def __str__(self) -> str:  # composed when shown: many are caught and forgotten
        what, hint, value = self.args
        choices = _choices(hint)
        nearest = suggestion(shown(value).strip("'"), choices) if choices else ""
        given = shown(value)
        if isinstance(value, int) and not -LARGEST <= value <= LARGEST:
            nearest = "That is too large."
        return f"{what} must be {in_words(hint)}, got {given}. {nearest}".rstrip()


@dataclass(frozen=True)
class Parameter:
    """What a function, class or dataclass takes by name.

    Attributes:
        name: Name.
        hint: Annotated type; without one, that of the default, or `Any`.
        default: `REQUIRED` where there is none.
    """

    name: str
    hint: Any = Any
    default: Any = REQUIRED

    @property
    def required(self) -> bool:
        """Whether it has no default."""
        return self.default is REQUIRED

    def __str__(self) -> str:
        if self.required:
            return f"{self.name} (required)"
        if dataclasses.is_dataclass(self.default):
            return self.name
        return f"{self.name}={value_text(self.default)}"


# --- what is taken ------------------------------------------------------------------


def parameters_of(target: Any) -> tuple[Parameter, ...]:
    """Return what a dataclass, class or function takes by name.

    Raises:
        Exception: The annotations of a dataclass cannot be read, such as names that
            exist for type checkers only. Elsewhere such a parameter takes any value.
    """
    if not dataclasses.is_dataclass(target):
        arguments = inspect.signature(target).parameters.values()
        taken = [a for a in arguments if a.kind in BY_NAME]
        return tuple([Parameter(a.name, _hint(target, a), a.default) for a in taken])
    hints = typing.get_type_hints(target)
    found = []
    for item in dataclasses.fields(target):
        default = REQUIRED if item.default is dataclasses.MISSING else item.default
        if item.default_factory is not dataclasses.MISSING:
            default = item.default_factory()
        if item.init:
            found.append(Parameter(item.name, hints[item.name], default))
    return tuple(found)


def _hint(target: Any, argument: inspect.Parameter) -> Any:
    default = argument.default
    if argument.annotation is inspect.Parameter.empty:
        if isinstance(default, bool | str):
            return type(default)
        if isinstance(default, int | float):
            return int | float
        return tuple if isinstance(default, tuple | list) else Any
    alone = types.SimpleNamespace(__annotations__={"it": argument.annotation})
    try:
        return typing.get_type_hints(alone, globalns=_scope(target))["it"]
    except Exception:  # imported for type checkers only, or words such as "in meters"
        return Any


def _scope(target: Any) -> dict[str, Any]:
    """Return the names that annotations of a callable refer to."""
    function = inspect.unwrap(target)
    while isinstance(function, functools.partial):
        function = inspect.unwrap(function.func)
    if isinstance(function, type):
        function = getattr(function, "__init__", function)
    elif not hasattr(function, "__globals__"):  # an object that is called
        function = type(function).__call__
    return getattr(inspect.unwrap(function), "__globals__", {})


# --- what is given ------------------------------------------------------------------


def checked(
    owner: str,
    parameters: Sequence[Parameter],
    given: Mapping[str, Any],
    *,
    noun: str = "setting",
    error: type[DiffuserPolicyError] = ConfigError,
) -> dict[str, Any]:
    """Return the given values as the annotated types.

    Args:
        owner: What takes them, such as "the guide 'keep-out'".
        parameters: What it takes.
        given: Names and values.
        noun: What errors call one of them.
        error: Raised for a name that it does not take, one that is missing, and a
            value that is not of the annotated type.
    """
    known = {parameter.name: parameter for parameter in parameters}
    missing = [
        p.name for p in parameters if p.default is REQUIRED and p.name not in given
    ]
    wrong = next((name for name in given if name not in known), None)
    if missing or wrong is not None:
        problem = f"needs {' and '.join(missing)}. "
        if wrong is not None:
            problem = f"has no {noun} {wrong!r}. {suggestion(wrong, known)}"
        takes = f"Its {noun}s: {', '.join(map(str, parameters))}."
        takes = takes if known else f"It has no {noun}s."
        raise error(f"{owner[0].upper()}{owner[1:]} {problem}{takes}")
    values = {}
    for name, value in given.items():
        what = f"The {noun} {name!r} of {owner}"
        try:
            values[name] = converted(value, known[name].hint, what)
        except MisfitError as misfit:
            raise error(str(misfit)) from misfit
    return values


def all_options(
    owner: str,
    parameters: Sequence[Parameter],
    given: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the options of a function or class: defaults and given values.

    Args:
        owner: How errors call it.
        parameters: What it takes. One without a default is no option, and neither is
            `seed`.
        given: Options.

    Raises:
        ConfigError: It has no such option, or the value is of another type.
    """
    options = [p for p in parameters if not p.required and p.name != "seed"]
    defaults = {option.name: option.default for option in options}
    return defaults | checked(owner, options, given, noun="option")


def typed(config: Any) -> None:
    """Make the fields of a frozen dataclass of settings their annotated types.

    Raises:
        UnknownNameError: None of the values that the annotation lists.
        ConfigError: A value of another type. Both name the setting and its value.
    """
    cls: Any = type(config)
    for name, hint in _hints(cls).items():
        value = getattr(config, name)
        if typing.get_origin(hint) is Literal:
            known = typing.get_args(hint)
            if not isinstance(value, str) or value not in known:
                raise UnknownNameError(
                    f"value of {name}", shown(value), map(str, known)
                )
        object.__setattr__(config, name, converted(value, hint, name))


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return {parameter.name: parameter.hint for parameter in parameters_of(cls)}


def positive(config: object, *names: str, most: float = math.inf) -> None:
    """Refuse settings that are neither None nor positive and finite.

    Args:
        config: Has the settings.
        names: Names of the settings.
        most: Greatest value: memory is not asked for more than there can be.

    Raises:
        ConfigError: Names the setting and its value.
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and not value > 0:  # NaN is not
            raise ConfigError(f"{name} must be positive, got {value}.")
        if value == math.inf:
            raise ConfigError(f"{name} must be finite, got {value}.")
        if value is not None and value > most:
            raise ConfigError(f"{name} must be at most {most:,}, got {value:,}.")


def seed_or_drawn(seed: Any, name: str = "seed") -> int:
    """Return a seed as an `int`; one that is drawn at random for None.

    Args:
        seed: Any kind of whole number: of Python, NumPy or PyTorch.
        name: What errors call it.

    Raises:
        ConfigError: Not a whole number from 0 to 2**63 - 1.
    """
    if seed is None:
        return secrets.randbelow(2**63)
    try:
        whole = -1 if isinstance(seed, bool) else operator.index(seed)
    except TypeError:
        whole = -1
    if not 0 <= whole < 2**63:
        raise ConfigError(
            f"{name} must be a whole number from 0 to 2**63 - 1, got {shown(seed)}."
        )
    return whole


# --- from and to plain data ---------------------------------------------------------


def converted(value: Any, hint: Any, what: str = "It") -> Any:
    """Return a value as an annotated type; arrays and lists become tuples.

    Args:
        value: Plain value, array, or something that is of the type already.
        hint: `bool`, `int`, `float`, `str`, `None`, `Any`, a `Literal`, a union, a
            tuple or sequence, a mapping, a dataclass, or any other class.
        what: What errors call the value.

    Raises:
        MisfitError: It is of another type, or not finite.
        ConfigError: A dataclass refuses a setting.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    kind = origin or hint
    plain = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(plain, float) and not math.isfinite(plain):
        kind = None  # fits no type
    if kind is typing.Annotated:
        return converted(value, arguments[0], what)
    if kind in UNIONS:
        for option in arguments:
            with contextlib.suppress(MisfitError):
                return converted(value, option)
    elif kind is Literal:
        for choice in arguments:
            if choice == plain and type(choice) is type(plain):
                return choice
    elif kind in SEQUENCES or (kind is Any and isinstance(plain, list | tuple)):
        if isinstance(plain, list | tuple):
            fixed = len(arguments) > 1 and arguments[-1] is not ...
            hints = arguments if fixed else (*arguments, Any)[:1] * len(plain)
            with contextlib.suppress(MisfitError):
                if len(hints) == len(plain):
                    return tuple(map(converted, plain, hints))
    elif kind in MAPPINGS:
        item = arguments[1] if arguments else Any
        if isinstance(value, Mapping):
            return {  # `Any` is other people's data, kept as they are
                key: v if item is Any else converted(v, item, f"{what}, at {key!r},")
                for key, v in value.items()
            }
    elif kind is float or kind is int:
        number: Any = numbers.Real if kind is float else numbers.Integral
        if isinstance(plain, number) and not isinstance(plain, bool):
            limit = LARGEST if kind is int else sys.float_info.max
            if -limit <= plain <= limit:
                return kind(plain)
    elif kind is Any:
        return plain
    elif dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        return from_json(typing.cast(Any, kind), value)
    elif kind is not None:
        for candidate in (value, plain):
            if not isinstance(kind, type) or isinstance(candidate, kind):
                return candidate
    raise MisfitError(what, hint, value)


def from_json(cls: type[T], data: Mapping[str, Any]) -> T:
    """Rebuild a config dataclass from `to_json`'s data.

    Args:
        cls: The dataclass.
        data: Its settings; settings left out take their defaults.

    Raises:
        ConfigError: The dataclass has no such setting, one without a default is
            missing, or a value is of another type.
    """
    return cls(**checked(cls.__name__, parameters_of(cls), data))


def to_json(config: Any) -> dict[str, Any]:
    """Return a config dataclass as plain JSON data."""
    data: dict[str, Any] = dataclasses.asdict(config)
    return data


def plain(value: Any, what: str = "It") -> Any:
    """Return a value as JSON data; `what` errors call it.

    Raises:
        MisfitError: It has no form in JSON.
    """
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise MisfitError(what, Any, value) from error


def json_data(value: Any) -> Any:
    """Return a value as JSON data: arrays as lists, and strings for what JSON lacks.

    Numbers that are not finite, which JSON lacks as well, become none.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): json_data(item) for key, item in value.items()}
    if hasattr(value, "tolist"):  # NumPy's and PyTorch's
        return json_data(value.tolist())
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, (list, tuple)):
        return [json_data(item) for item in value]
    return str(value)


def differences(
    saved: Any, current: Any, path: str = "", *, missing: Any = "not set"
) -> list[str]:
    """Return where two JSON trees differ, as "name: saved → current".

    Args:
        saved: One tree.
        current: The other one.
        path: Name of what they are part of.
        missing: What counts for a key that only the other one has.
    """
    if isinstance(saved, dict) and isinstance(current, dict):
        found = []
        for key in sorted(saved.keys() | current.keys()):
            inner = f"{path}.{key}" if path else key
            before, after = saved.get(key, missing), current.get(key, missing)
            found += differences(before, after, inner, missing=missing)
        return found
    return [] if saved == current else [f"{path}: {saved} → {current}"]


# --- in words -----------------------------------------------------------------------


def value_text(value: Any) -> str:
    """Return a value as the command line takes it: `3,4`, `true`, `none`."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ",".join(map(value_text, value))
    if isinstance(value, float) and value.is_integer():
        return f"{value:.0f}"
    return str(value)


def in_words(hint: Any) -> str:
    """Return what a type admits, for messages and tables."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    kind = origin or hint
    if kind is typing.Annotated:
        return in_words(arguments[0])
    if kind in UNIONS:
        return " or ".join(map(in_words, arguments))
    if kind is Literal:
        return " or ".join(map(repr, arguments))
    if kind in MAPPINGS or dataclasses.is_dataclass(kind):
        return "a table"
    if kind in SEQUENCES:
        inner = {item for item in arguments if item is not ...}
        things = PLURALS.get(inner.pop(), "values") if len(inner) == 1 else "values"
        fixed = len(arguments) > 1 and arguments[-1] is not ...
        return f"{len(arguments)} {things}" if fixed else f"a list of {things}"
    return WORDS.get(hint, str(getattr(hint, "__name__", hint)).lower())


def _choices(hint: Any) -> list[str]:
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return [choice for choice in arguments if isinstance(choice, str)]
    return [choice for item in arguments for choice in _choices(item)]
