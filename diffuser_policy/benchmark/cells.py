"""A cell: one problem, one method, one training seed; its folder, and its result.

<benchmark>/cells/<id>/cell.json       what the cell is, its digest, and what it runs
                       versions.json   of the packages that it was begun with
                       lock            held while a process runs it
                       progress.json   what it is doing
                       clock.json      the time it has taken
                       curve.json      evaluations during training
                       evaluation-*    those afterwards, one by one
                       error.json      why it failed the last time
                       log.txt         what the process printed
                       work/           the method's own: checkpoints, weights
                       result.json     written when all is done

`result.json` keeps the episodes of an evaluation as columns:

    {"seed": 30000, "episodes": 100,
     "columns": {"return": [219.0, …], "length": 300, …},
     "details": {"failure": [null, …], …}}

A column with the same value in all episodes is stored as that value. Episode i has seed
`seed` + i, unless there is a column of seeds. Starts, goals and lists among the details
are left out; they stay in the cell's `evaluation-*.json`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from diffuser_policy.benchmark.methods import find_method, short_name
from diffuser_policy.benchmark.problem import Problem
from diffuser_policy.errors import CheckpointError, ConfigError
from diffuser_policy.files import held, write_text
from diffuser_policy.plugins import checksum_of_code
from diffuser_policy.settings import (
    differences,
    from_json,
    plain,
    positive,
    seed_or_drawn,
    to_json,
    typed,
)
from diffuser_policy.versions import PACKAGES, SIMULATORS

CURVE_SEED = 900_000  # the first of the learning curves' episodes: nobody else's
ADDED = ("digest", "all_settings", "code", "planner")  # to the fields, in cell.json
NOT_COMPARED = {"suite", "digest"}
RETIRED = {"clip_values": False}  # settings that methods had, with their old defaults
SCHEMA = 1
SUITE_FILE = "suite.json"
RECORDED = tuple(
    dict.fromkeys(
        (*PACKAGES, *SIMULATORS, "d3rlpy", "pytorch-mppi", "stable-baselines3")
    )
)
THEN = ", then "  # between the versions of a package that a cell was made with
PASSING = {"clock", "progress"}  # written too often to be synced, and not missed
LEFT_OUT = {"seed", "start", "goal", "details"}  # of an episode's columns


@dataclass(frozen=True, kw_only=True)
class EvaluationProtocol:
    """Episodes that every method of a suite is evaluated on.

    Attributes:
        seeds: Each is the first of `episodes` seeds in a row.
        episodes: Per seed, after training.
        num_envs: Environments at a time.
        curve_episodes: Per evaluation during training, on seeds of their own.
        curve_points: Evaluations by the end of the budget of gradient steps, at most.
    """

    seeds: tuple[int, ...] = (30_000, 31_000, 32_000)
    episodes: int = 100
    num_envs: int = 50
    curve_episodes: int = 20
    curve_points: int = 10

    def __post_init__(self) -> None:
        typed(self)
        positive(self, "episodes", "num_envs", "curve_episodes", "curve_points")
        if not self.seeds:
            raise ConfigError("Evaluation needs at least one seed.")
        for seed in self.seeds:
            seed_or_drawn(seed, "An evaluation seed")
        self.check_tasks(1)

    def check_tasks(self, num_tasks: int) -> None:
        """Refuse seeds that share episodes in an environment of several tasks.

        Args:
            num_tasks: Each has `episodes` of its own; none count as one.

        Raises:
            ConfigError: Seeds are too near each other, or to those of learning curves.
        """
        episodes = self.episodes * max(1, num_tasks)
        ordered = sorted(self.seeds)
        for before, after in itertools.pairwise(ordered):
            if after - before < episodes:
                raise ConfigError(
                    f"Evaluation seeds {before} and {after} share episodes: they must "
                    f"be at least {episodes} apart, the number of episodes."
                )
        most = self.curve_episodes * max(1, num_tasks)
        for seed in ordered:
            if CURVE_SEED - episodes < seed < CURVE_SEED + most:
                raise ConfigError(
                    f"The evaluation seed {seed} shares episodes with the learning "
                    f"curves, which begin at seed {CURVE_SEED}. Choose another seed."
                )


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What one process does.

    Attributes:
        problem: What the method learns and is evaluated on.
        method: Name of the method.
        seed: Training seed.
        settings: The method's, where they differ from its defaults.
        num_steps: Gradient steps that it takes at least; none: its own choice.
        max_steps: Where it stops although its learning curve still rises; by default
            `num_steps`. Planners and dynamics that are trained here end at that.
        evaluation: Episodes afterwards.
        suite: Name of the suite.
    """

    problem: Problem
    method: str
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    num_steps: int | None = None
    max_steps: int | None = None
    evaluation: EvaluationProtocol = field(default_factory=EvaluationProtocol)
    suite: str = ""

    def __post_init__(self) -> None:
        typed(self)
        seed_or_drawn(self.seed, "A training seed")
        for name in ("num_steps", "max_steps"):
            if getattr(self, name) is not None:
                positive(self, name)
        if self.max_steps and not (self.num_steps and self.num_steps <= self.max_steps):
            raise ConfigError(
                "max_steps needs num_steps, and must not be less: got "
                f"num_steps={self.num_steps}, max_steps={self.max_steps}."
            )

    @property
    def id(self) -> str:
        """A name for the folder: problem, method and seed."""
        return f"{self.problem.name}--{short_name(self.method)}--seed-{self.seed}"

    @property
    def digest(self) -> str:
        """A checksum of everything that results depend on."""
        text = json.dumps(self._work(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def matches(self, other: Cell) -> bool:
        """Return whether both do the same work; 1 and 1.0 are the same."""
        return self._work() == other._work()

    def _work(self) -> dict[str, Any]:
        return {key: value for key, value in self.to_json().items() if key != "suite"}

    def to_json(self) -> dict[str, Any]:
        """Return the cell as JSON data."""
        data = to_json(self) | {"problem": self.problem.to_json()}
        return dict(plain(data))


class CellFolder:
    """Where a cell works and leaves its files, in the folder of a benchmark."""

    def __init__(self, benchmark: str | Path, cell_id: str) -> None:
        self.path = Path(benchmark) / "cells" / cell_id
        self.work = self.path / "work"
        self.log = self.path / "log.txt"

    def write(self, name: str, data: Any) -> None:
        """Write JSON atomically, and without spaces, into the file `name.json`.

        Raises:
            StorageError: The file could not be written.
            ValueError: A number is not finite.
        """
        text = json.dumps(data, separators=(",", ":"), allow_nan=False) + "\n"
        lasting = name not in PASSING
        write_text(self.path / f"{name}.json", text, durable=lasting)

    def read(self, name: str) -> Any:
        """Return the content of the file `name.json`; none if it does not exist.

        Clock and progress are also none if a power cut damaged them.

        Raises:
            CheckpointError: It cannot be read.
        """
        path = self.path / f"{name}.json"
        try:
            return _read(path) if path.is_file() else None
        except CheckpointError:
            if name in PASSING:
                return None
            raise

    def remove(self, name: str) -> None:
        """Delete the file `name.json`, if it exists."""
        (self.path / f"{name}.json").unlink(missing_ok=True)

    def prepare(self, cell: Cell) -> dict[str, Any]:
        """Write into the folder which cell it is for, and return that.

        Raises:
            ConfigError: As `check`.
        """
        told = self.check(cell)
        told["digest"] = _cell_of(told).digest
        self.write("cell", told)
        return told

    def check(self, cell: Cell) -> dict[str, Any]:
        """Refuse a folder that holds work of a cell with other settings.

        A setting that the method did not have at the time makes no difference unless
        the cell sets it: its default keeps the old behavior. Nor does a setting that
        the method has lost since, if it had its default value.

        All of the method's settings count, defaults included, which may change between
        versions. So do the cell's own, which are part of its digest: a value that is
        given differs from the same value by default.

        Methods that are named by their place (`file.py:function`, `module:function`)
        count by their file, and a planner that a setting `planner` names by its weights
        and settings, unless an earlier version did not record them.

        Returns:
            The cell's fields, all settings, and checksums: `code` of the method's file,
            and `planner`. The fields are as the folder's work has them, which keeps its
            digest where 1 is stored and 1.0 requested.

        Raises:
            ConfigError: The folder holds such work: a result, a learning curve or a
                checkpoint; or a setting of the method has no form in JSON.
        """
        settings = find_method(cell.method).settings(cell.settings)
        now = {
            name: plain(value, f"The setting {name!r} of the method {cell.method!r}")
            for name, value in settings.items()
        }
        asked: dict[str, Any] = {**cell.to_json(), "all_settings": now}
        if (checksum := checksum_of_code(cell.method)) is not None:
            asked["code"] = checksum
        if (checksum := _checksum_of_planner(now.get("planner"))) is not None:
            asked["planner"] = checksum
        saved = self.read("cell")
        if saved is None or not self.holds_work():
            return asked
        then = {
            name: value
            for name, value in saved.get("all_settings", {}).items()
            if name in now or (name, value) not in RETIRED.items()
        }
        known = {name: value for name, value in now.items() if name in then}
        names = (saved.keys() | asked) - NOT_COMPARED
        names -= {"code", "planner"} - saved.keys()
        if "planner" not in asked:
            names -= {"planner"}
        found, wanted = (
            {name: data.get(name) for name in names}
            for data in (
                {**saved, "all_settings": then},
                {**asked, "all_settings": known},
            )
        )
        if found != wanted:
            raise ConfigError(
                f"{self.path} holds results of other settings (stored → requested): "
                f"{'; '.join(differences(found, wanted))}. Choose another output "
                "folder, use the same settings, or delete that folder to begin "
                "the cell anew; nothing was changed."
            )
        if "planner" in saved:  # also where it cannot be read just now
            asked.setdefault("planner", saved["planner"])
        return asked | {key: saved[key] for key in cell._work() if key in saved}

    def holds_work(self) -> bool:
        """Return whether it holds any work."""
        written = [self.path / "curve.json", self.path / "result.json"]
        written += [*self.path.glob("evaluation-*.json"), *self.work.glob("*")]
        return any(path.exists() for path in written)

    def cell(self) -> Cell:
        """Return the cell that the folder is for.

        Raises:
            ConfigError: There is none.
        """
        saved = self.read("cell")
        if saved is None:
            raise ConfigError(
                f"{self.path} is not the folder of a cell: it lacks cell.json."
            )
        return _cell_of(saved)

    @contextlib.contextmanager
    def lock(self) -> Iterator[bool]:
        """Lock the cell, and yield whether it is locked, as `held` does."""
        self.path.mkdir(parents=True, exist_ok=True)
        with held(self.path / "lock") as is_held:
            yield is_held


def _cell_of(data: Mapping[str, Any]) -> Cell:
    """Return the cell of a cell.json."""
    return from_json(Cell, {k: v for k, v in data.items() if k not in ADDED})


def _checksum_of_planner(name: Any) -> str | None:
    """Return a checksum of a planner; none if there is none of that name."""
    if not isinstance(name, str) or not name:
        return None
    from diffuser_policy.checkpoint import planner_checksum  # imports torch

    try:
        return planner_checksum(name)[:16]
    except (CheckpointError, OSError):  # the method's own check tells it
        return None


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
        code: A checksum of the method's file, if the method is named by its place.
        planner: A checksum of the planner that the setting `planner` names.
        timing: Seconds on the machine that ran the cell; all else repeats anywhere.
    """

    cell: Cell
    label: str = ""
    evaluations: tuple[Mapping[str, Any], ...]
    curve: tuple[Mapping[str, Any], ...]
    training: Mapping[str, Any]
    policy: Mapping[str, Any] = field(default_factory=dict)
    dataset: Mapping[str, Any] | None = None
    versions: Mapping[str, str]
    code: str | None = None
    planner: str | None = None
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


def compact_evaluation(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Return the evaluation of a `seed` as `result.json` keeps it.

    Its `episodes` are as `evaluation.report.to_json` gives them.
    """
    first, episodes = evaluation["seed"], evaluation["episodes"]
    figures = [{k: v for k, v in e.items() if k not in LEFT_OUT} for e in episodes]
    details = [episode.get("details", {}) for episode in episodes]
    compact = {"seed": first, "episodes": len(episodes), "columns": _columns(figures)}
    seeds = [episode["seed"] for episode in episodes]
    if seeds != [*range(first, first + len(episodes))]:
        compact["columns"]["seed"] = seeds
    if any(details):
        compact["details"] = _columns(details)
    return compact


def _columns(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return columns by name, without lists; a constant column is its value."""
    columns = {}
    for name in dict.fromkeys(name for record in records for name in record):
        values = [record.get(name) for record in records]
        if not any(isinstance(value, list | tuple | dict) for value in values):
            same = all(value == values[0] for value in values)
            columns[name] = values[0] if same else values
    return columns


def _records(columns: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """Return the records of columns; what a record lacked in `_columns` is None."""
    full = {k: v if isinstance(v, list) else [v] * count for k, v in columns.items()}
    if any(len(values) != count for values in full.values()):
        raise ValueError(f"columns are not of {count} episodes")
    return [{name: full[name][row] for name in full} for row in range(count)]


def _full_evaluation(evaluation: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return an evaluation with a list of episodes; older results have one already."""
    if "columns" not in evaluation:
        return evaluation
    first, count = evaluation["seed"], evaluation["episodes"]
    records = enumerate(_records(evaluation["columns"], count), first)
    episodes: list[dict[str, Any]] = [{"seed": seed, **each} for seed, each in records]
    if "details" in evaluation:
        details = _records(evaluation["details"], count)
        for episode, found in zip(episodes, details, strict=True):
            episode["details"] = found
    return {"seed": first, "episodes": episodes}


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}). Delete it, and run again."
        ) from error


