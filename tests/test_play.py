"""Playing with a planner, without a page: the session, the worker, and what is kept."""

from __future__ import annotations

import dataclasses
import re
import shlex
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tyro

from diffuser_policy import DiffuserPolicy
from diffuser_policy.cli.play import PlaySettings
from diffuser_policy.columns.layout import TrajectoryLayout
from diffuser_policy.envs import make_env
from diffuser_policy.errors import ConfigError, UnknownNameError
from diffuser_policy.guides.registry import SavedPart, parse_guide, part_text
from diffuser_policy.play.session import Session, Setup
from diffuser_policy.play.sharing import as_command, as_python
from diffuser_policy.play.worker import Worker
from diffuser_policy.play.worlds import World
from tests.point_env import POINT
from tests.policy_helpers import untrained_policy

pytest.importorskip("gymnasium_robotics")

UMAZE = "diffuser_envs/Multi2D-UMaze-v1"
FREE, WALL = (-1.0, 1.0, 0.0), (0.0, 0.0, 0.0)


@pytest.fixture(scope="module")
def policy() -> DiffuserPolicy:
    return DiffuserPolicy.from_pretrained("multi2d-umaze")


@pytest.fixture
def session(policy: DiffuserPolicy) -> Iterator[Session]:
    env = make_env(UMAZE)
    options = {"start": [-1.0, -1.0], "goal": [-1.0, 1.0]}
    made = Session(policy, env, planner="multi2d-umaze", env_id=UMAZE, options=options)
    yield made
    made.close()


def planned(session: Session) -> Any:
    session.advance()
    return session.frame()


# --- the world ------------------------------------------------------------------------


def test_a_goal_has_as_many_numbers_as_reset_takes_wherever_it_is_dragged() -> None:
    """Positions may have three columns where goals have two."""
    env = make_env(POINT)
    aliases = {"position": (0, 1, 2)}
    layout = TrajectoryLayout(action_dim=2, observation_dim=4, aliases=aliases)
    world = World(env, layout, env.reset(seed=0)[0])
    [handle] = world.handles(env.reset(seed=0)[0])
    assert handle[0] == "goal"
    world.move("goal", (0.5, -0.5, 0.25))
    assert world.options() == {"goal": [0.5, -0.5]}
    env.close()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_start_that_reset_ignores_is_no_handle(seed: int) -> None:
    """Also if the seed of the trial puts the start where it already was."""
    env = make_env(POINT)
    aliases = {"position": (0, 1)}
    layout = TrajectoryLayout(action_dim=2, observation_dim=4, aliases=aliases)
    observation, _ = env.reset(seed=seed)
    handles = World(env, layout, observation).handles(observation)
    assert [name for name, _, _ in handles] == ["goal"]
    env.close()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_start_and_goal_of_a_maze_are_handles(
    policy: DiffuserPolicy, seed: int
) -> None:
    env = make_env(UMAZE)
    opened = Session(policy, env, planner="x", env_id=UMAZE, seed=seed)
    handles = opened.world.handles(opened.observation)
    assert {name for name, _, _ in handles} == {"start", "goal"}
    opened.close()


# --- the session ----------------------------------------------------------------------


def test_the_plan_leads_from_start_to_goal(session: Session) -> None:
    path = planned(session).path
    assert np.allclose(path[0, :2], [-1.0, -1.0], atol=1e-4)
    assert np.allclose(path[-1, :2], [-1.0, 1.0], atol=1e-4)


def test_the_plan_follows_the_goal(session: Session) -> None:
    session.move("goal", (0.5, 1.0, 0.0))
    assert np.allclose(planned(session).path[-1, :2], [0.5, 1.0], atol=1e-4)


