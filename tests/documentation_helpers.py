"""Pages of the documentation as programs: their Python, and their commands."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FENCE = r"^```{language}\n(.*?)^```$"


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
