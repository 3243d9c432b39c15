"""What block stacking looks like on the page of `diffuser-policy play`.

The arm is drawn from the meshes that its URDF file names, in the poses of Bullet's
links; the goal is drawn as ghosts. Blocks are dragged along the table, before the start
and in a Rearrangement's goal, and stand on the block they are dropped on. A tower's
ghosts are dragged up and down, which reorders it.

`BlockPlayWorld` has the methods of `diffuser_policy.play.worlds.World`; poses are x, y,
z and the quaternion w, x, y, z.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from diffuser_envs.errors import (
    KukaArrangementError,
    KukaOptionError,
    MissingExtraError,
)
from diffuser_envs.kuka.arrangements import (
    STACKED_XY,
    check_arrangement,
    order_of_pairs,
)
from diffuser_envs.kuka.columns import (
    BLOCK_HEIGHT,
    NUM_JOINTS,
    FloatArray,
    layer_height,
)
from diffuser_envs.kuka.env import KukaStackEnv
from diffuser_envs.kuka.grips import HALF_SIZE
from diffuser_envs.kuka.stages import next_stages
from diffuser_envs.kuka.tasks import Conditional, Rearrangement, tower_goal
from diffuser_envs.kuka.world import BLOCK_COLORS, arm_file

Untyped: TypeAlias = Any
Color = tuple[float, float, float]
Mesh = tuple[str, FloatArray, FloatArray, Color]
Place = tuple[float, float, float]

WISH = (0.15, -0.72)  # where the ghosts of a tower stand: out of the arm's way
TASKS = {
    "tower in any order": "diffuser_envs/KukaStack-Unconditional-v1",
    "tower in my order": "diffuser_envs/KukaStack-Conditional-v1",
    "other stacks": "diffuser_envs/KukaStack-Rearrangement-v1",
}
ARM_COLORS = ((0.88, 0.88, 0.90), (0.93, 0.52, 0.18))  # links alternate
NAMES = ("red", "blue", "green", "yellow", "violet")


class BlockPlayWorld:
    """The arm, the blocks and the goal.

    Attributes:
        position: Columns of the planned tool, which the path shows.
        goal_radius: None: goals are no discs.
        size: Scale of lines and handles, in meters.
    """

    goal_radius = None
    size = 0.25

    def __init__(self, env: KukaStackEnv, tool: Sequence[int]) -> None:
        """Look at an environment that was just reset.

        Args:
            env: The unwrapped environment.
            tool: Columns of the tool in planning columns; none: no path is drawn.
        """
        self.env = env
        self.position = tuple(tool)
        self._moved: dict[str, list[Any]] = {}
        self._refused: list[Any] | None = None  # where the blocks cannot be
        self._parts = _arm_meshes()

    # --- what is seen -----------------------------------------------------------------

    def meshes(self) -> Sequence[Mesh]:
        """Return the arm's links and the blocks."""
        trimesh = _trimesh()
        box = trimesh.creation.box(extents=2 * HALF_SIZE)
        blocks = [
            (f"block {k}", box.vertices, box.faces, BLOCK_COLORS[k][:3])
            for k in range(self.env.num_blocks)
        ]
        return (*self._parts, *blocks)

    def poses(self, state: FloatArray) -> FloatArray:  # noqa: ARG002 (Bullet knows)
        """Return where links and blocks are, `[meshes, 7]`."""
        both = np.concatenate([self.env.link_poses(), self.env.block_poses()])
        return both[:, [0, 1, 2, 6, 3, 4, 5]]

    def ghosts(self) -> Mapping[str, tuple[str, FloatArray]]:
        """Return the blocks as the goal has them."""
        return {
            f"goal {k}": (f"block {k}", np.array([*place, 1.0, 0.0, 0.0, 0.0]))
            for k, place in enumerate(self._goal_places())
        }

    def planned_poses(self, path: FloatArray, stride: int) -> FloatArray:  # noqa: ARG002
        """Return no ghosts: the tool's path shows the plan."""
        return np.zeros((0, 0, 7))

    def points(self, states: FloatArray) -> FloatArray:
        """Return the tool's points `[..., 3]` of planned states."""
        return np.asarray(states)[..., list(self.position)]

    def camera(self) -> tuple[Place, Place]:
        """Return where the camera is, and what it looks at."""
        return (1.2, -0.7, 0.85), (0.25, -0.05, 0.15)

    def caption(self) -> str:
        """Return the stage: which block is to be moved next, and where to."""
        goal = self.env.goal
        if not len(goal):
            return ""
        poses, held = self.env.block_poses(), self.env.held
        flags = np.array([[k == held for k in range(self.env.num_blocks)]], float)
        stage = next_stages(poses[None, :, :3], flags, goal[None])
        block, support = int(stage.block[0]), int(stage.support[0])
        if block < 0:
            return "stage: done"
        where = "the table" if support < 0 else NAMES[support]
        left = int(stage.moves[0])
        moves = "move" if left == 1 else "moves"
        return f"stage: {NAMES[block]} onto {where} ({left} {moves} left)"

    # --- what is dragged --------------------------------------------------------------

    def handles(self, observation: Any) -> Sequence[tuple[str, Place, str]]:  # noqa: ARG002
        """Return the blocks, and the ghosts of the goal."""
        axes = "z" if isinstance(self.env.task, Conditional) else "xy"
        starts, goals = self.env.block_poses()[:, :3], self._goal_places()
        return (
            *((f"block {k}", _place(at), "xy") for k, at in enumerate(starts)),
            *((f"goal {k}", _place(at), axes) for k, at in enumerate(goals)),
        )

    def move(self, name: str, place: Sequence[float]) -> None:
        """Put a block or a ghost somewhere; see the module.

        Blocks are drawn where `reset` last put them. So an arrangement that it refuses
        is tried only once, and the next move begins where the blocks are seen.
        """
        kind, _, number = name.partition(" ")
        block, at = int(number), np.asarray(place, float)
        self._refused = None
        if kind == "block":
            starts = self._moved.get("blocks", self.env.block_poses()[:, :3])
            blocks = settled(np.array(starts), block, at[:2])
            try:
                check_arrangement(blocks, self.env.num_blocks)
            except KukaArrangementError:  # `reset` says why
                self._refused = blocks.tolist()
            else:
                self._moved["blocks"] = blocks.tolist()
        elif isinstance(self.env.task, Conditional):
            heights = self._goal_places()[:, 2]
            heights[block] = at[2]
            self._moved["goal"] = tower_goal(np.argsort(heights).tolist()).tolist()
        else:
            goal = settled(self._goal_places(), block, at[:2])
            self._moved["goal"] = goal.reshape(-1).tolist()

    def options(self) -> dict[str, Any]:
        """Return what `reset` is given: all that was moved.

        An arrangement that it refuses is only returned once, so that it says why.
        """
        refused = {} if self._refused is None else {"blocks": self._refused}
        self._refused = None
        return {**self._moved, **refused}

    def set_options(self, options: Mapping[str, Any]) -> None:
        """Begin with what `reset` was given.

        Raises:
            KukaOptionError: Another option than blocks and goal.
        """
        for name, value in options.items():
            if name not in ("blocks", "goal"):
                raise KukaOptionError(
                    f"the page takes the reset options blocks and goal, got {name!r}"
                )
            self._moved[name] = value

    def forget(self) -> None:
        """Put everything back to where `reset` places it."""
        self._moved.clear()
        self._refused = None

    def obstructed(self, points: FloatArray) -> bool:  # noqa: ARG002
        """Return no: nothing is in the tool's way that a path shows."""
        return False

    def ground(self) -> tuple[float, float]:
        """Return the floor's place: it stays."""
        return 0.0, 0.0

    def legend(self) -> str:
        """Return what can be dragged and what is seen."""
        drag = "Drag the blocks before the run"
        if isinstance(self.env.task, Conditional):
            drag += ", and the see-through tower's blocks up and down to reorder it"
        elif isinstance(self.env.task, Rearrangement):
            drag += ", and the see-through blocks of the goal"
        return (
            f"{drag}. The line is the tool's planned path; other candidates are gray, "
            f"and what happened is black."
        )

    def choices(self) -> Mapping[str, tuple[Sequence[str], str]]:
        """Return the tasks, and which of them it is."""
        names = ("unconditional", "conditional", "rearrangement")
        here = tuple(TASKS)[names.index(self.env.task.name)]
        return {"task": (tuple(TASKS), here)}

    def choose(self, name: str, value: str) -> str | None:  # noqa: ARG002
        """Return the environment of a task."""
        return TASKS[value]

    def close(self) -> None:
        """Do nothing: the environment is another's to close."""

    def _goal_places(self) -> FloatArray:
        """Return the centers `[blocks, 3]` of the goal; none without one.

        A goal that was moved is shown where it was moved, also if it is impossible.
        """
        goal = np.asarray(self._moved.get("goal", self.env.goal), float)
        count = self.env.num_blocks
        if isinstance(self.env.task, Rearrangement):
            return goal.reshape(count, 3)
        if not isinstance(self.env.task, Conditional):
            return np.zeros((0, 3))
        places = np.empty((count, 3))
        for layer, block in enumerate(order_of_pairs(goal, count)):
            places[block] = *WISH, layer_height(layer)
        return places


