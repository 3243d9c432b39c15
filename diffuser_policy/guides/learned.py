r"""Learned value: the return that a value network expects of a trajectory.

$$J = V(x_i, i)$$

The network sees trajectories as noisy as they are, so its gradient may be taken
anywhere in the reverse process (Janner et al. 2022, §3.2). Clean trajectories are shown
to it as those of step 0, the least noisy that it was trained on.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from diffuser_policy.errors import GuideError
from diffuser_policy.guides.guide import Guide
from diffuser_policy.guides.trajectory import Trajectory


@dataclass(frozen=True, kw_only=True)
class LearnedValue(Guide):
    """Prefers trajectories whose return the planner's value network expects to be high.

    In units of discounted return. The planner needs a value network, which
    `diffuser-policy train-value` trains.

        policy.with_guide(make_guide("value"), guide_placement="mean")

    Attributes:
        network: The value network; a planner fills it in.
    """

    network: nn.Module | None = field(default=None, compare=False, repr=False)

    def bind(self, networks: Any) -> LearnedValue:
        """Return the guide with the planner's value network.

        Raises:
            GuideError: The planner has none.
        """
        network = getattr(networks, "value", None)
        if network is None:
            raise GuideError(
                "The guide LearnedValue needs a value network, and this planner has "
                "none. Train one with: diffuser-policy train-value PLANNER"
            )
        return replace(self, network=network)

    def __call__(self, trajectory: Trajectory) -> Tensor:
        """Return the expected returns.

        Raises:
            GuideError: No planner has filled in a value network.
        """
        if self.network is None:
            raise GuideError(
                "The guide LearnedValue has no value network yet. Pass it to "
                "policy.with_guide(…), or call its bind(policy.networks)."
            )
        step = max(trajectory.denoising_step, 0)
        steps = torch.full(
            (len(trajectory),), step, device=trajectory.normalized.device
        )
        values: Tensor = self.network(trajectory.normalized, steps)
        return values
