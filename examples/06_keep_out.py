"""Keep out: discs put on a planner's own path, and plans that go around them.

    python examples/06_keep_out.py
    python examples/06_keep_out.py --episodes 100 --ablation-episodes 40 \
        --results keep_out.json --picture keep_out.png

Every episode is run unguided first. Then two discs are centered on its own path, at a
third and two thirds of the way, as large as leaves a way around: at most half a meter,
clear of start and goal by 0.2 m, and such that on a grid of 2.5 cm start and goal stay
connected at 0.1 m from discs and walls, beside the ball's radius of 0.1 m, by a way at
most 1 m longer. Episodes too short for two discs of 0.1 m are skipped.

The same planner, untrained for any of this, then runs the same episode with guides:

    2 * (KeepOut(disc 1) + KeepOut(disc 2)) + 1.5 * MazeWalls + Smoothness

and an executor that stays on the bent path. `--ablation-episodes` also leaves out one
thing at a time, on episodes of other seeds, which the settings were chosen on.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from matplotlib.patches import Circle

import diffuser_envs  # noqa: F401 (registers the mazes)
from diffuser_envs.maze.guides import MazeWalls
from diffuser_policy import DiffuserPolicy
from diffuser_policy.evaluation.rollout import Rollout, run_episode
from diffuser_policy.evaluation.statistics import mean_interval, proportion_interval
from diffuser_policy.files import replaced_file
from diffuser_policy.guides.guide import Guide
from diffuser_policy.guides.motion import Smoothness
from diffuser_policy.guides.regions import KeepOut
from diffuser_policy.path_following import PathExecutor
from diffuser_policy.plotting import Scene, draw_ends, draw_scene, save_figure
from diffuser_policy.versions import versions

ENV_ID = "diffuser_envs/Multi2D-Large-v1"
GRID, BALL, CLEARANCE = 0.025, 0.1, 0.1  # m
RADII = np.arange(0.5, 0.09, -0.05)  # m
DETOUR = 1.0  # m
SECONDS_PER_STEP = 0.01
ABLATION_SEED = 1000

Env = gymnasium.Env[Any, Any]


@dataclass(frozen=True, kw_only=True)
class Method:
    """How the discs are avoided; by default, the way that works."""

    keep_out: float = 2.0
    walls: float = 1.5
    smooth: float = 1.0
    margin: float = 0.1
    guide_steps: int = 20
    num_candidates: int = 32
    temperature: float = 1.5
    ranking: str = "guide"
    tempo: float | None = 0.7  # none: the planner's own executor

    def policy(self, planner: DiffuserPolicy, discs: Discs) -> DiffuserPolicy:
        """Return a planner that is steered around discs."""
        guide: Guide = self.keep_out * (
            discs.guide(0, self.margin) + discs.guide(1, self.margin)
        )
        guide = guide + self.walls * MazeWalls(layout="large")
        guide = guide + self.smooth * Smoothness()
        policy = planner.with_guide(
            guide,
            guide_scale=0.7,
            guide_steps=self.guide_steps,
            num_candidates=self.num_candidates,
            temperature=self.temperature,
            ranking=self.ranking,
            ranking_tolerance=1000.0,
            replan_deviation=0.4 if self.tempo else 0.75,
        )
        if self.tempo:
            policy.executor = PathExecutor(
                policy.planner.layout,
                seconds_per_step=SECONDS_PER_STEP,
                tempo=self.tempo,
            )
        return policy


DEFAULT = Method()
ABLATIONS = {
    "all of it": DEFAULT,
    "no smoothness": replace(DEFAULT, smooth=0.0),
    "no walls": replace(DEFAULT, walls=0.0),
    "no margin": replace(DEFAULT, margin=0.0),
    "5 gradient steps": replace(DEFAULT, guide_steps=5),
    "8 candidates": replace(DEFAULT, num_candidates=8),
    "temperature 1": replace(DEFAULT, temperature=1.0),
    "ranked by time to goal": replace(DEFAULT, ranking="time_to_goal"),
    "at the planned speed": replace(DEFAULT, tempo=1.0),
    "pursuit at full speed": replace(DEFAULT, tempo=None),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Discs:
    """Two discs on a path.

    Attributes:
        centers: `[2, 2]` in meters.
        radius: Of both, in meters.
    """

    centers: np.ndarray
    radius: float

    def guide(self, index: int, margin: float) -> KeepOut:
        """Return the guide of one disc."""
        x, y = self.centers[index].tolist()
        return KeepOut(center=(x, y), radius=self.radius, margin=margin)

    def gap(self, path: np.ndarray) -> float:
        """Return the least distance of a path `[n, 2]` to a disc; negative inside."""
        off = np.linalg.norm(path[:, None] - self.centers, axis=-1)
        return float(off.min() - self.radius)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One episode, guided or not."""

    gap: float
    success: bool
    score: float
    time_to_goal: int | None
    num_plans: int | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Trial:
    """An episode, run unguided and with guides."""

    seed: int
    discs: Discs
    goal: np.ndarray
    paths: dict[str, np.ndarray]
    outcomes: dict[str, Outcome]

    def to_json(self) -> dict[str, Any]:
        """Return all but the paths."""
        return {
            "seed": self.seed,
            "centers": self.discs.centers.round(4).tolist(),
            "radius": self.discs.radius,
            "goal": self.goal.tolist(),
            **{name: asdict(outcome) for name, outcome in self.outcomes.items()},
        }


