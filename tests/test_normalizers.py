"""Normalizers: invertible on any data, constant columns included."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from diffuser_policy.columns.normalizers import (
    NORMALIZERS,
    GaussianNormalizer,
    IdentityNormalizer,
    LimitsNormalizer,
    Normalizer,
)
from diffuser_policy.errors import ConfigError, DatasetError

EVERY = pytest.mark.parametrize("cls", NORMALIZERS.values())
ROWS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=8),
    elements=st.floats(-1000, 1000, width=32),
)


def constant_in(column: int) -> np.ndarray:
    rows = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    rows[:, column] = 7.25
    return rows


@EVERY
@given(rows=ROWS)
def test_unnormalize_inverts_normalize(cls: type[Normalizer], rows: np.ndarray) -> None:
    normalizer = cls.fit(rows)
    values = torch.from_numpy(rows)
    back = normalizer.unnormalize(normalizer.normalize(values))
    # One rounding of numbers as large as the shift, at each of three operations.
    allowed = 1e-6 * (1 + np.abs(rows).max())
    np.testing.assert_allclose(back.numpy(), rows, atol=allowed, rtol=1e-6)


@EVERY
def test_a_constant_column_survives(cls: type[Normalizer]) -> None:
    rows = constant_in(1)
    normalizer = cls.fit(rows)
    normalized = normalizer.normalize(torch.from_numpy(rows))
    assert torch.isfinite(normalized).all()
    back = normalizer.unnormalize(normalized)
    np.testing.assert_allclose(back.numpy(), rows, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("cls", [LimitsNormalizer, GaussianNormalizer])
def test_a_constant_column_maps_to_zero(cls: type[Normalizer]) -> None:
    rows = constant_in(2)
    normalized = cls.fit(rows).normalize(torch.from_numpy(rows))
    assert (normalized[:, 2] == 0).all()


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_rounding_noise_counts_as_constant(offset: float) -> None:
    noise = 1e-8 * max(1.0, offset)
    rows = offset + noise * np.random.default_rng(0).normal(size=(50, 1))
    assert GaussianNormalizer.fit(rows).scale.item() == 1.0


def test_a_small_spread_around_zero_is_no_rounding_noise() -> None:
    rows = 1e-4 * np.random.default_rng(0).normal(size=(50, 1))
    scale = GaussianNormalizer.fit(rows).scale.item()
    assert scale == pytest.approx(rows.std(), rel=1e-5)


@given(rows=ROWS)
def test_limits_are_reached_and_kept(rows: np.ndarray) -> None:
    normalizer = LimitsNormalizer.fit(rows)
    normalized = normalizer.normalize(torch.from_numpy(rows)).numpy()
    assert np.abs(normalized).max() <= 1 + 1e-3
    varied = rows.max(axis=0) - rows.min(axis=0) > 1e-2 * (1 + np.abs(rows).max())
    np.testing.assert_allclose(normalized.min(axis=0)[varied], -1, atol=1e-3)
    np.testing.assert_allclose(normalized.max(axis=0)[varied], 1, atol=1e-3)


@EVERY
@pytest.mark.parametrize("kind", ["uint8", "int8", "bool"])
def test_whole_numbers_of_few_bits_do_not_wrap_around(
    cls: type[Normalizer], kind: str
) -> None:
    rows = np.array([[-128, 250], [127, 150], [100, 200]]).astype(kind)
    found, expected = cls.fit(rows), cls.fit(rows.astype(np.float32))
    assert torch.equal(found.shift, expected.shift)
    assert torch.equal(found.scale, expected.scale)


def test_gaussian_gives_zero_mean_and_unit_variance() -> None:
    rows = np.random.default_rng(0).normal(3.0, 0.2, size=(1000, 2)).astype(np.float32)
    normalized = GaussianNormalizer.fit(rows).normalize(torch.from_numpy(rows))
    np.testing.assert_allclose(normalized.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(normalized.std(0, correction=0), 1, atol=1e-4)


@EVERY
@pytest.mark.parametrize("ties", [[], [(0, 2)]])
def test_data_read_some_rows_at_a_time_are_the_same_data(
    cls: type[Normalizer], ties: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The extremes of one column are the last rows that are read at a time."""
    rows = np.random.default_rng(0).normal(3.0, 0.2, size=(20, 3)).astype(np.float32)
    rows[6, 1], rows[13, 1], rows[19, 0] = 9.0, -9.0, 5.0
    whole = cls.fit(rows, ties)
    monkeypatch.setattr("diffuser_policy.columns.normalizers.ROWS", 7)
    parts = cls.fit(rows, ties)
    assert torch.equal(parts.shift, whole.shift)
    assert torch.equal(parts.scale, whole.scale)


