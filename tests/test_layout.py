"""TrajectoryLayout: the one place where columns have numbers."""

from __future__ import annotations

import dataclasses
import json

import pytest

from diffuser_policy.columns.layout import TrajectoryLayout
from diffuser_policy.errors import ConfigError, UnknownNameError
from diffuser_policy.settings import from_json

LAYOUT = TrajectoryLayout(
    action_dim=2,
    observation_dim=4,
    aliases={"position": (0, 1), "velocity": (2, 3), "goal": (1, 0)},
)


def test_actions_come_first() -> None:
    assert LAYOUT.transition_dim == 6
    assert list(range(6))[LAYOUT.actions] == [0, 1]
    assert list(range(6))[LAYOUT.observations] == [2, 3, 4, 5]
    assert LAYOUT.columns("action") == (0, 1)
    assert LAYOUT.columns("observation") == (2, 3, 4, 5)


def test_aliases_point_into_the_observation() -> None:
    assert LAYOUT.columns("velocity") == (4, 5)
    assert LAYOUT.observation_columns("velocity") == (2, 3)
    assert LAYOUT.observation_columns("observation") == (0, 1, 2, 3)


def test_an_alias_keeps_its_order() -> None:
    assert LAYOUT.columns("goal") == (3, 2)


def test_without_actions_the_observation_starts_at_zero() -> None:
    layout = dataclasses.replace(LAYOUT, action_dim=0)
    assert layout.columns("action") == ()
    assert layout.columns("position") == (0, 1)
    assert layout.transition_dim == 4


def test_only_the_alias_goal_makes_a_layout_goal_conditioned() -> None:
    assert LAYOUT.goal_conditioned
    assert not TrajectoryLayout(action_dim=0, observation_dim=2).goal_conditioned


def test_json_round_trip() -> None:
    data = json.loads(json.dumps(LAYOUT.to_json()))
    assert from_json(TrajectoryLayout, data) == LAYOUT


def test_objects_are_kept_and_absent_where_there_are_none() -> None:
    layout = dataclasses.replace(LAYOUT, objects=((0, 2), (1, 3)))
    data = json.loads(json.dumps(layout.to_json()))
    assert from_json(TrajectoryLayout, data) == layout != LAYOUT
    assert "objects" not in LAYOUT.to_json()  # as older versions write and read it
    assert LAYOUT.objects == ()


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        (((0, 1), (2,)), "the same number of columns"),
        (((), ()), "the same number of columns"),
        (((0,), (4,)), "indices in 0..3"),
        (((0,), (-1,)), "indices in 0..3"),
        (((0, 1), (1, 2)), "one object at most"),
        (((0, 0),), "one object at most"),
    ],
)
def test_objects_that_cannot_be_exchanged_are_refused(
    objects: tuple[tuple[int, ...], ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(LAYOUT, objects=objects)


def test_aliases_are_copied() -> None:
    columns = [0, 1]
    layout = TrajectoryLayout(
        action_dim=0,
        observation_dim=2,
        aliases={"position": columns},  # type: ignore[dict-item]
    )
    columns.append(5)
    assert layout.columns("position") == (0, 1)


def test_an_unknown_column_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'velocity'"):
        LAYOUT.columns("velocty")
    with pytest.raises(UnknownNameError, match="'action'"):
        LAYOUT.observation_columns("action")


@pytest.mark.parametrize(
    ("sizes", "aliases", "message"),
    [
        ((-1, 2), {}, "action_dim >= 0"),
        ((0, 0), {}, "observation_dim >= 1"),
        ((0, 2), {"goal": (2,)}, "indices in 0..1"),
        ((0, 2), {"goal": (-1,)}, "indices in 0..1"),
        ((0, 2), {"goal": ()}, "indices in 0..1"),
        ((0, 2), {"action": (0,)}, "cannot be an alias"),
    ],
)
def test_impossible_layouts_are_refused(
    sizes: tuple[int, int], aliases: dict[str, tuple[int, ...]], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        TrajectoryLayout(action_dim=sizes[0], observation_dim=sizes[1], aliases=aliases)
