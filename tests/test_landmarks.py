"""Landmarks: places and times from data alone, subgoals, and policies that use them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from diffuser_policy import DiffuserPolicy
from diffuser_policy.config import LandmarksConfig, PlannerConfig, TrainConfig
from diffuser_policy.data.windows import JoinedRows
from diffuser_policy.errors import ConfigError
from diffuser_policy.export import write_export
from diffuser_policy.guides.trajectory import Trajectory
from diffuser_policy.networks import landmarks
from diffuser_policy.networks.landmarks import Landmarks
from diffuser_policy.plotting import Scene, plan_figure
from diffuser_policy.speed.cases import network_flops, plan_flops
from diffuser_policy.testing import toy_config, toy_dataset, toy_policy
from diffuser_policy.training.trainer import Trainer, untrained
from tests.policy_helpers import observe

SPEED = 0.1  # of a corridor's unit, per env step


def walk(*corners: tuple[float, float]) -> np.ndarray:
    """Return the positions of a run along a polyline, at constant speed."""
    parts = []
    for a, b in pairwise(corners):
        steps = round(float(np.linalg.norm(np.subtract(b, a))) / SPEED)
        parts.append(np.linspace(a, b, steps, endpoint=False))
    return np.concatenate([*parts, [corners[-1]]]).astype(np.float32)


def joined(*runs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    starts = np.concatenate([[0], np.cumsum([len(run) for run in runs])])
    return np.concatenate(runs), starts


HAIRPIN = ((0.0, 0.0), (6.0, 0.0), (6.0, 0.5), (0.0, 0.5))  # the ends are 0.5 apart


@pytest.fixture(scope="module")
def hairpin() -> Landmarks:
    both = walk(*HAIRPIN), walk(*HAIRPIN[::-1])
    return Landmarks.fit(*joined(*both), 25)


def point(x: float, y: float) -> np.ndarray:
    return np.array([[x, y]], np.float32)


def nearest(marks: Landmarks, place: np.ndarray) -> int:
    """Return the number of the landmark that is nearest to a point."""
    return int(np.linalg.norm(marks.places.numpy() - place, axis=1).argmin())


def test_ways_take_as_long_as_the_runs_did(hairpin: Landmarks) -> None:
    begin, end = nearest(hairpin, point(0, 0)), nearest(hairpin, point(0, 0.5))
    assert hairpin.ways[begin, end] == pytest.approx(12.5 / SPEED, rel=0.15)
    assert hairpin.ways[end, begin] == pytest.approx(12.5 / SPEED, rel=0.15)
    assert (np.diag(hairpin.ways) == 0).all()


def test_places_were_visited(hairpin: Landmarks) -> None:
    seen = walk(*HAIRPIN)
    far = np.linalg.norm(seen[:, None] - hairpin.places.numpy(), axis=2).min(axis=0)
    assert far.max() == 0.0


def test_a_subgoal_lies_on_the_way_and_not_too_far(hairpin: Landmarks) -> None:
    start, goal = point(1.0, 0.0), point(1.0, 0.5)
    for ahead in (15, 25, 40):
        [aim], [direct] = hairpin.subgoals(start, goal, ahead)
        assert not direct
        assert aim[1] == 0.0  # on this side of the wall
        assert 0 < (aim[0] - 1.0) / SPEED <= ahead + 10  # places are not everywhere


def test_beyond_what_is_asked_for_the_next_place_is_taken(hairpin: Landmarks) -> None:
    [aim], [direct] = hairpin.subgoals(point(1.0, 0.0), point(1.0, 0.5), 0.5)
    assert not direct
    assert aim[0] > 1.0


def test_a_near_goal_is_its_own_subgoal(hairpin: Landmarks) -> None:
    goal = point(1.83, 0.01)
    aims, [direct] = hairpin.subgoals(point(1.0, 0.0), goal, 40)
    assert direct
    np.testing.assert_array_equal(aims, goal)


def test_a_way_goes_from_place_to_place_around_the_wall(hairpin: Landmarks) -> None:
    start, goal = point(1.0, 0.0), point(1.0, 0.5)
    [way] = hairpin.way(start, goal)
    along = np.where(way[:, 1] == 0, way[:, 0], 6.5 + 6.0 - way[:, 0])
    assert (np.diff(along) > 0).all()  # in order, on both sides of the wall
    assert along[0] > 1.0
    assert along[-1] == pytest.approx(12.5 - 1.0, abs=0.3)
    assert len(way) > 15
    subgoals, _ = hairpin.subgoals(start, goal, 25)
    assert (way == subgoals[0]).all(axis=1).any()  # what plans lead to is on the way
    [none] = hairpin.way(start, point(1.01, 0.0))
    assert none.shape == (0, 2)


def test_runs_that_share_a_place_are_joined_in_their_direction() -> None:
    first, second = walk((0, 0), (5, 0)), walk((5, 0), (5, 5))
    marks = Landmarks.fit(*joined(first, second), 21)
    begin, end = nearest(marks, point(0, 0)), nearest(marks, point(5, 5))
    assert marks.ways[begin, end] == pytest.approx(10 / SPEED, rel=0.15)
    assert np.isinf(marks.ways[end, begin])
    goal = point(0, 0)
    aims, [direct] = marks.subgoals(point(5, 5), goal, 20)
    assert direct  # no way: straight to the goal
    np.testing.assert_array_equal(aims, goal)
    assert len(marks.way(point(5, 5), goal)[0]) == 0


def test_a_place_where_runs_only_end_does_not_cut_off_the_way() -> None:
    """A robot that is nearest to one gets the way from the next place that has one."""
    along, spur = walk((0, 0), (9, 0)), walk((2, 0), (2, 0.8))
    marks = Landmarks.fit(*joined(along, spur), 40)
    dead = nearest(marks, point(2, 0.8))
    goal = point(9, 0)
    assert np.isinf(marks.ways[dead, nearest(marks, goal)])
    [aim], [direct] = marks.subgoals(point(2, 0.8), goal, 20)
    assert not direct
    assert 1.5 < aim[0] < 5.0
    [way] = marks.way(point(2, 0.8), goal)
    assert len(way) > 10
    # Nor does a place that runs only begin at, near the goal.
    begun = Landmarks.fit(*joined(along, walk((7, 0.8), (7, 0))), 40)
    aims, [direct] = begun.subgoals(point(0, 0), point(7, 0.8), 20)
    assert not direct
    assert aims[0, 0] < 4.0


def test_places_of_wide_data_are_read_a_few_rows_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = toy_config(landmarks=LandmarksConfig(num=20))
    whole = untrained(config, toy_dataset())[1].landmarks
    read, counts = JoinedRows.__getitem__, list[int]()

    def noted(rows: JoinedRows, some: slice) -> np.ndarray:
        found = read(rows, some)
        counts.append(len(found))
        return found

    monkeypatch.setattr(JoinedRows, "__getitem__", noted)
    monkeypatch.setattr("diffuser_policy.columns.layout.PIECE", 50 * 4 * 6)
    parts = untrained(config, toy_dataset())[1].landmarks
    assert max(counts) == 50
    assert whole is not None
    assert parts is not None
    assert torch.equal(parts.places, whole.places)
    assert torch.equal(parts.times, whole.times)


def test_more_landmarks_than_rows_do_no_harm() -> None:
    marks = Landmarks.fit(*joined(walk((0, 0), (1, 0))), 30)
    assert np.isfinite(marks.ways[nearest(marks, point(0, 0))]).any()


def known(places: Sequence[tuple[float, float]], num_linked: int) -> Landmarks:
    """Return landmarks of which the last few are a chain, 10 env steps from each other.

    Ways lead along the chain in its direction alone; no run was at the other places.
    """
    marks = Landmarks(len(places), 2)
    marks.places.copy_(torch.tensor(places))
    first = len(places) - num_linked
    for place in range(first, len(places) - 1):
        marks.times[place, place + 1] = 10.0
    return marks


@pytest.mark.parametrize(
    ("ahead", "subgoal"), [(5, 1), (10, 1), (19, 1), (20, 2), (49, 4), (50, 5)]
)
def test_the_furthest_place_that_is_not_too_far_is_the_subgoal(
    ahead: float, subgoal: int
) -> None:
    marks = known([(x, 0.0) for x in range(6)], 6)
    [aim], [direct] = marks.subgoals(point(0, 0), point(5, 0), ahead)
    assert direct == (subgoal == 5)
    np.testing.assert_array_equal(aim, [subgoal, 0])


def test_places_without_a_way_do_not_hide_those_that_have_one() -> None:
    """Any number of copies may be nearer than the two places of the only way."""
    marks = known([(0, 1)] * 6 + [(0, 0), (5, 0)], 2)
    [aim], [direct] = marks.subgoals(point(0, 0.9), point(5, 0), 5)
    assert not direct
    np.testing.assert_array_equal(aim, [5, 0])


def test_beside_one_place_nobody_leaves_for_another() -> None:
    """Even if no run leads on from that place, and others would."""
    marks = known([(0, 5), *[(x, 0.0) for x in range(-3, 4)]], 7)
    goal = point(1, 5)
    aims, [direct] = marks.subgoals(point(-1, 5), goal, 5)
    assert direct
    np.testing.assert_array_equal(aims, goal)


def test_a_place_far_off_does_not_widen_the_others() -> None:
    marks = known([(0, 0), (1, 0), (2, 0), (10, 0)], 4)
    assert marks.radius == 0.5


@pytest.mark.parametrize(("beside", "time"), [(0.4, 1 / SPEED), (0.6, 0.0)])
def test_runs_are_at_places_within_half_the_usual_distance(
    beside: float, time: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = np.array([(x, 0.0) for x in range(4)], np.float32)
    monkeypatch.setattr(landmarks, "_spread", lambda *_: places)
    marks = Landmarks.fit(*joined(walk((0, beside), (3, beside))), 4)
    assert marks.times[1, 2] == pytest.approx(time)


def test_places_lie_in_the_middle_of_a_corridor() -> None:
    x, y = np.meshgrid(np.linspace(0, 10, 101), np.linspace(-0.5, 0.5, 11))
    rows = np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float32)
    marks = Landmarks.fit(rows, np.array([0, len(rows)]), 10)
    assert marks.places[:, 1].abs().max() < 0.25


def test_a_seed_fixes_the_rows_that_are_candidates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(landmarks, "CANDIDATES", 30)
    runs = joined(walk(*HAIRPIN))
    one, again, other = (Landmarks.fit(*runs, 5, seed).places for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def grid(size: int, num_runs: int) -> tuple[np.ndarray, np.ndarray]:
    """Return runs of a random walker on a square of cells, the first from a corner."""
    rng = np.random.default_rng(0)
    moves = np.array([(1, 0), (-1, 0), (0, 1), (0, -1)])
    runs = []
    for number in range(num_runs):
        at = rng.integers(0, size, 2) if number else np.zeros(2, int)
        run = [at]
        for move in rng.integers(0, 4, 199):
            run.append(np.clip(run[-1] + moves[move], 0, size - 1))
        runs.append(np.array(run, np.float32) * SPEED)
    return joined(*runs)


def test_more_landmarks_than_positions_leave_the_ways_as_they_are() -> None:
    """The surplus ones are copies of the first row's place, which no run connects."""
    rows, starts = grid(12, 40)
    enough, many = Landmarks.fit(rows, starts, 144), Landmarks.fit(rows, starts, 300)
    assert many.places.shape == (300, 2)
    assert many.radius == pytest.approx(enough.radius)
    goal = point(1.1, 1.1)
    for start in (rows[:1], point(0.1, 0.0), point(0.3, 0.4)):
        for marks in (enough, many):
            [aim], [direct] = marks.subgoals(start, goal, 5)
            assert not direct
            assert np.abs(aim - start).sum() <= 5 * SPEED + 1e-6
        assert len(many.way(start, goal)[0]) == len(enough.way(start, goal)[0]) > 5


