"""The measures behind the examples of the paper's properties."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from diffuser_policy import DiffuserPolicy

ENV_ID = "diffuser_envs:diffuser_envs/Multi2D-Large-v1"
LONGEST = 0.3
ROADS = np.array([[1.0, 1.0], [-1.0, 1.0]]) / np.sqrt(2)


def load(name: str) -> Any:
    """Import an example as a module."""
    path = Path(__file__).parents[1] / "examples/experiments" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"example_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def far() -> Any:
    return load("long_horizon")


@pytest.fixture(scope="module")
def stitching() -> Any:
    return load("stitching")


@pytest.fixture(scope="module")
def lengths() -> Any:
    return load("variable_length")


@pytest.fixture
def env() -> Any:
    env = gymnasium.make(ENV_ID)
    yield env
    env.close()


def test_the_copied_simulator_is_the_environments(far: Any, env: Any) -> None:
    """Step for step, along walls and at the speed limit; the env is left alone."""
    assert far.largest_error(env, seed=0) < 1e-4
    observation, _ = env.reset(options={"start": [-2.5, 1.0, 9.0, -9.0]})
    before = env.unwrapped.data.qpos.copy()
    action = np.array([0.3, -1.0])
    [[predicted]] = far.simulate(
        env.unwrapped, observation["observation"], action[None, None]
    )
    np.testing.assert_array_equal(env.unwrapped.data.qpos, before)
    np.testing.assert_allclose(env.step(action)[0]["observation"], predicted, atol=1e-9)
    assert np.abs(predicted[2:]).max() < 6.0


@pytest.mark.parametrize("objective", ["reward", "dense"])
def test_random_shooting_takes_the_sequence_that_earns_most(
    far: Any, env: Any, objective: str
) -> None:
    """The same sequences, run in the environment itself, rank the same."""
    policy = far.RandomShooting(
        env=env, objective=objective, num_sequences=6, horizon=60, hold=20
    )
    options = {"start": [-2.5, 1.0], "goal": [-1.7, 1.0]}
    observation, _ = env.reset(options=options)
    chosen = policy.best(observation)
    sequences = far.random_pushes(np.random.default_rng(0), 6, 60, 20)
    earned = []
    for actions in sequences:
        env.reset(options=options)
        states = np.array([env.step(action)[0]["achieved_goal"] for action in actions])
        distance = np.linalg.norm(states - options["goal"], axis=1)
        earned.append(
            (distance <= 0.5).sum()
            if objective == "reward"
            else np.exp(-distance).sum()
        )
    assert len(np.unique(earned)) > 1
    np.testing.assert_array_equal(chosen, sequences[np.argmax(earned)][:50])


def test_random_shooting_executes_what_it_chose_and_then_chooses_anew(
    far: Any, env: Any
) -> None:
    """The state holds what is left of the chosen sequence."""
    policy = far.RandomShooting(
        env=env, objective="dense", num_sequences=2, horizon=8, replan_interval=3
    )
    observation, _ = env.reset(seed=0)
    state, actions = None, []
    for _ in range(4):
        action, state = policy.predict(observation, state)
        actions.append(action)
    assert state is not None
    assert len(state) == 2
    np.testing.assert_array_equal(actions[0], actions[2])  # one push, held
    assert (actions[3] != actions[2]).any()


def test_only_far_goals_reached_early_enough_count(far: Any) -> None:
    """A near goal counts for nothing, and neither does a late arrival."""
    places = [(far.FAR, 480), (far.FAR + 3, 481), (far.FAR, None), (far.FAR - 1, 9)]
    outcomes = [far.Outcome(cells, steps, 0.0) for cells, steps in places]
    assert far.reached(outcomes, 480).startswith("33% [")
    assert far.reached(outcomes, 800).startswith("67% [")


def test_every_recorded_trip_is_straight(stitching: Any) -> None:
    """It crosses from one arm to the opposite one, on one road."""
    trips = stitching.record_trips(50, np.random.default_rng(0))
    off = np.abs(trips @ stitching.NORMALS.T).max(axis=1)
    along = np.where(off[:, :1] < off[:, 1:], *(trips[:, [0, -1]] @ d for d in ROADS))
    assert (off.min(axis=1) <= 2 * stitching.LANE + 1e-9).all()
    assert (np.prod(along, axis=1) < 0).all()
    assert (np.abs(along) >= stitching.ARM[0] - 1e-9).all()


def bent(start: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Return a V through the crossing, `[32, 2]`."""
    return np.concatenate([np.linspace(start, 0 * start, 16), np.linspace(0, goal, 16)])


def test_a_v_is_told_from_all_else(stitching: Any) -> None:
    """Shortcuts, jumps, wrong ends and detours along other arms are none."""
    start, goal = 0.8 * ROADS[0], 0.6 * ROADS[1]
    right = bent(start, goal)
    shortcut = np.linspace(start, goal, 32)
    jump = right.copy()
    jump[2:30] = 0.0
    elsewhere = bent(start, -goal)
    detour = right.copy()
    detour[20:24] -= 0.3 * ROADS[0]
    late = bent(0.5 * start, goal)
    paths = np.stack([right, shortcut, jump, elsewhere, detour, late])
    ends = np.tile([start, goal], (len(paths), 1, 1))
    found = stitching.is_v(paths, ends, LONGEST)
    np.testing.assert_array_equal(found, [True] + 5 * [False])


def test_no_trip_connects_what_is_asked_and_none_can_be_retrieved(
    stitching: Any,
) -> None:
    """Ends on one road are connected, which shows that the count can rise."""
    rng = np.random.default_rng(0)
    trips, ends = stitching.record_trips(300, rng), stitching.ask(30, rng)
    assert stitching.connected(trips, ends) == 0
    assert stitching.connected(trips, trips[:5, [0, -1]]) == 5
    retrieved = stitching.retrieve(trips, ends)
    assert not stitching.is_v(retrieved, ends, LONGEST).any()
    np.testing.assert_array_equal(
        stitching.retrieve(trips, trips[:5, [0, -1]]), trips[:5]
    )


@pytest.mark.parametrize("length", [48, 240])
def test_a_length_is_a_plans_length_and_its_goals_are_that_far(
    lengths: Any, env: Any, length: int
) -> None:
    """The last planning step is one stride before the end of the window."""
    policy = lengths.of_length(DiffuserPolicy.from_pretrained("multi2d-large"), length)
    places = lengths.places(policy, env, length, 3)
    assert len(places) == 3
    for options in places:
        observation, _ = env.reset(options=options)
        plan = policy.plan(observation)
        assert plan.lengths[0] * plan.stride == length
        [time] = policy.planner.horizons.predict_time(
            observation["observation"][None], observation["desired_goal"][None]
        )
        assert lengths.SLACK * length < time <= length


def test_the_distance_is_that_at_the_end_of_the_plan(lengths: Any, env: Any) -> None:
    """Not earlier, not later; the path is the environment's."""
    policy = lengths.of_length(DiffuserPolicy.from_pretrained("multi2d-large"), 48)
    [options] = lengths.places(policy, env, 48, 1)
    path, off = lengths.follow(policy, env, options)
    assert path.shape == (43, 4)
    assert off == np.linalg.norm(path[-1, :2] - options["goal"])
    np.testing.assert_array_equal(path[0, :2], options["start"])
