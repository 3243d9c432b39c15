"""Guides by name: registering, making, parameters and their types, saving."""

from __future__ import annotations

import copy
import enum
import inspect
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from diffuser_policy.columns.layout import TrajectoryLayout
from diffuser_policy.columns.normalizers import LimitsNormalizer
from diffuser_policy.errors import GuideError, UnknownNameError
from diffuser_policy.guides.guide import Guide, as_guide
from diffuser_policy.guides.registry import (
    GUIDES,
    find_guide,
    guide_from_json,
    guide_record,
    guide_to_json,
    make_guide,
    register_guide,
)
from diffuser_policy.guides.trajectory import Trajectory

if TYPE_CHECKING:
    from collections import OrderedDict


@dataclass(frozen=True, kw_only=True)
class Disc(Guide):
    """Stays out of a disc.

    Attributes:
        center: Its middle,
            meters.
        radius: Meters.
        network: What it was bound to.
    """

    center: tuple[float, float]
    radius: float = 0.5
    columns: tuple[str, ...] = ("position",)
    norm: Literal["l1", "l2"] = "l2"
    time: int | None = None
    inside: bool = False
    network: Any = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.radius < 0:
            raise ValueError("negative radius")

    def __call__(self, trajectory: Trajectory) -> Tensor:
        offset = trajectory.position - trajectory.position.new_tensor(self.center)
        return torch.relu(offset.norm(dim=-1) - self.radius).sum(dim=1)


def keep_left(
    trajectory: Trajectory,
    *,
    strength: float = 1.0,
    extra: OrderedDict[str, float] | None = None,  # noqa: ARG001
    power: Any = 1,
) -> Tensor:
    """Keeps to the left."""
    return -strength * trajectory.position[..., 0].pow(power).mean(dim=1)


