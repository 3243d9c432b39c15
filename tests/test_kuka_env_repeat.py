"""Block stacking: same seed, same episode, alone or among many."""

from __future__ import annotations

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

pytest.importorskip("pybullet", reason="needs the extra 'kuka'")

import diffuser_envs
from diffuser_envs.kuka.arrangements import order_of_pairs
from diffuser_envs.kuka.env import KukaStackEnv
from tests.kuka_env_helpers import (
    IDS,
    ROW,
    STILL,
    make,
    random_actions,
    start,
)

# --- repeatability --------------------------------------------------------------------

HASH = """
import sys
sys.path.insert(0, {root!r})
from tests.test_kuka_env_repeat import episode_hash
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


def test_pickled_env_is_made_anew() -> None:
    env = KukaStackEnv("conditional", num_blocks=3, grasp="magic")
    copy = pickle.loads(pickle.dumps(env))  # noqa: S301
    assert (copy.num_blocks, copy.grasp) == (3, "magic")
    assert copy.metadata["observation_columns"] == env.metadata["observation_columns"]
    copy.reset(seed=0)
    copy.close()
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