def read_result(path: Path) -> CellResult:
    """Read a `result.json`.

    Raises:
        CheckpointError: The file is damaged, or has another schema.
    """
    data = _read(path)
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema != SCHEMA:
        raise CheckpointError(
            f"{path} has schema {schema!r}, this version reads {SCHEMA}. Run the cell "
            f"again in another folder."
        )
    known = {field.name for field in dataclasses.fields(CellResult)}
    found = {name: value for name, value in data.items() if name in known}
    try:
        found["evaluations"] = [*map(_full_evaluation, data["evaluations"])]
        return from_json(CellResult, found)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is damaged: it lacks parts, or they cannot be read ({error}). "
            f"Delete it, and run the cell again."
        ) from error


def cell_folders(benchmark: str | Path) -> list[CellFolder]:
    """Return the folders of all cells of a benchmark, by name.

    Raises:
        ConfigError: The folder holds no benchmark.
    """
    root = Path(benchmark)
    if not (root / "cells").is_dir():
        advice = "Name the folder of a benchmark."
        begun = (root / SUITE_FILE).is_file()  # and ended before its first cell
        if begun or not root.exists() or (root.is_dir() and not any(root.iterdir())):
            output = shlex.quote(str(root))
            advice = f"Run one: diffuser-policy benchmark run SUITE --output {output}"
        raise ConfigError(
            f"{root} holds no benchmark: there is no folder {root / 'cells'}. {advice}"
        )
    found = sorted(path.parent.name for path in (root / "cells").glob("*/cell.json"))
    return [CellFolder(root, name) for name in found]


def load_results(benchmark: str | Path) -> list[CellResult]:
    """Return the results of all finished cells of a benchmark.

    Raises:
        ConfigError: The folder holds no benchmark.
        CheckpointError: A result is damaged, of another schema, or of another cell
            than its folder's name says, as in a copy.
    """
    paths = [folder.path / "result.json" for folder in cell_folders(benchmark)]
    results = {path: read_result(path) for path in paths if path.is_file()}
    for path, result in results.items():
        if result.cell.id != path.parent.name:
            raise CheckpointError(
                f"{path} is a result of {result.cell.id}, which has to lie in a folder "
                f"of that name. Rename the folder, or delete it if it is a copy."
            )
    return list(results.values())
