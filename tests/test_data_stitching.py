"""From episodes to continuous runs."""

from __future__ import annotations

import numpy as np
import pytest

from diffuser_policy.data.episodes import flatten
from diffuser_policy.errors import DatasetError
from tests.data_helpers import cut_stream, make_episode


def test_episodes_cut_from_one_stream_are_one_run() -> None:
    episodes, _ = cut_stream([5, 1, 7, 2])
    flat = flatten(episodes, num_rows=15)
    assert flat.run_starts.tolist() == [0, 15]
    stream = np.concatenate([e.observations["observation"][:-1] for e in episodes])
    np.testing.assert_array_equal(flat.fields["observation"], stream.astype(np.float32))


def test_a_reset_begins_a_run() -> None:
    first, _ = cut_stream([5, 4], seed=1)
    second, _ = cut_stream([3, 6], seed=2)
    flat = flatten([*first, *second], num_rows=18)
    assert flat.run_starts.tolist() == [0, 9, 18]


def test_the_first_goal_of_a_continued_episode_is_its_own() -> None:
    episodes, goals = cut_stream([5, 1, 7, 2])
    flat = flatten(episodes, num_rows=15)
    chased = np.repeat(goals, [5, 1, 7, 2], axis=0).astype(np.float32)
    np.testing.assert_array_equal(flat.fields["desired_goal"], chased)


def test_the_first_goal_after_a_reset_is_believed() -> None:
    first, _ = cut_stream([5], seed=1)
    second, _ = cut_stream([3], seed=2)
    second[0].observations["desired_goal"][0] = 123.0
    flat = flatten([*first, *second], num_rows=8)
    assert flat.fields["desired_goal"][5].tolist() == [123.0, 123.0]


def test_changing_goals_inside_a_continued_episode_are_kept() -> None:
    episodes, _ = cut_stream([5, 6])
    goals = episodes[1].observations["desired_goal"]
    goals[:3], goals[3:] = 1.0, 2.0
    goals[0] = 3.0
    flat = flatten(episodes, num_rows=11)
    assert flat.fields["desired_goal"][5:, 0].tolist() == [3, 1, 1, 2, 2, 2]


def test_nothing_continues_a_terminated_episode() -> None:
    states = np.random.default_rng(0).normal(size=(8, 4))
    parts = [make_episode(states[:4], terminated=True), make_episode(states[3:])]
    assert flatten(parts, num_rows=7).run_starts.tolist() == [0, 3, 7]


def test_episodes_without_steps_are_skipped() -> None:
    episodes, _ = cut_stream([4, 3])
    empty = make_episode(np.ones((1, 4)), np.ones((1, 2)))
    flat = flatten([empty, episodes[0], empty, episodes[1]], num_rows=7)
    assert flat.run_starts.tolist() == [0, 7]


def test_lengths_that_disagree_name_the_episode() -> None:
    good, _ = cut_stream([4])
    bad = make_episode(np.ones((5, 4)), np.ones((3, 2)))
    with pytest.raises(DatasetError, match=r"Episode 1 .* wrong: desired_goal"):
        flatten([*good, bad], num_rows=8)
    with pytest.raises(DatasetError, match="4 steps where 9 were announced"):
        flatten(good, num_rows=9)
    with pytest.raises(DatasetError, match="More steps than the 3"):
        flatten(good, num_rows=3)
    with pytest.raises(DatasetError, match="no steps"):
        flatten([], num_rows=0)
