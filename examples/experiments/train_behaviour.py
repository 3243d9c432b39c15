"""Train the policies that record the locomotion datasets, with soft actor-critic.

D4RL's locomotion data was recorded by SAC policies: an *expert*, a *medium* one of
about a third of the expert's return, and the replay buffer of the training up to there.
This script trains all three robots in turns, a slice of steps each, and keeps the actor
after every slice. Those that `diffuser_envs/locomotion/actors` ships are chosen among
these files:

    pip install sbx-rl
    python examples/experiments/train_behaviour.py --steps 1000000 --out runs/behaviour

A run that is killed resumes from its last slice when the same command is given again.
`curve.json` of each robot has the returns of ten episodes after every slice.

One core does about 270 steps a second: 16 steps of the environment, then 8 gradient
steps in one compiled loop (half as many updates a step as the reference).

Source: Haarnoja et al., "Soft Actor-Critic" (2018); Fu et al., "D4RL" (2020), §4.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import safetensors.numpy

ROBOTS = ("Hopper-v5", "Walker2d-v5", "HalfCheetah-v5")
SETTINGS: dict[str, Any] = {
    "batch_size": 128,
    "buffer_size": 1_000_000,
    "gradient_steps": 8,
    "learning_starts": 10_000,
    "seed": 0,
    "train_freq": 16,
}
SEED = 90_000  # of the episodes that measure a policy


def main() -> None:
    """Train each robot for a slice at a time until all have had their steps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("robots", nargs="*", default=ROBOTS, help="environment ids")
    parser.add_argument("--steps", type=int, default=1_000_000, help="for each robot")
    parser.add_argument("--slice", type=int, default=50_000, help="steps at a time")
    parser.add_argument("--out", type=Path, default=Path("runs/behaviour"))
    given = parser.parse_args()
    while True:
        done = {robot: steps_done(given.out / robot) for robot in given.robots}
        robot = min(done, key=lambda robot: done[robot])
        if done[robot] >= given.steps:
            return
        train(robot, given.slice, given.out / robot)


def train(robot: str, steps: int, folder: Path) -> None:
    """Continue a robot's training by `steps`, and save it."""
    from sbx import SAC  # here, so that --help works without it

    env = gymnasium.make(robot)
    folder.mkdir(parents=True, exist_ok=True)
    before = curve(folder)
    done = steps_done(folder)
    if done:
        state = folder / f"state-{done:07d}"
        model = SAC.load(state / "model.zip", env=env)
        model.load_replay_buffer(state / "buffer.pkl")
    else:
        model = SAC("MlpPolicy", env, **SETTINGS)
    started = time.process_time()
    model.learn(steps, reset_num_timesteps=not done)
    seconds = time.process_time() - started
    returns = evaluate(model, robot)
    done = int(model.num_timesteps)

    name = f"{robot.partition('-')[0].lower()}-{done // 1000:04d}k.safetensors"
    safetensors.numpy.save_file(
        arrays(model.policy.actor_state.params["params"]),
        folder / name,
        metadata={"env_id": robot, "steps": str(done)},
    )
    state = folder / f"state-{done:07d}"
    state.mkdir(exist_ok=True)
    model.save(state / "model.zip")
    model.save_replay_buffer(state / "buffer.pkl")
    row = {"steps": done, "returns": returns, "cpu_seconds": round(seconds)}
    partial = folder / "curve.part"
    partial.write_text(json.dumps([*before, row]), encoding="utf-8")
    partial.replace(folder / "curve.json")  # now the slice counts
    for old in folder.glob("state-*"):
        if old != state:
            for file in old.iterdir():
                file.unlink()
            old.rmdir()
    mean = np.mean(returns)
    print(f"{robot}: {done:,} steps, return {mean:.0f}, {seconds:.0f} s", flush=True)


def evaluate(model: Any, robot: str, episodes: int = 10) -> list[float]:
    """Returns of the policy's mean actions."""
    env = gymnasium.make(robot)
    returns = []
    for episode in range(episodes):
        observation, _ = env.reset(seed=SEED + episode)
        total, ended = 0.0, False
        while not ended:
            action, _ = model.predict(observation, deterministic=True)
            observation, reward, terminated, truncated, _ = env.step(action)
            total += float(reward)
            ended = terminated or truncated
        returns.append(round(total, 1))
    env.close()
    return returns


def arrays(parameters: Any, prefix: str = "") -> dict[str, np.ndarray]:
    """Nested parameters as one flat dictionary, in half precision."""
    flat: dict[str, np.ndarray] = {}
    for name, value in parameters.items():
        if hasattr(value, "items"):
            flat |= arrays(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = np.asarray(value, np.float16)
    return flat


def curve(folder: Path) -> list[dict[str, Any]]:
    """One row for each slice so far."""
    file = folder / "curve.json"
    rows: list[dict[str, Any]] = (
        json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    )
    return rows


def steps_done(folder: Path) -> int:
    """Steps that a robot has been trained for."""
    rows = curve(folder)
    return int(rows[-1]["steps"]) if rows else 0


if __name__ == "__main__":
    main()
