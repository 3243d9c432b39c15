r"""Guides about how a trajectory moves: speed, effort, smoothness.

Penalties are sums of squares, with factors such that a step of scale 1 on clean
trajectories removes an excess entirely and overshoots nowhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffuser_policy.errors import GuideError
from diffuser_policy.guides.geometry import checked_number, lengths
from diffuser_policy.guides.guide import Guide
from diffuser_policy.guides.trajectory import Trajectory

SOFTENING = 1e-3  # speed, in units of the columns, at which its direction fades out


@dataclass(frozen=True, kw_only=True)
class SpeedLimit(Guide):
    r"""Keeps the planned speed below a limit.

    $$J = -\tfrac12 \sum_t \max(|v_t| - (v_{max} - m), 0)^2$$

    It moves planned velocities, not positions: follow the plan with an executor that
    takes its pace from them, `diffuser_policy.planning.executors.PathExecutor`.

        make_guide("speed-limit", speed=1.5)

    Attributes:
        speed: The limit, in units of the columns (mazes: meters per second).
        margin: m, how far below the limit to stay: an executor overshoots a little.
        columns: Which columns of the trajectory are a velocity.
    """

    speed: float
    margin: float = 0.0
    columns: str = "velocity"

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            GuideError: Negative or not finite, or a margin above the speed.
        """
        checked_number(self, "speed")
        checked_number(self, "margin")
        if self.margin > self.speed:
            raise GuideError(
                f"SpeedLimit's margin of {self.margin} leaves nothing of the speed "
                f"{self.speed}. Lower it."
            )

    def __call__(self, trajectory: Trajectory) -> Tensor:
        """Return minus half the squared excesses."""
        limit = self.speed - self.margin
        excess = lengths(trajectory[self.columns], SOFTENING) - limit
        return -0.5 * torch.relu(excess).square().sum(dim=1)


@dataclass(frozen=True, kw_only=True)
class ActionEffort(Guide):
    r"""Prefers small actions.

    $$J = -\tfrac12 \sum_t |a_t|^2$$

    A step of scale s on clean trajectories takes the share s off every action.

        0.1 * make_guide("action-effort")

    Attributes:
        columns: Which columns of the trajectory are an effort.
    """

    columns: str = "action"

    def __call__(self, trajectory: Trajectory) -> Tensor:
        """Return minus half the squared actions."""
        return -0.5 * trajectory[self.columns].square().sum(dim=(1, 2))


@dataclass(frozen=True, kw_only=True)
class Smoothness(Guide):
    r"""Prefers steady motion: every planning step halfway between its neighbours.

    $$J = -\tfrac18 \sum_t |x_t - (x_{t-1} + x_{t+1}) / 2|^2$$

    The factor makes 1 the largest curvature of J. Zero for straight lines at constant
    speed, and for plans of fewer than three planning steps.

        make_guide("smoothness")
        make_guide("smoothness", columns="action")

    Attributes:
        columns: Which columns of the trajectory move smoothly.
    """

    columns: str = "position"

    def __call__(self, trajectory: Trajectory) -> Tensor:
        """Return minus the squared deviations."""
        path = trajectory[self.columns]
        bend = path[:, 1:-1] - 0.5 * (path[:, :-2] + path[:, 2:])
        return -0.125 * bend.square().sum(dim=(1, 2))
