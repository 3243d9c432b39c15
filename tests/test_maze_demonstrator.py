"""The waypoint demonstrator: D4RL's law, Stable-Baselines3's contract, and arrival."""

from __future__ import annotations

from typing import Any

import gymnasium
import gymnasium_robotics
import numpy as np
import pytest

from diffuser_envs.errors import (
    MazeObservationError,
    MazeOptionError,
    MazePositionError,
    UnsupportedEnvError,
)
from diffuser_envs.maze.demonstrator import RouteMemory, WaypointDemonstrator
from diffuser_envs.maze.env import Maze2DEnv
from diffuser_envs.maze.layouts import LAYOUTS, MazeLayout, get_layout

gymnasium.register_envs(gymnasium_robotics)


def observe(
    position: list[float], velocity: list[float], goal: list[float]
) -> dict[str, np.ndarray]:
    return {
        "observation": np.array([*position, *velocity]),
        "achieved_goal": np.array(position),
        "desired_goal": np.array(goal),
    }


def steps_to_goal(
    env: Any, demonstrator: WaypointDemonstrator, observation: Any, limit: int
) -> int:
    """Follow the demonstrator without its memory of earlier episodes; count steps."""
    memory = RouteMemory()
    for step in range(limit):
        state, goal = observation["observation"], observation["desired_goal"]
        if demonstrator.has_reached(state[:2], goal):
            return step
        action = demonstrator.act(state[:2], state[2:], goal, memory)
        observation, *_ = env.step(action)
    return limit


# --- arrival --------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYOUTS)
def test_it_reaches_every_cell(name: str) -> None:
    env = Maze2DEnv(name, goal="random")
    demonstrator = WaypointDemonstrator.from_env(env)
    env.reset(seed=0)
    for cell in env.layout.free_cells:
        observation, _ = env.reset(options={"goal": env.layout.cell_to_xy(cell)})
        limit = env.layout.max_episode_steps
        assert steps_to_goal(env, demonstrator, observation, limit) < limit


def test_it_reaches_goals_of_pointmaze() -> None:
    env = gymnasium.make("PointMaze_Medium-v3", max_episode_steps=2000)
    demonstrator = WaypointDemonstrator.from_env(env)
    for seed in range(10):
        observation, _ = env.reset(seed=seed)
        assert steps_to_goal(env, demonstrator, observation, 600) < 600


def test_it_arrives_without_any_memory_too() -> None:
    env = Maze2DEnv("medium", goal="random")
    demonstrator = WaypointDemonstrator.from_env(env)
    for seed in range(5):
        observation, info = env.reset(seed=seed)
        for _ in range(600):
            action, _ = demonstrator.predict(observation)
            observation, _, _, _, info = env.step(action)
        assert info["success"]


def test_it_holds_the_goal() -> None:
    env = Maze2DEnv("umaze")
    demonstrator = WaypointDemonstrator.from_env(env)
    observation, _ = env.reset(seed=0)
    memory, rewards = RouteMemory(), []
    for _ in range(300):
        state, goal = observation["observation"], observation["desired_goal"]
        action = demonstrator.act(state[:2], state[2:], goal, memory)
        observation, reward, *_ = env.step(action)
        rewards.append(reward)
    first = rewards.index(1.0)
    assert sum(rewards) == len(rewards) - first


# --- the law --------------------------------------------------------------------------


def test_force_is_d4rls_law() -> None:
    demonstrator = WaypointDemonstrator(get_layout("umaze"))
    # Goal in the same cell: the route is the goal itself.
    action, _ = demonstrator.predict(observe([-0.8, 0.8], [0.2, -0.1], [-0.75, 0.85]))
    np.testing.assert_allclose(action, [10 * 0.05 - 0.2, 10 * 0.05 + 0.1], rtol=1e-6)
    action, _ = demonstrator.predict(observe([-0.8, 0.8], [0.0, 0.0], [-0.6, 0.7]))
    np.testing.assert_allclose(action, [1.0, -1.0], rtol=1e-6)


def test_gains_are_options() -> None:
    demonstrator = WaypointDemonstrator(get_layout("umaze"), p_gain=2.0, d_gain=-0.5)
    action, _ = demonstrator.predict(observe([-0.8, 0.8], [0.2, -0.2], [-0.7, 0.8]))
    np.testing.assert_allclose(action, [0.2 - 0.1, 0.1], rtol=1e-5)


