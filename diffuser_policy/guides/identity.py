"""Identity of guides: a plan is followed until its guide changes.

    key_of(KeepOut(center=(3, 4), radius=1))    the same for an equal guide
    key_of(KeepOut(center=(3, 5), radius=1))    another

Guides that installed packages offer by name have the same key in every process, if
their parameters are plain values. All others have one in this process alone: nobody
knows whether a class or function of the same name does the same elsewhere.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import numbers
import os
import secrets
import types
import weakref
from collections.abc import Hashable
from typing import Any

from torch import Tensor

from diffuser_policy.guides.guide import FunctionGuide, WeightedSum
from diffuser_policy.guides.registry import is_offered
from diffuser_policy.plugins import address

_PROCESS = secrets.token_hex(8)
_COUNT = itertools.count()
_NUMBERS: dict[int, tuple[weakref.ref[Any], str]] = {}  # by address


def key_of(*parts: Any) -> int:
    """Return a number of 64 bits that differs between guides, also in their values.

    Args:
        parts: Guides, and whatever else tells two plans apart.
    """
    told = repr(_told_apart(parts)).encode()
    digest = hashlib.blake2b(told, digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def _told_apart(part: Any) -> Any:
    """Return nested texts and numbers that differ from those of all other parts."""
    if isinstance(part, (tuple, list)):
        return tuple(map(_told_apart, part))
    # Built-in types first: asking for `Real` is slow.
    if part is None or isinstance(part, (str, float, int, numbers.Real)):
        return repr(part)
    if isinstance(part, (dict, types.MappingProxyType)):
        return "dict", *map(_told_apart, part.items())
    if isinstance(part, types.MethodType):
        return tuple(map(_told_apart, (part.__self__, part.__func__)))
    kind: Any = part if isinstance(part, type | types.FunctionType) else type(part)
    itself: Any = address(kind)
    # A sum, and a guide made of a function, are what their parts are.
    if kind not in (WeightedSum, FunctionGuide) and not is_offered(itself):
        itself = _number_of(kind), _number_by_equality(part)
    if not dataclasses.is_dataclass(part):
        return itself
    values = (getattr(part, field.name) for field in dataclasses.fields(part))
    return itself, *map(_told_apart, values)


def _next_number() -> str:
    """Return a number that no process gives out again, also none that was forked."""
    return f"{_PROCESS}-{os.getpid()}-{next(_COUNT)}"


def _number_by_equality(part: Any) -> str:
    """Return a number that equal parts share; one of its own if it is unique."""
    kind: Any = type(part)
    if getattr(getattr(kind, "__dataclass_params__", None), "eq", False):
        return ""  # its fields, which are told apart themselves, are all it has
    # Tensors compare by element, and have their addresses for hashes.
    if kind.__eq__ is object.__eq__ or isinstance(part, Tensor):
        return _number_of(part)
    try:
        return _number_of_kept(part)
    except Exception:  # no hash, or a comparison by element
        return _number_of(part)


def _number_of(part: Any) -> str:
    """Return a number that no other object gets, even a later one at its address."""
    known = _NUMBERS.get(id(part))
    if known is None or known[0]() is not part:
        try:
            known = weakref.ref(part), _next_number()
        except TypeError:  # it takes none, as with `__slots__`
            return _number_of_kept(_Itself(part))
        _NUMBERS[id(part)] = known
    return known[1]


class _Itself:
    """Equal to the very same object alone."""

    def __init__(self, part: Any) -> None:
        self.part = part

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and other.part is self.part

    def __hash__(self) -> int:
        return id(self.part)


@functools.lru_cache(maxsize=4096)  # more than one sum of guides asks for, in turn
def _number_of_kept(part: Hashable) -> str:  # noqa: ARG001
    """Return a number that equal parts share; they are kept, with their addresses."""
    return _next_number()
