"""Motions of the tool: waypoints with clearance, timed within the joint speeds.

A pick-and-place is a chain of legs, each from rest to rest:

    rise → transit → descend → grasp ‖ lift → transit → descend → release

The tool rises and descends vertically. A transit follows a cylinder about the arm's
base, high enough above every block near its way. Along a leg the tool follows a
minimum-jerk profile (Flash and Hogan, 1985), as fast as the joints may turn. This
clearance alone avoids obstacles; there is no collision checker.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from diffuser_envs.errors import KukaArrangementError
from diffuser_envs.kuka.arm import (
    JOINT_SPEED,
    SPEED_FACTOR,
    TOOL_LENGTH,
    inverse,
    reachable,
)
from diffuser_envs.kuka.columns import (
    BLOCK_HEIGHT,
    BLOCK_WIDTH,
    STEP_SECONDS,
    FloatArray,
    IntArray,
)

NOTHING = -1  # the tool holds no block
MIN_LEG_STEPS = 3
LIFT = 0.08  # meters that the tool rises after the last release
TOP = 0.5 * BLOCK_HEIGHT  # of a block above its center, where the tool takes it

_DIAGONAL = BLOCK_WIDTH * math.sqrt(2.0)
_NEAR_EMPTY = 0.5 * _DIAGONAL + 0.05  # half a block and half a wrist
_NEAR_TOOL = 0.5 * _DIAGONAL + 0.03  # half a block and half a tool
_NEAR_LOADED = _DIAGONAL + 0.02
_CHECKED_POINTS = 16
_TIMING_POINTS = 24
_TIMED = -1  # steps of a leg that is as fast as possible
_MARGIN = 0.98  # between sampled and true top speeds
_NEGLIGIBLE = 1e-9

_Point: TypeAlias = tuple[float, float, float]  # radius, azimuth, height
_Leg: TypeAlias = tuple[_Point, _Point, int, int]  # from, to, held, env steps


@dataclass(frozen=True, kw_only=True)
class Style:
    """How a pick-and-place is carried out.

    Attributes:
        clearance: Meters between tool or carried block and the blocks below.
        grasp_steps: Env steps that the tool rests when it grasps or releases.
    """

    clearance: float = 0.04
    grasp_steps: int = 4


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A timed motion of `T` env steps.

    Attributes:
        tool: Tip of the tool, `[T + 1, 3]`.
        joints: `[T + 1, 7]`.
        held: The block that the tool holds, or `NOTHING`: `[T + 1]`. It changes while
            the tool rests.
    """

    tool: FloatArray
    joints: FloatArray
    held: IntArray

    def padded(self, steps: int) -> Trajectory:
        """Return the motion, with a rest at its end if it is shorter than `steps`."""
        rows = np.arange(max(len(self.held), steps + 1)).clip(max=len(self.held) - 1)
        return Trajectory(self.tool[rows], self.joints[rows], self.held[rows])


