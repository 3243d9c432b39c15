"""When to plan anew: the reasons of each row.

A plan is needed, or welcome if it arrives no later than the one that is followed:

| reason | the new plan is |
|---|---|
| there is no plan, or the guide is another | needed |
| the row strayed from its plan | needed |
| the plan has run out, and there is no goal to stay at | needed |
| the plan to a subgoal has run out, or is due | needed |
| the plan is due, and there is no goal to arrive at | needed |
| the plan to the goal is due | welcome |

A plan is *due* when it is a multiple of `replan_interval` env steps old, up to its last
env step. A plan to the goal is due only before that: then a new one can still arrive
no later.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diffuser_policy.planning.state import PolicyState


@dataclass(frozen=True, kw_only=True)
class Reasons:
    """Which rows get a new plan, and why; all `[rows]`.

    Attributes:
        needed: The new plan is followed, whatever it is like.
        welcome: It is followed if it arrives no later.
        strayed: The row is too far from its plan.
        on_way: Its plan leads to a subgoal.
        underway: There is a plan that it still follows, to where a new one would lead.
    """

    needed: np.ndarray
    welcome: np.ndarray
    strayed: np.ndarray
    on_way: np.ndarray
    underway: np.ndarray

    @classmethod
    def find(
        cls,
        state: PolicyState,
        durations: np.ndarray,
        *,
        guide: int,
        strayed: np.ndarray,
        aimed: bool,
        stays: bool,
        interval: int | None,
    ) -> Reasons:
        """Return the reasons of all rows.

        Args:
            state: What the rows remember.
            durations: `[rows]` env steps of their plans.
            guide: Key of the guidance with which to plan.
            strayed: `[rows]` whether they are too far from their plans.
            aimed: Whether plans lead to goals.
            stays: Whether the executor stays at the end of a plan.
            interval: Env steps after which a plan is due; none: it never is.
        """
        there = state.lengths > 0
        over, left = state.progress > durations, there & (state.progress < durations)
        on_way = (state.aims != state.goals).any(axis=1) & there
        to_goal = ~on_way if aimed else np.zeros_like(there)
        due = np.zeros_like(left)
        if interval is not None:
            running = np.where(to_goal, left, there & ~over)
            due = running & (state.ages % interval == 0)
        needed = ~there | (state.guides != guide) | strayed | ((over | due) & ~to_goal)
        if not stays:
            needed |= over
        return cls(
            needed=needed,
            welcome=due & ~needed,
            strayed=strayed,
            on_way=on_way,
            underway=left & ~strayed & ~on_way,
        )
