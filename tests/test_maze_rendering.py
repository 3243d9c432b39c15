"""Pictures of mazes: pixels where they belong, and a picture without OpenGL."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import pytest

from diffuser_envs.errors import MazeOptionError, RenderingError
from diffuser_envs.maze import rendering
from diffuser_envs.maze.env import Maze2DEnv
from diffuser_envs.maze.layouts import MazeLayout, get_layout
from diffuser_envs.maze.rendering import draw_maze

MEDIUM = get_layout("medium")
SIZE = 400
SCALE = SIZE / 8
FAR = (500.0, 500.0)


def pixel(picture: np.ndarray, x: float, y: float) -> tuple[int, ...]:
    """Return the color at a point of the medium maze, in meters."""
    column, row = int((x + 4) * SCALE), int((4 - y) * SCALE)
    return tuple(int(value) for value in picture[row, column])


def drawn(
    layout: MazeLayout = MEDIUM,
    *,
    position: Sequence[float] = FAR,
    goal: Sequence[float] = FAR,
    size: tuple[int, int] = (SIZE, SIZE),
) -> np.ndarray:
    """Return a picture; what is far away is not in it."""
    return draw_maze(
        layout, position=np.array(position), goal=np.array(goal), size=size
    )


# --- the drawing ----------------------------------------------------------------------


def test_every_cell_has_its_color() -> None:
    picture = drawn()
    assert picture.shape == (SIZE, SIZE, 3)
    assert picture.dtype == np.uint8
    for i, row in enumerate(MEDIUM.maze_map):
        for j, wall in enumerate(row):
            block = picture[50 * i : 50 * i + 50, 50 * j : 50 * j + 50]
            assert (block == (rendering.WALL if wall else rendering.FLOOR)).all()


def test_ball_and_goal_are_where_the_coordinates_say() -> None:
    position, goal = (-2.5, 2.5), (2.6, -2.4)
    picture = drawn(position=position, goal=goal)
    assert pixel(picture, *position) == rendering.BALL
    assert pixel(picture, *goal) == rendering.GOAL
    inside = pixel(picture, 2.6 - 0.4, -2.4)
    outside = pixel(picture, 2.6 - 0.55, -2.4)
    assert inside not in (rendering.FLOOR, rendering.GOAL)
    assert outside == rendering.FLOOR


def test_the_ball_covers_its_area() -> None:
    plain, picture = drawn().astype(float), drawn(position=(-2.5, 2.5))
    # Blending is linear: the summed change over the full change is the covered area.
    change = (plain - picture)[..., 0].sum() / (rendering.FLOOR[0] - rendering.BALL[0])
    radius = 1.4 * rendering.BALL_RADIUS * SCALE
    assert change == pytest.approx(np.pi * radius**2, rel=0.02)


def test_other_shapes_are_fitted_and_centered() -> None:
    picture = drawn(get_layout("large"), size=(240, 240))
    assert (picture[:30] == rendering.BACKGROUND).all()
    assert (picture[-30:] == rendering.BACKGROUND).all()
    assert (picture[31] == rendering.WALL).all()
    wide = drawn(size=(300, 100))
    assert wide.shape == (100, 300, 3)
    assert (wide[:, :100] == rendering.BACKGROUND).all()


def test_cell_size_scales_positions() -> None:
    wider = dataclasses.replace(MEDIUM, cell_size=4.0)
    expected = drawn(position=(-2.5, 2.5))
    np.testing.assert_array_equal(drawn(wider, position=(-10, 10)), expected)


# --- the environment's render ---------------------------------------------------------


def test_topdown_is_the_drawing() -> None:
    env = gymnasium.make(
        "diffuser_envs/Maze2D-Medium-v1", render_mode="rgb_array", renderer="topdown"
    )
    observation, _ = env.reset(seed=0)
    picture: Any = env.render()
    expected = draw_maze(
        MEDIUM,
        position=observation["achieved_goal"],
        goal=observation["desired_goal"],
        size=(480, 480),
    )
    np.testing.assert_array_equal(picture, expected)
    env.step(np.ones(2, np.float32))
    assert not np.array_equal(picture, np.asarray(env.render()))
    env.close()


def test_auto_draws_with_or_without_opengl() -> None:
    env = gymnasium.make(
        "diffuser_envs/Multi2D-UMaze-v1", render_mode="rgb_array", width=160, height=120
    )
    env.reset(seed=0)
    picture: Any = env.render()
    assert picture.shape == (120, 160, 3)
    assert picture.dtype == np.uint8
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 3
    env.close()


def test_mujoco_shows_the_goal_where_it_is() -> None:
    env = Maze2DEnv("umaze", goal="random", render_mode="rgb_array", renderer="mujoco")
    reds = []
    for goal in ([-1.0, 1.0], [1.0, 1.0], [1.0, -1.0]):
        env.reset(seed=0, options={"goal": goal, "start": [-1.0, -1.0]})
        try:
            picture = env.render().astype(int)
        except RenderingError:
            pytest.skip("no OpenGL here")
        red, green, blue = np.moveaxis(picture, -1, 0)
        rows, columns = np.nonzero((red > 150) & (green < 60) & (blue < 60))
        reds.append((rows.mean(), columns.mean()))
    env.close()
    (top, left), (same_top, right), (bottom, same_right) = reds
    assert left < 240 < right
    assert top < 240 < bottom
    assert same_top == pytest.approx(top, abs=15)
    assert same_right == pytest.approx(right, abs=25)


def test_without_opengl_auto_falls_back_and_mujoco_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rendering, "_try_context", lambda _: "broken")
    env = Maze2DEnv("umaze", render_mode="rgb_array")
    env.reset(seed=0)
    assert env.render().shape == (480, 480, 3)
    for settings in (
        {"render_mode": "rgb_array", "renderer": "mujoco"},
        {"render_mode": "depth_array", "renderer": "auto"},
        {"render_mode": "depth_array", "renderer": "topdown"},
    ):
        env = Maze2DEnv("umaze", **settings)  # type: ignore[arg-type]
        env.reset(seed=0)
        with pytest.raises(RenderingError):
            env.render()


def test_a_window_without_a_display_is_refused_before_it_opens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """GLFW would end Python."""
    monkeypatch.setattr(rendering, "_try_context", lambda _: "no display")
    with pytest.raises(RenderingError, match=r"needs a display \(no display\)"):
        gymnasium.make("diffuser_envs/Maze2D-UMaze-v1", render_mode="human")


def test_a_window_shows_the_start_and_every_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rendering, "_try_context", lambda _: None)
    env = Maze2DEnv("umaze", render_mode="human")
    shown: list[list[float]] = []
    monkeypatch.setattr(
        env.point_env.mujoco_renderer,
        "render",
        lambda mode: shown.append([mode, *env.data.qpos]),
    )
    first, _ = env.reset(seed=0)
    second, *_ = env.step(np.ones(2, np.float32))
    assert shown == [["human", *seen["achieved_goal"]] for seen in (first, second)]
    env.close()


@pytest.mark.parametrize("size", [0, -5, 0.5, "a", None])
@pytest.mark.parametrize("name", ["width", "height"])
def test_pictures_have_a_size(name: str, size: Any) -> None:
    message = f"{name} must be a whole number of pixels, 1 or more"
    with pytest.raises(MazeOptionError, match=message):
        Maze2DEnv("umaze", **{name: size})


def test_a_broken_opengl_is_noticed_quietly(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MUJOCO_GL", "disabled")
    env = Maze2DEnv("umaze", render_mode="rgb_array")
    env.reset(seed=0)
    assert env.render().shape == (480, 480, 3)
    assert capfd.readouterr() == ("", "")


def test_no_mode_draws_nothing_and_unknown_renderers_are_refused() -> None:
    env = Maze2DEnv("umaze")
    env.reset(seed=0)
    assert env.render() is None
    with pytest.raises(MazeOptionError, match="topdown"):
        Maze2DEnv("umaze", renderer="top")  # type: ignore[arg-type]


def test_platforms_are_tried_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert rendering._candidate_platforms() == ("egl",)
    monkeypatch.setenv("DISPLAY", ":0")
    assert rendering._candidate_platforms() == ("glfw", "egl")
    monkeypatch.setenv("MUJOCO_GL", "OSMesa")
    assert rendering._candidate_platforms() == ("osmesa",)
    monkeypatch.delenv("MUJOCO_GL")
    monkeypatch.setattr("sys.platform", "darwin")
    assert rendering._candidate_platforms() == ("glfw",)
