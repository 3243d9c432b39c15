"""Planner: observations + goals (+ further conditions) → Plan.

    horizon of each row → conditions (+ guidance) → candidates → ranking → Plan

The first planning step is pinned to the current observation, the last one to the goal.
`diffuser_policy.planning.horizons` chooses how many steps lie between them.

Rows whose plans have the same length are sampled in batches of at most `MOST_AT_ONCE`
trajectories, or of one row. Padding a shorter plan to the length of a longer one would
change it. With a warm start, rows that have a plan form batches of their own: they
start from the rest of it (Janner et al. 2022, §5.4), stretched over the new horizon if
there is a goal to arrive at.

*Satisficing* (Simon 1956, "Rational choice and the structure of the environment"): a
row gets all of its candidates only if a single one is not good enough by the ranking's
own measure, or if the row has reason to be careful. Both depend on that row alone.

With `steadiness`, the rest of a plan is itself a candidate, and a new one has to be
better by that much. Without it, a policy that replans every few steps may change its
mind as often.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from diffuser_policy.columns.layout import TrajectoryLayout
from diffuser_policy.columns.normalizers import Normalizer
from diffuser_policy.diffusion.conditions import Conditions, Inpainting
from diffuser_policy.diffusion.guidance import Guidance, Steering
from diffuser_policy.diffusion.sampler import Sampler, WarmStart
from diffuser_policy.errors import (
    CheckpointError,
    ConditionError,
    ConfigError,
    DiffuserPolicyError,
    MissingColumnsError,
    NotFiniteError,
    ObservationError,
    shown,
)
from diffuser_policy.guides.guide import Guide, value_of
from diffuser_policy.guides.trajectory import CLEAN, Trajectory
from diffuser_policy.numerics import plain_arithmetic, unusable, within_memory
from diffuser_policy.observations import is_finite
from diffuser_policy.planning.horizons import Horizons
from diffuser_policy.planning.plan import Following, Plan
from diffuser_policy.planning.ranking import FirstRanking, Ranking
from diffuser_policy.planning.routes import Routes

MOST_AT_ONCE = 1024  # trajectories of one sampling call: more are slower on a CPU
NUM_PROBES = 256  # actions for which a guide is asked whether it looks at them
FAR = 100.0  # normalized units; the data lie within a few


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
        satisficing: bool = False,
        routes: Routes | None = None,
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
            guidance: The guide that steers plans, and how; none: plans are unguided.
            warm_start: Share of the schedule to which the rest of a plan is noised, to
                start the next one; none: every plan starts from noise.
            warm_start_steps: Denoising steps from there.
            steadiness: How much better than the rest of a plan a new one has to be, in
                the unit of the ranking (squared normalized units for smoothness); none:
                the rest is no candidate.
            satisficing: Sample all candidates only where one is not good enough.
            routes: Finds subgoals for goals beyond the reach of a plan; none: plans
                lead to the goals.
            pin_goal_velocity: Pin zeros in the layout's "velocity" at the goal.
            fingerprint: A number that differs between planners with different weights.

        Raises:
            ConfigError: No candidates, or a goal velocity without a "velocity".
        """
        if num_candidates < 1:
            raise ConfigError(f"num_candidates must be positive, got {num_candidates}.")
        if pin_goal_velocity and "velocity" not in layout.aliases:
            raise ConfigError(
                "goal_velocity needs the planned velocities: observation columns named "
                "'velocity' (--window.velocity, WindowConfig.velocity). Without them, "
                "use goal_velocity=False."
            )
        self.sampler, self.layout, self.normalizer = sampler, layout, normalizer
        self.horizons, self.stride = horizons, horizons.stride
        self.num_candidates = num_candidates
        self.ranking = FirstRanking() if ranking is None else ranking
        self.guidance = guidance
        self.warm_start = warm_start
        self.warm_start_steps = warm_start_steps
        self.steadiness, self.satisficing = steadiness, satisficing
        self.routes = routes
        self.pin_goal_velocity = pin_goal_velocity
        self.fingerprint = fingerprint

    @plain_arithmetic()
    @torch.no_grad()
    def plan(
        self,
        observations: np.ndarray,
        goals: np.ndarray | None,
        generators: Sequence[torch.Generator],
        *,
        remaining: np.ndarray | None = None,
        failed: np.ndarray | None = None,
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
            remaining: `[rows]` env steps that are left of the row's last plan, for
                shrinking horizons; negative for a first plan, which is of full length.
            failed: `[rows]` planning steps of the last plan, in rows that strayed from
                it: they get all candidates, and more time if they are no nearer to the
                goal. Zero in all other rows, and in those that strayed on the way to a
                subgoal.
            previous: Plans to the goals that rows follow, for warm starts and
                steadiness; length zero if a row follows none. Unused for rows that
                now get a subgoal.
            conditions: What to pin besides start and goal.
            step_noise: Add noise while denoising; off, the initial noise alone decides.
            keep_chain: Keep the denoising chain; all rows need the same length.

        Raises:
            ConditionError: Conditions that don't fit the plan, or clash with each
                other, with start or goal; or a chain of plans of different lengths or
                starts.
            UnknownNameError: Conditions on columns that the layout does not have.
            ObservationError: No observations, other shapes, NaN or infinity, or an
                observation or goal too far from the planner's data.
            ConfigError: Another number of generators than of rows.
            GuideError: A guide that cannot steer or rank.
            FeaturizerError: A featurizer whose ranking fails.
            NotFiniteError: A plan with NaN or infinity in it.
            CheckpointError: The same, because weights are damaged.
            MemoryLimitError: More observations or candidates than fit into memory.
        """
        # The caller's own may change, and PyTorch takes none that are read-only.
        observations, aims = np.array(observations, np.float32, order="C"), None
        if goals is not None:
            goals = np.array(goals, np.float32, order="C")
        self._check(observations, goals, len(generators))
        if conditions is not None:
            conditions.check_rows(len(observations))
        if goals is not None and self.layout.goal_conditioned:
            if self.routes is None:
                aims = goals
            else:
                aims = self.routes.aims(observations, goals)
                if previous is not None:  # what is left leads past a subgoal
                    direct = (aims == goals).all(axis=1)
                    lengths = np.where(direct, previous.lengths, 0)
                    previous = dataclasses.replace(previous, lengths=lengths)
        try:
            lengths = self.horizons.planning_steps(
                observations, aims, remaining, failed
            )
        except NotFiniteError as error:
            raise self._explained(str(error), observations, goals) from error
        warm = np.zeros(len(lengths), np.bool_)
        if self.warm_start is not None and previous is not None:
            warm = previous.lengths > 0
        request = Request(
            observations=observations,
            goals=goals,
            aims=aims,
            generators=generators,
            lengths=lengths,
            warm=warm,
            previous=previous,
            conditions=conditions,
            step_noise=step_noise,
            keep_chain=keep_chain,
        )
        if keep_chain:
            request.check_alike()
        with within_memory(
            f"Planning for {len(lengths):,} observations with {self.num_candidates:,} "
            f"candidates each",
            "Pass fewer observations at a time, or lower num_candidates "
            "(--num-candidates).",
        ):
            if conditions is not None:  # refuse bad ones before any noise is drawn
                for rows in request.batches(np.arange(len(lengths)), MOST_AT_ONCE):
                    self._pinned(request.rows(rows))
            return self._plan(request, None if failed is None else failed > 0)

    def _check(
        self, observations: np.ndarray, goals: np.ndarray | None, num_generators: int
    ) -> None:
        """Refuse arrays that cannot be planned from; see `plan`.

        Raises:
            ObservationError: No rows, another shape, or NaN or infinity.
            ConfigError: Another number of generators than of rows.
        """
        size = self.layout.observation_dim
        if not observations.size or observations.shape[1:] != (size,):
            raise ObservationError(
                f"Planning needs at least one row of observations [rows, {size}], got "
                f"the shape {observations.shape}. Skip the call when there are no "
                f"rows; for a single one, pass observations[None]."
            )
        num_rows = len(observations)
        if num_generators != num_rows:
            raise ConfigError(
                f"Planning needs a generator for each row of observations, got "
                f"{num_generators} for {num_rows}."
            )
        if goals is not None:
            width: int | str = "goal"
            right = goals.ndim == 2 and len(goals) == num_rows
            if self.layout.goal_conditioned:
                width = len(self.layout.columns("goal"))
                right = goals.shape == (num_rows, width)
            if not right:
                raise ObservationError(
                    f"Planning needs a goal for each row of observations "
                    f"[{num_rows}, {width}], got the shape {goals.shape}."
                )
        for name, rows in (("observations", observations), ("goals", goals)):
            if rows is not None and not is_finite(rows):
                wrong = np.flatnonzero(~np.isfinite(rows).all(axis=1)).tolist()
                raise ObservationError(
                    f"The {name} hold NaN or infinity in rows {shown(wrong)}. Plan for "
                    f"the other rows, or correct the environment."
                )

    def _plan(self, request: Request, careful: np.ndarray | None) -> Plan:
        """Return the plans, of a single candidate where that is good enough."""
        done, parts = np.zeros(len(request.lengths), np.bool_), []
        aspiration = self.ranking.good_enough(self.stride)
        if self.satisficing and aspiration is not None and self.num_candidates > 1:
            hasty = np.flatnonzero(~done if careful is None else ~careful)
            for rows in request.batches(hasty, MOST_AT_ONCE):
                plan, judged = self._sample(request.rows(rows), 1)
                done[rows] = good = judged >= aspiration
                if good.any():
                    parts.append((rows[good], plan if good.all() else plan.rows(good)))
        count = self.num_candidates
        left, most = np.flatnonzero(~done), max(MOST_AT_ONCE // count, 1)
        parts += [
            (rows, self._sample(request.rows(rows), count)[0])
            for rows in request.batches(left, most)
        ]
        return Plan.joined(parts)

    def _explained(
        self, what: str, observations: np.ndarray, goals: np.ndarray | None
    ) -> DiffuserPolicyError:
        """Return an error that explains why a plan is not finite.

        Args:
            what: What is not, a sentence.
            observations: `[rows, observation]` that was planned from.
            goals: `[rows, goal]` that was planned for, or none.
        """
        networks = {
            "denoiser": self.sampler.denoiser,
            "normalizer": self.normalizer,
            "time_to_goal": self.horizons.time_to_goal,
        }
        weights = (
            (f"{part}.{name}", tensor)
            for part, network in networks.items()
            if network is not None
            for name, tensor in network.state_dict().items()
        )
        damaged = unusable(weights)
        if damaged is not None:
            return CheckpointError(
                f"{what} The planner's weights are damaged: {damaged} holds NaN or "
                f"enormous numbers. Copy the planner again, or train it again."
            )
        layout = self.layout
        for name, rows in (("observation", observations), ("goal", goals)):
            if rows is None or name not in layout.names:
                continue
            columns = list(layout.columns(name))
            off = self.normalizer.normalize(
                _tensor(rows).to(self.normalizer.shift.device), columns
            )
            column = int(off.abs().amax(dim=0).argmax())
            furthest = int(off[:, column].abs().argmax())
            if abs(float(off[furthest, column])) <= FAR:
                continue
            middle = float(self.normalizer.shift[columns[column]])
            spread = float(self.normalizer.scale[columns[column]])
            return ObservationError(
                f"{what} The {name} is too far from the data that the planner was "
                f"trained on: column {column} is {rows[furthest, column]:g}, and in "
                f"the data it is {middle:g} ± {spread:g}. Check units and order of "
                f"the columns."
            )
        return NotFiniteError(
            f"{what} Something is too large to compute with: a condition, a guide, or "
            f"a setting such as temperature, guide_scale or ranking_weight. Lower it."
        )

    def _sample(self, request: Request, num_candidates: int) -> tuple[Plan, np.ndarray]:
        """Return plans of one length, which all start warm or all start cold.

        With steadiness, the rest of a plan is its row's last candidate.

        Returns:
            Plans, and how good they are `[rows]` by the measure of `good_enough`.
        """
        layout, goals, previous = self.layout, request.goals, request.previous
        samples = self.sampler.sample(
            self._pinned(request),
            request.generators,
            num_candidates=num_candidates,
            steering=self._steering(goals, num_candidates),
            warm_start=self._warm_start(request),
            step_noise=request.step_noise,
            keep_chain=request.keep_chain,
        )
        trajectories, chain, without = samples.trajectories, samples.chain, None
        running = previous is not None and bool((previous.lengths > 0).any())
        if self.steadiness is not None and previous is not None and running:
            trajectories, without = self._with_rest(trajectories, request, previous)
            if chain is not None:  # the rest of a plan is not denoised
                rest = trajectories[:, -1:].expand(len(chain), -1, -1, -1, -1)
                chain = torch.cat([chain, rest], dim=2)
        count = trajectories.shape[1]
        seen = self._view(goals, count)(trajectories.flatten(0, 1), CLEAN)
        values, judged = (x.cpu().numpy() for x in self.ranking.judged(seen, count))
        if without is not None:
            values = values.copy()
            values[:, -1] += self.steadiness
            values[without, -1] = -np.inf
        physical = self.normalizer.unnormalize(trajectories).cpu().numpy()
        if not np.isfinite(physical).all():
            what = "Some planned states or actions are NaN or infinite."
            raise self._explained(what, request.observations, goals)
        if np.isnan(values).any():
            what = f"{type(self.ranking).__name__} values some plans as NaN."
            raise self._explained(what, request.observations, goals)
        chosen = values.argmax(axis=1)
        every, counts = np.arange(len(chosen)), np.full(len(chosen), count)
        if without is not None:
            counts -= without
        taken = physical[every, chosen]
        if chain is not None:
            chain = self.normalizer.unnormalize(chain)[..., layout.observations].cpu()
        plan = Plan(
            observations=taken[..., layout.observations],
            actions=taken[..., layout.actions],
            lengths=request.lengths,
            stride=self.stride,
            values=values,
            chosen=chosen,
            num_candidates=counts,
            candidates=physical[..., layout.observations],
            chain=None if chain is None else chain.numpy(),
            aims=request.aims,
        )
        return plan, judged[every, chosen]

    def _pinned(self, request: Request) -> Inpainting:
        """Return the conditions: start, aim, and further ones."""
        given = Conditions().pin(0, "observation", _tensor(request.observations))
        if request.aims is not None:
            given = given.pin(-1, "goal", _tensor(request.aims))
            if self.pin_goal_velocity:
                size = len(self.layout.columns("velocity"))
                still = torch.zeros(size, dtype=torch.float32)
                given = given.pin(-1, "velocity", still)
        every = given if request.conditions is None else given | request.conditions
        compiled = every.compile(
            self.layout,
            self.normalizer,
            num_planning_steps=request.length,
            batch_size=len(request.lengths),
        )
        if request.conditions is not None:
            given.check_clashes(request.conditions, self.layout, request.length)
        return compiled

    def _steering(
        self, goals: np.ndarray | None, num_candidates: int
    ) -> Callable[[Inpainting], Steering] | None:
        """Return what makes the guidance of a sampling call; none if unguided."""
        if self.guidance is None or self.guidance.scale == 0.0:
            return None
        return partial(
            self.guidance.steering,
            self.sampler.denoiser.schedule,
            view=self._view(goals, num_candidates),
            scales=self.normalizer.scale,
        )

    def _warm_start(self, request: Request) -> WarmStart | None:
        """Return the rest of the plans to start from; none for a cold start."""
        previous = request.previous
        if not request.warm[0] or previous is None or self.warm_start is None:
            return None
        return WarmStart(
            trajectories=self._rest(previous, request),
            level=self.warm_start,
            num_steps=self.warm_start_steps,
        )

    def _with_rest(
        self, trajectories: Tensor, request: Request, previous: Following
    ) -> tuple[Tensor, np.ndarray]:
        """Return the candidates with the rest of each row's plan as the last one.

        A row without a plan gets a copy of its first candidate, which is never chosen.
        All are ranked together: a ranking may compare them.

        Returns:
            Candidates `[rows, candidates + 1, length, transition]`, and which rows
            have no plan `[rows]`.
        """
        without = previous.lengths == 0
        rest = self._rest(previous, request, start=request.observations)[:, None]
        rows = torch.as_tensor(without, device=rest.device)
        rest[rows] = trajectories[rows, :1]
        return torch.cat([trajectories, rest], dim=1), without

    def _rest(
        self,
        previous: Following,
        request: Request,
        *,
        start: np.ndarray | None = None,
    ) -> Tensor:
        """Return the rest of plans, `[rows, length, transition]`, normalized.

        Plans to a goal are stretched to end there. Others are shifted: they have no
        arrival time, and stretching would slow them down with every new plan.

        Args:
            previous: The plans.
            request: What the new plans are for.
            start: `[rows, observation]` where the rows are, to replace the state in
                which the plans expect them.
        """
        rest = previous.rest(request.length, stretched=request.aims is not None)
        if start is not None:
            rest[:, 0, self.layout.observations] = start
        rows = _tensor(rest).to(self.normalizer.shift.device)
        return self.normalizer.normalize(rows)

    @plain_arithmetic()
    @torch.no_grad()
    def idle_guides(self) -> list[Guide]:
        """Return the guides that cannot change a plan.

        The current observation is pinned. A plan of one planning step leaves only its
        actions to steer. A guide is idle if it can be computed without actions, and if
        its value is the same for all actions. Errors of a guide are left to its use.
        """
        if self.guidance is None or self.horizons.max_planning_steps > 1:
            return []
        layout, shift, scale = self.layout, self.normalizer.shift, self.normalizer.scale
        generator = torch.Generator().manual_seed(0)
        plans = torch.zeros(NUM_PROBES, 1, layout.transition_dim, dtype=torch.float32)
        actions = plans[..., layout.actions]  # up to three standard deviations
        actions.uniform_(-3.0, 3.0, generator=generator)
        plans, states = plans.to(shift.device), layout.observations
        with_actions = self._view(None, 1)(plans, CLEAN)
        without = dataclasses.replace(
            with_actions,
            normalized=plans[..., states],
            layout=dataclasses.replace(layout, action_dim=0),
            normalizer=Normalizer(shift[states], scale[states]),
        )
        found = []
        for _, guide in self.guidance.guide.parts():
            with contextlib.suppress(DiffuserPolicyError):
                value_of(guide, without)
                values = value_of(guide, with_actions)
                if bool(torch.isclose(values, values[0], rtol=1e-5, atol=0.0).all()):
                    found.append(guide)
        return found

    @torch.no_grad()
    def check_guide(self) -> None:
        """Compute the guide once, on noise. Other errors are left to its use.

        Raises:
            MissingColumnsError: It asks for columns that plans do not have.
        """
        if self.guidance is None:
            return
        shape = 1, self.horizons.max_planning_steps, self.layout.transition_dim
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(shape, generator=generator, dtype=torch.float32)
        shown = self._view(None, 1)(noise.to(self.normalizer.shift.device), CLEAN)
        for _, guide in self.guidance.guide.parts():
            try:
                value_of(guide, shown)
            except MissingColumnsError:
                raise
            except DiffuserPolicyError:  # it may need a goal, or what a plan looks like
                continue

    def _view(
        self, goals: np.ndarray | None, num_candidates: int
    ) -> Callable[[Tensor, int], Trajectory]:
        """Return the function that shows normalized trajectories to guides."""
        desired = None
        if goals is not None:
            repeated = np.repeat(goals, num_candidates, axis=0)
            with torch.inference_mode(False):  # gradients lead past it
                desired = _tensor(repeated)[:, None].to(self.normalizer.shift.device)
        return lambda normalized, denoising_step: Trajectory(
            normalized=normalized,
            layout=self.layout,
            normalizer=self.normalizer,
            stride=self.stride,
            denoising_step=denoising_step,
            desired_goal=desired,
        )


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to plan for, row by row; see `Planner.plan`.

    Attributes:
        aims: `[rows, goal]` where plans lead: to the goals, or to subgoals.
        lengths: `[rows]` planning steps.
        warm: `[rows]` whether they start from the rest of a plan.
    """

    observations: np.ndarray
    goals: np.ndarray | None
    aims: np.ndarray | None
    generators: Sequence[torch.Generator]
    lengths: np.ndarray
    warm: np.ndarray
    previous: Following | None
    conditions: Conditions | None
    step_noise: bool
    keep_chain: bool

    @property
    def length(self) -> int:
        """Planning steps of every row, in the request of a sampling call."""
        return int(self.lengths[0])

    def rows(self, index: np.ndarray) -> Request:
        """Return the part for some rows, in increasing order."""
        if len(index) == len(self.lengths):
            return self
        conditions = self.conditions
        if conditions is not None:
            conditions = conditions.rows(index, len(self.lengths))
        return dataclasses.replace(
            self,
            observations=self.observations[index],
            goals=None if self.goals is None else self.goals[index],
            aims=None if self.aims is None else self.aims[index],
            generators=[self.generators[row] for row in index.tolist()],
            lengths=self.lengths[index],
            warm=self.warm[index],
            previous=None if self.previous is None else self.previous.rows(index),
            conditions=conditions,
        )

    def batches(self, rows: np.ndarray, most: int) -> list[np.ndarray]:
        """Return some rows by sampling call: those of one length, all warm or cold.

        Args:
            rows: To plan for, in increasing order.
            most: Rows of one call.
        """
        if len(rows) < 2:  # in every env step: be quick
            return [rows] if len(rows) else []
        kind = 2 * self.lengths[rows] + self.warm[rows]
        groups = [rows[kind == each] for each in np.unique(kind)]
        return [
            group[begin : begin + most]
            for group in groups
            for begin in range(0, len(group), most)
        ]

    def check_alike(self) -> None:
        """Refuse rows of different lengths or starts.

        Raises:
            ConditionError: There are some.
        """
        if len({*zip(self.lengths.tolist(), self.warm.tolist(), strict=True)}) > 1:
            raise ConditionError(
                f"keep_chain needs plans of one length, all warm or all cold; these "
                f"rows need {np.unique(self.lengths).tolist()} planning steps, and "
                f"{self.warm.sum()} of {len(self.warm)} are warm. Plan for one row."
            )


def _tensor(array: np.ndarray) -> Tensor:
    return torch.as_tensor(np.ascontiguousarray(array, dtype=np.float32))
