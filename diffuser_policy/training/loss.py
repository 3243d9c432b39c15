"""The losses of a planner's networks, as one module.

One forward call draws a batch and returns the losses: wrapped for several processes,
this is the call that synchronizes gradients. All randomness of step s on process r
comes from a generator seeded by (seed, s, r), so a step can be repeated exactly
without saving any random state.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from diffuser_policy.config import TrainConfig, WindowConfig
from diffuser_policy.data.windows import WindowDataset
from diffuser_policy.diffusion.denoiser import Denoiser
from diffuser_policy.networks.time_to_goal import TimeToGoal


def step_generator(seed: int, step: int, *stream: int) -> torch.Generator:
    """Return the random source of one training step.

    Args:
        seed: The run's seed.
        step: Gradient step.
        stream: Further numbers that tell sources apart, such as process and batch.
    """
    words = np.random.SeedSequence((seed, step, *stream)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0]))


def draw_num_planning_steps(
    window: WindowConfig, seed: int, step: int, multiple: int
) -> int:
    """Return the window length of one training step, the same on every process.

    Args:
        window: Says between which lengths to draw.
        seed: The run's seed.
        step: Gradient step.
        multiple: Planning steps come in multiples of this number.
    """
    longest = window.num_planning_steps
    shortest = -(-window.min_planning_steps // multiple) * multiple
    if shortest >= longest:
        return longest
    choices = (longest - shortest) // multiple + 1
    generator = step_generator(seed, step)
    drawn = int(torch.randint(choices, (1,), generator=generator))
    return shortest + drawn * multiple


class PlannerLoss(nn.Module):
    """Loss of the denoiser and, if there is one, of the time-to-goal network."""

    def __init__(
        self,
        denoiser: Denoiser,
        time_to_goal: TimeToGoal | None,
        *,
        windows: WindowDataset,
        config: TrainConfig,
        device: torch.device,
    ) -> None:
        """Hold the networks and the data.

        Args:
            denoiser: Trained on windows.
            time_to_goal: Trained on hindsight pairs of the same data.
            windows: Data, on the CPU.
            config: Batch sizes, lengths, seed.
            device: Where the networks are.
        """
        super().__init__()
        self.denoiser, self.time_to_goal = denoiser, time_to_goal
        self.windows, self.config, self.device = windows, config, device

    def forward(self, step: int, process: int, accumulation: int) -> dict[str, Tensor]:
        """Return the scalar loss of every network on a fresh batch.

        Args:
            step: Gradient step.
            process: Rank of this process.
            accumulation: Which of the batches that make up one gradient step.
        """
        config = self.config
        length = draw_num_planning_steps(
            config.window, config.seed, step, self.denoiser.horizon_multiple
        )
        generator = step_generator(config.seed, step, 1 + process, accumulation)
        batch_size = config.optimization.batch_size
        clean = self.windows.sample(batch_size, length, generator).to(self.device)
        given = self.windows.conditions(clean)
        losses = {"denoiser": self.denoiser.loss(clean, given, generator)}
        if self.time_to_goal is not None and config.time_to_goal is not None:
            settings = config.time_to_goal
            # Half of the pairs are at most a tenth of the longest time apart. Drawn
            # evenly, nearly all would be far apart, and the time to a goal at arm's
            # length, where a detour costs most, would be learned last.
            near, longest = settings.batch_size // 2, settings.max_steps
            sample = self.windows.sample_pairs
            close = sample(near, max(1, longest // 10), generator)
            every = sample(settings.batch_size - near, longest, generator)
            observations, goals, times = (
                torch.cat(parts).to(self.device)
                for parts in zip(close, every, strict=True)
            )
            losses["time_to_goal"] = self.time_to_goal.loss(
                observations, goals, times, expectile=settings.expectile
            )
        return losses
