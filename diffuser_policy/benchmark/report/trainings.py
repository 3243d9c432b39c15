"""How trainings went: learning curves, and the values that critics give."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from diffuser_policy.benchmark.report.study import Entry
from diffuser_policy.benchmark.results import CellResult, rise_of

SLACK = 0.1  # share of the allowed range by which an approximation may leave it


@dataclass(frozen=True)
class Curve:
    """A learning curve.

    Attributes:
        steps: Gradient steps `[points]`.
        mean: Mean `[points]` over the training seeds that got there.
        low: Lower end `[points]` of the band.
        high: Upper end `[points]` of the band.
    """

    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def curve_of(entry: Entry) -> Curve | None:
    """Return the learning curve of a method on a problem, if it has one.

    With one training seed, the band is the 95 % interval over the evaluation's
    episodes; with several, it spans the means of the training seeds.
    """
    points: dict[int, list[dict[str, float]]] = {}
    for result in entry.results:
        for point in result.curve:
            figures: Any = point.get(entry.row.measure)
            if figures is not None:
                points.setdefault(int(point["step"]), []).append(figures)
    if not points:
        return None
    columns = []
    for step, found in sorted(points.items()):
        means = [figures["mean"] for figures in found]
        ends = [found[0]["low"], found[0]["high"]]
        band = [math.nan if end is None else end for end in ends]
        if len(entry.results) > 1:
            band = [min(means), max(means)]
        columns.append([step, float(np.mean(means)), *band])
    return Curve(*np.array(columns, dtype=np.float64).T)


CurveEnd = Literal["rising", "flat", "falling", "constant"]


def curve_end(result: CellResult) -> CurveEnd | None:
    """Return how a cell's learning curve ended; None for curves too short to tell.

    A constant curve had the same score in every episode of every evaluation, which does
    not tell whether the method learned anything.
    """
    rise = rise_of(result.curve)
    if rise is None:
        return None
    scores = {value for point in result.curve for value in point.get("values") or ()}
    return "constant" if len(scores) == 1 else rise.kind


@dataclass(frozen=True)
class Critic:
    """The values that a critic gives to the actions of the data.

    Attributes:
        low: 5 % of the values are below.
        median: Half of the values are below.
        high: 95 % of the values are below.
        allowed: Lowest and highest value that rewards and discount allow.
    """

    low: float
    median: float
    high: float
    allowed: tuple[float, float]

    @property
    def verdict(self) -> Literal["inside", "too high", "too low"]:
        """Whether the median lies in the allowed range, give or take a tenth of it."""
        lowest, highest = self.allowed
        slack = SLACK * (highest - lowest)
        if self.median > highest + slack:
            return "too high"
        return "too low" if self.median < lowest - slack else "inside"


def critic_of(result: CellResult) -> Critic | None:
    """Return the values of a cell's critic; None if there is none, or none recorded."""
    found = result.training.get("values")
    if not found:
        return None
    low, median, high = (float(found[name]) for name in ("low", "median", "high"))
    lowest, highest = map(float, found["possible"])
    return Critic(low, median, high, (lowest, highest))
