"""The planners that come with the package: present, small, and as good as they say."""

from __future__ import annotations

import pytest

from diffuser_policy import DiffuserPolicy, evaluate
from diffuser_policy.checkpoint import (
    CARD,
    SHIPPED,
    card,
    read_planner,
    shipped_planners,
)
from diffuser_policy.training.derive import guide_of
from diffuser_policy.training.presets import preset

MAZES = {"multi2d-umaze": "UMaze", "multi2d-medium": "Medium", "multi2d-large": "Large"}
PAPER = {  # Janner et al. 2022, table 1
    "Maze2D": {"UMaze": 113.9, "Medium": 121.5, "Large": 123.0},
    "Multi2D": {"UMaze": 128.9, "Medium": 127.2, "Large": 132.1},
}

ROBOTS = {
    "walker2d": "Walker2d-v5",
    "hopper": "Hopper-v5",
    "halfcheetah": "HalfCheetah-v5",
}
POINT_MAZES = ("pointmaze-giant-navigate", "pointmaze-giant-stitch")
EARNED = {"walker2d": 800.0, "hopper": 700.0, "halfcheetah": 1800.0}  # in 300 env steps


def test_the_shipped_planners_fit_in_a_wheel() -> None:
    assert shipped_planners() == sorted([*MAZES, *ROBOTS, *POINT_MAZES, "kuka-stack"])
    sizes = [path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()]
    assert sum(sizes) < 30e6
    assert max(sizes) < 5e6


@pytest.mark.parametrize("planner", [*MAZES, "kuka-stack"])
def test_a_shipped_planner_has_the_guide_of_its_preset(planner: str) -> None:
    if planner == "kuka-stack":
        pytest.importorskip("pybullet", reason="needs the extra 'kuka'")
    assert guide_of(preset(planner)) == read_planner(planner)[0].guide


@pytest.mark.parametrize("planner", MAZES)
@pytest.mark.parametrize("family", PAPER)
def test_a_shipped_planner_reaches_every_goal(planner: str, family: str) -> None:
    """Of a few episodes that no table was made from."""
    env_id = f"diffuser_envs/{family}-{MAZES[planner]}-v1"
    policy = DiffuserPolicy.from_pretrained(planner)
    results = evaluate(policy, env_id, episodes=4, seed=5000, num_envs=4).summary()
    success, score = results["success_rate"], results["score"]
    assert success is not None
    assert success.mean == 1.0
    assert score is not None
    assert score.mean > PAPER[family][MAZES[planner]]


@pytest.mark.parametrize("planner", POINT_MAZES)
def test_a_shipped_planner_crosses_the_giant_maze(planner: str) -> None:
    """In an episode of each task that no table was made from."""
    pytest.importorskip("ogbench", reason="needs the extra 'ogbench'")
    policy = DiffuserPolicy.from_pretrained(planner)
    found = evaluate(policy, "pointmaze-giant-v0", episodes=1, seed=5000, num_envs=5)
    assert [episode.success for episode in found.episodes] == [True] * 5
    written = (SHIPPED / planner / CARD).read_text(encoding="utf-8")
    assert "| environment | episodes | score | success |\n" in written
    assert "| pointmaze-giant-v0 | 250 | 100.0 [100.0, 100.0] | 100% |" in written


@pytest.mark.slow
@pytest.mark.parametrize("planner", ROBOTS)
def test_a_shipped_planner_walks_and_does_not_fall(planner: str) -> None:
    """In the beginning of a few episodes that no table was made from."""
    pytest.importorskip("mujoco", reason="needs the extra 'maze'")
    evaluation = evaluate(
        DiffuserPolicy.from_pretrained(planner),
        ROBOTS[planner],
        episodes=2,
        seed=5000,
        num_envs=2,
        env_options={"max_episode_steps": 300},
    )
    assert [episode.length for episode in evaluation.episodes] == [300, 300]
    assert evaluation.returns.min() > EARNED[planner]


@pytest.mark.parametrize("planner", ROBOTS)
def test_the_card_of_a_robot_has_its_score(planner: str) -> None:
    written = (SHIPPED / planner / CARD).read_text(encoding="utf-8")
    assert "| environment | episodes | score |\n" in written
    assert f"| {ROBOTS[planner]} | 100 | " in written


@pytest.mark.parametrize("planner", shipped_planners())
def test_model_cards_are_up_to_date(planner: str) -> None:
    written = (SHIPPED / planner / CARD).read_text(encoding="utf-8")
    assert written == card(*read_planner(planner))


@pytest.mark.parametrize("planner", MAZES)
def test_a_model_card_says_what_was_measured(planner: str) -> None:
    written = (SHIPPED / planner / CARD).read_text(encoding="utf-8")
    for family in PAPER:
        assert f"| diffuser_envs/{family}-{MAZES[planner]}-v1 | 100 | " in written


@pytest.mark.parametrize(
    ("task", "episodes"),
    [
        ("Conditional", 1),
        pytest.param("Unconditional", 4, marks=pytest.mark.proof),
        pytest.param("Conditional", 4, marks=pytest.mark.proof),
    ],
)
def test_the_shipped_planner_stacks_blocks(task: str, episodes: int) -> None:
    """Of a few episodes that no table was made from."""
    pytest.importorskip("pybullet", reason="needs the extra 'kuka'")
    policy = DiffuserPolicy.from_pretrained("kuka-stack")
    results = evaluate(
        policy,
        f"diffuser_envs/KukaStack-{task}-v1",
        episodes=episodes,
        seed=5000,
        num_envs=episodes,
    )
    score = results.summary()["score"]
    assert score is not None
    assert score.mean > 75.0  # the paper's best is 58.9
