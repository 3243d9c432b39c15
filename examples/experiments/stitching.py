"""Trained on straight trips only, asked for corners: plans shaped like a V.

    python examples/experiments/stitching.py
    python examples/experiments/stitching.py --multipliers 1 2 4 --kernel-size 5

(The second property of Janner et al. 2022, figure 3.) Two roads cross. Every recorded
trip goes straight: along one arm to the crossing, a rest there, and along the opposite
arm. The planner is asked for ways from one road to the other, which no trip ever took.
It has seen both halves. Whether it puts them together depends on how far its network
sees. One with few, narrow convolutions sees nine planning steps to either side: enough
to know that trips keep to the road, too little to know that they never turn. The second
command's network sees whole trips, and knows that none of them turns.

A plan counts as a V if it begins and ends where it should, keeps to the start's road up
to the crossing and to the goal's road from there on (within 0.1; arms are up to 1
long), and makes no step half again as long as the longest of any trip. The same is
asked of the nearest trip in the data (retrieval), as it is and with its ends moved to
start and goal. The commands take two and six minutes on one core. The last line gives
the share of plans that are Vs, with its 95 % interval.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffuser_policy import FlatDataset, Planner, TrainConfig, Trainer
from diffuser_policy.build import build_planner, config_featurizer
from diffuser_policy.config import (
    NetworkConfig,
    OptimizationConfig,
    PlannerConfig,
    WindowConfig,
)
from diffuser_policy.evaluation.statistics import proportion_interval
from diffuser_policy.plotting import save_figure

STEPS = 32  # planning steps of a trip, and of a plan
REST = (8, 14)  # steps at the crossing, fewest and most
ARM = (0.3, 1.0)  # from the crossing to where trips begin and end
LANE = 0.02  # standard deviation of how far trips are off the middle of the road
ROAD = 0.1  # how far off it a plan may be
DIRECTIONS = np.array([[1.0, 1.0], [-1.0, 1.0]]) / np.sqrt(2)
NORMALS = np.array([[-1.0, 1.0], [-1.0, -1.0]]) / np.sqrt(2)
GREY, START, GOAL = "#c3c9d8", "#159560", "#d63031"
COLORS = ("#2b5fd9", "#e07b39", "#9b6fd0", "#159560", "#b8902a", "#c94f7c")


def record_trips(number: int, rng: np.random.Generator) -> np.ndarray:
    """Return positions `[number, STEPS, 2]` of straight trips across the crossing."""
    trips = np.empty((number, STEPS, 2))
    for trip in trips:
        road, sign = rng.integers(2), rng.choice([-1.0, 1.0])
        begin, end = rng.uniform(*ARM, 2)
        rest = int(rng.integers(REST[0], REST[1] + 1))
        there = round((STEPS - rest) * rng.uniform(0.4, 0.6))
        along = np.concatenate(
            [
                -begin * (1 - eased(there, endpoint=False)),
                np.zeros(rest),
                end * eased(STEPS - rest - there, endpoint=True),
            ]
        )
        first, last = LANE * rng.standard_normal(2).clip(-2, 2)
        off = np.linspace(first, last, STEPS)
        trip[:] = (
            sign * along[:, None] * DIRECTIONS[road] + off[:, None] * NORMALS[road]
        )
    return trips


def eased(steps: int, *, endpoint: bool) -> np.ndarray:
    """Return the share `[steps]` of a way that starts and ends at rest."""
    first = 1 if endpoint else 0
    phase = np.pi * (np.arange(steps) + first) / steps
    share: np.ndarray = (1 - np.cos(phase)) / 2
    return share


def ask(number: int, rng: np.random.Generator) -> np.ndarray:
    """Return starts and goals `[number, 2, 2]`, each pair on different roads."""
    roads = rng.permuted(np.tile([0, 1], (number, 1)), axis=1)
    along = rng.choice([-1.0, 1.0], (number, 2)) * rng.uniform(*ARM, (number, 2))
    ends: np.ndarray = along[..., None] * DIRECTIONS[roads]
    return ends


def dataset(trips: np.ndarray) -> FlatDataset:
    """Return trips as the data of a planner; its actions are displacements."""
    positions = trips.reshape(-1, 2)
    displacements = np.diff(trips, axis=1, append=trips[:, -1:]).reshape(-1, 2)
    return FlatDataset(
        fields={
            "observation": positions,
            "action": displacements,
            "reward": np.zeros(len(positions)),
            "terminated": np.zeros(len(positions), np.bool_),
            "achieved_goal": positions,
            "desired_goal": trips[:, -1].repeat(STEPS, axis=0),
        },
        run_starts=np.arange(len(trips) + 1) * STEPS,
        metadata={
            "dataset_id": "examples/crossing-v0",
            "action_low": [-1.0, -1.0],
            "action_high": [1.0, 1.0],
            "observation_columns": {"position": [0, 1]},
        },
    )


def train(
    trips: np.ndarray, network: NetworkConfig, num_gradient_steps: int
) -> Planner:
    """Train a planner on trips."""
    config = TrainConfig(
        dataset="examples/crossing-v0",
        window=WindowConfig(horizon=STEPS, actions=False),
        network=network,
        optimization=OptimizationConfig(
            num_steps=num_gradient_steps,
            batch_size=64,
            learning_rate=2e-3,
            ema_decay=0.99,
        ),
        planner=PlannerConfig(
            sampler="ddpm",
            num_sampling_steps=None,
            num_candidates=16,
            ranking="smoothness",
        ),
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, dataset(trips), Path(folder))
        trainer.run()
        settings = trainer.policy_config
        featurizer = config_featurizer(settings)
        return build_planner(settings, trainer.planner_networks, featurizer)


def plan(planner: Planner, ends: np.ndarray) -> np.ndarray:
    """Return the planned positions `[pairs, STEPS, 2]`."""
    generators = [torch.Generator().manual_seed(row) for row in range(len(ends))]
    return planner.plan(ends[:, 0], ends[:, 1], generators).observations


def is_v(paths: np.ndarray, ends: np.ndarray, longest_step: float) -> np.ndarray:
    """Tell which paths `[pairs, STEPS, 2]` are a V between their ends, `[pairs]`.

    Args:
        paths: Planned or retrieved.
        ends: Starts and goals `[pairs, 2, 2]`.
        longest_step: No step may be longer.
    """
    arrives = np.linalg.norm(paths[:, [0, -1]] - ends, axis=2).max(axis=1) <= ROAD
    steps = np.linalg.norm(np.diff(paths, axis=1), axis=2).max(axis=1)
    turns = np.linalg.norm(paths, axis=2).argmin(axis=1)
    straight = [
        max(
            off_segment(path[: turn + 1], start, np.zeros(2)),
            off_segment(path[turn:], np.zeros(2), goal),
        )
        for path, turn, (start, goal) in zip(paths, turns, ends, strict=True)
    ]
    keeps = np.array(straight) <= ROAD
    good: np.ndarray = arrives & keeps & (steps <= longest_step)
    return good


def off_segment(points: np.ndarray, begin: np.ndarray, end: np.ndarray) -> float:
    """Return the largest distance of points `[n, 2]` from a straight way."""
    way = end - begin
    share = ((points - begin) @ way / (way @ way)).clip(0.0, 1.0)
    return float(np.linalg.norm(points - begin - share[:, None] * way, axis=1).max())


def retrieve(trips: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return the trip whose ends are nearest to each start and goal."""
    off = np.linalg.norm(trips[:, None, [0, -1]] - ends, axis=3).sum(axis=2)
    nearest: np.ndarray = trips[off.argmin(axis=0)]
    return nearest


