"""A cell as a process of its own.

    python -m diffuser_policy.benchmark.cell_process BENCHMARK_FOLDER CELL_ID

It trains, evaluates seed by seed, and writes `result.json` in the end, then a picture
of a plan. It skips what an earlier attempt finished, so the same command resumes the
cell after a kill. A failure is written into `error.json`; the exit status is then 1.
Where another process is at work on the cell, this one does nothing, and its exit status
is `BUSY`.
"""

from __future__ import annotations

import datetime
import importlib.util
import os
import platform
import random
import sys
import traceback
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from diffuser_policy.benchmark.cells import (
    RECORDED,
    SCHEMA,
    THEN,
    Cell,
    CellFolder,
    compact_evaluation,
)
from diffuser_policy.benchmark.context import MethodContext, as_policy
from diffuser_policy.benchmark.engines import BUSY, end_with_parent
from diffuser_policy.benchmark.methods import find_method
from diffuser_policy.benchmark.problem import Problem, behavior_facts
from diffuser_policy.envs import evaluation_tasks, reset_env
from diffuser_policy.errors import ConfigError
from diffuser_policy.evaluation.loop import describe, planned_episode
from diffuser_policy.evaluation.report import to_json as evaluation_json
from diffuser_policy.files import save_png, write_json
from diffuser_policy.versions import versions


def main(arguments: list[str]) -> int:
    """Run a cell; return the exit status."""
    folder = CellFolder(*arguments)
    with folder.lock() as is_held:
        if not is_held:
            return BUSY
        cell = folder.cell()
        if (folder.read("result") or {}).get("digest") != cell.digest:
            try:
                run_cell(cell, folder)
            except Exception as error:  # a method is anyone's: the report tells
                traceback.print_exc()
                told = {"type": type(error).__name__, "message": str(error)}
                folder.write("error", {**told, "traceback": traceback.format_exc()})
                return 1
        folder.remove("error")
    return 0


def run_cell(cell: Cell, folder: CellFolder) -> dict[str, Any]:
    """Train, evaluate, and write the result; return it, as in `result.json`.

    The folder has been prepared for this cell, perhaps long ago: what the cell runs is
    recorded anew, or compared with what earlier attempts ran.
    """
    method = find_method(cell.method)
    method.check(cell.problem, cell.settings)
    about = folder.prepare(cell)
    begun_with = folder.read("versions")
    if begun_with is None or not folder.holds_work():
        begun_with = versions(*RECORDED)
        folder.write("versions", begun_with)
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
    seconds = sum(item["predict_seconds"] for item in evaluations)
    steps = sum(item["env_steps"] for item in evaluations)
    plans = [item["plan_ms"]["mean"] for item in evaluations if item["plan_ms"]]
    now = datetime.datetime.now(datetime.UTC)
    dataset = None
    if "dataset" in vars(context):  # the method has read it
        dataset = {
            "id": context.problem.dataset,
            "num_steps": context.dataset.num_rows,
            "num_runs": context.dataset.num_runs,
            "checksum": context.data_facts["checksum"],
            "collection": context.dataset.metadata.get("collection"),
        }
        with closing(context.make_env()) as env:
            behavior = behavior_facts(context.dataset, env)
        dataset |= {"behavior": behavior} if behavior else {}
    result = {
        "schema": SCHEMA,
        "cell": cell.to_json(),
        "label": method.label,
        "digest": cell.digest,
        "evaluations": [compact_evaluation(item) for item in evaluations],
        "curve": context.curve_points,
        "training": {"num_steps": None, **context.facts, "settings": context.settings},
        "policy": evaluations[0]["policy"],
        "dataset": dataset,
        "versions": {
            name: version
            if begun_with.get(name, version) == version
            # The user accepted it: a run refuses to resume work of other versions.
            else f"{begun_with[name]}{THEN}{version}"
            for name, version in versions(*RECORDED).items()
        },
        "code": about.get("code"),
        "planner": about.get("planner"),
        "timing": {
            **context.seconds,
            # For one env step of one environment, planning included.
            "act_ms": round(1000 * seconds / max(steps, 1), 4),
            "plan_ms": round(float(np.mean(plans)), 4) if plans else None,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "finished": now.isoformat(timespec="seconds"),
        },
    }
    folder.write("result", result)
    try:
        seed = cell.evaluation.seeds[0]
        draw_plan(policy, cell.problem, seed, folder.path / "pictures")
    except Exception:  # a failed picture costs a line in the log, not the cell
        traceback.print_exc()
    return result


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
            count = cell.evaluation.episodes
            results = context.evaluate(policy, seed=seed, episodes=count)
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


def draw_plan(policy: Any, problem: Problem, seed: int, folder: Path) -> Path | None:
    """Draw the plan and the path of the first episode of an evaluation.

    It is planned with the evaluation's random stream, and thus an episode that counts.

    Returns:
        `plan.png` in the folder, which has its caption beside it; None for policies
        other than a `DiffuserPolicy`, and without the extra `plot`.
    """
    from diffuser_policy.policy import DiffuserPolicy

    can_draw = importlib.util.find_spec("matplotlib") is not None
    if not isinstance(policy, DiffuserPolicy) or not can_draw:
        return None
    from diffuser_policy.plotting import Scene, plan_figure

    with closing(problem.make_env()) as env:
        policy = policy.for_env(env)
        first_task = next(iter(evaluation_tasks(env).values()), None)
        observation, _ = reset_env(env, seed=seed, options=first_task)
        scene = Scene.of_policy(policy, env, observation)
        plan, path, record = planned_episode(policy, env, observation, seed=seed)
    caption = f"first plan and path, seed {seed}: {record.outcome}"
    picture = folder / "plan.png"
    figure = plan_figure(plan, scene, rollout=path, title=caption)
    save_png(figure, picture, bbox_inches="tight", pad_inches=0.12)
    write_json(picture.with_suffix(".json"), {"caption": caption})
    return picture


if __name__ == "__main__":
    end_with_parent()
    sys.path.insert(0, str(Path.cwd()))
    sys.exit(main(sys.argv[1:]))
