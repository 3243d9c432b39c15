"""Plans of four blocks by hand, and a classifier whose logits are known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffuser_envs.kuka.columns import ordered_pairs
from diffuser_envs.kuka.features import BlockFeatures
from diffuser_envs.kuka.guides import StackMatch
from diffuser_envs.kuka.tasks import tower_goal
from diffuser_policy.columns.layout import TrajectoryLayout
from diffuser_policy.columns.normalizers import IdentityNormalizer
from diffuser_policy.guides.trajectory import Trajectory

FEATURES = BlockFeatures()
LAYOUT = TrajectoryLayout(
    action_dim=0, observation_dim=FEATURES.num_columns, aliases=FEATURES.columns
)
PLACES = np.array([[0.5, -0.4], [0.5, -0.1], [0.5, 0.2], [0.5, 0.5]])
START = np.column_stack([PLACES, np.full(4, 0.03)])
LABELS = tuple(f"on_{top}_{bottom}" for top, bottom in ordered_pairs())
TOWER = tower_goal((2, 0, 3, 1), 4)


def planned(steps: int = 33) -> Tensor:
    """Return a plan `[1, steps, 19]` in which nothing moves."""
    plan = torch.zeros(1, steps, 19, dtype=torch.float64)
    plan[..., :3] = torch.tensor([0.5, 0.0, 0.35])
    for block in range(4):
        xyz = list(FEATURES.columns[f"block_{block}"])
        plan[..., xyz] = torch.from_numpy(START[block])
    return plan


def shown(plan: Tensor, goal: Any = TOWER, **parts: Any) -> Trajectory:
    desired = None
    if goal is not None:
        goals = torch.as_tensor(np.asarray(goal)).double().reshape(-1, 1, 12)
        desired = goals.expand(len(plan), -1, -1)
    settings = {"stride": 4, "layout": LAYOUT, **parts}
    return Trajectory(
        normalized=plan,
        normalizer=IdentityNormalizer.blank(19).double(),
        desired_goal=desired,
        **settings,
    )


def moving(block: int, target: Any, *, flags: tuple[int, int] = (6, 12)) -> Tensor:
    """Return a plan that carries a block straight to a target."""
    plan = planned()
    xyz = list(FEATURES.columns[f"block_{block}"])
    first, last = flags
    for step in range(first, plan.shape[1]):
        share = min((step - first) / (last - first), 1.0)
        start = torch.from_numpy(START[block])
        plan[0, step, xyz] = start + share * (torch.as_tensor(target) - start)
        plan[0, step, FEATURES.columns[f"flag_{block}"][0]] = float(step < last)
    return plan


class Logits(nn.Module):
    """Says that block 0 is on block 2 the nearer they are to it; knows all columns."""

    labels = LABELS

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, states: Tensor, i: Tensor) -> Tensor:
        """Return logits: pairs differ by constants, all fall with the distance."""
        self.seen.append((states, i))
        columns = FEATURES.columns
        logits = []
        for top, bottom in ordered_pairs():
            upper, lower = (
                states[..., list(columns[f"block_{k}"])] for k in (top, bottom)
            )
            offset = upper - lower - torch.tensor([0.0, 0.0, 0.06]).double()
            logits.append(3.0 - 40.0 * offset.square().sum(dim=-1))
        return torch.stack(logits, dim=-1)


def matching(**parameters: Any) -> StackMatch:
    return StackMatch(**parameters).bind(SimpleNamespace(classifier=Logits()))
