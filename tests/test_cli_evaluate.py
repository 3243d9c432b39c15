"""`diffuser-policy evaluate`: options, report, results on disk, and refusals."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import os
import re
import shutil
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import tyro
from gymnasium import wrappers
from gymnasium.envs.registration import EnvSpec

from diffuser_policy.checkpoint import CARD, read_planner
from diffuser_policy.cli import main
from diffuser_policy.cli.options import (
    PlanningOptions,
    load_policy,
    note_unfinished,
    parse_assignments,
    unregistered,
)
from diffuser_policy.config import ExecutionConfig, PlannerConfig
from diffuser_policy.envs import env_spec
from diffuser_policy.errors import ConfigError
from diffuser_policy.evaluation import evaluate
from diffuser_policy.evaluation.report import to_json
from diffuser_policy.needs import PLANNING_NEEDS
from diffuser_policy.policy import DiffuserPolicy
from tests.point_env import POINT, save_planner
from tests.training_helpers import pendulum_policy

Capture = pytest.CaptureFixture[str]


def test_evaluation_is_printed_and_written(
    planner: str, tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "results" / "point.json"
    status = main(
        [
            *("evaluate", planner, "--episodes", "5", "--seed", "3"),
            *("--num-envs", "2", "--num-sampling-steps", "3", "--num-candidates", "1"),
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


def test_the_model_card_gets_the_figures(
    planner: str, tmp_path: Path, capsys: Capture
) -> None:
    folder = tmp_path / "planner"
    shutil.copytree(planner, folder)
    options = ("--episodes", "4", "--card")
    assert main(["evaluate", str(folder), *options, "--seed", "7"]) == 0
    assert main(["evaluate", str(folder), *options]) == 0  # replaces these
    config = read_planner(folder)[0]
    kept = config.provenance["results"][POINT]
    result = evaluate(DiffuserPolicy.from_pretrained(planner), POINT, episodes=4)
    success = result.summary()["success_rate"]
    assert success is not None
    assert kept["success_rate"]["mean"] == success.mean
    assert (kept["episodes"], kept["first_seed"]) == (4, 0)
    assert f"| {POINT} | 4 | " in (folder / CARD).read_text(encoding="utf-8")
    before = (folder / CARD).read_bytes()
    capsys.readouterr()
    others = (
        ["--temperature", "0.5"],
        ["--env-option", "max_episode_steps=3"],
        ["--guide", "waypoint:position=0,0"],
        ["--deterministic"],
    )
    for other in others:
        assert main(["evaluate", str(folder), *options, *other]) == 2
        assert "this evaluation has others: " in capsys.readouterr().err
    assert main(["evaluate", "multi2d-umaze", *options]) == 2
    assert "'multi2d-umaze' is no folder" in capsys.readouterr().err
    assert (folder / CARD).read_bytes() == before


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_any_encoding_of_the_terminal_will_do(
    planner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    """Bars and dashes of the table are not in all of them."""
    output = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", output)
    arguments = ["evaluate", planner, "--episodes", "1"]
    assert main([*arguments, "--json", str(tmp_path / "r.json")]) == 0
    assert (tmp_path / "r.json").exists()
    assert output.errors == "strict"
    assert b"interval" in output.buffer.getvalue()


class Lost(io.StringIO):
    """Standard output that takes nothing."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.error = error

    def write(self, _: str) -> int:
        raise self.error

    def fileno(self) -> int:
        """Return a descriptor that may be redirected."""
        return os.open(os.devnull, os.O_WRONLY)


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 141, ""),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "No space left"),
    ],
)
def test_results_are_written_even_if_nobody_can_read_the_table(
    planner: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    error: OSError,
    status: int,
    told: str,
) -> None:
    monkeypatch.setattr(sys, "stdout", Lost(error))
    arguments = ["evaluate", planner, "--episodes", "1"]
    assert main([*arguments, "--json", str(tmp_path / "r.json")]) == status
    assert json.loads((tmp_path / "r.json").read_text())["episodes"]
    assert told in capfd.readouterr().err


