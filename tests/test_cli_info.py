"""`diffuser-policy info`: what there is, and what one planner is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from diffuser_policy import checkpoint
from diffuser_policy.checkpoint import read_planner
from diffuser_policy.cli import main
from diffuser_policy.data.demonstrators import DEMONSTRATORS
from diffuser_policy.guides.registry import make_guide
from diffuser_policy.policy import DiffuserPolicy
from diffuser_policy.testing import toy_config, toy_dataset, toy_policy
from diffuser_policy.training.presets import PRESETS, preset
from tests.point_env import POINT, save_planner

Capture = pytest.CaptureFixture[str]


def test_planners_presets_and_environments_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    save_planner(tmp_path / "multi2d-toy")
    monkeypatch.setattr(checkpoint, "SHIPPED", tmp_path)
    assert main(["info"]) == 0
    shown = capsys.readouterr().out
    for name in ("multi2d-toy", POINT, *PRESETS, "diffuser_envs/Maze2D-Large-v1"):
        assert name in shown


@pytest.mark.parametrize("columns", [40, 80])
def test_names_are_never_broken(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["info"]) == 0
    shown = capsys.readouterr().out.replace(",", " ").split()
    planners = map(read_planner, checkpoint.shipped_planners())
    origins = [config.provenance["dataset"]["env_id"] for config, _ in planners]
    datasets = [preset(name).dataset for name in PRESETS]
    plugins = [plugin.name for plugin in DEMONSTRATORS.offers()]
    for name in (*origins, *datasets, *plugins):
        assert name in shown


def test_a_planner_is_described_with_its_whole_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    folder = save_planner(tmp_path / "a-folder-of-a-name-that-is-long")
    assert main(["info", folder]) == 0
    assert folder in capsys.readouterr().out


def test_planner_is_described(tmp_path: Path, capsys: Capture) -> None:
    arguments = ["info", save_planner(tmp_path)]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    for words in (
        POINT,
        "toy/point-v0",
        "2 of 8 denoising steps, temperature 1",
        "at most 16 env",
    ):
        assert words in shown
    assert "4 observation columns" in shown
    assert re.search(r"temporal U-Net, width 8\s*$", shown, re.MULTILINE)


def test_a_planner_without_goals_and_training_is_described(
    tmp_path: Path, capsys: Capture
) -> None:
    plain = toy_policy(toy_config(time_to_goal=None), flat=toy_dataset(goals=False))
    plain.config.provenance.pop("dataset")  # type: ignore[attr-defined]
    for policy, first in ((plain, "when the plan has run out"), (toy_policy(), "on a")):
        policy.save_pretrained(tmp_path)
        assert main(["info", str(tmp_path)]) == 0
        shown = capsys.readouterr().out
        assert re.search(rf"^ +replanning +{first}", shown, re.MULTILINE)
        assert re.search(r"^ +trained +– *$", shown, re.MULTILINE)
        assert "None" not in shown


def test_a_guide_is_described_with_how_it_steers(
    tmp_path: Path, capsys: Capture
) -> None:
    policy = DiffuserPolicy.from_pretrained(save_planner(tmp_path))
    settings = {"guide_scale": 0.5, "guide_placement": "mean", "temperature": 0.25}
    policy.with_guide(make_guide("smoothness"), **settings).save_pretrained(tmp_path)
    assert main(["info", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "temperature 0.25" in shown
    assert re.search(r"guidance +scale 0\.5, placement mean", shown)
    usual = policy.with_guide(make_guide("smoothness"))
    usual.save_pretrained(tmp_path)
    assert main(["info", str(tmp_path)]) == 0
    assert re.search(r"guidance +scale 1, placement clean", capsys.readouterr().out)
    unguided = policy.with_guide(None)
    unguided.save_pretrained(tmp_path)
    assert main(["info", str(tmp_path)]) == 0
    assert "guidance" not in capsys.readouterr().out


def test_a_preset_is_told_from_a_planner(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "walker2d-medium-paper"
    monkeypatch.chdir(tmp_path)
    save_planner(tmp_path / "runs" / name)
    for command in ("info", "evaluate"):
        assert main([command, name]) == 2
        told = capsys.readouterr().err
        assert f"Did you mean 'runs/{name}'" in told
        assert f"'{name}' is a preset" in told
        assert f"diffuser-policy train {name} --help" in told


def test_missing_planners_are_explained(capsys: Capture) -> None:
    assert main(["info", "no-such-planner"]) == 2
    assert "No planner 'no-such-planner'" in capsys.readouterr().err
