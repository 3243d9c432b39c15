"""One episode with everything that was seen, to look at or to draw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from diffuser_policy.envs import Env
from diffuser_policy.evaluation.loop import Tally
from diffuser_policy.evaluation.records import EpisodeRecord


@dataclass(frozen=True, kw_only=True, eq=False)
class Rollout:
    """An episode.

    Attributes:
        observations: One for every env step, and the last one.
        record: Its results.
    """

    observations: list[Any]
    record: EpisodeRecord


def run_episode(
    policy: Any,
    env: Env,
    observation: Any,
    *,
    seed: int,
    state: Any = None,
    deterministic: bool = False,
) -> Rollout:
    """Run an episode to its end, from where `env.reset` left it.

    Args:
        policy: Anything with Stable-Baselines3's `predict`.
        env: Just reset.
        observation: What `reset` returned.
        seed: What it was reset with; for the record.
        state: For the first call of `predict`.
        deterministic: Passed to `predict`.
    """
    tally = Tally(seed, observation)
    observations = [observation]
    starting, done = True, False
    while not done:
        action, state = policy.predict(
            observation,
            state=state,
            episode_start=np.array([starting]),
            deterministic=deterministic,
        )
        observation, reward, terminated, truncated, info = env.step(action)
        observations.append(observation)
        tally.add(float(reward), info)
        starting, done = False, bool(terminated or truncated)
    return Rollout(observations=observations, record=tally.record(env))
