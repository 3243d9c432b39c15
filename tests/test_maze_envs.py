"""The mazes against D4RL's protocol, PointMaze's physics and Gymnasium's checkers."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from diffuser_envs.errors import (
    DiffuserEnvsError,
    MazeActionError,
    MazeObservationError,
    MazeOptionError,
    MazePositionError,
)
from diffuser_envs.maze.env import Maze2DEnv
from diffuser_envs.maze.layouts import LAYOUTS, MazeLayout
from diffuser_envs.maze.wrappers import GoalResampling

TITLES = ("UMaze", "Medium", "Large")
IDS = [f"diffuser_envs/{f}-{t}-v1" for f in ("Maze2D", "Multi2D") for t in TITLES]
STEPS = {"UMaze": 300, "Medium": 600, "Large": 800}

# D4RL's goal cells (1, 1), (6, 6), (7, 9) by the formula of the layouts' docstring.
FIXED_GOALS = {
    "umaze": (-0.8, 0.8),
    "medium": (2.7, -2.7),
    "large": (3.7, -3.2),
}


def make(env_id: str) -> Maze2DEnv:
    env = gymnasium.make(env_id).unwrapped
    assert isinstance(env, Maze2DEnv)
    return env


def to_d4rl(layout: MazeLayout, xy: np.ndarray) -> np.ndarray:
    """Undo the map to PointMaze: (row, column) as D4RL's qpos has them."""
    num_rows, num_columns = layout.walls.shape
    rows = num_rows / 2 - 0.7 - xy[..., 1]
    columns = xy[..., 0] + num_columns / 2 - 0.7
    return np.stack([rows, columns], axis=-1)


# --- checkers -------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*Box observation space.*infinity")
@pytest.mark.parametrize("env_id", IDS)
def test_gymnasium_checks_the_env(env_id: str) -> None:
    check_env(gymnasium.make(env_id).unwrapped, skip_render_check=True)


@pytest.mark.parametrize("family", ["Maze2D", "Multi2D"])
def test_stable_baselines3_checks_the_env(family: str) -> None:
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    checker.check_env(make(f"diffuser_envs/{family}-UMaze-v1"), warn=True)


def test_spaces_are_pointmazes() -> None:
    ours = gymnasium.make(IDS[0])
    theirs = gymnasium.make("PointMaze_UMaze-v3")
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    assert ours.metadata["observation_columns"] == {
        "position": [0, 1],
        "velocity": [2, 3],
    }


# --- protocol -------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYOUTS)
def test_maze2d_goal_is_d4rls_cell(name: str) -> None:
    env = Maze2DEnv(name)
    for seed in range(3):
        observation, info = env.reset(seed=seed)
        np.testing.assert_allclose(observation["desired_goal"], FIXED_GOALS[name])
        np.testing.assert_array_equal(info["goal"], observation["desired_goal"])


@pytest.mark.parametrize("name", LAYOUTS)
def test_starts_and_goals_are_distributed_as_d4rls(name: str) -> None:
    env = Maze2DEnv(name, goal="random")
    env.reset(seed=0)
    resets = [env.reset()[0] for _ in range(1500)]
    states = np.array([observation["observation"] for observation in resets])
    goals = np.array([observation["desired_goal"] for observation in resets])
    free = set(env.layout.free_cells)
    for points in (states[:, :2], goals):
        assert env.is_free(points).all()
        cells = to_d4rl(env.layout, points)
        noise = cells - np.round(cells)
        assert np.abs(noise).max() <= 0.1 + 1e-12
        assert noise.std() == pytest.approx(0.2 / np.sqrt(12), rel=0.1)
        visited = [(int(i), int(j)) for i, j in np.round(cells)]
        assert set(visited) == free
        counts = np.array([visited.count(cell) for cell in free])
        expected = len(resets) / len(free)
        # Pearson's statistic has mean k - 1 and variance 2 (k - 1) if cells are equal.
        statistic = float(np.square(counts - expected).sum() / expected)
        freedom = len(free) - 1
        assert statistic < freedom + 5 * np.sqrt(2 * freedom)
    assert states[:, 2:].mean() == pytest.approx(0.0, abs=0.01)
    assert states[:, 2:].std() == pytest.approx(0.1, rel=0.1)
    distances = np.linalg.norm(states[:, :2] - goals, axis=1)
    assert (distances < 0.5).any()  # nothing keeps the start away from the goal


