"""What a benchmark's folder holds, put in order: problems, methods, results, gaps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from diffuser_policy.benchmark.cells import CellFolder
from diffuser_policy.benchmark.methods import label, short_name
from diffuser_policy.benchmark.problem import Problem
from diffuser_policy.benchmark.report.estimates import (
    pooled_mean,
    rate_interval,
    run_interval,
)
from diffuser_policy.benchmark.report.versions import check_versions
from diffuser_policy.benchmark.results import CellResult, cell_folders, load_results
from diffuser_policy.benchmark.suites import read_suite
from diffuser_policy.errors import CheckpointError, ConfigError
from diffuser_policy.evaluation.statistics import Interval
from diffuser_policy.settings import differences

BLOCKS = ("Maze2D", "Multi2D", "KukaStack")
OTHER = "Other"
SIZES = ("UMaze", "Medium", "Large", "Unconditional", "Conditional", "Rearrangement")
NOT_BEGUN = "not begun"
PLANNER = "diffuser"
BASELINES = ("bcq", "cql", "iql", "td3-bc", "rebrac", "awac", "bc", "dt")
# They practise or search in the environment itself, or are what the data are from.
REFERENCES = ("mppi-simulator", "cem-simulator", "sac-her", "demonstrator")


@dataclass(frozen=True)
class Row:
    """A problem as a row of tables.

    Attributes:
        problem: It.
        title: As "Maze2D-UMaze".
        block: Rows of a block are averaged.
        measure: What episodes are rated by: `score`, or `return` without a scale.
    """

    problem: Problem
    title: str
    block: str
    measure: str

    @property
    def name(self) -> str:
        """What the command line calls it."""
        return self.problem.name


@dataclass(frozen=True, eq=False)
class Entry:
    """One method on one problem: the results of its training seeds.

    Attributes:
        row: The problem.
        method: Its name.
        results: Of each training seed.
    """

    row: Row
    method: str
    results: tuple[CellResult, ...]

    def values(self, name: str) -> np.ndarray:
        """Return a figure `[training seeds, episodes]`, NaN where it lacks.

        Args:
            name: Of the episode or among its details, such as `score`.
        """
        return np.array(
            [[_number(e, name) for e in result.episodes] for result in self.results]
        )

    def has(self, name: str) -> bool:
        """Return whether any episode has a figure."""
        return not math.isnan(pooled_mean(self.values(name)))

    def by_seed(self, name: str) -> list[dict[int, float]]:
        """Return a figure of each training seed's episodes, by episode seed."""
        return [
            {int(e["seed"]): _number(e, name) for e in result.episodes}
            for result in self.results
        ]

    @cached_property
    def score(self) -> Interval:
        """What its row measures, with its interval."""
        return run_interval(self.values(self.row.measure))

    @cached_property
    def time_to_goal(self) -> Interval:
        """Env steps to the goal, of the episodes that reach it."""
        return run_interval(self.values("time_to_goal"))

    def rate(self, name: str) -> Interval | None:
        """Return the share of successes with its interval; none if they lack."""
        if not self.has(name):
            return None
        return rate_interval(self.values(name))

    def failures(self) -> dict[str, int]:
        """Return how many episodes failed for each reason that was given."""
        found: dict[str, int] = {}
        for result in self.results:
            for episode in result.episodes:
                reason = episode.get("details", {}).get("failure")
                if reason is not None:
                    found[str(reason)] = found.get(str(reason), 0) + 1
        return found

    @property
    def num_episodes(self) -> int:
        """Of all training seeds."""
        return sum(len(result.episodes) for result in self.results)

    @property
    def repeats_planner(self) -> bool:
        """Whether training seeds loaded the same planner: no trainings of their own."""
        return sum(is_loaded(result) for result in self.results) > 1

    @property
    def seeds(self) -> tuple[int, ...]:
        """Training seeds."""
        return tuple(result.cell.seed for result in self.results)