class Grid:
    """Free space of a maze for the ball's center, on a fine grid."""

    def __init__(self, maze_map: Any) -> None:
        """Measure the distance of every grid point to the walls."""
        walls = np.array(maze_map) == 1
        height, width = walls.shape
        x = np.arange(GRID / 2, width, GRID) - width / 2
        y = np.arange(GRID / 2, height, GRID) - height / 2
        self.points = np.stack(np.meshgrid(x, y, indexing="ij"), axis=-1)
        distance = np.full(self.points.shape[:2], np.inf)
        for row, column in np.argwhere(walls):
            center = np.array([column + 0.5 - width / 2, height / 2 - row - 0.5])
            off = np.maximum(np.abs(self.points - center) - 0.5, 0.0)
            distance = np.minimum(distance, np.linalg.norm(off, axis=-1))
        self.free = distance >= BALL + CLEARANCE

    def place(self, path: np.ndarray, goal: np.ndarray) -> Discs | None:
        """Return the largest discs on a path that leave a way around.

        Args:
            path: `[n, 2]` positions from the start on, in meters.
            goal: `[2]` in meters.
        """
        near = np.linalg.norm(path - goal, axis=1)
        arrived = np.flatnonzero(near < 0.1)
        path = path[: (arrived[0] if len(arrived) else near.argmin()) + 1]
        steps = np.linalg.norm(np.diff(path, axis=0), axis=1)
        length = np.concatenate([[0.0], steps.cumsum()])
        thirds = np.searchsorted(length, length[-1] * np.array([1, 2]) / 3)
        centers = path[thirds]
        ends = np.linalg.norm(centers[:, None] - np.stack([path[0], goal]), axis=-1)
        direct = self.way(self.free, path[0], goal)
        for radius in RADII.tolist():
            if direct is None or ends.min() < radius + 0.2:
                continue
            off = np.linalg.norm(self.points[:, :, None] - centers, axis=-1)
            outside = off.min(axis=-1) >= radius + CLEARANCE
            around = self.way(self.free & outside, path[0], goal)
            if around is not None and around <= direct + DETOUR:
                return Discs(centers=centers, radius=round(radius, 2))
        return None

    def way(self, free: np.ndarray, start: np.ndarray, goal: np.ndarray) -> Any:
        """Return the Chebyshev length of the shortest way in meters, if there is one.

        Between the free points of `self.free` that are nearest to start and goal.
        """
        first, last = (self._nearest(point) for point in (start, goal))
        if not free[first] or not free[last]:
            return None
        seen = np.zeros_like(free)
        seen[first] = True
        front, count = seen.copy(), 0
        while not seen[last]:
            front = _spread(_spread(front).T).T & free & ~seen
            if not front.any():
                return None
            seen |= front
            count += 1
        return count * GRID

    def _nearest(self, point: np.ndarray) -> tuple[int, int]:
        off = np.linalg.norm(self.points - point, axis=-1)
        index = np.where(self.free, off, np.inf).argmin()
        row, column = np.unravel_index(index, off.shape)
        return int(row), int(column)