def test_a_goal_in_a_wall_is_shown_and_not_planned(session: Session) -> None:
    before = planned(session)
    session.move("goal", WALL)
    frame = planned(session)
    assert frame.stuck == ("goal",)
    assert "wall" in frame.messages[0]
    assert "the nearest free point" in frame.messages[0]
    assert np.array_equal(frame.path, before.path)
    [handle] = [h for h in session.world.handles(session.observation) if h[0] == "goal"]
    assert handle[1] == WALL
    session.move("goal", FREE)
    frame = planned(session)
    assert not frame.messages
    assert not frame.stuck


def test_a_goal_in_a_wall_can_be_left_by_moving_the_goal_alone(
    session: Session,
) -> None:
    session.move("goal", WALL)
    session.run()
    assert not planned(session).running


def test_a_handle_in_a_wall_is_to_blame_until_it_leaves(session: Session) -> None:
    session.move("goal", WALL)
    session.move("start", (0.0, -1.0, 0.0))
    assert session.frame().stuck == ("goal",)
    session.restart()
    assert session.frame().stuck == ("goal",)
    session.move("goal", FREE)
    assert session.frame().stuck == ()


@pytest.mark.parametrize(("first", "last"), [("goal", "start"), ("start", "goal")])
@pytest.mark.parametrize("freed", ["start", "goal"])
def test_of_two_handles_in_walls_the_one_that_leaves_is_no_longer_to_blame(
    session: Session, first: str, last: str, freed: str
) -> None:
    session.move(first, WALL)
    session.move(last, WALL)
    session.move(freed, FREE)
    other = "start" if freed == "goal" else "goal"
    assert session.frame().stuck == (other,)
    session.move(other, (1.0, 1.0, 0.0))
    assert session.frame().stuck == ()


def test_where_nothing_can_be_planned_nothing_runs(session: Session) -> None:
    session.move("goal", WALL)
    session.run()
    assert not session.going
    session.step()
    assert not session.going


def test_a_run_reaches_the_goal_with_the_plan_that_was_shown(session: Session) -> None:
    shown = planned(session)
    session.run()
    first = planned(session)
    assert np.array_equal(first.path, shown.path)
    for _ in range(299):
        session.advance()
    frame = session.frame()
    assert "at the goal after" in frame.outcome
    assert not frame.running
    assert not session.going
    assert frame.score is not None
    assert frame.env_steps == 300


def test_a_long_run_keeps_what_is_drawn_alone(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.run()
    whole = [planned(session) for _ in range(30)][-1]
    assert (len(whole.trace), len(whole.past)) == (31, 31)
    monkeypatch.setattr("diffuser_policy.play.session.LONGEST_TRACE", 10)
    session.restart()
    session.run()
    frame = [planned(session) for _ in range(30)][-1]
    assert frame.env_steps == 30
    assert np.array_equal(frame.trace, whole.trace[-10:])
    assert np.array_equal(frame.past, whole.past[:10])


def test_a_goal_that_moves_during_a_run_is_followed(session: Session) -> None:
    session.run()
    for _ in range(20):
        session.advance()
    session.move("goal", (1.0, 1.0, 0.0))
    session.advance()
    frame = session.frame()
    assert frame.running
    assert frame.num_plans == 2
    assert np.allclose(frame.path[-1, :2], [1.0, 1.0], atol=1e-4)
    session.move("goal", WALL)
    session.advance()
    frame = session.frame()
    assert frame.running
    assert frame.stuck == ("goal",)


def test_a_goal_that_moves_after_time_is_up_ends_the_run(session: Session) -> None:
    session.run()
    while session.going:
        session.advance()
    assert session.frame().env_steps == 300
    session.move("goal", (1.0, 1.0, 0.0))
    assert not session.frame().running
    session.run()
    assert planned(session).env_steps == 1


def test_a_moved_start_ends_the_run(session: Session) -> None:
    session.run()
    session.advance()
    session.move("start", (0.0, -1.0, 0.0))
    frame = planned(session)
    assert frame.env_steps == 0
    assert np.allclose(frame.path[0, :2], [0.0, -1.0], atol=1e-4)


def test_a_step_is_one_env_step_and_a_pause_none(session: Session) -> None:
    for _ in range(3):
        session.step()
        session.advance()
        session.advance()
    assert session.frame().env_steps == 3
    session.run()
    session.pause()
    session.advance()
    assert session.frame().env_steps == 3


def test_a_disc_on_the_plan_moves_it_away(session: Session) -> None:
    session.choose(horizon_scale=1.5)
    before = planned(session).path[:, :2]
    session.add_guide("keep-out")
    center = before[len(before) // 2]
    assert np.allclose(session.guides[0].parameters["center"], center, atol=0.01)
    # The corridor is a meter wide: a disc in a half of it.
    session.move_guide(0, "center", (center[0] + 0.3, center[1], 0.0))
    session.change_guide(0, {"radius": 0.3})
    frame = planned(session)
    assert not frame.messages
    [(_, mark)] = frame.marks
    middle = (np.array(mark.low) + mark.high) / 2
    nearest = np.linalg.norm(frame.path[:, :2] - middle, axis=1).min()
    assert nearest > np.linalg.norm(before - middle, axis=1).min()


def test_a_path_through_a_wall_is_remarked(session: Session) -> None:
    corners = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], float)
    assert not session.world.obstructed(corners)  # around the wall
    assert session.world.obstructed(corners[[0, 3]])  # across it
    assert not planned(session).remarks


