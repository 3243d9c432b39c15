r"""Soft actor-critic policies of Hopper, Walker2d and HalfCheetah, for D4RL's recipe.

D4RL's locomotion data was recorded by SAC policies at different stages of one training
(Fu et al., "D4RL: Datasets for Deep Data-Driven RL", 2020, section 4). `actors/` has
such stages for each robot of Gymnasium, by the number of env steps they had learned
from (`examples/experiments/train_behaviour.py` trains them):

| demonstrator | acts as |
|---|---|
| `hopper-expert` | the policy at the end of its training, or the last good one |
| `hopper-medium` | a policy of about two fifths of the expert's return |
| `hopper-medium-expert` | one of the two, each for half of the env steps |
| `hopper-medium-replay` | the stages up to the medium one, in equal parts |

and so on for `walker2d` and `halfcheetah`. D4RL's medium-replay is the replay buffer of
the training itself, which is too large to ship.

A policy is a network of two hidden layers h with two outputs, μ and log σ, and draws

    a = tanh(μ(h(o)) + σ(h(o)) ε),  ε ~ N(0, 1)

Source: Haarnoja et al., "Soft Actor-Critic" (2018).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Self, TypeAlias

import gymnasium
import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from diffuser_envs.errors import LocomotionObservationError, UnsupportedEnvError
from diffuser_envs.row_memories import row_starts

ACTORS = Path(__file__).with_name("actors")
LOG_STD = (-20.0, 2.0)  # bounds of log σ

State: TypeAlias = tuple[npt.NDArray[np.int64], ...]
Array: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Actor:
    """A Gaussian policy squashed by tanh.

    Attributes:
        layers: Weights `[inputs, outputs]` and biases `[outputs]` of both hidden
            layers, of μ and of log σ.
    """

    layers: tuple[tuple[Array, Array], ...]

    @classmethod
    def load(cls, name: str) -> Actor:
        """Read a shipped actor, such as `hopper-0200k`."""
        arrays = load_file(ACTORS / f"{name}.safetensors")
        names = sorted({key.rpartition(".")[0] for key in arrays})
        return cls(
            tuple(
                (
                    arrays[f"{each}.kernel"].astype(np.float32),
                    arrays[f"{each}.bias"].astype(np.float32),
                )
                for each in names
            )
        )

    def act(self, observations: Array, noise: Array | None) -> Array:
        """Return actions `[n, action]`.

        Args:
            observations: `[n, observation]`.
            noise: ε above, `[n, action]`; None: zero.
        """
        *hidden, mean, log_std = self.layers
        x = observations
        for kernel, bias in hidden:
            x = np.maximum(x @ kernel + bias, 0.0)
        chosen = x @ mean[0] + mean[1]
        if noise is not None:
            chosen += np.exp(np.clip(x @ log_std[0] + log_std[1], *LOG_STD)) * noise
        acted: Array = np.tanh(chosen)
        return acted


_load = lru_cache(maxsize=None)(Actor.load)


class SacDemonstrator:
    """Walk like a policy at one of several training stages, drawn for each episode.

    Follows Stable-Baselines3's `predict`. Its state says which actor is at work.

    Attributes:
        robot: Name of the environment, without version.
        actors: Names of actors → share of the episodes.
        dataset_id: Of what it records.
        default_episodes: Episodes of about 300,000 env steps.
    """

    robot: ClassVar[str]
    dataset_id: ClassVar[str]
    actors: ClassVar[Mapping[str, float]]
    default_episodes: ClassVar[int] = 300

    def __init__(self, *, seed: int = 0) -> None:
        """Load the actors.

        Args:
            seed: Fixes the choice of actors and their noise.
        """
        self._actors = [_load(name) for name in self.actors]
        shares = np.array(list(self.actors.values()))
        self._shares = shares / shares.sum()
        self._rng = np.random.default_rng(seed)

    @classmethod
    def from_env(cls, env: gymnasium.Env[Any, Any], *, seed: int = 0) -> Self:
        """Make a demonstrator for an environment.

        Args:
            env: Of the robot, any version, with the observations of its default.
            seed: Fixes the choice of actors and their noise.

        Raises:
            UnsupportedEnvError: It is another robot's, or has other observations.
        """
        name = env.spec.id if env.spec else type(env.unwrapped).__name__
        if not re.fullmatch(rf"{cls.robot}-v\d+", name):
            raise UnsupportedEnvError(
                f"this demonstrator is for {cls.robot}-v5 and cannot act in {name}"
            )
        made, seen = cls(seed=seed), env.observation_space.shape
        known = (len(made._actors[0].layers[0][0]),)
        if seen != known:
            raise UnsupportedEnvError(
                f"this demonstrator takes observations of shape {known}, and {name} "
                f"was made with options that give {seen}; leave them out"
            )
        return made

    def predict(
        self,
        observation: npt.ArrayLike,
        state: State | None = None,
        episode_start: npt.ArrayLike | None = None,
        deterministic: bool = False,
    ) -> tuple[Array, State]:
        """Return actions for one observation or a batch, and which actors chose them.

        Args:
            observation: `[observation]` or `[n, observation]`.
            state: From the last call; None: choose actors anew.
            episode_start: bool `[n]`: where a new actor is to be chosen.
            deterministic: Act without noise. Which actor is chosen still depends on
                the calls before, as all draw from one generator.

        Returns:
            `[action]` or `[n, action]`, and the state.

        Raises:
            LocomotionObservationError: The observation is not finite or has another
                size, or the state or `episode_start` is for another number of
                environments.
        """
        rows = self._read(observation)
        single, rows = rows.ndim == 1, np.atleast_2d(rows)
        starts = row_starts(
            state, episode_start, len(rows), kind="i", error=LocomotionObservationError
        )
        drawn = self._rng.choice(len(self._actors), size=len(rows), p=self._shares)
        if state is not None:
            drawn = np.where(starts, drawn, state[0])
        size = len(self._actors[0].layers[-1][1])
        noise = self._rng.standard_normal((len(rows), size), np.float32)
        actions = np.empty_like(noise)
        for number in set(drawn.tolist()):
            those = drawn == number
            actions[those] = self._actors[number].act(
                rows[those], None if deterministic else noise[those]
            )
        return (actions[0] if single else actions), (drawn,)

    def _read(self, observation: npt.ArrayLike) -> Array:
        """Return finite numbers, `[observation]` or `[n, observation]`."""
        width = len(self._actors[0].layers[0][0])
        found = "something else"
        with contextlib.suppress(TypeError, ValueError):  # no numbers
            rows = np.asarray(observation, np.float32)
            found = f"shape {rows.shape}"
            if not np.isfinite(rows).all():
                found += ", not all of them finite"
            elif rows.ndim in (1, 2) and rows.shape[-1] == width:
                return rows
        raise LocomotionObservationError(
            f"the observation must be {width} finite numbers, or a batch of such, got"
            f" {found}"
        )


QUALITIES = {
    "expert": "the last good policy of its training",
    "medium": "a policy of medium quality",
    "medium-expert": "the medium and the expert policy in turns",
    "medium-replay": "the stages of its training up to medium quality",
}


def _by(
    robot: str,
    quality: str,
    stages: Mapping[str, float],
    episodes: int = SacDemonstrator.default_episodes,
) -> type[SacDemonstrator]:
    """Return the demonstrator of a robot and a quality, named after both.

    Args:
        robot: Name of the environment, without version.
        quality: A key of `QUALITIES`.
        stages: Actors by the env steps they had learned from → share of the episodes.
        episodes: Episodes of about 300,000 env steps.
    """
    prefix = robot.lower()
    facts = {
        "__doc__": f"{robot}, by {QUALITIES[quality]}.",
        "robot": robot,
        "dataset_id": f"diffuser/{prefix}-{quality}-v1",
        "actors": {f"{prefix}-{stage}": share for stage, share in stages.items()},
        "default_episodes": episodes,
    }
    return type(robot + quality.title().replace("-", ""), (SacDemonstrator,), facts)


# Shares of episodes that make the env steps of all actors about the same. Episodes last
# 168, 263, 563 and 380 steps up to Hopper's medium actor and 970 by its expert; by
# those of Walker2d 250, 223, 264, 676 and 994.
HopperExpert = _by("Hopper", "expert", {"0950k": 1.0}, 310)
HopperMedium = _by("Hopper", "medium", {"0200k": 1.0}, 800)
HopperMediumExpert = _by("Hopper", "medium-expert", {"0200k": 0.72, "0950k": 0.28}, 550)
HopperMediumReplay = _by(
    "Hopper",
    "medium-replay",
    {"0050k": 0.40, "0100k": 0.26, "0150k": 0.12, "0200k": 0.18},
    1050,
)

Walker2dExpert = _by("Walker2d", "expert", {"1000k": 1.0})
Walker2dMedium = _by("Walker2d", "medium", {"0200k": 1.0}, 450)
Walker2dMediumExpert = _by(
    "Walker2d", "medium-expert", {"0200k": 0.60, "1000k": 0.40}, 370
)
Walker2dMediumReplay = _by(
    "Walker2d",
    "medium-replay",
    {"0050k": 0.29, "0100k": 0.33, "0150k": 0.28, "0200k": 0.11},
    1000,
)

HalfCheetahExpert = _by("HalfCheetah", "expert", {"1000k": 1.0})
HalfCheetahMedium = _by("HalfCheetah", "medium", {"0150k": 1.0})
HalfCheetahMediumExpert = _by(
    "HalfCheetah", "medium-expert", {"0150k": 0.5, "1000k": 0.5}
)
HalfCheetahMediumReplay = _by(
    "HalfCheetah", "medium-replay", {"0050k": 1.0, "0100k": 1.0, "0150k": 1.0}
)
