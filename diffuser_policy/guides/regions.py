r"""Guides about where a trajectory goes: keep out, keep in, pass by, come near.

Penalties are halves of squared distances, summed over the trajectory: a gradient step
of scale 1 on clean trajectories moves a position by about as much as it is off.
Positions between planning steps count as well (`diffuser_policy.guides.geometry`), so
that one planning step at which two segments are nearest moves by twice as much.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from diffuser_policy.errors import GuideError
from diffuser_policy.guides.geometry import (
    checked_number,
    checked_point,
    lengths,
    point_like,
    segment_offsets,
    sideways,
)
from diffuser_policy.guides.guide import Guide, Mark
from diffuser_policy.guides.trajectory import Trajectory

ON_PATH = 1e-4  # share of a radius below which a path counts as through the center
SOFTENING = 0.01  # distance in units of the columns at which a pull fades out
GOAL_SOFTENING = 0.1  # wide enough for steps of 0.1 to settle at the goal


@dataclass(frozen=True, kw_only=True)
class KeepOut(Guide):
    r"""Keeps a path out of a disc (or ball), also between planning steps.

    $$J = -\tfrac12 \sum_t \max(r + m - d_t, 0)^2$$

    with the distance $d_t$ of the center to the segment from planning step t to t + 1.
    Zero for a path that stays outside. A path through the very center is pushed to the
    left of its motion.

        make_guide("keep-out", center=(1.5, -0.5), radius=0.4)

    Follow such plans with the executor "path": at full speed, corners are cut.

    Attributes:
        center: Of the disc, in units of the columns (mazes: meters).
        radius: Of the disc, in the same units.
        margin: Distance from the disc to keep as well: executed paths differ from
            planned ones.
        columns: Which columns of the trajectory the disc is in.
    """

    center: tuple[float, ...]
    radius: float
    margin: float = 0.1
    columns: str = "position"

    def __post_init__(self) -> None:
        """Check ranges."""
        checked_point(self, "center")
        checked_number(self, "radius", above_zero=True)
        checked_number(self, "margin")

    def __call__(self, trajectory: Trajectory) -> Tensor:
        """Return minus half the squared penetrations."""
        center = point_like(self, trajectory, self.columns, self.center)
        path = trajectory[self.columns]
        offsets = segment_offsets(path, center)
        tiny = ON_PATH * self.radius
        through = lengths(offsets.detach()) < tiny
        aside = offsets + 2 * tiny * sideways(path)
        offsets = torch.where(through[..., None], aside, offsets)
        inside = torch.relu(self.radius + self.margin - lengths(offsets))
        return -0.5 * inside.square().sum(dim=1)

    def marks(self) -> list[Mark]:
        """Return the disc."""
        return [_disc("avoid", self.columns, self.center, self.radius)]


@dataclass(frozen=True, kw_only=True)
class KeepIn(Guide):
    r"""Keeps a path inside a box, or inside a disc (or ball).

    $$J = -\tfrac12 \sum_t d_t^2$$

    with the distance $d_t$ of planning step t to the region; zero inside. Both regions
    are convex: between two steps inside, the path is inside.

        make_guide("keep-in", low=(-5.0, -1.0), high=(5.0, 1.0))
        make_guide("keep-in", center=(0.0, 0.0), radius=2.0)

    Attributes:
        low: Lower corner of the box, in units of the columns (mazes: meters).
        high: Upper corner of the box.
        center: Of the disc, instead of a box.
        radius: Of the disc.
        margin: Distance to keep from the region's edge, inside.
        columns: Which columns of the trajectory the region is in.
    """

    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None
    center: tuple[float, ...] | None = None
    radius: float | None = None
    margin: float = 0.0
    columns: str = "position"

    def __post_init__(self) -> None:
        """Check that there is one region, and room in it."""
        checked_number(self, "margin")
        given = [
            name
            for name in ("low", "high", "center", "radius")
            if getattr(self, name) is not None
        ]
        if given == ["low", "high"]:
            self._check_box()
        elif given == ["center", "radius"]:
            checked_point(self, "center")
            checked_number(self, "radius", above_zero=True)
            if self.margin > self._radius:
                raise self._no_room()
        else:
            raise GuideError(
                f"KeepIn needs a box, low and high, or a disc, center and radius; got "
                f"{' and '.join(given) or 'neither'}."
            )

    def __call__(self, trajectory: Trajectory) -> Tensor:
        """Return minus half the squared distances to the region."""
        path = trajectory[self.columns]
        if self.center is not None:
            center = point_like(self, trajectory, self.columns, self.center)
            inner = self._radius - self.margin
            outside = torch.relu(lengths(path - center, SOFTENING) - inner)
            return -0.5 * outside.square().sum(dim=1)
        low, high = (
            point_like(self, trajectory, self.columns, corner or ())
            for corner in (self.low, self.high)
        )
        below = torch.relu(low + self.margin - path)
        above = torch.relu(path - high + self.margin)
        return -0.5 * (below.square() + above.square()).sum(dim=(1, 2))

    def marks(self) -> list[Mark]:
        """Return the region."""
        if self.center is not None:
            return [_disc("stay inside", self.columns, self.center, self._radius)]
        low, high = self.low or (), self.high or ()
        return [
            Mark(
                kind="stay inside",
                columns=self.columns,
                low=low,
                high=high,
                round=False,
            )
        ]

    @property
    def _radius(self) -> float:
        return 0.0 if self.radius is None else self.radius

    def _check_box(self) -> None:
        checked_point(self, "low")
        checked_point(self, "high")
        low, high = self.low or (), self.high or ()
        if len(low) != len(high):
            raise GuideError(
                f"KeepIn needs corners of one size, got low={low} and high={high}."
            )
        gaps = [above - below for below, above in zip(low, high, strict=True)]
        if min(gaps) <= 0 or min(gaps) < 2 * self.margin:
            raise self._no_room()

    def _no_room(self) -> GuideError:
        return GuideError(f"{self} leaves no room: is its margin too wide?")


@dataclass(frozen=True, kw_only=True)
class Waypoint(Guide):
    r"""Makes a path pass by a point, at a given time or whenever it suits.

    $$J = -\tfrac12 d(t)^2, \qquad
    J = \sigma^2 \log \tfrac1N \sum_t \exp(-d_t^2 / 2\sigma^2)$$

    with the distance d(t) at env step t of the plan, or the distances $d_t$ of the N
    segments between planning steps. The latter is a smooth minimum over time: a part
    of the path is drawn to the point, and the more of it the larger $\sigma$ is.

        make_guide("waypoint", position=(0.0, 2.5))
        make_guide("waypoint", position=(0.0, 2.5), time=90.0)

    Attributes:
        position: The point, in units of the columns (mazes: meters).
        time: When to be there, in env steps since the plan began; past its end, at its
            end. None: any time. Every new plan counts anew: when replanning at
            intervals, drop the guide once the point has been passed.
        softness: σ, in the same units as the position; for any time only.
        columns: Which columns of the trajectory the point is in.
    """

    position: tuple[float, ...]
    time: float | None = None
    softness: float = 0.3
    columns: str = "position"

    def __post_init__(self) -> None:
        """Check ranges."""
        checked_point(self, "position")
        checked_number(self, "softness", above_zero=True)
        if self.time is not None:
            checked_number(self, "time")

    def __call__(self, trajectory: Trajectory) -> Tensor:
        """Return minus half the squared distance to the point."""
        point = point_like(self, trajectory, self.columns, self.position)
        path = trajectory[self.columns]
        if self.time is not None:
            last = path.shape[1] - 1
            step = min(self.time / trajectory.stride, float(last))
            before = int(step)
            share = step - before
            after = path[:, min(before + 1, last)]
            there = (1 - share) * path[:, before] + share * after
            return -0.5 * (there - point).square().sum(dim=1)
        squared = segment_offsets(path, point).square().sum(dim=-1)
        variance = self.softness**2
        nearest = torch.logsumexp(-squared / (2 * variance), dim=1)
        return variance * (nearest - math.log(squared.shape[1]))

    def marks(self) -> list[Mark]:
        """Return the point."""
        return [_disc("pass by", self.columns, self.position, 0.0)]


@dataclass(frozen=True, kw_only=True)
class GoalDistance(Guide):
    r"""Draws a whole path towards the goal: to be near it soon, and to stay.

    $$J = -w \sum_t |p_t - g|$$

    It knows no walls: a strong pull draws plans through them. A gradient step of scale
    1 on clean trajectories moves every position by w towards the goal.

        make_guide("goal-distance")
        make_guide("goal-distance", goal=(4.5, 3.0), pull=0.05)

    Attributes:
        pull: w, in units of the columns.
        goal: In units of the columns (mazes: meters); None: that of the environment.
        columns: Which columns of the trajectory the goal is in.
    """

    pull: float = 0.01
    goal: tuple[float, ...] | None = None
    columns: str = "goal"

    def __post_init__(self) -> None:
        """Check the goal and the pull."""
        checked_number(self, "pull")
        if self.goal is not None:
            checked_point(self, "goal")

    def __call__(self, trajectory: Trajectory) -> Tensor:
        """Return minus the sum of the distances."""
        path = trajectory[self.columns]
        if self.goal is not None:
            goal = point_like(self, trajectory, self.columns, self.goal)
        elif trajectory.desired_goal is not None:
            goal = trajectory.desired_goal.to(path.dtype)
        else:
            raise GuideError(
                "GoalDistance needs a goal, and this environment has none. Name one: "
                "GoalDistance(goal=(3.0, 4.0), columns='position')."
            )
        return -self.pull * lengths(path - goal, GOAL_SOFTENING).sum(dim=1)


def _disc(
    kind: Literal["avoid", "stay inside", "pass by"],
    columns: str,
    center: tuple[float, ...],
    radius: float,
) -> Mark:
    """Return the mark of a disc, or of a point."""
    return Mark(
        kind=kind,
        columns=columns,
        low=tuple(x - radius for x in center),
        high=tuple(x + radius for x in center),
    )