def test_a_plan_that_enters_a_disc_is_remarked(session: Session) -> None:
    session.advance()
    session.add_guide("keep-out")
    session.choose(guide_scale=0.0)
    assert planned(session).remarks == ("The plan enters what “keep-out” marks.",)
    session.run()
    while session.going:
        session.advance()
    assert "The robot's path enters what “keep-out” marks." in session.frame().remarks


def test_a_planner_whose_guide_was_turned_off_can_be_played_with(
    policy: DiffuserPolicy,
) -> None:
    off = policy.with_guide(parse_guide("smoothness"), guide_scale=0.0)
    opened = Session(off, make_env(UMAZE), planner="x", env_id=UMAZE)
    assert not planned(opened).messages
    usable = opened.usable_guides()
    assert "keep-out" in usable
    opened.add_guide("keep-out")
    assert opened.setup.settings["guide_scale"] == 0.0  # else they would be refused
    opened.choose(guide_scale=2.0)
    assert not planned(opened).messages
    assert opened.policy.config.planner.guide_scale == 2.0
    opened.close()


def test_a_disc_of_a_guide_without_a_weight_may_be_entered(session: Session) -> None:
    session.advance()
    session.add_guide("keep-out")
    session.change_guide(0, {}, weight=0.0)
    frame = planned(session)
    assert len(frame.marks) == 1  # it can still be dragged
    assert not frame.remarks


