"""Guides by name: registered in this process, or offered by installed distributions.

    @register_guide("keep-left")
    def keep_left(trajectory, *, strength: float = 1.0):
        return -strength * trajectory.position[..., 0].mean(dim=1)

    guide = make_guide("keep-left", strength=2.0)

A distribution offers guides in the entry-point group `diffuser_policy.guides`, names to
`module:attribute`; this one offers its own in the same way. Nothing is read or imported
before a name is looked up. A name means one thing: offered twice, it is refused, except
that a guide of this distribution stays what it is. Plug-ins that fail are reported, and
never keep the others from working.
"""

from __future__ import annotations

import math
import numbers
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points
from importlib.metadata import distribution as distribution_of
from typing import Any, TypeVar

from diffuser_policy.errors import GuideError, UnknownNameError, suggestion
from diffuser_policy.guides.guide import FunctionGuide, Guide, WeightedSum, described
from diffuser_policy.guides.parameters import (
    address,
    converted,
    parameters_of,
    plain,
)
from diffuser_policy.guides.registered import RegisteredFunction, RegisteredGuide

GROUP = "diffuser_policy.guides"
OURS = "diffuser-policy"
NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
Registrable = TypeVar("Registrable", bound=Callable[..., Any])


class GuidePluginWarning(UserWarning):
    """An installed plug-in whose guide cannot be used; the others can."""


@dataclass(frozen=True)
class Offer:
    """A guide that an installed distribution offers, not loaded yet.

    Attributes:
        name: Of the guide.
        point: Where it is.
        origin: The distribution and its version.
    """

    name: str
    point: EntryPoint
    origin: str


@dataclass(frozen=True, kw_only=True)
class GuideEntry:
    """A row of the list of guides: a guide, or why there is none.

    Attributes:
        name: Name that is offered.
        origin: Who offers it.
        guide: What stands behind it.
        error: Why it cannot be used.
    """

    name: str
    origin: str
    guide: RegisteredGuide | None = None
    error: str | None = None


_IN_PROCESS: dict[str, RegisteredGuide] = {}


def register_guide(name: str) -> Callable[[Registrable], Registrable]:
    """Return a decorator that makes a guide known by name.

    It takes a frozen dataclass that derives from `Guide`, whose fields are the guide's
    parameters, or a function of a trajectory, whose further arguments are. Defining the
    same class or function anew, as in a notebook, replaces it.

    Args:
        name: Lower-case words joined by dashes, as "keep-out".

    Raises:
        GuideError: The name is of another form or taken, or the decorated object is
            neither.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise GuideError(
            f"A guide's name is lower-case words joined by dashes, as in "
            f"@register_guide('keep-out'); got {name!r}."
        )

    def decorate(target: Registrable) -> Registrable:
        origin = f"registered in process ({getattr(target, '__module__', '?')})"
        made = RegisteredGuide(
            name=name, target=target, origin=origin, parameters=parameters_of(target)
        )
        takers = {offer.name: offer.point.value for offer in _own_offers()}
        takers |= {known.name: address(known.target) for known in _IN_PROCESS.values()}
        if takers.get(name, address(target)) != address(target):
            raise _taken(name, takers[name], address(target))
        _IN_PROCESS[name] = made
        return target

    return decorate


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
    """Return what stands behind a name.

    Raises:
        UnknownNameError: No guide of that name; the nearest are offered.
        GuideError: It is offered twice, or the plug-in that offers it is broken.
    """
    for offer in _own_offers():
        if offer.name == name:
            return _loaded(offer)
    return _found(name, _offers())


def guide_entries() -> list[GuideEntry]:
    """Return every guide that is offered, those that cannot be used with the reason.

    Imports all plug-ins.
    """
    offers = _offers()
    rows = [_entry(offer, offers) for offer in offers]
    offered = {offer.name for offer in offers}
    rows += [
        GuideEntry(name=name, origin=guide.origin, guide=guide)
        for name, guide in _IN_PROCESS.items()
        if name not in offered
    ]
    return sorted(rows, key=lambda row: (row.name, row.origin))


def available_guides() -> dict[str, RegisteredGuide]:
    """Return the guides that can be used, by name.

    Warns:
        GuidePluginWarning: For each one that cannot, with the reason.
    """
    found = {}
    for entry in guide_entries():
        if entry.guide is not None:
            found[entry.name] = entry.guide
        else:
            warnings.warn(str(entry.error), GuidePluginWarning, stacklevel=2)
    return found


def guide_to_json(guide: Guide) -> list[dict[str, Any]]:
    """Return a guide as plain JSON data: name, weight and parameters of each part.

    Raises:
        GuideError: A part is not registered, or a parameter has no form in JSON.
    """
    return [
        {"guide": found.name, "weight": weight, "parameters": values}
        for weight, part in guide.parts()
        for found, values in [_recorded(part)]
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
        GuideError: Not of that form, or a guide that is not registered here.
    """
    form = 'a list of {"guide": name, "weight": number, "parameters": {…}}'
    if not isinstance(data, Sequence) or isinstance(data, str) or not data:
        raise GuideError(f"A saved guide is {form}, got {data!r}.")
    terms = []
    for item in data:
        if not isinstance(item, Mapping) or not isinstance(item.get("guide"), str):
            raise GuideError(f"A saved guide is {form}, got {item!r} in it.")
        weight, parameters = item.get("weight", 1.0), item.get("parameters", {})
        finite = isinstance(weight, numbers.Real) and math.isfinite(weight)
        if not finite or not isinstance(parameters, Mapping):
            raise GuideError(f"A saved guide is {form}, got {item!r} in it.")
        try:
            found = find_guide(item["guide"])
        except UnknownNameError as error:
            raise GuideError(
                f"No guide {item['guide']!r} is registered here. The package that "
                f"offers it may not be installed, or the module that registers it not "
                f"imported. {suggestion(error.name, error.known)}"
                f"Known: {', '.join(error.known)}."
            ) from error
        terms.append((float(weight), found.make(parameters)))
    [(first, guide), *rest] = terms
    return WeightedSum(tuple(terms)) if rest or first != 1.0 else guide


