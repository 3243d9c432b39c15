"""Planning by trial as methods of the benchmark, and random actions as the floor.

| method | optimizer | where it plans |
|---|---|---|
| mppi-simulator, cem-simulator | MPPI, cross-entropy | the environment's simulator |
| mppi-learned, cem-learned | the same | one-step dynamics learnt from the data |
| mppi-diffuser | MPPI | a Diffuser that is given the actions (the paper's ablation) |
| random | | |

All have the same settings: `objective` is "reward" or "dense"
(`diffuser_policy.baselines.objectives`); `horizon`, `hold` and `replan_interval` are
env steps; a plan takes `num_samples` × `num_iterations` imagined sequences.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffuser_policy.baselines.diffuser_dynamics import DiffuserDynamics
from diffuser_policy.baselines.objectives import (
    ObjectiveName,
    env_spaces,
    make_objective,
)
from diffuser_policy.baselines.planning_models import (
    ACTION_PLANNER_HORIZON,
    check_horizon,
    learn_dynamics,
    simulator_of,
    train_action_planner,
)
from diffuser_policy.baselines.shooting import (
    MPPI,
    CrossEntropy,
    Model,
    Optimizer,
    ShootingPolicy,
    ShootingState,
)
from diffuser_policy.benchmark.methods import register_method
from diffuser_policy.benchmark.training import Training
from diffuser_policy.envs import Env
from diffuser_policy.policy import DiffuserPolicy

MPPI_MODULES = {"pytorch_mppi": "baselines"}


@register_method(
    "mppi-simulator",
    label="MPPI (simulator)",
    needs_dataset=False,
    modules=MPPI_MODULES,
)
def mppi_simulator(
    training: Training,
    *,
    objective: ObjectiveName = "reward",
    horizon: int = 200,
    hold: int = 10,
    replan_interval: int | None = None,
    num_samples: int = 64,
    num_iterations: int = 4,
    temperature: float = 0.01,
    noise: float = 1.0,
) -> ShootingPolicy:
    """Plan with MPPI in the environment's own simulator."""
    env = training.make_env()
    optimizer = MPPI(
        num_samples=num_samples,
        num_iterations=num_iterations,
        temperature=temperature,
        noise=noise,
    )
    search = Search(objective, horizon, hold, replan_interval)
    return search.policy(training, env, simulator_of(env), optimizer)


@register_method("cem-simulator", label="CEM (simulator)", needs_dataset=False)
def cem_simulator(
    training: Training,
    *,
    objective: ObjectiveName = "reward",
    horizon: int = 200,
    hold: int = 10,
    replan_interval: int | None = None,
    num_samples: int = 64,
    num_iterations: int = 4,
    elite_share: float = 0.1,
    noise: float = 1.0,
) -> ShootingPolicy:
    """Plan with the cross-entropy method in the environment's own simulator."""
    env = training.make_env()
    optimizer = CrossEntropy(
        num_samples=num_samples,
        num_iterations=num_iterations,
        elite_share=elite_share,
        noise=noise,
    )
    search = Search(objective, horizon, hold, replan_interval)
    return search.policy(training, env, simulator_of(env), optimizer)


@register_method("mppi-learned", label="MPPI (learned model)", modules=MPPI_MODULES)
def mppi_learned(
    training: Training,
    *,
    objective: ObjectiveName = "reward",
    horizon: int = 200,
    hold: int = 10,
    replan_interval: int | None = None,
    num_samples: int = 64,
    num_iterations: int = 4,
    temperature: float = 0.01,
    noise: float = 1.0,
    num_members: int = 5,
    width: int = 128,
) -> ShootingPolicy:
    """Plan with MPPI in dynamics that are learnt from the data."""
    optimizer = MPPI(
        num_samples=num_samples,
        num_iterations=num_iterations,
        temperature=temperature,
        noise=noise,
    )
    search = Search(objective, horizon, hold, replan_interval)
    model = learn_dynamics(training, num_members=num_members, width=width)
    return search.policy(training, training.make_env(), model, optimizer)


@register_method("cem-learned", label="CEM (learned model)")
def cem_learned(
    training: Training,
    *,
    objective: ObjectiveName = "reward",
    horizon: int = 200,
    hold: int = 10,
    replan_interval: int | None = None,
    num_samples: int = 64,
    num_iterations: int = 4,
    elite_share: float = 0.1,
    noise: float = 1.0,
    num_members: int = 5,
    width: int = 128,
) -> ShootingPolicy:
    """Plan with the cross-entropy method in dynamics that are learnt from the data."""
    optimizer = CrossEntropy(
        num_samples=num_samples,
        num_iterations=num_iterations,
        elite_share=elite_share,
        noise=noise,
    )
    search = Search(objective, horizon, hold, replan_interval)
    model = learn_dynamics(training, num_members=num_members, width=width)
    return search.policy(training, training.make_env(), model, optimizer)


