"""OGBench: the goal dictionary, seeds, the protocol, and the recipe of its data."""

from __future__ import annotations

import pickle
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from diffuser_envs.errors import (
    MazeObservationError,
    MazeOptionError,
    UnsupportedEnvError,
)
from diffuser_envs.ogbench.demonstrator import (
    NavigateGenerator,
    PointMazeDemonstrator,
    StitchGenerator,
)
from diffuser_policy import DiffuserPolicy, evaluate
from diffuser_policy.baselines.shooting import make_objective
from diffuser_policy.baselines.transitions import Hindsight, check_goals
from diffuser_policy.cli.options import PlannerSettings
from diffuser_policy.columns.layout import TrajectoryLayout
from diffuser_policy.config import CollectSettings
from diffuser_policy.data.collection import collect
from diffuser_policy.data.demonstrators import DEMONSTRATORS
from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.data.minari import load_flat
from diffuser_policy.envs import (
    Env,
    goal_radius,
    make_env,
    reset_env,
    reward_of_goals,
)
from diffuser_policy.errors import (
    ConfigError,
    MissingExtraError,
    ObservationError,
    SpaceMismatchError,
    UnknownNameError,
)
from diffuser_policy.evaluation.report import to_json
from diffuser_policy.evaluation.scores import score_of_returns
from diffuser_policy.play.session import Session
from diffuser_policy.play.worlds import MazeWorld, world_of
from diffuser_policy.plotting import Scene

pytest.importorskip("ogbench", reason="needs the extra 'ogbench'")
# OGBench declares spaces in one precision and their bounds in another.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*precision lowered:UserWarning"),
    pytest.mark.filterwarnings("ignore::glfw.GLFWError"),
]
MAZE = "pointmaze-medium-v0"


@pytest.fixture
def maze() -> Iterator[Env]:
    env = make_env(MAZE)
    yield env
    env.close()


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    monkeypatch.setenv("DIFFUSER_POLICY_CACHE", str(tmp_path / "cache"))
    return tmp_path


def expert(env: Env) -> Any:
    return DEMONSTRATORS.find("ogbench-pointmaze").target.from_env(env)


def test_landmarks_of_another_maze_are_noted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    giant = "pointmaze-giant-stitch"
    for env_id in (None, "ogbench:pointmaze-giant-v0"):
        PlannerSettings(planner=giant, env=env_id).load()
        assert not capsys.readouterr().err
    PlannerSettings(planner=giant, env=MAZE).load()
    assert f"{giant} are places in pointmaze-giant-v0" in capsys.readouterr().err


def test_whoever_makes_the_environment_otherwise_is_told_how() -> None:
    policy = DiffuserPolicy.from_pretrained("pointmaze-giant-stitch")
    env = gym.make("pointmaze-giant-v0")
    with pytest.raises(SpaceMismatchError, match=r"diffuser_policy\.envs\.make_env"):
        policy.for_env(env)
    with pytest.raises(ObservationError, match=r"diffuser_policy\.envs\.make_env"):
        policy.predict(env.reset(seed=0)[0])
    env.close()


# --- the adapter --------------------------------------------------------------------


@pytest.mark.parametrize("env_id", [MAZE, "antmaze-medium-v0", "cube-single-v0"])
def test_observations_carry_the_goal_that_reset_hands_over(env_id: str) -> None:
    env: Any = make_env(env_id)
    observation, info = env.reset(seed=0, options={"task_id": 2})
    assert env.observation_space.contains(observation)
    np.testing.assert_array_equal(observation["desired_goal"], info["goal"])
    np.testing.assert_array_equal(
        observation["achieved_goal"], observation["observation"]
    )
    assert env.unwrapped.cur_task_id == 2
    following, *_ = env.step(env.action_space.sample())
    assert env.observation_space.contains(following)
    np.testing.assert_array_equal(following["desired_goal"], info["goal"])
    assert not np.array_equal(following["observation"], observation["observation"])
    env.close()


