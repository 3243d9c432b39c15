"""Routes: where a plan should lead if the goal is beyond its reach.

    routes = Routes(landmarks, layout=layout, normalizer=normalizer, ahead=100)
    aims = routes.aims(observations, goals)  # of the next plans
    ways = routes.to(observations, goals)  # of all plans, one after the other

A plan leads to a subgoal on the way over landmarks
(`diffuser_policy.networks.landmarks`), and to the goal once it is near enough. The
policy makes a new plan, with another subgoal, in time.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from diffuser_policy.columns.layout import TrajectoryLayout
from diffuser_policy.columns.normalizers import Normalizer
from diffuser_policy.networks.landmarks import Landmarks


class Routes:
    """Finds subgoals, in environment units."""

    def __init__(
        self,
        landmarks: Landmarks,
        *,
        layout: TrajectoryLayout,
        normalizer: Normalizer,
        ahead: float,
    ) -> None:
        """Store what to search.

        Args:
            landmarks: Places, and times between them.
            layout: Columns of a trajectory, with a goal.
            normalizer: Between environment units and those of the landmarks.
            ahead: Env steps to the subgoal.
        """
        self.landmarks, self.normalizer, self.ahead = landmarks, normalizer, ahead
        self.goal_columns = list(layout.columns("goal"))
        self.observed = list(layout.observation_columns("goal"))

    def aims(self, observations: np.ndarray, goals: np.ndarray) -> np.ndarray:
        """Return where the plans should lead, `[rows, goal]`.

        Args:
            observations: `[rows, observation]` planning columns.
            goals: `[rows, goal]` where they should lead in the end.
        """
        aims, direct = self.landmarks.subgoals(
            self._normalized(observations[:, self.observed]),
            self._normalized(goals),
            self.ahead,
        )
        physical = self._physical(aims)
        return np.where(direct[:, None], goals, physical).astype(np.float32)

    def to(self, observations: np.ndarray, goals: np.ndarray) -> list[np.ndarray]:
        """Return the places on the way, and the goal: `[places, goal]` of each row.

        Args:
            observations: `[rows, observation]` planning columns.
            goals: `[rows, goal]`.
        """
        ways = self.landmarks.way(
            self._normalized(observations[:, self.observed]),
            self._normalized(goals),
            self.ahead,
        )
        return [
            np.concatenate([self._physical(way), goal[None]]).astype(np.float32)
            for way, goal in zip(ways, goals, strict=True)
        ]

    def _normalized(self, rows: np.ndarray) -> np.ndarray:
        return self._mapped(self.normalizer.normalize, rows)

    def _physical(self, rows: np.ndarray) -> np.ndarray:
        return self._mapped(self.normalizer.unnormalize, rows)

    def _mapped(
        self, mapping: Callable[[Tensor, list[int]], Tensor], rows: np.ndarray
    ) -> np.ndarray:
        device = self.normalizer.shift.device
        tensor = torch.as_tensor(rows, dtype=torch.float32, device=device)
        mapped: np.ndarray = mapping(tensor, self.goal_columns).cpu().numpy()
        return mapped
