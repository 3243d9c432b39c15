"""The checks before any cell is run, so that a typing error does not cost a night.

They look at methods, their settings and libraries; environments; data; and the output
folder. Each check either passes or raises an error that says what to do; none writes
anything but caches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
from gymnasium import spaces

from diffuser_policy.benchmark.cells import Cell, CellFolder
from diffuser_policy.benchmark.methods import check_reachable, find_method
from diffuser_policy.benchmark.problem import Problem, check_task
from diffuser_policy.benchmark.results import RECORDED, CellResult, read_result
from diffuser_policy.benchmark.suites import SUITE_FILE, Suite, check_suite
from diffuser_policy.data.collection import default_dataset_id
from diffuser_policy.data.minari import load_flat, local_dataset_ids
from diffuser_policy.errors import ConfigError, DatasetError, DatasetNotFoundError
from diffuser_policy.versions import versions

LOCK_FILE, HOLDER_FILE = "run.lock", "run.txt"  # held by the runner; who that is


def check_cells(cells: Sequence[Cell], *, progress: bool = False) -> None:
    """Refuse cells that could not be run.

    Args:
        cells: All that would be run.
        progress: Show a bar while data is read for the first time.

    Raises:
        ConfigError: No cells, two of the same name, a method that cannot do a problem
            or lacks a setting, or an environment whose goals are not as stated.
        UnknownNameError: No method or environment of a name.
        MissingExtraError: A method or an environment needs a module that is missing.
        DatasetError: Data that is missing or of another environment.
    """
    if not cells:
        raise ConfigError("No cells are left to run: ask for more methods or problems.")
    named: dict[str, Cell] = {}
    for cell in cells:
        other = named.setdefault(cell.id, cell)
        if other is not cell:
            raise ConfigError(
                f"Two cells would share the folder {cell.id!r}: the methods "
                f"{other.method!r} and {cell.method!r}. Name methods once, and give "
                f"functions different names."
            )
    for method in dict.fromkeys(cell.method for cell in cells):
        check_reachable(method)
    for cell in cells:
        find_method(cell.method).check(cell.problem, cell.settings)
    for problem in {cell.problem.name: cell.problem for cell in cells}.values():
        methods = [find_method(c.method) for c in cells if c.problem == problem]
        env = problem.make_env()
        try:
            _check_goals(problem, env.observation_space)
            if any(method.needs_dataset for method in methods):
                _check_data(problem, env, progress=progress)
        finally:
            env.close()


def check_folder(
    output: Path, suite: Suite, cells: Sequence[Cell], *, mixed_versions: bool
) -> dict[str, CellResult]:
    """Refuse a folder whose results would not fit to those of these cells.

    Args:
        output: Folder of the benchmark; it need not exist.
        suite: With the settings that were asked for.
        cells: All that would be run.
        mixed_versions: Accept results made with other versions of packages.

    Returns:
        The results of the finished ones of these cells, by cell id.

    Raises:
        ConfigError: It holds another suite, or cells of other settings or versions.
        CheckpointError: A result in it is damaged.
    """
    if output.exists() and not output.is_dir():
        raise ConfigError(f"{output} is a file; name a folder for the results.")
    if (output / SUITE_FILE).is_file():
        check_suite(output, suite)
    elif output.is_dir() and {p.name for p in output.iterdir()} - {
        LOCK_FILE,
        HOLDER_FILE,
    }:
        raise ConfigError(
            f"{output} is not empty and holds no benchmark: there is no {SUITE_FILE}. "
            f"Choose another folder: --output."
        )
    for cell in cells:
        CellFolder(output, cell.id).check(cell)
    results = {
        path.parent.name: read_result(path)
        for path in sorted(output.glob("cells/*/result.json"))
    }
    if not mixed_versions:
        _check_versions(output, results)
    results = {cell.id: results[cell.id] for cell in cells if cell.id in results}
    for cell in cells:
        if cell.id in results and results[cell.id].cell.digest != cell.digest:
            raise ConfigError(
                f"The result in {output / 'cells' / cell.id} is not of the cell that "
                f"cell.json beside it describes. Delete that folder, or choose another "
                f"one with --output."
            )
    return results


def _check_goals(problem: Problem, space: spaces.Space[Any]) -> None:
    """Refuse hindsight goals in an environment without goals."""
    has_goals = isinstance(space, spaces.Dict) and "desired_goal" in space.spaces
    if problem.goals == "hindsight" and not has_goals:
        raise ConfigError(
            f"The problem {problem.name} has goals='hindsight', but observations of "
            f"{problem.env} carry no desired_goal. Use goals='none', or an environment "
            f"with goals (gymnasium_robotics.core.GoalEnv)."
        )


def _check_data(problem: Problem, env: Any, *, progress: bool) -> None:
    """Read the data once, so that cells find it in the cache, and compare the sizes."""
    if problem.dataset not in local_dataset_ids():
        raise DatasetNotFoundError(
            f"The problem {problem.name} needs the dataset {problem.dataset!r}, which "
            f"is not on this machine. Record it with: {_recorded_by(problem)}"
        )
    flat = load_flat(problem.dataset, progress=progress)
    space = env.observation_space
    if isinstance(space, spaces.Dict):
        space = space["observation"]
    found = ((flat.observation_size,), (flat.action_size,))
    if found != (space.shape, env.action_space.shape):
        raise DatasetError(
            f"{problem.dataset} is not of {problem.env}: its observations and actions "
            f"have the shapes {found[0]} and {found[1]}, those of the environment "
            f"{space.shape} and {env.action_space.shape}."
        )
    check_task(problem, flat, env)


def _recorded_by(problem: Problem) -> str:
    """Return the command that records a dataset, often in another environment.

    Environments share data: Maze2D uses those of Multi2D. So that a name means the same
    data to everybody, it is the environment whose own dataset this is.
    """
    namespace = problem.env.rpartition(":")[2].rpartition("/")[0]
    for env_id, spec in gymnasium.registry.items():
        if (
            spec.namespace == namespace
            and default_dataset_id(env_id) == problem.dataset
        ):
            return f"diffuser-policy collect {env_id}"
    return f"diffuser-policy collect {problem.env} --dataset {problem.dataset}"


def _check_versions(output: Path, results: Mapping[str, CellResult]) -> None:
    """Refuse work of other versions; packages that are not installed don't count."""
    made: dict[str, Mapping[str, str]] = {}
    for path in sorted(output.glob("cells/*/versions.json")):
        folder = CellFolder(output, path.parent.name)
        if folder.holds_work():
            made[path.parent.name] = folder.read("versions")
    made |= {name: result.versions for name, result in results.items()}
    current = versions(*RECORDED)
    for cell_id, known in made.items():
        for package, version in known.items():
            if current.get(package, version) != version:
                raise ConfigError(
                    f"The work on {cell_id} in {output} was done with {package} "
                    f"{version}; installed is {current[package]}. Results would be "
                    f"mixed: choose another folder with --output, install {package} "
                    f"{version}, or accept it with --mixed-versions."
                )
