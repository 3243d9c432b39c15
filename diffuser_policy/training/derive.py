"""The planner that training settings and a dataset describe, before it is trained.

TrainConfig, FlatDataset → PolicyConfig → PlannerNetworks, with initial weights
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from diffuser_policy.build import PlannerNetworks, build_networks
from diffuser_policy.choices import GOAL_KEYS
from diffuser_policy.columns.features import (
    Featurizer,
    FeaturizerError,
    make_featurizer,
)
from diffuser_policy.columns.layout import TrajectoryLayout, named_columns, rows_at_once
from diffuser_policy.columns.normalizers import NORMALIZERS
from diffuser_policy.config import PolicyConfig, TrainConfig
from diffuser_policy.data.flat import FlatDataset, spread_rows
from diffuser_policy.data.windows import JoinedRows
from diffuser_policy.envs import other_versions
from diffuser_policy.errors import ConfigError, DatasetError
from diffuser_policy.guides.builtin import LearnedValue
from diffuser_policy.guides.guide import Guide
from diffuser_policy.guides.registry import parse_guides
from diffuser_policy.networks.landmarks import Landmarks
from diffuser_policy.numerics import plain_arithmetic
from diffuser_policy.observations import RESERVED, ObservationColumns, Part
from diffuser_policy.settings import from_json, json_data, to_json
from diffuser_policy.spaces import SpaceSpec, find_goal_columns
from diffuser_policy.words import counted

AT_ONCE = 1_000_000  # rows that are read at a time, at most


def policy_config(train: TrainConfig, flat: FlatDataset) -> PolicyConfig:
    """Return the config of the planner that training on a dataset will make.

    Args:
        train: Training settings.
        flat: The dataset, read.

    Raises:
        DatasetError: The dataset names no usable bounds of its actions.
        UnknownNameError: A featurizer that is not registered.
        FeaturizerError: One that is broken, or of another environment.
        ConfigError: Settings that contradict each other or the data.
        GuideError: A guide that cannot be read.
    """
    features = train.window.features
    featurizer = None if features is None else make_featurizer(features)
    spaces = space_spec(flat, featurizer)
    aliases = named_columns(flat.metadata)
    if featurizer is not None:
        aliases = dict(featurizer.columns)
    aliases.pop("goal", None)  # it would stand for goals of the environment
    for name in ("position", "velocity"):
        columns = getattr(train.window, name)
        if columns is None:
            continue
        named = aliases.get(name) if featurizer is not None else None
        if named is not None and tuple(named) != columns:
            raise ConfigError(
                f"{name} (--window.{name}) names columns {columns}, and the "
                f"featurizer {features!r} names {tuple(named)}. Leave it out."
            )
        aliases[name] = columns
    if spaces.appends_goal:
        key = spaces.parts.goal_keys[0]
        # By its own name, and by the last key of it: executors look for a "position".
        for name in (key, key.rpartition("/")[2]):
            if name not in (*RESERVED, *GOAL_KEYS):
                aliases.setdefault(name, spaces.goal_columns)
    if spaces.has_goal:
        aliases["goal"] = (
            spaces.goal_columns if featurizer is None else featurizer.columns["goal"]
        )
        if train.window.num_planning_steps < 2:
            raise ConfigError(
                f"Plans to a goal begin at the current observation and end at the "
                f"goal: they have 2 planning steps or more, got 1 "
                f"(horizon={train.window.horizon}, stride={train.window.stride}). Use "
                f"a longer horizon, or a smaller stride."
            )
    elif train.time_to_goal is not None:
        raise ConfigError(
            "A time-to-goal network needs goals, and either this dataset has none or "
            "its featurizer names no goal columns. Train with --no-time-to-goal."
        )
    elif train.landmarks is not None:
        raise ConfigError(
            "Landmarks need goals, and either this dataset has none or its "
            "featurizer names no goal columns. Train with --no-landmarks."
        )
    if train.landmarks is not None and train.time_to_goal is None:
        raise ConfigError(
            "Landmarks need plans of predicted length, and no network predicts it. "
            "Train with --time-to-goal, or with --no-landmarks."
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
        value=train.value,
        critic=train.critic,
        inverse_dynamics=train.inverse_dynamics,
        landmarks=train.landmarks,
        guide=guide_of(train),
        planner=train.planner,
        execution=train.execution,
        provenance={"training": to_json(train), "dataset": json_data(flat.metadata)},
    )


def guide_of(train: TrainConfig) -> Guide | None:
    """Return the guide that a planner is saved with, if there is one.

    Raises:
        UnknownNameError: No guide of a name.
        GuideError: A guide that cannot be read.
    """
    if train.guide:
        return parse_guides(train.guide)
    return None if train.value is None else LearnedValue()


@plain_arithmetic(gradients=True)
def initial_networks(
    config: PolicyConfig, planned: FlatDataset, seed: int
) -> PlannerNetworks:
    """Return networks with random weights, and a normalizer fitted to the data.

    Args:
        config: Settings of the planner.
        planned: The dataset in planning columns.
        seed: Fixes the weights.
    """
    networks = build_networks(config, seed)
    rows = JoinedRows.of(planned, config.layout)
    normalizer = NORMALIZERS[config.window.normalizer]
    networks.normalizer = normalizer.fit(rows, config.layout.ties)
    if config.landmarks is not None:
        columns = list(config.layout.columns("goal"))
        count = rows_at_once(4 * rows.shape[1], AT_ONCE)
        places = np.concatenate(
            [
                rows[begin : begin + count][:, columns]
                for begin in range(0, planned.num_rows, count)
            ]
        )
        networks.landmarks = Landmarks.fit(
            networks.normalizer.normalize(torch.from_numpy(places), columns).numpy(),
            np.asarray(planned.run_starts),
            config.landmarks.num,
        )
    return networks


def space_spec(flat: FlatDataset, featurizer: Featurizer | None = None) -> SpaceSpec:
    """Return the spaces of the environment that a dataset was recorded in.

    Args:
        flat: The dataset.
        featurizer: Makes the planning columns. Goals of the data count as goals only
            if it names the columns that they pin.

    Raises:
        DatasetError: The dataset names no usable bounds of its actions, or is of
            another version of its environment than the installed one.
        FeaturizerError: A featurizer of another environment.
    """
    recorded = flat.metadata.get("env_id")
    others = other_versions(recorded) if recorded else []
    if others:  # its columns may mean something else, or change differently
        raise DatasetError(
            f"{flat!r} was recorded in {recorded}, and only {', '.join(others)} is "
            f"installed: another version is another environment. Record the data again "
            f"(`diffuser-policy collect {others[-1]}`), or install the version that it "
            f"was recorded with."
        )
    low, high = flat.action_bounds
    flat.check_actions()
    goal_columns: tuple[int, ...] = ()
    goal_size = flat.goal_size
    if featurizer is not None:
        goal_size = _pinned_goal_size(flat, featurizer)
    elif flat.has_goals:
        both = flat.fields["observation"], flat.fields["achieved_goal"]
        goal_columns = find_goal_columns(*map(spread_rows, both))
    shape, dtype = (flat.metadata.get(f"action_{name}") for name in ("shape", "dtype"))
    return SpaceSpec(
        observation_size=flat.observation_size,
        goal_size=goal_size,
        goal_columns=goal_columns,
        action_low=tuple(low.tolist()),
        action_high=tuple(high.tolist()),
        action_shape=None if shape is None else tuple(shape),
        action_dtype=dtype or "float32",
        columns=_columns(flat, goal_size),
    )


def _columns(flat: FlatDataset, goal_size: int) -> ObservationColumns | None:
    """Return where the columns of a dataset are in observations, if it says so.

    A planner without goals that reads the one box of a goal dictionary also reads that
    box alone: where it is, is left out.
    """
    recorded = flat.metadata.get("columns")
    if recorded is None:
        return None
    columns = from_json(ObservationColumns, recorded)
    if goal_size:
        return columns
    [part, *others] = columns.observation
    if not others and part == Part(path=("observation",), shape=(part.size,)):
        return None
    return dataclasses.replace(columns, achieved_goal=(), desired_goal=())


def _pinned_goal_size(flat: FlatDataset, featurizer: Featurizer) -> int:
    """Return how many goal columns a featurizer's plans pin; zero for none.

    Raises:
        FeaturizerError: It takes other observations, or pins other goals.
    """
    name = type(featurizer).__name__
    if featurizer.observation_size != flat.observation_size:
        raise FeaturizerError(
            f"The featurizer {name} takes observations of "
            f"{counted(featurizer.observation_size, 'column')}, and {flat!r} has "
            f"{flat.observation_size:,}. Use data of its environment."
        )
    pinned = len(featurizer.columns.get("goal", ()))
    if not flat.has_goals or not pinned:
        return 0
    if pinned != flat.goal_size:
        raise FeaturizerError(
            f"The featurizer {name} names {counted(pinned, 'column')} that a goal "
            f"pins, and goals of {flat!r} have {flat.goal_size:,}."
        )
    return pinned
