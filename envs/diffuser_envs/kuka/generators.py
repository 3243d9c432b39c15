"""Generators of demonstrations: towers, with and without physics.

`diffuser-policy collect` runs the two recorders. Both write the episodes that the
Unconditional environment would record:

* *kinematic* computes them by inverse kinematics: a held block moves with the tool, a
  released one stays. As long as nothing is touched on the way, physics does the same,
  and takes much longer. `verify` replays an episode in physics.
* *physics* carries out the same joint motions in the environment and records what it
  observes. An attempt that does not end in a tower is a failure.

Two scenarios, each ending in a tower of all blocks, in a random order:

* *tower*: the blocks are scattered over the table;
* *rebuild*: the blocks stand in random stacks, which have to be taken apart; the tower
  may have to stand on a new place.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Self

import gymnasium
import numpy as np

from diffuser_envs.errors import (
    KukaArrangementError,
    KukaOptionError,
    UnsupportedEnvError,
    check_number,
)
from diffuser_envs.kuka.arm import HOME, reachable, tool_position
from diffuser_envs.kuka.arrangements import (
    check_arrangement,
    random_place,
    random_stacks,
    scattered,
    within_ring,
)
from diffuser_envs.kuka.columns import (
    BLOCK_HEIGHT,
    MAX_BLOCKS,
    NUM_BLOCKS,
    NUM_JOINTS,
    FloatArray,
    layer_height,
    observation_size,
)
from diffuser_envs.kuka.motions import (
    NOTHING,
    TOP,
    Route,
    Style,
    Trajectory,
    lowest_tool,
)
from diffuser_envs.kuka.task_planner import Move, plan_tower
from diffuser_envs.kuka.tasks import built_share, on_pairs

MAX_OFF_CENTRE = 0.02
LOW_GAP = 0.16  # meters from the middle of a block to a low start, at most
LOW_HEIGHTS = (0.01, 0.12)  # meters above the obstacles below
DETOUR_HEIGHTS = (0.01, 0.05)
DETOUR_ROOM = 0.22  # meters to other blocks of the same height
CLOSEST = 0.414  # meters from the base that the tool reaches at every height
HIGHEST_START = 0.42
MAX_CLEARANCE = 0.2  # meters
MAX_SCATTER = 0.005  # meters
_CONTACT = 0.005  # meters; lower blocks are no obstacles
_HOME_TOOL = tool_position(HOME)
# How far a replay may deviate from the computed episode, rad and meters.
JOINT_TOLERANCE = 0.005
BLOCK_TOLERANCE = 0.01
_CLEARANCES = (0.0, MAX_CLEARANCE, "with more, the arm does not get over a tower")
# Least and largest value of options, and why; of others, 0 and infinity.
_RANGES = {
    "num_blocks": (2, MAX_BLOCKS, "more do not fit into the arm's work sector"),
    "scatter": (0.0, MAX_SCATTER, "with more, blocks could fall off random stacks"),
    "clearance": _CLEARANCES,
    "clearance_high": _CLEARANCES,
    "grasp_steps": (1, np.inf, "the tool has to rest to grasp"),
}


def check_option(name: str, value: Any, *, whole: bool = False) -> None:
    """Refuse an option of a generator or a demonstrator that is out of its range.

    Args:
        name: Of the option.
        value: What was given.
        whole: Refuse fractions; 3.0 is none.

    Raises:
        KukaOptionError: It is no finite number, or out of its range.
    """
    least, most, why = _RANGES.get(name, (0.0, np.inf, ""))
    if name.endswith("_share"):
        most = 1.0
    check_number(
        name, value, KukaOptionError, least=least, most=most, whole=whole, why=why
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class Demonstration:
    """One episode of `T` steps as the environment would record it.

    Attributes:
        observations: float32 `[T + 1, 7 + 8n]`.
        actions: float32 `[T, 8]`: joint targets and grasp.
        rewards: `[T]`: share of the tower that stands after each step.
        order: Order of the tower, bottom to top.
        moves: The pick-and-places.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: FloatArray
    order: tuple[int, ...]
    moves: tuple[Move, ...]


