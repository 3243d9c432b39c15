r"""Rankings: which of the sampled candidates becomes the plan.

A ranking gives every candidate a value; the highest is taken.

- `FirstRanking` takes the first candidate: plain sampling.
- `SmoothnessRanking` prefers a small largest displacement between planning steps:
  a denoiser that is asked to arrive too early jumps.
- `TimeToGoalRanking` asks the time-to-goal network T whether each planned state can
  be reached from the one m planning steps before it in the planned time, and prefers
  the smallest worst excess, $-\max_t [T(o_t, g(o_{t+m})) - m k]$ with stride k. A
  plan that cuts through a wall asks for a way around in no time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffuser_policy.time_to_goal import TimeToGoal


class Ranking:
    """Values candidates; subclasses implement `__call__`."""

    def __call__(self, observations: Tensor, goal_columns: list[int]) -> Tensor:
        """Return values `[rows, candidates]`, higher is better.

        Args:
            observations: `[rows, candidates, steps, observation]`, normalized.
            goal_columns: Columns that a goal pins, such as the position.
        """
        raise NotImplementedError


class FirstRanking(Ranking):
    """Takes the first candidate."""

    def __call__(
        self,
        observations: Tensor,
        goal_columns: list[int],  # noqa: ARG002 (has no opinion)
    ) -> Tensor:
        """Return zeros: ties go to the first."""
        return observations.new_zeros(observations.shape[:2])


class SmoothnessRanking(Ranking):
    """Takes the candidate whose largest displacement is smallest."""

    def __call__(self, observations: Tensor, goal_columns: list[int]) -> Tensor:
        """Return the negative largest displacement between planning steps."""
        if observations.shape[2] < 2:  # nothing moves
            return observations.new_zeros(observations.shape[:2])
        moved = observations[..., goal_columns].diff(dim=2)
        return -moved.square().sum(dim=-1).amax(dim=-1)


class TimeToGoalRanking(Ranking):
    """Takes the candidate whose neighbouring states are closest in time."""

    def __init__(self, time_to_goal: TimeToGoal, stride: int, reach: int = 4) -> None:
        """Choose what counts as neighbouring.

        Args:
            time_to_goal: Predicts env steps between states.
            stride: Env steps between two planning steps.
            reach: Planning steps between the compared states.
        """
        self.time_to_goal, self.stride, self.reach = time_to_goal, stride, reach

    @torch.inference_mode()
    def __call__(self, observations: Tensor, goal_columns: list[int]) -> Tensor:
        """Return the negative largest excess of needed over planned time, env steps."""
        reach = min(self.reach, observations.shape[2] - 1)
        if reach == 0:  # a single planning step asks for nothing
            return observations.new_zeros(observations.shape[:2])
        later = observations[:, :, reach:][..., goal_columns]
        needed = self.time_to_goal(observations[:, :, :-reach], later)
        excess: Tensor = (needed - reach * self.stride).amax(dim=-1)
        return -excess
