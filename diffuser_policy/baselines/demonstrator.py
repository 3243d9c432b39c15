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
from diffuser_policy.envs import action_and_state


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
    """Act as a demonstrator does, with the variety that the data has.

    Args:
        context: The method's context.
        name: Name of the demonstrator; by default the one that the environment names.
    """

    def expert() -> Any:
        with closing(context.make_env()) as env:
            factory = DEMONSTRATORS.find(name or default_demonstrator(env)).target
            return factory.from_env(env, seed=context.seed)

    def predict(
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,  # noqa: ARG001 (never: as when data is recorded)
    ) -> tuple[Any, Any]:
        # An expert may have a random stream. With a new one for every evaluation, no
        # evaluation depends on those before, which a resumed cell does not repeat. It
        # takes a tenth of a second to make.
        acting, inner = (expert(), None) if state is None else state
        acted = acting.predict(observation, inner, episode_start)
        action, inner = action_and_state(acted)
        return action, (acting, inner)

    return SimpleNamespace(predict=predict)
