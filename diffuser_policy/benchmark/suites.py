"""Suites: lists of cells, from TOML files. `shipped_suites/` has those with a name.

    name = "mine"                         # left out: the name of the file
    purpose = "What it is for."           # in the list of suites
    note = "100 is best."                 # about scores, for readers of the report
    num_steps = 50000                     # gradient steps of every method, at least
    max_steps = 100000                    # where a learning curve that still rises ends
    seeds = [0, 1]                        # of the trainings

    [evaluation]
    seeds = [30000, 31000, 32000]         # the first of 100 each
    episodes = 100

    [[problems]]
    env = "diffuser_envs/Multi2D-Large-v1"
    dataset = "diffuser/multi2d-large-v1"
    goals = "hindsight"                   # left out: "none", a single task
    methods = ["diffuser", "iql"]         # left out: all of them
    label = "Mine"                        # left out: the environment's name

    [seeds_of]
    iql = [0]                             # training seeds of one method
    [num_steps_of]
    iql = 20000                           # gradient steps of one method, exactly

    [methods.bc]
    [methods.iql]
    width = 128
    [methods.diffuser]
    multi2d-large = { planner = "multi2d-large" }      # settings for one problem

Everybody who asks for a suite gets the same problems, methods and episodes; another
number of steps, episodes or seeds makes other cells. `suite.json` in a benchmark's
folder records which suite its cells are of.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffuser_policy.benchmark.cells import SUITE_FILE, Cell, EvaluationProtocol
from diffuser_policy.benchmark.problem import Problem
from diffuser_policy.errors import CheckpointError, ConfigError, UnknownNameError, shown
from diffuser_policy.files import write_json
from diffuser_policy.settings import differences, from_json, plain, to_json, typed

SHIPPED = Path(__file__).with_name("shipped_suites")
SUITES = tuple(sorted(path.stem for path in SHIPPED.glob("*.toml")))
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
SHOWN = 5  # differences that one error lists


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Problems and methods.

    Attributes:
        name: Name of the suite.
        problems: What methods are compared on.
        methods: Names → settings that differ from the method's defaults. A setting
            named like a problem holds settings for that problem alone.
        methods_of: Problem name → methods that are run on it; by default all.
        seeds: Training seeds.
        seeds_of: Method → its training seeds, where they are others.
        num_steps: Gradient steps of every method that learns, at least.
        max_steps: Gradient steps at most, while the learning curve rises.
        num_steps_of: Method → its number of gradient steps, exactly.
        evaluation: Episodes for all.
        note: What readers of its report have to know about its scores and settings.
        purpose: What it is for, in the list of suites.
    """

    name: str
    problems: tuple[Problem, ...]
    methods: Mapping[str, Mapping[str, Any]]
    methods_of: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    seeds_of: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    num_steps: int | None = None
    max_steps: int | None = None
    num_steps_of: Mapping[str, int] = field(default_factory=dict)
    evaluation: EvaluationProtocol = field(default_factory=EvaluationProtocol)
    note: str = ""
    purpose: str = ""

    def __post_init__(self) -> None:
        typed(self)
        if not NAME.fullmatch(self.name):
            raise ConfigError(
                "The name of a suite names folders: it has at most 100 letters, "
                "digits, dots, dashes and underscores, and begins with a letter or "
                f"digit; got {shown(self.name)}."
            )
        names = [problem.name for problem in self.problems]
        for methods in (*self.methods_of.values(), self.seeds_of, self.num_steps_of):
            for method in methods:
                if method not in self.methods:
                    raise UnknownNameError("method of the suite", method, self.methods)
        for seeds in self.seeds_of.values():
            _check_seeds(seeds)
        for method, settings in self.methods.items():
            for name in names:
                own = settings.get(name, {})
                if not isinstance(own, Mapping):
                    raise ConfigError(
                        f"{name!r} names a problem: under the method {method!r}, it "
                        f"must be a table of settings for that problem alone, got "
                        f"{shown(own)}. Write {json.dumps(name)} = {{ setting = value "
                        "}."
                    )
        if len(set(names)) != len(names):
            twice = next(each for each in self.problems if names.count(each.name) > 1)
            raise ConfigError(
                f"Two problems of the suite {self.name!r} have the same name: {names}. "
                f"Problems of one environment need different labels, such as "
                f'label = "{twice.title}-medium".'
            )

    def cells(
        self,
        *,
        methods: Sequence[str] | None = None,
        problems: Sequence[str] | None = None,
        seeds: Sequence[int] | None = None,
    ) -> tuple[Cell, ...]:
        """Return the cells, or some of them.

        Args:
            methods: Names; those that the suite lacks are added with their defaults.
            problems: Names of problems; one that is given twice counts once.
            seeds: Training seeds instead of the suite's.

        Raises:
            UnknownNameError: No problem of that name.
            ConfigError: Seeds that are negative or given twice, or none.
        """
        known = {problem.name: problem for problem in self.problems}
        chosen = dict.fromkeys(name.lower() for name in problems or known)
        for name in chosen:
            if name not in known:
                raise UnknownNameError("problem", name, known)
        _check_seeds(self.seeds if seeds is None else seeds)
        cells = []
        for name in chosen:
            of_suite = self.methods_of.get(name, tuple(self.methods))
            for method in methods or self.methods:
                if method in self.methods and method not in of_suite:
                    continue
                given = self.methods.get(method, {})
                common = {k: v for k, v in given.items() if k not in known}
                num_steps, max_steps = self.budget_of(method)
                trained = self.trained_with(method)
                cells += [
                    Cell(
                        suite=self.name,
                        problem=known[name],
                        method=method,
                        seed=seed,
                        settings={**common, **given.get(name, {})},
                        num_steps=num_steps,
                        max_steps=max_steps,
                        evaluation=self.evaluation,
                    )
                    for seed in (trained if seeds is None else seeds)
                ]
        return tuple(cells)

    def budget_of(self, method: str) -> tuple[int | None, int | None]:
        """Return a method's gradient steps: at least, and at most."""
        own = self.num_steps_of.get(method)
        return (self.num_steps, self.max_steps) if own is None else (own, None)

    def trained_with(self, method: str) -> tuple[int, ...]:
        """Return a method's training seeds."""
        return self.seeds_of.get(method, self.seeds)


