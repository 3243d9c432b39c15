"""The object transformer: interchangeable objects, pointing, shapes and errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from diffuser_policy.errors import ConfigError, HorizonError
from diffuser_policy.networks.objects import ObjectTransformer

OBJECTS = [(3, 4, 5, 6), (7, 8, 9, 10), (11, 12, 13, 14)]
STEPS, COLUMNS = 16, 15


def network(seed: int = 0, **settings: Any) -> ObjectTransformer:
    torch.manual_seed(seed)
    made = ObjectTransformer(
        COLUMNS,
        **{
            "objects": OBJECTS,
            "position": (0, 1, 2),
            "num_planning_steps": STEPS,
            "dim": 32,
            "depth": 2,
            "patch": 4,
            **settings,
        },
    )
    for weight in made.parameters():  # an untrained modulation does nothing
        weight.data += 0.1 * torch.randn_like(weight)
    return made


def inputs(batch: int = 3, seed: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    rows = torch.randn(batch, STEPS, COLUMNS)
    return rows, torch.arange(batch), torch.randn(batch, COLUMNS), torch.rand(batch)


def exchanged(order: list[int]) -> list[int]:
    return [0, 1, 2, *(column for k in order for column in OBJECTS[k])]


def test_permuted_objects_give_the_permuted_plan() -> None:
    made = network()
    rows, i, start, signal = inputs()
    columns = exchanged([2, 0, 1])

    plain = made(rows, i, start=start, signal=signal)[..., columns]
    permuted = made(rows[..., columns], i, start=start[:, columns], signal=signal)

    torch.testing.assert_close(permuted, plain, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(plain[..., 3:7], plain[..., 7:11], atol=1e-2)


def test_rows_of_a_batch_do_not_affect_each_other() -> None:
    made = network()
    rows, i, start, signal = inputs()

    together = made(rows, i, start=start, signal=signal)
    alone = made(rows[1:2], i[1:2], start=start[1:2], signal=signal[1:2])

    torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=1e-5)


def test_columns_may_come_in_any_order() -> None:
    """The order of columns is the layout's business, weights follow their meaning."""
    shuffled = torch.randperm(COLUMNS, generator=torch.Generator().manual_seed(3))
    where = torch.argsort(shuffled).tolist()  # column c of the plain layout is there
    made = network()
    other = network(
        objects=[[where[c] for c in columns] for columns in OBJECTS],
        position=[where[c] for c in (0, 1, 2)],
    )
    other.load_state_dict(made.state_dict())
    rows, i, start, signal = inputs()

    plain = made(rows, i, start=start, signal=signal)
    moved = other(rows[..., shuffled], i, start=start[..., shuffled], signal=signal)

    torch.testing.assert_close(moved, plain[..., shuffled], atol=1e-5, rtol=1e-5)


def test_an_untrained_network_can_point_at_an_object() -> None:
    """With all weight on object 1, the tool's plan is that object's position."""
    made = network(dim=32)
    rows, i, start, signal = inputs(batch=1)
    robot = sum(made.robot_sizes)
    head = sum(made.object_sizes)
    with torch.no_grad():
        for module in (made.write_robot, made.write_object):
            module.weight.zero_()
            module.bias.zero_()
        logit = made.robot_sizes[0] + made.robot_sizes[1]
        made.write_robot.bias.view(-1, robot)[:, logit] = -100.0  # not where it is
        made.write_robot.bias.view(-1, robot)[:, logit + 1] = 1.0  # query
    out = made(rows, i, start=start, signal=signal)

    places = start[:, 3:].reshape(1, 3, 4)[..., :3]
    mean = (places - start[:, None, :3]).mean(dim=1)
    expected = mean[:, None].expand(1, STEPS, 3)
    torch.testing.assert_close(out[..., :3], expected, atol=1e-5, rtol=1e-5)
    assert head == 4 + 3 + 3 + 1 + 1 + 16 + 16


def test_objects_stay_where_nothing_else_was_learnt() -> None:
    """Shares of `moved` add up to one: with equal anchors, it is the anchor."""
    made = network()
    rows, i, start, signal = inputs()
    for columns in OBJECTS:
        start[:, list(columns[:3])] = start[:, :3]
    with torch.no_grad():
        for module in (made.write_robot, made.write_object):
            module.weight.zero_()
            module.bias.zero_()

    out = made(rows, i, start=start, signal=signal)

    torch.testing.assert_close(out, torch.zeros_like(out), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "settings",
    [
        {"objects": []},
        {"position": ()},
        {"objects": [(3, 4), (5, 6)]},
        {"position": (0, 1, 3)},  # the first object's as well
        {"dim": 30},
    ],
)
def test_what_cannot_be_built_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="object transformer needs objects"):
        network(**settings)


def test_the_one_length_is_a_multiple_of_the_patches() -> None:
    assert network().horizon_multiple == STEPS
    with pytest.raises(HorizonError, match="multiple of 5"):
        network(patch=5)
