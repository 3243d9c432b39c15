"""Plans of many lengths from one network, each followed to its goal.

    python examples/experiments/variable_length.py
    python examples/experiments/variable_length.py --episodes 50 \
        --results demo/variable_length.json

(The third property of Janner et al. 2022, figure 3.) The network convolves over time,
so a plan has as many planning steps as the noise that it is made from has rows. The
windows of training were 48 to 480 env steps long.

For each length there are starts and goals that the time-to-goal network places about
that far apart. One plan of exactly that length is made and followed to its end; it is
not made anew, and the ball should be where the plan is (tracking, not pursuit). The
last line says how often the ball is at the goal on time, over all lengths, with a 95 %
interval. This takes about a minute on one core.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import tyro
from matplotlib.figure import Figure

import diffuser_envs  # noqa: F401 (registers the mazes)
from diffuser_policy import DiffuserPolicy
from diffuser_policy.evaluation.statistics import mean_interval, proportion_interval
from diffuser_policy.plotting import (
    Scene,
    draw_ends,
    draw_plan,
    draw_rollout,
    draw_scene,
    save_figure,
)

SHOWN_START = (-4.3, 2.8)
COLOR = "#2b5fd9"
NUM_SAMPLING_STEPS = 10  # plans followed blindly deserve more than the fast default
SLACK = 0.75  # the shortest predicted time, as a share of the plan's
Outcome = tuple[np.ndarray, float]  # path of the ball, distance to the goal


def of_length(
    policy: DiffuserPolicy, horizon: int, num_sampling_steps: int = NUM_SAMPLING_STEPS
) -> DiffuserPolicy:
    """Return the policy with plans of one length, in env steps, the same weights."""
    window = replace(policy.config.window, horizon=horizon, min_horizon=None)
    execution = replace(
        policy.config.execution,
        executor="tracking",
        position_gain=10.0,
        velocity_gain=1.0,
        replan_deviation=None,
    )
    planner = replace(
        policy.config.planner, horizon="fixed", num_sampling_steps=num_sampling_steps
    )
    config = replace(policy.config, window=window, planner=planner, execution=execution)
    return DiffuserPolicy(config, policy.networks)


def places(
    policy: DiffuserPolicy, env: Any, horizon: int, number: int
) -> list[dict[str, np.ndarray]]:
    """Return starts and goals that are `SLACK` to 1 times a plan's length apart."""
    rng = np.random.default_rng(horizon)
    found: list[dict[str, np.ndarray]] = []
    while len(found) < number:
        points = [env.unwrapped.sample_goal(rng) for _ in range(400)]
        starts, goals = np.array(points[:200]), np.array(points[200:])
        at_rest = np.concatenate([starts, np.zeros_like(starts)], axis=1)
        times = policy.planner.horizons.predict_time(at_rest, goals)
        suited = (times > SLACK * horizon) & (times <= horizon)
        found += [
            {"start": start, "goal": goal}
            for start, goal in zip(starts[suited], goals[suited], strict=True)
        ]
    return found[:number]


def follow(policy: DiffuserPolicy, env: Any, options: dict[str, Any]) -> Outcome:
    """Make one plan and follow it; return the path, and how far off it ended.

    Args:
        policy: Makes plans of one length.
        env: The maze.
        options: Start and goal.

    Returns:
        Observations `[env steps + 1, 4]`, and the distance in meters from the goal at
        the env step at which the plan is there.
    """
    observation, _ = env.reset(options=options)
    path, state = [observation["observation"]], None
    for _ in range(int(policy.plan(observation).durations[0])):
        action, state = policy.predict(observation, state, deterministic=True)
        observation, *_ = env.step(action)
        path.append(observation["observation"])
    off = np.linalg.norm(observation["achieved_goal"] - observation["desired_goal"])
    return np.stack(path), float(off)


