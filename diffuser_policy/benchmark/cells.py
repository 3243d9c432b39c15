"""A cell: one problem, one method, one training seed; and the folder it works in.

<benchmark>/cells/<id>/cell.json       what the cell is, and its digest
                       versions.json   of the packages that it was begun with
                       lock            held while a process runs it
                       progress.json   what it is doing
                       curve.json      evaluations during training
                       evaluation-*    those afterwards, one by one
                       error.json      why it failed the last time
                       log.txt         what the process printed
                       work/           the method's own: checkpoints, weights
                       result.json     written when all is done
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffuser_policy.benchmark.methods import checksum_of_file, short_name
from diffuser_policy.benchmark.problem import Problem
from diffuser_policy.errors import CheckpointError, ConfigError
from diffuser_policy.files import replaced_file
from diffuser_policy.settings import differences, from_json, positive, to_json

CURVE_SEED = 900_000  # the first of the learning curves' episodes: nobody else's
ADDED = ("digest", "all_settings", "code")  # to a cell's own fields, in its file
NOT_COMPARED = {"suite", "digest"}
BUSY = os.EX_TEMPFAIL  # exit status of a cell that another process is at work on


@dataclass(frozen=True, kw_only=True)
class EvaluationPlan:
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
        ranges = sorted(self.seeds)
        if not ranges or ranges[0] < 0:
            raise ConfigError(
                f"Evaluation needs seeds that are not negative, got {self.seeds}."
            )
        for before, after in itertools.pairwise(ranges):
            if after - before < self.episodes:
                raise ConfigError(
                    f"Evaluation seeds {before} and {after} share episodes: they have "
                    f"to lie at least {self.episodes} apart, as many as the episodes."
                )
        for seed in ranges:
            if (
                seed < CURVE_SEED + self.curve_episodes
                and seed + self.episodes > CURVE_SEED
            ):
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
        settings: The method's, as far as they are not its defaults.
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
    evaluation: EvaluationPlan = field(default_factory=EvaluationPlan)
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
        return {
            "suite": self.suite,
            "problem": self.problem.to_json(),
            "method": self.method,
            "seed": self.seed,
            "settings": dict(self.settings),
            "num_steps": self.num_steps,
            "max_steps": self.max_steps,
            "evaluation": json.loads(json.dumps(to_json(self.evaluation))),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Cell:
        """Rebuild a cell.

        Raises:
            UnknownNameError: A field that cells don't have.
            ConfigError: A field is missing or of the wrong type.
        """
        fields = dict(data)
        try:
            problem = Problem.from_json(fields.pop("problem"))
            evaluation = from_json(EvaluationPlan, fields.pop("evaluation"))
            return cls(problem=problem, evaluation=evaluation, **fields)
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"This is no cell ({error}): {data}.") from error


class CellFolder:
    """Where a cell works, and what it leaves there.

    Args:
        benchmark: Folder of the whole benchmark.
        cell_id: Of the cell.
    """

    def __init__(self, benchmark: str | Path, cell_id: str) -> None:
        self.path = Path(benchmark) / "cells" / cell_id
        self.work = self.path / "work"
        self.log = self.path / "log.txt"

    def write(self, name: str, data: Any, *, indent: int | None = 1) -> None:
        """Write JSON atomically into the file `name.json`.

        Args:
            name: Of the file.
            data: To be written.
            indent: None for files with thousands of numbers.
        """
        with replaced_file(self.path / f"{name}.json") as partial:
            text = json.dumps(data, indent=indent, allow_nan=False)
            partial.write_text(text + "\n")

    def read(self, name: str) -> Any:
        """Return what is in the file `name.json`; none if there is none.

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
        """Delete the file `name.json`, if there is one."""
        (self.path / f"{name}.json").unlink(missing_ok=True)

    def prepare(self, cell: Cell, settings: Mapping[str, Any] | None = None) -> None:
        """Say in the folder which cell it is for.

        Args:
            cell: What will be done there.
            settings: All of the method's settings: its defaults may change.

        Raises:
            ConfigError: It holds work of a cell with other settings.
        """
        self.check(cell, settings)
        self.write("cell", {**_described(cell, settings), "digest": cell.digest})

    def check(self, cell: Cell, settings: Mapping[str, Any] | None = None) -> None:
        """Refuse a folder that holds work of a cell with other settings.

        New settings of a method are no difference, unless the cell sets them.

        Args:
            cell: What would be done there.
            settings: All of the method's settings.

        Raises:
            ConfigError: It does, be it a result, a learning curve or a checkpoint.
        """
        saved, asked = self.read("cell"), _described(cell, settings)
        if saved is None or not self.holds_work():
            return
        # Defaults of settings that the method did not have then keep what it did.
        then = saved.get("all_settings", {})
        asked["all_settings"] = {
            name: value for name, value in asked["all_settings"].items() if name in then
        }
        names = (saved.keys() | asked) - NOT_COMPARED
        found = {name: saved.get(name) for name in names}
        wanted = {name: asked.get(name) for name in names}
        if found != wanted:
            raise ConfigError(
                f"{self.path} holds results of other settings (there → asked for): "
                f"{'; '.join(differences(found, wanted))}. Choose another output "
                f"folder, ask for the same settings, or delete that folder to begin "
                f"the cell anew; nothing was changed."
            )

    def holds_work(self) -> bool:
        """Return whether anything was done that took time."""
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

    def result(self) -> dict[str, Any] | None:
        """Return the cell's result, if it is finished."""
        found: dict[str, Any] | None = self.read("result")
        return found

    @contextlib.contextmanager
    def lock(self) -> Iterator[bool]:
        """Hold the cell, which the end of the process gives back, however it ends.

        Yields:
            Whether it is held; not so while another process holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True


def _described(cell: Cell, settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a cell's file: its fields, all settings, and which code it runs."""
    data = {**cell.to_json(), "all_settings": dict(settings or cell.settings)}
    checksum = checksum_of_file(cell.method)
    if checksum is not None:
        data["code"] = checksum
    plain: dict[str, Any] = json.loads(json.dumps(data))
    return plain
