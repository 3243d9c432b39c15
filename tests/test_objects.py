"""The object transformer: interchangeable objects, pointing, shapes and errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffuser_policy.errors import ConfigError, HorizonError
from diffuser_policy.networks.objects import ObjectTransformer
from diffuser_policy.networks.transformer import ModulatedBlock

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


def heads(made: ObjectTransformer) -> tuple[list[Tensor], list[Tensor]]:
    """Let a network write nothing; return what it writes then, `[patch, size]` each.

    First the parts of the robot's head, then those of the objects'.
    """
    parts = []
    for head, sizes in (
        (made.write_robot, made.robot_sizes),
        (made.write_object, made.object_sizes),
    ):
        for weight in head.parameters():
            weight.requires_grad_(False).zero_()
        rows = head.bias.view(-1, sum(sizes))
        parts.append(list(torch.split(rows, sizes, dim=1)))
    return parts[0], parts[1]


def test_the_tool_can_be_pointed_at_objects() -> None:
    made = network()
    (_, near, itself, query), _ = heads(made)
    itself[:] = -100.0
    query[:, 0] = 1.0  # no key answers: all objects alike
    near[:] = torch.tensor([0.1, 0.2, 0.3])
    rows, i, start, signal = inputs()
    out = made(rows, i, start=start, signal=signal)

    tool = start[:, None, :3] + out[..., :3]
    middle = start[:, 3:].reshape(3, 3, 4)[..., :3].mean(dim=1)
    expected = middle + torch.tensor([0.1, 0.2, 0.3])
    torch.testing.assert_close(tool, expected[:, None].expand_as(tool))


def test_an_object_can_be_pointed_at_the_tool() -> None:
    """A carried object goes where the tool is planned to be."""
    made = network()
    (path, *_), (_, _, carried, _, held, _, _) = heads(made)
    path[:] = torch.arange(12.0).view(4, 3)
    held[:] = 100.0
    carried[:] = torch.tensor([0.0, 0.1, -0.2])
    rows, i, start, signal = inputs()
    out = made(rows, i, start=start, signal=signal)

    tool = start[:, None, :3] + out[..., :3]
    for columns in OBJECTS:
        xyz = list(columns[:3])
        place = start[:, None, xyz] + out[..., xyz]
        torch.testing.assert_close(place, tool + torch.tensor([0.0, 0.1, -0.2]))


def test_an_object_can_be_pointed_at_the_others_and_not_at_itself() -> None:
    made = network()
    _, (_, stacked, _, _, _, asked, key) = heads(made)
    asked[:, 0] = key[:, 0] = 10.0
    stacked[:] = torch.tensor([0.0, 0.0, 0.6])
    rows, i, start, signal = inputs()
    out = made(rows, i, start=start, signal=signal)

    places = start[:, 3:].reshape(3, 3, 4)[..., :3]
    for k, columns in enumerate(OBJECTS):
        xyz = list(columns[:3])
        place = start[:, None, xyz] + out[..., xyz]
        others = places[:, [j for j in range(3) if j != k]].mean(dim=1)
        expected = (others + torch.tensor([0.0, 0.0, 0.6]))[:, None]
        torch.testing.assert_close(place, expected.expand_as(place))


def test_objects_see_where_the_tool_is_planned_from_where_they_are() -> None:
    """Where there is no noise, offsets are scaled as deviations are: by the signal."""
    made = network()
    rows, i, start, signal = inputs()
    seen: list[Tensor] = []
    made.read_object.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    made(signal[:, None, None] * rows, i, start=start, signal=signal)

    patches = seen[0][..., 4 * 4 : 4 * (4 + 3)].reshape(3, 3, STEPS, 3)
    for k, columns in enumerate(OBJECTS):
        away = start[:, None, :3] + rows[..., :3] - start[:, None, list(columns[:3])]
        torch.testing.assert_close(patches[:, k], signal[:, None, None] * away)


def test_equal_patches_at_other_times_are_told_apart() -> None:
    made = network()
    rows, i, start, signal = inputs()
    alike = rows[:, :4].repeat(1, STEPS // 4, 1)
    out = made(alike, i, start=start, signal=signal)
    assert (out[:, :4] - out[:, 4:8]).abs().amax() > 1e-2


def test_an_unmodulated_block_is_a_transformers() -> None:
    """At first, the denoising step changes nothing; PyTorch has the layer as well."""
    torch.manual_seed(0)
    ours = ModulatedBlock(32)
    theirs = nn.TransformerEncoderLayer(
        32,
        nhead=4,
        dim_feedforward=64,
        dropout=0.0,
        activation=nn.functional.silu,
        norm_first=True,
        batch_first=True,
    )
    first, _, second = ours.perceptron
    for layer, name in (
        (ours.qkv, "self_attn.in_proj_"),
        (ours.merge, "self_attn.out_proj."),
        (first, "linear1."),
        (second, "linear2."),
    ):
        for part in ("weight", "bias"):
            theirs.get_parameter(name + part).data = layer.get_parameter(part).data
    tokens, step = torch.randn(2, 5, 32), torch.randn(2, 32)
    torch.testing.assert_close(ours(tokens, step), theirs(tokens))


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
