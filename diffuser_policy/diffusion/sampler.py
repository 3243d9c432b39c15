r"""Samplers: the reverse process from noise to clean trajectories.

A sampler visits a decreasing grid of denoising steps $i_1 > i_2 > … > i_K$, ending
in the clean trajectory. At each it asks the denoiser for $\hat x_0$ and moves on to
$x_j = \mu + \sigma z$ by

| sampler | step from i to j < i |
|---|---|
| DDPM | mean and variance of $q(x_j \mid x_i, \hat x_0)$ |
| DDIM | $s_j \hat x_0 + n_j \hat\epsilon$ |
| DPM-Solver++(2M) | $s_j \hat D + n_j (x_i - s_i \hat D) / n_i$ |

(Ho et al. 2020, eq. 6-7; Song et al. 2021, eq. 12; Lu et al. 2022, "DPM-Solver++",
algorithm 2). DPM-Solver++ is DDIM with a prediction that is extrapolated to the middle
of the step, in half log signal-to-noise ratio $\lambda$, from that of the step before,
from h to i:

$$\hat D = \hat x_0(x_i) + \frac{\lambda_j - \lambda_i}{2 (\lambda_i - \lambda_h)}
\left(\hat x_0(x_i) - \hat x_0(x_h)\right).$$

The first step has no step before it, and the last one, to $\lambda = \infty$, has no
middle: both are DDIM's. With one or two steps, DPM-Solver++ is therefore DDIM.

Every step is a sum of the noisy trajectory, the predictions and noise. The weights
depend only on i, j and h, and are computed once. Subclasses override `weights`, or
`step` if a step is not such a sum. Conditions are written back into the noise and after
every step; a guide may shift the noisy trajectories, the prediction, or the mean
(`diffuser_policy.diffusion.guidance`).

Warm start (Janner et al. 2022, §5.4): sampling starts in the middle of the schedule,
from an earlier plan with noise added, instead of from noise alone.

Randomness is explicit and *per row*: row r draws from its own generator, so its plan
does not depend on which other rows are in the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from diffuser_policy.choices import Spacing
from diffuser_policy.diffusion.conditions import Inpainting
from diffuser_policy.diffusion.denoiser import Denoiser
from diffuser_policy.diffusion.guidance import Steering
from diffuser_policy.diffusion.schedule import half_log_snr, share_of, step_grid
from diffuser_policy.errors import ConfigError
from diffuser_policy.numerics import plain_arithmetic


@dataclass(frozen=True)
class Samples:
    """Sampled trajectories.

    Attributes:
        trajectories: `[rows, candidates, horizon, transition]`, normalized.
        chain: `[steps + 1, rows, candidates, horizon, transition]` from the initial
            noise to the result, if it was asked for.
    """

    trajectories: Tensor
    chain: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class WarmStart:
    """Earlier plans from which the reverse process starts, instead of from noise.

    Attributes:
        trajectories: `[rows, horizon, transition]`, normalized: earlier plans, shifted.
        level: Share of the schedule to which they are noised, in (0, 1].
        num_steps: Denoising steps from there.
    """

    trajectories: Tensor
    level: float
    num_steps: int


class Prediction(NamedTuple):
    """What the denoiser predicted at an earlier denoising step.

    Attributes:
        clean: `[batch, horizon, transition]`, normalized.
        step: The denoising step.
    """

    clean: Tensor
    step: int


class Weights(NamedTuple):
    """One step as a weighted sum.

    Attributes:
        noisy: Weight of the trajectories at the step to leave.
        clean: Weight of the prediction there.
        before: Weight of the prediction at the step before.
        noise: Standard deviation of the noise that is added.
    """

    noisy: float
    clean: float
    before: float = 0.0
    noise: float = 0.0


class Sampler:
    """Reverse process over a grid of denoising steps.

    Use `DDPMSampler`, `DDIMSampler` or `DPMSolverSampler`, or define `weights`.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        num_steps: int | None = None,
        *,
        temperature: float = 1.0,
        spacing: Spacing = "linspace",
    ) -> None:
        """Choose the grid.

        Args:
            denoiser: Predicts clean trajectories.
            num_steps: Denoising steps to visit; all of the schedule if not given.
            temperature: Scales the initial noise and that of every step; below 1,
                plans are more alike and more typical (Ajay et al. 2023, §4).
            spacing: How the steps are spread over the schedule
                (`diffuser_policy.diffusion.schedule`).

        Raises:
            ConfigError: More steps than the schedule has, or none, or a temperature
                that is negative or not finite.
            UnknownNameError: A spacing that does not exist.
        """
        available = denoiser.schedule.num_denoising_steps
        num_steps = available if num_steps is None else num_steps
        if num_steps not in range(1, available + 1):  # nor are fractions or NaN
            raise ConfigError(
                f"The denoiser was trained with {available} denoising steps; sample "
                f"with 1 to {available} of them, got {num_steps}."
            )
        if not (math.isfinite(temperature) and temperature >= 0):
            raise ConfigError(f"temperature must be 0 or more, got {temperature}.")
        self.denoiser, self.num_steps = denoiser, int(num_steps)
        self.temperature, self.spacing = temperature, spacing
        self._grids: dict[tuple[int, int], list[int]] = {}
        self._weights: dict[tuple[int, int, int | None], Weights] = {}
        self.grid_from(1.0, self.num_steps)  # refuses an unknown spacing

    @property
    def grid(self) -> list[int]:
        """Denoising steps in the order they are visited, ending with -1 (clean)."""
        return self.grid_from(1.0, self.num_steps)

    def grid_from(self, level: float, num_steps: int) -> list[int]:
        """Return denoising steps that begin at a share of the schedule.

        Args:
            level: 1 begins with the noisiest step.
            num_steps: How many at most; no step is visited twice.
        """
        schedule = self.denoiser.schedule
        first = share_of(level, schedule.num_denoising_steps) - 1
        key = (first, min(num_steps, first + 1))
        if key not in self._grids:
            self._grids[key] = step_grid(
                schedule, key[1], spacing=self.spacing, first=first
            )
        return self._grids[key].copy()

    def step(
        self, noisy: Tensor, clean: Tensor, i: int, j: int, before: Prediction | None
    ) -> tuple[Tensor, float]:
        """Return mean and standard deviation of trajectories at step j, given step i.

        Args:
            noisy: `[batch, horizon, transition]` at step i.
            clean: The denoiser's prediction from `noisy`, of the same shape.
            i: Denoising step to leave.
            j: Lower denoising step to reach; -1 is clean.
            before: The prediction at the step before i; none at the first.
        """
        key = (i, j, None if before is None else before.step)
        weights = self._weights.get(key)
        if weights is None:
            weights = self._weights[key] = self.weights(*key)
        mean = torch.add(weights.noisy * noisy, clean, alpha=weights.clean)
        if before is not None and weights.before != 0.0:
            mean = mean.add_(before.clean, alpha=weights.before)
        return mean, weights.noise

    def weights(self, i: int, j: int, h: int | None) -> Weights:
        """Return the step from i to j as a weighted sum.

        Args:
            i: Denoising step to leave.
            j: Denoising step to reach; -1 is clean.
            h: The step before i, if there was one.
        """
        raise NotImplementedError(
            f"{type(self).__name__} says nothing about its steps. Use DDPMSampler, "
            f"DDIMSampler or DPMSolverSampler, or define `weights`."
        )

    @plain_arithmetic()
    @torch.inference_mode()
    def sample(
        self,
        inpainting: Inpainting,
        generators: Sequence[torch.Generator],
        *,
        num_candidates: int = 1,
        steering: Callable[[Inpainting], Steering] | None = None,
        warm_start: WarmStart | None = None,
        step_noise: bool = True,
        keep_chain: bool = False,
    ) -> Samples:
        """Run the reverse process for all rows and candidates in one batch.

        Args:
            inpainting: Conditions of each row; its values give the shape of a plan.
            generators: One source of noise per row, advanced by the call unless the
                temperature is 0.
            num_candidates: Trajectories per row.
            steering: Makes the guidance for the conditions of the whole batch.
            warm_start: Begin with these trajectories, noised, instead of with noise.
            step_noise: Add noise in every step. Off, every step takes its mean, and
                the initial noise alone decides, as it always does in DDIM.
            keep_chain: Also return the trajectories of every denoising step.

        Raises:
            ConfigError: Another number of generators than of rows.
        """
        rows, *shape = inpainting.values.shape
        if len(generators) != rows:
            raise ConfigError(
                f"Sampling needs a generator for each row of the conditions, got "
                f"{len(generators)} for {rows}."
            )
        given = inpainting.repeat(num_candidates)
        device = given.values.device
        steer = None if steering is None else steering(given)

        def draw() -> Tensor:
            if self.temperature == 0.0:
                return torch.zeros_like(given.values)
            size = (num_candidates, *shape)
            noise = [
                torch.randn(size, generator=generator, dtype=given.values.dtype)
                for generator in generators
            ]
            return self.temperature * torch.cat(noise).to(device)

        x = draw()
        if warm_start is None:
            grid = self.grid_from(1.0, self.num_steps)
        else:
            grid = self.grid_from(warm_start.level, warm_start.num_steps)
            earlier = warm_start.trajectories.repeat_interleave(num_candidates, dim=0)
            first = torch.full((len(earlier),), grid[0], device=device)
            x = self.denoiser.add_noise(earlier, x, first)
        x = given.apply(x)
        chain = [x]
        before: Prediction | None = None
        for i, j in pairwise(grid):
            if steer is not None:
                x = steer.noisy(x, i, j)
            clean = self.denoiser(x, i)  # the network's prediction of x_0
            if steer is not None:
                clean = steer.clean(clean, i, j)
            mean, noise = self.step(x, clean, i, j, before)
            if steer is not None:
                mean = steer.mean(mean, i, j)
            x = mean + noise * draw() if step_noise and noise > 0.0 else mean
            x = given.apply(x)
            before = Prediction(clean, i)
            if keep_chain:
                chain.append(x)

        def by_row(batch: Tensor) -> Tensor:
            return batch.reshape(rows, num_candidates, *shape)

        stacked = torch.stack([by_row(x) for x in chain]) if keep_chain else None
        return Samples(by_row(x), stacked)


