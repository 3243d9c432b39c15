"""Temporal U-Net: the network of Janner et al. 2022 (Appendix C).

A one-dimensional U-Net convolves over planning steps, so that one network serves any
horizon its down-sampling divides. Numerically it equals the released network; the
authors' weights load through `diffuser_policy.interop`.

One residual block: conv(5) → GroupNorm(8) → Mish, + time embedding, conv(5) →
GroupNorm(8) → Mish, + skip. A stage is two blocks, optional linear attention, and a
resampling convolution. Inside, tensors are `[batch, channels, horizon]`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from diffuser_policy.errors import ConfigError, HorizonError

GROUPS = 8
ATTENTION_HEADS = 4
ATTENTION_HEAD_DIM = 32


class SinusoidalEmbedding(nn.Module):
    """Embeds integers as sines and cosines of geometric frequencies."""

    frequencies: Tensor

    def __init__(self, dim: int) -> None:
        """Prepare `dim / 2` frequencies from 1 down to 1/10000."""
        super().__init__()
        half = dim // 2
        exponents = torch.arange(half) * (-math.log(10_000) / (half - 1))
        self.register_buffer("frequencies", exponents.exp(), persistent=False)

    def forward(self, i: Tensor) -> Tensor:
        """Map denoising steps or positions `[n]` to `[n, dim]`."""
        angles = i[:, None].float() * self.frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class ConvBlock(nn.Module):
    """Convolution over planning steps, group norm, Mish."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        """Build a length-preserving block."""
        super().__init__()
        padding = kernel_size // 2
        self.conv = nn.Conv1d(in_channels, out_channels, kernel_size, padding=padding)
        self.norm = nn.GroupNorm(GROUPS, out_channels)
        self.activation = nn.Mish()

    def forward(self, x: Tensor) -> Tensor:
        """Map `[batch, in_channels, horizon]` to `[batch, out_channels, horizon]`."""
        out: Tensor = self.activation(self.norm(self.conv(x)))
        return out


class ResidualBlock(nn.Module):
    """Two convolution blocks with the time embedding added between them."""

    def __init__(
        self, in_channels: int, out_channels: int, time_dim: int, kernel_size: int
    ) -> None:
        """Build the block; the skip is a 1×1 convolution if the channels differ."""
        super().__init__()
        self.conv_in = ConvBlock(in_channels, out_channels, kernel_size)
        self.conv_out = ConvBlock(out_channels, out_channels, kernel_size)
        self.time = nn.Sequential(nn.Mish(), nn.Linear(time_dim, out_channels))
        self.skip = (
            nn.Identity()
            if in_channels == out_channels
            else nn.Conv1d(in_channels, out_channels, 1)
        )

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Map `[batch, in_channels, horizon]`, given time `[batch, time_dim]`."""
        hidden = self.conv_in(x) + self.time(time)[:, :, None]
        out: Tensor = self.conv_out(hidden) + self.skip(x)
        return out