def test_another_environment_has_a_pace_of_its_own(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = make_env(UMAZE)
    slow.unwrapped.dt = 3 * session.pace  # type: ignore[attr-defined]
    monkeypatch.setattr("diffuser_policy.play.session.make_env", lambda _: slow)
    session._enter("another/Maze-v0")
    assert session.pace == slow.unwrapped.dt  # type: ignore[attr-defined]


def test_a_disc_between_two_points_of_a_path_is_entered(session: Session) -> None:
    session.advance()
    session.add_guide("keep-out")
    session.choose(guide_scale=0.0)
    path = planned(session).path[:, :2]
    step = np.linalg.norm(np.diff(path, axis=0), axis=1)
    longest = int(step.argmax())
    middle = path[longest : longest + 2].mean(axis=0)
    radius = 0.4 * float(step[longest])
    session.change_guide(0, {"center": middle.tolist(), "radius": radius})
    assert planned(session).remarks == ("The plan enters what “keep-out” marks.",)


def test_another_seed_draws_everything_anew(session: Session) -> None:
    session.move("goal", (0.5, 1.0, 0.0))
    session.set_seed(3)
    assert not session.setup.options
    expected, _ = make_env(UMAZE).reset(seed=3)
    np.testing.assert_array_equal(
        session.observation["observation"][:2], expected["observation"][:2]
    )


def test_a_simulator_that_fails_leaves_a_message_and_the_last_start(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise RuntimeError("the simulator is unstable")

    before, setup = planned(session), session.setup
    with monkeypatch.context() as patch:
        patch.setattr(type(session.env.unwrapped), "reset", failing)
        for change in (session.restart, lambda: session.set_seed(3), session.run):
            change()
            frame = planned(session)
            assert frame.messages == ("RuntimeError: the simulator is unstable",)
            assert np.array_equal(frame.path, before.path)
            assert session.setup == setup
    session.run()
    frame = planned(session)
    assert frame.running
    assert not frame.messages
    with monkeypatch.context() as patch:
        patch.setattr(type(session.env.unwrapped), "set_goal", failing)
        session.move("goal", FREE)
        frame = planned(session)
        assert frame.messages == ("RuntimeError: the simulator is unstable",)
        assert frame.stuck == ("goal",)


@pytest.mark.parametrize("seed", [10**19, -1])
def test_a_seed_that_is_refused_changes_nothing(session: Session, seed: int) -> None:
    before = planned(session).path
    with pytest.raises(ConfigError, match="seed"):
        session.set_seed(seed)
    assert session.setup.seed == 0
    session.restart()
    assert np.array_equal(planned(session).path, before)


def test_what_cannot_work_is_not_offered(session: Session) -> None:
    rankings = session.possible("ranking", ["critic", "time_to_goal", "first"])
    assert rankings == ["time_to_goal", "first"]
    assert session.possible("ranking", ["guide"])  # a guide may be added
    usable = session.usable_guides()
    assert {"keep-out", "waypoint"} <= {*usable}
    assert not {"stack-match", "place", "value"} & {*usable}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("executor", {"executor": "path", "tempo": 0.7}),
        ("executor", {"executor": "pursuit", "lookahead": 2.0}),
        ("ranking", {"ranking": "time_to_goal", "satisficing": True}),
    ],
)
def test_all_that_works_is_offered_whatever_goes_with_the_present_value(
    policy: DiffuserPolicy, session: Session, name: str, settings: dict[str, Any]
) -> None:
    values = ["actions", "path", "tracking", "pursuit", "first", "time_to_goal"]
    expected = session.possible(name, values)
    assert len(expected) > 1
    opened = opened_with(policy, settings)
    assert opened.possible(name, values) == expected
    opened.close()


def test_a_planner_that_no_guide_can_steer_offers_what_it_can_do(
    policy: DiffuserPolicy,
) -> None:
    planner = dataclasses.replace(
        policy.config.planner,
        num_sampling_steps=1,
        min_guided_steps=1,
        guide_placement="mean",
    )
    config = dataclasses.replace(policy.config, planner=planner)
    session = opened_with(DiffuserPolicy(config, policy.networks), {})
    assert not session.usable_guides()
    assert session.possible("ranking", ["time_to_goal", "first", "guide"]) == [
        "time_to_goal",
        "first",
    ]
    assert session.possible("executor", ["path", "pursuit"]) == ["path", "pursuit"]
    session.close()


def test_a_ranking_by_guides_waits_for_one(session: Session) -> None:
    session.choose(ranking="guide")
    frame = planned(session)
    assert len(frame.path)
    assert not frame.messages
    assert "ranking" not in as_command(session.setup)
    session.choose(ranking_tolerance=0.3, guide_scale=2.0)  # they need a guide, too
    assert not planned(session).messages
    number = session.add_guide("keep-out")
    shared = as_command(session.setup)
    assert "--ranking guide" in shared
    assert "--ranking-tolerance 0.3 --guide-scale 2.0" in shared
    session.change_guide(number, {}, weight=0.0)  # as if there were none
    assert "ranking" not in as_command(session.setup)
    assert session.policy.config.planner.ranking == "time_to_goal"


