r"""Per-column invertible maps from environment units to the network's units.

| normalizer | map | use |
|---|---|---|
| limits | $2 (x - low) / (high - low) - 1$, into [-1, 1] | Diffuser's mazes |
| gaussian | $(x - mean) / std$ | Diffuser's locomotion |
| identity | $x$ | data that is scaled already |

All three are the affine map $(x - shift) / scale$. A column that is constant in the
data gets scale 1, so it maps to 0 and back without a division by zero. So does one that
varies by less than a millionth, which may be rounding: scale up what has tiny units.
Data are read some rows at a time: they may be larger than memory.
Statistics are buffers: they travel in the state dict and are saved with the weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from diffuser_policy.choices import NormalizerName
from diffuser_policy.columns.layout import Rows, rows_at_once
from diffuser_policy.errors import ConfigError, DatasetError, shown

# Spread below which a column counts as constant, relative to its values, or to 1 where
# they are smaller: around zero, rounding looks like a column in tiny units. Enlarged to
# the size of the others, it would be noise to learn, and far from the data elsewhere.
CONSTANT = 1e-6
ROWS = 65_536  # that are read at a time, at most


class Normalizer(nn.Module):
    """Affine per-column map; subclasses choose how it is fitted to data."""

    shift: Tensor
    scale: Tensor

    def __init__(self, shift: Tensor, scale: Tensor) -> None:
        """Store the map.

        Args:
            shift: `[columns]`, environment units.
            scale: `[columns]`, environment units, positive.
        """
        super().__init__()
        right = shift.shape == scale.shape and shift.ndim == 1
        if not (
            right
            and bool((scale > 0).all())
            and bool(torch.isfinite(torch.cat([shift, scale])).all())
        ):
            raise ConfigError(
                f"A normalizer needs finite shift and positive scale of one shape "
                f"[columns], got {tuple(shift.shape)} and {tuple(scale.shape)}."
            )
        self.register_buffer("shift", shift.detach().clone().float())
        self.register_buffer("scale", scale.detach().clone().float())

    @classmethod
    def blank(cls, num_columns: int) -> Self:
        """Return an identity map of the right size, ready to load a state dict."""
        zeros = torch.zeros(num_columns, dtype=torch.float32)
        return cls(zeros, torch.ones_like(zeros))

    @classmethod
    def fit(cls, rows: Rows, ties: Sequence[Sequence[int]] = ()) -> Self:
        """Fit the map to data.

        Args:
            rows: `[num_rows, columns]`, environment units, finite.
            ties: Groups of columns that mean the same, such as the heights of things:
                all columns of a group get one map.

        Raises:
            DatasetError: No matrix of finite numbers, or numbers that are too large.
        """
        raise NotImplementedError

    def normalize(self, values: Tensor, columns: Sequence[int] | None = None) -> Tensor:
        """Map environment units to normalized units.

        Args:
            values: `[..., columns]`.
            columns: Which columns `values` holds; all of them if not given.
        """
        index = selection(columns)
        return (values - self.shift[index]) / self.scale[index]

    def unnormalize(
        self, values: Tensor, columns: Sequence[int] | None = None
    ) -> Tensor:
        """Map normalized units back to environment units (inverse of `normalize`)."""
        index = selection(columns)
        return values * self.scale[index] + self.shift[index]


class LimitsNormalizer(Normalizer):
    """Maps each column's range in the data to [-1, 1]."""

    @classmethod
    def fit(cls, rows: Rows, ties: Sequence[Sequence[int]] = ()) -> Self:
        """Fit to the smallest and largest value of each column."""
        ends = [(part.min(axis=0), part.max(axis=0)) for part in _checked_parts(rows)]
        low = np.min([least for least, _ in ends], axis=0)
        high = np.max([greatest for _, greatest in ends], axis=0)
        for group in ties:
            index = list(group)
            low[index], high[index] = low[index].min(), high[index].max()
        with np.errstate(over="ignore"):
            return cls(*_affine((low + high) / 2, (high - low) / 2))


