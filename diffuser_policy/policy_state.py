"""What `predict` remembers of its environments, as plain arrays."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class PolicyState(NamedTuple):
    """What `predict` remembers, one row per environment.

    Attributes:
        observations: `[n, steps, observation]` plans in planning columns, environment
            units.
        actions: `[n, steps, action]` planned actions.
        lengths: `[n]` planning steps; zero where there is no plan.
        ages: `[n]` env steps since the plan was made.
        progress: `[n]` how far it has been followed, in planned env steps.
        goals: `[n, goal]` what the plan leads to; no columns before it is known how
            many there are.
        streams: `[n]` random stream of each row.
        num_plans: `[n]` plans made from this stream.
        started: `[n]` whether the last call began an episode.
        planners: `[n]` fingerprint of the planner that the plans are of.
        guides: `[n]` key of the guidance that the plans were made under.
    """

    observations: np.ndarray
    actions: np.ndarray
    lengths: np.ndarray
    ages: np.ndarray
    progress: np.ndarray
    goals: np.ndarray
    streams: np.ndarray
    num_plans: np.ndarray
    started: np.ndarray
    planners: np.ndarray
    guides: np.ndarray

    def rows(self, index: Any) -> PolicyState:
        """Return the state of some rows, for example of those still running."""
        return PolicyState(*(part[index] for part in self))

    def with_rows(self, index: Any, other: PolicyState) -> PolicyState:
        """Return a copy in which some rows are those of another state."""
        parts = []
        width = max(self.goals.shape[1], other.goals.shape[1])
        wide, other = self._with_goals(width), other._with_goals(width)
        for mine, theirs in zip(wide, other, strict=True):
            part = mine.copy()
            part[index] = theirs
            parts.append(part)
        return PolicyState(*parts)

    def for_goals(self, goals: np.ndarray | None) -> PolicyState:
        """Return a state that remembers goals of the size of those at hand.

        A planner that was trained without goals learns here how many columns they
        have; plans that were made for others are forgotten.

        Args:
            goals: `[n, goal]`, or none.
        """
        width = 0 if goals is None else goals.shape[1]
        if self.goals.shape[1] == width:
            return self
        none = np.zeros((len(self.goals), width), np.float32)
        return self._replace(goals=none, lengths=np.zeros_like(self.lengths))

    def _with_goals(self, width: int) -> PolicyState:
        """Return the state with room for wider goals; a row without one has zeros."""
        missing = width - self.goals.shape[1]
        if not missing:
            return self
        return self._replace(goals=np.pad(self.goals, ((0, 0), (0, missing))))
