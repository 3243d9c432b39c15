r"""Means with intervals, so that no number stands alone.

- Means: the percentile bootstrap (Efron 1979). Results are drawn with replacement; the
  interval holds the central 95 % of the means of the draws.
- Many wall-clock times: the normal interval, mean ± z s / √n. Of so many, the means of
  the draws are all but normal, and drawing them would take minutes.
- Proportions: Wilson's score interval (Wilson 1927), all p with
  $|\hat p - p| \le z \sqrt{p (1 - p) / n}$. It stays informative at 0 and n
  successes, where a bootstrap has nothing to draw from.
- Several problems pooled: the interquartile mean, the mean of the middle half (Agarwal
  et al. 2021).

Several training runs of a method have the same episodes: the same starts and goals. So
runs and episodes are crossed factors, and the bootstrap draws both with replacement:

    Mean of a method    draws training runs and, once for all of them, episodes
    A minus B           draws runs of A, runs of B, and the episodes that both share
    Average of problems every problem's own draws, averaged draw by draw

With a single run, only episodes are drawn: the interval does not cover what another
training seed would give. Copies of a run have the interval of that run.

Figures of runs are `[runs, episodes]`. NaN stands for an episode without that figure,
such as the time to a goal that was not reached; draws include it, and their means leave
it out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from diffuser_policy.errors import ConfigError

CONFIDENCE = 0.95
_Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
NUM_RESAMPLES = 10_000
MANY_TIMES = 500  # wall-clock times from which on their mean counts as normal
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


def mean_interval(values: Sequence[float] | np.ndarray) -> Interval:
    """Return the mean of `[n]` independent results, such as the scores of episodes.

    If a value is not finite, neither is the mean, and the ends are NaN.

    Raises:
        ConfigError: No values.
    """
    runs = _checked(values)[None]
    with np.errstate(over="ignore", invalid="ignore"):
        estimate = float(runs.mean())
    if not math.isfinite(estimate):
        return Interval(estimate, math.nan, math.nan)
    return run_interval(runs)


def time_interval(values: Sequence[float] | np.ndarray) -> Interval:
    """Return the mean of `[n]` wall-clock times, as `mean_interval` of a few of them.

    `MANY_TIMES` or more have the normal interval: a policy may plan in every env step.

    Raises:
        ConfigError: No values.
    """
    times = _checked(values)
    if len(times) < MANY_TIMES:
        return mean_interval(times)
    mean = float(times.mean())
    half = _Z * float(times.std()) / math.sqrt(len(times))
    return Interval(mean, mean - half, mean + half)


def proportion_interval(successes: int, total: int) -> Interval:
    """Return the success rate with Wilson's score interval.

    Raises:
        ConfigError: No trials, or more successes than trials.
    """
    if total < 1 or not 0 <= successes <= total:
        raise ConfigError(f"{successes} successes of {total} trials is no proportion.")
    z2 = _Z**2
    rate = successes / total
    middle = (rate + z2 / (2 * total)) / (1 + z2 / total)
    spread = math.sqrt(z2 * (rate * (1 - rate) + z2 / (4 * total)) / total)
    half = spread / (1 + z2 / total)
    # Rounding must not push the ends past what they are at 0 and n successes.
    low = 0.0 if successes == 0 else middle - half
    high = 1.0 if successes == total else middle + half
    return Interval(rate, low, high)


def pooled_mean(values: np.ndarray) -> float:
    """Return the mean of `[runs, episodes]` figures; NaN without any figure."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else math.nan


