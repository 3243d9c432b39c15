"""The demonstrators that recorded the data, as a method."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from types import SimpleNamespace
from typing import Any

from diffuser_policy.benchmark.context import MethodContext
from diffuser_policy.benchmark.methods import register_method
from diffuser_policy.benchmark.problem import Problem
from diffuser_policy.data.demonstrators import DEMONSTRATORS, default_demonstrator


def _refuse_unknown(_: Problem, settings: Mapping[str, Any]) -> None:
    if settings["name"] is not None:
        DEMONSTRATORS.find(settings["name"])


@register_method(
    "demonstrator",
    label="Demonstrator",
    needs_dataset=False,
    refuses=_refuse_unknown,
)
def demonstrator(context: MethodContext, *, name: str | None = None) -> Any:
    """Act as a demonstrator does, with the variety that the data have.

    Args:
        context: The method's context.
        name: Name of the demonstrator; by default the one that the environment names.
    """
    with closing(context.make_env()) as env:
        factory = DEMONSTRATORS.find(name or default_demonstrator(env)).target
        expert = factory.from_env(env, seed=context.seed)

    def predict(
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,  # noqa: ARG001 (never: as when data are recorded)
    ) -> tuple[Any, Any]:
        acted: tuple[Any, Any] = expert.predict(observation, state, episode_start)
        return acted

    return SimpleNamespace(predict=predict)
