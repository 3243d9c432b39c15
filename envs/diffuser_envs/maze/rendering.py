"""Pictures of mazes: by MuJoCo where OpenGL works, drawn top-down by numpy elsewhere.

Gymnasium's renderer tries GLFW first, which warns and then fails without a display.
`MazeRenderer` tries an OpenGL context before MuJoCo needs it and writes nothing to the
console. It uses

- the platform that `MUJOCO_GL` names, and no other;
- EGL, which needs no display, on Linux without a display;
- otherwise what Gymnasium chooses.

A window is GLFW's, and without a display GLFW ends the whole process; `check_window`
refuses it before.

`draw_maze` needs no OpenGL. Its shapes are discs and capsules, given by their signed
distance d to a pixel's center (in pixels, negative inside). A shape covers the pixel by

    coverage = clip(1/2 - d, 0, 1)

which smooths its edge over one pixel.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from numbers import Integral
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from diffuser_envs.errors import MazeOptionError, RenderingError, nearest_names
from diffuser_envs.maze.layouts import FloatArray, MazeLayout

RendererName: TypeAlias = Literal["auto", "mujoco", "topdown"]
RENDERERS = ("auto", "mujoco", "topdown")
Picture = npt.NDArray[np.uint8]

BACKGROUND = (255, 255, 255)
FLOOR = (238, 240, 244)
WALL = (68, 78, 99)
BALL = (22, 150, 86)
GOAL = (214, 48, 49)
PATH_START = (65, 105, 225)
PATH_END = (255, 140, 0)

BALL_RADIUS = 0.1
GOAL_RADIUS = 0.5
PATH_WIDTH = 0.08


class MazeRenderer:
    """Draws one environment; it looks for OpenGL when it draws the first picture.

    Args:
        point: The simulated ball, a Gymnasium MuJoCo environment.
        layout: The maze.
        renderer: `"auto"`, `"mujoco"` or `"topdown"`.
        size: Width and height of a picture in pixels.

    Raises:
        MazeOptionError: No such renderer.
    """

    def __init__(
        self,
        point: Any,
        layout: MazeLayout,
        renderer: RendererName,
        *,
        size: tuple[int, int],
    ) -> None:
        if renderer not in RENDERERS:
            hint = nearest_names(str(renderer), RENDERERS)
            raise MazeOptionError(f"unknown renderer {renderer!r}; {hint}")
        self._point = point
        self._layout = layout
        self._size = size
        self._choice: RendererName = renderer
        self._platform: str | None = None
        num_rows, num_columns = layout.walls.shape
        extent = max(num_rows, num_columns * size[1] / size[0]) * layout.cell_size
        point.mujoco_renderer.default_cam_config = {
            "lookat": np.zeros(3),
            "distance": 1.4 * extent,
            "azimuth": 90.0,
            "elevation": -80.0,
        }

    def render(
        self, mode: str | None, *, position: FloatArray, goal: FloatArray
    ) -> Any:
        """Draw the maze in Gymnasium's `render_mode`.

        Args:
            mode: `"human"`, `"rgb_array"`, `"depth_array"`, or None to draw nothing.
            position: Ball (x, y), shape `[2]`, meters.
            goal: Goal (x, y), shape `[2]`, meters.

        Raises:
            RenderingError: The mode needs MuJoCo, and no OpenGL context works.
        """
        if mode is None:
            return None
        if mode == "human":
            return self._point.mujoco_renderer.render(mode)
        if self._choice == "auto":
            self._choose(required=mode != "rgb_array")
        elif self._choice == "mujoco" and self._platform is None:
            self._choose(required=True)
        if self._choice == "mujoco":
            with _environment_variable("MUJOCO_GL", self._platform):
                return self._point.mujoco_renderer.render(mode)
        if mode != "rgb_array":
            raise RenderingError(f'the top-down renderer cannot draw "{mode}"')
        return draw_maze(
            self._layout.maze_map,
            position=position,
            goal=goal,
            size=self._size,
            cell_size=self._layout.cell_size,
        )

    def close(self) -> None:
        """Free the OpenGL contexts, if there are any."""
        self._point.close()

    def _choose(self, *, required: bool) -> None:
        problems = []
        for platform in _candidate_platforms():
            problem = _try_context(platform)
            if problem is None:
                self._choice, self._platform = "mujoco", platform
                return
            problems.append(f"{platform}: {problem}")
        if required:
            raise RenderingError(
                f"MuJoCo finds no OpenGL here ({'; '.join(problems)}); install a driver"
                " with EGL, set MUJOCO_GL to one that works, or use"
                ' render_mode="rgb_array" with renderer="topdown"'
            )
        self._choice = "topdown"


def check_size(width: int, height: int) -> None:
    """Refuse a size that no picture has.

    Raises:
        MazeOptionError: Width or height is no whole number of pixels, 1 or more.
    """
    for name, size in (("width", width), ("height", height)):
        if not (isinstance(size, Integral) and size >= 1):
            raise MazeOptionError(
                f"{name} must be a whole number of pixels, 1 or more; got {size!r}"
            )


def check_window() -> None:
    """Refuse to open a window where there is no display.

    Raises:
        RenderingError: There is none.
    """
    problem = _try_context("glfw")
    if problem is not None:
        raise RenderingError(
            f'render_mode="human" opens a window, which needs a display ({problem});'
            ' use render_mode="rgb_array"'
        )


def _candidate_platforms() -> tuple[str, ...]:
    wanted = os.environ.get("MUJOCO_GL", "").lower().strip()
    if wanted:
        return (wanted,)
    if sys.platform != "linux":
        return ("glfw",)
    has_display = any(os.environ.get(x) for x in ("DISPLAY", "WAYLAND_DISPLAY"))
    return ("glfw", "egl") if has_display else ("egl",)


def _try_context(platform: str) -> str | None:
    """Make and free a small OpenGL context; return the problem, if there is one."""
    if platform not in ("egl", "glfw", "osmesa"):
        return "not an off-screen platform"
    before = os.environ.get("PYOPENGL_PLATFORM")
    try:
        # Without a display GLFW only warns, and its context is then a null pointer.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if platform == "glfw" and not importlib.import_module("glfw").init():
                return "no display"
            context = importlib.import_module(f"mujoco.{platform}").GLContext(64, 64)
            context.make_current()
            context.free()
    except Exception as error:  # the bindings raise any error, even AttributeError
        if before is None:
            os.environ.pop("PYOPENGL_PLATFORM", None)
        return f"{type(error).__name__}: {error}"
    return None


@contextlib.contextmanager
def _environment_variable(name: str, value: str | None) -> Iterator[None]:
    """Set an environment variable within the block."""
    before = os.environ.get(name)
    if value is not None:
        os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before


def draw_maze(
    maze_map: Sequence[Sequence[int | str]],
    *,
    position: npt.ArrayLike | None = None,
    goal: npt.ArrayLike | None = None,
    path: npt.ArrayLike | None = None,
    size: int | tuple[int, int] = 480,
    cell_size: float = 1.0,
    goal_radius: float = GOAL_RADIUS,
) -> Picture:
    """Draw a maze from above, x to the right and y upwards, as PointMaze's coordinates.

    Args:
        maze_map: Rows of cells from top to bottom; 1 is a wall.
        position: Ball (x, y), meters.
        goal: Goal (x, y), meters, with its success disc.
        path: Points (x, y) to join, from blue to orange, shape `[n, 2]`, meters.
        size: Width and height of the picture in pixels, or both at once.
        cell_size: Side of a cell in meters.
        goal_radius: Radius of the success disc in meters.

    Returns:
        A picture, uint8, shape `[height, width, 3]`.

    Raises:
        MazeOptionError: A size that is not positive.
    """
    width, height = (size, size) if isinstance(size, int) else size
    check_size(width, height)
    layout = MazeLayout.from_map(maze_map, cell_size=cell_size)
    canvas = _Canvas.of_maze(layout, width, height)
    if goal is not None:
        center = np.asarray(goal, dtype=np.float64)
        canvas.disc(center, goal_radius, GOAL, opacity=0.25)
    if path is not None:
        canvas.polyline(np.asarray(path, dtype=np.float64).reshape(-1, 2))
    if goal is not None:
        canvas.disc(center, 1.2 * BALL_RADIUS * cell_size, GOAL)
    if position is not None:
        center = np.asarray(position, dtype=np.float64)
        canvas.disc(center, 1.4 * BALL_RADIUS * cell_size, BALL)
    return np.rint(canvas.pixels).astype(np.uint8)


@dataclass(frozen=True)
class _Canvas:
    """A picture in the making, and the position of the maze in it.

    Attributes:
        pixels: Colors, float, shape `[height, width, 3]`; drawn on in place.
        scale: Pixels per meter.
        middle: Column and row, in pixels, of the maze's origin.
        cell_size: Side of a cell in meters.
    """

    pixels: FloatArray
    scale: float
    middle: FloatArray
    cell_size: float

    @classmethod
    def of_maze(cls, layout: MazeLayout, width: int, height: int) -> _Canvas:
        scale = _fitting_scale(layout, width, height)
        pixels = _draw_walls(layout, width, height).astype(np.float64)
        middle = np.array([width / 2, height / 2])
        return cls(pixels, scale / layout.cell_size, middle, layout.cell_size)

    def disc(
        self,
        center: FloatArray,
        radius: float,
        color: tuple[int, int, int],
        opacity: float = 1.0,
    ) -> None:
        self._capsule(center, center, radius, color, opacity)

    def polyline(self, points: FloatArray) -> None:
        shades = np.linspace(PATH_START, PATH_END, num=max(len(points) - 1, 0))
        radius = 0.5 * PATH_WIDTH * self.cell_size
        for start, end, shade in zip(points[:-1], points[1:], shades, strict=True):
            self._capsule(start, end, radius, tuple(shade), 1.0)

    def _capsule(
        self,
        start: FloatArray,
        end: FloatArray,
        radius: float,
        color: tuple[float, ...],
        opacity: float,
    ) -> None:
        """Blend a color within `radius` meters of a segment; touch only its box."""
        flip = np.array([self.scale, -self.scale])
        first, last = self.middle + start * flip, self.middle + end * flip
        reach = radius * self.scale
        height, width, _ = self.pixels.shape
        low = np.floor(np.minimum(first, last) - reach - 1).astype(int)
        high = np.ceil(np.maximum(first, last) + reach + 1).astype(int)
        left, top = np.clip(low, 0, (width, height))
        right, bottom = np.clip(high, 0, (width, height))
        columns = np.arange(left, right) + 0.5 - first[0]
        rows = (np.arange(top, bottom) + 0.5 - first[1])[:, None]
        direction = last - first
        length_squared = float(direction @ direction) or 1.0
        along = (columns * direction[0] + rows * direction[1]) / length_squared
        along = np.clip(along, 0.0, 1.0)
        distance = np.hypot(columns - along * direction[0], rows - along * direction[1])
        coverage = opacity * np.clip(0.5 - (distance - reach), 0.0, 1.0)[..., None]
        patch = self.pixels[top:bottom, left:right]
        patch += coverage * (np.array(color) - patch)


def _fitting_scale(layout: MazeLayout, width: int, height: int) -> float:
    """Return the pixels per cell with which the maze just fills the picture."""
    num_rows, num_columns = layout.walls.shape
    return float(min(width / num_columns, height / num_rows))


@lru_cache(maxsize=32)
def _draw_walls(layout: MazeLayout, width: int, height: int) -> Picture:
    """Color each pixel by the cell in which its center lies."""
    num_rows, num_columns = layout.walls.shape
    scale = _fitting_scale(layout, width, height)
    rows = (np.arange(height) + 0.5 - height / 2) / scale + num_rows / 2
    columns = (np.arange(width) + 0.5 - width / 2) / scale + num_columns / 2
    inside = ((rows >= 0) & (rows < num_rows))[:, None]
    inside = inside & ((columns >= 0) & (columns < num_columns))
    i = np.clip(rows.astype(int), 0, num_rows - 1)
    j = np.clip(columns.astype(int), 0, num_columns - 1)
    picture = np.where(layout.walls[i[:, None], j][..., None], WALL, FLOOR)
    picture = np.where(inside[..., None], picture, BACKGROUND).astype(np.uint8)
    picture.setflags(write=False)
    return picture