def test_a_seed_means_the_same_start_whatever_the_goal() -> None:
    fixed, drawn = Maze2DEnv("large"), Maze2DEnv("large", goal="random")
    start = fixed.reset(seed=7)[0]["observation"]
    np.testing.assert_array_equal(drawn.reset(seed=7)[0]["observation"], start)
    goal = {"goal": [-0.5, 1.0]}
    observation, _ = drawn.reset(seed=7, options=goal)
    np.testing.assert_array_equal(observation["observation"], start)
    np.testing.assert_array_equal(observation["desired_goal"], goal["goal"])


def test_a_seed_fixes_the_whole_rollout() -> None:
    def roll_out() -> list[dict[str, np.ndarray]]:
        env = Maze2DEnv("umaze", goal="random")
        env.action_space.seed(1)
        observations = [env.reset(seed=11 if i == 0 else None)[0] for i in range(3)]
        for _ in range(100):
            observations += [env.step(env.action_space.sample())[0]]
        return observations

    np.testing.assert_equal(roll_out(), roll_out())


@pytest.mark.parametrize("env_id", [IDS[0], IDS[3]])
def test_nothing_terminates_and_the_limit_truncates(env_id: str) -> None:
    env = gymnasium.make(env_id)
    env.reset(seed=0, options={"start": [-0.8, 0.8], "goal": [-0.8, 0.8]})
    total, steps, truncated = 0.0, 0, False
    while not truncated:
        _, reward, terminated, truncated, info = env.step(np.zeros(2, np.float32))
        assert not terminated
        assert info["success"]
        assert reward == 1.0
        total, steps = total + float(reward), steps + 1
    assert (steps, total) == (300, 300.0)


def test_reward_is_compute_reward_of_the_reached_state() -> None:
    env = make("diffuser_envs/Multi2D-UMaze-v1")
    env.reset(seed=2)
    env.action_space.seed(2)
    achieved, desired, rewards = [], [], []
    for step in range(600):
        if step % 20 == 0:
            env.reset()
        observation, reward, _, _, info = env.step(env.action_space.sample())
        achieved.append(observation["achieved_goal"])
        desired.append(observation["desired_goal"])
        rewards.append(reward)
        assert info["success"] == (reward == 1.0)
    assert 0 < sum(rewards) < len(rewards)
    batch = env.compute_reward(np.array(achieved), np.array(desired), {})
    np.testing.assert_array_equal(batch, rewards)
    tensor = env.compute_reward(
        np.reshape(achieved, (2, 300, 2)), np.reshape(desired, (2, 300, 2)), {}
    )
    np.testing.assert_array_equal(tensor, np.reshape(rewards, (2, 300)))


def test_the_goal_disc_has_radius_one_half_and_is_closed() -> None:
    env = make(IDS[0])
    offsets = np.array([[0.0, 0.0], [0.5, 0.0], [0.3, 0.4], [0.5 + 1e-9, 0.0]])
    np.testing.assert_array_equal(
        env.compute_reward(offsets, np.zeros(2), None), [1.0, 1.0, 1.0, 0.0]
    )


# --- physics --------------------------------------------------------------------------


@pytest.mark.parametrize("title", TITLES)
def test_physics_equals_pointmazes_step_by_step(title: str) -> None:
    theirs: Any = gymnasium.make(f"PointMaze_{title}-v3").unwrapped
    theirs.reset(seed=0)
    ours = make(f"diffuser_envs/Maze2D-{title}-v1")
    assert ours.maze_map == theirs.maze.maze_map
    observation, _ = ours.reset(seed=0)
    state = observation["observation"]
    theirs.point_env.reset()
    theirs.point_env.set_state(state[:2], state[2:])
    rng = np.random.default_rng(0)
    for _ in range(100):
        action = rng.uniform(-1.5, 1.5, size=2).astype(np.float32)
        for _ in range(5):
            mine = ours.step(action)[0]["observation"]
            np.testing.assert_array_equal(mine, theirs.step(action)[0]["observation"])


def test_velocity_is_limited_before_each_step() -> None:
    env = make(IDS[0])
    env.reset(options={"start": [-0.8, 0.8, 30.0, 0.0]})
    observation, *_ = env.step(np.zeros(2, np.float32))
    assert observation["observation"][0] <= -0.8 + 5.0 * 0.01
    assert 4.5 < observation["observation"][2] <= 5.0


def test_actions_are_clipped() -> None:
    env = make(IDS[0])
    states = []
    for action in ([1.0, -1.0], [9.0, -50.0]):
        env.reset(seed=0)
        states.append(env.step(np.array(action, np.float32))[0]["observation"])
    np.testing.assert_array_equal(states[0], states[1])


# --- reset options and bad input ------------------------------------------------------


