r"""Guides: scalar objectives of a trajectory; higher is better.

A guide J maps a batch of trajectories to one number each. Samplers climb its gradient
(`diffuser_policy.diffusion.guidance`), rankings compare its values. Guides add and
scale:

    slow_and_wide = 2.0 * KeepOut(center=(1.0, 0.0), radius=0.5) - cost
    shorter = as_guide(lambda t: -t.position.diff(dim=1).square().sum(dim=(1, 2)))

Janner et al. 2022, §3.2: with $h(\tau) = \exp J(\tau)$, sampling from
$p(\tau) h(\tau)$ shifts every denoising step by the gradient of J; the sum of two
guides is the product of their distributions.
"""

from __future__ import annotations

import contextlib
import math
import numbers
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from diffuser_policy.choices import Placement
from diffuser_policy.errors import (
    DiffuserPolicyError,
    GuideError,
    MissingColumnsError,
)
from diffuser_policy.guides.trajectory import Trajectory
from diffuser_policy.numerics import out_of_memory

GuideFunction = Callable[[Trajectory], Tensor]


@dataclass(frozen=True)
class Mark:
    """A shape that shows in a picture what a guide asks for, in units of its columns.

    Attributes:
        kind: What plans should do with it.
        columns: Columns of the trajectory that it lies in, such as "position".
        low: Lower corner of its bounding box.
        high: Upper corner; equal to `low` for a point.
        round: Whether it is a disc rather than a box.
    """

    kind: Literal["avoid", "stay inside", "pass by"]
    columns: str
    low: tuple[float, ...]
    high: tuple[float, ...]
    round: bool = True


class Guide:
    """An objective; subclasses implement `__call__`."""

    def __call__(self, trajectory: Trajectory) -> Tensor:
        """Return one value per trajectory, `[batch]`; differentiable."""
        raise NotImplementedError(
            f"{type(self).__name__} must define __call__(self, trajectory)."
        )

    @property
    def name(self) -> str:
        """Name in errors and tables."""
        return type(self).__name__

    def bind(self, networks: Any) -> Guide:  # noqa: ARG002 (most need none)
        """Return the guide ready for a planner. Guides that use a network get it here.

        Args:
            networks: The planner's, as `diffuser_policy.build.PlannerNetworks`.
        """
        return self

    @property
    def suited_placement(self) -> Placement:
        """Where its gradient is taken if a planner's `guide_placement` is None."""
        return "clean"

    def marks(self) -> list[Mark]:
        """Return the shapes that a picture of a plan should show."""
        return []

    def parts(self) -> list[tuple[float, Guide]]:
        """Return the guides that this one is the weighted sum of."""
        return [(1.0, self)]

    def __add__(self, other: object) -> Guide:
        if not callable(other):
            return NotImplemented
        return WeightedSum((*self.parts(), *as_guide(other).parts()))

    def __radd__(self, other: object) -> Guide:
        """Return the sum of two guides; zero is where `sum` starts."""
        if isinstance(other, numbers.Real) and other == 0:
            return self
        if not callable(other):
            return NotImplemented
        return as_guide(other) + self

    def __sub__(self, other: object) -> Guide:
        if not callable(other):
            return NotImplemented
        return self + -as_guide(other)

    def __mul__(self, factor: object) -> Guide:
        if not isinstance(factor, numbers.Real):
            return NotImplemented
        try:
            factor = float(factor)
        except OverflowError:  # a whole number of hundreds of digits
            factor = math.inf
        if not math.isfinite(factor):
            raise GuideError(
                f"A guide's factor must be finite, got {factor} for {self.name}."
            )
        scaled = [(factor * weight, guide) for weight, guide in self.parts()]
        if len(scaled) == 1 and scaled[0][0] == 1.0:
            return scaled[0][1]
        return WeightedSum(tuple(scaled))

    __rmul__ = __mul__

    def __truediv__(self, divisor: object) -> Guide:
        if not isinstance(divisor, numbers.Real) or divisor == 0:
            return NotImplemented
        try:
            return (1.0 / float(divisor)) * self
        except OverflowError:  # a whole number of hundreds of digits
            return 0.0 * self

    def __rsub__(self, other: object) -> Guide:
        if not callable(other):
            return NotImplemented
        return as_guide(other) + -self

    def __neg__(self) -> Guide:
        return -1.0 * self


