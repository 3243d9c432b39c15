"""Data whose rows say where they are from, and environments with goals for them."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from diffuser_policy.data.flat import FlatDataset

RADIUS = 0.25


class LineEnv(gym.Env[Any, Any]):
    """A point on a line; it may have a goal that is fixed, or a new one each time.

    Observations are (x, the run's number); the action moves x. Ten steps an episode.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012

    def __init__(
        self, *, goals: str = "fixed", targets: list[int] | None = None
    ) -> None:
        self.goals = goals
        if targets is not None:
            self.metadata = {**self.metadata, "action_targets": targets}
        state = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        goal = spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.observation_space: Any = state
        if goals != "none":
            self.observation_space = spaces.Dict(
                observation=state, achieved_goal=goal, desired_goal=goal
            )
            self.compute_reward = _reward
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: Any = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        self.x, self.steps = 0.0, 0
        drawn = self.np_random.uniform(-1, 1)
        self.goal = 0.5 if self.goals == "fixed" else drawn
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.x += 0.1 * float(action[0])
        self.steps += 1
        success = abs(self.x - self.goal) <= RADIUS
        done = self.steps == 10
        return self._observe(), float(success), False, done, {"success": success}

    def _observe(self) -> Any:
        state = np.array([self.x, 0.0], np.float32)
        if self.goals == "none":
            return state
        goal = np.array([self.goal], np.float32)
        return {"observation": state, "achieved_goal": state[:1], "desired_goal": goal}


def _reward(achieved: Any, desired: Any, _: Any) -> Any:
    distance = np.abs(np.asarray(achieved) - np.asarray(desired))[..., 0]
    return (distance <= RADIUS).astype(np.float64)


for _kind in ("none", "fixed", "new"):
    if f"test/Line-{_kind}-v0" not in gym.registry:
        gym.register(
            f"test/Line-{_kind}-v0",
            entry_point="tests.baseline_helpers:LineEnv",
            kwargs={"goals": _kind},
        )


def line_data(
    num_runs: int = 4,
    run_length: int = 50,
    *,
    goals: bool = True,
    terminated: bool = False,
    seed: int = 0,
) -> FlatDataset:
    """Return random walks; column 1 of an observation is the run's number."""
    rng = np.random.default_rng(seed)
    action = rng.uniform(-1, 1, (num_runs, run_length, 1))
    x = np.zeros((num_runs, run_length, 1))
    x[:, 1:] = 0.1 * np.cumsum(action[:, :-1], axis=1)
    run = np.broadcast_to(np.arange(num_runs)[:, None, None], x.shape)
    ends = np.zeros((num_runs, run_length), np.bool_)
    ends[:, -1] = terminated
    fields = {
        "observation": np.concatenate([x, run], axis=2).reshape(-1, 2),
        "action": action.reshape(-1, 1),
        "reward": (x[..., 0] + 0.1 * action[..., 0]).reshape(-1),
        "terminated": ends.reshape(-1),
    }
    if goals:
        fields["achieved_goal"] = fields["observation"][:, :1]
        fields["desired_goal"] = np.zeros((num_runs * run_length, 1))
    starts = np.arange(num_runs + 1) * run_length
    return FlatDataset(fields, starts, {"dataset_id": "test/line-v0"})
