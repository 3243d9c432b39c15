"""What an evaluation keeps: every episode, how long planning took, and the summary.

    Evaluation = episodes (bit-equal for equal settings) + timing (of this machine)

Means of episodes carry 95 % bootstrap intervals, success rates Wilson's. They are
computed once: reports, files and model cards ask for the same.

An environment that scores its episodes itself puts a number under `score` into the
`info` of the last step. What else appears in that `info`, and did not before, are facts
of the episode: its `details`. Two kinds are summed up: numbers named `..._score` are
averaged under their own names, and `failure`, a reason or none, is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Real
from typing import Any

import numpy as np

from diffuser_policy.evaluation.statistics import (
    Interval,
    mean_interval,
    proportion_interval,
    time_interval,
)
from diffuser_policy.words import counted

OF_TASKS = ("score", "return", "success_rate", "time_to_goal")


@dataclass(frozen=True, kw_only=True)
class EpisodeRecord:
    """Results of one episode.

    Attributes:
        seed: What the environment was reset with.
        episode_return: Undiscounted sum of rewards.
        score: The environment's own score of the episode, or else the return on its
            benchmark scale, if it has one.
        length: Env steps.
        success: Whether `info["success"]` was ever true; none without such info.
        final_success: Whether it was true after the last env step.
        time_to_goal: First env step that ended in success, counted from 1; none if
            there was none.
        num_plans: Plans made; none if the policy doesn't tell.
        start: First achieved goal, or first observation where there are no goals; empty
            if that holds text, or anything else but numbers.
        goal: First desired goal; none where there are no goals.
        details: Facts of the episode from an environment that scores its episodes, as
            JSON data.
        task: Name of the task; none in environments with one task only.
    """

    seed: int
    episode_return: float
    score: float | None
    length: int
    success: bool | None
    final_success: bool | None
    time_to_goal: int | None
    num_plans: int | None
    start: tuple[float, ...]
    goal: tuple[float, ...] | None
    details: Mapping[str, Any] = field(default_factory=dict)
    task: str | None = None

    @property
    def outcome(self) -> str:
        """The outcome of the episode, in a few words."""
        if self.success is None:
            outcome = f"return {self.episode_return:.1f}"
        elif self.time_to_goal is None:
            outcome = "did not arrive"
        else:
            outcome = f"arrived after {counted(self.time_to_goal, 'env step')}"
        return outcome if self.score is None else f"{outcome}, score {self.score:.1f}"


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Wall-clock times of the calls of `predict`.

    Attributes:
        predict_seconds: Total over all calls.
        env_steps: Actions that they returned for running episodes.
        plan_seconds: Time of each call that planned, in order.
        plan_rows: Rows planned for in each of these calls.
    """

    predict_seconds: float
    env_steps: int
    plan_seconds: tuple[float, ...] = ()
    plan_rows: tuple[int, ...] = ()

    @property
    def control_rate(self) -> float:
        """Actions per second, planning included."""
        return self.env_steps / self.predict_seconds if self.predict_seconds else 0.0

    def plan_milliseconds(self) -> np.ndarray:
        """Return the time per planned row `[calls]` of each call that planned.

        The first call also warms up the libraries; it is left out if there are others.
        """
        times: np.ndarray = 1000 * _warm(self.plan_seconds) / _warm(self.plan_rows)
        return times

    def call_milliseconds(self) -> np.ndarray:
        """Return the time `[calls]` of each call that planned, for all of its rows.

        The first call is left out as by `plan_milliseconds`.
        """
        return 1000 * _warm(self.plan_seconds)


def _warm(figures: Sequence[float]) -> np.ndarray:
    """Return the figures of calls `[calls]`, without the first if there are others."""
    return np.asarray(figures[1:] or figures, dtype=np.float64)


Summary = dict[str, Interval | None]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Results of evaluating one policy in one environment.

    Attributes:
        episodes: One record per episode, in the order of their seeds.
        timing: How long it took to decide.
        settings: Environment, seeds, and the settings and origin of the policy.
        versions: Versions of the packages that results depend on.
    """

    episodes: tuple[EpisodeRecord, ...]
    timing: Timing
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        figures = [
            f"{name} {interval.mean:.4g}"
            for name, interval in self.summary().items()
            if interval is not None
        ]
        number = counted(len(self.episodes), "episode")
        return f"Evaluation({number}: {', '.join(figures)})"

    @property
    def returns(self) -> np.ndarray:
        """Undiscounted returns `[episodes]`."""
        return np.array([episode.episode_return for episode in self.episodes])

    def failures(self) -> dict[str, int]:
        """Return how many episodes failed for each reason, the most frequent first."""
        reasons = (episode.details.get("failure") for episode in self.episodes)
        return dict(Counter(str(r) for r in reasons if r is not None).most_common())

    def tasks(self) -> dict[str, Summary]:
        """Return score, return, success and time to goal of each task, by its name."""
        return {name: dict(figures) for name, figures in self._tasks.items()}

    @cached_property
    def _tasks(self) -> dict[str, Summary]:
        own: dict[str, list[EpisodeRecord]] = {}
        for episode in self.episodes:
            if episode.task is not None:
                own.setdefault(episode.task, []).append(episode)
        found = {name: _summary_of(episodes) for name, episodes in own.items()}
        return {n: {key: of[key] for key in OF_TASKS} for n, of in found.items()}

    def summary(self) -> Summary:
        """Return the figures by name; none for those that could not be measured.

        - `score`: the environment's own, or the return on the benchmark's scale;
        - other scores of the environment under their own names, `..._score`;
        - `return`: undiscounted;
        - `success_rate`: reached the goal at least once; `final_success_rate`: was
          there in the end;
        - `time_to_goal`: env steps, over the episodes that reached it;
        - `plan_ms`: milliseconds per plan; `plan_call_ms`: per call of `predict` that
          planned, for all of its rows.
        """
        return dict(self._summary)

    @cached_property
    def _summary(self) -> Summary:
        plans, calls = self.timing.plan_milliseconds(), self.timing.call_milliseconds()
        return {
            **_summary_of(self.episodes),
            "plan_ms": time_interval(plans) if len(plans) else None,
            "plan_call_ms": time_interval(calls) if len(calls) else None,
        }


def _summary_of(episodes: Sequence[EpisodeRecord]) -> Summary:
    """Return the figures of episodes, without times."""
    every = [episode.details for episode in episodes]
    names = dict.fromkeys(name for details in every for name in scores_in(details))
    return {
        "score": _mean([episode.score for episode in episodes]),
        **{name: _mean([d.get(name) for d in every]) for name in names},
        "return": _mean([episode.episode_return for episode in episodes]),
        "success_rate": _rate([episode.success for episode in episodes]),
        "final_success_rate": _rate([episode.final_success for episode in episodes]),
        "time_to_goal": _mean([episode.time_to_goal for episode in episodes]),
    }


def scores_in(details: Mapping[str, Any]) -> list[str]:
    """Return which details of an episode are averaged: numbers named `..._score`."""
    return [
        n for n, v in details.items() if n.endswith("_score") and isinstance(v, Real)
    ]


def _mean(values: list[Any]) -> Interval | None:
    known = [float(value) for value in values if isinstance(value, Real)]
    return mean_interval(known) if known else None


def _rate(values: list[bool | None]) -> Interval | None:
    known = [value for value in values if value is not None]
    return proportion_interval(sum(known), len(known)) if known else None
