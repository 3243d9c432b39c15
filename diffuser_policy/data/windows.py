"""Windows: length-horizon slices of continuous runs, the training data of a planner.

`WindowDataset` normalizes all rows once into one table `[num_rows, transition]`.
A window of H planning steps with stride k is the rows s, s+k, …, s+(H-1)k of one run:

    run   | 0 1 2 3 4 5 6 7 8 9 …          (env steps)
    window  s     s+k   s+2k                (planning steps)

Its first row stands for a window. `view` reads windows as views of the table, and
`sample` gathers some into a batch; they never exist as Python objects.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from diffuser_policy.choices import HindsightGoal, Padding
from diffuser_policy.columns.features import Featurizer, Identity, planning_columns
from diffuser_policy.columns.layout import TrajectoryLayout
from diffuser_policy.columns.normalizers import Normalizer
from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.diffusion.conditions import Inpainting
from diffuser_policy.errors import ConfigError, DatasetError


class WindowDataset:
    """Normalized windows of a flat dataset.

    Attributes:
        rows: `[num_rows, transition]`, normalized; the only copy of the data.
        run_starts: `[num_runs + 1]` row ranges of the continuous runs, with padding.
        run_lengths: `[num_runs]` rows of each run, without padding.
    """

    def __init__(
        self,
        flat: FlatDataset,
        *,
        layout: TrajectoryLayout,
        normalizer: Normalizer,
        stride: int = 1,
        padding: Padding = "none",
        max_planning_steps: int = 1,
        hindsight_goal: HindsightGoal = "none",
    ) -> None:
        """Normalize the data and, if asked, pad the runs.

        Args:
            flat: Rows of all runs; for derived columns, from `in_planning_columns`.
            layout: The columns of a trajectory.
            normalizer: Fitted to trajectory columns.
            stride: Env steps between two planning steps.
            padding: "repeat" continues every run with its last observation and zero
                actions, so that windows may reach past its end.
            max_planning_steps: Length of the longest window to be read.
            hindsight_goal: What `conditions` pins at the last planning step: nothing,
                the goal columns, or the whole observation.

        Raises:
            ConfigError: A stride below one, or a goal that the layout does not name.
            DatasetError: No run is as long as the longest window.
        """
        if stride < 1:
            raise ConfigError(f"stride must be at least 1 env step, got {stride}.")
        if hindsight_goal == "goal" and not layout.goal_conditioned:
            raise ConfigError(
                "hindsight_goal='goal' needs a layout with the alias 'goal'; this "
                "dataset has no goal columns. Use 'observation' or 'none'."
            )
        self.layout, self.stride, self.hindsight_goal = layout, stride, hindsight_goal
        with torch.no_grad():
            self.rows = normalizer.normalize(torch.from_numpy(join_rows(flat, layout)))
        self.run_starts = torch.from_numpy(np.asarray(flat.run_starts))
        self.run_lengths = self.run_starts.diff()
        if padding == "repeat":
            self._pad((max_planning_steps - 1) * stride, normalizer)
        if self.num_windows(max_planning_steps) == 0:
            runs = self.run_starts.diff().tolist()
            raise DatasetError(
                f"The longest continuous run has {max(runs, default=0)} steps, but a "
                f"window of {max_planning_steps} planning steps with stride {stride} "
                f"spans {(max_planning_steps - 1) * stride + 1} env steps. Plan a "
                f"shorter horizon, use padding='repeat', or collect longer runs."
            )

    def num_windows(self, num_planning_steps: int) -> int:
        """Return how many windows of that length the runs hold."""
        return int(self._windows_per_run(num_planning_steps).sum())

    def starts(self, num_planning_steps: int) -> Tensor:
        """Return the first rows of all windows of that length, in order."""
        counts = self._windows_per_run(num_planning_steps)
        return self._rows_of(torch.arange(int(counts.sum())), counts)

    def view(self, num_planning_steps: int) -> Tensor:
        """Return `[num_rows - span, horizon, transition]`, a view without a copy.

        Entry s is the window that starts at row s. Only the windows of `starts` stay
        within one run.
        """
        span = (num_planning_steps - 1) * self.stride + 1
        return self.rows.unfold(0, span, 1).transpose(1, 2)[:, :: self.stride]

    def sample(
        self, batch_size: int, num_planning_steps: int, generator: torch.Generator
    ) -> Tensor:
        """Return windows drawn uniformly from all windows of that length.

        Args:
            batch_size: Number of windows.
            num_planning_steps: Length of each.
            generator: Source of randomness, advanced by the call.

        Returns:
            `[batch, horizon, transition]`, normalized.
        """
        counts = self._windows_per_run(num_planning_steps)
        ranks = torch.randint(int(counts.sum()), (batch_size,), generator=generator)
        offsets = torch.arange(num_planning_steps) * self.stride
        return self.rows[self._rows_of(ranks, counts)[:, None] + offsets]

    def sample_pairs(
        self, batch_size: int, max_steps: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return hindsight pairs for `TimeToGoal`.

        Args:
            batch_size: Number of pairs.
            max_steps: Greatest time between the two, in env steps.
            generator: Source of randomness, advanced by the call.

        Returns:
            Observations `[batch, observation]`, goals `[batch, goal]` reached later in
            the same run, and times `[batch]` in env steps.
        """
        counts = (self.run_lengths - 1).clamp(min=0)
        ranks = torch.randint(int(counts.sum()), (batch_size,), generator=generator)
        starts = self._rows_of(ranks, counts)
        run = torch.searchsorted(self.run_starts, starts, right=True) - 1
        last = self.run_starts[run] + self.run_lengths[run] - 1
        room = (last - starts).clamp(max=max_steps)
        uniform = torch.rand(batch_size, generator=generator, dtype=torch.float32)
        times = 1 + (uniform * room).long().clamp(max=room - 1)
        goal_columns = list(self.layout.columns("goal"))
        goals = self.rows[starts + times][:, goal_columns]
        return self.rows[starts][:, self.layout.observations], goals, times.float()

    def conditions(self, windows: Tensor) -> Inpainting:
        """Return the values that training pins in each window.

        These are the first observation and, with `hindsight_goal`, the last position
        or observation: any state that the data reaches serves as an intended goal.

        Args:
            windows: `[batch, horizon, transition]`, normalized.
        """
        mask = torch.zeros(1, *windows.shape[1:], dtype=torch.bool)
        mask[:, 0, self.layout.observations] = True
        if self.hindsight_goal != "none":
            mask[:, -1, list(self.layout.columns(self.hindsight_goal))] = True
        return Inpainting(mask.to(windows.device), windows)

    def _windows_per_run(self, num_planning_steps: int) -> Tensor:
        span = (num_planning_steps - 1) * self.stride
        fitting = (self.run_starts.diff() - span).clamp(min=0)
        return torch.minimum(fitting, self.run_lengths)

    def _rows_of(self, ranks: Tensor, counts: Tensor) -> Tensor:
        """Return the first row of the windows with these ranks over all runs."""
        ends = counts.cumsum(0)
        run = torch.searchsorted(ends, ranks, right=True)
        return self.run_starts[run] + ranks - (ends - counts)[run]

    def _pad(self, num_rows: int, normalizer: Normalizer) -> None:
        """Continue every run with copies of its last row and zero actions."""
        pieces = []
        still = normalizer.normalize(
            torch.zeros(self.layout.transition_dim, dtype=torch.float32)
        )
        for begin, end in zip(
            self.run_starts[:-1].tolist(), self.run_starts[1:].tolist(), strict=True
        ):
            last = self.rows[end - 1].clone()
            last[self.layout.actions] = still[self.layout.actions]
            pieces += [self.rows[begin:end], last.expand(num_rows, -1)]
        self.rows = torch.cat(pieces)
        runs = torch.arange(len(self.run_starts))
        self.run_starts = self.run_starts + runs * num_rows


