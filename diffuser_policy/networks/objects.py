r"""Object transformer: a denoiser network for scenes of interchangeable objects.

A robot that moves blocks plans columns of two kinds: its own (the tool's position) and
those of each object (a block's position, whether it is held). Three facts that a
convolution over all columns has to learn from data are built in:

- Objects are interchangeable. Every object is read and written by the same weights, and
  attention connects them: permuting objects permutes the plan (up to the noise).
- Plans are changes of the current state. The network sees deviations from it and the
  state itself, and predicts deviations (`Denoiser(residual=True)`).
- Things go where other things are. A position is not computed but *pointed at*: with
  attention weights w over anchors a, each a position in the current state or the tool's
  planned one,

  $\hat p(t) = \sum_j w_j(t)\,(a_j(t) + \delta_j(t)), \qquad \sum_j w_j(t) = 1$

  The tool's anchors are its current position and every object; an object's are its
  current position, every other object (it is stacked), and the tool's planned path (it
  is carried). The network chooses, and predicts small offsets δ (pointer networks:
  Vinyals, Fortunato & Jaitly 2015).

`patch` planning steps of one object, or of the robot, are one token of a transformer
(Vaswani et al. 2017) that is modulated by the denoising step (adaLN: Peebles & Xie
2023). The number of planning steps is fixed; it is a multiple of `patch`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diffuser_policy.errors import ConfigError, HorizonError
from diffuser_policy.networks.transformer import (
    NUM_HEADS,
    ModulatedBlock,
    almost_zero,
    step_embedding,
)

POINTER_DIM = 16  # of queries and keys of the pointers
STAY = 3.0  # initial preference for an object's own position over other anchors
FAR = -1e9  # logit of an anchor that must not be pointed at


class ObjectTransformer(nn.Module):
    """Denoises plans of a robot and interchangeable objects."""

    def __init__(
        self,
        transition_dim: int,
        *,
        objects: Sequence[Sequence[int]],
        position: Sequence[int],
        num_planning_steps: int,
        dim: int = 128,
        depth: int = 4,
        patch: int = 8,
    ) -> None:
        """Build the network.

        Args:
            transition_dim: Columns of a trajectory.
            objects: Columns of each object, the same ones in the same order; the first
                are its position.
            position: Columns of the robot's position, normalized as the objects' are.
            num_planning_steps: Length of every plan, a multiple of `patch`.
            dim: Width, a multiple of `NUM_HEADS`.
            depth: Number of transformer blocks.
            patch: Planning steps per token.

        Raises:
            ConfigError: No objects, no position, a column that belongs to two of them,
                or a width that the heads don't share.
            HorizonError: Planning steps that are no multiple of `patch`.
        """
        super().__init__()
        size, place = (len(objects[0]) if objects else 0), len(position)
        self.object_columns = [column for columns in objects for column in columns]
        taken = {*self.object_columns, *position}
        shared = len(taken) < len(self.object_columns) + place
        if not objects or not place or size < place or shared or dim % NUM_HEADS:
            raise ConfigError(
                f"An object transformer needs objects whose first columns are a "
                f"position like the robot's, no column that belongs to two of them, "
                f"and dim in multiples of {NUM_HEADS}; got objects {tuple(objects)}, "
                f"the robot's position {tuple(position)} and dim={dim}. Plan in the "
                f"columns of a featurizer that names objects, or use the architecture "
                f"'unet'."
            )
        self.num_objects, self.size, self.place = len(objects), size, place
        others = [c for c in range(transition_dim) if c not in taken]
        self.robot_columns = [*position, *others]
        self.patch, self.num_planning_steps = patch, num_planning_steps
        if num_planning_steps % patch:
            raise HorizonError(
                f"With patch={patch}, plans have a multiple of {patch} planning steps; "
                f"got {num_planning_steps}."
            )
        order = torch.tensor(self.robot_columns + self.object_columns)
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("inverse", order.argsort(), persistent=False)
        robot = len(self.robot_columns)
        self.read_robot = nn.Linear(patch * robot + robot, dim)
        self.read_object = nn.Linear(patch * (size + place) + place + size, dim)
        self.time = nn.Parameter(0.02 * torch.randn(num_planning_steps // patch, dim))
        self.kind = nn.Parameter(0.02 * torch.randn(2, dim))
        self.step = step_embedding(dim)
        self.blocks = nn.ModuleList(ModulatedBlock(dim) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        # Robot: free columns, offset from an object, logit of itself, query.
        self.robot_sizes = [robot, place, 1, POINTER_DIM]
        # Object: free columns, offsets from others and tool, two logits, query, key.
        self.object_sizes = [size, place, place, 1, 1, POINTER_DIM, POINTER_DIM]
        robot_head = nn.Linear(dim, patch * sum(self.robot_sizes))
        object_head = nn.Linear(dim, patch * sum(self.object_sizes))
        self.write_robot = almost_zero(robot_head)
        self.write_object = almost_zero(object_head)

    order: Tensor
    inverse: Tensor

    @property
    def horizon_multiple(self) -> int:
        """Planning steps of every plan: there is one length."""
        return self.num_planning_steps

    def forward(
        self, deviations: Tensor, i: Tensor, *, start: Tensor, signal: Tensor
    ) -> Tensor:
        """Map noisy deviations from the current state to the prediction target.

        Args:
            deviations: `[batch, horizon, transition]`, noisy, normalized.
            i: `[batch]` denoising steps.
            start: `[batch, transition]` current state, normalized.
            signal: `[batch]` share of the clean deviations in the noisy ones.

        Returns:
            `[batch, horizon, transition]`.
        """
        robot, objects = self._split(deviations)
        robot_0, objects_0 = self._split(start[:, None])
        tokens = self._read(robot, objects, robot_0, objects_0, signal)
        step = self.step(i)
        for block in self.blocks:
            tokens = block(tokens, step)
        tokens = torch.unflatten(self.norm(tokens), 1, (1 + self.num_objects, -1))
        return self._write(tokens, robot_0, objects_0)

    def _split(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return robot `[batch, 1, steps, R]` and objects `[batch, N, steps, S]`."""
        sizes = [len(self.robot_columns), len(self.object_columns)]
        robot, objects = torch.split(rows[..., self.order], sizes, dim=-1)
        objects = torch.unflatten(objects, -1, (self.num_objects, self.size))
        objects = objects.transpose(1, 2)
        return robot[:, None], objects

    def _read(
        self,
        robot: Tensor,
        objects: Tensor,
        robot_0: Tensor,
        objects_0: Tensor,
        signal: Tensor,
    ) -> Tensor:
        """Return tokens `[batch, (1 + N) · patches, dim]`."""
        place, count = self.place, self.num_planning_steps // self.patch
        offset = robot_0[..., :place] - objects_0[..., :place]
        seen = robot[..., :place] + signal[:, None, None, None] * offset

        def patches(rows: Tensor) -> Tensor:
            return torch.unflatten(rows, 2, (count, self.patch)).flatten(3)

        context = torch.cat([offset, objects_0], dim=-1).expand(-1, -1, count, -1)
        read = self.read_object(
            torch.cat([patches(objects), patches(seen), context], dim=-1)
        )
        state = robot_0.expand(-1, -1, count, -1)
        mine = self.read_robot(torch.cat([patches(robot), state], dim=-1))
        tokens = torch.cat([mine + self.kind[0], read + self.kind[1]], dim=1)
        return (tokens + self.time).flatten(1, 2)

    def _write(self, tokens: Tensor, robot_0: Tensor, objects_0: Tensor) -> Tensor:
        """Return deviations `[batch, horizon, transition]`."""

        def unpatch(rows: Tensor) -> Tensor:
            return torch.unflatten(rows, 3, (self.patch, -1)).flatten(2, 3)

        place = self.place
        robot, near, stay, query = torch.split(
            unpatch(self.write_robot(tokens[:, :1])), self.robot_sizes, dim=-1
        )
        free, stacked, carried, still, held, asked, key = torch.split(
            unpatch(self.write_object(tokens[:, 1:])), self.object_sizes, dim=-1
        )
        here, there = robot_0[..., :place], objects_0[..., :place]

        weights = torch.cat([stay + STAY - 1, (query * key).sum(-1, keepdim=True)], 1)
        anchored = torch.cat([robot[..., :place], there - here + near], dim=1)
        tool = (weights.softmax(dim=1) * anchored).sum(dim=1, keepdim=True)

        others = torch.einsum("bktr,bjtr->bktj", asked, key)
        self_pointing = torch.eye(self.num_objects, device=key.device).bool()
        others = others.masked_fill(self_pointing[:, None], FAR)
        share = torch.cat([still + STAY, held, others], dim=-1).softmax(dim=-1)
        apart = there[:, None, :, 0] - there[:, :, None, 0]  # [batch, k, j, place]
        on_tool = tool + here - there + carried
        moved = (
            share[..., :1] * free[..., :place]
            + share[..., 1:2] * on_tool
            + torch.einsum("bktj,bkjp->bktp", share[..., 2:], apart)
            + share[..., 2:].sum(dim=-1, keepdim=True) * stacked
        )
        objects = torch.cat([moved, free[..., place:]], dim=-1)
        columns = objects.transpose(1, 2).flatten(2)
        mine = torch.cat([tool, robot[..., place:]], dim=-1)[:, 0]
        out: Tensor = torch.cat([mine, columns], dim=-1)[..., self.inverse]
        return out
