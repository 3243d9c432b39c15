"""Arm, table and blocks in Bullet, without a task.

A control step takes 0.05 s. Joint targets are reached along a straight line in joint
space, one point per substep, with position gain 1: the arm then follows without error
and without jumps, so the next joints of a plan are the action that gets there.

A world that is reset behaves bit for bit like a new one. Bullet keeps more than
positions between steps (contact points with their impulses, the order of bodies that
collide, motor targets), and neither moving the bodies nor `restoreState` clears it. So
`reset` releases the block, moves all blocks far away, puts the bodies in order, stops
the arm, and simulates one step, which drops all contacts. Only then does it put
everything in place.

The arm is `pybullet_data`'s iiwa. Its file is read when a world is built, and a
straight tool is appended as one more link; this package holds no copy of it.

This module is the only one that imports PyBullet. On import PyBullet writes its build
time to the process's standard error, past Python's own `sys.stderr`.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from diffuser_envs.errors import MissingExtraError
from diffuser_envs.kuka.arm import TOOL_LENGTH
from diffuser_envs.kuka.columns import NUM_JOINTS, STEP_SECONDS, FloatArray
from diffuser_envs.kuka.grips import GRIP_FORCE, HALF_SIZE

__all__ = ["BlockWorld", "arm_file", "pybullet", "pybullet_data"]

_STDERR = 2
ARM_FILE = "kuka_iiwa/model.urdf"
TOOL_RADIUS = 0.02
TOOL_LINK = 7  # index of the tool in Bullet's list of links
# pybullet_data ends its last link in the face that tools are fixed to.
_LAST_LINK = "lbr_iiwa_link_7"
_LAST_LINK_LENGTH = 0.045
_TOOL_SHAPE = (
    f'<origin rpy="0 0 0" xyz="0 0 {-TOOL_LENGTH / 2}"/>'
    f'<geometry><cylinder radius="{TOOL_RADIUS}" length="{TOOL_LENGTH}"/>'
    "</geometry>"
)
_TOOL_LINKS = f"""
  <link name="tool">
    <inertial>
      <origin rpy="0 0 0" xyz="0 0 {-TOOL_LENGTH / 2}"/>
      <mass value="0.2"/>
      <inertia ixx="0.0002" ixy="0" ixz="0" iyy="0.0002" iyz="0" izz="0.00004"/>
    </inertial>
    <visual>{_TOOL_SHAPE}<material name="Grey"/></visual>
    <collision>{_TOOL_SHAPE}</collision>
  </link>
  <joint name="tool_joint" type="fixed">
    <parent link="{_LAST_LINK}"/>
    <child link="tool"/>
    <origin rpy="0 0 0" xyz="0 0 {_LAST_LINK_LENGTH + TOOL_LENGTH}"/>
  </joint>
