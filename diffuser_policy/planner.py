"""Planner: observations + goals (+ further conditions) → Plan.

    horizon of each row → conditions (+ guidance) → candidates → ranking → Plan

The first planning step is pinned to the current observation, the last one to the
goal, so *when* to arrive is part of the question. Three answers (`horizon`):

- fixed: always the training horizon (Janner et al. 2022). Replanning with it keeps
  the goal as far away as ever; it is meant for one plan per episode.
- shrinking: the training horizon at first, then what is left of it.
- predicted: the time-to-goal network's answer for this observation and goal, times
  `horizon_scale`, plus `horizon_offset`. Guides that lengthen the way need time.

All rows that get a plan of the same length are sampled in one batch: a shorter plan
padded to the length of another would be another plan. With a warm start, rows that have
a plan already start from what is left of it (Janner et al. 2022, §5.4), stretched over
the new horizon if there is a goal to arrive at, and are a batch of their own.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from diffuser_policy.conditions import Conditions, Inpainting
from diffuser_policy.errors import ConditionError, ConfigError, HorizonError
from diffuser_policy.executors import Following
from diffuser_policy.guidance import Guidance, Steering
from diffuser_policy.guides.trajectory import CLEAN, Trajectory
from diffuser_policy.layout import TrajectoryLayout
from diffuser_policy.normalizers import Normalizer
from diffuser_policy.plan import Plan
from diffuser_policy.ranking import FirstRanking, Ranking
from diffuser_policy.sampler import Sampler, Samples, WarmStart
from diffuser_policy.time_to_goal import TimeToGoal

HorizonChoice = Literal["fixed", "shrinking", "predicted"]


class Planner:
    """Samples and ranks trajectories under conditions."""

    def __init__(
        self,
        sampler: Sampler,
        *,
        layout: TrajectoryLayout,
        normalizer: Normalizer,
        horizon: int,
        min_horizon: int | None = None,
        stride: int = 1,
        horizon_multiple: int = 1,
        horizon_choice: HorizonChoice = "fixed",
        horizon_scale: float = 1.0,
        horizon_offset: int = 0,
        time_to_goal: TimeToGoal | None = None,
        num_candidates: int = 1,
        ranking: Ranking | None = None,
        guidance: Guidance | None = None,
        warm_start: float | None = None,
        warm_start_steps: int | None = None,
        pin_goal_velocity: bool = False,
    ) -> None:
        """Combine the parts.

        Args:
            sampler: Runs the reverse process.
            layout: Columns of a trajectory.
            normalizer: Between environment units and the network's.
            horizon: Longest plan, in env steps.
            min_horizon: Shortest plan, in env steps; by default the shortest that the
                network takes.
            stride: Env steps between two planning steps.
            horizon_multiple: Planning steps come in multiples of this.
            horizon_choice: How the horizon of a row is found.
            horizon_scale: Factor of a predicted horizon.
            horizon_offset: Env steps added to a predicted horizon; negative plans
                are more ambitious.
            time_to_goal: Needed for predicted horizons.
            num_candidates: Trajectories per row.
            ranking: How one of them is chosen.
            guidance: What plans are steered by.
            warm_start: Share of the schedule that what is left of a plan is noised to
                when it is made anew; none: every plan starts from noise.
            warm_start_steps: Denoising steps from there; that share of the sampler's,
                rounded up, if not given.
            pin_goal_velocity: Pin zeros in the layout's "velocity" at the goal.

        Raises:
            ConfigError: A choice that lacks what it needs.
        """
        if num_candidates < 1:
            raise ConfigError(f"num_candidates must be positive, got {num_candidates}.")
        if horizon_choice == "predicted" and time_to_goal is None:
            raise ConfigError(
                "horizon='predicted' needs a time-to-goal network, and this planner "
                "was trained without one. Use 'fixed' or 'shrinking', or train with "
                "--time-to-goal."
            )
        if pin_goal_velocity and "velocity" not in layout.aliases:
            raise ConfigError("goal_velocity needs a layout with the alias 'velocity'.")
        self.sampler, self.layout, self.normalizer = sampler, layout, normalizer
        self.stride, self.horizon_multiple = stride, horizon_multiple
        self.max_planning_steps = self._checked_steps(horizon)
        if min_horizon is None:
            min_horizon = horizon if horizon_choice == "fixed" else stride
        self.min_planning_steps = self.round_up(min_horizon / stride)
        self.horizon_choice = horizon_choice
        self.horizon_scale, self.horizon_offset = horizon_scale, horizon_offset
        self.time_to_goal = time_to_goal
        self.num_candidates = num_candidates
        self.ranking = FirstRanking() if ranking is None else ranking
        self.guidance = guidance
        self.warm_start = warm_start
        if warm_start is not None and warm_start_steps is None:
            # Rounded first: 0.07 * 100 is a little more than 7.
            warm_start_steps = math.ceil(round(warm_start * sampler.num_steps, 9))
        self.warm_start_steps = warm_start_steps
        self.pin_goal_velocity = pin_goal_velocity

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
            observations: `[rows, observation]`, environment units.
            goals: `[rows, goal]`, environment units, or none.
            generators: One source of noise per row, advanced by the call.
            remaining: `[rows]` env steps left of the previous plan, for shrinking
                horizons; negative where there is none.
            previous: Plans that rows are following, for warm starts; of length zero
                where there is none.
            conditions: Pinned besides start and goal, for plans of equal length.
            step_noise: Noise while denoising; off, the initial noise alone decides.
            keep_chain: Keep the denoising chain; all rows need the same length.

        Raises:
            ConditionError: Conditions that don't fit the plan, or a chain of plans of
                different lengths or starts.
        """
        lengths = self.planning_steps(observations, goals, remaining)
        warm = self._warm(lengths, previous)
        parts = []
        kinds = {*zip(lengths.tolist(), warm.tolist(), strict=True)}
        if keep_chain and len(kinds) > 1:
            raise ConditionError(
                f"keep_chain needs plans of one length, all warm or all cold; these "
                f"rows need {np.unique(lengths).tolist()} planning steps, and "
                f"{warm.sum()} of {len(warm)} are warm. Plan for one row."
            )
        for length, is_warm in sorted(kinds):
            rows = np.flatnonzero((lengths == length) & (warm == is_warm))
            targets = None if goals is None else goals[rows]
            given = self._conditions(observations[rows], targets)
            inpainting = (given | (conditions or Conditions())).compile(
                self.layout,
                self.normalizer,
                num_planning_steps=length,
                batch_size=len(rows),
            )
            samples = self.sampler.sample(
                inpainting,
                [generators[row] for row in rows.tolist()],
                num_candidates=self.num_candidates,
                steering=self._steering(targets),
                warm_start=self._start(previous, rows, length, targets),
                step_noise=step_noise,
                keep_chain=keep_chain,
            )
            parts.append((rows, samples, self._values(samples, targets)))
        return self._collect(lengths, parts)

    def planning_steps(
        self,
        observations: np.ndarray,
        goals: np.ndarray | None,
        remaining: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return the planning steps `[rows]` of the plans to make, as in `plan`."""
        full = np.full(len(observations), self.max_planning_steps)
        if self.horizon_choice == "fixed" or goals is None:
            return full
        if self.horizon_choice == "predicted":
            return self.steps_for(self.predict_time(observations, goals))
        if remaining is None:
            return full
        return np.where(remaining < 0, full, self.steps_within(remaining))

    def predict_time(self, observations: np.ndarray, goals: np.ndarray) -> np.ndarray:
        """Return the planned arrival time `[rows]` in env steps, scaled and offset.

        Raises:
            ConfigError: The planner has no time-to-goal network.
        """
        if self.time_to_goal is None:
            raise ConfigError("This planner has no time-to-goal network.")
        columns = self.layout.columns("observation")
        device = self.normalizer.shift.device
        states = self.normalizer.normalize(_tensor(observations).to(device), columns)
        targets = self.normalizer.normalize(
            _tensor(goals).to(device), self.layout.columns("goal")
        )
        with torch.inference_mode():
            times = self.time_to_goal(states, targets)
        predicted: np.ndarray = times.cpu().numpy()
        return self.horizon_scale * predicted + self.horizon_offset

    def steps_for(self, env_steps: np.ndarray) -> np.ndarray:
        """Return planning steps `[rows]` whose last one is that many env steps away."""
        wanted = np.ceil(np.maximum(env_steps, 0) / self.stride) + 1
        rounded = np.ceil(wanted / self.horizon_multiple) * self.horizon_multiple
        clipped = np.clip(rounded, self.min_planning_steps, self.max_planning_steps)
        steps: np.ndarray = clipped.astype(np.int64)
        return steps

    def steps_within(self, env_steps: np.ndarray) -> np.ndarray:
        """Return planning steps `[rows]` whose last one is at most that far away.

        Rounded down, so that a shrinking horizon never puts off the arrival; at the
        very end the shortest plan may.
        """
        fitting = np.floor(np.maximum(env_steps, 0) / self.stride) + 1
        rounded = np.floor(fitting / self.horizon_multiple) * self.horizon_multiple
        clipped = np.clip(rounded, self.min_planning_steps, self.max_planning_steps)
        steps: np.ndarray = clipped.astype(np.int64)
        return steps

    @cached_property
    def fingerprint(self) -> int:
        """A number that tells planners with other weights or columns apart."""
        checksum = zlib.crc32(repr((self.layout, self.stride)).encode())
        for part in (self.normalizer, self.sampler.denoiser):
            for tensor in part.state_dict().values():
                # As bytes: NumPy has no bfloat16.
                data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
                checksum = zlib.crc32(data.numpy(), checksum)
        return checksum

    @property
    def horizon_unit(self) -> int:
        """Env steps by which two plans can differ in length."""
        return self.stride * self.horizon_multiple

    def round_up(self, planning_steps: float) -> int:
        """Return the next multiple of planning steps that the network takes."""
        multiple = self.horizon_multiple
        return max(multiple, int(np.ceil(planning_steps / multiple)) * multiple)

    def _checked_steps(self, horizon: int) -> int:
        steps, rest = divmod(horizon, self.stride)
        if rest or steps < 1 or steps % self.horizon_multiple:
            raise HorizonError(
                f"The horizon must be a positive multiple of {self.horizon_unit} env "
                f"steps (stride "
                f"{self.stride} times {self.horizon_multiple}), got {horizon}."
            )
        return steps

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

    def _warm(self, lengths: np.ndarray, previous: Following | None) -> np.ndarray:
        """Return which rows `[rows]` start from what is left of their plan."""
        if self.warm_start is None or previous is None:
            return np.zeros(len(lengths), np.bool_)
        return previous.lengths > 0

    def _start(
        self,
        previous: Following | None,
        rows: np.ndarray,
        length: int,
        goals: np.ndarray | None,
    ) -> WarmStart | None:
        """Return what is left of some rows' plans, if they start from it.

        Plans to a goal are stretched to end there. Others are shifted: there is no
        time to arrive at, and stretching would slow them down with every new plan.
        """
        if previous is None or self.warm_start is None or self.warm_start_steps is None:
            return None
        if not previous.lengths[rows].all():
            return None
        aimed = goals is not None and self.layout.goal_conditioned
        left = previous.rows(rows).rest(length, stretched=aimed)
        return WarmStart(
            trajectories=self.normalizer.normalize(
                _tensor(left).to(self.normalizer.shift.device)
            ),
            level=self.warm_start,
            num_steps=self.warm_start_steps,
        )

    def _view(
        self, goals: np.ndarray | None, num_candidates: int
    ) -> Callable[[Tensor, int], Trajectory]:
        """Return what makes normalized trajectories into what guides see."""
        desired = None
        if goals is not None:
            repeated = np.repeat(goals, num_candidates, axis=0)
            desired = _tensor(repeated).to(self.normalizer.shift.device)

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
        return lambda given: guidance.steering(schedule, given, view)

    def _values(self, samples: Samples, goals: np.ndarray | None) -> np.ndarray:
        """Return what the ranking makes of candidates, `[rows, candidates]`."""
        view = self._view(goals, self.num_candidates)
        trajectory = view(samples.trajectories.flatten(0, 1), CLEAN)
        values: np.ndarray = self.ranking(trajectory, self.num_candidates).cpu().numpy()
        return values

    def _collect(
        self,
        lengths: np.ndarray,
        parts: Sequence[tuple[np.ndarray, Samples, np.ndarray]],
    ) -> Plan:
        """Put plans of all lengths into one batch, and choose."""
        layout, longest = self.layout, int(lengths.max())
        num_rows, num_candidates = len(lengths), self.num_candidates
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


def _tensor(array: np.ndarray) -> Tensor:
    return torch.as_tensor(np.ascontiguousarray(array, dtype=np.float32))
