"""Size limits that keep the code readable: long files and functions want splitting.

Prints each file or function over a limit and exits with status 1 if there is any.
Lines are counted as they stand, docstrings and blank lines included.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_POSITIONAL = 5
ROOT = Path(__file__).resolve().parent.parent
SOURCES = ["diffuser_policy", "envs", "examples", "tests", ".ci", "conftest.py"]


def source_files() -> Iterator[Path]:
    """Yield every Python file that the limits hold for."""
    for source in SOURCES:
        path = ROOT / source
        yield from sorted(path.rglob("*.py")) if path.is_dir() else [path]


def excesses(path: Path) -> Iterator[str]:
    """Yield a line for each limit that a file exceeds."""
    text = path.read_text(encoding="utf-8")
    name = path.relative_to(ROOT)
    num_lines = len(text.splitlines())
    if num_lines > MAX_FILE_LINES:
        yield f"{name}: {num_lines} lines, at most {MAX_FILE_LINES}"
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        where = f"{name}:{node.lineno} {node.name}"
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        if length > MAX_FUNCTION_LINES:
            yield f"{where}: {length} lines, at most {MAX_FUNCTION_LINES}"
        arguments = [a.arg for a in (*node.args.posonlyargs, *node.args.args)]
        positional = [a for a in arguments if a not in {"self", "cls"}]
        if len(positional) > MAX_POSITIONAL:
            yield f"{where}: {len(positional)} positional, at most {MAX_POSITIONAL}"


def main() -> int:
    """Check all sources."""
    found = [line for path in source_files() for line in excesses(path)]
    print("\n".join(found) or "sizes: within limits")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
