"""The command line's front: overview, dispatch, and how failures are told."""

from __future__ import annotations

import subprocess
import sys
import types
from dataclasses import dataclass
from typing import Any

import pytest

from diffuser_policy.cli import COMMANDS, main
from diffuser_policy.cli.options import options_in
from diffuser_policy.cli.train_classifier import TrainClassifierSettings
from diffuser_policy.cli.train_critic import TrainCriticSettings
from diffuser_policy.cli.train_value import TrainValueSettings
from diffuser_policy.cli.training import CompanionSettings
from diffuser_policy.config import PlannerConfig
from diffuser_policy.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class StubSettings:
    """A stand-in for a subcommand."""

    fail: str = "no"
    """How to fail."""


def stub_plan(settings: StubSettings) -> int:
    """Fail as asked."""
    if settings.fail == "error":
        raise ConfigError("Horizon 7 is odd.\nChoose a multiple of 8.")
    if settings.fail == "interrupt":
        raise KeyboardInterrupt
    return 0


@pytest.mark.parametrize(
    "command",
    [
        TrainValueSettings(planner="mine"),
        TrainCriticSettings(planner="mine"),
        TrainClassifierSettings(planner="mine", labels="kuka-pairs"),
    ],
)
def test_networks_beside_the_planner_have_the_same_defaults_in_python(
    command: CompanionSettings,
) -> None:
    made = command.config("mine/data-v0")
    needed: dict[str, Any] = {}
    if command.part == "classifier":
        needed["labels"] = "kuka-pairs"
    assert made == command.config_type(dataset="mine/data-v0", **needed)


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `plan` the stand-in."""
    module = types.ModuleType("diffuser_policy.cli.plan")
    vars(module)["plan"] = stub_plan
    monkeypatch.setitem(sys.modules, "diffuser_policy.cli.plan", module)


@pytest.mark.parametrize(
    ("command", "message", "options"),
    [
        ("train", "hindsight_goal='goal' needs a goal", ["--window.hindsight-goal"]),
        ("train", "horizon must be a multiple, got 7.", ["--window.horizon"]),
        ("train", "needs horizon='fixed'", ["--planner.horizon"]),
        ("train", "num_steps must be positive", ["--num-steps"]),
        ("train", "Unknown value of executor 'no'", ["--execution.executor"]),
        ("train", "padding='repeat' (--window.padding)", []),
        ("train", "kernel_size must be odd, got 4.", []),  # of two networks
        ("train", "Lower batch_size (--batch-size).", []),
        ("train", "other settings: inverse_dynamics.max_steps: 8 → 9", []),
        ("collect", "other settings: env_id: a → b", []),
        ("train", "The longest run has 3 steps: a short horizon is needed.", []),
        ("evaluate", "replan_interval must be positive", ["--replan-interval"]),
        ("evaluate", "needs horizon='fixed'", ["--horizon"]),
        ("train-value", "pooling='flatten' values one length", ["--pooling"]),
        ("collect", "num_steps must be positive", ["--num-steps"]),
        ("collect", "The demonstrator 'x' has no option 'y'. Its options: seed=0.", []),
        ("collect", "The option 'action_noise' of the demonstrator 'x' must be", []),
        ("plan", "The guide 'x' needs z. Its parameters: tempo=1, z (required).", []),
    ],
)
def test_errors_name_options_beside_settings(
    command: str, message: str, options: list[str]
) -> None:
    assert options_in(message, command) == options


def test_candidates_that_would_be_the_same_name_the_options_of_the_command() -> None:
    with pytest.raises(ConfigError, match="would be identical") as caught:
        PlannerConfig(temperature=0.0, num_candidates=8)
    for command, prefix in (("train", "--planner."), ("evaluate", "--")):
        options = options_in(str(caught.value), command)
        assert {*options} == {f"{prefix}temperature", f"{prefix}num-candidates"}
    assert "--" not in str(caught.value)


@pytest.mark.parametrize("word", ["--critic.discount", "--critic.discount=2"])
def test_of_settings_of_one_name_that_which_was_given_is_meant(word: str) -> None:
    message = "discount must be in [0, 1], got 2.0."
    assert options_in(message, "train", ["train", word, "2"]) == ["--critic.discount"]


def test_an_error_ends_with_the_options_it_is_about(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["multi2d-umaze", "--horizon", "fixed", "--replan-interval", "5"]
    assert main(["evaluate", *arguments]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith("error: replan_interval with horizon='fixed' would keep")
    assert said.endswith("(--horizon, --replan-interval)")


@pytest.mark.parametrize("flag", ["--help", "-h", "help"])
def test_help_lists_every_command(
    flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The overview names each command with its summary, within 80 columns."""
    assert main([flag]) == 0
    out = capsys.readouterr().out
    for name, summary in COMMANDS.items():
        assert f"  {name}" in out
        assert summary in out
    assert max(map(len, out.splitlines())) <= 80


