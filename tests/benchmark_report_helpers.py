"""Folders of benchmarks whose results are made up: their truth is known."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffuser_policy.benchmark.cells import Cell
from diffuser_policy.benchmark.report.study import Study
from diffuser_policy.benchmark.report.tables import Table, warning_table
from diffuser_policy.settings import from_json

MAZES = [
    f"diffuser_envs/{kind}-{size}-v1"
    for kind in ("Maze2D", "Multi2D")
    for size in ("UMaze", "Medium", "Large")
]
KUKA = [
    f"diffuser_envs/KukaStack-{task}-v1"
    for task in ("Unconditional", "Conditional", "Rearrangement")
]
MAZE_METHODS = {  # → mean score
    "diffuser": 190.0,
    "bc": 15.0,
    "bcq": 60.0,
    "cql": 85.0,
    "iql": 110.0,
    "td3-bc": 95.0,
    "rebrac": 165.0,
    "demonstrator": 130.0,
}
KUKA_METHODS = {
    "diffuser": 97.0,
    "bcq": 5.0,
    "cql": 20.0,
    "bc": 9.0,
    "demonstrator": 100.0,
}
UNTRAINED = {"diffuser", "demonstrator"}
FAILURES = ("never gripped a block", "dropped a block", "time ran out")
VERSIONS = {
    "diffuser-policy": "0.1.0",
    "gymnasium": "1.0.0",
    "mujoco": "3.1.6",
    "torch": "2.9.0",
    "d3rlpy": "2.8.1",
}


def problem_name(env: str) -> str:
    """Return what the command line calls a problem."""
    return env.rpartition("/")[2].rpartition("-v")[0].lower()


def made_up_episode(
    rng: np.random.Generator, *, seed: int, mean: float, kuka: bool
) -> dict[str, Any]:
    """Return one episode, its score drawn around a mean."""
    if kuka:
        score = float(100 * rng.binomial(3, np.clip(mean / 100, 0, 1)) / 3)
        success = score > 99
        latched = min(100.0, score + 100 / 3 * rng.binomial(1, 0.2))
        failure = None if success else str(rng.choice(FAILURES))
        details: dict[str, Any] = {"latched_score": latched, "failure": failure}
    else:
        score = float(mean + 25 * rng.normal())
        success, details = score > 0.3 * mean + 10, {}
    episode = {
        "seed": seed,
        "return": 2.7 * score,
        "score": score,
        "length": 800,
        "success": success,
        "final_success": success and bool(rng.random() < 0.9),
        "time_to_goal": int(rng.integers(40, 200)) if success else None,
        "num_plans": None,
        "start": [1.0, 1.0],
        "goal": [2.0, 3.0],
    }
    return episode | ({"details": details} if details else {})


def cell_of(env: str, method: str, seed: int, *, suite: str) -> dict[str, Any]:
    """Return a cell.json."""
    name = problem_name(env)
    single = "maze2d" in name or "unconditional" in name
    dataset = "diffuser/kuka-v1" if "kuka" in name else f"diffuser/{name}-v1"
    return {
        "suite": suite,
        "problem": {
            "env": env,
            "dataset": dataset,
            "goals": "none" if single else "hindsight",
            "env_options": {},
        },
        "method": method,
        "seed": seed,
        "settings": {},
        "num_steps": 50_000,
        "max_steps": 100_000,
        "evaluation": {
            "seeds": [30_000, 31_000, 32_000],
            "episodes": 100,
            "num_envs": 50,
            "curve_episodes": 20,
            "curve_points": 10,
        },
    }


def result_of(
    env: str,
    method: str,
    seed: int = 0,
    *,
    suite: str = "maze",
    mean: float = 100.0,
    episodes: int = 100,
    versions: Mapping[str, str] = VERSIONS,
) -> dict[str, Any]:
    """Return a cell's result.json with made-up episodes around a mean score."""
    cell, scripted = cell_of(env, method, seed, suite=suite), method in UNTRAINED
    cell["evaluation"]["episodes"] = episodes
    kuka, dataset = "Kuka" in env, cell["problem"]["dataset"]
    rng = np.random.default_rng([seed, *f"{env}{method}".encode()])
    mean = mean + (0.0 if kuka or scripted else 6 * rng.normal())
    evaluations = [
        {
            "seed": first,
            "episodes": [
                made_up_episode(rng, seed=number, mean=mean, kuka=kuka)
                for number in range(first, first + episodes)
            ],
        }
        for first in cell["evaluation"]["seeds"]
    ]
    steps = [] if scripted else list(range(5000, 50_001, 5000))
    return {
        "schema": 1,
        "cell": cell,
        "digest": f"{seed:04d}",
        "evaluations": evaluations,
        "curve": [_point(step, mean, rng) for step in steps],
        "training": {
            "num_steps": None if scripted else 50_000,
            "num_parameters": None if method == "demonstrator" else 12_345,
            "settings": {} if scripted else {"width": 64, "batch_size": 256},
            **({"loaded": True} if method == "diffuser" else {}),
        },
        "policy": {"dataset": dataset} if method == "diffuser" else {},
        "dataset": None
        if scripted
        else {
            "id": dataset,
            "num_steps": 1_000_000,
            "collection": {"demonstrator": "maze-waypoint", "seed": 0},
        },
        "versions": dict(versions),
        "timing": {
            "train_cpu_seconds": 0.0 if scripted else 812.0 + seed,
            "train_seconds": 0.0 if scripted else 830.1,
            "evaluate_seconds": 30.2,
            "evaluate_cpu_seconds": 29.0,
            "act_ms": 0.4,
            "plan_ms": 12.0 if method == "diffuser" else None,
            "attempts": 1,
            "machine": "x86_64, 2 cores",
            "finished": "2026-11-21T14:00:00Z",
        },
    }


