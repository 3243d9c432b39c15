r"""Inverse dynamics: the action that leads from a state to another, some steps later.

A network $f(s_{t-1}, s_t, s_{t+k}, k)$ is fitted to the action $a_t$ of pairs of one
run, with $k$ drawn evenly up to a longest time, and a squared error in units of each
action's standard deviation. It makes actions for plans that have none (Ajay et al.
2023, "Is conditional generative modeling all you need for decision-making?", eq. 6,
with k = 1 and without $s_{t-1}$). The state before tells velocities that are not
observed. Further ahead, a planned state says where to go more reliably than the next
one, whose distance from here may be no larger than the error of the plan.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffuser_policy.networks.perceptron import perceptron

SLOW = 1e-3  # normalized change per env step that the error of a plan drowns


class InverseDynamics(nn.Module):
    """Predicts actions from normalized states, in the environment's units.

    Attributes:
        max_steps: Longest time between the two states, in env steps.
        action_shift: `[action]` mean of the training data.
        action_scale: `[action]` their standard deviation.
        change: `[observation]` how much a column changes in an env step, normalized: a
            root mean square, made larger for a slow column, and 1 for one that is
            constant.
    """

    action_shift: Tensor
    action_scale: Tensor
    change: Tensor

    def __init__(
        self, observation_dim: int, action_dim: int, *, width: int, max_steps: int
    ) -> None:
        """Build a three-layer perceptron.

        Args:
            observation_dim: Columns of a state.
            action_dim: Columns of an action.
            width: Hidden units per layer.
            max_steps: Longest time between the two states, in env steps.
        """
        super().__init__()
        self.max_steps = max_steps
        inputs = 4 * observation_dim + 1
        self.layers = perceptron(inputs, width, width, width, action_dim)
        self.register_buffer("action_shift", torch.zeros(action_dim))
        self.register_buffer("action_scale", torch.ones(action_dim))
        self.register_buffer("change", torch.ones(observation_dim))

    def set_scale(self, shift: Tensor, scale: Tensor, change: Tensor) -> None:
        """Make the network work in units of the data.

        Divided by the change of a column that only jitters, the error of a plan would
        drown all other inputs. So the slower a column is below `SLOW`, the more it
        counts as constant.

        Args:
            shift: `[action]` mean action.
            scale: `[action]` standard deviation; zero for an action that is constant.
            change: `[observation]` root mean square of what an env step changes,
                normalized; zero for a column that is constant.
        """
        self.action_shift.copy_(shift)
        self.action_scale.copy_(scale)
        least = (SLOW**2 / change).clamp(max=1.0)  # 1 where nothing changes
        self.change.copy_(torch.maximum(change, least))

    def forward(
        self, before: Tensor, states: Tensor, later: Tensor, steps: Tensor
    ) -> Tensor:
        """Return actions `[batch, action]`, environment units, not clipped.

        Args:
            before: `[batch, observation]` states an env step earlier, normalized; the
                states themselves where there are none.
            states: `[batch, observation]`, normalized.
            later: `[batch, observation]`, to be reached `steps` later, normalized.
            steps: `[batch]`, env steps.
        """
        return self._actions(self.layers(self._inputs(before, states, later, steps)))

    def act(
        self, before: Tensor, states: Tensor, later: Tensor, steps: Tensor
    ) -> Tensor:
        """Return what `forward` returns, bit by bit the same in a batch of any size.

        A matrix product may round differently with another number of rows. Here every
        row is multiplied by itself.

        Args:
            before: As in `forward`.
            states: As in `forward`.
            later: As in `forward`.
            steps: As in `forward`.
        """
        hidden = self._inputs(before, states, later, steps)[:, None]
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                weight = layer.weight.T.expand(len(hidden), -1, -1)
                hidden = torch.bmm(hidden, weight) + layer.bias
            else:
                hidden = layer(hidden)
        return self._actions(hidden[:, 0])

    def loss(
        self,
        before: Tensor,
        states: Tensor,
        later: Tensor,
        steps: Tensor,
        actions: Tensor,
    ) -> Tensor:
        """Return the mean squared error in units of the actions' variance, a scalar.

        Args:
            before: As in `forward`.
            states: As in `forward`.
            later: As in `forward`.
            steps: As in `forward`.
            actions: `[batch, action]` the actions of the states, environment units.
        """
        scale = torch.where(self.action_scale > 0, self.action_scale, 1.0)
        error = (self(before, states, later, steps) - actions) / scale
        loss: Tensor = error.square().mean()
        return loss

    def _inputs(
        self, before: Tensor, states: Tensor, later: Tensor, steps: Tensor
    ) -> Tensor:
        """Return place and motion, and what has to change, how fast, in what time."""
        time = steps[:, None].to(states.dtype)
        changes = later - states
        pace = changes / (time * self.change)
        motion = (states - before) / self.change
        return torch.cat([states, motion, changes, pace, time / self.max_steps], dim=1)

    def _actions(self, output: Tensor) -> Tensor:
        return self.action_shift + self.action_scale * output