def _spread(front: np.ndarray) -> np.ndarray:
    """Return a set of grid points with its neighbours along the first axis."""
    wider = front.copy()
    wider[1:] |= front[:-1]
    wider[:-1] |= front[1:]
    return wider


def episode(policy: DiffuserPolicy, env: Env, seed: int) -> tuple[np.ndarray, Rollout]:
    """Run one episode; return the path of the ball's center `[n, 2]`, and the rest."""
    observation, _ = env.reset(seed=seed)
    state = policy.initial_state(1, np.array([seed]))
    rollout = run_episode(policy, env, observation, seed=seed, state=state)
    path = np.stack([seen["achieved_goal"] for seen in rollout.observations])
    return path, rollout


def outcome(path: np.ndarray, rollout: Rollout, discs: Discs) -> Outcome:
    """Return what is kept of an episode."""
    record = rollout.record
    return Outcome(
        gap=round(discs.gap(path), 4),
        success=bool(record.success),
        score=round(record.score or 0.0, 3),
        time_to_goal=record.time_to_goal,
    )


def run_trials(
    planner: DiffuserPolicy, methods: dict[str, Method], episodes: int, seed: int
) -> tuple[list[Trial], list[int]]:
    """Return trials of the first seeds with room for discs, and those without.

    Args:
        planner: Unguided.
        methods: Ways to guide it, by name.
        episodes: How many trials.
        seed: Of the first episode.
    """
    env = gymnasium.make(ENV_ID)
    grid = Grid(env.get_wrapper_attr("maze_map"))
    trials: list[Trial] = []
    skipped: list[int] = []
    while len(trials) < episodes:
        path, rollout = episode(planner, env, seed)
        goal = np.asarray(rollout.observations[0]["desired_goal"])
        discs = grid.place(path, goal)
        if discs is None:
            skipped.append(seed)
        else:
            paths = {"unguided": path}
            outcomes = {"unguided": outcome(path, rollout, discs)}
            for name, method in methods.items():
                path, rollout = episode(method.policy(planner, discs), env, seed)
                paths[name], outcomes[name] = path, outcome(path, rollout, discs)
            trials.append(
                Trial(seed=seed, discs=discs, goal=goal, paths=paths, outcomes=outcomes)
            )
        seed += 1
    env.close()
    return trials, skipped


def table(trials: list[Trial], *, header: str) -> list[str]:
    """Return a Markdown table of all methods."""
    lines = [
        f"| {header} | enter a disc % | success % | score | closest to a disc, m |",
        "|---|---|---|---|---|",
    ]
    for name in trials[0].outcomes:
        every = [trial.outcomes[name] for trial in trials]
        entered, success = (
            proportion_interval(sum(flags), len(every))
            for flags in ([o.gap < 0 for o in every], [o.success for o in every])
        )
        score = mean_interval([o.score for o in every])
        gaps = np.percentile([o.gap for o in every], [0, 50])
        lines.append(
            f"| {name} | {_percent(entered)} | {_percent(success)} | {score.mean:.1f} "
            f"[{score.low:.1f}, {score.high:.1f}] | median {gaps[1]:.2f}, "
            f"least {gaps[0]:.2f} |"
        )
    return lines


def _percent(share: Any) -> str:
    low, high = 100 * share.low, 100 * share.high
    return f"{100 * share.mean:.0f} [{low:.0f}, {high:.0f}]"
