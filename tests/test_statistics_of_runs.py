"""Estimates from runs of many episodes, against independent computations."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from diffuser_policy.evaluation import statistics
from diffuser_policy.evaluation.statistics import (
    Interval,
    average_interval,
    compare,
    crossed_draws,
    disjoint,
    iqm_run_interval,
    mean_draws,
    mean_interval,
    pooled_mean,
    proportion_interval,
    rate_interval,
    run_interval,
)
from tests.benchmark_report_helpers import iqm

NAN = math.nan


def close(first: Interval, second: Interval) -> bool:
    """Return whether two intervals are the same but for rounding."""
    ours, theirs = ([i.mean, i.low, i.high] for i in (first, second))
    return bool(np.allclose(ours, theirs, rtol=0, atol=1e-9))


def test_one_run_is_the_bootstrap_over_episodes() -> None:
    values = np.random.default_rng(0).normal(50, 20, 300)
    ours, known = run_interval(values[None]), mean_interval(values)
    assert ours.mean == pytest.approx(known.mean)
    assert ours.low == pytest.approx(known.low, abs=0.15)
    assert ours.high == pytest.approx(known.high, abs=0.15)


def test_draws_of_two_runs_follow_the_exact_distribution() -> None:
    runs = np.array([[0.0, 1.0], [10.0, 20.0]])
    exact: dict[float, float] = {}
    for chosen in itertools.product(range(2), repeat=2):
        for episodes in itertools.product(range(2), repeat=2):
            mean = float(runs[np.ix_(chosen, episodes)].mean())
            exact[mean] = exact.get(mean, 0.0) + 1 / 16
    draws = mean_draws(runs, num_resamples=64_000, seed=1)
    found, counts = np.unique(draws, return_counts=True)
    assert set(found) == set(exact)
    shares = counts / len(draws)
    expected = np.array([exact[value] for value in found])
    errors = np.sqrt(expected * (1 - expected) / len(draws))
    assert (np.abs(shares - expected) < 4.5 * errors).all()


def test_runs_that_differ_widen_the_interval() -> None:
    rng = np.random.default_rng(2)
    runs = np.array([rng.normal(mean, 5, 100) for mean in (20, 50, 80)])
    nested, flat = run_interval(runs), run_interval(runs.reshape(1, -1))
    assert nested.mean == pytest.approx(flat.mean)
    # Of three runs, all draws are the lowest one in 1 of 27 cases: beyond 2.5 %.
    assert nested.low == pytest.approx(np.mean(runs[0]), abs=2)
    assert nested.high == pytest.approx(np.mean(runs[2]), abs=2)
    assert flat.high - flat.low < 0.3 * (nested.high - nested.low)


def test_draws_do_not_depend_on_the_size_of_chunks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs = np.random.default_rng(0).normal([[0], [1], [2]], 1, (3, 40))
    whole = mean_draws(runs, num_resamples=4000)
    monkeypatch.setattr("diffuser_policy.evaluation.statistics.CHUNK", 1000)
    parts = mean_draws(runs, num_resamples=4000)
    np.testing.assert_allclose(parts, whole)
    assert len(np.unique(parts)) > 1000


def test_episodes_without_a_figure_are_left_out_of_means() -> None:
    runs = np.array([[10.0, NAN, 20.0], [NAN, NAN, 30.0]])
    assert pooled_mean(runs) == 20
    assert math.isnan(pooled_mean(np.array([[NAN]])))
    draws = mean_draws(runs, num_resamples=2000)
    # Draws without any figure exist, and are no number.
    assert np.isnan(draws).any()
    interval = run_interval(runs)
    assert 10 <= interval.low < interval.mean < interval.high <= 30
    assert math.isnan(run_interval(np.array([[NAN, NAN]])).mean)


def test_a_single_episode_has_no_interval() -> None:
    for values in ([[5.0]], [[4.0], [6.0]], [[NAN, 5.0, NAN]]):
        interval = run_interval(np.array(values))
        assert interval.mean == 5
        assert math.isnan(interval.low)
    alone = compare(np.array([[5.0]]), np.array([[3.0]]))
    assert alone.difference.mean == 2
    assert math.isnan(alone.difference.low)


@pytest.mark.parametrize(("value", "num"), [(100.0, 750), (0.1, 333), (-1e6, 150)])
def test_results_that_are_all_the_same_leave_no_doubt(value: float, num: int) -> None:
    same = np.full((1, num), value)
    found = compare(same, np.zeros((1, num))).difference
    for interval in (run_interval(same), found):
        assert interval.low == interval.mean == interval.high
        assert interval.mean == pytest.approx(value)


def test_average_weighs_problems_alike() -> None:
    rng = np.random.default_rng(3)
    long, short = rng.normal(100, 10, 1000), rng.normal(0, 10, 10)
    interval = average_interval([long[None], short[None]])
    assert interval.mean == pytest.approx((long.mean() + short.mean()) / 2)
    error = math.sqrt(long.var() / 1000 + short.var() / 10) / 2
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * error, rel=0.05)


def test_averages_of_many_problems_draw_once_for_all_methods(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[Any] = []
    default_rng = np.random.default_rng

    def counted(seed: Any = None) -> np.random.Generator:
        made.append(seed)
        return default_rng(seed)

    first, second = np.random.default_rng(13).normal(size=(2, 40, 1, 6))
    monkeypatch.setattr(np.random, "default_rng", counted)
    statistics._kept_counts.cache_clear()  # not other tests' draws
    average_interval([*first])
    made.clear()
    found = average_interval([*second])
    assert made == []
    statistics._kept_counts.cache_clear()
    assert average_interval([*second]) == found
    assert made


def test_problems_are_drawn_apart() -> None:
    """Six with the same figures: their average is known better, by the root of six."""
    values = np.random.default_rng(12).normal(size=(3, 100))
    one, six = run_interval(values), average_interval([values] * 6)
    width = (one.high - one.low) / math.sqrt(6)
    assert six.high - six.low == pytest.approx(width, rel=0.05)


def test_rates_are_wilsons_and_wider_with_runs_that_differ() -> None:
    for successes in range(101):  # 0.29 * 100 is a little less than 29
        alone = rate_interval(np.array([np.arange(100) < successes], np.float64))
        assert alone == proportion_interval(successes, 100)
    both = rate_interval(np.array([np.ones(100), np.zeros(100)]))
    assert both.mean == 0.5
    assert (both.low, both.high) == (0.0, 1.0)
    perfect = rate_interval(np.ones((2, 50)))
    assert close(perfect, proportion_interval(50, 50))
    assert not close(perfect, proportion_interval(100, 100))


def test_rates_add_both_sources_as_squares() -> None:
    rng = np.random.default_rng(8)
    values = (rng.random((3, 200)) < np.array([[0.7], [0.8], [0.9]])).astype(float)
    found, rate = rate_interval(values), float(values.mean())
    wilson = proportion_interval(round(200 * rate), 200)
    drawn = [np.mean(means) for means in itertools.product(values.mean(1), repeat=3)]
    low, high = np.quantile(drawn, [0.025, 0.975], method="inverted_cdf")
    assert rate - found.low == pytest.approx(
        math.hypot(rate - wilson.low, rate - low), abs=1e-9
    )
    assert found.high - rate == pytest.approx(
        math.hypot(wilson.high - rate, high - rate), abs=1e-9
    )


def test_rates_are_of_known_episodes() -> None:
    found = rate_interval(np.array([[1.0, 0.0, NAN, 1.0, 1.0]]))
    assert found == proportion_interval(3, 4)


def test_rates_of_runs_are_of_the_episodes_that_each_knows() -> None:
    """All twenty are known, the first twelve to one run and the last to the other."""
    first, second = [1.0] * 9 + [0.0] * 3 + [NAN] * 8, [NAN] * 8 + [1.0] * 3 + [0.0] * 9
    found, wilson = (
        rate_interval(np.array([first, second])),
        proportion_interval(10, 20),
    )
    assert found.mean == 0.5
    # Two runs are drawn: a quarter of the draws has the first one alone.
    below = math.hypot(0.5 - wilson.low, 0.5 - 3 / 12)
    above = math.hypot(wilson.high - 0.5, 9 / 12 - 0.5)
    assert (0.5 - found.low, found.high - 0.5) == pytest.approx((below, above))


def test_two_episodes_have_an_interval_though_each_run_knows_one() -> None:
    found = run_interval(np.array([[5.0, NAN], [NAN, 7.0]]))
    assert found == Interval(6, 5, 7)


def test_three_copies_of_a_run_have_the_interval_of_one() -> None:
    rng = np.random.default_rng(6)
    one = [rng.normal(mean, 20, (1, 200)) for mean in (40, 60, 90, 95)]
    three = [np.repeat(values, 3, axis=0) for values in one]
    assert close(run_interval(three[0]), run_interval(one[0]))
    assert close(average_interval(three), average_interval(one))
    for by_runs in (False, True):
        alone = iqm_run_interval(one, by_runs=by_runs)
        assert close(iqm_run_interval(three, by_runs=by_runs), alone)
        assert alone.high - alone.low > 1
    success = (one[0] > 20).astype(float)
    copies = np.repeat(success, 3, axis=0)
    assert close(rate_interval(copies), rate_interval(success))
    times = np.where(success > 0, one[0], NAN)
    assert close(run_interval(np.repeat(times, 3, axis=0)), run_interval(times))


@pytest.mark.parametrize("by_runs", [False, True])
def test_a_problem_with_more_runs_counts_no_more(by_runs: bool) -> None:
    rng = np.random.default_rng(11)
    one = [rng.normal(mean, 1, (1, 60)) for mean in (0, 50, 80, 100)]
    more = [np.repeat(v, n, axis=0) for v, n in zip(one, (2, 1, 3, 1), strict=True)]
    alone = iqm_run_interval(one, by_runs=by_runs)
    assert close(iqm_run_interval(more, by_runs=by_runs), alone)
    mixed = [np.zeros((3, 10)), np.full((2, 10), 100.0)]
    assert iqm_run_interval(mixed, by_runs=by_runs).mean == 50


def test_the_average_of_single_episodes_has_no_interval() -> None:
    found = average_interval([np.array([[5.0]]), np.array([[7.0, 9.0]])])
    assert found.mean == 6.5
    assert np.isnan([found.low, found.high]).all()


def test_intervals_of_several_runs_cover_the_truth() -> None:
    rng = np.random.default_rng(9)
    hits = 0
    for _ in range(200):
        # Episodes differ, runs do not: as with one planner and several seeds.
        episodes = rng.normal(0, 10, 100)
        values = episodes + rng.normal(0, 1, (3, 100))
        found = run_interval(values)
        hits += found.low <= 0 <= found.high
    assert 0.89 <= hits / 200 <= 0.99


def test_interquartile_means_of_one_run_are_the_known_ones() -> None:
    rng = np.random.default_rng(7)
    values = [rng.normal(mean, 20, 120) for mean in (0, 50, 80)]
    ours = iqm_run_interval([v[None] for v in values], by_runs=False)
    draws = [np.concatenate([rng.choice(v, 120) for v in values]) for _ in range(4000)]
    low, high = np.quantile([iqm(draw) for draw in draws], [0.025, 0.975])
    assert ours.mean == pytest.approx(iqm(np.concatenate(values)))
    assert ours.low == pytest.approx(low, abs=0.4)
    assert ours.high == pytest.approx(high, abs=0.4)


@pytest.mark.parametrize("by_runs", [False, True])
def test_draws_of_interquartile_means_are_those_of_drawn_tables(
    by_runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(10)
    problems = [rng.normal(mean, 5, (3, 7)) for mean in (0, 10)]
    kept: list[np.ndarray] = []

    def keep(estimate: float, draws: np.ndarray) -> Interval:
        kept.append(draws)
        return Interval(estimate, NAN, NAN)

    monkeypatch.setattr(statistics, "interval_of", keep)
    iqm_run_interval(problems, by_runs=by_runs, num_resamples=5)
    for draw in range(5):
        pooled = []
        for number, values in enumerate(problems):
            a, e = (
                np.random.default_rng((number, factor)).multinomial(
                    size, [1 / size] * size, 5
                )[draw]
                for size, factor in ((3, 0), (7, 2))
            )
            table = np.repeat(np.repeat(values, a, axis=0), e, axis=1)
            pooled.append(table.mean(axis=1) if by_runs else table.ravel())
        assert kept[0][draw] == pytest.approx(iqm(np.concatenate(pooled)))


def test_paired_differences_use_the_pairs() -> None:
    rng = np.random.default_rng(4)
    episodes = rng.normal(0, 50, 200)  # what both have in common
    first = (episodes + 3 + rng.normal(0, 2, 200))[None]
    second = (episodes + rng.normal(0, 2, 200))[None]
    found = compare(first, second)
    known = mean_interval((first - second)[0])
    assert found.difference.mean == pytest.approx(known.mean)
    assert found.difference.low == pytest.approx(known.low, abs=0.05)
    assert found.difference.high == pytest.approx(known.high, abs=0.05)
    assert found.win.mean == pytest.approx((first > second).mean())
    # Without the pairs, 3 would be nothing beside 50.
    assert disjoint(run_interval(first), run_interval(second)) == 0
    assert found.difference.low > 2


def test_ties_count_half() -> None:
    found = compare(np.array([[1.0, 2, 3, 4]]), np.array([[1.0, 2, 0, 9]]))
    assert found.win.mean == pytest.approx((0.5 + 0.5 + 1 + 0) / 4)


def test_crossed_draws_have_the_variance_of_three_factors() -> None:
    rng = np.random.default_rng(5)
    runs, others, episodes = rng.normal(size=4), rng.normal(size=3), rng.normal(size=50)
    values = runs[:, None, None] - 2 * others[None, :, None] + 5 * episodes
    draws = crossed_draws(values[None], num_resamples=20_000)[0]
    # An additive table: the mean of each factor's draws varies by its own variance.
    expected = runs.var() / 4 + 4 * others.var() / 3 + 25 * episodes.var() / 50
    assert draws.mean() == pytest.approx(values.mean(), abs=0.05)
    assert draws.var() == pytest.approx(expected, rel=0.05)


def test_factors_are_drawn_apart_though_they_have_one_size() -> None:
    """Had two the same draws, their effects would add up in each."""
    effect = np.arange(5.0)
    values = effect[:, None, None] + effect[None, :, None] + effect
    draws = crossed_draws(values[None], num_resamples=20_000)[0]
    assert draws.var() == pytest.approx(3 * effect.var() / 5, rel=0.05)


def test_disjoint_has_a_sign() -> None:
    low, high = Interval(1, 0, 2), Interval(5, 4, 6)
    assert (disjoint(high, low), disjoint(low, high)) == (1, -1)
    assert disjoint(low, Interval(3, 2, 4)) == 0
    unknown = Interval(9, NAN, NAN)
    assert disjoint(unknown, low) is disjoint(low, unknown) is None
