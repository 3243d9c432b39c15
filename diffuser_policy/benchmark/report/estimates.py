r"""Estimates with intervals from training runs that each have many episodes.

    Mean of a method    draws training runs, then episodes within each drawn run
    A minus B           draws runs of A, runs of B, and the episodes that both share
    Average of problems every problem's own draws, averaged draw by draw

All are percentile bootstraps (Efron 1979). With a single training run there is nothing
to draw on the first level: the interval is over episodes only, and says nothing of what
another training seed would give. NaN stands for an episode without that figure, such as
the time to a goal that was not reached; it takes part in the draws and is left out of
their means.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from diffuser_policy.evaluation.statistics import (
    CHUNK,
    NUM_RESAMPLES,
    Interval,
    proportion_interval,
)

Runs = Sequence[np.ndarray]


def pooled_mean(runs: Runs) -> float:
    """Return the mean `[]` over all episodes of all runs; NaN if there are none."""
    values = np.concatenate(runs)
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else math.nan


def mean_draws(
    runs: Runs, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> np.ndarray:
    """Return bootstrap means `[num_resamples]`: runs are drawn, then their episodes.

    Args:
        runs: `[episodes]` values of each training run; NaN where there is none.
        num_resamples: How many.
        seed: Fixes the draws.
    """
    rng = np.random.default_rng(seed)
    chosen = rng.integers(len(runs), size=(num_resamples, len(runs)))
    sums, numbers = np.zeros(chosen.shape), np.zeros(chosen.shape)
    for index, values in enumerate(runs):
        at = np.flatnonzero(chosen.ravel() == index)
        rows = max(1, CHUNK // len(values))
        for begin in range(0, len(at), rows):
            part = at[begin : begin + rows]
            drawn = values[rng.integers(len(values), size=(len(part), len(values)))]
            known = np.isfinite(drawn)
            sums.flat[part] = np.where(known, drawn, 0).sum(axis=1)
            numbers.flat[part] = known.sum(axis=1)
    total, count = sums.sum(axis=1), numbers.sum(axis=1)
    means: np.ndarray = np.divide(
        total, count, out=np.full(num_resamples, math.nan), where=count > 0
    )
    return means


def interval_of(estimate: float, draws: np.ndarray) -> Interval:
    """Return an estimate with the central 95 % of its draws, NaN draws left out."""
    known = draws[np.isfinite(draws)]
    if math.isnan(estimate) or not len(known):
        return Interval(estimate, math.nan, math.nan)
    low, high = np.quantile(known, [0.025, 0.975])
    return Interval(estimate, float(low), float(high))


def run_interval(
    runs: Runs, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> Interval:
    """Return the mean over all episodes with its interval.

    Args:
        runs: `[episodes]` values of each training run; NaN where there is none.
        num_resamples: Draws.
        seed: Fixes the draws.
    """
    if sum(map(len, runs)) == 1:
        return Interval(pooled_mean(runs), math.nan, math.nan)
    draws = mean_draws(runs, num_resamples=num_resamples, seed=seed)
    return interval_of(pooled_mean(runs), draws)


def average_interval(
    problems: Sequence[Runs], *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> Interval:
    """Return the mean over problems of their means, each problem counting alike.

    Args:
        problems: For each problem the `[episodes]` values of each training run.
        num_resamples: Draws within each problem.
        seed: Fixes the draws.
    """
    draws = [
        mean_draws(runs, num_resamples=num_resamples, seed=seed + number)
        for number, runs in enumerate(problems)
    ]
    estimate = float(np.mean([pooled_mean(runs) for runs in problems]))
    return interval_of(estimate, np.mean(draws, axis=0))


def rate_interval(
    runs: Runs, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> Interval:
    """Return the share of successes of all episodes.

    Wilson's interval knows of episodes alone. With several training runs the interval
    is widened to that of drawn runs, wherever this reaches further.

    Args:
        runs: `[episodes]` zeros and ones of each training run.
        num_resamples: Draws.
        seed: Fixes the draws.
    """
    successes = sum(int(np.sum(values)) for values in runs)
    wilson = proportion_interval(successes, sum(map(len, runs)))
    if len(runs) == 1:
        return wilson
    drawn = run_interval(runs, num_resamples=num_resamples, seed=seed)
    return Interval(
        wilson.mean, min(wilson.low, drawn.low), max(wilson.high, drawn.high)
    )


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One method against another on the same episodes of one problem.

    Attributes:
        difference: Mean of the first's figure minus the second's.
        win: Probability that the first is better in an episode, ties counting half.
        ties: Share of the episodes in which both are equal.
        episodes: How many they have in common.
    """

    difference: Interval
    win: Interval
    ties: float
    episodes: int


def compare(
    first: np.ndarray,
    second: np.ndarray,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Compare two methods on the episodes that both have run.

    Args:
        first: `[runs, episodes]` of the first method.
        second: `[other runs, episodes]` of the second, in the same order.
        num_resamples: Draws of runs of either and of episodes.
        seed: Fixes the draws.
    """
    ours, theirs = first[:, None, :], second[None, :, :]
    difference = ours - theirs
    win = (ours > theirs) + 0.5 * (ours == theirs)
    draws = crossed_draws(
        np.stack([difference, win]), num_resamples=num_resamples, seed=seed
    )
    alone = win.size == 1
    return Comparison(
        difference=interval_of(
            float(difference.mean()), draws[0] if not alone else draws[0, :0]
        ),
        win=interval_of(float(win.mean()), draws[1] if not alone else draws[1, :0]),
        ties=float((ours == theirs).mean()),
        episodes=first.shape[1],
    )


def crossed_draws(
    values: np.ndarray, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> np.ndarray:
    """Return bootstrap means `[figures, num_resamples]` over three crossed factors.

    Args:
        values: `[figures, runs, other runs, episodes]`; runs, other runs and episodes
            are drawn with replacement, each independently of the others.
        num_resamples: How many.
        seed: Fixes the draws.
    """
    figures, runs, others, episodes = values.shape
    means = np.empty((figures, num_resamples))
    rows = max(1, CHUNK // episodes)
    for begin in range(0, num_resamples, rows):
        count = min(rows, num_resamples - begin)
        a, b, e = (
            _weights(size, count, (seed, begin, factor))
            for factor, size in enumerate((runs, others, episodes))
        )
        by_runs = np.einsum("re,fabe->frab", e, values, optimize=True)
        means[:, begin : begin + count] = np.einsum("ra,rb,frab->fr", a, b, by_runs)
    return means


@lru_cache(maxsize=8)  # methods are compared with one on the same episodes
def _weights(size: int, count: int, seed: tuple[int, ...]) -> np.ndarray:
    """Return how often each of `size` is drawn, as a share `[count, size]`.

    The mean of a draw is then a weighted mean.
    """
    rng = np.random.default_rng(seed)
    shares: np.ndarray = rng.multinomial(size, np.full(size, 1 / size), count) / size
    return shares


def disjoint(first: Interval, second: Interval) -> int:
    """Return 1 if the first interval lies above the second, -1 if below, else 0."""
    return int(first.low > second.high) - int(first.high < second.low)
