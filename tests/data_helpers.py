"""Episodes and settings that several tests of the data start from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from diffuser_policy.config import CollectSettings
from diffuser_policy.data.collection import collect
from diffuser_policy.data.flat import Episode
from diffuser_policy.data.minari import (
    _any_episodes,
    _checked_parts,
    recorded_facts,
    write_minari,
)
from diffuser_policy.observations import ObservationColumns

DATASET = "test/mazes/tiny-v2"
ENV = "diffuser_envs/Multi2D-UMaze-v1"
COLLECTED = "diffuser/multi2d-umaze-v1"
EXPERT = "diffuser_envs.maze.demonstrator:WaypointDemonstrator"
SMALL = CollectSettings(
    env_id=ENV,
    demonstrator=EXPERT,
    num_steps=1100,
    run_length=400,
    seed=3,
    num_workers=1,
)


class SpacesOnly(gym.Env[Any, Any]):
    """An environment that only has spaces: nothing may step or make it."""

    def __init__(
        self,
        observation_space: spaces.Space[Any] | None = None,
        action_space: spaces.Space[Any] | None = None,
    ) -> None:
        self.observation_space = observation_space or goal_space()
        self.action_space = action_space or spaces.Box(-1.0, 1.0, (2,))
        self.spec = EnvSpec("test/Nowhere-v0", entry_point="nowhere:Nothing")


def goal_space() -> spaces.Dict:
    sizes = {"observation": 4, "achieved_goal": 2, "desired_goal": 2}
    return spaces.Dict(
        {n: spaces.Box(-np.inf, np.inf, (s,), np.float64) for n, s in sizes.items()}
    )


def make_episode(
    states: np.ndarray,
    goals: np.ndarray | None = None,
    *,
    terminated: bool = False,
) -> Episode:
    """Make the episode that passes through states `[L + 1, 4]`."""
    length = len(states) - 1
    observations = {"observation": states, "achieved_goal": states[:, :2]}
    if goals is not None:
        observations["desired_goal"] = goals
    else:
        del observations["achieved_goal"]
    terminations = np.zeros(length, np.bool_)
    if length:
        terminations[-1] = terminated
    return Episode(
        observations=observations,
        actions=np.random.default_rng(length).uniform(-1, 1, (length, 2)),
        rewards=np.arange(length, dtype=np.float64),
        terminations=terminations,
        truncations=np.zeros(length, np.bool_),
    )


def cut_stream(lengths: Sequence[int], *, seed: int = 0) -> tuple[list[Episode], Any]:
    """Cut one continuous stream of states into episodes, as D4RL/pointmaze does.

    Every episode begins where the last one ended, and its first observation still
    carries the previous goal.

    Returns:
        The episodes, and the goal that each of them really chases.
    """
    rng = np.random.default_rng(seed)
    stream = rng.normal(size=(sum(lengths) + 1, 4))
    goals = rng.normal(size=(len(lengths), 2))
    episodes, begin = [], 0
    for number, length in enumerate(lengths):
        rows = np.tile(goals[number], (length + 1, 1))
        rows[0] = goals[max(number - 1, 0)]
        episodes.append(make_episode(stream[begin : begin + length + 1], rows))
        begin += length
    return episodes, goals


def write(episodes: Sequence[Episode], env: gym.Env[Any, Any] | None = None) -> None:
    collection = {"policy": "test", "observation_columns": {"position": [0, 1]}}
    write_minari(DATASET, episodes, env=env or SpacesOnly(), collection=collection)


def data_folder(tmp_path: Path) -> Path:
    """Return where `write` writes to, under the fixture `datasets`."""
    return tmp_path / "datasets" / DATASET / "data"


def record(settings: CollectSettings = SMALL) -> list[Episode]:
    folder = collect(settings, progress=False)
    columns = ObservationColumns.of(_checked_parts(recorded_facts(folder)))
    return list(_any_episodes(folder / "data", columns))


def assert_same(left: list[Episode], right: list[Episode]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert set(a.observations) == set(b.observations)
        for name, values in a.observations.items():
            np.testing.assert_array_equal(values, b.observations[name], err_msg=name)
        np.testing.assert_array_equal(a.actions, b.actions)
        np.testing.assert_array_equal(a.rewards, b.rewards)
