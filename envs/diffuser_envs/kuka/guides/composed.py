"""Guides of whole tasks: sums, and nothing but sums."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from diffuser_envs.kuka.guides.constraints import AvoidBlocks, Contact, Place, Rest
from diffuser_envs.kuka.guides.match import StackMatch
from diffuser_envs.kuka.guides.task import Tower, check_tower
from diffuser_policy.errors import GuideError
from diffuser_policy.guides.guide import Guide, WeightedSum
from diffuser_policy.guides.trajectory import Trajectory


@dataclass(frozen=True, kw_only=True)
class StackTask(Guide):
    """The sum that suits a task: Place, StackMatch, Contact, AvoidBlocks, and Rest.

    Nothing but a sum: a weight of 0 leaves a part out. It asks for nothing where the
    environment has no goal, so that one policy does the unconditional task as well.

        make_guide("stack-task", match=1.0, place=0.0)

    Attributes:
        match: Weight of `StackMatch`, which needs the planner's classifier.
        place: Weight of `Place`.
        contact: Weight of `Contact`.
        avoid: Weight of `AvoidBlocks`.
        rest: Weight of `Rest`.
        tower: Blocks from the bottom to the top, instead of the environment's goal.
    """

    match: float = 0.0
    place: float = 1.0
    contact: float = 1.0
    avoid: float = 0.0
    rest: float = 1.0
    tower: Tower = None

    def __post_init__(self) -> None:
        """Check the weights and the tower.

        Raises:
            GuideError: A weight that is not finite, or a tower that cannot be.
        """
        for name in ("match", "place", "contact", "avoid", "rest"):
            weight = getattr(self, name)
            if not math.isfinite(weight):
                raise GuideError(f"{self.name}.{name} must be finite, got {weight}.")
        check_tower(self, self.tower)

    def _terms(self) -> list[tuple[float, Guide]]:
        """Return the guides that are added."""
        every: list[tuple[float, Guide]] = [
            (self.match, StackMatch(tower=self.tower)),
            (self.place, Place(tower=self.tower)),
            (self.contact, Contact(tower=self.tower)),
            (self.avoid, AvoidBlocks()),
            (self.rest, Rest(tower=self.tower)),
        ]
        return [(weight, guide) for weight, guide in every if weight != 0.0]

    def bind(self, networks: Any) -> Guide:
        """Return the sum of the bound guides."""
        bound = tuple((weight, part.bind(networks)) for weight, part in self._terms())
        return _TaskSum(bound, goal_needed=self.tower is None)

    def __call__(self, trajectory: Trajectory) -> Tensor:
        """Return the weighted sum of the values; zero where nothing is asked for."""
        terms = tuple(self._terms())
        return _TaskSum(terms, goal_needed=self.tower is None)(trajectory)


@dataclass(frozen=True)
class _TaskSum(WeightedSum):
    """A sum that is zero where its parts would look for a goal in vain."""

    goal_needed: bool = True

    def __call__(self, trajectory: Trajectory) -> Tensor:
        """Return the weighted sum of the values, or zeros."""
        goalless = self.goal_needed and trajectory.desired_goal is None
        if goalless or not self.terms:
            return 0.0 * trajectory.normalized.sum(dim=(1, 2))
        return super().__call__(trajectory)
