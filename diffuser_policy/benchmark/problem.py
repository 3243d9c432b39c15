"""A problem: an environment, the data to learn from, and what of the data is seen.

Single-task problems (`goals="none"`) have one reward: that of the data, or, where data
carry goals, that of the environment's fixed goal, recomputed for every row. Multi-task
problems (`goals="hindsight"`) have a goal in every episode: methods learn from goals
that the data reached later (Andrychowicz et al. 2017), as in appendix A of Janner et
al. (2022).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from diffuser_policy.envs import Env, make_env
from diffuser_policy.settings import from_json, literal, to_json

Goals = Literal["none", "hindsight"]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What methods are compared on.

    Attributes:
        env: Id of the environment that they are evaluated in.
        dataset: Minari id of the data that they learn from.
        goals: Whether they learn one task, or to reach goals.
        env_options: Settings of the environment, as `gymnasium.make` takes them.
    """

    env: str
    dataset: str
    goals: Goals = "none"
    env_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the values."""
        literal(self, "goals")

    @property
    def title(self) -> str:
        """The environment's name, without namespace and version."""
        bare = self.env.rpartition("/")[2].rpartition(":")[2]
        return re.sub(r"-v\d+$", "", bare)

    @property
    def name(self) -> str:
        """The environment's name in lower case."""
        return self.title.lower()

    def make_env(self) -> Env:
        """Make the environment.

        Raises:
            UnknownNameError: There is none of that id.
            MissingExtraError: Its simulator is not installed.
        """
        return make_env(self.env, **self.env_options)

    def to_json(self) -> dict[str, Any]:
        """Return the problem as JSON data."""
        return {**to_json(self), "env_options": dict(self.env_options)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Problem:
        """Rebuild a problem.

        Raises:
            ConfigError: A field that problems don't have, one that is missing, or one
                of the wrong type.
        """
        return from_json(cls, data)
