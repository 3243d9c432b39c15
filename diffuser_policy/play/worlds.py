"""Worlds: what an environment looks like, and what can be dragged in it.

| world | for | drawn | dragged |
|---|---|---|---|
| `MazeWorld` | mazes | walls, ball, goal | start, goal |
| `BodyWorld` | other MuJoCo environments | the robot, now and as planned | the same |
| `World` | everything else | columns named "position" | what `reset` takes of these |

An environment brings a world of its own with a method `play_world(columns)`, which gets
the names of planning columns and returns an object with the methods of `World`. All of
them take and return plain values and arrays, so that it needs nothing of this package:

| | is |
|---|---|
| mesh | `(name, vertices [n, 3], faces [m, 3], color)`, the color's parts from 0 to 1 |
| pose | `[7]`: x, y, z and the quaternion w, x, y, z |
| handle | `(name, position [3], axes)`: dragged along "xy" or "z" |

A handle that is named like a mesh or a ghost is that mesh; others are drawn as balls.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diffuser_policy.choices import GOAL_KEYS
from diffuser_policy.columns.layout import TrajectoryLayout
from diffuser_policy.envs import Env, goal_radius, reset_env
from diffuser_policy.errors import ConfigError, require_extra
from diffuser_policy.observations import begins_with, numbers, part_at
from diffuser_policy.plotting import Scene

Color = tuple[float, float, float]
Mesh = tuple[str, np.ndarray, np.ndarray, Color]
Handle = tuple[str, tuple[float, float, float], str]

BALL_RADIUS = 0.1  # of PointMaze's ball, in meters
WALL_HEIGHT = 0.3  # of a cell's side
ASIDE = 0.01  # how far from its usual place a handle is tried
NUM_GHOSTS = 6  # planned states that are drawn as bodies
GEOMS = {2: "sphere", 3: "capsule", 4: "ellipsoid", 5: "cylinder", 6: "box", 7: "mesh"}
UPRIGHT = np.array([0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0])


class World:
    """Any environment: the columns of its planner that are named "position"."""

    def __init__(
        self,
        env: Env,
        layout: TrajectoryLayout,
        observation: Any,
        goal_keys: tuple[str, str] = GOAL_KEYS,
        position: Sequence[int] | None = None,
    ) -> None:
        """Find out what to draw.

        Args:
            env: Just reset.
            layout: The planner's.
            observation: What `reset` returned.
            goal_keys: Where it has the achieved and the desired goal.
            position: Columns that are drawn; by default those of that name.
        """
        self.env, self.layout = env, layout
        named = layout.aliases.get("position", ()) if position is None else position
        self.position = tuple(named)[:3] if len(named) >= 2 else ()
        self.goal_radius = goal_radius(env)
        self._other: dict[str, Any] = {}  # options of `reset` that are not drawn
        self._moved: dict[str, list[float]] = {}
        self._movable: Mapping[str, int] = {}
        self._keys = dict(zip(("start", "goal"), goal_keys, strict=True))
        if self.position:
            size = len(self.position)
            self._movable = _movable(env, observation, size, self._keys)

    def meshes(self) -> Sequence[Mesh]:
        """Return the things that are drawn."""
        return ()

    def poses(self, state: np.ndarray) -> np.ndarray:  # noqa: ARG002
        """Return where they are now, `[meshes, 7]`.

        Args:
            state: `[observation]` the present planning columns.
        """
        return np.zeros((0, 7))

    def ghosts(self) -> Mapping[str, tuple[str, np.ndarray]]:
        """Return what the goal looks like: the mesh and the pose of each ghost."""
        return {}

    def planned_poses(self, path: np.ndarray, stride: int) -> np.ndarray:  # noqa: ARG002
        """Return the poses `[states, meshes, 7]` in some states of a plan.

        Args:
            path: `[steps, observation]` planned, from now on.
            stride: Env steps between two of them.
        """
        return np.zeros((0, 0, 7))

    def points(self, states: np.ndarray) -> np.ndarray:
        """Return the points `[..., 3]` of planned states `[..., observation]`."""
        if not self.position:
            return np.zeros((*states.shape[:-1], 0))
        drawn = states[..., list(self.position)]
        flat = np.zeros((*drawn.shape[:-1], 3 - drawn.shape[-1]))
        return np.concatenate([drawn, flat], axis=-1)

    def handles(self, observation: Any) -> Sequence[Handle]:
        """Return what can be dragged.

        Args:
            observation: The first one of the episode.
        """
        found: list[Handle] = []
        for name, size in self._movable.items():
            seen = part_at(observation, self._keys[name])
            place = (self._moved.get(name) or numbers(seen))[:size]
            x, y, z = (*place, 0.0, 0.0)[:3]
            found.append((name, (x, y, z), "xy"))
        return found

    def move(self, name: str, place: Sequence[float]) -> None:
        """Put a handle somewhere.

        Args:
            name: Name of the handle.
            place: x, y and z.
        """
        size = self._movable[name]
        self._moved[name] = [round(float(x), 3) for x in place[:size]]

    def options(self) -> dict[str, Any]:
        """Return what `reset` is given: all that was moved, and other options."""
        return {**self._other, **self._moved}

    def set_options(self, options: Mapping[str, Any]) -> None:
        """Begin with what `reset` was given; the environment knows what it takes."""
        for name, value in options.items():
            try:
                place = np.array(value)
            except ValueError:  # lists that differ in length
                place = np.array(None)
            if name in self._movable and place.ndim == 1 and place.dtype.kind in "iuf":
                self._moved[name] = place.tolist()
            else:
                self._other[name] = value

    def forget(self) -> None:
        """Put everything back to where `reset` places it."""
        self._moved.clear()

    def obstructed(self, points: np.ndarray) -> bool:  # noqa: ARG002
        """Return whether a path `[n, 3]` leads through something solid."""
        return False

    def legend(self) -> str:
        """Return what can be dragged and what colors mean, in a few words."""
        drag = " and ".join(f"the {each}" for each in self._movable)
        drag = f"Drag {drag}. " if drag else ""
        if not self.position:
            return drag
        return (
            f"{drag}The plan goes from green to red; other candidates are gray, and "
            f"what happened is black."
        )

    def choices(self) -> Mapping[str, tuple[Sequence[str], str]]:
        """Return settings of the world: values to choose from, and the present one."""
        return {}

    def choose(self, name: str, value: str) -> str | None:  # noqa: ARG002
        """Set one of `choices`; return the id of the environment if it is another."""
        return None

    def caption(self) -> str:
        """Return a line on what is being planned, or an empty one."""
        return ""

    def camera(self) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """Return where the camera is, and what it looks at."""
        return (0.0, -3.0, 6.0), (0.0, 0.0, 0.0)

    def ground(self) -> tuple[float, float]:
        """Return how far the floor is drawn from its place, x and y in meters."""
        return 0.0, 0.0

    def close(self) -> None:
        """Free what the world holds."""


class MazeWorld(World):
    """A maze from above: walls, floor and the ball; positions are in meters."""

    def __init__(
        self,
        env: Env,
        layout: TrajectoryLayout,
        observation: Any,
        goal_keys: tuple[str, str] = GOAL_KEYS,
    ) -> None:
        """Read the maze.

        Args:
            env: As for `World`.
            layout: As for `World`.
            observation: As for `World`.
            goal_keys: As for `World`.

        Raises:
            ConfigError: It is no maze, or there are no two columns to draw.
        """
        scene = Scene.of(env, layout, observation)
        if scene.walls is None:
            raise ConfigError("The environment has no walls.")
        super().__init__(env, layout, observation, goal_keys, scene.columns)
        self.walls = scene.walls

    def boxes(self) -> np.ndarray:
        """Return the low and high corners `[walls, 2, 3]` of all walls, in meters."""
        corners = self.walls.boxes()
        up = [[[0.0], [WALL_HEIGHT * self.walls.cell_size]]]
        height = np.broadcast_to(up, (len(corners), 2, 1))
        return np.concatenate([corners, height], axis=2)

    def obstructed(self, points: np.ndarray) -> bool:
        """Return whether a path `[n, 3]` leads through a wall."""
        return self.walls.cross(points[:, :2])

    def meshes(self) -> Sequence[Mesh]:
        """Return the ball."""
        ball = require_extra("trimesh", "play").creation.icosphere(
            subdivisions=3, radius=BALL_RADIUS * self.walls.cell_size
        )
        return (("ball", ball.vertices, ball.faces, (0.10, 0.10, 0.14)),)

    def poses(self, state: np.ndarray) -> np.ndarray:
        """Return where the ball is."""
        pose = UPRIGHT.copy()
        pose[:3] = self.points(state)
        pose[2] += BALL_RADIUS * self.walls.cell_size
        return pose[None]

    def camera(self) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """Return a camera above the maze, a little to the south."""
        left, right, bottom, top = self.walls.shown
        x, y = (left + right) / 2, (bottom + top) / 2
        far = 0.75 * max(0.8 * (right - left), top - bottom)
        return (x, y - 0.2 * far, far), (x, y, 0.0)


class BodyWorld(World):
    """A robot in MuJoCo: its shapes now, and in planned states as ghosts.

    The robot is drawn in the middle, and the floor moves under it.
    """

    def __init__(
        self,
        env: Env,
        layout: TrajectoryLayout,
        observation: Any,
        goal_keys: tuple[str, str] = GOAL_KEYS,
    ) -> None:
        """Find the shapes; the arguments are those of `World`."""
        super().__init__(env, layout, observation, goal_keys)
        self._mujoco: Any = require_extra("mujoco", "maze")
        unwrapped: Any = env.unwrapped
        self._model: Any = unwrapped.model
        self._imagined = self._mujoco.MjData(self._model)
        kinds = self._model.geom_type
        seen = self._model.geom_rgba[:, 3] > 0
        moves = self._model.geom_bodyid > 0
        self._geoms = [
            int(g) for g in np.flatnonzero(seen & moves) if int(kinds[g]) in GEOMS
        ]
        structure = getattr(env.unwrapped, "observation_structure", None) or {}
        self._skipped = int(structure.get("skipped_qpos", 0))
        self._first = self._middle()
        self._known = bool(structure) and structure["qpos"] + self._skipped == int(
            self._model.nq
        )

    @property
    def _data(self) -> Any:
        unwrapped: Any = self.env.unwrapped
        return unwrapped.data

    def meshes(self) -> Sequence[Mesh]:
        """Return every shape of the robot."""
        creation = require_extra("trimesh", "play").creation
        model, found = self._model, []
        for geom in self._geoms:
            kind, size = GEOMS[int(model.geom_type[geom])], model.geom_size[geom]
            if kind == "box":
                made = creation.box(extents=2 * size)
            elif kind == "capsule":
                made = creation.capsule(
                    radius=size[0], height=2 * size[1], count=(12, 12)
                )
                made.vertices -= made.vertices.mean(axis=0)
            elif kind == "cylinder":
                made = creation.cylinder(
                    radius=size[0], height=2 * size[1], sections=24
                )
            elif kind == "mesh":
                made = self._mesh(int(model.geom_dataid[geom]))
            else:
                made = creation.icosphere(subdivisions=2)
                made.vertices *= size if kind == "ellipsoid" else size[0]
            color = tuple(map(float, model.geom_rgba[geom, :3]))
            found.append(
                (f"body {geom}", np.array(made.vertices), np.array(made.faces), color)
            )
        return tuple(found)  # type: ignore[arg-type]

    def legend(self) -> str:
        """Return what is seen."""
        seen = "Solid: the robot now. See-through: planned states."
        return f"{seen} {super().legend()}" if self._movable else seen

    def poses(self, state: np.ndarray) -> np.ndarray:  # noqa: ARG002
        """Return where the shapes are."""
        return self._of(self._now(), self._gone())

    def ground(self) -> tuple[float, float]:
        """Return how far the floor has moved under the robot, x and y in meters."""
        x, y = self._gone()
        return -x, -y

    def _gone(self) -> np.ndarray:
        """Return how far the robot has come since it was first seen, `[2]`."""
        return np.asarray(self._middle() - self._first)

    def _middle(self) -> np.ndarray:
        """Return where the middle of the shapes is, `[2]`."""
        return np.asarray(self._now().geom_xpos[self._geoms, :2].mean(axis=0))

    def _now(self) -> Any:
        """Return the shapes of the newest coordinates.

        After a step, the simulator's own are those of one substep earlier.
        """
        real, data = self._data, self._imagined
        data.qpos[:] = real.qpos
        data.mocap_pos[:], data.mocap_quat[:] = real.mocap_pos, real.mocap_quat
        self._mujoco.mj_kinematics(self._model, data)
        return data

    def planned_poses(self, path: np.ndarray, stride: int) -> np.ndarray:
        """Return the shapes in some planned states.

        Coordinates that observations leave out, such as how far a walker has come,
        follow from the planned velocities.
        """
        model, data = self._model, self._imagined
        width = model.nq - self._skipped
        if not self._known or path.shape[1] < width + model.nv:
            return np.zeros((0, len(self._geoms), 7))
        now, shift = self._data.qpos.copy(), self._gone()
        seconds = seconds_per_step(self.env) * stride
        shown = np.linspace(0, len(path) - 1, NUM_GHOSTS + 1).round().astype(int)
        shown = np.unique(shown)[min(1, len(path) - 1) :]
        speeds = path[:, width : width + self._skipped]
        gone = (np.cumsum(speeds, axis=0) - speeds) * seconds
        found = []
        for step in shown:
            data.qpos[:] = now
            data.qpos[: self._skipped] += gone[step]
            data.qpos[self._skipped :] = path[step, :width]
            self._mujoco.mj_kinematics(model, data)
            found.append(self._of(data, shift))
        return np.array(found)

    def camera(self) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """Return a camera beside the robot."""
        x, y, z = self._data.geom_xpos[self._geoms].mean(axis=0)
        size = 1.1 * float(self._model.stat.extent) ** 0.5
        ahead = float(x) + 0.5
        target = (ahead, float(y), 0.6 * float(z))
        return (ahead, float(y) - size, float(z) + 0.3 * size), target

    def _of(self, data: Any, gone: np.ndarray) -> np.ndarray:
        quaternion = np.zeros(4)
        poses = np.empty((len(self._geoms), 7))
        for index, geom in enumerate(self._geoms):
            self._mujoco.mju_mat2Quat(quaternion, data.geom_xmat[geom])
            poses[index, :3], poses[index, 3:] = data.geom_xpos[geom], quaternion
        if not self.position:  # else paths and handles are where they are
            poses[:, :2] -= gone
        return poses

    def _mesh(self, number: int) -> Any:
        model = self._model
        first, count = model.mesh_vertadr[number], model.mesh_vertnum[number]
        vertices = model.mesh_vert[first : first + count]
        first, count = model.mesh_faceadr[number], model.mesh_facenum[number]
        faces = model.mesh_face[first : first + count]
        return require_extra("trimesh", "play").Trimesh(vertices, faces, process=False)


def world_of(
    env: Env,
    layout: TrajectoryLayout,
    observation: Any,
    goal_keys: tuple[str, str] = GOAL_KEYS,
) -> Any:
    """Return the world of an environment: its own, or the one that suits it.

    Args:
        env: Just reset.
        layout: The planner's.
        observation: What `reset` returned.
        goal_keys: Where it has the achieved and the desired goal.
    """
    own = getattr(env.unwrapped, "play_world", None)
    if inspect.ismethod(own):
        return own(layout.aliases)
    with contextlib.suppress(ConfigError):
        return MazeWorld(env, layout, observation, goal_keys)
    if type(getattr(env.unwrapped, "model", None)).__name__ == "MjModel":
        return BodyWorld(env, layout, observation, goal_keys)
    return World(env, layout, observation, goal_keys)


def seconds_per_step(env: Env) -> float:
    """Return how long an env step takes in the world that is simulated."""
    duration = getattr(env.unwrapped, "dt", None)
    if isinstance(duration, float) and duration > 0:
        return duration
    frames = env.metadata.get("render_fps") or 30
    return 1.0 / float(frames)


def _movable(
    env: Env, observation: Any, size: int, keys: Mapping[str, str]
) -> dict[str, int]:
    """Return which of goal and start `reset` places, by how many numbers; it is tried.

    Args:
        env: Any.
        observation: What `reset` returned.
        size: Of a position. Where goals are whole states, that is what is placed.
        keys: Where the observation has them.
    """
    found = {}
    for name, key in keys.items():
        seen = part_at(observation, key)
        if seen is None:
            continue
        place = np.array(numbers(seen)[:size])
        with contextlib.suppress(Exception):  # whatever an environment says to that
            before, _ = reset_env(env, seed=1)
            # Being there again proves nothing.
            if begins_with(part_at(before, key), place):
                place += ASIDE
            after, _ = reset_env(env, seed=1, options={name: place.tolist()})
            if begins_with(part_at(after, key), place):
                found[name] = len(place)
    return found
