"""The demonstrators that the data are from, as a method."""

from __future__ import annotations

from contextlib import closing
from typing import Any

from diffuser_policy.benchmark.context import MethodContext
from diffuser_policy.benchmark.methods import register_method
from diffuser_policy.data.demonstrators import (
    Policy,
    default_demonstrator,
    find_demonstrator,
)


@register_method("demonstrator", label="Demonstrator", needs_dataset=False)
def demonstrator(context: MethodContext) -> Any:
    """Act as the environment's demonstrator, with the variety that the data have."""
    with closing(context.make_env()) as env:
        factory = find_demonstrator(default_demonstrator(env))
        return AsRecorded(factory.from_env(env, seed=context.seed))


class AsRecorded:
    """A demonstrator that always acts as it does when data are recorded."""

    def __init__(self, demonstrator: Policy) -> None:
        self.demonstrator = demonstrator

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,  # noqa: ARG002 (never)
    ) -> tuple[Any, Any]:
        """Return actions, and what to pass as `state` the next time."""
        return self.demonstrator.predict(observation, state, episode_start)
