"""Methods of others: SAC + HER; agents, algorithms and scripts as guests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from diffuser_policy.baselines import online
from diffuser_policy.benchmark.cell_process import run_cell
from diffuser_policy.benchmark.cells import (
    Cell,
    CellFolder,
    EvaluationProtocol,
    read_result,
)
from diffuser_policy.benchmark.context import MethodContext
from diffuser_policy.benchmark.methods import METHODS, find_method
from diffuser_policy.benchmark.problem import Problem
from diffuser_policy.errors import CheckpointError, ConfigError
from diffuser_policy.evaluation import evaluate
from tests.goal_point import FIXED_POINT, GOAL_POINT, NUM_STEPS, training_of

pytest.importorskip("stable_baselines3", reason="needs the extra 'sb3'")

SMALL = {"width": 16, "batch_size": 32, "warm_up": 30, "discount": 0.9}

GUESTS = '''
"""Guests of a benchmark, as a user would write them."""

import numpy as np
from stable_baselines3 import SAC

from diffuser_policy.benchmark.methods import register_method


class Straight:
    """Pushes towards the goal."""

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        offset = observation["desired_goal"] - observation["achieved_goal"]
        return (10 * offset).clip(-1, 1).astype(np.float32), state


@register_method("guest-straight", needs_dataset=False)
def straight(training):
    return Straight()


@register_method("guest-agent", needs_dataset=False)
def agent(training, *, learning_starts: int = 20):
    env = training.make_env()
    model = SAC("MultiInputPolicy", env, learning_starts=learning_starts, device="cpu")
    training.facts["num_steps"] = 40
    return model.learn(40)


@register_method("guest-algorithm", needs_dataset=False)
def algorithm(training):
    import d3rlpy

    made = d3rlpy.algos.TD3Config(batch_size=8).create()
    made.create_impl((6,), 2)
    return made


@register_method("guest-nothing", needs_dataset=False)
def nothing(training):
    return None


@register_method("guest-wild", needs_dataset=False)
def wild(training):
    made = Straight()
    made.predict = lambda observation, state, episode_start, deterministic: (
        np.full((len(observation["desired_goal"]), 2), 7.0), state
    )
    return made
'''


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the guests afterwards."""
    monkeypatch.setattr(METHODS, "registered", dict(METHODS.registered))


def train(training: MethodContext) -> Any:
    """Run the method as a cell does."""
    return online.sac_her(training, **training.settings)


def guest_cell(folder: Path, name: str) -> dict[str, Any]:
    """Run a method of the guests' file as a cell; return its result."""
    path = folder / "guests.py"
    path.write_text(GUESTS)
    cell = Cell(
        problem=Problem(env=GOAL_POINT, dataset="test/none-v0", goals="hindsight"),
        method=f"{path}:{name}",
        evaluation=EvaluationProtocol(seeds=(0, 10), episodes=4, num_envs=2),
    )
    place = CellFolder(folder, cell.id)
    place.prepare(cell)
    return run_cell(cell, place)


@pytest.mark.proof
def test_practice_with_hindsight_makes_perfect(tmp_path: Path) -> None:
    """From never at the goal to nearly always, in a thousand env steps."""
    settings = {**SMALL, "width": 32, "batch_size": 64, "learning_rate": 5e-3}
    training = training_of("sac-her", tmp_path, num_steps=1000, settings=settings)
    policy = train(training)
    episodes = evaluate(
        policy, GOAL_POINT, episodes=20, deterministic=True, progress=False
    ).episodes
    assert np.mean([e.episode_return for e in episodes]) > 8  # of 20
    assert [point["step"] for point in training.curve_points] == [500, 1000]
    assert training.facts["num_env_steps"] == 1000
    assert training.facts["num_steps"] == 1000 - NUM_STEPS  # none in the warm-up


def test_steps_are_rounded_up_to_whole_episodes(tmp_path: Path) -> None:
    """Points of the learning curve, too: they come after the episode they fall into."""
    training = training_of("sac-her", tmp_path, num_steps=50, settings=SMALL)
    train(training)
    assert training.facts["num_env_steps"] == 60
    assert [point["step"] for point in training.curve_points] == [40, 60]