@pytest.mark.parametrize("name", LAYOUTS)
def test_routes_are_shortest_and_waypoints_between_point_and_center(name: str) -> None:
    layout = get_layout(name)
    demonstrator = WaypointDemonstrator(layout, seed=1)
    centers = MazeLayout.from_map(layout.maze_map)
    offsets = []
    for target in layout.free_cells:
        goal, start = layout.cell_to_xy(target), layout.cell_to_xy(layout.free_cells[0])
        cells = demonstrator.cells_to_goal(start, goal)
        assert (cells[0], cells[-1]) == (layout.free_cells[0], target)
        steps = np.abs(np.diff(np.array(cells), axis=0)).sum(axis=-1)
        assert (steps == 1).all()
        back = demonstrator.cells_to_goal(goal, start)
        assert len(back) == len(cells)
        memory = RouteMemory()
        demonstrator.act(start, [0.0, 0.0], goal, memory)
        np.testing.assert_array_equal(memory.waypoints[-1], goal)
        for cell, point in zip(cells[1:-1], memory.waypoints[:-1], strict=True):
            offsets.append(np.array(point) - centers.cell_to_xy(cell))
    right, down = np.array(offsets).T * [[1], [-1]]
    for offset in (right, down):
        assert offset.min() >= 0.0
        assert offset.max() <= 0.2


def test_snapping_aims_at_the_cells_point() -> None:
    demonstrator = WaypointDemonstrator(get_layout("umaze"), snap_goal=True)
    assert demonstrator.has_reached([-0.8, 0.8], [-0.71, 0.89])
    action, _ = demonstrator.predict(observe([-0.8, 0.8], [0, 0], [-0.71, 0.89]))
    np.testing.assert_allclose(action, [0.0, 0.0], atol=1e-6)


# --- the contract ---------------------------------------------------------------------


def test_a_batch_equals_its_rows() -> None:
    envs = gymnasium.make_vec("diffuser_envs/Multi2D-Medium-v1", num_envs=3)
    single = gymnasium.make("diffuser_envs/Multi2D-Medium-v1")
    demonstrator = WaypointDemonstrator.from_env(single, action_noise=0.5, seed=2)
    observations, _ = envs.reset(seed=4)
    state: Any = None
    states: list[Any] = [None] * 3
    for step in range(60):
        start = np.full(3, step == 0)
        actions, state = demonstrator.predict(observations, state, start)
        assert actions.shape == (3, 2)
        assert actions.dtype == np.float32
        for row in range(3):
            one = {name: values[row] for name, values in observations.items()}
            action, states[row] = demonstrator.predict(one, states[row], start[:1])
            np.testing.assert_array_equal(action, actions[row])
        observations, *_ = envs.step(actions)
    envs.close()


def test_the_given_state_is_not_changed() -> None:
    demonstrator = WaypointDemonstrator(get_layout("large"))
    observation = observe([-4.3, 2.8], [0.0, 0.0], [3.7, -3.2])
    _, state = demonstrator.predict(observation)
    route = state[0][0].waypoints
    moved = observe(list(route[0]), [0.0, 0.0], [3.7, -3.2])
    _, later = demonstrator.predict(moved, state)
    assert (state[0][0].index, later[0][0].index) == (0, 1)
    again, _ = demonstrator.predict(moved, state)
    np.testing.assert_array_equal(again, demonstrator.predict(moved, state)[0])


def test_routes_change_with_the_goal_and_with_the_episode() -> None:
    layout = get_layout("umaze")
    demonstrator = WaypointDemonstrator(layout)
    keeping = WaypointDemonstrator(layout, keep_route=True)
    first = observe([-0.8, 0.8], [0.0, 0.0], [-0.8, -1.2])
    elsewhere = observe([1.2, 0.8], [0.0, 0.0], [-0.8, -1.2])
    for one, renewed in ((demonstrator, True), (keeping, False)):
        _, state = one.predict(first, None, np.array([True]))
        _, same = one.predict(elsewhere, state, np.array([False]))
        assert same[0][0].waypoints == state[0][0].waypoints
        _, new = one.predict(elsewhere, state, np.array([True]))
        assert (new[0][0].waypoints != state[0][0].waypoints) == renewed
        other = {**elsewhere, "desired_goal": np.array([0.2, 0.8])}
        _, changed = one.predict(other, state, np.array([False]))
        assert changed[0][0].goal == (0.2, 0.8)


def test_noise_is_seeded_and_left_out_when_deterministic() -> None:
    layout = get_layout("umaze")
    observation = observe([-0.8, 0.8], [0.0, 0.0], [-0.8, 0.8])
    noisy = WaypointDemonstrator(layout, action_noise=0.5, seed=1)
    first, _ = noisy.predict(observation)
    np.testing.assert_array_equal(first, noisy.predict(observation)[0])
    other, _ = WaypointDemonstrator(layout, action_noise=0.5, seed=2).predict(
        observation
    )
    assert (first != other).all()
    calm, _ = noisy.predict(observation, deterministic=True)
    np.testing.assert_array_equal(calm, [0.0, 0.0])


def test_stable_baselines3_evaluates_it() -> None:
    evaluation = pytest.importorskip("stable_baselines3.common.evaluation")
    env = gymnasium.make("diffuser_envs/Multi2D-UMaze-v1")
    demonstrator = WaypointDemonstrator.from_env(env)
    with pytest.warns(UserWarning, match="Monitor"):
        mean, _ = evaluation.evaluate_policy(demonstrator, env, n_eval_episodes=3)
    assert mean > 150


