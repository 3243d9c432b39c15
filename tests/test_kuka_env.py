"""Block stacking: spaces, grips, bad input, repeatability, and scores of episodes."""

from __future__ import annotations

import copy
import functools
import hashlib
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

pytest.importorskip("pybullet", reason="needs the extra 'kuka'")

import diffuser_envs
from diffuser_envs.errors import (
    ClosedEnvError,
    KukaActionError,
    KukaArrangementError,
    KukaOptionError,
)
from diffuser_envs.kuka.arm import HOME, JOINT_LOW, JOINT_SPEED, inverse
from diffuser_envs.kuka.arrangements import order_of_pairs
from diffuser_envs.kuka.columns import observation_columns, ordered_pairs
from diffuser_envs.kuka.env import KukaStackEnv
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

COLUMNS = observation_columns()
PAIRS = ordered_pairs()

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


@pytest.mark.parametrize(("command", "gets"), [(0.5, False), (0.51, True)])
def test_the_grip_is_on_above_one_half(command: float, gets: bool) -> None:
    env = make()
    joints = inverse(ROW[1] + TOP)
    start(env, blocks=ROW, joints=joints)
    *_, info = env.step(np.append(joints, command).astype(np.float32))
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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_blocks": 6}, "2 to 5"),
        ({"num_blocks": 1}, "2 to 5"),
        ({"grasp": "sucton"}, "did you mean 'suction'"),
        ({"task": "conditionel"}, "did you mean 'conditional'"),
        ({"joint_noise": -0.1}, "joint_noise"),
        ({"joint_noise": float("nan")}, "joint_noise"),
        ({"num_blocks": 2.5}, "2 to 5"),
        ({"substeps": 0}, "substeps"),
        ({"substeps": float("nan")}, "substeps"),
        ({"render_mode": "humen"}, "rgb_array"),
        ({"width": 0}, "pixel"),
        ({"height": 5.5}, "pixel"),
    ],
)
def test_arguments_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(KukaOptionError, match=message):
        KukaStackEnv(**settings)


def test_counts_may_be_written_with_a_point() -> None:
    settings: dict[str, Any] = {"num_blocks": 2.0, "substeps": 6.0}
    env = KukaStackEnv(**settings)
    env.reset(seed=0)
    assert env.step(env.action_space.sample())[0].shape == (7 + 8 * 2,)
    env.close()


TWICE = [float(pair in {(0, 1), (2, 1), (3, 2)}) for pair in PAIRS]
CYCLE = [float(pair in {(0, 1), (1, 0), (3, 2)}) for pair in PAIRS]
TOO_FAR = [[0.9, 0.0, 0.03], *ROW[1:].tolist()]
OVERLAPPING = [[0.5, -0.15, 0.03], *ROW[1:].tolist()]
FLOATING = [[0.5, -0.3, 0.2], *ROW[1:].tolist()]