def settled(places: FloatArray, block: int, xy: FloatArray) -> FloatArray:
    """Return an arrangement after a block was carried somewhere.

    What stood on it falls. It ends on top of what is at the new place.

    Args:
        places: Centers of all blocks, `[n, 3]`, m.
        block: The one that was carried.
        xy: Where it is let go, `[2]`, m.
    """
    others = [k for k in np.argsort(places[:, 2]).tolist() if k != block]
    after = places.copy()
    after[block, :2] = xy
    standing: list[int] = []
    for k in (*others, block):
        off = np.hypot(*(after[standing, :2] - after[k, :2]).T)
        below = [s for s, far in zip(standing, off, strict=True) if far < STACKED_XY]
        after[k, 2] = layer_height(0)
        if below:
            top = max(below, key=lambda s: after[s, 2])
            after[k] = after[top] + (0.0, 0.0, BLOCK_HEIGHT)
        standing.append(k)
    return after.round(4)


def _arm_meshes() -> list[Mesh]:
    """Return the arm's base, links and tool, each in the frame of its link."""
    trimesh = _trimesh()
    with arm_file() as path:
        root = ET.parse(path).getroot()
    found: list[Mesh] = []
    for index, link in enumerate(root.iter("link")):
        visual = link.find("visual")
        if visual is None:
            continue
        mesh, cylinder = visual.find("geometry/mesh"), visual.find("geometry/cylinder")
        if mesh is not None:
            made = trimesh.load(Path(mesh.attrib["filename"]), force="mesh")
        elif cylinder is not None:
            made = trimesh.creation.cylinder(
                radius=float(cylinder.attrib["radius"]),
                height=float(cylinder.attrib["length"]),
            )
        origin = visual.find("origin")
        offset = np.zeros(3)
        if origin is not None:
            offset = np.array([float(x) for x in origin.attrib["xyz"].split()])
        color = ARM_COLORS[index % 2] if index <= NUM_JOINTS else (0.35, 0.36, 0.4)
        found.append((f"link {index}", made.vertices + offset, made.faces, color))
    return found


def _place(at: FloatArray) -> Place:
    x, y, z = (float(part) for part in at)
    return x, y, z


def _trimesh() -> Untyped:
    try:
        import trimesh
    except ImportError as error:
        raise MissingExtraError(
            f"the page needs trimesh ({error}); run"
            ' `pip install ".[play]"` in a clone of diffuser-policy'
        ) from error
    return trimesh
