"""Satisficing: one candidate where that is good enough, all of them elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from diffuser_policy.diffusion.conditions import Conditions
from diffuser_policy.errors import ConfigError
from diffuser_policy.guides.guide import as_guide
from diffuser_policy.guides.trajectory import Trajectory
from diffuser_policy.planning.plan import Following, Plan
from diffuser_policy.planning.ranking import (
    CriticRanking,
    FeasibilityRanking,
    FirstRanking,
    GuideRanking,
    Ranking,
    SmoothnessRanking,
    SumRanking,
    TimeToGoalRanking,
)
from diffuser_policy.testing import toy_policy
from tests.planner_helpers import (
    GOALS,
    START,
    Distance,
    WhiteNoise,
    generators,
    make_planner,
)
from tests.policy_helpers import observe


class Rightmost(Ranking):
    """Values the first free coordinate of a candidate; above zero is good enough."""

    def __call__(self, trajectory: Trajectory, num_candidates: int) -> Tensor:
        values: Tensor = trajectory.normalized[:, 1, 2]
        return values.reshape(-1, num_candidates)

    def good_enough(self, stride: int) -> float:  # noqa: ARG002
        return 0.0


def plan(rows: Any = slice(None), **settings: Any) -> Plan:
    """Return plans with seeds 0 to 2 of some of the three rows, of three lengths."""
    chosen: dict[str, Any] = {
        "num_candidates": 4,
        "ranking": Rightmost(),
        "satisficing": True,
        "horizon": {"choice": "predicted"},
    }
    call = {
        name: settings.pop(name)
        for name in ("failed", "conditions", "keep_chain", "previous")
        if name in settings
    }
    planner = make_planner(**{**chosen, **settings})
    sources = generators(3)[rows]
    return planner.plan(START[rows], GOALS[rows], sources, **call)


def first_values() -> np.ndarray:
    """Return what the first candidate of each row is worth."""
    values: np.ndarray = plan(num_candidates=1).values[:, 0]
    return values


def test_only_rows_whose_first_candidate_falls_short_get_more() -> None:
    good = first_values() >= 0
    assert sorted({*good.tolist()}) == [False, True]  # there are both
    found = plan()
    assert found.num_candidates.tolist() == np.where(good, 1, 4).tolist()
    np.testing.assert_array_equal(found.values[good, 0], first_values()[good])
    assert (found.chosen[good] == 0).all()
    np.testing.assert_array_equal(found.chosen, found.values.argmax(axis=1))
    every = np.arange(3)
    np.testing.assert_array_equal(
        found.observations, found.candidates[every, found.chosen]
    )


def test_beyond_its_candidates_a_row_repeats_the_first() -> None:
    found = plan()
    for row, count in enumerate(found.num_candidates):
        assert np.isfinite(found.values[row, :count]).all()
        assert (found.values[row, count:] == -np.inf).all()
        beyond = found.candidates[row, count:]
        assert (beyond == found.candidates[row, :1]).all()
        length = found.lengths[row]
        assert (found.observations[row, length:] == found.path(row)[-1]).all()
        assert (found.actions[row, length:] == 0).all()


def test_a_row_gets_as_many_whoever_shares_its_batch() -> None:
    together = plan()
    for row in range(3):
        alone = plan(slice(row, row + 1))
        count = together.num_candidates[row]
        assert alone.num_candidates.tolist() == [count]
        np.testing.assert_array_equal(alone.path(), together.path(row))
        np.testing.assert_array_equal(alone.values[0], together.values[row, :count])


def test_a_row_that_strayed_gets_all_in_any_case() -> None:
    good, long = first_values() >= 0, 99
    strayed = plan(failed=np.where(good, long, 0))
    assert strayed.num_candidates.tolist() == [4, 4, 4]
    others = plan(failed=np.where(good, 0, long))
    assert others.num_candidates.tolist() == plan().num_candidates.tolist()


@pytest.mark.parametrize(("place", "count"), [(20.0, 2), (0.0, 5)])
def test_a_row_is_content_with_what_is_left_of_its_plan_or_is_not(
    place: float, count: int
) -> None:
    """It is chosen in any case; above 5, it is good enough."""
    previous = Following(
        observations=np.full((3, 16, 4), place),
        actions=np.zeros((3, 16, 2)),
        lengths=np.full(3, 16),
        progress=np.zeros(3),
        stride=3,
    )
    found = plan(previous=previous, steadiness=1e6)
    assert found.num_candidates.tolist() == [count] * 3
    assert found.chosen.tolist() == [count - 1] * 3


def test_without_it_all_candidates_come_from_one_draw() -> None:
    sampler = WhiteNoise()
    found = plan(slice(0, 1), sampler=sampler, satisficing=False)
    assert sampler.batches == [(1, found.lengths[0])]
    noise = torch.randn(4, found.lengths[0], 6, generator=generators(1)[0])
    np.testing.assert_array_equal(found.values[0], noise[:, 1, 2])


def test_a_ranking_that_only_compares_gets_all() -> None:
    for ranking in (FirstRanking(), SmoothnessRanking()):
        assert plan(ranking=ranking).num_candidates.tolist() == [4, 4, 4]


def test_the_chain_shows_what_was_sampled() -> None:
    found = plan(horizon={"choice": "fixed"}, keep_chain=True)
    assert found.chain is not None
    assert len({*found.num_candidates.tolist()}) == 2
    np.testing.assert_allclose(found.chain[-1], found.candidates, rtol=1e-5)


def test_conditions_of_each_row_stay_with_it() -> None:
    pins = [[2.0, 4.0], [3.0, 5.0], [4.0, 6.0]]
    conditions = Conditions().pin(2, "position", torch.tensor(pins))
    found = plan(conditions=conditions)
    np.testing.assert_allclose(found.observations[:, 2, :2], pins, rtol=1e-5)


def test_aims_of_each_row_stay_with_it() -> None:
    """The first row falls short; the others are done after one candidate."""
    pins = [[0.0, 5.0], [10.0, 5.0], [10.0, 5.0]]
    conditions = Conditions().pin(1, "position", torch.tensor(pins))
    found = plan(horizon={"choice": "fixed"}, conditions=conditions)
    assert found.num_candidates.tolist() == [4, 1, 1]
    np.testing.assert_array_equal(found.aims, GOALS)


def test_what_rankings_find_good_enough() -> None:
    """Half as much time again, over `reach` planning steps; or what featurizers say."""

    class Judge:
        feasible = -0.5

        def feasibility(self, candidates: np.ndarray, stride: int) -> np.ndarray:
            return np.zeros(len(candidates)) * stride

    in_time = TimeToGoalRanking(Distance(), reach=3)
    guide = as_guide(lambda t: t.normalized.sum(dim=(1, 2)))
    judged = FeasibilityRanking(Judge())
    assert in_time.good_enough(5) == -7.5
    assert judged.good_enough(5) == -0.5
    assert SumRanking(guide, judged, 2.0).good_enough(5) == -0.5
    unsure = type("Unsure", (), {"feasibility": Judge.feasibility})()
    assert FeasibilityRanking(unsure).good_enough(5) is None
    for ranking in (GuideRanking(guide), CriticRanking(torch.nn.Module())):  # type: ignore[arg-type]
        assert ranking.good_enough(5) is None


class Above(FirstRanking):
    """Finds every candidate as feasible as the given number; zero is enough."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __call__(self, trajectory: Trajectory, num_candidates: int) -> Tensor:
        return super().__call__(trajectory, num_candidates) + self.value

    def good_enough(self, stride: int) -> float:  # noqa: ARG002
        return 0.0