def connected(trips: np.ndarray, ends: np.ndarray) -> int:
    """Return how many starts and goals some trip comes near to, both of them."""
    off = [
        np.linalg.norm(trips - end, axis=2).min(axis=1) for pair in ends for end in pair
    ]
    both = np.array(off).reshape(len(ends), 2, -1).max(axis=1).min(axis=1)
    return int((both <= ROAD).sum())


def draw(trips: np.ndarray, paths: np.ndarray, good: np.ndarray) -> Figure:
    """Draw trips, plans that are Vs, and those that are not."""
    figure = Figure(figsize=(13.2, 4.8), layout="compressed")
    panels = figure.subplots(1, 3)
    titles = (
        "all that was ever recorded: straight trips",
        f"plans that are Vs ({good.mean():.0%})",
        f"plans that are not ({1 - good.mean():.0%})",
    )
    for panel, title in zip(panels, titles, strict=True):
        panel.plot(*trips[:150].T, color=GREY, lw=0.7, zorder=1)
        panel.set(title=title, aspect="equal", xticks=[], yticks=[])
        panel.set(xlim=(-0.82, 0.82), ylim=(-0.82, 0.82))
        panel.spines[:].set_visible(False)
    for trip, color in zip(trips[:6], COLORS, strict=False):
        draw_path(panels[0], trip, color)
    for panel, rows in ((panels[1], good), (panels[2], ~good)):
        for row, color in zip(np.flatnonzero(rows), COLORS, strict=False):
            draw_path(panel, paths[row], color)
    return figure


def draw_path(panel: Axes, path: np.ndarray, color: str) -> None:
    """Draw one path with its ends."""
    style: dict[str, Any] = {"ls": "none", "mec": "white", "zorder": 4}
    panel.plot(*path.T, color=color, marker="o", ms=3, lw=1.4, zorder=3)
    [start] = panel.plot(*path[0], marker="o", ms=9, mfc=START, **style)
    [goal] = panel.plot(*path[-1], marker="*", ms=14, mfc=GOAL, **style)
    panel.legend(
        [start, goal], ["start", "goal"], loc="lower center", ncols=2, frameon=False
    )


def main(
    *,
    num_trips: int = 2000,
    num_gradient_steps: int = 2500,
    multipliers: tuple[int, ...] = (1,),
    kernel_size: int = 3,
    num_pairs: int = 500,
    picture: Path = Path("demo/stitching.png"),
) -> None:
    """Record straight trips, train on them, and ask for corners.

    Args:
        num_trips: To learn from.
        num_gradient_steps: Length of the training.
        multipliers: Widths of the network's resolutions; more of them see further.
        kernel_size: Of its convolutions; larger ones see further.
        num_pairs: Starts and goals to plan for.
        picture: Where to save the picture.
    """
    rng = np.random.default_rng(0)
    trips, ends = record_trips(num_trips, rng), ask(num_pairs, rng)
    network = NetworkConfig(multipliers=multipliers, kernel_size=kernel_size)
    paths = plan(train(trips, network, num_gradient_steps), ends)
    longest = 1.5 * np.linalg.norm(np.diff(trips, axis=1), axis=2).max()
    print(f"starts and goals that a trip connects: {connected(trips, ends)}")
    retrieved = retrieve(trips, ends)
    moved = retrieved.copy()
    moved[:, [0, -1]] = ends
    for name, each in (("nearest trip", retrieved), ("the same, ends moved", moved)):
        print(f"{name}: {is_v(each, ends, longest).mean():.0%} are Vs")
    good = is_v(paths, ends, longest)
    save_figure(draw(trips, paths, good), picture)
    share = proportion_interval(int(good.sum()), len(good))
    print(f"picture: {picture}")
    print(f"plans: {share.mean:.0%} [{share.low:.0%}, {share.high:.0%}] are Vs")


if __name__ == "__main__":
    tyro.cli(main)
