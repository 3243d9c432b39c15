r"""Training a value network for a planner that is trained already.

A batch is made like the planner's own: windows of its lengths, noised to random
denoising steps of its schedule, with its conditions written back. The network learns
the discounted return-to-go of the first row,

$$R_t = r_t + \gamma R_{t+1}$$

within a run, and $R_t = r_t$ in its last row and where it terminates. A run that was
cut off counts as over, as in the release: the rewards that would have followed are not
estimated. Returns are computed once for all rows, in one pass from the end.
"""

from __future__ import annotations

import dataclasses
import zlib
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffuser_policy.build import build_value_network, seeded
from diffuser_policy.columns.features import Featurizer
from diffuser_policy.config import ValueTrainConfig
from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.data.windows import WindowDataset, in_planning_columns
from diffuser_policy.errors import DatasetError
from diffuser_policy.networks.value import ValueNetwork
from diffuser_policy.training.companion import Batch, CompanionTrainer
from diffuser_policy.training.loss import draw_num_planning_steps
from diffuser_policy.training.trainer import window_settings


class ValueTrainer(CompanionTrainer[ValueNetwork]):
    """Trains a value network and writes it to a folder, with the planner it values."""

    part = "value"
    config: ValueTrainConfig

    def prepare(
        self, flat: FlatDataset, featurizer: Featurizer
    ) -> tuple[ValueNetwork, dict[str, int]]:
        """Return the network, scaled to the returns, and a checksum of the rewards.

        Raises:
            DatasetError: Data without rewards to learn from.
        """
        settings = self.config.value
        self.policy_config = dataclasses.replace(self.policy_config, value=settings)
        returns = returns_to_go(flat, settings.discount, settings.termination_penalty)
        with seeded(self.config.seed):
            network = build_value_network(self.policy_config)
        network.set_scale(*returns_scale(returns, flat))
        self.windows = ValuedWindows(
            in_planning_columns(flat, featurizer),
            returns=returns,
            **window_settings(self.policy_config, self.planner_networks.normalizer),
        )
        rewards = zlib.crc32(np.ascontiguousarray(flat.fields["reward"]).data)
        return network, {"rewards": rewards}

    def draw(self, step: int, generator: torch.Generator) -> Batch:
        """Return windows, their conditions, and the return-to-go of their first row."""
        length = draw_num_planning_steps(
            self.policy_config.window,
            self.config.seed,
            step,
            self.planner_networks.denoiser.horizon_multiple,
        )
        size = self.config.optimization.batch_size
        clean, returns = self.windows.sample_valued(size, length, generator)
        return clean, self.windows.conditions(clean), returns

    @property
    def value(self) -> ValueNetwork:
        """The averaged value network, with which to rank and to steer."""
        return self.average


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
    terminated = flat.fields["terminated"]
    rewards = flat.fields["reward"].astype(np.float64)
    if not terminated.any() and bool((rewards == rewards[0]).all()):
        raise DatasetError(
            f"All {flat.num_rows:,} rewards of {flat!r} are {rewards[0]:g}: no "
            f"trajectory is better than another, and there is no value to learn. "
            f"Record data with rewards."
        )
    rewards -= termination_penalty * terminated
    ends = np.union1d(flat.run_starts, np.flatnonzero(terminated) + 1)

    def step(later: float, reward: float) -> float:
        return reward + discount * later

    returns = np.empty(flat.num_rows, np.float64)
    for begin, end in pairwise(ends.tolist()):
        backwards = accumulate(rewards[begin:end][::-1].tolist(), step)
        returns[begin:end] = list(backwards)[::-1]
    with np.errstate(over="ignore"):
        single = returns.astype(np.float32)
    if not np.isfinite(single).all():
        raise DatasetError(
            f"The returns of {flat!r} overflow with discount {discount:g}. Use a "
            f"smaller one, or scale the rewards down."
        )
    return single


class ValuedWindows(WindowDataset):
    """Windows with the return-to-go of their first row.

    Attributes:
        returns: `[rows without padding]` return-to-go, in units of reward.
    """

    def __init__(
        self, flat: FlatDataset, *, returns: np.ndarray, **settings: Any
    ) -> None:
        """Normalize the data and keep the returns beside it.

        Args:
            flat: Rows of all runs.
            returns: Of every row of `flat`.
            settings: As for `WindowDataset`.
        """
        super().__init__(flat, **settings)
        self.returns = torch.from_numpy(returns)
        # Padding moved the rows of the table, but not those of `flat`.
        self._unpadded = torch.from_numpy(np.asarray(flat.run_starts))

    def sample_valued(
        self, batch_size: int, num_planning_steps: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return windows drawn uniformly, and the return-to-go of their first row.

        Args:
            batch_size: Number of windows.
            num_planning_steps: Their length.
            generator: Source of randomness, advanced by the call.

        Returns:
            Windows `[batch, horizon, transition]`, normalized, and returns `[batch]`.
        """
        counts = self._windows_per_run(num_planning_steps)
        ranks = torch.randint(int(counts.sum()), (batch_size,), generator=generator)
        starts = self._rows_of(ranks, counts)
        run = torch.searchsorted(self.run_starts, starts, right=True) - 1
        rows = starts - self.run_starts[run] + self._unpadded[run]
        offsets = torch.arange(num_planning_steps) * self.stride
        return self.rows[starts[:, None] + offsets], self.returns[rows]


def returns_scale(returns: np.ndarray, flat: FlatDataset) -> tuple[float, float]:
    """Return mean and standard deviation of returns `[num_rows]`.

    Raises:
        DatasetError: They are all the same.
    """
    mean = float(returns.mean(dtype=np.float64))
    std = float(returns.std(dtype=np.float64))
    if std <= 1e-6 * max(abs(mean), 1e-12):
        raise DatasetError(
            f"All returns of {flat!r} are {mean:g}: no trajectory is better than "
            f"another, and there is no value to learn."
        )
    return mean, std
