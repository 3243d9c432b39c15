"""Training a planner: its denoiser, and the networks that are trained beside it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from diffuser_policy.build import PlannerNetworks, config_featurizer
from diffuser_policy.checkpoint import write_planner
from diffuser_policy.columns.normalizers import Normalizer
from diffuser_policy.config import (
    COMPANIONS,
    PolicyConfig,
    TrainConfig,
    WindowConfig,
)
from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.data.returns import return_scale, returns_to_go
from diffuser_policy.data.steps import StepDataset
from diffuser_policy.data.windows import (
    ShortRunsWarning,
    WindowDataset,
    in_planning_columns,
)
from diffuser_policy.errors import ConfigError
from diffuser_policy.networks.critic import Values
from diffuser_policy.networks.unet import TemporalUNet
from diffuser_policy.numerics import plain_arithmetic, stream_generator
from diffuser_policy.policy import DiffuserPolicy
from diffuser_policy.settings import to_json
from diffuser_policy.training.derive import guide_of, initial_networks, policy_config
from diffuser_policy.training.processes import Processes
from diffuser_policy.training.run import TrainingRun
from diffuser_policy.words import counted


class Trainer(TrainingRun[PlannerNetworks]):
    """Trains the networks of one planner and writes it to a folder."""

    unimportant = ("guide", "planner", "execution")

    @plain_arithmetic(gradients=True)
    def __init__(
        self,
        config: TrainConfig,
        flat: FlatDataset,
        output: str | Path,
        *,
        device: str = "auto",
        processes: Processes | None = None,
    ) -> None:
        """Build networks and data, and restore the latest checkpoint if there is one.

        Args:
            config: Settings; saved with the planner.
            flat: The data.
            output: Folder of the run, created on the first save.
            device: "auto" takes a GPU if there is one.
            processes: How several processes share the work; one process if not given.

        Raises:
            ConfigError: The folder holds a run with other settings or other data, or
                no policy could plan and act with these settings.
            DatasetError: Data without a window of this length, without the bounds of
                actions, or, for a value network, with the same reward everywhere.
            UnknownNameError: No guide or featurizer of a name.
            FeaturizerError: A featurizer that fails, or does not suit the data.
            GuideError: A guide that cannot be read.
            MissingColumnsError: A guide that asks for columns that plans do not have.
            CheckpointError: The folder holds a damaged checkpoint.
            StorageError: The folder cannot be read or written.
        """
        self.config = config
        processes = processes or Processes.single(device)
        self.policy_config, networks, self.windows = untrained(config, flat)
        self.steps: StepDataset | None = None
        if networks.critic is not None:
            self.steps = StepDataset(flat, self.windows, self.policy_config.layout)
        super().__init__(
            networks.to(processes.device),
            seed=config.seed,
            optimization=config.optimization,
            settings={**to_json(config), "data": flat.facts},
            output=output,
            processes=processes,
        )
        # What would be saved has to work: find out now, not when training is over.
        usable_policy(config, self.policy_config, self.planner_networks)

    @property
    def scaling(self) -> str:
        """End of the advice in an error: how to scale the data down, if it was not."""
        if self.config.window.normalizer != "identity":
            return ""
        return (
            ", or with columns of the data scaled down (--window.normalizer limits or "
            "gaussian)"
        )

    @property
    def planner_networks(self) -> PlannerNetworks:
        """The averaged networks, with which to plan."""
        return self.average

    def losses(self, step: int, generator: Generator) -> dict[str, Tensor]:
        """Return the losses of the denoiser and of the networks beside it."""
        config, networks, device = self.config, self.networks, self.processes.device
        denoiser, batch_size = networks.denoiser, config.optimization.batch_size
        length = draw_num_planning_steps(
            config.window, config.seed, step, denoiser.horizon_multiple
        )
        returns = None
        if networks.value is not None:
            drawn, returns = self.windows.sample_valued(batch_size, length, generator)
        else:
            drawn = self.windows.sample(batch_size, length, generator)
        clean = drawn.to(device)
        given = self.windows.conditions(clean)
        losses = {"denoiser": denoiser.loss(clean, given, generator)}
        if networks.time_to_goal is not None and config.time_to_goal is not None:
            settings = config.time_to_goal
            # Half of the pairs are at most a tenth of the longest time apart. Drawn
            # evenly, nearly all would be far apart, and the time to a goal at arm's
            # length, where a detour costs most, would be learned last.
            near, longest = settings.batch_size // 2, settings.max_steps
            sample = self.windows.sample_pairs
            close = sample(near, max(1, longest // 10), generator)
            every = sample(settings.batch_size - near, longest, generator)
            observations, goals, times = (
                torch.cat(parts).to(device) for parts in zip(close, every, strict=True)
            )
            losses["time_to_goal"] = networks.time_to_goal.loss(
                observations, goals, times, expectile=settings.expectile
            )
        if networks.value is not None and returns is not None:
            noisy, i, _ = denoiser.noised(clean, given, generator)
            losses["value"] = networks.value.loss(noisy, i, returns.to(device))
        critic, slow, steps = networks.critic, self.average.critic, self.steps
        if (
            critic is not None
            and slow is not None
            and steps is not None
            and config.critic is not None
        ):
            losses["critic"] = critic.loss(
                steps.sample(batch_size, generator, device),
                slow,
                expectile=config.critic.expectile,
                discount=config.critic.discount,
            )
        if (
            networks.inverse_dynamics is not None
            and config.inverse_dynamics is not None
        ):
            pairs = self.windows.sample_transitions(
                config.inverse_dynamics.batch_size,
                config.inverse_dynamics.max_steps,
                generator,
            )
            losses["inverse_dynamics"] = networks.inverse_dynamics.loss(
                *(part.to(device) for part in pairs)
            )
        return losses

    def critic_values(self) -> Values | None:
        """Return what the averaged critic says of the data; None without a critic."""
        critic, settings = self.average.critic, self.config.critic
        if self.steps is None or critic is None or settings is None:
            return None
        return self.steps.values(critic, settings.discount)

    def critic_is_dead(self) -> bool:
        """Return whether the critic or its average says the same of everything."""
        critics = (self.networks.critic, self.average.critic)
        return self.steps is not None and any(
            self.steps.dead(critic) for critic in critics if critic is not None
        )

    def write_planner(self) -> None:
        """Write the planner with averaged weights."""
        write_planner(
            self.output,
            self.policy_config,
            self.planner_networks,
            provenance={"steps": self.step, "processes": self.processes.num_processes},
        )

    def clipped(self) -> list[nn.Module]:
        """Return the parts of the planner: none may scale another's gradients."""
        every = [getattr(self.networks, name) for name in ("denoiser", *COMPANIONS)]
        there = [part for part in every if part is not None]
        return [part for part in there if next(part.parameters(), None) is not None]


