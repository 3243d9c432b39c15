"""Drivers: ask a policy for the actions of those environments that still run.

The evaluator keeps one slot per environment. Two kinds of policies:

- `RowDriver`: the policy's state has rows (`PolicyState`). Only running slots are
  passed, and each episode brings its own random stream.
- `LockstepDriver`: any policy by Stable-Baselines3's contract, whose state is opaque.
  The batch keeps its size; finished slots repeat their last observation, and their
  actions are dropped.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from diffuser_policy.evaluation.records import Timing


class Driver:
    """Turns observations of slots into actions; subclasses implement `act`.

    Attributes:
        num_plans: Plans made in each slot's episode; none if the policy doesn't tell.
        timing: Wall-clock times of all calls so far.
    """

    def __init__(self, policy: Any, num_slots: int, *, deterministic: bool) -> None:
        self.policy, self.deterministic = policy, deterministic
        self.starting = np.ones(num_slots, np.bool_)
        self.streams = np.zeros(num_slots, np.int64)
        self.num_plans: list[int | None] = [None] * num_slots
        self.timing = Timing(predict_seconds=0.0, env_steps=0)

    def begin(self, slot: int, stream: int) -> None:
        """Forget the slot's last episode.

        Args:
            slot: Which one.
            stream: Random stream of the new episode.
        """
        self.starting[slot], self.streams[slot] = True, stream

    def act(self, slots: Sequence[int], observations: Sequence[Any]) -> np.ndarray:
        """Return actions `[slots, …]` for the observations of some slots."""
        raise NotImplementedError

    def _predict(
        self, observations: Sequence[Any], state: Any, starting: np.ndarray
    ) -> tuple[np.ndarray, Any, float]:
        """Return actions, the new state, and the seconds that it took."""
        batch = batched(observations)
        begin = time.perf_counter()
        actions, following = self.policy.predict(
            batch,
            state=state,
            episode_start=starting,
            deterministic=self.deterministic,
        )
        return np.asarray(actions), following, time.perf_counter() - begin


class RowDriver(Driver):
    """Drives a policy that offers `initial_state(num_envs, streams)`."""

    def __init__(self, policy: Any, num_slots: int, *, deterministic: bool) -> None:
        super().__init__(policy, num_slots, deterministic=deterministic)
        self.state = policy.initial_state(num_slots, self.streams)

    def begin(self, slot: int, stream: int) -> None:
        """Give the slot a fresh state with the episode's own random stream."""
        super().begin(slot, stream)
        fresh = self.policy.initial_state(1, self.streams[[slot]])
        self.state = self.state.with_rows([slot], fresh)

    def act(self, slots: Sequence[int], observations: Sequence[Any]) -> np.ndarray:
        """Return actions `[slots, …]`; the policy sees these slots only."""
        index = np.asarray(slots)
        state = self.state.rows(index)
        actions, following, seconds = self._predict(
            observations, state, self.starting[index]
        )
        made = int((following.num_plans - state.num_plans).sum())
        self.timing = self.timing.add(seconds, env_steps=len(index), num_plans=made)
        self.state = self.state.with_rows(index, following)
        self.num_plans = list(map(int, self.state.num_plans))
        self.starting[index] = False
        return actions


class LockstepDriver(Driver):
    """Drives any policy by Stable-Baselines3's contract."""

    def __init__(self, policy: Any, num_slots: int, *, deterministic: bool) -> None:
        super().__init__(policy, num_slots, deterministic=deterministic)
        self.state: Any = None
        self.latest: list[Any] = [None] * num_slots

    def act(self, slots: Sequence[int], observations: Sequence[Any]) -> np.ndarray:
        """Return actions `[slots, …]`; the policy sees the whole batch."""
        for slot, observation in zip(slots, observations, strict=True):
            self.latest[slot] = observation
        actions, self.state, seconds = self._predict(
            self.latest, self.state, self.starting.copy()
        )
        self.timing = self.timing.add(seconds, env_steps=len(slots))
        self.starting[:] = False
        chosen: np.ndarray = actions[np.asarray(slots)]
        return chosen


def make_driver(policy: Any, num_slots: int, *, deterministic: bool) -> Driver:
    """Return the driver that fits a policy."""
    kind = RowDriver if hasattr(policy, "initial_state") else LockstepDriver
    return kind(policy, num_slots, deterministic=deterministic)


def episode_stream(seed: int, episode: int) -> int:
    """Return the random stream of an episode, in 0 … 2^63 - 1."""
    [word] = np.random.SeedSequence((seed, episode)).generate_state(1, np.uint64)
    return int(word) >> 1


def batched(observations: Sequence[Any]) -> Any:
    """Stack observations of single environments along a new first axis."""
    first = observations[0]
    if isinstance(first, dict):
        return {key: np.stack([item[key] for item in observations]) for key in first}
    return np.stack(list(observations))
