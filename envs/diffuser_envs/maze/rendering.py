"""Pictures of mazes: by MuJoCo where OpenGL works, drawn top-down by numpy elsewhere.

Gymnasium's renderer tries GLFW first, which warns and then fails without a display.
`MazeRenderer` tries an OpenGL context before MuJoCo needs it and writes nothing to the
console. It uses

- the platform that `MUJOCO_GL` names, and no other;
- EGL, which needs no display, on Linux without a display;
- otherwise what Gymnasium chooses.

A window is GLFW's, and without a display GLFW ends the whole process; `check_window`
refuses it before.

`draw_maze` needs no OpenGL. Its discs are given by their signed distance d to a pixel's
center (in pixels, negative inside). A disc covers the pixel by

    coverage = clip(1/2 - d, 0, 1)

which smooths its edge over one pixel.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import warnings
from collections.abc import Iterator
from functools import lru_cache
from math import ceil, floor
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from diffuser_envs.errors import MazeOptionError, RenderingError, check_known
from diffuser_envs.maze.layouts import SUCCESS_RADIUS, FloatArray, MazeLayout

RendererName: TypeAlias = Literal["auto", "mujoco", "topdown"]
RENDERERS = ("auto", "mujoco", "topdown")
Picture = npt.NDArray[np.uint8]

BACKGROUND = (255, 255, 255)
FLOOR = (238, 240, 244)
WALL = (68, 78, 99)
BALL = (22, 150, 86)
GOAL = (214, 48, 49)

BALL_RADIUS = 0.1  # of a cell's side


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
        check_known("renderer", renderer, RENDERERS, MazeOptionError)
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
        return draw_maze(self._layout, position=position, goal=goal, size=self._size)

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
    layout: MazeLayout,
    *,
    position: FloatArray,
    goal: FloatArray,
    size: tuple[int, int],
) -> Picture:
    """Draw a maze from above, x to the right and y upwards, as PointMaze's coordinates.

    Args:
        layout: The maze.
        position: Ball (x, y), shape `[2]`, meters.
        goal: Goal (x, y), shape `[2]`, meters, with its success disc.
        size: Width and height of the picture in pixels.

    Returns:
        A picture, uint8, shape `[height, width, 3]`.
    """
    width, height = size
    pixels = _draw_walls(layout, width, height).astype(np.float64)
    scale = _fitting_scale(layout, width, height) / layout.cell_size
    ball = BALL_RADIUS * layout.cell_size
    for center, radius, color, opacity in (
        (goal, SUCCESS_RADIUS, GOAL, 0.25),
        (goal, 1.2 * ball, GOAL, 1.0),
        (position, 1.4 * ball, BALL, 1.0),
    ):
        x, y = width / 2 + scale * center[0], height / 2 - scale * center[1]
        _disc(pixels, x, y, scale * radius, color, opacity)
    return np.rint(pixels).astype(np.uint8)


def _disc(
    pixels: FloatArray,
    x: float,
    y: float,
    radius: float,
    color: tuple[int, int, int],
    opacity: float,
) -> None:
    """Blend a disc into a picture, in place; lengths are in pixels, y is downward."""
    height, width, _ = pixels.shape
    reach = radius + 1
    left, right = np.clip((floor(x - reach), ceil(x + reach)), 0, width)
    top, bottom = np.clip((floor(y - reach), ceil(y + reach)), 0, height)
    columns = np.arange(left, right) + 0.5 - x
    rows = (np.arange(top, bottom) + 0.5 - y)[:, None]
    distance = np.hypot(columns, rows) - radius
    coverage = opacity * np.clip(0.5 - distance, 0.0, 1.0)[..., None]
    patch = pixels[top:bottom, left:right]
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
