"""Guides of whole tasks: sums, and nothing but sums."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from diffuser_envs.kuka.guides.constraints import AvoidBlocks, Contact, Place
from diffuser_envs.kuka.guides.match import StackMatch
from diffuser_envs.kuka.guides.task import Tower
from diffuser_policy.guides.guide import Guide, WeightedSum
from diffuser_policy.guides.trajectory import Trajectory


@dataclass(frozen=True, kw_only=True)
class StackTask(Guide):
    """The sum that suits a task: StackMatch + Contact, Place + Contact, AvoidBlocks.

    Nothing but a sum: a weight of 0 leaves a part out. A full pull to the place would
    tear the block from the tool, while the denoiser makes a plan of part of it.

        make_guide("stack-task", match=1.0, place=0.0)

    Attributes:
        match: Weight of `StackMatch`, which needs the planner's classifier.
        place: Weight of `Place`.
        contact: Weight of `Contact`.
        avoid: Weight of `AvoidBlocks`.
        tower: Blocks from the bottom to the top, instead of the environment's goal.
    """

    match: float = 0.0
    place: float = 0.3
    contact: float = 2.0
    avoid: float = 0.0
    tower: Tower = None

    def parts(self) -> list[tuple[float, Guide]]:
        """Return the guides that are added."""
        every: list[tuple[float, Guide]] = [
            (self.match, StackMatch(tower=self.tower)),
            (self.place, Place(tower=self.tower)),
            (self.contact, Contact(tower=self.tower)),
            (self.avoid, AvoidBlocks()),
        ]
        return [(weight, guide) for weight, guide in every if weight != 0.0]

    def bind(self, networks: Any) -> Guide:
        """Return the sum of the bound guides."""
        return WeightedSum(tuple(self.parts())).bind(networks)

    def __call__(self, trajectory: Trajectory) -> Tensor:
        """Return the weighted sum of the values."""
        return WeightedSum(tuple(self.parts()))(trajectory)