@pytest.mark.parametrize(
    ("task", "options", "error", "message"),
    [
        ("conditional", {"goal": TWICE}, KukaArrangementError, "twice"),
        ("conditional", {"goal": CYCLE}, KukaArrangementError, "cycle"),
        ("conditional", {"goal": [1.0]}, KukaOptionError, "12 finite"),
        ("conditional", {"goal": "tower"}, KukaOptionError, "12 finite"),
        ("unconditional", {"goal": TWICE}, KukaOptionError, "has no goal"),
        ("rearrangement", {"goal": TOO_FAR}, KukaArrangementError, "out of reach"),
        ("rearrangement", {"goal": OVERLAPPING}, KukaArrangementError, "overlap"),
        ("rearrangement", {"goal": FLOATING}, KukaArrangementError, "stands on"),
        ("rearrangement", {"goal": np.full(12, np.nan)}, KukaOptionError, "finite"),
        ("unconditional", {"blocks": TOO_FAR}, KukaArrangementError, "out of reach"),
        ("unconditional", {"blocks": ROW[:3]}, KukaArrangementError, "4 times"),
        ("unconditional", {"joints": [0.0] * 6}, KukaOptionError, "7 finite"),
        ("unconditional", {"joints": [9.0] * 7}, KukaOptionError, "limits"),
        ("unconditional", {"block": ROW}, KukaOptionError, "did you mean 'blocks'"),
        ("unconditional", [1], KukaOptionError, r"by name, not \[1\]"),
    ],
)
def test_reset_options_are_checked_before_anything_changes(
    task: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    env = make(task)
    start(env, seed=4)
    state = state_of(env.step(STILL)[0])
    with pytest.raises(error, match=message):
        env.reset(seed=5, options=options)
    assert state_of(env.step(STILL)[0])[7:] == pytest.approx(state[7:], abs=1e-4)
    env.close()


@pytest.mark.parametrize(
    "action", [np.zeros(7), np.zeros((1, 8)), np.full(8, np.nan), np.full(8, np.inf)]
)
def test_actions_are_checked(action: np.ndarray) -> None:
    env = KukaStackEnv()
    env.reset(seed=0)
    with pytest.raises(KukaActionError, match="an action"):
        env.step(action)
    env.step(STILL)
    env.close()


def test_nothing_works_after_close_or_before_reset() -> None:
    env = KukaStackEnv(render_mode="rgb_array")
    for use in (lambda: env.step(STILL), env.render, env.finish):
        with pytest.raises(ClosedEnvError, match="reset"):
            use()
    env.reset(seed=0)
    env.close()
    env.close()
    uses = (env.reset, env.render, env.finish, env.link_poses, env.block_poses)
    for use in (*uses, lambda: env.step(STILL)):
        with pytest.raises(ClosedEnvError, match="closed"):
            use()


HASH = """
import sys
sys.path.insert(0, {root!r})
from tests.test_kuka_env import episode_hash
print(episode_hash())
"""


def episode_hash(env: Any = None) -> str:
    """Hash all observations of one episode with a tower, a fall and random moves."""
    own = env is None
    env = env or make("rearrangement", joint_noise=0.002)
    mover, _ = start(env, seed=11, blocks=ROW)
    mover.stack(1, 0)
    mover.pick(2)
    for action in random_actions(11, 40):
        mover.act(action)
    states = np.stack(mover.states).tobytes()
    end = env.unwrapped.finish()["positions"].tobytes()
    if own:
        env.close()
    return hashlib.sha256(states + end).hexdigest()


@pytest.mark.parametrize("grasp", ["contact", "suction", "magic"])
def test_same_seed_same_episode_whatever_was_before(grasp: str) -> None:
    fresh = make(grasp=grasp)
    expected = episode_hash(fresh)
    fresh.close()
    env = make(grasp=grasp)
    mover, _ = start(env, seed=1, blocks=ROW)
    mover.pick(3)
    assert mover.info["held"] == 3  # abandoned while it carries
    assert episode_hash(env) == expected
    assert episode_hash(env) == expected
    env.close()


def test_same_episode_in_another_process() -> None:
    code = HASH.format(root=str(Path(__file__).parents[1]))
    printed = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(diffuser_envs.__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert printed.strip() == episode_hash()


def test_seeds_give_other_episodes() -> None:
    env = make("conditional")
    starts = [start(env, seed=seed)[1] for seed in range(6)]
    assert len({each["observation"].tobytes() for each in starts}) == 6
    orders = {order_of_pairs(each["desired_goal"], 4) for each in starts}
    assert len(orders) > 2
    first, _ = env.reset(seed=0)
    second, _ = env.reset()
    assert (first["observation"] != second["observation"]).any()
    env.close()


@pytest.mark.parametrize(
    "copied",
    [
        lambda env: copy.copy(env.unwrapped),
        copy.deepcopy,
        lambda env: pickle.loads(pickle.dumps(env)),  # noqa: S301
    ],
)
def test_a_copy_draws_what_the_original_would(copied: Any) -> None:
    env = make("rearrangement")
    env.reset(seed=3)
    twin = copied(env)
    assert twin.unwrapped.spec == env.unwrapped.spec
    with pytest.raises(ClosedEnvError, match=r"call reset\(\) first"):
        twin.step(STILL)
    for _ in range(2):
        np.testing.assert_equal(twin.reset()[0], env.reset()[0])
    twin.close()
    env.close()


def test_pickled_env_is_made_anew() -> None:
    env = KukaStackEnv("conditional", num_blocks=3, grasp="magic")
    again = pickle.loads(pickle.dumps(env))  # noqa: S301
    assert (again.num_blocks, again.grasp) == (3, "magic")
    assert again.metadata["observation_columns"] == env.metadata["observation_columns"]
    again.reset(seed=0)
    again.close()
    env.close()


# --- many at once ---------------------------------------------------------------------


def test_32_envs_in_one_process() -> None:
    envs = [make() for _ in range(32)]
    for env in envs:
        env.reset(seed=0, options={"blocks": ROW})
    states = [env.step(STILL)[0] for env in envs]
    assert all((state == states[0]).all() for state in states)
    for env in envs:
        env.close()


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_vector_envs_score_their_episodes(mode: str) -> None:
    envs = gymnasium.make_vec(
        IDS["conditional"], 2, vectorization_mode=mode, max_episode_steps=3
    )
    try:
        observation, _ = envs.reset(seed=0)
        assert observation["desired_goal"].shape == (2, 12)
        for _ in range(3):
            *_, truncated, info = envs.step(np.stack([STILL, STILL]))
        assert truncated.all()
        assert info["score"].tolist() == [0.0, 0.0]
        assert info["pairs"].shape == (2, 12)
        assert info["failure"].tolist() == ["never reached"] * 2
    finally:
        envs.close()


def test_sb3_runs_it_in_another_process() -> None:
    vector = pytest.importorskip("stable_baselines3.common.vec_env")
    name = f"diffuser_envs:{IDS['unconditional']}"
    short = functools.partial(gymnasium.make, name, max_episode_steps=2)
    envs = vector.SubprocVecEnv([short], start_method="forkserver")
    try:
        envs.seed(0)
        envs.reset()
        for _ in range(2):
            _, _, dones, infos = envs.step(STILL[None])
        assert dones.all()
        assert [info["score"] for info in infos] == [0.0]
    finally:
        envs.close()


def test_last_step_carries_the_settled_score() -> None:
    env = make("conditional", max_episode_steps=200)
    mover, _ = start(env, blocks=ROW, goal=tower_goal((0, 1, 2, 3)))
    mover.stack(1, 0)
    mover.pick(2)
    above = mover.block(1) * (1, 1, 0) + (0.0, 0.0, 0.1801)  # above its place, held
    mover.go(above + np.array([0.0, 0.0, 0.2]), grip=True, steps=25)
    while "score" not in mover.info:
        mover.go(above, grip=True, steps=max(1, 175 - len(mover.states)))
    info = mover.info
    assert mover.reward == pytest.approx(1 / 3)  # held: not on anything yet
    assert info["score"] == pytest.approx(200 / 3)  # let go of and settled: it is
    assert info["latched_score"] == pytest.approx(200 / 3)
    assert {PAIRS[i] for i in np.flatnonzero(info["met"])} == {(1, 0), (2, 1)}
    assert (info["pairs"] == info["met"]).all()
    assert info["failure"] == "out of time"
    assert info["attempts"]["placed"] == 2
    assert info["positions"].shape == (4, 3)
    env.close()


def test_latched_score_keeps_what_has_fallen() -> None:
    env = make()
    mover, _ = start(env, blocks=ROW)
    mover.stack(1, 0)
    mover.pick(1)
    mover.place(ROW[1] + (0.0, 0.0, 0.001))
    base: Any = env.unwrapped
    report = base.finish()
    assert report["score"] == 0.0
    assert report["latched_score"] == pytest.approx(100 / 3)
    assert report["failure"] == "knocked over"
    env.reset(seed=0)
    assert base.finish()["latched_score"] == 0.0  # nothing of the episode before
    env.close()


def test_finished_tower_has_no_failure() -> None:
    env = make("rearrangement")
    goal = ROW.copy()
    goal[0] = ROW[1] + (0.0, 0.0, 0.06)
    goal[2] = ROW[3] + (0.0, 0.0, 0.06)
    mover, _ = start(env, blocks=ROW, goal=goal)
    base: Any = env.unwrapped
    assert base.goal.tolist() == goal.reshape(-1).tolist()
    mover.stack(0, 1)
    assert mover.reward == 0.75  # 1 and 3 never had to move
    mover.stack(2, 3)
    report = base.finish()
    assert report["score"] == report["latched_score"] == 100.0
    assert report["failure"] is None
    assert report["met"].tolist() == [1, 1, 1, 1]
    env.close()


@pytest.mark.parametrize(
    ("aside", "height", "reason"),
    [(0.07, 0.0925, "off-centre"), (0.0, 0.25, None), (0.2, 0.2, "dropped")],
)
def test_bad_releases_are_named(aside: float, height: float, reason: str) -> None:
    env = make(num_blocks=2)
    mover, _ = start(env, blocks=ROW[:2])
    mover.pick(0)
    mover.place((0.5, -0.1 + aside, height))
    base: Any = env.unwrapped
    report = base.finish()
    assert report["failure"] == reason
    assert (report["score"] == 100.0) == (reason is None)
    env.close()


def test_miss_is_named() -> None:
    env = make()
    mover, _ = start(env, blocks=ROW)
    mover.pick(0, offset=np.array([0.08, 0.0, 0.0]))
    assert mover.flag(0) == 0.0
    base: Any = env.unwrapped
    report = base.finish()
    assert report["failure"] == "missed grasp"
    assert report["attempts"]["missed"] == 1
    env.close()


def test_score_waits_for_what_is_still_falling() -> None:
    env = make(num_blocks=2)
    mover, _ = start(env, blocks=ROW[:2])
    mover.pick(0)
    mover.go((0.5, -0.1, 0.35), grip=True)
    mover.go((0.5, -0.1, 0.2), grip=True)
    assert mover.reward == 0.0
    base: Any = env.unwrapped
    report = base.finish()
    assert report["score"] == 100.0
    assert report["failure"] is None
    assert report["positions"][0] == pytest.approx((0.5, -0.1, 0.09), abs=5e-3)
    env.close()