def test_options_place_goal_and_start_exactly() -> None:
    env = make("diffuser_envs/Multi2D-Large-v1")
    goal, start = [0.3, -0.4], [-4.4, 3.1, 0.2, -0.3]
    observation, info = env.reset(seed=0, options={"goal": goal, "start": start})
    np.testing.assert_array_equal(observation["observation"], start)
    np.testing.assert_array_equal(observation["achieved_goal"], start[:2])
    np.testing.assert_array_equal(observation["desired_goal"], goal)
    np.testing.assert_array_equal(info["goal"], goal)
    np.testing.assert_array_equal(env.data.qpos, start[:2])
    np.testing.assert_array_equal(env.data.qvel, start[2:])
    resting, _ = env.reset(options={"start": start[:2]})
    np.testing.assert_array_equal(resting["observation"], [*start[:2], 0.0, 0.0])


def test_success_at_the_start_is_reported() -> None:
    env = make(IDS[0])
    _, info = env.reset(options={"start": [-0.8, 0.8]})
    assert info["success"]
    _, info = env.reset(options={"start": [-0.8, -0.8]})
    assert not info["success"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"gaol": [0, 0]}, MazeOptionError, "did you mean 'goal'"),
        (5, MazeOptionError, "by name, not 5"),
        ({"goal": [0.0]}, MazeOptionError, r"shape \(2,\), not \(1,\)"),
        ({"goal": [[0.0, 0.0]]}, MazeOptionError, "shape"),
        ({"goal": "north"}, MazeOptionError, "numbers"),
        ({"start": [0.0, 0.0, 0.0]}, MazeOptionError, r"\(2,\) or \(4,\)"),
        ({"goal": [np.nan, 0.0]}, MazePositionError, "finite"),
        ({"start": [-0.8, 0.8, np.inf, 0.0]}, MazePositionError, "finite"),
        ({"goal": [-1.0, 0.0]}, MazePositionError, "wall"),
        ({"start": [-1.0, 0.0]}, MazePositionError, "wall"),
        ({"goal": [99.0, 0.0]}, MazePositionError, "outside"),
        ({"start": [0.0, -99.0]}, MazePositionError, "outside"),
    ],
)
def test_bad_options_are_refused_and_change_nothing(
    options: Any, error: type[Exception], message: str
) -> None:
    env = make("diffuser_envs/Multi2D-UMaze-v1")
    env.reset(seed=0)
    stream = env.np_random.bit_generator.state
    before = (env.goal, env.data.qpos.copy(), env.data.qvel.copy())
    with pytest.raises(error, match=message) as caught:
        env.reset(seed=1, options=options)
    assert isinstance(caught.value, DiffuserEnvsError)
    assert isinstance(caught.value, ValueError)
    assert env.np_random.bit_generator.state == stream
    np.testing.assert_equal((env.goal, env.data.qpos, env.data.qvel), before)


@pytest.mark.parametrize("action", [[0.0], [[0.0, 0.0]], [np.nan, 0.0], [np.inf, 0.0]])
def test_bad_actions_are_refused_and_change_nothing(action: list[float]) -> None:
    env = make(IDS[0])
    env.reset(seed=0)
    before = env.data.qpos.copy()
    with pytest.raises(MazeActionError):
        env.step(np.array(action, np.float32))
    np.testing.assert_array_equal(env.data.qpos, before)


def test_bad_constructor_arguments_offer_the_right_ones() -> None:
    with pytest.raises(MazeOptionError, match="did you mean 'medium'"):
        Maze2DEnv("mediun")
    with pytest.raises(MazeOptionError, match="fixed"):
        Maze2DEnv("umaze", goal="moving")  # type: ignore[arg-type]
    with pytest.raises(MazeOptionError, match="rgb_array"):
        Maze2DEnv("umaze", render_mode="rgb")


# --- helpers --------------------------------------------------------------------------


def test_set_goal_is_seen_at_the_next_step() -> None:
    env = make("diffuser_envs/Multi2D-UMaze-v1")
    env.reset(seed=0, options={"start": [0.8, -0.8]})
    env.set_goal([0.8, -0.8])
    observation, reward, _, _, info = env.step(np.zeros(2, np.float32))
    np.testing.assert_array_equal(observation["desired_goal"], [0.8, -0.8])
    assert (reward, info["success"]) == (1.0, True)
    with pytest.raises(MazePositionError, match=r"nearest free point.* \(1.2, -0.2\)"):
        env.set_goal([0.4, 0.0])
    np.testing.assert_array_equal(env.goal, [0.8, -0.8])


