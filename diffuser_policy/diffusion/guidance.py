r"""Guidance: where a guide's gradient enters the reverse process.

With guide J, scale s, and the step from i down to j with posterior variance
$\tilde\beta_{ij}$, the three placements are

| placement | moves | by |
|---|---|---|
| noisy | $x_i$, before it is denoised | $s\,\tilde\beta_{ij}\,\nabla J(x_i)$ |
| mean | the mean $\mu_j$ of the step | $s\,\tilde\beta_{ij}\,\nabla J(\mu_j)$ |
| clean | the prediction $\hat x_0$ | $s\,D^{-2}\,\nabla J(\hat x_0)$ |

"noisy" is the authors' release, "mean" is Algorithm 1 of their paper (Janner et al.
2022), "clean" is due to He et al. (2024, MPGD).
"noisy" and "mean" suit learned guides that were trained on noisy trajectories. "clean"
shows the guide the plan as it will be, which analytic costs need, and takes no
gradient through the denoiser; dividing by the squares of the normalizer's scales D
makes it a step in environment units, so that a scale of 1 moves a position by the
gradient in meters, whatever the size of the maze. All three can repeat the step, and
leave out those below a number of the training schedule (`cutoff`), which are the last
ones. Pinned entries are never moved.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from diffuser_policy.choices import Placement
from diffuser_policy.diffusion.conditions import Inpainting
from diffuser_policy.diffusion.schedule import NoiseSchedule
from diffuser_policy.guides.guide import Guide, value_and_gradient, value_of
from diffuser_policy.guides.identity import key_of
from diffuser_policy.guides.trajectory import CLEAN, Trajectory

View = Callable[[Tensor, int], Trajectory]


@dataclass(frozen=True, kw_only=True, eq=False)
class Guidance:
    """A guide, where its gradient is taken, and how hard it is followed.

    Attributes:
        guide: The objective.
        placement: "clean", "mean" or "noisy".
        scale: Size of a step along the gradient; zero does nothing at all.
        num_steps: Gradient steps for each denoising step; not given: 2 for "noisy" (the
            release), 1 for "mean" (the paper), 5 for "clean", whose few denoising
            steps have to be enough.
        cutoff: Denoising steps below this number of the training schedule are not
            guided; if a plan visits only some of them, fewer are skipped.
    """

    guide: Guide
    placement: Placement = "clean"
    scale: float = 1.0
    num_steps: int | None = None
    cutoff: int = 0

    @property
    def key(self) -> int:
        """A number that tells guidances apart, as `guides.identity` explains.

        Guidances of scale zero differ too: their guides may still rank candidates.
        """
        settings = (self.placement, self.scale, self.num_steps, self.cutoff)
        return key_of(self.guide, *settings)

    def steering(
        self, schedule: NoiseSchedule, given: Inpainting, view: View, *, scales: Tensor
    ) -> Steering:
        """Return the guidance of one sampling call.

        Args:
            schedule: The denoiser's schedule.
            given: Conditions of the whole batch.
            view: Shows normalized trajectories at a denoising step to a guide.
            scales: `[transition]` environment units per normalized unit.
        """
        return PLACEMENTS[self.placement](self, schedule, given, view, scales)


@dataclass(frozen=True, eq=False)
class Steering:
    """Guidance of one sampling call. Subclasses move one of three things.

    Attributes:
        guidance: Guide and settings.
        schedule: The denoiser's schedule.
        given: Conditions of the whole batch.
        view: Shows normalized trajectories at a denoising step to a guide.
        scales: `[transition]` environment units per normalized unit.
    """

    guidance: Guidance
    schedule: NoiseSchedule
    given: Inpainting
    view: View
    scales: Tensor

    default_num_steps: ClassVar[int] = 1
    scaled_by_variance: ClassVar[bool] = True

    def noisy(self, x: Tensor, i: int, j: int) -> Tensor:  # noqa: ARG002
        """Return the trajectories `[batch, horizon, transition]` to denoise at i."""
        return x

    def clean(self, x: Tensor, i: int, j: int) -> Tensor:  # noqa: ARG002
        """Return the clean trajectories that were predicted at i."""
        return x

    def mean(self, x: Tensor, i: int, j: int) -> Tensor:  # noqa: ARG002
        """Return the mean of the step from i to j."""
        return x

    def metric(self, gradient: Tensor) -> Tensor:
        """Return the direction of ascent: the gradient in normalized units."""
        return gradient

    def climb(self, x: Tensor, i: int, j: int, *, seen_as: int) -> Tensor:
        """Return trajectories after the gradient steps of one denoising step.

        Args:
            x: `[batch, horizon, transition]`, normalized.
            i: Denoising step that is being left.
            j: Denoising step that is being reached.
            seen_as: Denoising step of `x`, as the guide is told.
        """
        guidance = self.guidance
        size = guidance.scale
        if self.scaled_by_variance:
            size *= self.schedule.posterior(i, j)[2]
        if size == 0.0 or i < guidance.cutoff:
            return x
        num_steps = guidance.num_steps or self.default_num_steps
        return self.ascend(x, size, num_steps, lambda y: self.view(y, seen_as))

    def ascend(
        self,
        x: Tensor,
        size: float,
        num_steps: int,
        view: Callable[[Tensor], Trajectory],
    ) -> Tensor:
        """Return trajectories after gradient steps of one size.

        Args:
            x: `[batch, horizon, transition]`, normalized.
            size: Factor of the gradient.
            num_steps: How many.
            view: Shows normalized trajectories to the guide.
        """
        for _ in range(num_steps):
            x = self.given.apply(x)
            gradient = value_and_gradient(self.guidance.guide, x, view)[1]
            x = x + size * self.metric(gradient)
        return self.given.apply(x)


class NoisySteering(Steering):
    """As the authors' release: the denoiser sees the shifted trajectories."""

    default_num_steps = 2

    def noisy(self, x: Tensor, i: int, j: int) -> Tensor:
        """Climb from the noisy trajectories of step i."""
        return self.climb(x, i, j, seen_as=i)


