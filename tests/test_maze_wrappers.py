"""GoalResampling on our mazes and on Gymnasium-Robotics' own."""

from __future__ import annotations

from typing import Any

import gymnasium
import gymnasium_robotics
import numpy as np
import pytest
from gymnasium.wrappers import FilterObservation, FlattenObservation

from diffuser_envs import GoalResampling
from diffuser_envs.errors import (
    MazeOptionError,
    MazePositionError,
    UnsupportedEnvError,
)

gymnasium.register_envs(gymnasium_robotics)

POINT_MAZE = "PointMaze_UMaze-v3"
MAZE2D = "diffuser_envs/Maze2D-UMaze-v1"
ENVS = pytest.mark.parametrize("env_id", [POINT_MAZE, MAZE2D])


def wrap(env_id: str, **settings: Any) -> GoalResampling:
    return GoalResampling(gymnasium.make(env_id), **settings)


def drive_to_goal(env: GoalResampling, observation: Any) -> Any:
    """Push straight at a goal that is in sight; return what the success step does."""
    for _ in range(200):
        offset = observation["desired_goal"] - observation["achieved_goal"]
        action = np.clip(10 * offset, -1, 1).astype(np.float32)
        observation, reward, terminated, _, info = env.step(action)
        if info["success"]:
            return observation, reward, terminated, info
    raise AssertionError("never reached")


@ENVS
@pytest.mark.parametrize(("settings", "most"), [({}, 0.1), ({"goal_noise": 0.3}, 0.3)])
def test_every_reset_draws_a_new_goal_in_a_free_cell(
    env_id: str, settings: dict[str, float], most: float
) -> None:
    env = wrap(env_id, **settings)
    goals = [env.reset(seed=0)[0]["desired_goal"]]
    goals += [env.reset()[0]["desired_goal"] for _ in range(200)]
    assert len(np.unique(goals, axis=0)) == len(goals)
    offset = 0.2 if env_id == MAZE2D else 0.0
    cells = np.array(goals) + 2.5 - 0.5 + [-offset, offset]
    noise = cells - np.round(cells)
    assert 0.9 * most < np.abs(noise).max() <= most + 1e-12
    assert len(np.unique(np.round(cells), axis=0)) == 7


@ENVS
def test_a_seed_fixes_all_goals(env_id: str) -> None:
    runs = []
    for _ in range(2):
        env = wrap(env_id, on_success="resample")
        env.action_space.seed(0)
        observations = [env.reset(seed=5)[0]]
        for _ in range(200):
            observations += [env.step(env.action_space.sample())[0]]
        runs.append(observations)
    np.testing.assert_equal(runs[0], runs[1])


@ENVS
def test_reset_places_goal_and_start_exactly(env_id: str) -> None:
    env = wrap(env_id)
    goal, start = [-0.7, 1.1], [0.9, -0.6, 0.5, -0.5]
    observation, info = env.reset(seed=0, options={"goal": goal, "start": start})
    np.testing.assert_array_equal(observation["observation"], start)
    np.testing.assert_array_equal(observation["achieved_goal"], start[:2])
    np.testing.assert_array_equal(observation["desired_goal"], goal)
    np.testing.assert_array_equal(info["goal"], goal)
    assert not info["success"]
    simulated: Any = env.unwrapped
    np.testing.assert_array_equal(simulated.data.qpos, start[:2])
    np.testing.assert_array_equal(simulated.data.qvel, start[2:])
    resting, info = env.reset(options={"goal": goal, "start": goal})
    np.testing.assert_array_equal(resting["observation"], [*goal, 0.0, 0.0])
    assert info["success"]


@ENVS
def test_the_reward_is_of_the_new_goal(env_id: str) -> None:
    env = wrap(env_id)
    inside = {"goal": [1.0, 0.0], "start": [1.0, 0.3]}
    env.reset(seed=0, options=inside)
    assert env.step(np.zeros(2, np.float32))[1] == 1.0
    outside = {"goal": [-1.0, 1.0], "start": [1.0, 0.3]}
    env.reset(seed=0, options=outside)
    assert env.step(np.zeros(2, np.float32))[1] == 0.0


@ENVS
def test_goals_are_kept_unless_asked(env_id: str) -> None:
    env = wrap(env_id)
    start = {"goal": [1.0, 0.9], "start": [1.0, -0.5]}
    observation, info = env.reset(seed=0, options=start)
    assert info["goal_changed"]
    observation, reward, _, info = drive_to_goal(env, observation)
    assert (reward, info["goal_changed"]) == (1.0, False)
    np.testing.assert_array_equal(observation["desired_goal"], [1.0, 0.9])


@ENVS
def test_a_reached_goal_is_replaced_at_once(env_id: str) -> None:
    env = wrap(env_id, on_success="resample")
    for seed in range(5):
        start = {"goal": [1.0, 0.9], "start": [1.0, -0.5]}
        observation, _ = env.reset(seed=seed, options=start)
        observation, reward, terminated, info = drive_to_goal(env, observation)
        assert (reward, terminated, info["goal_changed"]) == (1.0, False, True)
        new = observation["desired_goal"]
        np.testing.assert_array_equal(info["goal"], new)
        assert np.linalg.norm(new - observation["achieved_goal"]) > 0.45
        later, *_ = env.step(np.zeros(2, np.float32))
        np.testing.assert_array_equal(later["desired_goal"], new)