def usable_policy(
    config: TrainConfig, made: PolicyConfig, networks: PlannerNetworks
) -> DiffuserPolicy:
    """Return the policy that a training saves.

    Args:
        config: Settings of the training.
        made: The planner's, as `untrained` returns them.
        networks: Its networks.

    Raises:
        ConfigError: No policy could plan and act with these settings, or the guide has
            no effect.
        MissingColumnsError: The guide asks for columns that plans do not have.
    """
    policy = DiffuserPolicy(made, networks)
    policy.planner.check_guide()
    if config.guide:
        policy.with_guide(guide_of(config))  # refuses one without an effect
    return policy


def untrained(
    config: TrainConfig, flat: FlatDataset
) -> tuple[PolicyConfig, PlannerNetworks, WindowDataset]:
    """Return what a training starts from: settings, networks, and windows of the data.

    Args:
        config: Settings.
        flat: The data.

    Raises:
        ConfigError: Settings that don't fit the data, or each other.
        DatasetError: No window in the data, or nothing to learn for a network.
    """
    made = policy_config(config, flat)
    planned = in_planning_columns(flat, config_featurizer(made))
    networks = initial_networks(made, planned, config.seed)
    shortest = shortest_window(made.window, networks.denoiser.horizon_multiple)
    network = networks.denoiser.network
    if isinstance(network, TemporalUNet):  # others need no shortest plan
        network.check_horizon(shortest)
    returns = None
    if config.value is not None and networks.value is not None:
        discount, penalty = config.value.discount, config.value.termination_penalty
        returns = returns_to_go(flat, discount, penalty)
        networks.value.set_scale(*return_scale(returns, flat))
    windows = WindowDataset(
        planned,
        best_share=made.window.best_share,
        returns=returns,
        **window_settings(made, networks.normalizer),
    )
    refuse_pinned(windows, made.window)
    if config.critic is not None and networks.critic is not None:
        judged = returns_to_go(flat, config.critic.discount)
        networks.critic.set_scale(*return_scale(judged, flat))
        StepDataset(flat, windows, made.layout)  # refuses plans without actions
    if networks.inverse_dynamics is not None:
        networks.inverse_dynamics.set_scale(*windows.transition_scales())
    left_out = windows.num_left_out(shortest)
    if left_out:
        warnings.warn(
            f"{left_out:,} of {windows.num_used:,} runs are shorter than a window, and "
            f"nothing is learned from them. To use them, pad them "
            f"(--window.padding repeat, WindowConfig.padding), or plan a shorter "
            f"horizon (--window.horizon, --window.min-horizon).",
            ShortRunsWarning,
            stacklevel=3,
        )
    return made, networks, windows


def refuse_pinned(windows: WindowDataset, window: WindowConfig) -> None:
    """Refuse windows whose every entry is pinned: a denoiser learns the free ones.

    Raises:
        ConfigError: Nothing is free in the longest window.
    """
    longest = window.num_planning_steps
    example = torch.zeros(1, longest, windows.layout.transition_dim)
    if windows.conditions(example).mask.all():
        raise ConfigError(
            f"There is nothing to learn in windows of "
            f"{counted(longest, 'planning step')} without actions: training pins every "
            f"column (hindsight_goal={window.hindsight_goal!r}). Plan actions "
            f"(--window.actions) or a longer horizon (--window.horizon), or pin less "
            f"at the last planning step (--window.hindsight-goal)."
        )


def window_settings(config: PolicyConfig, normalizer: Normalizer) -> dict[str, Any]:
    """Return the arguments that cut a planner's data into windows."""
    window = config.window
    return {
        "layout": config.layout,
        "normalizer": normalizer,
        "stride": window.stride,
        "padding": window.padding,
        "max_planning_steps": window.num_planning_steps,
        "hindsight_goal": window.hindsight_goal,
    }


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
