"""When the tool takes hold of a block, and when it loses it.

The tool is meant to take a block by its upper face. All rules depend on the tool's tip
and direction and the blocks' poses alone, never on a plan.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np

from diffuser_envs.errors import KukaOptionError, check_known
from diffuser_envs.kuka.columns import BLOCK_HEIGHT, BLOCK_WIDTH, FloatArray

Grasp: TypeAlias = Literal["contact", "suction", "magic"]

GRASPS = ("contact", "suction", "magic")
CONTACT_DISTANCE = 0.02
SUCTION_DISTANCE = 0.006
SUCTION_TILT = np.deg2rad(8.0)
SUCTION_FORCE = 20.0
SLIP_DISTANCE = 0.005
GRIP_FORCE = 500.0  # newtons, like `SUCTION_FORCE`
HALF_SIZE: FloatArray = np.array([BLOCK_WIDTH / 2, BLOCK_WIDTH / 2, BLOCK_HEIGHT / 2])


class Grip:
    """A rule of gripping.

    Args:
        grasp: `"contact"`, `"suction"` or `"magic"`.

    Raises:
        KukaOptionError: No such rule.
    """

    def __init__(self, grasp: Grasp) -> None:
        check_known("grasp", grasp, GRASPS, KukaOptionError)
        self.grasp: Grasp = grasp
        self.force = SUCTION_FORCE if grasp == "suction" else GRIP_FORCE
        self._hold: tuple[FloatArray, FloatArray] = (np.zeros(3), np.zeros(3))

    def find(self, tip: FloatArray, down: FloatArray, poses: FloatArray) -> int | None:
        """Return the block that the tool takes hold of, if it can.

        Args:
            tip: Position of the tool's tip, `[3]`, m.
            down: Direction in which the tool points, `[3]`.
            poses: The blocks', `[n, 7]`.
        """
        local, direction = seen_from_blocks(tip, down, poses)
        distance = box_distance(local)
        if self.grasp == "suction":
            over = (np.abs(local[:, :2]) <= HALF_SIZE[:2]).all(axis=1)
            gap = np.abs(local[:, 2] - HALF_SIZE[2])
            upright = direction[:, 2] <= -np.cos(SUCTION_TILT)
            distance = np.where(over & upright, gap, np.inf)
        block = int(distance.argmin())
        limit = {"contact": CONTACT_DISTANCE, "suction": SUCTION_DISTANCE}
        if distance[block] > limit.get(self.grasp, np.inf):
            return None
        self._hold = local[block], direction[block]
        return block

    def has_slipped(
        self, block: int, tip: FloatArray, down: FloatArray, poses: FloatArray
    ) -> bool:
        """Return whether a held block came off, which happens with suction only.

        Args:
            block: The held block.
            tip: Position of the tool's tip, `[3]`, m.
            down: Direction in which the tool points, `[3]`.
            poses: The blocks', `[n, 7]`.
        """
        if self.grasp != "suction":
            return False
        local, direction = seen_from_blocks(tip, down, poses[block : block + 1])
        place, angle = self._hold
        moved = float(np.linalg.norm(local[0] - place))
        turned = float(direction[0] @ angle)
        return moved > SLIP_DISTANCE or turned < np.cos(SUCTION_TILT)


def seen_from_blocks(
    point: FloatArray, direction: FloatArray, poses: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Express a point and a direction in the frame of each block.

    Args:
        point: `[3]`, m.
        direction: `[3]`.
        poses: Positions and quaternions (x, y, z, w), `[n, 7]`.

    Returns:
        Points and directions, `[n, 3]` each.
    """
    turns = _rotations(poses[:, 3:])
    offset = point - poses[:, :3]
    # Rotating back: row vectors from the left multiply by the transposed rotation.
    return (offset[:, None] @ turns)[:, 0], np.asarray(direction @ turns)


def box_distance(local: FloatArray) -> FloatArray:
    """Return the distances of points to a block; 0 for points inside.

    Args:
        local: Points in the block's frame, `[n, 3]`, m.
    """
    outside = np.maximum(np.abs(local) - HALF_SIZE, 0.0)
    return np.asarray(np.sqrt(np.square(outside).sum(axis=-1)))


def _rotations(quaternions: FloatArray) -> FloatArray:
    """Return the rotations of quaternions (x, y, z, w), shape `[n, 3, 3]`."""
    x, y, z, w = quaternions.T
    rows = (
        (1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y - z * w), 2.0 * (x * z + y * w)),
        (2.0 * (x * y + z * w), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z - x * w)),
        (2.0 * (x * z - y * w), 2.0 * (y * z + x * w), 1.0 - 2.0 * (x * x + y * y)),
    )
    return np.moveaxis(np.array(rows), -1, 0)