def test_where_ways_are_equally_long_only_one_is_shown() -> None:
    """On a square of cells, most shortest ways turn somewhere else and arrive alike."""
    rows, starts = grid(8, 20)
    marks = Landmarks.fit(rows, starts, 64)
    start, goal = point(0.0, 0.0), point(0.7, 0.7)
    [way] = marks.way(start, goal)
    cells = np.concatenate([start, way]) / SPEED
    np.testing.assert_allclose(np.abs(np.diff(cells, axis=0)).sum(axis=1), 1, atol=1e-4)
    np.testing.assert_array_equal(way[-1:], goal)
    aims, _ = marks.subgoals(start, goal, 5)
    assert (way == aims).all(axis=1).any()


# --- policies -------------------------------------------------------------------------


def with_landmarks(**settings: Any) -> DiffuserPolicy:
    config = toy_config(landmarks=LandmarksConfig(num=20))
    return toy_policy(config, **{"subgoal": 5.0, "horizon": "predicted", **settings})


def test_plans_lead_to_subgoals() -> None:
    policy = with_landmarks()
    seen = observe(3)
    seen["desired_goal"] += 2.0
    plan = policy.plan(seen)
    assert plan.aims is not None
    assert plan.aims.shape == seen["desired_goal"].shape
    ends = plan.observations[np.arange(3), plan.lengths - 1, :2]
    np.testing.assert_allclose(ends, plan.aims, atol=1e-4)
    straight = policy.with_settings(subgoal=None).plan(seen)
    assert straight.aims is not None
    np.testing.assert_array_equal(straight.aims, seen["desired_goal"])


