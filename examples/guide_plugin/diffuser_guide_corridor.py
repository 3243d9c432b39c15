"""A guide from outside: stay in the corridor between two points."""

import torch
from torch import Tensor

from diffuser_policy.guides.trajectory import Trajectory


def corridor(
    trajectory: Trajectory,
    *,
    start: tuple[float, float],
    end: tuple[float, float],
    width: float = 0.5,
) -> Tensor:
    """Stay in the corridor along the line through two points.

    Args:
        trajectory: What is planned.
        start: A point of the line, meters.
        end: Another one, meters.
        width: From wall to wall, meters.
    """
    first, last = (trajectory.position.new_tensor(point) for point in (start, end))
    along = (last - first) / (last - first).norm()
    offset = trajectory.position - first
    aside = (offset[..., 0] * along[1] - offset[..., 1] * along[0]).abs()
    return -0.5 * torch.relu(aside - width / 2).square().sum(dim=1)
