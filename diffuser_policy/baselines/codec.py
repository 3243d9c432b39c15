r"""Between environment units and what the networks of baselines see.

- Inputs are the observation and, for problems with goals, then the desired goal, each
  column with mean 0 and standard deviation 1 over the data.
- Actions are scaled to [-1, 1]. An action column that is a target for an observation
  column (an environment says so in `metadata["action_targets"]`) is first taken
  relative to it: as in the baselines of Janner et al. (2022) for the arm, networks
  learn by how much to move, and the range is that of the data.
- Action columns that never change are left out, and put back in for the environment.
  Blown up to [-1, 1] they would let a critic tell actions of the data from all others
  by numbers that move nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from diffuser_policy.envs import Env
from diffuser_policy.errors import ConfigError, DatasetError

MIN_SPREAD = 1e-3  # of a column; what never changes must not be blown up
MARGIN = 1.02  # so that actions of the data are not at the very end of tanh
MIN_RANGE = 1e-6  # of an action column, as a share of the space's


@dataclass(frozen=True, kw_only=True, eq=False)
class Codec:
    """Scales inputs and actions; all arrays are float32.

    Attributes:
        mean: `[inputs]`.
        std: `[inputs]`.
        columns: Of the actions, which networks see; the others stay at their middle.
        low: `[actions]`, of relative actions where `targets` has a column.
        high: `[actions]`.
        space_low: `[actions]`, of the action space.
        space_high: `[actions]`.
        targets: For each action column the observation column that it is a target
            for; -1 for none.
    """

    mean: np.ndarray
    std: np.ndarray
    columns: tuple[int, ...]
    low: np.ndarray
    high: np.ndarray
    space_low: np.ndarray
    space_high: np.ndarray
    targets: tuple[int, ...]

    @classmethod
    def fit(
        cls,
        env: Env,
        observations: np.ndarray,
        actions: np.ndarray,
        goals: np.ndarray | None = None,
    ) -> Self:
        """Return the codec of a dataset.

        Args:
            env: Its action space has to be a bounded box.
            observations: `[rows, size]`.
            actions: `[rows, actions]`.
            goals: `[rows, goal]` achieved goals, for problems with goals.

        Raises:
            ConfigError: The environment names targets that are no columns, or its
                actions have no bounds.
            DatasetError: The actions never change.
        """
        parts = [observations] if goals is None else [observations, goals]
        mean = np.concatenate([part.mean(axis=0, dtype=np.float64) for part in parts])
        std = np.concatenate([part.std(axis=0, dtype=np.float64) for part in parts])
        space: Any = env.action_space
        targets = _targets(env, observations.shape[1], actions.shape[1])
        low, high = space.low.astype(np.float32), space.high.astype(np.float32)
        if not np.isfinite([low, high]).all():
            raise ConfigError(
                f"Actions are scaled by their bounds, and the action space has none: "
                f"{space}. Wrap the environment so that it has."
            )
        moved = actions - _base(targets, observations)
        least, most = moved.min(axis=0), moved.max(axis=0)
        changing = most - least > MIN_RANGE * (high - low)
        if not changing.any():
            raise DatasetError(
                "The actions of the data never change: there is nothing to learn."
            )
        aimed = np.array(targets) >= 0
        half = (most - least) / 2 * MARGIN
        by_data = aimed | ~changing
        low = np.where(by_data, (least + most) / 2 - half, low)
        high = np.where(by_data, (least + most) / 2 + half, high)
        return cls(
            mean=mean.astype(np.float32),
            std=np.where(std > MIN_SPREAD, std, 1.0).astype(np.float32),
            columns=tuple(np.flatnonzero(changing).tolist()),
            low=low.astype(np.float32),
            high=high.astype(np.float32),
            space_low=space.low.astype(np.float32),
            space_high=space.high.astype(np.float32),
            targets=targets,
        )

    @property
    def num_actions(self) -> int:
        """Numbers of an action that networks see."""
        return len(self.columns)

    def inputs(self, rows: np.ndarray) -> np.ndarray:
        """Return scaled inputs of observations, or observations and goals.

        Args:
            rows: `[..., inputs]`.
        """
        if rows.shape[-1] != len(self.mean):
            raise ConfigError(
                f"This policy takes {len(self.mean)} numbers (observation, then goal), "
                f"got {rows.shape[-1]}."
            )
        scaled: np.ndarray = ((rows - self.mean) / self.std).astype(np.float32)
        return scaled

    def encode(self, actions: np.ndarray, observations: np.ndarray) -> np.ndarray:
        """Return what networks see of actions: `[n, num_actions]` in [-1, 1].

        Args:
            actions: `[n, actions]` of the environment.
            observations: `[n, size]` that they were taken in.
        """
        moved, kept = actions - _base(self.targets, observations), list(self.columns)
        low, high = self.low[kept], self.high[kept]
        scaled = 2 * (moved[:, kept] - low) / (high - low) - 1
        encoded: np.ndarray = scaled.clip(-1, 1).astype(np.float32)
        return encoded

    def decode(self, encoded: np.ndarray, observations: np.ndarray) -> np.ndarray:
        """Return actions `[n, actions]` of the environment, inside of its space.

        Args:
            encoded: `[n, num_actions]`.
            observations: `[n, at least size]` that they are taken in.
        """
        whole = np.zeros((len(encoded), len(self.low)), np.float32)
        whole[:, list(self.columns)] = encoded
        moved = self.low + (whole + 1) / 2 * (self.high - self.low)
        actions: np.ndarray = moved + _base(self.targets, observations)
        return actions.clip(self.space_low, self.space_high).astype(np.float32)


def _base(targets: tuple[int, ...], observations: np.ndarray) -> np.ndarray:
    """Return `[n, actions]`: what actions are relative to; zero for nothing."""
    columns = np.array(targets)
    base: np.ndarray = np.where(columns >= 0, observations[..., columns], 0.0)
    return base


def _targets(env: Env, num_columns: int, num_actions: int) -> tuple[int, ...]:
    """Return the observation column that each action column is a target for, or -1."""
    metadata = getattr(env.unwrapped, "metadata", {})
    given = metadata.get("action_targets", [-1] * num_actions)
    if len(given) != num_actions or not all(-1 <= c < num_columns for c in given):
        raise ConfigError(
            f"The environment's metadata['action_targets'] has to name an observation "
            f"column (or -1) for each of {num_actions} action columns, got {given}."
        )
    return tuple(int(column) for column in given)
