"""The one module that turns settings into objects.

    PolicyConfig → PlannerNetworks (weights) → Planner, Executor, Replanning

Everything else takes plain arguments and knows no config.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn

from diffuser_policy.config import (
    SCHEMA,
    ExecutionConfig,
    NetworkConfig,
    PlannerConfig,
    TimeToGoalConfig,
    TrainConfig,
    ValueConfig,
    WindowConfig,
    from_json,
    to_json,
)
from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.denoiser import Denoiser
from diffuser_policy.errors import CheckpointError, ConfigError, DatasetError
from diffuser_policy.executors import (
    Executor,
    PlannedActions,
    PursuitExecutor,
    TrackingExecutor,
)
from diffuser_policy.guidance import Guidance
from diffuser_policy.guides.guide import Guide
from diffuser_policy.guides.registry import guide_from_json, guide_to_json
from diffuser_policy.layout import TrajectoryLayout
from diffuser_policy.networks import TemporalUNet
from diffuser_policy.normalizers import Normalizer, normalizer_class
from diffuser_policy.planner import Planner
from diffuser_policy.ranking import (
    FirstRanking,
    GuideRanking,
    Ranking,
    SmoothnessRanking,
    TimeToGoalRanking,
)
from diffuser_policy.receding import Replanning
from diffuser_policy.sampler import (
    DDIMSampler,
    DDPMSampler,
    DPMSolverSampler,
    Sampler,
)
from diffuser_policy.schedule import NoiseSchedule
from diffuser_policy.spaces import SpaceSpec, check_action_bounds, find_goal_columns
from diffuser_policy.time_to_goal import TimeToGoal
from diffuser_policy.value import ValueNetwork

SAMPLERS: dict[str, type[DDPMSampler] | type[DDIMSampler] | type[DPMSolverSampler]] = {
    "ddim": DDIMSampler,
    "ddpm": DDPMSampler,
    "dpm": DPMSolverSampler,
}


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """Everything but the weights that makes a saved planner."""

    spaces: SpaceSpec
    """Spaces of the environment."""
    layout: TrajectoryLayout
    """Columns of a trajectory."""
    window: WindowConfig
    """Horizon, stride and normalizer of the training windows."""
    network: NetworkConfig
    """Denoiser."""
    time_to_goal: TimeToGoalConfig | None
    """Network for predicted horizons, if there is one."""
    planner: PlannerConfig
    """How to plan."""
    execution: ExecutionConfig
    """How to follow a plan."""
    value: ValueConfig | None = None
    """Network that predicts returns, if there is one."""
    guide: Guide | None = None
    """What plans are steered by."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Where the weights come from: dataset, its settings, seed, steps, versions."""

    def to_json(self) -> dict[str, Any]:
        """Return JSON data with the schema number first."""
        return {
            "schema": SCHEMA,
            "spaces": to_json(self.spaces),
            "layout": self.layout.to_json(),
            "window": to_json(self.window),
            "network": to_json(self.network),
            "time_to_goal": self.time_to_goal and to_json(self.time_to_goal),
            "planner": to_json(self.planner),
            "execution": to_json(self.execution),
            "value": self.value and to_json(self.value),
            "guide": self.guide and guide_to_json(self.guide),
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PolicyConfig:
        """Rebuild from `to_json`'s data.

        Raises:
            CheckpointError: Another schema, or settings that are missing or foreign.
        """
        if not isinstance(data, dict) or "schema" not in data:
            raise CheckpointError(
                "config.json is not of this package: it has no 'schema'. Planners are "
                "written by save_pretrained or `diffuser-policy train`."
            )
        if data["schema"] != SCHEMA:
            raise CheckpointError(
                f"The planner has schema {data['schema']}, this version reads schema "
                f"{SCHEMA}. Install the version that wrote it, or train it again."
            )
        try:
            time_to_goal = data["time_to_goal"]
            value, guide = data.get("value"), data.get("guide")  # younger than schema
            return cls(
                spaces=from_json(SpaceSpec, data["spaces"]),
                layout=TrajectoryLayout.from_json(data["layout"]),
                window=from_json(WindowConfig, data["window"]),
                network=from_json(NetworkConfig, data["network"]),
                time_to_goal=time_to_goal and from_json(TimeToGoalConfig, time_to_goal),
                planner=from_json(PlannerConfig, data["planner"]),
                execution=from_json(ExecutionConfig, data["execution"]),
                value=value and from_json(ValueConfig, value),
                guide=guide and guide_from_json(guide),
                provenance=data["provenance"],
            )
        except (LookupError, TypeError, AttributeError, ConfigError) as error:
            raise CheckpointError(
                f"config.json lacks settings, or has some that this version does not "
                f"know: {error!r}."
            ) from error


class PlannerNetworks(nn.Module):
    """All weights of a planner: what model.safetensors holds."""

    def __init__(
        self,
        denoiser: Denoiser,
        normalizer: Normalizer,
        time_to_goal: TimeToGoal | None,
        value: ValueNetwork | None = None,
    ) -> None:
        """Combine the parts."""
        super().__init__()
        self.denoiser = denoiser
        self.normalizer = normalizer
        self.time_to_goal = time_to_goal
        self.value = value


def build_networks(config: PolicyConfig) -> PlannerNetworks:
    """Return untrained networks and an identity normalizer of the right sizes.

    Raises:
        HorizonError: The network cannot represent the horizon.
    """
    settings = config.network
    network = TemporalUNet(
        config.layout.transition_dim,
        dim=settings.dim,
        multipliers=settings.multipliers,
        kernel_size=settings.kernel_size,
        attention=settings.attention,
    )
    network.check_horizon(config.window.num_planning_steps)
    denoiser = Denoiser(
        network,
        NoiseSchedule(settings.num_denoising_steps),
        prediction_target=settings.prediction_target,
        clip=config.window.normalizer == "limits"
        if settings.clip is None
        else settings.clip,
    )
    normalizer = normalizer_class(config.window.normalizer).blank(
        config.layout.transition_dim
    )
    time_to_goal = None
    if config.time_to_goal is not None:
        time_to_goal = TimeToGoal(
            config.layout.observation_dim,
            len(config.layout.columns("goal")),
            width=config.time_to_goal.width,
            max_steps=config.time_to_goal.max_steps,
        )
    value = None if config.value is None else build_value_network(config)
    return PlannerNetworks(denoiser, normalizer, time_to_goal, value)


def build_value_network(config: PolicyConfig) -> ValueNetwork:
    """Return an untrained value network for a planner.

    Raises:
        ConfigError: Settings without one, widths that the architecture does not
            allow, or a flattening network for plans of several lengths.
    """
    settings, window = config.value, config.window
    if settings is None:
        raise ConfigError("These settings have no value network: `value` is not set.")
    mixed = window.min_planning_steps != window.num_planning_steps
    if settings.pooling == "flatten" and mixed:
        raise ConfigError(
            f"pooling='flatten' values plans of one length, and this planner makes "
            f"plans of {window.min_planning_steps} to {window.num_planning_steps} "
            f"planning steps. Use pooling='mean'."
        )
    return ValueNetwork(
        config.layout.transition_dim,
        dim=settings.dim,
        multipliers=settings.multipliers,
        kernel_size=settings.kernel_size,
        num_planning_steps=(
            window.num_planning_steps if settings.pooling == "flatten" else None
        ),
    )


def build_planner(config: PolicyConfig, networks: PlannerNetworks) -> Planner:
    """Return the planner that the settings describe.

    Raises:
        ConfigError: A choice that lacks what it needs.
    """
    settings, window = config.planner, config.window
    guide = config.guide.bind(networks) if config.guide is not None else None
    return Planner(
        build_sampler(settings, networks.denoiser),
        layout=config.layout,
        normalizer=networks.normalizer,
        horizon=window.horizon,
        min_horizon=window.min_horizon,
        stride=window.stride,
        horizon_multiple=networks.denoiser.horizon_multiple,
        horizon_choice=settings.horizon,
        horizon_scale=settings.horizon_scale,
        horizon_offset=settings.horizon_offset,
        time_to_goal=networks.time_to_goal,
        num_candidates=settings.num_candidates,
        ranking=build_ranking(settings, networks, guide),
        guidance=build_guidance(settings, guide),
        warm_start=settings.warm_start,
        warm_start_steps=settings.warm_start_steps,
        pin_goal_velocity=settings.goal_velocity,
    )


def build_sampler(settings: PlannerConfig, denoiser: Denoiser) -> Sampler:
    """Return the reverse process of that name.

    Raises:
        ConfigError: More steps than the denoiser was trained with.
    """
    return SAMPLERS[settings.sampler](
        denoiser,
        settings.num_sampling_steps,
        temperature=settings.temperature,
        spacing=settings.step_spacing,
    )


def build_guidance(settings: PlannerConfig, guide: Guide | None) -> Guidance | None:
    """Return what steers plans, if there is a guide."""
    if guide is None:
        return None
    return Guidance(
        guide=guide,
        placement=settings.guide_placement,
        scale=settings.guide_scale,
        num_steps=settings.guide_steps,
        cutoff=settings.guide_cutoff,
        variance_scaling=settings.guide_variance,
    )


def build_ranking(
    settings: PlannerConfig, networks: PlannerNetworks, guide: Guide | None
) -> Ranking:
    """Return the ranking that the settings name.

    Raises:
        ConfigError: "time_to_goal" without such a network, "guide" without a guide.
    """
    if settings.ranking == "first":
        return FirstRanking()
    if settings.ranking == "smoothness":
        return SmoothnessRanking()
    feasible = (
        None
        if networks.time_to_goal is None
        else TimeToGoalRanking(networks.time_to_goal)
    )
    if settings.ranking == "guide":
        if guide is None:
            raise ConfigError("ranking='guide' needs a guide: policy.with_guide(…).")
        return GuideRanking(guide, feasible, settings.ranking_tolerance)
    if feasible is None:
        raise ConfigError(
            "ranking='time_to_goal' needs a time-to-goal network, and this planner was "
            "trained without one. Use 'smoothness' or 'first'."
        )
    return feasible


def build_executor(config: PolicyConfig) -> Executor:
    """Return the executor that the settings describe.

    Raises:
        ConfigError: The plans lack the columns it needs.
    """
    settings = config.execution
    if settings.executor == "actions":
        return PlannedActions(config.layout, config.window.stride)
    for name in ("position", "velocity"):
        columns = config.layout.aliases.get(name)
        if columns is not None and len(columns) != len(config.spaces.action_low):
            raise ConfigError(
                f"Tracking pushes along every column of {name!r}: it needs as many as "
                f"there are actions ({len(config.spaces.action_low)}), got {columns}. "
                f"Use the executor 'actions'."
            )
    if settings.executor == "pursuit":
        return PursuitExecutor(
            config.layout,
            position_gain=settings.position_gain,
            velocity_gain=settings.velocity_gain,
            lookahead=settings.lookahead,
        )
    return TrackingExecutor(
        config.layout,
        position_gain=settings.position_gain,
        velocity_gain=settings.velocity_gain,
    )


def build_replanning(settings: ExecutionConfig) -> Replanning:
    """Return when to plan anew.

    Raises:
        ConfigError: An interval or deviation that is not positive.
    """
    return Replanning(
        interval=settings.replan_interval, deviation=settings.replan_deviation
    )


def policy_config(train: TrainConfig, flat: FlatDataset) -> PolicyConfig:
    """Return the config of the planner that training on a dataset will make.

    Args:
        train: Training settings.
        flat: The dataset, read.

    Raises:
        DatasetError: The dataset does not say what its actions are bounded by.
    """
    spaces = space_spec(flat)
    aliases = dict(flat.metadata.get("observation_columns", {}))
    for name in ("position", "velocity"):
        columns = getattr(train.window, name)
        if columns is not None:
            aliases[name] = columns
    if spaces.has_goal:
        aliases["goal"] = spaces.goal_columns
    elif train.time_to_goal is not None:
        raise ConfigError(
            "A time-to-goal network needs data with goals, and this dataset has none. "
            "Train with --no-time-to-goal."
        )
    if train.network.clip and train.window.normalizer != "limits":
        raise ConfigError(
            f"clip=True cuts trajectories off at [-1, 1], and the normalizer "
            f"{train.window.normalizer!r} does not map data into it. Leave clip out."
        )
    layout = TrajectoryLayout(
        action_dim=flat.action_size if train.window.actions else 0,
        observation_dim=spaces.planned_size,
        aliases={name: tuple(columns) for name, columns in aliases.items()},
    )
    return PolicyConfig(
        spaces=spaces,
        layout=layout,
        window=train.window,
        network=train.network,
        time_to_goal=train.time_to_goal,
        planner=train.planner,
        execution=train.execution,
        provenance={"training": to_json(train), "dataset": dict(flat.metadata)},
    )


def space_spec(flat: FlatDataset) -> SpaceSpec:
    """Return the spaces of the environment that a dataset was recorded in.

    Raises:
        DatasetError: The dataset does not say what its actions are bounded by.
    """
    low, high = flat.metadata.get("action_low"), flat.metadata.get("action_high")
    if low is None or high is None:
        raise DatasetError(
            f"{flat!r} does not name the bounds of its actions. Set 'action_low' and "
            f"'action_high' in its metadata."
        )
    check_action_bounds(low, high)
    goal_columns: tuple[int, ...] = ()
    if flat.has_goals:
        goal_columns = find_goal_columns(
            flat.fields["observation"], flat.fields["achieved_goal"]
        )
    return SpaceSpec(
        observation_size=flat.observation_size,
        goal_size=flat.goal_size,
        goal_columns=goal_columns,
        action_low=tuple(np.asarray(low, float).tolist()),
        action_high=tuple(np.asarray(high, float).tolist()),
    )
