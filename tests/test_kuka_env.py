"""The block-stacking environments: spaces, rewards, moving and gripping."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

pytest.importorskip("pybullet", reason="needs the extra 'kuka'")

from diffuser_envs.kuka.arm import HOME, JOINT_LOW, JOINT_SPEED, inverse
from diffuser_envs.kuka.columns import COLUMNS
from diffuser_envs.kuka.grips import Grip
from diffuser_envs.kuka.tasks import tower_goal
from tests.kuka_env_helpers import (
    IDS,
    ROW,
    STILL,
    TOP,
    make,
    random_actions,
    start,
    state_of,
)

# --- interface ------------------------------------------------------------------------


# Joint limits are in radians and no two joints' are the same.
@pytest.mark.filterwarnings("ignore:.*symmetric and normalized space")
@pytest.mark.parametrize("task", IDS)
def test_gymnasium_and_sb3_find_nothing_wrong(task: str) -> None:
    env = gymnasium.make(IDS[task], render_mode="rgb_array", width=32, height=24)
    check_env(env.unwrapped)
    env.close()
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    env = gymnasium.make(IDS[task])
    checker.check_env(env, warn=False)
    env.close()


def test_specs_and_columns() -> None:
    limits = {"unconditional": 384, "conditional": 384, "rearrangement": 896}
    for task, limit in limits.items():
        env = gymnasium.make(IDS[task])
        assert env.spec is not None
        assert env.spec.max_episode_steps == limit
        assert env.unwrapped.metadata["demonstrator"] == "kuka-stack"
        columns = env.unwrapped.metadata["observation_columns"]
        assert {name: tuple(each) for name, each in columns.items()} == COLUMNS
        again = gymnasium.make(env.spec)  # as a dataset's metadata recovers it
        assert again.spec == env.spec
        again.close()
        env.close()


def test_observation_is_joints_blocks_and_flags() -> None:
    env = make("conditional", num_blocks=3)
    _, observation = start(env, seed=1, blocks=ROW[:3])
    state = state_of(observation)
    assert state.dtype == np.float32
    assert state[:7] == pytest.approx(HOME, abs=1e-6)
    assert state[7:].reshape(3, 8)[:, :3] == pytest.approx(ROW[:3], abs=1e-6)
    assert (state[7:].reshape(3, 8)[:, 3:] == (0, 0, 0, 1, 0)).all()
    assert observation["desired_goal"].sum() == 2.0
    env.close()


def test_goals_are_copies() -> None:
    env = make("rearrangement")
    _, first = start(env, seed=1)
    first["desired_goal"] += 1.0
    first["achieved_goal"] += 1.0
    observation = env.step(STILL)[0]
    assert not np.allclose(observation["desired_goal"], first["desired_goal"])
    assert not np.allclose(observation["achieved_goal"], first["achieved_goal"])
    env.close()


@pytest.mark.parametrize("task", ["conditional", "rearrangement"])
def test_reward_is_compute_reward_of_any_batch(task: str) -> None:
    env = make(task)
    mover, observation = start(env, seed=2)
    seen, rewards = [observation], [0.0]
    for action in random_actions(0, 30):
        observation, reward, *_ = env.step(action)
        seen.append(observation)
        rewards.append(float(reward))
    achieved = np.stack([each["achieved_goal"] for each in seen])
    desired = np.stack([each["desired_goal"] for each in seen])
    base: Any = env.unwrapped
    assert base.compute_reward(achieved, desired, {}).tolist() == rewards
    assert base.compute_reward(achieved[3], desired[3], {}) == rewards[3]
    named = {"achieved_goal": achieved, "desired_goal": desired, "info": {}}
    assert base.compute_reward(**named).tolist() == rewards
    wide = achieved.astype(np.float64)
    assert (base.compute_reward(wide, wide, [{}] * len(seen)) == 1.0).all()
    env.close()
    assert mover.reward == 0.0


# --- moving and gripping --------------------------------------------------------------


def test_towers_are_built_and_rewarded() -> None:
    env = make("conditional")
    goal = tower_goal((2, 0, 3, 1))
    mover, observation = start(env, blocks=ROW, goal=goal)
    assert observation["desired_goal"].tolist() == goal.tolist()
    for storey, (top, bottom) in enumerate([(0, 2), (3, 0), (1, 3)], start=1):
        mover.stack(top, bottom)
        assert mover.reward == pytest.approx(storey / 3)
        assert mover.info["success"] == (storey == 3)
    env.close()


def test_flag_follows_the_hold_and_not_the_command() -> None:
    env = make()
    mover, _ = start(env, blocks=ROW)
    mover.go((0.5, 0.0, 0.35), grip=True, steps=3)
    assert mover.flag(0) == mover.flag(1) == 0.0
    assert mover.info["held"] == -1
    mover.pick(1)
    assert mover.flag(1) == 1.0
    assert mover.info["held"] == 1
    assert mover.block(1)[2] > 0.3
    mover.go((0.5, -0.1, 0.4), grip=False, steps=1)
    assert mover.flag(1) == 0.0
    env.close()


@pytest.mark.parametrize(
    ("grasp", "gap", "aside", "gets"),
    [
        ("contact", 0.019, 0.0, True),
        ("contact", 0.021, 0.0, False),
        ("contact", 0.0, 0.069, True),  # 19 mm beside the edge
        ("contact", 0.0, 0.071, False),
        ("suction", 0.005, 0.0, True),
        ("suction", 0.007, 0.0, False),
        ("suction", 0.001, 0.051, False),  # beside the face
        ("magic", 0.2, 0.05, True),
    ],
)
def test_grips_have_the_reach_of_their_rule(
    grasp: str, gap: float, aside: float, gets: bool
) -> None:
    env = make(grasp=grasp)
    joints = inverse(ROW[1] + TOP + (0.0, aside, gap))
    start(env, blocks=ROW, joints=joints)
    *_, info = env.step(np.append(joints, 1.0).astype(np.float32))
    assert info["held"] == (1 if gets else -1)
    env.close()


@pytest.mark.parametrize(("tilt", "gets"), [(7.0, True), (9.0, False)])
def test_suction_needs_the_tool_upright_over_the_block(tilt: float, gets: bool) -> None:
    angle, turn = np.deg2rad(tilt), np.deg2rad(30.0)
    down = np.array([np.sin(angle), 0.0, -np.cos(angle)])
    # The block is turned about the vertical; that must make no difference.
    pose = np.array([[*ROW[1], 0.0, 0.0, np.sin(turn / 2), np.cos(turn / 2)]])
    found = Grip("suction").find(ROW[1] + TOP, down, pose)
    assert found == (0 if gets else None)
    corner = 0.045 * np.array(
        [np.cos(turn) - np.sin(turn), np.sin(turn) + np.cos(turn)]
    )
    upright = np.array([0.0, 0.0, -1.0])
    tip = ROW[1] + TOP + (*corner, 0.0)
    assert Grip("suction").find(tip, upright, pose) == 0
    assert Grip("suction").find(tip, upright, np.array([[*ROW[1], 0, 0, 0, 1]])) is None


def test_suction_loses_a_block_that_is_held_back() -> None:
    env = make(grasp="suction", num_blocks=3)
    mover, _ = start(env, blocks=ROW[:3])
    mover.pick(0)
    assert mover.info["held"] == 0
    # Against another block, harder than suction holds.
    mover.go(mover.block(0) + TOP + (0.0, -0.12, 0.0), grip=True)
    mover.go((0.5, -0.33, 0.06), grip=True)
    mover.go((0.5, 0.3, 0.045), grip=True, steps=20)
    base: Any = env.unwrapped
    assert base.finish()["attempts"]["dropped"] >= 1
    env.close()


def test_targets_are_clipped_to_limits_and_speed() -> None:
    env = make()
    mover, _ = start(env, blocks=ROW)
    before = mover.state[:7].astype(np.float64)
    mover.act(np.append(JOINT_LOW - 5.0, 0.0))
    moved = before - mover.state[:7]
    assert moved == pytest.approx(1.5 * 0.05 * JOINT_SPEED, abs=1e-4)
    for _ in range(60):
        mover.act(np.append([-9.0, *HOME[1:]], 0.0))
    assert mover.state[0] == pytest.approx(JOINT_LOW[0], abs=1e-3)
    env.close()


def test_joint_noise_is_constant_within_a_phase() -> None:
    env = make(joint_noise=0.02)
    mover, _ = start(env, blocks=ROW)
    offsets = []
    for grip in (0.0, 0.0, 0.0, 1.0, 1.0, 0.0):
        for _ in range(2):
            mover.act(np.append(HOME, grip))
        offsets.append(mover.state[:7] - HOME)
    for same in ((0, 1), (1, 2), (3, 4)):
        assert offsets[same[0]] == pytest.approx(offsets[same[1]], abs=1e-4)
    assert np.abs(offsets[2] - offsets[3]).max() > 5e-3
    assert np.abs(offsets[4] - offsets[5]).max() > 5e-3
    assert np.abs(offsets).max() < 0.1
    env.close()


def test_noise_and_options_leave_the_drawn_episode_alone() -> None:
    plain, noisy = make("rearrangement"), make("rearrangement", joint_noise=0.05)
    _, expected = start(plain, seed=3)
    _, same = start(noisy, seed=3)
    assert (expected["desired_goal"] == same["desired_goal"]).all()
    assert (expected["achieved_goal"] == same["achieved_goal"]).all()
    _, moved = start(plain, seed=3, blocks=ROW)
    assert (moved["desired_goal"] == expected["desired_goal"]).all()
    following, _ = plain.reset()
    start(noisy, seed=3)
    again, _ = noisy.reset()
    assert (following["desired_goal"] == again["desired_goal"]).all()
    plain.close()
    noisy.close()
