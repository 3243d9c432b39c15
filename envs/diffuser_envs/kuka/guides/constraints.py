r"""Guides about contacts, places and clearance, which need no network.

Penalties are halves of squares in environment units, so that a gradient step of scale 1
on clean trajectories moves a position, or a contact flag, by what it is off.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from diffuser_envs.kuka.columns import BLOCK_HEIGHT, BLOCK_WIDTH
from diffuser_envs.kuka.guides.task import (
    Tower,
    block_positions,
    check_blocks,
    check_tower,
    current_task,
    fixed_task,
    settling_steps,
)
from diffuser_envs.kuka.stages import count_blocks
from diffuser_policy.errors import GuideError
from diffuser_policy.guides.geometry import checked_number, checked_point, lengths
from diffuser_policy.guides.guide import Guide, Mark
from diffuser_policy.guides.trajectory import Trajectory

SHARPNESS = 0.1  # of a flag, over which the best moment of a contact is averaged
FUNNEL = 0.03  # m off a block's axis from which the full clearance above it is due
SOFTENING = 1e-3  # m; on a block's very axis, distances stay differentiable


@dataclass(frozen=True, kw_only=True)
class Contact(Guide):
    r"""Makes a plan take hold of one block, and of no other.

    $$J = -\tfrac12 \Bigl[ (1 - \max_{t \in W} f_t)^2
    + \sum_{t \in W} \sum_{\mathrm{others}} f_t'^2 \Bigr]$$

    with the planned contact flags f, 0 to 1, of the block and f' of the others, within
    a window W of the plan. The maximum is a soft one: the steps at which a contact is
    likeliest are made one, so that the plan keeps its own time. With `throughout`, the
    first term is a sum over all steps of W instead: the block is held all the while
    (Janner et al. 2022, Appendix B: the first half of the plan).

        make_guide("contact")
        make_guide("contact", block=2, window=(30.0, 60.0), throughout=True)

    Attributes:
        block: Which one; None: that of the current stage. Where nothing is left to do,
            none is to be taken.
        window: First and last env step since the plan began.
        throughout: Hold it in the whole window, not at some time within.
        tower: Blocks from the bottom to the top, instead of the environment's goal.
    """

    block: int | None = None
    window: tuple[float, float] = (0.0, 64.0)
    throughout: bool = False
    tower: Tower = None

    def __post_init__(self) -> None:
        """Check the window."""
        check_blocks(self, self.block)
        check_tower(self, self.tower)
        checked_point(self, "window")
        if len(self.window) != 2 or not 0 <= self.window[0] <= self.window[1]:
            raise GuideError(
                f"Contact.window must be two env steps since the plan began, the first "
                f"not after the last, as (0.0, 64.0); got {self.window!r}."
            )

    def __call__(self, trajectory: Trajectory) -> Tensor:
        """Return minus half the squared lacks and excesses of contact."""
        if self.block is not None:
            block = fixed_task(trajectory, self.block).block
        else:
            block = current_task(self, trajectory, self.tower).block
        times = trajectory.times
        start, end = self.window
        inside = torch.nonzero((times >= start) & (times <= end))[:, 0]
        flags = torch.cat(
            [trajectory[f"flag_{k}"] for k in range(count_blocks(trajectory))], dim=2
        )[:, inside]
        if not len(inside):  # between two planning steps, or past the end
            return 0.0 * trajectory.normalized.sum(dim=(1, 2))
        wanted = F.one_hot(block.clamp(min=0), flags.shape[2]).to(flags.dtype)
        wanted = wanted * (block >= 0)[:, None].to(flags.dtype)
        excess = (flags * (1 - wanted[:, None])).square().sum(dim=(1, 2))
        own = (flags * wanted[:, None]).sum(dim=2)
        if self.throughout:
            lack = (1 - own).square().sum(dim=1)
        else:
            weights = torch.softmax(own / SHARPNESS, dim=1)
            lack = (weights * (1 - own).square()).sum(dim=1)
        return -0.5 * (wanted.amax(dim=1) * lack + excess)


@dataclass(frozen=True, kw_only=True)
class Place(Guide):
    r"""Makes a plan leave a block at a position.

    $$J = -\tfrac12 \sum_{t \in W} |p_t - p^*|^2
    - \tfrac12 \sum_{t \in R} |q_t - q^*|^2$$

    over the last planning steps W, from where the plan lets go of the block. There, in
    R, the tool's tip q is to be on the block's top as well: a block that moved alone
    would be no plan. A plan that lets go late, or never, is judged by its end.

        make_guide("place")
        make_guide("place", block=1, position=(0.5, 0.2, 0.03))

    Attributes:
        block: Which one; None, with `position`: that of the current stage.
        position: Of its center, m.
        window: How many env steps at the plan's end count in any case.
        tower: Blocks from the bottom to the top, instead of the environment's goal.
    """

    block: int | None = None
    position: tuple[float, float, float] | None = None
    window: float = 20.0
    tower: Tower = None

    def __post_init__(self) -> None:
        """Check that there are a block and its position, or neither."""
        check_blocks(self, self.block)
        check_tower(self, self.tower)
        checked_number(self, "window")
        if (self.block is None) != (self.position is None):
            raise GuideError(
                f"Place needs a block and its position, or neither (those of the "
                f"current stage); got block={self.block}, position={self.position}."
            )
        if self.position is not None:
            checked_point(self, "position")
            if len(self.position) != 3:
                raise GuideError(
                    f"Place.position must be three coordinates, got {self.position}."
                )

    def __call__(self, trajectory: Trajectory) -> Tensor:
        """Return minus half the squared distances at the end."""
        if self.block is not None and self.position is not None:
            task = fixed_task(trajectory, self.block, target=self.position)
        else:
            task = current_task(self, trajectory, self.tower)
        rows = torch.arange(len(trajectory), device=task.block.device)
        block = task.block.clamp(min=0)
        release, after = settling_steps(trajectory, block, self.window)
        off = (block_positions(trajectory)[rows, :, block] - task.target).square()
        value = (off.sum(dim=2) * (release | after)).sum(dim=1)
        if "tool" in trajectory:
            top = task.target + task.target.new_tensor((0.0, 0.0, BLOCK_HEIGHT / 2))
            apart = (trajectory["tool"] - top).square().sum(dim=2)
            value = value + (apart * release).sum(dim=1)
        return -0.5 * task.some * value

    def marks(self) -> list[Mark]:
        """Return the position, if it is given."""
        if self.position is None:
            return []
        columns = f"block_{self.block}"
        return [
            Mark(kind="pass by", columns=columns, low=self.position, high=self.position)
        ]


@dataclass(frozen=True, kw_only=True)
class AvoidBlocks(Guide):
    r"""Keeps the tool, and what it carries, away from the other blocks.

    $$J = -\tfrac12 \sum_t \sum_{\mathrm{blocks}}
    \max\bigl(\min(r + c - d_{xy},\ h + c\,u(d_{xy}) - d_z), 0\bigr)^2$$

    with the distances of the tool's tip to a block, and of a carried block to each
    other one: sideways, where they would touch at r, and upwards, where they would at
    h. Right above a block the clearance u narrows to nothing, so that plans may descend
    onto it, to grasp it or to leave another one there.

        make_guide("avoid-blocks", clearance=0.03)

    Attributes:
        clearance: c, meters.
    """

    clearance: float = 0.02

    def __post_init__(self) -> None:
        """Check the clearance."""
        checked_number(self, "clearance")

    def __call__(self, trajectory: Trajectory) -> Tensor:
        """Return minus half the squared lacks of distance."""
        count = count_blocks(trajectory)
        blocks = block_positions(trajectory)
        flags = torch.cat([trajectory[f"flag_{k}"] for k in range(count)], dim=2)
        held = flags.clamp(0.0, 1.0)
        tool = self._lacks(
            trajectory["tool"][:, :, None] - blocks, BLOCK_WIDTH / 2, BLOCK_HEIGHT / 2
        )
        between = blocks[:, :, :, None] - blocks[:, :, None]  # carried, other
        others = 1 - torch.eye(count, device=held.device, dtype=held.dtype)
        carried = (
            self._lacks(between, BLOCK_WIDTH, BLOCK_HEIGHT) * others * held[..., None]
        )
        free = 1 - held
        squares = (free * tool.square()).sum(dim=(1, 2))
        return -0.5 * (squares + carried.square().sum(dim=(1, 2, 3)))

    def _lacks(self, offsets: Tensor, radius: float, height: float) -> Tensor:
        """Return what is lacking of the distances, by the shorter way out."""
        aside = lengths(offsets[..., :2], SOFTENING)
        due = self.clearance * (aside / FUNNEL).clamp(max=1.0)
        sideways = radius + self.clearance - aside
        upwards = height + due - offsets[..., 2]
        return torch.relu(torch.minimum(sideways, upwards))


@dataclass(frozen=True, kw_only=True)
class Rest(Guide):
    r"""Keeps the tool where it is, once there is nothing left to do.

    $$J = -\tfrac12 \sum_t |x_t - x_0|^2$$

    with the tool's planned positions x, and 0 while the goal is not reached. A planner
    that has seen towers being built would go on, and touch what stands.

        make_guide("rest")

    Attributes:
        tower: Blocks from the bottom to the top, instead of the environment's goal.
    """

    tower: Tower = None

    def __post_init__(self) -> None:
        """Check the tower."""
        check_tower(self, self.tower)

    def __call__(self, trajectory: Trajectory) -> Tensor:
        """Return minus half the squared distances from where the tool is."""
        done = 1 - current_task(self, trajectory, self.tower).some
        tool = trajectory["tool"]
        moved = (tool - tool[:, :1].detach()).square().sum(dim=(1, 2))
        return -0.5 * done * moved
