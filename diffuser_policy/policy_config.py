"""Everything but the weights that makes a planner, and how data gives rise to it.

TrainConfig, FlatDataset → PolicyConfig ⇄ config.json
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from diffuser_policy.config import (
    SCHEMA,
    ClassifierConfig,
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
from diffuser_policy.envs import other_versions
from diffuser_policy.errors import CheckpointError, ConfigError, DatasetError
from diffuser_policy.features import (
    Featurizer,
    FeaturizerError,
    Identity,
    make_featurizer,
    saved_featurizer,
)
from diffuser_policy.guides.guide import Guide
from diffuser_policy.guides.registry import guide_from_json, guide_to_json
from diffuser_policy.layout import TrajectoryLayout
from diffuser_policy.spaces import SpaceSpec, check_action_bounds, find_goal_columns


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
    classifier: ClassifierConfig | None = None
    """Network that predicts labels of states, if there is one."""
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
            "classifier": self.classifier and to_json(self.classifier),
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
            # These are younger than the schema.
            value, guide = data.get("value"), data.get("guide")
            classifier = data.get("classifier")
            return cls(
                spaces=from_json(SpaceSpec, data["spaces"]),
                layout=TrajectoryLayout.from_json(data["layout"]),
                window=from_json(WindowConfig, data["window"]),
                network=from_json(NetworkConfig, data["network"]),
                time_to_goal=time_to_goal and from_json(TimeToGoalConfig, time_to_goal),
                planner=from_json(PlannerConfig, data["planner"]),
                execution=from_json(ExecutionConfig, data["execution"]),
                value=value and from_json(ValueConfig, value),
                classifier=classifier and from_json(ClassifierConfig, classifier),
                guide=guide and guide_from_json(guide),
                provenance=data["provenance"],
            )
        except (LookupError, TypeError, AttributeError, ConfigError) as error:
            raise CheckpointError(
                f"config.json lacks settings, or has some that this version does not "
                f"know: {error!r}."
            ) from error


def policy_config(train: TrainConfig, flat: FlatDataset) -> PolicyConfig:
    """Return the config of the planner that training on a dataset will make.

    Args:
        train: Training settings.
        flat: The dataset, read.

    Raises:
        DatasetError: The dataset does not say what its actions are bounded by.
        UnknownNameError: A featurizer that is not registered.
        FeaturizerError: One that is broken, or of another environment.
    """
    features = train.window.features
    featurizer = None if features is None else make_featurizer(features)
    spaces = space_spec(flat, featurizer)
    aliases = dict(flat.metadata.get("observation_columns", {}))
    if featurizer is not None:
        aliases = {k: v for k, v in featurizer.columns.items() if k != "goal"}
    for name in ("position", "velocity"):
        columns = getattr(train.window, name)
        if columns is not None:
            aliases[name] = columns
    if spaces.has_goal:
        aliases["goal"] = (
            spaces.goal_columns if featurizer is None else featurizer.columns["goal"]
        )
    elif train.time_to_goal is not None:
        raise ConfigError(
            "A time-to-goal network needs data with goals, and this dataset has none, "
            "or the featurizer none to pin. Train with --no-time-to-goal."
        )
    if train.network.clip and train.window.normalizer != "limits":
        raise ConfigError(
            f"clip=True cuts trajectories off at [-1, 1], and the normalizer "
            f"{train.window.normalizer!r} does not map data into it. Leave clip out."
        )
    layout = TrajectoryLayout(
        action_dim=flat.action_size if train.window.actions else 0,
        observation_dim=(
            spaces.planned_size if featurizer is None else featurizer.num_columns
        ),
        aliases={name: tuple(columns) for name, columns in aliases.items()},
        objects=() if featurizer is None else featurizer.objects,
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


def config_featurizer(config: PolicyConfig) -> Featurizer:
    """Return what makes planning columns of a planner's observations.

    Raises:
        FeaturizerError: It is not registered here, is broken, or has changed since the
            planner was trained.
    """
    name, layout, spaces = config.window.features, config.layout, config.spaces
    if name is None:
        return Identity(spaces.planned_size)
    featurizer = saved_featurizer(name)
    sizes = featurizer.observation_size, featurizer.num_columns
    columns = {key: tuple(value) for key, value in featurizer.columns.items()}
    ours = {key: layout.aliases.get(key, value) for key, value in columns.items()}
    if (
        sizes != (spaces.observation_size, layout.observation_dim)
        or ours != columns
        or tuple(map(tuple, featurizer.objects)) != layout.objects
    ):
        raise FeaturizerError(
            f"The planner was trained with another version of the featurizer {name!r}: "
            f"from {spaces.observation_size} observed to {layout.observation_dim} "
            f"planning columns, {dict(layout.aliases)}; here it goes from {sizes[0]} "
            f"to {sizes[1]}, {columns}. Install the version that it was trained with, "
            f"or train it again."
        )
    return featurizer


def space_spec(flat: FlatDataset, featurizer: Featurizer | None = None) -> SpaceSpec:
    """Return the spaces of the environment that a dataset was recorded in.

    Args:
        flat: The dataset.
        featurizer: What planning columns are made by. Goals of the data count as goals
            only if it says which columns they pin.

    Raises:
        DatasetError: The dataset does not say what its actions are bounded by, or is of
            another version of its environment than the one that is here.
        FeaturizerError: A featurizer of another environment.
    """
    _check_version(flat)
    low, high = flat.metadata.get("action_low"), flat.metadata.get("action_high")
    if low is None or high is None:
        raise DatasetError(
            f"{flat!r} does not name the bounds of its actions. Set 'action_low' and "
            f"'action_high' in its metadata."
        )
    check_action_bounds(low, high)
    goal_columns: tuple[int, ...] = ()
    goal_size = flat.goal_size
    if featurizer is not None:
        goal_size = _pinned_goal_size(flat, featurizer)
    elif flat.has_goals:
        goal_columns = find_goal_columns(
            flat.fields["observation"], flat.fields["achieved_goal"]
        )
    return SpaceSpec(
        observation_size=flat.observation_size,
        goal_size=goal_size,
        goal_columns=goal_columns,
        action_low=tuple(np.asarray(low, float).tolist()),
        action_high=tuple(np.asarray(high, float).tolist()),
    )


def _check_version(flat: FlatDataset) -> None:
    """Refuse data of a version of their environment that is not here, if others are.

    Raises:
        DatasetError: Columns may have meant something else, or moved otherwise.
    """
    recorded = flat.metadata.get("env_id")
    others = other_versions(recorded) if recorded else []
    if others:
        raise DatasetError(
            f"{flat!r} was recorded in {recorded}, and here there is "
            f"{', '.join(others)}: another version is another environment. Record it "
            f"anew (`diffuser-policy collect {others[-1]}`), or install the version "
            f"that it was recorded with."
        )


def _pinned_goal_size(flat: FlatDataset, featurizer: Featurizer) -> int:
    """Return how many goal columns a featurizer's plans pin; zero for none.

    Raises:
        FeaturizerError: It takes other observations, or pins other goals.
    """
    name = type(featurizer).__name__
    if featurizer.observation_size != flat.observation_size:
        raise FeaturizerError(
            f"The featurizer {name} takes observations of "
            f"{featurizer.observation_size} columns, and {flat!r} has "
            f"{flat.observation_size}. Use data of its environment."
        )
    pinned = len(featurizer.columns.get("goal", ()))
    if not flat.has_goals or not pinned:
        return 0
    if pinned != flat.goal_size:
        raise FeaturizerError(
            f"The featurizer {name} names {pinned} columns that a goal pins, and "
            f"goals of {flat!r} have {flat.goal_size}."
        )
    return pinned
