"""Windows: length-horizon slices of continuous runs, the training data of a planner.

`WindowDataset` joins and normalizes rows when a batch is drawn: the data stay where
they are, in a file if the dataset is mapped from one (`FlatDataset.load`).
A window of H planning steps with stride k is the rows s, s+k, …, s+(H-1)k of one run:

    run   | 0 1 2 3 4 5 6 7 8 9 …          (env steps)
    window  s     s+k   s+2k                (planning steps)

Its first row stands for a window; windows never exist as Python objects.
"""

from __future__ import annotations

import copy
import dataclasses
import mmap
from pathlib import Path
from typing import Self, get_args

import numpy as np
import torch
from torch import Tensor

from diffuser_policy.choices import HindsightGoal, Padding
from diffuser_policy.columns.features import Featurizer, Identity, planning_columns
from diffuser_policy.columns.layout import TrajectoryLayout
from diffuser_policy.columns.normalizers import Normalizer
from diffuser_policy.data.flat import FlatDataset, release
from diffuser_policy.diffusion.conditions import Inpainting
from diffuser_policy.errors import ConfigError, DatasetError, UnknownNameError
from diffuser_policy.words import counted

KEPT = 2**28  # bytes of a mapped dataset that may stay in memory
AT_ONCE = 64  # rows, or windows, between two looks at how much that is
STATM = Path("/proc/self/statm")
SCALE_PAIRS = 100_000  # that the spread of actions and changes is estimated from


class ShortRunsWarning(UserWarning):
    """Some episodes are too short for any window, and nothing is learned from them."""