def in_planning_columns(flat: FlatDataset, featurizer: Featurizer) -> FlatDataset:
    """Return the dataset with planning columns in place of observations.

    Args:
        flat: The dataset, in the environment's observations.
        featurizer: Maps them; `Identity` returns the dataset unchanged.

    Raises:
        FeaturizerError: As `planning_columns`.
    """
    if isinstance(featurizer, Identity):
        return flat
    planned = planning_columns(featurizer, flat.fields["observation"])
    fields = {**flat.fields, "observation": planned}
    return dataclasses.replace(flat, fields=fields)


def join_rows(flat: FlatDataset, layout: TrajectoryLayout) -> np.ndarray:
    """Return trajectory rows `[num_rows, transition]` in environment units, float32.

    Raises:
        DatasetError: The dataset's columns differ from the layout's.
    """
    parts = [flat.fields["observation"]]
    if flat.has_goals and layout.observation_dim > flat.observation_size:
        parts.append(flat.fields["achieved_goal"])
    if layout.action_dim:
        parts.insert(0, flat.fields["action"])
    rows = np.concatenate(parts, axis=1, dtype=np.float32)
    if rows.shape[1] != layout.transition_dim:
        raise DatasetError(
            f"The dataset has {rows.shape[1]} trajectory columns, the layout names "
            f"{layout.transition_dim}."
        )
    return rows
