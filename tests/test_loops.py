"""Other people's loops: each episode comes out as in our own evaluator.

Stable-Baselines3's `evaluate_policy` on both of its vector environments, and
Gymnasium's vector environments in every autoreset mode.
"""

from __future__ import annotations

import functools
import multiprocessing
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import VectorEnv
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from diffuser_policy import evaluate
from diffuser_policy.evaluation import EpisodeRecord
from diffuser_policy.policy import DiffuserPolicy
from diffuser_policy.testing import toy_policy
from tests.point_env import POINT

MAZE = "diffuser_envs:diffuser_envs/Multi2D-UMaze-v1"
NUM_MAZE_STEPS = 120
SEED, NUM_ENVS, PER_ENV = 5, 4, 3
HAS_MODES = hasattr(gym.vector, "AutoresetMode")  # since Gymnasium 1.1
MODES = ["NextStep", "SameStep", "Disabled"] if HAS_MODES else ["NextStep"]

Result = tuple[float, int]


@pytest.fixture(scope="module")
def policy() -> DiffuserPolicy:
    return toy_policy(horizon="shrinking", replan_interval=5)


@pytest.fixture(scope="module")
def point_records(policy: DiffuserPolicy) -> tuple[EpisodeRecord, ...]:
    """Our own evaluator's episodes of the point, of unequal lengths."""
    records = evaluate(
        policy,
        POINT,
        episodes=NUM_ENVS * PER_ENV,
        seed=SEED,
        num_envs=NUM_ENVS,
        deterministic=True,
        progress=False,
    ).episodes
    assert len({record.length for record in records}) > 3
    return records


@pytest.fixture(scope="module")
def maze_records(policy: DiffuserPolicy) -> tuple[EpisodeRecord, ...]:
    """Our own evaluator's episodes of a maze."""
    records = evaluate(
        policy,
        make_maze,
        episodes=NUM_ENVS,
        seed=SEED,
        num_envs=NUM_ENVS,
        deterministic=True,
        progress=False,
    ).episodes
    assert len({record.episode_return for record in records}) >= 3
    return records


def make_maze() -> gym.Env[Any, Any]:
    return gym.make(MAZE, max_episode_steps=NUM_MAZE_STEPS)


def assert_same(results: list[Result], records: tuple[EpisodeRecord, ...]) -> None:
    assert [length for _, length in results] == [r.length for r in records]
    assert [total for total, _ in results] == pytest.approx(
        [record.episode_return for record in records], rel=1e-3
    )


def stable_baselines(policy: Any, envs: VecEnv, per_env: int) -> list[Result]:
    """Return the episodes of `evaluate_policy`, as they finish."""
    envs.seed(SEED)
    totals, lengths = evaluate_policy(
        policy,
        envs,
        n_eval_episodes=per_env * envs.num_envs,
        deterministic=True,
        return_episode_rewards=True,
        warn=False,
    )
    envs.close()
    assert isinstance(totals, list)
    assert isinstance(lengths, list)
    return list(zip(totals, lengths, strict=True))


def by_return(results: list[Result]) -> list[Result]:
    """Order by results: `evaluate_policy` reports episodes as they finish."""
    return sorted(results, key=lambda result: result[0])


def play(
    policy: DiffuserPolicy, envs: VectorEnv[Any, Any, Any], per_env: int
) -> list[Result]:
    """Run some episodes on each environment; return them in order of their seeds.

    This is the loop that a user of Gymnasium writes; its one rule is which observations
    begin an episode.
    """
    mode = envs.metadata.get("autoreset_mode", "NextStep")
    mode = getattr(mode, "value", mode)
    observation, _ = envs.reset(seed=SEED)
    state, done = None, np.zeros(envs.num_envs, np.bool_)
    starts = np.ones(envs.num_envs, np.bool_)
    current = [(0.0, 0)] * envs.num_envs
    results: list[list[Result]] = [[] for _ in current]
    while min(map(len, results)) < per_env:
        action, state = policy.predict(observation, state, starts, deterministic=True)
        ignored = done if mode == "NextStep" else np.zeros_like(done)
        observation, reward, terminated, truncated, _ = envs.step(action)
        done = np.logical_or(terminated, truncated)
        for i in np.flatnonzero(~ignored):
            total, length = current[i]
            current[i] = (total + float(reward[i]), length + 1)
            if done[i]:
                results[i].append(current[i])
                current[i] = (0.0, 0)
        starts = ignored if mode == "NextStep" else done
        if mode == "Disabled" and done.any():
            observation, _ = envs.reset(options={"reset_mask": done})
    envs.close()
    return [results[i][j] for j in range(per_env) for i in range(len(results))]