@dataclass(frozen=True, kw_only=True)
class KinematicGenerator:
    """Draws demonstrations; settings and seed determine each.

    Attributes:
        num_blocks: Number of blocks.
        rebuild_share: Share of episodes that begin with stacks. None do with two
            blocks, of which any stack is a tower already.
        new_base_share: Share of those in which the tower must stand on a new place.
        random_start_share: Share of episodes that begin with the tool somewhere above
            the blocks instead of at home.
        low_start_share: Share of those in which the tool starts close to a block.
        detour_share: Share of approaches, loaded or not, that come down beside their
            target and a little too high, and then correct it. They show how to return
            to the way.
        detour: Standard deviation of the distance beside, meters; cut at twice that.
        off_centre_share: Share of grasps beside the middle of the block; the placement
            corrects them.
        off_centre: Standard deviation of such a grasp, meters; cut at 0.02.
        scatter: Standard deviation of a placement, meters; cut at twice that. Blocks of
            stacks at the start are off by twice as much.
        clearance_low: Least clearance over blocks, meters.
        clearance_high: Largest clearance; every pick-and-place draws its own.
        grasp_steps: Env steps that the tool rests when it grasps or releases.
        hold_steps: Env steps that the arm rests above the finished tower.
        min_steps: Env steps of the shortest episode. The arm rests until then, so that
            every episode holds a window of this length.
    """

    num_blocks: int = NUM_BLOCKS
    rebuild_share: float = 0.25
    new_base_share: float = 0.5
    random_start_share: float = 0.5
    low_start_share: float = 0.5
    detour_share: float = 0.15
    detour: float = 0.02
    off_centre_share: float = 0.7
    off_centre: float = 0.008
    scatter: float = 0.003
    clearance_low: float = 0.03
    clearance_high: float = 0.06
    grasp_steps: int = 4
    hold_steps: int = 40
    min_steps: int = 128

    def __post_init__(self) -> None:
        """Reject options out of their range.

        Raises:
            KukaOptionError: An option that is no finite number or out of its range, or
                a fraction of blocks or steps.
        """
        for option in dataclasses.fields(self):
            if option.type not in ("int", "float"):
                continue
            name, value = option.name, getattr(self, option.name)
            whole = option.type == "int"
            check_option(name, value, whole=whole)
            if whole:
                object.__setattr__(self, name, int(value))
        if self.clearance_low > self.clearance_high:
            raise KukaOptionError(
                f"clearance_low ({self.clearance_low}) must not be larger than"
                f" clearance_high ({self.clearance_high})"
            )

    def demonstrate(self, seed: int | Sequence[int]) -> Demonstration:
        """Return one demonstration.

        Args:
            seed: Fixes everything random.

        Raises:
            KukaArrangementError: The blocks do not fit on the table.
        """
        rng = np.random.default_rng(seed)
        order = tuple(int(block) for block in rng.permutation(self.num_blocks))
        rebuild = rng.random() < self.rebuild_share and self.num_blocks > 2
        base = None
        if rebuild:
            blocks = random_stacks(
                self.num_blocks,
                rng,
                max_height=min(3, self.num_blocks - 1),
                jitter=2.0 * self.scatter,
            )
            if rng.random() < self.new_base_share:
                base = random_place(rng, blocks[:, :2])
        else:
            blocks = scattered(self.num_blocks, rng)
        moves = plan_tower(blocks, order, rng, base=base)
        tool = self._start(blocks, rng)
        trajectory, paths = self._carry_out(moves, blocks, tool, rng)
        observations, actions = self._recorded(trajectory, paths)
        return Demonstration(
            observations=observations,
            actions=actions,
            rewards=self._rewards(trajectory, paths),
            order=order,
            moves=tuple(moves),
        )

    def _start(self, blocks: FloatArray, rng: np.random.Generator) -> FloatArray:
        """Draw the position of the tool at the start."""
        if rng.random() >= self.random_start_share:
            return _HOME_TOOL
        low = rng.random() < self.low_start_share
        lowest = blocks[:, 2].max() + TOP + self.clearance_low
        while True:
            if low:
                angle, gap = rng.uniform(-np.pi, np.pi), rng.uniform(0.0, LOW_GAP)
                near = blocks[rng.integers(self.num_blocks), :2]
                xy = near + gap * np.array((np.cos(angle), np.sin(angle)))
                lowest = lowest_tool(xy, blocks) + LOW_HEIGHTS[0]
                tool = np.array((*xy, lowest + rng.uniform(0.0, LOW_HEIGHTS[1])))
            else:
                place = random_place(rng)
                tool = np.array((*place, rng.uniform(lowest, HIGHEST_START)))
            if np.hypot(*tool[:2]) >= CLOSEST and reachable(tool):
                return tool

    def _carry_out(
        self,
        moves: Sequence[Move],
        blocks: FloatArray,
        tool: FloatArray,
        rng: np.random.Generator,
    ) -> tuple[Trajectory, FloatArray]:
        """Return the arm's motion, and the blocks' `[T + 1, n, 3]`."""
        start, centers = blocks, blocks.copy()
        route = Route(tool)
        for move in moves:
            route.style = Style(
                clearance=rng.uniform(self.clearance_low, self.clearance_high),
                grasp_steps=self.grasp_steps,
            )
            target = self._target(move, centers, rng)
            grasp = self._grasp(centers[move.block], target, rng)
            around = np.delete(centers, move.block, axis=0)
            detour = self._detour(centers[move.block] + grasp, around, rng)
            route.take(move.block, centers, grasp, detour)
            centers[move.block] = target
            detour = self._detour(target + grasp, around, rng)
            route.put(target, centers, grasp, detour)
        route.finish(self.hold_steps)
        trajectory = route.timed().padded(self.min_steps)
        return trajectory, carried_blocks(trajectory, start)

    def _grasp(
        self, block: FloatArray, target: FloatArray, rng: np.random.Generator
    ) -> FloatArray:
        """Draw the point at which the tool takes a block, (x, y, z) from its center."""
        if rng.random() < self.off_centre_share:
            offset = rng.normal(0.0, self.off_centre, 2)
            ends = np.stack((block[:2], target[:2])) + offset
            near = np.hypot(ends[:, 0], ends[:, 1]).min() < CLOSEST
            if np.hypot(*offset) <= MAX_OFF_CENTRE and not near:
                return np.array((*offset, TOP))
        return np.array((0.0, 0.0, TOP))

    def _detour(
        self, tool: FloatArray, around: FloatArray, rng: np.random.Generator
    ) -> FloatArray | None:
        """Draw a detour, (x, y, z) from the target; mostly none."""
        if rng.random() >= self.detour_share:
            return None
        limit = 2.0 * self.detour
        beside = rng.normal(0.0, self.detour, 2).clip(-limit, limit)
        detour = np.array((*beside, rng.uniform(*DETOUR_HEIGHTS)))
        taller = around[around[:, 2] + TOP > tool[2] - BLOCK_HEIGHT + _CONTACT]
        gaps = np.hypot(*(taller[:, :2] - tool[:2]).T)
        clear = (gaps > DETOUR_ROOM).all()
        return detour if clear and np.hypot(*(tool + detour)[:2]) >= CLOSEST else None

    def _target(
        self, move: Move, centers: FloatArray, rng: np.random.Generator
    ) -> FloatArray:
        """Draw the position at which a block is put down."""
        if move.place is not None:
            return np.array((*move.place, layer_height(0)))
        limit = 2.0 * self.scatter
        shift = rng.normal(0.0, self.scatter, 2).clip(-limit, limit)
        below = centers[move.onto]
        return np.array((*within_ring(below[:2] + shift), below[2] + BLOCK_HEIGHT))

    def _rewards(self, trajectory: Trajectory, paths: FloatArray) -> FloatArray:
        """Return the share of the tower that stands after each step."""
        held = trajectory.held[1:, None] == np.arange(self.num_blocks)
        return built_share(on_pairs(paths[1:], held))

    def _recorded(
        self, trajectory: Trajectory, paths: FloatArray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return observations and actions in the environment's columns."""
        joints, held = trajectory.joints, trajectory.held
        observations = np.zeros(
            (len(held), observation_size(self.num_blocks)), np.float32
        )
        observations[:, :NUM_JOINTS] = joints
        blocks = observations[:, NUM_JOINTS:].reshape(len(held), self.num_blocks, 8)
        blocks[..., :3] = paths
        blocks[..., 6] = 1.0
        blocks[..., 7] = held[:, None] == np.arange(self.num_blocks)
        actions = np.empty((len(held) - 1, NUM_JOINTS + 1), np.float32)
        actions[:, :NUM_JOINTS] = joints[1:]
        actions[:, NUM_JOINTS] = held[1:] != NOTHING
        return observations, actions


def carried_blocks(trajectory: Trajectory, start: FloatArray) -> FloatArray:
    """Return the positions of all blocks; a held one moves with the tool.

    Args:
        trajectory: The arm's, `T` steps.
        start: Centers of the blocks at its start, `[n, 3]`.

    Returns:
        Shape `[T + 1, n, 3]`.
    """
    tool, held = trajectory.tool, trajectory.held
    paths = np.repeat(start[None], len(held), axis=0)
    changes = np.flatnonzero(np.diff(held)) + 1
    for first, end in itertools.pairwise((0, *changes.tolist(), len(held))):
        block, before = held[first], max(first - 1, 0)
        if block != NOTHING:
            offset = paths[before, block] - tool[before]
            paths[first:end, block] = tool[first:end] + offset
            paths[end:, block] = paths[end - 1, block]
    return paths


@dataclass(frozen=True, kw_only=True)
class TowerRecorder(KinematicGenerator):
    """Records demonstrations of an environment.

    Attributes:
        env: The Unconditional environment, unwrapped.
        num_blocks: The environment's number of blocks.
    """

    dataset_id: ClassVar[str] = "diffuser/kuka-stack-v1"
    env_id: ClassVar[str] = "diffuser_envs/KukaStack-Unconditional-v1"

    env: Any
    num_blocks: int = field(init=False)

    def __post_init__(self) -> None:
        """Take the number of blocks from the environment."""
        object.__setattr__(self, "num_blocks", self.env.num_blocks)
        super().__post_init__()

    @classmethod
    def from_env(cls, env: gymnasium.Env[Any, Any], **options: Any) -> Self:
        """Make a generator for an environment.

        Args:
            env: Unconditional block stacking, wrapped or not.
            **options: The other attributes; whole numbers may be floats.

        Raises:
            UnsupportedEnvError: The environment is another one.
            KukaOptionError: An option is out of range.
        """
        base: Any = env.unwrapped
        if getattr(getattr(base, "task", None), "name", None) != "unconditional":
            raise UnsupportedEnvError(
                f"demonstrations of towers are recorded in {cls.env_id} (they serve all"
                f" three tasks), got {type(base).__name__}"
                f" {getattr(env.spec, 'id', '')}".rstrip()
            )
        return cls(env=base, **options)

    def _planned(self, seed: int) -> Demonstration | None:
        """Return the demonstration of a seed; None if it cannot be carried out.

        Its blocks cannot stand where they start, or they do not end in a tower.
        """
        try:
            planned = self.demonstrate(seed)
            start = planned.observations[0, NUM_JOINTS:].reshape(self.num_blocks, 8)
            check_arrangement(start[:, :3], self.num_blocks)
        except KukaArrangementError:
            return None
        return planned if planned.rewards[-1] == 1.0 else None


class KinematicRecorder(TowerRecorder):
    """Demonstrations without physics."""

    default_episodes: ClassVar[int] = 10_000

    def record(self, seed: int) -> Demonstration | None:
        """Return the demonstration of a seed; None if it cannot be carried out."""
        return self._planned(seed)

    def verify(self, seed: int) -> bool:
        """Replay a demonstration in physics, and return whether it is confirmed.

        Args:
            seed: The demonstration's.

        Returns:
            Whether joints stayed within 0.005 rad and blocks within 10 mm of the
            demonstration, with the same flags and the same tower at the end.
        """
        planned = self._planned(seed)
        if planned is None:
            return False
        replayed = replay(self.env, planned)
        error = np.abs(replayed.observations - planned.observations)
        blocks = error[:, NUM_JOINTS:].reshape(len(error), self.num_blocks, 8)
        return bool(
            error[:, :NUM_JOINTS].max() <= JOINT_TOLERANCE
            and blocks[..., :3].max() <= BLOCK_TOLERANCE
            and not blocks[..., 7].any()
            and replayed.rewards[-1] == planned.rewards[-1]
        )


class PhysicsRecorder(TowerRecorder):
    """Demonstrations carried out in physics."""

    def record(self, seed: int) -> Demonstration | None:
        """Return the episode of a seed; None if it did not end in a tower."""
        planned = self._planned(seed)
        if planned is None:
            return None
        replayed = replay(self.env, planned)
        return replayed if replayed.rewards[-1] == 1.0 else None


RECORDERS: Mapping[str, type[TowerRecorder]] = MappingProxyType(
    {"kinematic": KinematicRecorder, "physics": PhysicsRecorder}
)


def replay(env: Any, demonstration: Demonstration) -> Demonstration:
    """Carry out a demonstration's actions, and return the observed episode.

    Args:
        env: The Unconditional environment, unwrapped.
        demonstration: Start and actions.
    """
    planned = demonstration.observations
    observations = np.empty_like(planned)
    rewards = np.empty_like(demonstration.rewards)
    blocks = planned[0, NUM_JOINTS:].reshape(-1, 8)[:, :3]
    start = {"joints": planned[0, :NUM_JOINTS], "blocks": blocks}
    observations[0], _ = env.reset(seed=0, options=start)
    for step, action in enumerate(demonstration.actions):
        observations[step + 1], rewards[step], *_ = env.step(action)
    return dataclasses.replace(
        demonstration, observations=observations, rewards=rewards
    )
