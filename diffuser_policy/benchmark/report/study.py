"""What a benchmark measured: its problems, methods and results, and what is missing."""

from __future__ import annotations

import math
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from numbers import Real
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from diffuser_policy.benchmark.cells import (
    RECORDED,
    CellFolder,
    CellResult,
    cell_folders,
    load_results,
)
from diffuser_policy.benchmark.context import rise_of
from diffuser_policy.benchmark.methods import find_method, short_name
from diffuser_policy.benchmark.problem import Problem
from diffuser_policy.benchmark.suites import read_suite
from diffuser_policy.envs import HOMES
from diffuser_policy.errors import CheckpointError, ConfigError, DiffuserPolicyError
from diffuser_policy.evaluation.statistics import (
    Comparison,
    Interval,
    pooled_mean,
    rate_interval,
    run_interval,
)
from diffuser_policy.settings import differences
from diffuser_policy.words import counted

BLOCKS = (
    *("Maze2D", "Multi2D", "HalfCheetah", "Hopper", "Walker2d", "KukaStack"),
    "OGBench",
)
OTHER = "Other"
Versions = Mapping[str, Mapping[str, Sequence[str]]]  # package → version → cells
SIZES = (
    *("UMaze", "Medium", "Large"),
    *("medium-expert", "medium", "medium-replay"),
    *("Unconditional", "Conditional", "Rearrangement"),
    *("Medium-navigate", "Large-navigate", "Giant-navigate"),
    *("Medium-stitch", "Large-stitch", "Giant-stitch"),
)
PLANNER = "diffuser"
BASELINES = (
    *("diffuser-paper", "bcq", "cql", "iql", "td3-bc", "rebrac", "awac"),
    *("bc", "bc-best", "dt", "mbop"),
)
# References act or search in the environment itself, or made the data.
REFERENCES = ("mppi-simulator", "cem-simulator", "sac-her", "demonstrator")
SLACK = 0.1  # share of a critic's allowed range by which approximation may leave it


@dataclass(frozen=True)
class Row:
    """A problem as a row of tables.

    Attributes:
        problem: What the methods are compared on.
        block: The rows of a block are averaged.
        measure: What rates an episode: `score`, or `return` where there is no score.
    """

    problem: Problem
    block: str
    measure: str

    @property
    def name(self) -> str:
        """The problem's name on the command line."""
        return self.problem.name

    @property
    def title(self) -> str:
        """The problem's name in tables, such as "Maze2D-UMaze"."""
        return self.problem.title


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

    def by_seed(self, name: str) -> list[dict[int, float]]:
        """Return a figure of each training run, by the episode's seed.

        It is of episodes or of their details, such as `score`; NaN where it is missing.
        """
        return [
            {int(e["seed"]): _number(e, name) for e in result.episodes}
            for result in self.results
        ]

    def values(self, name: str) -> np.ndarray:
        """Return a figure `[training seeds, episodes]` as `by_seed` does."""
        return np.array(
            [[_number(e, name) for e in result.episodes] for result in self.results]
        )

    @cached_property
    def score(self) -> Interval:
        """Mean of the problem's measure, with its interval."""
        return run_interval(self.values(self.row.measure))

    @cached_property
    def time_to_goal(self) -> Interval:
        """Mean number of env steps of the episodes that reach the goal."""
        return run_interval(self.values("time_to_goal"))

    @cached_property
    def comparisons(self) -> dict[Entry, Comparison | None]:
        """Comparisons with other methods, as far as they were made."""
        return {}

    def rate(self, name: str) -> Interval | None:
        """Return the share of successes with its interval; None if unknown."""
        values = self.values(name)
        return None if math.isnan(pooled_mean(values)) else rate_interval(values)


class Behavior(NamedTuple):
    """What the data's own episodes earned, in a problem's measure.

    Attributes:
        mean: Mean of all episodes.
        best: Figure of the best episode.
    """

    mean: float
    best: float


def _number(episode: Mapping[str, Any], name: str) -> float:
    value = episode.get(name, episode.get("details", {}).get(name))
    return float(value) if isinstance(value, Real) else math.nan


