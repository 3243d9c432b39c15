"""A cell as a process of its own.

    python -m diffuser_policy.benchmark.cell_process BENCHMARK_FOLDER CELL_ID

It trains, evaluates seed by seed, and writes one JSON file in the end. What is there
already is not done again, so the same command goes on after a kill. A failure is
written into `error.json`; the exit status is then 1. Where another process is at work
on the cell, nothing is done, and the exit status is `BUSY`.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import random
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffuser_policy.benchmark.cells import BUSY, Cell, CellFolder
from diffuser_policy.benchmark.checked import acts_deterministically, as_policy
from diffuser_policy.benchmark.lifeline import end_with_parent
from diffuser_policy.benchmark.methods import Method, find_method
from diffuser_policy.benchmark.pictures import draw_plan
from diffuser_policy.benchmark.results import RECORDED, SCHEMA
from diffuser_policy.benchmark.training import Training
from diffuser_policy.errors import ConfigError
from diffuser_policy.evaluation import evaluate
from diffuser_policy.evaluation.loop import describe
from diffuser_policy.evaluation.report import to_json as evaluation_json
from diffuser_policy.versions import versions


def main(arguments: list[str]) -> int:
    """Run a cell; return the exit status."""
    benchmark, cell_id = arguments
    folder = CellFolder(benchmark, cell_id)
    with folder.lock() as held:
        if not held:
            return BUSY
        cell = folder.cell()
        result = folder.result()
        if result is not None and result.get("digest") == cell.digest:
            return 0
        try:
            run_cell(cell, folder)
        except Exception as error:
            traceback.print_exc()
            folder.write(
                "error",
                {
                    "type": type(error).__name__,
                    "message": str(error),
                    "traceback": traceback.format_exc(),
                },
            )
            return 1
        folder.remove("error")
    return 0


def run_cell(cell: Cell, folder: CellFolder) -> dict[str, Any]:
    """Train, evaluate, and write the result.

    Args:
        cell: What to do.
        folder: Where; prepared for this cell.

    Returns:
        The result, as in `result.json`.
    """
    method = find_method(cell.method)
    method.check(cell.problem, cell.settings)
    begun_with = _note_versions(folder)
    training = Training(
        cell, folder, method.settings(cell.settings), num_steps=method.num_steps
    )
    seed_everything(cell.seed)
    policy = _train(method, training)
    training.clock.count("train")
    evaluations = _evaluate(policy, cell, folder, training)
    training.clock.count("evaluate")
    described = evaluations[0].pop("policy")
    result = {
        "schema": SCHEMA,
        "cell": cell.to_json(),
        "label": method.label,
        "digest": cell.digest,
        "evaluations": [_without_times(item) for item in evaluations],
        "curve": training.curve_points,
        "training": {
            "num_steps": None,
            **training.facts,
            "settings": training.settings,
        },
        "policy": described,
        "dataset": _dataset_facts(training),
        "versions": _joined(begun_with, versions(*RECORDED)),
        "timing": {**training.clock.seconds, **_act_times(evaluations), **_machine()},
    }
    folder.write("result", json.loads(json.dumps(result)), indent=None)
    try:
        seed = cell.evaluation.seeds[0]
        draw_plan(policy, cell.problem, seed, folder.path / "pictures")
    except Exception:  # a picture is not worth a cell, but a line in its log
        traceback.print_exc()
    return result


def _note_versions(folder: CellFolder) -> dict[str, str]:
    """Return the versions that a cell was begun with, which its folder keeps."""
    known: dict[str, str] | None = folder.read("versions")
    if known is None or not folder.holds_work():
        known = versions(*RECORDED)
        folder.write("versions", known)
    return known


def _joined(before: Mapping[str, str], now: Mapping[str, str]) -> dict[str, str]:
    """Return versions now, and those before where they were others."""
    return {
        name: version
        if before.get(name, version) == version
        # Somebody accepted it: preflight refuses to go on with other versions.
        else f"{before[name]}, then {version}"
        for name, version in now.items()
    }


def seed_everything(seed: int) -> None:
    """Fix the global random state, which methods of other libraries draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (that of other libraries)
    import torch

    torch.manual_seed(seed)


def _train(method: Method, training: Training) -> Any:
    """Return the policy that a method makes."""
    training.progress(0, stage="train")
    made = method.function(training, **training.settings)
    if made is None:
        raise ConfigError(
            f"The method {method.name!r} returned nothing; it has to return a policy, "
            f"an object with predict(observation, state, episode_start, deterministic)."
        )
    return as_policy(made)


def _evaluate(
    policy: Any, cell: Cell, folder: CellFolder, training: Training
) -> list[dict[str, Any]]:
    """Return the evaluations of all seeds; those that are there are not repeated."""
    plan, found = cell.evaluation, []
    checked = training.checked(policy)
    for index, seed in enumerate(plan.seeds):
        training.progress(index, len(plan.seeds), stage="evaluate")
        name = f"evaluation-{seed}"
        evaluation = folder.read(name)
        if evaluation is None or evaluation["digest"] != cell.digest:
            seed_everything(seed)
            results = evaluate(
                checked,
                cell.problem.make_env,
                episodes=plan.episodes,
                seed=seed,
                num_envs=plan.num_envs,
                deterministic=acts_deterministically(policy),
                progress=False,
            )
            data = evaluation_json(results)
            evaluation = {
                "digest": cell.digest,
                "seed": seed,
                "episodes": data["episodes"],
                "policy": describe(policy),
                "predict_seconds": results.timing.predict_seconds,
                "env_steps": results.timing.env_steps,
                "plan_ms": data["summary"]["plan_ms"],
            }
            folder.write(name, json.loads(json.dumps(evaluation)), indent=None)
        found.append(evaluation)
    return found


def _without_times(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    return {name: evaluation[name] for name in ("seed", "episodes")}


def _act_times(evaluations: list[dict[str, Any]]) -> dict[str, Any]:
    """Return milliseconds per env step of one environment, planning included."""
    seconds = sum(item["predict_seconds"] for item in evaluations)
    steps = sum(item["env_steps"] for item in evaluations)
    plans = [item["plan_ms"]["mean"] for item in evaluations if item["plan_ms"]]
    return {
        "act_ms": round(1000 * seconds / max(steps, 1), 4),
        "plan_ms": round(float(np.mean(plans)), 4) if plans else None,
    }


def _dataset_facts(training: Training) -> dict[str, Any] | None:
    """Return what is known of the data; none if the method never looked at them."""
    if "dataset" not in vars(training):
        return None
    metadata = dict(training.dataset.metadata)
    return {
        "id": training.problem.dataset,
        "num_steps": training.dataset.num_rows,
        "num_runs": training.dataset.num_runs,
        "checksum": training.data_facts["checksum"],
        "collection": metadata.get("collection"),
    }


def _machine() -> dict[str, Any]:
    finished = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "finished": finished,
    }


if __name__ == "__main__":
    end_with_parent()
    sys.path.insert(0, str(Path.cwd()))
    sys.exit(main(sys.argv[1:]))
