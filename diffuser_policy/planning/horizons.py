"""Horizons: how many env steps a plan covers.

The last planning step of a plan is pinned to the goal, so *when* to arrive is part of
the question. Three answers:

- fixed: always the training horizon (Janner et al. 2022). Replanning with it keeps
  the goal as far away as ever; it is meant for one plan per episode.
- shrinking: the training horizon at first, then the rest of it.
- predicted: the time-to-goal network's answer for this observation and goal, times
  `horizon_scale`. Guides that lengthen the way need more time. So does a row that
  strayed from its plan and is no nearer to the goal than when it was made: the
  prediction is too hopeful there, and it gets twice the time (not again right after a
  plan that had it: a row that stays stuck gets it with every other plan). Asked to
  arrive too early, a denoiser plans through walls.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from diffuser_policy.choices import HorizonChoice
from diffuser_policy.columns.layout import TrajectoryLayout
from diffuser_policy.columns.normalizers import Normalizer
from diffuser_policy.errors import ConfigError, HorizonError, NotFiniteError
from diffuser_policy.networks.time_to_goal import TimeToGoal
from diffuser_policy.numerics import plain_arithmetic


class Horizons:
    """Chooses the number of planning steps of every row.

    Attributes:
        max_planning_steps: Length of the longest plan.
        min_planning_steps: Length of the shortest; two or more if plans end at a goal.
        can_shrink: Whether plans shorter than the longest are possible.
        unit: Env steps by which two plans can differ in length.
    """

    def __init__(
        self,
        longest: int,
        *,
        layout: TrajectoryLayout,
        normalizer: Normalizer,
        shortest: int | None = None,
        stride: int = 1,
        multiple: int = 1,
        least: int = 1,
        choice: HorizonChoice = "fixed",
        scale: float = 1.0,
        time_to_goal: TimeToGoal | None = None,
    ) -> None:
        """Check and store the limits.

        Args:
            longest: Longest plan, in env steps.
            layout: Columns of a trajectory.
            normalizer: Between environment units and the network's.
            shortest: Shortest plan, in env steps; not given: the longest if the
                choice is "fixed", else the shortest that the network takes.
            stride: Env steps between two planning steps.
            multiple: Planning steps come in multiples of this.
            least: Planning steps of the shortest plan that the network takes.
            choice: How the horizon of a row is found.
            scale: Factor of a predicted horizon.
            time_to_goal: Needed for predicted horizons.

        Raises:
            ConfigError: Predicted horizons without a network that predicts them.
            HorizonError: A length that the network or the stride cannot represent.
        """
        if choice == "predicted" and time_to_goal is None:
            raise ConfigError(
                "horizon='predicted' needs a time-to-goal network, and this planner "
                "was trained without one. Use 'fixed' or 'shrinking', or train with "
                "--time-to-goal."
            )
        self.layout, self.normalizer = layout, normalizer
        self.stride, self.multiple = stride, multiple
        self.choice, self.scale = choice, scale
        self.time_to_goal = time_to_goal
        self.unit = stride * multiple
        if longest < self.unit or longest % self.unit:
            raise HorizonError(
                f"The horizon must be a positive multiple of {self.unit} env steps "
                f"(stride {stride} times {multiple}), got {longest}."
            )
        self.max_planning_steps = longest // stride
        # With a single planning step, the goal would take the observation's place.
        least = max(least, 2 if layout.goal_conditioned else 1)
        least = min(least, self.max_planning_steps)
        possible = self.round_up(max((shortest or stride) / stride, least))
        self.can_shrink = possible < self.max_planning_steps
        fixed = choice == "fixed" and shortest is None
        self.min_planning_steps = self.max_planning_steps if fixed else possible

    def planning_steps(
        self,
        observations: np.ndarray,
        goals: np.ndarray | None,
        remaining: np.ndarray | None = None,
        failed: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return the planning steps `[rows]` of the plans to make, as in `plan`.

        A predicted horizon is rounded up to a length that the network takes. A
        shrinking one is rounded down, so that it never puts off the arrival; only the
        shortest plan, at the very end, may.
        """
        full = np.full(len(observations), self.max_planning_steps)
        if self.choice == "fixed" or goals is None:
            return full
        if self.choice == "predicted":
            times = self.predict_time(observations, goals)
            steps = self._fitting(times, np.ceil)
            if failed is None:
                return steps
            stalled = (failed > 0) & (steps >= failed)
            return np.where(stalled, self._fitting(2 * times, np.ceil), steps)
        if remaining is None:
            return full
        return np.where(remaining < 0, full, self._fitting(remaining, np.floor))

    def _fitting(self, env_steps: np.ndarray, rounded: np.ufunc) -> np.ndarray:
        """Return planning steps `[rows]` that the network takes."""
        steps = rounded(env_steps / self.stride) + 1
        fitting = rounded(steps / self.multiple) * self.multiple
        limits = self.min_planning_steps, self.max_planning_steps
        chosen: np.ndarray = np.clip(fitting, *limits).astype(np.int64)
        return chosen

    @plain_arithmetic()
    def predict_time(self, observations: np.ndarray, goals: np.ndarray) -> np.ndarray:
        """Return the planned arrival time `[rows]` in env steps, scaled.

        Raises:
            ConfigError: The planner has no time-to-goal network.
            NotFiniteError: A time that is NaN or infinite.
        """
        if self.time_to_goal is None:
            raise ConfigError("This planner has no time-to-goal network.")
        columns = self.layout.columns("observation")
        tensor = partial(
            torch.as_tensor, dtype=torch.float32, device=self.normalizer.shift.device
        )
        states = self.normalizer.normalize(tensor(observations), columns)
        targets = self.normalizer.normalize(tensor(goals), self.layout.columns("goal"))
        with torch.inference_mode():
            times = self.time_to_goal(states, targets)
        predicted: np.ndarray = self.scale * times.cpu().numpy()
        if not np.isfinite(predicted).all():
            row = int(np.argmin(np.isfinite(predicted)))
            raise NotFiniteError(
                f"The predicted times to the goal are not finite: that of row {row} is "
                f"{predicted[row]:g} env steps."
            )
        return predicted

    def round_up(self, planning_steps: float) -> int:
        """Return the next multiple of planning steps that the network takes."""
        multiple = self.multiple
        return max(multiple, int(np.ceil(planning_steps / multiple)) * multiple)