def draw_in_turn(
    env: GoalResampling, goals: list[list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let the wrapper draw these goals, one after the other."""
    points = map(np.array, goals)
    monkeypatch.setattr(type(env._layout), "sample_point", lambda *_: next(points))


@ENVS
def test_a_new_goal_is_drawn_until_one_is_not_reached(
    env_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = wrap(env_id, on_success="resample")
    goal, far = [1.0, 0.9], [-1.0, 1.0]
    observation, _ = env.reset(seed=0, options={"goal": goal, "start": [1.0, -0.5]})
    draw_in_turn(env, [goal, goal, far], monkeypatch)
    observation, *_ = drive_to_goal(env, observation)
    np.testing.assert_array_equal(observation["desired_goal"], far)


def test_a_goal_that_ends_the_episode_is_kept() -> None:
    maze = gymnasium.make(POINT_MAZE, continuing_task=False)
    env = GoalResampling(maze, on_success="resample")
    start = {"goal": [1.0, 0.9], "start": [1.0, -0.5]}
    observation, _ = env.reset(seed=0, options=start)
    observation, _, terminated, info = drive_to_goal(env, observation)
    assert (terminated, info["goal_changed"]) == (True, False)
    np.testing.assert_array_equal(observation["desired_goal"], [1.0, 0.9])


def test_a_goal_that_pointmaze_changes_itself_is_seen_without_delay() -> None:
    env = GoalResampling(gymnasium.make(POINT_MAZE, reset_target=True))
    start = {"goal": [1.0, 0.9], "start": [1.0, -0.5]}
    observation, _ = env.reset(seed=0, options=start)
    observation, _, _, info = drive_to_goal(env, observation)
    assert info["goal_changed"]
    maze: Any = env.unwrapped
    np.testing.assert_array_equal(observation["desired_goal"], maze.goal)


def test_it_scales_with_the_cells_of_antmaze() -> None:
    env = wrap("AntMaze_UMaze-v5")
    observation, _ = env.reset(seed=0, options={"goal": [4.0, 0.0]})
    np.testing.assert_array_equal(observation["desired_goal"], [4.0, 0.0])
    with pytest.raises(UnsupportedEnvError, match="no ball"):
        env.reset(options={"start": [4.0, 0.0]})


def test_specs_with_the_wrapper_round_trip() -> None:
    env = wrap("diffuser_envs/Multi2D-UMaze-v1", on_success="resample", goal_noise=0.05)
    assert env.spec is not None
    spec = gymnasium.envs.registration.EnvSpec.from_json(env.spec.to_json())
    twin = gymnasium.make(spec)
    assert isinstance(twin, GoalResampling)
    np.testing.assert_equal(twin.reset(seed=1)[0], env.reset(seed=1)[0])


@ENVS
@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"reset_cell": [1, 1]}, MazeOptionError),
        ({"goal": [0.0, 0.0, 0.0]}, MazeOptionError),
        ({"goal": [-1.0, 0.0]}, MazePositionError),
        ({"start": [50.0, 0.0]}, MazePositionError),
        ({"goal": [np.nan, 0.0]}, MazePositionError),
    ],
)
def test_bad_options_change_nothing(
    env_id: str, options: dict[str, Any], error: type[Exception]
) -> None:
    env = wrap(env_id)
    env.reset(seed=0)
    simulated: Any = env.unwrapped
    before = (simulated.goal.copy(), simulated.data.qpos.copy())
    with pytest.raises(error):
        env.reset(seed=1, options=options)
    np.testing.assert_equal((simulated.goal, simulated.data.qpos), before)


@ENVS
def test_mazes_whose_goals_are_hidden_are_refused(env_id: str) -> None:
    maze = gymnasium.make(env_id)
    with pytest.raises(UnsupportedEnvError, match="lack achieved_goal, desired_goal"):
        GoalResampling(FlattenObservation(maze))
    with pytest.raises(UnsupportedEnvError, match="lack achieved_goal;"):
        GoalResampling(FilterObservation(maze, ["observation", "desired_goal"]))
    FlattenObservation(GoalResampling(maze)).reset(seed=0)


def test_what_is_no_maze_is_refused() -> None:
    with pytest.raises(UnsupportedEnvError, match="not a maze"):
        GoalResampling(gymnasium.make("CartPole-v1"))
    with pytest.raises(MazeOptionError, match="resample"):
        wrap(POINT_MAZE, on_success="again")


@pytest.mark.parametrize(
    ("env_id", "noise"),
    [
        ("diffuser_envs/Maze2D-UMaze-v1", 0.31),  # points are 0.2 m off the middle
        ("PointMaze_UMaze-v3", 0.51),
        ("diffuser_envs/Maze2D-UMaze-v1", -0.1),
        ("diffuser_envs/Maze2D-UMaze-v1", "a"),
        ("diffuser_envs/Maze2D-UMaze-v1", float("nan")),
    ],
)
def test_goals_cannot_be_drawn_in_walls(env_id: str, noise: Any) -> None:
    with pytest.raises(MazeOptionError, match="goal_noise must be"):
        wrap(env_id, goal_noise=noise)


def test_goals_may_fill_their_cells() -> None:
    env = wrap("diffuser_envs/Maze2D-Large-v1", goal_noise=0.3)
    for seed in range(60):
        env.reset(seed=seed)
