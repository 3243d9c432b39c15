r"""Distances of planned paths, and checks of points and sizes, for guides.

Between two planning steps a plan is a straight segment, and a fast one can cut a
region that no planning step is in. So distances are those of segments: with the ends
$a, b$ and a point $c$,

$$d = |a + u\,(b - a) - c|, \qquad
u = \mathrm{clip}\bigl((c - a)\cdot(b - a) / |b - a|^2, 0, 1\bigr)$$
"""

from __future__ import annotations

import math
import numbers
from typing import Any

import torch
from torch import Tensor

from diffuser_policy.errors import GuideError
from diffuser_policy.guides.guide import Guide
from diffuser_policy.guides.trajectory import Trajectory

STILL = 1e-6  # length of a segment, in units of the columns, that has no direction


def segment_offsets(path: Tensor, point: Tensor) -> Tensor:
    """Return the vectors from a point to the nearest point of each segment of a path.

    Args:
        path: `[batch, steps, columns]`; a single step is a segment of no length.
        point: `[columns]`, or `[batch, 1, columns]`.

    Returns:
        `[batch, max(steps - 1, 1), columns]`.
    """
    start, end = path[:, : max(path.shape[1] - 1, 1)], path[:, -path.shape[1] + 1 :]
    along = end - start
    squared = along.square().sum(dim=-1, keepdim=True)
    share = ((point - start) * along).sum(dim=-1, keepdim=True) / squared.clamp(
        STILL**2
    )
    return start + share.clamp(0.0, 1.0) * along - point


def lengths(vectors: Tensor, softening: float = 0.0) -> Tensor:
    r"""Return $\sqrt{|v|^2 + s^2} - s$, whose gradient is finite at zero if s is not.

    Args:
        vectors: `[..., columns]`.
        softening: s, in the units of the vectors.
    """
    squared = vectors.square().sum(dim=-1) + softening**2
    return squared.sqrt() - softening


def sideways(path: Tensor) -> Tensor:
    """Return a unit vector across each segment, to its left in the first two columns.

    Constants: no gradient leads through them.

    Args:
        path: `[batch, steps, columns]`.

    Returns:
        `[batch, max(steps - 1, 1), columns]`.
    """
    count = max(path.shape[1] - 1, 1)
    along = torch.zeros_like(path[:, :count])
    if path.shape[1] > 1:
        along = path.detach().diff(dim=1)
    across = torch.zeros_like(along)
    if path.shape[2] > 1:
        across[..., 0], across[..., 1] = -along[..., 1], along[..., 0]
    norm = across.norm(dim=-1, keepdim=True)
    upright = torch.zeros_like(across)
    upright[..., -1] = 1.0
    still = norm <= STILL
    return torch.where(still, upright, across / norm.masked_fill(still, 1.0))


def point_like(
    guide: Guide, trajectory: Trajectory, columns: str, value: tuple[float, ...]
) -> Tensor:
    """Return a point as a tensor beside the columns that it is compared with.

    Args:
        guide: Whose point it is, for errors.
        trajectory: What is guided.
        columns: Which of its columns.
        value: The point.

    Raises:
        MissingColumnsError: The planner has no such columns.
        GuideError: As many numbers as there are columns were expected.
    """
    planned = trajectory[columns]
    if planned.shape[-1] != len(value):
        raise GuideError(
            f"{guide.name} compares {value} with the columns {columns!r}, of which "
            f"there are {planned.shape[-1]}. Give one number for each."
        )
    return planned.new_tensor(value)


def checked_point(guide: Guide, name: str) -> None:
    """Refuse a field that is no point, and make it a tuple of floats.

    Raises:
        GuideError: Not a sequence of finite numbers.
    """
    value = getattr(guide, name)
    try:
        point = tuple(float(number) for number in value)
    except (TypeError, ValueError):
        point = ()
    if not point or not all(map(math.isfinite, point)):
        raise GuideError(
            f"{guide.name}.{name} must be a point, finite numbers such as (3.0, 4.0); "
            f"got {value!r}."
        )
    object.__setattr__(guide, name, point)


def checked_number(guide: Guide, name: str, *, above_zero: bool = False) -> None:
    """Refuse a field that is no finite number from zero on.

    Raises:
        GuideError: Negative, not finite, or no number; zero, if it is to be above.
    """
    value: Any = getattr(guide, name)
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    above = number and math.isfinite(value) and value >= 0
    if not above or (above_zero and value == 0):
        wanted = "a positive number" if above_zero else "zero or a positive number"
        raise GuideError(f"{guide.name}.{name} must be {wanted}, got {value!r}.")
    object.__setattr__(guide, name, float(value))