def test_changing_what_the_env_returns_does_not_change_the_env() -> None:
    env = make(IDS[0])
    observation, info = env.reset(seed=0)
    expected = env.goal
    for array in (*observation.values(), info["goal"], env.goal):
        array[:] = 5.0
    np.testing.assert_array_equal(env.goal, expected)
    observation, *_ = env.step(np.zeros(2, np.float32))
    np.testing.assert_array_equal(observation["desired_goal"], expected)


def test_is_free_agrees_with_the_map_for_any_shape_of_points() -> None:
    env = make("diffuser_envs/Maze2D-Medium-v1")
    walls = np.array(env.maze_map) == 1
    columns, rows = np.meshgrid(np.arange(8) - 3.5, 3.5 - np.arange(8))
    np.testing.assert_array_equal(env.is_free(np.stack([columns, rows], -1)), ~walls)
    assert env.is_free([-2.5, 2.5])
    assert not env.is_free([[np.nan, 0.0], [100.0, 0.0], [-100.0, 0.0]]).any()


def test_sample_goal_draws_from_the_given_generator_and_sets_nothing() -> None:
    env = make("diffuser_envs/Multi2D-Large-v1")
    env.reset(seed=0)
    before = env.goal
    first = env.sample_goal(np.random.default_rng(4))
    np.testing.assert_array_equal(first, env.sample_goal(np.random.default_rng(4)))
    np.testing.assert_array_equal(env.goal, before)


WALK_STEPS = 200


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
    pushes = rng.uniform(-1.5, 1.5, (number, WALK_STEPS // 20, 2)).repeat(20, axis=1)
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


# --- D4RL's data ----------------------------------------------------------------------


@pytest.mark.parametrize("title", TITLES)
def test_d4rls_points_are_those_of_their_cells(title: str) -> None:
    """Its first coordinate grows downward, and its second to the right."""
    env = make(f"diffuser_envs/Maze2D-{title}-v1")
    cells, points = np.array(env.layout.free_cells, float), env.layout.free_points
    moves = np.tile([1.0, 2.0], (len(cells), 1))
    observed, actions = env.from_d4rl(
        {"observation": np.hstack([cells, moves]), "desired_goal": cells[::-1]}, moves
    )
    turned = np.tile([2.0, -1.0], (len(cells), 1))
    np.testing.assert_allclose(observed["observation"], np.hstack([points, turned]))
    np.testing.assert_allclose(observed["achieved_goal"], points)
    np.testing.assert_allclose(observed["desired_goal"], points[::-1])
    np.testing.assert_array_equal(actions, turned)


def test_a_few_of_d4rls_positions_may_be_a_little_inside_of_walls() -> None:
    env = make("diffuser_envs/Maze2D-UMaze-v1")
    states, goals = np.tile([1.0, 1.0, 0.0, 0.0], (200, 1)), np.ones((200, 2))
    observations = {"observation": states, "desired_goal": goals}
    states[:1, 0] = 0.25  # the wall ends at 0.3
    env.from_d4rl(observations, goals)
    states[:4, 0] = 0.25
    with pytest.raises(MazePositionError, match="walls of UMaze"):
        env.from_d4rl(observations, goals)


# --- copies ------------------------------------------------------------------------


def through_pickle(env: Any) -> Any:
    return pickle.loads(pickle.dumps(env))  # noqa: S301


@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_copy_goes_on_where_the_original_is(copied: Any, wrapped: bool) -> None:
    """Along walls as well, in the next episode too, and each by itself."""
    env = gymnasium.make("diffuser_envs/Multi2D-UMaze-v1", max_episode_steps=160)
    if wrapped:
        env = GoalResampling(env, on_success="resample")
    rng = np.random.default_rng(0)
    env.reset(seed=3)
    for action in rng.uniform(-1, 1, (100, 2)):
        env.step(action)
    other = copied(env)
    assert other.spec == env.spec
    pushes = rng.uniform(-1, 1, (60, 2)) + 0.5
    first = [env.step(push) for push in pushes]
    second = [other.step(push) for push in pushes]
    for mine, theirs in zip(first, second, strict=True):
        np.testing.assert_equal(mine, theirs)
    assert first[-1][3]  # its steps are counted on
    np.testing.assert_equal(env.reset(), other.reset())


def test_a_shallow_copy_draws_from_a_stream_of_its_own() -> None:
    env = gymnasium.make("diffuser_envs/Multi2D-UMaze-v1").unwrapped
    env.reset(seed=3)
    other = copy.copy(env)
    np.testing.assert_equal(env.reset(), other.reset())
