"""`diffuser-policy info`: what there is, and what one planner is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from diffuser_policy import checkpoint
from diffuser_policy.cli import main
from diffuser_policy.training.presets import PRESETS
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


def test_planner_is_described(tmp_path: Path, capsys: Capture) -> None:
    arguments = ["info", save_planner(tmp_path)]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    for words in (POINT, "toy/point-v0", "2 of 8 denoising steps", "at most 16 env"):
        assert words in shown
    assert "4 observation columns" in shown
    assert re.search(r"temporal U-Net, width 8\s*$", shown, re.MULTILINE)


def test_missing_planners_are_explained(capsys: Capture) -> None:
    assert main(["info", "no-such-planner"]) == 2
    assert "No planner 'no-such-planner'" in capsys.readouterr().err
