"""`suite.json` in a benchmark's folder: which suite its cells are of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diffuser_policy.benchmark.suites import Suite
from diffuser_policy.errors import CheckpointError, ConfigError
from diffuser_policy.files import replaced_file
from diffuser_policy.settings import differences, to_json

SUITE_FILE = "suite.json"
SHOWN = 5  # differences that one error lists


def write_suite(output: Path, suite: Suite, source: str) -> None:
    """Say in the folder what it is for.

    Args:
        output: Folder of the benchmark.
        suite: With the settings of this run.
        source: The suite's name or file, for people to repeat the run.
    """
    data = {
        "schema": 1,
        **_in_common(suite),
        "source": source,
        "note": suite.note,
        "cells": [cell.id for cell in suite.cells()],
    }
    with replaced_file(output / SUITE_FILE) as partial:
        partial.write_text(json.dumps(data, indent=1) + "\n")


def read_suite(folder: Path) -> dict[str, Any]:
    """Return what is known of the suite of the last run; nothing where it is unknown.

    Folders that were put together by hand have no such file.
    """
    try:
        data = json.loads((folder / SUITE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def check_suite(output: Path, suite: Suite) -> None:
    """Refuse a folder that is for another suite, or for other settings of it.

    Raises:
        CheckpointError: The file is damaged.
        ConfigError: It is for another one.
    """
    path, asked = output / SUITE_FILE, _in_common(suite)
    try:
        saved = json.loads(path.read_text())
        found = differences({name: saved.get(name) for name in asked}, asked)
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error!r}). If the cells beside it are of the "
            f"suite {suite.name!r}, delete the file and run again."
        ) from error
    if found:
        found.sort(key=lambda text: not text.startswith("name: "))  # says it best
        raise ConfigError(
            f"{output} holds a benchmark with other settings (there → asked for): "
            f"{'; '.join(found[:SHOWN])}. Choose another folder with --output, or ask "
            f"for the same; nothing was changed."
        )


def _in_common(suite: Suite) -> dict[str, Any]:
    """Return what all cells of a folder have in common, as JSON data."""
    return {
        "name": suite.name,
        "num_steps": suite.num_steps,
        "max_steps": suite.max_steps,
        "evaluation": {**to_json(suite.evaluation), "seeds": [*suite.evaluation.seeds]},
    }
