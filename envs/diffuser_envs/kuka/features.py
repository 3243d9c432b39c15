r"""Planning columns of block stacking, and how plans become joint targets.

`BlockFeatures` plans tool and blocks:

    observation  7 joints | xyz, quaternion, flag of each block       7 + 8 n
    plan         tool xyz | xyz, flag of each block                   3 + 4 n

Seven joints that agree on a tool position are hard to denoise; the position itself is
not. Plans keep the tool pointing straight down with a fixed yaw, so a planned position
determines the joints (`diffuser_envs.kuka.arm`). The grasp is on while any planned flag
is up.

`JointFeatures` plans the observation itself, as the paper does, and needs no
kinematics: the planned joints of the next env step are the joint targets (Janner et al.
2022, §5.2).

`feasibility` measures whether a plan can be executed: is the tool at the top of the
block whose flag goes up, does a released block stand on something, does everything else
stay where it is. It is the negative of a cost in meters:

$$-\bigl[\overline{g} + \overline{s} + w_m m + w_c c + w_2\, d + w_0 (i_g + i_r)
+ w_t\, t\bigr]$$

| symbol | meaning |
|---|---|
| g | grasp misses: lateral + 1.5 vertical |
| s | landing misses: xy + z |
| m | largest move of a block that no flag holds |
| c | largest slip of a carried block against the tool |
| d | share of steps with two flags up |
| $i_g$ | 1 for a plan that never grasps |
| $i_r$ | 1 for a plan that holds a block and never releases it |
| t | env steps until the first block is put down |

The term t prefers the sooner of two good plans, which is less likely to be given up for
another. A bar averages over events with weights 1, ½, ¼, … in the order of time: the
policy replans before the later part of a plan counts. If all blocks form one tower,
nothing is left to grasp, and $i_g$ and t are 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from diffuser_envs.kuka import arm
from diffuser_envs.kuka.columns import (
    BLOCK_HEIGHT,
    NUM_BLOCKS,
    NUM_JOINTS,
    observation_columns,
    observation_size,
)
from diffuser_envs.kuka.tasks import built_share, on_pairs

PLANNED = 4  # columns of a planned block: xyz, flag
UP = 0.5  # a flag above this is up
VERTICAL_WEIGHT = 1.5
MOVE_WEIGHT = 1.0
SLIP_WEIGHT = 1.0
DOUBLE_WEIGHT = 0.5  # meters, for a plan that holds two blocks all the time
IDLE_WEIGHT = 0.1  # meters, for a plan without a grasp or without a release
DELAY_WEIGHT = 5e-4  # meters per env step
FEASIBLE = -0.05  # feasibility, in meters, of plans that can be executed as they are
SHARES = np.linspace(1.0, 0.0, 9)  # of the way to a target that is out of reach


class Plans(Protocol):
    """Plans in execution."""

    def reference(self, ahead: float = 0.0) -> np.ndarray:
        """Return planned columns `[rows, columns]`, some env steps ahead of now."""


class BlockFeatures:
    """Plans for tool and blocks, followed by inverse kinematics.

    Attributes:
        observation_size: Columns of an observation.
        num_columns: Planning columns.
        columns: "tool" (also "position"), "block_0" and "flag_0" and so on; "blocks"
            and "flags" for all blocks together.
        objects: The columns of each block, xyz and flag.
        feasible: Feasibility of plans that need not be compared with others.
    """

    feasible = FEASIBLE

    def __init__(self, num_blocks: int = NUM_BLOCKS) -> None:
        """Lay out the columns.

        Args:
            num_blocks: As in the environment.
        """
        self.num_blocks = num_blocks
        self.observation_size = observation_size(num_blocks)
        observed = observation_columns(num_blocks)
        self._observed = [
            column
            for block in range(num_blocks)
            for column in (*observed[f"block_{block}"], *observed[f"flag_{block}"])
        ]
        self.num_columns = 3 + PLANNED * num_blocks
        tool = (0, 1, 2)
        self.objects = tuple(
            tuple(range(3 + PLANNED * block, 3 + PLANNED * (block + 1)))
            for block in range(num_blocks)
        )
        self.columns: dict[str, tuple[int, ...]] = {"tool": tool, "position": tool}
        for block, (*xyz, flag) in enumerate(self.objects):
            self.columns[f"block_{block}"] = tuple(xyz)
            self.columns[f"flag_{block}"] = (flag,)
        self.columns["blocks"] = tuple(c for group in self.objects for c in group[:3])
        self.columns["flags"] = tuple(group[3] for group in self.objects)

    def features(self, observations: np.ndarray) -> np.ndarray:
        """Return tool and blocks, float32 `[..., 3 + 4 n]`.

        Args:
            observations: `[..., 7 + 8 n]`. Plans need no quaternions, because a carried
                block only translates.
        """
        observed = np.asarray(observations)
        tool = arm.tool_position(observed[..., :NUM_JOINTS])
        blocks = observed[..., self._observed]
        return np.concatenate([tool, blocks], axis=-1, dtype=np.float32)

    def act(self, plans: Plans, observations: np.ndarray) -> np.ndarray:
        """Return joint targets and grasp `[rows, 8]` for the next env step.

        A held block, rather than the tool, is brought to its planned position, because
        the tool rarely takes it at exactly the planned point. If a target is out of
        reach, the arm goes as far as it can on the straight way from the tool.

        Args:
            plans: The plans to follow.
            observations: `[rows, 7 + 8 n]` of the environment.
        """
        planned = np.asarray(plans.reference(1.0), np.float64)
        flags = list(self.columns["flags"])
        now = self.features(observations).astype(np.float64)
        held = (now[:, flags] > UP) & (planned[:, flags] > UP)
        carrying, block = np.nonzero(held)
        target = planned[:, :3].copy()
        for axis in range(3):
            column = np.array([self.objects[k][axis] for k in block], np.int64)
            offset = now[carrying, axis] - now[carrying, column]
            target[carrying, axis] = planned[carrying, column] + offset
        joints = arm.inverse(target)
        outside = np.flatnonzero(np.isnan(joints[:, 0]))
        if len(outside):
            joints[outside] = _towards(
                target[outside], observations[outside, :NUM_JOINTS]
            )
        grasp: np.ndarray = planned[:, flags].max(axis=1) > UP
        return np.concatenate([joints, grasp[:, None]], axis=1)

    def feasibility(self, candidates: np.ndarray, stride: int) -> np.ndarray:
        """Return how well plans can be executed, `[n]` in meters, at most 0.

        Args:
            candidates: `[n, steps, 3 + 4 n]`; the first step is the present.
            stride: Env steps between two planning steps.
        """
        candidates = np.asarray(candidates, np.float64)
        num, steps, _ = candidates.shape
        tool = candidates[:, :, None, :3]
        blocks = candidates[:, :, 3:].reshape(num, steps, self.num_blocks, PLANNED)
        place, held = blocks[..., :3], blocks[..., 3] > UP
        before = np.concatenate([held[:, :1], held[:, :-1]], axis=1)
        grasped, released = held & ~before, before & ~held
        stand = _at_event(place, released)  # where a block was last put down
        top = stand + np.array([0.0, 0.0, BLOCK_HEIGHT / 2])
        lateral, vertical = _distances(tool, top)
        cost = _event_mean(lateral + VERTICAL_WEIGHT * vertical, grasped)
        cost += _event_mean(_landing_miss(place, held), released)
        loose = np.linalg.norm(place - stand, axis=-1) * ~held
        cost += MOVE_WEIGHT * loose.max(axis=(1, 2))
        offset = place - tool
        slip = np.linalg.norm(offset - _at_event(offset, grasped), axis=-1) * held
        cost += SLIP_WEIGHT * slip.max(axis=(1, 2))
        cost += DOUBLE_WEIGHT * (held.sum(axis=2) > 1).mean(axis=1)
        holding = held[:, 0].any(axis=1)
        grasps, releases = (event.any(axis=(1, 2)) for event in (grasped, released))
        resting = ~grasps & ~holding
        done = resting & (built_share(on_pairs(place[:, 0])) >= 1.0)
        cost += IDLE_WEIGHT * (resting & ~done)
        cost += IDLE_WEIGHT * ((grasps | holding) & ~releases)
        landing = np.any(released, axis=2)
        first = np.where(landing.any(axis=1), landing.argmax(axis=1), steps - 1)
        cost += DELAY_WEIGHT * stride * first * ~done
        return -cost


def _towards(target: np.ndarray, joints: np.ndarray) -> np.ndarray:
    """Return joints `[rows, 7]` as far on the way to a target as the arm reaches."""
    tool = arm.tool_position(joints)
    found = np.array(joints, np.float64)
    waiting = np.ones(len(found), np.bool_)
    for share in SHARES:
        tried = arm.inverse(tool + share * (target - tool))
        reached = waiting & np.isfinite(tried).all(axis=1)
        found[reached] = tried[reached]
        waiting &= ~reached
    return found


def _distances(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return lateral and vertical distances of points."""
    off = a - b
    return np.hypot(off[..., 0], off[..., 1]), np.abs(off[..., 2])


