"""Pictures of the arm and the blocks, drawn by Bullet without a graphics card.

They show the goal: a Rearrangement's places as outlines in the blocks' colors, a
Conditional tower as a small stack in the corner.

    env = gymnasium.make(
        "diffuser_envs/KukaStack-Conditional-v1", render_mode="rgb_array_list"
    )
    ...  # an episode
    save_gif(env.render(), "tower.gif")

For MP4, use `gymnasium.wrappers.RecordVideo` with `render_mode="rgb_array"`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from diffuser_envs.errors import KukaOptionError, MissingExtraError, check_size
from diffuser_envs.kuka.arrangements import order_of_pairs
from diffuser_envs.kuka.columns import FloatArray
from diffuser_envs.kuka.grips import HALF_SIZE
from diffuser_envs.kuka.tasks import Conditional, Rearrangement, Task
from diffuser_envs.kuka.world import BLOCK_COLORS, pybullet

Picture: TypeAlias = npt.NDArray[np.uint8]
Untyped: TypeAlias = Any

# The picture just holds the arm stretched upward and the ends of the work sector.
EYE = (1.65, -0.5, 1.15)
TARGET = (0.17, -0.03, 0.37)
FIELD_OF_VIEW = 44.0
CLIPPING = (0.1, 6.0)
LIGHT = (1.0, -0.6, 2.0)

_CORNERS: FloatArray = HALF_SIZE * np.array(list(itertools.product((-1, 1), repeat=3)))
_EDGES = [
    (first, second)
    for first, second in itertools.combinations(range(8), 2)
    if bin(first ^ second).count("1") == 1
]


class BlockCamera:
    """A camera that shows all of the work sector and the arm.

    Args:
        width: Width of a picture in pixels.
        height: Height of a picture in pixels.

    Raises:
        KukaOptionError: A size is no whole number, or not positive.
    """

    def __init__(self, width: int, height: int) -> None:
        check_size(width, height, KukaOptionError)
        self.width = width
        self.height = height
        self._view = pybullet.computeViewMatrix(EYE, TARGET, (0.0, 0.0, 1.0))
        self._projection = pybullet.computeProjectionMatrixFOV(
            FIELD_OF_VIEW, width / height, *CLIPPING
        )

    def render(self, client: int, task: Task, goal: FloatArray) -> Picture:
        """Draw the world of a Bullet client.

        Args:
            client: Number of the client.
            task: Decides how the goal is drawn.
            goal: `[goal_size]`.

        Returns:
            `[height, width, 3]`.
        """
        _, _, pixels, _, _ = pybullet.getCameraImage(
            self.width,
            self.height,
            self._view,
            self._projection,
            lightDirection=LIGHT,
            shadow=1,
            renderer=pybullet.ER_TINY_RENDERER,
            flags=pybullet.ER_NO_SEGMENTATION_MASK,
            physicsClientId=client,
        )
        picture = np.asarray(pixels, dtype=np.uint8)
        picture = picture.reshape(self.height, self.width, 4)[..., :3].copy()
        if isinstance(task, Conditional):
            return _with_tower(picture, order_of_pairs(goal, task.num_blocks))
        if isinstance(task, Rearrangement):
            return self._with_places(picture, goal.reshape(-1, 3))
        return picture

    def pixels_of(self, points: npt.ArrayLike) -> FloatArray:
        """Return where points of the world appear in the picture.

        Args:
            points: Shape `[..., 3]`, m.

        Returns:
            Column and row in pixels, shape `[..., 2]`.
        """
        # Bullet's matrices are those of OpenGL, column by column.
        view = np.reshape(self._view, (4, 4)).T
        matrix = np.reshape(self._projection, (4, 4)).T @ view
        places = np.asarray(points, dtype=np.float64)
        ones = np.ones((*places.shape[:-1], 1))
        clip = np.concatenate((places, ones), axis=-1) @ matrix.T
        screen = clip[..., :2] / clip[..., 3:]
        return np.asarray((screen * (1, -1) + 1) / 2 * (self.width, self.height))

    def _with_places(self, picture: Picture, places: FloatArray) -> Picture:
        canvas, draw = _canvas(picture)
        for color, place in zip(BLOCK_COLORS, places, strict=False):
            corners = self.pixels_of(place + _CORNERS)
            for first, second in _EDGES:
                line = [tuple(corners[first]), tuple(corners[second])]
                draw.line(line, fill=_rgb(color), width=2)
        return np.asarray(canvas)


def save_gif(
    pictures: Iterable[npt.ArrayLike],
    path: str | Path,
    *,
    fps: float = 20.0,
) -> Path:
    """Write pictures as a looping animation.

    Args:
        pictures: `[height, width, 3]` each, uint8.
        path: The file to write; missing folders are made.
        fps: Pictures per second.

    Returns:
        The path.

    Raises:
        KukaOptionError: No pictures, or `fps` is not positive.
    """
    if fps <= 0.0:
        raise KukaOptionError(f"fps must be positive, got {fps}")
    image = _pillow("Image")
    frames = [
        image.fromarray(np.asarray(picture, dtype=np.uint8)) for picture in pictures
    ]
    if not frames:
        raise KukaOptionError(
            "there are no pictures to save; make the environment with"
            ' render_mode="rgb_array_list" and run an episode first'
        )
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    duration = 1000.0 / fps
    frames[0].save(
        file,
        format="GIF",
        save_all=True,
        append_images=frames[1:],
        duration=duration,
        loop=0,
    )
    return file


def _with_tower(picture: Picture, order: Iterable[int]) -> Picture:
    """Draw a tower, bottom to top, as a small stack in the corner."""
    canvas, draw = _canvas(picture)
    unit = max(picture.shape[1] // 80, 2)
    names = list(order)
    bottom = unit * (2 + 3 * len(names))
    draw.rectangle((unit, unit, 8 * unit, bottom + unit), fill=(255, 255, 255))
    for layer, block in enumerate(names):
        low = bottom - 3 * unit * layer
        box = (2 * unit, low - 3 * unit, 7 * unit, low - 1)
        draw.rectangle(box, fill=_rgb(BLOCK_COLORS[block]), outline=(60, 60, 60))
    return np.asarray(canvas)


def _canvas(picture: Picture) -> tuple[Untyped, Untyped]:
    canvas = _pillow("Image").fromarray(picture)
    return canvas, _pillow("ImageDraw").Draw(canvas)


def _pillow(module: str) -> Untyped:
    try:
        from PIL import Image, ImageDraw
    except ImportError as error:
        raise MissingExtraError(
            f'pictures need Pillow ({error}); run `pip install ".[kuka]"` in a clone of'
            " diffuser-policy"
        ) from error
    return {"Image": Image, "ImageDraw": ImageDraw}[module]


def _rgb(color: tuple[float, ...]) -> tuple[int, ...]:
    return tuple(round(255 * part) for part in color[:3])
