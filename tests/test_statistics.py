"""Intervals: against theory, and what they say of extreme results."""

from __future__ import annotations

import math

import numpy as np
import pytest

from diffuser_policy.errors import ConfigError
from diffuser_policy.evaluation import statistics
from diffuser_policy.evaluation.statistics import (
    iqm_run_interval,
    mean_draws,
    mean_interval,
    proportion_interval,
    time_interval,
)

Z = 1.959963984540054


def test_interval_of_a_mean_has_the_width_of_the_normal_approximation() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, size=2000)
    interval = mean_interval(values)
    half = Z * values.std() / math.sqrt(len(values))
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.05 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.05 * half)


def test_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        interval = mean_interval(rng.exponential(size=60))
        covered += interval.low <= 1.0 <= interval.high
    assert 0.87 <= covered / 200 <= 0.99


def test_bootstrap_is_reproducible_and_seeded() -> None:
    values = np.random.default_rng(3).normal(size=30)
    assert mean_interval(values) == mean_interval(values)
    one, other = (mean_draws(values[None], seed=seed) for seed in (1, 2))
    assert not np.array_equal(one, other)


def test_many_values_are_resampled_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(4).normal(size=40)
    whole = mean_interval(values)
    monkeypatch.setattr(statistics, "CHUNK", 1000)
    chunked = mean_interval(values)
    assert chunked.low == pytest.approx(whole.low, abs=0.02)
    assert chunked.high == pytest.approx(whole.high, abs=0.02)


def test_many_times_have_the_interval_of_the_bootstrap_without_its_draws(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(5)
    few, many = rng.exponential(size=20), rng.exponential(size=statistics.MANY_TIMES)
    assert time_interval(few) == mean_interval(few)
    drawn = mean_interval(many)
    monkeypatch.delattr(statistics, "mean_draws")
    found = time_interval(many)
    assert found.mean == drawn.mean
    half = Z * many.std() / math.sqrt(len(many))
    assert found.low == pytest.approx(drawn.low, abs=0.1 * half)
    assert found.high == pytest.approx(drawn.high, abs=0.1 * half)


def test_equal_results_have_an_interval_without_width() -> None:
    interval = mean_interval([5.0] * 10)
    assert (interval.mean, interval.low, interval.high) == (5.0, 5.0, 5.0)


def test_a_single_result_says_nothing_of_the_spread() -> None:
    interval = mean_interval([5.0])
    assert interval.mean == 5.0
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)


@pytest.mark.parametrize(
    ("successes", "total", "low", "high"),
    [
        (100, 100, 100 / (100 + Z**2), 1.0),
        (0, 10, 0.0, Z**2 / (10 + Z**2)),
        (50, 100, 0.403832, 0.596168),  # Brown, Cai & DasGupta 2001, by hand
        (1, 1, 1 / (1 + Z**2), 1.0),
    ],
)
def test_wilson_interval_has_its_textbook_values(
    successes: int, total: int, low: float, high: float
) -> None:
    interval = proportion_interval(successes, total)
    assert interval.mean == successes / total
    assert interval.low == pytest.approx(low, abs=1e-6)
    assert interval.high == pytest.approx(high, abs=1e-6)


def test_wilson_interval_solves_its_defining_equation() -> None:
    interval = proportion_interval(7, 23)
    for p in (interval.low, interval.high):
        assert abs(7 / 23 - p) == pytest.approx(Z * math.sqrt(p * (1 - p) / 23))


def test_interquartile_mean_ignores_the_outer_quarters() -> None:
    for values, mean in (
        (range(8), 3.5),
        ([0, 0, 4, 5, 6, 7, 1e9, -1e9], (0 + 4 + 5 + 6) / 4),
        ([2], 2.0),
    ):
        found = iqm_run_interval([np.array([values], np.float64)], by_runs=False)
        assert found.mean == pytest.approx(mean)


@pytest.mark.parametrize("values", [[], [[1.0, 2.0]]])
def test_statistics_need_a_list_of_numbers(values: list[float]) -> None:
    with pytest.raises(ConfigError, match="at least one number"):
        mean_interval(values)


def test_statistics_name_impossible_arguments() -> None:
    with pytest.raises(ConfigError, match="3 successes of 2 trials"):
        proportion_interval(3, 2)
