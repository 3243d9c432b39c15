"""What benchmark reports say of learning curves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from diffuser_policy.benchmark.report import load_study
from diffuser_policy.benchmark.report.document import Bullets, Table
from diffuser_policy.benchmark.report.study import Study
from diffuser_policy.benchmark.report.summary import summary
from diffuser_policy.benchmark.report.trainings import cell_table, peak_table
from diffuser_policy.benchmark.results import Rise, rise_of
from tests.benchmark_report_helpers import MAZES, result_of, texts, write_result

UMAZE = MAZES[0]


def bullets_of(study: Study) -> str:
    """Return the sentences of a report's beginning."""
    [bullets] = [block for block in summary(study) if isinstance(block, Bullets)]
    return "\n".join(bullets.items)


def map_rows(table: Table) -> list[dict[str, str]]:
    return [texts(table, index) for index in range(len(table.rows))]


@pytest.mark.parametrize(
    ("step", "kind"), [(0.0, "flat"), (5.0, "rising"), (-5.0, "falling")]
)
def test_a_curve_that_still_rises_is_called_so(
    tmp_path: Path, step: float, kind: str
) -> None:
    result = result_of(UMAZE, "iql")
    noise = np.random.default_rng(0).normal(size=(10, 20))
    for index, point in enumerate(result["curve"]):
        point["values"] = (step * index + noise[index]).tolist()
    write_result(tmp_path, result)
    study = load_study(tmp_path)
    found = rise_of(study.results[0].curve)
    assert found is not None
    assert found.mean == pytest.approx(
        3 * step + noise[7:].mean() - noise[4:7].mean(), abs=1e-9
    )
    assert texts(cell_table(study), 0)["curve in the end"].startswith(f"{kind}: ")
    said = bullets_of(study)
    assert ("1 of 1 learning curve still rose" in said) == (kind == "rising")
    assert ("1 of 1 learning curve fell" in said) == (kind == "falling")
    assert "beginning to end" not in said


def test_a_curve_that_never_changed_says_nothing(tmp_path: Path) -> None:
    result = result_of(UMAZE, "iql")
    for point in result["curve"]:
        point["values"] = [0.0] * 20
    write_result(tmp_path, result)
    study = load_study(tmp_path)
    assert texts(cell_table(study), 0)["curve in the end"] == "always 0.0"
    assert "1 of 1 learning curve had the same score from beginning" in bullets_of(
        study
    )


@pytest.mark.parametrize(
    ("median", "kind"),
    [(28_700.0, "too high"), (-48.0, "too low"), (103.0, ""), (-4.0, "")],
)
def test_values_that_cannot_be_true_are_told(
    tmp_path: Path, median: float, kind: str
) -> None:
    result = result_of(UMAZE, "bcq")
    values = {"low": 0.0, "median": median, "high": 0.0, "possible": [0.0, 100.0]}
    result["training"]["values"] = values
    write_result(tmp_path, result)
    write_result(tmp_path, result_of(UMAZE, "bc"))  # has no critic
    study = load_study(tmp_path)
    shown = {row["cell"]: row["values"] for row in map_rows(cell_table(study))}
    wanted = f"{median:,.0f} of 0 to 100" + (f": {kind}" if kind else "")
    assert shown == {
        "maze2d-umaze--bcq--seed-0": wanted,
        "maze2d-umaze--bc--seed-0": "–",
    }
    said = "The values of 1 of 1 critic are outside" in bullets_of(study)
    assert said == bool(kind)


def test_episodes_of_a_curve_are_compared_with_themselves() -> None:
    """One episode is worth ten times another: a rise of all of them is still one."""
    rng = np.random.default_rng(1)
    hardness, noise = rng.normal(size=20) * 100, rng.normal(size=(6, 20))
    points = [hardness + 5 * (index > 2) + noise[index] for index in range(6)]
    rise = rise_of([{"values": values.tolist()} for values in points])
    assert rise is not None
    assert rise.kind == "rising"
    assert rise.error == pytest.approx(np.sqrt(2 / 3 / 20), rel=0.5)
    steady = [{"values": (hardness + noise[0]).tolist()}] * 6
    assert rise_of(steady) == Rise(0.0, 0.0)
    assert rise_of(steady[:5]) is None
    assert rise_of([*steady[:5], {"values": [1.0, 2.0]}]) is None


def test_the_highest_evaluation_is_told_apart_from_the_last(tmp_path: Path) -> None:
    write_result(tmp_path, result_of(UMAZE, "diffuser"))
    score = load_study(tmp_path).entries["maze2d-umaze", "diffuser"].score.mean
    for method, peak in (("iql", score - 1), ("bc", score + 1)):
        result = result_of(UMAZE, method)
        for index, point in enumerate(result["curve"]):
            point["score"]["mean"] = peak - abs(index - 3)
        write_result(tmp_path, result)
    study = load_study(tmp_path)
    table = peak_table(study, study.rows)
    assert table is not None
    step = result["curve"][3]["step"]
    [iql] = [
        cell
        for cell, name in zip(table.rows[0], table.header, strict=True)
        if name == "IQL"
    ]
    assert iql.text == f"{score - 1:.1f} at {step:,}"
    last = score - 1 - np.abs(np.arange(len(result["curve"]))[-3:] - 3)
    assert iql.small == (f"last 3: {last.mean():.1f} ± {last.std(ddof=1):.1f}",)
    [bullets] = [block for block in summary(study) if isinstance(block, Bullets)]
    [said] = [item for item in bullets.items if "highest evaluation" in item]
    assert "below Diffuser's score in 1 of 2 learning curves" in said
    assert f"not so: BC on Maze2D-UMaze, {score + 1:.1f}" in said
