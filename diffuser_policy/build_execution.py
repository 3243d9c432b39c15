"""The part of `diffuser_policy.build` that is about execution.

PolicyConfig → Executor, Replanning
"""

from __future__ import annotations

from diffuser_policy.config import ExecutionConfig
from diffuser_policy.errors import ConfigError
from diffuser_policy.executors import (
    Executor,
    FeaturesExecutor,
    PlannedActions,
    PursuitExecutor,
    TrackingExecutor,
)
from diffuser_policy.features import Featurizer
from diffuser_policy.path_following import PathExecutor
from diffuser_policy.policy_config import PolicyConfig, config_featurizer
from diffuser_policy.receding import Replanning


def build_executor(
    config: PolicyConfig, featurizer: Featurizer | None = None
) -> Executor:
    """Return the executor that the settings describe.

    Args:
        config: Settings.
        featurizer: What makes the planning columns; made by name if not given.

    Raises:
        ConfigError: The plans lack the columns it needs.
    """
    settings = config.execution
    if settings.executor == "actions":
        return PlannedActions(config.layout, config.window.stride)
    if settings.executor == "features":
        return FeaturesExecutor(featurizer or config_featurizer(config))
    for name in ("position", "velocity"):
        columns = config.layout.aliases.get(name)
        if columns is not None and len(columns) != len(config.spaces.action_low):
            raise ConfigError(
                f"Tracking pushes along every column of {name!r}: it needs as many as "
                f"there are actions ({len(config.spaces.action_low)}), got {columns}. "
                f"Use the executor 'actions'{_way_back(config)}."
            )
    if settings.executor == "path":
        if settings.seconds_per_step is None:
            raise ConfigError(
                "executor='path' relates planned velocities to positions: it needs "
                "seconds_per_step, the duration of an env step."
            )
        return PathExecutor(
            config.layout,
            seconds_per_step=settings.seconds_per_step,
            tempo=settings.tempo,
            tolerance=settings.tolerance,
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


def _way_back(config: PolicyConfig) -> str:
    """Return the end of an advice where plans are made of derived columns."""
    derived = config.window.features is not None
    return ", or 'features' if the featurizer offers a way back" if derived else ""


def build_replanning(settings: ExecutionConfig) -> Replanning:
    """Return when to plan anew.

    Raises:
        ConfigError: An interval or deviation that is not positive.
    """
    return Replanning(
        interval=settings.replan_interval, deviation=settings.replan_deviation
    )
