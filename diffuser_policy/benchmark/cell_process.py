"""A cell as a process of its own.

    python -m diffuser_policy.benchmark.cell_process BENCHMARK_FOLDER CELL_ID

It trains, evaluates seed by seed, and writes one JSON file in the end. It skips what an
earlier attempt finished, so the same command resumes the cell after a kill. A failure
is written into `error.json`; the exit status is then 1. Where another process is at
work on the cell, this one does nothing, and its exit status is `BUSY`.
"""

from __future__ import annotations

import datetime
import os
import platform
import random
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np

from diffuser_policy.benchmark.cells import Cell, CellFolder
from diffuser_policy.benchmark.context import MethodContext, as_policy
from diffuser_policy.benchmark.lifeline import BUSY, end_with_parent
from diffuser_policy.benchmark.methods import find_method
from diffuser_policy.benchmark.pictures import draw_plan
from diffuser_policy.benchmark.results import (
    RECORDED,
    SCHEMA,
    compact_evaluation,
    write_result,
)
from diffuser_policy.errors import ConfigError
from diffuser_policy.evaluation.loop import describe
from diffuser_policy.evaluation.report import to_json as evaluation_json
from diffuser_policy.versions import versions


def main(arguments: list[str]) -> int:
    """Run a cell; return the exit status."""
    benchmark, cell_id = arguments
    folder = CellFolder(benchmark, cell_id)
    with folder.lock() as is_held:
        if not is_held:
            return BUSY
        cell = folder.cell()
        if (folder.read("result") or {}).get("digest") == cell.digest:
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
    context = MethodContext(
        cell, folder, method.settings(cell.settings), num_steps=method.num_steps
    )
    seed_everything(cell.seed)
    context.progress(0, stage="train")
    made = method.function(context, **context.settings)
    if made is None:
        raise ConfigError(
            f"The method {method.name!r} returned nothing; it has to return a policy, "
            f"an object with predict(observation, state, episode_start, deterministic)."
        )
    policy = as_policy(made)
    context.count_time("train")
    evaluations = _evaluate(policy, cell, folder, context)
    context.count_time("evaluate")
    result = {
        "schema": SCHEMA,
        "cell": cell.to_json(),
        "label": method.label,
        "digest": cell.digest,
        "evaluations": [compact_evaluation(item) for item in evaluations],
        "curve": context.curve_points,
        "training": {"num_steps": None, **context.facts, "settings": context.settings},
        "policy": evaluations[0]["policy"],
        "dataset": _dataset_facts(context),
        "versions": {
            name: version
            if begun_with.get(name, version) == version
            # The user accepted it: a run refuses to resume work of other versions.
            else f"{begun_with[name]}, then {version}"
            for name, version in versions(*RECORDED).items()
        },
        "timing": {
            **context.seconds,
            **_act_times(evaluations),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "finished": datetime.datetime.now(datetime.UTC).isoformat(
                timespec="seconds"
            ),
        },
    }
    write_result(folder.path / "result.json", result)
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


def seed_everything(seed: int) -> None:
    """Fix the global random state, which methods of other libraries draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (that of other libraries)
    import torch

    torch.manual_seed(seed)


def _evaluate(
    policy: Any, cell: Cell, folder: CellFolder, context: MethodContext
) -> list[dict[str, Any]]:
    """Return the evaluations of all seeds; finished ones are not repeated."""
    seeds, found = cell.evaluation.seeds, []
    for index, seed in enumerate(seeds):
        context.progress(index, len(seeds), stage="evaluate")
        name = f"evaluation-{seed}"
        evaluation = folder.read(name)
        if evaluation is None or evaluation["digest"] != cell.digest:
            seed_everything(seed)
            results = context.evaluate(
                policy, seed=seed, episodes=cell.evaluation.episodes
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
            folder.write(name, evaluation)
        found.append(evaluation)
    return found


def _act_times(evaluations: list[dict[str, Any]]) -> dict[str, Any]:
    """Return milliseconds per env step of one environment, planning included."""
    seconds = sum(item["predict_seconds"] for item in evaluations)
    steps = sum(item["env_steps"] for item in evaluations)
    plans = [item["plan_ms"]["mean"] for item in evaluations if item["plan_ms"]]
    return {
        "act_ms": round(1000 * seconds / max(steps, 1), 4),
        "plan_ms": round(float(np.mean(plans)), 4) if plans else None,
    }


def _dataset_facts(context: MethodContext) -> dict[str, Any] | None:
    """Return facts about the data; none if the method never read them."""
    if "dataset" not in vars(context):
        return None
    return {
        "id": context.problem.dataset,
        "num_steps": context.dataset.num_rows,
        "num_runs": context.dataset.num_runs,
        "checksum": context.data_facts["checksum"],
        "collection": context.dataset.metadata.get("collection"),
    }


if __name__ == "__main__":
    end_with_parent()
    sys.path.insert(0, str(Path.cwd()))
    sys.exit(main(sys.argv[1:]))
