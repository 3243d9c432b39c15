"""Benchmarks without goals: problems of one environment, and what their data earned."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from diffuser_policy.benchmark.cell_process import run_cell
from diffuser_policy.benchmark.cells import Cell, CellFolder, EvaluationProtocol
from diffuser_policy.benchmark.methods import find_method
from diffuser_policy.benchmark.problem import Problem, behavior_facts, check_task
from diffuser_policy.benchmark.report.scores import (
    compact_table,
    groups_of,
    published_tables,
    score_table,
)
from diffuser_policy.benchmark.report.study import load_study
from diffuser_policy.benchmark.report.tables import budget_table
from diffuser_policy.benchmark.runner import check_cells
from diffuser_policy.benchmark.suites import load_suite
from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.errors import (
    ConfigError,
    DatasetError,
    DatasetNotFoundError,
    UnknownNameError,
)
from diffuser_policy.settings import from_json
from tests.baseline_helpers import line_data
from tests.benchmark_report_helpers import result_of, rows_of, with_scores

LINE = "tests.baseline_helpers:test/Line-none-v0"
ROBOTS = ("HalfCheetah", "Hopper", "Walker2d")
QUALITIES = ("medium-expert", "medium", "medium-replay")


def test_problems_of_one_environment_are_told_apart_by_their_labels() -> None:
    suite = load_suite("locomotion")
    titles = [problem.title for problem in suite.problems]
    assert titles == [f"{robot}-{each}" for robot in ROBOTS for each in QUALITIES]
    cell = suite.cells(methods=["bc"], problems=["Hopper-medium"], seeds=[3])[0]
    assert cell.id == "hopper-medium--bc--seed-3"
    assert from_json(Cell, json.loads(json.dumps(cell.to_json()))) == cell


def test_a_cell_without_a_label_is_written_as_before_there_were_labels() -> None:
    cell = Cell(problem=Problem(env="Hopper-v5", dataset="a/b-v0"), method="bc")
    assert set(cell.to_json()["problem"]) == {"env", "dataset", "goals", "env_options"}
    assert cell.id == "hopper--bc--seed-0"


@pytest.mark.parametrize("label", ["", "../up", "a--b", "Hopper medium", "x" * 61, "."])
def test_a_label_that_is_no_name_of_a_folder_is_refused(label: str) -> None:
    with pytest.raises(ConfigError, match="single dashes, dots or underscores"):
        Problem(env="Hopper-v5", dataset="a/b-v0", label=label)


def test_two_problems_of_one_environment_need_labels(tmp_path: Path) -> None:
    entry = '[[problems]]\nenv = "Hopper-v5"\ndataset = "a/b-v0"\n'
    path = tmp_path / "two.toml"
    path.write_text(f"{entry}{entry}[methods.bc]\n")
    with pytest.raises(ConfigError, match='such as label = "Hopper-medium"'):
        load_suite(path)


def test_methods_have_budgets_and_training_seeds_of_their_own(tmp_path: Path) -> None:
    text = """
    num_steps = 100
    max_steps = 200
    seeds_of.bc = [4, 5]
    num_steps_of.iql = 70
    [[problems]]
    env = "Hopper-v5"
    dataset = "a/b-v0"
    [methods]
    bc = {}
    iql = {}
    """
    path = tmp_path / "own.toml"
    path.write_text(text)
    suite = load_suite(path)
    found = {c.id: (c.num_steps, c.max_steps) for c in suite.cells()}
    assert found == {
        "hopper--bc--seed-4": (100, 200),
        "hopper--bc--seed-5": (100, 200),
        "hopper--iql--seed-0": (70, None),
    }
    assert {cell.seed for cell in suite.cells(seeds=[9])} == {9}
    path.write_text(text.replace("seeds_of.bc", "seeds_of.dt"))
    with pytest.raises(ConfigError, match="Unknown method of the suite 'dt'"):
        load_suite(path)
    path.write_text(text.replace("[4, 5]", "[4, 4]"))
    with pytest.raises(ConfigError, match="Training seeds have to differ"):
        load_suite(path)


def test_the_behavior_earned_what_its_episodes_add_up_to() -> None:
    flat = line_data(num_runs=3, run_length=4, goals=False)
    env = gymnasium.make(LINE)
    returns = flat.fields["reward"].reshape(3, 4).sum(axis=1)
    facts = behavior_facts(flat, env)
    assert facts == pytest.approx(
        {
            "episodes": 3,
            "mean_return": returns.mean(),
            "best_return": returns.max(),
        }
    )
    scored = behavior_facts(flat, gymnasium.make("Hopper-v5"))
    assert scored is not None
    assert scored["mean_score"] == pytest.approx(
        100 * (returns.mean() + 20.272305) / 3254.572305
    )
    assert behavior_facts(line_data(), env) is None  # goals: a run may chase several
    new = gymnasium.make(LINE.replace("none", "new"))  # a new goal in every episode
    assert behavior_facts(flat, new) is None


def locomotion(folder: Path, *, told: bool = True, untold: str = "") -> Path:
    """Write made-up results: scores 10, 20 …, of data that earned half and double."""
    for number, title in enumerate(f"{r}-{q}" for r in ROBOTS for q in QUALITIES):
        for method, better in (("diffuser", 5.0), ("iql", 0.0)):
            result = result_of(f"{title.partition('-')[0]}-v5", method, episodes=4)
            cell: dict[str, Any] = result["cell"]
            cell["problem"] |= {"label": title, "dataset": "diffuser/x-v1"}
            score = 10.0 * (number + 1) + better
            result = with_scores(result, [score - 1, score + 1])
            result["training"].pop("loaded", None)
            if told and method == "iql" and title != untold:
                earned = {"mean_score": score / 2, "best_score": 2 * score}
                result["dataset"]["behavior"] = earned
            place = folder / "cells" / f"{title.lower()}--{method}--seed-0"
            place.mkdir(parents=True)
            (place / "cell.json").write_text(json.dumps(cell))
            (place / "result.json").write_text(json.dumps(result))
    return folder


def test_the_table_has_the_papers_rows_averages_and_the_data(tmp_path: Path) -> None:
    study = load_study(locomotion(tmp_path))
    [(group, rows)] = groups_of(study)
    assert group.title == "Table 2: locomotion"
    table = score_table(study, group)
    found = {row["problem"]: row for row in rows_of(table)}
    assert list(found) == [
        *(f"HalfCheetah-{each}" for each in QUALITIES),
        "HalfCheetah, average",
        *(f"Hopper-{each}" for each in QUALITIES),
        "Hopper, average",
        *(f"Walker2d-{each}" for each in QUALITIES),
        "Walker2d, average",
        "Locomotion, average",
    ]
    assert found["Walker2d-medium"] == {
        "problem": "Walker2d-medium",
        "Diffuser": "85.0",
        "IQL": "80.0",
        "the data, mean": "40.0",
        "the data, best": "160.0",
    }
    assert list(found["Locomotion, average"].values())[1:] == [
        *("55.0", "50.0", "25.0", "100.0"),
    ]
    assert all(cell.small for cell in table.rows[-1][1:3])  # intervals
    assert len(rows) == 9


def test_data_that_nobody_noted_has_no_columns(tmp_path: Path) -> None:
    study = load_study(locomotion(tmp_path, told=False))
    [(group, _)] = groups_of(study)
    assert score_table(study, group).header == ("problem", "Diffuser", "IQL")


def test_data_of_which_a_part_is_not_known_have_no_average(tmp_path: Path) -> None:
    study = load_study(locomotion(tmp_path, untold="Hopper-medium"))
    [(group, _)] = groups_of(study)
    rows = rows_of(score_table(study, group))
    means = {row["problem"]: row["the data, mean"] for row in rows}
    assert {name for name, mean in means.items() if mean == "–"} == {
        *("Hopper-medium", "Hopper, average", "Locomotion, average"),
    }
    assert means["Walker2d, average"] == "40.0"


def test_published_figures_stand_beside_the_nine_and_their_average(
    tmp_path: Path,
) -> None:
    study = load_study(locomotion(tmp_path))
    [(group, rows)] = groups_of(study)
    tables = published_tables(rows)
    assert [table.published for table in tables] == [True, True]
    for table in tables:
        for column in range(1, len(table.header)):
            texts = [row[column].text for row in table.rows]
            figures = [float(t.split()[0]) for t in texts if t[0].isdigit()]
            if len(figures) == 10:  # the averages are as printed
                assert np.mean(figures[:-1]) == pytest.approx(figures[-1], abs=0.06)
    compact = compact_table(study, group, ["Diffuser"])
    last = rows_of(compact)[-1]
    assert last["Diffuser, published, other data"] == "75.3"
    assert rows_of(compact)[3]["Diffuser, published, other data"] == "–"


def test_budgets_stand_side_by_side_in_minutes(tmp_path: Path) -> None:
    study = load_study(locomotion(tmp_path))
    [(_, rows)] = groups_of(study)
    table = budget_table(study, rows)
    assert table is not None
    cell = table.rows[0][table.header.index("IQL")]
    assert cell.text == "13.5"  # 812 seconds
    assert cell.small == ("50,000 steps", "evaluation 0.5")


def data_of(reward: float, *, ends: bool) -> FlatDataset:
    """Return walks that all pay the same in every step."""
    flat = line_data(goals=False, terminated=ends)
    fields = {**flat.fields, "reward": np.full(flat.num_rows, reward)}
    return FlatDataset(fields, flat.run_starts, flat.metadata)


@pytest.mark.parametrize(("reward", "ends"), [(0.0, False), (0.0, True), (1.0, False)])
def test_rewards_that_say_nothing_are_refused(reward: float, *, ends: bool) -> None:
    problem = Problem(env=LINE, dataset="test/line-v0")
    with pytest.raises(DatasetError, match="nothing to learn from it"):
        check_task(problem, data_of(reward, ends=ends), problem.make_env())


def test_a_constant_reward_counts_where_episodes_end_early() -> None:
    problem = Problem(env=LINE, dataset="test/line-v0")
    check_task(problem, data_of(1.0, ends=True), problem.make_env())


def test_a_demonstrator_is_named_by_its_setting() -> None:
    problem = Problem(env="Hopper-v5", dataset="diffuser/hopper-medium-v1")
    method = find_method("demonstrator")
    method.check(problem, {"name": "hopper-medium"})
    with pytest.raises(UnknownNameError, match="Did you mean 'hopper-medium'"):
        method.check(problem, {"name": "hopper-middle"})


@pytest.mark.parametrize("case", ["other version", "outside", "good"])
def test_data_that_do_not_fit_are_refused_before_anything_runs(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flat = line_data(goals=False)
    version = "1" if case == "other version" else "0"
    told = {
        "env_id": f"test/Line-none-v{version}",
        "action_low": [-1.0],
        "action_high": [1.0],
    }
    actions = flat.fields["action"].copy()
    if case == "outside":
        actions[70] = 1.5
    fields = {**flat.fields, "action": actions}
    flat = FlatDataset(fields, flat.run_starts, {**flat.metadata, **told})
    runner = "diffuser_policy.benchmark.runner"
    monkeypatch.setattr(f"{runner}.load_flat", lambda *_, **__: flat)
    monkeypatch.setattr(f"{runner}.local_dataset_ids", lambda: ["test/line-v0"])
    problem = Problem(env=LINE, dataset="test/line-v0")
    cells = [Cell(problem=problem, method=f"{__file__}:still")]
    if case == "good":
        check_cells(cells)
        return
    refusal = {
        "other version": "recorded in test/Line-none-v1, and the problem",
        "outside": r"the action of row 70 is \[1\.5\]",
    }
    with pytest.raises(DatasetError, match=refusal[case]):
        check_cells(cells)


def still(context: object) -> None:
    """Be a method that is never run."""


def test_cells_that_differ_in_their_seed_are_checked_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Some methods make an environment for it."""
    checked: list[Mapping[str, Any]] = []
    kind = type(find_method("random"))
    monkeypatch.setattr(
        kind, "check", lambda _self, _problem, settings: checked.append(settings)
    )
    problem = Problem(env=LINE, dataset="test/line-v0")
    cells = [
        Cell(problem=problem, method="random", seed=seed, settings={"a": value})
        for seed, value in enumerate((1, 1, True, 2))
    ]
    check_cells(cells)
    assert [repr(each) for each in checked] == ["{'a': 1}", "{'a': True}", "{'a': 2}"]


