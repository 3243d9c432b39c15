r"""Between environment units and what the networks of baselines see.

- Inputs are the observation and, for problems with goals, then the desired goal, each
  column with mean 0 and standard deviation 1 over the data.
- Actions are scaled to [-1, 1]. An action column that is a target for an observation
  column (an environment says so in `metadata["action_targets"]`) is first taken
  relative to it: as in the baselines of Janner et al. (2022) for the arm, networks
  learn by how much to move, and the range is that of the data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from diffuser_policy.envs import Env
from diffuser_policy.errors import ConfigError

MIN_SPREAD = 1e-3  # of a column; what never changes must not be blown up
MARGIN = 1.02  # so that actions of the data are not at the very end of tanh


@dataclass(frozen=True, kw_only=True, eq=False)
class Codec:
    """Scales inputs and actions; all arrays are float32.

    Attributes:
        mean: `[inputs]`.
        std: `[inputs]`.
        low: `[actions]`, of relative actions where `targets` has a column.
        high: `[actions]`.
        space_low: `[actions]`, of the action space.
        space_high: `[actions]`.
        targets: For each action column the observation column that it is a target
            for; -1 for none.
    """

    mean: np.ndarray
    std: np.ndarray
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
        """
        parts = [observations] if goals is None else [observations, goals]
        mean = np.concatenate([part.mean(axis=0, dtype=np.float64) for part in parts])
        std = np.concatenate([part.std(axis=0, dtype=np.float64) for part in parts])
        space: Any = env.action_space
        targets = _targets(env, observations.shape[1], actions.shape[1])
        columns = np.array(targets) >= 0
        moved = actions[:, columns] - observations[:, np.array(targets)[columns]]
        low, high = space.low.astype(np.float32), space.high.astype(np.float32)
        if not np.isfinite([low, high]).all():
            raise ConfigError(
                f"Actions are scaled by their bounds, and the action space has none: "
                f"{space}. Wrap the environment so that it has."
            )
        low[columns], high[columns] = moved.min(axis=0), moved.max(axis=0)
        middle, half = (low + high) / 2, np.maximum((high - low) / 2, 1e-6)
        half[columns] *= MARGIN
        return cls(
            mean=mean.astype(np.float32),
            std=np.where(std > MIN_SPREAD, std, 1.0).astype(np.float32),
            low=middle - half,
            high=middle + half,
            space_low=space.low.astype(np.float32),
            space_high=space.high.astype(np.float32),
            targets=targets,
        )

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
        """Return actions in [-1, 1].

        Args:
            actions: `[n, actions]` of the environment.
            observations: `[n, size]` that they were taken in.
        """
        scaled = (actions - self._base(observations) - self.low) / (
            self.high - self.low
        )
        encoded: np.ndarray = (2 * scaled - 1).clip(-1, 1).astype(np.float32)
        return encoded

    def decode(self, encoded: np.ndarray, observations: np.ndarray) -> np.ndarray:
        """Return actions of the environment, inside of its action space.

        Args:
            encoded: `[n, actions]`.
            observations: `[n, at least size]` that they are taken in.
        """
        relative = self.low + (encoded + 1) / 2 * (self.high - self.low)
        actions: np.ndarray = relative + self._base(observations)
        return actions.clip(self.space_low, self.space_high).astype(np.float32)

    def _base(self, observations: np.ndarray) -> np.ndarray:
        """Return `[n, actions]`: what actions are relative to; zero for nothing."""
        targets = np.array(self.targets)
        base: np.ndarray = np.where(targets >= 0, observations[..., targets], 0.0)
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