@register_method("mppi-diffuser", label="MPPI (Diffuser)", modules=MPPI_MODULES)
def mppi_diffuser(
    training: Training,
    *,
    planner: str | None = None,
    num_sampling_steps: int = 8,
    objective: ObjectiveName = "reward",
    horizon: int = 60,
    hold: int = 10,
    replan_interval: int | None = None,
    num_samples: int = 64,
    num_iterations: int = 1,
    temperature: float = 0.01,
    noise: float = 1.0,
) -> ShootingPolicy:
    """Plan with MPPI in a Diffuser that is given the actions.

    Args:
        training: The workplace.
        planner: Folder of a planner that plans actions for every env step; by default
            one is trained, with `num_steps` gradient steps.
        num_sampling_steps: Denoising steps.
        objective: As for all of them.
        horizon: One less than the planner's, at most.
        hold: As for all of them.
        replan_interval: As for all of them.
        num_samples: As for all of them.
        num_iterations: As for all of them.
        temperature: As for all of them.
        noise: As for all of them.
    """
    if planner is None:
        check_horizon(horizon, ACTION_PLANNER_HORIZON - 1)  # before it is trained
    folder = train_action_planner(training) if planner is None else planner
    policy = DiffuserPolicy.from_pretrained(
        folder, num_sampling_steps=num_sampling_steps
    )
    model = DiffuserDynamics.of(policy, seed=training.seed)
    check_horizon(horizon, model.max_steps)
    optimizer = MPPI(
        num_samples=num_samples,
        num_iterations=num_iterations,
        temperature=temperature,
        noise=noise,
    )
    search = Search(objective, horizon, hold, replan_interval)
    return search.policy(training, training.make_env(), model, optimizer)


@register_method("random", label="Random", needs_dataset=False)
def random(training: Training) -> RandomPolicy:
    """Draw every action uniformly."""
    env = training.make_env()
    space: Any = env.action_space
    env.close()
    return RandomPolicy(space.low, space.high, seed=training.seed)


@dataclass(frozen=True)
class Search:
    """What all of them have in common; the module says what it means."""

    objective: str
    horizon: int
    hold: int
    replan_interval: int | None

    def policy(
        self, training: Training, env: Env, model: Model, optimizer: Optimizer
    ) -> ShootingPolicy:
        """Return the policy.

        Args:
            training: The workplace.
            env: It is read now, and its reward function used later.
            model: Where plans are tried.
            optimizer: Improves them.
        """
        spaces = env_spaces(env)
        return ShootingPolicy(
            model,
            make_objective(self.objective, env, spaces),
            optimizer,
            spaces=spaces,
            horizon=self.horizon,
            hold=self.hold,
            replan_interval=self.replan_interval,
            seed=training.seed,
        )


class RandomPolicy:
    """Uniform actions, by the contract of `predict`; each row has its own stream."""

    def __init__(self, low: np.ndarray, high: np.ndarray, *, seed: int = 0) -> None:
        """Choose the range.

        Args:
            low: `[action]`.
            high: `[action]`.
            seed: Of all randomness.
        """
        self.low, self.high, self.seed = low, high, seed

    def initial_state(
        self, num_envs: int, streams: np.ndarray | None = None
    ) -> ShootingState:
        """Return the state before the first step.

        Args:
            num_envs: Rows.
            streams: `[num_envs]` random streams; 0, 1, 2, … by default.
        """
        given = np.arange(num_envs) if streams is None else np.asarray(streams)
        nothing, zeros = np.zeros((num_envs, 0, 0)), np.zeros(num_envs, np.int64)
        return ShootingState(nothing, zeros, given.astype(np.int64), zeros)

    def predict(
        self,
        observation: Any,
        state: ShootingState | None = None,
        episode_start: np.ndarray | None = None,  # noqa: ARG002 (all steps are alike)
        deterministic: bool = False,  # noqa: ARG002
    ) -> tuple[np.ndarray, ShootingState]:
        """Return actions, and what to pass as `state` the next time.

        Args:
            observation: Goal dictionary or array, single or batched.
            state: What the last call returned; none at first.
            episode_start: Not used.
            deterministic: Not used.
        """
        flat = (
            observation["observation"]
            if isinstance(observation, Mapping)
            else observation
        )
        batch = np.shape(flat)[:-1]
        if state is None:
            state = self.initial_state(int(np.prod(batch)))
        actions = [
            np.random.default_rng((self.seed, int(stream), int(age))).uniform(
                self.low, self.high
            )
            for stream, age in zip(state.streams, state.ages, strict=True)
        ]
        drawn = np.reshape(actions, (*batch, len(self.low))).astype(np.float32)
        return drawn, state._replace(ages=state.ages + 1)
