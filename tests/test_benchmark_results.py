"""`result.json`: episodes as columns, and older results with a list of episodes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from diffuser_policy.benchmark.cells import (
    CellFolder,
    compact_evaluation,
    read_result,
)
from tests.benchmark_report_helpers import KUKA, MAZES, result_of


def written(folder: Path, result: dict[str, Any]) -> Path:
    """Write a result as cells do; return its file."""
    evaluations = [compact_evaluation(item) for item in result["evaluations"]]
    files = CellFolder(folder, "new")
    files.write("result", result | {"evaluations": evaluations})
    return files.path / "result.json"


@pytest.mark.parametrize("env", [MAZES[0], KUKA[0]])
def test_both_forms_read_alike(env: str, tmp_path: Path) -> None:
    result = result_of(env, "iql", episodes=7)
    (tmp_path / "old.json").write_text(json.dumps(result, indent=1))
    path = written(tmp_path, result)
    old, new = read_result(tmp_path / "old.json"), read_result(path)
    left_out = {"start", "goal"}
    kept = [{k: e[k] for k in e if k not in left_out} for e in old.episodes]
    assert new.episodes == kept
    assert new.evaluations[2]["seed"] == 32_000
    assert (new.curve, new.timing, new.cell) == (old.curve, old.timing, old.cell)
    text = path.read_text()
    assert text.count("\n") == 1
    assert ": " not in text.replace("x86_64, 2 cores", "")


def test_columns_that_never_change_are_one_value() -> None:
    episodes = [
        {
            "seed": seed,
            "return": 0.5 * seed,
            "length": 300,
            "time_to_goal": None,
            "start": [1.0, 2.0],
            "details": {"failure": reason, "positions": [1, 2, 3]},
        }
        for seed, reason in ((4, None), (5, "dropped"))
    ]
    evaluation = {"seed": 4, "episodes": episodes, "predict_seconds": 9.0}
    assert compact_evaluation(evaluation) == {
        "seed": 4,
        "episodes": 2,
        "columns": {"return": [2.0, 2.5], "length": 300, "time_to_goal": None},
        "details": {"failure": [None, "dropped"]},
    }


def test_seeds_that_are_not_consecutive_are_kept(tmp_path: Path) -> None:
    result = result_of(MAZES[0], "iql", episodes=3)
    seeds = (30_000, 30_007, 30_002)
    first = result["evaluations"][0]["episodes"]
    for episode, seed in zip(first, seeds, strict=True):
        episode["seed"] = seed
    found = read_result(written(tmp_path, result)).evaluations[0]["episodes"]
    assert tuple(episode["seed"] for episode in found) == seeds


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    result = result_of(MAZES[0], "iql", episodes=2)
    result["timing"]["act_ms"] = float("nan")
    with pytest.raises(ValueError, match="JSON compliant"):
        written(tmp_path, result)
    assert not [*tmp_path.rglob("result.json")]
