"""Gradients of every registered guide, against finite differences in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffuser_envs.kuka.columns import ordered_pairs
from diffuser_envs.kuka.features import BlockFeatures
from diffuser_envs.kuka.tasks import tower_goal
from diffuser_policy.columns.layout import TrajectoryLayout
from diffuser_policy.columns.normalizers import GaussianNormalizer
from diffuser_policy.guides.guide import Guide, value_and_gradient
from diffuser_policy.guides.registry import GUIDES, make_guide
from diffuser_policy.guides.trajectory import CLEAN, Trajectory

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
BLOCK_CASES: dict[str, list[dict[str, Any]]] = {
    "avoid-blocks": [{}, {"clearance": 0.06}],
    "contact": [
        {},
        {"block": 1, "window": (4.0, 12.0), "throughout": True},
        {"tower": (3, 0, 2)},
    ],
    "place": [{}, {"block": 2, "position": (0.5, 0.1, 0.09)}, {"window": 0.0}],
    "stack-match": [{}, {"top": 2, "bottom": 0, "window": 8.0}, {"tower": (1, 0)}],
    "rest": [{}],
    "stack-task": [{}, {"match": 0.5, "place": 0.0, "avoid": 2.0}],
}
SETTINGS = [
    (name, case)
    for group in (CASES, BLOCK_CASES)
    for name in group
    for case in group[name]
]

BLOCKS = BlockFeatures()
BLOCK_LAYOUT = TrajectoryLayout(
    action_dim=0, observation_dim=BLOCKS.num_columns, aliases=BLOCKS.columns
)
TOOL = torch.tensor([0.50, 0.02, 0.16])
POSED = torch.tensor(  # blocks 0 to 3 and their flags, close together, 3 on 1
    [
        [0.45, 0.00, 0.03, 0.4],
        [0.55, 0.04, 0.03, 0.2],
        [0.50, 0.08, 0.05, 0.1],
        [0.55, 0.05, 0.09, 0.3],
    ]
)
BLOCK_STATE = torch.cat([TOOL, POSED.flatten()]).double()


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


class ToyClassifier(nn.Module):
    """Smooth functions of single states and denoising steps, one per pair of blocks."""

    weights: Tensor
    labels = tuple(f"on_{top}_{bottom}" for top, bottom in ordered_pairs())

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        weights = torch.randn(BLOCKS.num_columns, 12, generator=generator)
        self.register_buffer("weights", weights)

    def forward(self, states: Tensor, i: Tensor) -> Tensor:
        """Return logits."""
        return torch.tanh(states @ self.weights) * (1.0 + i)[:, None, None]


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


def block_normalizer() -> GaussianNormalizer:
    return GaussianNormalizer(
        BLOCK_STATE.float(), torch.linspace(0.1, 0.3, 19)
    ).double()


def view_blocks(normalized: Tensor, denoising_step: int = 2) -> Trajectory:
    goal = torch.from_numpy(tower_goal((1, 2, 0), 4)).double()
    return Trajectory(
        normalized=normalized,
        layout=BLOCK_LAYOUT,
        normalizer=block_normalizer(),
        stride=4,
        denoising_step=denoising_step,
        desired_goal=goal.expand(len(normalized), 1, -1),
    )


def view_clean_blocks(normalized: Tensor) -> Trajectory:
    return view_blocks(normalized, CLEAN)


def view_reached(normalized: Tensor) -> Trajectory:
    """Desire the places where the blocks are: nothing is left to do."""
    seen = view_blocks(normalized)
    blocks = [seen[f"block_{k}"][:, :1].detach() for k in range(4)]
    return replace(seen, desired_goal=torch.cat(blocks, dim=2))


def view_of(name: str) -> Callable[[Tensor], Trajectory]:
    if name == "rest":
        return view_reached
    return view_blocks if name in BLOCK_CASES else view


def given_to(name: str, batch: int = 3) -> Tensor:
    """Return normalized trajectories for a guide, in float64.

    Those of blocks hold all of them at their second step and let go at the third.
    """
    if name not in BLOCK_CASES:
        return trajectories(batch)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(batch, 4, 19, generator=generator, dtype=torch.float64)
    values = block_normalizer().unnormalize(0.2 * noise)
    values[:, 1, list(BLOCKS.columns["flags"])] += 0.45
    return block_normalizer().normalize(values)


def trajectories(batch: int = 3, seed: int = 0) -> Tensor:
    """Return normalized trajectories `[batch, 6, 6]` about PATH, in float64."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(batch, len(PATH), 6, generator=generator, dtype=torch.float64)
    values = noise.clone()
    values[..., 2:4] = PATH + 0.1 * noise[..., 2:4]
    return normalizer().normalize(values)


