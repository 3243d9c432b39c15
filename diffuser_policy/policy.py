"""DiffuserPolicy: a trained planner as a policy for any Gymnasium loop.

    policy = DiffuserPolicy.from_pretrained("multi2d-large")
    action, state = policy.predict(observation)

`predict` follows Stable-Baselines3's contract. Its whole memory of an environment is a
row of `PolicyState`, which the caller passes back:

    predict(observation)                     plans on every call; always right
    predict(observation, state)              follows the plan in `state`
    … episode_start=[True, False, …]         rows to forget

A row gets a new plan when

- it has none,
- its goal or the guide changed,
- it strayed further than `replan_deviation` from its plan,
- its plan is `replan_interval` env steps old (and the new one arrives no later, if
  there is a goal to which it leads), or
- its plan has run out, and there is no goal to stay at (or the executor cannot, or it
  led to a subgoal).

With a warm start, a row that still follows a plan starts the new one from its rest.

Plans are made, remembered and followed in planning columns, which a featurizer may
derive from observations (`diffuser_policy.columns.features`).
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffuser_policy.build import (
    PlannerNetworks,
    build_executor,
    build_planner,
    config_featurizer,
)
from diffuser_policy.checkpoint import read_planner, write_planner
from diffuser_policy.choices import Acceleration
from diffuser_policy.columns.features import planning_columns
from diffuser_policy.config import ExecutionConfig, PlannerConfig, PolicyConfig
from diffuser_policy.diffusion.conditions import Conditions
from diffuser_policy.errors import (
    ConditionError,
    ConfigError,
    NotFiniteError,
    ObservationError,
    UnknownNameError,
    shown,
)
from diffuser_policy.export import write_export
from diffuser_policy.files import usable_folder
from diffuser_policy.guides.guide import Guide, GuideFunction, as_guide, described
from diffuser_policy.interrupts import forkable_lock
from diffuser_policy.needs import PLANNING_NEEDS, REST_NEEDS, refuse_idle
from diffuser_policy.numerics import (
    find_device,
    plain_arithmetic,
    stream_generator,
    within_memory,
)
from diffuser_policy.observations import SCALING, is_finite, scaling_wrappers
from diffuser_policy.planning.plan import Following, Plan
from diffuser_policy.planning.ranking import has_feasibility
from diffuser_policy.planning.replanning import Reasons
from diffuser_policy.planning.state import STATE_DTYPES, PolicyState
from diffuser_policy.settings import converted, from_json, seed_or_drawn, to_json
from diffuser_policy.spaces import into_box
from diffuser_policy.words import counted

# Held while any policy draws random streams or gives some back. It takes microseconds,
# and policies that hold locks of their own could not be copied.
_DRAWING = forkable_lock()


class DiffuserPolicy:
    """Plans by denoising a whole trajectory, and follows the plan."""

    def __init__(
        self, config: PolicyConfig, networks: PlannerNetworks, *, seed: int | None = 0
    ) -> None:
        """Build the policy that the settings describe.

        Args:
            config: Settings of a planner.
            networks: Its weights.
            seed: Fixes the noise of deterministic plans, and the random streams; a
                whole number from 0 to 2**63 - 1. None: drawn at random.

        Raises:
            ConfigError: Settings that contradict each other or the weights, or a seed
                of another kind.
            FeaturizerError: Its featurizer is not registered here, or another version.
        """
        self.config, self.networks, self.spaces = config, networks, config.spaces
        self.featurizer = config_featurizer(config)
        self.planner = build_planner(config, networks, self.featurizer)
        self.executor = build_executor(config, networks, self.featurizer)
        self.observation_space = self.spaces.observation_space()
        self.action_space = self.spaces.action_space()
        self.set_random_seed(seed_or_drawn(seed))

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, seed: int | None = 0, **settings: Any
    ) -> DiffuserPolicy:
        """Load a planner by path, by the name of a shipped one, or by hub id.

        Args:
            source: For example "multi2d-large", "runs/mine", "someone/theirs" or, with
                a commit, branch or tag of the hub's, "someone/theirs@v2".
            seed: As in the constructor.
            settings: Planning and execution settings to change, as in `with_settings`.

        Raises:
            CheckpointNotFoundError: No planner of that name.
            CheckpointError: Truncated, foreign, or of another schema.
            GuideError: It was saved with a guide of a package that is not installed.
            FeaturizerError: It plans in columns of a package that is not installed.
            UnknownNameError: A setting that does not exist.
            ConfigError: Settings that contradict each other, or have no effect.
        """
        config, networks = read_planner(source)
        return cls(_changed(config, settings), networks, seed=seed)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json, model.safetensors and a model card.

        Args:
            folder: Created if needed; each file is replaced atomically.

        Raises:
            StorageError: A file is there, out of space, or not permitted; complete
                files stay.
        """
        write_planner(usable_folder(folder), self.config, self.networks)

    @plain_arithmetic()
    def export(self, folder: str | Path) -> None:
        """Write the planner as ONNX files, which plan without PyTorch.

        Args:
            folder: Created if needed; gets `planner.json` and a file for each network,
                as `diffuser_policy.export` describes. The documentation has a program
                that plans with them.

        Raises:
            ConfigError: It plans with a guide, in derived columns, or with a ranking
                that takes Python.
            MissingExtraError: `onnx` is not installed.
            StorageError: A file is there, out of space, or not permitted.
        """
        write_export(usable_folder(folder), self.planner, self.featurizer)

    @plain_arithmetic()
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
            state: The state that the last call returned; None at first.
            episode_start: `[n]` rows whose episode just began.
            deterministic: The policy's seed fixes the initial noise, and none is added
                while denoising: the same observation and plan give the same action.

        Returns:
            Actions, one or `n`, inside the action space and in its type, and the state.
            Whole numbers are rounded to the nearest.

        Raises:
            ObservationError: An observation that cannot be planned from, a state that
                this policy did not return, or flags for another number of environments.
            GuideError: A guide that cannot steer or rank.
            FeaturizerError: A featurizer that fails.
            NotFiniteError: A plan or an action that would be NaN or infinite.
            CheckpointError: The same, because weights are damaged.
            MemoryLimitError: More observations than fit into memory.

        After an error, the policy is as it was before the call.
        """
        seen, goals, batch = self.spaces.read(observation)
        rows = planning_columns(self.featurizer, seen)
        if not self.executor.sees_environment:
            seen = rows
        begun: contextlib.AbstractContextManager[PolicyState]
        if state is None:
            begun = self._fresh_unless_failing(len(rows))
        else:
            begun = contextlib.nullcontext(self._checked(state, len(rows)))
        with begun as current:
            forget = _flags(episode_start, len(rows))
            actions, following = self._followed(
                current, rows, goals, seen, forget, deterministic=deterministic
            )
            inside = into_box(self.action_space, actions)
            return inside.reshape((*batch, *self.action_space.shape)), following

    def _followed(
        self,
        current: PolicyState,
        rows: np.ndarray,
        goals: np.ndarray | None,
        seen: np.ndarray,
        forget: np.ndarray,
        *,
        deterministic: bool,
    ) -> tuple[np.ndarray, PolicyState]:
        """Return actions `[n, action]` and the next state.

        Args:
            current: The state.
            rows: `[n, columns]` planning columns.
            goals: `[n, goal]`, or none.
            seen: `[n, observation]` what the executor sees.
            forget: `[n]` whether a row's episode just began.
            deterministic: As in `predict`.
        """
        current = current.for_goals(goals)
        known = (current.lengths > 0) & ~forget
        before = np.where(known[:, None], current.previous, rows)
        if goals is not None:
            forget |= (goals != current.goals).any(axis=1)
        current = current._replace(
            lengths=np.where(forget, 0, current.lengths),
            ages=current.ages + 1,
            progress=self.executor.progress(self._following(current), seen),
            previous=before,
        )
        current = self._replan(current, rows, goals, deterministic=deterministic)
        actions = self.executor.act(self._following(current), seen)
        if not is_finite(current.progress) or (
            not is_finite(actions) and np.isnan(actions).any()
        ):
            broken = np.isnan(actions).any(axis=1) | ~np.isfinite(current.progress)
            row = int(np.argmax(broken))
            raise NotFiniteError(
                f"The executor {self.config.execution.executor!r} cannot follow the "
                f"plan of row {row}: its action would be "
                f"{shown(actions[row].tolist())}, at a progress of "
                f"{current.progress[row]:g} env steps. Lower its settings "
                f"(position_gain, velocity_gain, lookahead), or check the units of the "
                f"observation."
            )
        return actions, current._replace(previous=rows)

    @plain_arithmetic()
    def plan(
        self,
        observation: Any,
        *,
        state: PolicyState | None = None,
        conditions: Conditions | None = None,
        keep_chain: bool = False,
    ) -> Plan:
        """Return the plan for an observation, to look at or to draw.

        Args:
            observation: Single or batched.
            state: From `initial_state`; the plan is then the one that `predict` makes
                with it. Not given: the plan of `predict(…, deterministic=True)`.
            conditions: What to pin besides start and goal.
            keep_chain: Keep the trajectories of every denoising step.

        Raises:
            ObservationError: An observation that cannot be planned from, or a state of
                another policy or with plans under way.
            GuideError: A guide that cannot steer or rank.
            FeaturizerError: A featurizer that fails.
            NotFiniteError: A plan with NaN or infinity in it.
            CheckpointError: The same, because weights are damaged.
            ConditionError: Conditions that do not fit the plan, or clash with each
                other, with the observation or with the goal.
            UnknownNameError: Conditions on columns that the planner does not have.
            MemoryLimitError: More observations than fit into memory.
        """
        if conditions is not None and not isinstance(conditions, Conditions):
            raise ConditionError(
                f"Make conditions with Conditions().pin(…), got {shown(conditions)}."
            )
        rows, goals = self.read(observation)
        if state is None:
            generators = [torch.Generator().manual_seed(self.seed) for _ in rows]
        else:
            state = self._checked(state, len(rows))
            if state.lengths.any():
                raise ObservationError(
                    "plan() makes a first plan, but state already has plans under "
                    "way. Pass a state from initial_state(), or none."
                )
            index = np.arange(len(rows))
            generators = self._generators(state, index, deterministic=False)
        return self.planner.plan(
            rows,
            goals,
            generators,
            conditions=conditions,
            keep_chain=keep_chain,
            step_noise=state is not None,
        )

    @plain_arithmetic()
    def routes(self, observation: Any) -> list[np.ndarray]:
        """Return where plans lead one after the other, `[places, goal]` of each row.

        The last place is the goal. It is the only one if the plan leads straight to it:
        without `subgoal`, if it is near enough, or if no way is known.

        Args:
            observation: Single (one row) or batched.

        Raises:
            ObservationError: An observation that cannot be planned from.
            FeaturizerError: A featurizer that fails.
            ConfigError: The planner has no goals.
        """
        rows, goals = self.read(observation)
        if goals is None or not self.planner.layout.goal_conditioned:
            raise ConfigError("This planner has no goals, so no route leads to one.")
        if self.planner.routes is None:
            return [goal[None].copy() for goal in goals]
        return self.planner.routes.to(rows, goals)

    def initial_state(
        self, num_envs: int, streams: np.ndarray | None = None
    ) -> PolicyState:
        """Return the state of environments that have no plan yet.

        Args:
            num_envs: Number of rows.
            streams: `[num_envs]` random stream of each row, a whole number from 0 to
                2**63 - 1; drawn from the policy's seed if not given.

        Raises:
            ConfigError: Another kind of number, or of streams.
            MemoryLimitError: More environments than fit into memory.
        """
        count = converted(num_envs, int, "num_envs")
        if count < 0:
            raise ConfigError(f"num_envs must be 0 or more, got {num_envs}.")
        with within_memory(f"The state of {count:,} environments", "Use fewer."):
            state = PolicyState(
                **{
                    name: np.zeros((count, *shape), STATE_DTYPES[name])
                    for name, shape in self._state_shapes().items()
                }
            )
            state.planners[:] = self.planner.fingerprint
            if streams is None:
                with _DRAWING:
                    state.streams[:] = self._streams.integers(0, 2**63 - 1, count)
                return state
        given = np.asarray(streams)
        if given.shape != (count,) or given.dtype.kind not in "iu":
            raise ConfigError(
                f"streams must be {count} whole numbers, one for each environment; "
                f"got {shown(streams)}."
            )
        state.streams[:] = given
        if (state.streams < 0).any():
            row = int(np.argmax(state.streams < 0))
            raise ConfigError(
                f"streams must be whole numbers from 0 to 2**63 - 1, and that of "
                f"environment {row} is {given[row]}."
            )
        return state

    def set_random_seed(self, seed: int | None) -> None:
        """Restart the random streams, from which rows without a state take theirs.

        Args:
            seed: A whole number from 0 to 2**63 - 1. None changes nothing, as in
                Stable-Baselines3.

        Raises:
            ConfigError: A seed of another kind.
        """
        if seed is None:
            return
        self.seed = seed_or_drawn(seed)
        self._streams = np.random.default_rng(self.seed)

    @plain_arithmetic()
    def read(self, observation: Any) -> tuple[np.ndarray, np.ndarray | None]:
        """Return planning columns `[n, columns]` and goals `[n, goal]`, or none.

        Args:
            observation: Single or batched, as the environment returned it.

        Raises:
            ObservationError: An observation that cannot be planned from.
            FeaturizerError: A featurizer that fails.
        """
        seen, goals, _ = self.spaces.read(observation)
        return planning_columns(self.featurizer, seen), goals

    def with_settings(self, **settings: Any) -> DiffuserPolicy:
        """Return a policy that shares the weights and plans or executes differently.

        Args:
            settings: Fields of `PlannerConfig` and `ExecutionConfig`, for example
                `num_sampling_steps=3, horizon="fixed", replan_interval=10`.

        Raises:
            UnknownNameError: A setting that neither has; the nearest are named.
            ConfigError: Settings that contradict each other, or have no effect.
        """
        config = _changed(self.config, settings)
        return self._rebuilt(config, self.networks)

    def with_guide(
        self, guide: Guide | GuideFunction | None, **settings: Any
    ) -> DiffuserPolicy:
        """Return a policy that shares the weights and is steered by a guide.

        Args:
            guide: A guide, a sum of guides, a plain function of a `Trajectory`, or
                none to plan without. It replaces the current guide. Guided plans take
                at least `min_guided_steps` denoising steps.
            settings: As in `with_settings`, for example `guide_scale=2.0,
                guide_placement="mean", ranking="guide"`.

        Raises:
            GuideError: Neither a guide nor a function that can be one.
            UnknownNameError: A setting that does not exist.
            ConfigError: Settings that contradict each other or have no effect, a guide
                on states for plans of one planning step, or a guide that neither steers
                (the planner's `guide_scale` is 0) nor ranks.
        """
        chosen = None if guide is None else as_guide(guide)
        if chosen is None and self.config.planner.ranking == "guide":
            usual = "smoothness"
            if has_feasibility(self.featurizer):
                usual = "feasibility"
            elif self.networks.time_to_goal is not None:
                usual = "time_to_goal"
            settings = {"ranking": usual, **settings}
        config = _changed(self.config, settings, guide=chosen)
        policy = self._rebuilt(config, self.networks)
        if chosen is not self.config.guide:  # a saved one is no mistake of the user's
            if "guide_scale" not in settings:  # else the user turned it off
                _refuse_switched_off(config)
            _refuse_idle_guides(policy.planner.idle_guides())
        return policy

    @property
    def guide(self) -> Guide | None:
        """The guide that steers plans, if there is one, as it was given.

        Guides such as `value` take the planner's networks only where plans are made:
        `policy.planner.guidance.guide` is the one that has them.
        """
        return self.config.guide

    def accelerated(self, acceleration: Acceleration) -> DiffuserPolicy:
        """Return a policy that shares the weights and runs the denoiser another way.

        Plans stay the same up to rounding. If this machine lacks the acceleration, an
        `AccelerationWarning` names it, and planning works without it. Residual networks
        (`config.network.residual`), such as that of `kuka-stack`, always run as they
        are written; the warning says that, too.

        Args:
            acceleration: "auto", "off", "fused", "compile" or "cuda-graphs", see
                `diffuser_policy.networks.runtime`.

        Raises:
            UnknownNameError: An acceleration that does not exist.
        """
        denoiser = self.networks.denoiser.accelerated(acceleration)
        networks = self.networks.with_denoiser(denoiser)
        return self._rebuilt(self.config, networks)

    def for_env(self, env: Any) -> DiffuserPolicy:
        """Return a policy that shares the weights and reads an environment's arrays.

        Observations of the planner's own structure do not need this. It reads flat
        ones, where Gymnasium's `FlattenObservation` shows which column is which.

        A `UserWarning` names wrappers that normalize or rescale observations, unless
        the data was recorded in such a wrapper.

        Args:
            env: An environment, or several: Gymnasium's or Stable-Baselines3's.

        Raises:
            SpaceMismatchError: Other spaces, or a flat array whose columns nobody
                knows.
        """
        spaces = self.spaces.fitted(env)
        recorded = str(self.config.provenance.get("dataset"))
        if not any(name in recorded for name in SCALING):
            for name in scaling_wrappers(env):
                warnings.warn(
                    f"The environment's wrapper {name} changes the numbers of "
                    f"observations, and this planner's data was not recorded in it, as "
                    f"far as it tells. The planner normalizes observations itself: "
                    f"leave out the wrapper (VecNormalize: norm_obs=False).",
                    stacklevel=2,
                )
        if spaces == self.spaces:
            return self
        policy = copy.copy(self)
        policy._streams = copy.deepcopy(self._streams)
        policy.spaces, policy.observation_space = spaces, spaces.observation_space()
        return policy

    def to(self, device: str | torch.device) -> DiffuserPolicy:
        """Move the networks, in place, and return the policy.

        Args:
            device: Where to plan; observations and actions stay NumPy arrays.

        Raises:
            ConfigError: This machine, or this PyTorch, has no such device.
            MemoryLimitError: There is no room; the networks stay where they were.
        """
        here, there = self.networks.normalizer.shift.device, find_device(device)
        with within_memory(f"The planner on {there}", "Free some, or plan elsewhere."):
            try:
                self.networks.to(there)
            except BaseException:  # some of the networks may have moved
                self.networks.to(here)
                raise
        return self

    def __repr__(self) -> str:
        """Name the choices that plans depend on."""
        plans, guide = self.config.planner, self.config.guide
        steps = self.planner.sampler.num_steps
        return (
            f"DiffuserPolicy({plans.sampler}, {counted(steps, 'denoising step')}, "
            f"{counted(plans.num_candidates, 'candidate')} ranked by {plans.ranking}, "
            f"guide {'none' if guide is None else described(guide)}, "
            f"executor {self.config.execution.executor})"
        )

    @contextlib.contextmanager
    def _fresh_unless_failing(self, num_rows: int) -> Iterator[PolicyState]:
        """Yield a fresh state; if the block fails, give its random streams back.

        They stay taken if another thread took some meanwhile: it would get them again.
        """
        source = self._streams.bit_generator
        with _DRAWING:
            before = source.state
            fresh = self.initial_state(num_rows)
            after = source.state
        try:
            yield fresh
        except BaseException:
            with _DRAWING:
                if source.state == after:
                    source.state = before
            raise

    def _state_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of a row in each field of a state."""
        layout, steps = self.planner.layout, self.planner.horizons.max_planning_steps
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(PolicyState._fields, ())
        shapes["observations"] = (steps, layout.observation_dim)
        shapes["actions"] = (steps, layout.action_dim)
        shapes["goals"] = shapes["aims"] = (self.spaces.goal_size,)
        shapes["previous"] = (layout.observation_dim,)
        return shapes

    def _checked(self, state: Any, num_rows: int) -> PolicyState:
        """Return the state that was passed in, if this policy can go on from it.

        Raises:
            ObservationError: It is no state, or another policy returned it.
        """
        if not isinstance(state, tuple) or len(state) != len(PolicyState._fields):
            raise ObservationError(
                f"state must be the one that predict returned last, or None; got "
                f"{type(state).__name__}."
            )
        given = PolicyState(*state)
        for name, part in zip(PolicyState._fields, given, strict=True):
            kind = STATE_DTYPES[name]
            if not isinstance(part, np.ndarray) or part.dtype != kind or not part.ndim:
                found = getattr(part, "dtype", type(part).__name__)
                raise ObservationError(
                    f"state must be the one that predict returned last, or None: its "
                    f"{name} are {found}, not an array of {kind}."
                )
        if len(given.lengths) != num_rows:
            raise ObservationError(
                f"state remembers {counted(len(given.lengths), 'environment')}, but "
                f"the observation has {counted(num_rows, 'row')}."
            )
        shapes = self._state_shapes()
        if not self.spaces.has_goal:  # the first observation says how many columns
            shapes["goals"] = shapes["aims"] = (given.goals.shape[-1],)
        for name, shape in shapes.items():
            part, expected = getattr(given, name), (num_rows, *shape)
            if part.shape != expected:
                raise ObservationError(
                    f"state is of another planner: its {name} have shape "
                    f"{part.shape}, expected {expected}. Pass None at first."
                )
        given.check_values()
        if (given.planners != self.planner.fingerprint).any():
            raise ObservationError(
                "state is of another planner: same sizes, other weights. This policy "
                "would follow its plans and start new ones from them. Pass None at "
                "first, or the state that this policy returned."
            )
        return given

    def _following(self, state: PolicyState) -> Following:
        """Return the plans in a state, as executors and the planner take them."""
        return Following(
            observations=state.observations,
            actions=state.actions,
            lengths=state.lengths,
            progress=state.progress,
            stride=self.planner.stride,
            previous=state.previous,
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
        following = self._following(state)
        durations = following.durations
        guidance = self.planner.guidance
        guide = 0 if guidance is None else guidance.key
        why = Reasons.find(
            state,
            durations,
            guide=guide,
            strayed=self._strayed(following, rows),
            aimed=goals is not None and self.planner.layout.goal_conditioned,
            stays=self.executor.holds_goal,
            interval=self.config.execution.replan_interval,
        )
        index = np.flatnonzero(why.needed | why.welcome)
        if len(index) == 0:
            return state
        num_replans = state.num_replans.copy()
        num_replans[index] = np.where(state.lengths > 0, num_replans + 1, 0)[index]
        state = state._replace(num_replans=num_replans)
        remaining = np.maximum(durations - state.progress, 0)
        # Only a plan that the row still follows is worth starting from.
        previous = dataclasses.replace(
            following, lengths=np.where(why.underway, state.lengths, 0)
        )
        # A shrinking horizon is rounded down, to arrive no later than the running plan.
        # A needed plan has none to beat, so it gets back the time that rounding takes.
        slack = np.where(why.needed, self.planner.horizons.unit - 1, 0)
        plan = self.planner.plan(
            rows[index],
            None if goals is None else goals[index],
            self._generators(state, index, deterministic=deterministic),
            remaining=np.where(state.lengths > 0, remaining + slack, -1)[index],
            failed=np.where(why.strayed & ~why.on_way, state.lengths, 0)[index],
            previous=previous.rows(index),
            step_noise=not deterministic,
        )
        # Also a plan that is not adopted has used up its random numbers.
        num_plans = state.num_plans.copy()
        num_plans[index] += 1
        state = state._replace(num_plans=num_plans)
        better = plan.durations <= remaining[index]
        if plan.aims is not None and goals is not None:
            better &= (plan.aims == goals[index]).all(axis=1)
        keep = np.flatnonzero(why.needed[index] | better)
        index = index[keep]
        adopted, steps = state.rows(index), plan.observations.shape[1]
        adopted.observations[:, :steps] = plan.observations[keep]
        adopted.actions[:, :steps] = plan.actions[keep]
        adopted = adopted._replace(
            lengths=plan.lengths[keep],
            ages=np.zeros(len(keep), np.int64),
            progress=np.zeros(len(keep), np.float64),
            goals=adopted.goals if goals is None else goals[index],
            aims=adopted.aims if goals is None else goals[index],
            guides=np.full(len(keep), guide, np.int64),
        )
        if plan.aims is not None:
            adopted = adopted._replace(aims=plan.aims[keep])
        return state.with_rows(index, adopted)

    def _strayed(self, following: Following, rows: np.ndarray) -> np.ndarray:
        """Return which rows are too far from their plan.

        The distance is that of positions, in meters, or of all planning columns where
        there is no position.
        """
        limit = self.config.execution.replan_deviation
        if limit is None:
            return np.zeros(len(rows), np.bool_)
        layout = self.planner.layout
        name = "position" if "position" in layout.aliases else "observation"
        columns = list(layout.observation_columns(name))
        off = following.reference()[:, columns] - rows[:, columns]
        strayed = np.linalg.norm(off, axis=1) > limit
        return np.asarray(strayed & (following.lengths > 0))

    def _generators(
        self, state: PolicyState, index: np.ndarray, *, deterministic: bool
    ) -> list[torch.Generator]:
        """Return the noise source of each row's next plan.

        All first deterministic plans begin with the same noise, all second ones with
        another, and so on: with the same noise every time, a policy that has halted
        would plan to stay there forever. A count, unlike the observation, is the same
        in every batch, whose arithmetic may differ in the last bits.
        """
        if not deterministic:
            streams, numbers = state.streams[index], state.num_plans[index]
            keys = zip(streams.tolist(), numbers.tolist(), strict=True)
            return [stream_generator(stream, number) for stream, number in keys]
        return [
            stream_generator(self.seed, number)
            if number
            else torch.Generator().manual_seed(self.seed)
            for number in state.num_replans[index].tolist()
        ]

    def _rebuilt(
        self, config: PolicyConfig, networks: PlannerNetworks
    ) -> DiffuserPolicy:
        """Return a policy of other parts, with the same seed and spaces."""
        policy = DiffuserPolicy(config, networks, seed=self.seed)
        policy.spaces = self.spaces
        policy.observation_space = self.spaces.observation_space()
        return policy


def _changed(
    config: PolicyConfig, settings: dict[str, Any], **parts: Any
) -> PolicyConfig:
    """Return a config with other settings of planning and execution, and other parts.

    Raises:
        UnknownNameError: A setting that does not exist.
        ConfigError: A guide as a setting, or a setting that has no effect.
    """
    planner, execution = to_json(config.planner), to_json(config.execution)
    for name, value in settings.items():
        if name in planner:
            planner[name] = value
        elif name in execution:
            execution[name] = value
        elif name == "guide":
            raise ConfigError("Guides are changed with policy.with_guide(…).")
        else:
            raise UnknownNameError("setting", name, [*planner, *execution])
    changed = dataclasses.replace(
        config,
        planner=from_json(PlannerConfig, planner),
        execution=from_json(ExecutionConfig, execution),
        **parts,
    )
    # Guides may hold arrays, which cannot be compared.
    if changed.guide is not config.guide or (changed.planner, changed.execution) != (
        config.planner,
        config.execution,
    ):
        changed = changed.without_results()
    present = {
        "guide": changed.guide is not None,
        "goals": changed.layout.goal_conditioned,
        "rest": changed.window.num_planning_steps > 1,
    }
    for needs in (REST_NEEDS, PLANNING_NEEDS):
        refuse_idle(settings, {**planner, **execution, **present}, needs)
    return changed


def _refuse_switched_off(config: PolicyConfig) -> None:
    """Refuse a guide that neither steers plans nor ranks them.

    Raises:
        ConfigError: It has no effect.
    """
    plans, guide = config.planner, config.guide
    if guide is None or plans.guide_scale != 0 or plans.ranking in ("guide", "sum"):
        return
    raise ConfigError(
        f"The guide {guide.name} has no effect: with guide_scale=0 it does not steer "
        f"this planner, and ranking={plans.ranking!r} does not ask it. Set "
        f"guide_scale=1.0 to follow its gradient, or ranking='guide' to choose among "
        f"candidates by its value."
    )


def _refuse_idle_guides(idle: list[Guide]) -> None:
    """Refuse guides without an effect.

    Raises:
        ConfigError: There are some.
    """
    if not idle:
        return
    raise ConfigError(
        f"The guide {idle[0].name} has no effect: it judges states, and plans of this "
        f"planner are a single planning step, whose state is the current one. Use a "
        f"guide on actions, such as action-effort, or train a planner of longer plans "
        f"(--window.horizon 4, WindowConfig.horizon)."
    )


def _flags(episode_start: Any, num_rows: int) -> np.ndarray:
    """Return a fresh boolean array `[num_rows]`; callers reuse theirs in place."""
    if episode_start is None:
        return np.zeros(num_rows, np.bool_)
    try:
        given = np.asarray(episode_start)
    except ValueError:  # rows of different lengths
        given = np.asarray(episode_start, object)
    kind = given.dtype.kind
    if kind != "b" and (kind not in "iuf" or not np.isin(given, (0, 1)).all()):
        raise ObservationError(
            "episode_start must hold a flag for each environment, got "
            f"{shown(episode_start)}."
        )
    flags = given.astype(np.bool_).reshape(-1)  # a copy
    if len(flags) != num_rows:
        raise ObservationError(
            f"episode_start has {counted(len(flags), 'flag')}, but the observation has "
            f"{counted(num_rows, 'row')}."
        )
    return flags
