"""Suites: lists of cells by name, or from a TOML file.

    name = "mine"
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

import dataclasses
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffuser_policy.benchmark.cells import Cell, EvaluationProtocol
from diffuser_policy.benchmark.problem import Goals, Problem
from diffuser_policy.errors import CheckpointError, ConfigError, UnknownNameError
from diffuser_policy.files import replaced_file
from diffuser_policy.settings import differences, from_json, to_json

SUITE_FILE = "suite.json"
SHOWN = 5  # differences that one error lists


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Problems and methods.

    Attributes:
        name: Of the suite.
        problems: What methods are compared on.
        methods: Names → settings that differ from the method's defaults. A setting
            named like a problem holds settings for that problem alone.
        methods_of: Problem name → methods that are run on it; by default all.
        seeds: Training seeds.
        num_steps: Gradient steps of every method that learns, at least.
        max_steps: And at most, while its learning curve rises.
        evaluation: Episodes for all.
        note: What readers of its report have to know about its scores and settings.
    """

    name: str
    problems: tuple[Problem, ...]
    methods: Mapping[str, Mapping[str, Any]]
    methods_of: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    num_steps: int | None = None
    max_steps: int | None = None
    evaluation: EvaluationProtocol = field(default_factory=EvaluationProtocol)
    note: str = ""

    def __post_init__(self) -> None:
        """Check the seeds and names."""
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ConfigError(
                f"A suite needs different training seeds, at least one; got "
                f"{list(self.seeds)}."
            )
        names = [problem.name for problem in self.problems]
        for methods in self.methods_of.values():
            for method in methods:
                if method not in self.methods:
                    raise UnknownNameError("method of the suite", method, self.methods)
        if len(set(names)) != len(names):
            raise ConfigError(
                f"Two problems of the suite {self.name!r} have the same name: {names}."
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
            problems: Names of problems.
            seeds: Training seeds instead of the suite's.

        Raises:
            UnknownNameError: No problem of that name.
            ConfigError: Seeds that are negative or given twice.
        """
        known = {problem.name: problem for problem in self.problems}
        chosen = [name.lower() for name in problems or known]
        for name in chosen:
            if name not in known:
                raise UnknownNameError("problem", name, known)
        seeds = self.seeds if seeds is None else seeds
        if len(set(seeds)) != len(seeds) or not seeds:
            raise ConfigError(f"Training seeds have to differ; got {list(seeds)}.")
        cells = []
        for name in chosen:
            of_suite = self.methods_of.get(name, tuple(self.methods))
            for method in methods or self.methods:
                if method in self.methods and method not in of_suite:
                    continue
                given = self.methods.get(method, {})
                common = {k: v for k, v in given.items() if k not in known}
                cells += [
                    Cell(
                        suite=self.name,
                        problem=known[name],
                        method=method,
                        seed=seed,
                        settings={**common, **given.get(name, {})},
                        num_steps=self.num_steps,
                        max_steps=self.max_steps,
                        evaluation=self.evaluation,
                    )
                    for seed in seeds
                ]
        return tuple(cells)


# CQL draws ten actions for each of 256 rows: half the width of the others saves hours
# on a CPU. `examples/benchmark_narrow.toml` and `benchmark_wide.toml` try other widths.
NARROW = {"width": 128}
BCQ = {"learning_rate": 3e-4}  # with its paper's 1e-3, its critic diverges on mazes
MAZE_NOTE = (
    "Scores are D4RL's: every env step inside the goal disc pays 1; 0 is what a random "
    "policy earns, 100 D4RL's own controller."
)


def _maze_problems(family: str, goals: Goals) -> tuple[Problem, ...]:
    return tuple(
        Problem(
            env=f"diffuser_envs/{family}-{maze}-v1",
            dataset=f"diffuser/multi2d-{maze.lower()}-v1",
            goals=goals,
        )
        for maze in ("UMaze", "Medium", "Large")
    )


SINGLE_TASK = _maze_problems("Maze2D", "none")
MULTI_TASK = _maze_problems("Multi2D", "hindsight")


def _shipped_planners(problems: Sequence[Problem]) -> dict[str, dict[str, str]]:
    """Return Diffuser's settings for mazes: the planner of each one's data."""
    return {
        problem.name: {"planner": f"multi2d-{problem.name.partition('-')[2]}"}
        for problem in problems
    }


def _mazes() -> Suite:
    """The paper's table 1, and stronger baselines."""
    problems = (*SINGLE_TASK, *MULTI_TASK)
    methods: dict[str, Mapping[str, Any]] = {
        "diffuser": _shipped_planners(problems),
        "bc": {},
        "bcq": {"width": 256, **BCQ},
        "cql": NARROW,
        "iql": {},
        "td3-bc": {},
        "rebrac": {},
        "demonstrator": {},
    }
    return Suite(
        name="maze",
        problems=problems,
        methods=methods,
        num_steps=50_000,
        max_steps=100_000,
        note=f"{MAZE_NOTE} CQL has half the others' width.",
    )


def _kuka() -> Suite:
    """The paper's table 3."""
    tasks: dict[str, Goals] = {
        "Unconditional": "none",
        "Conditional": "hindsight",
        "Rearrangement": "hindsight",
    }
    problems = [
        Problem(
            env=f"diffuser_envs/KukaStack-{task}-v1",
            dataset="diffuser/kuka-stack-v1",
            goals=goals,
        )
        for task, goals in tasks.items()
    ]
    # A tower takes 250 steps: with 0.99, few goals in hindsight would be whole towers.
    # Critics keep 0.99, after 250 steps of which 8 % of a reward are left.
    far = {"goal_discount": 0.997}
    return Suite(
        name="kuka",
        problems=tuple(problems),
        methods={
            "diffuser": {"planner": "kuka-stack"},
            "bcq": {**NARROW, **BCQ, **far},
            "cql": {**NARROW, **far},
            "bc": far,
            "demonstrator": {},
        },
        num_steps=50_000,
        max_steps=100_000,
        evaluation=EvaluationProtocol(num_envs=25),
        note=(
            "Scores are the share of the task that the settled final state meets, in "
            "percent; the paper counts what was ever met. BCQ and CQL have half of "
            "BC's width."
        ),
    )


def _planning() -> Suite:
    """Planning by trial: with the true simulator, and with learned models."""
    # Demonstrators avoid walls, so models learn little about them: plans are short.
    short = {"horizon": 60, "num_iterations": 1}
    methods: dict[str, Mapping[str, Any]] = {
        "diffuser": _shipped_planners(MULTI_TASK),
        "random": {},
        "mppi-simulator": {},
        "cem-simulator": {},
        "mppi-learned": short,
        "cem-learned": {"horizon": 60},
        "mppi-diffuser": {},  # the paper's ablation
    }
    return Suite(
        name="planning",
        problems=MULTI_TASK,
        methods=methods,
        methods_of={p.name: tuple(methods)[:-1] for p in MULTI_TASK[1:]},
        note=MAZE_NOTE,
        evaluation=EvaluationProtocol(seeds=(30_000,), episodes=50),
    )


def _online() -> Suite:
    """A reference: SAC + HER, which practises in the environment."""
    return Suite(
        name="online",
        problems=MULTI_TASK,
        methods={"sac-her": {}},
        num_steps=50_000,
        max_steps=100_000,
        note=MAZE_NOTE,
    )


def _tiny() -> Suite:
    """Two methods on one maze in minutes: does everything work here?"""
    return Suite(
        name="tiny",
        problems=SINGLE_TASK[:1],
        methods={"diffuser": {"planner": "multi2d-umaze"}, "bc": {"width": 64}},
        num_steps=2_000,
        evaluation=EvaluationProtocol(seeds=(30_000,), episodes=10, curve_points=4),
        note=f"A test of the machinery, from which nothing follows. {MAZE_NOTE}",
    )


SUITES = {
    "maze": _mazes,
    "kuka": _kuka,
    "planning": _planning,
    "online": _online,
    "tiny": _tiny,
}


def load_suite(source: str | Path) -> Suite:
    """Return a suite by name, or from a TOML file.

    Raises:
        UnknownNameError: No suite of that name, and no file.
        ConfigError: The file is no suite.
    """
    if str(source) in SUITES:
        return SUITES[str(source)]()
    path = Path(source)
    if path.suffix != ".toml":
        raise UnknownNameError("suite", str(source), SUITES, " (nor a .toml file)")
    if not path.is_file():
        raise ConfigError(
            f"There is no file {path}. Known suites: {', '.join(SUITES)}."
        )
    try:
        data = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as a suite: {error}") from error
    try:
        return suite_from(data, name=path.stem)
    except (UnknownNameError, ConfigError) as error:
        raise ConfigError(f"{path} is no suite: {error}") from error


def suite_from(data: Mapping[str, Any], *, name: str) -> Suite:
    """Return the suite that a TOML file describes.

    Args:
        data: As in the module's example.
        name: If the file gives none.

    Raises:
        UnknownNameError: An entry that suites don't have.
        ConfigError: A value of the wrong type.
    """
    known = {item.name for item in dataclasses.fields(Suite)} - {"methods_of"}
    for key in data:
        if key not in known:
            raise UnknownNameError("entry of a suite", key, known)
    for key in ("problems", "methods"):
        if not data.get(key):
            raise ConfigError(f"it needs {key}, and has none.")
    problems, methods_of = data["problems"], {}
    if not isinstance(problems, list) or not all(isinstance(p, dict) for p in problems):
        raise ConfigError(f"problems are tables, [[problems]]; got {problems!r}.")
    bare = [{k: v for k, v in entry.items() if k != "methods"} for entry in problems]
    for entry, fields in zip(problems, bare, strict=True):
        if "methods" in entry:
            methods_of[Problem.from_json(fields).name] = entry["methods"]
    found = {"name": name, **data, "problems": bare, "methods_of": methods_of}
    return from_json(Suite, found)


def write_suite(output: Path, suite: Suite, source: str) -> None:
    """Record the suite in the folder of a benchmark.

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
    """Return the record of the suite of the last run; empty where there is none.

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
