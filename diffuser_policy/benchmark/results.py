"""Results of cells: every episode, the learning curve, the costs.

A cell's `result.json` keeps the episodes of an evaluation as columns:

    {"seed": 30000, "episodes": 100,
     "columns": {"return": [219.0, …], "length": 300, …},
     "details": {"failure": [null, …], …}}

A column with the same value in all episodes is stored as that value. Episode i has seed
`seed` + i, unless there is a column of seeds. Starts, goals and lists among the details
are left out; they stay in the cell's `evaluation-*.json`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from diffuser_policy.benchmark.cells import Cell, CellFolder
from diffuser_policy.errors import CheckpointError, ConfigError
from diffuser_policy.files import replaced_file
from diffuser_policy.versions import PACKAGES

SCHEMA = 1
RECORDED = (*PACKAGES, "d3rlpy", "pybullet", "pytorch-mppi", "stable-baselines3")
POINTS = 3  # at the end of a curve, compared with as many before them
LEFT_OUT = {"seed", "start", "goal", "details"}  # of the columns
FIELDS = ("cell", "digest", "evaluations", "curve", "training", "versions", "timing")


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """The result of a cell.

    Attributes:
        cell: What was done.
        label: The method's name in tables.
        evaluations: One for each evaluation seed: its `seed`, and a list of `episodes`.
        curve: Evaluations during training.
        training: Facts that the method recorded about its training.
        policy: The policy's description of itself.
        dataset: Facts about the data; None for methods that need no data.
        versions: Versions of the packages that results depend on.
        timing: Seconds on the machine that ran the cell; all else repeats anywhere.
    """

    cell: Cell
    label: str = ""
    evaluations: tuple[Mapping[str, Any], ...]
    curve: tuple[Mapping[str, Any], ...]
    training: Mapping[str, Any]
    policy: Mapping[str, Any]
    dataset: Mapping[str, Any] | None
    versions: Mapping[str, str]
    timing: Mapping[str, Any]

    @property
    def episodes(self) -> list[Mapping[str, Any]]:
        """All episodes, in the order of their seeds."""
        return [episode for item in self.evaluations for episode in item["episodes"]]

    @property
    def scores(self) -> np.ndarray:
        """Score `[episodes]` of each episode; its return where there is no score."""
        return np.array(
            [e["return"] if e["score"] is None else e["score"] for e in self.episodes]
        )


@dataclass(frozen=True)
class Rise:
    """How much a learning curve rose at the end.

    Attributes:
        mean: The rise in units of the score.
        error: Its standard error.
    """

    mean: float
    error: float

    @property
    def kind(self) -> Literal["rising", "flat", "falling"]:
        """Whether the rise exceeds twice its standard error, and its sign."""
        if abs(self.mean) <= 2 * self.error:
            return "flat"
        return "rising" if self.mean > 0 else "falling"


def compact_evaluation(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Return an evaluation as `result.json` keeps it.

    Args:
        evaluation: Its `seed`, and its `episodes` as `evaluation.report.to_json` gives
            them.
    """
    first, episodes = evaluation["seed"], evaluation["episodes"]
    details = [episode.get("details", {}) for episode in episodes]
    lists = {key for found in details for key, v in found.items() if _is_many(v)}
    compact = {
        "seed": first,
        "episodes": len(episodes),
        "columns": _columns(episodes, LEFT_OUT),
        "details": _columns(details, lists),
    }
    seeds = [episode["seed"] for episode in episodes]
    if seeds != [*range(first, first + len(episodes))]:
        compact["columns"]["seed"] = seeds
    if not any(details):
        del compact["details"]
    return compact


def _columns(
    records: Sequence[Mapping[str, Any]], left_out: Collection[str]
) -> dict[str, Any]:
    """Return records as columns by name; a constant column is its value."""
    names = dict.fromkeys(name for record in records for name in record)
    columns = {
        name: [record.get(name) for record in records]
        for name in names
        if name not in left_out
    }
    return {
        name: values[0] if all(value == values[0] for value in values) else values
        for name, values in columns.items()
    }


