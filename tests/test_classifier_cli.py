"""`diffuser-policy train-classifier`: from a planner to one that tells states apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diffuser_policy.checkpoint import read_planner
from diffuser_policy.cli import main
from diffuser_policy.cli.train_classifier import TrainClassifierSettings
from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.errors import ConfigError
from diffuser_policy.testing import toy_dataset, toy_policy
from diffuser_policy.training.classifier_trainer import ClassifierTrainer
from tests.classifier_helpers import SIDES
from tests.training_helpers import press_ctrl_c_in_the_third_step

SMALL = (
    *("--labels", SIDES, "--device", "cpu", "--save-interval", "2"),
    *("--num-steps", "6", "--batch-size", "8", "--width", "16", "--depth", "1"),
)
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(name: str, **_: object) -> FlatDataset:
        assert name == "toy/point-v0"  # which the planner says it is from
        return toy_dataset()

    monkeypatch.setattr("diffuser_policy.data.minari.load_flat", loaded)


@pytest.fixture
def planner(tmp_path: Path) -> Path:
    folder = tmp_path / "planner"
    toy_policy().save_pretrained(folder)
    return folder


def test_training_saves_both_networks(
    planner: Path, tmp_path: Path, capsys: Capture
) -> None:
    output = tmp_path / "telling"
    arguments = ["train-classifier", str(planner), *SMALL, "--output", str(output)]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "6 gradient steps in" in shown
    assert "It predicts: right, above, slow." in shown
    config, networks = read_planner(output)
    assert networks.classifier is not None
    assert config.provenance["classifier"]["training"]["dataset"] == "toy/point-v0"
    original = read_planner(planner)[1].state_dict()
    assert all(torch.equal(networks.state_dict()[k], v) for k, v in original.items())


def test_interrupted_training_saves_and_goes_on(
    planner: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    command = [
        "train-classifier",
        str(planner),
        *SMALL,
        "--output",
        str(tmp_path / "x"),
    ]
    with monkeypatch.context() as patch:
        press_ctrl_c_in_the_third_step(ClassifierTrainer, patch)
        assert main(command) == 130
    assert "gradient step 3 is saved" in capsys.readouterr().err
    assert main(command) == 0
    assert "resuming at gradient step 3 of 6" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labels", "kuka-pears"], "Did you mean 'kuka-pairs'"),
        (["--labels", "kuka-pairs"], "block_0"),
        (["--classes", "rihgt"], "Did you mean 'right'"),
        (["--save-interval", "0"], "--save-interval) must be at least 1"),
    ],
)
def test_mistakes_are_explained_before_anything_is_written(
    arguments: list[str], message: str, planner: Path, tmp_path: Path, capsys: Capture
) -> None:
    output = tmp_path / "run"
    command = ["train-classifier", str(planner), *SMALL, "--output", str(output)]
    assert main([*command, *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not output.exists()


def test_a_planner_is_not_overwritten(planner: Path, capsys: Capture) -> None:
    command = ["train-classifier", str(planner), *SMALL, "--output", str(planner)]
    assert main(command) == 2
    assert "of the planner itself" in " ".join(capsys.readouterr().err.split())


def test_the_folder_is_named_after_the_planner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own" / "training").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "own" / "training")
    for planner, name in (("runs/mine", "mine"), (".", "training"), ("..", "own")):
        settings = TrainClassifierSettings(planner=planner, labels=SIDES)
        assert settings.folder() == Path(f"runs/{name}-classifier")


def test_no_dataset_is_not_the_planners_own() -> None:
    settings = TrainClassifierSettings(planner="mine", labels=SIDES, dataset="")
    assert settings.config("the/recorded-v0").dataset == ""


def test_a_planner_of_unknown_origin_needs_a_dataset() -> None:
    settings = TrainClassifierSettings(planner="mine", labels=SIDES)
    with pytest.raises(ConfigError, match="--dataset ID"):
        settings.config(None)
    assert settings.config("a/b-v0").dataset == "a/b-v0"
