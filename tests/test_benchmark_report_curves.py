"""Learning curves and critics in benchmark reports."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from diffuser_policy.benchmark.context import Rise, rise_of
from diffuser_policy.benchmark.report import load_study
from diffuser_policy.benchmark.report.study import Critic
from diffuser_policy.benchmark.report.tables import critic_table, curve_table
from tests.benchmark_report_helpers import (
    MAZES,
    result_of,
    rows_of,
    texts,
    warnings_of,
    write_result,
)

UMAZE = MAZES[0]


CELL = "maze2d-umaze--iql--seed-0"


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
    shown = texts(curve_table(study), 0)
    assert shown["verdict"] == kind
    assert shown["change at the end"] == f"{found.mean:+.1f} ± {found.error:.1f}"
    warning = {} if kind == "flat" else {f"learning curve {kind} at the end": CELL}
    assert warnings_of(study) == warning


def test_a_curve_that_never_changed_is_constant(tmp_path: Path) -> None:
    result = result_of(UMAZE, "iql")
    for point in result["curve"]:
        point["values"] = [0.0] * 20
    write_result(tmp_path, result)
    study = load_study(tmp_path)
    assert texts(curve_table(study), 0)["verdict"] == "constant"
    assert warnings_of(study) == {"learning curve constant at the end": CELL}


@pytest.mark.parametrize(
    ("median", "verdict"),
    [
        (28_700.0, "too high"),
        (110.1, "too high"),
        (109.9, "inside"),
        (-9.9, "inside"),
        (-10.1, "too low"),
    ],
)
def test_values_that_rewards_and_discount_do_not_allow_are_found(
    tmp_path: Path, median: float, verdict: str
) -> None:
    """A tenth of the allowed range, 0 to 100, is left to approximation."""
    assert Critic(-20.0, median, 900.0, 0.0, 100.0).verdict == verdict
    result = result_of(UMAZE, "iql")
    values = {"low": -20.0, "median": median, "high": 900.0, "possible": [0.0, 100.0]}
    result["training"]["values"] = values
    write_result(tmp_path, result)
    write_result(tmp_path, result_of(UMAZE, "bc"))  # has no critic
    study = load_study(tmp_path)
    assert rows_of(critic_table(study)) == [
        {
            "cell": CELL,
            "5 %": "-20",
            "median": f"{median:,.0f}",
            "95 %": "900",
            "lowest allowed": "0",
            "highest allowed": "100",
            "median is": verdict,
        }
    ]
    found = {text: w for text, w in warnings_of(study).items() if "critic" in text}
    assert found == (
        {f"critic's values {verdict}": CELL} if verdict != "inside" else {}
    )


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
    rows = {row["problem, method"]: row for row in rows_of(curve_table(study))}
    iql, bc = rows["Maze2D-UMaze, IQL"], rows["Maze2D-UMaze, BC"]
    step = result["curve"][3]["step"]
    assert iql["peak, at step"] == f"{score - 1:.1f} at {step:,}"
    assert (iql["peak − Diffuser"], bc["peak − Diffuser"]) == ("-1.0", "+1.0")
    points = score - 1 - np.abs(np.arange(len(result["curve"])) - 3)
    assert iql["last"] == f"{points[-1]:.1f}"
    last = points[-3:]
    assert iql["last 3"] == f"{last.mean():.1f} ± {last.std(ddof=1):.1f}"
