"""Block stacking with a KUKA iiwa arm: the paper's three tasks, 20 steps a second.

An action is the next joint targets and whether to grip. The environment clips targets
to the joint limits and to 1.5 times the arm's rated joint speeds. The reward of a step
is the share of the task that the present state meets; rewards do not latch, and
episodes do not terminate.

Gripping (`grasp`):

| | takes hold of | until |
|---|---|---|
| `"contact"` | a block whose surface is within 20 mm of the tool's tip | released |
| `"suction"` | one whose top is within 6 mm and 8 degrees | released, or pulled off |
| `"magic"` | the nearest block, however far (the authors' rule) | released |

The tool takes a block at the end of a step and releases it at the beginning of one. The
command is not the flag: an action may ask for the grip and take no block.

The score of an episode, 0 to 100, is that of its final state: after the last step the
tool releases its block, 0.6 s pass, and then the share of the task that is met counts.
The authors' latched score stands beside it, under its own name.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.utils import EzPickle

from diffuser_envs.errors import (
    ClosedEnvError,
    KukaActionError,
    KukaOptionError,
    check_known,
    check_number,
    check_options,
)
from diffuser_envs.kuka.arm import HOME, JOINT_HIGH, JOINT_LOW, JOINT_REACH
from diffuser_envs.kuka.arrangements import check_arrangement
from diffuser_envs.kuka.columns import (
    FARTHEST,
    MAX_BLOCKS,
    NUM_BLOCKS,
    NUM_JOINTS,
    BoolArray,
    FloatArray,
    observation_columns,
)
from diffuser_envs.kuka.events import EpisodeLog
from diffuser_envs.kuka.grips import Grasp, Grip, box_distance, seen_from_blocks
from diffuser_envs.kuka.rendering import BlockCamera
from diffuser_envs.kuka.tasks import (
    Rearrangement,
    Task,
    latching_pairs,
    make_task,
    observation_space,
    on_pairs,
)
from diffuser_envs.kuka.world import DEFAULT_SUBSTEPS, BlockWorld

Observation: TypeAlias = Any  # an array, or with goals a dictionary of arrays
Info: TypeAlias = dict[str, Any]
RewardFunction: TypeAlias = Callable[..., FloatArray | np.float64]

SETTLING_STEPS = 12  # 0.6 s
RESET_OPTIONS = ("goal", "blocks", "joints")


class KukaStackEnv(gymnasium.Env[Observation, npt.NDArray[np.float32]], EzPickle):
    """Block stacking in one of three tasks.

    Observations are float32, `[39]` for four blocks, with the columns that
    `metadata["observation_columns"]` names; Conditional and Rearrangement put them into
    a goal dictionary. `info` holds `success` (the state meets all of the task) and
    `held` (the held block, -1 for none); at the end of an episode also the result of
    `finish`.

    `reset(options={...})` sets `blocks` (centers, `[n, 3]`), `joints` (`[7]`) and
    `goal` exactly. A goal for Conditional is the result of
    `diffuser_envs.kuka.tasks.tower_goal((2, 0, 3, 1))`, blocks bottom to top; for
    Rearrangement it is centers, `[n, 3]`. An option does not change what a seed draws
    for the rest.

    A copy, also a pickled one, has no episode: reset it first. It draws what the
    original would draw.

    Args:
        task: `"unconditional"`, `"conditional"` or `"rearrangement"`.
        num_blocks: Number of blocks.
        grasp: `"contact"`, `"suction"` or `"magic"`, as above.
        joint_noise: Standard deviation, rad, of an error of every joint, for robustness
            studies. Errors are drawn anew when the grip command changes.
        substeps: Physics steps per step of 0.05 s.
        render_mode: `"rgb_array"` or None.
        width: Width of a picture in pixels.
        height: Height of a picture in pixels.

    Raises:
        KukaOptionError: An argument is not one of the values above.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (Gymnasium declares it like this)
        "render_modes": ["rgb_array"],
        "render_fps": 20,
        "observation_columns": observation_columns(),
        "action_targets": [*range(NUM_JOINTS), -1],  # targets of these columns
        "demonstrator": "kuka-stack",
    }

    def __init__(
        self,
        task: str = "unconditional",
        *,
        num_blocks: int = NUM_BLOCKS,
        grasp: Grasp = "contact",
        joint_noise: float = 0.0,
        substeps: int = DEFAULT_SUBSTEPS,
        render_mode: str | None = None,
        width: int = 480,
        height: int = 360,
    ) -> None:
        EzPickle.__init__(
            self,
            task,
            num_blocks=num_blocks,
            grasp=grasp,
            joint_noise=joint_noise,
            substeps=substeps,
            render_mode=render_mode,
            width=width,
            height=height,
        )
        _check_arguments(num_blocks, joint_noise, substeps, render_mode)
        num_blocks, substeps = int(num_blocks), int(substeps)
        self.task = make_task(task, num_blocks)
        self.num_blocks = num_blocks
        self.joint_noise = joint_noise
        self.render_mode = render_mode
        columns = observation_columns(num_blocks)
        self.metadata = {**self.metadata, "observation_columns": columns}
        self.action_space = spaces.Box(
            np.append(JOINT_LOW, 0.0).astype(np.float32),
            np.append(JOINT_HIGH, 1.0).astype(np.float32),
        )
        self.observation_space = observation_space(self.task)
        self._grip = Grip(grasp)
        self._camera = BlockCamera(width, height)
        self._goal = np.zeros(self.task.goal_size)
        self._log: EpisodeLog | None = None
        self._world = BlockWorld(
            num_blocks,
            substeps=substeps,
            visuals=render_mode is not None,
            grip_force=self._grip.force,
        )

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy, also a pickled one, needs; it is in no episode."""
        random = (self._np_random, self._np_random_seed)
        return {**EzPickle.__getstate__(self), "spec": self.spec, "random": random}

    def __setstate__(self, data: dict[str, Any]) -> None:
        """Make the environment anew, with the original's spec and random stream."""
        EzPickle.__setstate__(self, data)
        self.spec = data["spec"]
        self._np_random, self._np_random_seed = copy.deepcopy(data["random"])

    @property
    def grasp(self) -> Grasp:
        """When the tool takes hold of a block."""
        return self._grip.grasp

    @property
    def goal(self) -> FloatArray:
        """The current goal, `[goal_size]`; empty for Unconditional."""
        return self._goal.copy()

    @property
    def held(self) -> int | None:
        """The block that the tool holds; None for no block."""
        return self._world.held

    @property
    def log(self) -> EpisodeLog:
        """The episode's attempts to grip.

        Raises:
            ClosedEnvError: No episode has begun.
        """
        if self._log is None:
            raise ClosedEnvError("there is no episode; call reset() first")
        return self._log

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, Info]:
        """Start an episode.

        Args:
            seed: Fixes all later randomness of the environment.
            options: `goal`, `blocks` and `joints`.

        Raises:
            KukaOptionError: An option is unknown or has the wrong shape.
            KukaArrangementError: Blocks are out of reach, overlap or stand on nothing;
                or a goal names a block twice or is no tower.
            ClosedEnvError: The environment is closed.
        """
        self._check_open()
        goal, start, joints = _read_reset_options(self.task, options)
        super().reset(seed=seed)
        # Always draw all, in this order. Then an option changes only what it names.
        drawn_start, drawn_goal = self.task.draw(self.np_random)
        self._noise_rng = np.random.default_rng(self.np_random.integers(2**63))
        self._goal = drawn_goal if goal is None else goal
        self._world.reset(
            HOME if joints is None else joints, drawn_start if start is None else start
        )
        has_places = isinstance(self.task, Rearrangement)
        places = self._goal.reshape(-1, 3) if has_places else None
        self._log = EpisodeLog(places=places)
        self._steps = 0
        self._latched = np.zeros(self.num_blocks * (self.num_blocks - 1))
        self._draw_noise()
        self._read_world()
        share = self._share()
        return self._observe(), self._info(share)

    def step(
        self, action: npt.NDArray[np.float32]
    ) -> tuple[Observation, float, bool, bool, Info]:
        """Move for 0.05 s.

        Args:
            action: Joint targets in rad and the grip command, on above 0.5: `[8]`.

        Raises:
            KukaActionError: The action has another shape or is not finite.
            ClosedEnvError: The environment is closed, or was never reset.
        """
        log = self._begun()
        command = np.asarray(action, dtype=np.float64)
        if command.shape != (NUM_JOINTS + 1,):
            raise KukaActionError(
                f"an action has shape (8,): 7 joint targets and the grip command; got"
                f" {command.shape}"
            )
        if not np.isfinite(command).all():
            raise KukaActionError(f"an action must be finite, got {command.tolist()}")
        asked = bool(command[-1] > 0.5)
        if log.ask(self._steps, asked, self._poses[:, :3]):
            self._draw_noise()
        if not asked:
            self._let_go()
        self._world.step(self._targets(command[:NUM_JOINTS]))
        self._steps += 1
        self._read_world()
        if asked:
            self._grip_blocks()
        share = self._share()
        log.best_share = max(log.best_share, share)
        return self._observe(), share, False, False, self._info(share)

    def finish(self) -> Info:
        """Release the block, let all blocks settle for 0.6 s, and score the episode.

        Environments that `gymnasium.make` builds do this at their step limit and add
        the result to `info`.

        Returns:
            `score`: 0 to 100, of the settled state.
            `latched_score`: 0 to 100, of the pairs that ever held by the authors' rule.
            `pairs`: The ordered pairs that hold, `[n (n - 1)]`.
            `met`: The parts of the goal that are met: storeys (Unconditional), ordered
            pairs (Conditional) or blocks (Rearrangement).
            `failure`: Why the score is below 100; None if it is 100.
            `attempts`: Number of attempts to grip with each outcome.
            `positions`: Positions of the blocks, `[n, 3]`, m.

        Raises:
            ClosedEnvError: The environment is closed, or was never reset.
        """
        log = self._begun()
        holding = self.held is not None
        self._let_go()
        for _ in range(SETTLING_STEPS):
            self._world.step(self._world.targets)
        self._read_world()
        positions = self._poses[:, :3]
        log.judge(positions)
        share = self._share()
        achieved = self.task.achieved(positions, self._held)
        latched = self.task.latched_share(self._latched, self._goal)
        return {
            "score": 100.0 * share,
            "latched_score": 100.0 * float(latched),
            "pairs": on_pairs(positions, self._held),
            "met": self.task.met(achieved, self._goal),
            "failure": log.failure(share, holding=holding),
            "attempts": log.counts(),
            "positions": positions.copy(),
        }

    @property
    def compute_reward(self) -> RewardFunction:
        """The function (achieved_goal, desired_goal, info) -> rewards.

        Goals have shape `[..., goal_size]`, rewards are shares in [0, 1] of shape
        `[...]`; `info` is not used. Unconditional has no goals and so lacks this
        attribute, which tells goal environments from others.
        """
        if not self.task.goal_size:
            raise AttributeError("the Unconditional task has no goals to reward")
        return self._reward

    def achieved_goals(self, observations: npt.ArrayLike) -> FloatArray:
        """Return the goals `[..., goal_size]` that observations `[..., size]` meet.

        Unconditional has no goals: the ordered pairs that hold, `[..., n (n - 1)]`.
        """
        return self.task.achieved_goals(observations)

    def link_poses(self) -> FloatArray:
        """Return where base, links and tool are: x, y, z, quaternion x, y, z, w.

        Raises:
            ClosedEnvError: The environment is closed.
        """
        self._check_open()
        return self._world.link_poses()

    def block_poses(self) -> FloatArray:
        """Return where the blocks are, `[n, 7]`, in the same way.

        Raises:
            ClosedEnvError: The environment is closed.
        """
        self._check_open()
        return self._world.poses()

    def play_world(self, columns: Mapping[str, Sequence[int]]) -> Any:
        """Return what the page of `diffuser-policy play` shows.

        Args:
            columns: Names of planning columns; "position" is the tool's.
        """
        from diffuser_envs.kuka.playing import BlockPlayWorld

        return BlockPlayWorld(self, columns.get("position", ()))

    def render(self) -> Any:
        """Draw the arm, the blocks and the goal.

        Returns:
            A picture, `[height, width, 3]`, for `"rgb_array"`; otherwise None.

        Raises:
            ClosedEnvError: The environment is closed, or was never reset.
        """
        self._begun()
        if self.render_mode is None:
            return None
        return self._camera.render(self._world.client, self.task, self._goal)

    def close(self) -> None:
        """Free the Bullet client; closing again does nothing."""
        self._world.close()

    def _reward(
        self,
        achieved_goal: npt.ArrayLike,
        desired_goal: npt.ArrayLike,
        info: object = None,  # noqa: ARG002 (the interface of goal environments)
    ) -> FloatArray | np.float64:
        return self.task.share(achieved_goal, desired_goal)[()]

    def _targets(self, joints: FloatArray) -> FloatArray:
        last = self._world.targets
        targets = (joints + self._offset).clip(JOINT_LOW, JOINT_HIGH)
        return targets.clip(last - JOINT_REACH, last + JOINT_REACH)

    def _draw_noise(self) -> None:
        self._offset = self.joint_noise * self._noise_rng.standard_normal(NUM_JOINTS)

    def _let_go(self, *, lost: bool = False) -> None:
        if self.held is not None:
            self.log.let_go(self._poses[:, :3], lost=lost)
            # The authors' environment stops a block that it releases.
            self._world.release(stop=self.grasp == "magic")
            self._read_held()

    def _grip_blocks(self) -> None:
        """Take hold of a block if possible; release one that came off."""
        tip, down = self._world.tool_pose()
        local, _ = seen_from_blocks(tip, down, self._poses)
        self.log.near(float(box_distance(local).min()))
        if self.held is None:
            block = self._grip.find(tip, down, self._poses)
            if block is not None:
                self._world.hold(block)
                self.log.take(block)
                self._read_held()
        elif self._grip.has_slipped(self.held, tip, down, self._poses):
            self._let_go(lost=True)

    def _read_world(self) -> None:
        self._poses = self._world.poses()
        self._joints = self._world.joints()
        self._read_held()

    def _read_held(self) -> None:
        self._held: BoolArray = np.zeros(self.num_blocks, dtype=np.bool_)
        if self.held is not None:
            self._held[self.held] = True

    def _share(self) -> float:
        # The share of the float32 observation, so that compute_reward agrees.
        positions = self._poses[:, :3]
        self._achieved = self.task.achieved(positions, self._held).astype(np.float32)
        counted = latching_pairs(positions, self._held)
        self._latched = np.maximum(self._latched, counted)
        return float(self.task.share(self._achieved, self._goal.astype(np.float32)))

    def _observe(self) -> Observation:
        blocks = np.column_stack((self._poses, self._held)).reshape(-1)
        state = np.concatenate((self._joints, blocks)).clip(-FARTHEST, FARTHEST)
        observation = state.astype(np.float32)
        if not self.task.goal_size:
            return observation
        return {
            "observation": observation,
            "achieved_goal": self._achieved.clip(-FARTHEST, FARTHEST),
            "desired_goal": self._goal.astype(np.float32),
        }

    def _info(self, share: float) -> Info:
        return {"success": share >= 1.0, "held": -1 if self.held is None else self.held}

    def _begun(self) -> EpisodeLog:
        """Return the episode's log; raise if the environment is closed or has none."""
        self._check_open()
        return self.log

    def _check_open(self) -> None:
        if self._world.client < 0:
            raise ClosedEnvError(
                "the environment is closed; make a new one with gymnasium.make"
            )