"""
Untyped: TypeAlias = Any  # PyBullet ships no types
Vector: TypeAlias = tuple[float, ...]

# 120 Hz. 240 Hz places blocks a quarter of a millimeter better and takes 1.7 times as
# long; towers succeed as often.
DEFAULT_SUBSTEPS = 6
BLOCK_MASS = 0.1
MOTOR_FORCE = 300.0  # the arm's largest joint torque, Nm, by its URDF file
TABLE_HALF_WIDTH = 10.0  # so wide that nothing falls off
TABLE_SEEN_HALF_WIDTH = 1.0
BLOCK_COLORS = (
    (0.84, 0.22, 0.20, 1.0),
    (0.20, 0.47, 0.80, 1.0),
    (0.25, 0.66, 0.32, 1.0),
    (0.95, 0.77, 0.20, 1.0),
    (0.58, 0.36, 0.70, 1.0),
)
_NO_TURN = (0.0, 0.0, 0.0, 1.0)
_FORCES = [MOTOR_FORCE] * NUM_JOINTS
_GAINS = [1.0] * NUM_JOINTS


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Discard what the process writes to standard error, if it has one."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        sys.stderr.flush()
    try:
        kept = os.dup(_STDERR)
    except OSError:
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, _STDERR)
        yield
    finally:
        os.dup2(kept, _STDERR)
        os.close(kept)
        os.close(nowhere)


try:
    with _quiet():
        import pybullet
        import pybullet_data
except ImportError as error:
    raise MissingExtraError(
        f"the block-stacking environments need PyBullet ({error}); run"
        ' `pip install ".[kuka]"` in a clone of diffuser-policy. PyBullet 3.2.7 has'
        " wheels for CPython up to 3.11 on Linux (x86-64); elsewhere the extra leaves"
        " it out and `pip install pybullet` has to compile it"
    ) from error


@contextlib.contextmanager
def arm_file() -> Iterator[str]:
    """Write the arm with its tool to a temporary file, deleted after the block.

    The tool link's frame is at its tip, z pointing out of the arm.

    Yields:
        Path of a URDF file.
    """
    source = Path(pybullet_data.getDataPath()) / ARM_FILE
    text = source.read_text(encoding="utf-8")
    # Bullet looks for meshes beside the file that names them.
    text = text.replace('filename="meshes/', f'filename="{source.parent}/meshes/')
    head, _, tail = text.rpartition("</robot>")
    head += _TOOL_LINKS
    with tempfile.TemporaryDirectory(prefix="diffuser_envs_") as folder:
        path = Path(folder) / "arm.urdf"
        path.write_text(f"{head}</robot>{tail}", encoding="utf-8", newline="\n")
        yield str(path)


class BlockWorld:
    """One Bullet client with the arm, a table and blocks.

    Args:
        num_blocks: Number of blocks.
        substeps: Physics steps per control step of 0.05 s.
        visuals: Load the shapes and colors that only pictures need.
        grip_force: Greatest force of the grip, newtons.
    """

    def __init__(
        self,
        num_blocks: int,
        *,
        substeps: int = DEFAULT_SUBSTEPS,
        visuals: bool = False,
        grip_force: float = GRIP_FORCE,
    ) -> None:
        self.num_blocks = num_blocks
        self.substeps = substeps
        self.grip_force = grip_force
        self.held: int | None = None
        self._grip: int | None = None
        self._targets: FloatArray = np.zeros(NUM_JOINTS)
        self._client: int = pybullet.connect(pybullet.DIRECT)
        try:
            self._build(visuals)
        except BaseException:
            self.close()
            raise

    @property
    def client(self) -> int:
        """Number of the Bullet client; -1 once the world is closed."""
        return self._client

    @property
    def targets(self) -> FloatArray:
        """Joint targets of the last step, shape `[7]`, rad."""
        return self._targets.copy()

    def reset(self, joints: npt.ArrayLike, positions: npt.ArrayLike) -> None:
        """Put arm and blocks somewhere, at rest, with no trace of earlier steps.

        Args:
            joints: Shape `[7]`, rad.
            positions: Centers of the blocks, shape `[n, 3]`, m; blocks stand upright.
        """
        angles = np.asarray(joints, dtype=np.float64)
        self.release()
        for index, block in enumerate(self._blocks):
            self._place(block, (100.0 + 10.0 * index, 100.0, 100.0))
            # Changing what may touch moves bodies to the end of Bullet's order; doing
            # it for all of them makes the order the same in every episode.
            self._collide(index, enabled=True)
        self._place_arm(angles)
        pybullet.stepSimulation(physicsClientId=self._client)
        self._place_arm(angles)
        centers = np.asarray(positions, dtype=np.float64).tolist()
        for block, center in zip(self._blocks, centers, strict=True):
            self._place(block, center)

    def step(self, targets: npt.ArrayLike) -> None:
        """Move the arm to joint targets within 0.05 s.

        Args:
            targets: Shape `[7]`, rad.
        """
        start = self._targets
        self._targets = np.array(targets, dtype=np.float64)
        fractions = np.arange(1, self.substeps + 1) / self.substeps
        path = start + fractions[:, None] * (self._targets - start)
        for point in path.tolist():
            self._drive(point)
            pybullet.stepSimulation(physicsClientId=self._client)

    def hold(self, block: int) -> None:
        """Fix a block to the tool in its present pose.

        Args:
            block: Index of the block.
        """
        self.release()
        link = pybullet.getLinkState(
            self._arm,
            TOOL_LINK,
            computeForwardKinematics=1,
            physicsClientId=self._client,
        )
        # Bullet measures where a constraint sits from the link's center of mass.
        inverse = pybullet.invertTransform(link[0], link[1])
        pose = pybullet.getBasePositionAndOrientation(
            self._blocks[block], physicsClientId=self._client
        )
        offset, turn = pybullet.multiplyTransforms(*inverse, *pose)
        self._grip = pybullet.createConstraint(
            self._arm,
            TOOL_LINK,
            self._blocks[block],
            -1,
            pybullet.JOINT_FIXED,
            (0.0, 0.0, 0.0),
            offset,
            (0.0, 0.0, 0.0),
            turn,
            _NO_TURN,
            physicsClientId=self._client,
        )
        pybullet.changeConstraint(
            self._grip, maxForce=self.grip_force, physicsClientId=self._client
        )
        self._collide(block, enabled=False)
        self.held = block

    def release(self, *, stop: bool = False) -> None:
        """Let go of the held block, if there is one.

        Args:
            stop: Also stop the block.
        """
        if self._grip is None or self.held is None:
            return
        pybullet.removeConstraint(self._grip, physicsClientId=self._client)
        self._collide(self.held, enabled=True)
        if stop:
            self._stop(self._blocks[self.held])
        self._grip = self.held = None

    def joints(self) -> FloatArray:
        """Return the joint angles, shape `[7]`, rad."""
        states = pybullet.getJointStates(
            self._arm, range(NUM_JOINTS), physicsClientId=self._client
        )
        return np.array([state[0] for state in states])

    def poses(self) -> FloatArray:
        """Return positions and quaternions (x, y, z, w, w >= 0), shape `[n, 7]`."""
        poses = np.empty((self.num_blocks, 7))
        for index, block in enumerate(self._blocks):
            center, turn = pybullet.getBasePositionAndOrientation(
                block, physicsClientId=self._client
            )
            poses[index, :3] = center
            poses[index, 3:] = turn
        poses[poses[:, 6] < 0.0, 3:] *= -1.0
        return poses

    def link_poses(self) -> FloatArray:
        """Return the frames of the base, the links and the tool, like `poses`."""
        poses = np.zeros((TOOL_LINK + 2, 7))
        poses[0, 6] = 1.0  # the base stands still
        states = pybullet.getLinkStates(
            self._arm,
            range(TOOL_LINK + 1),
            computeForwardKinematics=1,
            physicsClientId=self._client,
        )
        for link, state in enumerate(states, start=1):
            poses[link] = *state[4], *state[5]
        return poses

    def tool_pose(self) -> tuple[FloatArray, FloatArray]:
        """Return the tip's position, `[3]`, m, and the tool's direction, `[3]`."""
        state = pybullet.getLinkState(
            self._arm,
            TOOL_LINK,
            computeForwardKinematics=1,
            physicsClientId=self._client,
        )
        x, y, z, w = state[5]
        direction = (
            2.0 * (x * z + y * w),
            2.0 * (y * z - x * w),
            1.0 - 2.0 * (x * x + y * y),
        )
        return np.array(state[4]), np.array(direction)

    def close(self) -> None:
        """Free the client; closing again does nothing."""
        client, self._client = self._client, -1
        if client >= 0:
            with contextlib.suppress(pybullet.error):  # the server is gone already
                pybullet.disconnect(physicsClientId=client)

    def __del__(self) -> None:
        # At the exit of the interpreter, imported modules and the client may be gone.
        if contextlib is not None and getattr(self, "_client", -1) >= 0:
            self.close()

    def _build(self, visuals: bool) -> None:
        client = self._client
        pybullet.setPhysicsEngineParameter(
            fixedTimeStep=STEP_SECONDS / self.substeps,
            deterministicOverlappingPairs=1,
            physicsClientId=client,
        )
        pybullet.setGravity(0.0, 0.0, -9.81, physicsClientId=client)
        flags = 0 if visuals else pybullet.URDF_IGNORE_VISUAL_SHAPES
        with arm_file() as path:
            self._arm: int = pybullet.loadURDF(
                path, useFixedBase=True, flags=flags, physicsClientId=client
            )
        self._make_box(
            (TABLE_HALF_WIDTH, TABLE_HALF_WIDTH, 0.05),
            (0.0, 0.0, -0.05),
            color=(0.80, 0.76, 0.70, 1.0) if visuals else None,
            seen=(TABLE_SEEN_HALF_WIDTH, TABLE_SEEN_HALF_WIDTH, 0.05),
        )
        self._blocks: list[int] = [
            self._make_box(
                tuple(HALF_SIZE.tolist()),
                (100.0 + 10.0 * index, 100.0, 100.0),
                mass=BLOCK_MASS,
                color=BLOCK_COLORS[index % len(BLOCK_COLORS)] if visuals else None,
            )
            for index in range(self.num_blocks)
        ]

    def _make_box(
        self,
        half_size: Vector,
        center: Vector,
        *,
        mass: float = 0.0,
        color: Vector | None = None,
        seen: Vector | None = None,
    ) -> int:
        shape = pybullet.createCollisionShape(
            pybullet.GEOM_BOX, halfExtents=half_size, physicsClientId=self._client
        )
        visual = -1
        if color is not None:
            visual = pybullet.createVisualShape(
                pybullet.GEOM_BOX,
                halfExtents=seen or half_size,
                rgbaColor=color,
                physicsClientId=self._client,
            )
        body: int = pybullet.createMultiBody(
            baseMass=mass,
            baseCollisionShapeIndex=shape,
            baseVisualShapeIndex=visual,
            basePosition=center,
            physicsClientId=self._client,
        )
        # Without anchors, blocks at rest creep by a millimeter in twenty seconds.
        pybullet.changeDynamics(
            body,
            -1,
            lateralFriction=0.8,
            frictionAnchor=True,
            physicsClientId=self._client,
        )
        return body

    def _place(self, block: int, center: Vector) -> None:
        pybullet.resetBasePositionAndOrientation(
            block, center, _NO_TURN, physicsClientId=self._client
        )
        self._stop(block)

    def _stop(self, block: int) -> None:
        still = (0.0, 0.0, 0.0)
        pybullet.resetBaseVelocity(block, still, still, physicsClientId=self._client)

    def _place_arm(self, angles: FloatArray) -> None:
        for joint, angle in enumerate(angles.tolist()):
            pybullet.resetJointState(
                self._arm, joint, angle, 0.0, physicsClientId=self._client
            )
        self._targets = angles.copy()
        self._drive(angles.tolist())

    def _drive(self, point: list[float]) -> None:
        pybullet.setJointMotorControlArray(
            self._arm,
            range(NUM_JOINTS),
            pybullet.POSITION_CONTROL,
            targetPositions=point,
            forces=_FORCES,
            positionGains=_GAINS,
            physicsClientId=self._client,
        )

    def _collide(self, block: int, *, enabled: bool) -> None:
        """Switch contacts of a block and the tool; a held block overlaps the tool."""
        pybullet.setCollisionFilterPair(
            self._arm,
            self._blocks[block],
            TOOL_LINK,
            -1,
            int(enabled),
            physicsClientId=self._client,
        )
