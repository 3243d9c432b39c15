"""What happened in an episode, and why it failed.

An attempt lasts as long as actions ask for the grip. It takes a block or misses. Its
outcome is judged when the next attempt begins, or by the settled state at the end:

- *placed*: it is on another block, or within 30 mm of its place in the goal;
- *dropped*: it came off by itself, or was released more than 30 mm above its support,
  and is not placed;
- *off-centre*: it was released on another block (their centers less than a block's
  width apart, at most 30 mm of air between) and is not on it;
- *put down*: anything else, such as a block on the table.

An episode that scores less than 100 failed for the first of these reasons that holds:

| reason | meaning |
|---|---|
| `"never reached"` | no attempt came within 0.1 m of a block |
| `"out of time"` | a block was still held at the end |
| `"missed grasp"`, `"dropped"`, `"off-centre"` | the last attempt failed in this way |
| `"knocked over"` | an earlier state met more of the task |
| `"missed grasp"`, ... | the latest failed attempt failed in this way |
| `"out of time"` | no attempt failed: the tower was still being built |
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
        step: Number of its first step.
        nearest: Least distance of the tip to a block during the attempt, m.
        block: The block that was taken; None if it missed.
        below: The block beneath it at the release; None above the table.
        air: Free height under it at the release, m.
        lost: Whether it came off by itself.
        outcome: One of `OUTCOMES`; empty until it is judged.
    """

    step: int
    nearest: float = np.inf
    block: int | None = None
    below: int | None = None
    air: float = 0.0
    lost: bool = False
    outcome: str = ""

    @property
    def failed(self) -> bool:
        """Whether the attempt failed."""
        return self.outcome in _REASONS


@dataclass
class EpisodeLog:
    """Collects the attempts of an episode.

    Attributes:
        places: The goal's places, `[n, 3]`, m; None if the task has none.
        attempts: All attempts, in order.
        best_share: Greatest share of the task that any step met.
    """

    places: FloatArray | None = None
    attempts: list[Attempt] = field(default_factory=list)
    best_share: float = 0.0
    _asked: bool = False

    def ask(self, step: int, asked: bool, positions: FloatArray) -> bool:
        """Note the grip command of a step, before the step.

        Args:
            step: Number of the step.
            asked: Whether the action asks for the grip.
            positions: The blocks', `[n, 3]`, m.

        Returns:
            Whether the command changed.
        """
        changed = asked != self._asked
        self._asked = asked
        if asked and changed:
            self.judge(positions)
            self.attempts.append(Attempt(step))
        return changed

    def near(self, distance: float) -> None:
        """Note the distance of the tip to the nearest block during an attempt.

        Args:
            distance: In meters.
        """
        attempt = self.attempts[-1]
        attempt.nearest = min(attempt.nearest, distance)

    def take(self, block: int) -> None:
        """Note that a block was taken.

        Args:
            block: Its number.
        """
        attempt = self.attempts[-1]
        if attempt.block is not None:  # taken again after it came off
            attempt.outcome = "dropped"
            attempt = Attempt(attempt.step, attempt.nearest)
            self.attempts.append(attempt)
        attempt.block = block

    def let_go(self, positions: FloatArray, *, lost: bool = False) -> None:
        """Note that the held block was released.

        Args:
            positions: The blocks' at the release, `[n, 3]`, m.
            lost: The block came off by itself.
        """
        attempt = self.attempts[-1]
        if attempt.block is None:
            return
        attempt.lost = lost
        attempt.below, rest = _support(positions, attempt.block)
        attempt.air = float(positions[attempt.block, 2]) - rest

    def failure(self, share: float, *, holding: bool) -> str | None:
        """Return why the episode failed; None if all of the task is met.

        Args:
            share: Share of the task that is met at the end.
            holding: Whether the tool held a block when time ran out.
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
        """Return the number of attempts with each outcome."""
        return {
            outcome: sum(each.outcome == outcome for each in self.attempts)
            for outcome in OUTCOMES
        }

    def judge(self, positions: FloatArray) -> None:
        """Judge the last attempt by a later state.

        Args:
            positions: The blocks', `[n, 3]`, m.
        """
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
    """Return the block beneath a block, and the height at which it would rest, m."""
    offset = positions - positions[block]
    beneath = np.hypot(offset[:, 0], offset[:, 1]) < BLOCK_WIDTH
    beneath &= offset[:, 2] < -BLOCK_HEIGHT / 2
    if not beneath.any():
        return None, BLOCK_HEIGHT / 2
    heights = np.where(beneath, positions[:, 2], -np.inf)
    below = int(heights.argmax())
    return below, float(heights[below]) + BLOCK_HEIGHT
