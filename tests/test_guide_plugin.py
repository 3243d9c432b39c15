"""Guides of installed packages: ours, and one from outside."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from diffuser_policy.cli import main
from diffuser_policy.errors import UnknownNameError
from diffuser_policy.guides.guide import as_guide
from diffuser_policy.guides.registry import (
    GUIDES,
    example_texts,
    find_guide,
    guide_from_json,
    guide_to_json,
    make_guide,
    parse_guide,
)
from diffuser_policy.testing import toy_policy
from tests.policy_helpers import observe

PLUGIN = Path(__file__).parents[1] / "examples" / "guide_plugin"
OURS = {
    "action-effort",
    "avoid-blocks",
    "contact",
    "goal-distance",
    "keep-in",
    "keep-out",
    "maze-walls",
    "place",
    "rest",
    "smoothness",
    "speed-limit",
    "stack-match",
    "stack-task",
    "value",
    "waypoint",
}


# --- ours ---------------------------------------------------------------------


def test_our_guides_are_registered_and_documented() -> None:
    offers = GUIDES.offers()
    assert {p.name for p in offers if p.origin.startswith("diffuser-policy 0.")} == OURS
    for name in OURS:
        guide = find_guide(name)
        description, helps = guide.documentation()
        assert description.partition("\n")[0].endswith("."), name
        assert all(helps[parameter.name] for parameter in guide.parameters), name


@pytest.mark.parametrize("name", sorted(OURS))
def test_documented_examples_are_right(name: str) -> None:
    for text in example_texts(find_guide(name)):
        assert parse_guide(text) == guide_from_json(guide_to_json(parse_guide(text)))


def test_a_policy_keeps_its_guide_in_the_checkpoint(tmp_path: Path) -> None:
    policy = toy_policy()
    guide = 2.0 * make_guide("keep-out", center=(3, 4), radius=0.6)
    guide += make_guide("smoothness")
    policy.with_guide(guide).save_pretrained(tmp_path)
    assert type(policy).from_pretrained(tmp_path).config.guide == guide


# --- from outside -------------------------------------------------------------


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that the example package is installed into, offline."""
    folder = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    options = ["--no-build-isolation", "--target", str(folder)]
    subprocess.run([*pip, *options, str(PLUGIN)], check=True)
    return folder


def test_a_package_with_a_guide_is_small() -> None:
    """Whoever has an idea for a guide is done in five minutes."""
    for path in (PLUGIN / "pyproject.toml", PLUGIN / "diffuser_guide_corridor.py"):
        assert len(path.read_text().splitlines()) < 30


def test_a_package_adds_a_guide(
    installed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UnknownNameError):
        make_guide("corridor", start=(-1, 0), end=(1, 0))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.syspath_prepend(installed)
    guide = make_guide("corridor", start=(-1, 0), end=(1, 0), width=0.2)
    assert guide == parse_guide("corridor:start=-1,0;end=1,0;width=0.2")
    assert guide_from_json(guide_to_json(guide)) == guide
    [text] = re.findall("--guide '(.*)'", (PLUGIN / "README.md").read_text())
    assert guide_to_json(parse_guide(text))[0]["guide"] == "corridor"
    policy, observation = toy_policy(seed=1), observe()

    def outside(**settings: Any) -> float:
        plan = policy.with_guide(guide, **settings).plan(observation)
        return float(abs(plan.path()[1:-1, 1]).clip(min=0.1).sum())

    assert outside(guide_steps=20) < outside(guide_scale=0)
    assert main(["guides"]) == 0
    assert "diffuser-guide-corridor" in capsys.readouterr().out
    del sys.modules["diffuser_guide_corridor"]


def test_the_command_line_finds_it_too(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process of its own, which has imported nothing before."""
    monkeypatch.setenv("PYTHONPATH", str(installed))
    done = subprocess.run(
        [sys.executable, "-m", "diffuser_policy", "guides", "corridor"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "corridor  diffuser-guide-corridor 0.1.0" in done.stdout
    assert "From wall to wall, meters." in done.stdout
    assert "--guide 'corridor:start=1,2;end=3,4'" in done.stdout


def test_a_name_from_elsewhere_in_the_package_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The entry point names another module than the one that defines the guide."""
    folder = tmp_path / "plug-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: plug\nVersion: 1.0\n"
    )
    (folder / "entry_points.txt").write_text(
        f"[{GUIDES.group}]\nstill = plug_outer:still\n"
    )
    (tmp_path / "plug_inner.py").write_text(
        "def still(trajectory):\n    return trajectory.position.sum(dim=(1, 2))\n"
    )
    (tmp_path / "plug_outer.py").write_text("from plug_inner import still\n")
    monkeypatch.syspath_prepend(tmp_path)
    function = importlib.import_module("plug_inner").still
    [part] = guide_to_json(as_guide(function))
    assert part["guide"] == "still"
    del sys.modules["plug_inner"], sys.modules["plug_outer"]
