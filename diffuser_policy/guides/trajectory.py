"""What a guide sees: a batch of trajectories with named columns in environment units.

    trajectory.position        [batch, steps, 2]     an alias of the layout, in meters
    trajectory["observation"]  [batch, steps, observation]
    trajectory.actions         [batch, steps, action]
    trajectory.times           [steps]               env steps since the plan began

Values come from the normalized trajectories of the sampler by differentiable maps, so
that gradients flow back to them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffuser_policy.columns.layout import TrajectoryLayout
from diffuser_policy.columns.normalizers import Normalizer
from diffuser_policy.errors import GuideError, MissingColumnsError

CLEAN = -1
PLURALS = {"actions": "action", "observations": "observation"}


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Trajectory:
    """A batch of trajectories, noisy or clean: all candidates of all environments.

    Attributes:
        normalized: `[batch, steps, transition]`, what the networks see. For guides
            that are networks; others take columns by name.
        layout: Names of the columns.
        normalizer: To environment units.
        stride: Env steps between two planning steps.
        denoising_step: How noisy the trajectories are: 0 and up on the denoiser's
            schedule, -1 for clean ones.
        desired_goal: `[batch, 1, goal]` what plans lead to in the end, environment
            units, if the environment has goals.
    """

    normalized: Tensor
    layout: TrajectoryLayout
    normalizer: Normalizer
    stride: int = 1
    denoising_step: int = CLEAN
    desired_goal: Tensor | None = None

    def __repr__(self) -> str:
        return (
            f"Trajectory({len(self)} of {self.num_planning_steps} planning steps, "
            f"denoising step {self.denoising_step}, columns "
            f"{', '.join(self.layout.names)})"
        )

    def __len__(self) -> int:
        return self.normalized.shape[0]

    @property
    def num_planning_steps(self) -> int:
        """Planning steps of each trajectory."""
        return self.normalized.shape[1]

    @property
    def times(self) -> Tensor:
        """Env steps `[steps]` from the start of the plan to each planning step."""
        steps = torch.arange(self.num_planning_steps, device=self.normalized.device)
        return steps * self.stride

    def __getitem__(self, name: str) -> Tensor:
        """Return the columns of a field or alias, in environment units.

        Args:
            name: "observation", "action", or an alias such as "position".

        Returns:
            `[batch, steps, columns]`.

        Raises:
            MissingColumnsError: The planner has no columns of that name.
            GuideError: The index is not a name.
        """
        if not isinstance(name, str):
            raise GuideError(
                f"A trajectory is indexed by the name of its columns, one of "
                f"{', '.join(self.layout.names)}; got {name!r}. Slice what it returns, "
                f"for example trajectory['observation'][:, 0]."
            )
        name = PLURALS.get(name, name)
        if name not in self.layout.names:
            raise MissingColumnsError(name, self.layout.names)
        columns = list(self.layout.columns(name))
        return self.normalizer.unnormalize(self.normalized[..., columns], columns)

    def __contains__(self, name: object) -> bool:
        return PLURALS.get(str(name), name) in self.layout.names

    def __getattr__(self, name: str) -> Tensor:
        if name.startswith("__"):  # copy and pickle ask for these
            raise AttributeError(name)
        return self[name]
