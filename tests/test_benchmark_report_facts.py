"""Where the results of a benchmark report come from, and how to make them again."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from diffuser_policy.benchmark.cells import Cell
from diffuser_policy.benchmark.report import load_study
from diffuser_policy.benchmark.report.page import run_commands
from diffuser_policy.benchmark.report.scores import groups_of, score_table
from diffuser_policy.benchmark.report.study import Study
from diffuser_policy.benchmark.report.tables import (
    compute_table,
    method_table,
    open_table,
    scope_table,
)
from diffuser_policy.benchmark.suites import load_suite
from diffuser_policy.cli import main
from diffuser_policy.cli.benchmark import RunSettings
from diffuser_policy.settings import plain
from tests.benchmark_report_helpers import (
    KUKA,
    MAZES,
    result_of,
    rows_of,
    texts,
    warnings_of,
    write_result,
)

UMAZE, LARGE = MAZES[0], MAZES[-1]
FOREIGN = "planner trained on other data"


def methods_of(study: Study) -> dict[str, dict[str, str]]:
    return {row.pop("method"): row for row in rows_of(method_table(study))}


def run_lines(study: Study) -> list[str]:
    return [line for line in run_commands(study) if " benchmark run " in line]


def test_methods_learn_from_what_their_cells_recorded(tmp_path: Path) -> None:
    for method in ("diffuser", "iql", "demonstrator"):
        write_result(tmp_path, result_of(UMAZE, method, episodes=2))
    practised = result_of(UMAZE, "sac-her", episodes=2) | {"dataset": None}
    write_result(tmp_path, practised)
    found = methods_of(load_study(tmp_path))
    assert {name: (row["training"], row["data"]) for name, row in found.items()} == {
        "Diffuser": ("trained before", "diffuser/maze2d-umaze-v1"),
        "IQL": ("trained here", "the problem's dataset"),
        "SAC+HER": ("–", "no dataset"),
        "Demonstrator": ("–", "no dataset"),
    }


def test_executors_and_guides_are_named(tmp_path: Path) -> None:
    planned = result_of(UMAZE, "diffuser", episodes=2)
    planned["policy"] |= {
        "execution": {"executor": "pursuit"},
        "guide": [{"guide": "keep-out"}],
    }
    write_result(tmp_path, planned)
    write_result(tmp_path, result_of(UMAZE, "bc", episodes=2))
    found = methods_of(load_study(tmp_path))
    assert found["Diffuser"]["acts through"] == "a controller pursuing the planned path"
    assert found["Diffuser"]["guides"] == "keep-out"
    assert found["BC"]["acts through"] == "its own actions"
    assert found["BC"]["guides"] == "–"


def test_many_cells_that_wait_are_counted_by_method(tmp_path: Path) -> None:
    write_result(tmp_path, result_of(UMAZE, "bc", episodes=2))
    absent = [f"maze2d-umaze--iql--seed-{seed}" for seed in range(10)]
    (tmp_path / "suite.json").write_text(json.dumps({"cells": absent}))
    study = load_study(tmp_path)
    [row] = rows_of(open_table(study))
    assert (row["cell"], row["state"]) == ("10 cells of IQL", "not begun")
    where = warnings_of(study)["cell not begun"]
    assert where == ", ".join(absent[:8]) + ", and 2 more"


def test_cells_of_the_suite_that_were_never_begun_are_listed(tmp_path: Path) -> None:
    write_result(tmp_path, result_of(UMAZE, "bc", episodes=2))
    there, absent = "maze2d-umaze--bc--seed-0", "maze2d-umaze--iql--seed-0"
    (tmp_path / "suite.json").write_text(json.dumps({"cells": [there, absent]}))
    study = load_study(tmp_path)
    assert texts(open_table(study), 0)["cell"] == absent
    assert warnings_of(study)["cell not begun"] == absent
    facts = {row["fact"]: row["value"] for row in rows_of(scope_table(study))}
    assert facts["cells with a result"] == "1 of 2"
    assert facts["episodes"] == "6"


def test_loading_a_planner_is_no_training(tmp_path: Path) -> None:
    for method in ("diffuser", "bc"):
        write_result(tmp_path, result_of(UMAZE, method, episodes=2))
    table = compute_table(load_study(tmp_path))
    assert texts(table, 0)["training, CPU"] == "trained before"
    assert texts(table, 1)["training, CPU"] == "13.5 min"


@pytest.mark.parametrize("text", ["", "[]", "{", '{"note": "100 is best."}'])
def test_the_suite_says_what_its_scores_are(text: str, tmp_path: Path) -> None:
    write_result(tmp_path, result_of(UMAZE, "bc", episodes=2))
    (tmp_path / "suite.json").write_text(text)
    table = scope_table(load_study(tmp_path))
    facts = {row["fact"]: row["value"] for row in rows_of(table)}
    assert facts.get("scores") == ("100 is best." if "note" in text else None)


def test_planners_of_other_data_are_a_warning(tmp_path: Path) -> None:
    foreign = result_of(UMAZE, "diffuser", episodes=2)
    foreign["policy"]["dataset"] = "somebody/else-v0"
    write_result(tmp_path, foreign)
    write_result(tmp_path, result_of(LARGE, "diffuser", episodes=2))
    study = load_study(tmp_path)
    data = methods_of(study)["Diffuser"]["data"]
    assert data == "diffuser/multi2d-large-v1, somebody/else-v0"
    assert warnings_of(study) == {FOREIGN: "maze2d-umaze--diffuser--seed-0"}


def test_a_planner_that_is_trained_here_learns_from_the_dataset(
    tmp_path: Path,
) -> None:
    result = result_of(UMAZE, "diffuser", episodes=2)
    result["training"]["loaded"] = False
    result["dataset"] = {"id": "diffuser/maze2d-umaze-v1"}
    write_result(tmp_path, result)
    found = methods_of(load_study(tmp_path))["Diffuser"]
    assert (found["training"], found["data"]) == (
        "trained here",
        "the problem's dataset",
    )


@pytest.mark.parametrize("seeds", [1, 3])
def test_seeds_that_loaded_one_planner_are_a_warning(
    tmp_path: Path, seeds: int
) -> None:
    for env in KUKA:
        for method in ("diffuser", "bc"):
            for seed in range(seeds):
                write_result(tmp_path, result_of(env, method, seed, episodes=2))
    study = load_study(tmp_path)
    found = warnings_of(study).get("training seeds share one planner")
    assert found == ("Diffuser" if seeds > 1 else None)
    assert methods_of(study)["Diffuser"]["training seeds"] == str(seeds)


def test_seeds_that_some_problems_lack_are_a_warning(tmp_path: Path) -> None:
    write_result(tmp_path, result_of(UMAZE, "iql", 0, episodes=2))
    write_result(tmp_path, result_of(UMAZE, "iql", 1, episodes=2))
    write_result(tmp_path, result_of(LARGE, "bc", 0, episodes=2))
    warning = "more training seeds on some problems than on others"
    assert warning not in warnings_of(load_study(tmp_path))
    write_result(tmp_path, result_of(LARGE, "iql", 1, episodes=2))
    study = load_study(tmp_path)
    assert warnings_of(study)[warning] == "IQL"
    assert methods_of(study)["IQL"]["training seeds"] == "1 – 2"


def test_commands_name_what_they_make(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    write_result(folder, result_of(UMAZE, "cql"))
    run, report = run_commands(load_study(folder))
    assert run == (
        "diffuser-policy benchmark run maze --methods cql --problems maze2d-umaze "
        "--output 'runs/a folder-again'"
    )
    assert report == "diffuser-policy benchmark report 'runs/a folder-again'"
    assert str(tmp_path) not in run


@pytest.mark.parametrize(
    ("steps", "most", "options"),
    [
        (50_000, 100_000, []),
        (50_000, None, ["--budget", "50000"]),
        (300, None, ["--budget", "300"]),
        (300, 400, []),  # no option makes this
    ],
)
def test_commands_tell_the_budget_that_differs_from_the_suite(
    tmp_path: Path, steps: int, most: int | None, options: list[str]
) -> None:
    result = result_of(UMAZE, "iql")
    result["cell"] |= {"num_steps": steps, "max_steps": most}
    write_result(tmp_path, result)
    [line] = run_lines(load_study(tmp_path))
    assert line.split()[4:].index("--methods") == len(options)
    assert line.split()[4 : 4 + len(options)] == options


def test_commands_of_several_suites_name_what_each_has(tmp_path: Path) -> None:
    other = result_of(UMAZE, "sac-her", 7, suite="online", episodes=9)
    for result in (result_of(LARGE, "cql"), result_of(LARGE, "bcq"), other):
        write_result(tmp_path, result)
    first, second, *reports = run_commands(load_study(tmp_path))
    output = f"runs/{tmp_path.name}-again"
    assert first.endswith(
        f"run maze --methods bcq cql --problems multi2d-large --output {output}"
    )
    assert second.endswith(
        "run online --episodes 9 --methods sac-her --problems maze2d-umaze --seeds 7 "
        f"--output {output}-2"  # a folder holds one suite
    )
    assert [shlex.split(line)[-1] for line in reports] == [output, f"{output}-2"]


def test_commands_make_the_cells_that_are_there_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = load_suite("locomotion")
    mine = [
        cell
        for cell in suite.cells()
        if cell.method in {"bc", "dt", "awac"}
        or (cell.method == "iql" and cell.problem.name != "hopper-medium")
        or (cell.method == "td3-bc" and cell.seed == 1)
    ]
    for cell in mine:
        result = result_of(UMAZE, "iql", cell.seed, episodes=1)
        place = tmp_path / "cells" / cell.id
        place.mkdir(parents=True)
        result["cell"] = json.loads(json.dumps(plain(cell.to_json())))
        (place / "cell.json").write_text(json.dumps(result["cell"]))
        (place / "result.json").write_text(json.dumps(result))
    chosen: list[Cell] = []
    outputs: dict[str | None, list[int | None]] = {}

    def keep(settings: RunSettings) -> int:
        suite, cells = settings.chosen()
        outputs.setdefault(str(settings.output), []).append(suite.num_steps)
        chosen.extend(cells)
        return 0

    monkeypatch.setattr("diffuser_policy.cli.benchmark.run", keep)
    lines = run_lines(load_study(tmp_path))
    for line in lines:
        assert main(shlex.split(line)[1:]) == 0
    assert len(chosen) == len(mine)
    assert {cell.id: cell for cell in chosen} == {cell.id: cell for cell in mine}
    assert len(outputs) == 1  # one budget, one folder
    assert len(lines) == 3  # two seeds, one seed, and a problem that lacks a method


TOML = """
num_steps = 70
[[problems]]
env = "diffuser_envs/Maze2D-UMaze-v1"
dataset = "diffuser/maze2d-umaze-v1"
[methods.iql]
"""


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        (None, "mine.toml"),
        ("suites/own.toml", "suites/own.toml"),
        ("/somewhere/else/own.toml", "own.toml"),
    ],
)
def test_commands_name_the_file_of_a_suite(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: str | None,
    shown: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "suites").mkdir()
    (tmp_path / "suites" / "own.toml").write_text(TOML)
    folder = tmp_path / "results"
    result: dict[str, Any] = result_of(UMAZE, "iql", suite="mine")
    result["cell"] |= {"num_steps": 80, "max_steps": None}
    write_result(folder, result)
    if source is not None:
        data = {"schema": 1, "name": "mine", "source": source}
        (folder / "suite.json").write_text(json.dumps(data))
    [line] = run_lines(load_study(folder))
    known = " --budget 80" if source == "suites/own.toml" else ""
    assert line.startswith(f"diffuser-policy benchmark run {shown}{known} --methods")


def test_recorded_labels_are_shown(tmp_path: Path) -> None:
    for method, label in (
        ("mine.py:first", "Mine"),
        ("other.py:second", "Mine"),
        ("third.py:best_one", "Best"),
        ("fourth.py:plain_one", ""),
        ("iql", ""),
    ):
        result = result_of(UMAZE, method, episodes=2) | {"label": label}
        write_result(tmp_path, result)
    study = load_study(tmp_path)
    [(group, _)] = groups_of(study)
    assert set(score_table(study, group).header) == {
        *("problem", "IQL", "Mine (first)", "Mine (second)", "Best", "plain-one"),
    }
