"""Who draws a maze: MuJoCo where OpenGL works, our own top-down drawing elsewhere.

Gymnasium's renderer tries GLFW first, which warns and then fails without a display.
Here a context is tried out before the renderer needs it, and nothing is written to the
console:

- `MUJOCO_GL` is set: that platform, and no other;
- no display on Linux: EGL, which needs none;
- otherwise: what Gymnasium chooses.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

import numpy as np

from diffuser_envs.errors import MazeOptionError, RenderingError, nearest_names
from diffuser_envs.maze.drawing import draw_maze
from diffuser_envs.maze.layouts import FloatArray, MazeLayout

RendererName: TypeAlias = Literal["auto", "mujoco", "topdown"]
RENDERERS = ("auto", "mujoco", "topdown")


class MazeRenderer:
    """Draws one environment; OpenGL is looked for at the first picture.

    Args:
        point: The simulated ball, a Gymnasium MuJoCo environment.
        layout: The maze.
        renderer: Who draws.
        size: Width and height of a picture in pixels.

    Raises:
        MazeOptionError: There is no renderer of that name.
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
        """Draw the maze as Gymnasium's `render_mode` says; nothing without a mode.

        Args:
            mode: `"human"`, `"rgb_array"`, `"depth_array"` or none.
            position: Ball (x, y), shape `[2]`, meters.
            goal: Goal (x, y), shape `[2]`, meters.

        Raises:
            RenderingError: MuJoCo is needed and no OpenGL context can be made.
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
        """Free the OpenGL contexts, where there are any."""
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


def _candidate_platforms() -> tuple[str, ...]:
    wanted = os.environ.get("MUJOCO_GL", "").lower().strip()
    if wanted:
        return (wanted,)
    if sys.platform != "linux":
        return ("glfw",)
    has_display = any(os.environ.get(x) for x in ("DISPLAY", "WAYLAND_DISPLAY"))
    return ("glfw", "egl") if has_display else ("egl",)


def _try_context(platform: str) -> str | None:
    """Make and free a small OpenGL context; return what went wrong, if anything."""
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
    except Exception as error:  # bindings raise anything, even AttributeError
        if before is None:
            os.environ.pop("PYOPENGL_PLATFORM", None)
        return f"{type(error).__name__}: {error}"
    return None


@contextlib.contextmanager
def _environment_variable(name: str, value: str | None) -> Iterator[None]:
    """Set an environment variable for a while."""
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
