"""Guides by name, with their parameters, as JSON, and as a line of text.

    @register_guide("keep-left")
    def keep_left(trajectory, *, strength: float = 1.0):
        return -strength * trajectory.position[..., 0].mean(dim=1)

    guide = make_guide("keep-left", strength=2.0)
    guide_to_json(guide)    [{"guide": "keep-left", "weight": 1.0, "parameters": {…}}]
    parse_guide("0.5*keep-left:strength=2")             as the command line takes it

A guide is a frozen dataclass that derives from `Guide`, whose fields are its
parameters, or a function of a trajectory, whose further arguments are. Distributions
offer guides in the entry-point group `diffuser_policy.guides`; this one offers its own
in the same way. `diffuser_policy.plugins` has the rules for names.

A text is an optional weight with a star, the guide's name, and after a colon its
parameters, separated by semicolons. A value is a number, `true`, `false`, `none`, a
word, several of these separated by commas, or JSON:

    keep-out:center=3,4;radius=0.6          waypoint:position=[1,2];columns=position
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

from docstring_parser import google

from diffuser_policy.errors import DiffuserPolicyError, GuideError
from diffuser_policy.guides.guide import (
    FunctionGuide,
    Guide,
    WeightedSum,
    described,
)
from diffuser_policy.plugins import Kind, Plugin, Registrable, address
from diffuser_policy.settings import (
    BY_NAME,
    NAMED,
    MisfitError,
    Parameter,
    checked,
    converted,
    in_words,
    parameters_of,
    plain,
    value_text,
)

SAVED = 'a list of {"guide": name, "weight": number, "parameters": {…}}'
TEXT = re.compile(r"(?:(?P<weight>[^*:;=]*)\*)?(?P<name>[^:*;=]+)(?::(?P<rest>.*))?")
ONE_PARAMETER = re.compile(r'(?:[^;"]|"(?:[^"\\]|\\.)*"|")+')  # quotes hide semicolons
GENERAL = "keep-out:center=3,4;radius=0.6"
NO_GUIDE = "none"
ONLY_BY_NAME = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True, kw_only=True)
class SavedPart:
    """One part of a guide as JSON: a name, a weight, and parameters."""

    guide: str
    weight: float = 1.0
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RegisteredGuide:
    """A guide that is registered under a name.

    Attributes:
        name: Name in the registry.
        target: A guide's dataclass, or a function of a trajectory.
        parameters: Parameters, in the order of fields or arguments.
    """

    name: str
    target: Any = field(repr=False)
    parameters: tuple[Parameter, ...]

    def documentation(self) -> tuple[str, dict[str, str]]:
        """Return the docstring without its sections, and the parameters' lines."""
        target = self.target
        while isinstance(target, partial) and "__doc__" not in vars(target):
            target = target.func  # a partial has a docstring on partials
        text = inspect.getdoc(target) or ""
        if isinstance(self.target, type) and text.startswith(
            f"{self.target.__name__}("
        ):
            return "", {}  # the docstring that `dataclass` generates
        found = google.parse(text)
        last = found.long_description or found.short_description or ""
        description = text[: text.find(last) + len(last)]
        helps = {
            p.arg_name: " ".join((p.description or "").split()) for p in found.params
        }
        return description, helps

    def make(self, given: Mapping[str, Any]) -> Guide:
        """Return the guide with values of its parameters.

        Args:
            given: Those that differ from the defaults.

        Raises:
            GuideError: A parameter that it doesn't have, that is missing, or whose
                value it cannot take.
        """
        values = checked(
            f"the guide {self.name!r}",
            self.parameters,
            given,
            noun="parameter",
            error=GuideError,
        )
        if not isinstance(self.target, type):
            defaults = {p.name: p.default for p in self.parameters}
            every = tuple({**defaults, **values}.items())
            return FunctionGuide(self.target, self.name, every)
        try:
            guide: Guide = self.target(**values)
        except DiffuserPolicyError:
            raise
        except (TypeError, ValueError) as error:
            raise GuideError(
                f"The guide {self.name!r} refuses its parameters {values}: {error}"
            ) from error
        return guide