class LinearAttention(nn.Module):
    """Residual linear attention over planning steps, with a layer norm before it."""

    def __init__(self, channels: int) -> None:
        """Build four heads of 32 channels."""
        super().__init__()
        width = ATTENTION_HEADS * ATTENTION_HEAD_DIM
        self.gain = nn.Parameter(torch.ones(1, channels, 1))
        self.bias = nn.Parameter(torch.zeros(1, channels, 1))
        self.to_qkv = nn.Conv1d(channels, 3 * width, 1, bias=False)
        self.to_out = nn.Conv1d(width, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[batch, channels, horizon]` to the same shape."""
        centered = x - x.mean(dim=1, keepdim=True)
        variance = centered.square().mean(dim=1, keepdim=True)
        normed = centered / (variance + 1e-5).sqrt() * self.gain + self.bias
        heads = self.to_qkv(normed).unflatten(1, (3, ATTENTION_HEADS, -1))
        query, key, value = heads.unbind(dim=1)
        query = query * ATTENTION_HEAD_DIM**-0.5
        context = torch.einsum("bhdn,bhen->bhde", key.softmax(dim=-1), value)
        mixed = torch.einsum("bhde,bhdn->bhen", context, query)
        out: Tensor = x + self.to_out(mixed.flatten(1, 2))
        return out


def time_embedding(dim: int) -> nn.Sequential:
    """Return the map from denoising steps `[batch]` to vectors `[batch, dim]`."""
    return nn.Sequential(
        SinusoidalEmbedding(dim),
        nn.Linear(dim, 4 * dim),
        nn.Mish(),
        nn.Linear(4 * dim, dim),
    )


class Stage(nn.Module):
    """Two residual blocks and optional attention at one resolution."""

    def __init__(
        self,
        channels: tuple[int, int],
        time_dim: int,
        kernel_size: int,
        *,
        attention: bool,
        resample: nn.Module | None = None,
        attention_between: bool = False,
    ) -> None:
        """Build a stage that maps `channels[0]` to `channels[1]`.

        Args:
            channels: Number of input and output channels.
            time_dim: Width of the time embedding.
            kernel_size: Width of the convolutions, in planning steps.
            attention: Whether there is attention.
            resample: The network applies it to the stage's output.
            attention_between: Attention between the blocks, as in the coarsest stage,
                instead of after them.
        """
        super().__init__()
        self.attention_between = attention_between
        wide = channels[1]
        # In the order of use, in which the initial weights are drawn.
        self.first = ResidualBlock(*channels, time_dim, kernel_size)
        if attention_between:
            self.attention = LinearAttention(wide) if attention else nn.Identity()
        self.second = ResidualBlock(wide, wide, time_dim, kernel_size)
        if not attention_between:
            self.attention = LinearAttention(wide) if attention else nn.Identity()
        self.resample = nn.Identity() if resample is None else resample

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Run the stage without its resampling."""
        x = self.first(x, time)
        if self.attention_between:
            x = self.second(self.attention(x), time)
        else:
            x = self.attention(self.second(x, time))
        return x


class TemporalUNet(nn.Module):
    """U-Net over planning steps with an embedding of the denoising step."""

    def __init__(
        self,
        transition_dim: int,
        *,
        dim: int = 32,
        multipliers: Sequence[int] = (1, 2, 4),
        kernel_size: int = 5,
        attention: bool = False,
        input_dim: int | None = None,
    ) -> None:
        """Build the network.

        Args:
            transition_dim: Columns of a trajectory, and of the output.
            dim: Base width, a multiple of 8; also the width of the time embedding.
            multipliers: Width of each resolution in units of `dim`; the first is 1.
            kernel_size: Odd width of the temporal convolutions, in planning steps.
            attention: Linear attention in every stage (released halfcheetah networks).
            input_dim: Columns of the input; those of a trajectory if not given.

        Raises:
            ConfigError: A width or multiplier that the architecture does not allow.
        """
        super().__init__()
        if dim % GROUPS or dim < GROUPS or not multipliers or multipliers[0] != 1:
            raise ConfigError(
                f"TemporalUNet needs dim in multiples of {GROUPS} and a first "
                f"multiplier of 1, got dim={dim}, multipliers={tuple(multipliers)}."
            )
        if kernel_size % 2 == 0:
            raise ConfigError(f"kernel_size must be odd, got {kernel_size}.")
        self.transition_dim = transition_dim
        self.time_embedding = time_embedding(dim)
        widths = [dim * multiplier for multiplier in multipliers]
        self.narrowest_width, self.coarsest_width = min(widths), min(widths[-2:])
        pairs = list(pairwise([input_dim or transition_dim, *widths]))

        def stage(channels: tuple[int, int], resample: nn.Module | None) -> Stage:
            return Stage(
                channels, dim, kernel_size, attention=attention, resample=resample
            )

        self.downs = nn.ModuleList(
            stage(pair, nn.Conv1d(pair[1], pair[1], 3, stride=2, padding=1))
            for pair in pairs[:-1]
        )
        self.downs.append(stage(pairs[-1], None))
        self.mid = Stage(
            (widths[-1], widths[-1]),
            dim,
            kernel_size,
            attention=attention,
            attention_between=True,
        )
        self.ups = nn.ModuleList(
            stage(
                (2 * wide, narrow),
                nn.ConvTranspose1d(narrow, narrow, 4, stride=2, padding=1),
            )
            for narrow, wide in reversed(pairs[1:])
        )
        self.head = nn.Sequential(
            ConvBlock(dim, dim, kernel_size), nn.Conv1d(dim, transition_dim, 1)
        )

    @property
    def horizon_multiple(self) -> int:
        """Planning steps must come in multiples of this number."""
        return int(2 ** (len(self.downs) - 1))

    @property
    def min_planning_steps(self) -> int:
        """Of the shortest trajectory; group norms map a single number to 0."""
        alone = self.coarsest_width < 2 * GROUPS
        return 2 * self.horizon_multiple if alone else self.horizon_multiple

    def check_horizon(self, num_planning_steps: int) -> None:
        """Refuse a trajectory length that the network cannot represent.

        Raises:
            HorizonError: Not a positive multiple of `horizon_multiple`, or so short
                that a group norm would see a single number, which it maps to 0.
        """
        multiple = self.horizon_multiple
        if num_planning_steps < multiple or num_planning_steps % multiple:
            nearest = max(multiple, round(num_planning_steps / multiple) * multiple)
            raise HorizonError(
                f"The network takes plans of a multiple of {multiple} planning steps, "
                f"got {num_planning_steps}; the nearest is {nearest}."
            )
        if num_planning_steps < self.min_planning_steps:
            raise HorizonError(
                f"The network's coarsest stage sees one of {num_planning_steps} "
                f"planning steps, and with a width of {self.coarsest_width} its group "
                f"norms see a single number each. Make plans of "
                f"{self.min_planning_steps} planning steps or more (horizon, and "
                f"min_horizon, the shortest), or double the width (dim)."
            )

    def forward(self, trajectories: Tensor, i: Tensor) -> Tensor:
        """Map noisy trajectories to the prediction target.

        Args:
            trajectories: `[batch, horizon, transition]`, normalized.
            i: `[batch]` denoising steps.

        Returns:
            `[batch, horizon, transition]`.
        """
        time = self.time_embedding(i)
        x = trajectories.transpose(1, 2)
        skips = []
        for stage in self.downs:
            x = stage(x, time)
            skips.append(x)
            x = stage.resample(x)  # type: ignore[operator]
        x = self.mid(x, time)
        for stage in self.ups:
            x = stage(torch.cat([x, skips.pop()], dim=1), time)
            x = stage.resample(x)  # type: ignore[operator]
        out: Tensor = self.head(x).transpose(1, 2)
        return out


class StartConditionedUNet(TemporalUNet):
    """Temporal U-Net that also gets the current state, at every planning step."""

    def __init__(self, transition_dim: int, **settings: Any) -> None:
        """Build a U-Net with twice as many input columns.

        Args:
            transition_dim: Columns of a trajectory.
            settings: Of `TemporalUNet`.
        """
        super().__init__(transition_dim, input_dim=2 * transition_dim, **settings)

    def forward(  # type: ignore[override]  # residual denoisers tell it more
        self,
        trajectories: Tensor,
        i: Tensor,
        *,
        start: Tensor,
        signal: Tensor,  # noqa: ARG002 (a convolution learns it from i)
    ) -> Tensor:
        """Map noisy deviations from the current state to the prediction target.

        Args:
            trajectories: `[batch, horizon, transition]`, normalized.
            i: `[batch]` denoising steps.
            start: `[batch, transition]` current state, normalized.
            signal: `[batch]` share of the clean deviations in the noisy ones.
        """
        state = start[:, None].expand_as(trajectories)
        return super().forward(torch.cat([trajectories, state], dim=-1), i)
