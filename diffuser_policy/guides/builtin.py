r"""The guides of this package: where a trajectory goes, how it moves, what it earns.

Penalties are halves of squared distances, summed over the trajectory: a gradient step
of scale 1 on clean trajectories removes an excess entirely and overshoots nowhere.

Between two planning steps a plan is a straight segment, and a fast one can cut a
region that no planning step is in. So `KeepOut` and `Waypoint` measure distances to
segments, and one planning step at which two segments are nearest moves by twice as
much. With the ends $a, b$ of a segment and a point $c$,

$$d = |a + u\,(b - a) - c|, \qquad
u = \mathrm{clip}\bigl((c - a)\cdot(b - a) / |b - a|^2, 0, 1\bigr)$$
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from diffuser_policy.choices import Placement
from diffuser_policy.errors import GuideError
from diffuser_policy.guides.guide import Guide, Mark
from diffuser_policy.guides.trajectory import Trajectory
from diffuser_policy.settings import MisfitError, converted

STILL = 1e-6  # length, in units of the columns, below which nothing has a direction
ON_PATH = 1e-4  # share of a radius below which a path counts as through the center
PULLS_TO_SETTLE = 10  # wide enough for steps of ten pulls to settle at the goal


# --- where a trajectory goes ---------------------------------------------------------


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
        center: Center of the disc, in units of the columns (mazes: meters).
        radius: Radius of the disc, in the same units.
        margin: Distance from the disc to keep as well: executed paths differ from
            planned ones.
        columns: Which columns of the trajectory the disc is in.
    """

    center: tuple[float, ...]
    radius: float
    margin: float = 0.1
    columns: str = "position"

    def __post_init__(self) -> None:
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
        center: Center of the disc, instead of a box.
        radius: Radius of the disc.
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
        checked_number(self, "margin")
        names = ("low", "high", "center", "radius")
        given = [name for name in names if getattr(self, name) is not None]
        if given == ["center", "radius"]:
            checked_point(self, "center")
            checked_number(self, "radius", above_zero=True)
            room = self._radius - self.margin
        elif given == ["low", "high"]:
            checked_point(self, "low")
            checked_point(self, "high")
            low, high = self._corners
            if len(low) != len(high):
                raise GuideError(
                    f"KeepIn needs corners of one size, got low={low} and high={high}."
                )
            width = min(above - below for below, above in zip(low, high, strict=True))
            room = width - 2 * self.margin if width > 0 else -1.0
        else:
            raise GuideError(
                f"KeepIn needs a box, low and high, or a disc, center and radius; got "
                f"{' and '.join(given) or 'neither'}."
            )
        if room < 0:
            raise GuideError(f"{self} leaves no room: is its margin too wide?")

    def __call__(self, trajectory: Trajectory) -> Tensor:
        """Return minus half the squared distances to the region."""
        path = trajectory[self.columns]
        if self.center is not None:
            center = point_like(self, trajectory, self.columns, self.center)
            inner = self._radius - self.margin
            outside = torch.relu(lengths(path - center, STILL) - inner)
            return -0.5 * outside.square().sum(dim=1)
        low, high = (
            point_like(self, trajectory, self.columns, corner)
            for corner in self._corners
        )
        below = torch.relu(low + self.margin - path)
        above = torch.relu(path - high + self.margin)
        return -0.5 * (below.square() + above.square()).sum(dim=(1, 2))

    def marks(self) -> list[Mark]:
        """Return the region."""
        if self.center is not None:
            return [_disc("stay inside", self.columns, self.center, self._radius)]
        low, high = self._corners
        return [Mark("stay inside", self.columns, low, high, round=False)]

    @property
    def _radius(self) -> float:
        return 0.0 if self.radius is None else self.radius

    @property
    def _corners(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return self.low or (), self.high or ()


@dataclass(frozen=True, kw_only=True)
class Waypoint(Guide):
    r"""Makes a path pass by a point, at a given time or whenever it suits.

    $$J = -\tfrac12 d(t)^2, \qquad
    J = \sigma^2 \log \tfrac1N \sum_t \exp(-d_t^2 / 2\sigma^2)$$

    with the distance d(t) at env step t of the plan, or the distances $d_t$ of the N
    segments between planning steps. The latter is a smooth minimum over time: it draws
    a part of the path to the point, a larger part for a larger $\sigma$.

        make_guide("waypoint", position=(0.0, 2.5))
        make_guide("waypoint", position=(0.0, 2.5), time=90.0)

    Attributes:
        position: The point, in units of the columns (mazes: meters).
        time: When to be there, in env steps since the plan began; a time past its end
            means its end. None: any time. Every new plan starts counting anew: when
            replanning at intervals, drop the guide once the point has been passed.
        softness: σ, in the same units as the position; for any time only.
        columns: Which columns of the trajectory the point is in.
    """

    position: tuple[float, ...]
    time: float | None = None
    softness: float = 0.3
    columns: str = "position"

    def __post_init__(self) -> None:
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

    $$J = -w \sum_t \left(\sqrt{|p_t - g|^2 + (10 w)^2} - 10 w\right)$$

    It knows no walls: a strong pull draws plans through them. A gradient step of scale
    1 on clean trajectories moves every position by w towards the goal, and by less
    within some 10 w of it, so that positions settle there.

        make_guide("goal-distance")
        make_guide("goal-distance", goal=(4.5, 3.0), pull=0.05)

    Attributes:
        pull: w, in units of the columns.
        goal: In units of the columns (mazes: meters); None: the environment's goal.
        columns: Which columns of the trajectory the goal is in.
    """

    pull: float = 0.01
    goal: tuple[float, ...] | None = None
    columns: str = "goal"

    def __post_init__(self) -> None:
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
        softening = max(PULLS_TO_SETTLE * self.pull, STILL)
        return -self.pull * lengths(path - goal, softening).sum(dim=1)


# --- how it moves -------------------------------------------------------------------


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
        excess = lengths(trajectory[self.columns], STILL) - limit
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


# --- what it earns ------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class LearnedValue(Guide):
    """Prefers trajectories whose return the planner's value network expects to be high.

    In units of discounted return. The planner needs a value network, which
    `diffuser-policy train-value` trains.

        policy.with_guide(make_guide("value"), guide_placement="mean")

    Attributes:
        network: The value network; a planner fills it in.
    """

    network: nn.Module | None = field(default=None, compare=False, repr=False)

    def bind(self, networks: Any) -> LearnedValue:
        """Return the guide with the planner's value network.

        Raises:
            GuideError: The planner has none.
        """
        network = getattr(networks, "value", None)
        if network is None:
            raise GuideError(
                "The guide LearnedValue needs a value network, and this planner has "
                "none. Train one with --value of `train` (TrainConfig.value), or with "
                "`diffuser-policy train-value PLANNER`."
            )
        return replace(self, network=network)

    @property
    def suited_placement(self) -> Placement:
        """Mean: the network was trained on noisy trajectories."""
        return "mean"

    def __call__(self, trajectory: Trajectory) -> Tensor:
        """Return the expected returns.

        Raises:
            GuideError: No planner has filled in a value network.
        """
        if self.network is None:
            raise GuideError(
                "The guide LearnedValue has no value network yet. Pass it to "
                "policy.with_guide(…), or call its bind(policy.networks)."
            )
        step = max(trajectory.denoising_step, 0)
        steps = torch.full(
            (len(trajectory),), step, device=trajectory.normalized.device
        )
        values: Tensor = self.network(trajectory.normalized, steps)
        return values


# --- distances and checks -----------------------------------------------------------


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

    Along the first column where these two stand still. Constants: no gradient leads
    through them.

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
    aside = torch.zeros_like(across)
    aside[..., 0] = 1.0  # across any motion in the other columns
    still = norm <= STILL
    return torch.where(still, aside, across / norm.masked_fill(still, 1.0))


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
        point = converted(value, tuple[float, ...])
    except MisfitError:
        point = ()
    if not point:
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
    value = getattr(guide, name)
    try:
        number = converted(value, float)
    except MisfitError:
        number = -1.0
    if number < 0 or (above_zero and number == 0):
        wanted = "a positive number" if above_zero else "zero or a positive number"
        raise GuideError(f"{guide.name}.{name} must be {wanted}, got {value!r}.")
    object.__setattr__(guide, name, number)


def _disc(
    kind: Literal["avoid", "stay inside", "pass by"],
    columns: str,
    center: tuple[float, ...],
    radius: float,
) -> Mark:
    low, high = ((*(x + side for x in center),) for side in (-radius, radius))
    return Mark(kind, columns, low, high)
