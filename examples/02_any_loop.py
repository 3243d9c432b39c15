"""One policy in four loops: Gymnasium, make_vec, Stable-Baselines3, and our evaluator.

    python examples/02_any_loop.py
    python examples/02_any_loop.py --planner multi2d-large \
        --env-id diffuser_envs/Multi2D-Large-v1 --episodes 16

`predict` keeps Stable-Baselines3's contract: `state` holds what the policy remembers of
an episode, and the loop passes it back. Episode i is reset with seed i in every loop.
The last line gives the largest difference between the returns of one episode in two
loops. Batches may differ from single rows in the last bits of the arithmetic, and in
nothing else. It needs the extras `maze` and `sb3`.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import tyro
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

import diffuser_envs  # noqa: F401 (registers the mazes)
from diffuser_policy import DiffuserPolicy, evaluate


def plain_loop(policy: Any, env_id: str, episodes: int) -> np.ndarray:
    """Run one episode after another; return their returns `[episodes]`."""
    env = gymnasium.make(env_id)
    returns = np.zeros(episodes)
    for episode in range(episodes):
        observation, _ = env.reset(seed=episode)
        state, truncated = None, False
        while not truncated:
            action, state = policy.predict(observation, state, deterministic=True)
            observation, reward, _, truncated, _ = env.step(action)
            returns[episode] += float(reward)
    env.close()
    return returns


def vector_loop(policy: Any, env_id: str, episodes: int) -> np.ndarray:
    """Run all episodes side by side; return their returns `[episodes]`.

    A loop over many episodes also passes `episode_start`, the rows whose observation is
    an episode's first. In the default autoreset mode those are the rows that were done
    one step *before*.
    """
    envs = gymnasium.make_vec(env_id, num_envs=episodes)
    returns, starting = np.zeros(episodes), np.ones(episodes, np.bool_)
    running, done = starting.copy(), ~starting
    observations, _ = envs.reset(seed=0)
    state = None
    while running.any():
        actions, state = policy.predict(observations, state, starting, True)
        starting = done
        observations, rewards, terminated, truncated, _ = envs.step(actions)
        done = terminated | truncated
        returns += rewards * running
        running &= ~done
    envs.close()
    return returns


def sb3_loop(policy: Any, env_id: str, episodes: int) -> np.ndarray:
    """Let Stable-Baselines3 run the episodes; return their returns `[episodes]`."""
    envs = make_vec_env(env_id, n_envs=episodes, seed=0)
    returns, _ = evaluate_policy(
        policy, envs, n_eval_episodes=episodes, return_episode_rewards=True
    )
    envs.close()
    return np.array(returns)


def main(
    planner: str = "multi2d-umaze",
    env_id: str = "diffuser_envs/Multi2D-UMaze-v1",
    *,
    episodes: int = 4,
) -> None:
    """Run the same episodes in four loops and compare their returns.

    Args:
        planner: A shipped planner, or a folder.
        env_id: The environment it was trained for.
        episodes: How many to run, side by side where the loop can.
    """
    policy = DiffuserPolicy.from_pretrained(planner)
    evaluation = evaluate(policy, env_id, episodes=episodes, deterministic=True)
    returns = {
        "gymnasium.make": plain_loop(policy, env_id, episodes),
        "gymnasium.make_vec": vector_loop(policy, env_id, episodes),
        "stable_baselines3": sb3_loop(policy, env_id, episodes),
        "diffuser_policy": evaluation.returns,
    }
    for name, each in returns.items():
        print(f"{name:<20}", *(f"{value:6.0f}" for value in each))
    largest = np.ptp(list(returns.values()), axis=0).max()
    print(f"largest difference between loops in {episodes} episodes: {largest:.1f}")


if __name__ == "__main__":
    tyro.cli(main)
