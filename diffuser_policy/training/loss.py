"""The losses of a planner's networks, as one module.

One forward call draws a batch and returns the losses: wrapped for several processes,
this is the call that synchronizes gradients. All randomness of step s on process r
comes from a generator seeded by (seed, s, r), so a step can be repeated exactly
without saving any random state.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffuser_policy.config import TrainConfig, WindowConfig
from diffuser_policy.data.steps import StepDataset
from diffuser_policy.data.windows import WindowDataset
from diffuser_policy.diffusion.denoiser import Denoiser
from diffuser_policy.networks.critic import Critic
from diffuser_policy.networks.inverse_dynamics import InverseDynamics
from diffuser_policy.networks.time_to_goal import TimeToGoal
from diffuser_policy.networks.value import ValueNetwork
from diffuser_policy.numerics import stream_generator


def shortest_window(window: WindowConfig, multiple: int) -> int:
    """Return the length of the shortest window, in planning steps.

    Args:
        window: Says between which lengths to draw.
        multiple: Planning steps come in multiples of this number.
    """
    shortest = -(-window.min_planning_steps // multiple) * multiple
    return min(shortest, window.num_planning_steps)


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
    longest, shortest = window.num_planning_steps, shortest_window(window, multiple)
    if shortest == longest:
        return longest
    choices = (longest - shortest) // multiple + 1
    generator = stream_generator(seed, step)
    drawn = int(torch.randint(choices, (1,), generator=generator))
    return shortest + drawn * multiple


class PlannerLoss(nn.Module):
    """Loss of the denoiser, and of the networks that are trained beside it."""

    def __init__(
        self,
        denoiser: Denoiser,
        time_to_goal: TimeToGoal | None,
        *,
        value: ValueNetwork | None = None,
        inverse_dynamics: InverseDynamics | None = None,
        critic: Critic | None = None,
        windows: WindowDataset,
        steps: StepDataset | None = None,
        config: TrainConfig,
        device: torch.device,
    ) -> None:
        """Hold the networks and the data.

        Args:
            denoiser: Trained on windows.
            time_to_goal: Trained on hindsight pairs of the same data.
            value: Trained on the windows of the denoiser, which know their returns.
            inverse_dynamics: Trained on pairs of states of the same data.
            critic: Trained on `steps` of the same data, toward the values of
                `slow_critic`, which has to be set.
            windows: Data, on the CPU.
            steps: Likewise.
            config: Batch sizes, lengths, seed.
            device: Where the networks are.
        """
        super().__init__()
        self.denoiser, self.time_to_goal = denoiser, time_to_goal
        self.value, self.inverse_dynamics = value, inverse_dynamics
        self.critic, self.steps = critic, steps
        self.slow_critic: tuple[Critic, ...] = ()  # a tuple: it is not trained
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
        generator = stream_generator(config.seed, step, 1 + process, accumulation)
        batch_size = config.optimization.batch_size
        returns = None
        if self.value is not None:
            drawn, returns = self.windows.sample_valued(batch_size, length, generator)
        else:
            drawn = self.windows.sample(batch_size, length, generator)
        clean = drawn.to(self.device)
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
        if self.value is not None and returns is not None:
            noisy, i, _ = self.denoiser.noised(clean, given, generator)
            losses["value"] = self.value.loss(noisy, i, returns.to(self.device))
        if self.critic is not None and self.steps is not None and config.critic:
            [slow] = self.slow_critic
            losses["critic"] = self.critic.loss(
                self.steps.sample(batch_size, generator, self.device),
                slow,
                expectile=config.critic.expectile,
                discount=config.critic.discount,
            )
        if self.inverse_dynamics is not None and config.inverse_dynamics is not None:
            pairs = self.windows.sample_transitions(
                config.inverse_dynamics.batch_size,
                config.inverse_dynamics.max_steps,
                generator,
            )
            losses["inverse_dynamics"] = self.inverse_dynamics.loss(
                *(part.to(self.device) for part in pairs)
            )
        return losses
