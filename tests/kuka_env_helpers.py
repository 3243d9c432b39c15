"""Moves of the block-stacking arm that tests are made of."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

from diffuser_envs.kuka.arm import HOME, inverse, tool_position
from diffuser_envs.kuka.columns import FloatArray

IDS = {
    name.lower(): f"diffuser_envs/KukaStack-{name}-v1"
    for name in ("Unconditional", "Conditional", "Rearrangement")
}
TOP = np.array([0.0, 0.0, 0.03])  # from a block's center to its upper face
STILL = np.append(HOME, 0.0).astype(np.float32)
NOWHERE = np.zeros(3)
# Four places in the work sector, 0.2 m and more apart.
ROW = np.array([[0.5, y, 0.03] for y in (-0.3, -0.1, 0.1, 0.3)])


def make(task: str = "unconditional", **settings: Any) -> gymnasium.Env[Any, Any]:
    """Make an environment without its step limit unless one is given."""
    settings.setdefault("max_episode_steps", -1)
    return gymnasium.make(IDS[task], **settings)


def state_of(observation: Any) -> npt.NDArray[np.float32]:
    """Return the 39 numbers, with or without a goal beside them."""
    if isinstance(observation, dict):
        return np.asarray(observation["observation"])
    return np.asarray(observation)


def random_actions(seed: int, steps: int) -> np.ndarray:
    """Draw actions, `[steps, 8]`."""
    env = make()
    space = env.action_space
    env.close()
    space.seed(seed)
    return np.stack([space.sample() for _ in range(steps)])


class Mover:
    """Drives the tool of one environment.

    Args:
        env: Is reset by whoever uses this.
        observation: Its latest.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], observation: Any) -> None:
        self.env = env
        self.state = state_of(observation)
        self.reward = 0.0
        self.info: dict[str, Any] = {}
        self.states = [self.state]

    def block(self, index: int) -> FloatArray:
        """Return where a block is, `[3]`."""
        start = 7 + 8 * index
        return self.state[start : start + 3].astype(np.float64)

    def flag(self, index: int) -> float:
        """Return whether a block is held."""
        return float(self.state[14 + 8 * index])

    def act(self, action: npt.ArrayLike) -> None:
        """Take one step."""
        observation, reward, _, _, self.info = self.env.step(np.asarray(action))
        self.reward = float(reward)
        self.state = state_of(observation)
        self.states.append(self.state)

    def go(self, goal: npt.ArrayLike, *, grip: bool, steps: int = 15) -> None:
        """Move the tip of the tool around the arm, down and out, all at once."""
        tip = tool_position(self.state[:7])
        ends = np.stack([_cylindrical(tip), _cylindrical(goal)])
        for part in np.linspace(0.0, 1.0, steps + 1)[1:]:
            radius, azimuth, height = (1.0 - part) * ends[0] + part * ends[1]
            way = radius * np.cos(azimuth), radius * np.sin(azimuth), height
            joints = inverse(way)
            self.act(np.append(joints, float(grip)).astype(np.float32))

    def pick(self, index: int, offset: FloatArray = NOWHERE) -> None:
        """Take a block and lift it; `offset` is of the tip from its upper face."""
        above = self.block(index) * (1.0, 1.0, 0.0) + np.array([0.0, 0.0, 0.4])
        self.go(above + offset, grip=False, steps=25)
        touch = self.block(index) + TOP + offset
        self.go(touch, grip=False)
        self.go(touch, grip=True, steps=2)
        self.go(above + offset, grip=True)

    def place(self, center: npt.ArrayLike) -> None:
        """Put the held block down with its center there, and withdraw."""
        held = int(self.info["held"])
        grip = tool_position(self.state[:7]) - self.block(held)
        goal = np.asarray(center) + grip
        above = goal * (1.0, 1.0, 0.0) + np.array([0.0, 0.0, 0.4])
        self.go(above, grip=True, steps=25)
        self.go(goal, grip=True)
        self.go(goal, grip=False, steps=2)
        self.go(above, grip=False)

    def stack(self, top: int, bottom: int) -> None:
        """Put one block on another."""
        self.pick(top)
        self.place(self.block(bottom) + np.array([0.0, 0.0, 0.061]))


def _cylindrical(point: npt.ArrayLike) -> FloatArray:
    x, y, z = np.asarray(point, dtype=np.float64)
    return np.array([np.hypot(x, y), np.arctan2(y, x), z])


def start(
    env: gymnasium.Env[Any, Any], *, seed: int = 0, **options: Any
) -> tuple[Mover, Any]:
    """Reset an environment; return a mover and the observation."""
    observation, _ = env.reset(seed=seed, options=options or None)
    return Mover(env, observation), observation
