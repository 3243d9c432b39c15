r"""Noise schedule: how much signal and noise a trajectory holds at denoising step i.

Forward process (Ho et al. 2020): $q(x_i \mid x_0) = N(\sqrt{\bar\alpha_i}\, x_0,
(1-\bar\alpha_i) I)$, with i = 0 the cleanest of `num_denoising_steps` steps.
The cosine schedule (Nichol & Dhariwal 2021, eq. 17) sets

$$\bar\alpha(u) = \cos^2\left(\frac{u + s}{1 + s}\frac{\pi}{2}\right),\quad
\beta_i = \min\left(1 - \frac{\bar\alpha((i+1)/N)}{\bar\alpha(i/N)},\ 0.999\right),$$

with s = 0.008. The posterior of one reverse step is
$q(x_{i-1} \mid x_i, x_0) = N(c^0_i x_0 + c^x_i x_i, \tilde\beta_i)$ with

$$c^0_i = \frac{\beta_i\sqrt{\bar\alpha_{i-1}}}{1-\bar\alpha_i},\quad
c^x_i = \frac{(1-\bar\alpha_{i-1})\sqrt{\alpha_i}}{1-\bar\alpha_i},\quad
\tilde\beta_i = \frac{\beta_i(1-\bar\alpha_{i-1})}{1-\bar\alpha_i}.$$
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffuser_policy.errors import ConfigError

COSINE_OFFSET = 0.008
MAX_BETA = 0.999


class NoiseSchedule:
    """Signal and noise scales of the cosine schedule.

    Attributes:
        num_denoising_steps: N, the number of denoising steps of training.
        betas: `[N]` noise added by step i, float64.
        alpha_bars: `[N]` share of the signal's variance left at step i, float64.
    """

    def __init__(self, num_denoising_steps: int) -> None:
        """Compute the schedule in float64.

        Args:
            num_denoising_steps: N, at least 1.
        """
        if num_denoising_steps < 1:
            raise ConfigError(
                f"num_denoising_steps must be at least 1, got {num_denoising_steps}."
            )
        self.num_denoising_steps = num_denoising_steps
        grid = torch.arange(num_denoising_steps + 1, dtype=torch.float64)
        angle = (grid / num_denoising_steps + COSINE_OFFSET) / (1 + COSINE_OFFSET)
        alpha_bar = torch.cos(angle * math.pi / 2) ** 2
        self.betas = (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(0.0, MAX_BETA)
        self.alpha_bars = torch.cumprod(1 - self.betas, dim=0)
        self._signal = self.alpha_bars.sqrt().float()
        self._noise = (1 - self.alpha_bars).sqrt().float()

    def signal(self, i: Tensor) -> Tensor:
        r"""Return $\sqrt{\bar\alpha_i}$, float32, of the shape of `i`."""
        return self._signal[i]

    def noise(self, i: Tensor) -> Tensor:
        r"""Return $\sqrt{1-\bar\alpha_i}$, float32, of the shape of `i`."""
        return self._noise[i]

    def alpha_bar(self, i: int) -> float:
        r"""Return $\bar\alpha_i$; one for i = -1, the clean trajectory."""
        return 1.0 if i < 0 else float(self.alpha_bars[i])

    def posterior(self, i: int, previous: int) -> tuple[float, float, float]:
        r"""Return $(c^0, c^x, \tilde\beta)$ of a step from i down to `previous`.

        `previous = i - 1` is the posterior above; a smaller one is the posterior of
        the process that visits only some of the steps.

        Args:
            i: Denoising step to leave, 0..N-1.
            previous: Denoising step to reach, -1..i-1.
        """
        here, there = self.alpha_bar(i), self.alpha_bar(previous)
        alpha = here / there
        beta = 1 - alpha
        return (
            beta * math.sqrt(there) / (1 - here),
            (1 - there) * math.sqrt(alpha) / (1 - here),
            beta * (1 - there) / (1 - here),
        )
