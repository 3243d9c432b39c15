"""Guides of installed packages: ours, one from outside, and several broken ones."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from diffuser_policy.cli import main
from diffuser_policy.errors import GuideError, UnknownNameError
from diffuser_policy.guides import registry
from diffuser_policy.guides.guide import as_guide
from diffuser_policy.guides.parameters import address
from diffuser_policy.guides.registry import (
    GuidePluginWarning,
    available_guides,
    find_guide,
    guide_from_json,
    guide_to_json,
    make_guide,
    register_guide,
)
from diffuser_policy.guides.text import example_texts, guide_texts, parse_guide
from diffuser_policy.guides.trajectory import Trajectory
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
GOOD = """
def still(trajectory, *, strength: float = 1.0):
    \"\"\"Keeps still.\"\"\"
    return -strength * trajectory.position.diff(dim=1).square().sum(dim=(1, 2))
"""

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Return a function that installs a distribution of one module, for this test."""
    monkeypatch.setattr(registry, "_IN_PROCESS", {})
    monkeypatch.setenv("COLUMNS", "200")
    known = set(sys.modules)

    def install_one(name: str, code: str, **points: str) -> None:
        folder = tmp_path / f"{name}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
        )
        lines = [f"{key.replace('_', '-')} = {value}" for key, value in points.items()]
        text = "\n".join([f"[{registry.GROUP}]", *lines, ""])
        (folder / "entry_points.txt").write_text(text)
        (tmp_path / f"{name}.py").write_text(code)
        importlib.invalidate_caches()

    monkeypatch.syspath_prepend(tmp_path)
    yield install_one
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


# --- ours ---------------------------------------------------------------------


def test_our_guides_are_registered_and_documented() -> None:
    found = {
        name: guide
        for name, guide in available_guides().items()
        if guide.origin.startswith("diffuser-policy 0.")
    }
    assert set(found) == OURS
    for name, guide in found.items():
        assert guide.summary.endswith("."), name
        assert all(parameter.help for parameter in guide.parameters), name


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
    assert guide_texts(parse_guide(text)) == [text]
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


def test_plug_ins_are_imported_when_they_are_needed(install: Install) -> None:
    install("plug_lazy", GOOD, still="plug_lazy:still")
    install("plug_other", GOOD, stiller="plug_other:still")
    make_guide("keep-out", center=(0, 0), radius=1)
    assert "plug_lazy" not in sys.modules
    assert make_guide("still").name == "still"
    assert "plug_lazy" in sys.modules
    assert "plug_other" not in sys.modules


def test_a_plug_in_may_decorate_as_well(install: Install) -> None:
    code = "from diffuser_policy.guides.registry import register_guide\n"
    code += GOOD.replace("def still", '@register_guide("still")\ndef still')
    install("plug_decorated", code, still="plug_decorated:still")
    assert find_guide("still").origin == "plug_decorated 1.0"
    assert find_guide("still").origin == "plug_decorated 1.0"
    guide = make_guide("still", strength=2)
    assert guide_from_json(guide_to_json(guide)) == guide


def test_a_name_from_elsewhere_in_the_package_is_saved(install: Install) -> None:
    """The entry point names another module than the one that defines the guide."""
    install("plug_inner", GOOD)
    install("plug_outer", "from plug_inner import still\n", still="plug_outer:still")
    function = importlib.import_module("plug_inner").still
    [part] = guide_to_json(as_guide(function))
    assert part["guide"] == "still"


# --- broken ones --------------------------------------------------------------

BROKEN = {
    "raises": ("raise RuntimeError('no such GPU')", "RuntimeError: no such GPU"),
    "exits": ("import sys\nsys.exit(3)", "SystemExit: 3"),
    "misspelt": ("def stil(t): ...", "AttributeError: .*no attribute 'still'"),
    "syntax": ("def still(:", "SyntaxError"),
    "wrong": ("still = 3", "GuideError: .* is no guide"),
    "missing": ("import no_such_module_at_all", "ModuleNotFoundError"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_plug_in_is_reported_and_the_others_work(
    install: Install, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, message = BROKEN[kind]
    install(f"plug_{kind}", code, still=f"plug_{kind}:still")
    install("plug_fine", GOOD, stiller="plug_fine:still")
    whole = rf"'still' of plug_{kind} 1.0 cannot be loaded from 'plug_{kind}:still': "
    with pytest.raises(GuideError, match=whole + message):
        make_guide("still")
    assert make_guide("stiller").name == "stiller"
    with pytest.warns(GuidePluginWarning, match=whole + message) as caught:
        found = available_guides()
    assert len(caught) == 1
    assert {*OURS, "stiller"} <= set(found)
    assert "still" not in found
    assert main(["guides"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "cannot be used, see below" in shown
    assert f"plug_{kind} 1.0 cannot be loaded" in shown
    assert "Keeps still." in shown


def test_a_name_that_two_packages_offer_is_refused(install: Install) -> None:
    install("plug_a", GOOD, still="plug_a:still")
    install("plug_b", GOOD, still="plug_b:still")
    message = r"'still' is offered twice, by plug_a 1\.0 and by plug_b 1\.0"
    with pytest.raises(GuideError, match=message):
        make_guide("still")
    errors = [entry.error for entry in registry.guide_entries() if entry.error]
    assert len(errors) == 2


def test_a_name_that_a_package_and_this_process_offer_is_refused(
    install: Install,
) -> None:
    install("plug_c", GOOD, still="plug_c:still")

    @register_guide("still")
    def mine(trajectory: Trajectory) -> Tensor:
        return trajectory.position.sum(dim=(1, 2))

    with pytest.raises(GuideError, match=r"by plug_c 1\.0 and by .*mine"):
        make_guide("still")


def test_ours_cannot_be_taken_over(install: Install) -> None:
    install("plug_d", GOOD, keep_out="plug_d:still")
    target = find_guide("keep-out").target
    assert address(target) == "diffuser_policy.guides.regions:KeepOut"
    with pytest.warns(GuidePluginWarning, match=r"by diffuser-policy .* plug_d 1\.0"):
        assert available_guides()["keep-out"].target is target


def test_a_saved_guide_whose_plug_in_is_broken_says_so(install: Install) -> None:
    install("plug_e", "raise RuntimeError", still="plug_e:still")
    with pytest.raises(GuideError, match="RuntimeError: no message"):
        guide_from_json([{"guide": "still", "weight": 1.0, "parameters": {}}])
