"""D4RL's maze2d-v1 task on Gymnasium-Robotics' PointMaze physics.

A force a in [-1, 1]^2 pushes a ball of radius 0.1 m through a maze. The reward is 1 for
every step that ends within 0.5 m of the goal, and episodes never terminate:

    r_t = 1 if |position_{t+1} - goal| <= 0.5 else 0

Protocol (D4RL maze2d-v1, Fu et al., 2020; Multi2D: Janner et al., 2022, section 5):

| | Maze2D (`goal="fixed"`) | Multi2D (`goal="random"`) |
|---|---|---|
| goal | the layout's goal cell, no noise | any free cell, +- 0.1 |
| start | any free cell, +- 0.1; may be the goal's | the same |
| start velocity | N(0, 0.1^2) | the same |
| velocity limit | +- 5 m/s, before each step | the same |
| steps | 300, 600, 800 (registered) | the same |

"Cell" means D4RL's point of the cell, 0.2 off its center in each direction
(`diffuser_envs.maze.layouts`). Walls, ball, forces and integrator are PointMaze's and
equal D4RL's; observations are PointMaze's goal dictionary in PointMaze's coordinates.
"""

from __future__ import annotations

import contextlib
import copy
import io
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.utils import EzPickle

from diffuser_envs.errors import (
    MazeActionError,
    MazeObservationError,
    MazeOptionError,
    MazePositionError,
    MissingExtraError,
    check_known,
    check_size,
)
from diffuser_envs.maze.layouts import (
    SUCCESS_RADIUS,
    FloatArray,
    MazeLayout,
    get_layout,
    read_reset_options,
)
from diffuser_envs.maze.rendering import (
    MazeRenderer,
    RendererName,
    check_window,
)
from diffuser_envs.scores import get_normalized_score

try:
    # The import prints a notice about robot hands, which no maze has.
    with contextlib.redirect_stderr(io.StringIO()):
        from gymnasium_robotics.envs.maze.point_maze import PointMazeEnv

    import mujoco
    from mujoco import rollout
except (ImportError, gymnasium.error.DependencyNotInstalled) as error:
    raise MissingExtraError(
        f"the mazes need Gymnasium-Robotics and MuJoCo ({error});"
        ' run `pip install ".[maze]"` in a clone of diffuser-policy'
    ) from error

Observation: TypeAlias = dict[str, FloatArray]
Untyped: TypeAlias = Any  # Gymnasium-Robotics and MuJoCo ship no types

START_VELOCITY_STD = 0.1
SIMULATED = int(mujoco.mjtState.mjSTATE_INTEGRATION)  # all that a next step needs
MOSTLY = 0.99  # of positions in free cells: contacts are soft
SPEED_LIMIT = 5.0  # m/s, to which PointMaze clips velocities before every step


