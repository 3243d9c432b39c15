r"""Estimates with intervals from training runs that each have many episodes.

All runs of a method have the same episodes: the same starts and goals. So training runs
and episodes are crossed factors, and the bootstrap draws both with replacement:

    Mean of a method    draws training runs and, once for all of them, episodes
    A minus B           draws runs of A, runs of B, and the episodes that both share
    Average of problems every problem's own draws, averaged draw by draw

All are percentile bootstraps (Efron 1979). With a single training run, only episodes
are drawn: the interval does not cover what another training seed would give. Copies of
a run have the interval of that run.

Values are `[runs, episodes]`. NaN stands for an episode without that figure, such as
the time to a goal that was not reached; draws include it, and their means leave it out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from diffuser_policy.evaluation.statistics import (
    CHUNK,
    NUM_RESAMPLES,
    Interval,
    iqm,
    proportion_interval,
)


def pooled_mean(values: np.ndarray) -> float:
    """Return the mean of `[runs, episodes]` figures; NaN without any figure."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else math.nan


def mean_draws(
    values: np.ndarray, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> np.ndarray:
    """Return bootstrap means `[num_resamples]` of `[runs, episodes]` figures."""
    runs, episodes = values.shape
    known = np.isfinite(values)
    filled, means = np.where(known, values, 0), np.empty(num_resamples)
    of_runs = _counts(runs, num_resamples, (seed, 0))
    of_episodes = _counts(episodes, num_resamples, (seed, 2))
    for part in _parts(num_resamples, episodes):
        a, e = of_runs[part], of_episodes[part].astype(np.float64)
        means[part] = _ratio((a * (e @ filled.T)).sum(1), (a * (e @ known.T)).sum(1))
    return means


def interval_of(estimate: float, draws: np.ndarray) -> Interval:
    """Return an estimate with the central 95 % of its draws, NaN draws left out."""
    known = draws[np.isfinite(draws)]
    if math.isnan(estimate) or not len(known):
        return Interval(estimate, math.nan, math.nan)
    low, high = np.quantile(known, [0.025, 0.975])
    return Interval(estimate, float(low), float(high))


def run_interval(values: np.ndarray, *, num_resamples: int = NUM_RESAMPLES) -> Interval:
    """Return the mean of `[runs, episodes]` figures; one episode has no interval."""
    draws = np.empty(0)
    if _num_known(values) > 1:
        draws = mean_draws(values, num_resamples=num_resamples)
    return interval_of(pooled_mean(values), draws)


def average_interval(problems: Sequence[np.ndarray]) -> Interval:
    """Return the mean of problems' means, of figures `[runs, episodes]` each."""
    draws = [mean_draws(values, seed=number) for number, values in enumerate(problems)]
    estimate = float(np.mean([pooled_mean(values) for values in problems]))
    return interval_of(estimate, np.mean(draws, axis=0))


def rate_interval(values: np.ndarray) -> Interval:
    """Return the share of successes of all episodes.

    Wilson's interval is of episodes alone: it counts different episodes, however many
    runs repeat them. With several runs, what drawing runs adds is independent of it, so
    distances to the ends add up as squares (Zou and Donner 2008).

    Args:
        values: `[runs, episodes]` zeros and ones; NaN where the figure is missing.
    """
    rate, total = pooled_mean(values), _num_known(values)
    wilson = proportion_interval(round(rate * total), total)
    if len(values) == 1:
        return wilson
    known = np.isfinite(values)
    chosen = _counts(len(values), NUM_RESAMPLES, (0, 0))
    successes, trials = np.where(known, values, 0).sum(1), known.sum(1)
    drawn = interval_of(rate, _ratio(chosen @ successes, chosen @ trials))
    below = math.hypot(rate - wilson.low, rate - drawn.low)
    above = math.hypot(wilson.high - rate, drawn.high - rate)
    return Interval(rate, max(0.0, rate - below), min(1.0, rate + above))


def iqm_run_interval(
    problems: Sequence[np.ndarray],
    *,
    by_runs: bool,
    num_resamples: int = NUM_RESAMPLES,
) -> Interval:
    """Return the interquartile mean over problems (Agarwal et al. 2021).

    Runs and, once for all of them, episodes are drawn within each problem's figures
    `[runs, episodes]`, without NaN. With `by_runs`, the runs' means are pooled instead
    of all episodes.
    """
    pooled = [v.mean(axis=1) if by_runs else v.ravel() for v in problems]
    estimate = iqm(np.concatenate(pooled))
    if max(values.shape[1] for values in problems) == 1:
        return Interval(estimate, math.nan, math.nan)
    draws = np.empty(num_resamples)
    for part in _parts(num_resamples, 4 * sum(v.shape[1] for v in problems)):
        columns, weights = [], []
        for number, values in enumerate(problems):
            a, e = (
                _counts(size, num_resamples, (number, factor))[part]
                for size, factor in zip(values.shape, (0, 2), strict=True)
            )
            if by_runs:
                columns.append(e.astype(np.float64) @ values.T / e.shape[1])
                weights.append(a)
            else:
                columns.append(values.reshape(1, -1))
                weights.append((a[:, :, None] * e[:, None, :]).reshape(len(a), -1))
        draws[part] = _iqm_of_counts(np.hstack(columns), np.hstack(weights))
    return interval_of(estimate, draws)


class Comparison(NamedTuple):
    """One method against another on the same episodes of one problem.

    Attributes:
        difference: Mean of the first's figure minus the second's.
        win: Probability that the first is better in an episode, ties counting half.
    """

    difference: Interval
    win: Interval


def compare(first: np.ndarray, second: np.ndarray) -> Comparison:
    """Compare figures `[runs, episodes]` of two methods on the same episodes."""
    ours, theirs = first[:, None, :], second[None, :, :]
    figures = np.stack([ours - theirs, (ours > theirs) + 0.5 * (ours == theirs)])
    draws = crossed_draws(figures)
    if first.shape[1] == 1:
        draws = draws[:, :0]  # one episode gives no idea of the spread
    return Comparison(
        *(interval_of(float(figures[i].mean()), draws[i]) for i in (0, 1))
    )


def crossed_draws(
    values: np.ndarray, *, num_resamples: int = NUM_RESAMPLES
) -> np.ndarray:
    """Return bootstrap means `[figures, num_resamples]` over three crossed factors.

    Of values `[figures, runs, other runs, episodes]`, the last three are drawn with
    replacement, each independently of the others.
    """
    figures, runs, others, episodes = values.shape
    means = np.empty((figures, num_resamples))
    for part in _parts(num_resamples, episodes):
        a, b, e = (
            _counts(size, num_resamples, (0, factor))[part] / size
            for factor, size in enumerate((runs, others, episodes))
        )
        by_runs = np.einsum("re,fabe->frab", e, values, optimize=True)
        means[:, part] = np.einsum("ra,rb,frab->fr", a, b, by_runs)
    return means


def _parts(num_resamples: int, size: int) -> Iterator[slice]:
    """Yield the draws to make at a time, of `size` numbers each."""
    rows = max(1, CHUNK // size)
    for begin in range(0, num_resamples, rows):
        yield slice(begin, min(begin + rows, num_resamples))


@lru_cache(maxsize=32)  # all methods have the same numbers of runs and episodes
def _counts(size: int, num_resamples: int, seed: tuple[int, ...]) -> np.ndarray:
    """Return how often each of `size` is drawn `[num_resamples, size]`.

    The mean of a draw is then a weighted mean.
    """
    rng = np.random.default_rng(seed)
    counts = np.empty((num_resamples, size), dtype=np.int32)
    for part in _parts(num_resamples, size):
        rows = part.stop - part.start
        counts[part] = rng.multinomial(size, np.full(size, 1 / size), rows)
    counts.flags.writeable = False
    return counts


def _ratio(sums: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Return means `[n]`, NaN where there is nothing to average."""
    means = np.full(len(sums), math.nan)
    np.divide(sums, numbers, out=means, where=numbers > 0)
    return means


def _num_known(values: np.ndarray) -> int:
    """Return how many different episodes of `[runs, episodes]` have the figure."""
    return int(np.isfinite(values).any(axis=0).sum())


def _iqm_of_counts(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return interquartile means `[draws]` of values drawn several times.

    Args:
        values: `[draws, n]`, or `[1, n]` where all draws share the values.
        counts: `[draws, n]` with the same sum in every row.
    """
    order = np.argsort(values, axis=1)
    ordered = np.take_along_axis(values, order, axis=1)
    counts = np.take_along_axis(counts, order, axis=1)
    ends = counts.cumsum(axis=1)
    total = int(ends[0, -1])
    cut = total // 4
    kept = np.minimum(ends, total - cut) - np.maximum(ends - counts, cut)
    means: np.ndarray = (kept.clip(0) * ordered).sum(axis=1) / (total - 2 * cut)
    return means


def disjoint(first: Interval, second: Interval) -> int:
    """Return 1 if the first interval lies above the second, -1 if below, else 0."""
    return int(first.low > second.high) - int(first.high < second.low)
