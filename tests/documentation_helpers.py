"""Pages of the documentation as programs: their Python, and their commands."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path
from typing import Any

from diffuser_policy.cli import main

ROOT = Path(__file__).parents[1]
FENCE = r"^```{language}\n(.*?)^```$"
SMALL = {
    "collect": "--num-steps 2000 --run-length 1000 --num-workers 1",
    "train": "--num-steps 2 --batch-size 2",
    "train-value": "--num-steps 2 --batch-size 2",
    "train-classifier": "--num-steps 2 --batch-size 8",
    "evaluate": "--episodes 1",
    "benchmark": "--methods random --episodes 1",
}
SMALL_EPISODES = {  # of environments that are recorded in episodes
    "kuka": "--num-episodes 10 --num-workers 1",
    "pointmaze": "--num-episodes 2 --num-workers 1",
    "walker2d": "--num-episodes 2 --num-workers 1",
}


def blocks(page: Path, language: str) -> list[str]:
    """Return a page's code blocks of a language."""
    pattern = FENCE.format(language=language)
    return re.findall(pattern, page.read_text(), re.DOTALL | re.MULTILINE)


def commands(page: Path, program: str) -> list[list[str]]:
    """Return the arguments of all of a page's commands of a program."""
    lines = "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [found[1:] for found in words if found[:1] == [program]]


def run_python(page: Path, folder: Path) -> dict[str, Any]:
    """Run all Python of a page as one script, and return its names.

    Args:
        page: Errors name its lines.
        folder: For the script; the current folder is left as it is.
    """
    text = page.read_text()
    code = [""] * len(text.splitlines())
    pattern = FENCE.format(language="python")
    for match in re.finditer(pattern, text, re.DOTALL | re.MULTILINE):
        line = text[: match.start(1)].count("\n")
        block = match[1].splitlines()
        code[line : line + len(block)] = block
    script = folder / f"{page.stem}.py"
    script.write_text("\n".join(code))
    return runpy.run_path(str(script))


def run_commands(page: Path) -> None:
    """Run all `diffuser-policy` commands of a page, in order, with small numbers."""
    own = "diffuser/multi2d-umaze-v1"  # stands in for datasets that need a download
    for name, *arguments in commands(page, "diffuser-policy"):
        local = [own if word.startswith("D4RL/") else word for word in arguments]
        small = SMALL.get(name, "")
        for kind, episodes in SMALL_EPISODES.items():
            if any(kind in word.lower() for word in arguments):
                short = f"{small} --env-option max_episode_steps=20"
                small = {"collect": episodes, "evaluate": short}.get(name, small)
        if name == "benchmark" and arguments[0] != "run":
            small = ""
        options = [] if "--help" in local else small.split()
        assert main([name, *local, *options]) == 0, (name, arguments)
