"""A cell: one problem, one method, one training seed; and the folder it works in.

<benchmark>/cells/<id>/cell.json       what the cell is, and its digest
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
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock

from diffuser_policy.benchmark.methods import (
    checksum_of_file,
    find_method,
    short_name,
)
from diffuser_policy.benchmark.problem import Problem
from diffuser_policy.errors import CheckpointError, ConfigError
from diffuser_policy.files import replaced_file
from diffuser_policy.settings import differences, from_json, positive, to_json

CURVE_SEED = 900_000  # the first of the learning curves' episodes: nobody else's
ADDED = ("digest", "all_settings", "code")  # to a cell's own fields, in its file
NOT_COMPARED = {"suite", "digest"}
RETIRED = {"clip_values": False}  # settings that methods had, with their old defaults


@dataclass(frozen=True, kw_only=True)
class EvaluationProtocol:
    """Episodes that every method of a suite is evaluated on.

    Attributes:
        seeds: Each is the first of `episodes` seeds in a row.
        episodes: Per seed, after training.
        num_envs: Environments at a time.
        curve_episodes: Of each evaluation during training, on seeds of their own.
        curve_points: Evaluations before the budget of gradient steps is used up.
    """

    seeds: tuple[int, ...] = (30_000, 31_000, 32_000)
    episodes: int = 100
    num_envs: int = 50
    curve_episodes: int = 20
    curve_points: int = 10

    def __post_init__(self) -> None:
        """Check the values."""
        positive(self, "episodes", "num_envs", "curve_episodes", "curve_points")
        ordered = sorted(self.seeds)
        if not ordered or ordered[0] < 0:
            raise ConfigError(
                f"Evaluation needs seeds that are not negative, got {self.seeds}."
            )
        for before, after in itertools.pairwise(ordered):
            if after - before < self.episodes:
                raise ConfigError(
                    f"Evaluation seeds {before} and {after} share episodes: they have "
                    f"to lie at least {self.episodes} apart, as many as the episodes."
                )
        for seed in ordered:
            if CURVE_SEED - self.episodes < seed < CURVE_SEED + self.curve_episodes:
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
        seed: Of its training.
        settings: The method's, where they differ from its defaults.
        num_steps: Gradient steps that it takes at least; none: its own choice.
        max_steps: Where it stops although its learning curve still rises; by default
            `num_steps`.
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
        """Check the values."""
        if self.seed < 0:
            raise ConfigError(f"A training seed is not negative; got {self.seed}.")
        for name in ("num_steps", "max_steps"):
            if getattr(self, name) is not None:
                positive(self, name)
        if self.max_steps and not (self.num_steps and self.num_steps <= self.max_steps):
            raise ConfigError(
                f"max_steps must be at least num_steps, and needs it: got num_steps="
                f"{self.num_steps}, max_steps={self.max_steps}."
            )

    @property
    def id(self) -> str:
        """A name for the folder: problem, method and seed."""
        return f"{self.problem.name}--{short_name(self.method)}--seed-{self.seed}"

    @property
    def digest(self) -> str:
        """A checksum of everything that results depend on."""
        data = {key: value for key, value in self.to_json().items() if key != "suite"}
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Return the cell as JSON data."""
        data: dict[str, Any] = json.loads(json.dumps(to_json(self)))
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Cell:
        """Rebuild a cell.

        Raises:
            UnknownNameError: A field that cells don't have.
            ConfigError: A field is missing or of the wrong type.
        """
        if not isinstance(data, Mapping):
            raise ConfigError(f"A cell is a table, got {data!r}.")
        return from_json(cls, data)


class CellFolder:
    """Where a cell works and leaves its files.

    Args:
        benchmark: Folder of the whole benchmark.
        cell_id: Of the cell.
    """

    def __init__(self, benchmark: str | Path, cell_id: str) -> None:
        self.path = Path(benchmark) / "cells" / cell_id
        self.work = self.path / "work"
        self.log = self.path / "log.txt"

    def write(self, name: str, data: Any) -> None:
        """Write JSON atomically into the file `name.json`."""
        with replaced_file(self.path / f"{name}.json") as partial:
            partial.write_text(json.dumps(data, allow_nan=False) + "\n")

    def read(self, name: str) -> Any:
        """Return the content of the file `name.json`; none if it does not exist.

        Raises:
            CheckpointError: It cannot be read.
        """
        path = self.path / f"{name}.json"
        try:
            return json.loads(path.read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{path} cannot be read ({error}). Delete it, and run again."
            ) from error

    def remove(self, name: str) -> None:
        """Delete the file `name.json`, if it exists."""
        (self.path / f"{name}.json").unlink(missing_ok=True)

    def prepare(self, cell: Cell, settings: Mapping[str, Any] | None = None) -> None:
        """Write into the folder which cell it is for; arguments as of `check`.

        Raises:
            ConfigError: It holds work of a cell with other settings.
        """
        self.check(cell, settings)
        self.write("cell", {**_described(cell, settings), "digest": cell.digest})

    def check(self, cell: Cell, settings: Mapping[str, Any] | None = None) -> None:
        """Refuse a folder that holds work of a cell with other settings.

        A setting that the method did not have then makes no difference unless the cell
        sets it: its default keeps what the method did. Nor does a setting that the
        method has no longer, if it had the value that it had by default.

        Args:
            cell: What would be done there.
            settings: All of the method's settings, defaults included, which may change
                between versions; looked up by default.

        Raises:
            ConfigError: It does, be it a result, a learning curve or a checkpoint.
        """
        saved, asked = self.read("cell"), _described(cell, settings)
        if saved is None or not self.holds_work():
            return
        now = asked["all_settings"]
        then = {
            name: value
            for name, value in saved.get("all_settings", {}).items()
            if name in now or (name, value) not in RETIRED.items()
        }
        asked["all_settings"] = {name: now[name] for name in now if name in then}
        names = (saved.keys() | asked) - NOT_COMPARED
        found = {name: saved.get(name) for name in names} | {"all_settings": then}
        wanted = {name: asked.get(name) for name in names}
        if found != wanted:
            raise ConfigError(
                f"{self.path} holds results of other settings (there → asked for): "
                f"{'; '.join(differences(found, wanted))}. Choose another output "
                f"folder, ask for the same settings, or delete that folder to begin "
                f"the cell anew; nothing was changed."
            )

    def holds_work(self) -> bool:
        """Return whether it holds anything that took time to make."""
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
            raise ConfigError(f"{self.path} is for no cell: it lacks cell.json.")
        return Cell.from_json({k: v for k, v in saved.items() if k not in ADDED})

    @contextlib.contextmanager
    def lock(self) -> Iterator[bool]:
        """Hold the cell; the end of the process releases it, however it ends.

        Yields:
            Whether it is held: not while another process holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with held(self.path / "lock") as is_held:
            yield is_held


@contextlib.contextmanager
def held(path: Path) -> Iterator[bool]:
    """Hold a file's lock if no other process does; yield whether it is held."""
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _described(cell: Cell, settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a cell's file: its fields, all settings, and which code it runs."""
    if settings is None:
        settings = find_method(cell.method).settings(cell.settings)
    data = {**cell.to_json(), "all_settings": dict(settings)}
    checksum = checksum_of_file(cell.method)
    if checksum is not None:
        data["code"] = checksum
    plain: dict[str, Any] = json.loads(json.dumps(data))
    return plain