class MeanSteering(Steering):
    """As Algorithm 1 of the paper: the mean of the step is shifted."""

    def mean(self, x: Tensor, i: int, j: int) -> Tensor:
        """Climb from the mean of the step to j."""
        return self.climb(x, i, j, seen_as=j)


class CleanSteering(Steering):
    """The predicted clean trajectories are shifted, in environment units.

    A step that makes a trajectory worse is taken back and halved: a guide that curves
    more than its scale allows would otherwise throw the plan far outside the data.
    """

    default_num_steps = 5
    scaled_by_variance = False

    def clean(self, x: Tensor, i: int, j: int) -> Tensor:
        """Climb from the prediction."""
        return self.climb(x, i, j, seen_as=CLEAN)

    def metric(self, gradient: Tensor) -> Tensor:
        """Return the normalized image of the gradient in environment units."""
        return gradient / self.scales.square()

    def ascend(
        self,
        x: Tensor,
        size: float,
        num_steps: int,
        view: Callable[[Tensor], Trajectory],
    ) -> Tensor:
        """Return trajectories after gradient steps, each of which made them better."""
        guide, sign = self.guidance.guide, math.copysign(1.0, size)
        sizes = x.new_full((len(x), 1, 1), size)
        best = self.given.apply(x)
        value, gradient = value_and_gradient(guide, best, view)
        for left in reversed(range(num_steps)):
            x = self.given.apply(best + sizes * self.metric(gradient))
            if left:
                reached, slope = value_and_gradient(guide, x, view)
            else:  # the last one need not be climbed from
                reached, slope = value_of(guide, view(x)), gradient
            worse = sign * (reached - value) <= 0  # or no better
            value = torch.where(worse, value, reached)
            kept = worse[:, None, None]
            best = torch.where(kept, best, x)
            gradient = torch.where(kept, gradient, slope)
            sizes = torch.where(kept, sizes / 2, sizes)
        return best


PLACEMENTS: dict[Placement, type[Steering]] = {
    "clean": CleanSteering,
    "mean": MeanSteering,
    "noisy": NoisySteering,
}
