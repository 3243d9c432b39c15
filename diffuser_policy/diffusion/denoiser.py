r"""Denoiser: network + noise schedule + prediction target → clean trajectory.

Given a noisy trajectory $x_i = s_i x_0 + n_i \epsilon$ (signal s, noise n), the
network outputs one of three targets; each determines the clean trajectory:

| target | network output u | clean trajectory |
|---|---|---|
| clean | $x_0$ | $u$ |
| noise | $\epsilon$ | $(x_i - n_i u) / s_i$ |
| velocity (Salimans & Ho 2022) | $s_i \epsilon - n_i x_0$ | $s_i x_i - n_i u$ |

The loss is the mean squared error of the target over all entries that are *not*
pinned by conditions. Leaving pinned entries out is right for all three targets;
overwriting the output with clean values would be right for the first one only.

*Residual* denoisers see and predict deviations $y = x - o_0$ from the current state,
which is pinned at the first planning step (for columns that are not pinned there, such
as actions, $o_0$ is zero). With $y_i = x_i - s_i o_0 = s_i y_0 + n_i
\epsilon$ the table holds for y as it does for x, and $x_0 = o_0 + y_0$: the diffusion
process stays the same; the network need not copy the current state.

With a *loss floor* f, errors of step i weigh $1 / (n_i^2 + f)$: the weight that clean
errors have in velocity prediction, $1 / n_i^2$, capped at $1/f$. Nearly clean plans are
then learned as precisely as the vague ones from pure noise.

*First weights* multiply the errors of the first planning step, column by column. With
10 for the actions, the released code learns best what will be done next.
"""

from __future__ import annotations

import warnings
from typing import Any, get_args

import torch
from torch import Tensor, nn

from diffuser_policy.choices import Acceleration, PredictionTarget
from diffuser_policy.diffusion.conditions import Inpainting
from diffuser_policy.diffusion.schedule import NoiseSchedule
from diffuser_policy.errors import UnknownNameError
from diffuser_policy.networks.runtime import (
    AccelerationWarning,
    Runner,
    accelerate,
    steps_of,
)

PREDICTION_TARGETS: tuple[PredictionTarget, ...] = get_args(PredictionTarget)


