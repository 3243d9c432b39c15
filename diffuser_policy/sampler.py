r"""Samplers: the reverse process from noise to clean trajectories.

A sampler visits a decreasing grid of denoising steps $i_1 > i_2 > … > i_K$, ending
in the clean trajectory. At each it asks the denoiser for $\hat x_0$ and moves on by

| sampler | step from i to j < i |
|---|---|
| DDPM | mean and variance of $q(x_j \mid x_i, \hat x_0)$ |
| DDIM | $s_j \hat x_0 + \sqrt{n_j^2 - \sigma^2}\,\hat\epsilon + \sigma z$ |

(Ho et al. 2020, eq. 6-7; Song et al. 2021, eq. 12) with
$\sigma = \eta \sqrt{\tilde\beta}$; eta = 1 on the full grid is DDPM. Conditions are
written back into the noise and after every step. Subclasses override `step`.

Randomness is explicit and *per row*: row r draws from its own generator, so its plan
does not depend on which other rows are in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from diffuser_policy.conditions import Inpainting
from diffuser_policy.denoiser import Denoiser
from diffuser_policy.errors import ConfigError


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


class Sampler:
    """Reverse process over a grid of denoising steps."""

    def __init__(self, denoiser: Denoiser, num_steps: int | None = None) -> None:
        """Choose the grid.

        Args:
            denoiser: Predicts clean trajectories.
            num_steps: Denoising steps to visit, evenly spaced over the training
                schedule; all of them if not given.

        Raises:
            ConfigError: More steps than the schedule has, or none.
        """
        available = denoiser.schedule.num_denoising_steps
        num_steps = available if num_steps is None else num_steps
        if not 1 <= num_steps <= available:
            raise ConfigError(
                f"The denoiser was trained with {available} denoising steps; sample "
                f"with 1 to {available} of them, got {num_steps}."
            )
        self.denoiser = denoiser
        self.num_steps = num_steps

    @property
    def grid(self) -> list[int]:
        """Denoising steps in the order they are visited, ending with -1 (clean)."""
        last = self.denoiser.schedule.num_denoising_steps - 1
        steps = torch.linspace(last, 0, self.num_steps, dtype=torch.float64).round()
        if self.num_steps == 1:
            steps = steps[:1]
        return [*map(int, steps.tolist()), -1]

    def step(
        self,
        noisy: Tensor,
        clean: Tensor,
        i: int,
        j: int,
        draw: Callable[[], Tensor],
    ) -> Tensor:
        """Return trajectories at denoising step j, given those at step i > j.

        Args:
            noisy: `[batch, horizon, transition]` at step i.
            clean: The denoiser's prediction from `noisy`, of the same shape.
            i: Denoising step to leave.
            j: Denoising step to reach; -1 is clean.
            draw: Returns standard normal noise of the same shape, or zero.
        """
        raise NotImplementedError

    @torch.inference_mode()
    def sample(
        self,
        inpainting: Inpainting,
        generators: Sequence[torch.Generator],
        *,
        num_candidates: int = 1,
        step_noise: bool = True,
        keep_chain: bool = False,
    ) -> Samples:
        """Run the reverse process for all rows and candidates in one batch.

        Args:
            inpainting: Conditions of each row; its values give the shape of a plan.
            generators: One source of noise per row, advanced by the call.
            num_candidates: Trajectories per row.
            step_noise: Off: the initial noise alone decides, and every step takes
                its mean. What DDIM with eta = 0 does anyway.
            keep_chain: Also return the trajectories at every denoising step.
        """
        rows, *shape = inpainting.values.shape
        given = inpainting.repeat(num_candidates)
        device = given.values.device

        def draw() -> Tensor:
            size = (num_candidates, *shape)
            noise = [torch.randn(size, generator=generator) for generator in generators]
            return torch.cat(noise).to(device)

        def silence() -> Tensor:
            return torch.zeros((), device=device)

        x = given.apply(draw())
        chain = [x]
        grid = self.grid
        for i, j in pairwise(grid):
            clean = self.denoiser(x, i)
            x = given.apply(self.step(x, clean, i, j, draw if step_noise else silence))
            if keep_chain:
                chain.append(x)

        def by_row(batch: Tensor) -> Tensor:
            return batch.reshape(rows, num_candidates, *shape)

        stacked = torch.stack([by_row(x) for x in chain]) if keep_chain else None
        return Samples(by_row(x), stacked)


class DDPMSampler(Sampler):
    """Ancestral sampling from the posterior of each step."""

    def step(
        self,
        noisy: Tensor,
        clean: Tensor,
        i: int,
        j: int,
        draw: Callable[[], Tensor],
    ) -> Tensor:
        """Return posterior mean plus noise; no noise on the last step."""
        of_clean, of_noisy, variance = self.denoiser.schedule.posterior(i, j)
        mean = of_clean * clean + of_noisy * noisy
        return mean if j < 0 else mean + variance**0.5 * draw()


class DDIMSampler(Sampler):
    """Deterministic sampling from the initial noise (eta = 0), or less and less so."""

    def __init__(
        self, denoiser: Denoiser, num_steps: int | None = None, *, eta: float = 0.0
    ) -> None:
        """Choose grid and randomness.

        Args:
            denoiser: Predicts clean trajectories.
            num_steps: Denoising steps to visit.
            eta: Noise of each step, in [0, 1]: 0 is deterministic, 1 is ancestral.
        """
        super().__init__(denoiser, num_steps)
        if not 0.0 <= eta <= 1.0:
            raise ConfigError(f"eta must be in [0, 1], got {eta}.")
        self.eta = eta

    def step(
        self,
        noisy: Tensor,
        clean: Tensor,
        i: int,
        j: int,
        draw: Callable[[], Tensor],
    ) -> Tensor:
        """Return the clean trajectory with the predicted noise of step j."""
        if j < 0:
            return clean
        schedule = self.denoiser.schedule
        here, there = schedule.alpha_bar(i), schedule.alpha_bar(j)
        noise = (noisy - here**0.5 * clean) / (1 - here) ** 0.5
        variance = self.eta**2 * schedule.posterior(i, j)[2]
        direction = max(1 - there - variance, 0.0) ** 0.5
        x: Tensor = there**0.5 * clean + direction * noise
        return x + variance**0.5 * draw() if variance else x
