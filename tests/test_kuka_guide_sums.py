"""Guides of block stacking: sums, names, and mistakes."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from diffuser_envs.kuka.guides import (
    AvoidBlocks,
    Contact,
    Place,
    StackMatch,
    StackTask,
)
from diffuser_policy.columns.layout import TrajectoryLayout
from diffuser_policy.errors import GuideError, MissingColumnsError
from diffuser_policy.guides.registry import guide_from_json, guide_to_json, make_guide
from diffuser_policy.guides.text import parse_guide
from tests.kuka_guide_helpers import (
    Logits,
    matching,
    moving,
    planned,
    shown,
)

# --- composition --------------------------------------------------------------------


def test_a_task_is_the_sum_of_its_parts() -> None:
    task = StackTask(match=0.5, place=2.0, contact=1.0, avoid=3.0, rest=0.0)
    networks = SimpleNamespace(classifier=Logits())
    parts = 0.5 * matching() + 2.0 * Place() + Contact() + 3.0 * AvoidBlocks()
    plan = shown(moving(0, (0.5, 0.3, 0.05)))
    torch.testing.assert_close(task.bind(networks)(plan), parts(plan))
    (weight, doubled), *none = (2.0 * StackTask()).parts()
    assert (weight, doubled, none) == (2.0, StackTask(), [])  # itself, when saved


def test_a_task_without_a_goal_asks_for_nothing() -> None:
    """Saved, weighted or bound: one policy does the unconditional task as well."""
    plan = replace(shown(moving(0, (0.5, 0.3, 0.05))), desired_goal=None)
    for guide in (StackTask(), 2.0 * StackTask(), StackTask().bind(SimpleNamespace())):
        assert guide(plan).tolist() == [0.0] * len(plan)
    with pytest.raises(GuideError, match="from the goal"):
        (Place() + Contact())(plan)


def test_a_task_without_parts_asks_for_nothing() -> None:
    plan = shown(moving(0, (0.5, 0.3, 0.05)))
    assert StackTask(place=0.0, contact=0.0, rest=0.0)(plan).tolist() == [0.0]


def test_guides_are_saved_and_given_by_name() -> None:
    guide = (
        StackMatch(top=1, bottom=0) + 0.5 * Contact(window=(8.0, 40.0)) + StackTask()
    )
    assert guide_from_json(guide_to_json(guide)).parts() == guide.parts()
    assert parse_guide("stack-match:top=1;bottom=0") == StackMatch(top=1, bottom=0)
    assert parse_guide("place:block=1;position=0.5,0.2,0.03") == Place(
        block=1, position=(0.5, 0.2, 0.03)
    )
    assert make_guide("contact", tower=(2, 0)) == Contact(tower=(2, 0))
    assert parse_guide("avoid-blocks:clearance=0.03") == AvoidBlocks(clearance=0.03)


# --- errors -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: StackMatch(top=1), "or neither"),
        (lambda: StackMatch(top=1, bottom=1), "two different blocks"),
        (lambda: StackMatch(top=-1, bottom=0), "counts blocks from 0"),
        (lambda: StackMatch(softness=0.0), "StackMatch.softness"),
        (lambda: Contact(block=-2), "counts blocks from 0"),
        (lambda: Contact(window=(5.0, 1.0)), "Contact.window"),
        (lambda: Contact(window=(-5.0, 1.0)), "Contact.window"),
        (lambda: Place(block=1), "a block and its position, or neither"),
        (lambda: Place(position=(0.5, 0.2, 0.03)), "or neither"),
        (lambda: Place(block=1, position=(0.5, 0.2)), "three coordinates"),  # type: ignore[arg-type]
        (lambda: AvoidBlocks(clearance=-0.1), "AvoidBlocks.clearance"),
        (lambda: Contact(block=1.5), "whole numbers"),  # type: ignore[arg-type]
        (lambda: Contact(tower=(0, 1, 0)), "Contact.tower names a block twice"),
        (lambda: Place(tower=(2,)), "two or more blocks"),
        (lambda: StackTask(tower=(1, 1)), "twice"),
        (lambda: StackTask(contact=math.nan), "StackTask.contact must be finite"),
    ],
)
def test_parameters_that_cannot_be_meant_are_refused(make: Any, words: str) -> None:
    with pytest.raises(GuideError, match=words):
        make()


def test_blocks_that_there_are_not_are_refused() -> None:
    for guide in (Contact(block=4), Place(block=4, position=(0.5, 0.0, 0.03))):
        with pytest.raises(GuideError, match=r"blocks 0\.\.3; got block 4"):
            guide(shown(planned()))
    with pytest.raises(GuideError, match=r"Contact: A tower names"):
        Contact(tower=(0, 7))(shown(planned()))


def test_without_a_goal_blocks_have_to_be_named() -> None:
    with pytest.raises(
        GuideError, match=r"Place takes its block from the goal.*tower="
    ):
        Place()(shown(planned(), None))
    value = Place(tower=(2, 0))(shown(planned(), None))
    assert value.item() < 0.0


def test_planners_of_something_else_are_told_what_is_missing() -> None:
    plain = TrajectoryLayout(
        action_dim=0, observation_dim=19, aliases={"tool": (0, 1, 2)}
    )
    for guide in (Contact(), Place(), AvoidBlocks(), matching()):
        with pytest.raises(MissingColumnsError, match="block_0"):
            guide(shown(planned(), layout=plain))
