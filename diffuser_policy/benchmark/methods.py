"""Methods by name: functions that make a policy for a problem.

    @register_method("straight", label="Straight ahead", needs_dataset=False)
    def straight(training, *, speed: float = 1.0):
        return Straight(speed)                  # anything with SB3's `predict`

A method is a function of a `Training`; its keyword-only arguments are its settings. It
is found by the name it was registered under, by a name in the entry-point group
`diffuser_policy.methods` of an installed distribution, or as `module:function` or
`file.py:function`. Cells run in processes of their own, which know the last three.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from diffuser_policy.benchmark.problem import Goals, Problem
from diffuser_policy.data.demonstrators import all_options
from diffuser_policy.errors import (
    ADVICE,
    ConfigError,
    MissingExtraError,
    UnknownNameError,
)

GROUP = "diffuser_policy.methods"
NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
Function = TypeVar("Function", bound=Callable[..., Any])
_ATTRIBUTE = "__benchmark_method__"


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method.

    Attributes:
        name: It is asked for by this name.
        function: Makes a policy from a `Training` and settings.
        label: Its name in tables.
        goals: Kinds of problems that it can do.
        needs_dataset: Whether it learns from the problem's data.
        modules: Optional modules that it imports, and the extras that bring them.
        num_steps: Gradient steps that it takes where nobody sets a budget.
        refuses: Called with the problem and all settings before anything is run; raises
            for those with which the function would fail.
    """

    name: str
    function: Callable[..., Any]
    label: str
    goals: tuple[Goals, ...] = ("none", "hindsight")
    needs_dataset: bool = True
    modules: tuple[tuple[str, str], ...] = ()
    num_steps: int | None = None
    refuses: Callable[[Problem, Mapping[str, Any]], None] | None = None

    def settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return all settings: the defaults, updated with the given ones.

        Raises:
            ConfigError: It has no such setting, or one is of another type than the
                default.
        """
        options = all_options(f"method {self.name!r}", self.function, given)
        parameters = inspect.signature(self.function).parameters
        for name, value in given.items():
            known = _kinds(parameters[name])
            if known and not _is_of(value, known):
                raise ConfigError(
                    f"The setting {name} of the method {self.name!r} must be of type "
                    f"{known[0].__name__}, as its default {parameters[name].default!r} "
                    f"is; got {value!r}."
                )
        return options

    def check(self, problem: Problem, settings: Mapping[str, Any]) -> None:
        """Refuse what would fail later: wrong problem, settings, or missing modules.

        Args:
            problem: What it is to be trained for.
            settings: Those that were given.

        Raises:
            ConfigError: It cannot do such problems, or has no such setting.
            MissingExtraError: A module is not installed.
        """
        options = self.settings(settings)
        if problem.goals not in self.goals:
            raise ConfigError(
                f"The method {self.name!r} does problems with goals="
                f"{' or '.join(map(repr, self.goals))}, but {problem.name} has "
                f"goals={problem.goals!r}. Leave it out of this problem."
            )
        for module, extra in self.modules:
            if importlib.util.find_spec(module) is None:  # importing it takes seconds
                raise MissingExtraError(module, extra, ADVICE.get(extra, ""))
        if self.refuses is not None:
            self.refuses(problem, options)


_IN_PROCESS: dict[str, Method] = {}


def register_method(
    name: str,
    *,
    label: str | None = None,
    goals: tuple[Goals, ...] = ("none", "hindsight"),
    needs_dataset: bool = True,
    modules: Mapping[str, str] | None = None,
    num_steps: int | None = None,
    refuses: Callable[[Problem, Mapping[str, Any]], None] | None = None,
) -> Callable[[Function], Function]:
    """Return a decorator that makes a function a method.

    Args:
        name: Lower-case words joined by dashes, as "td3-bc".
        label: Its name in tables; by default the name.
        goals: Kinds of problems that it can do.
        needs_dataset: Whether it learns from the problem's data.
        modules: Optional modules that it imports → extras that bring them.
        num_steps: Gradient steps that it takes where nobody sets a budget.
        refuses: Called with the problem and all settings before anything is run, to
            raise for those with which the function would fail.

    Raises:
        ConfigError: The name is of another form, or an installed package's.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"A method's name is lower-case words joined by dashes, as in "
            f'@register_method("td3-bc"); got {name!r}.'
        )

    def decorate(function: Function) -> Function:
        taken = {point.name: point.value for point in entry_points(group=GROUP)}
        address = f"{function.__module__}:{function.__qualname__}"
        if taken.get(name, address) != address:
            # A cell's own process would find the installed one.
            raise ConfigError(
                f"The method name {name!r} is taken by {taken[name]}; choose another."
            )
        method = Method(
            name=name,
            function=function,
            label=label or name,
            goals=goals,
            needs_dataset=needs_dataset,
            modules=tuple((modules or {}).items()),
            num_steps=num_steps,
            refuses=refuses,
        )
        setattr(function, _ATTRIBUTE, method)
        _IN_PROCESS[name] = method
        return function

    return decorate


