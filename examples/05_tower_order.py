"""A tower in an order of your choice: one planner, and two guides it never saw.

    python examples/05_tower_order.py
    python examples/05_tower_order.py --order 2 0 3 1 --seed 7 \
        --gif tower.gif --picture tower.png

The shipped planner was trained on towers in any order. `Contact` makes its plans grasp
the next block, `Place` makes them leave it on the tower:

    Contact(tower=(2, 0, 3, 1)) + Place(tower=(2, 0, 3, 1))

Both see from the first state of a plan how much of the tower stands. Add your own guide
to the sum in the same way. The environment gets the same order as its goal, so its
score says whether the tower stands: 100 if all of it does.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
import tyro
from PIL import Image

import diffuser_envs  # noqa: F401 (registers the environments)
from diffuser_envs.kuka.columns import NUM_BLOCKS
from diffuser_envs.kuka.guides import Contact, Place
from diffuser_envs.kuka.tasks import tower_goal
from diffuser_policy import DiffuserPolicy
from diffuser_policy.guides.guide import Guide

ENV_ID = "diffuser_envs/KukaStack-Conditional-v1"
STEPS_PER_SECOND = 20

Env = gymnasium.Env[Any, Any]

NUM_CELLS = 8  # pictures on the contact sheet
COLUMNS = 4


def tower_guide(order: tuple[int, ...]) -> Guide:
    """Return the guide that asks for a tower.

    Args:
        order: Numbers of the blocks, bottom to top.
    """
    return Contact(tower=order) + Place(tower=order)


def run(
    policy: DiffuserPolicy, env: Env, order: tuple[int, ...], *, seed: int, every: int
) -> tuple[list[np.ndarray], dict[str, Any]]:
    """Run one episode.

    Args:
        policy: Guided.
        env: Renders pictures.
        order: The order that the environment scores, bottom to top.
        seed: Of the episode.
        every: Env steps between pictures.

    Returns:
        Pictures `[height, width, 3]`, up to a second after the tower is complete, and
        the last `info`.
    """
    observation, info = env.reset(seed=seed, options={"goal": tower_goal(order)})
    state, step, done = policy.initial_state(1, np.array([seed])), 0, False
    still = 0  # steps that the tower has been standing
    pictures = [np.asarray(env.render())]
    while not done:
        action, state = policy.predict(observation, state)
        observation, _, terminated, truncated, info = env.step(action)
        step, done = step + 1, bool(terminated or truncated)
        still = still + 1 if info["success"] else 0
        if step % every == 0 and still <= STEPS_PER_SECOND:
            pictures.append(np.asarray(env.render()))
    return pictures, info


def save_pictures(
    pictures: list[np.ndarray], *, gif: Path, sheet: Path, fps: float
) -> None:
    """Write an animation, and some of its pictures side by side.

    Args:
        pictures: `[height, width, 3]` each.
        gif: Of the animation.
        sheet: Of the contact sheet.
        fps: Pictures per second.
    """
    from diffuser_envs.kuka.rendering import save_gif

    save_gif(pictures, gif, fps=fps)
    chosen = np.linspace(0, len(pictures) - 1, min(NUM_CELLS, len(pictures)))
    height, width, _ = pictures[0].shape
    rows = math.ceil(len(chosen) / COLUMNS)
    page = Image.new("RGB", (COLUMNS * width, rows * height), "white")
    for cell, index in enumerate(chosen.round().astype(int).tolist()):
        row, column = divmod(cell, COLUMNS)
        page.paste(Image.fromarray(pictures[index]), (column * width, row * height))
    sheet.parent.mkdir(parents=True, exist_ok=True)
    page.quantize(64).save(sheet, optimize=True)


def main(
    planner: str = "kuka-stack",
    *,
    order: tuple[int, ...] = (3, 1, 0, 2),
    seed: int = 0,
    steps: int = 384,
    every: int = 8,
    gif: Path = Path("demo/tower_order.gif"),
    picture: Path = Path("demo/tower_order.png"),
) -> None:
    """Build the tower, and write an animation and a sheet of pictures.

    Args:
        planner: The shipped planner, or a folder.
        order: Numbers of the blocks, bottom to top.
        seed: Of the episode and of the planner.
        steps: Env steps of the episode, of 0.05 s.
        every: Env steps between pictures.
        gif: Where to save the animation, which plays at twice the speed.
        picture: Where to save the sheet.
    """
    if sorted(order) != list(range(NUM_BLOCKS)):
        raise SystemExit(f"--order names each block of 0..{NUM_BLOCKS - 1} once.")
    torch.set_num_threads(1)
    policy = DiffuserPolicy.from_pretrained(planner, seed=seed)
    policy = policy.with_guide(tower_guide(order))
    env = gymnasium.make(
        ENV_ID,
        render_mode="rgb_array",
        width=280,
        height=210,
        max_episode_steps=steps,
    )
    pictures, info = run(policy, env, order, seed=seed, every=every)
    env.close()
    fps = 2 * STEPS_PER_SECOND / every
    save_pictures(pictures, gif=gif, sheet=picture, fps=fps)
    if info["failure"] is not None:
        print(f"not all of it: {info['failure']}")
    print(f"order {order}, bottom to top: score {info['score']:.0f} of 100")


if __name__ == "__main__":
    tyro.cli(main)
