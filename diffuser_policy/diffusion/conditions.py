"""Conditions: values pinned at planning steps, as in inpainting.

(Janner et al. 2022, §3.3, goal-conditioned reinforcement learning as inpainting.)
`Conditions` are requirements on a plan, in environment units: the first observation is
the current one, the last position is the goal. `compile` turns that
into an `Inpainting`, the mask and normalized values that a sampler writes back after
every denoising step. This hard replacement is an *approximation* of conditional
sampling: pinned entries are met exactly, but the rest of the trajectory is drawn
from a distribution that is only close to the conditional one.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffuser_policy.columns.layout import TrajectoryLayout
from diffuser_policy.columns.normalizers import Normalizer, selection
from diffuser_policy.errors import ConditionError, UnknownNameError, shown
from diffuser_policy.words import counted


@dataclass(frozen=True, kw_only=True)
class Pin:
    """One pinned set of columns at one planning step.

    Attributes:
        step: Planning step; negative steps count from the end of the plan.
        columns: Name of a field or alias of the layout.
        values: `[batch, size]` or `[size]`, environment units.
    """

    step: int
    columns: str
    values: Tensor


@dataclass(frozen=True)
class Inpainting:
    """Pinned entries of a batch of normalized trajectories.

    Attributes:
        mask: `[1 or batch, horizon, transition]`, true where an entry is pinned.
        values: `[batch, horizon, transition]`, normalized; used where the mask is true.
    """

    mask: Tensor
    values: Tensor

    def apply(self, trajectories: Tensor) -> Tensor:
        """Return the trajectories with pinned entries replaced."""
        return torch.where(self.mask, self.values, trajectories)

    def repeat(self, num_candidates: int) -> Inpainting:
        """Return the inpainting of `num_candidates` trajectories for every row."""
        if num_candidates == 1:
            return self
        mask = self.mask
        if mask.shape[0] > 1:
            mask = mask.repeat_interleave(num_candidates, dim=0)
        return Inpainting(mask, self.values.repeat_interleave(num_candidates, dim=0))


@dataclass(frozen=True)
class Conditions:
    """An ordered set of pins; immutable, built by `pin`."""

    pins: tuple[Pin, ...] = ()

    def pin(
        self, step: int, columns: str, values: Tensor | np.ndarray | Sequence[float]
    ) -> Conditions:
        """Return these conditions and one more.

        Args:
            step: Planning step, negative from the end.
            columns: "observation", "action", or an alias such as "goal".
            values: `[batch, size]` or `[size]`, environment units, finite.

        Raises:
            ConditionError: A step that is no whole number, columns that are no text, or
                values that are not finite or not one or two-dimensional.
        """
        if not isinstance(columns, str):
            raise ConditionError(
                f"A condition names its columns, such as 'goal'; got {shown(columns)}."
            )
        try:
            step = operator.index(step)
            if isinstance(values, np.ndarray):
                values = values.copy()  # it may be read-only, or run backwards
            tensor = torch.as_tensor(values, dtype=torch.float32).clone()
        except (TypeError, ValueError, OverflowError, RuntimeError) as error:
            raise ConditionError(
                f"The condition on {columns!r} needs a planning step and numbers "
                f"({error}); got step {shown(step)} and {shown(values)}."
            ) from error
        if tensor.ndim not in (1, 2) or not bool(torch.isfinite(tensor).all()):
            raise ConditionError(
                f"The condition on {columns!r} at step {step} needs finite values "
                f"[batch, size] or [size], got shape {tuple(tensor.shape)}: {tensor}."
            )
        pin = Pin(step=step, columns=columns, values=tensor)
        return Conditions((*self.pins, pin))

    def __or__(self, other: Conditions) -> Conditions:
        """Return both sets of conditions; a plan refuses them where they clash."""
        return Conditions(self.pins + other.pins)

    def check_rows(self, batch_size: int) -> None:
        """Refuse conditions for another number of plans.

        Raises:
            ConditionError: Values for some of the plans, or for more than there are.
        """
        for pin in self.pins:
            if pin.values.ndim == 2 and len(pin.values) not in (1, batch_size):
                raise ConditionError(
                    f"The condition on {pin.columns!r} has values for "
                    f"{counted(len(pin.values), 'plan')}, and there are "
                    f"{batch_size:,}. Give one row of values for all, or one for each."
                )

    def check_clashes(
        self, others: Conditions, layout: TrajectoryLayout, num_planning_steps: int
    ) -> None:
        """Refuse other conditions that pin what is pinned already to another value.

        Args:
            others: Compared with these, and with each other; all for the same plans.
            layout: Names of the columns, with those of all conditions.
            num_planning_steps: Rows of the plan, with the steps of all conditions.

        Raises:
            ConditionError: Two conditions want different values at one place.
        """
        taken: dict[tuple[int, int], tuple[Pin, Tensor]] = {}
        for number, pin in enumerate((*self.pins, *others.pins)):
            columns, parts = layout.columns(pin.columns), pin.values.cpu().unbind(-1)
            for column, values in zip(columns, parts, strict=True):
                place = pin.step % num_planning_steps, column
                earlier, before = taken.get(place, (pin, values))
                apart = before - values
                if number >= len(self.pins) and apart.any():
                    row = int(apart.reshape(-1).nonzero()[0])
                    one, other = (
                        float(each.expand(apart.shape).reshape(-1)[row])
                        for each in (before, values)
                    )
                    raise ConditionError(
                        f"The conditions on {earlier.columns!r} at planning step "
                        f"{earlier.step} and on {pin.columns!r} at step {pin.step} "
                        f"clash: they pin column {column} of the trajectory to "
                        f"{one:g} and {other:g}. Pin each entry once. The observation "
                        f"and the goal are pinned already (with goal_velocity, the "
                        f"velocity there too): pass another observation or goal, or "
                        f"set goal_velocity=False."
                    )
                taken[place] = pin, values

    def rows(self, index: np.ndarray, batch_size: int) -> Conditions:
        """Return the conditions of some of the plans.

        Args:
            index: Their numbers.
            batch_size: Number of plans that these conditions are for.
        """
        pins = (
            pin
            if pin.values.ndim == 1 or len(pin.values) != batch_size
            else dataclasses.replace(pin, values=pin.values[index])
            for pin in self.pins
        )
        return Conditions(tuple(pins))

    def compile(
        self,
        layout: TrajectoryLayout,
        normalizer: Normalizer,
        *,
        num_planning_steps: int,
        batch_size: int,
    ) -> Inpainting:
        """Return the mask and normalized values for plans of one length.

        Args:
            layout: Names of the columns.
            normalizer: Map of all trajectory columns.
            num_planning_steps: Rows of the plan.
            batch_size: Number of plans.

        Raises:
            ConditionError: A step outside the plan, or values of the wrong size.
            UnknownNameError: Columns that the layout does not have.
        """
        shape = (num_planning_steps, layout.transition_dim)
        device = normalizer.shift.device
        mask = torch.zeros(1, *shape, dtype=torch.bool, device=device)
        values = torch.zeros(
            batch_size, *shape, dtype=normalizer.shift.dtype, device=device
        )
        for pin in self.pins:
            if pin.columns not in layout.names:  # "action" has no columns in some
                raise UnknownNameError("trajectory column", pin.columns, layout.names)
            columns = layout.columns(pin.columns)
            if not -num_planning_steps <= pin.step < num_planning_steps:
                raise ConditionError(
                    f"The condition on {pin.columns!r} pins planning step {pin.step}, "
                    f"but the plan has {counted(num_planning_steps, 'step')}."
                )
            size, given = len(columns), tuple(pin.values.shape)
            if given not in [(size,), (1, size), (batch_size, size)]:
                raise ConditionError(
                    f"The condition on {pin.columns!r} needs values of shape ({size},) "
                    f"or ({batch_size}, {size}), got {given}."
                )
            index = selection(columns)
            mask[0, pin.step, index] = True
            normalized = normalizer.normalize(pin.values.to(device), columns)
            values[:, pin.step, index] = normalized
        return Inpainting(mask, values)