def _recorded(part: Guide) -> tuple[RegisteredGuide, dict[str, Any]]:
    """Return the registered guide that a part is of, and its parameters as JSON."""
    found = _registered(part)
    values = {p.name: p.default for p in found.parameters}
    if isinstance(part, RegisteredFunction):
        values |= dict(part.parameters)
    elif not isinstance(part, FunctionGuide):
        values = {name: getattr(part, name) for name in values}
    data = {}
    for parameter in found.parameters:
        value = values[parameter.name]
        try:
            data[parameter.name] = plain(converted(value, parameter.hint))
        except ValueError as error:
            raise GuideError(
                f"The parameter {parameter.name!r} of the guide {found.name!r} cannot "
                f"be saved: it must be {parameter.kind}, as plain data, got {value!r}."
            ) from error
    return found, data


def _registered(part: Guide) -> RegisteredGuide:
    """Return the registered guide that a part is of.

    Plug-ins are imported only where their entry points do not tell.
    """
    if isinstance(part, RegisteredFunction):
        return find_guide(part.registered_as)
    target = part.function if isinstance(part, FunctionGuide) else type(part)
    where = address(target)
    names = [name for name, known in _IN_PROCESS.items() if known.target is target]
    for offers in (_own_offers, _offers):
        names += [offer.name for offer in offers() if offer.point.value == where]
        if names:
            return find_guide(names[0])
    for entry in guide_entries():
        if entry.guide is not None and entry.guide.target is target:
            return entry.guide
    raise GuideError(
        f"The guide {part.name} is not registered, so it cannot be saved or told by "
        f"name. Make it a named function, or a frozen dataclass that derives from "
        f'Guide, and put @register_guide("some-name") above its definition ({where}).'
    )


def _own_offers() -> list[Offer]:
    """Return what this distribution offers, without looking at others."""
    try:
        own = distribution_of(OURS)
    except PackageNotFoundError:
        return []
    origin = f"{OURS} {own.version}"
    points = own.entry_points.select(group=GROUP)
    return [Offer(point.name, point, origin) for point in points]


def _offers() -> list[Offer]:
    """Return what all distributions offer: first this one, then by name."""
    origins: dict[int, str] = {}
    found = []
    for point in entry_points(group=GROUP):
        source = point.dist
        key = id(source)  # shared by its entry points; its metadata is slow to read
        if key not in origins:
            origins[key] = (
                "unknown" if source is None else f"{source.name} {source.version}"
            )
        found.append(Offer(point.name, point, origins[key]))
    own = {offer.origin for offer in _own_offers()}
    return sorted(found, key=lambda offer: (offer.origin not in own, offer.origin))


def _found(name: str, offers: Sequence[Offer]) -> RegisteredGuide:
    """Return what stands behind a name, among offers and in this process.

    Raises:
        UnknownNameError: No guide of that name.
        GuideError: It is offered twice, or the plug-in that offers it is broken.
    """
    matching = [offer for offer in offers if offer.name == name]
    if not matching:
        if name in _IN_PROCESS:
            return _IN_PROCESS[name]
        known = {*_IN_PROCESS, *(offer.name for offer in offers)}
        raise UnknownNameError("guide", name, known)
    for other in matching[1:]:
        if other.point.value != matching[0].point.value:
            raise _taken(name, matching[0].origin, other.origin)
    found = _loaded(matching[0])
    here = _IN_PROCESS.get(name)  # after loading, which may register it
    if here is not None and address(here.target) != address(found.target):
        raise _taken(name, found.origin, address(here.target))
    return found


def _loaded(offer: Offer) -> RegisteredGuide:
    """Return the guide of an offer.

    Raises:
        GuideError: It cannot be imported, or is no guide.
    """
    try:
        target = offer.point.load()
        parameters = parameters_of(target)
    except (Exception, SystemExit) as error:  # whatever plug-ins do on import
        reason = str(error) or "no message"
        raise GuideError(
            f"The guide {offer.name!r} of {offer.origin} cannot be loaded from "
            f"{offer.point.value!r}: {type(error).__name__}: {reason}. Repair or "
            f"uninstall that package."
        ) from error
    return RegisteredGuide(
        name=offer.name, target=target, origin=offer.origin, parameters=parameters
    )


def _entry(offer: Offer, offers: Sequence[Offer]) -> GuideEntry:
    """Return the row of an offer among all of them."""
    own = {known.name: known for known in _own_offers()}
    try:
        if offer.name not in own:
            guide = _found(offer.name, offers)
        elif own[offer.name].origin == offer.origin:
            guide = _loaded(offer)
        else:
            raise _taken(offer.name, own[offer.name].origin, offer.origin)
    except GuideError as error:
        return GuideEntry(name=offer.name, origin=offer.origin, error=str(error))
    return GuideEntry(name=offer.name, origin=offer.origin, guide=guide)


def _taken(name: str, first: str, second: str) -> GuideError:
    """Return the error of a name with two meanings."""
    return GuideError(
        f"The guide name {name!r} is offered twice, by {first} and by {second}. "
        f"Rename one, or uninstall its package."
    )
