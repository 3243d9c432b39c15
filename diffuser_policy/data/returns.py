r"""Returns-to-go of every row of a dataset.

$$R_t = r_t + \gamma R_{t+1}$$

within a run, and $R_t = r_t$ in its last row and where it terminates. A run that was
cut off counts as over, as in the release: the rewards that would have followed are not
estimated. Returns are computed once for all rows, in one pass from the end.
"""

from __future__ import annotations

from itertools import accumulate, pairwise

import numpy as np

from diffuser_policy.data.flat import FlatDataset, check_finite, pieces, release
from diffuser_policy.errors import DatasetError

ROWS = 65_536  # that are read at a time
ALIKE = (
    "no trajectory is better than another, and there is no value to learn. Record "
    "data with rewards, or do without value and critic (`train --no-value "
    "--no-critic`)."
)


def returns_to_go(
    flat: FlatDataset, discount: float, termination_penalty: float = 0.0
) -> np.ndarray:
    """Return the discounted return `[num_rows]` from every row to the end of its run.

    Args:
        flat: Rewards and terminations, row by row.
        discount: Weight of a reward one env step later.
        termination_penalty: Subtracted from the reward of every step that terminates.

    Raises:
        DatasetError: All rewards are equal and nothing terminates, or the returns
            overflow: there is nothing to learn.
    """
    rewards, terminated = flat.fields["reward"], flat.fields["terminated"]
    ended = any(part.any() for part in pieces(terminated))
    if not ended and all((part == rewards[0]).all() for part in pieces(rewards)):
        raise DatasetError(
            f"All {flat.num_rows:,} rewards of {flat!r} are {rewards[0]:g}: {ALIKE}"
        )
    over = np.union1d(flat.run_starts, np.flatnonzero(terminated) + 1)
    edges = np.union1d(over, np.arange(0, flat.num_rows, ROWS))

    def step(later: float, reward: float) -> float:
        return reward + discount * later

    returns, later = np.empty(flat.num_rows, np.float32), 0.0
    is_over = np.isin(edges, over).tolist()
    for (begin, end), last in reversed(
        list(zip(pairwise(edges.tolist()), is_over[1:], strict=True))
    ):
        part = rewards[begin:end].astype(np.float64)
        part -= termination_penalty * terminated[begin:end]
        backwards = part[::-1].tolist()
        # What comes later counts, unless the run ends with the last of these rows.
        if last:
            exact = list(accumulate(backwards, step))
        else:
            exact = list(accumulate(backwards, step, initial=later))[1:]
        later = exact[-1]
        with np.errstate(over="ignore"):
            returns[begin:end] = exact[::-1]
        if begin % ROWS == 0:
            release(rewards, terminated)
    if not np.isfinite(returns).all():
        check_finite(f"{flat!r}: reward", rewards)  # it may have changed since then
        raise DatasetError(
            f"The returns of {flat!r} overflow with discount {discount:g}. Use a "
            f"smaller one, or scale the rewards down."
        )
    return returns


def return_scale(returns: np.ndarray, flat: FlatDataset) -> tuple[float, float]:
    """Return mean and standard deviation of the targets.

    Raises:
        DatasetError: All returns are equal.
    """
    mean = float(returns.mean(dtype=np.float64))
    std = float(returns.std(dtype=np.float64))
    if std <= 1e-6 * max(abs(mean), 1e-12):
        raise DatasetError(f"All returns of {flat!r} are {mean:g}: {ALIKE}")
    return mean, std