def made(name: str, parameters: dict[str, Any]) -> Guide:
    networks = SimpleNamespace(
        value=ToyValue().double(), classifier=ToyClassifier().double()
    )
    return make_guide(name, **parameters).bind(networks)


def agrees(
    guide: Guide, normalized: Tensor, seen: Callable[[Tensor], Trajectory], atol: float
) -> bool:
    """Compare gradients with finite differences.

    The first state of a plan is given. Where blocks are in it says what is to be done,
    so it is a constant to their guides.
    """
    given = 0 if seen is view else 1
    first = normalized[:, :given]

    def value(later: Tensor) -> Tensor:
        return guide(seen(torch.cat([first, later], dim=1)))

    later = normalized[:, given:].clone().requires_grad_()
    return torch.autograd.gradcheck(value, [later], eps=1e-6, atol=atol, rtol=1e-5)


def test_every_guide_of_ours_is_checked_here() -> None:
    """A guide that is added without a case would go unchecked."""
    ours = {
        plugin.name
        for plugin in GUIDES.offers()
        if plugin.address.startswith(("diffuser_policy.", "diffuser_envs."))
    }
    assert ours == {*CASES, *BLOCK_CASES}


@pytest.mark.parametrize(("name", "parameters"), SETTINGS)
def test_gradients_agree_with_finite_differences(
    name: str, parameters: dict[str, Any]
) -> None:
    guide, normalized, seen = made(name, parameters), given_to(name), view_of(name)
    value = guide(seen(normalized))
    assert value.shape == (3,)
    assert value.dtype == torch.float64
    assert (
        value_and_gradient(guide, normalized, seen)[1].abs().amax() > 1e-4
    )  # not flat here
    assert agrees(guide, normalized[:1], seen, 1e-7)  # the others are like it


@pytest.mark.parametrize("name", BLOCK_CASES)
def test_gradients_on_clean_plans_of_blocks_agree_as_well(name: str) -> None:
    """Clean, the other blocks are taken from the first state."""
    guide, normalized = made(name, BLOCK_CASES[name][0]), given_to(name, 1)
    assert agrees(guide, normalized, view_clean_blocks, 1e-7)


def test_the_gradient_of_a_sum_agrees_with_finite_differences() -> None:
    for group, name in ((CASES, "keep-out"), (BLOCK_CASES, "contact")):
        every = [made(each, group[each][0]) for each in group]
        guide = every[0]
        for weight, other in enumerate(every[1:], 2):
            guide = guide + 0.5 * weight * other
        assert agrees(-guide, given_to(name, 1), view_of(name), 1e-6)


@pytest.mark.parametrize(("name", "parameters"), SETTINGS)
def test_rows_do_not_see_each_other(name: str, parameters: dict[str, Any]) -> None:
    guide, normalized, seen = made(name, parameters), given_to(name, 4), view_of(name)
    alone = torch.cat([guide(seen(row[None])) for row in normalized])
    torch.testing.assert_close(guide(seen(normalized)), alone)


@pytest.mark.parametrize(("name", "parameters"), SETTINGS)
def test_plans_of_one_or_two_steps_have_finite_gradients(
    name: str, parameters: dict[str, Any]
) -> None:
    guide = made(name, parameters)
    for steps in (1, 2):
        normalized = given_to(name)[:, :steps]
        gradient = value_and_gradient(guide, normalized, view_of(name))[1]
        assert gradient.shape == normalized.shape


@pytest.mark.parametrize(
    ("name", "parameters"), [(name, case) for name in CASES for case in CASES[name]]
)
def test_gradients_are_finite_at_rest_on_every_point_that_is_named(
    name: str, parameters: dict[str, Any]
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
        assert value_and_gradient(guide, values, view)[1].isfinite().all()
        if name != "value":  # a network has a type of its own
            gradient = value_and_gradient(guide, values.float(), view)[1]
            assert gradient.isfinite().all()


@pytest.mark.parametrize("name", BLOCK_CASES)
def test_gradients_are_finite_where_tool_and_blocks_coincide(name: str) -> None:
    values = torch.zeros(2, 6, 19).double()
    values[1, :, 6::4] = 1.0  # and all of them held
    guide = made(name, BLOCK_CASES[name][0])
    normalized = block_normalizer().normalize(values)
    assert value_and_gradient(guide, normalized, view_blocks)[1].isfinite().all()
