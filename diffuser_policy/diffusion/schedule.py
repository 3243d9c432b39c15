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

A step grid lists the denoising steps that a sampler visits, if it does not visit all.

From the noisiest step F (N - 1, or lower for a warm start) down, K steps
$g_0 > g_1 > … > g_{K-1}$, then -1, the clean trajectory:

| spacing | $g_k$, rounded | due to |
|---|---|---|
| linspace | $F\,(1 - k/(K-1))$ | Nichol & Dhariwal 2021, §4 |
| trailing | $(F+1)(1 - k/K) - 1$ | Lin et al. 2024, table 2 |
| leading | $(K-1-k)\lfloor (F+1)/K \rfloor$ | DDIM as released (Lin et al. 2024) |
| quadratic | $F\,(1 - k/(K-1))^2$ | Song et al. 2021 (DDIM), app. D.2 |
| log-snr | even in $\lambda$, from $\lambda_F$ to $\lambda_0$ | Lu et al. 2022 |

$\lambda = \ln(s/n)$ is half the log signal-to-noise ratio. All but "leading" begin at
F; "leading" begins below it, where the denoiser expects signal that noise does not
have, so with few steps it is of historical interest only. "trailing" spends no step
at 0, where little is left to denoise. A single step is F itself ("leading": 0). Where
rounding would visit a step twice, its neighbors make way, so that there are always K
different steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from diffuser_policy.choices import Spacing
from diffuser_policy.errors import ConfigError, UnknownNameError

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
        grid = torch.arange(num_denoising_steps + 1, dtype=torch.float64, device="cpu")
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


def share_of(level: float, count: int) -> int:
    """Return how many of some steps a share of them is: rounded up, one or more.

    Args:
        level: The share, in (0, 1].
        count: All of the steps.
    """
    # Rounded first: 7 / 50 * 50 is a little more than 7.
    return max(math.ceil(round(level * count, 9)), 1)


def step_grid(
    schedule: NoiseSchedule,
    num_steps: int,
    *,
    spacing: Spacing,
    first: int,
) -> list[int]:
    """Return the denoising steps to visit, strictly decreasing, and -1 at the end.

    Args:
        schedule: The denoiser's schedule.
        num_steps: K, from 1 to F + 1.
        spacing: How they are spread.
        first: F.

    Raises:
        UnknownNameError: A spacing that does not exist.
    """
    if spacing not in SPACINGS:
        raise UnknownNameError("step spacing", spacing, SPACINGS)
    wanted = SPACINGS[spacing](schedule, first, num_steps)
    return [*apart([round(step) for step in wanted], first), -1]


def apart(steps: list[int], first: int) -> list[int]:
    """Move steps that coincide as little as needed: first upwards, then down from F.

    Args:
        steps: Decreasing, not strictly, none above `first`.
        first: Highest step to visit.
    """
    highest = first - len(steps) + 1  # for the last step, so that all fit below F
    moved, slack = [], 0
    for rank, step in enumerate(reversed(steps)):
        slack = max(slack, step - rank)
        moved.append(min(slack, highest) + rank)
    return moved[::-1]


def _shares(num_steps: int) -> list[float]:
    """Return how much of the way down is left at each step: 1 at the first."""
    return [1.0 - k / max(num_steps - 1, 1) for k in range(num_steps)]


def _log_snr(schedule: NoiseSchedule, first: int, num_steps: int) -> list[float]:
    ratios = [half_log_snr(schedule, i) for i in range(first + 1)]
    noisy, clean = ratios[first], ratios[0]
    wanted = [clean + share * (noisy - clean) for share in _shares(num_steps)]
    return [
        float(min(range(first + 1), key=lambda i: abs(ratios[i] - ratio)))
        for ratio in wanted
    ]


def half_log_snr(schedule: NoiseSchedule, i: int) -> float:
    r"""Return $\lambda_i = \ln(s_i / n_i)$; infinite for the clean trajectory, -1."""
    alpha_bar = schedule.alpha_bar(i)
    if alpha_bar == 1.0:
        return math.inf
    return 0.5 * math.log(alpha_bar / (1 - alpha_bar))


SPACINGS: dict[Spacing, Callable[[NoiseSchedule, int, int], list[float]]] = {
    "linspace": lambda _, first, count: [first * share for share in _shares(count)],
    "trailing": lambda _, first, count: [
        (first + 1) * (1 - k / count) - 1 for k in range(count)
    ],
    "leading": lambda _, first, count: [
        float((first + 1) // count * (count - 1 - k)) for k in range(count)
    ],
    "quadratic": lambda _, first, count: [first * share**2 for share in _shares(count)],
    "log-snr": _log_snr,
}