def _check_seeds(seeds: Sequence[int]) -> None:
    if not seeds:
        raise ConfigError("Training needs at least one seed, such as seeds = [0].")
    if len(set(seeds)) != len(seeds):
        raise ConfigError(f"Training seeds have to differ; got {list(seeds)}.")


def load_suite(source: str | Path) -> Suite:
    """Return a suite by name, or from a TOML file.

    Raises:
        UnknownNameError: Neither the name of a suite nor a `.toml` file's.
        ConfigError: There is no such file, or it is no suite.
    """
    if not isinstance(source, str | os.PathLike):
        raise UnknownNameError("suite", shown(source), SUITES)
    path = SHIPPED / f"{source}.toml" if str(source) in SUITES else Path(source)
    if path.suffix != ".toml":
        raise UnknownNameError("suite", str(source), SUITES, " (nor a .toml file)")
    try:
        found = path.is_file()
    except OSError:  # such as a name of more than 255 characters
        found = False
    if not found:
        raise ConfigError(
            f"There is no file {path}. Known suites: {', '.join(SUITES)}."
        )
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as a suite: {error}") from error
    problems = data.get("problems")
    try:
        if not isinstance(problems, list) or not all(
            isinstance(p, dict) for p in problems
        ):
            raise ConfigError(f"problems are tables, [[problems]]; got {problems!r}.")
        pairs = [(entry.pop("methods", None), entry) for entry in problems]
        methods_of = {
            from_json(Problem, entry).name: methods
            for methods, entry in pairs
            if methods is not None
        }
        return from_json(Suite, {"name": path.stem, "methods_of": methods_of, **data})
    except (UnknownNameError, ConfigError) as error:
        raise ConfigError(f"{path} is no suite: {error}") from error


def write_suite(output: Path, suite: Suite, source: str) -> None:
    """Record the suite, with the settings of this run, in a benchmark's folder.

    The `source`, the suite's name or file, lets people repeat the run.
    """
    data = {
        "schema": 1,
        **_in_common(suite),
        "source": source,
        "note": suite.note,
        "cells": [cell.id for cell in suite.cells()],
    }
    write_json(output / SUITE_FILE, data)


def read_suite(folder: Path) -> dict[str, Any]:
    """Return the record of the suite of the last run; empty where none can be read.

    Folders that were put together by hand have no such file.
    """
    try:
        data = json.loads((folder / SUITE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        data = None
    return data if isinstance(data, dict) else {}


def check_suite(output: Path, suite: Suite) -> None:
    """Refuse a folder that is for another suite, or for other settings of it.

    Raises:
        CheckpointError: The file is damaged.
        ConfigError: It is for another one.
    """
    saved, asked = read_suite(output), _in_common(suite)
    if not saved:
        raise CheckpointError(
            f"{output / SUITE_FILE} cannot be read. If the cells beside it are of the "
            f"suite {suite.name!r}, delete the file and run again."
        )
    shared = {name: saved.get(name) for name in asked}
    found = differences(shared, asked, missing=None)  # settings that came later
    if found:
        found.sort(key=lambda text: not text.startswith("name: "))  # says it best
        raise ConfigError(
            f"{output} holds a benchmark with other settings (stored → requested): "
            f"{'; '.join(found[:SHOWN])}. Choose another folder with --output, or use "
            "the same settings; nothing was changed."
        )


def _in_common(suite: Suite) -> dict[str, Any]:
    """Return what all cells of a folder have in common, as JSON data."""
    return {
        "name": suite.name,
        "num_steps": suite.num_steps,
        "max_steps": suite.max_steps,
        "evaluation": plain(to_json(suite.evaluation)),
    }
