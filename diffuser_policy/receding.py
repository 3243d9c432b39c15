"""Receding horizon: when to plan anew, and what to remember in between.

`RecedingHorizonPolicy.predict` follows Stable-Baselines3's contract. Everything it
remembers of an environment is a row of `PolicyState`, which the caller passes back:

    predict(observation)                     plans, every time; always right
    predict(observation, state)              follows the plan in `state`
    … episode_start=[True, False, …]         rows to forget

A row is planned for when it has no plan, its goal or guide changed, it strayed further
than `deviation` from the plan, its plan is `interval` env steps old, or a plan without
a goal (or one that the executor cannot hold) has run out. A plan made because of the
interval replaces the running one only if it arrives no later: what is left of a good
plan is not traded for a later arrival. With a planner that starts warm, rows that are
still on their plan hand over what is left of it.

Plans live in planning columns, which a featurizer may derive from observations
(`diffuser_policy.features`): there a plan is made, remembered, and strayed from.
"""

from __future__ import annotations

import dataclasses
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from diffuser_policy.errors import ConfigError, ObservationError
from diffuser_policy.executors import Executor, Following
from diffuser_policy.features import Featurizer, Identity, planning_columns
from diffuser_policy.planner import Planner
from diffuser_policy.policy_state import PolicyState
from diffuser_policy.spaces import SpaceSpec


@dataclass(frozen=True, kw_only=True)
class Replanning:
    """When a running plan is made anew.

    Attributes:
        interval: Env steps between plans; none: only when needed.
        deviation: Distance from the planned position in meters; none: any.
        keep_started: A row flagged as an episode start on two calls in a row keeps
            its plan. Stable-Baselines3's `evaluate_policy` leaves the flag up for
            environments that have no episodes left to give; only real episodes of a
            single step are confused with that.
    """

    interval: int | None = None
    deviation: float | None = None
    keep_started: bool = True

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.interval is not None and not self.interval >= 1:  # NaN is not
            raise ConfigError(f"replan_interval must be >= 1, got {self.interval}.")
        if self.deviation is not None and not self.deviation > 0:
            raise ConfigError(f"replan_deviation must be > 0, got {self.deviation}.")


