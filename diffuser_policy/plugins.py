"""Found by name: guides, featurizers, labels, methods and demonstrators.

    GUIDES = Kind(name="guide", group="diffuser_policy.guides", check=…, …)

    @GUIDES.register("keep-left")                       registered in this process, or
    [project.entry-points."diffuser_policy.guides"]     offered by a distribution
    keep-left = "my_guides:keep_left"

    GUIDES.offers()            every name and its origin; imports nothing
    GUIDES.find("keep-left")   the one of that name, imported and checked: its `target`

The rules are the same for every kind:

- A name is made of lower-case words joined by dashes.
- A name means one thing. Whoever looks up a name that is offered twice gets an error
  that names both origins. Names of this distribution keep their meaning: nobody else
  can register them. Running the same definition again, as in a notebook, replaces it.
- Nothing is imported before a name is looked up, and then only what offers that name.
  A plug-in that fails on import is reported with its origin and does not affect the
  others.
- `module:attribute` and `file.py:attribute` name things that are registered nowhere. A
  decorator in a file that is named by its path registers nothing: several files may use
  the same names. Kinds whose names are saved in planners don't allow addresses: a
  downloaded planner must not decide what is imported.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import (
    Distribution,
    EntryPoint,
    PackageNotFoundError,
    distribution,
    entry_points,
)
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from diffuser_policy.errors import (
    ConfigError,
    DiffuserPolicyError,
    UnknownNameError,
    suggestion,
)

OURS = "diffuser-policy"
BY_PATH = "_plugin_"  # begins the names of modules that are imported from a path
INSTALLED = {"site-packages", "dist-packages"}  # folders of distributions
NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
Registrable = TypeVar("Registrable", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class Plugin:
    """Something that is offered under a name.

    Attributes:
        name: Name to look it up by.
        origin: Distribution and version, or the module in this process.
        address: Where it is defined, as `module:attribute`.
        point: Entry point that offers it; none if it was registered in this process.
        target: The thing itself; none before it is loaded.
    """

    name: str
    origin: str
    address: str
    point: EntryPoint | None = field(default=None, repr=False)
    target: Any = field(default=None, repr=False)


@dataclass(kw_only=True, eq=False)
class Kind:
    """One kind of plug-ins.

    Attributes:
        name: What errors call one of them, such as "guide".
        group: Entry-point group through which distributions offer them.
        example: Name that shows the form of names.
        check: Called with what is registered or loaded; raises for anything else.
        error: Raised for bad names, conflicts, and plug-ins that cannot be loaded.
        addresses: Whether `module:attribute` and `file.py:attribute` are names too.
        registered: Those of this process, by name.
    """

    name: str
    group: str
    example: str
    check: Callable[[Any], object]
    error: type[DiffuserPolicyError] = ConfigError
    addresses: bool = True
    registered: dict[str, Plugin] = field(default_factory=dict)

    def register(self, name: str) -> Callable[[Registrable], Registrable]:
        """Return a decorator that registers what it decorates in this process.

        Raises:
            DiffuserPolicyError: `error`, for a malformed or taken name, or a target
                that is not of this kind.
        """
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise self.error(
                f"The name of a {self.name} is lower-case words joined by dashes, such "
                f"as {self.example!r}; got {name!r}."
            )

        def decorate(target: Registrable) -> Registrable:
            self.check(target)
            where = address(target)
            if where.startswith(BY_PATH):
                return target  # found by the path of its file alone
            for own in self._own(name):
                if own.address != where:
                    raise self._taken(name, f"{own.address} ({own.origin})", where)
            known = self.registered.get(name)
            if known is not None and known.address != where:
                raise self._taken(name, known.address, where)
            origin = f"this process ({where.partition(':')[0]})"
            self.registered[name] = Plugin(
                name=name, origin=origin, address=where, target=target
            )
            return target

        return decorate

    def find(self, name: str) -> Plugin:
        """Return the plug-in of a name, loaded.

        Args:
            name: Name, or an address where `addresses` are allowed.

        Raises:
            UnknownNameError: Nothing of that name; the nearest names are offered.
            DiffuserPolicyError: `error`, if it is offered twice or cannot be loaded.
        """
        if not isinstance(name, str):
            raise self.error(f"The name of a {self.name} is a text, got {name!r}.")
        if self.addresses and ":" in name:
            return self._at(name)
        for offers in (self._own, self.offers):  # looking at others takes longer
            if found := offers(name):
                return self._loaded(found[0], found)
        remark = ""
        if self.addresses:
            remark = " (yours: module:attribute or file.py:attribute)"
        elif ":" in name or name.endswith(".py"):
            remark = (
                f" ({self.name}s from a file work in Python only; for the command "
                f"line, offer them from a package)"
            )
        raise UnknownNameError(self.name, name, self.names(), remark)

    def find_saved(self, name: str, user: str) -> Plugin:
        """Return the plug-in that a file names.

        Args:
            name: Name.
            user: What names it, such as "This planner".

        Raises:
            DiffuserPolicyError: `error`, also where nothing of that name is registered.
        """
        try:
            return self.find(name)
        except UnknownNameError as error:
            raise self.error(
                f"{user} uses the {self.name} {name!r}, which is not registered here. "
                f"Install the package that offers it, or import the module that "
                f"registers it. {suggestion(name, error.known)}"
                f"Known: {', '.join(error.known) or 'none'}."
            ) from error

    def offers(self, name: str | None = None) -> list[Plugin]:
        """Return what is offered, not loaded: ours, others', then in this process.

        Args:
            name: Only what is offered under this name.
        """
        points = [
            point
            for point in entry_points(group=self.group)
            if name in (None, point.name)
        ]
        sources = {id(point.dist): point.dist for point in points}
        origins = {key: _origin(source) for key, source in sources.items()}
        found = [_offered(point, origins[id(point.dist)]) for point in points]
        found.sort(key=lambda plugin: (not _is_ours(plugin), plugin.origin))
        names = {plugin.name for plugin in found}
        here = [p for p in self.registered.values() if name in (None, p.name)]
        return found + [plugin for plugin in here if plugin.name not in names]

    def names(self) -> list[str]:
        """Return all names that are registered or offered; imports nothing."""
        return sorted({*self.registered, *self.installed()})

    def installed(self) -> set[str]:
        """Return the names that installed distributions offer; imports nothing."""
        return set(entry_points(group=self.group).names)

    def entries(self) -> Iterator[tuple[Plugin, DiffuserPolicyError | None]]:
        """Yield every plug-in by name, loaded, and the error of those that are broken.

        Imports them all.
        """
        offers = self.offers()
        for plugin in sorted(offers, key=lambda plugin: (plugin.name, plugin.origin)):
            try:
                yield self._loaded(plugin, offers), None
            except DiffuserPolicyError as error:
                yield plugin, error

    def _own(self, name: str) -> list[Plugin]:
        """Return what this distribution offers under a name, ignoring others."""
        try:
            own = distribution(OURS)
        except PackageNotFoundError:
            return []
        points = own.entry_points.select(group=self.group, name=name)
        return [_offered(point, _origin(own)) for point in points]

    def _loaded(self, plugin: Plugin, offers: Sequence[Plugin]) -> Plugin:
        """Return a plug-in with its target, unless its name has a second meaning."""
        if plugin.point is None:
            return plugin
        first, *others = (offer for offer in offers if offer.name == plugin.name)
        for other in others:
            if other.address != first.address and not _is_ours(plugin):
                raise self._taken(plugin.name, first.origin, other.origin)
        with self._blaming(f"{plugin.name!r} of {plugin.origin}", plugin.address):
            target = plugin.point.load()
            self.check(target)
        here = self.registered.get(plugin.name)  # the import may have registered it
        if here is not None and here.address != address(target):
            raise self._taken(plugin.name, plugin.origin, here.address)
        return replace(plugin, target=target)

    def _at(self, name: str) -> Plugin:
        place, _, attribute = name.rpartition(":")
        if place.endswith(".py") and not Path(place).is_file():
            remark = f" (no file {place!r})"
            raise UnknownNameError(self.name, name, self.names(), remark)
        try:
            with self._blaming(repr(name), place, wanted=place):
                module = _module(place)
        except ModuleNotFoundError as error:
            raise UnknownNameError(
                self.name, name, self.names(), f" ({error})"
            ) from error
        if not hasattr(module, attribute):
            functions = [key for key, value in vars(module).items() if callable(value)]
            raise UnknownNameError(f"function of {place}", attribute, functions)
        target = getattr(module, attribute)
        with self._blaming(repr(name), place):
            self.check(target)
        return Plugin(name=name, origin=place, address=name, target=target)

    @contextlib.contextmanager
    def _blaming(self, what: str, place: str, wanted: str = "") -> Iterator[None]:
        """Turn whatever other people's code raises into an error that names it.

        The error that the module `wanted`, or a package around it, does not exist
        passes unchanged.
        """
        try:
            yield
        except (Exception, SystemExit) as error:
            missing = isinstance(error, ModuleNotFoundError) and error.name
            if missing and f"{wanted}.".startswith(f"{missing}."):
                raise
            raise self.error(
                f"The {self.name} {what} cannot be loaded from {place!r}: "
                f"{type(error).__name__}: {str(error).rstrip('.') or 'no message'}. "
                f"Install what it needs, or repair or uninstall it."
            ) from error

    def _taken(self, name: str, first: str, second: str) -> DiffuserPolicyError:
        return self.error(
            f"The {self.name} name {name!r} is offered twice, by {first} and by "
            f"{second}. Rename one, or uninstall its package."
        )


def address(target: Any) -> str:
    """Return where a class or function is defined, as entry points write it.

    A partial is told by its function: all partials are of one class.
    """
    if isinstance(target, functools.partial):
        return f"{address(target.func)} (a partial)"
    name = getattr(target, "__qualname__", type(target).__qualname__)
    return f"{getattr(target, '__module__', '?')}:{name}"


def checksum_of_code(name: str) -> str | None:
    """Return a checksum of the file of `file.py:attribute` or `module:attribute`.

    Args:
        name: A name that has been looked up, so that its module is imported.

    Returns:
        None for other names, missing files, and modules of installed distributions:
        versions identify their code.
    """
    place = name.rpartition(":")[0]
    path = Path(place)
    if path.suffix != ".py":
        path = Path(getattr(sys.modules.get(place), "__file__", None) or "")
        if INSTALLED & {*path.parts}:
            return None
    if path.suffix != ".py" or not path.is_file():
        return None
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _offered(point: EntryPoint, origin: str) -> Plugin:
    return Plugin(name=point.name, origin=origin, address=point.value, point=point)


def _origin(source: Distribution | None) -> str:
    return "unknown" if source is None else f"{source.name} {source.version}"


def _is_ours(plugin: Plugin) -> bool:
    return plugin.origin.startswith(f"{OURS} ")


def _module(place: str) -> ModuleType:
    """Import a module by its name or from its file; the current folder counts."""
    if not place.endswith(".py"):
        if str(Path.cwd()) not in sys.path:
            sys.path.append(str(Path.cwd()))  # as for scripts that are run there
        return importlib.import_module(place)
    path = Path(place).resolve()
    # A file that has been edited is another module: this process may have imported it.
    digest = hashlib.sha256(os.fsencode(path) + b"\0" + path.read_bytes()).hexdigest()
    name = f"{BY_PATH}{path.stem}_{digest[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{place} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
