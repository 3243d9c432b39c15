"""Training a value network for a planner that is trained already.

A batch is made like the planner's own: windows of its lengths, noised to random
denoising steps of its schedule, with its conditions written back. The value network
learns the return-to-go of the first row.
"""

from __future__ import annotations

import copy
import dataclasses
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffuser_policy.build import (
    PlannerNetworks,
    build_value_network,
    config_featurizer,
    seeded,
)
from diffuser_policy.config import (
    PolicyConfig,
    ValueTrainConfig,
    WindowConfig,
)
from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.data.windows import in_planning_columns
from diffuser_policy.diffusion.conditions import Inpainting
from diffuser_policy.errors import DatasetError
from diffuser_policy.networks.value import ValueNetwork
from diffuser_policy.training.companion import (
    CompanionLoss,
    CompanionTrainer,
    check_spaces,
)
from diffuser_policy.training.loss import draw_num_planning_steps
from diffuser_policy.training.processes import Processes
from diffuser_policy.training.state import data_facts
from diffuser_policy.training.trainer import window_settings
from diffuser_policy.training.value_data import ValuedWindows, returns_to_go


class ValueLoss(CompanionLoss):
    """Loss of a value network on a fresh batch of noisy windows."""

    part = "value"

    def __init__(
        self, *parts: Any, windows: ValuedWindows, window: WindowConfig, **settings: Any
    ) -> None:
        """Hold the network and the data.

        Args:
            parts: As for `CompanionLoss`.
            windows: Data, on the CPU.
            window: Between which lengths the planner plans.
            settings: As for `CompanionLoss`.
        """
        super().__init__(*parts, **settings)
        self.windows, self.window = windows, window

    def draw(
        self, step: int, generator: torch.Generator
    ) -> tuple[Tensor, Inpainting, Tensor]:
        """Return windows, their conditions, and the return-to-go of their first row."""
        [denoiser] = self._process
        length = draw_num_planning_steps(
            self.window, self.config.seed, step, denoiser.horizon_multiple
        )
        batch_size = self.config.optimization.batch_size
        clean, returns = self.windows.sample_valued(batch_size, length, generator)
        return clean, self.windows.conditions(clean), returns


class ValueTrainer(CompanionTrainer[ValueNetwork]):
    """Trains a value network and writes it to a folder, with the planner it values."""

    part = "value"
    config: ValueTrainConfig

    def __init__(
        self,
        config: ValueTrainConfig,
        planner: tuple[PolicyConfig, PlannerNetworks],
        flat: FlatDataset,
        output: Path,
        *,
        processes: Processes | None = None,
    ) -> None:
        """Build network and data, and restore the latest checkpoint if there is one.

        Args:
            config: Settings; saved with the planner.
            planner: What `read_planner` returns; left as it is.
            flat: The data, with rewards.
            output: Folder of the run, created on the first save.
            processes: How several processes share the work; one process if not given.

        Raises:
            ConfigError: The folder holds a run with other settings, data or planner.
            SpaceMismatchError: Data of another environment than the planner's.
            DatasetError: Data without rewards to learn from.
        """
        processes = processes or Processes.single()
        planner_config, networks = planner[0], copy.deepcopy(planner[1])
        featurizer = config_featurizer(planner_config)
        check_spaces(planner_config, flat, featurizer)
        valued = dataclasses.replace(planner_config, value=config.value)
        discount, penalty = config.value.discount, config.value.termination_penalty
        returns = returns_to_go(flat, discount, penalty)
        with seeded(config.seed):
            network = build_value_network(valued)
        network.set_scale(*_scale(returns, flat))
        network.to(processes.device)
        settings = window_settings(valued, networks.normalizer)
        planned = in_planning_columns(flat, featurizer)
        loss = ValueLoss(
            network,
            networks.denoiser,
            windows=ValuedWindows(planned, returns=returns, **settings),
            window=planner_config.window,
            config=config,
            device=processes.device,
        )
        super().__init__(
            network,
            loss,
            config=config,
            planner=(valued, networks),
            data=value_data_facts(flat),
            output=output,
            processes=processes,
        )

    @property
    def value(self) -> ValueNetwork:
        """The averaged value network, with which to rank and to steer."""
        return self.average.average


def value_data_facts(flat: FlatDataset) -> dict[str, int]:
    """Return what tells a dataset from another one, rewards included."""
    rewards = zlib.crc32(np.ascontiguousarray(flat.fields["reward"]).data)
    return {**data_facts(flat), "rewards": rewards}


def _scale(returns: np.ndarray, flat: FlatDataset) -> tuple[float, float]:
    """Return mean and standard deviation of the targets."""
    mean = float(returns.mean(dtype=np.float64))
    std = float(returns.std(dtype=np.float64))
    if std <= 1e-6 * max(abs(mean), 1e-12):
        raise DatasetError(
            f"All returns of {flat!r} are {mean:g}: no trajectory is better than "
            f"another, and there is no value to learn."
        )
    return mean, std
