"""Sampling-based planning as methods: found by name, and run on a maze, tiny."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from diffuser_policy.baselines import planning_methods
from diffuser_policy.baselines.dynamics import DynamicsRun, simulator_of
from diffuser_policy.baselines.planning_methods import RandomPolicy
from diffuser_policy.baselines.shooting import ShootingPolicy
from diffuser_policy.benchmark.cells import Cell, CellFolder
from diffuser_policy.benchmark.context import MethodContext
from diffuser_policy.benchmark.methods import find_method
from diffuser_policy.benchmark.problem import Problem
from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.envs import make_env
from diffuser_policy.errors import ConfigError, UnknownNameError
from diffuser_policy.evaluation import evaluate
from diffuser_policy.observations import batched
from tests.goal_point import GOAL_POINT, GoalPointEnv
from tests.point_env import POINT
from tests.training_helpers import seed_of

ENV = "diffuser_envs/Maze2D-UMaze-v1"
SMALL = {"horizon": 20, "hold": 10, "num_samples": 4, "num_iterations": 1}
NAMES = (
    "mppi-simulator",
    "cem-simulator",
    "mppi-learned",
    "cem-learned",
    "mppi-diffuser",
)


def pushed_around(env: Any, num_steps: int = 300) -> FlatDataset:
    """Return one run of random pushes in a maze."""
    rng = np.random.default_rng(0)
    start = env.reset(seed=0)[0]
    actions = rng.uniform(-1, 1, (num_steps // 10, 2)).repeat(10, axis=0)
    states = env.unwrapped.simulate(start["observation"][None], actions[None])[0]
    states = np.concatenate([start["observation"][None], states[:-1]])
    return FlatDataset(
        {
            "observation": states,
            "achieved_goal": states[:, :2],
            "desired_goal": np.tile(start["desired_goal"], (num_steps, 1)),
            "action": actions,
            "reward": np.zeros(num_steps),
            "terminated": np.zeros(num_steps, np.bool_),
        },
        np.array([0, num_steps]),
        {"dataset_id": "test/pushes-v0", "action_low": [-1, -1], "action_high": [1, 1]},
    )


class UnboundedEnv(GoalPointEnv):
    """Takes actions of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)


gym.register("test/Unbounded-v0", entry_point=lambda **_: UnboundedEnv())


@pytest.fixture
def training(tmp_path: Path) -> MethodContext:
    cell = Cell(
        problem=Problem(env=ENV, dataset="test/pushes-v0"), method="none", num_steps=2
    )
    folder = CellFolder(tmp_path, cell.id)
    folder.path.mkdir(parents=True)
    made = MethodContext(cell, folder, {})
    env = made.make_env()
    made.__dict__["dataset"] = pushed_around(env)
    env.close()
    return made


@pytest.mark.parametrize("name", NAMES)
def test_every_method_plans_in_a_maze(training: MethodContext, name: str) -> None:
    if name.startswith("mppi"):
        pytest.importorskip("pytorch_mppi", reason="needs the extra 'baselines'")
    method = find_method(
        f"diffuser_policy.baselines.planning_methods:{_function(name)}"
    )
    assert method.name == name
    training.seed = 5
    given: dict[str, Any] = dict(SMALL)
    if name == "mppi-diffuser":
        given["num_sampling_steps"] = 1
    method.check(training.problem, given)
    policy = method.function(training, **method.settings(given))
    assert isinstance(policy, ShootingPolicy)
    results = evaluate(
        policy, lambda: _short(training), episodes=2, num_envs=2, progress=False
    )
    again = evaluate(
        policy, lambda: _short(training), episodes=2, num_envs=1, progress=False
    )
    assert [each.num_plans for each in results.episodes] == [3, 3]
    assert results.episodes == again.episodes
    assert policy.seed == 5
    if "simulator" not in name:
        assert seed_of(training.folder) == 5
        assert training.facts["num_steps"] == 2
        assert training.facts["num_parameters"] > 0