# --- bad input ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o: (o, {}), "got a tuple"),
        (lambda o: o["observation"], "goal dictionary"),
        (lambda o: {"observation": o["observation"]}, "desired_goal"),
        (lambda o: {**o, "observation": np.zeros(3)}, r"shape \[4\]"),
        (lambda o: {**o, "desired_goal": np.zeros((2, 2))}, "desired_goal of shape"),
        (lambda o: {**o, "observation": np.full(4, np.nan)}, "not finite"),
        (lambda o: {**o, "desired_goal": ["far", "away"]}, "arrays of numbers"),
    ],
)
def test_bad_observations_are_refused(change: Any, message: str) -> None:
    demonstrator = WaypointDemonstrator(get_layout("umaze"))
    observation = observe([-0.8, 0.8], [0.0, 0.0], [-0.8, 0.8])
    with pytest.raises(MazeObservationError, match=message):
        demonstrator.predict(change(observation))


def test_a_state_of_other_envs_is_refused() -> None:
    demonstrator = WaypointDemonstrator(get_layout("umaze"))
    observation = observe([-0.8, 0.8], [0.0, 0.0], [-0.8, 0.8])
    _, state = demonstrator.predict(observation)
    batch = {name: np.stack([values] * 2) for name, values in observation.items()}
    with pytest.raises(MazeObservationError, match="state=None"):
        demonstrator.predict(batch, state)


@pytest.mark.parametrize(
    "state",
    ["j", 5, (), [np.zeros(1)], (np.zeros(1),), (np.array(["j"], object),)],
)
def test_what_is_no_state_is_refused(state: Any) -> None:
    demonstrator = WaypointDemonstrator(get_layout("umaze"))
    observation = observe([-0.8, 0.8], [0.0, 0.0], [-0.8, 0.8])
    with pytest.raises(MazeObservationError, match="what predict returned last"):
        demonstrator.predict(observation, state)


@pytest.mark.parametrize("starts", [[True], [True] * 3, [[True, False]]])
def test_starts_of_other_envs_are_refused(starts: Any) -> None:
    demonstrator = WaypointDemonstrator(get_layout("umaze"))
    observation = observe([-0.8, 0.8], [0.0, 0.0], [-0.8, 0.8])
    batch = {name: np.stack([values] * 2) for name, values in observation.items()}
    with pytest.raises(MazeObservationError, match=r"episode_start .* 2 environments"):
        demonstrator.predict(batch, episode_start=starts)
    demonstrator.predict(batch, episode_start=[True, False])
    demonstrator.predict(observation, episode_start=True)


def test_goals_that_cannot_be_reached_are_refused() -> None:
    demonstrator = WaypointDemonstrator(get_layout("umaze"))
    with pytest.raises(MazePositionError, match="free cell"):
        demonstrator.predict(observe([-0.8, 0.8], [0.0, 0.0], [-1.0, 0.0]))
    rooms = MazeLayout.from_map([[1, 1, 1, 1, 1], [1, 0, 1, 0, 1], [1, 1, 1, 1, 1]])
    with pytest.raises(MazePositionError, match="no way"):
        WaypointDemonstrator(rooms).predict(observe([-1, 0], [0, 0], [1, 0]))


def test_a_ball_pressed_into_a_wall_still_finds_its_cell() -> None:
    demonstrator = WaypointDemonstrator(get_layout("umaze"))
    cells = demonstrator.cells_to_goal([-1.501, 1.0], [1.0, 1.0])
    assert cells == [(1, 1), (1, 2), (1, 3)]


@pytest.mark.parametrize(
    "wrong",
    [
        {"p_gain": -1.0},
        {"p_gain": np.nan},
        {"p_gain": "x"},
        {"d_gain": -np.inf},
        {"threshold": -1.0},
        {"threshold": 0.0},
        {"threshold": 5.0},
        {"waypoint_jitter": -0.1},
        {"waypoint_jitter": 0.75},  # out of its cell
        {"action_noise": -1.0},
        {"seed": -1},
        {"seed": 1.5},
        {"seed": None},
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(wrong: dict[str, Any]) -> None:
    with pytest.raises(MazeOptionError, match=f"{next(iter(wrong))} must be"):
        WaypointDemonstrator(get_layout("umaze"), **wrong)


def test_waypoints_may_be_drawn_from_all_of_their_cells() -> None:
    layout = get_layout("medium")
    demonstrator = WaypointDemonstrator(layout, waypoint_jitter=0.7)
    memory = RouteMemory()
    first, last = layout.free_points[[0, -1]]
    demonstrator.act(first, [0.0, 0.0], last, memory)
    cells = demonstrator.cells_to_goal(first, last)
    assert [layout.xy_to_cell(*point) for point in memory.waypoints] == cells[1:]


def test_only_mazes_have_one() -> None:
    with pytest.raises(UnsupportedEnvError, match="not a maze"):
        WaypointDemonstrator.from_env(gymnasium.make("CartPole-v1"))
