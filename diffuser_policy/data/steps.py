"""Steps of the data, each with the observation that follows: what critics learn from.

The last step of a run that was cut off is followed by nothing, and is left out; one
that terminated stays.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from diffuser_policy.columns.layout import TrajectoryLayout
from diffuser_policy.data.flat import FlatDataset, release
from diffuser_policy.data.windows import JoinedRows, WindowDataset
from diffuser_policy.errors import DatasetError
from diffuser_policy.networks.critic import Critic, Transitions, Values

NUM_RATED = 4_096  # steps whose values are looked at


class StepDataset:
    """Steps of all runs, normalized.

    Attributes:
        rewards: `[num_rows]` of all rows, in units of reward.
    """

    def __init__(
        self, flat: FlatDataset, windows: WindowDataset, layout: TrajectoryLayout
    ) -> None:
        """Find the steps.

        Args:
            flat: Rewards and ends of runs.
            windows: The same data in planning columns, normalized.
            layout: Names of the columns.

        Raises:
            DatasetError: There are no steps, or no actions in the columns.
        """
        if not layout.action_dim:
            raise DatasetError(
                "A critic values actions, but this planner plans only states. Train "
                "the planner with --window.actions, or use `train-value`."
            )
        self.windows, self.layout = windows, layout
        self.rewards = flat.fields["reward"]
        outcomes = (flat.fields[name][:, None] for name in ("reward", "terminated"))
        self._outcomes = JoinedRows(list(outcomes))
        left_out = flat.unknown_steps()
        self._num_steps = flat.num_rows - len(left_out)
        # Steps before each row that is left out, which tell rows of steps from ranks.
        self._before = torch.from_numpy(left_out - np.arange(len(left_out)))

    def __len__(self) -> int:
        return self._num_steps

    @torch.no_grad()
    def values(self, critic: Critic, discount: float) -> Values:
        """Return what a critic says of some of the steps, always the same ones.

        Args:
            critic: Reads the windows' columns.
            discount: That of its returns.
        """
        batch = self._rated(critic)
        found = critic.of_actions(batch.observations, batch.actions).amin(dim=0)
        values = Values.of(found.cpu().numpy(), self.rewards, discount)
        release(self.rewards)
        return values

    def dead(self, critic: Critic) -> bool:
        """Return whether a network of a critic says the same of nearly all steps.

        Args:
            critic: Reads the windows' columns.
        """
        batch = self._rated(critic)
        return critic.dead(batch.observations, batch.actions)

    def _rated(self, critic: Critic) -> Transitions:
        """Return the steps whose values are looked at."""
        generator, device = torch.Generator().manual_seed(0), critic.return_mean.device
        return self.sample(min(NUM_RATED, len(self)), generator, device)

    def sample(
        self, size: int, generator: torch.Generator, device: torch.device
    ) -> Transitions:
        """Return steps drawn uniformly.

        Args:
            size: Their number.
            generator: Source of randomness, advanced by the call.
            device: Where to put them.
        """
        ranks = torch.randint(len(self), (size,), generator=generator)
        now = self.rows_of(ranks)
        later = (now + 1).clamp(max=len(self.rewards) - 1)
        rows, layout = self.windows.recorded(now), self.layout
        rewards, ended = torch.from_numpy(self._outcomes.take(now)).T.contiguous()
        parts = (
            rows[:, layout.observations],
            rows[:, layout.actions],
            rewards,
            self.windows.recorded(later)[:, layout.observations],
            ended > 0,
        )
        return Transitions(*(part.to(device) for part in parts))

    def rows_of(self, ranks: Tensor) -> Tensor:
        """Return the rows of the data of steps, which are counted from 0 here."""
        return ranks + torch.searchsorted(self._before, ranks, right=True)
