"""What a benchmark measured: its problems, methods and results, and what is missing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from diffuser_policy.benchmark.cells import CellFolder
from diffuser_policy.benchmark.methods import label, short_name
from diffuser_policy.benchmark.problem import Problem
from diffuser_policy.benchmark.report.estimates import (
    pooled_mean,
    rate_interval,
    run_interval,
)
from diffuser_policy.benchmark.results import (
    RECORDED,
    CellResult,
    cell_folders,
    load_results,
)
from diffuser_policy.benchmark.suites import read_suite
from diffuser_policy.errors import CheckpointError, ConfigError
from diffuser_policy.evaluation.statistics import Interval
from diffuser_policy.settings import differences

BLOCKS = ("Maze2D", "Multi2D", "KukaStack")
OTHER = "Other"
Versions = Mapping[str, Mapping[str, Sequence[str]]]  # package → version → cells
SIZES = ("UMaze", "Medium", "Large", "Unconditional", "Conditional", "Rearrangement")
PLANNER = "diffuser"
BASELINES = ("bcq", "cql", "iql", "td3-bc", "rebrac", "awac", "bc", "dt")
# References act or search in the environment itself, or made the data.
REFERENCES = ("mppi-simulator", "cem-simulator", "sac-her", "demonstrator")


@dataclass(frozen=True)
class Row:
    """A problem as a row of tables.

    Attributes:
        problem: What the methods are compared on.
        title: Its name in tables, such as "Maze2D-UMaze".
        block: The rows of a block are averaged.
        measure: What rates an episode: `score`, or `return` where there is no score.
    """

    problem: Problem
    title: str
    block: str
    measure: str

    @property
    def name(self) -> str:
        """The problem's name on the command line."""
        return self.problem.name


@dataclass(frozen=True, eq=False)
class Entry:
    """One method on one problem: the results of its training seeds.

    Attributes:
        row: The problem.
        method: The method's name.
        results: One for each training seed.
    """

    row: Row
    method: str
    results: tuple[CellResult, ...]

    def values(self, name: str) -> np.ndarray:
        """Return a figure `[training seeds, episodes]`, NaN where it is missing.

        Args:
            name: A figure of episodes or of their details, such as `score`.
        """
        return np.array(
            [[_number(e, name) for e in result.episodes] for result in self.results]
        )

    def has(self, name: str) -> bool:
        """Return whether any episode has this figure."""
        return not math.isnan(pooled_mean(self.values(name)))

    def by_seed(self, name: str) -> list[dict[int, float]]:
        """Return a figure of each training run, by the episode's seed."""
        return [
            {int(e["seed"]): _number(e, name) for e in result.episodes}
            for result in self.results
        ]

    @cached_property
    def score(self) -> Interval:
        """Mean of the problem's measure, with its interval."""
        return run_interval(self.values(self.row.measure))

    @cached_property
    def time_to_goal(self) -> Interval:
        """Mean number of env steps of the episodes that reach the goal."""
        return run_interval(self.values("time_to_goal"))

    def rate(self, name: str) -> Interval | None:
        """Return the share of successes with its interval; None if unknown."""
        if not self.has(name):
            return None
        return rate_interval(self.values(name))

    def failures(self) -> Counter[str]:
        """Return the number of failed episodes by reason."""
        details = [e.get("details", {}) for r in self.results for e in r.episodes]
        reasons = [found.get("failure") for found in details]
        return Counter(str(reason) for reason in reasons if reason is not None)

    @property
    def num_episodes(self) -> int:
        """Number of episodes of all training seeds together."""
        return sum(len(result.episodes) for result in self.results)

    @property
    def repeats_planner(self) -> bool:
        """Whether its training seeds loaded one planner instead of training."""
        return sum(is_loaded(result) for result in self.results) > 1

    @property
    def seeds(self) -> tuple[int, ...]:
        """The training seeds."""
        return tuple(result.cell.seed for result in self.results)


