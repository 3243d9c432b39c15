"""`diffuser-policy benchmark`: its help, its lists, and what it refuses to begin."""

from __future__ import annotations

import io
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from rich.console import Console

from diffuser_policy.benchmark.cells import CellFolder
from diffuser_policy.benchmark.problem import Problem
from diffuser_policy.benchmark.runner import Display, Watched, live_table
from diffuser_policy.benchmark.suites import SUITES, load_suite
from diffuser_policy.cli import main
from diffuser_policy.cli.benchmark import RunSettings
from diffuser_policy.data.collection import collect_episodes
from diffuser_policy.errors import MissingExtraError
from tests.benchmark_helpers import write_suite
from tests.point_env import PointEnv

Capture = pytest.CaptureFixture[str]
PLAIN = "test/plain-points-v0"


def refused(capsys: Capture, *arguments: str | Path) -> str:
    """Run a command that has to fail before anything is run; returns what it said."""
    assert main(["benchmark", *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    return " ".join(captured.err.split())


@pytest.mark.parametrize("command", ["run", "report", "suites"])
def test_help_answers_at_once(command: str) -> None:
    code = (
        "import sys\n"
        "from diffuser_policy.cli import main\n"
        "try:\n"
        f"    main(['benchmark', '{command}', '--help'])\n"
        "finally:\n"
        "    print(sorted({'torch', 'gymnasium', 'ray', 'submitit'} & {*sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"usage: diffuser-policy benchmark {command} [-h]" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_overview_names_the_commands_within_80_columns(capsys: Capture) -> None:
    for arguments, status in (([], 2), (["--help"], 0)):
        assert main(["benchmark", *arguments]) == status
        out = capsys.readouterr().out
        assert all(f"  {name} " in out for name in ("run", "report", "suites"))
        assert max(map(len, out.splitlines())) <= 80


def test_a_misspelled_command_gets_a_suggestion(capsys: Capture) -> None:
    assert "Did you mean 'report'" in refused(capsys, "repot")


def test_suites_are_listed(capsys: Capture) -> None:
    assert main(["benchmark", "suites"]) == 0
    out = capsys.readouterr().out
    for name in SUITES:
        [line] = [line for line in out.splitlines() if line.startswith(f"  {name} ")]
        assert line.split()[-1] == str(len(load_suite(name).cells()))


def test_a_suite_is_described(tmp_path: Path, capsys: Capture) -> None:
    suite = write_suite(tmp_path, "straight", seeds=(3, 4))
    assert main(["benchmark", "suites", str(suite)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert f"point: {tmp_path}/methods.py:straight" in out
    assert "goals: hindsight, data: test/missing-v0" in out
    assert "2 cells. Training seeds 3, 4; 100 gradient steps; evaluation" in out
    assert "4 episodes from each of the seeds 100, 200" in out


def test_a_suite_says_which_planners_are_not_trained(capsys: Capture) -> None:
    assert main(["benchmark", "suites", "tiny"]) == 0
    listed = "maze2d-umaze: diffuser (planner multi2d-umaze, not trained), bc\n"
    assert listed in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--methods", "diffusr"], "Unknown method 'diffusr'"),
        (["--methods", "{0}:strait"], "strait"),
        (["--methods", "{0}:slow", "{0}:slow"], "would share the cell folder"),
        (["--methods", "{0}:goalless"], "goals='hindsight'. Leave it out"),
        (["--methods", "{0}:luxury"], 'pip install ".[baselines]"'),
        (["--methods", "{0}:learner"], "collect tests.point_env:test/Point-v0"),
        (["--methods"], "--methods needs at least one value"),
        (["--problems", "pont"], "Did you mean 'point'"),
        (["--envs", "Point-v0"], "Known: point"),
        (["--seeds", "0", "0"], "Training seeds have to differ; got [0, 0]"),
        (["--seeds", "0,1"], "--seeds takes whole numbers with spaces between them"),
        (
            ["--seeds", "-1"],
            "A training seed must be a whole number from 0 to",
        ),
        (["--seeds"], "--seeds needs at least one value"),
        (["--budget", "0"], "num_steps must be positive, got 0"),
        (["--episodes", "0"], "episodes must be positive, got 0"),
        (["--episodes", "101"], "share episodes"),
        (["--engine-option", "x"], "--engine-option takes KEY=VALUE"),
        (["--engine-option", "mem_gb=4"], "takes no options, got 'mem_gb'"),
        (["--workers", "0"], "--workers must be at least 1, got 0"),
    ],
)
def test_bad_options_are_named_and_nothing_is_written(
    tmp_path: Path, capsys: Capture, options: list[str], told: str
) -> None:
    suite = write_suite(tmp_path, "straight")
    filled = [option.format(tmp_path / "methods.py") for option in options]
    error = refused(capsys, "run", suite, "--output", tmp_path / "out", *filled)
    assert told in error
    assert not (tmp_path / "out").exists()


def test_options_with_several_values_may_be_given_several_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in other commands, such as --guide; every cell counts."""
    suite = write_suite(tmp_path, "straight", "slow")
    chosen: list[tuple[str, int]] = []

    def keep(settings: RunSettings) -> int:
        chosen.extend((cell.method, cell.seed) for cell in settings.chosen()[1])
        return 0

    monkeypatch.setattr("diffuser_policy.cli.benchmark.run", keep)
    methods = [f"{tmp_path / 'methods.py'}:{name}" for name in ("straight", "slow")]
    twice = [word for name in methods for word in ("--methods", name)]
    words = [*twice, "--seeds", "0", "1", "--seeds", "2"]
    assert main(["benchmark", "run", str(suite), *words]) == 0
    assert len(chosen) == 6
    assert {seed for _, seed in chosen} == {0, 1, 2}
    assert len({method for method, _ in chosen}) == 2


def test_a_missing_extra_names_the_methods_that_need_it_and_those_that_do_not(
    tmp_path: Path, capsys: Capture
) -> None:
    suite = write_suite(tmp_path, "luxury", "straight", "opulent", "slow")
    told = refused(capsys, "run", suite, "--output", tmp_path / "out")
    luxury, straight, opulent, slow = (
        f"{tmp_path / 'methods.py'}:{name}"
        for name in ("luxury", "straight", "opulent", "slow")
    )
    needed = f"Each of the methods {luxury}, {opulent} needs the module"
    assert f"{needed} 'no_such_module'" in told
    others = shlex.join([straight, slow])
    assert told.endswith(f"To run the others: --methods {others}")
    assert not (tmp_path / "out").exists()
    only = ("--methods", luxury)
    told = refused(capsys, "run", suite, "--output", tmp_path / "out", *only)
    assert told.startswith(f"error: The method {luxury} needs the module")
    assert "To run the others" not in told


def test_a_missing_extra_names_the_problems_that_need_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Methods are not to blame, though checks of some make the environment."""
    suite = write_suite(tmp_path, "straight")
    text, made = suite.read_text() + "\n[methods.random]\n", Problem.make_env
    [problem] = re.findall(r"\[\[problems\]\](?:\n.+)+", text)
    far = problem.replace("\n", '\nlabel = "Far"\n', 1)
    suite.write_text(text.replace(problem, f"{far}\n\n{problem}"))

    def lacking(problem: Problem) -> Any:
        if problem.name == "far":
            raise MissingExtraError("no_such_module", "maze")
        return made(problem)

    monkeypatch.setattr(Problem, "make_env", lacking)
    told = refused(capsys, "run", suite, "--output", tmp_path / "out")
    assert told.startswith("error: The problem far needs the module 'no_such_module'")
    assert told.endswith("To run the others: --problems point")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("suite", "told"),
    [
        ("tniy", "Did you mean 'tiny'"),
        ("missing.toml", "There is no file missing.toml"),
    ],
)
def test_an_unknown_suite_is_refused_with_advice(
    capsys: Capture, suite: str, told: str
) -> None:
    assert told in refused(capsys, "run", suite)
    assert told in refused(capsys, "suites", suite)


@pytest.mark.parametrize(
    ("env", "told"),
    [
        ("tests.point_env:test/Pint-v0", "Unknown environment"),
        ("Pendulum-v1", "carry no desired_goal"),
    ],
)
def test_environments_that_do_not_fit(
    tmp_path: Path, capsys: Capture, env: str, told: str
) -> None:
    suite = write_suite(tmp_path, "straight", env=env)
    assert told in refused(capsys, "run", suite, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


class _Idle:
    """Does nothing."""

    def predict(self, *_: object, **__: object) -> tuple[np.ndarray, None]:
        return np.zeros(2, np.float32), None


@pytest.mark.parametrize("goals", ["hindsight", "none"])
def test_data_that_do_not_fit(tmp_path: Path, capsys: Capture, goals: str) -> None:
    limited = gym.wrappers.TimeLimit(PointEnv(), 5)
    env = gym.wrappers.FlattenObservation(limited)
    collect_episodes(
        env, _Idle(), num_episodes=2, dataset_id=PLAIN, overwrite=True, progress=False
    )
    env.close()
    suite = write_suite(tmp_path, "learner")
    text = suite.read_text().replace("test/missing-v0", PLAIN)
    suite.write_text(text.replace('"hindsight"', f'"{goals}"'))
    told = refused(capsys, "run", suite, "--output", tmp_path / "out")
    assert f"{PLAIN} is not of tests.point_env:test/Point-v0" in told
    assert not (tmp_path / "out").exists()


def test_the_table_shows_what_a_cell_told(tmp_path: Path) -> None:
    folder = CellFolder(tmp_path, "maze--bc--seed-0")
    watched = {"maze--bc--seed-0": Watched(folder)}
    watched["maze--bc--seed-0"].since -= 3725

    def shown() -> str:
        console = Console(file=io.StringIO(), width=100, record=True)
        console.print(live_table(watched, "2 of 9 cells finished"))
        return " ".join(console.export_text().split())

    assert shown().startswith("maze--bc--seed-0 starting 1:02:05")
    told = {"stage": "train", "done": 1200, "total": 50_000, "time": 0.0}
    folder.write("progress", {**told, "figures": {"loss": 0.25, "score": 12.34567}})
    expected = "maze--bc--seed-0 train 1,200/50,000 score 12.35 loss 0.25 1:02:05"
    assert shown() == f"{expected} 2 of 9 cells finished"
    (folder.path / "progress.json").write_text(json.dumps(told)[:10])
    assert "starting" in shown()


def test_a_terminal_gets_a_table_and_a_log_gets_lines(tmp_path: Path) -> None:
    watched = {"a--b--seed-0": Watched(CellFolder(tmp_path, "a--b--seed-0"))}
    terminal = Console(file=(drawn := io.StringIO()), force_terminal=True, width=90)
    with Display(terminal) as display:
        display.show(watched, "0 of 1 cells finished")
    assert "0 of 1 cells finished" in drawn.getvalue()
    log = Console(file=(text := io.StringIO()), width=30)
    with Display(log) as display:
        display.say("something that is longer than a line of [30] columns")
        display.show(watched, "0 of 1 cells finished")
        watched["a--b--seed-0"].since -= 61
        display.show(watched, "0 of 1 cells finished")
        display.show(watched, "0 of 1 cells finished")
    assert text.getvalue().splitlines() == [
        "something that is longer than a line of [30] columns",
        "a--b--seed-0: starting, 0:01:01",
    ]
