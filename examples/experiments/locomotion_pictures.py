"""A film of a robot that walks, and of where its planner expects it to be.

    diffuser-policy train --dataset diffuser/walker2d-medium-expert-v1 \
        --window.horizon 4 --num-steps 8000 --output runs/walker2d-4
    MUJOCO_GL=egl python examples/experiments/locomotion_pictures.py \
        --planner runs/walker2d-4 --picture examples/images/walker2d.gif

The planner needs plans of two env steps or more: shorter ones hold no next state. The
pale robots are planned states, each `every` env steps after the one before. Where a
plan is too short for that, the next one is made from its last state, and so on: the
simulator has no say in where they are. Observations of these robots are their
coordinates but the first, and their velocities. The first coordinate is how far they
have come; it is the sum of its velocity. `MUJOCO_GL=egl` renders without a display.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
import torch
import tyro
from PIL import Image

from diffuser_policy import DiffuserPolicy

PALE = (0.3, 0.75, 1.0)
ALPHAS = (0.6, 0.2)  # of the first and of the last planned state
COLORS = 20  # fewer make a smaller file
DISTANCE = 2.8  # of the camera, in meters


def imagined(
    policy: DiffuserPolicy, observation: np.ndarray, num_steps: int
) -> np.ndarray:
    """Return the next states `[num_steps, observation]` that the planner expects.

    Args:
        policy: Its plans have states.
        observation: `[observation]` where the robot is.
        num_steps: Env steps to look ahead.
    """
    states = [np.asarray(observation, np.float32)]
    while len(states) <= num_steps:
        states.extend(policy.plan(states[-1]).path()[1:])
    return np.array(states[1 : num_steps + 1])


class Stage:
    """The robot on its ground, with pale copies of it."""

    def __init__(self, env: gymnasium.Env[Any, Any], width: int, height: int) -> None:
        """Make a renderer.

        Args:
            env: Gymnasium's Walker2d, Hopper or HalfCheetah.
            width: Of the pictures, in pixels.
            height: Of the pictures, in pixels.
        """
        base: Any = env.unwrapped
        self.model, self.data, self.dt = base.model, base.data, float(base.dt)
        self.copy = mujoco.MjData(self.model)
        self.renderer = mujoco.Renderer(self.model, height, width)
        self.camera = mujoco.MjvCamera()
        self.camera.distance, self.camera.azimuth = DISTANCE, 90.0
        mujoco.mj_forward(self.model, self.copy)  # standing
        self.camera.elevation, self.height = -8.0, 0.65 * self.copy.xpos[1, 2]

    def picture(self, states: np.ndarray, every: int) -> np.ndarray:
        """Return what a camera beside the robot sees, `[height, width, 3]`.

        Args:
            states: `[num_steps, observation]` expected next.
            every: Env steps between two that are shown.
        """
        scene, num_coordinates = self.renderer.scene, self.model.nq
        ahead = DISTANCE / 6
        self.camera.lookat[:] = self.data.qpos[0] + ahead, 0.0, self.height
        self.renderer.update_scene(self.data, camera=self.camera)
        scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        velocity = states[:, num_coordinates - 1]
        way = self.data.qpos[0] + np.cumsum(velocity) * self.dt
        shown = range(every - 1, len(states), every)
        for number, alpha in zip(shown, np.linspace(*ALPHAS, len(shown)), strict=True):
            self.copy.qpos[:] = way[number], *states[number, : num_coordinates - 1]
            mujoco.mj_forward(self.model, self.copy)
            first = scene.ngeom
            mujoco.mjv_addGeoms(
                self.model,
                self.copy,
                mujoco.MjvOption(),
                mujoco.MjvPerturb(),
                mujoco.mjtCatBit.mjCAT_DYNAMIC.value,
                scene,
            )
            for index in range(first, scene.ngeom):
                scene.geoms[index].rgba[:] = *PALE, alpha
                scene.geoms[index].emission = 0.5  # visible in the shade as well
        return np.asarray(self.renderer.render())


def main(
    planner: str,
    *,
    env_id: str = "Walker2d-v5",
    seed: int = 0,
    start: int = 300,
    seconds: float = 0.95,
    slower: float = 3.0,
    num_ghosts: int = 3,
    every: int = 9,
    rate: int = 12,
    size: tuple[int, int] = (230, 140),
    picture: Path = Path("demo/walk.gif"),
) -> None:
    """Run an episode, and film a part of it.

    Args:
        planner: A shipped planner, or a folder.
        env_id: The environment that it was trained for.
        seed: Of the episode.
        start: Env steps before the film begins.
        seconds: What is filmed, in the time of the robot.
        slower: Times that the film is slower than the robot.
        num_ghosts: Planned states that are shown.
        every: Env steps between them.
        rate: Pictures a second.
        size: Width and height of the film, in pixels.
        picture: Where to save the film.
    """
    torch.set_num_threads(1)
    policy = DiffuserPolicy.from_pretrained(planner)
    if policy.planner.horizons.max_planning_steps < 2:
        raise SystemExit(f"Plans of {planner} are of one env step: no next states.")
    env = gymnasium.make(env_id)
    stage = Stage(env, *size)
    between = max(1, round(1 / (rate * slower * stage.dt)))  # env steps
    observation, _ = env.reset(seed=seed)
    state, earned, frames = None, 0.0, []
    off = [np.zeros(0)]  # what the coordinates turned out to be, minus expectations
    expected: dict[int, np.ndarray] = {}
    for step in range(start + round(seconds / stage.dt)):
        if step in expected:
            off.append(np.abs(expected.pop(step) - observation)[: stage.model.nq - 1])
        if step >= start and (step - start) % between == 0:
            states = imagined(policy, observation, num_ghosts * every)
            expected[step + len(states)] = states[-1]
            frames.append(Image.fromarray(stage.picture(states, every)))
        action, state = policy.predict(observation, state)
        observation, reward, terminated, truncated, _ = env.step(action)
        earned += float(reward)
        if terminated or truncated:
            break
    env.close()
    if not frames:
        raise SystemExit(f"The robot fell after {step + 1} env steps.")
    picture.parent.mkdir(parents=True, exist_ok=True)
    whole = Image.fromarray(np.concatenate([*map(np.asarray, frames[::10])]))
    palette = whole.quantize(COLORS)
    first, *others = (
        frame.quantize(COLORS, palette=palette, dither=Image.Dither.NONE)
        for frame in frames
    )
    first.save(
        picture,
        save_all=True,
        append_images=others,
        duration=round(1000 / rate),
        loop=0,
        optimize=True,
    )
    error = float(np.median(np.concatenate(off))) if len(off) > 1 else float("nan")
    print(
        f"{len(frames)} pictures, {picture.stat().st_size / 1e6:.2f} MB; a return of "
        f"{earned:,.0f} in {step + 1} env steps. {num_ghosts * every} env steps ahead, "
        f"coordinates are off by {error:.3f} in the median (meters and radians)."
    )


if __name__ == "__main__":
    tyro.cli(main)