@pytest.mark.parametrize("env_id", [MAZE, "antmaze-medium-v0"])
def test_compute_reward_is_the_reward_of_a_step(env_id: str) -> None:
    env: Any = make_env(env_id)
    compute = reward_of_goals(env)
    assert compute is not None
    observation, _ = env.reset(seed=0, options={"task_id": 1})
    near, rewards, steps = observation["observation"][:2], [], []
    for off in (0.0, 0.9 * env.unwrapped._goal_tol, 1.5 * env.unwrapped._goal_tol):
        env.reset(seed=0, options={"start": near, "goal": near + np.array([off, 0.0])})
        seen, reward, *_ = env.step(np.zeros(env.action_space.shape, np.float32))
        rewards.append(reward)
        steps.append(seen)
    assert rewards == [1.0, 1.0, 0.0]
    reached, goals = (
        np.stack([step[key] for step in steps])
        for key in ("achieved_goal", "desired_goal")
    )
    assert compute(reached, goals, {}).tolist() == rewards
    assert compute(achieved_goal=reached[0], desired_goal=goals[0], info={}) == 1.0
    env.close()


@pytest.mark.parametrize(
    ("env_id", "options"),
    [
        ("cube-single-v0", {}),
        ("pointmaze-medium-singletask-v0", {}),
        ("antsoccer-arena-v0", {}),
        (MAZE, {"success_timing": "pre"}),
    ],
)
def test_rewards_that_are_not_of_the_reached_place_have_no_compute_reward(
    env_id: str, options: dict[str, Any]
) -> None:
    env = make_env(env_id, **options)
    assert reward_of_goals(env) is None
    env.close()


def test_methods_are_told_what_is_missing() -> None:
    env = make_env("antsoccer-arena-v0")
    with pytest.raises(ConfigError, match=r"antsoccer-arena-v0 has no compute_reward"):
        check_goals(env, "It needs goals")
    env.close()


def test_methods_relabel_goals_and_imagine_rewards(maze: Env) -> None:
    generator = np.random.default_rng(0)
    seen = (20 * generator.random((400, 2))).astype(np.float32)
    fields: dict[str, np.ndarray] = {
        "observation": seen,
        "action": generator.random((400, 2)).astype(np.float32),
        "reward": np.zeros(400),
        "terminated": np.zeros(400, np.bool_),
        "achieved_goal": seen,
        "desired_goal": seen,
    }
    flat = FlatDataset(fields, np.array([0, 200, 400]), {"dataset_id": "toy/maze-v0"})
    batch = Hindsight(flat, maze, discount=0.5).batch(generator, 500)
    # Half of the goals are what the next state reached.
    assert batch.rewards.mean() == pytest.approx(0.5, abs=0.1)
    spaces = DiffuserPolicy.from_pretrained("pointmaze-giant-navigate").spaces
    reward = make_objective("reward", maze, spaces)
    assert reward(seen[None, :4], seen[0]) == pytest.approx(0.25)