class Route:
    """A growing chain of legs that begins at the tool.

    Args:
        tool: Tip of the tool, (x, y, z).
        held: The block that it holds, or `NOTHING`.
        style: Clearances and pauses.
    """

    def __init__(
        self, tool: npt.ArrayLike, *, held: int = NOTHING, style: Style | None = None
    ) -> None:
        self.style = style or Style()
        self._start = self._at = _cylindrical(tool)
        self._held_first = self._held = held
        self._legs: list[_Leg] = []

    def travel(
        self,
        target: npt.ArrayLike,
        blocks: FloatArray,
        detour: npt.ArrayLike | None = None,
    ) -> None:
        """Go to a tool position from above, over all blocks in the way.

        Args:
            target: Position, (x, y, z).
            blocks: Centers of the blocks, shape `[n, 3]`; a held one does not count.
            detour: Offset from the target, (x, y, z), at which the tool first comes
                down; it then moves level until it is above the target. Left out where
                the arm does not reach it.
        """
        goal = np.asarray(target, dtype=np.float64)
        first = end = _cylindrical(goal)
        safe = max(self._safe_height(end, blocks), end[2])
        if detour is not None:
            beside = _cylindrical(goal + np.asarray(detour))
            over = max(self._safe_height(beside, blocks), beside[2], end[2])
            corners = (
                (*self._at[:2], over),
                (*beside[:2], over),
                beside,
                (*end[:2], beside[2]),
            )
            if reachable(_cartesian(np.array(corners))).all():
                first, safe = beside, over
        self.rise(safe)
        self._go((first[0], first[1], safe))
        self._go(first)
        self._go((end[0], end[1], first[2]))
        self._go(end)

    def rise(self, height: float) -> None:
        """Go straight up to a height; stay if the tool is there or higher."""
        radius, azimuth, now = self._at
        self._go((radius, azimuth, max(height, now)))

    def rest(self, steps: int, held: int | None = None) -> None:
        """Stay for some env steps.

        Args:
            steps: Number of env steps.
            held: The block that the tool holds from the first of them on; unchanged by
                default.
        """
        self._held = self._held if held is None else held
        self._legs.append((self._at, self._at, self._held, steps))

    def take(
        self,
        block: int,
        blocks: FloatArray,
        grasp: FloatArray,
        detour: npt.ArrayLike | None = None,
    ) -> None:
        """Go to a block and grasp it.

        Args:
            block: Its number.
            blocks: Centers of all blocks, shape `[n, 3]`.
            grasp: Offset from the block's center to the tool, (x, y, z).
            detour: As for `travel`.
        """
        self.travel(blocks[block] + grasp, blocks, detour)
        self.rest(self.style.grasp_steps, block)

    def put(
        self,
        target: FloatArray,
        blocks: FloatArray,
        grasp: FloatArray,
        detour: npt.ArrayLike | None = None,
    ) -> None:
        """Bring the held block to a position and release it.

        Args:
            target: Position of its center, (x, y, z).
            blocks: Centers of all blocks, shape `[n, 3]`.
            grasp: Offset from the held block's center to the tool, (x, y, z).
            detour: As for `travel`.
        """
        self.travel(target + grasp, blocks, detour)
        self.rest(self.style.grasp_steps, NOTHING)

    def finish(self, steps: int) -> None:
        """Rise a little above the released block, and rest.

        Args:
            steps: Env steps of the rest.
        """
        self.rise(self._at[2] + LIFT)
        self.rest(steps)

    def timed(self) -> Trajectory:
        """Return the motion, every leg as fast as the joints may turn.

        Raises:
            KukaArrangementError: The arm does not reach a waypoint.
        """
        legs = self._legs or [(self._start, self._start, self._held, 0)]
        starts = np.array([leg[0] for leg in legs])
        ends = np.array([leg[1] for leg in legs])
        steps = np.array([leg[3] for leg in legs])
        moving = steps == _TIMED
        if moving.any():
            steps[moving] = _leg_steps(starts[moving], ends[moving])
        leg = np.repeat(np.arange(len(steps)), steps)
        done = np.arange(1, len(leg) + 1) - (np.cumsum(steps) - steps)[leg]
        share = _minimum_jerk(done / steps[leg])[:, None]
        points = starts[leg] + share * (ends - starts)[leg]
        tool = _cartesian(np.vstack((starts[:1], points)))
        joints = inverse(tool)
        if not np.isfinite(joints).all():
            worst = tool[np.isnan(joints).any(axis=1)][0]
            raise KukaArrangementError(
                f"the arm does not reach {np.round(worst, 3).tolist()} with its tool"
                " pointing down"
            )
        held = np.array([self._held_first, *(leg[2] for leg in legs)])
        return Trajectory(tool, joints, held[np.concatenate(([0], leg + 1))])

    def _go(self, end: _Point) -> None:
        """Append a leg, unless the tool is there already."""
        if max(abs(a - b) for a, b in zip(self._at, end, strict=True)) > _NEGLIGIBLE:
            self._legs.append((self._at, end, self._held, _TIMED))
            self._at = end

    def _safe_height(self, end: _Point, blocks: FloatArray) -> float:
        """Return the height at which the tool clears all blocks on the way."""
        loaded = self._held != NOTHING
        others = np.delete(blocks, self._held, axis=0) if loaded else blocks
        way = np.linspace(self._at[:2], end[:2], _CHECKED_POINTS)
        x = way[:, :1] * np.cos(way[:, 1:])
        y = way[:, :1] * np.sin(way[:, 1:])
        gaps = np.hypot(x - others[:, 0], y - others[:, 1]).min(axis=0)
        near = gaps < (_NEAR_LOADED if loaded else _NEAR_EMPTY)
        top = others[near, 2].max() + TOP if near.any() else 0.0
        hanging = BLOCK_HEIGHT if loaded else 0.0
        return float(top) + hanging + self.style.clearance


def lowest_tool(xy: npt.ArrayLike, blocks: FloatArray) -> float:
    """Return the least height at which the empty tool touches nothing.

    Args:
        xy: Position of the tool.
        blocks: Centers, shape `[n, 3]`.
    """
    gaps = np.hypot(*(blocks[:, :2] - np.asarray(xy)).T)
    tops = blocks[:, 2] + TOP
    below = tops[gaps < _NEAR_TOOL]
    beside = tops[gaps < _NEAR_EMPTY] - TOOL_LENGTH  # of the wrist
    return float(np.concatenate(([0.0], below, beside)).max())


def _leg_steps(starts: FloatArray, ends: FloatArray) -> IntArray:
    """Return the fewest env steps in which the joints manage each leg.

    Args:
        starts: Cylindrical coordinates, shape `[k, 3]`.
        ends: Likewise.
    """
    share = _minimum_jerk(np.linspace(0.0, 1.0, _TIMING_POINTS + 1))[:, None, None]
    joints = inverse(_cartesian(starts + share * (ends - starts)))
    turned = np.abs(np.diff(joints, axis=0)) * _TIMING_POINTS
    allowed = _MARGIN * SPEED_FACTOR * STEP_SECONDS * JOINT_SPEED
    needed = np.nan_to_num((turned / allowed).max(axis=(0, 2)), nan=1.0)
    return np.asarray(np.maximum(np.ceil(needed), MIN_LEG_STEPS), dtype=np.int64)


def _minimum_jerk(time: FloatArray) -> FloatArray:
    """Return the share of a leg that is done after a share of its time."""
    return np.asarray(time**3 * (10.0 - 15.0 * time + 6.0 * time**2))


def _cylindrical(point: npt.ArrayLike) -> _Point:
    """Return radius, azimuth and height."""
    x, y, z = np.asarray(point, dtype=np.float64).tolist()
    return math.hypot(x, y), math.atan2(y, x), z


def _cartesian(points: FloatArray) -> FloatArray:
    """Return x, y and z, shape `[..., 3]`."""
    radius, azimuth, height = points[..., 0], points[..., 1], points[..., 2]
    return np.stack(
        (radius * np.cos(azimuth), radius * np.sin(azimuth), height), axis=-1
    )