def guide_parameters(target: Any) -> tuple[Parameter, ...]:
    """Return the parameters of a guide class or function.

    Fields of a dataclass that don't count in comparisons hold state, such as a network
    that the guide was bound to, and are no parameters.

    Raises:
        GuideError: It is neither a frozen dataclass that derives from `Guide` nor a
            function of a trajectory, or its parameters cannot be given by name.
    """
    where = address(target)
    if not isinstance(target, type):
        trajectory = _check_function(target, where)
        return tuple([p for p in parameters_of(target) if p.name != trajectory])
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
    fields: Any = target
    state = {item.name for item in dataclasses.fields(fields) if not item.compare}
    try:
        found = [p for p in parameters_of(target) if p.name not in state]
    except Exception as error:  # whatever other people's annotations raise
        raise GuideError(
            f"The annotations of {where} cannot be read: {error}. Annotate with types, "
            f"and import them at run time, not under TYPE_CHECKING."
        ) from error
    for parameter in found:
        if hasattr(Guide, parameter.name):
            raise GuideError(
                f"{where} has a field {parameter.name!r}, which every guide uses for "
                f"something else. Choose another name."
            )
    return tuple(found)


def _check_function(target: Any, where: str) -> str:
    """Refuse what is no function of a trajectory; return that argument's name."""
    if not callable(target) or isinstance(target, Guide):
        raise GuideError(
            f"{where} is no guide: expected a dataclass that derives from Guide, or a "
            f"function of a trajectory, got {target!r}."
        )
    try:
        arguments = list(inspect.signature(target).parameters.values())
    except ValueError as error:  # not written in Python
        raise GuideError(
            f"The arguments of {where} cannot be read: {error}. Write a function of a "
            f"trajectory that calls it."
        ) from error
    if not arguments or arguments[0].kind in ONLY_BY_NAME:
        raise GuideError(
            f"The first argument of {where} must be the trajectory, as in "
            f"def guide(trajectory, *, strength: float = 1.0)."
        )
    for argument in arguments[1:]:
        if argument.kind not in BY_NAME:
            raise GuideError(
                f"The argument {str(argument)!r} of {where} cannot be given by name. A "
                f"guide's parameters are spelled out, each with its own name."
            )
    return arguments[0].name


GUIDES = Kind(
    name="guide",
    group="diffuser_policy.guides",
    example="keep-out",
    check=guide_parameters,
    error=GuideError,
    addresses=False,
)


def register_guide(name: str) -> Callable[[Registrable], Registrable]:
    """Return a decorator that makes a guide known by name.

    It takes a frozen dataclass that derives from `Guide`, whose fields are the guide's
    parameters, or a function of a trajectory, whose further arguments are. Defining the
    same class or function anew, as in a notebook, replaces it.

    Args:
        name: Lower-case words joined by dashes, as "keep-out".

    Raises:
        GuideError: The name is malformed or taken, or the decorated object is neither.
    """
    if name == NO_GUIDE:
        raise GuideError(
            f"A guide cannot be called {name!r}: --guide {name} drops every guide. "
            f"Choose another name."
        )
    return GUIDES.register(name)


def make_guide(name: str, /, **parameters: Any) -> Guide:
    """Return a guide by name.

    Args:
        name: For example "keep-out".
        parameters: For example `center=(3, 4), radius=0.6`.

    Raises:
        UnknownNameError: No guide of that name; the nearest are offered.
        GuideError: A parameter that the guide doesn't have, that is missing, or whose
            value it cannot take; or the plug-in that offers the guide is broken.
    """
    return find_guide(name).make(parameters)


def find_guide(name: str) -> RegisteredGuide:
    """Return the registered guide of a name.

    Raises:
        UnknownNameError: No guide of that name; the nearest are offered.
        GuideError: It is offered twice, or the plug-in that offers it is broken.
    """
    return registered_guide(GUIDES.find(name))


def registered_guide(plugin: Plugin) -> RegisteredGuide:
    """Return a loaded plug-in as a guide with its parameters."""
    parameters = guide_parameters(plugin.target)
    return RegisteredGuide(
        name=plugin.name, target=plugin.target, parameters=parameters
    )


@cache
def is_offered(where: str) -> bool:
    """Return whether an installed package offers the guide that is defined somewhere.

    Args:
        where: As `address` returns it.
    """
    offers = (plugin for plugin in GUIDES.offers() if plugin.point is not None)
    return any(plugin.address == where for plugin in offers)


def guide_to_json(guide: Guide) -> list[dict[str, Any]]:
    """Return a guide as plain JSON data: name, weight and parameters of each part.

    Raises:
        GuideError: A part is not registered, or a parameter has no form in JSON.
    """
    return [
        {"guide": found.name, "weight": weight, "parameters": _recorded(part, found)}
        for weight, part in guide.parts()
        for found in [_registered(part)]
    ]