class RecedingHorizonPolicy:
    """Plans, follows the plan, and plans anew when it has to."""

    def __init__(
        self,
        planner: Planner,
        executor: Executor,
        *,
        spaces: SpaceSpec,
        replanning: Replanning | None = None,
        featurizer: Featurizer | None = None,
        seed: int = 0,
    ) -> None:
        """Combine the parts.

        Args:
            planner: Makes plans.
            executor: Follows them.
            spaces: Observations and actions of the environment.
            replanning: When to plan anew.
            featurizer: Makes planning columns of observations; not given: they are
                the observations.
            seed: Noise of deterministic plans, and first of the random streams.

        Raises:
            ConfigError: An interval with a fixed horizon to a goal, or a bad seed.
        """
        self.planner, self.executor, self.spaces = planner, executor, spaces
        self.replanning = Replanning() if replanning is None else replanning
        self.featurizer = featurizer or Identity(spaces.planned_size)
        self.observation_space = spaces.observation_space()
        self.action_space = spaces.action_space()
        if (
            spaces.has_goal
            and self.replanning.interval is not None
            and planner.horizons.choice == "fixed"
        ):
            raise ConfigError(
                "replan_interval with horizon='fixed' would keep the goal a full "
                "horizon away for ever. Use horizon='shrinking' or 'predicted', or no "
                "replan_interval."
            )
        self.set_random_seed(seed)

    def set_random_seed(self, seed: int) -> None:
        """Restart the random streams that rows without a state are given.

        Raises:
            ConfigError: A negative seed.
        """
        if seed < 0:
            raise ConfigError(f"seed must not be negative, got {seed}.")
        self.seed = seed
        self._streams = np.random.default_rng(seed)

    def initial_state(
        self, num_envs: int, streams: np.ndarray | None = None
    ) -> PolicyState:
        """Return the state of environments that have no plan yet.

        Args:
            num_envs: Number of rows.
            streams: `[num_envs]` random stream of each row, non-negative; drawn from
                the policy's seed if not given.
        """
        layout, steps = self.planner.layout, self.planner.horizons.max_planning_steps
        if streams is None:
            streams = self._streams.integers(0, 2**63 - 1, num_envs)
        return PolicyState(
            observations=np.zeros(
                (num_envs, steps, layout.observation_dim), np.float32
            ),
            actions=np.zeros((num_envs, steps, layout.action_dim), np.float32),
            lengths=np.zeros(num_envs, np.int64),
            ages=np.zeros(num_envs, np.int64),
            progress=np.zeros(num_envs, np.float64),
            goals=np.zeros((num_envs, self.spaces.goal_size), np.float32),
            streams=np.array(streams, np.int64),
            num_plans=np.zeros(num_envs, np.int64),
            started=np.zeros(num_envs, np.bool_),
            planners=np.full(num_envs, self.planner.fingerprint, np.int64),
            guides=np.zeros(num_envs, np.int64),
        )

    def read(self, observation: Any) -> tuple[np.ndarray, np.ndarray | None]:
        """Return planning columns `[n, columns]` and goals `[n, goal]`, or none.

        Args:
            observation: Single or batched, as the environment returned it.

        Raises:
            ObservationError: An observation that cannot be planned from.
        """
        seen, goals, _ = self.spaces.read(observation)
        return planning_columns(self.featurizer, seen), goals

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, PolicyState]:
        """Return actions, and the state to pass to the next call.

        Args:
            observation: Single or batched, as the environment returned it.
            state: What the last call returned; nothing before the first.
            episode_start: `[n]` rows whose episode just began.
            deterministic: Fix the initial noise by the policy's seed and add none
                while denoising: the same observation and plan give the same action.

        Returns:
            Actions `[action]` or `[n, action]` inside the action space, and the state.

        Raises:
            ObservationError: An observation that cannot be planned from, or a state or
                flags for another number of environments. Nothing was changed.
        """
        seen, goals, batch = self.spaces.read(observation)
        rows = planning_columns(self.featurizer, seen)
        if not self.executor.sees_environment:
            seen = rows
        flags = _flags(episode_start, len(rows))
        current = self._incoming(state, len(rows)).for_goals(goals)
        forget = flags & ~(current.started & self.replanning.keep_started)
        if goals is not None:
            forget |= (goals != current.goals).any(axis=1)
        current = current._replace(
            lengths=np.where(forget, 0, current.lengths),
            ages=current.ages + 1,
            progress=self.executor.progress(self._following(current), seen),
            started=flags,
        )
        current = self._replan(current, rows, goals, deterministic=deterministic)
        actions = self.executor.act(self._following(current), seen)
        low, high = self.action_space.low, self.action_space.high
        clipped = np.clip(actions, low, high).astype(self.action_space.dtype)
        return clipped.reshape(*batch, *self.action_space.shape), current

    def _incoming(self, state: Any, num_rows: int) -> PolicyState:
        """Return the state that was passed in, checked, or a fresh one."""
        if state is None:
            return self.initial_state(num_rows)
        if not isinstance(state, tuple) or len(state) != len(PolicyState._fields):
            raise ObservationError(
                f"state must be what predict returned last, or None; got "
                f"{type(state).__name__}."
            )
        given = PolicyState(*state)
        if len(given.lengths) != num_rows:
            raise ObservationError(
                f"state remembers {len(given.lengths)} environments, but the "
                f"observation has {num_rows} rows."
            )
        layout, steps = self.planner.layout, self.planner.horizons.max_planning_steps
        expected = (num_rows, steps, layout.observation_dim)
        if given.observations.shape != expected:
            raise ObservationError(
                f"state is of another planner: its plans have shape "
                f"{given.observations.shape}, expected {expected}. Pass None at first."
            )
        if (given.planners != self.planner.fingerprint).any():
            raise ObservationError(
                "state is of another planner: same sizes, other weights. Its plans "
                "would be followed and built upon. Pass None at first, or the state "
                "that this policy returned."
            )
        return given

    def _following(self, state: PolicyState) -> Following:
        return Following(
            observations=state.observations,
            actions=state.actions,
            lengths=state.lengths,
            progress=state.progress,
            stride=self.planner.stride,
        )

    def _replan(
        self,
        state: PolicyState,
        rows: np.ndarray,
        goals: np.ndarray | None,
        *,
        deterministic: bool,
    ) -> PolicyState:
        """Plan for the rows that need it, in one call."""
        needed, optional = self._due(state, rows, goals)
        index = np.flatnonzero(needed | optional)
        if len(index) == 0:
            return state
        duration = (state.lengths - 1) * self.planner.stride
        remaining = np.maximum(duration - state.progress, 0)
        # Shrinking horizons are rounded down; a plan that must be is given the time.
        slack = np.where(needed, self.planner.horizons.unit - 1, 0)
        chosen_goals = None if goals is None else goals[index]
        plan = self.planner.plan(
            rows[index],
            chosen_goals,
            self._generators(state, rows, index, deterministic=deterministic),
            remaining=np.where(state.lengths > 0, remaining + slack, -1)[index],
            previous=self._underway(state, rows).rows(index),
            step_noise=not deterministic,
        )
        num_plans = state.num_plans.copy()
        num_plans[index] += 1
        state = state._replace(num_plans=num_plans)
        better = needed[index] | (plan.durations <= remaining[index])
        keep = np.flatnonzero(better)
        adopted = state.rows(index[keep])
        observations, actions = adopted.observations.copy(), adopted.actions.copy()
        steps = plan.observations.shape[1]
        observations[:, :steps] = plan.observations[keep]
        actions[:, :steps] = plan.actions[keep]
        adopted = adopted._replace(
            observations=observations,
            actions=actions,
            lengths=plan.lengths[keep],
            ages=np.zeros(len(keep), np.int64),
            progress=np.zeros(len(keep), np.float64),
            guides=np.full(len(keep), self._guide_key, np.int64),
        )
        if chosen_goals is not None:
            adopted = adopted._replace(goals=chosen_goals[keep])
        return state.with_rows(index[keep], adopted)

    def _due(
        self, state: PolicyState, rows: np.ndarray, goals: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return which rows need a plan, and which may get a better one."""
        aimed = goals is not None and self.planner.layout.goal_conditioned
        needed = (state.lengths == 0) | (state.guides != self._guide_key)
        duration = (state.lengths - 1) * self.planner.stride
        if not aimed or not self.executor.holds_goal:
            needed = needed | (state.progress > duration)
        if self.replanning.deviation is not None:
            needed = needed | (self._deviation(state, rows) > self.replanning.deviation)
        optional = np.zeros_like(needed)
        if self.replanning.interval is not None:
            underway = state.progress < duration
            optional = underway & (state.ages % self.replanning.interval == 0)
            if not aimed:
                needed, optional = needed | optional, np.zeros_like(needed)
        return needed, optional & ~needed

    @property
    def _guide_key(self) -> int:
        """A number that tells guidances apart; zero for none."""
        guidance = self.planner.guidance
        return 0 if guidance is None else guidance.key

    def _underway(self, state: PolicyState, rows: np.ndarray) -> Following:
        """Return the plans that are still followed; of length zero for other rows."""
        following = self._following(state)
        underway = state.progress < following.durations
        if self.replanning.deviation is not None:
            underway &= self._deviation(state, rows) <= self.replanning.deviation
        lengths = np.where(underway, state.lengths, 0)
        return dataclasses.replace(following, lengths=lengths)

    def _deviation(self, state: PolicyState, rows: np.ndarray) -> np.ndarray:
        """Return the distance `[n]` between planned and current position, meters.

        Without a position, it is that between all planning columns.
        """
        layout = self.planner.layout
        name = "position" if "position" in layout.aliases else "observation"
        columns = list(layout.observation_columns(name))
        planned = self._following(state).reference()[:, columns]
        distance: np.ndarray = np.linalg.norm(planned - rows[:, columns], axis=1)
        return np.where(state.lengths > 0, distance, 0.0)

    def _generators(
        self,
        state: PolicyState,
        rows: np.ndarray,
        index: np.ndarray,
        *,
        deterministic: bool,
    ) -> list[torch.Generator]:
        """Return the noise source of each row's next plan.

        Deterministic plans begin with the same noise where nothing is under way. A plan
        made anew gets noise that depends on where the row is: with the same every time,
        a policy that has come to a halt would plan its halt for ever.
        """
        if not deterministic:
            streams, numbers = state.streams[index], state.num_plans[index]
            keys = zip(streams.tolist(), numbers.tolist(), strict=True)
            return [_generator(stream, number) for stream, number in keys]
        return [
            _generator(self.seed, zlib.crc32(rows[row].tobytes()))
            if state.lengths[row] > 0
            else torch.Generator().manual_seed(self.seed)
            for row in index.tolist()
        ]


def _generator(stream: int, number: int) -> torch.Generator:
    words = np.random.SeedSequence((stream, number)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0]))


def _flags(episode_start: Any, num_rows: int) -> np.ndarray:
    """Return a fresh boolean array `[num_rows]`; callers reuse theirs in place."""
    if episode_start is None:
        return np.zeros(num_rows, np.bool_)
    flags = np.array(episode_start, np.bool_).reshape(-1)
    if len(flags) != num_rows:
        raise ObservationError(
            f"episode_start has {len(flags)} flags, but the observation has "
            f"{num_rows} rows."
        )
    return flags