@dataclass(frozen=True)
class OpenCell:
    """A cell without a result.

    Attributes:
        name: Of its folder.
        state: In words.
        failed: Whether it ended in an error.
    """

    name: str
    state: str
    failed: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Study:
    """A benchmark's results.

    Attributes:
        folder: Where they are.
        rows: Problems in order.
        methods: Names in order.
        entries: By the row's name and the method.
        open_cells: Those without a result.
        mixed: Versions that differ between cells, if this was allowed.
        suites: Names of the suites that the cells are of.
        sources: Files of those suites, by name, as far as known.
        labels: Methods' names in tables, as their cells recorded them.
        note: What the suite of the last run says of its scores.
    """

    folder: Path
    rows: tuple[Row, ...]
    methods: tuple[str, ...]
    entries: Mapping[tuple[str, str], Entry]
    open_cells: tuple[OpenCell, ...]
    mixed: tuple[str, ...]
    suites: tuple[str, ...]
    sources: Mapping[str, str]
    labels: Mapping[str, str]
    note: str

    def label(self, method: str) -> str:
        """Return a method's name in tables; code named by its place is not imported."""
        return self.labels.get(method) or _registered_label(method)

    def entry(self, row: Row, method: str) -> Entry | None:
        """Return the results of a method on a problem, if there are any."""
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

    @property
    def results(self) -> list[CellResult]:
        """All results, ordered by problem and method."""
        return [
            result
            for row in self.rows
            for method in self.methods
            for entry in [self.entry(row, method)]
            if entry is not None
            for result in entry.results
        ]


def load_study(folder: str | Path, *, mixed: bool = False) -> Study:
    """Read a benchmark's folder.

    Args:
        folder: Of the benchmark.
        mixed: Allow cells of different versions in one report.

    Raises:
        ConfigError: It holds no benchmark or no result yet; cells of different versions
            or settings are in one column.
        CheckpointError: A result is damaged, or of another schema.
    """
    results = load_results(folder)
    if not results:
        raise ConfigError(
            f"No cell of {folder} is finished, so there is nothing to report. Go on "
            f"with: diffuser-policy benchmark run SUITE --output {folder}"
        )
    _check_episodes(results, Path(folder))
    differing = check_versions(results, allow=mixed)
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
    others = [name for name in about.get("cells", []) if name not in names]
    sources = {str(about["name"]): str(about["source"])} if "source" in about else {}
    return Study(
        folder=Path(folder),
        rows=rows,
        methods=tuple(sorted({r.cell.method for r in results}, key=_method_order)),
        entries=entries,
        open_cells=(
            *(
                _open_cell(cell)
                for cell in begun
                if not (cell.path / "result.json").is_file()
            ),
            *(OpenCell(name, NOT_BEGUN, False) for name in others),
        ),
        mixed=tuple(differing),
        suites=tuple(sorted({r.cell.suite for r in results if r.cell.suite})),
        sources=sources,
        labels=_labels(results),
        note=str(about.get("note") or ""),
    )


def entries_of(study: Study, rows: Sequence[Row]) -> list[Entry]:
    """Return the results on some problems, by problem and method."""
    found = [study.entry(row, method) for row in rows for method in study.methods]
    return [entry for entry in found if entry is not None]


def is_loaded(result: CellResult) -> bool:
    """Return whether a cell loaded a planner that had been trained before."""
    return bool(result.training.get("loaded"))


def _labels(results: Sequence[CellResult]) -> dict[str, str]:
    """Return recorded labels; those that several methods share, with their names."""
    found = {r.cell.method: r.label for r in results if r.label}
    labels = [*found.values()]
    return {
        name: text if labels.count(text) == 1 else f"{text} ({short_name(name)})"
        for name, text in found.items()
    }


@cache  # a look-up goes through all installed packages
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
                f"Cells of {problem.name} are of different problems ({there}). Keep "
                f"them in folders of their own."
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
    """Sort Diffuser, the baselines, other methods, what they are measured by."""
    for rank, names in ((0, (PLANNER,)), (1, BASELINES), (3, REFERENCES)):
        if name in names:
            return rank, names.index(name), name
    return 2, 0, name


def _check_episodes(results: Sequence[CellResult], folder: Path) -> None:
    """Refuse results without episodes, or with episodes that lack what is counted."""
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
                f"{place} is damaged: no episodes, or returns that are no numbers. "
                f"Delete it, and run the cell again."
            )


def _check_alike(results: Sequence[CellResult]) -> None:
    """Refuse to average training seeds of different settings or episodes."""
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
    error, progress = folder.read("error"), folder.read("progress")
    if isinstance(error, dict):
        said = " ".join(str(error.get("message", "")).split())
        return OpenCell(
            folder.path.name, f"failed: {error.get('type', 'error')}: {said}", True
        )
    if isinstance(progress, dict):
        done, total = progress.get("done"), progress.get("total")
        state = f"unfinished: {progress.get('stage', '')}, {done} of {total}"
        return OpenCell(folder.path.name, state, False)
    return OpenCell(folder.path.name, NOT_BEGUN, False)