@dataclass(frozen=True)
class OpenCell:
    """A cell without a result.

    Attributes:
        name: Name of its folder.
        kind: How far it got.
        detail: The error, or how much is done.
    """

    name: str
    kind: Literal["failed", "unfinished", "not begun"]
    detail: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Study:
    """A benchmark's results.

    Attributes:
        folder: The benchmark's folder.
        rows: The problems, in the order of tables.
        methods: The methods' names, in the order of tables.
        entries: Results by the problem's and the method's name.
        open_cells: The cells without a result.
        versions: Of each package, the versions, each with the cells that it made.
        suites: Names of the suites that the cells belong to.
        sources: Files of those suites, by name, as far as known.
        labels: Methods' names in tables, as their cells recorded them.
        note: What the suite of the last run says about its scores.
    """

    folder: Path
    rows: tuple[Row, ...]
    methods: tuple[str, ...]
    entries: Mapping[tuple[str, str], Entry]
    open_cells: tuple[OpenCell, ...]
    versions: Versions
    suites: tuple[str, ...]
    sources: Mapping[str, str]
    labels: Mapping[str, str]
    note: str

    def label(self, method: str) -> str:
        """Return a method's name in tables, without importing files of methods."""
        return self.labels.get(method) or _registered_label(method)

    def entry(self, row: Row, method: str) -> Entry | None:
        """Return the results of a method on a problem, if any."""
        return self.entries.get((row.name, method))

    def block(self, name: str) -> list[Row]:
        """Return the rows of a block."""
        return [row for row in self.rows if row.block == name]

    def blocks(self) -> list[str]:
        """Return the names of the blocks that have rows."""
        return list(dict.fromkeys(row.block for row in self.rows))

    def methods_of(self, rows: Sequence[Row]) -> list[str]:
        """Return the methods with a result on any of these problems."""
        return [m for m in self.methods if any(self.entry(row, m) for row in rows)]

    def entries_of(self, rows: Sequence[Row]) -> list[Entry]:
        """Return the results on some problems, by problem and method."""
        found = [self.entry(row, method) for row in rows for method in self.methods]
        return [entry for entry in found if entry is not None]

    @property
    def results(self) -> list[CellResult]:
        """All results, ordered by problem and method."""
        return [r for entry in self.entries_of(self.rows) for r in entry.results]


def load_study(folder: str | Path, *, mixed: bool = False) -> Study:
    """Read a benchmark's folder.

    Args:
        folder: The benchmark's folder.
        mixed: Accept cells that different versions made.

    Raises:
        ConfigError: The folder holds no benchmark or no result yet, or cells of
            different versions or settings would share a column.
        CheckpointError: A result is damaged, or has another schema.
    """
    results = load_results(folder)
    if not results:
        raise ConfigError(
            f"No cell of {folder} is finished, so there is nothing to report. "
            f"Resume it: diffuser-policy benchmark run SUITE --output {folder}"
        )
    _check_episodes(results, Path(folder))
    versions = _versions_of(results)
    if not mixed:
        _check_versions(versions)
    rows = _rows(results)
    grouped: dict[tuple[str, str], list[CellResult]] = {}
    for result in results:
        key = (result.cell.problem.name, result.cell.method)
        grouped.setdefault(key, []).append(result)
    by_name = {row.name: row for row in rows}
    entries = {}
    for (name, method), found in grouped.items():
        found.sort(key=lambda result: result.cell.seed)
        _check_alike(found)
        entries[name, method] = Entry(by_name[name], method, tuple(found))
    about = read_suite(Path(folder))
    begun = cell_folders(folder)
    names = {cell.path.name for cell in begun}
    open_cells = [
        _open_cell(cell) for cell in begun if not (cell.path / "result.json").is_file()
    ]
    open_cells += [
        OpenCell(name, "not begun")
        for name in about.get("cells", [])
        if name not in names
    ]
    return Study(
        folder=Path(folder),
        rows=rows,
        methods=tuple(sorted({r.cell.method for r in results}, key=_method_order)),
        entries=entries,
        open_cells=tuple(open_cells),
        versions=versions,
        suites=tuple(sorted({r.cell.suite for r in results if r.cell.suite})),
        sources={str(about["name"]): str(about["source"])} if "source" in about else {},
        labels=_labels(results),
        note=str(about.get("note") or ""),
    )


def is_loaded(result: CellResult) -> bool:
    """Return whether a cell loaded a planner that had been trained before."""
    return bool(result.training.get("loaded"))


def _labels(results: Sequence[CellResult]) -> dict[str, str]:
    """Return recorded labels; a label that methods share is followed by their names."""
    found = {r.cell.method: r.label for r in results if r.label}
    labels = [*found.values()]
    return {
        name: text if labels.count(text) == 1 else f"{text} ({short_name(name)})"
        for name, text in found.items()
    }


@cache  # a look-up searches all installed packages
def _registered_label(name: str) -> str:
    return short_name(name) if ":" in name else label(name)


def _number(episode: Mapping[str, Any], name: str) -> float:
    value = episode.get(name, episode.get("details", {}).get(name))
    return math.nan if value is None else float(value)