def find_method(name: str) -> Method:
    """Return a method.

    Args:
        name: A registered name, `module:function`, or `file.py:function`.

    Raises:
        UnknownNameError: There is none.
        ConfigError: What is found is no function.
    """
    offered = {point.name: point for point in entry_points(group=GROUP)}
    if name in _IN_PROCESS:
        return _IN_PROCESS[name]
    if name in offered:
        return _method_of(name, offered[name].load())
    place, colon, attribute = name.rpartition(":")
    if not colon:
        raise UnknownNameError(
            "method", name, {*offered, *_IN_PROCESS}, " (nor module:function)"
        )
    try:
        module = _module(place)
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise UnknownNameError(
            "method", name, {*offered, *_IN_PROCESS}, f" ({error})"
        ) from error
    if not hasattr(module, attribute):
        functions = [key for key, value in vars(module).items() if callable(value)]
        raise UnknownNameError(f"function of {place}", attribute, functions)
    return _method_of(name, getattr(module, attribute))


def check_reachable(name: str) -> None:
    """Refuse a method that only this process knows: cells have their own.

    Raises:
        ConfigError: It was registered here, and no other process would find it.
    """
    offered = {point.name for point in entry_points(group=GROUP)}
    if name in _IN_PROCESS and name not in offered:
        function = _IN_PROCESS[name].function
        place = inspect.getsourcefile(function) or "FILE.py"
        raise ConfigError(
            f"The method {name!r} is registered in this process alone; cells run in "
            f"processes of their own. Ask for it as "
            f"'{Path(place).name}:{function.__name__}' (its file and function), or "
            f"offer it through the entry-point group {GROUP!r}."
        )


def checksum_of_file(name: str) -> str | None:
    """Return a checksum of the file of a method `file.py:function`.

    Returns:
        None for other names, whose code packages' versions tell, and missing files.
    """
    place = Path(name.rpartition(":")[0])
    if place.suffix != ".py" or not place.is_file():
        return None
    return hashlib.sha256(place.read_bytes()).hexdigest()[:16]


def method_names() -> list[str]:
    """Return the names that are registered or offered."""
    return sorted({point.name for point in entry_points(group=GROUP)} | {*_IN_PROCESS})


def label(name: str) -> str:
    """Return a method's name in tables; the name itself if it cannot be found."""
    try:
        return find_method(name).label
    except (UnknownNameError, ConfigError, ImportError):
        return name


def short_name(name: str) -> str:
    """Return a name that fits into that of a file: without module or folder."""
    return re.sub(r"[^a-z0-9]+", "-", name.rpartition(":")[2].lower()).strip("-")


def _kinds(parameter: inspect.Parameter) -> tuple[type, ...]:
    """Return the types that a setting may have; none if nothing is known of them."""
    default = parameter.default
    if isinstance(default, bool | str):
        return (type(default),)
    if isinstance(default, int) and parameter.annotation in (int, "int"):
        return (int,)
    if isinstance(default, int | float):
        return (float, int)
    if isinstance(default, tuple | list):
        return (list, tuple)
    return ()


def _is_of(value: Any, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and isinstance(value, bool) == (bool in kinds)


def _method_of(name: str, found: Any) -> Method:
    """Return what the decorator made of a function, under the name asked for."""
    if not callable(found):
        raise ConfigError(f"The method {name!r} is no function, but {found!r}.")
    made: Method | None = getattr(found, _ATTRIBUTE, None)
    if made is not None:
        return made
    if not inspect.signature(found).parameters:
        raise ConfigError(
            f"The method {name!r} takes no argument; it is called with the training."
        )
    return Method(name=short_name(name), function=found, label=short_name(name))


def _module(place: str) -> ModuleType:
    """Import a module by name, or from a file."""
    if not place.endswith(".py"):
        if str(Path.cwd()) not in sys.path:
            sys.path.append(str(Path.cwd()))  # as for scripts that are run there
        return importlib.import_module(place)
    path = Path(place).resolve()
    if not path.is_file():
        raise FileNotFoundError(f"{place} is no file")
    name = f"_methods_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"{place} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
