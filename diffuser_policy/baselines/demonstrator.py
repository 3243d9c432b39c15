"""The demonstrators that the data are from, as a method."""

from __future__ import annotations

from contextlib import closing
from types import SimpleNamespace
from typing import Any

from diffuser_policy.benchmark.context import MethodContext
from diffuser_policy.benchmark.methods import register_method
from diffuser_policy.data.demonstrators import DEMONSTRATORS, default_demonstrator


@register_method("demonstrator", label="Demonstrator", needs_dataset=False)
def demonstrator(context: MethodContext) -> Any:
    """Act as the environment's demonstrator, with the variety that the data have."""
    with closing(context.make_env()) as env:
        factory = DEMONSTRATORS.find(default_demonstrator(env)).target
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
