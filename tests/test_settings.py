"""Plain values as annotated types: settings, guide parameters, options of methods."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pytest

from diffuser_policy.errors import ConfigError, GuideError
from diffuser_policy.settings import (
    MisfitError,
    all_options,
    checked,
    converted,
    from_json,
    in_words,
    parameters_of,
    plain,
    to_json,
)

if TYPE_CHECKING:
    from collections import OrderedDict


@dataclass(frozen=True, kw_only=True)
class Inner:
    """A part of the other."""

    size: int = 1


@dataclass(frozen=True, kw_only=True)
class Outer:
    """Settings of every form."""

    kind: Literal["small", "large"]
    inner: Inner = field(default_factory=Inner)
    sizes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (3, float, 3.0),
        (np.int64(3), int, 3),
        (np.True_, bool, True),
        ([3, 4], tuple[float, float], (3.0, 4.0)),
        (np.array([[1, 2]]), tuple[tuple[int, ...], ...], ((1, 2),)),
        ([1, "a"], Sequence, (1, "a")),
        ([[1], [2]], Any, ((1,), (2,))),
        (None, int | None, None),
        (2, int | float, 2),
        (2.5, int | float, 2.5),
        (7, Annotated[float, "a remark"], 7.0),
        ("small", Literal["small", "large"] | None, "small"),
        ({"size": 3}, Inner, Inner(size=3)),
        ({"a": [1]}, Mapping[str, tuple[int, ...]], {"a": (1,)}),
        ({"a": [1]}, Mapping[str, Any], {"a": [1]}),  # other people's data
    ],
)
def test_values_become_the_annotated_type(value: Any, hint: Any, expected: Any) -> None:
    found = converted(value, hint)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("value", "hint", "words"),
    [
        (True, int, "a whole number"),
        (8.0, int, "a whole number"),
        (True, float, "a finite number"),
        (math.inf, float, "a finite number"),
        (math.nan, Any, "a value that is finite"),
        (1, bool, "true or false"),
        (3, str, "a text"),
        ("01", tuple[int, ...], "a list of whole numbers"),
        ((1.0,), tuple[float, float], "2 numbers"),
        ([1, math.nan], tuple[float, float], "2 numbers"),
        (3, Inner, "a table"),
        ("3", float | None, "a finite number or none"),
    ],
)
def test_other_values_are_refused(value: Any, hint: Any, words: str) -> None:
    assert in_words(hint) == words
    with pytest.raises(MisfitError, match=f"must be {words}, got"):
        converted(value, hint)


def test_arrays_stay_arrays_where_arrays_are_wanted() -> None:
    array = np.ones(3)
    assert converted(array, np.ndarray | None) is array


def test_dataclasses_survive_json() -> None:
    given = Outer(kind="large", inner=Inner(size=2), sizes={"a": (1,)}, extra={"b": []})
    assert from_json(Outer, plain(to_json(given))) == given


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, r"Outer needs kind\. Its settings: kind \(required\), inner, sizes="),
        ({"kind": "larg"}, r"'small' or 'large', got 'larg'\. Did you mean 'large'"),
        ({"kind": "small", "iner": {}}, r"Outer has no setting 'iner'\. Did you mean"),
        ({"kind": "small", "inner": {"size": "2"}}, "'size' of Inner must be a whole"),
        (
            {"kind": "small", "sizes": {"a": 3}},
            "'sizes' of Outer, at 'a', must be a list of whole numbers, got 3",
        ),
    ],
)
def test_wrong_settings_are_named(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_json(Outer, data)


def noisy(  # type: ignore[no-untyped-def]
    env: Any,
    *,
    seed: int = 0,
    scale=1.0,  # noqa: ANN001
    name="a",  # noqa: ANN001
    extra: OrderedDict[str, int] | None = None,
) -> None:
    """Take some options."""


def test_options_are_the_defaults_and_what_is_given() -> None:
    expected = {"scale": 2, "name": "a", "extra": {"b": 1}}
    taken = parameters_of(noisy)
    assert all_options("it", taken, {"scale": 2, "extra": {"b": 1}}) == expected
    for given, message in (
        ({"seed": 1}, "It has no option 'seed'"),
        ({"scale": "2"}, "'scale' of it must be a whole number or a finite number"),
        ({"name": 3}, "'name' of it must be a text"),
    ):
        with pytest.raises(ConfigError, match=message):
            all_options("it", taken, given)


def test_errors_are_those_of_the_caller() -> None:
    with pytest.raises(GuideError, match="It has no parameters"):
        checked("the guide", (), {"a": 1}, noun="parameter", error=GuideError)
    assert [p.name for p in parameters_of(Inner)] == ["size"]


class Called:
    """An object that is called, and a method of it."""

    def __call__(self, env: Any, *, kind: Literal["a", "b"] = "a") -> None: ...


def called(env: Any, *, kind: Literal["a", "b"] = "a") -> None: ...


@pytest.mark.parametrize(
    "target",
    [
        called,
        partial(called),
        partial(partial(called), kind="b"),
        Called(),
        Called().__call__,
        partial(Called()),
        wraps(called)(partial(called)),
    ],
)
def test_annotations_are_read_wherever_the_function_is(target: Any) -> None:
    """They are texts in this module."""
    assert parameters_of(target)[-1].hint == Literal["a", "b"]


@pytest.mark.parametrize(
    "text", ["in meters", "m/s", "float | 'x'", "np.nothing", "Literal", "1 / 0"]
)
def test_an_annotation_that_is_no_type_admits_any_value(text: str) -> None:
    def unusual(*, speed: float = 1.0) -> None: ...

    unusual.__annotations__["speed"] = text
    found = all_options("it", parameters_of(unusual), {"speed": "fast"})
    assert found == {"speed": "fast"}
