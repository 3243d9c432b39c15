"""Inputs that once ended in a traceback: each is refused in a sentence."""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from diffuser_policy import DiffuserPolicy, make_guide
from diffuser_policy.benchmark.cells import Cell, EvaluationProtocol
from diffuser_policy.benchmark.problem import Problem
from diffuser_policy.benchmark.suites import Suite, load_suite
from diffuser_policy.cli import main
from diffuser_policy.columns.labels import labelled
from diffuser_policy.columns.layout import TrajectoryLayout
from diffuser_policy.config import (
    OptimizationConfig,
    PlannerConfig,
    TrainConfig,
    WindowConfig,
)
from diffuser_policy.data.collection import collect_episodes
from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.data.foreign import import_file
from diffuser_policy.data.minari import dataset_folder, load_flat
from diffuser_policy.diffusion.conditions import Conditions
from diffuser_policy.envs import make_env
from diffuser_policy.errors import (
    CheckpointNotFoundError,
    ConditionError,
    ConfigError,
    DatasetError,
    DatasetNotFoundError,
    GuideError,
    MemoryLimitError,
    ObservationError,
    StorageError,
    UnknownNameError,
)
from diffuser_policy.evaluation import evaluate
from diffuser_policy.testing import check_policy, toy_config, toy_dataset, toy_policy
from diffuser_policy.training.trainer import Trainer
from tests.planner_helpers import LAYOUT
from tests.point_env import PointEnv
from tests.policy_helpers import observe

HUGE = 10**400
LONG = "x" * 300
PROBLEM = Problem(env="diffuser_envs/Multi2D-UMaze-v1", dataset="a/b-v0")
MAZE = "diffuser_envs/Multi2D-UMaze-v1"
none: Any = None


class Predicts:
    """Has no spaces."""

    def predict(self, *_: Any) -> None:
        """Return nothing."""


REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no guide": (lambda: make_guide(none), GuideError, "is a text, got None"),
    "a huge radius": (
        lambda: make_guide("keep-out", center=(3, 4), radius=HUGE),
        GuideError,
        "too large",
    ),
    "a huge factor": (
        lambda: HUGE * make_guide("smoothness"),
        GuideError,
        "factor must be finite",
    ),
    "half a candidate": (
        lambda: PlannerConfig(num_candidates=2.5),  # type: ignore[arg-type]
        ConfigError,
        "num_candidates must be a whole number, got 2.5",
    ),
    "huge candidates": (
        lambda: PlannerConfig(num_candidates=HUGE),
        ConfigError,
        r"num_candidates must be a whole number, got 10+…\. That is too large",
    ),
    "thousands of digits": (
        lambda: PlannerConfig(num_candidates=10**5000),
        ConfigError,
        "a number with thousands of digits",
    ),
    "a text for a table": (
        lambda: TrainConfig(dataset="a/b-v0", network=5),  # type: ignore[arg-type]
        ConfigError,
        "network must be a table",
    ),
    "an average from before": (
        lambda: OptimizationConfig(ema_start=-5),
        ConfigError,
        "ema_start must be 0 or more",
    ),
    "more environments than memory": (
        lambda: toy_policy().initial_state(10**15),
        MemoryLimitError,
        "1,000,000,000,000,000 environments",
    ),
    "a huge observation": (
        lambda: toy_policy().predict({**observe(), "observation": [HUGE, 0, 0, 0]}),
        ObservationError,
        "is not numeric",
    ),
    "a complex observation": (
        lambda: toy_policy().predict({**observe(), "observation": np.zeros(4, "c8")}),
        ObservationError,
        "is not numeric",
    ),
    "a date": (
        lambda: toy_policy().predict(
            {**observe(), "observation": np.zeros(4, "M8[s]")}
        ),
        ObservationError,
        "is not numeric",
    ),
    "a tensor with a gradient": (
        lambda: toy_policy().predict(
            {**observe(), "observation": torch.zeros(4, requires_grad=True)}
        ),
        ObservationError,
        "is not numeric",
    ),
    "rows of two lengths": (
        lambda: toy_policy().predict([1, [2]]),
        ObservationError,
        "lacks",
    ),
    "conditions": (
        lambda: toy_policy().plan(observe(), conditions="x"),  # type: ignore[arg-type]
        ConditionError,
        "Make conditions with Conditions",
    ),
    "a huge condition": (
        lambda: Conditions().pin(0, "goal", [HUGE, 0]),
        ConditionError,
        "needs a planning step and numbers",
    ),
    "no columns": (
        lambda: Conditions().pin(0, none, [1.0, 0.0]),
        ConditionError,
        "names its columns",
    ),
    "no planner": (
        lambda: DiffuserPolicy.from_pretrained(none),
        CheckpointNotFoundError,
        "a text that names a file, got None",
    ),
    "a name of 300 characters": (
        lambda: DiffuserPolicy.from_pretrained("x" * 300),
        CheckpointNotFoundError,
        "at most 255",
    ),
    "a dataset of 300 characters": (
        lambda: dataset_folder(f"ab/{LONG}-v0"),
        ConfigError,
        "at most 255 bytes",
    ),
    "a dataset of 130 characters that take 260 bytes": (
        lambda: load_flat(f"ab/{'é' * 130}-v0"),
        DatasetNotFoundError,
        "at most 255 bytes",
    ),
    "a path without an end": (
        lambda: FlatDataset.load("a/" * 3000),
        DatasetNotFoundError,
        "paths 4,095",
    ),
    "a folder with NUL": (
        lambda: toy_policy().save_pretrained("a\0b"),
        StorageError,
        "without the character NUL",
    ),
    "a folder that is no text": (
        lambda: Trainer(toy_config(), toy_dataset(), "\ud800"),
        StorageError,
        "names a file, got '.ud800'",
    ),
    "no file": (
        lambda: import_file(none, "Pendulum-v1"),
        DatasetNotFoundError,
        "names a file, got None",
    ),
    "no environment": (lambda: make_env(none), ConfigError, "named by a text.* None"),
    "a function that makes no environment": (
        lambda: evaluate(toy_policy(), lambda: none),
        ConfigError,
        "lambda.* returned NoneType None instead of a gymnasium.Env",
    ),
    "a number that makes no environment": (
        lambda: collect_episodes(5, toy_policy(), num_episodes=1, dataset_id="ab/c-v0"),  # type: ignore[arg-type]
        ConfigError,
        r"Pass one gymnasium\.Env .*, or an id such as 'Pendulum-v1'; got int 5",
    ),
    "several environments to record": (
        lambda: collect_episodes(
            gym.vector.SyncVectorEnv([PointEnv] * 2),  # type: ignore[arg-type]
            toy_policy(),
            num_episodes=1,
            dataset_id="ab/c-v0",
        ),
        ConfigError,
        "not a vector environment.* got SyncVectorEnv",
    ),
    "several environments to import for": (
        lambda: import_file(__file__, gym.vector.SyncVectorEnv([PointEnv])),  # type: ignore[arg-type]
        ConfigError,
        "not a vector environment.* got SyncVectorEnv",
    ),
    "a policy by its name": (
        lambda: evaluate("multi2d-umaze", MAZE),
        ConfigError,
        "'multi2d-umaze' lacks. DiffuserPolicy.from_pretrained",
    ),
    "no policy to check": (
        lambda: check_policy(5),
        ConfigError,
        "predict, which 5 lacks",
    ),
    "a policy without spaces": (
        lambda: check_policy(Predicts()),
        ConfigError,
        "observation_space must be a space .* got None. Pass that of the",
    ),
    "a batch of one to check": (
        lambda: check_policy(toy_policy(), num_envs=1),
        ConfigError,
        "num_envs must be at least 2",
    ),
    "a seed to check with": (
        lambda: check_policy(toy_policy(), seed=-1),
        ConfigError,
        "seed must be a whole number",
    ),
    "half an episode": (
        lambda: evaluate(toy_policy(), MAZE, episodes=2.5),  # type: ignore[arg-type]
        ConfigError,
        "episodes must be a whole number",
    ),
    "options in a list": (
        lambda: evaluate(toy_policy(), MAZE, env_options=[1]),  # type: ignore[arg-type]
        ConfigError,
        "env_options .* are names and values",
    ),
    "options of a wrong kind": (
        lambda: evaluate(toy_policy(), MAZE, env_options={"render_mode": [1, 2]}),
        ConfigError,
        "cannot be made with",
    ),
    "an environment of no module": (
        lambda: evaluate(toy_policy(), "no.such.mod:Foo"),
        UnknownNameError,
        "no module 'no.such.mod'",
    ),
    "a suite out of its folder": (
        lambda: Suite(name="../../x", problems=(PROBLEM,), methods={"bc": {}}),
        ConfigError,
        "name of a suite",
    ),
    "no suite": (lambda: load_suite(none), UnknownNameError, "Unknown suite 'None'"),
    "a suite of 300 characters": (
        lambda: load_suite("x" * 300 + ".toml"),
        ConfigError,
        "There is no file",
    ),
    "a problem without a name": (
        lambda: Problem(env=5, dataset=none),  # type: ignore[arg-type]
        ConfigError,
        "env must be a text",
    ),
    "a cell with half a seed": (
        lambda: Cell(problem=PROBLEM, method="bc", seed=0.5),  # type: ignore[arg-type]
        ConfigError,
        "seed must be a whole number",
    ),
    "half an evaluation": (
        lambda: EvaluationProtocol(episodes=2.5),  # type: ignore[arg-type]
        ConfigError,
        "episodes must be a whole number",
    ),
    "half a column": (
        lambda: TrajectoryLayout(action_dim=2.5, observation_dim=1),  # type: ignore[arg-type]
        ConfigError,
        "action_dim must be a whole number",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_odd_inputs_are_refused_in_a_sentence(name: str) -> None:
    call, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        call()


# --- data and labels ------------------------------------------------------------------


def single_steps() -> FlatDataset:
    """Return data in which every run has one step."""
    flat = toy_dataset()
    fields = {name: values[:30] for name, values in flat.fields.items()}
    return dataclasses.replace(flat, fields=fields, run_starts=np.arange(31))


def test_runs_of_one_step_have_no_time_to_a_goal(tmp_path: Path) -> None:
    window = WindowConfig(horizon=16, padding="repeat")
    with pytest.raises(DatasetError, match="longest continuous run has 1 step"):
        Trainer(toy_config(), single_steps(), tmp_path)
    with pytest.raises(DatasetError, match="a single step"):
        Trainer(toy_config(window=window), single_steps(), tmp_path / "a").run()
    Trainer(
        toy_config(window=window, time_to_goal=None), single_steps(), tmp_path / "b"
    ).run(progress=False)


@pytest.mark.parametrize("interval", [0, -1, 2.5, "a", None])
def test_checkpoints_are_a_whole_number_of_steps_apart(
    interval: Any, tmp_path: Path
) -> None:
    trainer = Trainer(toy_config(), toy_dataset(), tmp_path)
    with pytest.raises(ConfigError, match="--save-interval"):
        trainer.run(save_interval=interval)
    assert trainer.step == 0


def fails(columns: Any) -> Any:
    return columns["position"] / None


def half(columns: Any) -> dict[str, Any]:
    return {"half": np.full(len(columns["position"]), 0.5)}


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        ("fails", ConfigError, "failed: TypeError"),
        ("half", DatasetError, r"true or false in each row; 'half' holds \[0.5\]"),
    ],
)
def test_labels_that_fail_are_named(
    labels: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        labelled(f"{__file__}:{labels}", np.zeros((3, 6), np.float32), LAYOUT)


# --- the command line -----------------------------------------------------------------

COMMANDS: dict[str, tuple[list[str], str]] = {
    "a module that is not there": (
        ["evaluate", "multi2d-umaze", "--env", "no.such.mod:Foo"],
        "no module 'no.such.mod'",
    ),
    "an option of a wrong kind": (
        ["evaluate", "multi2d-umaze", "--env-option", "render_mode=[1,2]"],
        "cannot be made with",
    ),
    "a long name": (["evaluate", LONG], "at most 255"),
    "a long suite": (["benchmark", "run", f"{LONG}.toml"], "There is no file"),
    "a long report": (["benchmark", "report", LONG], "name"),
    "a huge number": (
        ["evaluate", "multi2d-umaze", "--num-candidates", str(HUGE)],
        "too large",
    ),
    "many episodes": (
        ["evaluate", "multi2d-umaze", "--episodes", str(HUGE)],
        "too large",
    ),
    "many threads": (
        ["evaluate", "multi2d-umaze", "--threads", "100000000000"],
        "--threads must be",
    ),
    "a device that is not there": (
        ["train", "multi2d-umaze", "--device", "cuda:99"],
        "There is no device",
    ),
    "no interval": (["train", "multi2d-umaze", "--save-interval", "0"], "--save-int"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_explain_odd_inputs(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, message = COMMANDS[name]
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.EMFILE, "Too many open files", "a.json"), "ulimit"),
        (OSError(errno.ENAMETOOLONG, "File name too long"), "shorter name"),
        (MemoryError(), "Out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "Out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory."), "Out of memory"),
    ],
    ids=repr,
)
def test_a_machine_that_lacks_something_is_no_traceback(
    error: Exception,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("diffuser_policy.cli._dispatch", fail)
    assert main(["info"]) == 2
    assert message in capsys.readouterr().err


def test_faults_of_ours_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr("diffuser_policy.cli._dispatch", fail)
    with pytest.raises(RuntimeError, match="mat1"):
        main(["info"])
