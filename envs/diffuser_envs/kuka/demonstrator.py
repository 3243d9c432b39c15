"""The block-stacking demonstrator: a task and motion planner for any loop.

From the positions of the blocks it searches for the shortest order of moves
(`diffuser_envs.kuka.task_planner`), plans the arm's motion for the first of them
(`motions`), and carries it out step by step. If something is not where the motion
expects it (a missed grasp, a block that fell or was pushed), it plans anew from the
observation. It measures and corrects a steady error of the joints. When the task is
done, the arm rises a little and rests.

The demonstrator solves all three tasks and is the reference for planners.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

import gymnasium
import numpy as np
import numpy.typing as npt

from diffuser_envs.errors import (
    KukaArrangementError,
    KukaObservationError,
    UnsupportedEnvError,
)
from diffuser_envs.kuka.arm import tool_position
from diffuser_envs.kuka.arrangements import TABLE, order_of_pairs, random_place
from diffuser_envs.kuka.columns import (
    BLOCK_HEIGHT,
    NUM_BLOCKS,
    NUM_JOINTS,
    FloatArray,
    layer_height,
    observation_size,
)
from diffuser_envs.kuka.generators import (
    RECORDERS,
    TowerRecorder,
    carried_blocks,
    check_option,
)
from diffuser_envs.kuka.motions import NOTHING, TOP, Route, Style, Trajectory
from diffuser_envs.kuka.task_planner import Move, plan_rearrangement, plan_tower
from diffuser_envs.kuka.tasks import Task, make_task
from diffuser_envs.row_memories import State, row_memories

Observation: TypeAlias = npt.ArrayLike | Mapping[str, npt.ArrayLike]

BLOCK_TOLERANCE = 0.012  # meters; a block further off its plan calls for a new one
JOINT_TOLERANCE = 0.2  # rad; the motion itself corrects smaller errors
MAX_TRIM = 0.15  # rad; a larger error is no steady one
TRIM_GAIN = 0.5


@dataclass(slots=True)
class MotionMemory:
    """What the demonstrator remembers of one environment between steps.

    Attributes:
        goal: The desired goal of the motion; None before the first step.
        order: Order of the tower, bottom to top; empty for Rearrangement.
        motion: The arm's motion; None before the first step.
        blocks: Positions of the blocks during the motion, `[T + 1, n, 3]`.
        step: Row of the motion that the next observation should show.
        resting: Whether the task was done when the motion was planned.
        sent: Joint targets of the last action; None before the first step.
        trim: Steady error of the joints, observed minus target, `[7]`, rad.
    """

    goal: tuple[float, ...] | None = None
    order: tuple[int, ...] = ()
    motion: Trajectory | None = None
    blocks: FloatArray | None = None
    step: int = 0
    resting: bool = False
    sent: FloatArray | None = None
    trim: FloatArray = field(default_factory=lambda: np.zeros(NUM_JOINTS))


@dataclass(frozen=True, eq=False)
class Scene:
    """The content of one observation.

    Attributes:
        joints: `[7]`, rad.
        blocks: Centers, `[n, 3]`, m.
        held: The held block, or `NOTHING`.
        goal: The desired goal; empty if there is none.
    """

    joints: FloatArray
    blocks: FloatArray
    held: int
    goal: FloatArray


class StackDemonstrator:
    """Build towers or rearrange blocks; follows Stable-Baselines3's `predict`.

    All memory between calls is in `state`. Random numbers are a function of `seed` and
    the observation, so the actions for one environment do not depend on the others in
    its batch.

    Args:
        task: `"unconditional"`, `"conditional"` or `"rearrangement"`; `from_env` takes
            the environment's.
        num_blocks: Number of blocks.
        clearance: Meters between tool or carried block and the blocks below.
        grasp_steps: Env steps that the tool rests when it grasps or releases.
        off_centre: Standard deviation, meters, of a grasp's distance from the middle of
            the block's top; the placement corrects it.
        seed: Fixes the orders of unconditional towers, spare places and grasps.

    Raises:
        KukaOptionError: An unknown task, or a setting that is no finite number or out
            of its range.
    """

    generators: ClassVar[Mapping[str, type[TowerRecorder]]] = RECORDERS

    def __init__(
        self,
        task: str = "unconditional",
        num_blocks: int = NUM_BLOCKS,
        *,
        clearance: float = 0.04,
        grasp_steps: int = 4,
        off_centre: float = 0.0,
        seed: int = 0,
    ) -> None:
        counts = {"num_blocks": num_blocks, "grasp_steps": grasp_steps, "seed": seed}
        for name, count in counts.items():
            check_option(name, count, whole=True)
        check_option("clearance", clearance)
        check_option("off_centre", off_centre)
        self.task = task
        self.num_blocks = int(num_blocks)
        self._goal_size = make_task(task, self.num_blocks).goal_size
        self.style = Style(clearance=clearance, grasp_steps=int(grasp_steps))
        self.off_centre = off_centre
        self.seed = int(seed)

    @classmethod
    def from_env(
        cls, env: gymnasium.Env[Any, Any], **settings: Any
    ) -> StackDemonstrator:
        """Make a demonstrator for an environment's task.

        Args:
            env: One of the block-stacking environments, wrapped or not.
            **settings: The constructor's keyword arguments.

        Raises:
            UnsupportedEnvError: The environment does not stack blocks.
            KukaOptionError: A setting that is no finite number or out of its range.
        """
        base: Any = env.unwrapped
        task = getattr(base, "task", None)
        if not isinstance(task, Task):
            raise UnsupportedEnvError(
                "this demonstrator stacks blocks: it needs a KukaStack environment,"
                f" got {type(base).__name__}"
            )
        return cls(task.name, base.num_blocks, **settings)

    def predict(
        self,
        observation: Observation,
        state: State | None = None,
        episode_start: npt.ArrayLike | None = None,
        deterministic: bool = False,
    ) -> tuple[npt.NDArray[np.float32], State]:
        """Choose actions.

        The arm stays where it is while it does not reach the block that is next.

        Args:
            observation: For one environment or a batch (`[n, ...]`); a goal dictionary
                if the task has goals.
            state: The state that the last call returned; None plans anew.
            episode_start: Which rows start an episode, shape `[n]`.
            deterministic: Take blocks in the middle.

        Returns:
            Actions, shape `[8]` or, for a batch, `[n, 8]`, and the next state.

        Raises:
            KukaObservationError: The observation is not finite or has another size, or
                the state or `episode_start` is for another number of environments.
            KukaArrangementError: No arrangement of the blocks meets the goal.
        """
        rows, goals, batched = self._read(observation)
        memories = row_memories(
            state,
            episode_start,
            len(rows),
            new=MotionMemory,
            error=KukaObservationError,
        )
        actions = np.empty((len(rows), NUM_JOINTS + 1), dtype=np.float32)
        for row, (values, goal) in enumerate(zip(rows, goals, strict=True)):
            scene = _scene(values, goal)
            actions[row] = self.act(scene, memories[row], deterministic=deterministic)
        return (actions if batched else actions[0]), (memories,)

    def act(
        self, scene: Scene, memory: MotionMemory, *, deterministic: bool = False
    ) -> FloatArray:
        """Choose the action for one environment and update its memory in place.

        Args:
            scene: The observation.
            memory: The environment's; pass a new `MotionMemory()` at first.
            deterministic: Take blocks in the middle.

        Returns:
            Joint targets and grasp, shape `[8]`.

        Raises:
            KukaArrangementError: No arrangement of the blocks meets the goal.
        """
        goal = tuple(scene.goal.tolist())
        if memory.goal != goal:
            memory.goal, memory.order = goal, self._order(scene)
            memory.motion = None
        if _surprised(scene, memory) or _finished(memory):
            self._plan(scene, memory, deterministic=deterministic)
        motion = memory.motion
        if motion is None:  # a block is out of reach: stay
            return np.append(scene.joints, float(scene.held != NOTHING))
        self._trim(scene, memory)
        memory.step = min(memory.step + 1, len(motion.held) - 1)
        memory.sent = motion.joints[memory.step] - memory.trim
        grasp = motion.held[memory.step] != NOTHING
        return np.append(memory.sent, float(grasp))

    def _trim(self, scene: Scene, memory: MotionMemory) -> None:
        """Update the estimate of the joints' steady error."""
        if memory.sent is not None:
            missed = scene.joints - memory.sent
            if np.abs(missed).max() < MAX_TRIM:
                memory.trim = memory.trim + TRIM_GAIN * (missed - memory.trim)

    def _order(self, scene: Scene) -> tuple[int, ...]:
        """Return the tower to build, bottom to top; empty for Rearrangement."""
        if self.task == "conditional":
            return order_of_pairs(scene.goal, self.num_blocks)
        if self.task == "unconditional":
            return tuple(self._rng(scene).permutation(self.num_blocks).tolist())
        return ()

    def _plan(self, scene: Scene, memory: MotionMemory, *, deterministic: bool) -> None:
        """Plan the next move, or a rest, from the observation."""
        rng = self._rng(scene)
        memory.motion, memory.step = None, 0
        route = Route(tool_position(scene.joints), held=scene.held, style=self.style)
        move = self._next_move(scene, memory, rng)
        memory.resting = move is None
        if move is None:
            route.finish(1)
        else:
            self._carry_out(move, scene, route, None if deterministic else rng)
        with contextlib.suppress(KukaArrangementError):  # a block is out of reach
            memory.motion = route.timed()
            memory.blocks = carried_blocks(memory.motion, scene.blocks)

    def _next_move(
        self, scene: Scene, memory: MotionMemory, rng: np.random.Generator
    ) -> Move | None:
        """Return the first move of a shortest plan; None if the task is done.

        The plan treats a held block as if it stood on a free place. If it is not the
        first block to move, the arm puts it down there.
        """
        blocks = scene.blocks.copy()
        aside = None
        if scene.held != NOTHING:
            aside = random_place(rng, np.delete(blocks[:, :2], scene.held, axis=0))
            blocks[scene.held] = (*aside, layer_height(0))
        if self.task == "rearrangement":
            goal = scene.goal.reshape(self.num_blocks, 3)
            moves = plan_rearrangement(blocks, goal, rng)
        else:
            moves = plan_tower(blocks, memory.order, rng)
        first = moves[0] if moves else None
        if aside is not None and (first is None or first.block != scene.held):
            return Move(scene.held, TABLE, aside)
        return first

    def _carry_out(
        self, move: Move, scene: Scene, route: Route, rng: np.random.Generator | None
    ) -> None:
        """Append the legs of a move."""
        blocks = scene.blocks
        if scene.held == NOTHING:
            grasp = np.array((0.0, 0.0, TOP))
            if rng is not None and self.off_centre > 0.0:
                limit = 2.0 * self.off_centre
                grasp[:2] = rng.normal(0.0, self.off_centre, 2).clip(-limit, limit)
            route.take(move.block, blocks, grasp)
        else:
            grasp = tool_position(scene.joints) - blocks[move.block]
        if move.place is not None:
            target = np.array((*move.place, layer_height(0)))
        else:
            target = blocks[move.onto] + np.array((0.0, 0.0, BLOCK_HEIGHT))
        route.put(target, blocks, grasp)

    def _read(self, observation: Observation) -> tuple[FloatArray, FloatArray, bool]:
        """Return states `[n, size]`, goals `[n, ...]`, and whether they are a batch.

        A task without goals has goals `[n, 0]`, whatever the observation says.
        """
        fields = observation
        if not isinstance(fields, Mapping):
            if self._goal_size:
                raise KukaObservationError(
                    f"the task {self.task} needs goal observations (a dictionary with"
                    " 'observation' and 'desired_goal'), got an array"
                )
            fields = {"observation": fields, "desired_goal": ()}
        if missing := {"observation", "desired_goal"} - set(fields):
            raise KukaObservationError(
                f"the goal observation lacks {sorted(missing)}; it has {sorted(fields)}"
            )
        size = observation_size(self.num_blocks)
        states = self._finite("state", fields["observation"], size)
        goals = np.empty((*states.shape[:-1], 0))
        if self._goal_size:
            goals = self._finite("goal", fields["desired_goal"], self._goal_size)
        if goals.shape[:-1] != states.shape[:-1]:
            raise KukaObservationError(
                f"states and goals must be of the same environments, got shapes"
                f" {states.shape} and {goals.shape}"
            )
        return np.atleast_2d(states), np.atleast_2d(goals), states.ndim == 2

    def _finite(self, name: str, given: Any, size: int) -> FloatArray:
        """Return finite numbers, `[size]` or `[n, size]`."""
        found = "something else"
        with contextlib.suppress(TypeError, ValueError):  # no numbers
            values = np.asarray(given, dtype=np.float64)
            found = f"shape {values.shape}"
            if not np.isfinite(values).all():
                found += ", not all of them finite"
            elif values.ndim in (1, 2) and values.shape[-1] == size:
                return values
        raise KukaObservationError(
            f"the {name} must be {size} finite numbers ({self.num_blocks} blocks), or a"
            f" batch of such, got {found}"
        )

    def _rng(self, scene: Scene) -> np.random.Generator:
        """Return the random generator for an observation."""
        seen = np.concatenate((scene.joints, scene.blocks.reshape(-1)))
        bits = seen.astype(np.float32).view(np.uint32)
        return np.random.default_rng([self.seed, *bits.tolist()])


