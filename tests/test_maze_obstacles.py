"""Discs in a maze leave a way around, and the guide of its walls measures distance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from diffuser_envs.maze.guides import MazeWalls
from diffuser_envs.maze.layouts import get_layout
from diffuser_envs.maze.obstacles import BALL_RADIUS, CLEARANCE, Discs, FreeSpace
from diffuser_policy.columns.layout import TrajectoryLayout
from diffuser_policy.columns.normalizers import IdentityNormalizer
from diffuser_policy.errors import GuideError
from diffuser_policy.guides.guide import value_and_gradient
from diffuser_policy.guides.trajectory import Trajectory

HALL = [[1] * 8, [1, *[0] * 6, 1], [1, *[0] * 6, 1], [1] * 8]  # 6 m by 2 m of floor
CORRIDOR = [[1] * 8, [1, *[0] * 6, 1], [1] * 8]  # 6 m by 1 m
LAYOUT = TrajectoryLayout(action_dim=0, observation_dim=2, aliases={"position": (0, 1)})


def line(y: float) -> np.ndarray:
    return np.stack([np.linspace(-2.5, 2.5, 200), np.full(200, y)], axis=1)


def test_discs_lie_on_the_path_and_leave_a_way_around() -> None:
    path, space = line(0.0), FreeSpace(HALL)
    discs = space.place_discs(path, path[-1])
    assert discs is not None
    assert discs.radius == 0.5
    np.testing.assert_allclose(discs.centers, [[-5 / 6, 0], [5 / 6, 0]], atol=0.05)
    assert discs.gap(path) == pytest.approx(-0.5, abs=0.02)
    around = space.way(path[0], path[-1], discs)
    assert around is not None
    assert 4.9 <= around <= 6.1


def test_discs_shrink_until_the_ball_has_room() -> None:
    """In a corridor: 0.5 m minus ball and clearances on the wider side."""
    path = line(-0.25)
    discs = FreeSpace(CORRIDOR).place_discs(path, path[-1])
    assert discs is not None
    room = 0.75 - BALL_RADIUS - 2 * CLEARANCE
    assert room - 0.07 < discs.radius <= room + 0.01
    assert FreeSpace(CORRIDOR).place_discs(line(0.0), line(0.0)[-1]) is not None


def test_no_discs_where_there_is_no_room() -> None:
    short = line(0.0)[:20]
    assert FreeSpace(HALL).place_discs(short, short[-1]) is None
    wide = Discs(centers=np.zeros((1, 2)), radius=0.5)
    assert FreeSpace(CORRIDOR).way(line(0.0)[0], line(0.0)[-1], wide) is None


def test_discs_cover_neither_start_nor_goal() -> None:
    path = line(0.0)[:80]
    discs = FreeSpace(HALL).place_discs(path, path[-1])
    assert discs is not None
    assert discs.gap(path[[0, -1]]) >= 0.2


@pytest.mark.parametrize(("first", "length"), [(199, 4.9), (190, 4.75)])
def test_what_comes_after_the_arrival_is_no_part_of_the_path(
    first: int, length: float
) -> None:
    """The first 0.1 m from the goal, or else the nearest step, is the arrival."""
    path = line(0.0)
    later = path if length == 4.9 else path[:100]
    wandering = np.concatenate([path[:first], path[:first][::-1], later])
    discs = FreeSpace(HALL).place_discs(wandering, path[-1])
    assert discs is not None
    thirds = -2.5 + length * np.array([1, 2]) / 3
    np.testing.assert_allclose(discs.centers[:, 0], thirds, atol=0.03)


# --- the guide of the walls -------------------------------------------------------


def view(normalized: torch.Tensor, denoising_step: int = 0) -> Trajectory:
    return Trajectory(
        normalized=normalized,
        layout=LAYOUT,
        normalizer=IdentityNormalizer.blank(2).double(),
        denoising_step=denoising_step,
    )


def test_distances_agree_with_those_to_a_fine_grid_of_walls() -> None:
    maze = get_layout("umaze")
    fine = np.mgrid[-2.5:2.5:201j, -2.5:2.5:201j].reshape(2, -1).T
    cells = np.array([maze.xy_to_cell(*point) for point in fine])
    inside = np.clip(cells, 0, 4)
    wall = maze.walls[inside[:, 0], inside[:, 1]]
    points = np.random.default_rng(0).uniform(-1.9, 1.9, (25, 2))
    clearance = 0.45
    for point in points:
        free = not maze.walls[maze.xy_to_cell(*point)]
        other = fine[wall == free]
        distance = np.linalg.norm(other - point, axis=1).min() * (1 if free else -1)
        expected = -0.5 * max(clearance - distance, 0.0) ** 2
        guide = MazeWalls(layout="umaze", clearance=clearance)
        value = guide(view(torch.tensor(point)[None, None]))
        assert value.item() == pytest.approx(expected, abs=0.03)


def test_the_gradient_agrees_with_finite_differences_and_leads_out() -> None:
    guide = MazeWalls(layout="umaze", clearance=0.3)
    generator = torch.Generator().manual_seed(0)
    path = 3.8 * torch.rand(3, 12, 2, generator=generator).double() - 1.9
    assert torch.autograd.gradcheck(
        lambda x: guide(view(x)), [path.requires_grad_()], eps=1e-6, atol=1e-6
    )
    inside = torch.tensor([[[-0.3, 0.4]]]).double()  # in the inner wall, near its edge
    moved = inside + value_and_gradient(guide, inside, view)[1]
    assert guide(view(moved)) > guide(view(inside))


def test_a_maze_that_there_is_not_and_a_clearance_that_fills_it_are_refused() -> None:
    with pytest.raises(GuideError, match="large"):
        MazeWalls(layout="larg")
    clearance: Any
    for clearance in (0.5, -0.1, "x", None):
        with pytest.raises(GuideError, match="clearance"):
            MazeWalls(layout="large", clearance=clearance)


def test_a_path_outside_the_maze_is_pulled_back() -> None:
    """Another guide may have pushed it there; the further out, the worse."""
    guide = MazeWalls(layout="umaze")
    values = []
    for y in (1.9, 2.4, 2.6, 3.0, 9.0):
        position = torch.tensor([[[0.3, y]]], requires_grad=True)
        value = guide({"position": position})  # type: ignore[arg-type]
        (slope,) = torch.autograd.grad(value.sum(), position)
        assert slope[0, 0, 1] < -0.1
        values.append(value.item())
    assert values == sorted(values, reverse=True)
