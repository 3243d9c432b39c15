"""A denoiser as a model of the dynamics: actions are pinned, states are filled in.

    pinned: first state, all actions  →  denoised: the states in between

(The ablation of Janner et al. 2022: a conventional optimizer that plans in the
learnt distribution of trajectories, instead of sampling plans from it.) Nothing forces
a denoiser to believe the actions it is given: it learnt what demonstrators do next, and
the actions of demonstrators follow from where they are going.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from diffuser_policy.columns.layout import TrajectoryLayout
from diffuser_policy.columns.normalizers import Normalizer
from diffuser_policy.diffusion.conditions import Conditions
from diffuser_policy.diffusion.sampler import Sampler
from diffuser_policy.errors import ConditionError, ConfigError, SpaceMismatchError
from diffuser_policy.policy import DiffuserPolicy


class DiffuserDynamics:
    """Predicts states by inpainting; a `Model` of `diffuser_policy.baselines.shooting`.

    The same states and actions are always denoised from the same noise.
    """

    def __init__(
        self,
        sampler: Sampler,
        *,
        layout: TrajectoryLayout,
        normalizer: Normalizer,
        stride: int = 1,
        length: int,
        seed: int = 0,
    ) -> None:
        """Combine the parts of a planner.

        Args:
            sampler: Runs the reverse process.
            layout: Columns of a trajectory, with actions.
            normalizer: Between environment units and the network's.
            stride: Env steps between two planning steps.
            length: Planning steps of a trajectory, the first state included.
            seed: Of the noise.

        Raises:
            ConfigError: A planner that plans no actions, or not for every env step.
        """
        if layout.action_dim == 0 or stride != 1:
            raise ConfigError(
                "A planner is a model of the dynamics if it plans an action for every "
                f"env step; this one has stride {stride} and {layout.action_dim} "
                "action columns. Train one with window.actions and window.stride=1."
            )
        self.sampler, self.layout, self.normalizer = sampler, layout, normalizer
        self.length, self.seed = length, seed

    @classmethod
    def of(cls, policy: DiffuserPolicy, *, seed: int = 0) -> DiffuserDynamics:
        """Take the denoiser out of a policy.

        Args:
            policy: Plans actions as well as observations.
            seed: Of the noise.

        Raises:
            ConfigError: A planner that plans no actions, or not for every env step.
        """
        planner = policy.planner
        return cls(
            planner.sampler,
            layout=planner.layout,
            normalizer=planner.normalizer,
            stride=policy.config.window.stride,
            length=policy.config.window.horizon,
            seed=seed,
        )

    @property
    def max_steps(self) -> int:
        """Env steps that can be predicted: the last action's effect is not."""
        return self.length - 1

    @torch.no_grad()
    def simulate(self, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Return the states that the denoiser fills in, `[n, steps, state]`.

        Actions after the given ones are its own.

        Args:
            states: `[n, state]` to start from, environment units.
            actions: `[n, steps, action]`, environment units.

        Raises:
            SpaceMismatchError: States or actions of another size.
            ConditionError: More steps than a trajectory has.
        """
        given = (states.shape[-1], actions.shape[-1])
        if given != (self.layout.observation_dim, self.layout.action_dim):
            raise SpaceMismatchError(
                f"This planner's states have {self.layout.observation_dim} columns and "
                f"its actions {self.layout.action_dim}; got {given[0]} and {given[1]}."
            )
        num_rows, num_steps = actions.shape[:2]
        if not 1 <= num_steps <= self.max_steps:
            raise ConditionError(
                f"A trajectory of {self.length} planning steps says where 1 to "
                f"{self.max_steps} actions lead, not {num_steps}. Shorten the horizon."
            )
        pinned = Conditions().pin(0, "observation", _tensor(states))
        for step in range(num_steps):
            pinned = pinned.pin(step, "action", _tensor(actions[:, step]))
        samples = self.sampler.sample(
            pinned.compile(
                self.layout,
                self.normalizer,
                num_planning_steps=self.length,
                batch_size=num_rows,
            ),
            [torch.Generator().manual_seed(self.seed) for _ in range(num_rows)],
        )
        trajectories = self.normalizer.unnormalize(samples.trajectories[:, 0]).cpu()
        planned = trajectories[:, 1 : num_steps + 1, self.layout.observations]
        predicted: np.ndarray = planned.numpy()
        return predicted


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(values, np.float32))
