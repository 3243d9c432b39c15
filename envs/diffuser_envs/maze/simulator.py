"""The mazes' dynamics for many balls side by side.

    states = MazeSimulator(env.unwrapped.model).simulate(states, actions)

The same as `Maze2DEnv.step`: actions clipped to [-1, 1], velocities to +- 5 m/s before
every step, one MuJoCo step of the same model. What remains is MuJoCo's contact solver,
which is iterative and begins with the solution of the step before: a state alone does
not hold that one, so along walls the last digits differ.
"""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
import numpy.typing as npt
from mujoco import rollout

from diffuser_envs.errors import MazeActionError, MazeObservationError

SPEED_LIMIT = 5.0  # m/s, clipped by the environment before every step
STATE_SIZE, ACTION_SIZE = 4, 2


class MazeSimulator:
    """Where pushes lead; keeps nothing between two calls."""

    def __init__(self, model: Any) -> None:
        """Reserve memory for one simulation.

        Args:
            model: The MuJoCo model of a maze, read only.
        """
        self._model, self._data = model, mujoco.MjData(model)

    def simulate(
        self, states: npt.ArrayLike, actions: npt.ArrayLike
    ) -> npt.NDArray[np.float64]:
        """Return the states after every action.

        Args:
            states: (x, y, vx, vy) to start from, shape `[n, 4]`, meters and m/s.
            actions: Forces, shape `[n, steps, 2]`; clipped to [-1, 1].

        Returns:
            Shape `[n, steps, 4]`, meters and m/s.

        Raises:
            MazeObservationError: States of another shape, or not finite.
            MazeActionError: Actions of another shape, or not finite.
        """
        first = np.asarray(states, dtype=np.float64)
        if first.ndim != 2 or first.shape[1] != STATE_SIZE:
            raise MazeObservationError(
                f"states have shape (n, {STATE_SIZE}), not {first.shape}"
            )
        if not np.isfinite(first).all():
            raise MazeObservationError("states are finite; some of these are not")
        forces = np.asarray(actions, dtype=np.float64)
        if forces.ndim != 3 or forces.shape[::2] != (len(first), ACTION_SIZE):
            raise MazeActionError(
                f"actions for {len(first)} states have shape ({len(first)}, steps, "
                f"{ACTION_SIZE}), not {forces.shape}"
            )
        if not np.isfinite(forces).all():
            raise MazeActionError("actions are finite; some of these are not")
        return self._rollout(first, forces.clip(-1.0, 1.0))

    def _rollout(
        self, first: npt.NDArray[np.float64], forces: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.float64]:
        num_rows, num_steps = forces.shape[:2]
        states = np.empty((num_rows, num_steps, STATE_SIZE))
        if not num_rows:
            return states
        full = np.zeros((num_rows, 1 + STATE_SIZE))  # time, position, velocity
        full[:, 1:] = first
        for step in range(num_steps):
            full[:, 3:] = full[:, 3:].clip(-SPEED_LIMIT, SPEED_LIMIT)
            after, _ = rollout.rollout(
                self._model, self._data, full, forces[:, step, None]
            )
            full = after[:, -1]
            states[:, step] = full[:, 1:]
        return states
