"""Datasets of towers: the generators that `diffuser-policy collect` runs.

Both write the episodes that the Unconditional environment would record. *kinematic*
writes them down without physics; a sample can be verified by replaying it. *physics*
carries out the same joint motions in the environment and records what it observes; an
attempt that does not end in a tower is a failure.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Self

import gymnasium
import numpy as np

from diffuser_envs.errors import UnsupportedEnvError
from diffuser_envs.kuka.columns import NUM_JOINTS
from diffuser_envs.kuka.kinematic import Demonstration, KinematicGenerator

# How far a replay may be off what was written down.
JOINT_TOLERANCE = 0.005
BLOCK_TOLERANCE = 0.01


@dataclass(frozen=True, kw_only=True)
class TowerRecorder(KinematicGenerator):
    """What the generators share: an environment, and options with defaults.

    Attributes:
        env: The Unconditional environment, unwrapped.
        num_blocks: The environment's.
    """

    dataset_id: ClassVar[str] = "diffuser/kuka-stack-v1"

    env: Any
    num_blocks: int = field(init=False)

    def __post_init__(self) -> None:
        """Take the number of blocks from the environment."""
        object.__setattr__(self, "num_blocks", self.env.num_blocks)
        super().__post_init__()

    @classmethod
    def from_env(cls, env: gymnasium.Env[Any, Any], **options: Any) -> Self:
        """Make a generator for an environment.

        Args:
            env: Unconditional block stacking, wrapped or not.
            **options: The other attributes; whole numbers may be floats.

        Raises:
            UnsupportedEnvError: It is another environment.
            KukaOptionError: An option is out of range.
        """
        base: Any = env.unwrapped
        if getattr(getattr(base, "task", None), "name", None) != "unconditional":
            raise UnsupportedEnvError(
                "demonstrations of towers are recorded in"
                " diffuser_envs/KukaStack-Unconditional-v1 (they serve all three"
                f" tasks), got {type(base).__name__}"
                f" {getattr(env.spec, 'id', '')}".rstrip()
            )
        whole = {each.name for each in dataclasses.fields(cls) if each.type == "int"}
        return cls(
            env=base,
            **{
                name: int(value) if name in whole else value
                for name, value in options.items()
            },
        )


class KinematicRecorder(TowerRecorder):
    """Demonstrations without physics."""

    def record(self, seed: int) -> Demonstration:
        """Return the demonstration of a seed; it never fails."""
        return self.demonstrate(seed)

    def verify(self, seed: int) -> bool:
        """Replay a demonstration in physics, and tell whether it is true.

        Args:
            seed: Of the demonstration.

        Returns:
            Whether joints stayed within 0.005 rad and blocks within 10 mm of what
            was written down, with the same flags and the same tower at the end.
        """
        planned = self.demonstrate(seed)
        replayed = replay(self.env, planned)
        error = np.abs(replayed.observations - planned.observations)
        blocks = error[:, NUM_JOINTS:].reshape(len(error), self.num_blocks, 8)
        return bool(
            error[:, :NUM_JOINTS].max() <= JOINT_TOLERANCE
            and blocks[..., :3].max() <= BLOCK_TOLERANCE
            and not blocks[..., 7].any()
            and replayed.rewards[-1] == planned.rewards[-1]
        )


class PhysicsRecorder(TowerRecorder):
    """Demonstrations carried out in the environment."""

    def record(self, seed: int) -> Demonstration | None:
        """Return the episode of a seed, or None if it built no tower."""
        replayed = replay(self.env, self.demonstrate(seed))
        return replayed if replayed.rewards[-1] == 1.0 else None


RECORDERS: Mapping[str, type[TowerRecorder]] = MappingProxyType(
    {"kinematic": KinematicRecorder, "physics": PhysicsRecorder}
)


def replay(env: Any, demonstration: Demonstration) -> Demonstration:
    """Carry out a demonstration's actions, and return what is observed.

    Args:
        env: The Unconditional environment, unwrapped.
        demonstration: From which start, and what to do.
    """
    planned = demonstration.observations
    observations = np.empty_like(planned)
    rewards = np.empty_like(demonstration.rewards)
    blocks = planned[0, NUM_JOINTS:].reshape(-1, 8)[:, :3]
    start = {"joints": planned[0, :NUM_JOINTS], "blocks": blocks}
    observations[0], _ = env.reset(seed=0, options=start)
    for step, action in enumerate(demonstration.actions):
        observations[step + 1], rewards[step], *_ = env.step(action)
    return dataclasses.replace(
        demonstration, observations=observations, rewards=rewards
    )
