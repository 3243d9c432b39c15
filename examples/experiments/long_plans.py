r"""What makes long plans hard: how much of a plan lies inside walls, and what helps.

    python examples/experiments/long_plans.py
    python examples/experiments/long_plans.py --whole pointmaze-giant-v0=runs/whole \
        --json examples/results/long_plans.json

For every maze, plans are made from the starts and goals of episodes that no table uses,
with all candidates. No planner knows the walls; this script does, and asks how many
planned points are inside one, and how many candidates are free of walls from start to
end (between planned points as well). "straight" plans lead to the goal in one piece,
"subgoals" lead to the first subgoal.

A planner of one's own is measured with `--planner ENV=FOLDER`, several times if needed;
`--whole ENV=FOLDER` names one that was trained on whole routes, with

    diffuser-policy train --dataset diffuser/pointmaze-giant-navigate-v0 \
        --no-landmarks --num-steps 5000 --output runs/whole

Then the giant maze is crossed with one part of the planner changed at a time. The last
line is the percentage of candidates on the way to a subgoal that are free of walls.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from diffuser_policy import DiffuserPolicy, evaluate
from diffuser_policy.envs import evaluation_tasks, make_env
from diffuser_policy.files import write_json
from diffuser_policy.walls import Walls

SEED = 60_000  # of the first episode
MAZES = {  # environment → shipped planner
    **{
        f"diffuser_envs/{family}-{size}-v1": f"multi2d-{size.lower()}"
        for family in ("Maze2D", "Multi2D")
        for size in ("UMaze", "Medium", "Large")
    },
    "pointmaze-giant-v0": "pointmaze-giant-navigate",
}
GIANT = ("pointmaze-giant-navigate", "pointmaze-giant-stitch")
# Name → settings that differ from the planner's own.
CHANGES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "no subgoals": {"subgoal": None},
    "subgoals 16 env steps ahead": {"subgoal": 16.0, "replan_interval": 16},
    "subgoals 64 env steps ahead": {"subgoal": 64.0, "replan_interval": 64},
    "a new plan every 16 env steps": {"replan_interval": 16},
    "the first candidate": {"num_candidates": 1, "ranking": "first"},
    "one denoising step": {"num_sampling_steps": 1},
    "64 denoising steps": {"num_sampling_steps": 64},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What to measure."""

    planner: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """ENV=FOLDER: another planner whose plans are measured."""
    whole: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """ENV=FOLDER: a planner that was trained on whole routes."""
    num_plans: int = 100
    """Of each maze."""
    episodes: int = 10
    """Of each task of the giant maze, for each change."""
    json: Path = Path("runs/long_plans.json")
    """File for the results."""


def observations(env_id: str, num: int) -> dict[str, np.ndarray]:
    """Return the first observations of episodes, batched."""
    env = make_env(env_id)
    tasks = list(evaluation_tasks(env).values()) or [None]
    seen = []
    for number in range(num):
        options: Any = tasks[number % len(tasks)]
        seen.append(env.reset(seed=SEED + number, options=options)[0])
    env.close()
    return {key: np.stack([each[key] for each in seen]) for key in seen[0]}


def measure(env_id: str, policy: DiffuserPolicy, num: int) -> dict[str, float]:
    """Return the shares of plans that are inside walls."""
    env = make_env(env_id)
    walls = Walls.of(env)
    env.close()
    if walls is None:
        raise SystemExit(f"{env_id} has no walls that are known.")
    policy = policy.with_settings(satisficing=False)
    seen = observations(env_id, num)
    plan = policy.plan(seen)
    position = list(policy.planner.layout.aliases["position"][:2])
    inside, free, chosen = [], [], []
    for row in range(len(plan)):
        paths = plan.candidates[row, :, : plan.lengths[row], position]
        paths = np.moveaxis(paths, 0, -1)  # indexing by lists goes to the front
        inside.append(walls.contain(paths).mean())
        free.append(np.mean([not walls.cross(path) for path in paths]))
        chosen.append(not walls.cross(plan.path(row)[:, position]))
    return {
        "env_steps": float(plan.durations.mean()),
        "planning_steps": float(plan.lengths.mean()),
        "points_inside": float(np.mean(inside)),
        "candidates_free": float(np.mean(free)),
        "chosen_free": float(np.mean(chosen)),
    }


def changed(name: str, episodes: int) -> dict[str, dict[str, float | None]]:
    """Cross the giant maze with each change; return success and time to the goal."""
    results = {}
    for change, settings in CHANGES.items():
        policy = DiffuserPolicy.from_pretrained(name).with_settings(**settings)
        summary = evaluate(
            policy,
            "pointmaze-giant-v0",
            episodes=episodes,
            seed=SEED,
            num_envs=5 * episodes,
            progress=False,
        ).summary()
        results[change] = {
            key: None if (found := summary[key]) is None else found.mean
            for key in ("success_rate", "time_to_goal", "plan_ms")
        }
        print(f"{name}, {change}: {results[change]}", flush=True)
    return results


def main() -> None:
    """Measure all that was asked for, print it and write it."""
    settings = tyro.cli(Settings, description=__doc__)
    torch.set_num_threads(1)
    named = [(env_id, planner, "") for env_id, planner in MAZES.items()]
    for given, kind in ((settings.planner, ""), (settings.whole, "whole ways")):
        named += [(*each.partition("=")[::2], kind) for each in given]
    rows: list[dict[str, Any]] = []
    for env_id, name, kind in named:
        policy = DiffuserPolicy.from_pretrained(name)
        ways = {kind or "straight": policy.with_settings(subgoal=None)}
        if policy.planner.routes is not None:
            ways["subgoals"] = policy
        for way, planner in ways.items():
            found = measure(env_id, planner, settings.num_plans)
            rows.append(
                {"env": env_id, "planner": Path(name).name, "plans": way, **found}
            )
            print(rows[-1], flush=True)
    giant = {name: changed(name, settings.episodes) for name in GIANT}
    write_json(settings.json, {"seed": SEED, "plans": rows, "giant": giant})
    print(f"Wrote {settings.json}")
    free = [row["candidates_free"] for row in rows if row["plans"] == "subgoals"]
    print(f"free of walls, to a subgoal: {100 * np.mean(free):.0f}")


if __name__ == "__main__":
    main()