def _at_event(values: np.ndarray, events: np.ndarray) -> np.ndarray:
    """Return the values at the latest event so far, or else at the first step.

    Args:
        values: `[n, steps, blocks, size]`.
        events: `[n, steps, blocks]`.
    """
    steps = np.arange(events.shape[1])[None, :, None]
    latest = np.maximum.accumulate(np.where(events, steps, 0), axis=1)
    return np.take_along_axis(values, latest[..., None], axis=1)


def _landing_miss(place: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Return how far `[n, steps, blocks]` blocks are from standing on something.

    Args:
        place: `[n, steps, blocks, 3]`.
        held: `[n, steps, blocks]`; no block stands on a held one.
    """
    on_table: np.ndarray = np.abs(place[..., 2] - BLOCK_HEIGHT / 2)
    top = place + np.array([0.0, 0.0, BLOCK_HEIGHT])
    lateral, vertical = _distances(place[:, :, :, None], top[:, :, None])
    miss = lateral + vertical
    others = np.eye(place.shape[2], dtype=np.bool_) | held[:, :, None]
    miss[np.broadcast_to(others, miss.shape)] = np.inf
    nearest: np.ndarray = np.minimum(on_table, miss.min(axis=-1))
    return nearest


def _event_mean(costs: np.ndarray, events: np.ndarray) -> np.ndarray:
    """Return the mean cost `[n]` of events; each before one halves its weight.

    Args:
        costs: `[n, steps, blocks]`.
        events: The same shape.
    """
    count = events.sum(axis=2)
    before = np.cumsum(count, axis=1) - count
    weights = (0.5 ** before[..., None] * events).reshape(len(events), -1)
    total = weights.sum(axis=1)
    costs = costs.reshape(len(costs), -1)
    mean: np.ndarray = (weights * costs).sum(axis=1) / np.maximum(total, 1e-12)
    return mean


class JointFeatures:
    """Plans for the whole observation, followed joint by joint.

    Attributes:
        observation_size: Columns of an observation.
        num_columns: Planning columns, the same number.
        columns: "joints", "block_0", "quaternion_0" and "flag_0" and so on.
        objects: The columns of each block.
        feasible: As in `BlockFeatures`.
    """

    feasible = FEASIBLE

    def __init__(self, num_blocks: int = NUM_BLOCKS) -> None:
        """Lay out the columns.

        Args:
            num_blocks: As in the environment.
        """
        self.observation_size = self.num_columns = observation_size(num_blocks)
        self.columns: Mapping[str, tuple[int, ...]] = observation_columns(num_blocks)
        self.objects = tuple(
            (
                *self.columns[f"block_{block}"],
                *self.columns[f"quaternion_{block}"],
                *self.columns[f"flag_{block}"],
            )
            for block in range(num_blocks)
        )
        self._blocks = BlockFeatures(num_blocks)
        self._flags = [self.columns[f"flag_{block}"][0] for block in range(num_blocks)]

    def features(self, observations: np.ndarray) -> np.ndarray:
        """Return the observations, float32 `[..., 7 + 8 n]`."""
        return np.asarray(observations, np.float32)

    def act(self, plans: Plans, observations: np.ndarray) -> np.ndarray:  # noqa: ARG002 (planned joints are targets, wherever the arm is)
        """Return joint targets and grasp `[rows, 8]` for the next env step.

        Args:
            plans: The plans to follow.
            observations: `[rows, 7 + 8 n]` of the environment.
        """
        target = plans.reference(1.0)
        grasp = target[:, self._flags].max(axis=1) > UP
        joints = target[:, :NUM_JOINTS]
        return np.concatenate([joints, grasp[:, None]], axis=1)

    def feasibility(self, candidates: np.ndarray, stride: int) -> np.ndarray:
        """Return how well plans can be executed, like `BlockFeatures.feasibility`.

        Args:
            candidates: `[n, steps, 7 + 8 n]`; the first step is the present.
            stride: Env steps between two planning steps.
        """
        return self._blocks.feasibility(self._blocks.features(candidates), stride)
