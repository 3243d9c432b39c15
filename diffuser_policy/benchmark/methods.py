"""Methods by name: functions that make a policy for a problem.

    @register_method("straight", label="Straight ahead", needs_dataset=False)
    def straight(context, *, speed: float = 1.0):
        return Straight(speed)                  # anything with SB3's `predict`

A method is a function of a `MethodContext`; its other arguments are its settings, and
those without a default have to be given. It is found by the name under
which this process registered it or a package offers it (entry-point group
`diffuser_policy.methods`), or as `module:function` or `file.py:function`
(`diffuser_policy.plugins`). Cells run in processes of their own, which do not know what
is registered in this one.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffuser_policy.benchmark.problem import Problem
from diffuser_policy.choices import Goals
from diffuser_policy.errors import (
    ADVICE,
    ConfigError,
    MissingExtraError,
)
from diffuser_policy.plugins import Kind, Registrable, address
from diffuser_policy.settings import checked, parameters_of


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method, as `register_method` describes it.

    Attributes:
        name: Name.
        function: Makes a policy from a `MethodContext` and settings.
        label: Its name in tables.
        goals: Kinds of problems that it can do.
        needs_dataset: Whether it learns from the problem's data; a function tells, if
            that depends on its settings.
        modules: Optional modules that it imports, and the extras that install them.
        num_steps: Gradient steps that it takes without a budget.
        refuses: Called with the problem and all settings before anything runs; raises
            an error for settings with which the function would fail.
    """

    name: str
    function: Callable[..., Any]
    label: str
    goals: tuple[Goals, ...] = ("none", "hindsight")
    needs_dataset: bool | Callable[[Mapping[str, Any]], bool] = True
    modules: tuple[tuple[str, str], ...] = ()
    num_steps: int | None = None
    refuses: Callable[[Problem, Mapping[str, Any]], None] | None = None

    def settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return all settings: the defaults, updated with the given ones.

        Raises:
            ConfigError: It has no such setting, the value is of another type, or a
                setting without a default is missing.
        """
        context, *_ = inspect.signature(self.function).parameters
        taken = [p for p in parameters_of(self.function) if p.name != context]
        defaults = {p.name: p.default for p in taken if not p.required}
        return defaults | checked(f"the method {self.name!r}", taken, given)

    def learns(self, given: Mapping[str, Any]) -> bool:
        """Return whether it learns from the problem's data, with these settings."""
        needs = self.needs_dataset
        return needs(self.settings(given)) if callable(needs) else needs

    def check(self, problem: Problem, settings: Mapping[str, Any]) -> None:
        """Refuse what would fail later: wrong problem, settings, or missing modules.

        Raises:
            ConfigError: It cannot do such problems, has no such setting, or lacks one.
            MissingExtraError: A module is not installed.
        """
        options = self.settings(settings)
        if problem.goals not in self.goals:
            raise ConfigError(
                f"The method {self.name!r} handles problems with "
                f"goals={' or '.join(map(repr, self.goals))}, but {problem.name} has "
                f"goals={problem.goals!r}. Leave it out of this problem."
            )
        for module, extra in self.modules:
            if not _is_installed(module):
                raise MissingExtraError(module, extra, ADVICE.get(extra, ""))
        if self.refuses is not None:
            self.refuses(problem, options)


def _is_installed(module: str) -> bool:
    """Return whether a module can be found, without importing it, which takes long."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package that it is in
        return False


def _check_method(target: Any) -> None:
    if not callable(target):
        raise ConfigError(f"A method is a function of a context; got {target!r}.")
    try:
        arguments = inspect.signature(target).parameters
    except ValueError as error:  # not written in Python
        raise ConfigError(
            f"The arguments of {address(target)} cannot be read: {error}. Write a "
            f"function of a context that calls it."
        ) from error
    if not arguments:
        raise ConfigError(
            f"{address(target)} takes no argument; a method is called with its context."
        )


METHODS = Kind(
    name="method",
    group="diffuser_policy.methods",
    example="td3-bc",
    check=_check_method,
)
# What `register_method` was told. No attribute of the function: wrappers and subclasses
# would have it too.
_DESCRIBED: list[Method] = []


def register_method(
    name: str,
    *,
    label: str | None = None,
    goals: tuple[Goals, ...] = ("none", "hindsight"),
    needs_dataset: bool | Callable[[Mapping[str, Any]], bool] = True,
    modules: Mapping[str, str] | None = None,
    num_steps: int | None = None,
    refuses: Callable[[Problem, Mapping[str, Any]], None] | None = None,
) -> Callable[[Registrable], Registrable]:
    """Return a decorator that makes a function a method.

    Args:
        name: Lower-case words joined by dashes, as "td3-bc".
        label: Its name in tables; by default the name.
        goals: Kinds of problems that it can do.
        needs_dataset: As the attribute of `Method`.
        modules: Optional modules that it imports → extras that install them.
        num_steps: Gradient steps that it takes without a budget.
        refuses: As the attribute of `Method`.

    Raises:
        ConfigError: The name is malformed or taken, or the function takes no context.
    """
    register = METHODS.register(name)

    def decorate(function: Registrable) -> Registrable:
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
        register(function)
        _DESCRIBED.insert(0, method)  # the latest definition counts
        return function

    return decorate


def find_method(name: str) -> Method:
    """Return a method by its registered name, `module:function` or `file.py:function`.

    Raises:
        UnknownNameError: There is none.
        ConfigError: It is offered twice, fails on import, or is no function.
    """
    function, short = METHODS.find(name).target, short_name(name)
    described = [method for method in _DESCRIBED if method.function is function]
    named = [method for method in described if method.name == name]
    plain = Method(name=short, function=function, label=short)
    wrapped = getattr(function, "__wrapped__", None)  # needs and takes what this does
    wrappers = [
        dataclasses.replace(plain, **_needs(method))
        for method in _DESCRIBED
        if method.function is wrapped
    ]
    return [*named, *described, *wrappers, plain][0]


def _needs(method: Method) -> dict[str, Any]:
    """Return a method's description, but for what it is called and what is run."""
    own = ("name", "label", "function")
    every = (field.name for field in dataclasses.fields(method))
    return {name: getattr(method, name) for name in every if name not in own}


def check_reachable(name: str) -> None:
    """Refuse a method that only this process knows: cells have their own processes.

    Raises:
        ConfigError: It was registered here, and no other process would find it.
    """
    if name in METHODS.registered and name not in METHODS.installed():
        function = METHODS.registered[name].target
        called = getattr(function, "__name__", "NAME")  # an object may have none,
        try:  # and no file
            file = Path(inspect.getsourcefile(function) or "FILE.py")
        except TypeError:
            file = Path("FILE.py")
        if file.is_relative_to(Path.cwd()):
            file = file.relative_to(Path.cwd())
        raise ConfigError(
            f"The method {name!r} is registered in this process only, but cells run in "
            f"processes of their own. Ask for it as '{file}:{called}' (its "
            f"file and function), or offer it in the entry-point group "
            f"{METHODS.group!r}."
        )


def short_name(name: str) -> str:
    """Return a name that fits into that of a file: without module or folder."""
    return re.sub(r"[^a-z0-9]+", "-", name.rpartition(":")[2].lower()).strip("-")