def _check_arguments(
    num_blocks: int, joint_noise: float, substeps: int, render_mode: str | None
) -> None:
    """Raise unless these arguments are within their ranges."""
    check = partial(check_number, error=KukaOptionError)
    why = "more do not fit into the arm's work sector"
    check("num_blocks", num_blocks, least=2, most=MAX_BLOCKS, whole=True, why=why)
    check("joint_noise", joint_noise, least=0.0, why="a standard deviation in rad")
    check("substeps", substeps, least=1, whole=True)
    known = KukaStackEnv.metadata["render_modes"]
    if render_mode is not None:
        check_known("render_mode", render_mode, known, KukaOptionError)


def _read_reset_options(
    task: Task, options: Mapping[str, Any] | None
) -> tuple[FloatArray | None, FloatArray | None, FloatArray | None]:
    """Return the goal `[goal_size]`, blocks `[n, 3]` and joints `[7]` of options."""
    given = check_options(options, RESET_OPTIONS, KukaOptionError)
    goal, blocks, joints = (given.get(name) for name in RESET_OPTIONS)
    return (
        None if goal is None else task.read_goal(goal),
        None if blocks is None else check_arrangement(blocks, task.num_blocks),
        None if joints is None else _read_joints(joints),
    )


def _read_joints(joints: Any) -> FloatArray:
    try:
        angles = np.array(joints, dtype=np.float64)
    except (TypeError, ValueError):
        angles = np.zeros(0)
    if angles.shape != (NUM_JOINTS,) or not np.isfinite(angles).all():
        raise KukaOptionError(f"joints must be 7 finite numbers, got {joints!r}")
    outside = np.flatnonzero((angles < JOINT_LOW) | (angles > JOINT_HIGH))
    if len(outside):
        worst = int(outside[0])
        raise KukaOptionError(
            f"joint {worst} at {angles[worst]:.3f} rad is beyond its limits, +-"
            f" {JOINT_HIGH[worst]:.3f}"
        )
    return angles
