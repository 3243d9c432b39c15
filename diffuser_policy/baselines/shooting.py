r"""Sampling-based planning: actions are drawn, a model says where they lead.

    every `replan_interval` env steps, in every environment:
        what is left of the last plan → optimizer (draw, simulate, improve) → new plan

| optimizer | a plan is improved by |
|---|---|
| `MPPI` | averaging drawn plans, weighted by $\exp(return / \lambda)$ |
| `CrossEntropy` | fitting a Gaussian to the best of the drawn plans, again and again |

(Williams et al. 2017, "Information theoretic MPC", algorithm 2; Rubinstein 1999, in
the form of Chua et al. 2018, "PETS", with a warm start.) MPPI's arithmetic is
`pytorch_mppi`'s. The model may be a simulator, a learned one, or a denoiser: it is
asked for whole sequences. A *knot* is one action of the plan; it is kept for `hold`
env steps, because the effects of pushes that change every step cancel out.

| objective | a trajectory is worth, per step |
|---|---|
| `"reward"` | the environment's reward, by its `compute_reward` |
| `"dense"` | $\exp(-distance)$ to the goal, D4RL's dense reward of the mazes |

Sparse rewards are zero for nearly every sequence of random actions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from diffuser_policy.build import seeded
from diffuser_policy.choices import GOAL_PARTS
from diffuser_policy.envs import Env, env_name, glimpses, reward_of_goals
from diffuser_policy.errors import (
    ConfigError,
    ObservationError,
    UnknownNameError,
    require_extra,
)
from diffuser_policy.settings import positive
from diffuser_policy.spaces import (
    SpaceSpec,
    action_box,
    find_goal_columns,
    into_box,
)
from diffuser_policy.words import counted

# States `[…, steps, state]` and a goal `[goal]`, both in environment units, to the mean
# reward a step `[…]`.
Objective = Callable[[np.ndarray, np.ndarray], np.ndarray]
Valuation = Callable[[np.ndarray], np.ndarray]  # plans [n, knots, A] → returns [n]
SMALLEST_SPREAD = 0.05  # of half the actions' range, so that every iteration draws


class Model(Protocol):
    """Predicts where actions lead."""

    def simulate(self, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Return the states `[n, steps, state]` after every action.

        Leading axes hold the predictions of several models.

        Args:
            states: `[n, state]` to start from, environment units.
            actions: `[n, steps, action]`, environment units.
        """


class Optimizer(Protocol):
    """Improves a plan whose actions are scaled to [-1, 1]."""

    def improve(
        self, plan: np.ndarray, value: Valuation, rng: np.random.Generator
    ) -> np.ndarray:
        """Return a better plan `[knots, action]`; all randomness is `rng`."""


