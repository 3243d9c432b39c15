"""Exponential moving average of the weights: what a planner plans with.

After gradient step s: average ← decay · average + (1 - decay) · weights, every
`interval` steps; up to step `start` the average is a plain copy.
"""

from __future__ import annotations

from typing import Generic, TypeVar

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

Network = TypeVar("Network", bound=nn.Module)


class WeightAverage(Generic[Network]):
    """Updates a copy of a network towards it."""

    def __init__(
        self, average: Network, *, decay: float, interval: int, start: int
    ) -> None:
        """Store the copy.

        Args:
            average: Copy of the network, changed in place by `update`.
            decay: Share of the average that is kept per update.
            interval: Gradient steps between updates.
            start: Until this gradient step, copy the weights.
        """
        self.average = average
        average.requires_grad_(False)
        self.interval, self.start = interval, start
        self._blend = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Account for gradient step number `step` (1 is the first)."""
        if step % self.interval:
            return
        pairs = list(zip(self.average.parameters(), network.parameters(), strict=True))
        if step <= self.start:
            for mean, weight in pairs:
                mean.copy_(weight)
            return
        self._blend([m for m, _ in pairs], [w for _, w in pairs], 0)