def autoreset(mode: str) -> dict[str, Any]:
    """Return the argument that chooses a mode, where Gymnasium has more than one."""
    return {"autoreset_mode": gym.vector.AutoresetMode(mode)} if HAS_MODES else {}


@pytest.mark.parametrize(
    ("kind", "mode"), [*(("sync", mode) for mode in MODES), ("async", MODES[0])]
)
def test_gymnasium_vector_loops_agree_with_the_evaluator(
    policy: DiffuserPolicy,
    point_records: tuple[EpisodeRecord, ...],
    kind: str,
    mode: str,
) -> None:
    context = {"context": "spawn"} if kind == "async" else {}
    envs = gym.make_vec(
        f"tests.point_env:{POINT}",
        num_envs=NUM_ENVS,
        vectorization_mode=kind,
        vector_kwargs={**autoreset(mode), **context},
        seed_step=NUM_ENVS,
    )
    assert_same(play(policy, envs, PER_ENV), point_records)


@pytest.mark.parametrize("mode", MODES)
def test_gymnasium_vector_loops_agree_on_a_maze(
    policy: DiffuserPolicy, maze_records: tuple[EpisodeRecord, ...], mode: str
) -> None:
    envs = gym.make_vec(
        MAZE,
        num_envs=NUM_ENVS,
        vectorization_mode="sync",
        vector_kwargs=autoreset(mode),
        max_episode_steps=NUM_MAZE_STEPS,
    )
    assert_same(play(policy, envs, 1), maze_records)


def test_stable_baselines_loop_agrees_with_the_evaluator(
    policy: DiffuserPolicy, point_records: tuple[EpisodeRecord, ...]
) -> None:
    make = functools.partial(gym.make, POINT, seed_step=NUM_ENVS)
    results = stable_baselines(policy, DummyVecEnv([make] * NUM_ENVS), PER_ENV)
    ours = sorted(point_records, key=lambda record: record.episode_return)
    assert_same(by_return(results), tuple(ours))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dummy", "subprocess"])
def test_stable_baselines_loop_agrees_on_a_maze(
    policy: DiffuserPolicy, maze_records: tuple[EpisodeRecord, ...], kind: str
) -> None:
    makers = [make_maze] * NUM_ENVS
    # Imported once for all processes; each would take three seconds.
    multiprocessing.set_forkserver_preload(["stable_baselines3"])
    envs = (
        DummyVecEnv(makers)
        if kind == "dummy"
        else SubprocVecEnv(makers, start_method="forkserver")
    )
    assert_same(stable_baselines(policy, envs, 1), maze_records)


def test_stable_baselines_models_can_be_evaluated_as_well() -> None:
    env = gym.make(POINT)
    model = PPO("MultiInputPolicy", env, n_steps=8, batch_size=8, device="cpu")
    envs = DummyVecEnv([functools.partial(gym.make, POINT, seed_step=3)] * 3)
    envs.seed(SEED)
    theirs = stable_baselines(model, envs, 2)
    ours = evaluate(
        model, POINT, episodes=6, seed=SEED, num_envs=3, deterministic=True
    ).episodes
    env.close()
    ordered = sorted(ours, key=lambda record: record.episode_return)
    assert_same(by_return(theirs), tuple(ordered))
