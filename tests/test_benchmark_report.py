"""The tables of scores, outcomes and costs in benchmark reports."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from diffuser_policy.benchmark.problem import Problem
from diffuser_policy.benchmark.report import compact_tables, load_study, scores
from diffuser_policy.benchmark.report.scores import (
    PUBLISHED,
    difference_table,
    gap_table,
    groups_of,
    iqm_table,
    published_tables,
    score_table,
)
from diffuser_policy.benchmark.report.study import Entry, Row, Study, curve_of
from diffuser_policy.benchmark.report.tables import (
    compute_table,
    dataset_table,
    failure_table,
    open_table,
    outcome_table,
)
from diffuser_policy.evaluation.statistics import mean_interval
from tests.benchmark_report_helpers import (
    KUKA,
    MAZES,
    iqm,
    result_of,
    rows_of,
    texts,
    warnings_of,
    with_scores,
    write_benchmark,
    write_result,
)

UMAZE, LARGE = MAZES[0], MAZES[5]


@pytest.fixture(scope="module")
def maze(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_benchmark(tmp_path_factory.mktemp("maze"), episodes=10)


@pytest.fixture(scope="module")
def kuka(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kuka")
    return write_benchmark(folder, suite="kuka", seeds=(0, 1, 2), episodes=10)


def scored(folder: Path, scores: dict[str, list[float]], env: str = UMAZE) -> Study:
    """Return a study of one problem with the given scores of methods."""
    for method, values in scores.items():
        write_result(folder, with_scores(result_of(env, method), values))
    return load_study(folder)


def raw(folder: Path, cell: str) -> dict[str, Any]:
    path = folder / "cells" / cell / "result.json"
    data: dict[str, Any] = json.loads(path.read_text())
    return data


def scores_of(data: dict[str, Any]) -> list[float]:
    return [e["score"] for item in data["evaluations"] for e in item["episodes"]]


def test_table_1_has_the_papers_rows_and_our_means(maze: Path) -> None:
    study = load_study(maze)
    [(group, _)] = groups_of(study)
    table = score_table(study, group)
    names = [row[0].text for row in table.rows]
    assert names == [
        *("Maze2D-UMaze", "Maze2D-Medium", "Maze2D-Large", "Maze2D, average"),
        *("Multi2D-UMaze", "Multi2D-Medium", "Multi2D-Large", "Multi2D, average"),
    ]
    assert len(table.header) == 1 + 8
    column = table.header.index(
        next(name for name in table.header if name.lower() == "iql")
    )
    means = []
    for row, size in enumerate(("umaze", "medium", "large")):
        values = scores_of(raw(maze, f"maze2d-{size}--iql--seed-0"))
        cell, known = table.rows[row][column], mean_interval(values)
        means.append(np.mean(values))
        assert cell.text == f"{np.mean(values):.1f}"
        low, high = (float(end) for end in cell.small[0][1:-1].split(", "))
        assert (low, high) == pytest.approx((known.low, known.high), abs=0.5)
    assert table.rows[3][column].text == f"{np.mean(means):.1f}"
    assert table.averages == {3, 7}


def test_success_and_time_stand_beside_the_score(maze: Path) -> None:
    study = load_study(maze)
    [(group, _)] = groups_of(study)
    data = raw(maze, "maze2d-umaze--bc--seed-0")
    episodes = [e for item in data["evaluations"] for e in item["episodes"]]
    times = [e["time_to_goal"] for e in episodes if e["success"]]
    table = score_table(study, group)
    column = [name.lower() for name in table.header].index("bc")
    _, success, time = table.rows[0][column].small
    assert success.startswith(f"{100 * len(times) / len(episodes):.0f} % [")
    assert time == f"in {np.mean(times):.0f} steps"


def test_a_missing_cell_shows_as_missing_and_has_no_average(
    maze: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "partly"
    shutil.copytree(maze, folder)
    lost, failed, begun = (
        folder / "cells" / f"maze2d-{cell}--seed-0"
        for cell in ("umaze--iql", "large--bcq", "large--cql")
    )
    for cell in (lost, failed, begun):
        (cell / "result.json").unlink()
    error = {"type": "ValueError", "message": "NaN\nhere"}
    (failed / "error.json").write_text(json.dumps(error))
    (begun / "progress.json").write_text('{"stage": "train", "done": 7, "total": 9}')
    study = load_study(folder)
    [(group, rows)] = groups_of(study)
    table = score_table(study, group)
    column = [name.lower() for name in table.header].index("iql")
    assert table.rows[0][column].text == "missing"
    assert table.rows[3][column].text == "–"
    assert table.rows[7][column].text not in ("missing", "–")
    assert "missing" in texts(difference_table(study, rows), 0).values()
    listed = rows_of(open_table(study))
    assert {row["cell"]: (row["state"], row["detail"]) for row in listed} == {
        lost.name: ("not begun", "–"),
        failed.name: ("failed", "ValueError: NaN here"),
        begun.name: ("unfinished", "train, 7 of 9"),
    }
    found = warnings_of(study)
    assert found["cell not begun"] == lost.name
    assert found["cell failed"] == failed.name
    assert found["cell unfinished"] == begun.name


def test_the_best_is_strong_and_references_do_not_count(tmp_path: Path) -> None:
    study = scored(
        tmp_path,
        {"diffuser": [4, 5, 6], "iql": [1, 2, 3], "demonstrator": [7, 8, 9]},
    )
    [(group, _)] = groups_of(study)
    row = score_table(study, group).rows[0]
    assert [cell.strong for cell in row] == [False, True, False, False]
    assert [cell.text for cell in row[1:]] == ["5.0", "2.0", "8.0"]


def test_all_that_share_the_highest_printed_mean_are_strong(tmp_path: Path) -> None:
    highest = {"iql": [5.04, 5.0], "bc": [4.96, 5.0]}
    scores = highest | {"bcq": [4.8, 5.0], "demonstrator": [5.0, 5.0]}
    scored(tmp_path, scores, LARGE)
    study = scored(tmp_path, scores)
    [(group, _)] = groups_of(study)
    for row in score_table(study, group).rows:  # the last is the average
        strong = {cell.text for cell in row if cell.strong}
        assert strong == {"5.0"}
        assert sum(cell.strong for cell in row) == 2


def test_baselines_that_tie_have_a_gap_each(tmp_path: Path) -> None:
    study = scored(
        tmp_path, {"diffuser": [5.0, 5], "iql": [4.0, 4], "bc": [3.0, 5], "bcq": [0, 0]}
    )
    found = {row["best baseline"]: row for row in rows_of(gap_table(study))}
    assert found["IQL"]["difference"] == "+1.0 [1.0, 1.0]"
    assert found["BC"]["difference"].startswith("+1.0 [0.0")
    assert len(found) == 2


def test_the_gap_is_to_the_best_baseline_on_the_same_episodes(tmp_path: Path) -> None:
    clear = {"diffuser": [90.0, 91, 92, 93], "iql": [10.0, 11, 12, 13], "bc": [1.0] * 4}
    scored(tmp_path, clear | {"demonstrator": [99.0] * 4})
    close = {"diffuser": [50.0, 90, 10, 70], "iql": [40.0, 95, 20, 85]}
    study = scored(tmp_path, close, LARGE)
    first, second = rows_of(gap_table(study))
    assert (first["problem"], first["best baseline"]) == ("Maze2D-UMaze", "IQL")
    assert first["difference"] == "+80.0 [80.0, 80.0]"
    assert first["intervals"] == "ahead, disjoint"
    assert second["score"].startswith("55.0 [")
    assert second["its score"].startswith("60.0 [")
    assert second["difference"].startswith("-5.0 [")
    assert second["intervals"] == "overlapping"


def test_two_methods_are_compared_once_however_many_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[Any] = []
    monkeypatch.setattr(scores, "compare", lambda *figures: made.append(figures))
    problem = Problem(env="test/Line-v0", dataset="test/line-v0")
    row = Row(problem, "Other", "score")
    run: Any = SimpleNamespace(episodes=[{"seed": 0, "score": 1.0}])
    ours, *others = (Entry(row, f"method-{i}", (run,)) for i in range(301))
    for _ in range(2):
        for theirs in others:
            scores.compared(ours, theirs)
    assert len(made) == 300


def test_of_single_episodes_no_overlap_is_told(tmp_path: Path) -> None:
    study = scored(tmp_path, {"diffuser": [90.0], "iql": [10.0]})
    [row] = rows_of(gap_table(study))
    assert (row["difference"], row["intervals"]) == ("+80.0", "–")
    [(_, rows)] = groups_of(study)
    table = difference_table(study, rows)
    assert table is not None
    assert table.rows[0][1].small == ("better 100 %",)
    assert not table.rows[0][1].strong


def test_without_diffuser_the_gap_is_between_the_two_best(tmp_path: Path) -> None:
    study = scored(tmp_path, {"bc": [1.0, 2], "iql": [3.0, 4], "bcq": [0.0, 0]})
    [row] = rows_of(gap_table(study))
    assert (row["method"], row["best baseline"]) == ("IQL", "BC")
    assert row["difference"] == "+2.0 [2.0, 2.0]"
    assert difference_table(study, study.rows) is None


def test_references_are_no_baselines(tmp_path: Path) -> None:
    study = scored(tmp_path, {"diffuser": [1.0, 2], "demonstrator": [3.0, 4]})
    assert gap_table(study) is None


def test_differences_are_of_the_same_episodes(tmp_path: Path) -> None:
    study = scored(tmp_path, {"diffuser": [10.0, 20, 30], "iql": [9.0, 15, 33]})
    [(_, rows)] = groups_of(study)
    table = difference_table(study, rows)
    assert table is not None
    cell = table.rows[0][1]
    assert cell.text == "+1.0"
    assert cell.small[1].startswith("better 67 [")
    assert cell.small[2] == "overlapping"


def test_differences_are_of_shared_episodes_alone(tmp_path: Path) -> None:
    study = scored(tmp_path, {"diffuser": [10.0, 20, 30], "iql": [9.0, 18]})
    [(_, rows)] = groups_of(study)
    assert "+1.5" in texts(difference_table(study, rows), 0).values()
    assert warnings_of(study)["methods ran different episodes"] == "Maze2D-UMaze"


def test_as_many_episodes_need_not_be_the_same(tmp_path: Path) -> None:
    for method, later in (("diffuser", 0), ("iql", 1)):
        result = with_scores(result_of(UMAZE, method), [10.0, 20, 40])
        for episode in result["evaluations"][0]["episodes"]:
            episode["seed"] += later
        write_result(tmp_path, result)
    study = load_study(tmp_path)
    assert warnings_of(study)["methods ran different episodes"] == "Maze2D-UMaze"
    [(_, rows)] = groups_of(study)
    difference = texts(difference_table(study, rows), 0)
    assert "+15.0" in difference.values()  # 20 and 40 instead of 10 and 20


def test_several_training_seeds_are_pooled(kuka: Path) -> None:
    study = load_study(kuka)
    [(group, rows)] = groups_of(study)
    table = score_table(study, group)
    column = [name.lower() for name in table.header].index("cql")
    names = [f"kukastack-conditional--cql--seed-{seed}" for seed in range(3)]
    values = [score for name in names for score in scores_of(raw(kuka, name))]
    assert table.rows[1][column].text == f"{np.mean(values):.1f}"
    assert any(line.startswith("latched ") for line in table.rows[1][column].small)
    outcomes = outcome_table(study, rows)
    [found] = [
        row
        for row in rows_of(outcomes)
        if row["problem, method"].lower() == "kukastack-conditional, cql"
    ]
    assert (found["episodes"], found["training seeds"]) == ("90", "0, 1, 2")


def test_only_numbers_named_score_are_outcomes(tmp_path: Path) -> None:
    result = result_of("diffuser_envs/Maze2D-UMaze-v1", "bc")
    [item] = result["evaluations"][:1]
    for episode in item["episodes"]:
        episode["details"] = {"own_score": 3, "game_score": "3-2", "set_score": [1]}
    item["episodes"][0]["details"]["own_score"] = "none"
    write_result(tmp_path, result)
    study = load_study(tmp_path)
    [found] = rows_of(outcome_table(study, study.rows))
    assert found["own score"].startswith("3.0")
    assert not found.keys() & {"game score", "set score"}


def test_failures_are_counted_by_reason(kuka: Path) -> None:
    study = load_study(kuka)
    table = failure_table(study, study.rows)
    assert table is not None
    names = [f"kukastack-unconditional--bc--seed-{seed}" for seed in range(3)]
    reasons = [
        episode["details"]["failure"]
        for name in names
        for item in raw(kuka, name)["evaluations"]
        for episode in item["episodes"]
    ]
    row = [r[0].text.lower() for r in table.rows].index("kukastack-unconditional, bc")
    found = texts(table, row)
    for reason in {reason for reason in reasons if reason}:
        assert found[reason] == str(reasons.count(reason))
    assert found["failed"] == str(sum(reason is not None for reason in reasons))


def test_interquartile_means_are_of_runs_where_all_have_several(
    tmp_path: Path,
) -> None:
    for env in KUKA:
        for method in ("diffuser", "cql"):
            for seed in (0, 1):
                write_result(tmp_path, result_of(env, method, seed, episodes=10))
    study = load_study(tmp_path)
    means = [
        float(np.mean(scores_of(raw(tmp_path, f"kukastack-{task}--cql--seed-{seed}"))))
        for task in ("unconditional", "conditional", "rearrangement")
        for seed in (0, 1)
    ]
    table = iqm_table(study)
    assert table is not None
    column = [name.lower() for name in table.header].index("cql")
    assert table.rows[0][column].text == f"{iqm(means):.1f}"
    assert table.note == "Pooled: training runs' mean scores."


def test_computing_is_summed_over_cells(kuka: Path) -> None:
    study = load_study(kuka)
    table = compute_table(study)
    [found] = [row for row in rows_of(table) if row["method"] == "BCQ"]
    assert found["cells"] == "9"
    assert found["gradient steps"] == "50,000"
    # 3 problems of 812, 813 and 814 s each.
    assert found["training, CPU"] == f"{3 * (812 + 813 + 814) / 3600:.1f} h"


def test_data_are_told_with_all_of_their_settings(kuka: Path) -> None:
    found = texts(dataset_table(load_study(kuka)), 1)
    assert found["dataset"] == "diffuser/kuka-v1"
    assert found["goals"] == "relabelled in hindsight"
    assert found["transitions"] == "1,000,000"
    told = "collection.demonstrator: maze-waypoint; collection.seed: 0"
    assert found["collection"] == told


def test_published_figures_stay_in_tables_of_their_own(maze: Path) -> None:
    study = load_study(maze)
    [(group, rows)] = groups_of(study)
    printed = {
        text
        for table in PUBLISHED
        for figures in table["figures"].values()
        for text in figures
        if "±" in text
    }
    ours = {cell.text for row in score_table(study, group).rows for cell in row}
    assert not printed & ours
    shown = published_tables(rows)
    assert len(shown) == 3
    assert all(table.published for table in shown)
    assert texts(shown[0], 2)["IQL"] == "58.6"
    assert texts(shown[0], 3)["Diffuser"] == "119.5"
    assert "table 1" in shown[0].note


def test_ogbench_has_a_table_of_its_own_in_the_order_of_sizes(tmp_path: Path) -> None:
    for size in ("giant", "medium"):
        env = f"pointmaze-{size}-v0"
        result = result_of(env, "diffuser", suite="ogbench", episodes=10)
        result["cell"]["problem"]["label"] = f"{size.title()}-stitch"
        write_result(tmp_path, result)
    [(group, rows)] = groups_of(load_study(tmp_path))
    assert group.subject == "OGBench"
    assert [row.title for row in rows] == ["Medium-stitch", "Giant-stitch"]
    [printed] = published_tables(rows)
    by_problem = {texts(printed, row)["problem"]: row for row in range(6)}
    assert len(printed.rows) == 6  # no averages are printed
    assert texts(printed, by_problem["Giant-stitch"])["QRL"] == "50"
    assert texts(printed, by_problem["Giant-navigate"])["Diffuser (b)"] == "92"


def test_published_averages_are_those_of_their_rows() -> None:
    for table in PUBLISHED:
        for method, figures in table["figures"].items():
            printed = [text for text in figures if text]
            odd = (table["problems"][0], method) == ("KukaStack-Unconditional", "CQL")
            without = len(figures) == len(table["problems"])
            if len(printed) < len(figures) or odd or without:
                continue  # the odd one is printed so, and the report says so
            *rows, average = (
                float(text.split()[0].replace("−", "-")) for text in printed
            )
            assert average == pytest.approx(np.mean(rows), abs=0.11), method


def test_compact_tables_keep_published_columns_apart(maze: Path) -> None:
    lines = compact_tables(maze).splitlines()
    assert lines[0].endswith("| Diffuser, published, other data |")
    assert lines[2].endswith("| *113.9 ± 3.1* |")
    assert lines[5].endswith("| *119.5* |")
    assert "<br>" not in "".join(lines)
    values = scores_of(raw(maze, "maze2d-umaze--diffuser--seed-0"))
    assert f"**{np.mean(values):.1f}** [" in lines[2]
    assert "published" not in compact_tables(load_study(maze), published=())


def test_a_figure_that_was_never_published_is_a_dash(
    maze: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = {"Maze2D-UMaze": "113.9", "Maze2D-Medium": ""}
    monkeypatch.setattr(scores, "_papers_figures", lambda _: figures)
    lines = compact_tables(load_study(maze), published=("BC",)).splitlines()
    [first, second] = [line for line in lines if line.startswith("| Maze2D-")][:2]
    assert first.endswith("| *113.9* |")
    assert second.endswith("| – |")


def test_curves_of_several_seeds_span_their_means(kuka: Path, maze: Path) -> None:
    entry = load_study(kuka).entries["kukastack-conditional", "cql"]
    curve = curve_of(entry)
    assert curve is not None
    means = np.array(
        [[point["score"]["mean"] for point in r.curve] for r in entry.results]
    )
    np.testing.assert_allclose(curve.mean, means.mean(axis=0))
    np.testing.assert_allclose(curve.low, means.min(axis=0))
    np.testing.assert_allclose(curve.high, means.max(axis=0))
    alone = load_study(maze).entries["maze2d-umaze", "cql"]
    band = curve_of(alone)
    assert band is not None
    assert band.low[0] == alone.results[0].curve[0]["score"]["low"]
    assert curve_of(load_study(maze).entries["maze2d-umaze", "diffuser"]) is None


def test_a_curve_ends_with_the_seed_that_ended_first(tmp_path: Path) -> None:
    for seed in (0, 1):
        result = result_of(MAZES[0], "iql", seed)
        del result["curve"][len(result["curve"]) - 3 * seed :]
        write_result(tmp_path, result)
    entry = load_study(tmp_path).entries["maze2d-umaze", "iql"]
    curve, shorter = curve_of(entry), entry.results[1].curve
    assert curve is not None
    assert curve.steps.tolist() == [point["step"] for point in shorter]
    assert (curve.low < curve.high).all()


def test_curves_of_seeds_that_were_evaluated_at_other_steps_are_joined(
    tmp_path: Path,
) -> None:
    results = [result_of(MAZES[0], "iql", seed) for seed in (0, 1)]
    for number, result in enumerate(results):
        for point in result["curve"]:
            point["step"] += 100 * number
            point["score"] |= {"mean": point["step"] + 1000.0 * number}
        write_result(tmp_path, result)
    curve = curve_of(load_study(tmp_path).entries["maze2d-umaze", "iql"])
    assert curve is not None
    np.testing.assert_allclose(curve.mean[1:], curve.steps[1:] + 500)
    np.testing.assert_allclose(curve.high[1:] - curve.low[1:], 1000)


@pytest.mark.parametrize("unscored", [1, 2])
def test_returns_are_compared_where_episodes_have_no_score(
    tmp_path: Path, unscored: int
) -> None:
    env = "somebody/Walk-v0"
    for method, score in (("diffuser", 5.0), ("bc", 2.0)):
        result = with_scores(result_of(env, method), [score, score + 1])
        for number, episode in enumerate(result["evaluations"][0]["episodes"]):
            known = None if number < unscored else 99.0
            episode |= {"score": known, "success": None, "time_to_goal": None}
        write_result(tmp_path, result)
    study = load_study(tmp_path)
    [(group, _)] = groups_of(study)
    table = score_table(study, group)
    assert [cell.text for cell in table.rows[0]] == ["Walk", "5.5", "2.5"]
    assert table.rows[0][0].small == ("return",)
    outcome = texts(outcome_table(study, study.rows), 0)
    assert (outcome["score"], outcome["return"][:3]) == ("–", "5.5")
