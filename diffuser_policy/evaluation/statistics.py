r"""Means with intervals, so that no number stands alone.

- Means: the percentile bootstrap (Efron 1979). Episodes are drawn with replacement;
  the interval holds the central 95 % of the means of the draws.
- Proportions: Wilson's score interval (Wilson 1927), all p with
  $|\hat p - p| \le z \sqrt{p (1 - p) / n}$. It stays informative at 0 and n
  successes, where a bootstrap has nothing to draw from.
- Several runs pooled: the interquartile mean, the mean of the middle half (Agarwal et
  al. 2021). `diffuser_policy.benchmark.report.estimates` adds its intervals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from diffuser_policy.errors import ConfigError

CONFIDENCE = 0.95
NUM_RESAMPLES = 10_000
CHUNK = 4_000_000  # numbers drawn at a time: what keeps the memory small


@dataclass(frozen=True)
class Interval:
    """A point estimate and its confidence interval.

    Attributes:
        mean: The estimate.
        low: Lower end; NaN where a single number gives no idea of the spread.
        high: Upper end, likewise.
    """

    mean: float
    low: float
    high: float


def mean_interval(
    values: Sequence[float] | np.ndarray,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Return the mean with its percentile-bootstrap interval.

    If a value is not finite, neither is the mean, and the ends are NaN.

    Args:
        values: `[n]` independent results, such as the scores of episodes.
        num_resamples: Draws of n values with replacement.
        seed: Fixes the draws.

    Raises:
        ConfigError: No values.
    """
    array = _checked(values)
    tail = (1 - CONFIDENCE) / 2
    with np.errstate(over="ignore", invalid="ignore"):
        estimate = float(array.mean())
    if len(array) == 1 or not math.isfinite(estimate):
        return Interval(estimate, math.nan, math.nan)
    rng, at_once = np.random.default_rng(seed), max(1, CHUNK // len(array))
    means = []
    for begin in range(0, num_resamples, at_once):
        size = (min(at_once, num_resamples - begin), len(array))
        means.append(array[rng.integers(len(array), size=size)].mean(axis=1))
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return Interval(estimate, float(low), float(high))


def iqm(values: Sequence[float] | np.ndarray) -> float:
    """Return the mean of `[n]` values without the lowest and highest quarter of them.

    Raises:
        ConfigError: No values.
    """
    array = np.sort(_checked(values))
    cut = len(array) // 4
    return float(array[cut : len(array) - cut].mean())


def proportion_interval(successes: int, total: int) -> Interval:
    """Return the success rate with Wilson's score interval.

    Raises:
        ConfigError: No trials, or more successes than trials.
    """
    if total < 1 or not 0 <= successes <= total:
        raise ConfigError(f"{successes} successes of {total} trials is no proportion.")
    z2 = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) ** 2
    rate = successes / total
    middle = (rate + z2 / (2 * total)) / (1 + z2 / total)
    spread = math.sqrt(z2 * (rate * (1 - rate) + z2 / (4 * total)) / total)
    half = spread / (1 + z2 / total)
    # Rounding must not push the ends past what they are at 0 and n successes.
    low = 0.0 if successes == 0 else middle - half
    high = 1.0 if successes == total else middle + half
    return Interval(rate, low, high)


def _checked(values: Sequence[float] | np.ndarray) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) == 0:
        raise ConfigError(
            f"Statistics need a list of at least one number, got shape {array.shape}."
        )
    return array
