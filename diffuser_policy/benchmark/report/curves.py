"""Learning curves: over training seeds, and whether they had become flat."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffuser_policy.benchmark.report.study import Entry
from diffuser_policy.benchmark.results import CellResult


@dataclass(frozen=True)
class Curve:
    """A learning curve.

    Attributes:
        steps: `[points]` gradient steps.
        mean: `[points]` of all training seeds that got there.
        low: `[points]` of the band.
        high: `[points]` likewise.
    """

    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def curve_of(entry: Entry) -> Curve | None:
    """Return the learning curve of a method on a problem; none if it has none.

    With one training seed, the band is the 95 % interval over that evaluation's
    episodes; with several, it reaches from the lowest to the highest of their means.
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
        band = [_known(found[0]["low"]), _known(found[0]["high"])]
        if len(entry.results) > 1:
            band = [min(means), max(means)]
        columns.append([step, float(np.mean(means)), *band])
    return Curve(*np.array(columns, dtype=np.float64).T)


def constant_score(result: CellResult) -> float | None:
    """Return the score of all episodes of a learning curve, if they have the same."""
    scores = {value for point in result.curve for value in point.get("values") or ()}
    return float(scores.pop()) if len(scores) == 1 else None


def _known(value: float | None) -> float:
    return math.nan if value is None else value
