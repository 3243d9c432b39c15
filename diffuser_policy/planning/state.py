"""The memory of a policy: one row for each environment.

`predict` returns it, and takes it back in the next call:

    action, state = policy.predict(observation, state)

All of it is arrays, so that rows can be taken out, stored and put back in any order.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from diffuser_policy.errors import ObservationError
from diffuser_policy.observations import is_finite
from diffuser_policy.words import counted


class PolicyState(NamedTuple):
    """The memory of `predict`, one row per environment.

    Attributes:
        observations: `[n, steps, observation]` plans in planning columns, environment
            units.
        actions: `[n, steps, action]` planned actions.
        lengths: `[n]` planning steps; zero where there is no plan.
        ages: `[n]` env steps since the plan was made.
        progress: `[n]` how far it has been followed, in planned env steps.
        goals: `[n, goal]` where the plan leads in the end; without columns until the
            first observation says how many there are.
        aims: `[n, goal]` where it leads: to the goal, or to a subgoal on the way.
        streams: `[n]` random stream of each row.
        num_plans: `[n]` plans made from this stream.
        num_replans: `[n]` how many have replaced another since the row had none.
        planners: `[n]` fingerprint of the planner that made the plans.
        guides: `[n]` key of the guidance that steered them.
        previous: `[n, observation]` planning columns of the last call's observation.
    """

    observations: np.ndarray
    actions: np.ndarray
    lengths: np.ndarray
    ages: np.ndarray
    progress: np.ndarray
    goals: np.ndarray
    aims: np.ndarray
    streams: np.ndarray
    num_plans: np.ndarray
    num_replans: np.ndarray
    planners: np.ndarray
    guides: np.ndarray
    previous: np.ndarray

    def __repr__(self) -> str:
        """Count the environments, and tell how long and how old their plans are."""
        if not isinstance(self.lengths, np.ndarray):  # shapes of the fields, or lists
            return tuple.__repr__(self)
        count, planned = len(self.lengths), self.lengths > 0
        text = f"PolicyState({counted(count, 'environment')}, "
        if not planned.any():
            return f"{text}no plan)"
        plans = counted(int(planned.sum()), "plan")
        lengths = _span(self.lengths[planned], "planning step")
        ages = _span(self.ages[planned], "env step")
        return f"{text}{plans} of {lengths}, made {ages} ago)"

    def check_values(self) -> None:
        """Refuse numbers that `predict` never returns.

        Raises:
            ObservationError: Names the field and the first such number.
        """
        most = self.observations.shape[1]
        whole = self.lengths | self.ages | self.streams | self.num_plans
        # The sign bit tells: this call is made in every env step.
        whole |= self.num_replans | (most - self.lengths)
        if whole.min(initial=0) < 0 or self.progress.min(initial=0.0) < 0:
            for name in (*COUNTS, "progress"):
                part = getattr(self, name)
                limit = most if name == "lengths" else np.inf
                wrong = (part < 0) | (part > limit)
                if wrong.any():
                    raise _damaged(name, part[wrong][0])
        for name in FINITE:
            part = getattr(self, name)
            if not is_finite(part):
                raise _damaged(name, part[~np.isfinite(part)][0])

    def rows(self, index: Any) -> PolicyState:
        """Return the state of some rows, for example of those still running."""
        return PolicyState(*(part[index] for part in self))

    def with_rows(self, index: Any, other: PolicyState) -> PolicyState:
        """Return a copy in which some rows are those of another state."""
        width, known = self.goals.shape[1], other.goals.shape[1]
        merged = {}
        for name, mine in self._asdict().items():
            part, theirs = mine.copy(), getattr(other, name)
            # Who knows no goal has zeros.
            if name in ("goals", "aims") and width != known:
                part, theirs = (
                    np.pad(each, ((0, 0), (0, max(width, known) - each.shape[1])))
                    for each in (part, theirs)
                )
            part[index] = theirs
            merged[name] = part
        return PolicyState(**merged)

    def for_goals(self, goals: np.ndarray | None) -> PolicyState:
        """Return a state that remembers goals of the size of those at hand.

        A planner that was trained without goals learns here how many columns goals
        have; plans for goals of another size are forgotten.

        Args:
            goals: `[n, goal]`, or none.
        """
        width = 0 if goals is None else goals.shape[1]
        if self.goals.shape[1] == width:
            return self
        none = np.zeros((len(self.goals), width), np.float32)
        lengths = np.zeros_like(self.lengths)
        return self._replace(goals=none, aims=none.copy(), lengths=lengths)


COUNTS = ("lengths", "ages", "streams", "num_plans", "num_replans")
STATE_DTYPES: dict[str, np.dtype[Any]] = {
    **dict.fromkeys(("observations", "actions", "goals"), np.dtype(np.float32)),
    "aims": np.dtype(np.float32),
    "previous": np.dtype(np.float32),
    **dict.fromkeys(COUNTS, np.dtype(np.int64)),
    **dict.fromkeys(("planners", "guides"), np.dtype(np.int64)),
    "progress": np.dtype(np.float64),
}
FINITE = [name for name, kind in STATE_DTYPES.items() if kind.kind == "f"]


def _span(values: np.ndarray, noun: str) -> str:
    low, high = int(values.min()), int(values.max())
    return counted(high, noun) if low == high else f"{low:,} to {counted(high, noun)}"


def _damaged(name: str, value: Any) -> ObservationError:
    return ObservationError(
        f"state is damaged: its {name} hold {value}, which predict never returns. Pass "
        f"the state that predict returned last, or None."
    )
