"""Guides for block stacking, alone, added, by name, and given what they refuse."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from diffuser_envs.kuka.arrangements import scattered
from diffuser_envs.kuka.guides import (
    AvoidBlocks,
    Contact,
    Place,
    StackMatch,
    StackTask,
)
from diffuser_envs.kuka.stages import next_stages
from diffuser_envs.kuka.tasks import tower_goal
from diffuser_policy.columns.layout import TrajectoryLayout
from diffuser_policy.columns.normalizers import IdentityNormalizer
from diffuser_policy.errors import GuideError, MissingColumnsError
from diffuser_policy.guides.guide import Guide, value_and_gradient, value_of
from diffuser_policy.guides.registry import (
    guide_from_json,
    guide_to_json,
    make_guide,
    parse_guide,
)
from diffuser_policy.guides.trajectory import CLEAN, Trajectory
from tests.kuka_guide_helpers import (
    FEATURES,
    LAYOUT,
    START,
    TOWER,
    Logits,
    matching,
    moving,
    planned,
    shown,
)

# --- which block --------------------------------------------------------------------


@pytest.mark.parametrize(
    "guide", [matching(), Contact(), Place(), StackTask(), Place(tower=(2, 0, 3, 1))]
)
def test_the_stage_of_the_episode_names_the_block(guide: Guide) -> None:
    """Towards the goal 2, 0, 3, 1: block 0 on block 2, and nothing else."""
    right = value_of(guide, shown(moving(0, (0.5, 0.2, 0.09)))).item()
    other_block = value_of(guide, shown(moving(1, (0.5, 0.2, 0.09)))).item()
    assert right > other_block
    if not isinstance(guide, Contact):
        elsewhere = value_of(guide, shown(moving(0, (0.5, 0.5, 0.09)))).item()
        assert right > elsewhere
        assert right > value_of(guide, shown(planned())).item()


def test_every_row_has_a_stage_of_its_own() -> None:
    goals = np.stack([TOWER, tower_goal((0, 1, 2, 3), 4), START[[1, 0, 2, 3]].ravel()])
    plans = torch.cat([planned()] * 3)
    gradient = value_and_gradient(Place(), plans, lambda x: shown_rows(x, goals))[1]
    moved = [
        {
            b
            for b in range(4)
            if gradient[row, -1, list(FEATURES.columns[f"block_{b}"])].any()
        }
        for row in range(3)
    ]
    stages = next_stages(np.stack([START] * 3), np.zeros((3, 4)), goals)
    assert moved == [{0}, {1}, {int(stages.block[2])}]
    target = plans[2, -1, list(FEATURES.columns[f"block_{stages.block[2]}"])]
    climbed = plans + gradient
    reached = climbed[2, -1, list(FEATURES.columns[f"block_{stages.block[2]}"])]
    np.testing.assert_allclose(reached, stages.target[2], atol=1e-6)
    assert not torch.equal(reached, target)


def shown_rows(plans: Tensor, goals: np.ndarray) -> Trajectory:
    return Trajectory(
        normalized=plans,
        layout=LAYOUT,
        normalizer=IdentityNormalizer.blank(19).double(),
        desired_goal=torch.from_numpy(goals).double()[:, None],
    )


def test_where_all_is_done_nothing_is_asked_for_but_to_let_go() -> None:
    finished = START.copy()
    for layer, block in enumerate((2, 0, 3, 1)):
        finished[block] = (0.5, 0.2, 0.03 + 0.06 * layer)
    plan = planned()
    for block in range(4):
        plan[..., list(FEATURES.columns[f"block_{block}"])] = torch.tensor(
            finished[block]
        )
    for guide in (matching(), Place(), Contact()):
        assert value_of(guide, shown(plan)).item() == 0.0
    plan[0, 5, FEATURES.columns["flag_1"][0]] = 1.0
    assert Contact()(shown(plan)).item() == -0.5
    assert Place()(shown(plan)).item() == 0.0


def test_a_block_in_hand_stays_the_one_that_is_asked_for() -> None:
    plan = moving(1, (0.5, 0.4, 0.3), flags=(0, 50))
    assert Contact()(shown(plan)) > Contact()(shown(moving(0, (0.5, 0.2, 0.09))[:, 3:]))
    assert Contact()(shown(plan)).item() == 0.0


# --- contact ------------------------------------------------------------------------


def test_contact_at_some_time_is_enough_unless_throughout_is_asked_for() -> None:
    plan = shown(moving(0, (0.5, 0.2, 0.09)))  # held from env step 24 to 44
    assert Contact(block=0)(plan).item() == pytest.approx(0.0, abs=1e-3)
    held = Contact(block=0, window=(24.0, 44.0), throughout=True)
    assert held(plan).item() == 0.0
    longer = Contact(block=0, window=(0.0, 63.0), throughout=True)
    assert longer(plan).item() == -0.5 * (16 - 6)  # steps 0..15, held in 6 of them
    assert Contact(block=0, window=(0.0, 20.0))(plan).item() == pytest.approx(-0.5)


def test_contact_of_others_counts_in_the_window_only() -> None:
    plan = shown(moving(0, (0.5, 0.2, 0.09)))
    taking_1 = Contact(block=1)(plan).item()
    assert taking_1 == pytest.approx(-0.5 * (6 + 1))
    assert Contact(block=1, window=(48.0, 64.0))(plan).item() == pytest.approx(-0.5)
    assert Contact(block=1, window=(25.0, 27.0))(plan).item() == 0.0  # between steps


def test_climbing_makes_a_contact_where_it_is_likeliest() -> None:
    plan = moving(0, (0.5, 0.2, 0.09))
    column = FEATURES.columns["flag_0"][0]
    plan[..., column] *= 0.6
    gradient = value_and_gradient(Contact(block=0), plan, shown)[1]
    assert gradient[0, 6:12, column].min() > 0.02
    assert gradient[0, :6, column].abs().max() < 0.02


# --- place --------------------------------------------------------------------------


def test_a_step_of_scale_one_brings_the_end_to_the_position() -> None:
    guide = Place(block=3, position=(0.4, 0.1, 0.15), window=20.0)
    plan = planned()
    climbed = plan + value_and_gradient(guide, plan, shown)[1]
    path = climbed[0, :, list(FEATURES.columns["block_3"])]
    np.testing.assert_allclose(path[-6:], [[0.4, 0.1, 0.15]] * 6)
    assert torch.equal(path[:-6], plan[0, :-6, list(FEATURES.columns["block_3"])])
    assert guide(shown(climbed)).item() == pytest.approx(0.0, abs=1e-12)
    assert [mark.low for mark in guide.marks()] == [(0.4, 0.1, 0.15)]
    assert Place().marks() == []


def test_a_block_and_the_tool_are_where_it_is_to_be_from_the_release_on() -> None:
    """The plan carries block 0 past its place: off from step 11, the last held."""
    plan = moving(0, (0.5, 0.3, 0.09))
    guide = Place(block=0, position=(0.5, 0.2, 0.09), window=0.0)
    climbed = plan + value_and_gradient(guide, plan, shown)[1]
    path = climbed[0, :, list(FEATURES.columns["block_0"])]
    np.testing.assert_allclose(path[11:], [[0.5, 0.2, 0.09]] * 22)
    np.testing.assert_allclose(climbed[0, 11:13, :3], [[0.5, 0.2, 0.12]] * 2)
    assert torch.equal(climbed[0, :11], plan[0, :11])
    assert torch.equal(climbed[0, 13:, :3], plan[0, 13:, :3])


def test_a_later_release_is_another_moves() -> None:
    plan = moving(0, (0.5, 0.2, 0.09))
    plan[0, 20:24, FEATURES.columns["flag_0"][0]] = 1.0  # taken a second time
    plan[0, 20:, list(FEATURES.columns["block_0"])[1]] += 0.1
    guide = Place(block=0, position=(0.5, 0.2, 0.09))
    gradient = value_and_gradient(guide, plan, shown)[1][0, :, :3]
    assert torch.nonzero(gradient.abs().sum(dim=1))[:, 0].tolist() == [11, 12]


# --- avoidance ----------------------------------------------------------------------


def towards(tool: Any, block: Any = None) -> Trajectory:
    plan = planned(2)
    plan[..., :3] = torch.as_tensor(tool)
    if block is not None:
        plan[..., list(FEATURES.columns["block_0"])] = torch.tensor(block).double()
        plan[..., FEATURES.columns["flag_0"][0]] = 1.0
    return shown(plan)


@pytest.mark.parametrize(
    ("tool", "free"),
    [
        ((0.5, 0.2, 0.06), True),  # on top of block 2
        ((0.5, 0.2, 0.2), True),
        ((0.5, 0.24, 0.07), False),  # too low, across its top
        ((0.5, 0.24, 0.09), True),
        ((0.5, 0.26, 0.03), False),  # too near its side
        ((0.5, 0.28, 0.03), True),
    ],
)
def test_the_tool_comes_down_on_blocks_and_keeps_off_their_sides(
    tool: tuple[float, float, float], free: bool
) -> None:
    value = AvoidBlocks(clearance=0.02)(towards(tool)).item()
    assert (value > -1e-9) == free


@pytest.mark.parametrize(
    ("block", "free"),
    [
        ((0.5, 0.2, 0.09), True),  # set down on block 2
        ((0.5, 0.2, 0.05), False),  # in it
        ((0.5, 0.28, 0.10), False),  # too low, across it
        ((0.5, 0.28, 0.12), True),
        ((0.5, 0.31, 0.03), False),
        ((0.5, 0.33, 0.03), True),
    ],
)
def test_a_carried_block_keeps_off_the_others(
    block: tuple[float, float, float], free: bool
) -> None:
    tool = (block[0], block[1], 0.5)  # the tool itself is far from them
    value = AvoidBlocks(clearance=0.02)(towards(tool, block)).item()
    assert (value > -1e-9) == free


def test_avoidance_leads_out_the_shorter_way() -> None:
    plan = planned(2)
    plan[..., :3] = torch.tensor([0.5, 0.26, 0.02]).double()
    gradient = value_and_gradient(AvoidBlocks(), plan, shown)[1][0, 0, :3]
    assert gradient[1] == pytest.approx(0.01, rel=0.1)  # aside by what is lacking
    assert gradient[0].abs() < 1e-9
    assert gradient[2] == 0.0


# --- final states -------------------------------------------------------------------


def test_matching_sums_log_probabilities_of_the_end() -> None:
    plan = moving(0, (0.5, 0.2, 0.09))
    found = matching(top=0, bottom=2, softness=0.1)(shown(plan)).item()
    assert found == pytest.approx(-0.01 * np.log1p(np.exp(-3.0)))
    early = matching(top=0, bottom=2, softness=0.1, window=128.0)(shown(plan)).item()
    assert early < found


def test_clean_plans_are_judged_with_the_bottom_where_it_is() -> None:
    """A plan that brings the bottom to the top is no better, unless it is noisy."""
    plan, cheating = planned(), planned()
    bottom = list(FEATURES.columns["block_2"])
    cheating[:, 1:, bottom] = torch.from_numpy(START[0] - (0.0, 0.0, 0.06))
    guide = matching(top=0, bottom=2)
    assert guide(shown(cheating)) == guide(shown(plan))
    gradient = value_and_gradient(
        guide, plan * torch.linspace(1.0, 1.2, 19).double(), shown
    )[1]
    columns = set(torch.nonzero(gradient[0, 1:].abs().sum(dim=0))[:, 0].tolist())
    assert columns == set(FEATURES.columns["block_0"])
    noisy = guide(shown(cheating, denoising_step=3))
    assert noisy > guide(shown(plan, denoising_step=3))


@pytest.mark.parametrize(("step", "told"), [(CLEAN, 0), (0, 0), (7, 7)])
def test_the_classifier_is_told_how_noisy_the_plan_is(step: int, told: int) -> None:
    guide = matching(top=0, bottom=2)
    guide(shown(torch.cat([planned()] * 2), denoising_step=step))
    assert isinstance(guide.network, Logits)
    states, i = guide.network.seen[-1]
    assert i.tolist() == [told, told]
    assert states.shape == (2, 4, 19)  # from the release to the end


def test_a_block_that_goes_to_the_table_is_to_be_on_nothing() -> None:
    """Blocks 0 and 1 exchange places: the first is put aside, and on no other."""
    goal = START[[1, 0, 2, 3]].ravel()
    aside = moving(0, (0.3, 0.3, 0.03))
    stacked = moving(0, (0.5, 0.2, 0.09))
    assert matching()(shown(aside, goal)) > matching()(shown(stacked, goal))


def test_a_planner_without_a_classifier_says_how_to_get_one() -> None:
    with pytest.raises(GuideError, match="train-classifier"):
        StackMatch().bind(SimpleNamespace(classifier=None))
    with pytest.raises(GuideError, match="train-classifier"):
        StackTask(match=1.0).bind(SimpleNamespace(classifier=None))
    with pytest.raises(GuideError, match="with_guide"):
        StackMatch(top=0, bottom=1)(shown(planned()))
    other = SimpleNamespace(classifier=SimpleNamespace(labels=("open", "shut")))
    with pytest.raises(GuideError, match=r"'on_0_1'.*open, shut"):
        StackMatch(top=0, bottom=1).bind(other)(shown(planned()))


def test_stages_of_many_candidates_take_little_time() -> None:
    """One episode's candidates share their state: it is read once."""
    rng = np.random.default_rng(0)
    plan = planned(1)
    for block, place in enumerate(scattered(4, rng)):
        plan[..., list(FEATURES.columns[f"block_{block}"])] = torch.from_numpy(place)
    many = plan.expand(512, -1, -1)
    assert torch.equal(Place()(shown(many)), Place()(shown(plan)).expand(512))


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
        (lambda: StackMatch(top=-1, bottom=0), "whole number from 0"),
        (lambda: StackMatch(softness=0.0), "StackMatch.softness"),
        (lambda: Contact(block=-2), "whole number from 0"),
        (lambda: Contact(window=(5.0, 1.0)), "Contact.window"),
        (lambda: Contact(window=(-5.0, 1.0)), "Contact.window"),
        (lambda: Place(block=1), "a block and its position, or neither"),
        (lambda: Place(position=(0.5, 0.2, 0.03)), "or neither"),
        (lambda: Place(block=1, position=(0.5, 0.2)), "three coordinates"),  # type: ignore[arg-type]
        (lambda: AvoidBlocks(clearance=-0.1), "AvoidBlocks.clearance"),
        (lambda: Contact(block=1.5), "whole number"),  # type: ignore[arg-type]
        (lambda: Contact(tower=(0, 1, 0)), "Contact.tower names a block twice"),
        (lambda: Place(tower=(2,)), "two or more blocks"),
        (lambda: StackTask(tower=(1, 1)), "twice"),
        (lambda: StackTask(contact=math.nan), "StackTask.contact must be a finite"),
        (lambda: StackTask(place="x"), "StackTask.place must be a finite"),  # type: ignore[arg-type]
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
