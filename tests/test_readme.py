"""The README keeps its promises: its commands run, its links and names exist.

Its Python runs as it stands, its commands in the order in which a reader would run
them, with smaller numbers.
"""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest

from diffuser_policy.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PICTURE_LIMIT = 200_000  # bytes
SMALL = {
    "collect": "--num-steps 2000 --run-length 1000 --num-workers 1",
    "train": "--num-steps 2 --batch-size 2",
    "evaluate": "--episodes 1",
    "plan": "",
    "guides": "",
    "speed": "--quick --rounds 1",
    "benchmark": "--methods diffuser --episodes 1",
    "train-classifier": "--num-steps 2 --batch-size 8",
}
SMALL_STACKING = {
    "collect": "--num-episodes 20 --num-workers 1",
    "evaluate": "--episodes 1 --env-option max_episode_steps=20",
}


def blocks(language: str) -> list[str]:
    """Return the code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def commands(program: str) -> list[list[str]]:
    """Return the arguments of all commands of a program, without comments."""
    lines = "".join(blocks("sh")).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [arguments for name, *arguments in words if name == program]


def test_it_fits_on_four_pages() -> None:
    """Whatever is longer is not read."""
    assert len(README.splitlines()) <= 255


def test_its_links_lead_somewhere() -> None:
    """Files it links to, pictures included, are in the repository."""
    targets = re.findall(r"\]\(([^)\s]+)", README)
    assert len(targets) >= 6
    for target in targets:
        assert (ROOT / target).is_file(), target


def test_its_picture_is_small() -> None:
    """Cloning stays quick."""
    for picture in (ROOT / "examples" / "images").iterdir():
        assert picture.stat().st_size < PICTURE_LIMIT


def test_its_make_targets_exist() -> None:
    """`make demo` and the others are in the Makefile."""
    targets = {arguments[0] for arguments in commands("make")}
    assert targets == {"demo", "test"}
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{t}:", makefile, re.MULTILINE) for t in targets)


def test_the_chain_of_nouns_names_modules() -> None:
    """Every word below a noun is a module or a sub-package of diffuser_policy."""
    [picture] = blocks("text")
    named = set(re.findall(r"\b[a-z_]+\b", picture)) - {"candidates", "predict"}
    package = ROOT / "diffuser_policy"
    assert len(named) >= 6
    for name in named:
        assert (package / f"{name}.py").is_file() or (package / name).is_dir(), name


@pytest.mark.slow
def test_its_python_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All blocks, one after the other, end at the goal and with a plan that does."""
    code = [""] * len(README.splitlines())
    for match in re.finditer(
        r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE
    ):
        line = README[: match.start(1)].count(
            "\n"
        )  # so that errors name README's lines
        block = match[1].splitlines()
        code[line : line + len(block)] = block
    script = tmp_path / "README.py"
    script.write_text("\n".join(code))
    names = runpy.run_path(str(script))
    assert "at the goal: True" in capsys.readouterr().out
    assert names["mean_return"] > 300
    assert names["clearance"] > 0.25  # the guide's disc
    goal = names["observation"]["desired_goal"]
    assert names["plan"].path()[-1, :2] == pytest.approx(goal, abs=1e-3)
    assert names["action"].shape == (8,)
    free = names["stacker"].plan(names["scene"]).path()[1:, 2].max()
    assert names["height"] < 0.22 < 0.3 < free  # as the guide has it


@pytest.mark.slow
def test_its_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Collect, train, evaluate, draw: each goes on where the last one ended."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    own = "diffuser/multi2d-umaze-v1"  # stands in for datasets that need a download
    for name, *arguments in commands("diffuser-policy"):
        local = [own if word.startswith("D4RL/") else word for word in arguments]
        stacking = any("kuka" in word.lower() for word in arguments)
        small = (SMALL | SMALL_STACKING if stacking else SMALL)[name]
        if arguments[:1] == ["report"]:
            small = ""
        assert main([name, *local, *small.split()]) == 0, (name, arguments)
    for path in ("umaze.json", "pictures/plan.png", "runs/pointmaze/config.json"):
        assert Path(path).is_file()