def _records(columns: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """Return the records of columns; the inverse of `_columns`."""
    full = {
        name: values if isinstance(values, list) else [values] * count
        for name, values in columns.items()
    }
    if any(len(values) != count for values in full.values()):
        raise ValueError(f"columns are not of {count} episodes")
    return [{name: full[name][row] for name in full} for row in range(count)]


def _is_many(value: Any) -> bool:
    return isinstance(value, list | tuple | dict)


def _full_evaluation(evaluation: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return an evaluation with a list of episodes; older results have one already."""
    if "columns" not in evaluation:
        return evaluation
    first, count = evaluation["seed"], evaluation["episodes"]
    episodes = [
        {"seed": first + row, **record}
        for row, record in enumerate(_records(evaluation["columns"], count))
    ]
    if "details" in evaluation:
        details = _records(evaluation["details"], count)
        for episode, found in zip(episodes, details, strict=True):
            episode["details"] = found
    return {"seed": first, "episodes": episodes}


def write_result(path: Path, data: Mapping[str, Any]) -> None:
    """Write a `result.json`, atomically and without spaces.

    Args:
        path: The file.
        data: Its content; `evaluations` as `compact_evaluation` returns them.

    Raises:
        StorageError: The file could not be written.
        ValueError: A number is not finite.
    """
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    with replaced_file(path) as partial:
        partial.write_text(text + "\n")


def read_result(path: Path) -> CellResult:
    """Read a `result.json`.

    Raises:
        CheckpointError: The file is damaged, or has another schema.
    """
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}). Delete it, and run the cell again."
        ) from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        given = data.get("schema") if isinstance(data, dict) else None
        raise CheckpointError(
            f"{path} has schema {given}, this version reads {SCHEMA}. Run the cell "
            f"again in another folder."
        )
    missing = [name for name in FIELDS if name not in data]
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}; run the cell again.")
    try:
        cell = Cell.from_json(data["cell"])
    except (ConfigError, LookupError) as error:
        raise CheckpointError(f"{path} describes no cell: {error}") from error
    try:
        evaluations = tuple(_full_evaluation(item) for item in data["evaluations"])
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is damaged: its episodes cannot be read ({error}). Delete it, and "
            f"run the cell again."
        ) from error
    return CellResult(
        cell=cell,
        label=str(data.get("label", "")),
        evaluations=evaluations,
        curve=tuple(data["curve"]),
        training=data["training"],
        policy=data.get("policy", {}),
        dataset=data.get("dataset"),
        versions=data["versions"],
        timing=data["timing"],
    )


def rise_of(curve: Sequence[Mapping[str, Any]]) -> Rise | None:
    """Return how much a learning curve rose at the end.

    The rise is the mean score of the last three evaluations minus that of the three
    before. All evaluations have the same episodes, so the error is that of the
    episodes' own rises: what makes one episode harder than another cancels out. The
    error does not cover how checkpoints differ among themselves. A curve that goes up
    and down is therefore called rising more often than by chance, and its training
    continues rather than ends too early.

    Args:
        curve: Evaluations during training.

    Returns:
        None where the curve is shorter, or did not keep its episodes.
    """
    values = [point.get("values") or () for point in curve[-2 * POINTS :]]
    count = len(values[0]) if values else 0
    if (
        len(values) < 2 * POINTS
        or count < 2
        or any(len(other) != count for other in values)
    ):
        return None
    scores = np.asarray(values, float)
    rises = scores[POINTS:].mean(axis=0) - scores[:POINTS].mean(axis=0)
    error = float(rises.std(ddof=1)) / math.sqrt(count)
    return Rise(mean=float(rises.mean()), error=error)


def cell_folders(benchmark: str | Path) -> list[CellFolder]:
    """Return the folders of all cells of a benchmark, by name.

    Raises:
        ConfigError: The folder holds no benchmark.
    """
    root = Path(benchmark)
    if not (root / "cells").is_dir():
        raise ConfigError(
            f"{root} holds no benchmark: there is no folder {root / 'cells'}. Run "
            f"one: diffuser-policy benchmark run SUITE --output {root}"
        )
    found = sorted(path.parent.name for path in (root / "cells").glob("*/cell.json"))
    return [CellFolder(root, name) for name in found]


def load_results(benchmark: str | Path) -> list[CellResult]:
    """Return the results of all finished cells of a benchmark.

    Raises:
        ConfigError: The folder holds no benchmark.
        CheckpointError: A result is damaged, or of another schema.
    """
    paths = [folder.path / "result.json" for folder in cell_folders(benchmark)]
    return [read_result(path) for path in paths if path.is_file()]
