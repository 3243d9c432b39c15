"""Sampling-based planning as methods of the benchmark; random actions are the floor.

| method | optimizer | where it plans |
|---|---|---|
| mppi-simulator, cem-simulator | MPPI, cross-entropy | the environment's simulator |
| mppi-learned, cem-learned | the same | one-step dynamics learnt from the data |
| mppi-diffuser | MPPI | a Diffuser that is given the actions (the paper's ablation) |
| random | | |

All that plan have the settings of their optimizer and `objective`, "reward" or "dense"
(`diffuser_policy.baselines.shooting`), and `horizon`, `hold` and `replan_interval` in
env steps. Learned dynamics have `num_members` networks of `width` units.
`mppi-diffuser` has `planner`, the folder of a planner that plans actions for every env
step (by default one is trained), which it denoises in `num_sampling_steps`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from diffuser_policy.baselines.dynamics import (
    ACTION_PLANNER_HORIZON,
    DiffuserDynamics,
    DynamicsConfig,
    learn_dynamics,
    simulator_of,
    train_action_planner,
)
from diffuser_policy.baselines.learning import family_method
from diffuser_policy.baselines.shooting import (
    MPPI,
    CrossEntropy,
    Model,
    ShootingPolicy,
    ShootingState,
    check_search,
    env_spaces,
    make_objective,
)
from diffuser_policy.benchmark.context import MethodContext
from diffuser_policy.benchmark.methods import register_method
from diffuser_policy.benchmark.problem import Problem
from diffuser_policy.config import PlannerConfig
from diffuser_policy.envs import Env
from diffuser_policy.errors import ConfigError
from diffuser_policy.policy import DiffuserPolicy
from diffuser_policy.settings import converted
from diffuser_policy.spaces import action_box, into_box

SEARCH: dict[str, Any] = {
    "objective": "reward",
    "horizon": 200,
    "hold": 10,
    "replan_interval": None,
}


class Place(NamedTuple):
    """Where plans are tried.

    Attributes:
        label: Its name in tables.
        words: Its name in sentences.
        settings: Its own, and other defaults than those of `SEARCH` and the optimizer.
        model: Makes the model from context, environment, horizon and its settings.
        check: Refuses an environment and all settings with which `model` would fail.
    """

    label: str
    words: str
    settings: Mapping[str, Any]
    model: Callable[..., Model]
    check: Callable[[Env, Mapping[str, Any]], object]


def _simulator(_context: MethodContext, env: Env, _horizon: int) -> Model:
    return simulator_of(env)


def _check_simulator(env: Env, _settings: Mapping[str, Any]) -> None:
    simulator_of(env)


def _learned(
    context: MethodContext, _env: Env, _horizon: int, *, num_members: int, width: int
) -> Model:
    return learn_dynamics(context, num_members=num_members, width=width)


def _check_learned(_env: Env, settings: Mapping[str, Any]) -> None:
    DynamicsConfig(num_members=settings["num_members"], width=settings["width"])


def _diffuser(
    context: MethodContext,
    _env: Env,
    horizon: int,
    *,
    planner: str | None,
    num_sampling_steps: int,
) -> Model:
    """Return a Diffuser as a model, trained here if no `planner` is given."""
    return _loaded_diffuser(
        planner or train_action_planner(context),
        horizon,
        num_sampling_steps,
        seed=context.seed,
    )


def _check_diffuser(_env: Env, settings: Mapping[str, Any]) -> None:
    planner, horizon = settings["planner"], settings["horizon"]
    if planner is not None:
        _loaded_diffuser(planner, horizon, settings["num_sampling_steps"])
        return
    PlannerConfig(num_sampling_steps=settings["num_sampling_steps"])
    _check_horizon(horizon, ACTION_PLANNER_HORIZON - 1)


def _loaded_diffuser(
    planner: str | Path, horizon: int, num_sampling_steps: int, *, seed: int = 0
) -> DiffuserDynamics:
    policy = DiffuserPolicy.from_pretrained(
        planner, num_sampling_steps=num_sampling_steps
    )
    model = DiffuserDynamics(policy.planner, seed=seed)
    _check_horizon(horizon, model.max_steps)
    return model


def _check_horizon(horizon: int, most: int) -> None:
    if horizon > most:
        raise ConfigError(
            f"This Diffuser predicts where up to {most} actions lead; a horizon of "
            f"{horizon} env steps is too long. Shorten it, or train a planner with a "
            "longer one."
        )


PLACES = {
    "simulator": Place(
        "simulator",
        "the environment's own simulator",
        {},
        _simulator,
        _check_simulator,
    ),
    "learned": Place(
        "learned model",
        "dynamics learned from the data",
        {"num_members": 5, "width": 128},
        _learned,
        _check_learned,
    ),
    "diffuser": Place(
        "Diffuser",
        "a Diffuser that is given the actions",
        {"planner": None, "num_sampling_steps": 8, "horizon": 60, "num_iterations": 1},
        _diffuser,
        _check_diffuser,
    ),
}


def _method(
    optimizer: type[MPPI | CrossEntropy], name: str
) -> Callable[..., ShootingPolicy]:
    """Register a method that plans with an optimizer, whose fields are settings."""
    is_mppi, place = optimizer is MPPI, PLACES[name]
    short, words = ("mppi", "MPPI") if is_mppi else ("cem", "the cross-entropy method")
    searching = {part.name: part.default for part in fields(optimizer)}

    def plan(
        context: MethodContext, *, objective: str, horizon: int, **rest: Any
    ) -> ShootingPolicy:
        search = optimizer(**{key: rest.pop(key) for key in searching})
        times = {key: rest.pop(key) for key in ("hold", "replan_interval")}
        env = context.make_env()  # its reward function is used later
        spaces = env_spaces(env)
        return ShootingPolicy(
            place.model(context, env, horizon, **rest),
            make_objective(objective, env, spaces),
            search,
            spaces=spaces,
            horizon=horizon,
            seed=context.seed,
            **times,
        )

    def refuse(problem: Problem, settings: Mapping[str, Any]) -> None:
        """Refuse settings and environments with which `plan` would fail."""
        optimizer(**{key: settings[key] for key in searching})
        interval = converted(settings["replan_interval"], int | None, "replan_interval")
        with closing(problem.make_env()) as env:
            spaces = env_spaces(env)
            make_objective(settings["objective"], env, spaces)
            check_search(
                spaces,
                horizon=settings["horizon"],
                hold=settings["hold"],
                replan_interval=interval,
            )
            place.check(env, settings)

    return family_method(
        plan,
        f"{short}-{name}",
        f"Plan with {words} in {place.words}.",
        settings={**SEARCH, **searching, **place.settings},
        label=f"{short.upper()} ({place.label})",
        needs_dataset=name != "simulator",
        modules={"pytorch_mppi": "baselines"} if is_mppi else None,
        refuses=refuse,
    )


mppi_simulator = _method(MPPI, "simulator")
cem_simulator = _method(CrossEntropy, "simulator")
mppi_learned = _method(MPPI, "learned")
cem_learned = _method(CrossEntropy, "learned")
mppi_diffuser = _method(MPPI, "diffuser")


def _refuse_actions(problem: Problem, _: Mapping[str, Any]) -> None:
    with closing(problem.make_env()) as env:
        action_box(env.action_space)


@register_method("random", label="Random", needs_dataset=False, refuses=_refuse_actions)
def random(context: MethodContext) -> RandomPolicy:
    """Draw every action uniformly."""
    with closing(context.make_env()) as env:
        space, observed = action_box(env.action_space), env.observation_space
    return RandomPolicy(space, observed, seed=context.seed)


class RandomPolicy:
    """Uniform actions between the bounds; each row has its own random stream.

    The observation space tells one observation from a batch.
    """

    def __init__(
        self, space: spaces.Box, observation_space: spaces.Space[Any], *, seed: int = 0
    ) -> None:
        self.space, self.observation_space, self.seed = space, observation_space, seed

    def initial_state(
        self, num_envs: int, streams: np.ndarray | None = None
    ) -> ShootingState:
        """Return the state before the first step, as `ShootingPolicy` does."""
        state = ShootingState.initial(num_envs, (0, 0), streams)
        return state._replace(ages=np.zeros(num_envs, np.int64))  # nothing is planned

    def predict(
        self,
        observation: Any,
        state: ShootingState | None = None,
        episode_start: np.ndarray | None = None,  # noqa: ARG002 (all steps are alike)
        deterministic: bool = False,  # noqa: ARG002
    ) -> tuple[np.ndarray, ShootingState]:
        """Return actions, and what to pass as `state` the next time."""
        part, space = observation, self.observation_space
        while isinstance(space, spaces.Dict | spaces.Tuple):  # all parts have the rows
            key: Any = next(iter(space)) if isinstance(space, spaces.Dict) else 0
            part, space = part[key], space[key]
        alone = np.ndim(part) == len(space.shape or ())
        state = state or self.initial_state(1 if alone else len(part))
        rows = zip(state.streams.tolist(), state.ages.tolist(), strict=True)
        generators = [np.random.default_rng((self.seed, *row)) for row in rows]
        low, high = self.space.low, self.space.high
        if not np.issubdtype(self.space.dtype, np.floating):
            low, high = low - 0.5, high + 0.5  # rounded, so that all are as likely
        drawn = [each.uniform(low, high) for each in generators]
        actions = into_box(self.space, np.reshape(drawn, (len(drawn), low.size)))
        moved = state._replace(ages=state.ages + 1)
        return (actions[0] if alone else actions), moved