def guide_record(guide: Guide) -> list[dict[str, Any]] | str:
    """Return a guide for the record: its JSON data, or its formula if it has none."""
    try:
        return guide_to_json(guide)
    except GuideError:
        return described(guide)


def guide_from_json(data: Sequence[Mapping[str, Any]]) -> Guide:
    """Return the guide that `guide_to_json` wrote.

    Raises:
        GuideError: Data of another form, or a guide that is not registered here.
    """
    try:
        parts = converted(data, tuple[SavedPart, ...])
    except ValueError:
        parts = ()
    if not parts:
        raise GuideError(f"A saved guide is {SAVED}, got {data!r}.")
    terms = []
    for part in parts:
        found = registered_guide(GUIDES.find_saved(part.guide, "The saved guide"))
        terms.append((part.weight, found.make(part.parameters)))
    [(first, guide), *rest] = terms
    return WeightedSum(tuple(terms)) if rest or first != 1.0 else guide


def _recorded(part: Guide, found: RegisteredGuide) -> dict[str, Any]:
    values = {p.name: p.default for p in found.parameters}
    if isinstance(part, FunctionGuide):
        values |= dict(part.parameters)
    else:
        values = {name: getattr(part, name) for name in values}
    data = {}
    for parameter in found.parameters:
        value = values[parameter.name]
        try:
            typed = converted(value, parameter.hint)
            saved = plain(typed)
            if not _same(typed, converted(saved, parameter.hint)):
                raise MisfitError(parameter.name, parameter.hint, value)
        except MisfitError as error:
            if value is parameter.default:  # whoever loads the guide has it, too
                continue
            raise GuideError(
                f"The parameter {parameter.name!r} of the guide {found.name!r} cannot "
                f"be saved: it must be {in_words(parameter.hint)}, as plain data, got "
                f"{value!r}. Plain data is numbers, texts, none, lists, and tables "
                f"whose keys are texts."
            ) from error
        data[parameter.name] = saved
    return data


def _same(typed: Any, back: Any) -> bool:
    """Return whether a value came back from JSON, where tuples are lists."""
    if isinstance(typed, Mapping):
        return typed.keys() == back.keys() and all(
            _same(value, back[key]) for key, value in typed.items()
        )
    if isinstance(typed, list | tuple):
        return len(typed) == len(back) and all(map(_same, typed, back))
    return bool(typed == back)


def _registered(part: Guide) -> RegisteredGuide:
    """Return what is registered for a part of a guide.

    Plug-ins are imported only if their entry points do not decide.
    """
    target = part.function if isinstance(part, FunctionGuide) else type(part)
    where = address(target)
    found = _found(part, target, where)
    if found is None:
        raise GuideError(
            f"The guide {part.name} is not registered, so it cannot be saved or named "
            f"in text. Make it a named function, or a frozen dataclass that derives "
            f'from Guide, and put @register_guide("some-name") above its definition '
            f"({where})."
        )
    if found.target is not target and not _is_copy(target, found):
        raise GuideError(
            f"The guide {part.name} was made before {found.name!r} was registered "
            f"anew ({where}), so it cannot be saved or named in text. Make the guide "
            f"again, of the present definition."
        )
    return found


def _found(part: Guide, target: Any, where: str) -> RegisteredGuide | None:
    """Return what is registered as this target, or else what is at its address."""
    if isinstance(part, FunctionGuide) and part.registered_as is not None:
        return find_guide(part.registered_as)
    for plugin in GUIDES.offers():
        offered = plugin.point is not None and plugin.address == where
        if offered or plugin.target is target:
            return find_guide(plugin.name)
    for plugin, error in GUIDES.entries():
        if error is None and plugin.target is target:
            return registered_guide(plugin)
    anew = (p for p in GUIDES.registered.values() if p.address == where)
    return None if _is_object(target) else next(map(registered_guide, anew), None)


def _is_copy(target: Any, found: RegisteredGuide) -> bool:
    """Return whether an object that is called may be a copy of the registered one."""
    names = [parameter.name for parameter in found.parameters]
    return _is_object(target) and names == [p.name for p in guide_parameters(target)]


def _is_object(target: Any) -> bool:
    """Return whether it is called by its `__call__`: copies of guides copy it too."""
    return not isinstance(target, type) and not inspect.isroutine(target)


# --- as a line of text --------------------------------------------------------------


