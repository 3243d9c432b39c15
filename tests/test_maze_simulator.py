"""The mazes' batch simulator against the environments' own steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest

from diffuser_envs.errors import MazeActionError, MazeObservationError
from diffuser_envs.maze.env import Maze2DEnv

STEPS = 200


@pytest.fixture(params=["UMaze", "Large"])
def env(request: pytest.FixtureRequest) -> Iterator[Maze2DEnv]:
    made = gymnasium.make(f"diffuser_envs/Multi2D-{request.param}-v1").unwrapped
    assert isinstance(made, Maze2DEnv)
    yield made
    made.close()


def run(env: Maze2DEnv, start: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """Return the states `[1 + steps, 4]` of the environment itself."""
    observation, _ = env.reset(options={"start": start})
    states = [observation["observation"]]
    states += [env.step(action)[0]["observation"] for action in actions]
    return np.array(states)


def random_walks(env: Maze2DEnv, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return starts `[number, 4]`, and pushes long enough to reach walls."""
    rng = np.random.default_rng(0)
    starts = np.array(
        [env.reset(seed=seed)[0]["observation"] for seed in range(number)]
    )
    pushes = rng.uniform(-1.5, 1.5, (number, STEPS // 20, 2)).repeat(20, axis=1)
    return starts, pushes


def test_it_follows_the_environment_along_walls_and_at_the_speed_limit(
    env: Maze2DEnv,
) -> None:
    starts, actions = random_walks(env, 4)
    expected = np.array(
        [run(env, start, each) for start, each in zip(starts, actions, strict=True)]
    )
    before = (env.data.qpos.copy(), env.data.qvel.copy(), env.goal)
    simulated = env.simulate(starts, actions)
    np.testing.assert_allclose(simulated, expected[:, 1:], atol=1e-9)
    np.testing.assert_equal((env.data.qpos, env.data.qvel, env.goal), before)
    # The comparison is of something: a wall stopped balls, and the limit was met.
    pushed = np.abs(actions.clip(-1, 1)) > 0.2
    still = np.abs(np.diff(expected[..., :2], axis=1)) < 1e-4
    assert (pushed & still).any()
    assert np.abs(expected[..., 2:]).max() > 4.0


def test_velocities_are_clipped_before_the_step(env: Maze2DEnv) -> None:
    place = env.reset(seed=0)[0]["observation"][:2]
    start, action = np.array([*place, 9.0, -9.0]), np.array([[0.3, -1.0]])
    expected = run(env, start, action)[1]
    np.testing.assert_allclose(
        env.simulate(start[None], action[None])[0, 0], expected, atol=1e-9
    )
    assert np.abs(expected[2:]).max() < 6.0


def test_rows_do_not_know_of_each_other(env: Maze2DEnv) -> None:
    starts, actions = random_walks(env, 3)
    together = env.simulate(starts, actions)
    for row in range(3):
        alone = env.simulate(starts[[row]], actions[[row]])
        np.testing.assert_array_equal(together[[row]], alone)


def test_nothing_to_do_has_the_right_shape(env: Maze2DEnv) -> None:
    assert env.simulate(np.zeros((3, 4)), np.zeros((3, 0, 2))).shape == (3, 0, 4)
    assert env.simulate(np.zeros((0, 4)), np.zeros((0, 5, 2))).shape == (0, 5, 4)


@pytest.mark.parametrize(
    ("states", "actions", "error", "words"),
    [
        (np.zeros(4), np.zeros((1, 5, 2)), MazeObservationError, r"\(n, 4\)"),
        (np.zeros((1, 3)), np.zeros((1, 5, 2)), MazeObservationError, r"\(1, 3\)"),
        (np.full((1, 4), np.nan), np.zeros((1, 5, 2)), MazeObservationError, "finite"),
        (np.zeros((2, 4)), np.zeros((1, 5, 2)), MazeActionError, r"\(2, steps, 2\)"),
        (np.zeros((1, 4)), np.zeros((1, 5, 3)), MazeActionError, r"\(1, 5, 3\)"),
        (np.zeros((1, 4)), np.zeros((5, 2)), MazeActionError, r"\(5, 2\)"),
        (np.zeros((1, 4)), np.full((1, 5, 2), np.inf), MazeActionError, "finite"),
    ],
)
def test_what_cannot_be_simulated_is_refused(
    env: Maze2DEnv, states: Any, actions: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        env.simulate(states, actions)
