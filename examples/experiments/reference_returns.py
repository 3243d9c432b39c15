"""Compare the Maze2D environments with D4RL's published reference returns.

D4RL's reference scores are the mean returns of two policies over 100 episodes: uniform
random actions (`min`) and the waypoint controller (`max`). If our mazes are D4RL's, the
same two policies earn the same here:

    python examples/experiments/reference_returns.py --episodes 500

The table shows our mean with its 95 % bootstrap interval, the published figure, and the
interval in which the mean of a *single run of 100 episodes* falls. D4RL published one
such run each, so that is where its figure should lie; returns differ so much between
episodes (a start near the goal or not, arrival or not) that this interval is wide.
Dense returns, sums of exp(-distance), are D4RL's second set of reference scores; they
vary less and make the sharper test.

What D4RL's `max` is. D4RL made one controller and used it in all 100 episodes. The
controller plans a route only when the goal *changes*, which it never does in Maze2D:
from the second episode on it steers straight to its last waypoint, the goal, and stands
at a wall wherever the straight line is not free ("kept route" below). That is the fate
of a third of the episodes on U-Maze and of half of those on Medium and Large (D4RL
issues 159 and 215). A controller that plans in every episode ("new route") always
arrives and earns far more. So `max` is no expert's return on any of the three mazes,
and scores far above 100 are to be expected of a good planner.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import gymnasium
import numpy as np
import numpy.typing as npt

import diffuser_envs
from diffuser_envs.maze.demonstrator import WaypointDemonstrator
from diffuser_policy.evaluation.statistics import (
    NUM_RESAMPLES,
    interval_of,
    mean_interval,
)

gymnasium.register_envs(diffuser_envs)

RUN_LENGTH = 100
PACKAGES = ("gymnasium", "gymnasium-robotics", "mujoco", "numpy")
MAZES = ("UMaze", "Medium", "Large")
POLICIES = ("random", "kept route", "new route")

# (maze, reward) -> published returns of the random policy and of the controller.
PUBLISHED = {
    ("UMaze", "sparse"): (23.85, 161.86),
    ("Medium", "sparse"): (13.13, 277.39),
    ("Large", "sparse"): (6.7, 273.99),
    ("UMaze", "dense"): (68.54, 193.66),
    ("Medium", "dense"): (44.26, 297.46),
    ("Large", "dense"): (30.57, 303.49),
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table: mean return, two intervals, and what D4RL published."""

    maze: str
    policy: str
    reward: str
    episodes: int
    reached: float
    mean: float
    low: float
    high: float
    run_low: float
    run_high: float
    published: float | None

    @property
    def agrees(self) -> bool | None:
        """Whether the published mean of 100 lies where such means fall here."""
        if self.published is None:
            return None
        return self.run_low <= self.published <= self.run_high


def run_episodes(
    maze: str, policy: str, seed: int, num_episodes: int = RUN_LENGTH
) -> npt.NDArray[np.float64]:
    """Play one run; return sparse return, dense return and success, `[episodes, 3]`."""
    env = gymnasium.make(f"diffuser_envs/Maze2D-{maze}-v1")
    env.action_space.seed(seed)
    controller = WaypointDemonstrator.from_env(
        env, keep_route=policy == "kept route", seed=seed
    )
    results = np.zeros((num_episodes, 3))
    state = None
    for episode in range(num_episodes):
        observation, _ = env.reset(seed=seed if episode == 0 else None)
        start, truncated = True, False
        while not truncated:
            if policy == "random":
                action = env.action_space.sample()
            else:
                action, state = controller.predict(observation, state, [start])
            observation, reward, _, truncated, _ = env.step(action)
            offset = observation["achieved_goal"] - observation["desired_goal"]
            results[episode, 0] += float(reward)
            results[episode, 1] += np.exp(-np.linalg.norm(offset))
            start = False
    results[:, 2] = results[:, 0] > 0
    env.close()
    return results


def summarize(maze: str, policy: str, results: npt.NDArray[np.float64]) -> list[Row]:
    """Make the sparse and the dense line of one maze and policy."""
    rng = np.random.default_rng(0)
    rows = []
    for column, reward in enumerate(("sparse", "dense")):
        values = results[:, column]
        mean = mean_interval(values)
        runs = rng.choice(values, size=(NUM_RESAMPLES, RUN_LENGTH))
        run = interval_of(mean.mean, runs.mean(axis=1))
        published: float | None = None
        if policy != "new route":
            published = PUBLISHED[maze, reward][policy != "random"]
        rows.append(
            Row(
                maze=maze,
                policy=policy,
                reward=reward,
                episodes=len(values),
                reached=float(results[:, 2].mean()),
                mean=mean.mean,
                low=mean.low,
                high=mean.high,
                run_low=run.low,
                run_high=run.high,
                published=published,
            )
        )
    return rows


def as_markdown(rows: list[Row]) -> str:
    """Format the table."""
    titles = ["maze", "policy", "reward", "episodes", "reached", "mean [95 %]"]
    titles += ["one run of 100", "D4RL", "agrees"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for row in rows:
        published = "-" if row.published is None else f"{row.published:.2f}"
        agrees = {None: "-", True: "yes", False: "no"}[row.agrees]
        lines.append(
            f"| {row.maze} | {row.policy} | {row.reward} | {row.episodes} |"
            f" {100 * row.reached:.0f} % | {row.mean:.2f} [{row.low:.2f},"
            f" {row.high:.2f}] | [{row.run_low:.2f}, {row.run_high:.2f}] |"
            f" {published} | {agrees} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run all mazes and policies on all cores and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path, help="also write the table to this file")
    arguments = parser.parse_args()
    run_length = min(RUN_LENGTH, arguments.episodes)
    num_runs = -(-arguments.episodes // run_length)
    cells = [(maze, policy) for maze in MAZES for policy in POLICIES]
    mazes, policies = zip(
        *(cell for cell in cells for _ in range(num_runs)), strict=True
    )
    seeds = [*range(arguments.seed, arguments.seed + num_runs)] * len(cells)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.workers, mp_context=context) as pool:
        lengths = [run_length] * len(seeds)
        results = list(pool.map(run_episodes, mazes, policies, seeds, lengths))
    rows = []
    for index, (maze, policy) in enumerate(cells):
        runs = results[index * num_runs : (index + 1) * num_runs]
        rows += summarize(maze, policy, np.concatenate(runs))
    print(as_markdown(rows))
    if arguments.json is not None:
        document = {
            "settings": {"episodes": num_runs * run_length, "seed": arguments.seed},
            "versions": {name: version(name) for name in PACKAGES},
            "rows": [asdict(row) for row in rows],
        }
        arguments.json.write_text(
            json.dumps(document, indent=2) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