def _point(step: int, mean: float, rng: np.random.Generator) -> dict[str, Any]:
    score = mean * (1 - np.exp(-step / 9000)) + 4 * rng.normal()
    figures = {"mean": score, "low": score - 9, "high": score + 9}
    return {
        "step": step,
        "score": figures,
        "success_rate": {"mean": 0.8, "low": 0.6, "high": 0.9},
        "return": figures,
        "values": (score + 20 * rng.normal(size=20)).tolist(),
    }


def with_scores(result: dict[str, Any], scores: Sequence[float]) -> dict[str, Any]:
    """Return a result whose episodes have these scores, in one evaluation."""
    episodes = [e for item in result["evaluations"] for e in item["episodes"]]
    kept = [
        episode | {"score": score, "return": score, "seed": 30_000 + number}
        for number, (episode, score) in enumerate(
            zip(episodes[: len(scores)], scores, strict=True)
        )
    ]
    return result | {"evaluations": [{"seed": 30_000, "episodes": kept}]}


def write_result(folder: Path, result: Mapping[str, Any]) -> Path:
    """Write a finished cell into a benchmark's folder; return the cell's folder."""
    place = write_cell(folder, result["cell"])
    (place / "result.json").write_text(json.dumps(result))
    return place


def write_cell(folder: Path, cell: Mapping[str, Any]) -> Path:
    """Write a cell without a result; return its folder."""
    place = folder / "cells" / from_json(Cell, cell).id
    place.mkdir(parents=True, exist_ok=True)
    (place / "cell.json").write_text(json.dumps(cell))
    return place


def write_benchmark(
    folder: Path,
    *,
    suite: str = "maze",
    seeds: Sequence[int] = (0,),
    episodes: int = 100,
) -> Path:
    """Write all results of the maze suite or the block-stacking suite."""
    envs, means = (KUKA, KUKA_METHODS) if suite == "kuka" else (MAZES, MAZE_METHODS)
    for number, env in enumerate(envs):
        scale = 1.0 if suite == "kuka" else 1 + 0.1 * (number % 3)
        for method, mean in means.items():
            for seed in seeds[:1] if method in UNTRAINED else seeds:
                result = result_of(
                    env,
                    method,
                    seed,
                    suite=suite,
                    mean=mean * scale,
                    episodes=episodes,
                )
                write_result(folder, result)
    return folder


def iqm(values: Sequence[float] | np.ndarray) -> float:
    """Return the mean of `[n]` values without the lowest and highest quarter."""
    ordered, cut = np.sort(values), len(values) // 4
    return float(ordered[cut : len(values) - cut].mean())


def texts(table: Table | None, row: int) -> dict[str, str]:
    """Return the first lines of a row by column."""
    assert table is not None
    cells = [cell.text for cell in table.rows[row]]
    return dict(zip(table.header, cells, strict=True))


def rows_of(table: Table | None) -> list[dict[str, str]]:
    """Return the first lines of all rows by column."""
    return [texts(table, row) for row in range(len(table.rows))] if table else []


def warnings_of(study: Study) -> dict[str, str]:
    """Return where each warning of a report applies, by the warning."""
    return {row["warning"]: row["where"] for row in rows_of(warning_table(study))}
