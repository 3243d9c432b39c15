"""Pictures of the blocks: what they show and where, and animations of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pybullet", reason="needs the extra 'kuka'")
pytest.importorskip("PIL", reason="needs the extra 'kuka'")

from PIL import Image, ImageSequence

from diffuser_envs.errors import KukaOptionError
from diffuser_envs.kuka.arrangements import MAX_AZIMUTH, MAX_RADIUS, MIN_RADIUS
from diffuser_envs.kuka.rendering import BlockCamera, save_gif
from diffuser_envs.kuka.tasks import tower_goal
from diffuser_envs.kuka.world import BLOCK_COLORS
from tests.kuka_env_helpers import ROW, TOP, make, start

SIZE: dict[str, Any] = {"width": 240, "height": 180}


def is_colored(pixel: np.ndarray, block: int) -> bool:
    """Tell whether a pixel has a block's hue, in light or shade."""
    color = np.array(BLOCK_COLORS[block][:3])
    seen = pixel / max(float(pixel.max()), 1.0)
    return bool(np.abs(seen - color / color.max()).max() < 0.2)


def picture_of(task: str, **options: Any) -> np.ndarray:
    """Draw the start of an episode."""
    env = make(task, render_mode="rgb_array", **SIZE)
    start(env, **options)
    picture: Any = env.render()
    env.close()
    return np.asarray(picture)


def test_blocks_are_seen_where_they_stand() -> None:
    picture = picture_of("unconditional", blocks=ROW)
    assert picture.shape == (180, 240, 3)
    assert picture.dtype == np.uint8
    camera = BlockCamera(240, 180)
    for block, place in enumerate(ROW):
        column, row = camera.pixels_of(place + TOP).astype(int)
        assert is_colored(picture[row, column], block)
    column, row = camera.pixels_of((0.5, 0.0, 0.0)).astype(int)
    assert not any(is_colored(picture[row, column], block) for block in range(4))


def test_whole_task_is_in_the_picture() -> None:
    camera = BlockCamera(480, 360)
    corners = [
        (radius * np.cos(azimuth), radius * np.sin(azimuth), height)
        for radius in (MIN_RADIUS, MAX_RADIUS)
        for azimuth in np.linspace(-MAX_AZIMUTH, MAX_AZIMUTH, 9)
        for height in (0.0, 0.5)
    ]
    pixels = camera.pixels_of([*corners, (0.0, 0.0, 0.98)])
    assert (pixels > 0).all()
    assert (pixels < (480, 360)).all()


def test_places_of_the_goal_are_outlined() -> None:
    goal = ROW[::-1] + np.array([0.1, 0.0, 0.0])
    without = picture_of("unconditional", blocks=ROW)
    with_goal = picture_of("rearrangement", blocks=ROW, goal=goal)
    camera = BlockCamera(240, 180)
    changed = (without != with_goal).any(axis=-1)
    assert changed.any()
    rows, columns = np.nonzero(changed)
    for block, place in enumerate(goal):
        corner = camera.pixels_of(place + np.array([0.05, -0.05, 0.03]))
        near = np.hypot(columns - corner[0], rows - corner[1]) < 4
        hues = with_goal[rows[near], columns[near]]
        assert any(is_colored(pixel, block) for pixel in hues)


def test_wanted_tower_is_drawn_in_the_corner() -> None:
    order = (3, 1, 0, 2)
    picture = picture_of("conditional", blocks=ROW, goal=tower_goal(order))
    column = picture[:60, 13]
    seen = [
        block
        for pixel in column
        for block in range(4)
        if is_colored(pixel, block) and pixel.min() < 200
    ]
    assert list(dict.fromkeys(seen)) == list(order[::-1])


def test_without_a_mode_nothing_is_drawn() -> None:
    env = make()
    start(env)
    assert env.unwrapped.render() is None
    env.close()


def test_drawing_does_not_change_the_episode() -> None:
    ends = []
    for mode in (None, "rgb_array"):
        env = make(render_mode=mode, **SIZE)
        mover, _ = start(env, seed=3, blocks=ROW)
        mover.pick(1)
        if mode is not None:
            env.render()
        mover.place(ROW[0] + (0.0, 0.0, 0.061))
        ends.append(np.stack(mover.states))
        env.close()
    np.testing.assert_array_equal(ends[0], ends[1])


def test_episodes_become_animations(tmp_path: Path) -> None:
    env = make("conditional", render_mode="rgb_array_list", width=64, height=48)
    mover, _ = start(env, blocks=ROW)
    mover.go((0.5, 0.0, 0.2), grip=False, steps=5)
    frames: Any = env.render()
    env.close()
    assert len(frames) == 6
    path = save_gif(frames, tmp_path / "made" / "episode.gif")
    with Image.open(path) as animation:
        assert len(list(ImageSequence.Iterator(animation))) == 6
        assert animation.size == (64, 48)
        assert animation.info["duration"] == 50
        assert animation.info["loop"] == 0


@pytest.mark.parametrize("settings", [{"fps": 0.0}, {}])
def test_animations_need_pictures_and_a_pace(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(KukaOptionError):
        save_gif([], tmp_path / "episode.gif", **settings)
    assert not list(tmp_path.iterdir())