class WindowDataset:
    """Normalized windows of a flat dataset.

    Attributes:
        run_starts: `[num_runs + 1]` row ranges of the continuous runs, with padding.
        run_lengths: `[num_runs]` rows of each run, without padding.
        unpadded_starts: `[num_runs + 1]` row ranges of the runs, without padding.
        returns: `[rows without padding]` return-to-go, in units of reward, if given.
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
        best_share: float = 1.0,
        returns: np.ndarray | None = None,
    ) -> None:
        """Hold the data and, if asked, pad the runs.

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
            best_share: Windows are cut from this share of the runs, those with the
                highest returns.
            returns: Return-to-go of every row of `flat`, for `sample_valued`.

        Raises:
            ConfigError: A stride below one, or a goal that the layout does not name.
            UnknownNameError: A padding or hindsight goal that does not exist.
            DatasetError: No run of that share is as long as the longest window.
        """
        if stride < 1:
            raise ConfigError(f"stride must be at least 1 env step, got {stride}.")
        for kind, name, known in (
            ("padding", padding, get_args(Padding)),
            ("hindsight goal", hindsight_goal, get_args(HindsightGoal)),
        ):
            if name not in known:
                raise UnknownNameError(kind, str(name), known)
        if hindsight_goal == "goal" and not layout.goal_conditioned:
            raise ConfigError(
                "hindsight_goal='goal' needs a layout with the alias 'goal', and this "
                "dataset has no goal columns. Use 'observation' or 'none': "
                "--window.hindsight-goal, or WindowConfig(hindsight_goal=…)."
            )
        self.layout, self.stride, self.hindsight_goal = layout, stride, hindsight_goal
        self._rows = JoinedRows.of(flat, layout)
        self._actions = JoinedRows([flat.fields["action"]])
        self._normalizer = copy.deepcopy(normalizer).cpu()  # batches are made on CPUs
        self.returns = None if returns is None else torch.from_numpy(returns)
        # Padding moves the rows that windows count, but not those of `flat`.
        self.unpadded_starts = torch.from_numpy(np.array(flat.run_starts))
        self.run_lengths = self.unpadded_starts.diff()
        self._is_used = torch.from_numpy(flat.best_runs(best_share))
        # In errors: runs of other returns may be longer.
        self._share = "" if best_share == 1 else f" of best_share={best_share}"
        self.run_starts = self.unpadded_starts
        if padding == "repeat":
            added = (max_planning_steps - 1) * stride
            numbers = torch.arange(len(self.unpadded_starts))
            self.run_starts = self.unpadded_starts + numbers * added
        if self.num_windows(max_planning_steps) == 0:
            longest = int(self.run_starts.diff()[self._is_used].max())
            raise DatasetError(
                f"The longest continuous run{self._share} has "
                f"{counted(longest, 'step')}, but a window of "
                f"{max_planning_steps:,} planning steps with stride {stride:,} spans "
                f"{(max_planning_steps - 1) * stride + 1:,} env steps. Plan a "
                f"shorter horizon (--window.horizon), use padding='repeat' "
                f"(--window.padding), or collect longer runs."
            )

    def num_windows(self, num_planning_steps: int) -> int:
        """Return how many windows of that length the runs hold."""
        return int(self._windows_per_run(num_planning_steps).sum())

    @property
    def num_used(self) -> int:
        """How many runs windows are cut from."""
        return int(self._is_used.sum())

    def num_left_out(self, num_planning_steps: int) -> int:
        """Return how many of the used runs hold no window of that length."""
        none = self._windows_per_run(num_planning_steps) == 0
        return int((none & self._is_used).sum())

    @torch.no_grad()
    def read(self, rows: Tensor) -> Tensor:
        """Return rows `[..., transition]`, normalized.

        Args:
            rows: `[...]` their numbers, counted with padding.
        """
        if self.run_starts is self.unpadded_starts:
            return self.recorded(rows)
        run = torch.searchsorted(self.run_starts, rows.contiguous(), right=True) - 1
        time, last = rows - self.run_starts[run], self.run_lengths[run] - 1
        index = self.unpadded_starts[run] + torch.minimum(time, last)
        values = torch.from_numpy(self._rows.take(index))
        values[..., self.layout.actions][time > last] = 0.0
        return self._normalizer.normalize(values)

    def recorded(self, rows: Tensor) -> Tensor:
        """Return rows `[..., transition]` of the data, counted without padding."""
        return self._normalizer.normalize(torch.from_numpy(self._rows.take(rows)))

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
        starts = self._sample_starts(batch_size, num_planning_steps, generator)
        return self._windows_at(starts, num_planning_steps)

    def sample_valued(
        self, batch_size: int, num_planning_steps: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return windows as `sample` does, and the return-to-go of their first row.

        Args:
            batch_size: Number of windows.
            num_planning_steps: Length of each.
            generator: Source of randomness, advanced by the call.

        Returns:
            Windows `[batch, horizon, transition]`, normalized, and returns `[batch]`.

        Raises:
            ConfigError: The windows were made without returns.
        """
        if self.returns is None:
            raise ConfigError(
                "These windows have no returns. Pass them: WindowDataset(…, "
                "returns=returns_to_go(…))."
            )
        starts = self._sample_starts(batch_size, num_planning_steps, generator)
        returns = self.returns[self.unpadded(starts)]
        return self._windows_at(starts, num_planning_steps), returns

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
        starts, times = self._pairs(batch_size, max_steps, generator)
        goal_columns = list(self.layout.columns("goal"))
        goals = self.read(starts + times)[:, goal_columns]
        return self.read(starts)[:, self.layout.observations], goals, times.float()

    def sample_transitions(
        self, batch_size: int, max_steps: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return pairs of states for `InverseDynamics`.

        Args:
            batch_size: Number of pairs.
            max_steps: Greatest time between the two, in env steps.
            generator: Source of randomness, advanced by the call.

        Returns:
            The observations an env step earlier `[batch, observation]` (at the start
            of a run: the first ones), observations, those later in the same run, the
            times between `[batch]` in env steps, and the actions `[batch, action]`
            that were taken, in environment units.
        """
        starts, times = self._pairs(batch_size, max_steps, generator)
        run = torch.searchsorted(self.run_starts, starts, right=True) - 1
        before = torch.maximum(starts - 1, self.run_starts[run])
        columns = self.layout.observations
        earlier, states, later = (
            self.read(rows)[:, columns] for rows in (before, starts, starts + times)
        )
        return earlier, states, later, times, self.actions_of(starts)

    def transition_scales(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean and standard deviation of actions, and the size of changes.

        Returns:
            Mean and standard deviation `[action]` of the actions in environment units,
            and the root mean square `[observation]` of what an env step changes in a
            run, normalized.

        Raises:
            DatasetError: All episodes have a single step.
        """
        counts = self._followed()
        total = int(counts.sum())
        ranks = torch.arange(min(total, SCALE_PAIRS))
        if total > SCALE_PAIRS:  # every n-th may be one step of each episode
            source = torch.Generator().manual_seed(0)
            ranks = torch.randint(total, ranks.shape, generator=source).sort().values
        starts = self._rows_of(ranks, counts)
        changes = (self.read(starts + 1) - self.read(starts)).double()
        changes = changes[:, self.layout.observations]
        actions = self.actions_of(starts).double()
        spread = actions.std(dim=0, correction=0)
        return actions.mean(dim=0), spread, changes.square().mean(dim=0).sqrt()

    def actions_of(self, rows: Tensor) -> Tensor:
        """Return recorded actions `[rows, action]`, in environment units."""
        return torch.from_numpy(self._actions.take(self.unpadded(rows)))

    def unpadded(self, rows: Tensor) -> Tensor:
        """Return the same rows in arrays that are not padded."""
        run = torch.searchsorted(self.run_starts, rows, right=True) - 1
        return rows - self.run_starts[run] + self.unpadded_starts[run]

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

    def _sample_starts(
        self, batch_size: int, num_planning_steps: int, generator: torch.Generator
    ) -> Tensor:
        """Return first rows of windows of that length, drawn uniformly."""
        counts = self._windows_per_run(num_planning_steps)
        ranks = torch.randint(int(counts.sum()), (batch_size,), generator=generator)
        return self._rows_of(ranks, counts)

    def _windows_at(self, starts: Tensor, num_planning_steps: int) -> Tensor:
        """Return windows of that length, normalized, by their first rows."""
        offsets = torch.arange(num_planning_steps) * self.stride
        return self.read(starts[:, None] + offsets)

    def _windows_per_run(self, num_planning_steps: int) -> Tensor:
        span = (num_planning_steps - 1) * self.stride
        fitting = (self.run_starts.diff() - span).clamp(min=0) * self._is_used
        return torch.minimum(fitting, self.run_lengths)

    def _pairs(
        self, batch_size: int, max_steps: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return rows with a later one in their run, and how many env steps later."""
        counts = self._followed()
        ranks = torch.randint(int(counts.sum()), (batch_size,), generator=generator)
        starts = self._rows_of(ranks, counts)
        run = torch.searchsorted(self.run_starts, starts, right=True) - 1
        last = self.run_starts[run] + self.run_lengths[run] - 1
        room = (last - starts).clamp(max=max_steps)
        uniform = torch.rand(batch_size, generator=generator, dtype=torch.float32)
        times = 1 + (uniform * room).long().clamp(max=room - 1)
        return starts, times

    def _followed(self) -> Tensor:
        """Return how many rows of each run that is used are followed by another.

        Raises:
            DatasetError: None is.
        """
        counts = (self.run_lengths - 1).clamp(min=0) * self._is_used
        if not counts.any():
            raise DatasetError(
                f"All episodes{self._share} have a single step: no state is followed "
                f"by another, and there is nothing to plan. Record longer episodes."
            )
        return counts

    def _rows_of(self, ranks: Tensor, counts: Tensor) -> Tensor:
        """Return the first row of the windows with these ranks over all runs."""
        ends = counts.cumsum(0)
        run = torch.searchsorted(ends, ranks, right=True)
        return self.run_starts[run] + ranks - (ends[run] - counts[run])


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


class JoinedRows:
    """Trajectory rows in environment units, float32, joined when they are read.

    Attributes:
        shape: `[num_rows, transition]`.
    """

    def __init__(self, parts: list[np.ndarray]) -> None:
        """Hold the parts of rows, `[num_rows, columns]` each."""
        self.parts = parts
        self.shape = len(parts[0]), sum(part.shape[1] for part in parts)
        self._is_small = sum(part.nbytes for part in self.parts) <= KEPT
        self._most = _mapped() + KEPT

    @classmethod
    def of(cls, flat: FlatDataset, layout: TrajectoryLayout) -> Self:
        """Return the rows of a dataset.

        Raises:
            DatasetError: The dataset's columns differ from the layout's.
        """
        parts = [flat.fields["observation"]]
        if flat.has_goals and layout.observation_dim > flat.observation_size:
            parts.append(flat.fields["achieved_goal"])
        if layout.action_dim:
            parts.insert(0, flat.fields["action"])
        made = cls(parts)
        if made.shape[1] != layout.transition_dim:
            raise DatasetError(
                f"The dataset has {made.shape[1]} trajectory columns, the layout names "
                f"{layout.transition_dim}."
            )
        return made

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Return successive rows `[rows, transition]`."""
        joined = np.concatenate(
            [part[rows] for part in self.parts], axis=1, dtype=np.float32
        )
        release(*self.parts)
        return joined

    def take(self, rows: Tensor) -> np.ndarray:
        """Return the rows of these numbers `[...]` as `[..., transition]`."""
        index = rows.numpy()
        joined = np.empty((*index.shape, self.shape[1]), np.float32)
        if self._is_small:
            self._read(index, joined)
            return joined
        for first in range(0, len(index), AT_ONCE):
            some = slice(first, first + AT_ONCE)
            self._read(index[some], joined[some])
            if _mapped() > self._most:
                release(*self.parts)
        return joined

    def _read(self, index: np.ndarray, joined: np.ndarray) -> None:
        begin = 0
        for part in self.parts:
            end = begin + part.shape[1]
            joined[..., begin:end] = np.take(part, index, axis=0)
            begin = end


class PlanningRows:
    """Trajectory rows in planning columns, which are worked out when they are read.

    Attributes:
        shape: `[num_rows, transition]`.
    """

    def __init__(
        self, flat: FlatDataset, featurizer: Featurizer, layout: TrajectoryLayout
    ) -> None:
        """Hold the data.

        Raises:
            DatasetError: The dataset's columns differ from the layout's.
        """
        self._featurizer = featurizer
        self._num_actions = layout.action_dim
        if isinstance(featurizer, Identity):
            self._rows = JoinedRows.of(flat, layout)
        else:
            actions = [flat.fields["action"]] if layout.action_dim else []
            self._rows = JoinedRows([*actions, flat.fields["observation"]])
        self.shape = self._rows.shape[0], layout.transition_dim

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Return successive rows `[rows, transition]`.

        Raises:
            FeaturizerError: As `planning_columns`.
        """
        return self._planned(self._rows[rows])

    def take(self, rows: Tensor) -> np.ndarray:
        """Return the rows of these numbers `[rows]` as `[rows, transition]`."""
        return self._planned(self._rows.take(rows))

    def _planned(self, rows: np.ndarray) -> np.ndarray:
        if isinstance(self._featurizer, Identity):
            return rows
        actions, observations = np.split(rows, [self._num_actions], axis=1)
        found = planning_columns(self._featurizer, observations)
        return np.concatenate([actions, found], axis=1)


def _mapped() -> int:
    """Return how many bytes of files this process holds; 0 where Linux does not say."""
    try:
        shared = int(STATM.read_text(encoding="ascii").split()[2])
    except OSError:
        return 0
    return shared * mmap.PAGESIZE
