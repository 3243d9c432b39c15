"""Episodes as recorded, and how they become continuous runs.

An episode of `L` steps has `L + 1` observations. `flatten` lays episodes end to end
and finds out which of them belong together:

* an episode that begins in the very observation in which the one before ended, and
  that was cut rather than terminated, *continues its run*: some recorders cut a
  stream at every success without resetting anything (Minari's `D4RL/pointmaze/*`);
* in such a continued episode the first `desired_goal` is the previous episode's,
  because the observation is older than the new goal. It is replaced by the goal of
  the rest of the episode;
* everything else is a real reset and begins a new run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.errors import DatasetError


@dataclass(frozen=True, eq=False, kw_only=True)
class Episode:
    """One recorded episode of `L` steps.

    Attributes:
        observations: Field → `[L + 1, size]`: `observation`, and for goal
            environments `achieved_goal` and `desired_goal`.
        actions: `[L, A]`.
        rewards: `[L]`.
        terminations: bool `[L]`.
        truncations: bool `[L]`.
        seed: What the environment was reset with, if known.
    """

    observations: Mapping[str, np.ndarray]
    actions: np.ndarray
    rewards: np.ndarray
    terminations: np.ndarray
    truncations: np.ndarray
    seed: int | None = None

    def __len__(self) -> int:
        """Number of steps."""
        return len(self.rewards)


def flatten(
    episodes: Iterable[Episode],
    *,
    num_rows: int,
    metadata: Mapping[str, Any] | None = None,
) -> FlatDataset:
    """Lay episodes end to end in preallocated arrays, in the order they come.

    Args:
        episodes: Consumed one at a time; only one needs to be in memory.
        num_rows: Total number of steps, known beforehand.
        metadata: Goes into the dataset.

    Raises:
        DatasetError: No episodes, other lengths than announced, or values that are
            not finite.
    """
    stitcher = _Stitcher(num_rows)
    for number, episode in enumerate(episodes):
        stitcher.add(episode, number)
    return stitcher.finish(dict(metadata or {}))


class _Stitcher:
    """Copies episodes into long arrays and notes where runs begin."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows
        self.fields: dict[str, np.ndarray] = {}
        self.run_starts: list[int] = []
        self.row = 0
        self.last: np.ndarray | None = None  # where a run could be continued

    def add(self, episode: Episode, number: int) -> None:
        """Append an episode; `number` names it in errors."""
        length = len(episode)
        self._check(episode, number)
        if length == 0:
            return
        if not self.fields:
            self._allocate(episode)
        observation = episode.observations["observation"]
        rows = slice(self.row, self.row + length)
        for name, values in episode.observations.items():
            self.fields[name][rows] = values[:-1]
        self.fields["action"][rows] = episode.actions
        self.fields["reward"][rows] = episode.rewards
        self.fields["terminated"][rows] = episode.terminations

        if self.last is not None and np.array_equal(self.last, observation[0]):
            self._refresh_first_goal(episode)
        else:
            self.run_starts.append(self.row)
        self.last = None if episode.terminations[-1] else observation[-1].copy()
        self.row += length

    def finish(self, metadata: dict[str, Any]) -> FlatDataset:
        """Return the dataset."""
        if self.row == 0:
            raise DatasetError("The dataset holds no steps.")
        if self.row != self.num_rows:
            raise DatasetError(
                f"The episodes have {self.row:,} steps where {self.num_rows:,} were "
                "announced: the dataset is damaged or still being written."
            )
        run_starts = np.asarray([*self.run_starts, self.row])
        return FlatDataset(self.fields, run_starts, metadata)

    def _check(self, episode: Episode, number: int) -> None:
        """Lengths must agree with each other and with the room that is left."""
        length = len(episode)
        lengths = {name: len(v) - 1 for name, v in episode.observations.items()}
        lengths |= {
            "actions": len(episode.actions),
            "terminations": len(episode.terminations),
        }
        wrong = {name: n for name, n in lengths.items() if n != length}
        if wrong:
            raise DatasetError(
                f"Episode {number} has {length} rewards, so it needs {length} actions "
                f"and terminations and {length + 1} observations; wrong: "
                f"{', '.join(wrong)}."
            )
        if self.row + length > self.num_rows:
            raise DatasetError(
                f"More steps than the {self.num_rows:,} that were announced, from "
                f"episode {number} on: the dataset is damaged."
            )

    def _allocate(self, first: Episode) -> None:
        """Reserve all rows, with the sizes of the first episode."""
        sizes = {name: v.shape[1:] for name, v in first.observations.items()}
        sizes |= {"action": first.actions.shape[1:], "reward": ()}
        for name, size in sizes.items():
            self.fields[name] = np.empty((self.num_rows, *size), np.float32)
        self.fields["terminated"] = np.empty(self.num_rows, np.bool_)

    def _refresh_first_goal(self, episode: Episode) -> None:
        """Give the first row of a continued episode the goal of the others."""
        goals = episode.observations.get("desired_goal")
        if goals is not None and bool((goals[1:] == goals[1]).all()):
            self.fields["desired_goal"][self.row] = goals[1]
