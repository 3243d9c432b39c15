"""Guides as a line of text, for the command line.

    keep-out:center=3,4;radius=0.6
    0.5*speed-limit:speed=1.5
    waypoint:position=[1,2];columns=position

A text is an optional weight with a star, the guide's name, and after a colon its
parameters, separated by semicolons. A value is a number, `true`, `false`, `none`, a
word, several of these separated by commas, or JSON.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from diffuser_policy.errors import GuideError
from diffuser_policy.guides.guide import Guide
from diffuser_policy.guides.registry import RegisteredGuide, find_guide
from diffuser_policy.settings import (
    MisfitError,
    Parameter,
    converted,
    plain,
    value_text,
)

FORM = re.compile(r"(?:(?P<weight>[^*:;=]*)\*)?(?P<name>[^:*;=]+)(?::(?P<rest>.*))?")
ONE_PARAMETER = re.compile(r'(?:[^;"]|"(?:[^"\\]|\\.)*"|")+')  # quotes hide semicolons
WORDS = {"true": True, "false": False, "none": None, "null": None}
GENERAL = "keep-out:center=3,4;radius=0.6"


def parse_guide(text: str) -> Guide:
    """Return the guide that a text describes.

    Args:
        text: For example "keep-out:center=3,4;radius=0.6" or "2*goal-distance".

    Raises:
        UnknownNameError: No guide of that name; the nearest are offered.
        GuideError: A text of another form, or parameters that the guide cannot take.
            The text is shown, and one that would be right.
    """
    form = FORM.fullmatch(text.strip())
    if form is None:
        raise _unreadable(text, "it is not of the form NAME:PARAMETER=VALUE;…", GENERAL)
    found = find_guide(form["name"].strip())
    weight, example = 1.0, example_texts(found)[0]
    if form["weight"] is not None:
        try:
            weight = float(form["weight"])
        except ValueError:
            weight = math.nan
        if not math.isfinite(weight):
            raise _unreadable(
                text, f"its weight {form['weight']!r} is not a number", example
            )
    try:
        guide = found.make(_parameters(found, form["rest"] or ""))
    except GuideError as error:
        raise _unreadable(text, str(error), example) from error
    return guide if form["weight"] is None else weight * guide


def parse_guides(texts: Sequence[str]) -> Guide | None:
    """Return the sum of the guides that texts describe, or None without any text.

    Args:
        texts: Each as for `parse_guide`.

    Raises:
        UnknownNameError: No guide of a name; the nearest are offered.
        GuideError: A text of another form, or parameters that a guide cannot take.
    """
    total: Guide | None = None
    for text in texts:
        guide = parse_guide(text)
        total = guide if total is None else total + guide
    return total


def example_texts(guide: RegisteredGuide) -> list[str]:
    """Return texts that show how a guide is given.

    They come from the calls of `make_guide` in its docstring. Without any, one text is
    made of its required parameters, or of the first whose default is not none.
    """
    documented = list(_documented(guide))
    if documented:
        return documented
    required = [p for p in guide.parameters if p.required]
    optional = [p for p in guide.parameters if not p.required and p.default is not None]
    shown = required or optional[:1]
    return [_text(guide.name, {p.name: _sample(p, i) for i, p in enumerate(shown)})]


def _documented(guide: RegisteredGuide) -> Iterator[str]:
    """Yield the texts of the examples in a guide's documentation."""
    lines = guide.documentation()[0].splitlines()
    for line in (line for line in lines if "make_guide(" in line):
        try:
            expression = ast.parse(line.strip(), mode="eval").body
            weight = 1.0
            if isinstance(expression, ast.BinOp) and isinstance(
                expression.op, ast.Mult
            ):
                weight, expression = ast.literal_eval(expression.left), expression.right
            match expression:
                case ast.Call(
                    ast.Name("make_guide"), [ast.Constant(guide.name)], keywords
                ):
                    pass
                case _:
                    continue
            given = {str(k.arg): ast.literal_eval(k.value) for k in keywords}
        except (SyntaxError, ValueError):  # prose, or not made of plain values
            continue
        values = {name: _value_text(plain(value)) for name, value in given.items()}
        yield _text(guide.name, values, weight)


def _text(name: str, values: Mapping[str, str], weight: float = 1.0) -> str:
    """Return the text of a guide from the texts of its values."""
    factor = "" if weight == 1.0 else f"{value_text(weight)}*"
    listed = ";".join(f"{parameter}={text}" for parameter, text in values.items())
    return f"{factor}{name}:{listed}" if listed else f"{factor}{name}"


def _parameters(found: RegisteredGuide, text: str) -> dict[str, Any]:
    """Return names and values of a guide's parameters."""
    known = {parameter.name: parameter for parameter in found.parameters}
    values: dict[str, Any] = {}
    for part in filter(None, (piece.strip() for piece in ONE_PARAMETER.findall(text))):
        name, equals, value = (word.strip() for word in part.partition("="))
        if not equals or not name or not value:
            raise GuideError(f"{part!r} is not of the form PARAMETER=VALUE.")
        if name in values:
            raise GuideError(f"The parameter {name!r} is given twice.")
        values[name] = _value(value, known.get(name))
    return values


def _value(text: str, parameter: Parameter | None) -> Any:
    """Return the value that fits a parameter best.

    A single value may stand for a list of one, and any text for itself, if the
    parameter admits that. The guide refuses what does not fit at all.
    """
    literal = _literal(text)
    hint = Any if parameter is None else parameter.hint
    for value in (literal, (literal,), text):
        try:
            return converted(value, hint)
        except MisfitError:
            continue
    return literal


def _literal(text: str) -> Any:
    """Return the Python value that a text looks like."""
    if text[:1] in ("[", "{", '"'):
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise GuideError(
                f"{text!r} begins like JSON but is not valid: {error}."
            ) from error
    if "," in text:
        pieces = [piece.strip() for piece in text.removesuffix(",").split(",")]
        return tuple(_literal(piece) if piece else piece for piece in pieces)
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _value_text(value: Any) -> str:
    """Return plain data as the text of a value: as short as can be read back."""
    text = value_text(value)
    try:
        readable = ";" not in text and plain(_literal(text)) == value
    except GuideError:
        readable = False
    return text if readable else json.dumps(value)


def _sample(parameter: Parameter, index: int) -> str:
    """Return a value that a parameter may take; points differ with the index."""
    if not parameter.required:
        return value_text(parameter.default)
    point = (2 * index + 1, 2 * index + 2)
    for value in (1, point, (1, 2, 3), True, "position", (point, (0, 0))):
        try:
            return _value_text(plain(converted(value, parameter.hint)))
        except MisfitError:
            continue
    return "VALUE"


def _unreadable(text: str, reason: str, example: str) -> GuideError:
    """Return the error of a text that describes no guide."""
    reason = reason if reason.endswith(".") else f"{reason}."
    return GuideError(f"Cannot read the guide {text!r}: {reason} Example: {example!r}")