def parse_guide(text: str) -> Guide:
    """Return the guide that a text describes.

    Args:
        text: For example "keep-out:center=3,4;radius=0.6" or "2*goal-distance".

    Raises:
        UnknownNameError: No guide of that name; the nearest are offered.
        GuideError: A text of another form, or parameters that the guide cannot take.
            The text is shown, and one that would be right.
    """
    form = TEXT.fullmatch(text.strip())
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
    """Return the sum of the guides that texts describe; None for `none` or no text.

    Raises:
        UnknownNameError: No guide of a name; the nearest are named.
        GuideError: A guide that cannot be read, or another one beside `none`.
    """
    if NO_GUIDE not in texts:
        return sum(map(parse_guide, texts)) or None  # the sum of no guides is 0
    others = [text for text in texts if text != NO_GUIDE]
    if others:
        raise GuideError(
            f"--guide {NO_GUIDE} drops every guide, but --guide {others[0]!r} was "
            f"given, too. Leave out --guide {NO_GUIDE}: guides that you give replace "
            f"the planner's own."
        )
    return None


def example_texts(guide: RegisteredGuide) -> list[str]:
    """Return texts that show how a guide is given.

    They come from the calls of `make_guide` in its docstring. Without any, one text is
    made of its required parameters, or of the first with a default that texts can
    have.
    """
    documented = list(_documented(guide))
    if documented:
        return documented
    required = [p for p in guide.parameters if p.required]
    optional = [p for p in guide.parameters if _has_text(p)]
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


def part_text(part: SavedPart) -> str:
    """Return the text of a part of a guide: `parse_guide` reads it back.

    Parameters that have their default are left out.
    """
    defaults = {p.name: p for p in find_guide(part.guide).parameters}
    values = {
        name: _value_text(plain(value))
        for name, value in part.parameters.items()
        if name not in defaults or not _is_default(plain(value), defaults[name])
    }
    return _text(part.guide, values, part.weight)


def _is_default(saved: Any, parameter: Parameter) -> bool:
    try:
        return bool(plain(parameter.default) == saved)
    except MisfitError:  # JSON lacks it, or there is none
        return False


def _text(name: str, values: Mapping[str, str], weight: float = 1.0) -> str:
    factor = "" if weight == 1.0 else f"{value_text(weight)}*"
    listed = ";".join(f"{parameter}={text}" for parameter, text in values.items())
    return f"{factor}{name}:{listed}" if listed else f"{factor}{name}"


def _parameters(found: RegisteredGuide, text: str) -> dict[str, Any]:
    known = {parameter.name: parameter for parameter in found.parameters}
    values: dict[str, Any] = {}
    for part in filter(None, (piece.strip() for piece in ONE_PARAMETER.findall(text))):
        name, equals, value = (word.strip() for word in part.partition("="))
        if not equals or not name or not value:
            raise GuideError(f"{part!r} is not of the form PARAMETER=VALUE.")
        if name in values:
            raise GuideError(f"The parameter {name!r} is given twice.")
        values[name] = read_value(value, known.get(name))
    return values


def read_value(text: str, parameter: Parameter | None) -> Any:
    """Return the value of a text that fits a parameter best.

    A single value may stand for a list of one, and any text for itself, if the
    parameter admits that. The guide refuses what does not fit at all.
    """
    literal = _literal(text)
    hint = Any if parameter is None else parameter.hint
    if hint is Any:  # it admits all but infinity and NaN, which are no texts
        return literal
    for value in (literal, (literal,), text):
        try:
            return converted(value, hint)
        except MisfitError:
            continue
    return literal


def _literal(text: str) -> Any:
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
    if text.lower() in NAMED:
        return NAMED[text.lower()]
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
        bare = bool(text) and text == text.strip() and not set(';"\n') & set(text)
        readable = bare and plain(_literal(text)) == value
    except (GuideError, MisfitError):  # it reads as JSON, or as no finite number
        readable = False
    return text if readable else json.dumps(value)


def _has_text(parameter: Parameter) -> bool:
    """Return whether there is a default whose text is read back."""
    text = value_text(parameter.default)
    try:
        read = plain(converted(read_value(text, parameter), parameter.hint))
    except DiffuserPolicyError:
        return False
    return bool(text) and read is not None and _is_default(read, parameter)


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
    reason = reason if reason.endswith(".") else f"{reason}."
    return GuideError(f"Cannot read the guide {text!r}: {reason} Example: {example!r}")