class Watched:
    """Rows that note how many of them are read at a time."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows, self.shape, self.counts = rows, rows.shape, list[int]()

    def __getitem__(self, rows: slice) -> np.ndarray:
        found: np.ndarray = self.rows[rows]
        self.counts.append(len(found))
        return found


@EVERY
def test_fewer_rows_are_read_at_a_time_where_they_are_wide(
    cls: type[Normalizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.random.default_rng(0).normal(3.0, 0.2, (20, 100)).astype(np.float32)
    whole = cls.fit(rows)
    monkeypatch.setattr("diffuser_policy.columns.layout.PIECE", 7 * rows[0].nbytes)
    watched = Watched(rows)
    parts = cls.fit(watched)
    assert max(watched.counts) == 7
    assert torch.equal(parts.shift, whole.shift)
    assert torch.equal(parts.scale, whole.scale)


def test_identity_changes_nothing() -> None:
    rows = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(IdentityNormalizer.fit(rows.numpy()).normalize(rows), rows)


def test_some_columns_are_normalized_like_all_of_them() -> None:
    rows = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    normalizer = LimitsNormalizer.fit(rows)
    values = torch.from_numpy(rows)
    some = normalizer.normalize(values[:, [3, 1]], [3, 1])
    assert torch.equal(some, normalizer.normalize(values)[:, [3, 1]])
    assert torch.equal(
        normalizer.unnormalize(some, (3, 1)),
        normalizer.unnormalize(normalizer.normalize(values))[:, [3, 1]],
    )


def test_statistics_travel_in_the_state_dict() -> None:
    fitted = GaussianNormalizer.fit(constant_in(0))
    blank = GaussianNormalizer.blank(3)
    blank.load_state_dict(fitted.state_dict())
    assert torch.equal(blank.shift, fitted.shift)
    assert torch.equal(blank.scale, fitted.scale)


@EVERY
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_data_that_is_not_finite_is_refused(cls: type[Normalizer], bad: float) -> None:
    rows = constant_in(0)
    rows[3, 1] = bad
    with pytest.raises(DatasetError, match=r"Columns \[1\] hold NaN"):
        cls.fit(rows)


@pytest.mark.parametrize("bad", [np.nan, 1e300])
def test_errors_of_many_columns_are_cut(bad: float) -> None:
    with pytest.raises(DatasetError, match=r"Columns \[0, 1, .*…") as raised:
        LimitsNormalizer.fit(np.stack([np.zeros(5000), np.full(5000, bad)]))
    assert len(str(raised.value)) < 600


@EVERY
@pytest.mark.parametrize("dtype", [object, str, complex, "M8[s]"])
def test_data_that_are_no_real_numbers_are_refused(
    cls: type[Normalizer], dtype: Any
) -> None:
    with pytest.raises(DatasetError, match="real numbers, got values of type"):
        cls.fit(np.zeros((3, 2), np.int64).astype(dtype))


@pytest.mark.parametrize("shape", [(0, 3), (4,)])
def test_data_that_is_no_matrix_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DatasetError, match="matrix"):
        LimitsNormalizer.fit(np.zeros(shape))


def test_a_scale_of_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match="positive scale"):
        Normalizer(torch.zeros(2), torch.tensor([1.0, 0.0]))


@pytest.mark.parametrize(
    ("cls", "shift", "scale"),
    [
        (LimitsNormalizer, 4.5, 4.5),
        (GaussianNormalizer, np.mean([0, 1, 1, 9]), np.std([0, 1, 1, 9])),
    ],
)
def test_tied_columns_share_one_map(
    cls: type[Normalizer], shift: float, scale: float
) -> None:
    """Heights of tool and blocks are compared by a network: they need one scale."""
    rows = np.array([[0.0, 1.0, 5.0], [1.0, 9.0, 7.0]], np.float32)

    tied = cls.fit(rows, [(0, 1)])
    plain = cls.fit(rows)

    assert tied.shift.tolist() == pytest.approx([shift, shift, 6.0])
    assert tied.scale.tolist() == pytest.approx([scale, scale, 1.0])
    assert cls.fit(rows, []).shift.tolist() == plain.shift.tolist()