def test_a_learned_model_is_not_trained_twice(
    training: MethodContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = planning_methods.cem_learned(training)
    monkeypatch.setattr(DynamicsRun, "losses", None)  # nobody may descend it
    second = planning_methods.cem_learned(training)
    states, actions = np.zeros((1, 4)), np.zeros((1, 3, 2))
    np.testing.assert_array_equal(
        first.model.simulate(states, actions), second.model.simulate(states, actions)
    )


@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("cem-simulator", {"horizon": 201}, "horizon must be a multiple of hold"),
        (
            "cem-simulator",
            {"replan_interval": 15},
            "replan_interval must be a multiple",
        ),
        ("cem-simulator", {"replan_interval": "often"}, "replan_interval"),
        ("cem-simulator", {"num_samples": -1}, "num_samples must be positive, got -1"),
        ("cem-simulator", {"objective": "nope"}, "nope"),
        ("cem-learned", {"width": -4}, "width must be positive, got -4"),
        ("cem-learned", {"num_members": 0}, "num_members must be positive, got 0"),
        ("mppi-diffuser", {"horizon": 70}, "up to 63 actions"),
        ("mppi-diffuser", {"num_sampling_steps": 0}, "num_sampling_steps must be"),
        ("mppi-diffuser", {"planner": "multi2d-umaze"}, "window.actions"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_a_run(
    name: str, settings: dict[str, Any], told: str
) -> None:
    if name.startswith("mppi"):
        pytest.importorskip("pytorch_mppi", reason="needs the extra 'baselines'")
    problem = Problem(env=ENV, dataset="test/pushes-v0")
    find_method(name).check(problem, {})
    with pytest.raises((ConfigError, UnknownNameError), match=told):
        find_method(name).check(problem, settings)


@pytest.mark.parametrize(
    ("name", "env", "told"),
    [
        ("cem-simulator", "Pendulum-v1", "needs observations with observation"),
        ("cem-learned", "Pendulum-v1", "needs observations with observation"),
        ("cem-simulator", GOAL_POINT, "GoalPointEnv has no simulate"),
        ("cem-learned", POINT, "has no compute_reward"),
        ("random", "CartPole-v1", r"the action space is Discrete\(2\)"),
        ("random", "test/Unbounded-v0", "a Box with finite bounds"),
        ("cem-learned", "test/Unbounded-v0", "a Box with finite bounds"),
        ("mbop", "CartPole-v1", "a Box with finite bounds"),
    ],
)
def test_environments_that_cannot_serve_are_refused_before_a_run(
    name: str, env: str, told: str
) -> None:
    problem = Problem(env=env, dataset="test/none-v0")
    with pytest.raises(ConfigError, match=told):
        find_method(name).check(problem, {})


def test_random_actions_need_nothing_but_bounds() -> None:
    for env in ("Pendulum-v1", POINT, GOAL_POINT):
        find_method("random").check(Problem(env=env, dataset="test/none-v0"), {})


def test_an_environment_without_a_simulator_is_refused() -> None:
    env = make_env("Pendulum-v1")
    with pytest.raises(ConfigError, match="no simulate"):
        simulator_of(env)
    env.close()


def test_random_actions_are_uniform_and_each_row_has_its_own() -> None:
    low, high = np.array([[-1, 0], [1, 4]], np.float32)
    seen = spaces.Box(-1, 1, (7,))
    policy = RandomPolicy(spaces.Box(low, high), spaces.Dict(observation=seen), seed=1)
    state = policy.initial_state(3, np.array([5, 6, 5]))
    drawn = []
    for _ in range(2000):
        action, state = policy.predict({"observation": np.zeros((3, 7))}, state)
        drawn.append(action)
    actions = np.array(drawn)
    np.testing.assert_array_equal(actions[:, 0], actions[:, 2])
    assert (actions[:, 0] != actions[:, 1]).any(axis=1).all()
    np.testing.assert_allclose(actions[:, 0].mean(axis=0), [0.0, 2.0], atol=0.1)
    np.testing.assert_allclose(
        actions[:, 0].std(axis=0), [2 / 12**0.5, 4 / 12**0.5], atol=0.05
    )
    whole = RandomPolicy(spaces.Box(0, 2, (1,), np.int64), seen)
    many, _ = whole.predict(np.zeros((6000, 7)))
    np.testing.assert_allclose(np.bincount(many[:, 0]), 2000, atol=150)


@pytest.mark.parametrize(
    "seen",
    [
        spaces.Box(-1, 1, (7,)),
        spaces.Box(-1, 1, (2, 7)),
        spaces.Box(-1, 1, ()),
        spaces.Discrete(4),
        spaces.Dict(a=spaces.Discrete(4), b=spaces.Box(-1, 1, (2,))),
        spaces.Tuple([spaces.Box(-1, 1, ()), spaces.Dict(a=spaces.Discrete(2))]),
    ],
)
def test_random_actions_are_for_observations_of_any_kind(seen: Any) -> None:
    policy = RandomPolicy(spaces.Box(-1, 1, (2,)), seen)
    single, _ = policy.predict(seen.sample())
    assert single.shape == (2,)
    assert single.dtype == np.float32
    for count in (1, 3):
        rows = batched([seen.sample() for _ in range(count)])
        actions, state = policy.predict(rows)
        assert actions.shape == policy.predict(rows, state)[0].shape == (count, 2)


def _function(name: str) -> str:
    return name.replace("-", "_")


def _short(training: MethodContext) -> Any:
    return make_env(training.problem.env, max_episode_steps=25)
