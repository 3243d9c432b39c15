"""How high a maze score can be at all: a lower bound on the time to the goal.

    python examples/experiments/arrival_bound.py --episodes 100

No force moves the ball faster than v(t) = min(v_0 + a t, v_max) along either axis,
so after t seconds it is at most s(t), the integral of v, away from its start in the
Chebyshev metric, measured through free space. With D the Chebyshev length of the
shortest way from the start to the goal disc, arrival takes at least the t with
s(t) = D. The bound ignores that corners force the ball to brake; nothing that moves
in this simulator can be faster.

a = force / mass, v_max = 5 m/s (the clip of PointMaze and D4RL) plus one step of a.
Ways are found by breadth-first search on a grid of 2.5 cm with diagonal steps. The
episodes are those of `diffuser-policy evaluate` with the same seed.
"""

from __future__ import annotations

import argparse
from collections import deque

import gymnasium as gym
import numpy as np

import diffuser_envs  # noqa: F401 (registers the environments)

GRID = 0.025  # m
BALL_RADIUS = 0.1  # m
GOAL_RADIUS = 0.5  # m
TIME_STEP = 0.01  # s
SPEED_LIMIT = 5.0  # m/s, clipped before every step
NEIGHBOURS = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j]


def main() -> None:
    """Print the bound on arrival time and score for every environment."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print("environment                      arrival >=   score <=")
    for family in ("Maze2D", "Multi2D"):
        for layout in ("UMaze", "Medium", "Large"):
            env_id = f"diffuser_envs/{family}-{layout}-v1"
            steps, score = bounds(env_id, arguments.episodes, arguments.seed)
            print(f"{env_id:32} {steps.mean():8.1f}   {score.mean():8.1f}")


def bounds(env_id: str, num_episodes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the least env steps to the goal and the highest score per episode.

    Args:
        env_id: One of the maze environments.
        num_episodes: Episodes are reset with `seed`, `seed + 1`, …
        seed: First seed.
    """
    env = gym.make(env_id)
    maze = env.unwrapped
    model = maze.get_wrapper_attr("model")
    acceleration = float(model.actuator_gear[0, 0] / model.body_mass.max())
    steps = []
    for episode in range(num_episodes):
        observation, _ = env.reset(seed=seed + episode)
        start = observation["observation"]
        distance = chebyshev_distance(
            np.array(maze.get_wrapper_attr("maze_map")),
            start[:2],
            observation["desired_goal"],
        )
        steps.append(least_steps(distance, np.abs(start[2:]).max(), acceleration))
    limit = env.spec.max_episode_steps if env.spec else None
    arrival = np.array(steps)
    returns = (limit or 0) - arrival + 1
    scores = maze.get_wrapper_attr("get_normalized_score")(returns)
    env.close()
    return arrival, np.asarray(scores)


def chebyshev_distance(
    maze_map: np.ndarray, start: np.ndarray, goal: np.ndarray
) -> float:
    """Return the length in meters of the shortest way into the goal disc.

    Args:
        maze_map: `[rows, columns]`, 1 is a wall.
        start: `[2]` position in meters.
        goal: `[2]` position in meters.
    """
    rows, columns = maze_map.shape
    center = np.array([rows / 2, columns / 2])
    down, right = np.mgrid[GRID / 2 : rows : GRID, GRID / 2 : columns : GRID]
    points = np.stack([down, right], axis=-1)
    free = np.ones(down.shape, bool)
    for i, j in [(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)]:
        cells = np.floor(points + BALL_RADIUS * np.array([i, j])).astype(int)
        cells = np.clip(cells, 0, [rows - 1, columns - 1])
        free &= maze_map[cells[..., 0], cells[..., 1]] == 0
    goal_point = center + np.array([-goal[1], goal[0]])
    start_point = center + np.array([-start[1], start[0]])
    inside = free & (np.linalg.norm(points - goal_point, axis=-1) <= GOAL_RADIUS)
    source = np.floor(start_point / GRID).astype(int)
    return GRID * grid_distance(free, inside, (int(source[0]), int(source[1])))


def grid_distance(free: np.ndarray, inside: np.ndarray, source: tuple[int, int]) -> int:
    """Return the fewest grid steps, diagonal ones included, from source into a set."""
    if inside[source]:
        return 0
    distance = np.where(free, -1, -2)
    distance[source] = 0
    queue = deque([source])
    while queue:
        here = queue.popleft()
        for i, j in NEIGHBOURS:
            there = (here[0] + i, here[1] + j)
            if distance[there] == -1:
                distance[there] = distance[here] + 1
                if inside[there]:
                    return int(distance[there]) - 1  # the grid may be one off
                queue.append(there)
    raise ValueError(f"The goal cannot be reached from grid point {source}.")


def least_steps(distance: float, speed: float, acceleration: float) -> int:
    """Return the fewest env steps in which the ball can cover a distance.

    Args:
        distance: Meters.
        speed: Initial speed in meters per second.
        acceleration: Highest acceleration in meters per second squared.
    """
    steps, covered = 0, 0.0
    while covered < distance:
        speed = min(speed, SPEED_LIMIT) + acceleration * TIME_STEP
        covered += speed * TIME_STEP
        steps += 1
    return max(steps, 1)


if __name__ == "__main__":
    main()
