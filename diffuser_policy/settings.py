"""Settings as plain data: checked, written as JSON, read back, compared.

What `diffuser_policy.config` and every other dataclass of settings is made with.
"""

from __future__ import annotations

import dataclasses
import numbers
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from diffuser_policy.errors import ConfigError, UnknownNameError

T = TypeVar("T")


def positive(config: object, *names: str) -> None:
    """Refuse settings that are not above zero.

    Raises:
        ConfigError: Names the setting and its value.
    """
    for name in names:
        value = getattr(config, name)
        if not value > 0:  # NaN is not
            raise ConfigError(f"{name} must be positive, got {value}.")


def literal(config: Any, *names: str) -> None:
    """Refuse settings that are none of the values their annotation lists.

    Raises:
        UnknownNameError: Names the setting, its value, and the nearest known ones.
    """
    hints = typing.get_type_hints(type(config))
    for name in names:
        value, known = getattr(config, name), typing.get_args(hints[name])
        if value not in known:
            raise UnknownNameError(f"value of {name}", str(value), map(str, known))


def to_json(config: Any) -> dict[str, Any]:
    """Return a config dataclass as plain JSON data."""
    data: dict[str, Any] = dataclasses.asdict(config)
    return data


def differences(saved: Any, current: Any, path: str = "") -> list[str]:
    """Return where two JSON trees differ, as "name: saved → current"."""
    if isinstance(saved, dict) and isinstance(current, dict):
        found = []
        for key in sorted(saved.keys() | current.keys()):
            inner = f"{path}.{key}" if path else key
            found += differences(saved.get(key), current.get(key), inner)
        return found
    return [] if saved == current else [f"{path}: {saved} → {current}"]


def from_json(cls: type[T], data: Mapping[str, Any]) -> T:
    """Rebuild a config dataclass from `to_json`'s data.

    Args:
        cls: The dataclass.
        data: Its settings; settings left out take their defaults.

    Raises:
        UnknownNameError: A setting that the dataclass does not have.
        ConfigError: A setting of the wrong type, or one without a default is missing.
    """
    hints = typing.get_type_hints(cls)
    fields = {item.name: item for item in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in data:
        if name not in fields:
            raise UnknownNameError(f"setting of {cls.__name__}", name, fields)
    missing = [name for name in fields if name not in data and _is_needed(fields[name])]
    if missing:
        given = ", ".join(data) or "nothing"
        raise ConfigError(f"{cls.__name__} needs {', '.join(missing)}; got {given}.")
    return cls(**{k: _value(k, hints[k], value) for k, value in data.items()})


def _is_needed(field: dataclasses.Field[Any]) -> bool:
    """Return whether a field has no default."""
    return field.default is field.default_factory is dataclasses.MISSING


def _value(name: str, hint: Any, value: Any) -> Any:
    """Convert the JSON value of one setting to the annotated type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        [hint] = [option for option in arguments if option is not type(None)]
        return _value(name, hint, value)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_json(hint, _of_kind(name, value, Mapping, "a table"))
    if origin is Mapping:
        items = _of_kind(name, value, Mapping, "a table").items()
        return {k: _value(f"{name}.{k}", arguments[1], item) for k, item in items}
    if origin is tuple:
        items = _of_kind(name, value, (list, tuple), "a list")
        return tuple(_value(name, arguments[0], item) for item in items)
    if origin is Literal:
        if value not in arguments:
            raise UnknownNameError(f"value of {name}", str(value), map(str, arguments))
        return value
    kind = {float: numbers.Real, int: numbers.Integral}.get(hint, hint)
    if not isinstance(value, kind) or isinstance(value, bool) != (hint is bool):
        raise ConfigError(f"{name} must be of type {hint.__name__}, got {value!r}.")
    return hint(value)


def _of_kind(name: str, value: Any, kind: Any, called: str) -> Any:
    if not isinstance(value, kind):
        raise ConfigError(f"{name} must be {called}, got {value!r}.")
    return value
