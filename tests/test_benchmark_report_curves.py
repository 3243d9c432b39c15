"""What benchmark reports say of learning curves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from diffuser_policy.benchmark.report import load_study
from diffuser_policy.benchmark.report.document import Bullets
from diffuser_policy.benchmark.report.facts import cell_table, peak_table
from diffuser_policy.benchmark.report.summary import summary
from diffuser_policy.benchmark.results import Rise, rise_of
from tests.benchmark_report_helpers import MAZES, result_of, texts, write_result

UMAZE = MAZES[0]


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
    [bullets] = [block for block in summary(study) if isinstance(block, Bullets)]
    said = "1 of 1 learning curve still rose" in bullets.items[-1]
    assert said == (kind == "rising")


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
    assert texts(table, 0)["IQL"] == f"{score - 1:.1f} at {step:,}"
    [bullets] = [block for block in summary(study) if isinstance(block, Bullets)]
    [said] = [item for item in bullets.items if "highest evaluation" in item]
    assert "below Diffuser's score in 1 of 2 learning curves" in said
    assert f"not so: BC on Maze2D-UMaze, {score + 1:.1f}" in said
