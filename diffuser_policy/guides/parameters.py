"""Parameters of guides that are made by name: what there are, and their values.

They are the fields of a guide's dataclass, or the arguments of a plain function after
the trajectory. Values come from Python, JSON or the command line, and are converted to
the annotated type, so that a guide that was saved equals the one that is loaded.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import inspect
import math
import numbers
import re
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from diffuser_policy.errors import GuideError
from diffuser_policy.guides.guide import Guide

SEQUENCES = (tuple, collections.abc.Sequence)
SECTION = re.compile(r"^(Args|Attributes):\n((?:[ ]+.*\n?|\n)*)", re.MULTILINE)
REQUIRED: Any = inspect.Parameter.empty
KINDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "a text",
    type(None): "none",
    Any: "a value that is finite",
}


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One parameter of a guide.

    Attributes:
        name: As a keyword argument.
        hint: Annotated type; `Any` where there is none.
        default: `REQUIRED` where there is none.
        help: From the docstring's section of attributes or arguments.
    """

    name: str
    hint: Any = Any
    default: Any = REQUIRED
    help: str = ""

    @property
    def required(self) -> bool:
        """Whether it has no default."""
        return self.default is REQUIRED

    @property
    def kind(self) -> str:
        """What it may be, in words."""
        return in_words(self.hint)

    def __str__(self) -> str:
        """Return `name=default`, or `name (required)`."""
        if self.required:
            return f"{self.name} (required)"
        return f"{self.name}={value_text(self.default)}"


def parameters_of(target: Any) -> tuple[Parameter, ...]:
    """Return the parameters of a guide class or function.

    Raises:
        GuideError: It is neither a frozen dataclass that derives from `Guide` nor a
            function of a trajectory, or its parameters cannot be given by name.
    """
    where = address(target)
    if not isinstance(target, type):
        return _of_function(target, where)
    if not issubclass(target, Guide):
        raise GuideError(
            f"{where} is a class that does not derive from Guide, and cannot be "
            f"registered as a guide. Derive it from diffuser_policy.Guide."
        )
    settings = vars(target).get("__dataclass_params__")
    if settings is None or not settings.frozen:
        raise GuideError(
            f"{where} must be a frozen dataclass to be a guide by name: its fields are "
            f"the parameters. Write @dataclass(frozen=True, kw_only=True) right above "
            f"the class."
        )
    try:
        hints = typing.get_type_hints(target)
    except NameError as error:
        raise GuideError(
            f"The annotations of {where} cannot be read: {error}. Import what they "
            f"name at run time, not under TYPE_CHECKING."
        ) from error
    return _of_fields(target, hints)


def _of_fields(target: Any, hints: dict[str, Any]) -> tuple[Parameter, ...]:
    """Return the parameters of a dataclass.

    Fields that do not count in comparisons hold state, such as a network that the
    guide was bound to, and are no parameters.
    """
    helps = split_docstring(target)[1]
    found = []
    for item in dataclasses.fields(target):
        if not item.init or not item.compare:
            continue
        if hasattr(Guide, item.name):
            raise GuideError(
                f"{address(target)} has a field {item.name!r}, which every guide uses "
                f"for something else. Choose another name."
            )
        default = REQUIRED
        if item.default is not dataclasses.MISSING:
            default = item.default
        elif item.default_factory is not dataclasses.MISSING:
            default = item.default_factory()
        found.append(
            Parameter(
                name=item.name,
                hint=hints[item.name],
                default=default,
                help=helps.get(item.name, ""),
            )
        )
    return tuple(found)


def _of_function(target: Any, where: str) -> tuple[Parameter, ...]:
    """Return the parameters of a function, without the trajectory."""
    if not callable(target) or isinstance(target, Guide):
        raise GuideError(
            f"{where} is no guide: expected a dataclass that derives from Guide, or a "
            f"function of a trajectory, got {target!r}."
        )
    arguments = list(inspect.signature(target).parameters.values())
    if not arguments or arguments[0].kind is inspect.Parameter.KEYWORD_ONLY:
        raise GuideError(
            f"The first argument of {where} must be the trajectory, as in "
            f"def guide(trajectory, *, strength: float = 1.0)."
        )
    by_name = (
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
    )
    helps = split_docstring(target)[1]
    found = []
    for argument in arguments[1:]:
        if argument.kind not in by_name:
            raise GuideError(
                f"The argument {str(argument)!r} of {where} cannot be given by name. A "
                f"guide's parameters are spelled out, each with its own name."
            )
        found.append(
            Parameter(
                name=argument.name,
                hint=_hint(target, argument),
                default=argument.default,
                help=helps.get(argument.name, ""),
            )
        )
    return tuple(found)