def test_no_command_shows_the_overview_and_fails(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A bare `diffuser-policy` in a script is a mistake, not a success."""
    assert main([]) == 2
    assert "usage: diffuser-policy" in capsys.readouterr().out


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """`--version` names the distribution and its version."""
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("diffuser-policy 0.")


def test_unknown_command_offers_the_nearest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A misspelt command is one clean message on standard error."""
    assert main(["evalute"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        "error: Unknown command 'evalute'. Did you mean 'evaluate' or 'train-value'? "
        "Known: benchmark, collect, evaluate, export, guides, import, info, plan, "
        "play, speed, train, train-classifier, train-critic, train-value.\n"
    )


@pytest.mark.usefixtures("stub")
def test_the_exit_status_of_a_command_is_passed_on() -> None:
    """A command that succeeds returns 0."""
    assert main(["plan"]) == 0


@pytest.mark.usefixtures("stub")
def test_an_error_is_told_without_a_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An error of ours is its message, whole, and status 2."""
    assert main(["plan", "--fail", "error"]) == 2
    expected = "error: Horizon 7 is odd.\nChoose a multiple of 8.\n"
    assert capsys.readouterr().err == expected


@pytest.mark.usefixtures("stub")
def test_ctrl_c_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """An interrupted command ends with the shell's status for it."""
    assert main(["plan", "--fail", "interrupt"]) == 130
    assert capsys.readouterr().err == "interrupted: stopped by Ctrl-C.\n"


@pytest.mark.usefixtures("stub")
def test_an_unknown_option_is_refused_with_status_2(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What the parser refuses has the same status as any other error."""
    with pytest.raises(SystemExit) as stop:
        main(["plan", "--nope"])
    assert stop.value.code == 2
    assert "--nope" in capsys.readouterr().err


HELP = """
import sys
from diffuser_policy.cli import main

for command in sys.argv[1:]:
    try:
        main([*command.split(), "--help"])
    except SystemExit as stop:
        assert not stop.code, command
    heavy = {"torch", "mujoco", "gymnasium", "minari", "matplotlib", "h5py", "numpy"}
    assert not heavy & sys.modules.keys(), (command, heavy & sys.modules.keys())
"""


def test_help_loads_neither_torch_nor_simulators() -> None:
    """Help answers in well under a second because nothing heavy is imported."""
    done = subprocess.run(
        [sys.executable, "-c", HELP, "", *COMMANDS],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for command in COMMANDS:
        assert f"usage: diffuser-policy {command}" in done.stdout


def test_the_package_runs_as_a_module() -> None:
    """`python -m diffuser_policy` is the same program."""
    done = subprocess.run(
        [sys.executable, "-m", "diffuser_policy", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "usage: diffuser-policy" in done.stdout


def test_a_reader_that_has_read_enough_is_no_error() -> None:
    """As in `diffuser-policy train multi2d-large --help | head -1`."""
    with subprocess.Popen(
        [sys.executable, "-m", "diffuser_policy", "train", "multi2d-large", "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141