@dataclass(frozen=True, kw_only=True)
class MPPI:
    """Model-predictive path integral control, by `pytorch_mppi`."""

    num_samples: int = 64  # plans drawn an iteration
    num_iterations: int = 4  # how often a plan is improved before it is executed
    temperature: float = 0.01  # λ, in units of the mean reward a step
    noise: float = 1.0  # standard deviation of actions, in units of half their range

    def __post_init__(self) -> None:
        """Check ranges."""
        positive(self, "num_samples", "num_iterations", "temperature", "noise")

    def improve(
        self, plan: np.ndarray, value: Valuation, rng: np.random.Generator
    ) -> np.ndarray:
        """Return a better plan `[knots, action]`; see `Optimizer`.

        Raises:
            MissingExtraError: `pytorch_mppi` is not installed.
        """
        library = require_extra("pytorch_mppi", "baselines")
        horizon, size = plan.shape

        def costs(_: Tensor, actions: Tensor) -> Tensor:
            values = value(actions[0].numpy())
            return -torch.as_tensor(values, dtype=torch.float64)

        # The library steps a model; ours are asked for whole sequences, at their end.
        controller = library.MPPI(
            lambda state, _: state,
            lambda state, _: state.new_zeros(len(state)),
            nx=1,
            noise_sigma=self.noise**2 * torch.eye(size, dtype=torch.float64),
            num_samples=self.num_samples,
            horizon=horizon,
            terminal_state_cost=costs,
            lambda_=self.temperature,
            u_min=-torch.ones(size, dtype=torch.float64),
            u_max=torch.ones(size, dtype=torch.float64),
            U_init=torch.as_tensor(plan, dtype=torch.float64),
        )
        # The library draws from torch's global generator.
        with seeded(int(rng.integers(2**63))):
            for _ in range(self.num_iterations):
                controller.command(torch.zeros(1), shift_nominal_trajectory=False)
        return np.asarray(controller.U).clip(-1.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class CrossEntropy:
    """The cross-entropy method with a diagonal Gaussian."""

    num_samples: int = 64  # plans drawn an iteration
    num_iterations: int = 4  # how often the Gaussian is fitted
    elite_share: float = 0.1  # of the drawn plans, to which it is fitted
    noise: float = 1.0  # first standard deviation, in units of half the actions' range

    def __post_init__(self) -> None:
        """Check ranges."""
        positive(self, "num_samples", "num_iterations", "elite_share", "noise")
        if self.elite_share > 1:
            raise ConfigError(f"elite_share must be at most 1, got {self.elite_share}.")

    def improve(
        self, plan: np.ndarray, value: Valuation, rng: np.random.Generator
    ) -> np.ndarray:
        """Return a better plan `[knots, action]`; see `Optimizer`."""
        mean, spread = plan, np.full(plan.shape, self.noise)
        num_elites = max(round(self.elite_share * self.num_samples), 1)
        for _ in range(self.num_iterations):
            noise = rng.standard_normal((self.num_samples, *plan.shape))
            drawn = (mean + spread * noise).clip(-1.0, 1.0)
            order = np.argsort(-value(drawn), kind="stable")
            elites = drawn[order[:num_elites]]
            mean = elites.mean(axis=0)
            spread = np.maximum(elites.std(axis=0), SMALLEST_SPREAD)
        return mean


class ShootingState(NamedTuple):
    """What `predict` remembers, one row per environment."""

    plans: np.ndarray  # [n, knots, action] to come, scaled to [-1, 1]
    ages: np.ndarray  # [n] env steps since the plan was made; -1: there is none
    streams: np.ndarray  # [n] random stream
    num_plans: np.ndarray  # [n] plans made from this stream

    @classmethod
    def initial(
        cls,
        num_envs: int,
        plan_shape: tuple[int, ...],
        streams: np.ndarray | None = None,
        *,
        dtype: type[np.floating] = np.float64,
    ) -> ShootingState:
        """Return the state before the first step, without plans.

        Args:
            num_envs: Rows.
            plan_shape: Of one plan, `(knots, action)`.
            streams: `[n]` random streams; 0, 1, 2, … if not given.
            dtype: Of plans.
        """
        given = np.arange(num_envs) if streams is None else np.asarray(streams)
        return cls(
            plans=np.zeros((num_envs, *plan_shape), dtype),
            ages=np.full(num_envs, -1),
            streams=given.astype(np.int64),
            num_plans=np.zeros(num_envs, np.int64),
        )

    def rows(self, index: Any) -> ShootingState:
        """Return the state of some rows."""
        return ShootingState(*(part[index] for part in self))

    def with_rows(self, index: Any, other: ShootingState) -> ShootingState:
        """Return a copy in which some rows are those of another state."""
        parts = [part.copy() for part in self]
        for mine, theirs in zip(parts, other, strict=True):
            mine[index] = theirs
        return ShootingState(*parts)


def check_rows(held: np.ndarray, rows: int) -> None:
    """Refuse a state of another number of environments.

    Args:
        held: A part of the state, one row per environment.
        rows: Of the observation.

    Raises:
        ObservationError: It has not as many.
    """
    if len(held) != rows:
        raise ObservationError(
            f"state has {counted(len(held), 'row')} and the observation {rows:,}; pass "
            f"the state that the last call returned, or none."
        )


def check_search(
    spaces: SpaceSpec, *, horizon: int, hold: int, replan_interval: int | None
) -> int:
    """Refuse settings and spaces with which sampling-based planning is impossible.

    Args:
        spaces: Spaces of the environment.
        horizon: Length of plans, in env steps.
        hold: Env steps for which an action is held.
        replan_interval: Env steps between plans; those of `hold` by default.

    Returns:
        Env steps between plans.

    Raises:
        ConfigError: Numbers that don't divide each other, or no goal to plan for.
    """
    interval = hold if replan_interval is None else replan_interval
    if hold < 1 or horizon < 1 or horizon % hold:
        raise ConfigError(
            f"horizon must be a multiple of hold, both in env steps and positive; "
            f"got horizon={horizon} and hold={hold}."
        )
    if interval % hold or not 1 <= interval <= horizon:
        raise ConfigError(
            f"replan_interval must be a multiple of hold={hold} env steps, up to "
            f"the horizon of {horizon}; got {interval}."
        )
    if not spaces.has_goal or spaces.appends_goal:
        raise ConfigError(
            "Sampling-based planning needs goal dictionaries whose achieved goal "
            "repeats columns of the observation, such as a position."
        )
    return interval


class ShootingPolicy:
    """Model-predictive control with a warm start; takes `predict`'s arguments.

    A plan covers `horizon` env steps, an action of it `hold` env steps; a new one is
    made every `replan_interval` env steps, by default as often as actions change.

    Raises:
        ConfigError: Numbers of env steps that are no multiples of one another, or an
            environment without goals in its observations.
    """

    def __init__(
        self,
        model: Model,
        objective: Objective,
        optimizer: Optimizer,
        *,
        spaces: SpaceSpec,
        horizon: int,
        hold: int = 1,
        replan_interval: int | None = None,
        seed: int = 0,
    ) -> None:
        interval = check_search(
            spaces, horizon=horizon, hold=hold, replan_interval=replan_interval
        )
        self.model, self.objective, self.optimizer = model, objective, optimizer
        self.spaces, self.horizon, self.hold = spaces, horizon, hold
        self.action_space = spaces.action_space()
        self.replan_interval, self.seed = interval, seed
        low, high = np.array(spaces.action_low), np.array(spaces.action_high)
        self._center, self._half = (low + high) / 2, (high - low) / 2

    def for_env(self, env: Any) -> ShootingPolicy:
        """Return the policy adapted to the observations of an environment.

        Raises:
            SpaceMismatchError: Both spaces are named, the expected and the given.
        """
        policy = copy.copy(self)
        policy.spaces = self.spaces.fitted(env)
        return policy

    def initial_state(
        self, num_envs: int, streams: np.ndarray | None = None
    ) -> ShootingState:
        """Return the state before the first step; streams are 0, 1, 2, … by default."""
        shape = (self.horizon // self.hold, len(self._center))
        return ShootingState.initial(num_envs, shape, streams)

    def predict(
        self,
        observation: Any,
        state: ShootingState | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,  # noqa: ARG002 (searching is what it does)
    ) -> tuple[np.ndarray, ShootingState]:
        """Return actions, and what to pass as `state` the next time.

        `episode_start` `[n]` says which rows begin an episode. `deterministic` changes
        nothing: all randomness is the seed's.

        Raises:
            ObservationError: An observation that cannot be planned from, or a state of
                another number of environments.
        """
        observations, given, batch = self.spaces.read(observation)
        goals = np.empty((0, 0)) if given is None else given  # never, with goal spaces
        rows = len(observations)
        if state is None:
            state = self.initial_state(rows)
        check_rows(state.ages, rows)
        plans, ages, _, num_plans = (part.copy() for part in state)
        if episode_start is not None:
            begun = np.broadcast_to(np.asarray(episode_start, np.bool_), rows)
            plans[begun], ages[begun] = 0.0, -1
        for row in np.flatnonzero((ages < 0) | (ages >= self.replan_interval)):
            rng = np.random.default_rng(
                (self.seed, int(state.streams[row]), int(num_plans[row]))
            )
            done = max(int(ages[row]), 0) // self.hold
            left = np.zeros_like(plans[row])  # zeros after the rest of the plan
            left[: len(left) - done] = plans[row, done:]
            plans[row] = self._plan(observations[row], goals[row], left, rng)
            ages[row], num_plans[row] = 0, num_plans[row] + 1
        scaled = plans[np.arange(rows), ages // self.hold]
        actions = into_box(self.action_space, self._center + self._half * scaled)
        following = ShootingState(plans, ages + 1, state.streams, num_plans)
        return actions.reshape((*batch, *self.action_space.shape)), following

    def _plan(
        self,
        observation: np.ndarray,
        goal: np.ndarray,
        left: np.ndarray,
        rng: np.random.Generator,
    ) -> np.ndarray:
        """Return a plan `[knots, action]` for one environment."""

        def value(plans: np.ndarray) -> np.ndarray:
            actions = (self._center + self._half * plans).repeat(self.hold, axis=1)
            first = np.broadcast_to(observation, (len(plans), len(observation)))
            returns = self.objective(self.model.simulate(first, actions), goal)
            opinions = tuple(range(returns.ndim - 1))
            return np.asarray(returns.mean(axis=opinions) if opinions else returns)

        return self.optimizer.improve(left, value, rng)


def make_objective(name: str, env: Env, spaces: SpaceSpec) -> Objective:
    """Return the objective "reward", by the environment's own function, or "dense".

    Raises:
        UnknownNameError: No objective of that name.
        ConfigError: The environment has no `compute_reward`.
    """
    if name == "dense":
        return goal_nearness(spaces.goal_columns)
    if name != "reward":
        raise UnknownNameError("objective", name, ("reward", "dense"))
    compute = reward_of_goals(env)
    if compute is None:
        raise ConfigError(
            f"{env_name(env)} has no compute_reward, so the reward of imagined "
            f'states is not known. Use the objective "dense".'
        )

    def mean_reward(states: np.ndarray, goal: np.ndarray) -> np.ndarray:
        achieved = states[..., list(spaces.goal_columns)]
        desired = np.broadcast_to(goal, achieved.shape)
        rewards = np.asarray(compute(achieved, desired, {}))
        return np.asarray(rewards.mean(axis=-1))

    return mean_reward


def goal_nearness(columns: Sequence[int]) -> Objective:
    """Return nearness to the goal, above zero everywhere; it is in these columns."""

    def mean_nearness(states: np.ndarray, goal: np.ndarray) -> np.ndarray:
        offset = states[..., list(columns)] - goal
        distance = np.sqrt(np.square(offset).sum(axis=-1))
        return np.asarray(np.exp(-distance).mean(axis=-1))

    return mean_nearness


def env_spaces(env: Env) -> SpaceSpec:
    """Read the spaces of a goal environment; resets it, and acts in it.

    Raises:
        ConfigError: Observations that are no goal dictionaries, or actions without
            bounds.
    """
    space: Any = env.observation_space
    parts = getattr(space, "spaces", {})
    if not set(GOAL_PARTS) <= set(parts):
        raise ConfigError(
            f"Sampling-based planning needs observations with "
            f"{', '.join(GOAL_PARTS)}; this environment has {space}."
        )
    actions = action_box(env.action_space)
    seen = glimpses(env)
    observation, achieved = (
        np.stack([each[key] for each in seen]) for key in GOAL_PARTS[:2]
    )
    return SpaceSpec(
        observation_size=observation.shape[1],
        goal_size=achieved.shape[1],
        goal_columns=find_goal_columns(observation, achieved),
        action_low=tuple(map(float, actions.low.reshape(-1))),
        action_high=tuple(map(float, actions.high.reshape(-1))),
        action_shape=actions.shape,
        action_dtype=str(actions.dtype),
    )
