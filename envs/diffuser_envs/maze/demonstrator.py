"""D4RL's waypoint controller, which produced maze2d's data and reference scores.

It follows the shortest way over cells and pushes the ball from waypoint to waypoint
with a proportional-derivative law (Fu et al., 2020):

    force = clip(k_p (waypoint - position) + k_d velocity, -1, 1),  k_p = 10, k_d = -1

A waypoint counts as solved within 0.1 m, and control moves on at the next step. The
last waypoint is the goal. The others are the points of their cells, each moved by
U(0, 0.2) toward the middle of the corridor in both directions, so that demonstrations
vary (`diffuser_envs.maze.layouts` shows why the points are off the middle).

The controller never brakes early: it crosses waypoints at speed, reaches the goal in
flight and then holds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import gymnasium
import numpy as np
import numpy.typing as npt

from diffuser_envs.errors import (
    MazeObservationError,
    MazeOptionError,
    MazePositionError,
    check_number,
)
from diffuser_envs.maze.layouts import (
    Cell,
    FloatArray,
    MazeLayout,
    layout_of,
    neighbors,
    steps_to,
)
from diffuser_envs.row_memories import State, row_memories

Point: TypeAlias = tuple[float, float]

# If two ways are equally short, D4RL prefers these moves, in this order.
_MOVES = ((0, -1), (0, 1), (-1, 0), (1, 0))
_FIELDS = ("observation", "desired_goal")
_LEAST_THRESHOLD = 0.01  # meters; a ball in flight would miss a smaller disc


@dataclass(slots=True)
class RouteMemory:
    """What the demonstrator remembers of one environment between steps.

    Attributes:
        goal: Goal (x, y) of the route, meters; None before the first step.
        waypoints: Points (x, y) to visit, the goal last, meters.
        index: Number of the next waypoint.
    """

    goal: Point | None = None
    waypoints: tuple[Point, ...] = ()
    index: int = 0


class WaypointDemonstrator:
    """Reach any goal of a maze by waypoints; follows Stable-Baselines3's `predict`.

    All memory between calls is in `state` (or `RouteMemory`). Random numbers are a
    function of `seed` and the observation, so the actions for one environment do not
    depend on the others in its batch.

    Args:
        layout: The maze; see also `from_env`.
        p_gain: Force per meter from the waypoint.
        d_gain: Force per meter per second.
        threshold: Distance in meters within which a waypoint is solved, or a goal
            reached.
        waypoint_jitter: Side in meters of the square in which a waypoint is drawn.
        action_noise: Standard deviation of Gaussian noise on the force; D4RL's "noisy"
            variant and Minari's data use 0.5.
        snap_goal: Steer to the point of the goal's cell instead of the goal itself, as
            D4RL does.
        keep_route: Keep the route when an episode starts, as for D4RL's reference
            score; only another goal makes a new route.
        seed: Fixes jitter and noise.

    Raises:
        MazeOptionError: A setting is no finite number or out of its range.
    """

    def __init__(
        self,
        layout: MazeLayout,
        *,
        p_gain: float = 10.0,
        d_gain: float = -1.0,
        threshold: float = 0.1,
        waypoint_jitter: float = 0.2,
        action_noise: float = 0.0,
        snap_goal: bool = False,
        keep_route: bool = False,
        seed: int = 0,
    ) -> None:
        cell, offset = layout.cell_size, layout.cell_offset
        width = f"meters; a cell is {cell:g} m wide"
        square = cell / 2 + offset if offset else cell  # see `_plan`
        check = partial(check_number, error=MazeOptionError)
        check("p_gain", p_gain, least=0.0)
        check("d_gain", d_gain)
        check("threshold", threshold, least=_LEAST_THRESHOLD, most=cell, why=width)
        check("waypoint_jitter", waypoint_jitter, least=0.0, most=square, why=width)
        check("action_noise", action_noise, least=0.0)
        check("seed", seed, least=0, whole=True)
        self.layout = layout
        self.p_gain = p_gain
        self.d_gain = d_gain
        self.threshold = threshold
        self.waypoint_jitter = waypoint_jitter
        self.action_noise = action_noise
        self.snap_goal = snap_goal
        self.keep_route = keep_route
        self.seed = int(seed)
        self._next_cells: dict[Cell, dict[Cell, Cell]] = {}

    @classmethod
    def from_env(
        cls,
        env: gymnasium.Env[Any, Any],
        **settings: Any,
    ) -> WaypointDemonstrator:
        """Make a demonstrator for the maze of an environment.

        Args:
            env: One of our mazes or a Gymnasium-Robotics PointMaze, wrapped or not.
            **settings: The constructor's keyword arguments.

        Raises:
            UnsupportedEnvError: The environment is not a maze.
            MazeOptionError: A setting is no finite number or out of its range.
        """
        return cls(layout_of(env), **settings)

    @staticmethod
    def default_steps(env: gymnasium.Env[Any, Any]) -> int:
        """Return how many env steps are usually recorded: as many as D4RL has."""
        return layout_of(env).dataset_steps

    def predict(
        self,
        observation: Mapping[str, npt.ArrayLike],
        state: State | None = None,
        episode_start: npt.ArrayLike | None = None,
        deterministic: bool = False,
    ) -> tuple[npt.NDArray[np.float32], State]:
        """Choose actions.

        Args:
            observation: Goal dictionary of one environment or of a batch (`[n, ...]`).
            state: The state that the last call returned; None makes new routes.
            episode_start: Which rows start an episode, shape `[n]`.
            deterministic: Leave the action noise out.

        Returns:
            Actions, shape `[2]` or, for a batch, `[n, 2]`, and the next state.

        Raises:
            MazeObservationError: The observation is not a finite goal dictionary, or
                the state or `episode_start` is for another number of environments.
            MazePositionError: A goal is not in a free cell or cannot be reached.
        """
        states, goals, batched = read_observation(observation, size=4)
        memories = row_memories(
            state,
            None if self.keep_route else episode_start,
            len(states),
            new=RouteMemory,
            error=MazeObservationError,
        )
        actions = np.empty((len(states), 2), dtype=np.float32)
        for row, (values, goal) in enumerate(zip(states, goals, strict=True)):
            actions[row] = self.act(
                values[:2],
                values[2:],
                goal,
                memories[row],
                deterministic=deterministic,
            )
        return (actions if batched else actions[0]), (memories,)

    def act(
        self,
        position: npt.ArrayLike,
        velocity: npt.ArrayLike,
        goal: npt.ArrayLike,
        memory: RouteMemory,
        *,
        deterministic: bool = False,
    ) -> npt.NDArray[np.float32]:
        """Choose the action for one environment and update its memory in place.

        Args:
            position: Ball (x, y), meters.
            velocity: Ball (vx, vy), meters per second.
            goal: Goal (x, y), meters.
            memory: The environment's; pass a new `RouteMemory()` at first.
            deterministic: Leave the action noise out.

        Returns:
            Force, shape `[2]`.

        Raises:
            MazePositionError: The goal is not in a free cell or cannot be reached.
        """
        x, y = _pair(position)
        vx, vy = _pair(velocity)
        target = _pair(goal)
        if memory.goal != target:
            memory.waypoints = self._plan((x, y), target)
            memory.goal, memory.index = target, 0
        waypoint = memory.waypoints[memory.index]
        last = memory.waypoints[-1]
        if (x - last[0]) ** 2 + (y - last[1]) ** 2 < self.threshold**2:
            waypoint = last
        dx, dy = waypoint[0] - x, waypoint[1] - y
        solved = dx * dx + dy * dy < self.threshold**2
        if solved and memory.index < len(memory.waypoints) - 1:
            memory.index += 1
        force = np.array(
            (self.p_gain * dx + self.d_gain * vx, self.p_gain * dy + self.d_gain * vy)
        )
        force = force.clip(-1.0, 1.0)
        if self.action_noise > 0.0 and not deterministic:
            noise = self._rng(x, y, vx, vy).standard_normal(2)
            force = (force + self.action_noise * noise).clip(-1.0, 1.0)
        return force.astype(np.float32)

    def has_reached(
        self, achieved_goal: npt.ArrayLike, desired_goal: npt.ArrayLike
    ) -> bool:
        """Return whether the ball is within `threshold` of the end of the route.

        This is when D4RL draws the next goal; the task's own success disc is larger.

        Args:
            achieved_goal: Ball (x, y), meters.
            desired_goal: Goal (x, y), meters.
        """
        x, y = _pair(achieved_goal)
        gx, gy = self._end(_pair(desired_goal))
        return (x - gx) ** 2 + (y - gy) ** 2 < self.threshold**2

    def cells_to_goal(self, position: npt.ArrayLike, goal: npt.ArrayLike) -> list[Cell]:
        """Return the cells of the shortest way, the ball's own cell first.

        Args:
            position: Ball (x, y), meters.
            goal: Goal (x, y), meters.

        Raises:
            MazePositionError: The goal is not in a free cell or cannot be reached.
        """
        x, y = _pair(position)
        gx, gy = _pair(goal)
        if not self.layout.is_free((gx, gy)):
            raise MazePositionError(f"goal {[gx, gy]} is not in a free cell")
        target = self.layout.xy_to_cell(gx, gy)
        if target not in self._next_cells:
            self._next_cells[target] = _next_cells(self.layout, target)
        following = self._next_cells[target]
        cell = self._ball_cell(x, y)
        cells = [cell]
        while cell != target:
            if cell not in following:
                raise MazePositionError(f"no way leads from {[x, y]} to {[gx, gy]}")
            cell = following[cell]
            cells.append(cell)
        return cells

    def _plan(self, position: Point, goal: Point) -> tuple[Point, ...]:
        cells = self.cells_to_goal(position, goal)[1:-1]
        rng = self._rng(*position, *goal)
        jitter = self.waypoint_jitter * rng.uniform(size=(len(cells), 2))
        if self.layout.cell_offset == 0.0:
            jitter -= 0.5 * self.waypoint_jitter
        waypoints = []
        for cell, (left, up) in zip(cells, jitter, strict=True):
            x, y = self.layout.cell_to_xy(cell)
            waypoints.append((float(x - left), float(y + up)))
        return (*waypoints, self._end(goal))

    def _end(self, goal: Point) -> Point:
        if not self.snap_goal:
            return goal
        return _pair(self.layout.cell_to_xy(self.layout.xy_to_cell(*goal)))

    def _ball_cell(self, x: float, y: float) -> Cell:
        if self.layout.is_free((x, y)):
            return self.layout.xy_to_cell(x, y)
        # Contacts are soft: a ball under pressure may lie a little inside a wall.
        distances = np.square(self.layout.free_points - (x, y)).sum(axis=1)
        return self.layout.free_cells[int(distances.argmin())]

    def _rng(self, *values: float) -> np.random.Generator:
        bits = np.array(values, dtype=np.float64).view(np.uint32)
        return np.random.default_rng([self.seed, *bits.tolist()])


def _pair(point: npt.ArrayLike) -> Point:
    x, y = np.asarray(point, dtype=np.float64).tolist()
    return x, y


def _next_cells(layout: MazeLayout, target: Cell) -> dict[Cell, Cell]:
    """Map each cell that can reach `target` to its next cell on a shortest way."""
    steps = steps_to(target, set(layout.free_cells), _MOVES)
    return {
        cell: min(
            (neighbor for neighbor in neighbors(cell, _MOVES) if neighbor in steps),
            key=steps.__getitem__,
            default=cell,
        )
        for cell in steps
    }


def read_observation(
    observation: Mapping[str, npt.ArrayLike], *, size: int
) -> tuple[FloatArray, FloatArray, bool]:
    """Return states `[n, size]`, goals `[n, 2]`, and whether they are a batch.

    Args:
        observation: Goal dictionary of one environment or of a batch (`[n, ...]`).
        size: Columns of a state.

    Raises:
        MazeObservationError: It is not a finite goal dictionary of these sizes.
    """
    if isinstance(observation, tuple):
        raise MazeObservationError(
            "got a tuple; pass the observation alone: `observation, info = env.reset()`"
        )
    fields = observation if isinstance(observation, Mapping) else {}
    if any(name not in fields for name in _FIELDS):
        raise MazeObservationError(
            f"expected a goal dictionary with {' and '.join(_FIELDS)}, not"
            f" {sorted(fields) or type(observation).__name__}"
        )
    try:
        states, goals = (np.asarray(fields[name], np.float64) for name in _FIELDS)
    except (TypeError, ValueError) as error:
        raise MazeObservationError(
            f"{' and '.join(_FIELDS)} must be arrays of numbers: {error}"
        ) from error
    is_right = states.ndim in (1, 2) and states.shape[-1] == size
    if not is_right or goals.shape != (*states.shape[:-1], 2):
        raise MazeObservationError(
            f"expected an observation of shape [{size}] or [n, {size}] and a"
            f" desired_goal of shape [2] or [n, 2], not {states.shape} and"
            f" {goals.shape}"
        )
    if not (np.isfinite(states).all() and np.isfinite(goals).all()):
        raise MazeObservationError("the observation has values that are not finite")
    return states.reshape(-1, size), goals.reshape(-1, 2), states.ndim == 2
