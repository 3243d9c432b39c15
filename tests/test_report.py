"""Reports of evaluations: JSON for machines, a table for people."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from rich.console import Console

from diffuser_policy import evaluate
from diffuser_policy.errors import StorageError
from diffuser_policy.evaluation import EpisodeRecord, Evaluation, Timing, records
from diffuser_policy.evaluation.loop import Tally
from diffuser_policy.evaluation.report import (
    table,
    to_json,
)
from diffuser_policy.files import check_writable, write_json
from diffuser_policy.testing import toy_policy
from tests.file_helpers import full_disk
from tests.point_env import POINT


def make_evaluation(**changes: Any) -> Evaluation:
    tally = Tally(gym.Env(), 7, {"achieved_goal": [0, 0], "desired_goal": [1.0, 2.0]})
    tally.add(1.0, {"success": True})
    record: EpisodeRecord = tally.record()
    timing = Timing(predict_seconds=2.0, env_steps=100)
    settings = {"env": "test/Point-v0", "seed": 7, "num_envs": 2}
    return Evaluation(
        **{
            "episodes": (record, dataclasses.replace(record, seed=8, score=1.0)),
            "timing": timing,
            "settings": settings,
            "versions": {"numpy": "2"},
            **changes,
        }
    )


def test_json_has_the_documented_form(tmp_path: Path) -> None:
    evaluation = evaluate(toy_policy(), POINT, episodes=7, num_envs=3, progress=False)
    write_json(tmp_path / "deep" / "results.json", to_json(evaluation))
    data = json.loads((tmp_path / "deep" / "results.json").read_text())
    assert data == json.loads(json.dumps(to_json(evaluation)))
    assert list(data) == ["summary", "episodes", "settings", "versions"]
    for name in ("score", "success_rate", "time_to_goal", "plan_ms", "return"):
        assert set(data["summary"][name]) == {"mean", "low", "high"}
    assert data["summary"]["control_rate"] > 0
    assert len(data["episodes"]) == 7
    assert set(data["episodes"][0]) == {
        *("seed", "return", "score", "length", "success", "final_success"),
        *("time_to_goal", "num_plans", "start", "goal"),
    }
    settings = data["settings"]
    assert settings["env"] == POINT
    assert (settings["episodes"], settings["num_envs"]) == (7, 3)
    assert settings["policy"]["planner"]["num_candidates"] == 2
    assert {"diffuser-policy", "gymnasium", "torch"} <= set(data["versions"])


def test_figures_are_computed_once_and_their_times_not_for_every_task(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bootstraps of many episodes take long, and several reports show them."""
    [record, other] = make_evaluation().episodes
    told = tuple(
        dataclasses.replace(each, task=task)
        for each in (record, other)
        for task in ("near", "far")
    )
    timing = Timing(
        predict_seconds=2.0,
        env_steps=9,
        plan_seconds=(0.1, 0.2, 0.3),
        plan_rows=(1,) * 3,
    )
    evaluation = make_evaluation(episodes=told, timing=timing)

    def calls_of(name: str) -> list[Any]:
        calls, inner = [], getattr(records, name)

        def recorded(values: Any) -> Any:
            calls.append(values)
            return inner(values)

        monkeypatch.setattr(records, name, recorded)
        return calls

    times, means = calls_of("time_interval"), calls_of("mean_interval")
    first = to_json(evaluation)
    assert len(times) == 2  # plan_ms and plan_call_ms
    computed = len(means)
    assert to_json(evaluation) == first
    table(evaluation)
    repr(evaluation)
    assert (len(times), len(means)) == (2, computed)
    evaluation.summary().clear()  # a copy: the caller's own
    evaluation.tasks()["near"].clear()
    assert to_json(evaluation) == first


def test_json_says_null_of_what_is_not_known() -> None:
    [record, _] = make_evaluation().episodes
    data = to_json(make_evaluation(episodes=(record,)))
    assert data["summary"]["score"] is None
    assert data["summary"]["plan_ms"] is None
    assert data["summary"]["return"] == {"mean": 1.0, "low": None, "high": None}
    json.dumps(data, allow_nan=False)


def test_what_an_environment_says_of_its_episodes_is_reported() -> None:
    """Its other scores have rows of their own, and failures are counted."""
    [record, other] = make_evaluation().episodes
    failed = {"latched_score": 50.0, "failure": "dropped"}
    scored = make_evaluation(
        episodes=(
            dataclasses.replace(record, details=failed),
            dataclasses.replace(
                other, details={"latched_score": 100.0, "failure": None}
            ),
        )
    )
    data = to_json(scored)
    assert data["summary"]["latched_score"]["mean"] == 75.0
    assert data["summary"]["failures"] == {"dropped": 1}
    assert data["episodes"][0]["details"] == failed
    console = Console(width=100, file=io.StringIO())
    with console.capture() as capture:
        console.print(table(scored))
    lines = {
        line.split("│")[1].strip(): line
        for line in capture.get().splitlines()
        if "│" in line
    }
    assert "75.0 │  50.0 – 100.0" in lines["latched score"]
    assert lines["failed: dropped"].split("│")[2].strip() == "1"
    plain = to_json(make_evaluation())
    assert "failures" not in plain["summary"]
    assert "details" not in plain["episodes"][0]


def test_json_is_written_completely_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "results.json"
    path.write_text("before")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(StorageError, match="No space left"):
        write_json(path, to_json(make_evaluation()))
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["", "file/results.json"])
def test_unwritable_results_are_found_before_the_work(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        check_writable(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_table_shows_figures_with_intervals_and_units() -> None:
    console = Console(width=100, file=io.StringIO())
    with console.capture() as capture:
        console.print(table(make_evaluation()))
    text = capture.get()
    lines = {
        line.split("│")[1].strip(): line for line in text.splitlines() if "│" in line
    }
    assert "100.0 │  34.2 – 100.0 │ %" in lines["success rate"]
    assert "1.0 │     1.0 – 1.0 │ env steps" in lines["time to goal"]
    assert lines["score"].count("1.0") == 1  # one score: no interval
    assert "50" in lines["control rate"]
    assert "2 episodes, seeds 7–8, 2 environments at a time" in text
    assert "test/Point-v0" in text


def test_evaluation_prints_its_figures() -> None:
    assert repr(make_evaluation()).startswith("Evaluation(2 episodes: score 1")
