"""The context of a method: learning curves, progress, and when a training ends."""

from __future__ import annotations

import math
import time
import types
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from diffuser_policy.benchmark import MethodContext, Problem
from diffuser_policy.benchmark.cells import Cell, CellFolder, EvaluationProtocol
from diffuser_policy.benchmark.context import CheckedPolicy
from diffuser_policy.errors import ConfigError, EnvContractError
from tests import baseline_helpers  # noqa: F401 (registers the environments)

PLAN = EvaluationProtocol(
    seeds=(5, 50), episodes=3, num_envs=2, curve_episodes=2, curve_points=4
)


class Scripted:
    """A policy that always goes on to the right, as far as it is told."""

    def __init__(self, push: float) -> None:
        self.push = push

    def predict(self, observation: Any, **_: Any) -> tuple[np.ndarray, None]:
        rows = len(observation["observation"])
        return np.full((rows, 1), self.push, np.float32), None


def workplace(
    folder: Path, *, default: int | None = None, **budget: Any
) -> MethodContext:
    """Return a context, by default of 40 gradient steps, and 80 at most."""
    budget = {"num_steps": 40, "max_steps": 80, **budget}
    problem = Problem(env="test/Line-fixed-v0", dataset="test/line-v0")
    cell = Cell(problem=problem, method="random", evaluation=PLAN, **budget)
    files = CellFolder(folder, cell.id)
    files.prepare(cell)
    return MethodContext(cell, files, {}, num_steps=default)


def test_the_curve_has_its_points_once(tmp_path: Path) -> None:
    training = workplace(tmp_path)
    due = [step for step in range(1, 41) if training.curve_due(step)]
    assert due == [10, 20, 30, 40]
    for step in (10, 20, 20, 30):
        training.curve(step, Scripted(1.0))
    assert [point["step"] for point in training.curve_points] == [10, 20, 30]
    again = workplace(tmp_path)  # after a kill
    again.forget_curve(20)
    assert [point["step"] for point in again.curve_points] == [10, 20]


@pytest.mark.parametrize("left", ["", "\0\0\0", '{"attempts": '])
def test_a_clock_that_a_power_cut_damaged_begins_anew(
    tmp_path: Path, left: str
) -> None:
    training = workplace(tmp_path)
    training.count_time("train")
    assert workplace(tmp_path).seconds["attempts"] == 2
    for name in ("clock", "progress"):
        (training._files.path / f"{name}.json").write_text(left)
        assert training._files.read(name) is None
    again = workplace(tmp_path)
    assert again.seconds == {"attempts": 1}
    again.count_time("train")
    assert workplace(tmp_path).seconds["attempts"] == 2


@pytest.mark.parametrize("num_steps", [1, 3, 4, 5, 7, 40, 41, 999])
def test_the_curve_ends_with_the_budget(tmp_path: Path, num_steps: int) -> None:
    """No more points than are asked for (four), and one at the end."""
    training = workplace(tmp_path, num_steps=num_steps, max_steps=None)
    due = [step for step in range(1, num_steps + 1) if training.curve_due(step)]
    assert due[-1] == num_steps
    assert len(due) in range(min(num_steps, 3), 5)


def test_returns_that_are_not_finite_end_it_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = workplace(tmp_path)
    make = training.make_env

    def poisoned() -> Any:
        return gym.wrappers.TransformReward(make(), lambda _: math.nan)

    monkeypatch.setattr(training, "make_env", poisoned)
    with pytest.raises(EnvContractError, match=r"seed 7 in test/Line-fixed-v0 is nan"):
        training.evaluate(Scripted(1.0), seed=7, episodes=2)


def test_progress_is_told_now_and_then_and_when_the_stage_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = workplace(tmp_path)
    clock = iter([100.0, 100.5, 100.6, 100.7, 103.0])
    stopped = types.SimpleNamespace(**{**vars(time), "time": clock.__next__})
    monkeypatch.setattr("diffuser_policy.benchmark.context.time", stopped)
    told = []
    for done, stage in ((0, "train"), (1, "train"), (0, "eval"), (1, "eval")):
        training.progress(done, 9, stage=stage)
        told.append(training._files.read("progress"))
    training.progress(2, 9, stage="eval")
    told.append(training._files.read("progress"))
    shown = [(item["stage"], item["done"]) for item in told]
    assert shown == [("train", 0), ("train", 0), ("eval", 0), ("eval", 0), ("eval", 2)]


def test_training_goes_on_while_its_curve_rises(tmp_path: Path) -> None:
    training = workplace(tmp_path)
    for index, push in enumerate((0.0, 0.3, 0.35, 0.4, 0.45, 0.51), start=1):
        training.curve(10 * index, Scripted(push))
    values = [np.mean(point["values"]) for point in training.curve_points]
    assert values == sorted(values)
    assert values[0] < values[-1]
    assert not training.finished(39)
    assert not training.finished(60)
    assert training.finished(80)  # but not for ever
    for step in range(70, 121, 10):
        training.curve(step, Scripted(1.0))
    assert training.finished(60)


def test_without_a_curve_training_ends_with_its_budget(tmp_path: Path) -> None:
    training = workplace(tmp_path)
    assert not training.finished(39)
    assert training.finished(40)


def test_actions_are_checked_while_the_curve_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="outside of the action space"):
        workplace(tmp_path).curve(10, Scripted(1.5))


@pytest.mark.parametrize(("low", "high"), [(0.0, np.inf), (-np.inf, 0.0)])
def test_actions_are_checked_where_they_have_one_bound(low: float, high: float) -> None:
    space = gym.spaces.Box(low, high, (1,))
    rows = {"observation": np.zeros((2, 1))}
    inside, outside = (5.0, -5.0) if low == 0 else (-5.0, 5.0)
    for push in (inside, 0.0, outside * 1e-9):
        CheckedPolicy(Scripted(push), space, "mine").predict(rows)
    with pytest.raises(ConfigError, match=r"outside of the action space: \[-?5\.0\]"):
        CheckedPolicy(Scripted(outside), space, "mine").predict(rows)


def test_an_action_without_a_row_is_refused() -> None:
    class Bare(Scripted):
        def predict(self, *_: Any, **__: Any) -> Any:
            return np.float32(0.5), None

    checked = CheckedPolicy(Bare(0.5), gym.spaces.Box(-1.0, 1.0, ()), "mine")
    with pytest.raises(ConfigError, match=r"actions of shape \(\)"):
        checked.predict({"observation": np.zeros((1, 1))})


def test_policies_that_fit_themselves_to_an_environment_are_checked_as_well(
    tmp_path: Path,
) -> None:
    class Fitted(Scripted):
        def for_env(self, env: Any) -> Fitted:  # noqa: ARG002 (one for all)
            return Fitted(2 * self.push)

    training = workplace(tmp_path)
    with pytest.raises(ConfigError, match="outside of the action space"):
        training.evaluate(Fitted(0.75), seed=0, episodes=1)
    found = training.evaluate(Fitted(0.5), seed=0, episodes=1)
    assert found.settings["policy"]["class"] == "Fitted"
    found = training.evaluate(Scripted(0.5), seed=0, episodes=1)
    assert found.settings["policy"]["class"] == "Scripted"


def test_without_a_budget_training_would_have_no_end(tmp_path: Path) -> None:
    none: dict[str, Any] = {"num_steps": None, "max_steps": None}
    assert workplace(tmp_path, default=7, **none).finished(7)
    with pytest.raises(ConfigError, match="--budget"):
        workplace(tmp_path, **none).finished(7)
