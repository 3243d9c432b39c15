"""Kinematics of the KUKA LBR iiwa 14 with a straight tool, in closed form.

The arm is a spherical shoulder, an elbow and a spherical wrist (S-R-S), so its seven
joints turn about z and y in turn:

    R(q) = Rz(q1) Ry(q2) Rz(q3) Ry(-q4) Rz(q5) Ry(q6) Rz(q7)

with the shoulder 0.36 m above the base, 0.42 m from shoulder to elbow, 0.40 m from
elbow to wrist, and the tool's tip in line with the wrist. Plans keep the tool pointing
straight down with a fixed yaw *in the world*: a carried block only translates, and a
tool position determines all joints, continuously.

Everything here is vectorized NumPy and needs no simulator. Positions are in meters in
the frame of the arm's base, z up; angles are in radians.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from diffuser_envs.kuka.columns import STEP_SECONDS, BoolArray, FloatArray

SHOULDER_HEIGHT = 0.36
UPPER_ARM = 0.42
FOREARM = 0.40
FLANGE = 0.126  # from the wrist's center to the face that tools are fixed to
TOOL_LENGTH = 0.10
WRIST_TO_TIP = FLANGE + TOOL_LENGTH

# The limits of pybullet_data's kuka_iiwa/model.urdf.
JOINT_HIGH: FloatArray = np.array(
    [2.96705972839, 2.09439510239] * 3 + [3.05432619099], dtype=np.float64
)
JOINT_LOW: FloatArray = -JOINT_HIGH
# Rated speeds of the LBR iiwa 14 R820, whose lengths these are (data sheet), rad/s.
JOINT_SPEED: FloatArray = np.deg2rad([85.0, 85.0, 100.0, 75.0, 130.0, 135.0, 135.0])
SPEED_FACTOR = 1.5  # how much faster than rated environments let the joints turn
# The largest turn in an env step, rad.
JOINT_REACH: FloatArray = SPEED_FACTOR * STEP_SECONDS * JOINT_SPEED


def tool_pose(joints: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Return position and rotation of the tool: forward kinematics.

    Args:
        joints: Shape `[..., 7]`.

    Returns:
        Position of the tip, `[..., 3]`, and rotation, `[..., 3, 3]`, whose third
        column is the direction in which the tool points.
    """
    angles = np.asarray(joints, dtype=np.float64)
    upper = _z_turn(angles[..., 0]) @ _y_turn(angles[..., 1])
    fore = upper @ _z_turn(angles[..., 2]) @ _y_turn(-angles[..., 3])
    tool = fore @ _z_turn(angles[..., 4]) @ _y_turn(angles[..., 5])
    tool = tool @ _z_turn(angles[..., 6])
    position = (
        UPPER_ARM * upper[..., 2] + FOREARM * fore[..., 2] + WRIST_TO_TIP * tool[..., 2]
    )
    position[..., 2] += SHOULDER_HEIGHT
    return position, tool


def tool_position(joints: npt.ArrayLike) -> FloatArray:
    """Return the position of the tool's tip, shape `[..., 3]`.

    Args:
        joints: Shape `[..., 7]`.
    """
    return tool_pose(joints)[0]


def inverse(position: npt.ArrayLike) -> FloatArray:
    """Return joints that put the tool's tip at a position, straight down at yaw 0.

    The whole arm lies in the vertical plane through the base and the tip, elbow up:
    joints 3 and 5 are zero, and joints 1 and 7 are the azimuth.

    Args:
        position: Tip of the tool, shape `[..., 3]`.

    Returns:
        Joints, shape `[..., 7]`; NaN in rows where no posture of this kind is within
        the joint limits.
    """
    tip = np.asarray(position, dtype=np.float64)
    x, y = tip[..., 0], tip[..., 1]
    height = tip[..., 2] + WRIST_TO_TIP - SHOULDER_HEIGHT  # wrist above shoulder
    radius = np.hypot(x, y)
    azimuth = np.arctan2(y, x)
    bend_cosine = (radius**2 + height**2 - UPPER_ARM**2 - FOREARM**2) / (
        2.0 * UPPER_ARM * FOREARM
    )
    with np.errstate(invalid="ignore"):  # the cosine exceeds 1 out of reach: NaN
        bend = np.arccos(bend_cosine)
    lean = np.arctan2(radius, height) - np.arctan2(
        FOREARM * np.sin(bend), UPPER_ARM + FOREARM * np.cos(bend)
    )
    flat = np.stack(
        np.broadcast_arrays(
            azimuth, lean, 0.0, -bend, 0.0, np.pi - lean - bend, azimuth
        ),
        axis=-1,
    )
    inside = ((flat >= JOINT_LOW) & (flat <= JOINT_HIGH)).all(axis=-1, keepdims=True)
    return np.where(inside, flat, np.nan)


def reachable(position: npt.ArrayLike) -> BoolArray:
    """Return which tool positions the arm reaches, straight down at yaw 0.

    Args:
        position: Tip of the tool, shape `[..., 3]`.

    Returns:
        Shape `[...]`.
    """
    return np.asarray(np.isfinite(inverse(position)).all(axis=-1))


def _z_turn(angle: FloatArray) -> FloatArray:
    """Return rotations about z, shape `[..., 3, 3]`."""
    return _turn(angle, 0, 1, 2)


def _y_turn(angle: FloatArray) -> FloatArray:
    """Return rotations about y, shape `[..., 3, 3]`."""
    return _turn(angle, 2, 0, 1)


def _turn(angle: FloatArray, first: int, second: int, fixed: int) -> FloatArray:
    """Return rotations that take axis `first` toward axis `second`."""
    rotation = np.zeros((*np.shape(angle), 3, 3))
    cosine, sine = np.cos(angle), np.sin(angle)
    rotation[..., first, first] = rotation[..., second, second] = cosine
    rotation[..., second, first] = sine
    rotation[..., first, second] = -sine
    rotation[..., fixed, fixed] = 1.0
    return rotation


HOME: FloatArray = inverse((0.50, 0.0, 0.35))
