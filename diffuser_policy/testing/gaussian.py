r"""An exact denoiser: the truth that samplers are compared with.

If clean trajectories are Gaussian, $x_0 \sim N(\mu, C)$ over all their entries, the
best prediction from $x_i = s x_0 + n \epsilon$ is known in closed form:

$$E[x_0 \mid x_i] = \mu + s C (s^2 C + n^2 I)^{-1} (x_i - s \mu).$$

In the eigenbasis $C = U \Lambda U^T$ every direction is scaled by
$s \lambda / (s^2 \lambda + n^2)$, and the probability-flow equation (Song et al. 2021,
"Score-based generative modeling", eq. 13), which DDIM solves step by step, maps each
direction by $\sqrt{\lambda / (s^2 \lambda + n^2)}$.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffuser_policy.choices import PredictionTarget
from diffuser_policy.diffusion.denoiser import Denoiser
from diffuser_policy.diffusion.schedule import NoiseSchedule
from diffuser_policy.errors import ConfigError


class GaussianDenoiser(Denoiser):
    """Predicts the posterior mean of Gaussian trajectories; nothing is learned."""

    def __init__(
        self,
        mean: Tensor,
        covariance: Tensor,
        schedule: NoiseSchedule,
        *,
        prediction_target: PredictionTarget = "clean",
    ) -> None:
        """Diagonalize the covariance.

        Args:
            mean: `[horizon, transition]`, normalized units.
            covariance: `[horizon * transition, horizon * transition]`, symmetric and
                positive semi-definite; entries in the order of `mean.flatten()`.
            schedule: Signal and noise at every denoising step.
            prediction_target: What the posterior mean is expressed as.

        Raises:
            ConfigError: A covariance of the wrong shape, or not one.
        """
        size = mean.numel()
        if covariance.shape != (size, size) or not torch.equal(
            covariance, covariance.T
        ):
            raise ConfigError(
                f"A mean of {size} entries needs a symmetric covariance "
                f"[{size}, {size}], got {tuple(covariance.shape)}."
            )
        network = _PosteriorMean(mean, covariance, schedule, prediction_target)
        super().__init__(
            network, schedule, prediction_target=prediction_target, clip=False
        )
        self.posterior_mean = network

    def flow(self, noisy: Tensor, i: int) -> Tensor:
        """Return where the probability flow carries trajectories of step i: exact DDIM.

        Args:
            noisy: `[batch, horizon, transition]` at denoising step `i`.
            i: Denoising step.
        """
        exact = self.posterior_mean
        alpha_bar = self.schedule.alpha_bar(i)
        spread = alpha_bar * exact.eigenvalues + 1 - alpha_bar
        return exact.scaled(noisy, alpha_bar**0.5, (exact.eigenvalues / spread).sqrt())


class _PosteriorMean(nn.Module):
    """The posterior mean in the place of a network."""

    def __init__(
        self,
        mean: Tensor,
        covariance: Tensor,
        schedule: NoiseSchedule,
        prediction_target: PredictionTarget,
    ) -> None:
        super().__init__()
        eigenvalues, self.basis = torch.linalg.eigh(covariance.double())
        if float(eigenvalues.min()) < -1e-9 * float(eigenvalues.abs().max()):
            raise ConfigError("The covariance has negative eigenvalues.")
        self.eigenvalues = eigenvalues.clamp(min=0.0)
        self.mean = mean.double()
        self.schedule, self.prediction_target = schedule, prediction_target

    def scaled(self, noisy: Tensor, signal: float | Tensor, gains: Tensor) -> Tensor:
        """Return the mean plus the deviation from `signal * mean`, scaled by direction.

        Args:
            noisy: `[batch, horizon, transition]`.
            signal: Share of the mean in `noisy`, one number or `[batch, 1]`.
            gains: `[directions]` or `[batch, directions]`.
        """
        off = noisy.double().flatten(1) - signal * self.mean.flatten()
        deviation = ((off @ self.basis) * gains) @ self.basis.T
        result: Tensor = self.mean.flatten() + deviation
        return result.view_as(noisy).to(noisy.dtype)

    def forward(self, noisy: Tensor, i: Tensor) -> Tensor:
        """Return the prediction target `[batch, horizon, transition]`."""
        alpha_bar = self.schedule.alpha_bars[i][:, None]
        signal, noise_level = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        spread = alpha_bar * self.eigenvalues + 1 - alpha_bar
        clean = self.scaled(noisy, signal, signal * self.eigenvalues / spread)
        if self.prediction_target == "clean":
            return clean
        signal, noise_level = signal[:, :, None], noise_level[:, :, None]
        noise = (noisy - signal * clean) / noise_level
        if self.prediction_target == "noise":
            return noise.to(noisy.dtype)
        return (signal * noise - noise_level * clean).to(noisy.dtype)
