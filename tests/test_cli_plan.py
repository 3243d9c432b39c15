"""`diffuser-policy plan`: pictures, the short table, and refusals."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces, wrappers

from diffuser_policy.cli import main
from diffuser_policy.cli.plan import PlanSettings, _arrival, _length, _reset
from diffuser_policy.columns.layout import TrajectoryLayout
from diffuser_policy.errors import ConfigError
from diffuser_policy.evaluation import evaluate
from diffuser_policy.evaluation.loop import Tally
from diffuser_policy.play.worlds import world_of
from diffuser_policy.policy import DiffuserPolicy
from tests.point_env import POINT, Observation, PointEnv
from tests.training_helpers import pendulum_policy

MAZE = "diffuser_envs/Multi2D-UMaze-v1"
PICTURES = {"plan.png", "chain.png", "chain.gif"}
Capture = pytest.CaptureFixture[str]


def rows(shown: str) -> dict[str, str]:
    """Return the cells of the printed table by their labels."""
    return dict(re.findall(r"^ +(\S.*?)  +(\S.*?) *$", shown, re.MULTILINE))


def test_maze_is_drawn_with_the_goal_that_was_asked_for(
    planner: str, tmp_path: Path, capsys: Capture
) -> None:
    where = ["--start", "1.2", "0", "--reset", "goal=[-1.0,1]"]
    arguments = ["plan", planner, "--env", MAZE, *where, "--out", str(tmp_path)]
    assert main(arguments) == 0
    table = rows(capsys.readouterr().out)
    assert (table["start"], table["goal"]) == ("(1.20, 0.00)", "(-1.00, 1.00)")
    assert table["planned length"].endswith("env steps")
    assert table["return"].endswith("in 300 env steps")
    assert {path.name for path in tmp_path.iterdir()} == PICTURES
    by_name = ["--start", "1.2", "0", "--goal", "-1.0", "1"]
    assert main([*arguments[:4], *by_name, *arguments[-2:]]) == 0
    assert rows(capsys.readouterr().out) == table


class Rounded(PointEnv):
    """Observes single precision."""

    def _observe(self) -> Observation:
        seen = super()._observe().items()
        return {key: part.astype(np.float32) for key, part in seen}


class InParts(PointEnv):
    """Observes goals that are made of parts."""

    def _observe(self) -> Any:
        seen: Any = super()._observe()
        for key in ("achieved_goal", "desired_goal"):
            seen[key] = dict(zip("xy", np.split(seen[key], 2), strict=True))
        return seen

    def __init__(self) -> None:
        super().__init__()
        box = spaces.Box(-np.inf, np.inf, (1,), np.float64)
        goals = dict.fromkeys(
            ("achieved_goal", "desired_goal"), spaces.Dict(x=box, y=box)
        )
        self.observation_space = spaces.Dict(
            {**self.observation_space.spaces, **goals}  # type: ignore[attr-defined]
        )


class OtherKeys(PointEnv):
    """Observes its goals under other keys."""

    def _observe(self) -> Any:
        seen: Any = super()._observe()
        hand, target = seen.pop("achieved_goal"), seen.pop("desired_goal")
        return {**seen, "robot": {"hand": hand}, "target": target}

    def __init__(self) -> None:
        super().__init__()
        parts: Any = dict(self.observation_space)  # type: ignore[call-overload]
        hand, target = parts.pop("achieved_goal"), parts.pop("desired_goal")
        self.observation_space = spaces.Dict(
            {**parts, "robot": spaces.Dict(hand=hand), "target": target}
        )


KEYS = ("robot/hand", "target")


def test_a_goal_under_another_key_is_taken() -> None:
    env = OtherKeys()
    _reset(env, PlanSettings(planner="any", goal=(100.3, -20.7)), KEYS)
    assert env.goal.tolist() == [100.3, -20.7]
    with pytest.raises(ConfigError, match=r"ignores reset.*'start'"):
        _reset(env, PlanSettings(planner="any", start=(100.3, -20.7)), KEYS)
    env.close()


def test_mazes_that_ignore_a_start_can_be_wrapped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    maze: Any = PointEnv()
    settings = PlanSettings(planner="any", start=(100.3, -20.7))
    for walls in ("maze_map", "cell_size"):
        with pytest.raises(ConfigError, match=r"Leave --start out\.$"):
            _reset(maze, settings)
        monkeypatch.setattr(maze.unwrapped, walls, [[1]], raising=False)
    maze.unwrapped.cell_size = 1.0
    with pytest.raises(ConfigError, match=r"wrap the .* diffuser_envs\.GoalResampling"):
        _reset(maze, settings)
    maze.close()


def test_goals_under_other_keys_are_recorded_and_dragged() -> None:
    env = OtherKeys()
    seen, _ = env.reset(seed=0)
    record = Tally(env, 0, seen, goal_keys=KEYS).record()
    assert record.start == tuple(seen["robot"]["hand"])
    assert record.goal == tuple(seen["target"])
    layout = TrajectoryLayout(
        action_dim=2, observation_dim=4, aliases={"position": (0, 1)}
    )
    [handle] = world_of(env, layout, seen, KEYS).handles(seen)
    assert handle == ("goal", (*seen["target"], 0.0), "xy")
    env.close()


def flattened() -> Any:
    return wrappers.FlattenObservation(PointEnv())


@pytest.mark.parametrize("made", [PointEnv, Rounded, InParts, flattened])
def test_a_goal_that_was_obeyed_is_taken(
    made: Callable[[], Any], capsys: Capture
) -> None:
    env = made()
    _reset(env, PlanSettings(planner="any", goal=(100.3, -20.7)))
    assert ("nobody checks" in capsys.readouterr().err) == (made is flattened)
    assert env.unwrapped.goal.tolist() == [100.3, -20.7]
    env.close()


def test_drawn_episode_is_the_first_one_of_evaluate(
    planner: str, tmp_path: Path, capsys: Capture
) -> None:
    assert main(["plan", planner, "--seed", "4", "--out", str(tmp_path)]) == 0
    table = rows(capsys.readouterr().out)
    policy = DiffuserPolicy.from_pretrained(planner, seed=4)
    [record] = evaluate(policy, POINT, episodes=1, seed=4, num_envs=1).episodes
    assert table["actual arrival"] == f"after {record.time_to_goal} env steps"
    assert table["return"].startswith(f"{record.episode_return:.1f} in ")
    assert table["score (100: the reference)"] == f"{record.score:.1f}"
    assert {path.name for path in tmp_path.iterdir()} == PICTURES


def test_arrivals_are_told_in_words() -> None:
    assert _arrival(None) == "–"
    assert _arrival(0) == "at the goal from the start"
    assert _arrival(1) == "after 1 env step"
    assert _arrival(2) == "after 2 env steps"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env", MAZE, "--goal", "0", "0"], "inside a wall or outside"),
        (["--env", MAZE, "--start", "50", "0"], "inside a wall or outside"),
        (["--env", MAZE, "--goal", "nan", "0"], "finite"),
        (["--start", "0.25", "0"], "Leave --start out."),
        (["--goal", "1", "0", "--reset", "goal=[1, 0]"], "goal was given twice"),
        (["--env", "diffuser_envs/Multi2D-UMase-v1"], "Did you mean"),
        (["--env", "Pendulum-v1"], "expects the observation space"),
    ],
)
def test_mistakes_are_explained(
    planner: str, arguments: list[str], message: str, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out"
    assert main(["plan", planner, *arguments, "--out", str(out)]) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")
    assert not out.exists()


@pytest.mark.parametrize("name", ["start", "goal"])
def test_no_wrapper_is_advised_where_there_are_no_goals(name: str) -> None:
    place: Any = {name: (1.0, 2.0)}
    settings = PlanSettings(planner="any", **place)
    with closing(gym.make("Pendulum-v1")) as env, pytest.raises(ConfigError) as error:
        _reset(env, settings)
    assert str(error.value) == (
        f"This environment ignores reset(options={{'{name}': …}}). Leave --{name} out."
    )


def test_a_plan_of_one_step_is_told_as_an_action() -> None:
    assert [_length(steps) for steps in (0, 1, 3)] == [
        "the next action alone",
        "1 env step",
        "3 env steps",
    ]


def test_of_a_single_action_only_what_happened_is_drawn(
    tmp_path: Path, capsys: Capture
) -> None:
    planner, out = tmp_path / "planner", tmp_path / "out"
    pendulum_policy().save_pretrained(planner)
    assert main(["plan", str(planner), "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert rows(shown)["planned length"] == "the next action alone"
    assert [path.name for path in out.iterdir()] == ["plan.png"]
    assert "chain" not in shown
