r"""Rankings: which of the sampled candidates becomes the plan.

A ranking gives every candidate a value; the highest is taken, the first of equals. Some
rankings also know from which value on a candidate is `good_enough` by itself.

- `FirstRanking` takes the first candidate: plain sampling.
- `SmoothnessRanking` prefers a small largest displacement between planning steps:
  a denoiser that is asked to arrive too early jumps.
- `TimeToGoalRanking` asks the time-to-goal network T whether each planned state can
  be reached from the one m planning steps before it in the planned time, and prefers
  the smallest worst excess, $-\max_t [T(o_t, g(o_{t+m})) - m k]$ with stride k. A
  plan that cuts through a wall asks for a way around in no time.
- `FeasibilityRanking` asks the featurizer of derived planning columns how well a
  candidate can be executed: is the tool where the plan asks for a grasp?
- `CriticRanking` prefers a high value of what the plan does first (Q of the current
  state and the first action), as learned from the rewards of the data.
- `GuideRanking` prefers a high value of a guide, among the candidates that another
  ranking finds about as good as its best. With no gradient this is sampling and
  selecting (Lu et al. 2025, "What makes a good diffusion planner").
- `SumRanking` adds a guide's value to the feasibility: candidates that please the guide
  equally are told apart by how well they can be executed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffuser_policy.columns.features import FeaturizerError, numbers_of
from diffuser_policy.columns.normalizers import selection
from diffuser_policy.guides.guide import Guide, value_of
from diffuser_policy.guides.trajectory import Trajectory
from diffuser_policy.networks.critic import Critic
from diffuser_policy.networks.time_to_goal import TimeToGoal


class Ranking:
    """Values candidates; subclasses implement `__call__`."""

    def __call__(self, trajectory: Trajectory, num_candidates: int) -> Tensor:
        """Return values `[rows, candidates]`, higher is better.

        Args:
            trajectory: The candidates of all rows, row by row.
            num_candidates: How many each row has.
        """
        raise NotImplementedError

    def judged(
        self, trajectory: Trajectory, num_candidates: int
    ) -> tuple[Tensor, Tensor]:
        """Return values, and numbers of the same shape to compare with `good_enough`.

        Args:
            trajectory: As in `__call__`.
            num_candidates: As in `__call__`.
        """
        values = self(trajectory, num_candidates)
        return values, values

    def good_enough(self, stride: int) -> float | None:  # noqa: ARG002 (a unit of time)
        """Return the value from which on a candidate needs no rivals, if there is one.

        Args:
            stride: Env steps between two planning steps.
        """
        return None


class FirstRanking(Ranking):
    """Takes the first candidate."""

    def __call__(self, trajectory: Trajectory, num_candidates: int) -> Tensor:
        """Return zeros: ties go to the first."""
        zeros = trajectory.normalized.new_zeros(len(trajectory))
        return zeros.reshape(-1, num_candidates)


class SmoothnessRanking(Ranking):
    """Takes the candidate whose largest displacement is smallest."""

    def __call__(self, trajectory: Trajectory, num_candidates: int) -> Tensor:
        """Return the negative square of the largest displacement, normalized units.

        Displacements lie between successive planning steps, over the columns that a
        goal pins, or else those of the observation.
        """
        if trajectory.num_planning_steps < 2:  # nothing moves
            return FirstRanking()(trajectory, num_candidates)
        moved = trajectory.normalized[..., _position(trajectory)].diff(dim=1)
        values = -moved.square().sum(dim=-1).amax(dim=-1)
        return values.reshape(-1, num_candidates)


class TimeToGoalRanking(Ranking):
    """Takes the candidate whose neighbouring states are closest in time."""

    def __init__(self, time_to_goal: TimeToGoal, reach: int = 4) -> None:
        """Choose which planning steps are neighbors.

        Args:
            time_to_goal: Predicts env steps between states.
            reach: Planning steps between the compared states.
        """
        self.time_to_goal, self.reach = time_to_goal, reach

    @torch.inference_mode()
    def __call__(self, trajectory: Trajectory, num_candidates: int) -> Tensor:
        """Return the negative largest excess of needed over planned time, env steps."""
        reach = self._reach(trajectory)
        if reach == 0:  # a single planning step asks for nothing
            return FirstRanking()(trajectory, num_candidates)
        states = trajectory.normalized[..., trajectory.layout.observations]
        later = trajectory.normalized[:, reach:, _position(trajectory)]
        needed = self.time_to_goal(states[:, :-reach], later)
        excess = (needed - reach * trajectory.stride).amax(dim=-1)
        values: Tensor = -excess
        return values.reshape(-1, num_candidates)

    def judged(
        self, trajectory: Trajectory, num_candidates: int
    ) -> tuple[Tensor, Tensor]:
        """Return values, and what they would be over `reach` planning steps.

        Short plans compare states that are less far apart, and may lose less time.
        """
        values = self(trajectory, num_candidates)
        return values, values * (self.reach / max(self._reach(trajectory), 1))

    def _reach(self, trajectory: Trajectory) -> int:
        """Return the planning steps between the compared states of these plans."""
        return min(self.reach, trajectory.num_planning_steps - 1)

    def good_enough(self, stride: int) -> float:
        """Return the value of plans that need half as much time again at their worst.

        Of 600 first plans in the largest maze, 6 % of those that pass lead through a
        wall; were twice the time allowed, 11 % would.
        """
        return -0.5 * self.reach * stride


class CriticRanking(Ranking):
    """Takes the candidate whose first action the critic values highest."""

    def __init__(self, critic: Critic) -> None:
        """Store the critic.

        Args:
            critic: Values states and actions, both normalized.
        """
        self.critic = critic

    @torch.inference_mode()
    def __call__(self, trajectory: Trajectory, num_candidates: int) -> Tensor:
        """Return the lower of both action values, in units of reward."""
        layout, first = trajectory.layout, trajectory.normalized[:, 0]
        both = self.critic.of_actions(
            first[:, layout.observations], first[:, layout.actions]
        )
        return both.amin(dim=0).reshape(-1, num_candidates)


class FeasibilityRanking(Ranking):
    """Takes the candidate that can be executed best, judged by the featurizer."""

    def __init__(self, featurizer: Any) -> None:
        """Store the featurizer.

        Args:
            featurizer: `feasibility(candidates, stride)` returns `[n]`, higher is
                better, for candidates `[n, steps, columns]` in environment units.
        """
        self.featurizer = featurizer

    @torch.inference_mode()
    def __call__(self, trajectory: Trajectory, num_candidates: int) -> Tensor:
        """Return the featurizer's values.

        Raises:
            FeaturizerError: It fails, or returns something other than one finite number
                per candidate.
        """
        candidates = trajectory["observation"].cpu().numpy().copy()  # theirs to change
        shape, stride = list(candidates.shape), trajectory.stride
        values = numbers_of(
            self.featurizer,
            "feasibility",
            candidates,
            stride,
            given=f"candidates of shape {shape} and the stride {stride}",
        ).astype(np.float32)
        if values.shape != (len(trajectory),) or not np.isfinite(values).all():
            name = type(self.featurizer).__name__
            raise FeaturizerError(
                f"`feasibility` of the featurizer {name} must return a "
                f"finite number for each of {len(trajectory)} candidates, got "
                f"{values.shape}: {values}."
            )
        tensor = torch.from_numpy(values).to(trajectory.normalized.device)
        return tensor.reshape(-1, num_candidates)

    def good_enough(self, stride: int) -> float | None:  # noqa: ARG002
        """Return the featurizer's `feasible`, if it has one."""
        return getattr(self.featurizer, "feasible", None)


