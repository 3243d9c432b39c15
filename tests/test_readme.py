"""The README keeps its promises: short, with code that runs and links that lead on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.documentation_helpers import ROOT, commands, run_commands, run_python

PAGE = ROOT / "README.md"
README = PAGE.read_text()
PICTURE_LIMIT = 200_000  # bytes


def test_it_is_short() -> None:
    """Whatever is longer is not read."""
    lines = README.splitlines()
    assert len(lines) <= 140
    assert max(map(len, lines)) <= 100


def test_its_links_lead_somewhere() -> None:
    """Files and folders it links to, pictures included, are in the repository."""
    targets = re.findall(r"\]\(([^)\s]+)", README)
    local = [target for target in targets if not target.startswith("https://")]
    assert len(local) >= 6
    for target in local:
        assert (ROOT / target).exists(), target


def test_its_picture_is_small() -> None:
    """Cloning stays quick."""
    for picture in (ROOT / "examples" / "images").iterdir():
        assert picture.stat().st_size < PICTURE_LIMIT


def test_its_make_targets_exist() -> None:
    """`make demo` and the others are in the Makefile."""
    targets = {arguments[0] for arguments in commands(PAGE, "make")}
    assert targets == {"demo", "test"}
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{t}:", makefile, re.MULTILINE) for t in targets)


@pytest.mark.slow
def test_its_python_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All blocks, one after the other: the ball arrives, and the guide is obeyed."""
    names = run_python(PAGE, tmp_path)
    assert "at the goal: True" in capsys.readouterr().out
    assert names["clearance"] > 0.25  # the disc's radius


@pytest.mark.slow
def test_its_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Collect, train, evaluate, draw: each takes up what the last one left."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    run_commands(PAGE)
    for path in ("umaze.json", "pictures/plan.png", "runs/multi2d-umaze/config.json"):
        assert Path(path).is_file()