def test_a_demonstrators_evaluations_do_not_depend_on_those_before(
    tmp_path: Path,
) -> None:
    pytest.importorskip("mujoco")
    options = {"max_episode_steps": 9}
    cell = Cell(
        problem=Problem(env="Hopper-v5", dataset="none/none-v0", env_options=options),
        method="demonstrator",
        settings={"name": "hopper-medium"},
        evaluation=EvaluationProtocol(seeds=(5, 50), episodes=3, num_envs=2),
    )
    files = CellFolder(tmp_path, cell.id)
    files.prepare(cell)
    whole = run_cell(cell, files)
    for name in ("result", "evaluation-50"):  # as if killed in the second evaluation
        files.remove(name)
    assert run_cell(cell, files)["evaluations"] == whole["evaluations"]


def test_a_planner_that_is_trained_needs_the_data() -> None:
    """One that is loaded does not."""
    problem = Problem(env="Hopper-v5", dataset="none/none-v0")
    with pytest.raises(DatasetNotFoundError, match="none/none-v0"):
        check_cells([Cell(problem=problem, method="diffuser", num_steps=1)])
    method = find_method("diffuser")
    assert method.learns({})
    assert not method.learns({"planner": "hopper"})


@pytest.mark.parametrize(
    ("suite", "module", "command"),
    [
        ("ogbench", "ogbench", "collect pointmaze-large-v0 --generator stitch"),
        ("kuka", "mujoco", "collect diffuser_envs/KukaStack-Unconditional-v1 --dem"),
    ],
)
def test_a_missing_dataset_is_recorded_where_and_how_its_name_says(
    suite: str, module: str, command: str
) -> None:
    pytest.importorskip(module)
    problem = load_suite(suite).problems[-2]
    with pytest.raises(DatasetNotFoundError, match=f"{problem.dataset}.*{command}"):
        check_cells([Cell(problem=problem, method="diffuser", num_steps=1)])
