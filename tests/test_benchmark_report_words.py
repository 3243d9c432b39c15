"""What benchmark reports say of where results come from, and how to make them again."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from diffuser_policy.benchmark.report import load_study
from diffuser_policy.benchmark.report.document import Bullets, Paragraph, Remark
from diffuser_policy.benchmark.report.facts import outcome_table
from diffuser_policy.benchmark.report.study import Study
from diffuser_policy.benchmark.report.summary import summary
from diffuser_policy.benchmark.report.tables import (
    difference_table,
    groups_of,
    iqm_table,
    score_table,
)
from diffuser_policy.benchmark.report.trainings import compute_table
from diffuser_policy.benchmark.report.wording import run_command
from tests.benchmark_report_helpers import KUKA, MAZES, result_of, texts, write_result

UMAZE, LARGE = MAZES[0], MAZES[-1]
REPEATED = "several training seeds loaded the same planner"


def lead(study: Study) -> list[str]:
    return [block.text for block in summary(study) if type(block) is Paragraph]


def run_lines(study: Study, methods: list[str]) -> list[str]:
    return run_command(study, study.rows, methods).splitlines()[:-1]


def test_the_beginning_says_who_learned_from_what(tmp_path: Path) -> None:
    for method in ("diffuser", "bc", "iql", "demonstrator"):
        write_result(tmp_path, result_of(UMAZE, method, episodes=2))
    practised = result_of(UMAZE, "sac-her", episodes=2) | {"dataset": None}
    write_result(tmp_path, practised)
    scope = lead(load_study(tmp_path))[0]
    assert "IQL and BC learned from the dataset of the problem, the same" in scope
    assert "Diffuser loaded planners that had been trained before" in scope
    assert "before, on diffuser/maze2d-umaze-v1. " in scope
    assert "SAC+HER and Demonstrator learned from no dataset." in scope


def test_the_beginning_says_what_turns_plans_into_actions(tmp_path: Path) -> None:
    planned = result_of(UMAZE, "diffuser", episodes=2)
    planned["policy"] |= {"execution": {"executor": "pursuit"}, "guide": [{}]}
    write_result(tmp_path, planned)
    write_result(tmp_path, result_of(UMAZE, "bc", episodes=2))
    scope = lead(load_study(tmp_path))[0]
    assert (
        "Diffuser plans states, which a controller that pursues the planned path turns "
        "into actions; Diffuser is guided by costs; all others act directly."
    ) in scope
    planned["policy"] |= {"execution": {"executor": "actions"}, "guide": None}
    write_result(tmp_path, planned)
    assert "act directly" not in lead(load_study(tmp_path))[0]


def test_cells_of_the_suite_that_were_never_begun_are_gaps(tmp_path: Path) -> None:
    write_result(tmp_path, result_of(UMAZE, "bc", episodes=2))
    there, absent = "maze2d-umaze--bc--seed-0", "maze2d-umaze--iql--seed-0"
    (tmp_path / "suite.json").write_text(json.dumps({"cells": [there, absent]}))
    study = load_study(tmp_path)
    assert [(c.name, c.state) for c in study.open_cells] == [(absent, "not begun")]
    [remark] = [block for block in summary(study) if isinstance(block, Remark)]
    assert remark.text == 'Not complete: 1 cell of the suite not begun; see "Gaps".'


def test_being_ahead_of_some_baselines_is_not_being_ahead_of_all(
    tmp_path: Path,
) -> None:
    for env, methods in ((UMAZE, ("bcq", "iql")), (MAZES[1], ("iql",))):
        write_result(tmp_path, result_of(env, "diffuser", mean=190.0))
        for method in methods:
            write_result(tmp_path, result_of(env, method, mean=20.0))
    [bullets] = [b for b in summary(load_study(tmp_path)) if isinstance(b, Bullets)]
    assert "on 1 of 2 problems (Maze2D-UMaze)." in bullets.items[0]
    assert "results are missing, on Maze2D-Medium (BCQ)." in bullets.items[0]


def test_loading_a_planner_is_no_training(tmp_path: Path) -> None:
    for method in ("diffuser", "bc"):
        write_result(tmp_path, result_of(UMAZE, method, episodes=2))
    table = compute_table(load_study(tmp_path))
    assert texts(table, 0)["training, CPU"] == "trained before"
    assert texts(table, 1)["training, CPU"] not in ("trained before", "–")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"note": "100 is best."}'])
def test_the_suite_says_what_its_scores_are(text: str, tmp_path: Path) -> None:
    write_result(tmp_path, result_of(UMAZE, "bc", episodes=2))
    (tmp_path / "suite.json").write_text(text)
    scope = lead(load_study(tmp_path))[0]
    assert scope.endswith("100 is best." if "note" in text else "of a problem.")


def test_nobody_leads_where_there_are_only_references(tmp_path: Path) -> None:
    for method in ("diffuser", "demonstrator"):
        write_result(tmp_path, result_of(UMAZE, method, episodes=2))
    assert not re.search("leads|highest", str(summary(load_study(tmp_path))))
    write_result(tmp_path, result_of(UMAZE, "bc", episodes=2))
    assert re.search("leads|highest", str(summary(load_study(tmp_path))))


def test_planners_of_other_data_are_named(tmp_path: Path) -> None:
    foreign = result_of(UMAZE, "diffuser", episodes=2)
    foreign["policy"]["dataset"] = "somebody/else-v0"
    write_result(tmp_path, foreign)
    write_result(tmp_path, result_of(LARGE, "diffuser", episodes=2))
    scope = lead(load_study(tmp_path))[0]
    assert "on diffuser/multi2d-large-v1 and somebody/else-v0: other data" in scope
    assert "other data than the problem's in maze2d-umaze--diffuser--seed-0." in scope
    assert "learned from the dataset" not in scope


def test_a_planner_that_is_trained_here_learns_from_the_dataset(
    tmp_path: Path,
) -> None:
    result = result_of(UMAZE, "diffuser", episodes=2)
    result["training"]["loaded"] = False
    result["dataset"] = {"id": "diffuser/maze2d-umaze-v1"}
    write_result(tmp_path, result)
    scope = lead(load_study(tmp_path))[0]
    assert "Diffuser learned from the dataset" in scope
    assert "before" not in scope


@pytest.mark.parametrize("seeds", [1, 3])
def test_seeds_that_loaded_one_planner_are_no_trainings(
    tmp_path: Path, seeds: int
) -> None:
    for env in KUKA:
        for method in ("diffuser", "bc"):
            for seed in range(seeds):
                write_result(tmp_path, result_of(env, method, seed, episodes=2))
    study = load_study(tmp_path)
    [(group, rows)] = groups_of(study)
    tables = [
        *(score_table(study, group), outcome_table(study, rows)),
        *(iqm_table(study), difference_table(study, rows)),
    ]
    for table in tables:
        assert table is not None
        notes = [note for note in table.notes if REPEATED in note]
        assert len(notes) == (seeds > 1)
        assert all(note.startswith("Diffuser: ") for note in notes)
    assert any(REPEATED in text for text in lead(study)) == (seeds > 1)


def test_commands_name_what_they_make(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    for method in ("diffuser", "iql"):
        write_result(folder, result_of(UMAZE, method))
    study = load_study(folder)
    run, report = run_command(study, study.rows, ["iql"]).splitlines()
    assert run == (
        "diffuser-policy benchmark run maze --methods iql --problems maze2d-umaze "
        "--seeds 0 --output 'a folder-again'"
    )
    assert report == "diffuser-policy benchmark report 'a folder-again'"
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
    [line] = run_lines(load_study(tmp_path), ["iql"])
    assert line.split()[4:].index("--methods") == len(options)
    assert line.split()[4 : 4 + len(options)] == options


def test_commands_of_several_suites_name_what_each_has(tmp_path: Path) -> None:
    other = result_of(UMAZE, "sac-her", 7, suite="online", episodes=9)
    for result in (result_of(LARGE, "iql"), result_of(LARGE, "bc"), other):
        write_result(tmp_path, result)
    first, second = run_lines(load_study(tmp_path), ["bc", "iql", "sac-her"])
    assert "run maze --methods bc iql --problems multi2d-large --seeds 0" in first
    assert "run online --episodes 9 --methods sac-her" in second
    assert "--problems maze2d-umaze --seeds 7" in second


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
    [line] = run_lines(load_study(folder), ["iql"])
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