def test_a_killed_practice_goes_on_to_the_same_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Networks, moments, temperature, replay buffer and curve are those of one go."""

    def work(name: str) -> MethodContext:
        return training_of("sac-her", tmp_path / name, num_steps=120, settings=SMALL)

    whole_training = work("whole")
    whole = train(whole_training)
    training = work("killed")

    def killed_at_80(step: int, **_: Any) -> None:
        if step >= 80:
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "progress", killed_at_80)
    with pytest.raises(KeyboardInterrupt):
        train(training)
    resumed_training = work("killed")
    resumed = train(resumed_training)
    assert resumed.num_timesteps == whole.num_timesteps == 120
    assert resumed._n_updates == whole._n_updates == 100
    assert resumed_training.curve_points == whole_training.curve_points
    for (name, first), second in zip(
        whole.policy.state_dict().items(),
        resumed.policy.state_dict().values(),
        strict=True,
    ):
        assert (first == second).all(), name
    first, second = whole.log_ent_coef.item(), resumed.log_ent_coef.item()
    assert first == second != 0.0
    buffers = whole.replay_buffer, resumed.replay_buffer
    for table in ("actions", "rewards", "ep_start", "ep_length"):
        np.testing.assert_array_equal(*(getattr(b, table) for b in buffers))
    np.testing.assert_array_equal(*(b.observations["observation"] for b in buffers))


def test_a_finished_practice_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill during the evaluation costs no training; actions are the same."""
    first = train(training_of("sac-her", tmp_path, num_steps=60, settings=SMALL))
    monkeypatch.setattr("stable_baselines3.SAC.learn", None)
    again = train(training_of("sac-her", tmp_path, num_steps=60, settings=SMALL))
    batch = gymnasium.make(GOAL_POINT).reset(seed=1)[0]
    state = (np.arange(3),)
    action, passed = first.predict(batch, state, deterministic=True)
    assert passed is state
    assert action.shape == (2,)
    other, _ = again.predict(batch, deterministic=True)
    np.testing.assert_array_equal(action, other)


def test_damaged_replay_is_an_error_with_advice(tmp_path: Path) -> None:
    """What is lost is said, and what to delete."""
    training = training_of("sac-her", tmp_path, num_steps=40, settings=SMALL)
    train(training)
    (training.folder / online.CHECKPOINT / online.REPLAY_FILE).write_bytes(b"PK\3\4")
    with pytest.raises(CheckpointError, match=r"Delete .* to train again from the"):
        train(training_of("sac-her", tmp_path, num_steps=40, settings=SMALL))


@pytest.mark.parametrize(
    ("env", "settings", "told"),
    [
        ("Pendulum-v1", {}, "Pendulum-v1 observes Box"),
        (FIXED_POINT, {"width": -1}, "width must be positive, got -1"),
        (FIXED_POINT, {"learning_rate": 0.0}, "learning_rate must be positive"),
        (FIXED_POINT, {"discount": 1.5}, r"discount must be in \[0, 1\], got 1.5"),
        (FIXED_POINT, {"goals_per_row": -1}, "goals_per_row must be 0 or more"),
    ],
)
def test_practice_that_cannot_work_is_refused_before_a_run(
    env: str, settings: dict[str, Any], told: str
) -> None:
    problem = Problem(env=env, dataset="test/none-v0")
    with pytest.raises(ConfigError, match=told):
        find_method("sac-her").check(problem, settings)


def test_a_script_takes_part(tmp_path: Path) -> None:
    """Ten lines in a file of the user's; straight lines arrive."""
    result = guest_cell(tmp_path, "straight")
    assert [item["seed"] for item in result["evaluations"]] == [0, 10]
    [written] = tmp_path.glob("cells/*/result.json")
    episodes = read_result(written).episodes
    assert len(episodes) == 8
    assert all(episode["success"] for episode in episodes)
    assert result["training"]["num_steps"] is None


def test_an_agent_of_stable_baselines3_takes_part(tmp_path: Path) -> None:
    """What `learn` returns is a policy already."""
    result = guest_cell(tmp_path, "agent")
    assert result["training"] == {"num_steps": 40, "settings": {"learning_starts": 20}}


def test_an_algorithm_of_d3rlpy_takes_part(tmp_path: Path) -> None:
    """It knows batches of rows only, which the benchmark makes for it."""
    pytest.importorskip("d3rlpy", reason="needs the extra 'baselines'")
    result = guest_cell(tmp_path, "algorithm")
    assert result["evaluations"][0]["episodes"] == 4


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "returned nothing; it has to return a policy"),
        ("wild", r"outside of the action space: \[7.0, 7.0\]"),
    ],
)
def test_guests_that_misbehave_are_named(
    tmp_path: Path, name: str, message: str
) -> None:
    """No policy at all, and actions out of bounds."""
    with pytest.raises(ConfigError, match=message):
        guest_cell(tmp_path, name)


def test_online_methods_do_single_tasks_too() -> None:
    """A fixed goal is a goal."""
    problem = Problem(env=FIXED_POINT, dataset="test/none-v0")
    find_method("sac-her").check(problem, {"width": 8})
    with pytest.raises(ConfigError, match="widht"):
        find_method("sac-her").check(problem, {"widht": 8})
