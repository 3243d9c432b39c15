"""The example that measures how few denoising steps are enough."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from diffuser_policy import DiffuserPolicy

EXAMPLE = Path(__file__).parents[1] / "examples/experiments" / "few_steps.py"
RESULTS = EXAMPLE.parents[1] / "results" / "few_steps.json"


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLE))


def cell(milliseconds: float, *scores: float) -> dict[str, Any]:
    steps = [None if score < 1 else 100 for score in scores]
    return {"milliseconds": milliseconds, "scores": scores, "env_steps": steps}


def test_the_cheapest_setting_is_as_good_as_the_full_chain(
    example: dict[str, Any],
) -> None:
    full = [100.0 + 10 * seed for seed in range(20)]
    cells = {
        "ddpm full": cell(400, *full),
        "ddim 1": cell(5, *(score - 2 - seed % 2 for seed, score in enumerate(full))),
        "ddim 2": cell(9, *(score - 1 + seed % 3 for seed, score in enumerate(full))),
        "ddim 3": cell(13, *(score + 1 for score in full)),
    }
    assert example["lost"](cells["ddim 3"], cells["ddpm full"]) == [1, 1, 1]
    assert example["cheapest"](cells) == "ddim 2"
    assert example["cheapest"]({"ddpm full": cells["ddpm full"]}) == "ddpm full"
    table = example["table"](cells)
    assert "| **ddim 2** | 194.9 [" in table
    assert "| -2.50 [" in table
    assert "| 100 [84, 100] | 400.0 |" in table


def test_what_was_measured_agrees_with_the_shipped_defaults(
    example: dict[str, Any],
) -> None:
    """Every shipped planner samples with the cheapest setting that is good enough."""
    for maze, cells in json.loads(RESULTS.read_text())["mazes"].items():
        planner = DiffuserPolicy.from_pretrained(f"multi2d-{maze}").config.planner
        shipped = example["Setting"](
            planner.sampler,
            planner.num_sampling_steps,
            planner.step_spacing,
            planner.temperature,
        )
        assert shipped.name == example["cheapest"](cells)


@pytest.mark.slow
def test_the_table_is_measured_kept_and_drawn(
    example: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sizes = {"episodes": 1, "mazes": ("umaze",), "only": ("ddim 1",), "repetitions": 1}
    files = {"results": tmp_path / "table", "picture": tmp_path / "table.png"}
    example["main"](**sizes, **files)
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.search(r"that is \d+ times faster", last)
    assert files["picture"].stat().st_size > 5_000
    assert "| **ddim 1** | " in (tmp_path / "table.md").read_text()

    played = []

    def play(_: str, setting: Any, episodes: int) -> dict[str, Any]:
        played.append(setting.name)
        return {**cell(0.0, *[100.0] * episodes), "planner": 7}

    monkeypatch.setitem(example["main"].__globals__, "play", play)
    example["main"](**sizes, **files)
    assert not played
    kept = files["results"].with_suffix(".json")
    data = json.loads(kept.read_text())
    data["mazes"]["umaze"]["ddim 1"]["planner"] += 1  # of other weights
    kept.write_text(json.dumps(data))
    example["main"](**sizes, **files)
    assert played == ["ddim 1"]


def test_kept_cells_are_of_the_same_planner_and_of_enough_episodes(
    example: dict[str, Any],
) -> None:
    is_kept, kept = example["is_kept"], {**cell(1.0, 5.0, 6.0), "planner": 7}
    assert is_kept(kept, 7, 1)
    assert is_kept(kept, 7, 2)
    assert not is_kept(kept, 7, 3)
    assert not is_kept(kept, 8, 2)
    assert not is_kept({}, 7, 1)
    assert is_kept(cell(1.0, 5.0, 6.0), 8, 2)  # of an earlier version


def test_only_the_episodes_that_were_asked_for_are_shown(
    example: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kept = {"umaze": {name: cell(1.0, 50.0, 150.0) for name in ("ddpm full", "ddim 1")}}
    (tmp_path / "table.json").write_text(json.dumps({"mazes": kept}))
    monkeypatch.setitem(example["main"].__globals__, "milliseconds", lambda *_: 2.0)
    sizes = {"episodes": 1, "mazes": ("umaze",), "only": ("ddim 1",)}
    files = {"results": tmp_path / "table", "picture": tmp_path / "table.png"}
    example["main"](**sizes, **files)
    assert "| ddpm full | 50.0 [" in capsys.readouterr().out
    cells = json.loads((tmp_path / "table.json").read_text())["mazes"]["umaze"]
    assert cells["ddim 1"]["scores"] == [50.0, 150.0]  # the others are still kept
