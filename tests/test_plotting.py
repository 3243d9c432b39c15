"""Pictures: coordinates, what is on them, and that they are files or nothing."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from PIL import Image

from diffuser_envs.maze.layouts import LAYOUTS
from diffuser_policy.columns.layout import TrajectoryLayout
from diffuser_policy.errors import ConfigError, MissingExtraError, StorageError
from diffuser_policy.planning.plan import Plan
from diffuser_policy.plotting import (
    FLOOR,
    PLAN,
    WALL,
    Scene,
    chain_figure,
    draw_rollout,
    draw_scene,
    plan_figure,
    save_chain_gif,
    save_figure,
)
from diffuser_policy.walls import Walls
from tests.file_helpers import full_disk
from tests.point_env import POINT, RADIUS

LAYOUT = TrajectoryLayout(
    action_dim=2,
    observation_dim=4,
    aliases={"position": (0, 1), "velocity": (2, 3), "goal": (0, 1)},
)
UMAZE = LAYOUTS["umaze"].maze_map
MAZE = Scene(
    columns=(0, 1),
    walls=Walls.centered(UMAZE),
    goal=np.array([-1.0, 1.0]),
    goal_radius=0.5,
)
PLANE = Scene(columns=(0, 1), goal=np.array([-1.0, 1.0]), goal_radius=0.5)
NUM_STEPS, NUM_CANDIDATES, NUM_DENOISING = 9, 3, 4


def make_plan(*, chain: bool = True, num_denoising: int = NUM_DENOISING) -> Plan:
    """Return a plan along the bottom of the U-Maze; the second row is shorter."""
    rng = np.random.default_rng(0)
    line = np.zeros((NUM_STEPS, 4), np.float32)
    line[:, 0] = np.linspace(-1, 1, NUM_STEPS)
    line[:, 1] = -1
    noise = rng.normal(scale=0.1, size=(2, NUM_CANDIDATES, NUM_STEPS, 4))
    candidates = (line + noise).astype(np.float32)
    shares = np.linspace(1, 0, num_denoising + 1)[:, None, None, None, None]
    return Plan(
        observations=candidates[:, 1],
        actions=np.zeros((2, NUM_STEPS, 2), np.float32),
        lengths=np.array([NUM_STEPS, NUM_STEPS - 2]),
        stride=5,
        values=np.array([[0.0, 1.0, 0.5]] * 2),
        chosen=np.array([1, 1]),
        num_candidates=np.array([NUM_CANDIDATES] * 2),
        candidates=candidates,
        chain=candidates + 3 * shares * rng.normal(size=candidates.shape)
        if chain
        else None,
    )


def pixels(figure: Figure) -> np.ndarray:
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3] / 255


@pytest.mark.parametrize("name", LAYOUTS)
def test_walls_are_where_the_environment_has_them(name: str) -> None:
    layout = LAYOUTS[name]
    figure = Figure(dpi=100)
    ax = figure.subplots()
    walls = Walls.centered(layout.maze_map, layout.cell_size)
    scene = Scene(columns=(0, 1), walls=walls)
    draw_scene(ax, scene)
    picture = pixels(figure)
    cells = np.argwhere(np.ones_like(layout.walls))
    # Off the centers, so that a flipped or shifted picture cannot pass.
    points = np.array([layout.cell_to_xy((i, j)) for i, j in cells])
    points = points + np.array([0.12, -0.22])
    inner = (np.abs(points) < [ax.get_xlim()[1], ax.get_ylim()[1]]).all(axis=1)
    points = points[inner]
    assert (~layout.is_free(points)).sum() > 5
    columns, rows = ax.transData.transform(points).round().astype(int).T
    for row, column, free in zip(rows, columns, layout.is_free(points), strict=True):
        expected = to_rgb(FLOOR if free else WALL)
        assert picture[-1 - row, column] == pytest.approx(expected, abs=0.01)


def test_maze_has_equal_scales_and_a_rim_of_wall() -> None:
    figure = Figure()
    ax = figure.subplots()
    draw_scene(ax, Scene(columns=(0, 1), walls=Walls.centered(UMAZE, 2.0)))
    assert ax.get_aspect() == 1
    assert ax.get_xlim() == pytest.approx((-3.8, 3.8))
    assert ax.get_ylim() == pytest.approx((-3.8, 3.8))


@pytest.mark.parametrize("scene", [MAZE, PLANE])
def test_plan_is_drawn_among_its_candidates(scene: Scene) -> None:
    plan = make_plan()
    figure = plan_figure(plan, scene, row=1, title="Two rows")
    [panel] = figure.axes
    lines = {line.get_label(): line for line in panel.lines}
    assert set(lines) >= {"other candidates", "plan", "start", "goal"}
    assert np.allclose(lines["plan"].get_xydata(), plan.path(1)[:, :2])
    assert lines["plan"].get_color() == PLAN
    grey = [line for line in panel.lines if len(np.asarray(line.get_xdata())) == 7]
    assert len(grey) == NUM_CANDIDATES  # the chosen one and two others
    circles = [patch for patch in panel.patches if isinstance(patch, Circle)]
    assert {(*circle.center, circle.radius) for circle in circles} == {(-1, 1, 0.5)}
    assert panel.get_title() == "plan: 30 env steps to the goal, best of 3 candidates"
    assert pixels(figure).std() > 0.05


@pytest.mark.parametrize(
    ("aim", "where"), [((-1, 1), "the goal"), ((0, 1), "a subgoal")]
)
def test_the_title_says_where_a_plan_leads(aim: tuple[int, int], where: str) -> None:
    plan = dataclasses.replace(make_plan(), aims=np.array([aim, aim], np.float32))
    [panel] = plan_figure(plan, MAZE).axes
    assert f"env steps to {where}," in panel.get_title()


def test_rollout_is_drawn_beside_the_plan() -> None:
    rollout = make_plan().path(0)
    figure = plan_figure(make_plan(), MAZE, rollout=rollout)
    titles = [axes.get_title() for axes in figure.axes]
    assert "executed: 8 env steps" in titles
    [bar] = figure.axes[1].child_axes
    assert bar.get_ylabel() == "env step"
    pixels(figure)


def test_a_plan_of_one_action_leaves_the_panel_to_the_rollout() -> None:
    whole = make_plan()
    plan = dataclasses.replace(whole, lengths=np.array([1, 1]))
    [panel] = plan_figure(plan, MAZE, rollout=whole.path(0)).axes
    assert panel.get_title() == "executed: 8 env steps"
    assert "plan" not in {line.get_label() for line in panel.lines}


def test_colors_of_a_rollout_end_where_it_came_to_rest() -> None:
    moving = np.column_stack([np.linspace(0, 1, 21), np.zeros(21)])
    resting = np.repeat(moving[-1:], 80, axis=0)
    ax = Figure().subplots()
    assert draw_rollout(ax, moving).get_clim() == (0, 20)
    assert draw_rollout(ax, np.concatenate([moving, resting])).get_clim() == (0, 20)
    assert draw_rollout(ax, resting).get_clim() == (0, 1)


@pytest.mark.parametrize("scene", [MAZE, PLANE])
def test_chain_is_drawn_from_noise_to_plan(scene: Scene) -> None:
    figure = chain_figure(make_plan(), scene)
    titles = [axes.get_title() for axes in figure.axes if axes.get_visible()]
    assert titles[0] == "noise"
    assert titles[1] == "denoising step 1 of 4"
    assert titles[-1] == "plan, after 4 denoising steps"
    assert len(titles) == NUM_DENOISING + 1
    pixels(figure)


def test_long_chains_are_thinned() -> None:
    figure = chain_figure(make_plan(num_denoising=40), MAZE)
    titles = [axes.get_title() for axes in figure.axes]
    assert len(titles) == 6
    assert titles[1] == "denoising step 8 of 40"


def test_gif_has_a_frame_per_denoising_step(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "chain.gif"
    save_chain_gif(make_plan(), MAZE, path, row=1, title="Film")
    with Image.open(path) as film:
        frames: int = getattr(film, "n_frames", 1)
        assert frames == NUM_DENOISING + 1
        assert film.format == "GIF"
        durations = []
        for index in range(frames):
            film.seek(index)
            durations.append(film.info["duration"])
    assert durations[-1] == 2000
    assert all(50 <= duration <= 600 for duration in durations[:-1])


def test_drawing_a_chain_needs_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="keep_chain=True"):
        chain_figure(make_plan(chain=False), MAZE)
    with pytest.raises(ConfigError, match="keep_chain=True"):
        save_chain_gif(make_plan(chain=False), MAZE, tmp_path / "chain.gif")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_pictures_are_written_by_suffix(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"plan.{suffix}"
    save_figure(plan_figure(make_plan(), MAZE), path)
    assert path.read_bytes()[:5] == {"png": b"\x89PNG\r", "svg": b"<?xml"}[suffix]


@pytest.mark.parametrize("name", ["plan.xyz", "plan.docx", "plan.v1"])
def test_pictures_of_unknown_formats_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"ends in one of .*\.pdf.*\.png.*\.svg"):
        save_figure(plan_figure(make_plan(), MAZE), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_pictures_are_written_completely_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "plan.png"
    path.write_text("before")

    monkeypatch.setattr(Figure, "savefig", full_disk)
    with pytest.raises(StorageError, match="No space left"):
        save_figure(plan_figure(make_plan(), MAZE), path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_planned_arrival_is_the_first_step_inside_the_goal() -> None:
    plan = make_plan()
    scene = dataclasses.replace(MAZE, goal=plan.path(0)[4, :2], goal_radius=1e-6)
    assert scene.arrival(plan) == 20  # planning step 4, stride 5
    near = dataclasses.replace(scene, goal_radius=10.0)
    assert near.arrival(plan) == 0
    assert MAZE.arrival(plan) is None
    assert dataclasses.replace(MAZE, goal=None).arrival(plan) is None


def test_plans_arrive_at_goals_whose_radius_nobody_knows() -> None:
    plan = make_plan()
    rounded = plan.path(0)[-1, :2] + 1e-5
    scene = dataclasses.replace(MAZE, goal=rounded, goal_radius=None)
    assert scene.arrival(plan) == 40  # the last of 9 planning steps, stride 5


def test_scene_is_read_off_our_mazes() -> None:
    env = gym.make("diffuser_envs:diffuser_envs/Multi2D-UMaze-v1")
    observation, _ = env.reset(seed=0)
    scene = Scene.of(env, LAYOUT, observation)
    assert scene.walls is not None
    assert scene.walls.cells.tolist() == [[c == 1 for c in row] for row in UMAZE]
    assert scene.walls.cell_size == 1.0
    assert (scene.goal_radius, scene.columns) == (0.5, (0, 1))
    assert scene.goal == pytest.approx(observation["desired_goal"])
    env.close()


def test_scene_is_read_off_robotics_mazes() -> None:
    class Maze:
        maze_map = ((1, 1, 1), (1, "g", 1), (1, 1, 1))
        maze_size_scaling = 4

    class Env:
        maze = Maze()

    scene = Scene.of(Env(), LAYOUT, {"desired_goal": np.zeros(2)})
    assert scene.walls is not None
    assert scene.walls.extent == (-6, 6, -6, 6)
    assert scene.walls.contain(np.array([[0.0, 1.9], [0.0, 2.1]])).tolist() == [0, 1]
    assert scene.goal_radius is None
    pixels(plan_figure(make_plan(), scene))


def test_environments_without_walls_are_drawn_as_a_plane() -> None:
    env = gym.make(POINT)
    observation, _ = env.reset(seed=0)
    scene = Scene.of(env, LAYOUT, observation)
    assert scene.walls is None
    assert scene.labels == ("observation[0]", "observation[1]")
    assert RADIUS  # the environment has one and doesn't tell
    assert scene.goal_radius is None
    env.close()


def test_flat_observations_are_drawn_by_their_first_columns() -> None:
    flat = TrajectoryLayout(action_dim=1, observation_dim=3)
    scene = Scene.of(object(), flat, np.zeros(3))
    assert scene.columns == (0, 1)
    assert scene.goal is None
    pixels(plan_figure(make_plan(), scene))


def test_a_single_column_has_no_picture() -> None:
    with pytest.raises(ConfigError, match="two columns"):
        Scene.of(object(), TrajectoryLayout(action_dim=1, observation_dim=1), [0.0])


def test_missing_matplotlib_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"pip install .\.\[plot\]"):
        plan_figure(make_plan(), MAZE)


def test_drawing_leaves_no_global_state() -> None:
    """Neither pyplot nor, before something is drawn, Matplotlib is imported."""
    script = (
        "import sys; import diffuser_policy.plotting as p;"
        "assert 'matplotlib' not in sys.modules;"
        "from tests.test_plotting import *;"
        "p.plan_figure(make_plan(), MAZE);"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    root = Path(__file__).parent.parent
    subprocess.run([sys.executable, "-c", script], check=True, cwd=root)