class OpenCell(NamedTuple):
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

    def methods_of(self, rows: Sequence[Row]) -> list[str]:
        """Return the methods with a result on any of these problems."""
        return [m for m in self.methods if any(self.entry(row, m) for row in rows)]

    def entries_of(self, rows: Sequence[Row]) -> list[Entry]:
        """Return the results on some problems, by problem and method."""
        found = [self.entry(row, method) for row in rows for method in self.methods]
        return [entry for entry in found if entry is not None]

    def behavior(self, row: Row) -> Behavior | None:
        """Return what a problem's data earned, if a method that read them noted it."""
        for entry in self.entries_of([row]):
            known = (entry.results[0].dataset or {}).get("behavior") or {}
            if f"mean_{row.measure}" in known:
                ends = (known[f"{end}_{row.measure}"] for end in Behavior._fields)
                return Behavior(*map(float, ends))
        return None

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
    folder = Path(folder)
    results = load_results(folder)
    if not results:
        raise ConfigError(
            f"No cell of {folder} is finished, so there is nothing to report. "
            f"Resume it: diffuser-policy benchmark run SUITE --output "
            f"{shlex.quote(str(folder))}"
        )
    _check_episodes(results, folder)
    versions = _versions_of(results)
    if not mixed and (differing := mixed_versions(versions)):
        told = [
            f"{package} {version} ({counted(len(cells), 'cell')}, such as {cells[0]})"
            for package, groups in differing.items()
            for version, cells in groups.items()
        ]
        raise ConfigError(
            f"Different versions made the cells: {'; '.join(told)}. Expected one "
            f"version of each package. Run the cells of one version again in another "
            f"folder, or report all of them with --mixed-versions."
        )
    rows = _rows(results)
    grouped: dict[tuple[str, str], list[CellResult]] = {}
    for result in sorted(results, key=lambda result: result.cell.seed):
        key = (result.cell.problem.name, result.cell.method)
        grouped.setdefault(key, []).append(result)
    for found in grouped.values():
        _check_alike(found)
    about, begun = read_suite(folder), cell_folders(folder)
    open_cells = [
        _open_cell(cell) for cell in begun if not (cell.path / "result.json").is_file()
    ]
    names = {cell.path.name for cell in begun}
    labels = {r.cell.method: r.label for r in results if r.label}
    shared = {text for text, number in Counter(labels.values()).items() if number > 1}
    missing = [name for name in about.get("cells", []) if name not in names]
    return Study(
        folder=folder,
        rows=rows,
        methods=tuple(sorted({r.cell.method for r in results}, key=_method_order)),
        entries={
            (row.name, method): Entry(row, method, tuple(grouped[row.name, method]))
            for row in rows
            for name, method in grouped
            if name == row.name
        },
        open_cells=(*open_cells, *(OpenCell(name, "not begun") for name in missing)),
        versions=versions,
        suites=tuple(sorted({r.cell.suite for r in results if r.cell.suite})),
        sources={str(about["name"]): str(about["source"])} if "source" in about else {},
        labels={
            name: f"{text} ({short_name(name)})" if text in shared else text
            for name, text in labels.items()
        },
        note=str(about.get("note") or ""),
    )


def is_loaded(result: CellResult) -> bool:
    """Return whether a cell loaded a planner that had been trained before."""
    return bool(result.training.get("loaded"))


@cache  # a look-up searches all installed packages
def _registered_label(name: str) -> str:
    try:
        return short_name(name) if ":" in name else find_method(name).label
    except DiffuserPolicyError:
        return name