@dataclass(frozen=True)
class WeightedSum(Guide):
    """A weighted sum of guides.

    Attributes:
        terms: Weights and guides, none of them a sum.
    """

    terms: tuple[tuple[float, Guide], ...]

    def __call__(self, trajectory: Trajectory) -> Tensor:
        """Return the weighted sum of the values."""
        values = [weight * value_of(guide, trajectory) for weight, guide in self.terms]
        return torch.stack(values).sum(dim=0)

    @property
    def name(self) -> str:
        """The formula."""
        return " + ".join(
            guide.name if weight == 1.0 else f"{weight:g} * {guide.name}"
            for weight, guide in self.terms
        )

    def bind(self, networks: Any) -> Guide:
        """Return the sum of the bound guides."""
        return WeightedSum(tuple((w, g.bind(networks)) for w, g in self.terms))

    @property
    def suited_placement(self) -> Placement:
        """What suits all terms; "clean", which formulas need, if they differ."""
        suited = {guide.suited_placement for _, guide in self.terms}
        return suited.pop() if len(suited) == 1 else "clean"

    def marks(self) -> list[Mark]:
        """Return the shapes of all terms."""
        return [mark for _, guide in self.terms for mark in guide.marks()]

    def parts(self) -> list[tuple[float, Guide]]:
        """Return the terms."""
        return list(self.terms)


@dataclass(frozen=True, repr=False)
class FunctionGuide(Guide):
    """A plain function of a trajectory.

    Attributes:
        function: Maps a `Trajectory` and the parameters to values `[batch]`.
        registered_as: Its name in the registry, if it was found there.
        parameters: Names and values, in the order of the signature.
    """

    function: Callable[..., Tensor]
    registered_as: str | None = None
    parameters: tuple[tuple[str, Any], ...] = ()

    def __call__(self, trajectory: Trajectory) -> Tensor:
        """Return the function's values."""
        return self.function(trajectory, **dict(self.parameters))

    @property
    def name(self) -> str:
        """The name in the registry, or the function's own."""
        own = getattr(self.function, "__qualname__", repr(self.function))
        return self.registered_as or str(own)

    def __repr__(self) -> str:
        if self.registered_as is None:
            return self.name
        values = ", ".join(f"{name}={value!r}" for name, value in self.parameters)
        return f"{self.name}({values})"


def as_guide(objective: Any) -> Guide:
    """Return a guide as it is, and a plain function of a trajectory as a guide.

    Raises:
        GuideError: It is neither.
    """
    if isinstance(objective, Guide):
        return objective
    if callable(objective) and not isinstance(objective, type):
        return FunctionGuide(objective)
    raise GuideError(
        f"A guide is a Guide or a function of a trajectory, got {objective!r}. "
        f"Guides by name come from make_guide(name, **parameters); several are added."
    )


def cost_guide(cost: GuideFunction) -> Guide:
    """Return the guide that keeps a cost low.

    Args:
        cost: Maps a `Trajectory` to costs `[batch]`; also usable as a decorator.
    """
    return -as_guide(cost)


