"""Plan: the trajectories that a planner chose, in environment units, row by row.

    env step   0      1      …     stride          2·stride       …  duration   after
    planned    s_0    (interpolated)  s_1    …        s_2            s_{L-1}    s_{L-1}

Row r has `lengths[r]` planning steps, `stride` env steps apart, starting with the
current observation. Plans of one batch may differ in length; shorter ones repeat
their last planned observation, where a plan stays after its end. They may also differ
in their number of candidates; a row with fewer than others repeats its first one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffuser_policy.words import counted


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """Chosen trajectories of a batch of rows, and the candidates.

    Attributes:
        observations: `[rows, steps, observation]`, environment units.
        actions: `[rows, steps, action]`; no columns for states-only plans.
        lengths: `[rows]` planning steps of each plan.
        stride: Env steps between two planning steps.
        values: `[rows, candidates]` of the ranking; higher is better. Minus infinity
            beyond the candidates of a row, and where a guide ranks the feasible
            candidates only, for all others.
        chosen: `[rows]` index of the chosen candidate.
        num_candidates: `[rows]` candidates of each row: those that were sampled and,
            with steadiness, the rest of the row's running plan, which comes last.
        candidates: `[rows, candidates, steps, observation]` as many as the row with
            the most has.
        chain: `[denoising steps + 1, rows, candidates, steps, observation]` from
            noise to plan, if it was asked for; the rest of a running plan stays
            constant along it.
        aims: `[rows, goal]` where plans to a goal lead: to the goal, or to a subgoal on
            the way.
    """

    observations: np.ndarray
    actions: np.ndarray
    lengths: np.ndarray
    stride: int
    values: np.ndarray
    chosen: np.ndarray
    num_candidates: np.ndarray
    candidates: np.ndarray
    chain: np.ndarray | None = None
    aims: np.ndarray | None = None

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.lengths)

    def __repr__(self) -> str:
        """Name sizes instead of printing arrays."""
        counts = sorted({*self.num_candidates.tolist()})
        return (
            f"Plan({counted(len(self), 'row')} of up to "
            f"{counted(self.observations.shape[1], 'planning step')}, stride "
            f"{self.stride}, {' or '.join(map(str, counts))} candidate"
            f"{'s' * (counts != [1])})"
        )

    @property
    def durations(self) -> np.ndarray:
        """Env steps `[rows]` from the current observation to the last planned one."""
        return (self.lengths - 1) * self.stride

    def path(self, row: int = 0) -> np.ndarray:
        """Return the planned observations `[length, observation]` of one row."""
        return self.observations[row, : self.lengths[row]]

    def rows(self, index: np.ndarray) -> Plan:
        """Return the plans of some rows."""
        parts = {name: getattr(self, name)[index] for name in BY_ROW}
        chain = None if self.chain is None else self.chain[:, index]
        aims = None if self.aims is None else self.aims[index]
        return Plan(stride=self.stride, chain=chain, aims=aims, **parts)

    @staticmethod
    def joined(parts: Sequence[tuple[np.ndarray, Plan]]) -> Plan:
        """Return plans that were made separately as one.

        Args:
            parts: Which rows of the result each plan becomes, and the plan.
        """
        if len(parts) == 1:  # all rows, in order
            return parts[0][1]
        steps = max(plan.observations.shape[1] for _, plan in parts)
        width = max(plan.values.shape[1] for _, plan in parts)
        plans = [plan._extended(steps, width) for _, plan in parts]
        order = np.concatenate([rows for rows, _ in parts]).argsort()

        def in_order(name: str, axis: int = 0) -> np.ndarray:
            arrays = [getattr(plan, name) for plan in plans]
            return np.concatenate(arrays, axis=axis).take(order, axis=axis)

        return Plan(
            stride=plans[0].stride,
            chain=None if plans[0].chain is None else in_order("chain", axis=1),
            aims=None if plans[0].aims is None else in_order("aims"),
            **{name: in_order(name) for name in BY_ROW},
        )

    def _extended(self, steps: int, width: int) -> Plan:
        """Return these plans in arrays of more planning steps and candidates."""
        num_steps, num_candidates = self.observations.shape[1], self.values.shape[1]
        step = np.minimum(np.arange(steps), num_steps - 1)
        planned = (np.arange(steps) < num_steps)[:, None]
        there = np.arange(width) < num_candidates
        candidate = np.where(there, np.arange(width), 0)
        return dataclasses.replace(
            self,
            observations=self.observations[:, step],
            actions=np.where(planned, self.actions[:, step], np.float32(0)),
            values=np.where(there, self.values[:, candidate], np.float32(-np.inf)),
            candidates=self.candidates[:, candidate][:, :, step],
            chain=None if self.chain is None else self.chain[:, :, candidate],
        )


BY_ROW = (
    *("observations", "actions", "lengths"),
    *("values", "chosen", "num_candidates", "candidates"),
)
"""Arrays of a `Plan` with a row for each environment."""


def interpolate(
    observations: np.ndarray, lengths: np.ndarray, stride: int, env_steps: np.ndarray
) -> np.ndarray:
    """Return the planned observations at env steps of each row.

    Between planning steps plans are linear; before the start and after the end they
    stay.

    Args:
        observations: `[rows, steps, observation]`.
        lengths: `[rows]` planning steps.
        stride: Env steps between planning steps.
        env_steps: `[rows]` or `[rows, times]` where on each plan, in env steps from
            its start.

    Returns:
        `[rows, observation]` or `[rows, times, observation]`.
    """
    extra = (1,) * (env_steps.ndim - 1)
    rows = np.arange(len(lengths)).reshape(-1, *extra)
    last = (lengths - 1).reshape(-1, *extra)
    position = np.minimum(np.maximum(env_steps / stride, 0), last)
    before = np.floor(position).astype(np.int64)
    after = np.minimum(before + 1, last)
    share = (position - before)[..., None]
    planned: np.ndarray = (1 - share) * observations[rows, before]
    planned += share * observations[rows, after]
    return planned


@dataclass(frozen=True, kw_only=True, eq=False)
class Following:
    """Plans being followed, one per row.

    Attributes:
        observations: `[rows, steps, observation]`, environment units.
        actions: `[rows, steps, action]`.
        lengths: `[rows]` planning steps.
        progress: `[rows]` how far each plan has been followed, in planned env steps.
        stride: Env steps between planning steps.
        previous: `[rows, observation]` where each row was an env step ago; none: as if
            it had rested.
    """

    observations: np.ndarray
    actions: np.ndarray
    lengths: np.ndarray
    progress: np.ndarray
    stride: int
    previous: np.ndarray | None = None

    @property
    def durations(self) -> np.ndarray:
        """Planned env steps `[rows]` from the first to the last planning step."""
        return (self.lengths - 1) * self.stride

    def rows(self, index: np.ndarray) -> Following:
        """Return some of the rows."""
        return Following(
            observations=self.observations[index],
            actions=self.actions[index],
            lengths=self.lengths[index],
            progress=self.progress[index],
            stride=self.stride,
            previous=None if self.previous is None else self.previous[index],
        )

    def rest(self, num_planning_steps: int, *, stretched: bool) -> np.ndarray:
        """Return the rest of the plans, spread over new planning steps.

        Args:
            num_planning_steps: Length of the new plans.
            stretched: Arrive with the new plans' last step, sooner or later than
                planned; otherwise the plans are shifted by their progress, keep their
                pace, and stay at their end.

        Returns:
            `[rows, num_planning_steps, transition]`, actions first, environment units.
        """
        last = num_planning_steps - 1
        time = np.full(self.durations.shape, float(last * self.stride))
        if stretched:
            time = self.durations - self.progress
        share = np.arange(num_planning_steps) / max(last, 1)
        env_steps = self.progress[:, None] + time[:, None] * share
        joined = np.concatenate([self.actions, self.observations], axis=2)
        return interpolate(joined, self.lengths, self.stride, env_steps)

    def reference(self, ahead: float = 0.0) -> np.ndarray:
        """Return planned observations `[rows, observation]`, some env steps ahead."""
        return interpolate(
            self.observations, self.lengths, self.stride, self.progress + ahead
        )