class Maze2DEnv(gymnasium.Env[Observation, npt.NDArray[np.float32]], EzPickle):
    """A maze with a fixed goal (Maze2D) or a new one in every episode (Multi2D).

    Observations are dictionaries of float64 arrays: `observation` (x, y in meters; vx,
    vy in meters per second), `achieved_goal` (x, y) and `desired_goal` (x, y). `info`
    holds `success`, whether the ball is inside the goal disc, and `goal`.

    `reset(options={"goal": [x, y], "start": [x, y] or [x, y, vx, vy]})` places either
    exactly, without noise; a start without velocity is at rest. Options do not change
    what a seed draws: with a goal given, the start is the same as without.

    A copy (`copy.deepcopy`, `pickle`) goes on where the original is.

    Args:
        layout: `"umaze"`, `"medium"` or `"large"`.
        goal: `"fixed"` for the evaluation goal, `"random"` for a new one at every
            reset.
        render_mode: `"human"`, `"rgb_array"`, `"depth_array"` or none.
        renderer: Who draws `rgb_array`: `"mujoco"` (needs OpenGL), `"topdown"` (our own
            drawing), or `"auto"`: MuJoCo where it works and the drawing elsewhere.
        width: Width of a rendered picture in pixels.
        height: Height of a rendered picture in pixels.

    Raises:
        MazeOptionError: An argument is not one of the values above.
        RenderingError: `"human"` opens a window, and there is no display.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (Gymnasium declares it like this)
        "render_modes": ["human", "rgb_array", "depth_array"],
        "render_fps": 100,
        "observation_columns": {"position": [0, 1], "velocity": [2, 3]},
        "demonstrator": "maze-waypoint",
    }
    success_radius: ClassVar[float] = SUCCESS_RADIUS

    def __init__(
        self,
        layout: str = "umaze",
        *,
        goal: Literal["fixed", "random"] = "fixed",
        render_mode: str | None = None,
        renderer: RendererName = "auto",
        width: int = 480,
        height: int = 480,
    ) -> None:
        EzPickle.__init__(
            self,
            layout,
            goal=goal,
            render_mode=render_mode,
            renderer=renderer,
            width=width,
            height=height,
        )
        self.layout: MazeLayout = get_layout(layout)
        if goal not in ("fixed", "random"):
            raise MazeOptionError(f'goal must be "fixed" or "random", not {goal!r}')
        if render_mode is not None:
            known = self.metadata["render_modes"]
            check_known("render_mode", render_mode, known, MazeOptionError)
        check_size(width, height, MazeOptionError)
        if render_mode == "human":
            check_window()
        self.render_mode = render_mode
        self.random_goal = goal == "random"
        self._simulation = _make_simulation(self.layout, width, height)
        self._renderer = MazeRenderer(
            self.point_env, self.layout, renderer, size=(width, height)
        )
        self._rollout_data: Untyped = None  # made by the first `simulate`
        self._fixed_goal = self.layout.cell_to_xy(self.layout.goal_cell or (1, 1))
        self._goal = self._fixed_goal
        self.action_space = spaces.Box(-1.0, 1.0, shape=(2,), dtype=np.float32)
        self.observation_space = _goal_space()

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy, also a pickled one, needs to go on from here."""
        simulated = np.empty(mujoco.mj_stateSize(self.model, SIMULATED))
        mujoco.mj_getState(self.model, self.data, simulated, SIMULATED)
        state = {
            "simulated": simulated,
            "goal": self._goal.copy(),
            "spec": self.spec,
            "random": (self._np_random, self._np_random_seed),
        }
        return {**EzPickle.__getstate__(self), "state": state}

    def __setstate__(self, data: dict[str, Any]) -> None:
        """Make the environment anew, and put it where the original was."""
        EzPickle.__setstate__(self, data)
        state = data["state"]
        mujoco.mj_setState(self.model, self.data, state["simulated"], SIMULATED)
        mujoco.mj_forward(self.model, self.data)
        # What warm-starts the next step's solver: before MuJoCo 3.3.6, `mj_forward`
        # replaces it.
        mujoco.mj_setState(self.model, self.data, state["simulated"], SIMULATED)
        self.set_goal(state["goal"])
        self.spec = state["spec"]
        self._np_random, self._np_random_seed = copy.deepcopy(state["random"])

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode.

        Args:
            seed: Fixes all later randomness of the environment.
            options: `goal` (shape `[2]`) and `start` (shape `[2]` or `[4]`).

        Raises:
            MazeOptionError: An option is unknown or has the wrong shape.
            MazePositionError: A goal or start is in a wall, outside, or not finite.
        """
        goal, start = read_reset_options(self.layout, options)
        super().reset(seed=seed)
        # Always draw both, in this order. Then an option changes only what it names,
        # and Maze2D and Multi2D start alike under one seed.
        drawn_start = self._sample_start()
        drawn_goal = self.sample_goal() if self.random_goal else self._fixed_goal
        start = drawn_start if start is None else start
        self.point_env.reset()
        self.point_env.set_state(start[:2], start[2:])
        self.set_goal(drawn_goal if goal is None else goal)
        if self.render_mode == "human":
            self.render()
        return self._observe(start), self._info(start)

    def step(
        self, action: npt.NDArray[np.float32]
    ) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Push the ball for 0.01 s.

        Args:
            action: Force along x and y, shape `[2]`; clipped to [-1, 1].

        Raises:
            MazeActionError: The action has another shape or is not finite.
        """
        force = np.asarray(action, dtype=np.float64)
        if force.shape != (2,):
            raise MazeActionError(f"an action has shape (2,), not {force.shape}")
        if not np.isfinite(force).all():
            raise MazeActionError(f"an action must be finite, got {force.tolist()}")
        state, _, _, _, _ = self.point_env.step(force)
        if self.render_mode == "human":
            self.render()
        info = self._info(state)
        return self._observe(state), float(info["success"]), False, False, info

    def compute_reward(
        self,
        achieved_goal: npt.ArrayLike,
        desired_goal: npt.ArrayLike,
        info: object,  # noqa: ARG002 (the interface of goal environments)
    ) -> FloatArray | np.float64:
        """Reward of reaching `achieved_goal` under `desired_goal`.

        Args:
            achieved_goal: Positions after a step, shape `[..., 2]`, meters.
            desired_goal: Goals, shape `[..., 2]`, meters.
            info: Not used.

        Returns:
            1 inside the goal disc and 0 outside, shape `[...]`.
        """
        offset = np.asarray(achieved_goal) - np.asarray(desired_goal)
        distance = np.sqrt(np.square(offset).sum(axis=-1))
        rewards: FloatArray | np.float64 = (distance <= SUCCESS_RADIUS).astype(
            np.float64
        )
        return rewards

    def simulate(self, states: npt.ArrayLike, actions: npt.ArrayLike) -> FloatArray:
        """Return where actions would lead; the environment stays as it is.

        Every row follows the rules of `step`: it clips the action to [-1, 1] and the
        velocity to +- 5 m/s, and takes one MuJoCo step of the same model. MuJoCo's
        contact solver is iterative and starts from the solution of the step before,
        which a state alone does not hold; along walls the last digits therefore differ.

        Args:
            states: (x, y, vx, vy) to start from, shape `[n, 4]`, meters and m/s.
            actions: Forces, shape `[n, steps, 2]`; clipped to [-1, 1].

        Returns:
            States after every action, shape `[n, steps, 4]`, meters and m/s.

        Raises:
            MazeObservationError: States of another shape, or not finite.
            MazeActionError: Actions of another shape, or not finite.
        """
        first = np.asarray(states, dtype=np.float64)
        if first.ndim != 2 or first.shape[1] != 4:
            raise MazeObservationError(f"states have shape (n, 4), not {first.shape}")
        if not np.isfinite(first).all():
            raise MazeObservationError("states must be finite; some of these are not")
        forces = np.asarray(actions, dtype=np.float64)
        if forces.ndim != 3 or forces.shape[::2] != (len(first), 2):
            raise MazeActionError(
                f"actions for {len(first)} states have shape ({len(first)}, steps, 2), "
                f"not {forces.shape}"
            )
        if not np.isfinite(forces).all():
            raise MazeActionError("actions must be finite; some of these are not")
        forces = forces.clip(-1.0, 1.0)
        after = np.empty((*forces.shape[:2], 4))
        if not len(first):
            return after
        if self._rollout_data is None:
            self._rollout_data = mujoco.MjData(self.model)
        full = np.zeros((len(first), 5))  # time, position, velocity
        full[:, 1:] = first
        for step in range(forces.shape[1]):
            full[:, 3:] = full[:, 3:].clip(-SPEED_LIMIT, SPEED_LIMIT)
            stepped, _ = rollout.rollout(
                self.model, self._rollout_data, full, forces[:, step, None]
            )
            full = stepped[:, -1]
            after[:, step] = full[:, 1:]
        return after

    def from_d4rl(
        self,
        observations: dict[str, FloatArray],
        actions: FloatArray,
    ) -> tuple[dict[str, FloatArray], FloatArray]:
        """Return an episode of D4RL's maze2d data as this environment would record it.

        D4RL writes positions, velocities, goals and forces along rows and columns of
        the maze (`diffuser_envs.maze.layouts`).

        Args:
            observations: Goal dictionary of `[n, 4]` and `[n, 2]`.
            actions: Forces, shape `[n, 2]`.

        Raises:
            MazePositionError: Positions that are not in this maze.
        """
        rows, columns = self.layout.walls.shape
        shift = np.array([0.7 - columns / 2, rows / 2 - 0.7])

        def turned(vectors: FloatArray) -> FloatArray:
            return np.stack([vectors[:, 1], -vectors[:, 0]], axis=1)

        state = np.asarray(observations["observation"], np.float64)
        points = turned(state[:, :2]) + shift
        if self.layout.is_free(points).mean() < MOSTLY:
            raise MazePositionError(
                f"many positions are inside walls of {self.layout.title} or outside "
                "it; this data is from another maze"
            )
        goals = turned(np.asarray(observations["desired_goal"], np.float64)) + shift
        converted = {
            "observation": np.concatenate([points, turned(state[:, 2:])], axis=1),
            "achieved_goal": points.copy(),
            "desired_goal": goals,
        }
        return converted, turned(np.asarray(actions))

    def render(self) -> Any:
        """Draw the maze.

        Returns:
            A picture, shape `[height, width, 3]` for `"rgb_array"` and
            `[height, width]` for `"depth_array"`; otherwise None.

        Raises:
            RenderingError: The requested renderer does not work here.
        """
        return self._renderer.render(
            self.render_mode, position=self.data.qpos, goal=self._goal
        )

    def close(self) -> None:
        """Free the rendering contexts."""
        self._renderer.close()

    @property
    def maze_map(self) -> list[list[int]]:
        """Rows of cells from top to bottom; 1 is a wall, 0 is free."""
        return [list(row) for row in self.layout.maze_map]

    @property
    def cell_size(self) -> float:
        """Side of a cell in meters."""
        return self.layout.cell_size

    @property
    def maze(self) -> Untyped:
        """Gymnasium-Robotics' description of the maze."""
        return self._simulation.maze

    @property
    def point_env(self) -> Untyped:
        """The simulated ball, a Gymnasium MuJoCo environment."""
        return self._simulation.point_env

    @property
    def model(self) -> Untyped:
        """The MuJoCo model."""
        return self.point_env.model

    @property
    def data(self) -> Untyped:
        """The MuJoCo state."""
        return self.point_env.data

    @property
    def goal(self) -> FloatArray:
        """The current goal (x, y), shape `[2]`, meters."""
        return self._goal.copy()

    def set_goal(self, xy: npt.ArrayLike) -> None:
        """Move the goal at once; all later observations and rewards refer to it.

        Args:
            xy: Goal (x, y), shape `[2]`, meters.

        Raises:
            MazeOptionError: The goal is not a pair of numbers.
            MazePositionError: The goal is in a wall, outside, or not finite.
        """
        self._goal = self.layout.read_point("goal", xy, sizes=(2,))
        self._simulation.goal = self._goal
        self._simulation.update_target_site_pos()
        site = self._simulation.target_site_id
        self.data.site_xpos[site] = self.model.site_pos[site]

    def sample_goal(self, np_random: np.random.Generator | None = None) -> FloatArray:
        """Draw a goal as Multi2D does (any free cell, +- 0.1), without setting it.

        Args:
            np_random: Source of randomness; the environment's own by default.

        Returns:
            Goal (x, y), shape `[2]`, meters.
        """
        return self.layout.sample_point(np_random or self.np_random)

    def is_free(self, xy: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Return which points, shape `[..., 2]`, meters, lie inside free cells."""
        return self.layout.is_free(xy)

    def get_normalized_score(
        self, episode_return: npt.ArrayLike
    ) -> float | npt.NDArray[np.float64]:
        """Convert episode returns to D4RL's score (0 random, 100 reference)."""
        family = "Multi2D" if self.random_goal else "Maze2D"
        env_id = f"diffuser_envs/{family}-{self.layout.title}-v1"
        return get_normalized_score(env_id, episode_return)

    def _sample_start(self) -> FloatArray:
        position = self.layout.sample_point(self.np_random)
        velocity = START_VELOCITY_STD * self.np_random.standard_normal(2)
        return np.concatenate([position, velocity])

    def _observe(self, state: FloatArray) -> Observation:
        return {
            "observation": state.copy(),
            "achieved_goal": state[:2].copy(),
            "desired_goal": self._goal.copy(),
        }

    def _info(self, state: FloatArray) -> dict[str, Any]:
        dx, dy = state[0] - self._goal[0], state[1] - self._goal[1]
        success = bool(np.sqrt(dx * dx + dy * dy) <= SUCCESS_RADIUS)
        return {"success": success, "goal": self._goal.copy()}


def _goal_space() -> Untyped:
    """Return PointMaze's observation space (Gymnasium's `Dict` is not generic)."""
    sizes = {"observation": 4, "achieved_goal": 2, "desired_goal": 2}
    return spaces.Dict(
        {
            name: spaces.Box(-np.inf, np.inf, shape=(size,), dtype=np.float64)
            for name, size in sizes.items()
        }
    )


def _make_simulation(layout: MazeLayout, width: int, height: int) -> Untyped:
    """Build PointMaze, and delete the model file that it leaves behind.

    It has no render mode: in a window it would draw before `reset` is done.
    """
    simulation = PointMazeEnv.__new__(PointMazeEnv)
    try:
        simulation.__init__(
            maze_map=[list(row) for row in layout.maze_map],
            width=width,
            height=height,
        )
    finally:
        leftover = getattr(simulation, "tmp_xml_file_path", None)
        if leftover is not None:
            Path(leftover).unlink(missing_ok=True)
    return simulation