def _rows(results: Sequence[CellResult]) -> tuple[Row, ...]:
    """Return the problems in the paper's order, then all others by name."""
    problems: dict[str, Problem] = {}
    unscored = set()
    for result in results:
        problem = result.cell.problem
        known = problems.setdefault(problem.name, problem)
        if known != problem:
            there = "; ".join(differences(known.to_json(), problem.to_json()))
            raise ConfigError(
                f"The cells named {problem.name} solve different problems ({there}). "
                f"Keep each problem's cells in a folder of their own."
            )
        if any(episode.get("score") is None for episode in result.episodes):
            unscored.add(problem.name)
    rows = []
    for name, problem in problems.items():
        block = problem.title.partition("-")[0]
        if re.match(HOMES["ogbench"][1], problem.env):
            block = "OGBench"
        measure = "return" if name in unscored else "score"
        rows.append(Row(problem, block if block in BLOCKS else OTHER, measure))

    def order(row: Row) -> tuple[int, int, str]:
        names = (row.title, row.title.partition("-")[2])
        place = min((SIZES.index(n) for n in names if n in SIZES), default=len(SIZES))
        return (*BLOCKS, OTHER).index(row.block), place, row.title

    return tuple(sorted(rows, key=order))


def _method_order(name: str) -> tuple[int, int, str]:
    """Put Diffuser first, then baselines, other methods, and references."""
    for rank, names in ((0, (PLANNER,)), (1, BASELINES), (3, REFERENCES)):
        if name in names:
            return rank, names.index(name), name
    return 2, 0, name


def _check_episodes(results: Sequence[CellResult], folder: Path) -> None:
    """Refuse results without episodes, or with episodes without seed or figures."""
    for result in results:
        told = "it has no episodes, or returns or scores that are not numbers"
        try:
            complete = [
                isinstance(episode["seed"], int) and _is_rated(episode)
                for episode in result.episodes
            ]
        except (KeyError, TypeError) as error:
            complete, told = [], f"an episode lacks its seed or return ({error})"
        if not complete or not all(complete):
            raise CheckpointError(
                f"{CellFolder(folder, result.cell.id).path / 'result.json'} is "
                f"damaged: {told}. Delete it, and run the cell again."
            )


def _is_rated(episode: Mapping[str, Any]) -> bool:
    """Return whether return and score are numbers; some have no score."""
    score = episode.get("score")
    figures = [episode["return"], 0.0 if score is None else score]
    return all(isinstance(f, Real) and math.isfinite(f) for f in figures)


def _check_alike(results: Sequence[CellResult]) -> None:
    """Refuse training seeds that differ in settings, in data or in episodes."""
    first, *others = results
    episodes = [episode["seed"] for episode in first.episodes]
    for result in others:
        told = f"{first.cell.id} and {result.cell.id}"
        there, here = _shared(first, result), _shared(result, first)
        if there != here:
            raise ConfigError(
                f"{told} differ in more than their training seed "
                f"({'; '.join(differences(there, here))}), so they cannot share a "
                f"column. Keep them in folders of their own."
            )
        if [episode["seed"] for episode in result.episodes] != episodes:
            raise ConfigError(
                f"{told} have different episodes, so they cannot share a column. "
                f"Delete the result.json that lacks some, and run the cell again."
            )


def _shared(result: CellResult, other: CellResult) -> dict[str, Any]:
    """Return the facts that all training seeds must share.

    Defaults count, which may change between versions, and sizes of networks, which may
    be chosen to suit the data; unless an earlier version did not record them.
    """
    facts = _in_both(_facts(result), _facts(other))
    return result.cell.to_json() | {"suite": "", "seed": 0} | facts


def _facts(result: CellResult) -> dict[str, Any]:
    facts = {
        "all_settings": result.training.get("settings") or {},
        "num_parameters": result.training.get("num_parameters"),
        "data": (result.dataset or {}).get("checksum"),
        "code": result.code,
        "planner": result.planner,
    }
    own = {"class", "seed"}  # classes are ours, and were renamed
    if not is_loaded(result):
        own.add("trained_steps")
    parts = result.policy.keys() - own
    facts |= {f"policy.{name}": result.policy[name] for name in sorted(parts)}
    return {name: fact for name, fact in facts.items() if fact is not None}


