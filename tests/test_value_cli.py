"""`diffuser-policy train-value`: from a planner to one with a value network."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import pytest
import torch

from diffuser_policy.checkpoint import read_planner
from diffuser_policy.cli import main
from diffuser_policy.cli.train_value import TrainValueSettings
from diffuser_policy.config import ValueConfig
from diffuser_policy.data.collection import collect_episodes
from diffuser_policy.errors import ConfigError
from diffuser_policy.testing import toy_config, toy_dataset, toy_policy
from diffuser_policy.training.value_trainer import ValueTrainer
from tests.point_env import PointEnv, Wander
from tests.training_helpers import press_ctrl_c_in_the_third_step

DATASET, NO_REWARD = "test/valued-v0", "test/unrewarded-v0"
SMALL = (
    *("--dataset", DATASET, "--device", "cpu", "--save-interval", "2"),
    *("--num-steps", "6", "--batch-size", "4", "--dim", "16", "--multipliers", "1"),
    *("4", "--discount", "0.9"),
)
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module", autouse=True)
def _datasets() -> None:
    def record(env: gym.Env, name: str) -> None:
        limited = gym.wrappers.TimeLimit(env, 40)
        collect_episodes(
            limited,
            Wander(),
            num_episodes=3,
            dataset_id=name,
            overwrite=True,
            progress=False,
        )
        limited.close()

    record(PointEnv(terminate=False), DATASET)
    free = gym.wrappers.TransformReward(PointEnv(terminate=False), lambda _: 0.0)
    record(free, NO_REWARD)


@pytest.fixture
def planner(tmp_path: Path) -> Path:
    """The folder of a planner for the points of the datasets."""
    folder = tmp_path / "planner"
    toy_policy().save_pretrained(folder)
    return folder


def test_training_saves_both_networks_and_resumes(
    planner: Path, tmp_path: Path, capsys: Capture
) -> None:
    output = tmp_path / "valued twice"
    arguments = ["train-value", str(planner), *SMALL, "--output", str(output)]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "6 gradient steps in" in shown
    named = "--env MODULE:toy/Point-v0"  # nothing that is installed registers it
    assert f"diffuser-policy evaluate '{output}' {named} --guide value" in shown
    config, networks = read_planner(output)
    assert networks.value is not None
    assert config.value == ValueConfig(dim=16, multipliers=(1, 4), discount=0.9)
    assert config.provenance["value"]["training"]["dataset"] == DATASET
    original = read_planner(planner)[1].state_dict()
    assert all(torch.equal(networks.state_dict()[k], v) for k, v in original.items())
    assert main(arguments) == 0
    assert "all 6 gradient steps are done already" in capsys.readouterr().out


def test_a_file_as_output_is_refused_before_data_are_read(
    planner: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "notes").touch()
    there = ["--output", str(tmp_path / "notes"), "--dataset", "no/such-v0"]
    for command in (["train-value", str(planner)], ["train"]):
        assert main([*command, *there]) == 2
        assert "notes is a file; name a folder" in capsys.readouterr().err


def test_interrupted_training_saves_and_goes_on(
    planner: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    arguments = ["train-value", str(planner), *SMALL, "--output"]
    with monkeypatch.context() as patch:
        press_ctrl_c_in_the_third_step(ValueTrainer, patch)
        assert main([*arguments, str(tmp_path / "run")]) == 130
    assert "gradient step 3 is saved" in capsys.readouterr().err
    assert main([*arguments, str(tmp_path / "run")]) == 0
    assert "resuming at gradient step 3 of 6" in capsys.readouterr().out
    assert main([*arguments, str(tmp_path / "whole")]) == 0
    resumed, whole = (
        read_planner(tmp_path / name)[1].state_dict() for name in ("run", "whole")
    )
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)


def test_interrupt_before_the_first_checkpoint_says_so(
    planner: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def twice(_: ValueTrainer) -> dict[str, float]:
        raise KeyboardInterrupt

    monkeypatch.setattr(ValueTrainer, "_descend", twice)
    output = str(tmp_path / "run")
    assert main(["train-value", str(planner), *SMALL, "--output", output]) == 130
    assert "stopped before anything was saved" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "test/vlued-v0"], "No dataset 'test/vlued-v0'"),
        (["--dataset", NO_REWARD], "there is no value to learn"),
        (["--save-interval", "0"], "must be at least 1"),
        (["--device", "gpu"], "There is no device 'gpu'"),
        (["--dim", "12"], "got dim=12"),
        (["--pooling", "flatten"], "Use pooling='mean'"),
    ],
)
def test_mistakes_are_explained_before_anything_is_written(
    arguments: list[str], message: str, planner: Path, tmp_path: Path, capsys: Capture
) -> None:
    output = tmp_path / "run"
    command = ["train-value", str(planner), *SMALL, "--output", str(output)]
    assert main([*command, *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not output.exists()


def test_an_unknown_planner_is_answered_with_the_nearest(capsys: Capture) -> None:
    assert main(["train-value", "multi2d-lage", *SMALL]) == 2
    assert "Did you mean 'multi2d-large'" in capsys.readouterr().err


def test_a_planner_is_not_overwritten(planner: Path, capsys: Capture) -> None:
    before = {path: path.read_bytes() for path in planner.iterdir()}
    assert main(["train-value", str(planner), *SMALL, "--output", str(planner)]) == 2
    assert "of the planner itself" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in planner.iterdir()} == before


def test_data_of_another_environment_are_refused(
    tmp_path: Path, capsys: Capture
) -> None:
    flat = toy_dataset(goals=False)
    config = toy_config(time_to_goal=None)
    folder = tmp_path / "goalless"
    toy_policy(config, flat=flat).save_pretrained(folder)
    assert main(["train-value", str(folder), *SMALL]) == 2
    assert "Use data of the planner's environment" in capsys.readouterr().err


def test_dataset_and_folder_follow_from_the_planner() -> None:
    settings = TrainValueSettings(planner="shelf/multi2d-large")
    assert settings.config("diffuser/mine-v0").dataset == "diffuser/mine-v0"
    assert settings.folder() == Path("runs/multi2d-large-value")
    chosen = TrainValueSettings(planner="a", dataset="b/c-v0", output=Path("d"))
    assert chosen.config("diffuser/mine-v0").dataset == "b/c-v0"
    assert chosen.folder() == Path("d")
    with pytest.raises(ConfigError, match="--dataset ID"):
        settings.config(None)
