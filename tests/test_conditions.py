"""Conditions: pins in environment units, compiled to a mask and values."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from diffuser_policy.columns.layout import TrajectoryLayout
from diffuser_policy.columns.normalizers import LimitsNormalizer, Normalizer
from diffuser_policy.diffusion.conditions import Conditions, Inpainting
from diffuser_policy.errors import ConditionError, UnknownNameError

LAYOUT = TrajectoryLayout(
    action_dim=1, observation_dim=3, aliases={"goal": (2, 0), "velocity": (1,)}
)
SHIFT = torch.tensor([0.0, 10.0, 20.0, 30.0])
SCALE = torch.tensor([1.0, 2.0, 4.0, 5.0])


@pytest.fixture
def normalizer() -> Normalizer:
    return LimitsNormalizer(SHIFT, SCALE)


def compiled(
    conditions: Conditions, normalizer: Normalizer, *, steps: int = 5, rows: int = 2
) -> Inpainting:
    return conditions.compile(
        LAYOUT, normalizer, num_planning_steps=steps, batch_size=rows
    )


def pinned_entries(given: Inpainting) -> set[tuple[int, int]]:
    step, column = given.mask[0].nonzero(as_tuple=True)
    return set(zip(step.tolist(), column.tolist(), strict=True))


def test_conditions_keep_what_they_were_given() -> None:
    """A caller's buffer may change afterwards."""
    buffer = torch.zeros(2)
    conditions = Conditions().pin(0, "goal", buffer)
    buffer[:] = torch.nan
    assert conditions.pins[0].values.tolist() == [0.0, 0.0]


def test_pins_are_met_in_environment_units(normalizer: Normalizer) -> None:
    start = torch.tensor([[11.0, 22.0, 33.0], [12.0, 23.0, 34.0]])
    goal = torch.tensor([36.0, 13.0])
    conditions = Conditions().pin(0, "observation", start).pin(-1, "goal", goal)
    given = compiled(conditions, normalizer)
    assert pinned_entries(given) == {(0, 1), (0, 2), (0, 3), (4, 1), (4, 3)}
    noise = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    physical = normalizer.unnormalize(given.apply(noise))
    torch.testing.assert_close(physical[:, 0, 1:], start)
    torch.testing.assert_close(physical[:, -1, [3, 1]], goal.expand(2, 2))


def test_nothing_else_is_touched(normalizer: Normalizer) -> None:
    given = compiled(Conditions().pin(2, "velocity", [21.0]), normalizer)
    noise = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    kept = noise.clone()
    applied = given.apply(noise)
    assert torch.equal(noise, kept)
    free = ~given.mask.expand_as(noise)
    assert torch.equal(applied[free], noise[free])
    assert torch.equal(given.apply(applied), applied)


def test_any_column_at_any_step(normalizer: Normalizer) -> None:
    conditions = Conditions().pin(3, "action", [0.5]).pin(-5, "velocity", [20.0])
    assert pinned_entries(compiled(conditions, normalizer)) == {(3, 0), (0, 2)}


def test_no_conditions_pin_nothing(normalizer: Normalizer) -> None:
    assert not compiled(Conditions(), normalizer).mask.any()


def test_later_pins_win(normalizer: Normalizer) -> None:
    first = Conditions().pin(0, "observation", [10.0, 20.0, 30.0])
    second = Conditions().pin(0, "velocity", [24.0])
    given = compiled(first | second, normalizer, rows=1)
    assert given.values[0, 0].tolist() == [0.0, 0.0, 1.0, 0.0]
    given = compiled(second | first, normalizer, rows=1)
    assert given.values[0, 0].tolist() == [0.0, 0.0, 0.0, 0.0]


def test_conditions_are_immutable(normalizer: Normalizer) -> None:
    start = Conditions().pin(0, "velocity", [24.0])
    start.pin(1, "velocity", [28.0])
    assert pinned_entries(compiled(start, normalizer)) == {(0, 2)}


def test_candidates_repeat_the_values_of_their_row() -> None:
    mask = torch.tensor([[[True, False]], [[False, True]]])
    values = torch.tensor([[[1.0, 0.0]], [[0.0, 2.0]]])
    repeated = Inpainting(mask, values).repeat(3)
    applied = repeated.apply(torch.zeros(6, 1, 2))
    assert applied[:, 0].tolist() == [[1.0, 0.0]] * 3 + [[0.0, 2.0]] * 3
    assert Inpainting(mask[:1], values).repeat(3).mask.shape == (1, 1, 2)


@pytest.mark.parametrize("step", [5, -6, 100])
def test_a_step_outside_the_plan_is_refused(step: int, normalizer: Normalizer) -> None:
    with pytest.raises(ConditionError, match=f"step {step}, but the plan has 5 steps"):
        compiled(Conditions().pin(step, "velocity", [20.0]), normalizer)


@pytest.mark.parametrize(
    "values", [torch.zeros(2), torch.zeros(3, 1), torch.zeros(2, 2)]
)
def test_values_of_the_wrong_size_are_refused(
    values: Tensor, normalizer: Normalizer
) -> None:
    with pytest.raises(ConditionError, match=r"shape \(1,\) or \(2, 1\)"):
        compiled(Conditions().pin(0, "velocity", values), normalizer)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(ConditionError, match="finite"):
        Conditions().pin(0, "goal", [0.0, bad])


def test_scalars_are_refused() -> None:
    with pytest.raises(ConditionError, match=r"\[batch, size\] or \[size\]"):
        Conditions().pin(0, "velocity", torch.tensor(1.0))


@pytest.mark.parametrize("values", [[], [0.5]])
def test_actions_of_states_only_plans_cannot_be_pinned(values: list[float]) -> None:
    layout = dataclasses.replace(LAYOUT, action_dim=0)
    conditions = Conditions().pin(0, "action", values)
    with pytest.raises(UnknownNameError, match="Unknown trajectory column 'action'"):
        conditions.compile(
            layout,
            LimitsNormalizer(SHIFT[1:], SCALE[1:]),
            num_planning_steps=5,
            batch_size=2,
        )


def test_unknown_columns_are_refused(normalizer: Normalizer) -> None:
    with pytest.raises(UnknownNameError, match="'velocity'"):
        compiled(Conditions().pin(0, "velocities", [0.0]), normalizer)
