r"""Value network: the return that a noisy trajectory leads to.

For a window that starts at row t of an episode with rewards r, the target is the
discounted return-to-go to the *end of the episode*, not of the window:

$$R_t = \sum_{k \ge 0} \gamma^k r_{t+k}, \qquad V(x_i, i) \approx R_t$$

where $x_i$ is the window at denoising step i. (Janner et al. 2022, §3.2 and Appendix
B.) The network is the downsampling half of their U-Net, two narrowing blocks and a
linear head; the authors' weights load through `diffuser_policy.interop`.

The released network flattens the downsampled trajectory before its head, and so serves
one horizon. With `pooling="mean"` it is averaged instead, and the same weights value
trajectories of any length.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from diffuser_policy.errors import ConfigError, HorizonError
from diffuser_policy.networks.perceptron import perceptron
from diffuser_policy.networks.unet import (
    GROUPS,
    ResidualBlock,
    Stage,
    time_embedding,
)

NUM_NARROWING = 2


def remaining_steps(num_planning_steps: int, num_downsamplings: int) -> int:
    """Return how many steps are left of a trajectory after halvings that round up."""
    return -(-num_planning_steps // (1 << num_downsamplings))


class ValueNetwork(nn.Module):
    """Predicts the discounted return-to-go of noisy trajectories.

    Attributes:
        num_planning_steps: The only length that a flattening network takes; none: any.
        return_mean: Mean return of the training data, in units of reward.
        return_std: Their standard deviation; the head predicts in units of it.
    """

    return_mean: Tensor
    return_std: Tensor

    def __init__(
        self,
        transition_dim: int,
        *,
        dim: int = 32,
        multipliers: Sequence[int] = (1, 2, 4, 8),
        kernel_size: int = 5,
        num_planning_steps: int | None = None,
    ) -> None:
        """Build the network.

        Args:
            transition_dim: Columns of a trajectory.
            dim: Base width, a multiple of 8 from 16 on; also the width of the time
                embedding.
            multipliers: Width of each stage in units of `dim`; every stage halves the
                resolution. The last width is a multiple of 32 from 64 on, because
                the narrowing blocks quarter it.
            kernel_size: Odd width of the temporal convolutions, in planning steps.
            num_planning_steps: Flatten this length, as the authors do; not given:
                average over the downsampled trajectory, of any length.

        Raises:
            ConfigError: Widths that the architecture does not allow.
        """
        super().__init__()
        # Every group norm needs two channels a group, for lengths down to one step.
        last, least = dim * multipliers[-1] if multipliers else 0, 2 * GROUPS
        fits = dim % GROUPS == 0 and last % (4 * GROUPS) == 0
        if (
            not fits
            or min(multipliers, default=0) < 1
            or dim < least
            or last < 4 * least
        ):
            raise ConfigError(
                f"A value network needs dim in multiples of {GROUPS}, {least} or more, "
                f"and a last width (dim times the last multiplier) in multiples of "
                f"{4 * GROUPS}, {4 * least} or more; got dim={dim}, "
                f"multipliers={tuple(multipliers)}."
            )
        if kernel_size % 2 == 0:
            raise ConfigError(f"kernel_size must be odd, got {kernel_size}.")

        def halve(channels: int) -> nn.Conv1d:
            return nn.Conv1d(channels, channels, 3, stride=2, padding=1)

        self.transition_dim = transition_dim
        self.num_planning_steps = num_planning_steps
        self.time_embedding = time_embedding(dim)
        widths = [dim * multiplier for multiplier in multipliers]
        self.downs = nn.ModuleList(
            Stage(pair, dim, kernel_size, attention=False, resample=halve(pair[1]))
            for pair in pairwise([transition_dim, *widths])
        )
        narrowing = [widths[-1], widths[-1] // 2, widths[-1] // 4]
        self.narrow = nn.ModuleList(
            ResidualBlock(*pair, dim, kernel_size) for pair in pairwise(narrowing)
        )
        self.narrow_resample = nn.ModuleList(halve(width) for width in narrowing[1:])
        features = narrowing[-1]
        if num_planning_steps is not None:
            features *= remaining_steps(num_planning_steps, len(widths) + NUM_NARROWING)
        self.head = perceptron(features + dim, features // 2, 1, activation=nn.Mish)
        self.register_buffer("return_mean", torch.zeros(()))
        self.register_buffer("return_std", torch.ones(()))

    def set_scale(self, mean: float, std: float) -> None:
        """Make the head predict in units of the data's returns.

        Args:
            mean: Mean of the training targets, in units of reward.
            std: Standard deviation of the training targets, positive.
        """
        self.return_mean.fill_(mean)
        self.return_std.fill_(std)

    def forward(self, trajectories: Tensor, i: Tensor) -> Tensor:
        """Return predicted returns-to-go `[batch]`, in units of reward.

        Args:
            trajectories: `[batch, horizon, transition]`, normalized.
            i: `[batch]` denoising steps; 0 is the least noisy.

        Raises:
            HorizonError: Another length than a flattening network was built for.
        """
        given, expected = trajectories.shape[1], self.num_planning_steps
        if expected is not None and given != expected:
            raise HorizonError(
                f"This value network flattens plans of {expected} planning steps and "
                f"was given {given}. Plan with that fixed horizon, or train one with "
                f"pooling='mean', which values plans of any length."
            )
        time = self.time_embedding(i)
        x = trajectories.transpose(1, 2)
        for stage in self.downs:
            x = stage.resample(stage(x, time))  # type: ignore[operator]
        for block, resample in zip(self.narrow, self.narrow_resample, strict=True):
            x = resample(block(x, time))
        pooled = x.mean(dim=2) if self.num_planning_steps is None else x.flatten(1)
        output = self.head(torch.cat([pooled, time], dim=1)).squeeze(1)
        values: Tensor = self.return_mean + self.return_std * output
        return values

    def loss(self, trajectories: Tensor, i: Tensor, returns: Tensor) -> Tensor:
        """Return the mean squared error in units of the returns' variance, a scalar.

        Args:
            trajectories: `[batch, horizon, transition]`, normalized and noisy.
            i: `[batch]` their denoising steps.
            returns: `[batch]` targets, in units of reward.
        """
        error = (self(trajectories, i) - returns) / self.return_std
        loss: Tensor = error.square().mean()
        return loss