@pytest.mark.parametrize(
    ("feasibility", "worth", "count"),
    [(-1.0, 9.0, 4), (1.0, 9.0, 1), (1.0, -0.5, 1), (1.0, -9.0, 4)],
)
def test_a_guide_cannot_make_up_for_what_is_not_feasible(
    feasibility: float, worth: float, count: int
) -> None:
    guide = as_guide(lambda t: 0 * t.normalized.sum(dim=(1, 2)) + worth)
    found = plan(ranking=SumRanking(guide, Above(feasibility), 1.0))
    assert found.num_candidates.tolist() == [count] * 3
    assert found.values[:, 0] == pytest.approx(feasibility + worth)


def test_a_policy_is_careful_where_it_has_strayed() -> None:
    """But not on its way to a subgoal, which is another one by now."""
    policy = toy_policy(ranking="time_to_goal", num_candidates=3, replan_deviation=0.5)
    policy.planner.ranking.good_enough = lambda stride: -np.inf  # type: ignore[method-assign]  # noqa: ARG005
    made: list[Plan] = []
    usual = policy.planner.plan
    policy.planner.plan = lambda *a, **k: made.append(usual(*a, **k)) or made[-1]  # type: ignore[func-returns-value,method-assign]
    seen = observe(3)
    _, state = policy.predict(seen)
    on_plan = state.observations[:, 1].copy()
    seen["observation"] = on_plan[:, : seen["observation"].shape[1]]
    seen["observation"][1:, :2] += 3
    aims = state.goals - [[0.0], [0.0], [0.1]]
    policy.predict(seen, state._replace(aims=aims.astype(state.aims.dtype)))
    assert [each.num_candidates.tolist() for each in made] == [[1, 1, 1], [3, 1]]


def test_the_setting_needs_a_ranking_that_can_tell() -> None:
    policy = toy_policy()
    assert not policy.with_settings(satisficing=False).planner.satisficing
    assert policy.with_settings(
        satisficing=True, ranking="time_to_goal"
    ).planner.satisficing
    with pytest.raises(ConfigError, match="satisficing has no effect with ranking"):
        policy.with_settings(satisficing=True, ranking="smoothness")
