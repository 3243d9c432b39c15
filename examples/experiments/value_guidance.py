"""Value guidance: a planner of mixed demonstrations, steered to the good ones.

    python examples/experiments/value_guidance.py
    python examples/experiments/value_guidance.py --num-data-episodes 1000 \
        --num-gradient-steps 8000 --num-value-steps 6000 --episodes 100 \
        --num-candidates 4 16 --scales 0.3 1.0 \
        --results value_guidance.json --picture value_guidance.png

(Janner et al. 2022, §3.2.) The maze is Maze2D-Medium, but the observation has position
and velocity alone: neither the planner nor its plans know of a goal. The data is a
mixture of demonstrators: some go straight to the place that pays, some creep there, and
half of them wander from one random place to another. A planner of such data imitates
the mixture. A value network, trained on the rewards of the same data, steers it without
retraining:

- best of n: sample n plans, follow the one with the highest predicted return;
- gradient, "noisy": as in the authors' release, move the noisy plan before denoising;
- gradient, "mean": as in Algorithm 1 of the paper, move the mean of each step;
- both: as in the release, guided candidates and the best of them.

All run the same episodes. The second command took 40 minutes on a core that other work
shared; the first does less of everything.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
import tyro
from gymnasium.wrappers import FilterObservation, FlattenObservation
from matplotlib.figure import Figure

import diffuser_envs
from diffuser_envs.maze.demonstrator import RouteMemory
from diffuser_policy import (
    DiffuserPolicy,
    TrainConfig,
    Trainer,
    collect_episodes,
    evaluate,
    load_flat,
)
from diffuser_policy.checkpoint import read_planner
from diffuser_policy.config import (
    ExecutionConfig,
    NetworkConfig,
    OptimizationConfig,
    PlannerConfig,
    ValueConfig,
    ValueTrainConfig,
    WindowConfig,
)
from diffuser_policy.data.episodes import record_episode
from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.errors import DatasetNotFoundError
from diffuser_policy.evaluation.statistics import Interval, mean_interval
from diffuser_policy.guides.registry import make_guide
from diffuser_policy.plotting import Scene, draw_scene, save_figure
from diffuser_policy.training.value_trainer import ValueTrainer
from diffuser_policy.versions import versions

ENV_ID, DATASET = "examples/MediumNoGoal-v0", "examples/medium-mixed-v0"
MAZE_ID = "diffuser_envs/Maze2D-Medium-v1"
STYLES = {"direct": 0.2, "slow": 0.3, "wandering": 0.5}  # shares of the episodes
CREEP = 0.3  # share of the force that the slow ones push with
RELEASE = {"guide_placement": "noisy", "guide_steps": 2, "guide_cutoff": 2}
PAPER = {"guide_placement": "mean"}
SELECTION = {"guide_scale": 0.0, "ranking": "guide"}
SCALE = 1.0  # of the gradient, where it is combined with others
PICTURED_SEED, PICTURED_PLANS = 8, 64
HEADER = (
    "| planning | return | D4RL score | reached | ms a plan |\n|---|---|---|---|---|"
)


def make_maze() -> gymnasium.Env[Any, Any]:
    """Return Maze2D-Medium with observations that say nothing of the goal."""
    spec = gymnasium.spec(MAZE_ID)
    maze = diffuser_envs.Maze2DEnv(**spec.kwargs)
    return FlattenObservation(FilterObservation(maze, ["observation"]))


class MixedDemonstrators:
    """Every episode is demonstrated in another style."""

    def __init__(
        self, env: gymnasium.Env[Any, Any], style: str | None = None, seed: int = 0
    ) -> None:
        self.layout = env.unwrapped.get_wrapper_attr("layout")
        self.goal = self.layout.cell_to_xy(self.layout.goal_cell)
        self.expert = diffuser_envs.WaypointDemonstrator.from_env(env, seed=seed)
        self.rng, self.style = np.random.default_rng(seed), style

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,  # noqa: ARG002 (the expert adds no noise)
    ) -> tuple[np.ndarray, Any]:
        """Return the force for one observation `[4]`."""
        if state is None or np.any(episode_start):
            state = self.begin()
        style, route, target = state
        position, velocity = observation[:2], observation[2:]
        if style == "wandering" and self.expert.has_reached(position, target):
            target = self.target(style)
        force = self.expert.act(position, velocity, target, route)
        share = CREEP if style == "slow" else 1.0
        return (share * force).astype(np.float32), (style, route, target)

    def begin(self) -> Any:
        """Return the style, an empty route, and the first target of an episode."""
        drawn = self.rng.choice(list(STYLES), p=list(STYLES.values()))
        style = self.style or str(drawn)
        return style, RouteMemory(), self.target(style)

    def target(self, style: str) -> np.ndarray:
        """Return where to go next, `[2]`, meters."""
        wanders = style == "wandering"
        point = self.layout.sample_point(self.rng) if wanders else self.goal
        return np.asarray(point)


def data(folder: Path, num_episodes: int) -> FlatDataset:
    """Return the recorded mixture, recording it if it is not there."""
    os.environ["MINARI_DATASETS_PATH"] = str(folder / "minari")
    try:
        return load_flat(DATASET, cache_dir=folder / "cache")
    except DatasetNotFoundError:
        env = gymnasium.make(ENV_ID)
        demonstrators = MixedDemonstrators(env)
        collect_episodes(
            env, demonstrators, num_episodes=num_episodes, dataset_id=DATASET
        )
        env.close()
    return load_flat(DATASET, cache_dir=folder / "cache")


def train(
    flat: FlatDataset, folder: Path, num_planner_steps: int, num_value_steps: int
) -> DiffuserPolicy:
    """Train a planner on the mixture, and then its value network."""
    config = TrainConfig(
        dataset=DATASET,
        window=WindowConfig(
            horizon=144, stride=6, actions=False, hindsight_goal="none"
        ),
        network=NetworkConfig(num_denoising_steps=20),
        optimization=OptimizationConfig(num_steps=num_planner_steps, batch_size=64),
        planner=PlannerConfig(
            sampler="ddpm", num_sampling_steps=10, num_candidates=1, ranking="first"
        ),
        # Follows the planned speed: a plan that creeps is a slow one.
        execution=ExecutionConfig(
            executor="tracking",
            position_gain=10.0,
            velocity_gain=2.0,
            replan_interval=36,
        ),
    )
    Trainer(config, flat, folder / "planner").run()
    value = ValueTrainConfig(
        dataset=DATASET,
        # The authors' network; about a hundred env steps ahead count.
        value=ValueConfig(pooling="flatten", discount=0.99),
        optimization=OptimizationConfig(num_steps=num_value_steps, batch_size=64),
    )
    planner = read_planner(folder / "planner")
    ValueTrainer(value, planner, flat, folder / "valued").run()
    return DiffuserPolicy.from_pretrained(folder / "valued")


def variants(
    policy: DiffuserPolicy, num_candidates: list[int], scales: list[float]
) -> Iterator[tuple[str, DiffuserPolicy]]:
    """Yield ways to plan, by name; the first is unguided."""
    value = make_guide("value")
    yield "unguided", policy
    for count in num_candidates:
        settings = {**SELECTION, "num_candidates": count}
        yield f"best of {count}", policy.with_guide(value, **settings)
    for name, placement in (("noisy", RELEASE), ("mean", PAPER)):
        for scale in scales:
            settings = {**placement, "guide_scale": scale}
            yield f"gradient, {name}, {scale:g}", policy.with_guide(value, **settings)
    count = min(num_candidates)
    for name, placement in (("noisy", RELEASE), ("mean", PAPER)):
        settings = {**placement, "guide_scale": SCALE, "num_candidates": count}
        both = policy.with_guide(value, ranking="guide", **settings)
        yield f"both: {name}, {SCALE:g}, best of {count}", both


@dataclass(frozen=True)
class Row:
    """What one way to act earned; intervals hold 95 %.

    Attributes:
        name: What acted.
        earned: Undiscounted return.
        score: On D4RL's scale.
        reached: Share of episodes that reached the place that pays.
        plan_ms: Milliseconds per plan, on one CPU core that may be shared.
        returns: Of every episode.
    """

    name: str
    earned: Interval
    score: Interval
    reached: float
    plan_ms: float | None = None
    returns: list[float] = field(default_factory=list)

    @classmethod
    def of(
        cls, name: str, returns: np.ndarray, reached: Any, plan_ms: float | None = None
    ) -> Row:
        """Summarize the returns `[episodes]`."""
        scores = np.asarray(diffuser_envs.get_normalized_score(MAZE_ID, returns))
        return cls(
            name=name,
            earned=mean_interval(returns),
            score=mean_interval(scores),
            reached=float(np.mean(reached)),
            plan_ms=plan_ms,
            returns=returns.tolist(),
        )

    def __str__(self) -> str:
        """Return a line of the table."""
        cells = [self.name, shown(self.earned), shown(self.score)]
        cells += [f"{self.reached:.0%}"]
        cells += ["" if self.plan_ms is None else f"{self.plan_ms:.0f}"]
        return f"| {' | '.join(cells)} |"


def shown(interval: Interval) -> str:
    """Return a mean with its interval."""
    return f"{interval.mean:.1f} [{interval.low:.1f}, {interval.high:.1f}]"


def demonstrated(name: str, style: str | None, episodes: int) -> Row:
    """Return what the demonstrators earn on the episodes of the evaluation."""
    env = gymnasium.make(ENV_ID)
    demonstrators = MixedDemonstrators(env, style)
    records = [record_episode(env, demonstrators, seed) for seed in range(episodes)]
    env.close()
    returns = np.array([record.rewards.sum() for record in records])
    return Row.of(name, returns, returns > 0)


def planned(name: str, policy: DiffuserPolicy, episodes: int) -> Row:
    """Return what a planner earns."""
    result = evaluate(policy, ENV_ID, episodes=episodes, num_envs=min(episodes, 50))
    reached = [bool(record.success) for record in result.episodes]
    plan_ms = float(result.timing.plan_milliseconds().mean())
    return Row.of(name, result.returns, reached, plan_ms)


def draw(policy: DiffuserPolicy, rows: list[Row]) -> Figure:
    """Draw plans from one place, unguided and guided, and what each row earned."""
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    panels = figure.subplots(1, 3, width_ratios=(1, 1, 1.1))
    env = gymnasium.make(ENV_ID)
    observation, _ = env.reset(seed=PICTURED_SEED)
    value, count = make_guide("value"), PICTURED_PLANS
    chosen = policy.with_guide(value, **SELECTION, num_candidates=count)
    guided = chosen.with_settings(**PAPER, guide_scale=SCALE)
    made = {
        name: planner.plan(observation, state=planner.initial_state(1, np.array([0])))
        for name, planner in (("unguided", chosen), ("guided", guided))
    }
    values = np.concatenate([plan.values[0] for plan in made.values()])
    for axes, (name, plan) in zip(panels, made.items(), strict=False):
        draw_scene(axes, Scene.of(env, policy.planner.layout, observation))
        colors = (plan.values[0] - values.min()) / max(float(np.ptp(values)), 1e-9)
        for path, color in zip(plan.candidates[0], colors, strict=True):
            axes.plot(path[:, 0], path[:, 1], color=str(0.85 * (1 - color)), lw=0.8)
        best = plan.path()
        axes.plot(best[:, 0], best[:, 1], color="#d1495b", lw=2.5)
        axes.scatter(*observation[:2], color="black", zorder=4)
        goal = env.unwrapped.get_wrapper_attr("goal")
        axes.scatter(*goal, marker="*", s=160, color="#f0b429", zorder=5)
        axes.set_title(f"{count} plans, {name}", fontsize=11)
    env.close()
    bars, places = panels[2], np.arange(len(rows))[::-1]
    means = np.array([row.earned.mean for row in rows])
    ends = np.array([[row.earned.low, row.earned.high] for row in rows]).T
    bars.barh(places, means, xerr=np.abs(ends - means), color="#8fb8de", capsize=3)
    bars.set_yticks(places, [row.name for row in rows], fontsize=8)
    bars.set_xlabel("return, 95 % interval")
    figure.suptitle("darker: predicted to earn more; red: the most; star: what pays")
    return figure


def report(rows: list[Row], results: Path, settings: dict[str, Any]) -> None:
    """Write all returns as JSON, and the table as Markdown beside it."""
    data = {
        "settings": settings,
        "versions": versions("gymnasium", "mujoco", "numpy", "torch"),
        "rows": [asdict(row) for row in rows],
    }
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    lines = [
        "# Value guidance on mixed demonstrations",
        "",
        "Made by the second command in `examples/experiments/value_guidance.py`, which",
        "explains the rows. Intervals hold 95 %.",
        "",
        HEADER,
        *map(str, rows),
    ]
    results.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def conclusion(rows: list[Row]) -> str:
    """Return how the guided row of the highest mean compares with unguided plans.

    It was chosen on the episodes that it is compared on, which flatters it: the more,
    the more rows it was chosen from.
    """
    unguided = next(row for row in rows if row.name == "unguided")
    guided = rows[rows.index(unguided) + 1 :]
    best = max(guided, key=lambda row: row.earned.mean)
    apart = "don't overlap" if best.earned.low > unguided.earned.high else "overlap"
    return (
        f"{best.name} (highest mean of {len(guided)} guided rows) and unguided: the "
        f"intervals of their returns {apart}:\n"
        f"{shown(best.earned)} and {shown(unguided.earned)}"
    )


def compare(
    policy: DiffuserPolicy,
    episodes: int,
    num_candidates: list[int],
    scales: list[float],
    save: Callable[[list[Row]], None],
) -> list[Row]:
    """Run all ways to plan on the same episodes; print and save what they earn."""
    print(HEADER)
    rows = [
        demonstrated("demonstrators, the mixture", None, episodes),
        demonstrated("demonstrators, direct ones", "direct", episodes),
    ]
    print(*rows, sep="\n")
    for name, planner in variants(policy, num_candidates, scales):
        rows.append(planned(name, planner, episodes))
        print(rows[-1], flush=True)
        save(rows)
    return rows


def main(
    *,
    num_data_episodes: int = 300,
    num_gradient_steps: int = 1500,
    num_value_steps: int = 1500,
    episodes: int = 20,
    num_candidates: tuple[int, ...] = (16,),
    scales: tuple[float, ...] = (1.0,),
    folder: Path | None = None,
    results: Path | None = None,
    picture: Path | None = None,
) -> None:
    """Record, train, and compare ways to plan.

    Args:
        num_data_episodes: Episodes of 600 env steps to record.
        num_gradient_steps: Length of the planner's training.
        num_value_steps: Length of the value network's training.
        episodes: Of each evaluation.
        num_candidates: Plans that the best one is chosen of.
        scales: Sizes of a step along the gradient.
        folder: Keeps data and training, to go on there; by default a temporary one.
        results: JSON file for the table; a Markdown file is written beside it.
        picture: PNG file.
    """
    torch.set_num_threads(1)
    gymnasium.register(
        ENV_ID, entry_point=f"{__name__}:make_maze", max_episode_steps=600
    )
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary) if folder is None else folder.resolve()
        flat = data(work, num_data_episodes)
        policy = train(flat, work, num_gradient_steps, num_value_steps)
        steps = {"planner": num_gradient_steps, "value": num_value_steps}
        settings = {"data": num_data_episodes, "steps": steps, "episodes": episodes}

        def save(rows: list[Row]) -> None:
            if results is not None:
                report(rows, results, settings)

        rows = compare(policy, episodes, list(num_candidates), list(scales), save)
    if picture is not None:
        save_figure(draw(policy, rows), picture)
    print(conclusion(rows))


if __name__ == "__main__":
    tyro.cli(main)
