"""Scores of environments that have none themselves: D4RL's, of Gymnasium's robots.

    score = 100 (return - low) / (high - low)

with the returns of a random policy and of an expert, trained with SAC, that D4RL gives
for each robot (Fu et al., "D4RL: Datasets for Deep Data-Driven RL", 2020). Later
versions of these environments differ in details, and keep the scores.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from typing import Any

from diffuser_policy.envs import Env, env_name
from diffuser_policy.ogbench import is_ogbench

D4RL_RETURNS = {
    "HalfCheetah": (-280.178953, 12135.0),
    "Hopper": (-20.272305, 3234.3),
    "Walker2d": (1.629008, 4592.3),
}


def reference_of(env: Env) -> str:
    """Return the reference for the score 100, in words."""
    return "the goal" if env.spec and is_ogbench(env.spec) else "the reference"


def score_of_returns(env: Env) -> Callable[[float], Any] | None:
    """Return a function from an episode's return to its score; None if there is none.

    A method `get_normalized_score` of the environment, or of a wrapper, comes first.
    """
    own: Callable[[float], Any] | None = None
    with contextlib.suppress(AttributeError):
        own = env.get_wrapper_attr("get_normalized_score")
    robot = re.sub(r"-v\d+$", "", env_name(env))
    if own is not None or robot not in D4RL_RETURNS:
        return own
    low, high = D4RL_RETURNS[robot]
    return lambda episode_return: 100 * (episode_return - low) / (high - low)
