"""Featurizers of the toy world, and planners that plan in their columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from diffuser_policy.columns.features import FEATURIZERS, register_featurizer
from diffuser_policy.config import (
    ExecutionConfig,
    PlannerConfig,
    TrainConfig,
    WindowConfig,
)
from diffuser_policy.policy import DiffuserPolicy
from diffuser_policy.testing import toy_config, toy_policy


class Turned:
    """The toy world turned by half a turn, with the speed; steers back by a gain.

    Its two "objects" are the coordinates, as if they were interchangeable.
    """

    observation_size = 4
    num_columns = 3
    columns: Mapping[str, tuple[int, ...]] = {"position": (0, 1), "speed": (2,)}
    objects: tuple[tuple[int, ...], ...] = ((0,), (1,))

    def features(self, observations: np.ndarray) -> np.ndarray:
        speed = np.linalg.norm(observations[..., 2:], axis=-1, keepdims=True)
        return np.concatenate([-observations[..., :2], speed], -1, dtype=np.float32)

    def act(self, plans: Any, observations: np.ndarray) -> np.ndarray:
        assert observations.shape[1] == self.observation_size
        action: np.ndarray = -plans.reference(1.0)[:, :2] - observations[:, :2]
        return 5 * action

    def feasibility(self, candidates: np.ndarray, stride: int) -> np.ndarray:
        assert candidates.shape[2] == self.num_columns
        assert stride == 1
        right: np.ndarray = candidates[:, -1, 0]
        return right


class Pinned(Turned):
    """The same, and a goal pins the position."""

    columns: Mapping[str, tuple[int, ...]] = {**Turned.columns, "goal": (0, 1)}


class Scene(Turned):
    """The toy world as a robot and two objects, which have a position and a flag.

    One is where the velocity points to, the other lags behind and is larger than life.
    """

    num_columns = 8
    columns: Mapping[str, tuple[int, ...]] = {"position": (0, 1), "flags": (4, 7)}
    objects: tuple[tuple[int, ...], ...] = ((2, 3, 4), (5, 6, 7))

    def features(self, observations: np.ndarray) -> np.ndarray:
        place, velocity = observations[..., :2], observations[..., 2:]
        flag = (velocity > 0).astype(np.float32)
        parts = [-place, velocity, flag[..., :1], 3 * place - velocity, flag[..., 1:]]
        return np.concatenate(parts, axis=-1, dtype=np.float32)


class Copied:
    """The observation itself, but by way of a featurizer."""

    observation_size = num_columns = 4
    columns: Mapping[str, tuple[int, ...]] = {"position": (0, 1), "velocity": (2, 3)}
    objects: tuple[tuple[int, ...], ...] = ()

    def features(self, observations: np.ndarray) -> np.ndarray:
        return observations.copy()


KNOWN = {"turned": Turned, "pinned": Pinned, "copied": Copied, "scene": Scene}


def register_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register these featurizers, and no others, for one test."""
    monkeypatch.setattr(FEATURIZERS, "registered", {})
    for name, featurizer in KNOWN.items():
        register_featurizer(name)(featurizer)


def config(name: str | None = "turned", **parts: Any) -> TrainConfig:
    window = WindowConfig(
        horizon=16, features=name, actions=False, hindsight_goal="none"
    )
    settings: dict[str, Any] = {
        "window": window,
        "time_to_goal": None,
        "planner": PlannerConfig(
            num_sampling_steps=2, num_candidates=4, ranking="feasibility"
        ),
        "execution": ExecutionConfig(executor="features"),
    }
    return toy_config(**{**settings, **parts})


def turned_policy(**settings: Any) -> DiffuserPolicy:
    return toy_policy(config(), **settings)
