"""Pictures of the shipped planner at work: one episode of each block-stacking task.

    python examples/experiments/block_stacking_pictures.py \
        --picture demo/block_stacking.png

There is a row for each task, from the start to a second after its goal is reached. The
outlines are the goal of a rearrangement; the small tower is the order to build.
"""

from __future__ import annotations

from pathlib import Path

import gymnasium
import numpy as np
import torch
import tyro
from PIL import Image

import diffuser_envs  # noqa: F401 (registers the environments)
from diffuser_policy import DiffuserPolicy

TASKS = ("Unconditional", "Conditional", "Rearrangement")
WIDTH, HEIGHT = 240, 180
REST = 20  # env steps that are shown after success


def episode(
    policy: DiffuserPolicy, task: str, seed: int
) -> tuple[list[Image.Image], float]:
    """Return a picture of every fourth env step, and the score.

    Args:
        policy: Guided by the environment's goal, if it has one.
        task: One of the three.
        seed: Of the episode.
    """
    env = gymnasium.make(
        f"diffuser_envs/KukaStack-{task}-v1",
        render_mode="rgb_array",
        width=WIDTH,
        height=HEIGHT,
    )
    observation, info = env.reset(seed=seed)
    state, done, still, step = policy.initial_state(1, np.array([seed])), False, 0, 0
    pictures = []
    while not done:
        if step % 4 == 0 and still <= REST:
            pictures.append(Image.fromarray(np.asarray(env.render())))
        action, state = policy.predict(observation, state)
        observation, reward, terminated, truncated, info = env.step(action)
        still = still + 1 if float(reward) >= 1.0 else 0
        done, step = terminated or truncated, step + 1
    env.close()
    return pictures, float(info["score"])


def main(
    *,
    seed: int = 20000,
    columns: int = 5,
    picture: Path = Path("demo/block_stacking.png"),
) -> None:
    """Run one episode of each task, and save a sheet of pictures.

    Args:
        seed: Of the episodes.
        columns: Pictures per task.
        picture: Where to save the sheet.
    """
    torch.set_num_threads(1)
    policy = DiffuserPolicy.from_pretrained("kuka-stack")
    sheet = Image.new("RGB", (columns * WIDTH, len(TASKS) * HEIGHT), "white")
    for row, task in enumerate(TASKS):
        pictures, score = episode(policy, task, seed)
        print(f"{task}: score {score:.0f}")
        for column, k in enumerate(np.linspace(0, len(pictures) - 1, columns)):
            sheet.paste(pictures[round(k)], (column * WIDTH, row * HEIGHT))
    picture.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(96).save(picture, optimize=True)


if __name__ == "__main__":
    tyro.cli(main)