def test_guides_and_rankings_see_the_goal_and_not_the_subgoal() -> None:
    shown: list[Tensor] = []

    def watching(trajectory: Trajectory) -> Tensor:
        assert trajectory.desired_goal is not None
        shown.append(trajectory.desired_goal[:, 0].clone())
        return trajectory.position.sum(dim=(1, 2))

    policy = with_landmarks().with_guide(watching, ranking="guide")
    seen, far = routed(policy)
    for row in np.flatnonzero(far)[:3]:
        shown.clear()
        policy.plan({key: value[row] for key, value in seen.items()})
        assert len(shown) > 1  # while it is steered, and when it is ranked
        for goal in shown:
            assert (goal.numpy() == seen["desired_goal"][row]).all()
    assert far.any()


def test_a_row_gets_the_same_aim_in_any_batch() -> None:
    policy, seen = with_landmarks(), observe(3)
    together = policy.plan(seen).aims
    assert together is not None
    for row in range(3):
        alone = policy.plan({key: value[row] for key, value in seen.items()}).aims
        assert alone is not None
        np.testing.assert_array_equal(alone[0], together[row])


def routed(policy: DiffuserPolicy) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return observations whose rows get subgoals, and which ones do."""
    rng = np.random.default_rng(0)
    flat = toy_dataset()
    rows = rng.integers(0, flat.num_rows, (2, 30))
    seen = {
        "observation": flat.fields["observation"][rows[0]].astype(np.float32),
        "achieved_goal": flat.fields["achieved_goal"][rows[0]].astype(np.float32),
        "desired_goal": flat.fields["achieved_goal"][rows[1]].astype(np.float32),
    }
    aims = policy.plan(seen).aims
    assert aims is not None
    return seen, (aims != seen["desired_goal"]).any(axis=1)


def test_routes_end_at_the_goal_and_contain_the_aims() -> None:
    policy = with_landmarks()
    seen, far = routed(policy)
    routes, aims = policy.routes(seen), policy.plan(seen).aims
    assert aims is not None
    for row, route in enumerate(routes):
        np.testing.assert_array_equal(route[-1], seen["desired_goal"][row])
        assert np.isclose(route, aims[row], atol=1e-5).all(axis=1).any()
        assert far[row] or len(route) == 1  # where the plan leads to the goal itself
    assert max(len(routes[row]) for row in np.flatnonzero(far)) > 2
    straight = policy.with_settings(subgoal=None).routes(seen)
    assert [len(route) for route in straight] == [1] * 30
    straight[0][:] = 9.0
    assert (seen["desired_goal"][0] != 9.0).all()
    [alone] = policy.routes({key: value[3] for key, value in seen.items()})
    np.testing.assert_array_equal(alone, routes[3])


def test_operations_are_counted_of_the_plans_to_subgoals() -> None:
    policy = with_landmarks(horizon_scale=20.0)
    seen, _ = routed(policy)
    lengths = policy.plan(seen).lengths
    straight = policy.with_settings(subgoal=None).plan(seen).lengths
    assert (lengths != straight).any()
    rows = [{key: value[row] for key, value in seen.items()} for row in range(30)]
    planner = policy.planner
    denoiser, columns = planner.sampler.denoiser, planner.layout.transition_dim
    calls = planner.sampler.num_steps * planner.num_candidates
    total = sum(network_flops(denoiser, columns, n) for n in lengths.tolist())
    assert plan_flops(policy, rows) == calls * total


def test_a_picture_has_the_way_over_landmarks() -> None:
    policy = with_landmarks()
    seen, _ = routed(policy)
    routes = policy.routes(seen)
    row = int(np.argmax([len(route) for route in routes]))
    one = {key: value[row] for key, value in seen.items()}
    scene = Scene.of_policy(policy, object(), one)
    assert scene.route is not None
    np.testing.assert_array_equal(scene.route, routes[row][:, :2])
    figure = plan_figure(policy.plan(one), scene)
    assert "landmark" in figure.axes[0].get_legend_handles_labels()[1]
    near = Scene.of_policy(policy.with_settings(subgoal=None), object(), one)
    assert near.route is None


def test_a_plan_to_a_subgoal_is_replaced_in_time_and_one_to_the_goal_is_not() -> None:
    policy = with_landmarks(subgoal=10.0, replan_interval=3)
    seen, on_way = routed(policy)
    assert on_way.any()
    assert not on_way.all()
    _, state = policy.predict(seen)
    np.testing.assert_array_equal((state.aims != state.goals).any(axis=1), on_way)
    for _ in range(3):
        _, state = policy.predict(seen, state)
    assert (state.ages[on_way] == 0).all()
    assert (state.num_plans[on_way] == 2).all()
    np.testing.assert_array_equal(state.goals, seen["desired_goal"])


def test_nobody_stays_at_a_subgoal() -> None:
    policy = with_landmarks(subgoal=10.0)
    seen, on_way = routed(policy)
    _, state = policy.predict(seen)
    over = state._replace(
        progress=(state.lengths * policy.planner.stride).astype(float)
    )
    _, after = policy.predict(seen, over)
    np.testing.assert_array_equal(after.num_plans - state.num_plans == 1, on_way)


def test_what_is_left_of_a_plan_to_a_subgoal_is_no_candidate() -> None:
    settings = {"subgoal": 10.0, "replan_interval": 3, "ranking": "time_to_goal"}
    policy = with_landmarks(**settings, steadiness=1e9)
    seen, on_way = routed(policy)
    _, state = policy.predict(seen)
    for _ in range(3):
        _, state = policy.predict(seen, state)
    ends = state.observations[np.arange(len(on_way)), state.lengths - 1, :2]
    np.testing.assert_allclose(ends[on_way], state.aims[on_way], atol=1e-4)


@pytest.mark.parametrize("settings", [{"steadiness": 1e9}, {"warm_start": 0.5}])
def test_what_is_left_of_a_plan_to_the_goal_leads_to_no_subgoal(
    settings: dict[str, float],
) -> None:
    policy = with_landmarks(subgoal=10.0, replan_interval=3)
    seen, on_way = routed(policy)
    _, state = policy.with_settings(subgoal=None).predict(seen)
    guided = policy.with_guide(lambda trajectory: trajectory.position.sum(dim=(1, 2)))
    after = [
        each.predict(seen, state)[1]
        for each in (guided, guided.with_settings(**settings))
    ]
    same = np.isclose(after[0].observations, after[1].observations, atol=1e-4)
    same = same.all(axis=(1, 2))
    assert same[on_way].all()
    assert not same[~on_way].any()


def test_landmarks_are_saved_with_the_planner(tmp_path: Path) -> None:
    policy, seen = with_landmarks(), observe(2)
    policy.save_pretrained(tmp_path)
    again = DiffuserPolicy.from_pretrained(tmp_path)
    assert again.config.landmarks == LandmarksConfig(num=20)
    np.testing.assert_array_equal(again.plan(seen).aims, policy.plan(seen).aims)


def test_landmarks_that_are_loaded_later_have_ways_of_their_own() -> None:
    policy, seen = with_landmarks(), observe(2)
    other = with_landmarks(flat=toy_dataset(seed=5))
    policy.routes(seen)  # finds ways, and keeps them
    policy.networks.load_state_dict(other.networks.state_dict())
    mine, theirs = policy.networks.landmarks, other.networks.landmarks
    assert mine is not None
    assert theirs is not None
    np.testing.assert_array_equal(mine.ways, theirs.ways)
    for found, expected in zip(policy.routes(seen), other.routes(seen), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_training_finds_them_where_they_are_asked_for() -> None:
    config = TrainConfig.for_dataset(toy_dataset(), landmarks=True)
    assert config.landmarks == LandmarksConfig()
    subgoal = config.planner.subgoal
    assert subgoal == pytest.approx(config.window.horizon / 5)
    assert config.execution.replan_interval == round(subgoal or 0)
    assert TrainConfig.for_dataset(toy_dataset()).landmarks is None


def test_a_training_saves_them_and_resumes(tmp_path: Path) -> None:
    config = toy_config(landmarks=LandmarksConfig(num=10))
    flat = toy_dataset()
    Trainer(config, flat, tmp_path, device="cpu").run(progress=False)
    again = Trainer(config, flat, tmp_path, device="cpu")
    again.run(progress=False)
    saved = DiffuserPolicy.from_pretrained(tmp_path).networks.landmarks
    assert saved is not None
    assert saved.places.shape == (10, 2)
    assert (saved.times > 0).any()


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="subgoal needs landmarks"):
        toy_policy(subgoal=5.0, horizon="predicted")
    advice = "horizon='predicted'.* Use horizon='predicted', or subgoal=None"
    for horizon in ("shrinking", "fixed"):
        with pytest.raises(ConfigError, match=advice):
            with_landmarks(horizon=horizon)
    with pytest.raises(ConfigError, match="stop at every subgoal"):
        with_landmarks(goal_velocity=True)
    config = toy_config(
        landmarks=LandmarksConfig(num=5), time_to_goal=None, planner=PlannerConfig()
    )
    with pytest.raises(ConfigError, match="Train with --time-to-goal, or"):
        toy_policy(config)
    window = dataclasses.replace(config.window, hindsight_goal="none")
    config = dataclasses.replace(config, window=window)
    with pytest.raises(ConfigError, match="Landmarks need goals"):
        toy_policy(config, flat=toy_dataset(goals=False))
    policy = with_landmarks()
    with pytest.raises(ConfigError, match="subgoal=None"):
        write_export(tmp_path, policy.planner, policy.featurizer)