def value_of(guide: Guide, trajectory: Trajectory) -> Tensor:
    """Return a guide's values `[batch]`, checked.

    Raises:
        GuideError: The guide fails, or its value is not a tensor, has another shape or
            is NaN, or has no gradient where one is wanted. The message names the guide.
        MissingColumnsError: The planner lacks columns that it asks for.
    """
    try:
        with _failures_named(guide):
            value = guide(trajectory)
    except MissingColumnsError as error:
        if error.guide:
            raise
        raise MissingColumnsError(error.name, error.known, guide.name) from error
    if isinstance(guide, WeightedSum):  # its terms have been checked
        return value
    if not isinstance(value, Tensor) or value.shape != (len(trajectory),):
        is_tensor, kind = isinstance(value, Tensor), type(value).__name__
        given = f"shape {tuple(value.shape)}" if is_tensor else kind
        advice = "Return a torch tensor."
        if is_tensor:
            advice = "Sum over planning steps and columns, for example .sum(dim=1)."
        raise GuideError(
            f"The guide {guide.name} must return one value per trajectory, a tensor of "
            f"shape ({len(trajectory)},); got {given}. {advice}"
        )
    here = trajectory.normalized.device
    if value.dtype == torch.bfloat16:  # NumPy has no such type
        value = value.float()
    if value.is_complex() or value.device != here or value.layout != torch.strided:
        raise GuideError(
            f"The guide {guide.name} must return real numbers on the device of the "
            f"trajectory, {here}; got {value.dtype} on {value.device}, "
            f"{value.layout}. Look for complex functions, sparse tensors, and tensors "
            f"that were made on another device."
        )
    if not bool(torch.isfinite(value).all()):
        if not bool(torch.isfinite(trajectory.normalized).all()):
            raise GuideError(
                f"Steps along the gradient of the guide {guide.name} made plans NaN or "
                f"infinite. Lower guide_scale."
            )
        raise GuideError(
            f"The guide {guide.name} returned NaN or infinite values: {value}. Look "
            f"for divisions by zero, logarithms, and square roots of zero."
        )
    wanted = torch.is_grad_enabled() and trajectory.normalized.requires_grad
    if wanted and not value.requires_grad:
        raise GuideError(
            f"The guide {guide.name} has no gradient: its value does not depend on the "
            f"trajectory by differentiable operations. Avoid .detach(), NumPy, "
            f"comparisons and argmax; or use it without a gradient, with "
            f"guide_scale=0 and ranking='guide'."
        )
    # A guide may return booleans or integers: rankings can compare them.
    return value if value.is_floating_point() else value.to(trajectory.normalized.dtype)


@contextlib.contextmanager
def _failures_named(guide: Guide) -> Iterator[None]:
    """Name the guide, and what it may compute with, if the block fails."""
    try:
        yield
    except DiffuserPolicyError:
        raise
    except Exception as error:  # whatever other people's code raises
        if out_of_memory(error):
            raise
        # PyTorch's second sentence advises .detach(), which loses the gradient.
        words = str(error).partition(" Use tensor.detach()")[0].rstrip(".")
        said = type(error).__name__, words
        raise GuideError(
            f"The guide {guide.name} failed: {': '.join(filter(None, said))}. A guide "
            "computes with PyTorch, on tensors [batch, steps, columns], and must not "
            "change them in place. Use torch.linalg.norm, torch.sqrt or torch.where "
            "instead of NumPy, math, float(…) and if. Leave .detach() out, which "
            "would lose the gradient, and .backward(), which is called for you."
        ) from error


def value_and_gradient(
    guide: Guide, trajectories: Tensor, view: Callable[[Tensor], Trajectory]
) -> tuple[Tensor, Tensor]:
    """Return a guide's values and gradient with respect to normalized trajectories.

    Works inside `torch.inference_mode` too.

    Args:
        guide: The objective.
        trajectories: `[batch, steps, transition]`, normalized.
        view: Makes what the guide sees of them.

    Returns:
        `[batch]`, and `[batch, steps, transition]`.

    Raises:
        GuideError: As `value_of`, or a gradient that cannot be taken or is not finite.
    """
    with torch.inference_mode(False), torch.enable_grad():
        variable = trajectories.clone().requires_grad_()
        values = value_of(guide, view(variable))
        with _failures_named(guide):
            [gradient] = torch.autograd.grad(
                values.sum(), [variable], allow_unused=True
            )
    if gradient is None:
        raise GuideError(
            f"The guide {guide.name} has no gradient with respect to the trajectory: "
            f"its value depends on something else. Avoid .detach() and NumPy."
        )
    if not bool(torch.isfinite(gradient).all()):
        terms = guide.parts()
        if len(terms) > 1:  # name the one that it is
            for _, term in terms:
                value_and_gradient(term, trajectories, view)
        raise GuideError(
            f"The gradient of the guide {guide.name} is NaN or infinite. A common "
            f"cause is the square root of zero: add a small number under the root."
        )
    return values.detach(), gradient


def described(guide: Guide) -> str:
    """Return a guide's formula with parameters, for tables and titles."""
    return " + ".join(
        repr(part) if weight == 1.0 else f"{weight:g} * {part!r}"
        for weight, part in guide.parts()
    )
