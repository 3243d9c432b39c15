r"""Critic: values of states and actions, learned without actions outside the data.

Implicit Q-learning (Kostrikov, Nair & Levine 2022). With two action values Q, a state
value V and a slow copy $\bar Q$ of the former,

$$L_V = E\,|\tau - 1[u < 0]|\,u^2, \qquad u = \min_k \bar Q_k(s, a) - V(s)$$
$$L_Q = E \sum_k (r + \gamma (1 - d)\,V(s') - Q_k(s, a))^2$$

so V approaches, for expectiles τ near 1, the value of the best action in the data.
A plan's value is $\min_k Q_k(s_0, a_0)$: how good is what would be done next?

A value is a discounted sum of rewards, so it lies between the lowest and the highest
reward, or 0 where an episode ends, times $1 / (1 - \gamma)$. A critic learns from its
own values and can leave this range with losses that stay finite: it has diverged.
`Values` tells. Too large gradient steps can also kill all units of a layer: the network
then says the same of everything, perhaps within the range. `Critic.dead` tells.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from diffuser_policy.networks.perceptron import perceptron

NUM_ACTION_VALUES = 2
MOST_SILENT = 0.999  # share of inputs that reach no unit of a layer


class Values(NamedTuple):
    """A critic's values of the data's own actions, in units of reward.

    Attributes:
        low: 5 % of the values are below.
        median: Half of them are below.
        high: 95 % of them are below.
        possible: The lowest and the highest value that rewards and discount allow.
    """

    low: float
    median: float
    high: float
    possible: tuple[float, float]

    @classmethod
    def of(cls, values: np.ndarray, rewards: np.ndarray, discount: float) -> Values:
        """Return quantiles of `values` `[n]`, and the range that rewards allow."""
        low, median, high = map(float, np.quantile(values, (0.05, 0.5, 0.95)))
        least, most = min(float(rewards.min()), 0.0), max(float(rewards.max()), 0.0)
        return cls(low, median, high, (least / (1 - discount), most / (1 - discount)))

    @property
    def diverged(self) -> bool:
        """Whether half of the values are out of range by more than its width.

        Where no reward was seen, the range is unknown: only NaN and infinity count.
        """
        lowest, highest = self.possible
        width = highest - lowest
        if width == 0.0:
            return not math.isfinite(self.median)
        return not lowest - width <= self.median <= highest + width  # true for NaN


class Transitions(NamedTuple):
    """A batch of steps of the data, normalized.

    Attributes:
        observations: `[batch, observation]`.
        actions: `[batch, action]`.
        rewards: `[batch]`, in units of reward.
        next_observations: `[batch, observation]`; of no effect where `ended`.
        ended: `[batch]` whether the step terminated: nothing follows.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    next_observations: Tensor
    ended: Tensor


class Critic(nn.Module):
    """Predicts discounted returns of states, and of actions in them."""

    return_mean: Tensor
    return_std: Tensor

    def __init__(
        self, observation_dim: int, action_dim: int, *, width: int = 256
    ) -> None:
        """Build the three networks, of two hidden layers each.

        Args:
            observation_dim: Columns of an observation.
            action_dim: Columns of an action.
            width: Hidden units per layer.
        """
        super().__init__()
        self.action_values = nn.ModuleList(
            perceptron(observation_dim + action_dim, width, width, 1)
            for _ in range(NUM_ACTION_VALUES)
        )
        self.state_value = perceptron(observation_dim, width, width, 1)
        self.register_buffer("return_mean", torch.zeros(()))
        self.register_buffer("return_std", torch.ones(()))

    def set_scale(self, mean: float, std: float) -> None:
        """Make the networks predict in units of the data's returns.

        Args:
            mean: Mean return-to-go in the data, in units of reward.
            std: Standard deviation, positive.
        """
        self.return_mean.fill_(mean)
        self.return_std.fill_(std)

    def of_actions(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Return both action values `[2, batch]`, in units of reward.

        Args:
            observations: `[batch, observation]`, normalized.
            actions: `[batch, action]`, normalized.
        """
        joined = torch.cat([observations, actions], dim=-1)
        return torch.stack([self._scaled(q(joined)) for q in self.action_values])

    def of_states(self, observations: Tensor) -> Tensor:
        """Return state values `[batch]`, in units of reward.

        Args:
            observations: `[batch, observation]`, normalized.
        """
        return self._scaled(self.state_value(observations))

    @torch.no_grad()
    def dead(self, observations: Tensor, actions: Tensor) -> bool:
        """Return whether one of the networks says the same of practically all inputs.

        Where all units of a layer are zero, its input has no effect and gets no
        gradient: the network never recovers.

        Args:
            observations: `[batch, observation]`, normalized.
            actions: `[batch, action]`, normalized.
        """
        joined = torch.cat([observations, actions], dim=-1)
        inputs = [(network, joined) for network in self.action_values]
        for network, given in [*inputs, (self.state_value, observations)]:
            rows = given
            for layer in network.children():
                rows = layer(rows)
                silent = (rows == 0).all(dim=1).float().mean()
                if isinstance(layer, nn.ReLU) and float(silent) > MOST_SILENT:
                    return True
        return False

    def loss(
        self, batch: Transitions, slow: Critic, *, expectile: float, discount: float
    ) -> Tensor:
        """Return the sum of both losses, in units of the returns' variance, a scalar.

        Args:
            batch: Steps of the data.
            slow: The moving average of this critic, which gets no gradient.
            expectile: τ above.
            discount: γ above.
        """
        states = self.of_states(batch.observations)
        with torch.no_grad():
            goal = slow.of_actions(batch.observations, batch.actions).amin(dim=0)
            later = self.of_states(batch.next_observations)
            later = torch.where(batch.ended, torch.zeros_like(later), later)
            target = batch.rewards + discount * later
        above = (goal - states) / self.return_std
        weight = torch.where(above < 0, 1 - expectile, expectile)
        actions = self.of_actions(batch.observations, batch.actions)
        error = (actions - target) / self.return_std
        loss: Tensor = (weight * above.square()).mean() + error.square().mean(1).sum()
        return loss

    def _scaled(self, output: Tensor) -> Tensor:
        scaled: Tensor = self.return_mean + self.return_std * output.squeeze(-1)
        return scaled