class DDPMSampler(Sampler):
    """Ancestral sampling from the posterior of each step."""

    def weights(self, i: int, j: int, h: int | None) -> Weights:  # noqa: ARG002
        """Return the posterior; the last step has no noise."""
        of_clean, of_noisy, variance = self.denoiser.schedule.posterior(i, j)
        return Weights(of_noisy, of_clean, noise=variance**0.5)


class DDIMSampler(Sampler):
    """Deterministic sampling: the initial noise alone decides."""

    def weights(self, i: int, j: int, h: int | None) -> Weights:  # noqa: ARG002
        """Return the clean trajectory with the predicted noise of step j."""
        schedule = self.denoiser.schedule
        here, there = schedule.alpha_bar(i), schedule.alpha_bar(j)
        direction = math.sqrt((1 - there) / (1 - here))
        return Weights(direction, math.sqrt(there) - direction * math.sqrt(here))


class DPMSolverSampler(DDIMSampler):
    """DPM-Solver++(2M): deterministic, with an error of second order in step size."""

    def weights(self, i: int, j: int, h: int | None) -> Weights:
        """Return the first-order step, leaning away from the prediction before."""
        of_noisy, of_clean, *_ = weights = super().weights(i, j, h)
        if h is None or j < 0:
            return weights
        schedule = self.denoiser.schedule
        at_h, at_i, at_j = (half_log_snr(schedule, step) for step in (h, i, j))
        lean = (at_j - at_i) / (2 * (at_i - at_h))
        return Weights(of_noisy, of_clean * (1 + lean), -of_clean * lean)
