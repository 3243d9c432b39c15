"""Estimates of benchmark reports, against independent computations."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from diffuser_policy.benchmark.report.estimates import (
    average_interval,
    compare,
    crossed_draws,
    disjoint,
    mean_draws,
    pooled_mean,
    rate_interval,
    run_interval,
)
from diffuser_policy.evaluation.statistics import (
    Interval,
    mean_interval,
    proportion_interval,
)

NAN = math.nan


def test_one_run_is_the_bootstrap_over_episodes() -> None:
    values = np.random.default_rng(0).normal(50, 20, 300)
    ours, known = run_interval([values]), mean_interval(values)
    assert ours.mean == pytest.approx(known.mean)
    assert ours.low == pytest.approx(known.low, abs=0.15)
    assert ours.high == pytest.approx(known.high, abs=0.15)


def test_draws_of_two_runs_follow_the_exact_distribution() -> None:
    runs = [np.array([0.0, 1.0]), np.array([10.0, 20.0])]
    exact: dict[float, float] = {}
    for chosen in itertools.product(runs, repeat=2):
        for picks in itertools.product(
            *(itertools.product(run, run) for run in chosen)
        ):
            mean = float(np.mean(picks))
            exact[mean] = exact.get(mean, 0.0) + 1 / 64
    draws = mean_draws(runs, num_resamples=64_000, seed=1)
    found, counts = np.unique(draws, return_counts=True)
    assert set(found) == set(exact)
    shares = counts / len(draws)
    expected = np.array([exact[value] for value in found])
    errors = np.sqrt(expected * (1 - expected) / len(draws))
    assert (np.abs(shares - expected) < 4.5 * errors).all()


def test_runs_that_differ_widen_the_interval() -> None:
    rng = np.random.default_rng(2)
    runs = [rng.normal(mean, 5, 100) for mean in (20, 50, 80)]
    nested, flat = run_interval(runs), run_interval([np.concatenate(runs)])
    assert nested.mean == pytest.approx(flat.mean)
    # Of three runs, all draws are the lowest one in 1 of 27 cases: beyond 2.5 %.
    assert nested.low == pytest.approx(np.mean(runs[0]), abs=2)
    assert nested.high == pytest.approx(np.mean(runs[2]), abs=2)
    assert flat.high - flat.low < 0.3 * (nested.high - nested.low)


def test_chunks_change_nothing_but_the_order_of_draws(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs = [np.random.default_rng(seed).normal(seed, 1, 40) for seed in range(3)]
    whole = mean_draws(runs, num_resamples=4000)
    monkeypatch.setattr("diffuser_policy.benchmark.report.estimates.CHUNK", 1000)
    parts = mean_draws(runs, num_resamples=4000)
    assert len(parts) == 4000
    assert parts.mean() == pytest.approx(whole.mean(), abs=0.05)
    assert parts.std() == pytest.approx(whole.std(), rel=0.1)


def test_episodes_without_a_figure_are_left_out_of_means() -> None:
    runs = [np.array([10.0, NAN, 20.0]), np.array([NAN, 30.0])]
    assert pooled_mean(runs) == 20
    assert math.isnan(pooled_mean([np.array([NAN])]))
    draws = mean_draws(runs, num_resamples=2000)
    # Draws without any figure exist, and are no number.
    assert np.isnan(draws).any()
    interval = run_interval(runs)
    assert 10 <= interval.low < interval.mean < interval.high <= 30
    assert math.isnan(run_interval([np.array([NAN, NAN])]).mean)


def test_a_single_episode_has_no_interval() -> None:
    interval = run_interval([np.array([5.0])])
    assert interval.mean == 5
    assert math.isnan(interval.low)
    alone = compare(np.array([[5.0]]), np.array([[3.0]]))
    assert alone.difference.mean == 2
    assert math.isnan(alone.difference.low)


def test_average_weighs_problems_alike() -> None:
    rng = np.random.default_rng(3)
    long, short = rng.normal(100, 10, 1000), rng.normal(0, 10, 10)
    interval = average_interval([[long], [short]])
    assert interval.mean == pytest.approx((long.mean() + short.mean()) / 2)
    error = math.sqrt(long.var() / 1000 + short.var() / 10) / 2
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * error, rel=0.05)


def test_rates_are_wilsons_and_wider_with_runs_that_differ() -> None:
    alone = rate_interval([np.array([1.0] * 90 + [0.0] * 10)])
    assert alone == proportion_interval(90, 100)
    differing = [np.ones(100), np.zeros(100)]
    both = rate_interval(differing)
    assert both.mean == 0.5
    assert (both.low, both.high) == (0.0, 1.0)
    perfect = rate_interval([np.ones(50), np.ones(50)])
    assert perfect == proportion_interval(100, 100)


def test_paired_differences_use_the_pairs() -> None:
    rng = np.random.default_rng(4)
    episodes = rng.normal(0, 50, 200)  # what both have in common
    first = (episodes + 3 + rng.normal(0, 2, 200))[None]
    second = (episodes + rng.normal(0, 2, 200))[None]
    found = compare(first, second)
    known = mean_interval((first - second)[0])
    assert found.episodes == 200
    assert found.difference.mean == pytest.approx(known.mean)
    assert found.difference.low == pytest.approx(known.low, abs=0.05)
    assert found.difference.high == pytest.approx(known.high, abs=0.05)
    assert found.win.mean == pytest.approx((first > second).mean())
    # Without the pairs, 3 would be nothing beside 50.
    assert not disjoint(run_interval([first[0]]), run_interval([second[0]]))
    assert found.difference.low > 2


def test_ties_count_half() -> None:
    found = compare(np.array([[1.0, 2, 3, 4]]), np.array([[1.0, 2, 0, 9]]))
    assert found.win.mean == pytest.approx((0.5 + 0.5 + 1 + 0) / 4)
    assert found.ties == 0.5


def test_crossed_draws_have_the_variance_of_three_factors() -> None:
    rng = np.random.default_rng(5)
    runs, others, episodes = rng.normal(size=4), rng.normal(size=3), rng.normal(size=50)
    values = runs[:, None, None] - 2 * others[None, :, None] + 5 * episodes
    draws = crossed_draws(values[None], num_resamples=20_000)[0]
    # An additive table: the mean of each factor's draws varies by its own variance.
    expected = runs.var() / 4 + 4 * others.var() / 3 + 25 * episodes.var() / 50
    assert draws.mean() == pytest.approx(values.mean(), abs=0.05)
    assert draws.var() == pytest.approx(expected, rel=0.05)


def test_disjoint_has_a_sign() -> None:
    low, high = Interval(1, 0, 2), Interval(5, 4, 6)
    assert (disjoint(high, low), disjoint(low, high)) == (1, -1)
    assert disjoint(low, Interval(3, 2, 4)) == 0
    unknown = Interval(9, NAN, NAN)
    assert disjoint(unknown, low) == 0
