"""What constructor and `reset(options=...)` take, checked before anything changes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np

from diffuser_envs.errors import KukaOptionError, nearest_names
from diffuser_envs.kuka.arm import JOINT_HIGH, JOINT_LOW
from diffuser_envs.kuka.arrangements import check_arrangement
from diffuser_envs.kuka.columns import MAX_BLOCKS, NUM_JOINTS, FloatArray
from diffuser_envs.kuka.tasks import Task

RESET_OPTIONS = ("goal", "blocks", "joints")


def check_arguments(num_blocks: int, joint_noise: float, substeps: int) -> None:
    """Raise unless an environment can be made of these.

    Args:
        num_blocks: Number of blocks.
        joint_noise: Standard deviation, rad.
        substeps: Physics steps per step.

    Raises:
        KukaOptionError: One of them is out of its range.
    """
    whole = isinstance(num_blocks, Integral)
    if not (whole and 2 <= num_blocks <= MAX_BLOCKS):
        raise KukaOptionError(
            f"num_blocks must be 2 to {MAX_BLOCKS} (more do not fit into the arm's"
            f" work sector), got {num_blocks}"
        )
    if not (isinstance(joint_noise, Real) and 0.0 <= joint_noise < math.inf):
        raise KukaOptionError(
            f"joint_noise is a standard deviation in rad, 0 or more; got {joint_noise}"
        )
    if not (isinstance(substeps, Integral) and substeps >= 1):
        raise KukaOptionError(
            f"substeps must be a whole number, 1 or more; got {substeps}"
        )


def check_render_mode(render_mode: str | None, known: Sequence[str]) -> None:
    """Raise unless pictures can be drawn in this way.

    Args:
        render_mode: What was asked for.
        known: All that there are.

    Raises:
        KukaOptionError: It is none of them.
    """
    if render_mode is not None and render_mode not in known:
        hint = nearest_names(str(render_mode), known)
        raise KukaOptionError(f"unknown render_mode {render_mode!r}; {hint}")


def read_reset_options(
    task: Task, options: Mapping[str, Any] | None
) -> tuple[FloatArray | None, FloatArray | None, FloatArray | None]:
    """Return the goal, the blocks' positions and the joints that options ask for.

    Args:
        task: Of the environment.
        options: What was given to `reset`.

    Returns:
        `[goal_size]`, `[n, 3]` and `[7]`; none for what is not given.

    Raises:
        KukaOptionError: An option is unknown or malformed.
        KukaArrangementError: Blocks cannot stand like that.
    """
    given = dict(options or {})
    for name in given:
        if name not in RESET_OPTIONS:
            hint = nearest_names(str(name), RESET_OPTIONS)
            raise KukaOptionError(f"unknown reset option {name!r}; {hint}")
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
