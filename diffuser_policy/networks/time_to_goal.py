r"""Time-to-goal: how many env steps a good way from a state to a goal takes.

A network $T(o, g)$ is fitted by hindsight on pairs of one run, an observation and
the goal columns reached k steps later, with an expectile loss (Newey & Powell 1987;
as a value loss in Kostrikov et al. 2022, IQL, eq. 5)

$$L = |\tau - 1[k < T]|\,(k - T)^2 .$$

A low expectile $\tau$ leans on the *short* ways in the data instead of the average
detour. A planner asks it which horizon to plan with; `diffuser_policy.planning.ranking`
asks it whether neighbouring states of a plan can be as close in time as the plan says.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffuser_policy.networks.perceptron import perceptron


class TimeToGoal(nn.Module):
    """Predicts env steps from normalized observation and goal."""

    def __init__(
        self, observation_dim: int, goal_dim: int, *, width: int, max_steps: int
    ) -> None:
        """Build a three-layer perceptron.

        Args:
            observation_dim: Columns of an observation.
            goal_dim: Columns of a goal.
            width: Hidden units per layer.
            max_steps: Longest time in the training pairs, in env steps; also the unit
                of the network's output.
        """
        super().__init__()
        self.max_steps = max_steps
        self.layers = perceptron(observation_dim + goal_dim, width, width, width, 1)

    def forward(self, observations: Tensor, goals: Tensor) -> Tensor:
        """Return predicted times `[...]` in env steps.

        Args:
            observations: `[..., observation_dim]`, normalized.
            goals: `[..., goal_dim]`, normalized like the same observation columns.
        """
        output: Tensor = self.layers(torch.cat([observations, goals], dim=-1))
        times: Tensor = output.squeeze(-1) * self.max_steps
        return times

    def loss(
        self, observations: Tensor, goals: Tensor, times: Tensor, *, expectile: float
    ) -> Tensor:
        """Return the expectile loss, in units of `max_steps` squared, a scalar.

        Args:
            observations: `[batch, observation_dim]`, normalized.
            goals: `[batch, goal_dim]`, reached `times` steps later.
            times: `[batch]`, env steps.
            expectile: In (0, 1); small values learn short ways.
        """
        error = (times - self(observations, goals)) / self.max_steps
        weight = torch.where(error < 0, 1 - expectile, expectile)
        loss: Tensor = (weight * error.square()).mean()
        return loss