def mean_draws(
    values: np.ndarray, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> np.ndarray:
    """Return bootstrap means `[num_resamples]` of `[runs, episodes]` figures."""
    known = np.isfinite(values)
    filled, means = np.where(known, values, 0), np.empty(num_resamples)
    for part, a, episodes in _drawn(
        values.shape, num_resamples, ((seed, 0), (seed, 2))
    ):
        e = episodes.astype(np.float64)
        means[part] = _ratio((a * (e @ filled.T)).sum(1), (a * (e @ known.T)).sum(1))
    return means


def interval_of(estimate: float, draws: np.ndarray) -> Interval:
    """Return an estimate with the central 95 % of its draws, NaN draws left out."""
    known = draws[np.isfinite(draws)]
    if math.isnan(estimate) or not len(known):
        return Interval(estimate, math.nan, math.nan)
    ends = np.quantile(known, [0.025, 0.975]).tolist()
    # If all results are the same, their weighted sums still differ by rounding.
    low, high = (estimate if math.isclose(end, estimate) else end for end in ends)
    return Interval(estimate, low, high)


def run_interval(values: np.ndarray) -> Interval:
    """Return the mean of `[runs, episodes]` figures; one episode has no interval."""
    draws = np.empty(0)
    if _num_known(values) > 1:
        draws = mean_draws(values)
    return interval_of(pooled_mean(values), draws)


def average_interval(problems: Sequence[np.ndarray]) -> Interval:
    """Return the mean of problems' means, of figures `[runs, episodes]` each.

    If a problem has a single episode, nothing is known of its spread, and the average
    has no interval.
    """
    estimate = float(np.mean([pooled_mean(values) for values in problems]))
    if any(_num_known(values) < 2 for values in problems):
        return Interval(estimate, math.nan, math.nan)
    draws = [mean_draws(values, seed=number) for number, values in enumerate(problems)]
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
    successes, trials = np.where(known, values, 0).sum(1), known.sum(1)
    rates = [
        _ratio(runs @ successes, runs @ trials)
        for _, runs in _drawn(values.shape[:1], NUM_RESAMPLES, ((0, 0),))
    ]
    drawn = interval_of(rate, np.concatenate(rates))
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
    of all episodes. Every problem counts alike, however many runs it has.
    """
    pooled = [v.mean(axis=1) if by_runs else v.ravel() for v in problems]
    sizes = [len(values) for values in pooled]
    times = [np.int64(math.lcm(*sizes) // size) for size in sizes]
    [estimate] = _iqm_of_counts(
        np.concatenate(pooled)[None], np.repeat(times, sizes)[None]
    ).tolist()
    if max(values.shape[1] for values in problems) == 1:
        return Interval(estimate, math.nan, math.nan)
    rows = max(1, CHUNK // (4 * sum(values.shape[1] for values in problems)))
    parts = [
        _drawn(values.shape, num_resamples, ((number, 0), (number, 2)), rows=rows)
        for number, values in enumerate(problems)
    ]
    draws = []
    for drawn in zip(*parts, strict=True):
        columns, weights = [], []
        for values, each, (_, a, e) in zip(problems, times, drawn, strict=True):
            if by_runs:
                columns.append(e.astype(np.float64) @ values.T / e.shape[1])
                weights.append(each * a)
            else:
                columns.append(values.reshape(1, -1))
                drawn_in = a[:, :, None] * e[:, None, :]
                weights.append(each * drawn_in.reshape(len(a), -1))
        draws.append(_iqm_of_counts(np.hstack(columns), np.hstack(weights)))
    return interval_of(estimate, np.concatenate(draws))


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
    means = np.empty((len(values), num_resamples))
    sizes, seeds = values.shape[1:], ((0, 0), (0, 1), (0, 2))
    for part, *counts in _drawn(sizes, num_resamples, seeds):
        a, b, e = (each / size for each, size in zip(counts, sizes, strict=True))
        by_runs = np.einsum("re,fabe->frab", e, values, optimize=True)
        means[:, part] = np.einsum("ra,rb,frab->fr", a, b, by_runs)
    return means


def disjoint(first: Interval, second: Interval) -> int | None:
    """Return 1 if the first interval lies above the second, -1 if below, else 0.

    None where one of them has no ends.
    """
    if math.isnan(first.low) or math.isnan(second.low):
        return None
    return int(first.low > second.high) - int(first.high < second.low)


def _drawn(
    sizes: Sequence[int],
    num_resamples: int,
    seeds: Sequence[tuple[int, ...]],
    *,
    rows: int | None = None,
) -> Iterator[tuple[Any, ...]]:
    """Yield some draws at a time: which, and how often each member of a factor is in.

    The mean of a draw is then a weighted mean, and draws take little memory.

    Args:
        sizes: Members of each factor.
        num_resamples: Draws in total.
        seeds: Seed of each factor's stream; the draws depend on nothing else.
        rows: Draws at a time; by default, as many as are `CHUNK` numbers.

    Yields:
        A slice of the draws, and counts `[draws, size]` of each factor.
    """
    rows = rows or max(1, CHUNK // max(sizes))
    factors = [
        _counts(size, num_resamples, seed, rows)
        for size, seed in zip(sizes, seeds, strict=True)
    ]
    for begin, counts in zip(
        range(0, num_resamples, rows), zip(*factors, strict=True), strict=True
    ):
        yield slice(begin, begin + len(counts[0])), *counts


def _counts(
    size: int, num_resamples: int, seed: tuple[int, ...], rows: int
) -> Iterator[np.ndarray]:
    """Yield how often each of `size` is drawn `[rows, size]`, draw after draw."""
    if size * num_resamples <= CHUNK:
        kept = _kept_counts(size, num_resamples, seed)
        yield from (kept[b : b + rows] for b in range(0, num_resamples, rows))
        return
    rng, shares = np.random.default_rng(seed), np.full(size, 1 / size)
    for begin in range(0, num_resamples, rows):
        yield rng.multinomial(size, shares, min(rows, num_resamples - begin))


# An array takes at most 2 * CHUNK bytes, all of them 1 GB at most. An average of 40
# problems of 300 episodes needs 80, of runs and of episodes: some 240 MB.
@lru_cache(maxsize=128)
def _kept_counts(size: int, num_resamples: int, seed: tuple[int, ...]) -> np.ndarray:
    """Return `_counts` of all draws, which take most of the time.

    All methods have the same numbers of runs and episodes.
    """
    rng, shares = np.random.default_rng(seed), np.full(size, 1 / size)
    counts = rng.multinomial(size, shares, num_resamples).astype(np.int16)
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


def _checked(values: Sequence[float] | np.ndarray) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) == 0:
        raise ConfigError(
            f"Statistics need a list of at least one number, got shape {array.shape}."
        )
    return array
