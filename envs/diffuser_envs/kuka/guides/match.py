"""The final-state-matching guide: a classifier says which block is on which."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffuser_envs.kuka.columns import ordered_pairs
from diffuser_envs.kuka.guides.task import (
    Tower,
    check_blocks,
    check_tower,
    checked_count,
    current_task,
    fixed_task,
    settling_steps,
)
from diffuser_envs.kuka.stages import count_blocks
from diffuser_policy.errors import GuideError
from diffuser_policy.guides.geometry import checked_number
from diffuser_policy.guides.guide import Guide
from diffuser_policy.guides.trajectory import CLEAN, Trajectory

JUDGED = 4  # planning steps that are shown to the classifier: blocks rest by then


@dataclass(frozen=True, kw_only=True)
class StackMatch(Guide):
    r"""Makes a plan end with one block on another, by a learned classifier.

    $$J = \frac{\sigma^2}{|W|} \sum_{t \in W} \log p(\mathrm{top\ on\ bottom} | s_t)$$

    over some planning steps W, from where the plan lets go of the block to its end,
    with the planner's classifier of single noisy states (Janner et al. 2022, Appendix
    B). Where a block is to stand on the table, the probability that it is on nothing.
    Clean plans are judged with all other blocks where they are now: a plan that brought
    the bottom to the top would not count.

        make_guide("stack-match", top=1, bottom=0)
        make_guide("stack-match")

    The planner needs a classifier, which `diffuser-policy train-classifier` trains.

    Attributes:
        top: Block that is to be moved; None, with `bottom`: that of the current stage.
        bottom: Block that it is to stand on.
        window: How many env steps at the plan's end are judged in any case.
        softness: σ, meters: roughly how far a gradient step of scale 1 moves a block.
        tower: Blocks from the bottom to the top, instead of the environment's goal.
        network: The classifier; planners fill it in.
    """

    top: int | None = None
    bottom: int | None = None
    window: float = 20.0
    softness: float = 0.05
    tower: Tower = None
    network: nn.Module | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Check ranges, and that a pair is two blocks."""
        checked_number(self, "window")
        checked_number(self, "softness", above_zero=True)
        if (self.top is None) != (self.bottom is None) or (
            self.top is not None and self.top == self.bottom
        ):
            raise GuideError(
                f"StackMatch needs two different blocks, or neither (those of the "
                f"current stage); got top={self.top} and bottom={self.bottom}."
            )
        check_blocks(self, self.top, self.bottom)
        check_tower(self, self.tower)

    def bind(self, networks: Any) -> StackMatch:
        """Return the guide with the planner's classifier.

        Raises:
            GuideError: The planner has none.
        """
        network = getattr(networks, "classifier", None)
        if network is None:
            raise GuideError(
                "The guide StackMatch needs a classifier, and this planner has none. "
                "Train one with: diffuser-policy train-classifier PLANNER --labels "
                "kuka-pairs --architecture pairs. Without one, the guide 'place' asks "
                "for the same position."
            )
        return replace(self, network=network)

    def __call__(self, trajectory: Trajectory) -> Tensor:
        """Return the mean log-probabilities at the end.

        Raises:
            GuideError: No planner has filled in a classifier, or it was taught other
                labels.
        """
        if self.network is None:
            raise GuideError(
                "The guide StackMatch has no classifier yet. Pass it to "
                "policy.with_guide(…), or call its bind(policy.networks)."
            )
        if self.top is not None and self.bottom is not None:
            task = fixed_task(trajectory, self.top, support=self.bottom)
        else:
            task = current_task(self, trajectory, self.tower)
        index = self._labels(count_blocks(trajectory), task.block.device)
        tops = task.block.clamp(min=0)
        _, settled = settling_steps(trajectory, tops, self.window)
        logits = self._logits(trajectory, task.block, _spread(settled))
        pair = index[tops, task.support.clamp(min=0)]
        on_it = F.logsigmoid(_picked(logits, pair[:, None]))
        others = (
            tops[:, None] + torch.arange(1, len(index), device=tops.device)
        ) % len(index)
        on_none = F.logsigmoid(-_picked(logits, index[tops[:, None], others]))
        wanted = torch.where(
            (task.support >= 0)[:, None], on_it.sum(dim=2), on_none.sum(dim=2)
        )
        return self.softness**2 * task.some * wanted.mean(dim=1)

    def _logits(self, trajectory: Trajectory, block: Tensor, judged: Tensor) -> Tensor:
        """Return the logits `[batch, judged, labels]` of some planning steps."""
        network: Any = self.network
        every = trajectory.normalized
        rows = torch.arange(len(every), device=every.device)[:, None]
        states = every[rows, judged]
        if trajectory.denoising_step == CLEAN:
            own = _columns_free(trajectory)[block.clamp(min=0)][:, None]
            states = torch.where(own, states, every[:, :1])
        step = max(trajectory.denoising_step, 0)
        steps = torch.full((len(states),), step, device=states.device)
        logits: Tensor = network(states, steps)
        return logits

    def _labels(self, count: int, device: torch.device) -> Tensor:
        """Return which logit `[top, bottom]` stands for which pair.

        Raises:
            GuideError: The classifier was taught something else.
        """
        names: dict[str, int] = {
            name: k for k, name in enumerate(getattr(self.network, "labels", ()))
        }
        index = torch.zeros(count, count, dtype=torch.long, device=device)
        for top, bottom in ordered_pairs(count):
            name = f"on_{top}_{bottom}"
            if name not in names:
                raise GuideError(
                    f"StackMatch needs a classifier of the label {name!r}, and this "
                    f"planner's was taught {', '.join(names) or 'none'}. Train one "
                    f"with: diffuser-policy train-classifier PLANNER --labels "
                    f"kuka-pairs --architecture pairs"
                )
            index[top, bottom] = names[name]
        return index


def _spread(settled: Tensor) -> Tensor:
    """Return a few of the steps `[batch, JUDGED]` that are true in `[batch, steps]`.

    They are true from some step on: the first, the last, and evenly between.
    """
    last = settled.shape[1] - 1
    first = settled.to(torch.int8).argmax(dim=1)
    shares = torch.linspace(0.0, 1.0, JUDGED, device=settled.device)
    return (first[:, None] + (last - first)[:, None] * shares).round().long()


def _columns_free(trajectory: Trajectory) -> Tensor:
    """Return which columns `[blocks, transition]` are not those of another block."""
    layout, count = trajectory.layout, checked_count(trajectory)
    free = torch.ones(count, layout.transition_dim, dtype=torch.bool)
    for block in range(count):
        for name in ("block", "quaternion", "flag"):
            if f"{name}_{block}" in layout.aliases:
                free[:, list(layout.columns(f"{name}_{block}"))] = False
                free[block, list(layout.columns(f"{name}_{block}"))] = True
    return free.to(trajectory.normalized.device)


def _picked(logits: Tensor, labels: Tensor) -> Tensor:
    """Return some logits of each trajectory, `[batch, steps, picked]`.

    Args:
        logits: `[batch, steps, labels]`.
        labels: `[batch, picked]` which.
    """
    index = labels[:, None].expand(-1, logits.shape[1], -1)
    return torch.gather(logits, 2, index)
