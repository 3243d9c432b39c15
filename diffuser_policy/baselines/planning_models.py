"""The models that planning by trial plans in, and their training in a benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffuser_policy.baselines.dynamics import (
    DynamicsConfig,
    DynamicsEnsemble,
    DynamicsRun,
)
from diffuser_policy.baselines.shooting import Model
from diffuser_policy.baselines.weights import num_parameters
from diffuser_policy.benchmark.context import MethodContext
from diffuser_policy.config import (
    ExecutionConfig,
    NetworkConfig,
    OptimizationConfig,
    PlannerConfig,
    TrainConfig,
    WindowConfig,
)
from diffuser_policy.envs import Env
from diffuser_policy.errors import ConfigError
from diffuser_policy.training.trainer import Trainer, TrainingRun

SAVE_INTERVAL = 1000
ACTION_PLANNER_STEPS = 6000
ACTION_PLANNER_HORIZON = 64
ACTION_PLANNER_NETWORK = NetworkConfig(dim=32, multipliers=(1, 2, 4))


def simulator_of(env: Env) -> Model:
    """Return an environment's own simulator, as the mazes offer it.

    Raises:
        ConfigError: The environment offers none.
    """
    base: Any = env.unwrapped
    if not callable(getattr(base, "simulate", None)):
        raise ConfigError(
            f"{type(base).__name__} has no simulate(states [n, state], actions [n, "
            f"steps, action]), which planning in the true simulator needs. The mazes "
            f"have it; elsewhere use mppi-learned or cem-learned."
        )
    model: Model = base
    return model


def learn_dynamics(
    context: MethodContext, *, num_members: int, width: int
) -> DynamicsEnsemble:
    """Train one-step dynamics on the problem's data, or resume that.

    Args:
        context: Of the method; `num_steps` gradient steps.
        num_members: Networks.
        width: Of their hidden layers.
    """
    config = DynamicsConfig(
        num_members=num_members,
        width=width,
        num_steps=context.num_steps or DynamicsConfig.num_steps,
        seed=context.seed,
    )
    run = DynamicsRun(config, context.dataset, context.folder)
    train(context, run, config.num_steps, SAVE_INTERVAL)
    return run.ensemble


def train_action_planner(context: MethodContext) -> Path:
    """Train a Diffuser that plans actions for every env step; return its folder.

    Args:
        context: Of the method; `num_steps` gradient steps.
    """
    num_steps = context.num_steps or ACTION_PLANNER_STEPS
    config = TrainConfig(
        dataset=context.problem.dataset,
        window=WindowConfig(
            horizon=ACTION_PLANNER_HORIZON,
            min_horizon=ACTION_PLANNER_HORIZON,
            stride=1,
            actions=True,
            hindsight_goal="none",
        ),
        network=ACTION_PLANNER_NETWORK,
        optimization=OptimizationConfig(num_steps=num_steps, batch_size=64),
        planner=PlannerConfig(horizon="fixed", ranking="first"),
        execution=ExecutionConfig(executor="actions"),
        seed=context.seed,
    )
    run = Trainer(config, context.dataset, context.folder)
    train(context, run, num_steps, SAVE_INTERVAL)
    return context.folder


def check_horizon(horizon: int, most: int) -> None:
    """Refuse a horizon beyond what a Diffuser predicts.

    Args:
        horizon: Env steps that are wanted.
        most: Env steps that it predicts.

    Raises:
        ConfigError: It is too long.
    """
    if horizon > most:
        raise ConfigError(
            f"This Diffuser says where up to {most} actions lead; a horizon of "
            f"{horizon} env steps is too long. Shorten it, or train a longer one."
        )


def train(
    context: MethodContext, run: TrainingRun[Any], num_steps: int, save_interval: int
) -> None:
    """Train to the end, or from the last checkpoint to it, and note the facts.

    Args:
        context: Is told the progress.
        run: In a folder of the context's.
        num_steps: Gradient steps.
        save_interval: Gradient steps between checkpoints.
    """
    run.run(
        save_interval=min(save_interval, num_steps),
        progress=False,
        on_metrics=lambda step, losses: context.progress(
            step, num_steps, figures=losses
        ),
    )
    context.facts |= {
        "num_steps": num_steps,
        "num_parameters": num_parameters(run.networks),
    }
