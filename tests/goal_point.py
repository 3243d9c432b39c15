"""The point on a plane with the reward of its goals: what hindsight and tasks need."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from diffuser_policy.benchmark.cells import Cell, CellFolder, EvaluationProtocol
from diffuser_policy.benchmark.context import MethodContext
from diffuser_policy.benchmark.methods import find_method
from diffuser_policy.benchmark.problem import Problem
from diffuser_policy.choices import Goals
from tests.point_env import RADIUS, Observation, PointEnv

GOAL_POINT = "test/GoalPoint-v0"
FIXED_POINT = "test/FixedPoint-v0"
NUM_STEPS = 20  # env steps of an episode


class GoalPointEnv(PointEnv):
    """Pays 1 on every env step that ends at the goal, and never terminates."""

    def __init__(self, *, fixed: bool = False) -> None:
        super().__init__(terminate=False)
        self.fixed = fixed

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        given = {"goal": np.zeros(2)} if self.fixed else {}
        return super().reset(seed=seed, options={**given, **(options or {})})

    def step(
        self, action: np.ndarray
    ) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        observation, _, *ends, info = super().step(action)
        return observation, float(info["success"]), ends[0], ends[1], info

    def compute_reward(
        self,
        achieved_goal: np.ndarray,
        desired_goal: np.ndarray,
        info: object,  # noqa: ARG002 (the interface of goal environments)
    ) -> np.ndarray:
        distance = np.linalg.norm(achieved_goal - desired_goal, axis=-1)
        return np.asarray(distance < RADIUS, np.float64)

    def get_normalized_score(self, episode_return: float) -> float:
        return 100 * episode_return / NUM_STEPS


for name, fixed in ((GOAL_POINT, False), (FIXED_POINT, True)):
    if name not in gym.registry:
        gym.register(
            name,
            entry_point="tests.goal_point:GoalPointEnv",
            max_episode_steps=NUM_STEPS,
            kwargs={"fixed": fixed},
        )


def training_of(
    method: str,
    folder: Path,
    *,
    env: str = GOAL_POINT,
    goals: Goals = "hindsight",
    num_steps: int | None = 200,
    settings: Mapping[str, Any] | None = None,
) -> MethodContext:
    """Return the context of a method that learns in this environment."""
    cell = Cell(
        problem=Problem(env=env, dataset="test/point-v0", goals=goals),
        method=method,
        settings=dict(settings or {}),
        num_steps=num_steps,
        evaluation=EvaluationProtocol(
            seeds=(0,), episodes=5, num_envs=5, curve_episodes=5, curve_points=2
        ),
    )
    return MethodContext(
        cell,
        CellFolder(folder, cell.id),
        find_method(method).settings(cell.settings),
    )