class Denoiser(nn.Module):
    """Predicts the clean trajectory from a noisy one."""

    def __init__(
        self,
        network: nn.Module,
        schedule: NoiseSchedule,
        *,
        prediction_target: PredictionTarget = "clean",
        clip: bool = True,
        residual: bool = False,
        state: slice = slice(None),
        loss_floor: float | None = None,
        first_weights: Tensor | None = None,
        acceleration: Acceleration = "auto",
    ) -> None:
        """Combine the three parts.

        Args:
            network: Maps `[batch, horizon, transition]` and `[batch]` steps to the
                prediction target; a residual one also takes `start` `[batch,
                transition]` and `signal` `[batch]` by name.
            schedule: Signal and noise at every denoising step.
            prediction_target: The network's output.
            clip: Clamp clean trajectories to [-1, 1]; right for the limits normalizer.
            residual: The network works on deviations from the current state.
            state: Columns of the current state, which a residual network needs pinned.
            loss_floor: Caps how much more errors weigh at little noise; not given: all
                denoising steps weigh the same.
            first_weights: `[transition]`, of the errors at the first planning step; not
                given: they weigh as much as the others.
            acceleration: How the network is run where gradients are off, see
                `diffuser_policy.networks.runtime`. Residual ones run as written.

        Raises:
            UnknownNameError: A prediction target or acceleration that does not exist.
        """
        super().__init__()
        if prediction_target not in PREDICTION_TARGETS:
            raise UnknownNameError(
                "prediction target", prediction_target, PREDICTION_TARGETS
            )
        self.network = network
        self.schedule = schedule
        self.prediction_target = prediction_target
        self.clip = clip
        self.residual, self.state = residual, state
        self.loss_floor, self.first_weights = loss_floor, first_weights
        self.acceleration = acceleration
        if residual and acceleration in ("compile", "cuda-graphs"):
            warnings.warn(
                f"acceleration={acceleration!r} has no effect on a residual network: "
                f"it always runs as it is written.",
                AccelerationWarning,
                stacklevel=2,
            )
        self._runner: Runner | None = accelerate(network, acceleration)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the runner: a copy makes its own, for its own weights."""
        return {**self.__dict__, "_runner": None}

    def accelerated(self, acceleration: Acceleration) -> Denoiser:
        """Return a denoiser that shares the network and runs it another way.

        A residual network always runs as it is written; an `AccelerationWarning` says
        so if "compile" or "cuda-graphs" is asked for.

        Raises:
            UnknownNameError: An acceleration that does not exist.
        """
        return Denoiser(
            self.network,
            self.schedule,
            prediction_target=self.prediction_target,
            clip=self.clip,
            residual=self.residual,
            state=self.state,
            loss_floor=self.loss_floor,
            first_weights=self.first_weights,
            acceleration=acceleration,
        )

    @property
    def horizon_multiple(self) -> int:
        """Planning steps come in multiples of this number."""
        return int(getattr(self.network, "horizon_multiple", 1))

    @property
    def min_planning_steps(self) -> int:
        """Planning steps of the shortest plan that the network can make."""
        least = getattr(self.network, "min_planning_steps", self.horizon_multiple)
        return int(least)

    def forward(self, noisy: Tensor, i: int) -> Tensor:
        """Return the clean trajectories predicted from noisy ones.

        Args:
            noisy: `[batch, horizon, transition]` at denoising step `i`, normalized.
            i: Denoising step, 0..N-1, the same for the whole batch.
        """
        steps = steps_of(noisy, i)
        if self.residual or torch.is_grad_enabled():
            return self.predicted(noisy, steps)
        # The network may have been replaced or trained, or this may be a copy. Read the
        # attribute once: a training in another thread may set it to None at any time.
        runner = self._runner
        if runner is None or runner.network is not self.network:
            runner = self._runner = accelerate(self.network, self.acceleration)
        return self._clipped(self._clean(runner(noisy, i), noisy, steps))

    def predicted(self, noisy: Tensor, i: Tensor) -> Tensor:
        """Return what `forward` returns, by the network as it is written.

        Args:
            noisy: As in `forward`.
            i: `[batch]` denoising steps.
        """
        if torch.is_grad_enabled():
            self._forget()
        if not self.residual:
            return self._clipped(self._clean(self.network(noisy, i), noisy, i))
        output, start, deviations = self._output(noisy, i)
        return self._clipped(start + self._clean(output, deviations, i))

    def _forget(self) -> None:
        """Drop the weights that a runner keeps, because training will change them.

        Fused optimizers do so without a trace that the runner could see.
        """
        self._runner = None

    def _clipped(self, clean: Tensor) -> Tensor:
        return clean.clamp(-1.0, 1.0) if self.clip else clean

    def loss(
        self, clean: Tensor, inpainting: Inpainting, generator: torch.Generator
    ) -> Tensor:
        """Return the denoising loss of a batch of clean trajectories, a scalar.

        Denoising steps and noise are drawn from the generator.

        Args:
            clean: `[batch, horizon, transition]`, normalized.
            inpainting: Entries that are given and carry no loss.
            generator: Source of all randomness, advanced by the call.
        """
        self._forget()
        noisy, steps, noise = self.noised(clean, inpainting, generator)
        if self.residual:
            output, _, _ = self._output(noisy, steps)
            target = self._target(clean - self._start(clean), noise, steps)
        else:
            output = self.network(noisy, steps)
            target = self._target(clean, noise, steps)
        error = output - target
        free = (~inpainting.mask).expand_as(error).to(error.dtype)
        squares = error.square() * free
        if self.first_weights is not None:
            weights = self.first_weights.to(squares.device)
            squares = torch.cat([squares[:, :1] * weights, squares[:, 1:]], dim=1)
        if self.loss_floor is not None:
            _, sigma = self._scales(steps)
            squares = squares / (sigma.square() + self.loss_floor)
        loss: Tensor = squares.sum() / free.sum().clamp(min=1)
        return loss

    def noised(
        self,
        clean: Tensor,
        inpainting: Inpainting | None,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return clean trajectories with noise of random denoising steps.

        Args:
            clean: `[batch, horizon, transition]`, normalized.
            inpainting: Entries that get no noise, if there are any.
            generator: Source of steps and noise, advanced by the call.

        Returns:
            Noisy trajectories, their steps `[batch]`, and the noise.
        """
        num_steps = self.schedule.num_denoising_steps
        steps = torch.randint(num_steps, (clean.shape[0],), generator=generator)
        noise = torch.randn(clean.shape, generator=generator, dtype=clean.dtype)
        steps, noise = steps.to(clean.device), noise.to(clean.device)
        noisy = self.add_noise(clean, noise, steps)
        return noisy if inpainting is None else inpainting.apply(noisy), steps, noise

    def add_noise(self, clean: Tensor, noise: Tensor, i: Tensor) -> Tensor:
        """Return $x_i$, the clean trajectories with noise of steps `i` `[batch]`."""
        signal, sigma = self._scales(i)
        return signal * clean + sigma * noise

    def _output(self, noisy: Tensor, i: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return a residual network's output, at steps `[batch]`, and what it is for.

        Returns:
            The output, the current state, and the noisy deviations from it.
        """
        start, (signal, _) = self._start(noisy), self._scales(i)
        deviations = noisy - signal * start
        output = self.network(deviations, i, start=start[:, 0], signal=signal[:, 0, 0])
        return output, start, deviations

    def _start(self, trajectories: Tensor) -> Tensor:
        """Return the current state `[batch, 1, transition]`, zero in other columns."""
        start = torch.zeros_like(trajectories[:, :1])
        start[..., self.state] = trajectories[:, :1, self.state]
        return start

    def _scales(self, i: Tensor) -> tuple[Tensor, Tensor]:
        """Return signal and noise `[batch, 1, 1]` at denoising steps `[batch]`."""
        steps = i.cpu()
        signal = self.schedule.signal(steps)[:, None, None]
        sigma = self.schedule.noise(steps)[:, None, None]
        return signal.to(i.device), sigma.to(i.device)

    def _target(self, clean: Tensor, noise: Tensor, i: Tensor) -> Tensor:
        """Return the correct network output u."""
        if self.prediction_target == "clean":
            return clean
        if self.prediction_target == "noise":
            return noise
        signal, sigma = self._scales(i)
        return signal * noise - sigma * clean

    def _clean(self, output: Tensor, noisy: Tensor, i: Tensor) -> Tensor:
        """Return the clean trajectories that follow from a network output."""
        if self.prediction_target == "clean":
            return output
        signal, sigma = self._scales(i)
        if self.prediction_target == "noise":
            return (noisy - sigma * output) / signal
        return signal * noisy - sigma * output