class Summed:
    """An object that can be called."""

    def __call__(self, trajectory: Trajectory, *, sign: float = 1.0) -> Tensor:
        return sign * trajectory.position.sum(dim=(1, 2))


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register the two above, and forget all names afterwards."""
    monkeypatch.setattr(GUIDES, "registered", {})
    assert register_guide("disc")(Disc) is Disc
    assert register_guide("keep-left")(keep_left) is keep_left


@pytest.fixture
def trajectory() -> Trajectory:
    rows = torch.linspace(-1, 1, 40).reshape(2, 5, 4)
    return Trajectory(
        normalized=rows,
        layout=TrajectoryLayout(
            observation_dim=4, action_dim=0, aliases={"position": (0, 1)}
        ),
        normalizer=LimitsNormalizer.fit(np.array([[-2.0] * 4, [2.0] * 4])),
    )


# --- making -------------------------------------------------------------------


def test_a_class_is_made_with_its_fields() -> None:
    assert make_guide("disc", center=(1, 2), time=3) == Disc(center=(1.0, 2.0), time=3)


def test_a_function_is_called_with_its_parameters(trajectory: Trajectory) -> None:
    guide = make_guide("keep-left", strength=3, power=2)
    expected = keep_left(trajectory, strength=3.0, power=2)
    assert torch.equal(guide(trajectory), expected)
    assert not torch.equal(guide(trajectory), keep_left(trajectory))
    assert torch.equal((2 * guide)(trajectory), 2 * expected)


def test_guides_of_functions_are_values() -> None:
    guide = make_guide("keep-left", strength=3)
    assert guide == make_guide("keep-left", strength=3.0)
    assert hash(guide) == hash(make_guide("keep-left", strength=3.0))
    assert guide != make_guide("keep-left")
    assert guide.name == "keep-left"
    assert repr(guide) == "keep-left(strength=3.0, extra=None, power=1)"


@pytest.mark.parametrize(
    "function",
    [
        lambda t, /, *, strength=1.0: strength * t.position.sum(dim=(1, 2)),
        lambda *t, strength=1.0: strength * t[0].position.sum(dim=(1, 2)),
    ],
)
def test_a_trajectory_that_has_no_name_is_no_parameter(
    function: Any, trajectory: Trajectory
) -> None:
    register_guide("nameless")(function)
    guide = make_guide("nameless", strength=2)
    assert torch.equal(guide(trajectory), function(trajectory, strength=2))


def test_a_parameter_may_be_called_name() -> None:
    @register_guide("named")
    def named(trajectory: Trajectory, *, name: str) -> Tensor:
        return trajectory[name].sum(dim=(1, 2))

    assert make_guide("named", name="position").name == "named"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"center": [1, 2]}, (1.0, 2.0)),
        ({"center": np.array([1.0, 2.0])}, (1.0, 2.0)),
        ({"center": torch.tensor([1, 2])}, (1.0, 2.0)),
        ({"center": (0, 0), "radius": np.float32(0.25)}, 0.25),
        ({"center": (0, 0), "radius": 2}, 2.0),
        ({"center": (0, 0), "columns": ["a", "b", "c"]}, ("a", "b", "c")),
        ({"center": (0, 0), "norm": "l1"}, "l1"),
        ({"center": (0, 0), "time": np.int64(4)}, 4),
        ({"center": (0, 0), "time": None}, None),
        ({"center": (0, 0), "inside": True}, True),
    ],
)
def test_values_become_the_annotated_type(given: dict[str, Any], expected: Any) -> None:
    value = getattr(make_guide("disc", **given), [*given][-1])
    assert value == expected
    assert type(value) is type(expected)
    if isinstance(value, tuple):
        assert [*map(type, value)] == [*map(type, expected)]


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("center", (1, 2, 3), "2 numbers"),
        ("center", 1.0, "2 numbers"),
        ("center", "12", "2 numbers"),
        ("center", (1, math.nan), "2 numbers"),
        ("radius", math.nan, "a finite number"),
        ("radius", math.inf, "a finite number"),
        ("radius", "wide", "a finite number"),
        ("radius", True, "a finite number"),
        ("radius", None, "a finite number"),
        ("columns", (1,), "a list of texts"),
        ("time", 1.5, "a whole number or none"),
        ("time", False, "a whole number or none"),
        ("inside", 1, "true or false"),
    ],
)
def test_values_of_other_types_are_refused(name: str, value: Any, kind: str) -> None:
    with pytest.raises(GuideError) as caught:
        make_guide("disc", **{"center": (0, 0), name: value})
    message = (
        f"The parameter {name!r} of the guide 'disc' must be {kind}, got {value!r}."
    )
    assert str(caught.value) == message


def test_a_misspelt_choice_suggests_the_nearest() -> None:
    with pytest.raises(
        GuideError, match=r"must be 'l1' or 'l2', got 'l'\. Did you mean"
    ):
        make_guide("disc", center=(0, 0), norm="l")


def test_nan_is_refused_where_any_value_would_do() -> None:
    with pytest.raises(GuideError, match="must be a value that is finite, got nan"):
        make_guide("keep-left", power=math.nan)


def test_an_unknown_guide_offers_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"guide 'dsic'\. Did you mean 'disc'"):
        make_guide("dsic", center=(0, 0))


def test_an_unknown_parameter_offers_the_nearest_and_lists_all() -> None:
    with pytest.raises(GuideError) as caught:
        make_guide("disc", centre=(0, 0))
    assert str(caught.value) == (
        "The guide 'disc' has no parameter 'centre'. Did you mean 'center'? Its "
        "parameters: center (required), radius=0.5, columns=position, norm=l2, "
        "time=none, inside=false."
    )


def test_bound_state_is_no_parameter() -> None:
    with pytest.raises(GuideError, match="no parameter 'network'"):
        make_guide("disc", center=(0, 0), network=None)


def test_a_missing_parameter_is_named() -> None:
    with pytest.raises(GuideError, match=r"needs center\. Its parameters: center \("):
        make_guide("disc", radius=1)


def test_what_the_guide_itself_refuses_is_told() -> None:
    with pytest.raises(GuideError, match=r"guide 'disc' refuses .*negative radius"):
        make_guide("disc", center=(0, 0), radius=-1)


def test_helps_come_from_the_docstring() -> None:
    description, helps = find_guide("disc").documentation()
    assert description == "Stays out of a disc."
    assert helps["center"] == "Its middle, meters."
    assert helps["radius"] == "Meters."
    assert "time" not in helps


def test_a_partial_has_the_docstring_of_its_function() -> None:
    register_guide("part")(partial(keep_left, strength=2.0))
    assert find_guide("part").documentation()[0] == "Keeps to the left."
    described = partial(keep_left, strength=2.0)
    described.__doc__ = "Keeps left."
    register_guide("part")(described)
    assert find_guide("part").documentation()[0] == "Keeps left."


# --- registering --------------------------------------------------------------


def another(trajectory: Trajectory) -> Tensor:
    return trajectory.position.sum(dim=(1, 2))


def test_the_same_definition_may_be_run_again() -> None:
    def define(sign: float) -> None:
        @register_guide("mine")
        def mine(trajectory: Trajectory) -> Tensor:
            return sign * trajectory.position.sum(dim=(1, 2))

    define(1.0)
    first = find_guide("mine").target
    define(-1.0)
    assert find_guide("mine").target is not first


def test_no_guide_is_called_none() -> None:
    with pytest.raises(GuideError, match=r"cannot be called 'none'.* another name"):
        register_guide("none")


def test_unknown_parameters_need_no_annotations_that_resolve(
    trajectory: Trajectory,
) -> None:
    """Names imported for type checkers only are common, and no obstacle."""
    assert make_guide("keep-left", extra={"a": 1.0})(trajectory).shape == (2,)


class Thawed(Guide):
    """Not a dataclass."""


@dataclass
class Mutable(Guide):
    """Not frozen."""


@dataclass(frozen=True, kw_only=True)
class Unresolved(Guide):
    """Annotated with something that is not there at run time."""

    extra: OrderedDict[str, float]


@dataclass(frozen=True, kw_only=True)
class Unwritten(Guide):
    """Annotated with words."""

    extra: "two numbers"  # type: ignore[valid-type]  # noqa: F722


@dataclass(frozen=True, kw_only=True)
class Misnamed(Guide):
    """A field that hides a method."""

    parts: int  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (Thawed, "must be a frozen dataclass"),
        (Mutable, "must be a frozen dataclass"),
        (Unresolved, "OrderedDict.*not under TYPE_CHECKING"),
        (Misnamed, "has a field 'parts'"),
        (Unwritten, "annotations of .*two numbers.*Annotate with types"),
        (
            torch.sum,
            r"arguments of torch:.*sum cannot be read.*Write a function of a traj",
        ),
        (int, "int is a class that does not derive from Guide"),
        (3.0, "is no guide: expected a dataclass .*got 3.0"),
        (as_guide(another), "is no guide"),
        (lambda: 0, "first argument of .* must be the trajectory"),
        (lambda *, strength: strength, "first argument of .* must be the trajectory"),
        (lambda **rest: rest, "first argument of .* must be the trajectory"),
        (lambda t, **rest: (t, rest), r"'\*\*rest' of .* cannot be given by name"),
        (lambda t, *rest: (t, rest), r"'\*rest' of .* cannot be given by name"),
    ],
)
def test_what_is_no_guide_is_refused(target: Any, message: str) -> None:
    with pytest.raises(GuideError, match=message):
        register_guide("wrong")(target)
    assert "wrong" not in GUIDES.registered


# --- saving -------------------------------------------------------------------


def test_guides_survive_json() -> None:
    disc = Disc(center=(1.0, 2.0), columns=("position", "velocity"), norm="l1")
    guide = 2.0 * disc - make_guide("keep-left", strength=0.1) + Disc(center=(0.0, 0.0))
    data = guide_to_json(guide)
    assert [(part["guide"], part["weight"]) for part in data] == [
        ("disc", 2.0),
        ("keep-left", -1.0),
        ("disc", 1.0),
    ]
    assert data[0]["parameters"]["center"] == [1.0, 2.0]
    assert "network" not in data[0]["parameters"]
    text = json.dumps(data, allow_nan=False)
    assert json.loads(text) == data
    assert guide_from_json(json.loads(text)) == guide


def test_a_single_guide_stays_one() -> None:
    disc = Disc(center=(1.0, 2.0))
    assert guide_from_json(guide_to_json(disc)) == disc
    assert guide_from_json(guide_to_json(-disc)) == -disc


def test_arrays_are_saved_as_lists() -> None:
    guide = Disc(center=np.array([1.0, 2.0]))  # type: ignore[arg-type]
    assert guide_to_json(guide)[0]["parameters"]["center"] == [1.0, 2.0]


def test_a_registered_function_that_is_used_directly_is_saved() -> None:
    [part] = guide_to_json(as_guide(keep_left))
    assert part["guide"] == "keep-left"
    assert part["parameters"] == {"strength": 1.0, "extra": None, "power": 1}


def test_a_guide_that_was_defined_anew_since_is_not_saved_as_another() -> None:
    def define(sign: float) -> Any:
        @register_guide("mine")
        def mine(trajectory: Trajectory, *, power: int = 1) -> Tensor:
            return sign * trajectory.position.sum(dim=(1, 2)) ** power

        @register_guide("other")
        @dataclass(frozen=True, kw_only=True)
        class Other(Guide):
            size: float = 1.0

        return mine, Other()

    function, other = define(1.0)
    for guide in (make_guide("mine", power=2), as_guide(function), other):
        assert guide_to_json(guide)
    old = make_guide("mine", power=2), as_guide(function), other
    define(-1.0)
    for guide in old:
        with pytest.raises(GuideError, match=r"was registered anew.* Make the guide a"):
            guide_to_json(guide)
    assert guide_to_json(make_guide("mine", power=2))


def test_a_guide_of_an_object_that_was_copied_is_saved() -> None:
    register_guide("summed")(Summed())
    guide = make_guide("summed", sign=-1.0)
    assert guide_to_json(copy.deepcopy(guide)) == guide_to_json(guide)
    with pytest.raises(GuideError, match="not registered"):
        guide_to_json(as_guide(Summed()))


def test_a_partial_that_was_registered_anew_since_is_not_saved_as_another() -> None:
    def define(parameter: str) -> None:
        def mine(trajectory: Trajectory, **given: Any) -> Tensor:
            raise NotImplementedError((trajectory, given))

        names = (("trajectory", 1), (parameter, 3))  # kinds: by position, by name
        kinds = [inspect.Parameter(n, inspect._ParameterKind(k)) for n, k in names]
        mine.__signature__ = inspect.Signature(kinds)  # type: ignore[attr-defined]
        register_guide("mine")(partial(mine))

    define("power")
    guide = make_guide("mine", power=2.0)
    define("power")
    assert guide_to_json(guide)[0]["parameters"] == {"power": 2.0}
    define("size")
    with pytest.raises(GuideError, match="was registered anew"):
        guide_to_json(guide)


@pytest.mark.parametrize("objective", [another, lambda t: t.position.sum((1, 2))])
def test_what_is_not_registered_cannot_be_saved(objective: Any) -> None:
    with pytest.raises(GuideError, match=r"not registered.* put @register_guide"):
        guide_to_json(2 * as_guide(objective))


def test_a_record_needs_no_registration() -> None:
    disc = 2 * Disc(center=(1.0, 2.0))
    assert guide_record(disc) == guide_to_json(disc)
    record = guide_record(disc + another)
    assert isinstance(record, str)
    assert record.startswith("2 * Disc(center=(1.0, 2.0)")
    assert record.endswith(" + another")


def test_a_value_without_a_form_in_json_is_named() -> None:
    guide = make_guide("keep-left", power=object())
    with pytest.raises(GuideError, match="'power' of the guide 'keep-left' cannot be"):
        guide_to_json(guide)


class Side(enum.StrEnum):
    """A choice that JSON does not know."""

    LEFT = "left"
    RIGHT = "right"


class Place(NamedTuple):
    """A tuple that JSON does not know."""

    x: float
    y: float


ORIGIN = Place(0.0, 0.0)


def settled(
    trajectory: Trajectory,
    *,
    side: Side = Side.LEFT,
    place: Place = ORIGIN,
    limit: float = math.inf,
    table: Mapping[str, Any] | None = None,
    rows: Any = None,
    keyed: Mapping[int, float] | None = None,
) -> Tensor:
    """Take values that do not all survive JSON."""
    raise NotImplementedError((trajectory, side, place, limit, table, rows, keyed))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("side", Side.RIGHT),
        ("place", Place(1.0, 2.0)),
        ("keyed", {1: 2.0}),
        ("rows", {1: 2.0}),
        ("table", {"a": {1: 2.0}}),
    ],
)
def test_what_json_would_change_is_not_saved(name: str, value: Any) -> None:
    register_guide("settled")(settled)
    guide = make_guide("settled", **{name: value})
    with pytest.raises(GuideError, match=f"{name!r} of the guide 'settled' cannot be"):
        guide_to_json(guide)


def test_what_json_gives_back_is_saved_and_defaults_need_no_form_in_it() -> None:
    register_guide("settled")(settled)
    guide = make_guide("settled", table={"a": [1, (2, 3)]}, rows=[[1, 2], {"b": (3,)}])
    data = guide_to_json(guide)
    assert data[0]["parameters"] == {
        "table": {"a": [1, [2, 3]]},
        "rows": [[1, 2], {"b": [3]}],
        "keyed": None,
    }
    assert guide_to_json(guide_from_json(data)) == data
    assert guide_from_json(data).parameters[:3] == guide.parameters[:3]  # type: ignore[attr-defined]


def test_a_saved_guide_that_is_not_here_says_what_may_be_missing() -> None:
    with pytest.raises(GuideError, match=r"not registered here.* mean 'disc'\?"):
        guide_from_json([{"guide": "discs", "weight": 1.0, "parameters": {}}])


@pytest.mark.parametrize(
    "data",
    [
        [],
        "disc",
        {"guide": "disc"},
        ["disc"],
        [{"name": "disc"}],
        [{"guide": "keep-left", "weight": "2"}],
        [{"guide": "keep-left", "weight": math.nan}],
        [{"guide": "keep-left", "parameters": [1.0]}],
    ],
)
def test_data_of_another_form_is_refused(data: Any) -> None:
    with pytest.raises(GuideError, match=r"A saved guide is a list of .*got"):
        guide_from_json(data)
