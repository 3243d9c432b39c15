"""The arm's closed-form kinematics, against Bullet and against themselves."""

from __future__ import annotations

import numpy as np
import pytest

from diffuser_envs.kuka.arm import (
    FLANGE,
    HOME,
    JOINT_HIGH,
    JOINT_LOW,
    TOOL_LENGTH,
    inverse,
    reachable,
    tool_pose,
    tool_position,
)
from diffuser_envs.kuka.arrangements import MAX_AZIMUTH, MAX_RADIUS, MIN_RADIUS

LINK_7_TO_WRIST = 0.081  # from the wrist to the origin of the last link, in the URDF


def sector_points(num: int, seed: int = 0) -> np.ndarray:
    """Draw tool positions over the work sector, up to 0.45 m high."""
    rng = np.random.default_rng(seed)
    radius = rng.uniform(MIN_RADIUS, MAX_RADIUS, num)
    azimuth = rng.uniform(-MAX_AZIMUTH, MAX_AZIMUTH, num)
    height = rng.uniform(0.0, 0.45, num)
    return np.stack(
        (radius * np.cos(azimuth), radius * np.sin(azimuth), height), axis=-1
    )


def test_forward_kinematics_are_bullets() -> None:
    pybullet = pytest.importorskip("pybullet", reason="needs the extra 'kuka'")
    import pybullet_data

    client = pybullet.connect(pybullet.DIRECT)
    arm = pybullet.loadURDF(
        f"{pybullet_data.getDataPath()}/kuka_iiwa/model.urdf",
        useFixedBase=True,
        physicsClientId=client,
    )
    rng = np.random.default_rng(0)
    for joints in rng.uniform(JOINT_LOW, JOINT_HIGH, (50, 7)):
        for joint, angle in enumerate(joints):
            pybullet.resetJointState(arm, joint, angle, physicsClientId=client)
        state = pybullet.getLinkState(
            arm, 6, computeForwardKinematics=1, physicsClientId=client
        )
        turn = np.reshape(pybullet.getMatrixFromQuaternion(state[5]), (3, 3))
        tip = state[4] + turn[:, 2] * (FLANGE - LINK_7_TO_WRIST + TOOL_LENGTH)
        position, rotation = tool_pose(joints)
        np.testing.assert_allclose(position, tip, atol=1e-6)
        np.testing.assert_allclose(rotation, turn, atol=1e-6)
    limits = [pybullet.getJointInfo(arm, i, physicsClientId=client) for i in range(7)]
    np.testing.assert_allclose(JOINT_LOW, [each[8] for each in limits])
    np.testing.assert_allclose(JOINT_HIGH, [each[9] for each in limits])
    pybullet.disconnect(client)


def test_inverse_kinematics_lead_back_and_point_down() -> None:
    points = sector_points(5000)
    joints = inverse(points)
    assert ((joints >= JOINT_LOW) & (joints <= JOINT_HIGH)).all()
    position, rotation = tool_pose(joints)
    np.testing.assert_allclose(position, points, atol=1e-12)
    downward = np.broadcast_to(np.diag([-1.0, 1.0, -1.0]), rotation.shape)
    np.testing.assert_allclose(rotation, downward, atol=1e-12)


def test_the_last_joint_stays_far_from_its_limits_over_the_whole_sector() -> None:
    joints = inverse(sector_points(5000))
    assert (JOINT_HIGH - np.abs(joints)).min(axis=0)[6] > 1.5
    assert (JOINT_HIGH - np.abs(joints)).min() > 0.02  # joint 4, close to the base


def test_joints_follow_the_tool_continuously() -> None:
    azimuth = np.linspace(-MAX_AZIMUTH, MAX_AZIMUTH, 1000)
    height = 0.25 + 0.2 * np.sin(9.0 * azimuth)
    radius = 0.55 + 0.13 * np.cos(7.0 * azimuth)
    path = np.stack(
        (radius * np.cos(azimuth), radius * np.sin(azimuth), height), axis=-1
    )
    assert np.abs(np.diff(inverse(path), axis=0)).max() < 0.03


def test_the_tool_keeps_its_yaw_in_the_world() -> None:
    _, rotation = tool_pose(inverse(sector_points(100)))
    heading = np.arctan2(-rotation[:, 1, 0], -rotation[:, 0, 0])
    np.testing.assert_allclose(heading, 0, atol=1e-12)


def test_what_is_out_of_reach_is_nan_and_nothing_else() -> None:
    points = np.array([(0.5, 0.0, 0.2), (0.9, 0.0, 0.2), (0.3, 0.0, 0.15)])
    assert reachable(points).tolist() == [True, False, False]
    assert np.isnan(inverse(points)).all(axis=1).tolist() == [False, True, True]


def test_home_points_down_above_the_table() -> None:
    position, rotation = tool_pose(HOME)
    np.testing.assert_allclose(position, (0.50, 0.0, 0.35), atol=1e-12)
    np.testing.assert_allclose(rotation[:, 2], (0.0, 0.0, -1.0), atol=1e-12)


def test_leading_dimensions_are_kept() -> None:
    points = sector_points(12).reshape(3, 4, 3)
    assert inverse(points).shape == (3, 4, 7)
    assert tool_position(inverse(points)).shape == (3, 4, 3)
    assert reachable(points).shape == (3, 4)
    assert inverse(points[0, 0]).shape == (7,)
