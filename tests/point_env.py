"""A point on an open plane that is pushed to a goal: a goal environment in no time.

Its columns are those of `diffuser_policy.testing.toy_dataset`, so toy policies fit.
Episodes end at the goal, so their lengths differ.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces

POINT = "test/Point-v0"
RADIUS = 0.15

Observation = dict[str, np.ndarray]


class PointEnv(gym.Env[Observation, np.ndarray]):
    """Moves a tenth of the action per env step; the reward is minus the distance.

    Vector environments reset without a seed after the first time. So that their later
    episodes are known too, those use the last seed plus `seed_step` then.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (Gymnasium declares it like this)
        "render_modes": [],
        "observation_columns": {"position": [0, 1], "velocity": [2, 3]},
    }
    num_open: ClassVar[int] = 0

    def __init__(self, *, seed_step: int = 0, terminate: bool = True) -> None:
        def box(size: int) -> spaces.Box:
            return spaces.Box(-np.inf, np.inf, (size,), np.float64)

        self.observation_space: spaces.Space[Any] = spaces.Dict(
            achieved_goal=box(2), desired_goal=box(2), observation=box(4)
        )
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.seed_step, self.terminate = seed_step, terminate
        self.last_seed: int | None = None
        self.position = self.velocity = self.goal = np.zeros(2)
        type(self).num_open += 1

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        if seed is None and self.last_seed is not None and self.seed_step:
            seed = self.last_seed + self.seed_step
        self.last_seed = seed
        super().reset(seed=seed)
        angle = self.np_random.uniform(0, 2 * np.pi)
        distance = self.np_random.uniform(0.5, 1.0)
        self.position = self.np_random.uniform(-0.5, 0.5, 2)
        self.velocity = np.zeros(2)
        offset = distance * np.array([np.cos(angle), np.sin(angle)])
        self.goal = np.asarray((options or {}).get("goal", self.position + offset))
        return self._observe(), {}

    def step(
        self, action: np.ndarray
    ) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        self.velocity = np.clip(action, -1, 1).astype(np.float64)
        self.position = self.position + 0.1 * self.velocity
        distance = float(np.linalg.norm(self.position - self.goal))
        success = distance < RADIUS
        done = success and self.terminate
        return self._observe(), -distance, done, False, {"success": success}

    def get_normalized_score(self, episode_return: float) -> float:
        return 100 + episode_return

    def close(self) -> None:
        type(self).num_open -= 1

    def _observe(self) -> Observation:
        return {
            "observation": np.concatenate([self.position, self.velocity]),
            "achieved_goal": self.position.copy(),
            "desired_goal": np.array(self.goal, np.float64),
        }


class Wander:
    """Acts at random."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)

    def predict(self, *_: Any, **__: Any) -> tuple[np.ndarray, None]:
        return self.rng.uniform(-1, 1, 2).astype(np.float32), None


if POINT not in gym.registry:
    gym.register(POINT, entry_point="tests.point_env:PointEnv", max_episode_steps=30)


def save_planner(folder: Path, env_id: str | None = POINT) -> str:
    """Write a planner with random weights that says it is of an environment."""
    # Here, because workers of vector environments need this module and no torch.
    from diffuser_policy.data.flat import FlatDataset
    from diffuser_policy.testing import toy_dataset, toy_policy

    toy = toy_dataset()
    metadata = {**toy.metadata, "env_id": env_id}
    flat = FlatDataset(toy.fields, toy.run_starts, metadata)
    toy_policy(flat=flat).save_pretrained(folder)
    return str(folder)
