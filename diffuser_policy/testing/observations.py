"""Observations to test a policy with: good ones, batches of them, and damaged ones."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces


def sample_observation(space: spaces.Space[Any], rng: np.random.Generator) -> Any:
    """Return a random observation of a space.

    Args:
        space: A Box, or a Dict, or any other that Gymnasium can sample.
        rng: Source of randomness; the space's own is left alone.
    """
    sampled = copy.deepcopy(space)
    sampled.seed(int(rng.integers(2**31)))
    return sampled.sample()


def batch_observations(observations: Sequence[Any]) -> Any:
    """Return one batch, stacked key by key for dictionaries."""
    if isinstance(observations[0], dict):
        keys = observations[0]
        return {key: np.stack([o[key] for o in observations]) for key in keys}
    return np.stack([np.asarray(observation) for observation in observations])


def damaged(observation: Any, space: spaces.Space[Any]) -> dict[str, Any]:
    """Return broken copies of an observation, by the rule that refuses them.

    Args:
        observation: A good one.
        space: It comes from.
    """
    is_dict = isinstance(space, spaces.Dict)
    parts = dict(observation) if is_dict else {"": observation}
    arrays = {key: np.asarray(part) for key, part in parts.items()}
    broken = {"refuses_shape": {k: _longer(part) for k, part in arrays.items()}}
    if all(part.dtype.kind == "f" for part in arrays.values()):
        broken["refuses_nan"] = {k: part * np.nan for k, part in arrays.items()}
    return {rule: o if is_dict else o[""] for rule, o in broken.items()}


def _longer(part: np.ndarray) -> np.ndarray:
    """Return an array with a column too many, or an axis too many."""
    if part.ndim == 0:
        return np.stack([part, part])
    return np.concatenate([part, part[..., :1]], axis=-1)
