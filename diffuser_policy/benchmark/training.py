"""What a method is given: its problem, its data, its folder, and somebody to report to.

A method takes gradient steps until `finished` says so, reports them with `progress`,
lets its policy be evaluated with `curve` every now and then, and keeps checkpoints in
`folder`, so that it can be called again after a kill.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from diffuser_policy.benchmark.cells import CURVE_SEED, Cell, CellFolder
from diffuser_policy.benchmark.checked import (
    CheckedPolicy,
    acts_deterministically,
    as_policy,
)
from diffuser_policy.benchmark.clock import Clock
from diffuser_policy.benchmark.problem import Problem
from diffuser_policy.benchmark.results import rise_of
from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.data.minari import load_flat
from diffuser_policy.envs import Env
from diffuser_policy.errors import ConfigError
from diffuser_policy.evaluation import evaluate
from diffuser_policy.evaluation.statistics import mean_interval, proportion_interval

PROGRESS_SECONDS = 2.0


class Training:
    """The workplace of one method.

    Attributes:
        problem: What to learn.
        seed: Of everything that is drawn.
        folder: The method's own, for checkpoints and weights; it survives kills.
        settings: All of the method's settings, defaults included.
        num_steps: Gradient steps to take at least; none: the method's own choice.
        max_steps: Gradient steps to take at most.
        facts: JSON-able facts on the training, which the result keeps.
    """

    def __init__(
        self,
        cell: Cell,
        folder: CellFolder,
        settings: Mapping[str, Any],
        *,
        num_steps: int | None = None,
    ) -> None:
        """Open the workplace.

        Args:
            cell: What is to be done.
            folder: Where.
            settings: All of the method's settings.
            num_steps: Gradient steps where the cell sets no budget.
        """
        self.problem: Problem = cell.problem
        self.seed = cell.seed
        self.settings = dict(settings)
        self.num_steps = cell.num_steps or num_steps
        self.max_steps = cell.max_steps or self.num_steps
        self.facts: dict[str, Any] = {}
        self.clock = Clock(folder)
        self._plan, self._method = cell.evaluation, cell.method
        self._files = folder
        self._points: list[dict[str, Any]] = folder.read("curve") or []
        self._told, self._stage = 0.0, ""

    @property
    def folder(self) -> Path:
        """The method's own folder, which survives kills."""
        self._files.work.mkdir(parents=True, exist_ok=True)
        return self._files.work

    @cached_property
    def dataset(self) -> FlatDataset:
        """The problem's data as long arrays.

        Raises:
            DatasetNotFoundError: It is not on this machine.
        """
        return load_flat(self.problem.dataset, progress=False)

    @cached_property
    def data_facts(self) -> dict[str, Any]:
        """Rows and checksum of the data: what tells them from others of that name."""
        from diffuser_policy.training.state import data_facts  # imports torch

        return data_facts(self.dataset)

    def make_env(self) -> Env:
        """Make the problem's environment."""
        return self.problem.make_env()

    def progress(
        self,
        done: int,
        total: int | None = None,
        *,
        stage: str = "train",
        figures: Mapping[str, float] | None = None,
    ) -> None:
        """Tell how far the work is; more often than every other second is free.

        Args:
            done: Steps done.
            total: Steps in all; by default `max_steps`.
            stage: What is being done.
            figures: What else is worth seeing, such as losses.
        """
        now = time.time()
        total = total or self.max_steps
        is_new = now - self._told >= PROGRESS_SECONDS or stage != self._stage
        if not is_new and done != total:
            return
        self._told, self._stage = now, stage
        self.clock.count(stage)
        shown = {k: float(v) for k, v in (figures or {}).items() if np.isfinite(v)}
        if self._points:
            last = self._points[-1]
            score = (last["score"] or last["return"])["mean"]
            shown |= {} if score is None else {"score": score}
        self._files.write(
            "progress",
            {
                "stage": stage,
                "done": done,
                "total": total,
                "figures": shown,
                "time": now,
            },
        )

    def curve_due(self, step: int) -> bool:
        """Return whether the learning curve wants a point after this gradient step."""
        if not self.num_steps:
            return False
        return step % max(1, self.num_steps // self._plan.curve_points) == 0

    def curve(self, step: int, policy: Any) -> None:
        """Evaluate a policy for the learning curve, once for every step.

        Args:
            step: Gradient steps done.
            policy: Anything with Stable-Baselines3's `predict`, or an algorithm of
                d3rlpy.

        Raises:
            ConfigError: Its actions are not in the action space.
        """
        self._points = [point for point in self._points if point["step"] < step]
        self.clock.count("train")
        results = evaluate(
            self.checked(policy),
            self.problem.make_env,
            episodes=self._plan.curve_episodes,
            seed=CURVE_SEED,
            num_envs=self._plan.num_envs,
            deterministic=acts_deterministically(policy),
            progress=False,
        )
        self.clock.count("evaluate")
        episodes = results.episodes
        scores = [e.score for e in episodes if e.score is not None]
        successes = [e.success for e in episodes if e.success is not None]
        returns = [e.episode_return for e in episodes]
        self._points.append(
            {
                "step": step,
                "score": _interval(mean_interval(scores)) if scores else None,
                "return": _interval(mean_interval(returns)),
                "success_rate": _interval(
                    proportion_interval(sum(successes), len(successes))
                )
                if successes
                else None,
                "values": scores or returns,
            }
        )
        self._files.write("curve", self._points)

    def checked(self, policy: Any) -> CheckedPolicy:
        """Return a policy by Stable-Baselines3's contract that checks its actions.

        Args:
            policy: What the method made.
        """
        env = self.make_env()
        env.close()
        return CheckedPolicy(as_policy(policy), env.action_space, self._method)

    @property
    def curve_points(self) -> list[dict[str, Any]]:
        """The learning curve so far."""
        return list(self._points)

    def forget_curve(self, step: int) -> None:
        """Drop points after a gradient step, to which training went back."""
        self._points = [point for point in self._points if point["step"] <= step]

    def finished(self, step: int) -> bool:
        """Return whether enough gradient steps were taken.

        That is the budget, and beyond it as long as the learning curve rises: as the
        mean of its last three evaluations is above that of the three before by more
        than twice the standard error of the difference (`rise_of`).

        Raises:
            ConfigError: There is no budget.
        """
        if self.num_steps is None:
            raise ConfigError(
                f"How many gradient steps is {self._method!r} to take? Set num_steps "
                f"in the suite, pass --budget, or give register_method a num_steps."
            )
        if step < self.num_steps:
            return False
        return step >= (self.max_steps or 0) or self.has_stopped_rising()

    def has_stopped_rising(self) -> bool:
        """Return whether the learning curve is flat or falls; see `finished`."""
        found = rise_of(self._points)
        return found is not None and found.kind != "rising"


def _interval(interval: Any) -> dict[str, float | None]:
    parts = (("mean", interval.mean), ("low", interval.low), ("high", interval.high))
    return {name: float(v) if np.isfinite(v) else None for name, v in parts}