class GuideRanking(Ranking):
    """Takes the candidate that a guide likes best, of those that are feasible."""

    def __init__(
        self, guide: Guide, among: Ranking | None = None, tolerance: float = 0.0
    ) -> None:
        """Choose the guide, and which candidates are feasible.

        Args:
            guide: Compares the candidates.
            among: Only candidates that are at most `tolerance` worse than the best of
                this ranking are compared.
            tolerance: In units of that ranking: env steps for `TimeToGoalRanking`,
                squared normalized units for `SmoothnessRanking`.
        """
        self.guide, self.tolerance = guide, tolerance
        self.among = FirstRanking() if among is None else among

    @torch.inference_mode()
    def __call__(self, trajectory: Trajectory, num_candidates: int) -> Tensor:
        """Return the guide's values; minus infinity for infeasible candidates."""
        values = value_of(self.guide, trajectory).reshape(-1, num_candidates)
        feasible = self.among(trajectory, num_candidates)
        best = feasible.amax(dim=1, keepdim=True)
        return values.masked_fill(feasible < best - self.tolerance, -torch.inf)


class SumRanking(Ranking):
    """Takes the candidate with the highest sum of feasibility and a guide's value."""

    def __init__(self, guide: Guide, feasibility: Ranking, weight: float) -> None:
        """Choose the terms of the sum.

        Args:
            guide: Compares the candidates.
            feasibility: Says how well they can be executed.
            weight: Weight of the guide's value, in units of feasibility.
        """
        self.guide, self.feasibility, self.weight = guide, feasibility, weight

    @torch.inference_mode()
    def __call__(self, trajectory: Trajectory, num_candidates: int) -> Tensor:
        """Return the sums."""
        return self.judged(trajectory, num_candidates)[0]

    @torch.inference_mode()
    def judged(
        self, trajectory: Trajectory, num_candidates: int
    ) -> tuple[Tensor, Tensor]:
        """Return the sums, and the lower of sum and feasibility.

        The lower one is compared with `good_enough`: a guide that is a cost lowers it,
        but one that is a reward cannot make up for poor feasibility.
        """
        values = value_of(self.guide, trajectory).reshape(-1, num_candidates)
        feasible = self.feasibility(trajectory, num_candidates)
        sums = feasible + self.weight * values
        return sums, torch.minimum(sums, feasible)

    def good_enough(self, stride: int) -> float | None:
        """Return that of feasibility."""
        return self.feasibility.good_enough(stride)


def has_feasibility(featurizer: Any) -> bool:
    """Return whether a featurizer judges how well plans can be executed."""
    return callable(getattr(featurizer, "feasibility", None))


def _position(trajectory: Trajectory) -> slice | list[int]:
    """Return the columns that a goal pins, or else all of the observation."""
    name = "goal" if trajectory.layout.goal_conditioned else "observation"
    return selection(trajectory.layout.columns(name))
