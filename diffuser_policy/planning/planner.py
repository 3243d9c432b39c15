"""Planner: observations + goals (+ further conditions) → Plan.

    horizon of each row → conditions (+ guidance) → candidates → ranking → Plan

The first planning step is pinned to the current observation, the last one to the goal.
`diffuser_policy.planning.horizons` chooses how many steps lie between them.

Rows whose plans have the same length are sampled in one batch. Padding a shorter plan
to the length of a longer one would change it. With a warm start, rows that have a plan
form batches of their own: they start from what is left of it (Janner et al. 2022,
§5.4), stretched over the new horizon if there is a goal to arrive at.

With `steadiness`, what is left of a plan is a candidate itself, and a new one has to be
better by that much. Without it, a plan that is replaced every few steps may change its
mind as often.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from diffuser_policy.columns.layout import TrajectoryLayout
from diffuser_policy.columns.normalizers import Normalizer
from diffuser_policy.diffusion.conditions import Conditions, Inpainting
from diffuser_policy.diffusion.guidance import Guidance, Steering
from diffuser_policy.diffusion.sampler import Sampler, Samples, WarmStart
from diffuser_policy.errors import ConditionError, ConfigError
from diffuser_policy.guides.trajectory import CLEAN, Trajectory
from diffuser_policy.planning.horizons import Horizons
from diffuser_policy.planning.plan import Following, Plan
from diffuser_policy.planning.ranking import FirstRanking, Ranking


class Planner:
    """Samples and ranks trajectories under conditions."""

    def __init__(
        self,
        sampler: Sampler,
        *,
        layout: TrajectoryLayout,
        normalizer: Normalizer,
        horizons: Horizons,
        num_candidates: int = 1,
        ranking: Ranking | None = None,
        guidance: Guidance | None = None,
        warm_start: float | None = None,
        warm_start_steps: int = 1,
        steadiness: float | None = None,
        pin_goal_velocity: bool = False,
        fingerprint: int = 0,
    ) -> None:
        """Combine the parts.

        Args:
            sampler: Runs the reverse process.
            layout: Columns of a trajectory.
            normalizer: Between environment units and the network's.
            horizons: How many env steps the plan of each row covers.
            num_candidates: Trajectories per row.
            ranking: How one of them is chosen.
            guidance: How a guide steers plans.
            warm_start: A new plan starts from what is left of the last one, noised to
                this share of the schedule; none: every plan starts from noise.
            warm_start_steps: Denoising steps of such a start.
            steadiness: By how much a new plan has to be better than what is left of
                the last one, in the unit of the ranking; none: what is left is no
                candidate.
            pin_goal_velocity: Pin zeros in the layout's "velocity" at the goal.
            fingerprint: A number that differs between planners with other weights.

        Raises:
            ConfigError: No candidates, or a goal velocity without a "velocity".
        """
        if num_candidates < 1:
            raise ConfigError(f"num_candidates must be positive, got {num_candidates}.")
        if pin_goal_velocity and "velocity" not in layout.aliases:
            raise ConfigError("goal_velocity needs a layout with the alias 'velocity'.")
        self.sampler, self.layout, self.normalizer = sampler, layout, normalizer
        self.horizons = horizons
        self.num_candidates = num_candidates
        self.ranking = FirstRanking() if ranking is None else ranking
        self.guidance = guidance
        self.warm_start = warm_start
        self.warm_start_steps = warm_start_steps
        self.steadiness = steadiness
        self.pin_goal_velocity = pin_goal_velocity
        self.fingerprint = fingerprint

    @property
    def stride(self) -> int:
        """Env steps between two planning steps."""
        return self.horizons.stride

    @torch.no_grad()
    def plan(
        self,
        observations: np.ndarray,
        goals: np.ndarray | None,
        generators: Sequence[torch.Generator],
        *,
        remaining: np.ndarray | None = None,
        previous: Following | None = None,
        conditions: Conditions | None = None,
        step_noise: bool = True,
        keep_chain: bool = False,
    ) -> Plan:
        """Plan for every row.

        Args:
            observations: `[rows, observation]` planning columns, environment units.
            goals: `[rows, goal]`, environment units, or none. Pinned at the last step
                if the layout has goal columns; guides see them in any case.
            generators: One source of noise per row, advanced by the call.
            remaining: `[rows]` env steps left, for shrinking horizons; negative: none.
            previous: Plans that rows follow, for warm starts and steadiness; length
                zero if a row follows none.
            conditions: What to pin besides start and goal, for plans of equal length.
            step_noise: Add noise while denoising; off, the initial noise alone decides.
            keep_chain: Keep the denoising chain; all rows need the same length.

        Raises:
            ConditionError: Conditions that don't fit the plan, or a chain of plans of
                different lengths or starts.
        """
        aims = goals if self.layout.goal_conditioned else None
        lengths = self.horizons.planning_steps(observations, aims, remaining)
        warm = np.zeros(len(lengths), np.bool_)
        if self.warm_start is not None and previous is not None:
            warm = previous.lengths > 0
        parts = []
        for rows in _batches(lengths, warm, alike=keep_chain):
            length, is_warm = int(lengths[rows[0]]), warm[rows[0]]
            targets = None if goals is None else goals[rows]
            given = self._conditions(observations[rows], targets)
            inpainting = (given | (conditions or Conditions())).compile(
                self.layout,
                self.normalizer,
                num_planning_steps=length,
                batch_size=len(rows),
            )
            going = None if previous is None else previous.rows(rows)
            start = None
            if is_warm and going is not None and self.warm_start is not None:
                start = WarmStart(
                    trajectories=self._left(going, length, targets),
                    level=self.warm_start,
                    num_steps=self.warm_start_steps,
                )
            samples = self.sampler.sample(
                inpainting,
                [generators[row] for row in rows.tolist()],
                num_candidates=self.num_candidates,
                steering=self._steering(targets),
                warm_start=start,
                step_noise=step_noise,
                keep_chain=keep_chain,
            )
            judged = self._judged(samples, going, targets, observations[rows])
            parts.append((rows, *judged))
        return self._collect(lengths, parts)

    def _conditions(
        self, observations: np.ndarray, goals: np.ndarray | None
    ) -> Conditions:
        given = Conditions().pin(0, "observation", _tensor(observations))
        if goals is None or not self.layout.goal_conditioned:
            return given
        given = given.pin(-1, "goal", _tensor(goals))
        if self.pin_goal_velocity:
            still = torch.zeros(len(self.layout.columns("velocity")))
            given = given.pin(-1, "velocity", still)
        return given

    def _left(
        self,
        previous: Following,
        length: int,
        goals: np.ndarray | None,
        start: np.ndarray | None = None,
    ) -> Tensor:
        """Return what is left of plans, `[rows, length, transition]`, normalized.

        Plans to a goal are stretched to end there. Others are shifted: there is no
        time to arrive at, and stretching would slow them down with every new plan.

        Args:
            previous: The plans.
            length: Planning steps of the new plans.
            goals: `[rows, goal]`, or none.
            start: `[rows, observation]` where the rows are, instead of where the plans
                say.
        """
        aimed = goals is not None and self.layout.goal_conditioned
        left = previous.rest(length, stretched=aimed)
        if start is not None:
            left[:, 0, self.layout.observations] = start
        rows = _tensor(left).to(self.normalizer.shift.device)
        return self.normalizer.normalize(rows)

    def _judged(
        self,
        samples: Samples,
        previous: Following | None,
        goals: np.ndarray | None,
        observations: np.ndarray,
    ) -> tuple[Samples, np.ndarray]:
        """Return candidates and their values; the last may be what is left of plans.

        All are ranked together, because a ranking may compare them. Rows without a
        plan get a copy of their first candidate that is never chosen.
        """
        none = None
        if self.steadiness is not None and previous is not None:
            length, none = samples.trajectories.shape[2], previous.lengths == 0
            left = self._left(previous, length, goals, observations)[:, None]
            rows = torch.as_tensor(none, device=left.device)
            left[rows] = samples.trajectories[rows, :1]
            samples = samples.with_candidates(left)
        count = samples.trajectories.shape[1]
        candidates = self._view(goals, count)(samples.trajectories.flatten(0, 1), CLEAN)
        values: np.ndarray = self.ranking(candidates, count).cpu().numpy()
        if none is not None:
            values = values.copy()
            values[:, -1] += self.steadiness
            values[none, -1] = -np.inf
        return samples, values

    def _view(
        self, goals: np.ndarray | None, num_candidates: int
    ) -> Callable[[Tensor, int], Trajectory]:
        """Return the function that shows guides normalized trajectories."""
        desired = None
        if goals is not None:
            repeated = np.repeat(goals, num_candidates, axis=0)
            with torch.inference_mode(False):  # gradients lead past it
                desired = _tensor(repeated)[:, None].to(self.normalizer.shift.device)

        def view(normalized: Tensor, denoising_step: int) -> Trajectory:
            return Trajectory(
                normalized=normalized,
                layout=self.layout,
                normalizer=self.normalizer,
                stride=self.stride,
                denoising_step=denoising_step,
                desired_goal=desired,
            )

        return view

    def _steering(
        self, goals: np.ndarray | None
    ) -> Callable[[Inpainting], Steering] | None:
        """Return what guides a sampling call, if anything does."""
        guidance = self.guidance
        if guidance is None or guidance.scale == 0.0:
            return None
        view = self._view(goals, self.num_candidates)
        schedule = self.sampler.denoiser.schedule
        scales = self.normalizer.scale
        return lambda given: guidance.steering(schedule, given, view, scales=scales)

    def _collect(
        self,
        lengths: np.ndarray,
        parts: Sequence[tuple[np.ndarray, Samples, np.ndarray]],
    ) -> Plan:
        """Put plans of all lengths into one batch, and choose."""
        layout, longest = self.layout, int(lengths.max())
        num_rows, num_candidates = len(lengths), parts[0][2].shape[1]
        observations = np.empty(
            (num_rows, num_candidates, longest, layout.observation_dim), np.float32
        )
        actions = np.zeros((num_rows, longest, layout.action_dim), np.float32)
        values = np.empty((num_rows, num_candidates), np.float32)
        chain = None
        for rows, samples, part_values in parts:
            values[rows] = part_values
            physical = self.normalizer.unnormalize(samples.trajectories).cpu().numpy()
            length = physical.shape[2]
            observations[rows, :, :length] = physical[..., layout.observations]
            observations[rows, :, length:] = observations[rows, :, length - 1 : length]
            best = part_values.argmax(axis=1)
            chosen_actions = physical[np.arange(len(rows)), best, :, layout.actions]
            actions[rows, :length] = chosen_actions
            if samples.chain is not None and len(parts) == 1:
                chain = self.normalizer.unnormalize(samples.chain).cpu().numpy()
                chain = chain[..., layout.observations]
        chosen = values.argmax(axis=1)
        return Plan(
            observations=observations[np.arange(num_rows), chosen],
            actions=actions,
            lengths=lengths,
            stride=self.stride,
            values=values,
            chosen=chosen,
            candidates=observations,
            chain=chain,
        )


def _batches(lengths: np.ndarray, warm: np.ndarray, *, alike: bool) -> list[np.ndarray]:
    """Return the rows of each sampling call: those of one length, all warm or cold.

    Args:
        lengths: `[rows]` planning steps.
        warm: `[rows]` whether they start from what is left of a plan.
        alike: Refuse to make more than one call.

    Raises:
        ConditionError: There would be more than one.
    """
    kinds = {*zip(lengths.tolist(), warm.tolist(), strict=True)}
    if alike and len(kinds) > 1:
        raise ConditionError(
            f"keep_chain needs plans of one length, all warm or all cold; these "
            f"rows need {np.unique(lengths).tolist()} planning steps, and "
            f"{warm.sum()} of {len(warm)} are warm. Plan for one row."
        )
    return [
        np.flatnonzero((lengths == length) & (warm == is_warm))
        for length, is_warm in sorted(kinds)
    ]


def _tensor(array: np.ndarray) -> Tensor:
    return torch.as_tensor(np.ascontiguousarray(array, dtype=np.float32))
