"""Plan to a goal of your choice, follow the plan, and save a picture of both.

    python examples/01_plan_in_a_maze.py
    python examples/01_plan_in_a_maze.py --goal 2.5 1.5 --picture demo/another.png

The planner was never trained for a particular goal. The last two lines compare it with
the demonstrator that recorded its data, for the same start and goal: env steps and
scores.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import tyro

import diffuser_envs
from diffuser_policy import DiffuserPolicy
from diffuser_policy.plotting import Scene, plan_figure, save_figure

Env = gymnasium.Env[Any, Any]


def run(policy: Any, env: Env, places: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Run one episode: the loop that fits any Gymnasium environment.

    Args:
        policy: Anything with Stable-Baselines3's `predict`.
        env: The maze.
        places: Options of `reset`: start and goal.

    Returns:
        Observations `[steps + 1, observation]` and rewards `[steps]`.
    """
    observation, _ = env.reset(options=places)
    observations, rewards = [observation["observation"]], []
    state, truncated = None, False
    while not truncated:
        action, state = policy.predict(observation, state, deterministic=True)
        observation, reward, _, truncated, _ = env.step(action)
        observations.append(observation["observation"])
        rewards.append(float(reward))
    return np.stack(observations), np.array(rewards)


def arrival(rewards: np.ndarray) -> str:
    """Return the first env step that ended at the goal, in words."""
    inside = np.flatnonzero(rewards)
    return f"{inside[0] + 1} env steps" if len(inside) else "not in this episode"


def main(
    planner: str = "multi2d-large",
    env_id: str = "diffuser_envs/Multi2D-Large-v1",
    *,
    start: tuple[float, float] = (-4.5, -3.0),
    goal: tuple[float, float] = (4.5, 3.0),
    seed: int = 0,
    picture: Path = Path("demo/plan_in_a_maze.png"),
) -> None:
    """Plan, follow the plan, draw it, and compare it with the demonstrator.

    Args:
        planner: A shipped planner, or a folder.
        env_id: The maze it was trained for.
        start: Where to start, in meters.
        goal: Where to go, in meters.
        seed: Fixes the noise that the plan is made from.
        picture: Where to save the picture.
    """
    policy = DiffuserPolicy.from_pretrained(planner, seed=seed)
    env = gymnasium.make(env_id)
    places = {"start": start, "goal": goal}
    observation, _ = env.reset(options=places)
    plan = policy.plan(observation)
    path, rewards = run(policy, env, places)  # deterministic: it follows this very plan
    scene = Scene.of(env, policy.planner.layout, observation)
    save_figure(plan_figure(plan, scene, rollout=path), picture)
    demonstrator = diffuser_envs.WaypointDemonstrator.from_env(env)
    _, demonstrated = run(demonstrator, env, places)
    env.close()

    score, reference = (
        diffuser_envs.get_normalized_score(env_id, sum(each))
        for each in (rewards, demonstrated)
    )
    print(f"picture:      {picture}")
    print(f"plan:         {plan.durations[0]} env steps to the goal")
    print(f"demonstrator: {arrival(demonstrated)}, score {reference:.1f}")
    print(f"planner:      {arrival(rewards)}, score {score:.1f}")


if __name__ == "__main__":
    tyro.cli(main)