def test_a_guide_of_the_command_line_leaves_nothing_behind() -> None:
    words = ["multi2d-umaze", "--guide", "keep-out:center=1,0;radius=0.1"]
    settings = PlaySettings, [*words, "--reset", "start=[-1,-1]"]
    opened = tyro.cli(settings[0], args=settings[1], use_underscores=False).open()
    assert len(opened.guides) == 1
    opened.remove_guide(0)
    assert "guide" not in as_command(opened.setup)
    assert not planned(opened).messages
    opened.close()


def test_settings_that_go_with_a_guide_come_and_go_with_it(session: Session) -> None:
    session.add_guide("keep-out")
    assert session.settings == {"ranking": "guide", "executor": "path"}
    session.remove_guide(0)
    assert session.settings == {}
    assert session.policy.guide is None


def test_settings_that_a_guide_made_possible_go_with_it(session: Session) -> None:
    """Else nothing could be planned without it, and it would go on to steer."""
    session.add_guide("keep-out")
    session.choose(tempo=0.7, ranking_tolerance=0.3, num_candidates=4)
    assert not planned(session).messages
    session.remove_guide(0)
    assert not planned(session).messages
    assert session.policy.guide is None
    assert session.settings == {"num_candidates": 4}


def opened_with(policy: DiffuserPolicy, settings: dict[str, Any]) -> Session:
    """Return the session of a page that was opened with settings of planning."""
    return Session(
        policy.with_settings(**settings),
        make_env(UMAZE),
        planner="multi2d-umaze",
        env_id=UMAZE,
        settings=settings,
    )


@pytest.mark.parametrize("chosen", ["path", "tracking"])
def test_settings_that_were_given_stay_when_the_last_guide_goes(
    policy: DiffuserPolicy, chosen: str
) -> None:
    given = {"executor": chosen}
    opened = opened_with(policy, given)
    opened.add_guide("keep-out")
    opened.choose(executor="path")
    opened.remove_guide(0)
    assert opened.setup.settings == given
    assert opened.policy.config.execution.executor == chosen
    assert_copies_plan_the_same(opened)
    opened.close()


@pytest.mark.parametrize(
    ("given", "added"),
    [
        ({"lookahead": 2.0}, {"ranking": "guide"}),
        ({"position_gain": 5.0}, {"ranking": "guide"}),
        ({"satisficing": True}, {"executor": "path"}),
    ],
)
def test_a_first_guide_sets_only_what_fits_the_settings_of_now(
    policy: DiffuserPolicy, given: dict[str, Any], added: dict[str, Any]
) -> None:
    opened = opened_with(policy, given)
    opened.add_guide("keep-out")
    assert opened.settings == {**given, **added}
    assert not planned(opened).messages
    assert opened.policy.guide is not None
    opened.remove_guide(0)
    assert opened.settings == given
    opened.close()


def test_another_guide_leaves_the_settings_as_they_are(session: Session) -> None:
    session.add_guide("keep-out")
    session.choose(ranking="time_to_goal", executor=session.usual["executor"])
    session.add_guide("smoothness")
    assert session.settings == {}


def test_corners_of_a_box_move_one_by_one_or_together(session: Session) -> None:
    session.add_guide("keep-in")
    session.change_guide(0, {"low": [-2.0, -2.0], "high": [2.0, 2.0]})
    session.move_guide(0, "high", (1.0, 1.5, 0.0))
    assert session.guides[0].parameters["high"] == [1.0, 1.5]
    session.move_guide(0, None, (0.0, 0.0, 0.0))
    assert session.guides[0].parameters["low"] == [-1.5, -1.75]
    assert session.guides[0].parameters["high"] == [1.5, 1.75]