def _hint(function: Any, argument: inspect.Parameter) -> Any:
    """Return an argument's type; where there is none to be had, any value will do."""
    if argument.annotation is inspect.Parameter.empty:
        return Any
    alone = types.SimpleNamespace(__annotations__={"it": argument.annotation})
    scope = getattr(inspect.unwrap(function), "__globals__", {})
    try:
        return typing.get_type_hints(alone, globalns=scope)["it"]
    except NameError:  # imported for type checkers only
        return Any


def address(target: Any) -> str:
    """Return where a class or function is defined, as entry points write it."""
    name = getattr(target, "__qualname__", type(target).__qualname__)
    return f"{getattr(target, '__module__', '?')}:{name}"


def converted(value: Any, hint: Any) -> Any:
    """Return a value as an annotated type; arrays and JSON lists become tuples.

    Raises:
        ValueError: It is of another type, or not finite.
    """
    value = value.tolist() if hasattr(value, "tolist") else value
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(value)
    if origin is typing.Annotated:
        return converted(value, arguments[0])
    if origin in (types.UnionType, typing.Union):
        return _first(value, arguments)
    if origin is Literal:
        for choice in arguments:
            if choice == value and type(choice) is type(value):
                return choice
    elif hint in SEQUENCES or origin in SEQUENCES:
        return _sequence(value, arguments)
    elif hint is float or hint is int:
        kind: Any = numbers.Real if hint is float else numbers.Integral
        if isinstance(value, kind) and not isinstance(value, bool):
            return hint(value)
    elif hint is Any:
        return _sequence(value, ()) if isinstance(value, list | tuple) else value
    elif not isinstance(hint, type) or isinstance(value, hint):
        return value
    raise ValueError(value)


def _first(value: Any, hints: tuple[Any, ...]) -> Any:
    """Return a value as the first of several types that it fits."""
    for hint in hints:
        try:
            return converted(value, hint)
        except ValueError:
            continue
    raise ValueError(value)


def _sequence(value: Any, hints: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a list or tuple as a tuple of given types."""
    if not isinstance(value, list | tuple):
        raise ValueError(value)
    if not hints:
        hints = (Any, ...)
    if hints[-1] is ...:
        hints = (hints[0],) * len(value)
    return tuple(converted(v, hint) for v, hint in zip(value, hints, strict=True))


def plain(value: Any) -> Any:
    """Return a value as JSON data.

    Raises:
        ValueError: It has no form in JSON.
    """
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: plain(item) for key, item in value.items()}
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise ValueError(value)


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
    if origin is typing.Annotated:
        return in_words(arguments[0])
    if origin in (types.UnionType, typing.Union):
        return " or ".join(map(in_words, arguments))
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if hint in SEQUENCES or not arguments or origin not in SEQUENCES:
        return KINDS.get(hint, str(getattr(hint, "__name__", hint)).lower())
    inner = {in_words(item) for item in arguments if item is not ...}
    what = {"a finite number": "numbers", "a whole number": "whole numbers"}
    things = what.get(inner.pop(), "values") if len(inner) == 1 else "values"
    return things if arguments[-1] is ... else f"{len(arguments)} {things}"


def split_docstring(target: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """Return a docstring without its list of parameters, and their descriptions.

    Args:
        target: Documented in Google's style.
    """
    text = inspect.getdoc(target) or ""
    if isinstance(target, type) and text.startswith(f"{target.__name__}("):
        text = ""  # what a dataclass without a docstring says of itself
    helps: dict[str, str] = {}
    for section in SECTION.finditer(text):
        name = ""
        for line in inspect.cleandoc("\n" + section[2]).splitlines():
            if found := re.match(r"(\w+)(?: \([^)]*\))?: *(.*)", line):
                name, helps[found[1]] = found[1], found[2]
            elif name:
                helps[name] = f"{helps[name]} {line.strip()}".strip()
    rest = re.sub(r"\n{3,}", "\n\n", SECTION.sub("", text))
    return rest.strip(), helps