class GaussianNormalizer(Normalizer):
    """Maps each column to zero mean and unit variance."""

    @classmethod
    def fit(cls, rows: Rows, ties: Sequence[Sequence[int]] = ()) -> Self:
        """Fit to the mean and standard deviation of each column."""
        parts = _checked_parts(rows)
        mean = _sum(parts) / rows.shape[0]
        for group in ties:
            mean[list(group)] = mean[list(group)].mean()
        squares = ((part - mean) ** 2 for part in _checked_parts(rows))
        variance = _sum(squares) / rows.shape[0]
        for group in ties:
            variance[list(group)] = variance[list(group)].mean()
        return cls(*_affine(mean, np.sqrt(variance)))


class IdentityNormalizer(Normalizer):
    """Leaves every column as it is."""

    @classmethod
    def fit(cls, rows: Rows, ties: Sequence[Sequence[int]] = ()) -> Self:  # noqa: ARG003
        """Return the identity for as many columns as the data has."""
        for _ in _checked_parts(rows):
            pass
        return cls.blank(rows.shape[1])


def selection(columns: Sequence[int] | None) -> slice | list[int]:
    """Return an index of columns: if possible a slice, which takes a fifth of the time.

    Args:
        columns: All of them if not given.
    """
    if columns is None:
        return slice(None)
    first = columns[0] if len(columns) else 0
    if tuple(columns) == tuple(range(first, first + len(columns))):
        return slice(first, first + len(columns))
    return list(columns)


NORMALIZERS: dict[NormalizerName, type[Normalizer]] = {
    "limits": LimitsNormalizer,
    "gaussian": GaussianNormalizer,
    "identity": IdentityNormalizer,
}


def _checked_parts(rows: Rows) -> Iterator[np.ndarray]:
    """Yield some rows at a time; refuse data that no normalizer can be fitted to.

    Raises:
        DatasetError: Not a non-empty matrix of real numbers, or with non-finite values.
    """
    if len(rows.shape) != 2 or rows.shape[0] == 0:
        raise DatasetError(
            f"A normalizer is fitted to a matrix [num_rows, columns], got {rows.shape}."
        )
    count = rows_at_once(4 * rows.shape[1], ROWS)  # in single precision
    for begin in range(0, rows.shape[0], count):
        part = rows[begin : begin + count]
        if part.dtype.kind not in "biuf":
            raise DatasetError(
                f"A normalizer is fitted to real numbers, got values of type "
                f"{part.dtype}. Convert them to floats."
            )
        # Sums and differences of whole numbers may wrap around in their own type.
        part = part.astype(np.result_type(part.dtype, np.float32), copy=False)
        finite = np.isfinite(part).all(axis=0)
        if not finite.all():
            raise DatasetError(
                f"Columns {shown(np.flatnonzero(~finite).tolist())} hold NaN or "
                f"infinite values; remove those rows before fitting a normalizer."
            )
        yield part


def _sum(parts: Iterable[np.ndarray]) -> np.ndarray:
    """Return the sum `[columns]` of all rows, in float64, however they are cut."""
    total: np.ndarray = np.zeros((1, 1))
    for part in parts:
        before = np.broadcast_to(total, (1, part.shape[1]))
        total = np.concatenate([before, part]).sum(axis=0, keepdims=True)
    return np.asarray(total[0])


def _affine(shift: np.ndarray, scale: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return shift and scale as tensors, with scale 1 for constant columns.

    Raises:
        DatasetError: Numbers too large for single precision.
    """
    largest = np.maximum(np.abs(shift), scale)
    wild = np.flatnonzero(~(largest <= np.finfo(np.float32).max))
    if len(wild):
        raise DatasetError(
            f"Columns {shown(wild.tolist())} hold numbers that are too large to plan "
            f"with ({shown(largest[wild].tolist())}). Scale them down, or remove those "
            f"rows."
        )
    constant = scale <= CONSTANT * np.maximum(1.0, np.abs(shift))
    safe = np.where(constant, 1.0, scale)
    return (
        torch.as_tensor(np.asarray(shift, dtype=np.float32)),
        torch.as_tensor(np.asarray(safe, dtype=np.float32)),
    )