def test_a_guide_that_raises_is_named_and_planning_goes_on(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffuser_policy.guides import builtin

    def broken(*_: Any) -> Any:
        raise ZeroDivisionError("of my own making")

    session.add_guide("waypoint")
    monkeypatch.setattr(builtin.Smoothness, "__call__", broken)
    session.add_guide("smoothness")
    session.move("goal", (0.5, 1.0, 0.0))
    frame = planned(session)
    [message] = frame.messages
    assert "smoothness" in message
    assert "of my own making" in message
    assert np.allclose(frame.path[-1, :2], [0.5, 1.0], atol=1e-4)
    assert session.policy.guide is not None  # the other one
    session.remove_guide(1)
    assert not planned(session).messages


def test_a_planner_that_was_saved_with_an_idle_guide_is_opened_without_it() -> None:
    single = untrained_policy("Pendulum-v1", horizon=1)
    guide = parse_guide("smoothness:columns=observation") + parse_guide("action-effort")
    saved = dataclasses.replace(single.config, guide=guide)
    policy = DiffuserPolicy(saved, single.networks)
    session = Session(policy, make_env("Pendulum-v1"), planner="single")
    [message] = planned(session).messages
    assert message.startswith("smoothness is left out. The guide Smoothness has no eff")
    assert [part.guide for part in session.guides] == ["smoothness", "action-effort"]
    assert session.policy.guide == parse_guide("action-effort")
    session.close()


def test_each_guide_that_fails_has_a_message_until_it_is_repaired(
    session: Session,
) -> None:
    session.add_guide("keep-out")
    session.add_guide("waypoint")
    session.change_guide(0, {"columns": "nowhere"})
    session.change_guide(1, {"columns": "elsewhere"})
    first, second = planned(session).messages
    assert "keep-out" in first
    assert "waypoint" in second
    session.change_guide(0, {"columns": "position"})
    assert planned(session).messages == (second,)
    session.change_guide(1, {"columns": "position"})
    assert not planned(session).messages


def test_settings_that_contradict_each_other_are_explained(session: Session) -> None:
    session.choose(warm_start=0.3)
    frame = planned(session)
    assert "replan_interval" in frame.messages[0]
    assert len(frame.path)
    session.choose(replan_interval=20)
    assert not planned(session).messages
    assert session.policy.config.planner.warm_start == 0.3


def test_an_option_that_the_environment_lacks_is_refused(
    policy: DiffuserPolicy,
) -> None:
    env = make_env(UMAZE)
    with pytest.raises(ConfigError, match="'gaol'"):
        Session(policy, env, planner="multi2d-umaze", options={"gaol": [1, 1]})
    with pytest.raises(ConfigError, match="wall"):
        Session(policy, env, planner="multi2d-umaze", options={"goal": [0, 0]})


def test_an_unknown_guide_is_refused(session: Session) -> None:
    with pytest.raises(UnknownNameError, match="keep-out"):
        session.add_guide("keep-oat")
    assert session.guides == []


# --- what is kept ---------------------------------------------------------------------


def set_up(session: Session) -> None:
    session.choose(num_candidates=4, horizon_scale=1.25)
    session.add_guide("keep-out")
    session.change_guide(0, {"radius": 0.25}, weight=2.0)
    session.add_guide("speed-limit")


def assert_copies_plan_the_same(session: Session) -> None:
    """Run what the page copies, as Python and as a command."""
    expected = planned(session).path
    names: dict[str, Any] = {}
    exec(as_python(session.setup).partition("\nstate, ")[0], names)  # noqa: S102
    assert np.array_equal(names["plan"].path(), expected)
    words = shlex.split(as_command(session.setup))[2:]
    again = tyro.cli(PlaySettings, args=words, use_underscores=False).open()
    assert np.array_equal(planned(again).path, expected)
    again.close()


def test_the_sampler_of_the_command_line_makes_the_same_plan_again() -> None:
    """DDPM takes every denoising step, also if the planner is saved with few."""
    words = ["multi2d-umaze", "--sampler", "ddpm"]
    opened = tyro.cli(PlaySettings, args=words, use_underscores=False).open()
    assert_copies_plan_the_same(opened)
    opened.close()


@pytest.mark.parametrize(
    ("first", "seed"),
    [(0, 0), (5, 5), (0, 5)],
    ids=["without a seed", "opened with a seed", "given a seed on the page"],
)
def test_what_is_copied_makes_the_same_plan(
    policy: DiffuserPolicy, first: int, seed: int
) -> None:
    env = make_env(UMAZE)
    session = Session(policy, env, planner="multi2d-umaze", env_id=UMAZE, seed=first)
    if seed != first:
        session.set_seed(seed)
    set_up(session)
    assert_copies_plan_the_same(session)
    session.close()


def test_a_guide_without_a_weight_does_not_steer_what_is_shared(
    session: Session,
) -> None:
    set_up(session)
    session.change_guide(0, {}, weight=0.0)
    program = as_python(session.setup)
    assert "speed-limit" in program
    assert "keep-out" not in program
    session.change_guide(1, {}, weight=0.0)
    assert_copies_plan_the_same(session)


def test_a_guide_that_fails_does_not_steer_what_is_shared(session: Session) -> None:
    set_up(session)
    session.change_guide(0, {"columns": "nowhere"})
    assert len(planned(session).messages) == 1
    program = as_python(session.setup)
    assert "speed-limit" in program
    assert "keep-out" not in program
    assert_copies_plan_the_same(session)
    session.change_guide(1, {"columns": "nowhere"})
    assert len(planned(session).messages) == 2
    assert_copies_plan_the_same(session)


def test_the_command_makes_the_same_setup(session: Session) -> None:
    import tyro

    set_up(session)
    program, command, *words = shlex.split(as_command(session.setup))
    assert [program, command] == ["diffuser-policy", "play"]
    settings = tyro.cli(PlaySettings, args=words, use_underscores=False)
    again = settings.open()
    try:
        assert again.setup == session.setup
        assert np.array_equal(planned(again).path, planned(session).path)
    finally:
        again.close()


def test_a_guide_that_was_removed_stays_away_in_python() -> None:
    setup = Setup(planner="kuka-stack", env_id="a/B-v0", unguided=True)
    assert "with_guide(None)" in as_python(setup)
    assert "--guide none" in as_command(setup)


def test_a_guide_of_the_planner_stays_away_once_others_replaced_it(
    policy: DiffuserPolicy, tmp_path: Path
) -> None:
    guide = parse_guide("keep-out:center=1,0;radius=0.1")
    policy.with_guide(guide).save_pretrained(tmp_path)
    words = [str(tmp_path), "--guide", "smoothness"]
    opened = tyro.cli(PlaySettings, args=words, use_underscores=False).open()
    assert not opened.setup.unguided
    opened.remove_guide(0)
    assert opened.setup.unguided
    assert "with_guide(None)" in as_python(opened.setup)
    assert "--guide none" in as_command(opened.setup)
    assert_copies_plan_the_same(opened)
    opened.close()


def test_a_planner_without_its_guide_no_longer_ranks_by_it_in_what_is_copied(
    policy: DiffuserPolicy, tmp_path: Path
) -> None:
    guide = parse_guide("keep-out:center=0.3,1.0;radius=0.4")
    policy.with_guide(guide, ranking="guide").save_pretrained(tmp_path)
    words = [str(tmp_path), "--env", UMAZE]
    opened = tyro.cli(PlaySettings, args=words, use_underscores=False).open()
    opened.remove_guide(0)
    assert "--ranking time_to_goal" in as_command(opened.setup)
    assert_copies_plan_the_same(opened)
    opened.choose(ranking="first")
    assert "--ranking first" in as_command(opened.setup)
    opened.close()


@pytest.mark.parametrize(
    "text",
    ["keep-out:center=3,4;radius=0.6", "0.5*speed-limit:speed=2.5", "smoothness"],
)
def test_the_text_of_a_guide_is_read_back(text: str) -> None:
    from diffuser_policy.guides.registry import guide_to_json

    part = SavedPart(**guide_to_json(parse_guide(text))[0])
    assert part_text(part) == text


# --- the worker -----------------------------------------------------------------------


def test_the_newest_change_wins_while_the_planner_is_busy() -> None:
    busy, free = threading.Event(), threading.Event()
    made: list[Any] = []

    def advance() -> None:
        busy.set()
        free.wait(10)

    worker = Worker(advance, made.append)
    worker.start()
    assert busy.wait(10)
    for number in range(1000):
        worker.post("goal", made.append, number)
    worker.post("start", made.append, "start")
    free.set()
    deadline = time.monotonic() + 10
    while len(made) < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    worker.stop()
    assert made == [999, "start"]


def test_a_change_that_fails_is_told_and_work_goes_on() -> None:
    told: list[Exception] = []
    done = threading.Event()
    worker = Worker(lambda: None, told.append)
    worker.start()
    worker.post("bad", [].pop)
    worker.post("good", done.set)
    assert done.wait(10)
    worker.stop()
    assert [type(error) for error in told] == [IndexError]


def test_a_worker_ends() -> None:
    worker = Worker(lambda: 0.001, lambda _: None)
    worker.start()
    worker.stop()
    assert "planner" not in [thread.name for thread in threading.enumerate()]


# --- faults that were found -----------------------------------------------------------


def test_a_planner_that_ranks_by_its_own_guide_goes_on_doing_so(
    policy: DiffuserPolicy,
) -> None:
    """Whatever else is changed."""
    guide = parse_guide("keep-out:center=1,0;radius=0.1")
    guided = policy.with_guide(guide, ranking="guide", executor="path")
    opened = Session(guided, make_env(UMAZE), planner="mine", env_id=UMAZE)
    opened.choose(num_candidates=4)
    planner = opened.policy.config.planner
    assert (planner.ranking, planner.num_candidates) == ("guide", 4)
    opened.remove_guide(0)
    planner = opened.policy.config.planner
    assert (planner.ranking, planner.num_candidates) == ("time_to_goal", 4)
    opened.close()


def test_switches_are_shared_as_switches(session: Session) -> None:
    session.choose(satisficing=False, goal_velocity=True)
    words = shlex.split(as_command(session.setup))[2:]
    again = tyro.cli(PlaySettings, args=words, use_underscores=False).open()
    assert again.policy.config.planner == session.policy.config.planner
    again.close()


@pytest.mark.parametrize("place", ["4.5,3", {}, [], [1.0], [[1.0, 2.0], [3.0]], "abc"])
def test_places_that_are_none_are_refused_by_the_environment(
    policy: DiffuserPolicy, place: Any
) -> None:
    env = make_env(UMAZE)
    with pytest.raises(ValueError, match="goal must") as refused:
        env.reset(options={"goal": place})
    with pytest.raises(ConfigError, match=re.escape(str(refused.value))):
        Session(policy, env, env_id=UMAZE, planner="x", options={"goal": place})
    env.close()


def test_a_place_that_is_left_open_is_drawn_and_can_be_moved(
    policy: DiffuserPolicy,
) -> None:
    env = make_env(UMAZE)
    session = Session(policy, env, env_id=UMAZE, planner="x", options={"goal": None})
    session.move("goal", FREE)
    assert session.observation["desired_goal"].tolist() == list(FREE[:2])
    session.close()


def test_a_start_that_moves_is_drawn_where_it_is(policy: DiffuserPolicy) -> None:
    options = {"start": [-1.0, 1.0, 2.0, 0.0]}
    env = make_env(UMAZE)
    opened = Session(policy, env, env_id=UMAZE, planner="x", options=options)
    handles = opened.world.handles(opened.observation)
    assert [place for name, place, _ in handles if name == "start"] == [(-1, 1, 0)]
    assert opened.observation["observation"].tolist() == [-1.0, 1.0, 2.0, 0.0]
    opened.close()


def test_a_second_click_removes_no_other_guide(session: Session) -> None:
    session.add_guide("smoothness")
    session.add_guide("speed-limit")
    session.change_guide(0, {}, weight=2.0)
    session.remove_guide(0, of=2)
    session.remove_guide(0, of=2)
    assert [part.guide for part in session.guides] == ["speed-limit"]
