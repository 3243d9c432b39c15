"""Which pick-and-place a guide asks of each trajectory, and what it reads of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffuser_envs.errors import KukaArrangementError
from diffuser_envs.kuka.stages import count_blocks, next_stages, tower_goal
from diffuser_policy.errors import GuideError
from diffuser_policy.guides.guide import Guide
from diffuser_policy.guides.trajectory import Trajectory

Tower = tuple[int, ...] | None


@dataclass(frozen=True)
class Task:
    """The pick-and-place that each trajectory should make.

    Attributes:
        block: `[batch]` which block; -1 where there is nothing left to do.
        support: `[batch]` the block that it is to stand on; -1 for the table.
        target: `[batch, 1, 3]` where its center is to be, m.
    """

    block: Tensor
    support: Tensor
    target: Tensor

    @property
    def some(self) -> Tensor:
        """Which trajectories have something to do, `[batch]`, 0 or 1."""
        return (self.block >= 0).to(self.target.dtype)


def check_blocks(guide: Guide, *blocks: int | None) -> None:
    """Refuse numbers that cannot be those of blocks.

    Raises:
        GuideError: A negative one, or no whole number.
    """
    for block in blocks:
        whole = isinstance(block, Integral) and not isinstance(block, bool)
        if block is not None and not (whole and block >= 0):
            raise GuideError(
                f"{guide.name} counts blocks from 0, in whole numbers; got {block!r}."
            )


def check_tower(guide: Guide, tower: Tower) -> None:
    """Refuse what is no tower, however many blocks there are.

    Raises:
        GuideError: Fewer than two blocks, one of them twice, or no block.
    """
    if tower is None:
        return
    if not isinstance(tower, Sequence) or len(tower) < 2:
        raise GuideError(
            f"{guide.name}.tower names two or more blocks from the bottom to the top, "
            f"as (2, 0, 1); got {tower!r}."
        )
    check_blocks(guide, *tower)
    if len(set(tower)) < len(tower):
        raise GuideError(f"{guide.name}.tower names a block twice: {tuple(tower)}.")


def checked_count(trajectory: Trajectory, *named: int) -> int:
    """Return how many blocks the planner plans for.

    Raises:
        MissingColumnsError: No columns of blocks.
        GuideError: A block is named that it does not plan for.
    """
    count = count_blocks(trajectory)
    if count == 0:
        trajectory["block_0"], trajectory["flag_0"]
    if max(named, default=0) >= count:
        raise GuideError(
            f"The planner plans for blocks 0..{count - 1}; got block {max(named)}."
        )
    return count


def fixed_task(
    trajectory: Trajectory,
    block: int,
    *,
    support: int = -1,
    target: tuple[float, ...] = (0.0, 0.0, 0.0),
) -> Task:
    """Return the same task for every trajectory."""
    checked_count(trajectory, block, support)
    values = trajectory.normalized
    size = (len(trajectory),)
    return Task(
        block=torch.full(size, block, device=values.device),
        support=torch.full(size, support, device=values.device),
        target=values.new_tensor(target).expand(len(trajectory), 1, -1),
    )


def current_task(guide: Guide, trajectory: Trajectory, tower: Tower) -> Task:
    """Return the next pick-and-place from the first state of each trajectory.

    Raises:
        GuideError: There is no goal.
    """
    count = checked_count(trajectory)
    if tower is not None:
        try:
            goals = np.tile(tower_goal(tower, count), (len(trajectory), 1))
        except KukaArrangementError as error:
            raise GuideError(f"{guide.name}: {error}") from error
    elif trajectory.desired_goal is not None:
        goals = _array(trajectory.desired_goal[:, 0])
    else:
        raise GuideError(
            f"{guide.name} takes its block from the goal, and this environment has "
            f"none. Name blocks, or a tower from the bottom to the top: "
            f"{guide.name}(tower=(2, 0, 1))."
        )
    first = replace(trajectory, normalized=trajectory.normalized[:, :1].detach())
    flags = torch.cat([first[f"flag_{k}"] for k in range(count)], dim=2)
    try:
        stages = next_stages(
            _array(block_positions(first)[:, 0]), _array(flags[:, 0]), goals
        )
    except KukaArrangementError as error:
        raise GuideError(f"{guide.name}: {error}") from error
    values = trajectory.normalized
    return Task(
        block=torch.from_numpy(stages.block).to(values.device),
        support=torch.from_numpy(stages.support).to(values.device),
        target=torch.from_numpy(stages.target).to(values)[:, None],
    )


def _array(values: Tensor) -> np.ndarray:
    array: np.ndarray = values.detach().cpu().numpy()
    return array


def block_positions(trajectory: Trajectory) -> Tensor:
    """Return where the blocks are, `[batch, steps, blocks, 3]`, m."""
    blocks = range(checked_count(trajectory))
    return torch.stack([trajectory[f"block_{k}"] for k in blocks], dim=2)


def settling_steps(
    trajectory: Trajectory, block: Tensor, window: float
) -> tuple[Tensor, Tensor]:
    """Return when plans let go of their block, and from when on it is to be settled.

    Both are constants: no gradient leads through them.

    Args:
        trajectory: What is guided.
        block: `[batch]` which one.
        window: Env steps at the end that count in any case.

    Returns:
        `[batch, steps]`, bool: the last step of the first hold and the step after it,
        none if there is no such; and all steps after it, and those of the window.
    """
    count = checked_count(trajectory)
    flags = torch.cat([trajectory[f"flag_{k}"] for k in range(count)], dim=2)
    rows = torch.arange(len(trajectory), device=block.device)
    held = flags[rows, :, block] > 0.5
    lets_go = held[:, :-1] & ~held[:, 1:]
    first = lets_go & (lets_go.cumsum(dim=1) == 1)
    release = F.pad(first, (0, 1)) | F.pad(first, (1, 0))
    settled = F.pad(first, (1, 0)).cumsum(dim=1) > 0
    settled[:, -1 - int(window // trajectory.stride) :] = True
    return release, settled
