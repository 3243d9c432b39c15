"""What trained critics say of the data's actions, and whether that can be true."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from diffuser_policy.benchmark.report.wording import number
from diffuser_policy.benchmark.results import CellResult

SLACK = 0.1  # of the possible range, by which approximations may miss it


@dataclass(frozen=True)
class Critic:
    """Values of the data's own actions.

    Attributes:
        median: Half of them are below.
        lowest: Possible value, by the rewards and the discount.
        highest: Likewise.
    """

    median: float
    lowest: float
    highest: float

    @property
    def kind(self) -> Literal["too low", "possible", "too high"]:
        """Whether most values could be true."""
        slack = SLACK * (self.highest - self.lowest)
        if self.median > self.highest + slack:
            return "too high"
        return "too low" if self.median < self.lowest - slack else "possible"

    def __str__(self) -> str:
        """Return the median, and what is possible."""
        ends = f"{number(self.lowest, 0)} to {number(self.highest, 0)}"
        return f"{number(self.median, 0)} of {ends}"


def critic_of(result: CellResult) -> Critic | None:
    """Return what the critic of a cell says; none if it has none, or kept nothing."""
    found = result.training.get("values")
    if not found:
        return None
    return Critic(float(found["median"]), *map(float, found["possible"]))