def _rows(results: Sequence[CellResult]) -> tuple[Row, ...]:
    """Return the problems in the paper's order, then all others by name."""
    problems: dict[str, Problem] = {}
    scored: dict[str, bool] = {}
    for result in results:
        problem = result.cell.problem
        known = problems.setdefault(problem.name, problem)
        if known.to_json() != problem.to_json():
            there = "; ".join(differences(known.to_json(), problem.to_json()))
            raise ConfigError(
                f"The cells named {problem.name} solve different problems ({there}). "
                f"Keep each problem's cells in a folder of their own."
            )
        every = all(episode.get("score") is not None for episode in result.episodes)
        scored[problem.name] = scored.get(problem.name, True) and every
    rows = []
    for name, problem in problems.items():
        title = problem.title
        block = next((b for b in BLOCKS if title.startswith(f"{b}-")), OTHER)
        rows.append(Row(problem, title, block, "score" if scored[name] else "return"))
    return tuple(sorted(rows, key=_row_order))


def _row_order(row: Row) -> tuple[int, int, str]:
    size = row.title.partition("-")[2]
    return (
        (*BLOCKS, OTHER).index(row.block),
        SIZES.index(size) if size in SIZES else len(SIZES),
        row.title,
    )


def _method_order(name: str) -> tuple[int, int, str]:
    """Put Diffuser first, then baselines, other methods, and references."""
    for rank, names in ((0, (PLANNER,)), (1, BASELINES), (3, REFERENCES)):
        if name in names:
            return rank, names.index(name), name
    return 2, 0, name


def _check_episodes(results: Sequence[CellResult], folder: Path) -> None:
    """Refuse results without episodes, or whose episodes lack a seed or a return."""
    for result in results:
        place = CellFolder(folder, result.cell.id).path / "result.json"
        try:
            complete = [
                isinstance(episode["seed"], int) and math.isfinite(episode["return"])
                for episode in result.episodes
            ]
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"{place} is damaged: an episode lacks its seed or return ({error}). "
                f"Delete it, and run the cell again."
            ) from error
        if not complete or not all(complete):
            raise CheckpointError(
                f"{place} is damaged: no episodes, or returns that are not numbers. "
                f"Delete it, and run the cell again."
            )


def _check_alike(results: Sequence[CellResult]) -> None:
    """Refuse training seeds that differ in settings or episodes."""
    first = results[0].cell
    episodes = [episode["seed"] for episode in results[0].episodes]
    for result in results[1:]:
        there, here = first.to_json(), result.cell.to_json()
        for data in (there, here):
            del data["suite"], data["seed"]
        if there != here:
            raise ConfigError(
                f"{first.id} and {result.cell.id} differ in more than their training "
                f"seed ({'; '.join(differences(there, here))}), so they cannot share a "
                f"column. Keep them in folders of their own."
            )
        if [episode["seed"] for episode in result.episodes] != episodes:
            raise ConfigError(
                f"{first.id} and {result.cell.id} have different episodes, so they "
                f"cannot share a column. Delete the result.json that lacks some, and "
                f"run the cell again."
            )


def _open_cell(folder: CellFolder) -> OpenCell:
    name = folder.path.name
    error, progress = folder.read("error"), folder.read("progress")
    if isinstance(error, dict):
        message = " ".join(str(error.get("message", "")).split())
        return OpenCell(name, "failed", f"{error.get('type', 'error')}: {message}")
    if isinstance(progress, dict):
        done, total = progress.get("done"), progress.get("total")
        stage = progress.get("stage", "")
        return OpenCell(name, "unfinished", f"{stage}, {done} of {total}")
    return OpenCell(name, "not begun")


def _versions_of(results: Sequence[CellResult]) -> Versions:
    found: dict[str, dict[str, list[str]]] = {}
    for result in sorted(results, key=lambda result: result.cell.id):
        for package, version in result.versions.items():
            cells = found.setdefault(package, {}).setdefault(str(version), [])
            cells.append(result.cell.id)
    return {package: dict(sorted(groups.items())) for package, groups in found.items()}


def mixed_versions(versions: Versions) -> Versions:
    """Return the packages of which several versions made results.

    A package that is missing in some cells is no difference: only the methods that need
    it have it.
    """
    return {
        name: versions[name] for name in RECORDED if len(versions.get(name, ())) > 1
    }


def _check_versions(versions: Versions) -> None:
    """Refuse results of different versions."""
    differing = [
        f"{package} "
        + " and ".join(
            f"{version} ({len(cells)} cells, such as {cells[0]})"
            for version, cells in groups.items()
        )
        for package, groups in mixed_versions(versions).items()
    ]
    if differing:
        raise ConfigError(
            f"Different versions made the cells: {'; '.join(differing)}. Expected one "
            f"version of each package. Run the cells of one version again in another "
            f"folder, or report all of them with --mixed-versions."
        )