def test_a_planner_does_not_choose_what_is_imported(
    planner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    (tmp_path / "helper.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "planner"
    shutil.copytree(planner, folder)
    data = json.loads((folder / "config.json").read_text())
    data["provenance"]["dataset"]["env_id"] = "helper/X-v0"
    (folder / "config.json").write_text(json.dumps(data))
    for command in ("evaluate", "plan", "speed"):
        assert main([command, str(folder)]) == 2
        told = capsys.readouterr().err
        assert "--env MODULE:helper/X-v0" in told
    assert main(["info", str(folder)]) == 0


def test_a_log_gets_lines_until_the_table(
    planner: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    arguments = ["evaluate", planner, "--episodes", "3", "--num-envs", "1"]
    assert main(arguments) == 0
    assert "episodes after" not in capsys.readouterr().err
    monkeypatch.setattr("diffuser_policy.cli.evaluate.LINE_INTERVAL", 0.0)
    assert main(arguments) == 0
    line = r"(\d) of 3 episodes after 0:0\d:\d\d: score [\d.]+, success [01]\.\d\d\n"
    assert re.findall(line, capsys.readouterr().err) == ["1", "2"]


class _Closed(io.StringIO):
    """Standard error that nobody reads any more."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(text)


def test_results_survive_a_log_that_nobody_reads(
    planner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "results.json"
    monkeypatch.setattr("diffuser_policy.cli.evaluate.LINE_INTERVAL", 0.0)
    monkeypatch.setattr(sys, "stderr", _Closed())
    arguments = ["evaluate", planner, "--episodes", "2", "--num-envs", "1"]
    assert main([*arguments, "--json", str(path)]) == 0
    assert json.loads(path.read_text())["settings"]["episodes"] == 2


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
    ("env_id", "is_noted"),
    [("test/Point-v7", True), (POINT, False), (f"tests.point_env:{POINT}", False)],
)
def test_another_version_of_the_environment_is_noted(
    env_id: str,
    is_noted: bool,
    planner: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    other = EnvSpec("test/Point-v7", gym.spec(POINT).entry_point, max_episode_steps=30)
    monkeypatch.setitem(gym.registry, "test/Point-v7", other)
    assert main(["evaluate", planner, "--env", env_id, "--episodes", "1"]) == 0
    told = capsys.readouterr().err
    noted = f"note: {planner} was trained on data of {POINT}. In test/Point-v7, another"
    assert (noted in told) == is_noted


def recorded_in(env: gym.Env[Any, Any], folder: Path) -> str:
    """Save a planner for Pendulum that says its data was recorded in this one."""
    assert env.spec is not None
    pendulum_policy(env_spec=env.spec.to_json()).save_pretrained(folder)
    env.close()
    return str(folder)


def test_settings_that_the_data_was_recorded_with_are_noted(
    tmp_path: Path, capsys: Capture
) -> None:
    env = gym.make("Pendulum-v1", g=2.0, max_episode_steps=30)
    planner = recorded_in(env, tmp_path / "planner")
    settings = ["--env-option", "g=2.0", "--env-option", "max_episode_steps=30"]
    arguments = ["evaluate", planner, "--episodes", "1", "--num-envs", "1"]
    assert main([*arguments, *settings[:2], "--env-option", "max_episode_steps=2"]) == 0
    assert "note:" not in capsys.readouterr().err
    assert main([*arguments, *settings[2:]]) == 0
    told = capsys.readouterr().err
    assert "was recorded in Pendulum-v1 with g=2.0, which the" in told
    assert "give --env-option g=2.0.\n" in told
    for same in ("Pendulum-v1", "gymnasium:Pendulum-v1"):
        assert main([*arguments, "--env", same, *settings[2:]]) == 0
        told = capsys.readouterr().err
        assert "was recorded in Pendulum-v1 with g=2.0, which the" in told
    assert main([*arguments, "--env", "Pendulum-v1", *settings]) == 0
    assert "note:" not in capsys.readouterr().err
    assert main(["plan", planner, "--out", str(tmp_path / "plan")]) == 0
    told = capsys.readouterr().err
    assert "with g=2.0 and max_episode_steps=30, which" in told
    assert "name a function that makes it: --env MODULE:FUNCTION.\n" in told


def test_wrappers_that_the_data_was_recorded_in_are_noted(
    tmp_path: Path, capsys: Capture
) -> None:
    def wrapped() -> gym.Env[Any, Any]:
        env = wrappers.RecordEpisodeStatistics(gym.make("Pendulum-v1"))
        return wrappers.NormalizeObservation(env)

    planner = recorded_in(wrapped(), tmp_path / "planner")
    arguments = ["evaluate", planner, "--episodes", "1", "--num-envs", "1"]
    assert main([*arguments, "--env-option", "max_episode_steps=2"]) == 0
    told = capsys.readouterr().err
    normalized = "NormalizeObservation(epsilon=1e-08)"
    assert f"in Pendulum-v1 with the wrapper {normalized}, which the" in told
    assert "--env MODULE:FUNCTION" in told


@pytest.mark.parametrize("recorded", ["", "garbage", "[1]", '{"kwargs": 5}', None, 5])
def test_registrations_that_cannot_be_read_note_nothing(recorded: Any) -> None:
    assert unregistered(recorded, "Pendulum-v1") == ({}, [])


def test_what_the_registration_says_itself_is_not_noted() -> None:
    for env_id in (POINT, "Hopper-v5", "diffuser_envs/KukaStack-Conditional-v1"):
        assert unregistered(env_spec(env_id).to_json(), env_id) == ({}, [])
    endless = dataclasses.replace(gym.spec(POINT), max_episode_steps=1_000_000)
    assert unregistered(endless.to_json(), POINT) == ({}, [])
    assert unregistered(endless.to_json(), "test/Unknown-v0") == ({}, [])


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        ([], {}),
        (["--num-sampling-steps", "4"], {"num_sampling_steps": 4}),
        (["--num-sampling-steps", "None"], {"num_sampling_steps": None}),
        (["--no-goal-velocity"], {"goal_velocity": False}),
        (["--warm-start", "None", "--horizon", "fixed"], None),
        (["--step-spacing", "log-snr", "--ranking", "time_to_goal"], None),
    ],
)
def test_options_are_the_settings_that_were_given(
    arguments: list[str], settings: dict[str, Any] | None
) -> None:
    if settings is None:
        names = [name[2:].replace("-", "_") for name in arguments[::2]]
        values = [None if value == "None" else value for value in arguments[1::2]]
        settings = dict(zip(names, values, strict=True))
    options = tyro.cli(PlanningOptions, args=arguments)
    assert options.settings == settings


def test_every_planning_and_execution_setting_is_an_option(
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = {f.name for f in [*fields(PlannerConfig), *fields(ExecutionConfig)]}
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    shown = capsys.readouterr().out
    for name in names:
        assert re.search(rf"--{name.replace('_', '-')}(?![\w-])", shown), name
    assert names >= PLANNING_NEEDS.keys()


def test_ddpm_takes_all_steps_unless_told_otherwise(planner: str) -> None:
    def steps(**settings: Any) -> int:
        options = PlanningOptions(settings={"sampler": "ddpm", **settings})
        return load_policy(planner, options, seed=0).planner.sampler.num_steps

    assert (steps(), steps(num_sampling_steps=4)) == (8, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env", "test/Pont-v0"], "Did you mean 'test/Point-v0'"),
        (["--env", "Pendulum-v1"], "expects the observation space"),
        (["--env", ""], "Unknown environment ''"),
        (["--episodes", "0"], "episodes must be at least 1"),
        (["--num-candidates", "0"], "num_candidates must be positive"),
        (["--num-sampling-steps", "999"], "trained with 8 denoising steps"),
        (["--steadiness", "0.1"], "steadiness has no effect with replan_interval=None"),
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


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("False", False), ("TRUE", True), ("None", None), ("none", None)),
        *(('"False"', "False"), ("falsehood", "falsehood")),
    ],
)
def test_flags_and_none_are_written_in_any_case(text: str, value: Any) -> None:
    assert parse_assignments([f"a={text}"], option="--env-option") == {"a": value}


@pytest.mark.parametrize("texts", [["a"], ["=1"], ["a b=1"], ["a=1", "a=2"]])
def test_assignments_are_checked(texts: list[str]) -> None:
    with pytest.raises(ConfigError, match="--env-option"):
        parse_assignments(texts, option="--env-option")


def test_missing_planners_are_explained(tmp_path: Path, capsys: Capture) -> None:
    assert main(["evaluate", str(tmp_path / "nothing")]) == 2
    assert "there is no such folder" in capsys.readouterr().err


def test_results_that_cannot_be_written_stop_it_at_once(
    planner: str, tmp_path: Path, capsys: Capture
) -> None:
    assert main(["evaluate", planner, "--json", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert "is a folder; name a file" in captured.err
    assert captured.out == ""


def test_a_training_that_has_not_ended_is_noted(capsys: Capture) -> None:
    def origin(done: Any, due: int) -> dict[str, Any]:
        return {"steps": done, "training": {"optimization": {"num_steps": due}}}

    note_unfinished("mine", {**origin(2000, 2000), "value": origin(None, 3)})
    assert not capsys.readouterr().err
    note_unfinished("mine", {**origin(1500, 2000), "critic": origin(1, 3)})
    told = capsys.readouterr().err
    assert "the planner of mine has been trained for 1,500 of 2,000 gradient" in told
    assert "the critic of mine has been trained for 1 of 3 gradient steps" in told


def test_planners_without_an_environment_need_one(
    tmp_path: Path, capsys: Capture
) -> None:
    assert main(["evaluate", save_planner(tmp_path, None)]) == 2
    assert "--env ID" in capsys.readouterr().err
