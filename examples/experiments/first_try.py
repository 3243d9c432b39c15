"""Train and evaluate with no option but the dataset, on environments of many kinds.

    python examples/experiments/first_try.py --out runs/first-try

For each environment a small dataset is recorded with a simple behavior, then these two
commands run, as a newcomer would type them:

    diffuser-policy train --dataset ID --num-steps 2000
    diffuser-policy evaluate FOLDER

The table, also written to OUT/table.md, compares the planner with the behavior that
recorded the data and with random actions: mean return, and success where the
environment tells it. It asks whether the defaults are sane, not for records. A row that
is there already, of as many steps and episodes, is not made again.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffuser_policy import collect_episodes, evaluate
from diffuser_policy.cli import main as command
from diffuser_policy.envs import make_env
from diffuser_policy.words import counted

ABOUT = """\
Trained for {num_steps:,} gradient steps and evaluated, with no other option than the
dataset, by `examples/experiments/first_try.py`: mean return of {episodes} (of each
task, where there are several), and the share that reached the goal. *Behavior* is the
policy that recorded the data. Where it equals *random*, actions were random; a dash
means that the environment's own demonstrator recorded it. Below the table is what was
chosen for each dataset, and why."""
Action = Callable[[Any, np.random.Generator], np.ndarray]


def goal_in_reach(observation: Any, rng: np.random.Generator) -> np.ndarray:
    """Move a gripper towards the goal (Fetch)."""
    toward = observation["desired_goal"] - observation["achieved_goal"]
    moved: np.ndarray = np.r_[8.0 * toward, 0.0] + 0.1 * rng.normal(size=4)
    return moved


def swing_up(observation: Any, rng: np.random.Generator) -> np.ndarray:
    """Pump energy into a pendulum, and balance it at the top."""
    cosine, sine, speed = observation
    angle = np.arctan2(sine, cosine)
    if abs(angle) < 0.5:
        torque = -10.0 * angle - 2.0 * speed
    else:
        energy = 0.5 * speed**2 / 3 + 5.0 * (cosine - 1)
        torque = -2.0 * np.sign(speed or 1.0) * np.sign(energy)
    return np.array([torque + 0.2 * rng.normal()])


def balance(observation: Any, rng: np.random.Generator) -> np.ndarray:
    """Balance a pole on a cart (InvertedPendulum)."""
    x, angle, speed, turning = observation
    force = 1.0 * x + 12.0 * angle + 1.0 * speed + 2.0 * turning
    return np.array([force + 0.3 * rng.normal()])


def push(observation: Any, rng: np.random.Generator) -> np.ndarray:
    """Push a car in the direction in which it moves (MountainCarContinuous)."""
    return np.array([np.sign(observation[1] or 1.0) + 0.2 * rng.normal()])


def hop(observation: Any, rng: np.random.Generator) -> np.ndarray:
    """Do little, which keeps a robot up for longer than random actions (Hopper)."""
    upright: np.ndarray = -0.1 * observation[1] * np.array([1.0, 0.5, 0.2])
    return upright + 0.2 * rng.normal(size=3)


# Names without a version stand for the newest that is registered. Gymnasium-Robotics
# 1.4.2 cannot make Fetch, HandReach and FrankaKitchen with MuJoCo 4: use an older one.
# Environment -> behavior (none: random actions), or options of `collect`; episodes.
CASES: dict[str, tuple[Action | list[str] | None, int]] = {
    "Pendulum-v1": (swing_up, 60),
    "MountainCarContinuous-v0": (push, 40),
    "InvertedPendulum-v5": (balance, 30),
    "Reacher-v5": (None, 200),
    "Hopper-v5": (hop, 100),
    "Walker2d-v5": (None, 200),
    "HalfCheetah-v5": (None, 10),
    "Ant-v5": (None, 40),
    "FetchReach": (goal_in_reach, 100),
    "HandReach": (None, 60),
    "AdroitHandDoor": (None, 20),
    "FrankaKitchen": (None, 10),
    "AntMaze_UMaze": (None, 10),
    "diffuser_envs/Multi2D-UMaze-v1": (["--num-steps", "200000"], 0),
    "pointmaze-medium-v0": (["--num-episodes", "200"], 0),
}


def row_of(batch: Any, row: int) -> Any:
    """Return one observation of a batch."""
    if isinstance(batch, dict):
        return {name: row_of(part, row) for name, part in batch.items()}
    return batch[row]


@dataclass
class Behaviour:
    """A policy by Stable-Baselines3's contract, from a function of one observation."""

    act: Action | None
    space: Any
    rng: np.random.Generator

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,  # noqa: ARG002 (it remembers nothing)
        deterministic: bool = False,  # noqa: ARG002
    ) -> tuple[np.ndarray, Any]:
        """Return the action for one observation, or actions for a batch."""
        first = observation
        while isinstance(first, dict):  # of parts, which may have parts
            first = next(iter(first.values()))
        if np.ndim(first) == 1:
            return self.one(observation), state
        each = [self.one(row_of(observation, row)) for row in range(len(first))]
        return np.stack(each), state

    def one(self, observation: Any) -> np.ndarray:
        """Return the action for one observation."""
        if self.act is None:
            action = self.rng.uniform(self.space.low, self.space.high)
        else:
            action = self.act(observation, self.rng)
        clipped = np.clip(action, self.space.low, self.space.high)
        return np.asarray(clipped, self.space.dtype)