@pytest.mark.parametrize(
    "env_id",
    [
        MAZE,
        "pointmaze-teleport-v0",
        "antmaze-medium-v0",
        "cube-single-v0",
        "puzzle-3x3-v0",
    ],
)
def test_a_seed_fixes_all_that_is_drawn(env_id: str) -> None:
    """Tasks, starts, goals and exits of teleports, which OGBench draws globally.

    And the random actions that bring an arm to its goal.
    """

    def episode(seed: int, disturbance: int) -> list[np.ndarray]:
        env: Any = make_env(env_id)
        np.random.seed(disturbance)  # noqa: NPY002
        observation, info = env.reset(seed=seed)
        seen = [observation["observation"], info["goal"], env.unwrapped.cur_task_id]
        if "teleport" in env_id:
            for _ in range(5):
                env.unwrapped.set_xy(env.unwrapped.ij_to_xy((4, 6)))  # a way in
                env.step(np.zeros(2, np.float32))
                seen.append(env.unwrapped.get_xy())  # the way out
        env.close()
        return seen

    for one, other in zip(episode(3, 0), episode(3, 1), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(episode(3, 0)[0], episode(4, 0)[0])


def test_random_actions_of_the_user_and_resets_leave_each_other_alone() -> None:
    """Random actions bring an ant into the pose that is its goal."""

    def goals(*, samples: int) -> list[np.ndarray]:
        found = []
        env.reset(seed=5)
        for _ in range(2):
            for _ in range(samples):
                env.action_space.sample()
            found.append(env.reset()[0]["desired_goal"])
        return found

    env: Any = make_env("antmaze-medium-v0")
    np.testing.assert_array_equal(goals(samples=0), goals(samples=3))
    env.action_space.seed(7)
    expected = env.action_space.sample()
    env.action_space.seed(7)
    env.reset(seed=0)
    env.reset()
    np.testing.assert_array_equal(env.action_space.sample(), expected)
    env.close()


def test_the_users_generator_stays_where_it_was() -> None:
    env: Any = make_env("pointmaze-teleport-v0")
    np.random.seed(5)  # noqa: NPY002
    expected = np.random.uniform(size=3)  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    env.reset(seed=0)
    env.reset()
    env.unwrapped.set_xy(env.unwrapped.ij_to_xy((4, 6)))
    env.step(np.zeros(2, np.float32))
    np.testing.assert_array_equal(np.random.uniform(size=3), expected)  # noqa: NPY002
    env.close()


def test_the_users_generator_survives_resets_in_two_threads(
    maze: Env, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other environment begins while this one does, and ends after it."""
    other = make_env(MAZE)
    thread = threading.Thread(target=other.reset, kwargs={"seed": 1})
    begun, ended = threading.Event(), threading.Event()
    resets = maze.unwrapped.reset, other.unwrapped.reset

    def first(*, seed: int | None = None, options: Any = None) -> Any:
        thread.start()
        begun.wait(0.5)
        return resets[0](seed=seed, options=options)

    def second(*, seed: int | None = None, options: Any = None) -> Any:
        begun.set()
        ended.wait(30.0)
        return resets[1](seed=seed, options=options)

    monkeypatch.setattr(maze.unwrapped, "reset", first)
    monkeypatch.setattr(other.unwrapped, "reset", second)
    np.random.seed(5)  # noqa: NPY002
    expected = np.random.uniform(size=3)  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    maze.reset(seed=0)
    ended.set()
    thread.join()
    np.testing.assert_array_equal(np.random.uniform(size=3), expected)  # noqa: NPY002
    other.close()


def test_no_file_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    make_env(MAZE).close()
    assert not list(tmp_path.iterdir())


def test_seeds_and_tasks_are_whole_numbers_of_any_kind(maze: Env) -> None:
    first, _ = maze.reset(seed=3, options={"task_id": 2})
    again, _ = maze.reset(seed=np.int64(3), options={"task_id": np.int8(2)})  # type: ignore[arg-type]
    np.testing.assert_array_equal(first["observation"], again["observation"])
    wrong: Any
    for wrong in (-1, 2.5, "a"):
        with pytest.raises(ConfigError, match="seed must be a whole number from 0"):
            maze.reset(seed=wrong)
    for wrong in (0, 6, "a", None):
        with pytest.raises(ConfigError, match=r"task_id must be .* from 1 to 5"):
            maze.reset(options={"task_id": wrong})
    with pytest.raises(ConfigError, match="must be a dictionary"):
        maze.reset(options=5)  # type: ignore[arg-type]


def test_options_that_would_be_ignored_are_refused(maze: Env) -> None:
    with pytest.raises(ConfigError, match=r"takes no task_di .*mean 'task_id' or"):
        maze.reset(options={"task_di": 3})
    single = make_env("pointmaze-medium-singletask-v0")
    with pytest.raises(ConfigError, match=r"singletask-v0 takes no task_id"):
        single.reset(options={"task_id": 3})
    single.close()
    arm = make_env("cube-single-v0")
    with pytest.raises(ConfigError, match=r"Known: task_id, task_info, render_goal\."):
        arm.reset(options={"foo": 1})
    with pytest.raises(ConfigError, match=r"takes no start\. Choose a task instead"):
        arm.reset(options={"start": [0, 0]})
    arm.close()


@pytest.mark.parametrize(
    "options",
    [
        {"task_id": 1, "task_info": {"init_ij": (1, 1), "goal_ij": (1, 2)}},
        {"goal": [20.0, 16.5], "render_goal": True},
    ],
)
def test_options_of_which_one_would_be_ignored_are_refused_together(
    maze: Env, options: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=f"{' or '.join(options)}, not both"):
        maze.reset(options=options)
    maze.reset(options={"goal": [20.0, 16.5], "render_goal": False})


def test_tasks_of_ones_own_are_checked(maze: Env) -> None:
    own = {"init_ij": (1, 1), "goal_ij": (1, 2)}
    first, _ = maze.reset(seed=0, options={"task_info": own})
    assert np.abs(first["achieved_goal"] - first["desired_goal"]).max() < 7
    wrong: Any
    for wrong in ({}, None, 5, {"init_ij": (1, 1)}, {"init_ij": 1, "goal_ij": 2}):
        with pytest.raises(ConfigError, match=r"task_info'\] must describe a task"):
            maze.reset(options={"task_info": wrong})
    again, _ = maze.reset(seed=0, options={"task_info": own})
    np.testing.assert_array_equal(again["observation"], first["observation"])


def test_episodes_without_a_seed_differ(maze: Env) -> None:
    first = maze.reset(seed=0)[0]["observation"]
    second = maze.reset()[0]["observation"]
    assert not np.array_equal(first, second)


def test_single_tasks_keep_their_observations_and_rewards() -> None:
    env: Any = make_env("pointmaze-medium-singletask-v0")
    observation, _ = env.reset(seed=0)
    assert observation.shape == (2,)
    assert not {"evaluation_tasks", "demonstrator"} & set(env.metadata)
    assert env.step(np.zeros(2, np.float32))[1] == -1.0
    env.close()


def test_goals_that_are_no_observations_are_refused() -> None:
    with pytest.raises(ConfigError, match="use_oracle_rep"):
        make_env(MAZE, use_oracle_rep=True)


def test_an_environment_is_made_again_from_its_spec(maze: Env) -> None:
    assert maze.spec is not None
    again = gym.make(type(maze.spec).from_json(maze.spec.to_json()))
    assert again.observation_space == maze.observation_space
    again.close()


def test_a_name_of_a_dataset_is_answered_with_the_environment() -> None:
    with pytest.raises(UnknownNameError, match="pointmaze-medium-v0"):
        make_env("pointmaze-medium-navigate-v0")


# --- the protocol -------------------------------------------------------------------


def test_all_tasks_are_evaluated_and_reported() -> None:
    env = make_env(MAZE)
    policy = expert(env)
    env.close()
    result = evaluate(policy, MAZE, episodes=2, seed=7, num_envs=3, progress=False)
    assert [e.task for e in result.episodes] == [
        f"task{number}" for number in range(1, 6) for _ in range(2)
    ]
    assert [e.seed for e in result.episodes] == list(range(7, 17))
    success = result.summary()["success_rate"]
    assert success is not None
    assert success.mean == 1.0
    report = to_json(result)
    assert list(report["summary"]["tasks"]) == [f"task{n}" for n in range(1, 6)]
    assert report["summary"]["tasks"]["task3"]["success_rate"]["mean"] == 1.0
    assert report["episodes"][2]["task"] == "task2"
    assert report["settings"]["tasks"]["task2"] == {"task_id": 2}
    alone = evaluate(policy, MAZE, episodes=2, seed=7, num_envs=1, progress=False)
    assert alone.episodes == result.episodes


def test_tasks_have_fifty_episodes_each_by_default() -> None:
    env = make_env(MAZE, max_episode_steps=1)
    result = evaluate(
        expert(env), MAZE, progress=False, env_options={"max_episode_steps": 1}
    )
    env.close()
    assert len(result.episodes) == 250
    counts = [e.task for e in result.episodes].count("task4")
    assert (counts, result.settings["episodes"]) == (50, 50)


# --- the recipe ---------------------------------------------------------------------


def test_the_way_is_that_of_ogbenchs_own_oracle(maze: Env) -> None:
    base: Any = maze.unwrapped
    ways = expert(maze).maze
    rng = np.random.default_rng(0)
    for _ in range(300):
        start, goal = (
            ways.middle(ways.cells[rng.integers(len(ways.cells))])
            + rng.uniform(-1.9, 1.9, 2)
            for _ in range(2)
        )
        expected, _ = base.get_oracle_subgoal(start, goal)
        np.testing.assert_allclose(ways.toward(start, goal), expected)


def test_goals_lie_where_ways_turn_fork_or_end(maze: Env) -> None:
    corners = expert(maze).maze.corners
    assert (1, 1) in corners  # a turn
    assert (4, 3) not in corners  # a wall
    assert (4, 6) in corners
    assert (5, 6) not in corners  # straight on


def record(kind: str, episodes: int, **options: float) -> Any:
    settings = CollectSettings(
        env_id=MAZE,
        generator=kind,
        num_episodes=episodes,
        demonstrator_options=options,
        num_workers=1,
    )
    collect(settings, progress=False)
    return load_flat(f"diffuser/pointmaze-medium-{kind}-v0", progress=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"desired_goal": None}, "with observation and desired_goal"),
        ({"desired_goal": np.full(2, np.nan)}, "not finite"),
        ({"observation": np.full(2, np.inf)}, "not finite"),
        ({"observation": np.zeros(3)}, r"not \(3,\) and \(2,\)"),
        ({"desired_goal": np.zeros((1, 2))}, r"not \(2,\) and \(1, 2\)"),
        ({"desired_goal": "here"}, "numbers"),
    ],
)
def test_observations_of_something_else_are_refused(
    maze: Env, change: dict[str, Any], message: str
) -> None:
    observation = {**maze.reset(seed=0)[0], **change}
    given = {key: value for key, value in observation.items() if value is not None}
    with pytest.raises(MazeObservationError, match=message):
        expert(maze).predict(given)


@pytest.mark.usefixtures("folders")
def test_navigation_chases_one_goal_after_another() -> None:
    flat = record("navigate", 2)
    assert flat.run_lengths.tolist() == [1000, 1000]
    position, goal = flat.fields["observation"], flat.fields["desired_goal"]
    np.testing.assert_array_equal(flat.fields["achieved_goal"], position)
    reached = flat.fields["reward"] == 1.0
    arrived = np.linalg.norm(position[1:] - goal[:-1], axis=1) <= 1.0
    arrived[999] = reached[999]  # between two episodes
    np.testing.assert_array_equal(arrived, reached[:-1])
    changed = (goal[1:] != goal[:-1]).any(axis=1)
    np.testing.assert_array_equal(np.delete(changed, 999), np.delete(reached[:-1], 999))
    assert reached.sum() > 5
    assert flat.metadata["observation_columns"] == {"position": [0, 1]}
    assert flat.metadata["env_id"] == MAZE
    steps = position[1:] - position[:-1]
    moved = np.delete(steps, 999, axis=0)
    free = np.abs(moved - 0.2 * np.delete(flat.fields["action"][:-1], 999, 0)).max(1)
    assert np.median(free) < 1e-3  # the action is the step, away from walls


@pytest.mark.usefixtures("folders")
def test_stitching_data_stays_at_a_goal_four_cells_away() -> None:
    flat = record("stitch", 12)
    assert set(flat.run_lengths.tolist()) == {200}
    env = make_env(MAZE)
    ways = expert(env).maze
    env.close()
    for begin in flat.run_starts[:-1]:
        goals = flat.fields["desired_goal"][begin : begin + 200]
        assert (goals == goals[0]).all()
        start, goal = flat.fields["observation"][begin], goals[0]
        assert ways.steps_to(ways.cell(goal))[ways.cell(start)] == 4
        last = flat.fields["observation"][begin + 180 : begin + 200]
        assert np.linalg.norm(last - ways.middle(ways.cell(goal)), axis=1).max() < 1
        assert flat.fields["reward"][begin : begin + 20].sum() == 0


@pytest.mark.usefixtures("folders")
def test_seeds_and_options_determine_the_data() -> None:
    one = record("stitch", 3, num_steps=20)
    position = one.fields["observation"].copy()
    assert one.run_lengths.tolist() == [20] * 3
    collect(
        CollectSettings(
            env_id=MAZE,
            generator="stitch",
            num_episodes=3,
            demonstrator_options={"num_steps": 20},
            num_workers=2,
            overwrite=True,
        ),
        progress=False,
    )
    again = load_flat("diffuser/pointmaze-medium-stitch-v0", progress=False)
    np.testing.assert_array_equal(again.fields["observation"], position)
    with pytest.raises(ConfigError, match="noise must be a finite number, 0 or more"):
        record("navigate", 1, noise=-1)


@pytest.mark.parametrize("kind", [NavigateGenerator, StitchGenerator])
def test_options_that_cannot_work_are_refused_at_once(
    maze: Env, kind: type[NavigateGenerator]
) -> None:
    wrong: list[dict[str, Any]] = [
        {"noise": -1},
        {"noise": np.nan},
        {"noise": "x"},
        {"num_steps": -1},
        {"num_steps": 2.5},
        {"num_steps": np.inf},
        {"num_steps": None},
    ]
    for options in wrong:
        with pytest.raises(MazeOptionError, match=f"{next(iter(options))} must be"):
            kind.from_env(maze, **options)
    assert kind.from_env(maze, num_steps=3.0).record(0).actions.shape == (3, 2)


def test_the_demonstrator_can_be_copied(maze: Env) -> None:
    policy = expert(maze)
    observation, _ = maze.reset(seed=0)
    action, _ = policy.predict(observation)
    copy = pickle.loads(pickle.dumps(policy))  # noqa: S301
    np.testing.assert_array_equal(copy.predict(observation)[0], action)


@pytest.mark.parametrize(
    ("env_id", "found"),
    [
        ("antmaze-medium-v0", "not antmaze"),
        ("pointmaze-medium-singletask-v0", "have none"),
    ],
)
def test_other_environments_have_no_such_recipe(env_id: str, found: str) -> None:
    settings = CollectSettings(env_id=env_id, demonstrator="ogbench-pointmaze")
    with pytest.raises(ConfigError, match=f"point maze of OGBench.*{found}"):
        collect(settings, progress=False)


@pytest.mark.parametrize("kind", [PointMazeDemonstrator, NavigateGenerator])
def test_mazes_without_a_goal_in_observations_are_refused(kind: Any) -> None:
    env = gym.make(MAZE)
    with pytest.raises(UnsupportedEnvError, match=r"envs\.make_env"):
        kind.from_env(env)
    env.close()


def test_without_ogbench_its_ids_name_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for env_id in [i for i in gym.registry if i.startswith("antmaze-")]:
        monkeypatch.delitem(gym.registry, env_id)
    monkeypatch.setitem(sys.modules, "ogbench", None)
    with pytest.raises(MissingExtraError, match=r"pip install .\.\[ogbench\]"):
        make_env("antmaze-medium-v0")


def test_the_score_is_success_in_percent() -> None:
    env = make_env("pointmaze-medium-v0")
    score = score_of_returns(env)
    assert score is not None
    assert [score(0.0), score(1.0)] == [0.0, 100.0]
    env.close()
    single = make_env("pointmaze-medium-singletask-v0")
    assert score_of_returns(single) is None
    single.close()


@pytest.mark.parametrize("env_id", ["pointmaze-medium-v0", "antmaze-medium-v0"])
def test_start_and_goal_can_be_placed_in_meters(env_id: str) -> None:
    env = make_env(env_id)
    plain, _ = env.reset(seed=0, options={"task_id": 2})
    places = {"start": [20.0, 16.5], "goal": [0.5, 19.0]}
    placed, _ = env.reset(seed=0, options={"task_id": 2, **places})
    assert placed["achieved_goal"][:2] == pytest.approx(places["start"])
    assert placed["observation"] == pytest.approx(placed["achieved_goal"])
    assert placed["desired_goal"][:2] == pytest.approx(places["goal"])
    assert placed["desired_goal"][2:] == pytest.approx(plain["desired_goal"][2:])
    unwrapped: Any = env.unwrapped
    unwrapped.set_xy(np.array([0.7, 19.0]))  # success is where the goal was placed
    assert env.step(np.zeros(env.action_space.shape))[-1]["success"] == 1.0
    again, _ = env.reset(seed=0, options={"task_id": 2})  # and it is the task's again
    assert again["desired_goal"] == pytest.approx(plain["desired_goal"])
    with pytest.raises(ConfigError, match=r"goal \(8, 4\) is inside a wall"):
        env.reset(options={"goal": [8.0, 4.0]})
    wrong: Any
    for wrong in ([1.0, np.nan], "abc", ["a", "b"], [[1, 2], [3]], {"x": 0}, [[0, 0]]):
        with pytest.raises(ConfigError, match="start must be x and y in meters"):
            env.reset(options={"start": wrong})
    with pytest.raises(ConfigError, match="outside the maze"):
        env.reset(options={"goal": [1e300, 0.0]})
    first = env.reset(seed=3)[0]
    following = env.reset()[0]
    env.reset(seed=3)
    with pytest.raises(ConfigError, match="inside a wall"):
        env.reset(seed=4, options={"goal": [8.0, 4.0]})  # which seeds nothing
    again = env.reset()[0]
    assert (again["desired_goal"] == following["desired_goal"]).all()
    assert (again["desired_goal"] != first["desired_goal"]).any()
    env.close()


def test_environments_without_a_position_to_place_take_only_tasks() -> None:
    for env_id in ("antsoccer-medium-v0", "pointmaze-medium-singletask-v0"):
        env = make_env(env_id)
        with pytest.raises(ConfigError, match=f"{env_id} takes no goal"):
            env.reset(options={"goal": [0.0, 4.0]})
        env.close()


def test_start_and_goal_of_an_ant_can_be_dragged() -> None:
    """Its goals are whole states; what is dragged is the position in them."""
    env = make_env("antmaze-medium-v0")
    layout = TrajectoryLayout(
        action_dim=0, observation_dim=29, aliases={"goal": tuple(range(29))}
    )
    observation, _ = reset_env(env, seed=0)
    world = world_of(env, layout, observation)
    assert isinstance(world, MazeWorld)
    goal = tuple(observation["desired_goal"][:2])
    [start, moved] = world.handles(observation)
    assert start[0] == "start"
    assert moved[:2] == ("goal", (*map(pytest.approx, goal), 0.0))
    env.close()


def test_a_goal_is_dragged_during_a_run() -> None:
    env: Any = make_env("pointmaze-medium-v0")
    policy = DiffuserPolicy.from_pretrained("pointmaze-giant-navigate")
    session = Session(policy, env, planner="mine", env_id="medium", options={})
    session.move("goal", (20.0, 16.5, 0.0))
    session.advance()
    session.run()
    users: Any = np.random.get_state(legacy=False)  # noqa: NPY002
    session.advance()
    session.move("goal", (0.5, 19.0, 0.0))
    session.advance()
    assert env.unwrapped.cur_goal_xy == pytest.approx([0.5, 19.0])
    for _ in range(3):
        session.advance()
    assert session.observation["desired_goal"] == pytest.approx([0.5, 19.0])
    session.move("goal", (8.0, 4.0, 0.0))
    assert session.frame().stuck == ("goal",)
    after: Any = np.random.get_state(legacy=False)  # noqa: NPY002
    assert (after["state"]["key"] == users["state"]["key"]).all()
    session.close()


def test_walls_of_its_mazes_are_where_balls_cannot_be() -> None:
    env = make_env("pointmaze-medium-v0")
    observation, _ = reset_env(env, seed=0)
    layout = TrajectoryLayout(
        action_dim=0,
        observation_dim=2,
        aliases={"position": (0, 1), "goal": (0, 1)},
    )
    scene = Scene.of(env, layout, observation)
    walls = scene.walls
    maze: Any = env.unwrapped
    assert walls is not None
    for i, j in np.argwhere(np.ones_like(maze.maze_map)):
        x, y = maze.ij_to_xy((i, j))
        point = np.array([x + 1.3, y - 0.7])
        assert walls.contain(point) == (maze.maze_map[i, j] == 1)
    assert walls.contain(np.array([[-100.0, 0.0], [0.0, 100.0]])).all()
    assert scene.goal is not None
    world = world_of(env, layout, observation)
    assert isinstance(world, MazeWorld)
    assert [name for name, _, _ in world.handles(observation)] == ["start", "goal"]
    middle = world.boxes()[:, :, :2].mean(axis=(0, 1))
    assert middle == pytest.approx(np.array(world.camera()[1][:2]), abs=2.0)
    assert not world.obstructed(np.array([[0.0, 0.0, 0.0], [4.0, 0.0, 0.0]]))
    assert world.obstructed(np.array([[4.0, 0.0, 0.0], [16.0, 0.0, 0.0]]))
    env.close()


@pytest.mark.parametrize("env_id", ["pointmaze-medium-v0", "pointmaze-giant-v0"])
def test_a_goal_of_its_mazes_has_a_radius(env_id: str) -> None:
    """That of the environment's own success."""
    env = make_env(env_id)
    assert goal_radius(env) == env.unwrapped._goal_tol  # type: ignore[attr-defined]
    env.close()
