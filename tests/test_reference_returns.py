"""The script that compares the mazes with D4RL's published reference returns."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffuser_envs.scores import REFERENCE_SCORES


@pytest.fixture(scope="module")
def script() -> Any:
    path = Path(__file__).parents[1] / "examples/experiments" / "reference_returns.py"
    spec = importlib.util.spec_from_file_location("reference_returns", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_published_figures_are_those_of_the_scores(script: Any) -> None:
    for maze in script.MAZES:
        scores = REFERENCE_SCORES[f"diffuser_envs/Maze2D-{maze}-v1"]
        assert script.PUBLISHED[maze, "sparse"] == scores


def test_random_actions_earn_what_d4rl_published(script: Any) -> None:
    results = script.run_episodes("UMaze", "random", seed=0)
    sparse, dense = script.summarize("UMaze", "random", results)
    assert (sparse.episodes, sparse.published) == (100, 23.85)
    assert sparse.agrees
    assert dense.agrees


def test_a_kept_route_ends_at_walls_and_a_new_one_at_the_goal(script: Any) -> None:
    kept = script.run_episodes("UMaze", "kept route", seed=0, num_episodes=20)
    new = script.run_episodes("UMaze", "new route", seed=0, num_episodes=20)
    np.testing.assert_array_equal(kept[0], new[0])
    assert new[:, 2].all()
    assert 0.3 < kept[:, 2].mean() < 0.9


def test_the_table_has_a_line_for_each_reward(script: Any) -> None:
    rows = script.summarize("Large", "new route", np.ones((10, 3)))
    table = script.as_markdown(rows).splitlines()
    assert len(table) == 4
    assert {line.count("|") for line in table} == {10}
    assert "| Large | new route | sparse | 10 | 100 % | 1.00 [1.00, 1.00] |" in table[2]