def run(env_id: str, episodes: int, steps: int, out: Path) -> dict[str, Any]:
    """Record, train and evaluate; return a row of the table."""
    act, count = CASES[env_id]
    env_id = newest(env_id)
    name = env_id.rpartition("/")[2].lower().replace("_", "-")
    dataset, folder = f"first-try/{name}-v0", out / name
    env = make_env(env_id)
    space: Any = env.action_space
    if isinstance(act, list):
        if command(["collect", env_id, "--dataset", dataset, "--overwrite", *act]):
            raise SystemExit(f"{env_id}: collect failed")
    else:
        behaviour = Behaviour(act, space, np.random.default_rng(0))
        collect_episodes(
            env, behaviour, num_episodes=count, dataset_id=dataset, overwrite=True
        )
    env.close()
    told = io.StringIO()
    started = time.process_time()
    arguments = ["train", "--dataset", dataset, "--num-steps", str(steps)]
    with contextlib.redirect_stdout(told):
        status = command([*arguments, "--output", str(folder)])
    seconds = time.process_time() - started
    if status:
        raise SystemExit(f"{env_id}: train ended with status {status}")
    row: dict[str, Any] = {"env": env_id, "steps": steps, "episodes": episodes}
    row |= {"chosen": told.getvalue(), "seconds": seconds}
    results = folder / "results.json"
    arguments = ["evaluate", str(folder), "--episodes", str(episodes)]
    if command([*arguments, "--json", str(results)]):
        raise SystemExit(f"{env_id}: evaluate failed")
    row["planner"] = figures(json.loads(results.read_text(encoding="utf-8"))["summary"])
    others: dict[str, Action | None] = {"random": None}
    if not isinstance(act, list):
        others["behavior"] = act
    for label, other in others.items():
        policy = Behaviour(other, space, np.random.default_rng(1))
        found = evaluate(policy, env_id, episodes=episodes, num_envs=1, progress=False)
        row[label] = figures(
            {k: v and {"mean": v.mean} for k, v in found.summary().items()}
        )
    return row


def newest(name: str) -> str:
    """Return the id of the newest version of an environment of Gymnasium-Robotics."""
    import gymnasium
    import gymnasium_robotics

    gymnasium.register_envs(gymnasium_robotics)
    found = [spec for spec in gymnasium.registry.values() if spec.name == name]
    return max(found, key=lambda spec: spec.version or 0).id if found else name


def figures(summary: dict[str, Any]) -> dict[str, float | None]:
    """Return the figures of the table."""
    named = {name: summary.get(name) for name in ("return", "success_rate")}
    return {name: value and value["mean"] for name, value in named.items()}


def table(rows: list[dict[str, Any]], num_steps: int, episodes: int) -> str:
    """Return the rows in Markdown.

    Args:
        rows: One for each environment.
        num_steps: Gradient steps of each training.
        episodes: Of each evaluation.
    """
    lines = [
        "# First try",
        "",
        ABOUT.format(num_steps=num_steps, episodes=counted(episodes, "episode")),
        "",
        "| environment | planner | behavior | random | train, CPU s |",
        "|---" * 5 + "|",
    ]
    for row in rows:
        cells = [
            row["env"],
            *(text(row.get(n)) for n in ("planner", "behavior", "random")),
        ]
        lines.append(f"| {' | '.join(cells)} | {row['seconds']:.0f} |")
    for row in rows:
        chosen = row["chosen"].partition("A planner on ")[0]
        lines += ["", f"## {row['env']}", "", "```text", chosen.rstrip(), "```"]
    return "\n".join(lines) + "\n"


def text(measured: dict[str, float | None] | None) -> str:
    """Return a return, and a success rate if there is one."""
    if measured is None:
        return "–"
    success = measured["success_rate"]
    rate = "" if success is None else f", {success:.0%}"
    return f"{measured['return']:.1f}{rate}"


def main() -> None:
    """Make the rows that are missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000, help="gradient steps")
    parser.add_argument("--episodes", type=int, default=10, help="of each evaluation")
    parser.add_argument("--envs", nargs="*", choices=CASES, help="default: all")
    parser.add_argument("--out", type=Path, default=Path("runs/first-try"))
    given = parser.parse_args()
    file = given.out / "rows.json"
    rows = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    asked = {"steps": given.steps, "episodes": given.episodes}
    for env_id in given.envs or CASES:
        if asked.items() <= rows.get(env_id, {}).items():
            continue
        rows[env_id] = run(env_id, given.episodes, given.steps, given.out)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    shown = [row for row in rows.values() if asked.items() <= row.items()]
    page = table(shown, given.steps, given.episodes)
    (given.out / "table.md").write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
