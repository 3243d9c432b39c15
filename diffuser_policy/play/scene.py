"""The scene of a page: frames become nodes of viser that move, and can be dragged.

    view = SceneView(server, session, post)
    view.draw(frame, at=step of the denoising chain)

Nodes are made once and then changed: adding them anew would end a drag under way, and
grow what a server keeps for tabs that open later.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from diffuser_policy.errors import require_extra
from diffuser_policy.play.session import Frame, Session
from diffuser_policy.play.worlds import MazeWorld
from diffuser_policy.plotting import (
    CANDIDATE,
    FLOOR,
    GOAL,
    MARK,
    PLAN,
    START,
    TIME_COLORS,
    WALL,
)

Post = Callable[..., object]

LIFT = 0.06  # of a cell, or of the size: how far the plan is above the floor
TRACE_POINTS = 400
WIDTH = 1.3  # of a window in which everything is seen, as a multiple of its height
STUCK, TRACE = (128, 128, 128), (20, 20, 30)
HANDLE_COLORS = {"start": START, "goal": GOAL}
UPRIGHT = (1.0, 0.0, 0.0, 0.0)
SECTION = 1.0  # meters after which the floor's grid repeats itself


class SceneView:
    """Draws a session's frames, and posts what the mouse moves."""

    def __init__(self, server: Any, session: Session, post: Post) -> None:
        """Draw what never moves, and everything that will.

        Args:
            server: viser's.
            session: What is shown.
            post: Takes the name of a change, a function and its arguments.
        """
        self.scene, self.session, self.world = server.scene, session, session.world
        self._post = post
        self._nodes: dict[str, Any] = {}
        self._keys: dict[str, Any] = {}
        self._far: dict[int, float] = {}  # how far away each window looks from
        self._eye, self._target = (np.array(place) for place in self.world.camera())
        camera = server.initial_camera
        camera.position, camera.look_at = self._eye, self._target
        camera.up = (0.0, 0.0, 1.0)
        self.scene.set_up_direction("+z")
        self.scene.configure_default_lights(enabled=True, cast_shadow=False)
        self.scene.configure_environment_map(None)
        self.scene.add_light_ambient("/light", intensity=0.7)
        self.size = 1.0
        if isinstance(self.world, MazeWorld):
            self._draw_maze(self.world)
        else:
            self.size = float(getattr(self.world, "size", 1.0))
            self._nodes["/floor"] = self.scene.add_grid(
                "/floor", 20.0, 20.0, infinite_grid=True
            )
        self.meshes = {mesh[0]: mesh for mesh in self.world.meshes()}
        for name in self.meshes:
            self._mesh_node(f"/things/{name}", name)

    def fit(self, client: Any) -> None:
        """Look from further away in a window that is narrow, or becomes so.

        Args:
            client: viser's, of the window.
        """
        camera, last = client.camera, self._far.get(client.client_id, 0.0)
        far = max(WIDTH / max(camera.aspect, 0.1), 1.0)
        if abs(far - last) > 0.02 * last:
            self._far[client.client_id] = far
            camera.position = self._target + far * (self._eye - self._target)
            camera.look_at = self._target

    def draw(self, frame: Frame, *, at: int) -> None:
        """Draw a frame over the last one.

        Args:
            frame: What to show.
            at: Which step of the denoising chain; past its end, the plan.
        """
        self._draw_plan(frame, at)
        if "/floor" in self._nodes:
            x, y = (shift % SECTION for shift in self.world.ground())
            self._pose("/floor", (x, y, 0.0, *UPRIGHT))
        for name, pose in zip(self.meshes, self.world.poses(frame.state), strict=False):
            self._pose(f"/things/{name}", pose)
        self._draw_ghosts(frame)
        self._draw_handles(frame)
        self._draw_marks(frame)

    # --- plans ------------------------------------------------------------------------

    def _draw_plan(self, frame: Frame, at: int) -> None:
        lift = np.array([0.0, 0.0, LIFT * self.size])
        denoising = at < len(frame.chain) - 1
        points = self._seen(frame.chain[at] if denoising else frame.path)
        colors = _pairs(_time_colors(np.linspace(0, 1, len(points))))
        self._segments("/plan", _pairs(points + lift), colors, thickness=0.06)
        others = () if denoising else frame.others
        thin = [_pairs(self._seen(other) + 0.5 * lift) for other in others]
        joined = np.concatenate(thin) if thin else np.zeros((0, 2, 3))
        self._segments("/others", joined, rgb(CANDIDATE), thickness=0.012)
        route = self._seen(frame.route)
        self._segments(
            "/route", _pairs(route + 0.5 * lift), rgb(CANDIDATE), thickness=0.02
        )
        trace = self._seen(frame.trace[:: max(len(frame.trace) // TRACE_POINTS, 1)])
        self._segments("/trace", _pairs(trace + 1.5 * lift), TRACE, thickness=0.03)

    def _seen(self, states: np.ndarray) -> np.ndarray:
        """Return the points `[n, 3]` of states `[n, observation]`; none without any."""
        if not self.world.position:
            return np.zeros((0, 3))
        return np.asarray(self.world.points(states))

    def _segments(
        self, name: str, segments: np.ndarray, color: Any, *, thickness: float
    ) -> None:
        """Draw line segments `[n, 2, 3]`, in one color or in `[n, 2, 3]`."""
        node = self._nodes.get(name)
        if len(segments) == 0:
            if node is not None:
                node.visible = False
            return
        segments = np.asarray(segments, np.float32)
        # Lines take colors as amounts of light, where everything else takes sRGB.
        light = 255 * (np.asarray(color, float) / 255) ** 2.2
        colors = np.broadcast_to(light, segments.shape).round().astype(np.uint8)
        if node is None:
            self._nodes[name] = self.scene.add_line_segments(
                name, segments, colors, thickness=thickness * self.size
            )
            return
        node.visible = True
        node.points, node.colors = segments, colors

    # --- things -----------------------------------------------------------------------

    def _draw_maze(self, world: MazeWorld) -> None:
        creation = require_extra("trimesh.creation", "play")
        util = require_extra("trimesh.util", "play")
        self.size = world.walls.cell_size
        walls = util.concatenate([creation.box(bounds=box) for box in world.boxes()])
        self.scene.add_mesh_simple(
            "/walls", walls.vertices, walls.faces, color=rgb(WALL), flat_shading=True
        )
        left, right, bottom, top = world.walls.shown
        thin = 0.02 * self.size
        self.scene.add_box(
            "/floor",
            color=rgb(FLOOR),
            dimensions=(right - left, top - bottom, thin),
            position=((left + right) / 2, (bottom + top) / 2, -thin / 2),
        )

    def _mesh_node(self, name: str, mesh: str, opacity: float | None = None) -> None:
        _, vertices, faces, color = self.meshes[mesh]
        red, green, blue = (round(255 * float(part)) for part in color[:3])
        self._nodes[name] = self.scene.add_mesh_simple(
            name,
            np.asarray(vertices, np.float32),
            np.asarray(faces, np.uint32),
            color=(red, green, blue),
            opacity=opacity,
            flat_shading=len(faces) < 20,  # boxes
        )

    def _pose(self, name: str, pose: Sequence[float] | np.ndarray) -> None:
        key = tuple(np.round(np.asarray(pose, float), 5).tolist())
        if self._keys.get(name) != key:
            self._keys[name] = key
            node = self._nodes[name]
            node.position, node.wxyz = key[:3], key[3:]

    def _draw_ghosts(self, frame: Frame) -> None:
        wanted = {f"/goal/{name}": ghost for name, ghost in self.world.ghosts().items()}
        planned: Any = ()
        ahead = frame.path[round(frame.progress) :]
        if len(ahead):
            planned = self.world.planned_poses(ahead, frame.stride)
        wanted |= {
            f"/planned/{step}/{name}": (name, pose)
            for step, poses in enumerate(planned)
            for name, pose in zip(self.meshes, poses, strict=True)
        }
        for name, (mesh, pose) in wanted.items():
            if name not in self._nodes:
                opacity = 0.5 if name.startswith("/goal") else 0.18
                self._mesh_node(name, mesh, opacity)
            self._pose(name, pose)
        for name, node in self._nodes.items():
            if name.startswith("/planned/"):
                node.visible = name in wanted

    def _draw_handles(self, frame: Frame) -> None:
        handles = self.world.handles(self.session.first_observation)
        for name, place, axes in handles:
            node = next(
                (n for n in (f"/goal/{name}", f"/things/{name}") if n in self._nodes),
                f"/handles/{name}",
            )
            color = rgb(HANDLE_COLORS.get(name, PLAN))
            if node not in self._nodes:
                self._handle_node(node, color, disc=name == "goal")
            if self._new(f"drag {node}", True):
                moved = partial(self._post, node, self.session.move, name)
                self._draggable(node, moved, axes)
            if node.startswith("/handles"):
                self._pose(node, (*place, *UPRIGHT))
                stuck = name in frame.stuck
                if self._new(f"stuck {node}", stuck):
                    self._nodes[node].color = STUCK if stuck else color

    def _handle_node(self, name: str, color: tuple[int, int, int], disc: bool) -> None:
        self._nodes[name] = self.scene.add_icosphere(
            name, radius=0.16 * self.size, color=color
        )
        if disc and self.world.goal_radius:
            self.scene.add_cylinder(
                f"{name}/disc",
                radius=self.world.goal_radius,
                height=0.01 * self.size,
                color=color,
                opacity=0.25,
                cast_shadow=False,
            )

    def _new(self, name: str, value: Any) -> bool:
        """Remember a value; return whether it is another one than before."""
        before, self._keys[name] = self._keys.get(name), value
        return bool(before != value)

    # --- guides -----------------------------------------------------------------------

    def _draw_marks(self, frame: Frame) -> None:
        """Draw the shapes of guides, and a ball for each point that they are given."""
        wanted = self._wanted_marks(frame)
        for name in [n for n in self._nodes if n.startswith("/guides/")]:
            if name not in wanted or self._keys[f"kind {name}"] != wanted[name][1:3]:
                self._nodes.pop(name).remove()
                for key in (name, f"size {name}", f"kind {name}"):
                    self._keys.pop(key, None)
        for name, (number, kind, what, middle, size) in wanted.items():
            if name not in self._nodes:
                self._nodes[name] = self._mark_node(name, kind, what)
                self._keys[f"kind {name}"] = (kind, what)
                point = what if kind == "point" else None
                moved = partial(
                    self._post, f"drag {name}", self.session.move_guide, number, point
                )
                self._draggable(name, moved, "xy")
            self._pose(name, (*middle, *UPRIGHT))
            scale = tuple(np.round(size, 4).tolist())
            if self._new(f"size {name}", scale):
                self._nodes[name].scale = scale

    def _wanted_marks(self, frame: Frame) -> dict[str, tuple[Any, ...]]:
        """Return number, kind, what, middle and size of every mark, by its node."""
        wanted: dict[str, tuple[Any, ...]] = {}
        for count, (number, mark) in enumerate(frame.marks):
            low, high = _spatial(mark.low), _spatial(mark.high)
            size, middle = high - low, (low + high) / 2
            kind = "ball" if mark.round else "box"
            if len(mark.low) == 2:
                kind = "disc" if mark.round else "box"
                size[2], middle[2] = 0.3 * self.size, 0.15 * self.size
            if size[:2].any():
                name = f"/guides/{number}/shape {count}"
                wanted[name] = number, kind, mark.kind, middle, size
        for number, part in enumerate(self.session.guides):
            for name, value in part.parameters.items():
                if self.session.is_point(value):
                    node = f"/guides/{number}/{name}"
                    wanted[node] = number, "point", name, _spatial(value), np.ones(3)
        return wanted

    def _mark_node(self, name: str, kind: str, what: str) -> Any:
        color = rgb(MARK)
        if kind == "point":
            return self.scene.add_icosphere(name, radius=0.13 * self.size, color=color)
        opacity = 0.55 if what == "avoid" else 0.16
        style = {"color": color, "opacity": opacity, "cast_shadow": False}
        if kind == "box":
            return self.scene.add_box(name, dimensions=(1.0, 1.0, 1.0), **style)
        if kind == "disc":
            return self.scene.add_cylinder(name, radius=0.5, height=1.0, **style)
        return self.scene.add_icosphere(name, radius=0.5, **style)

    # --- the mouse --------------------------------------------------------------------

    def _draggable(
        self, name: str, moved: Callable[[tuple[float, ...]], object], axes: str
    ) -> None:
        """Let the mouse drag a node along the floor ("xy") or up and down ("z").

        viser says where the pointer is in a plane that faces the camera. The ray from
        the camera through that point meets the plane in which the node moves.
        """
        node = self._nodes[name]
        grips: dict[int, np.ndarray] = {}  # from the pointer to the node, by client

        async def dragged(event: Any) -> None:
            place = np.array(node.position, float)
            eye = np.array(event.client.camera.position, float)
            if axes == "z":
                mask, facing = np.array([0.0, 0.0, 1.0]), (eye - place) * (1, 1, 0)
            else:
                mask, facing = np.array([1.0, 1.0, 0.0]), np.array([0.0, 0.0, 1.0])
            if event.phase == "start":  # keep hold where the mouse took it
                grabbed = _met(eye, event.start_position, place, facing)
                grips[event.client_id] = place - grabbed
            at = _met(eye, event.end_position, place, facing)
            at = at + grips.get(event.client_id, np.zeros(3))
            if np.isfinite(at).all():
                moved(tuple((mask * at + (1 - mask) * place).tolist()))

        node.on_drag(dragged)


def _met(
    eye: np.ndarray, through: Sequence[float], place: np.ndarray, facing: np.ndarray
) -> np.ndarray:
    """Return where a ray from the eye meets a plane; NaN if nowhere.

    Args:
        eye: Where the ray begins.
        through: A point of the ray.
        place: A point of the plane.
        facing: Across the plane.
    """
    ray = np.asarray(through, float) - eye
    slope = float(ray @ facing)
    share = float((place - eye) @ facing) / slope if slope else np.nan
    return np.asarray(eye + ray * share)


def _pairs(points: np.ndarray) -> np.ndarray:
    """Return the segments `[n - 1, 2, …]` between points `[n, …]`."""
    return np.stack([points[:-1], points[1:]], axis=1)


def _spatial(point: Sequence[float]) -> np.ndarray:
    """Return a point with three coordinates."""
    return np.array([*point, 0.0, 0.0][:3], float)


def rgb(color: str) -> tuple[int, int, int]:
    """Return the parts, 0 to 255, of a color such as "#1f77b4"."""
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return red, green, blue


def _time_colors(share: np.ndarray) -> np.ndarray:
    """Return colors `[n, 3]` for shares of the plan's duration."""
    anchors = np.array([rgb(color) for color in TIME_COLORS], float)
    at = np.linspace(0, 1, len(anchors))
    return np.stack([np.interp(share, at, anchors[:, c]) for c in range(3)], axis=1)
