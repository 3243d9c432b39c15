"""What happened in an episode, and why it failed.

An attempt lasts from the step at which the grip is asked for to the one at which it no
longer is. It gets a block or misses. What becomes of the block is read when the next
attempt begins, or from the settled state at the end:

- *placed*: it is on another block, or within 30 mm of its place in the goal;
- *dropped*: it came off by itself, or was let go of more than 30 mm above what was
  beneath it, and is not placed;
- *off-centre*: it was let go of on another block (their centers less than a block's
  width apart, at most 30 mm of air between) and is not on it;
- *put down*: anything else, such as on the table.

An episode that scores less than 100 failed for the first of these reasons that holds:

| reason | means |
|---|---|
| `"never reached"` | no attempt came within 0.1 m of a block |
| `"out of time"` | a block was still held at the end |
| `"missed grasp"`, `"dropped"`, `"off-centre"` | what became of the last attempt |
| `"knocked over"` | more of the task had been met at some time before |
| `"missed grasp"`, ... | what became of the latest attempt that went wrong |
| `"out of time"` | nothing went wrong: it was still building |
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from diffuser_envs.kuka.arrangements import MATCHED
from diffuser_envs.kuka.columns import BLOCK_HEIGHT, BLOCK_WIDTH, FloatArray
from diffuser_envs.kuka.tasks import on_pairs, pair_matrix

NEAR = 0.1
AIR = 0.03
OUTCOMES = ("missed", "placed", "off_centre", "dropped", "put_down")
_REASONS = {
    "missed": "missed grasp",
    "dropped": "dropped",
    "off_centre": "off-centre",
}


@dataclass
class Attempt:
    """One request for the grip.

    Attributes:
        step: When it began.
        nearest: Least distance of the tip to a block while it lasted, m.
        block: The block that was taken; none if it missed.
        grasp_offset: Horizontal distance of tip and block when it was taken, m.
        released_at: Where the block was let go of, `[3]`, m; none while it is held.
        below: The block that it was let go of above; none above the table.
        air: Free height under it then, m.
        lost: Whether it came off by itself.
        outcome: One of `OUTCOMES`; empty while that is open.
    """

    step: int
    nearest: float = np.inf
    block: int | None = None
    grasp_offset: float = 0.0
    released_at: FloatArray | None = None
    below: int | None = None
    air: float = 0.0
    lost: bool = False
    outcome: str = ""

    @property
    def failed(self) -> bool:
        """Whether it came to nothing."""
        return self.outcome in _REASONS


@dataclass
class EpisodeLog:
    """Collects the attempts of an episode.

    Attributes:
        places: The goal's places, `[n, 3]`, m; none where the task has none.
        attempts: In order.
        best_share: Greatest share of the task that any step met.
    """

    places: FloatArray | None = None
    attempts: list[Attempt] = field(default_factory=list)
    best_share: float = 0.0
    _asked: bool = False

    def ask(self, step: int, asked: bool, positions: FloatArray) -> bool:
        """Note the grip command of a step, before it is carried out.

        Args:
            step: Number of the step.
            asked: Whether the grip is asked for.
            positions: Of the blocks, `[n, 3]`, m.

        Returns:
            Whether the command changed.
        """
        changed = asked != self._asked
        self._asked = asked
        if asked and changed:
            self._judge_last(positions)
            self.attempts.append(Attempt(step))
        return changed

    def near(self, distance: float) -> None:
        """Note how near the tip is to a block while the grip is asked for.

        Args:
            distance: m.
        """
        attempt = self.attempts[-1]
        attempt.nearest = min(attempt.nearest, distance)

    def take(self, block: int, offset: float) -> None:
        """Note that a block was taken.

        Args:
            block: Which.
            offset: Horizontal distance of tip and block, m.
        """
        attempt = self.attempts[-1]
        if attempt.block is not None:  # taken again after it had come off
            attempt.outcome = "dropped"
            attempt = Attempt(attempt.step, attempt.nearest)
            self.attempts.append(attempt)
        attempt.block, attempt.grasp_offset = block, offset

    def let_go(self, positions: FloatArray, *, lost: bool = False) -> None:
        """Note that the held block was let go of.

        Args:
            positions: Of the blocks then, `[n, 3]`, m.
            lost: It came off by itself.
        """
        attempt = self.attempts[-1]
        if attempt.block is None:
            return
        attempt.lost = lost
        attempt.released_at = positions[attempt.block].copy()
        attempt.below, rest = _support(positions, attempt.block)
        attempt.air = float(attempt.released_at[2]) - rest

    def finish(self, positions: FloatArray) -> None:
        """Judge the last attempt by the settled state.

        Args:
            positions: Of the blocks, `[n, 3]`, m.
        """
        self._judge_last(positions)

    def failure(self, share: float, *, holding: bool) -> str | None:
        """Return why the episode failed, or none if all of the task is met.

        Args:
            share: Of the task, at the end.
            holding: Whether a block was held when time ran out.
        """
        if share >= 1.0:
            return None
        if min((each.nearest for each in self.attempts), default=np.inf) > NEAR:
            return "never reached"
        if holding:
            return "out of time"
        last = self.attempts[-1]
        if last.failed:
            return _REASONS[last.outcome]
        if self.best_share > share + 1e-6:
            return "knocked over"
        wrong = [_REASONS[each.outcome] for each in self.attempts if each.failed]
        return wrong[-1] if wrong else "out of time"

    def counts(self) -> dict[str, int]:
        """Return how many attempts had each outcome."""
        return {
            outcome: sum(each.outcome == outcome for each in self.attempts)
            for outcome in OUTCOMES
        }

    def _judge_last(self, positions: FloatArray) -> None:
        if self.attempts and not self.attempts[-1].outcome:
            attempt = self.attempts[-1]
            attempt.outcome = _outcome(attempt, positions, self.places)


def _outcome(attempt: Attempt, positions: FloatArray, places: FloatArray | None) -> str:
    block = attempt.block
    if block is None:
        return "missed"
    stacked = bool(pair_matrix(on_pairs(positions))[block].any())
    if places is not None:
        stacked |= bool(np.linalg.norm(positions[block] - places[block]) <= MATCHED)
    if stacked:
        return "placed"
    if attempt.lost or attempt.air > AIR:
        return "dropped"
    return "put_down" if attempt.below is None else "off_centre"


def _support(positions: FloatArray, block: int) -> tuple[int | None, float]:
    """Return what is beneath a block, and how high it would rest on it, m."""
    offset = positions - positions[block]
    beneath = np.hypot(offset[:, 0], offset[:, 1]) < BLOCK_WIDTH
    beneath &= offset[:, 2] < -BLOCK_HEIGHT / 2
    if not beneath.any():
        return None, BLOCK_HEIGHT / 2
    heights = np.where(beneath, positions[:, 2], -np.inf)
    below = int(heights.argmax())
    return below, float(heights[below]) + BLOCK_HEIGHT
