"""Planning in the observation itself, as the paper does: joints, poses and flags.

The way back needs no kinematics: the planned joints of the next env step are the joint
targets, and the grasp is on while any planned flag is up (Janner et al. 2022, §5.2).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from diffuser_envs.kuka.columns import (
    NUM_BLOCKS,
    NUM_JOINTS,
    observation_columns,
    observation_size,
)
from diffuser_envs.kuka.features import UP, BlockFeatures, Plans


class JointFeatures:
    """Plans the whole observation, and follows plans joint by joint.

    Attributes:
        observation_size: Columns of an observation.
        num_columns: Planning columns, as many.
        columns: "joints", "block_0", "quaternion_0" and "flag_0" and so on.
        objects: The columns of each block.
    """

    def __init__(self, num_blocks: int = NUM_BLOCKS) -> None:
        """Lay out the columns.

        Args:
            num_blocks: As in the environment.
        """
        self.observation_size = self.num_columns = observation_size(num_blocks)
        self.columns: Mapping[str, tuple[int, ...]] = observation_columns(num_blocks)
        self.objects = tuple(
            (
                *self.columns[f"block_{block}"],
                *self.columns[f"quaternion_{block}"],
                *self.columns[f"flag_{block}"],
            )
            for block in range(num_blocks)
        )
        self._blocks = BlockFeatures(num_blocks)
        self._flags = [self.columns[f"flag_{block}"][0] for block in range(num_blocks)]

    def features(self, observations: np.ndarray) -> np.ndarray:
        """Return the observations, float32 `[..., 7 + 8 n]`."""
        return np.asarray(observations, np.float32)

    def act(self, plans: Plans, observations: np.ndarray) -> np.ndarray:  # noqa: ARG002 (planned joints are targets, wherever the arm is)
        """Return joint targets and grasp `[rows, 8]` for the next env step.

        Args:
            plans: What is followed.
            observations: `[rows, 7 + 8 n]` of the environment.
        """
        target = plans.reference(1.0)
        grasp = target[:, self._flags].max(axis=1) > UP
        joints = target[:, :NUM_JOINTS]
        return np.concatenate([joints, grasp[:, None]], axis=1)

    def feasibility(self, candidates: np.ndarray, stride: int) -> np.ndarray:
        """Return how well plans can be executed, as `BlockFeatures.feasibility`.

        Args:
            candidates: `[n, steps, 7 + 8 n]`; the first step is the present.
            stride: Env steps between two planning steps.
        """
        return self._blocks.feasibility(self._blocks.features(candidates), stride)