def _in_both(facts: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts that the others have too, and so of facts that are tables."""
    found = {}
    for name in facts.keys() & others.keys():
        fact, other = facts[name], others[name]
        if isinstance(fact, dict) and isinstance(other, dict):
            fact = {key: value for key, value in fact.items() if key in other}
        found[name] = fact
    return found


def _open_cell(folder: CellFolder) -> OpenCell:
    name, error, progress = folder.path.name, *map(folder.read, ("error", "progress"))
    if isinstance(error, dict):
        message = " ".join(str(error.get("message", "")).split())
        return OpenCell(name, "failed", f"{error.get('type', 'error')}: {message}")
    if isinstance(progress, dict):
        stage, done, total = map(progress.get, ("stage", "done", "total"))
        return OpenCell(name, "unfinished", f"{stage}, {done} of {total}")
    return OpenCell(name, "not begun")


def _versions_of(results: Sequence[CellResult]) -> Versions:
    found: dict[str, dict[str, list[str]]] = {}
    made = {(*pair, r.cell.id) for r in results for pair in r.versions.items()}
    for package, version, cell in sorted(made):
        found.setdefault(package, {}).setdefault(version, []).append(cell)
    return found


def mixed_versions(versions: Versions) -> Versions:
    """Return the packages of which several versions made results.

    A package that is missing in some cells is no difference: only the methods that need
    it have it.
    """
    return {
        name: versions[name] for name in RECORDED if len(versions.get(name, ())) > 1
    }


# --- how trainings went -------------------------------------------------------------


class Curve(NamedTuple):
    """A learning curve.

    Attributes:
        steps: Gradient steps `[points]`.
        mean: Mean `[points]` over the training seeds.
        low: Lower end `[points]` of the band.
        high: Upper end `[points]` of the band.
    """

    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def curve_of(entry: Entry) -> Curve | None:
    """Return the learning curve of a method on a problem, if it has one.

    With one training seed, the band is the 95 % interval over the evaluation's
    episodes; with several, it spans the means of the training seeds, as far as all of
    them trained. Where they were evaluated at other steps, curves are interpolated.
    """
    runs = [_points(result, entry.row.measure) for result in entry.results]
    runs = [points for points in runs if len(points)]
    if len(runs) < 2:
        return Curve(*runs[0].T) if runs else None
    steps = min((points[:, 0] for points in runs), key=lambda each: float(each[-1]))
    means = np.array([np.interp(steps, each[:, 0], each[:, 1]) for each in runs])
    return Curve(steps, means.mean(axis=0), means.min(axis=0), means.max(axis=0))


def _points(result: CellResult, measure: str) -> np.ndarray:
    """Return steps, means and intervals `[points, 4]` of a learning curve, if any."""
    found = {
        int(point["step"]): figures
        for point in result.curve
        if (figures := point.get(measure)) is not None
    }
    rows = [[step, f["mean"], f["low"], f["high"]] for step, f in sorted(found.items())]
    return np.array(rows, np.float64).reshape(-1, 4)


def curve_end(
    result: CellResult,
) -> Literal["rising", "flat", "falling", "constant"] | None:
    """Return how a cell's learning curve ended; None for curves too short to tell.

    A constant curve had the same score in every episode of every evaluation, which does
    not tell whether the method learned anything.
    """
    rise = rise_of(result.curve)
    if rise is None:
        return None
    scores = {value for point in result.curve for value in point.get("values") or ()}
    return "constant" if len(scores) == 1 else rise.kind


class Critic(NamedTuple):
    """The values that a critic gives to the actions of the data.

    Attributes:
        low: 5 % of the values are below.
        median: Half of the values are below.
        high: 95 % of the values are below.
        lowest: What rewards and discount allow at least.
        highest: What they allow at most.
    """

    low: float
    median: float
    high: float
    lowest: float
    highest: float

    @property
    def verdict(self) -> Literal["inside", "too high", "too low"]:
        """Whether the median lies in the allowed range, give or take a tenth of it."""
        slack = SLACK * (self.highest - self.lowest)
        if self.median > self.highest + slack:
            return "too high"
        return "too low" if self.median < self.lowest - slack else "inside"


def critic_of(result: CellResult) -> Critic | None:
    """Return the values of a cell's critic; None if there is none, or none recorded."""
    found = result.training.get("values")
    if not found:
        return None
    names = ("low", "median", "high")
    return Critic(*map(float, [*(found[name] for name in names), *found["possible"]]))
