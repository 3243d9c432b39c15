"""Gradients of every registered guide, against finite differences in float64."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffuser_policy.guides.guide import Guide, gradient_of
from diffuser_policy.guides.registry import available_guides, make_guide
from diffuser_policy.guides.trajectory import Trajectory
from diffuser_policy.layout import TrajectoryLayout
from diffuser_policy.normalizers import GaussianNormalizer

LAYOUT = TrajectoryLayout(
    action_dim=2,
    observation_dim=4,
    aliases={"position": (0, 1), "velocity": (2, 3), "goal": (0, 1)},
)
SHIFT = torch.tensor([0.1, -0.2, 1.0, -2.0, 0.3, 0.5])
SCALE = torch.tensor([0.5, 0.8, 3.0, 4.0, 2.0, 1.5])
PATH = torch.tensor(  # meters; passes the origin at a distance of about 0.25
    [[-2.0, 0.3], [-1.1, 0.4], [-0.5, 0.2], [0.4, 0.3], [1.2, -0.3], [2.1, 0.2]]
).double()

CASES: dict[str, list[dict[str, Any]]] = {
    "keep-out": [
        {"center": (0.0, 0.0), "radius": 0.5},
        {"center": (0.0, 0.0), "radius": 3.0, "margin": 0.0},
        {"center": (0.5, 0.1, 2.0, -1.0), "radius": 2.5, "columns": "observation"},
    ],
    "keep-in": [
        {"low": (-1.0, -0.1), "high": (1.0, 0.35)},
        {"low": (-1.0, -0.1), "high": (1.0, 0.35), "margin": 0.05},
        {"center": (0.3, 0.0), "radius": 0.6, "margin": 0.1},
    ],
    "waypoint": [
        {"position": (0.0, 0.6)},
        {"position": (0.0, 0.6), "softness": 2.0},
        {"position": (0.0, 0.6), "time": 9.0},
        {"position": (0.0, 0.6), "time": 1000.0},
    ],
    "goal-distance": [{}, {"goal": (1.0, -2.0), "columns": "velocity"}],
    "speed-limit": [{"speed": 0.0}, {"speed": 1.5, "margin": 0.5}],
    "action-effort": [{}],
    "smoothness": [{}, {"columns": "action"}],
    "value": [{}],
    "maze-walls": [{"layout": "large"}, {"layout": "umaze", "clearance": 0.4}],
}
SETTINGS = [(name, case) for name in CASES for case in CASES[name]]


class ToyValue(nn.Module):
    """A smooth function of trajectories and denoising steps."""

    weights: Tensor

    def __init__(self) -> None:
        super().__init__()
        weights = torch.linspace(-1.0, 1.0, LAYOUT.transition_dim)
        self.register_buffer("weights", weights)

    def forward(self, trajectories: Tensor, i: Tensor) -> Tensor:
        """Return one number per trajectory."""
        return torch.tanh(trajectories @ self.weights).sum(dim=1) * (1.0 + i)


def normalizer() -> GaussianNormalizer:
    return GaussianNormalizer(SHIFT, SCALE).double()


def view(normalized: Tensor, denoising_step: int = 2) -> Trajectory:
    goal = torch.tensor([[[2.0, 0.5]]]).expand(len(normalized), -1, -1)
    return Trajectory(
        normalized=normalized,
        layout=LAYOUT,
        normalizer=normalizer(),
        stride=4,
        denoising_step=denoising_step,
        desired_goal=goal,
    )


def trajectories(batch: int = 3, seed: int = 0) -> Tensor:
    """Return normalized trajectories `[batch, 6, 6]` about PATH, in float64."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(batch, len(PATH), 6, generator=generator, dtype=torch.float64)
    values = noise.clone()
    values[..., 2:4] = PATH + 0.1 * noise[..., 2:4]
    return normalizer().normalize(values)


def made(name: str, parameters: dict[str, Any]) -> Guide:
    network = ToyValue().double()
    return make_guide(name, **parameters).bind(SimpleNamespace(value=network))


def of(guide: Guide) -> Callable[[Tensor], Tensor]:
    return lambda normalized: guide(view(normalized))


def test_every_guide_of_ours_is_checked_here() -> None:
    """A guide that is added without a case would go unchecked."""
    ours = {
        name
        for name, guide in available_guides().items()
        if guide.target.__module__.startswith(("diffuser_policy.", "diffuser_envs."))
    }
    assert ours == set(CASES)


@pytest.mark.parametrize(("name", "parameters"), SETTINGS)
def test_gradients_agree_with_finite_differences(
    name: str, parameters: dict[str, Any]
) -> None:
    guide, normalized = made(name, parameters), trajectories()
    value = guide(view(normalized))
    assert value.shape == (3,)
    assert value.dtype == torch.float64
    assert gradient_of(guide, normalized, view).abs().amax() > 1e-3  # not flat here
    assert torch.autograd.gradcheck(
        of(guide), [normalized.requires_grad_()], eps=1e-6, atol=1e-7, rtol=1e-5
    )


def test_the_gradient_of_a_sum_agrees_with_finite_differences() -> None:
    every = [made(name, parameters) for name, parameters in SETTINGS]
    guide = every[0]
    for weight, other in enumerate(every[1:], 2):
        guide = guide + 0.5 * weight * other
    assert torch.autograd.gradcheck(
        of(-guide), [trajectories().requires_grad_()], eps=1e-6, atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize(("name", "parameters"), SETTINGS)
def test_rows_do_not_see_each_other(name: str, parameters: dict[str, Any]) -> None:
    guide, normalized = made(name, parameters), trajectories(4)
    alone = torch.cat([guide(view(row[None])) for row in normalized])
    torch.testing.assert_close(guide(view(normalized)), alone)


@pytest.mark.parametrize(("name", "parameters"), SETTINGS)
@pytest.mark.parametrize("steps", [1, 2])
def test_plans_of_one_or_two_steps_have_finite_gradients(
    name: str, parameters: dict[str, Any], steps: int
) -> None:
    normalized = trajectories()[:, :steps]
    gradient = gradient_of(made(name, parameters), normalized, view)
    assert gradient.shape == normalized.shape


@pytest.mark.parametrize(("name", "parameters"), SETTINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_at_rest_on_every_point_that_is_named(
    name: str, parameters: dict[str, Any], dtype: torch.dtype
) -> None:
    """Norms of zero vectors: on a center, a waypoint or a goal, at no speed."""
    guide = made(name, parameters)
    points = [
        torch.tensor(value, dtype=torch.float64)
        for value in parameters.values()
        if isinstance(value, tuple) and len(value) == 2
    ]
    for point in [*points, torch.zeros(2).double(), torch.tensor([2.0, 0.5]).double()]:
        values = torch.zeros(1, 6, 6).double()
        values[..., 2:4] = point
        values = normalizer().normalize(values)
        if name != "value":  # a network has a type of its own
            values = values.to(dtype)
        assert gradient_of(guide, values, view).isfinite().all()
