"""`diffuser-policy evaluate`: options, report, results on disk, and refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from diffuser_policy.cli import main
from diffuser_policy.cli.options import PlanningOptions, parse_assignments
from diffuser_policy.config import ExecutionConfig, PlannerConfig
from diffuser_policy.errors import ConfigError
from diffuser_policy.evaluation import evaluate
from diffuser_policy.evaluation.report import to_json
from diffuser_policy.policy import DiffuserPolicy
from tests.point_env import POINT, save_planner

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def planner(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_planner(tmp_path_factory.mktemp("planner"))


def test_evaluation_is_printed_and_written(
    planner: str, tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "results" / "point.json"
    status = main(
        [
            *("evaluate", planner, "--episodes", "5", "--seed", "3"),
            *("--num-envs", "2", "--steps", "3", "--candidates", "1"),
            *("--json", str(path)),
        ]
    )
    assert status == 0
    shown = capsys.readouterr().out
    assert "95 % interval" in shown
    assert "5 episodes, seeds 3–7, 2 environments at a time" in shown
    assert str(path) in shown.replace("\n", "")
    data = json.loads(path.read_text())
    assert data["settings"]["planner"] == planner
    assert data["settings"]["env"] == POINT  # known from the planner's data
    assert data["settings"]["policy"]["planner"]["num_sampling_steps"] == 3
    policy = DiffuserPolicy.from_pretrained(
        planner, seed=3, num_sampling_steps=3, num_candidates=1
    )
    same = evaluate(policy, POINT, episodes=5, seed=3, num_envs=2)
    assert data["episodes"] == json.loads(json.dumps(to_json(same)))["episodes"]


def test_deterministic_and_env_are_passed_on(
    planner: str, tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "maze.json"
    env = "diffuser_envs/Multi2D-UMaze-v1"
    arguments = ["evaluate", planner, "--env", env, "--episodes", "1"]
    assert main([*arguments, "--deterministic", "--json", str(path)]) == 0
    settings = json.loads(path.read_text())["settings"]
    assert (settings["env"], settings["deterministic"]) == (env, True)
    assert "Multi2D-UMaze" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ({}, {}),
        ({"steps": 4}, {"num_sampling_steps": 4}),
        ({"steps": "all"}, {"num_sampling_steps": None}),
        ({"sampler": "ddim"}, {"sampler": "ddim"}),
        ({"sampler": "ddpm"}, {"sampler": "ddpm", "num_sampling_steps": None}),
        ({"sampler": "ddpm", "steps": 4}, {"sampler": "ddpm", "num_sampling_steps": 4}),
        (
            {"candidates": 2, "horizon": "fixed"},
            {"num_candidates": 2, "horizon": "fixed"},
        ),
        ({"replan_interval": "never"}, {"replan_interval": None}),
        ({"steadiness": 0.0}, {"steadiness": 0.0}),
        ({"steadiness": "never"}, {"steadiness": None}),
        ({"replan_deviation": 0.5, "lookahead": 3.0}, None),
    ],
)
def test_options_become_settings(
    options: dict[str, Any], settings: dict[str, Any] | None
) -> None:
    expected = options if settings is None else settings
    assert PlanningOptions(**options).settings() == expected


def test_options_offer_the_choices_of_the_settings() -> None:
    choices = get_type_hints(PlannerConfig) | get_type_hints(ExecutionConfig)
    offered = get_type_hints(PlanningOptions)
    for name in ("sampler", "horizon", "ranking", "executor"):
        assert set(get_args(get_args(offered[name])[0])) == set(get_args(choices[name]))


def test_every_option_is_a_setting_of_the_policy(planner: str) -> None:
    options = PlanningOptions(
        sampler="ddim",
        steps=2,
        horizon="shrinking",
        candidates=3,
        ranking="first",
        executor="pursuit",
        position_gain=2.0,
        velocity_gain=0.5,
        lookahead=5.0,
        replan_interval=4,
        replan_deviation=0.3,
    )
    policy = DiffuserPolicy.from_pretrained(planner, **options.settings())
    assert policy.config.planner.num_candidates == 3
    assert policy.config.execution.replan_deviation == 0.3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env", "test/Pont-v0"], "Did you mean 'test/Point-v0'"),
        (["--env", "Pendulum-v1"], "expects the observation space"),
        (["--episodes", "0"], "episodes must be at least 1"),
        (["--candidates", "0"], "num_candidates must be positive"),
        (["--steps", "999"], "trained with 8 denoising steps"),
        (["--steadiness", "0.1"], "--steadiness has no effect without --replan"),
        (["--env-option", "terminate"], "takes KEY=VALUE"),
        (["--env-option", "size=3"], "cannot be made with {'size': 3}"),
    ],
)
def test_mistakes_are_explained(
    planner: str, arguments: list[str], message: str, tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "new" / "folder" / "results.json"
    assert main(["evaluate", planner, *arguments, "--json", str(path)]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_options_of_the_environment_are_passed_on(planner: str, tmp_path: Path) -> None:
    path = tmp_path / "point.json"
    options = ("--env-option", "terminate=false", "--env-option", "max_episode_steps=4")
    arguments = ("evaluate", planner, "--episodes", "2", "--json", str(path))
    assert main([*arguments, *options]) == 0
    data = json.loads(path.read_text())
    assert data["settings"]["env_options"] == {
        "terminate": False,
        "max_episode_steps": 4,
    }
    assert [episode["length"] for episode in data["episodes"]] == [4, 4]


def test_assignments_are_json_or_plain_text() -> None:
    texts = ["a=0.01", "b=magic", "c=[1, 2]", "d=null", "e=x=y", 'f="7"', "g="]
    settings = parse_assignments(texts, option="--env-option")
    values = [0.01, "magic", [1, 2], None, "x=y", "7", ""]
    assert settings == dict(zip("abcdefg", values, strict=True))


@pytest.mark.parametrize("texts", [["a"], ["=1"], ["a b=1"], ["a=1", "a=2"]])
def test_assignments_are_checked(texts: list[str]) -> None:
    with pytest.raises(ConfigError, match="--env-option"):
        parse_assignments(texts, option="--env-option")


def test_missing_planners_are_explained(tmp_path: Path, capsys: Capture) -> None:
    assert main(["evaluate", str(tmp_path / "nothing")]) == 2
    assert "no folder of that path" in capsys.readouterr().err


def test_results_that_cannot_be_written_stop_it_at_once(
    planner: str, tmp_path: Path, capsys: Capture
) -> None:
    assert main(["evaluate", planner, "--json", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert "is a folder; name a file" in captured.err
    assert captured.out == ""


def test_planners_without_an_environment_need_one(
    tmp_path: Path, capsys: Capture
) -> None:
    assert main(["evaluate", save_planner(tmp_path, None)]) == 2
    assert "--env ID" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["evaluate", "plan", "train", "info"])
def test_help_needs_neither_torch_nor_a_simulator(command: str) -> None:
    script = (
        "import sys\n"
        "from diffuser_policy.cli import main\n"
        "try:\n"
        f"    main([{command!r}, '--help'])\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0\n"
        "heavy = {'torch', 'mujoco', 'matplotlib', 'gymnasium', 'numpy'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"usage: diffuser-policy {command}" in done.stdout