def _scene(values: FloatArray, goal: FloatArray) -> Scene:
    """Return the content of an observation."""
    blocks = values[NUM_JOINTS:].reshape(-1, 8)
    held = np.flatnonzero(blocks[:, 7] > 0.5)
    return Scene(
        joints=values[:NUM_JOINTS],
        blocks=blocks[:, :3],
        held=int(held[0]) if len(held) else NOTHING,
        goal=goal,
    )


def _finished(memory: MotionMemory) -> bool:
    """Return whether the motion is over and another one may follow."""
    motion = memory.motion
    over = motion is not None and memory.step == len(motion.held) - 1
    return over and not memory.resting


def _surprised(scene: Scene, memory: MotionMemory) -> bool:
    """Return whether the observation differs from what the motion expects."""
    motion, blocks, step = memory.motion, memory.blocks, memory.step
    if motion is None or blocks is None or motion.held[step] != scene.held:
        return True
    expected = blocks[step].copy()
    if scene.held != NOTHING:  # a held block shares the error of the tool
        expected[scene.held] += tool_position(scene.joints) - motion.tool[step]
    off = np.linalg.norm(scene.blocks - expected, axis=1).max()
    turned = np.abs(scene.joints - motion.joints[step]).max()
    return bool(off > BLOCK_TOLERANCE or turned > JOINT_TOLERANCE)
