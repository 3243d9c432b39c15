"""Families of methods: one function makes them, a table tells them apart."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from diffuser_policy.benchmark.context import MethodContext
from diffuser_policy.benchmark.methods import register_method


def family_method(
    make: Callable[..., Any],
    name: str,
    purpose: str,
    *,
    settings: Mapping[str, Any],
    **registered: Any,
) -> Callable[..., Any]:
    """Register a method whose settings come from a table, and return its function.

    Args:
        make: Called with the context and all settings; returns the policy. The method
            is a function of the module of this one.
        name: Of the method; its function has underscores instead of dashes.
        purpose: A sentence on what it does.
        settings: Names and defaults.
        **registered: As of `register_method`.
    """

    def function(context: MethodContext, **given: Any) -> Any:
        return make(context, **{**settings, **given})

    kinds = {key: Any if v is None else type(v) for key, v in settings.items()}
    options = [
        inspect.Parameter(
            key, inspect.Parameter.KEYWORD_ONLY, default=value, annotation=kinds[key]
        )
        for key, value in settings.items()
    ]
    first = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    function.__signature__ = inspect.Signature([first, *options])  # type: ignore[attr-defined]
    function.__annotations__ = {"context": MethodContext, **kinds}
    function.__name__ = function.__qualname__ = name.replace("-", "_")
    function.__module__, function.__doc__ = make.__module__, purpose
    return register_method(name, **registered)(function)
