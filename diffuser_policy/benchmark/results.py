"""Results of cells, read again: every episode, the learning curve, the costs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from diffuser_policy.benchmark.cells import Cell, CellFolder
from diffuser_policy.errors import CheckpointError, ConfigError
from diffuser_policy.versions import PACKAGES

SCHEMA = 1
RECORDED = (*PACKAGES, "d3rlpy", "pybullet", "pytorch-mppi", "stable-baselines3")
POINTS = 3  # at the end of a curve, compared with as many before them
FIELDS = ("cell", "digest", "evaluations", "curve", "training", "versions", "timing")


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """What a cell left.

    Attributes:
        cell: What was done.
        label: The method's name in tables.
        evaluations: One for each evaluation seed: `seed` and `episodes`.
        curve: Evaluations during training.
        training: Facts that the method tells of its training.
        policy: What the policy says of itself.
        dataset: Facts on the data; none for methods that need none.
        versions: Of the packages that results depend on.
        timing: Seconds, of this machine; all else repeats on any.
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
    """How much a learning curve rose in the end.

    Attributes:
        mean: In units of the score.
        error: Its standard error.
    """

    mean: float
    error: float

    @property
    def kind(self) -> Literal["rising", "flat", "falling"]:
        """Whether it is beyond twice its standard error."""
        if abs(self.mean) <= 2 * self.error:
            return "flat"
        return "rising" if self.mean > 0 else "falling"


def read_result(path: Path) -> CellResult:
    """Read a `result.json`.

    Raises:
        CheckpointError: It is damaged, or of another schema.
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
    return CellResult(
        cell=cell,
        label=str(data.get("label", "")),
        evaluations=tuple(data["evaluations"]),
        curve=tuple(data["curve"]),
        training=data["training"],
        policy=data.get("policy", {}),
        dataset=data.get("dataset"),
        versions=data["versions"],
        timing=data["timing"],
    )


def rise_of(curve: Sequence[Mapping[str, Any]]) -> Rise | None:
    """Return how much a learning curve rose in the end.

    That is the mean score of its last three evaluations minus that of the three before.
    All have the same episodes, so the error is that of the episodes' own rises: what
    makes one episode harder than another cancels out. How much checkpoints differ among
    themselves is not in it. Curves that go up and down are therefore called rising more
    often than by chance, and trainings go on rather than end too early.

    Args:
        curve: Evaluations during training.

    Returns:
        None where the curve is shorter, or keeps no episodes.
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
            f"{root} holds no benchmark: there is no folder {root / 'cells'}. Make one "
            f"with: diffuser-policy benchmark run SUITE --output {root}"
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