def draw(
    policies: dict[int, DiffuserPolicy], env: Any, errors: dict[int, list[float]]
) -> Figure:
    """Draw a plan of each length from one start, how it was followed, and the rates."""
    figure = Figure(figsize=(13.5, 7.2), layout="compressed")
    panels = figure.subplots(2, 3).ravel()
    for panel, horizon in zip(panels, shown(policies), strict=False):
        policy = policies[horizon]
        options = nearest_fit(policy, env, horizon)
        observation, _ = env.reset(options=options)
        plan = policy.plan(observation)
        path, _ = follow(policy, env, options)
        scene = Scene.of(env, policy.planner.layout, observation)
        draw_scene(panel, scene)
        draw_rollout(panel, scene.points(path))
        draw_plan(panel, plan, scene, candidates=False)
        draw_ends(panel, scene, scene.points(path)[0])
        panel.set_title(f"{plan.lengths[0]} planning steps, {horizon} env steps")
    last = panels[-1]
    radius = env.unwrapped.success_radius
    rates = np.array([on_time(each, radius) for each in errors.values()]) * 100
    mean, low, high = rates.T
    last.errorbar(
        list(errors),
        mean,
        np.array([mean - low, high - mean]),
        marker="o",
        capsize=3,
        color=COLOR,
    )
    last.set(ylim=(0, 103), xticks=list(errors))
    last.set(xlabel="length of the plan (env steps)", ylabel="at the goal on time (%)")
    last.spines[["top", "right"]].set_visible(False)
    last.set_title("one network, every length, 95 % intervals")
    return figure


def shown(policies: dict[int, DiffuserPolicy]) -> list[int]:
    """Return up to five lengths, the shortest and the longest among them."""
    lengths = list(policies)
    chosen = np.linspace(0, len(lengths) - 1, min(5, len(lengths))).round()
    return [lengths[int(index)] for index in chosen]


def nearest_fit(policy: DiffuserPolicy, env: Any, horizon: int) -> dict[str, Any]:
    """Return the shown start and the goal whose predicted time fits a plan best."""
    goals = env.unwrapped.layout.free_points
    starts = np.tile([*SHOWN_START, 0.0, 0.0], (len(goals), 1))
    times = policy.planner.horizons.predict_time(starts, goals)
    best = np.abs(times - 0.9 * horizon).argmin()
    return {"start": SHOWN_START, "goal": goals[best]}


def on_time(errors: list[float], radius: float) -> tuple[float, float, float]:
    """Return how often the ball was at the goal on time, and the 95 % interval."""
    interval = proportion_interval(sum(off <= radius for off in errors), len(errors))
    return interval.mean, interval.low, interval.high


def main(
    planner: str = "multi2d-large",
    env_id: str = "diffuser_envs/Multi2D-Large-v1",
    *,
    lengths: tuple[int, ...] = (48, 96, 144, 192, 240, 288, 336, 384, 432),
    episodes: int = 20,
    num_sampling_steps: int = NUM_SAMPLING_STEPS,
    results: Path | None = None,
    picture: Path = Path("demo/variable_length.png"),
) -> None:
    """Plan and follow plans of many lengths.

    Args:
        planner: A shipped planner, or a folder.
        env_id: The maze it was trained for.
        lengths: Of the plans, in env steps; multiples of 24.
        episodes: Of each length.
        num_sampling_steps: Of a plan.
        results: Where to write the distance from the goal of every episode, as JSON.
        picture: Where to save the picture.
    """
    env = gymnasium.make(env_id)
    radius = env.unwrapped.get_wrapper_attr("success_radius")
    policy = DiffuserPolicy.from_pretrained(planner)
    policies = {
        length: of_length(policy, length, num_sampling_steps) for length in lengths
    }
    errors: dict[int, list[float]] = {}
    for length, each in policies.items():
        errors[length] = [
            follow(each, env, options)[1]
            for options in places(policy, env, length, episodes)
        ]
        mean, low, high = on_time(errors[length], radius)
        off = mean_interval(errors[length])
        print(
            f"{length:>4} env steps: on time {mean:.0%} [{low:.0%}, {high:.0%}], "
            f"{off.mean:.2f} m [{off.low:.2f}, {off.high:.2f}] from the goal"
        )
    if results is not None:
        results.parent.mkdir(parents=True, exist_ok=True)
        results.write_text(json.dumps(errors, indent=1) + "\n", encoding="utf-8")
    save_figure(draw(policies, env, errors), picture)
    env.close()
    every = [off for each in errors.values() for off in each]
    mean, low, high = on_time(every, radius)
    print(f"picture: {picture}")
    print(
        f"{len(lengths)} lengths, {len(every)} plans: at the goal on time "
        f"{mean:.1%} [{low:.1%}, {high:.1%}]"
    )


if __name__ == "__main__":
    tyro.cli(main)
