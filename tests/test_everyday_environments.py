"""Planners of the environments that people have, from recording to evaluating.

Small datasets of MuJoCo's and Gymnasium-Robotics' environments, random actions: every
kind of space that Minari's catalogue has numbers of.
"""

from __future__ import annotations

import itertools
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import parse_env_id

from diffuser_policy import DiffuserPolicy, evaluate
from diffuser_policy.config import (
    TrainConfig,
)
from diffuser_policy.data.collection import collect_episodes
from diffuser_policy.data.minari import load_flat
from diffuser_policy.testing import check_policy
from diffuser_policy.training.trainer import Trainer

mujoco = pytest.importorskip("mujoco")
robotics = pytest.importorskip("gymnasium_robotics")
pytest.importorskip("minari")

# Gymnasium warns of its own older versions, and simulators of what they make of files.
pytestmark = pytest.mark.filterwarnings("ignore")

ROBOTICS = (
    "AdroitHand",
    "AntMaze_",
    "Fetch",
    "FrankaKitchen",
    "HandManipulate",
    "HandReach",
    "PointMaze_",
)
FEW = ("Hopper", "FrankaKitchen", "FetchReach", "AdroitHandDoor", "PointMaze_UMaze")
STEPS = 12  # of an episode


def everyday() -> Iterator[str]:
    """Yield ids: MuJoCo's since v4, Gymnasium-Robotics' newest of each.

    Variants with dense rewards have the same spaces.
    """
    gym.register_envs(robotics)
    newest: dict[str, int] = {}
    for env_id, spec in gym.registry.items():
        _, name, version = parse_env_id(env_id)
        if "envs.mujoco" in str(spec.entry_point) and (version or 0) >= 4:
            yield env_id
        if name.startswith(ROBOTICS) and "Dense" not in name:
            newest[name] = max(newest.get(name, 0), version or 0)
    yield from (f"{name}-v{version}" for name, version in newest.items())


def few() -> list[str]:
    """Return the newest version of each kind."""
    known = sorted(everyday())
    return [[i for i in known if i.rpartition("-")[0] == name][-1] for name in FEW]


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    monkeypatch.setenv("DIFFUSER_POLICY_CACHE", str(tmp_path / "cache"))
    # Gymnasium-Robotics compares kinds of joints with numbers, which MuJoCo 4 refuses.
    from gymnasium_robotics.utils import mujoco_utils

    names = [name for name in dir(mujoco.mjtJoint) if name.startswith("mjJNT_")]
    joints = {name: int(getattr(mujoco.mjtJoint, name)) for name in names}
    patched = types.SimpleNamespace(**vars(mujoco))
    patched.mjtJoint = types.SimpleNamespace(**joints)
    monkeypatch.setattr(mujoco_utils, "mujoco", patched)


def make(env_id: str) -> gym.Env[Any, Any]:
    try:
        return gym.make(env_id, max_episode_steps=STEPS)
    except Exception as error:  # what simulators raise
        pytest.skip(f"{env_id} cannot be made here: {error!r}"[:200])


class Random:
    """Draws actions uniformly."""

    def __init__(self, space: gym.Space[Any]) -> None:
        self.space = space
        self.space.seed(0)

    def predict(self, _: Any, state: Any = None, *__: Any) -> tuple[Any, Any]:
        return self.space.sample(), state


def served(env_id: str, output: Path) -> None:
    """Record, read, train, evaluate and check a planner of an environment."""
    env = make(env_id)
    dataset_id = "everyday/data-v0"
    policy: Any = Random(env.action_space)
    seen: Any = env.observation_space
    collect_episodes(env, policy, num_episodes=4, dataset_id=dataset_id, progress=False)
    flat = load_flat(dataset_id, progress=False)
    with_goals = isinstance(seen, gym.spaces.Dict) and "desired_goal" in seen.spaces
    assert flat.has_goals == with_goals
    config = TrainConfig.for_dataset(
        flat,
        # Unclipped plans of an untrained network amplify rounding.
        window={"normalizer": "limits"},
        network={"dim": 8, "multipliers": (1, 2), "num_denoising_steps": 8},
        optimization={"num_steps": 3, "batch_size": 4},
        planner={"num_sampling_steps": 2, "num_candidates": 2},
    )
    Trainer(config, flat, output).run(progress=False)
    planner = DiffuserPolicy.from_pretrained(output)
    planner.spaces.fitted(env)

    observation, _ = env.reset(seed=0)
    rows, goals, _ = planner.spaces.read(observation)
    if with_goals:
        for given, part in ((rows, "observation"), (goals, "desired_goal")):
            expected = gym.spaces.flatten(seen[part], observation[part])
            assert given is not None
            found = given[0, : len(expected)]
            np.testing.assert_array_equal(found, np.asarray(expected, np.float32))
    else:
        expected = np.asarray(observation, np.float32)
        np.testing.assert_array_equal(rows[0], expected)

    def recorded() -> gym.Env[Any, Any]:
        return gym.make(env_id, max_episode_steps=STEPS)

    def flattened() -> gym.Env[Any, Any]:
        return gym.wrappers.FlattenObservation(recorded())

    results = [
        evaluate(planner, made, episodes=2, num_envs=2, progress=False)
        for made in (recorded, flattened)
    ]
    assert all(np.isfinite(e.episode_return) for e in results[0].episodes)
    returns = [[e.episode_return for e in result.episodes] for result in results]
    assert returns[0] == returns[1]
    seeds = itertools.count()

    def observe() -> Any:  # samples of the space would be far from any state
        return env.reset(seed=next(seeds))[0]

    check_policy(planner, seen, env.action_space, num_envs=2, observe=observe)
    env.close()


@pytest.mark.parametrize("env_id", few())
def test_a_planner_serves_an_environment_that_nobody_prepared(
    env_id: str, tmp_path: Path
) -> None:
    served(env_id, tmp_path / "planner")


@pytest.mark.proof
@pytest.mark.parametrize("env_id", sorted(everyday()))
def test_every_everyday_environment_is_served(env_id: str, tmp_path: Path) -> None:
    served(env_id, tmp_path / "planner")
