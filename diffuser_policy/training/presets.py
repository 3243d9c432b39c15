"""Training settings by name, for `diffuser-policy train PRESET`.

`multi2d-*` train the shipped planners in about an hour on one CPU core: states only,
planned every few env steps, horizons mixed, the horizon predicted by a time-to-goal
network. `maze2d-*-paper` have the released hyperparameters of Janner et al. 2022
(branch `maze2d` of their code): actions and states at every env step, one fixed
horizon, full DDPM, followed open loop with unit tracking gains. So do `hopper-*-paper`,
`walker2d-*-paper` and `halfcheetah-*-paper` (branch `main`): 64 plans guided by a value
network, of which the best one's first action is taken. The value network is trained
together with the denoiser, for 1,000,000 steps; the release trains it alone, for
200,000. With `--planner.guide-placement mean`, they are guided as the paper's
Algorithm 1 says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from diffuser_policy.config import (
    ExecutionConfig,
    NetworkConfig,
    OptimizationConfig,
    PlannerConfig,
    TimeToGoalConfig,
    TrainConfig,
    ValueConfig,
    WindowConfig,
)
from diffuser_policy.errors import UnknownNameError

RELEASED_OPTIMIZATION: dict[str, Any] = {
    "batch_size": 32,
    "learning_rate_schedule": "constant",
    "max_gradient_norm": None,
    "ema_decay": 0.995,
    "ema_interval": 10,
    "ema_start": 2000,
}
RELEASED_SAMPLING: dict[str, Any] = {
    "sampler": "ddpm",
    "num_sampling_steps": None,
    "num_candidates": 1,
    "ranking": "first",
}


def _fast(
    maze: str, *, num_steps: int, num_sampling_steps: int, **window: Any
) -> TrainConfig:
    return TrainConfig(
        dataset=f"diffuser/multi2d-{maze}-v1",
        window=WindowConfig(actions=False, **window),
        time_to_goal=TimeToGoalConfig(max_steps=window["horizon"]),
        optimization=OptimizationConfig(num_steps=num_steps, batch_size=64),
        planner=PlannerConfig(
            num_sampling_steps=num_sampling_steps,
            num_candidates=8,
            ranking="time_to_goal",
            horizon="predicted",
        ),
        execution=ExecutionConfig(
            executor="pursuit",
            lookahead=30.0,
            position_gain=10.0,
            velocity_gain=1.0,
            replan_deviation=0.75,
            seconds_per_step=0.01,
        ),
    )


def _paper(maze: str, *, horizon: int, num_denoising_steps: int) -> TrainConfig:
    return TrainConfig(
        dataset=f"diffuser/multi2d-{maze}-v1",
        window=WindowConfig(horizon=horizon, hindsight_goal="observation"),
        network=NetworkConfig(
            multipliers=(1, 4, 8), num_denoising_steps=num_denoising_steps
        ),
        optimization=OptimizationConfig(
            num_steps=2_000_000,
            num_accumulations=2,
            learning_rate=2e-4,
            **RELEASED_OPTIMIZATION,
        ),
        planner=PlannerConfig(horizon="fixed", goal_velocity=True, **RELEASED_SAMPLING),
        execution=ExecutionConfig(position_gain=1.0, velocity_gain=1.0),
    )


def _paper_locomotion(
    data: str,
    *,
    horizon: int = 32,
    network: Mapping[str, Any] | None = None,
    guide_scale: float,
    guide_cutoff: int,
) -> TrainConfig:
    network = network or {"multipliers": (1, 2, 4, 8)}
    return TrainConfig(
        dataset=f"diffuser/{data}-v1",
        window=WindowConfig(
            horizon=horizon,
            padding="repeat",
            hindsight_goal="none",
            normalizer="gaussian",
        ),
        network=NetworkConfig(
            num_denoising_steps=20, first_action_weight=10.0, **network
        ),
        value=ValueConfig(
            multipliers=network["multipliers"],
            pooling="flatten",
            termination_penalty=100.0,
        ),
        optimization=OptimizationConfig(
            num_steps=1_000_000,
            num_accumulations=2,
            learning_rate=2e-4,
            **RELEASED_OPTIMIZATION,
        ),
        planner=PlannerConfig(
            sampler="ddpm",
            num_sampling_steps=None,
            num_candidates=64,
            ranking="guide",
            guide_placement="noisy",
            guide_scale=guide_scale,
            guide_steps=2,
            guide_cutoff=guide_cutoff,
        ),
        execution=ExecutionConfig(executor="actions", replan_interval=1),
    )


QUALITIES = ("medium", "medium-replay", "medium-expert")
KUKA_WINDOW: dict[str, Any] = {
    "horizon": 128,
    "actions": False,
    "padding": "repeat",
    "hindsight_goal": "none",
}

PRESETS: dict[str, TrainConfig] = {
    "multi2d-umaze": _fast(
        "umaze",
        horizon=192,
        min_horizon=24,
        stride=3,
        num_steps=12_000,
        num_sampling_steps=1,
    ),
    "multi2d-medium": _fast(
        "medium",
        horizon=320,
        min_horizon=32,
        stride=4,
        num_steps=16_000,
        num_sampling_steps=1,
    ),
    "multi2d-large": _fast(
        "large",
        horizon=480,
        min_horizon=48,
        stride=6,
        num_steps=20_000,
        num_sampling_steps=2,
    ),
    "kuka-stack": TrainConfig(
        dataset="diffuser/kuka-stack-v1",
        window=WindowConfig(stride=4, features="kuka-blocks", **KUKA_WINDOW),
        network=NetworkConfig(
            architecture="objects", residual=True, dim=128, loss_floor=0.1
        ),
        optimization=OptimizationConfig(num_steps=36_000, batch_size=64),
        guide=("stack-task",),
        planner=PlannerConfig(
            num_sampling_steps=4, num_candidates=16, ranking="sum", steadiness=0.01
        ),
        execution=ExecutionConfig(executor="features", replan_interval=12),
    ),
    "kuka-stack-paper": TrainConfig(
        dataset="diffuser/kuka-stack-v1",
        window=WindowConfig(features="kuka-joints", **KUKA_WINDOW),
        network=NetworkConfig(
            dim=128,
            multipliers=(1, 2, 4, 8),
            attention=True,
            num_denoising_steps=100,
            prediction_target="noise",
        ),
        optimization=OptimizationConfig(
            num_steps=500_000, learning_rate=4e-5, **RELEASED_OPTIMIZATION
        ),
        planner=PlannerConfig(**RELEASED_SAMPLING),
        execution=ExecutionConfig(executor="features", replan_interval=128),
    ),
    "maze2d-umaze-paper": _paper("umaze", horizon=128, num_denoising_steps=64),
    "maze2d-medium-paper": _paper("medium", horizon=256, num_denoising_steps=256),
    "maze2d-large-paper": _paper("large", horizon=384, num_denoising_steps=256),
    **{
        f"{robot}-{quality}-paper": _paper_locomotion(
            f"{robot}-{quality}", guide_scale=0.1, guide_cutoff=2
        )
        for robot in ("hopper", "walker2d")
        for quality in QUALITIES
    },
    "hopper-medium-expert-paper": _paper_locomotion(
        "hopper-medium-expert", guide_scale=1e-4, guide_cutoff=4
    ),
    **{
        f"halfcheetah-{quality}-paper": _paper_locomotion(
            f"halfcheetah-{quality}",
            horizon=4,
            network={"multipliers": (1, 4, 8), "attention": True},
            guide_scale=1e-3,
            guide_cutoff=4,
        )
        for quality in QUALITIES
    },
}


def preset(name: str) -> TrainConfig:
    """Return the settings of that name.

    Raises:
        UnknownNameError: No preset of that name; the nearest are named.
    """
    if name not in PRESETS:
        is_dataset = re.search(r"-v\d+$", name)
        remark = f" (a dataset is named by --dataset {name})" if is_dataset else ""
        raise UnknownNameError("preset", name, PRESETS, remark)
    return PRESETS[name]
