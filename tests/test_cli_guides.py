"""Guides on the command line: as text, in lists, and as options of the others."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffuser_policy.checkpoint import write_planner
from diffuser_policy.cli import main
from diffuser_policy.cli.guides import plain
from diffuser_policy.cli.options import PlanningOptions, load_policy
from diffuser_policy.errors import ConfigError, GuideError, UnknownNameError
from diffuser_policy.guides.guide import Guide
from diffuser_policy.guides.registry import (
    GUIDES,
    SavedPart,
    example_texts,
    find_guide,
    guide_to_json,
    make_guide,
    parse_guide,
    part_text,
    register_guide,
    registered_guide,
)
from diffuser_policy.guides.trajectory import Trajectory

Capture = pytest.CaptureFixture[str]


ORIGIN = np.zeros(2)


@dataclass(frozen=True, kw_only=True)
class Spot(Guide):
    """Stays near a spot.

    Or near
    another.

    $$J = -x$$

        2 * make_guide("spot", center=(1, -2), columns="velocity")
        make_guide("spot", center=center) is no example

    Attributes:
        center: Meters.
        columns: Where to look.
    """

    center: tuple[float, float]
    columns: str = "position"
    corners: tuple[tuple[float, float], ...] = ()
    names: tuple[str, ...] = ("a",)
    steps: tuple[int, ...] | None = None
    inside: bool = False
    power: Any = 2

    def __call__(self, trajectory: Trajectory) -> Tensor:
        return -trajectory[self.columns].sum(dim=(1, 2))


def plain_guide(trajectory: Trajectory, *, strength: float = 1.5) -> Tensor:
    return strength * trajectory.position.sum(dim=(1, 2))


def capped(
    trajectory: Trajectory,
    *,
    limit: float = math.inf,
    target: np.ndarray = ORIGIN,
    label: str = "",
    whatever: Any = None,
    number: int = 3,
) -> Tensor:
    """Take defaults that texts cannot have."""
    raise NotImplementedError((trajectory, limit, target, label, whatever, number))


@pytest.fixture(autouse=True, scope="module")
def _registered() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GUIDES, "registered", {})
        register_guide("spot")(Spot)
        register_guide("plain")(plain_guide)
        register_guide("capped")(capped)
        yield


# --- as text ------------------------------------------------------------------

HERE = (0.0, 1.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("spot:center=3,4", Spot(center=(3.0, 4.0))),
        (" spot : center = -3 , 4e-1 ; ", Spot(center=(-3.0, 0.4))),
        ("spot:center=[0,1]", Spot(center=HERE)),
        ("spot:center=0,1;columns=velocity", Spot(center=HERE, columns="velocity")),
        ("spot:center=0,1;columns=3", Spot(center=HERE, columns="3")),
        ("spot:center=0,1;columns=true", Spot(center=HERE, columns="true")),
        ("spot:center=0,1;columns=a,b", Spot(center=HERE, columns="a,b")),
        ('spot:center=0,1;columns="a;b"', Spot(center=HERE, columns="a;b")),
        ("spot:center=0,1;inside=True", Spot(center=HERE, inside=True)),
        ("spot:center=0,1;steps=none", Spot(center=HERE)),
        ("spot:center=0,1;steps=7", Spot(center=HERE, steps=(7,))),
        ("spot:center=0,1;steps=7,", Spot(center=HERE, steps=(7,))),
        ("spot:center=0,1;steps=1,-2,3", Spot(center=HERE, steps=(1, -2, 3))),
        ("spot:center=0,1;names=b,c", Spot(center=HERE, names=("b", "c"))),
        (
            "spot:center=0,1;corners=[[0,0],[1,2]]",
            Spot(center=HERE, corners=((0.0, 0.0), (1.0, 2.0))),
        ),
        ("spot:center=0,1;power=0.5", Spot(center=HERE, power=0.5)),
        ("2*spot:center=0,1", 2 * Spot(center=HERE)),
        ("-0.5*spot:center=0,1", -0.5 * Spot(center=HERE)),
    ],
)
def test_texts_are_read(text: str, expected: Guide) -> None:
    assert parse_guide(text) == expected


def test_functions_have_texts_too() -> None:
    assert parse_guide("plain") == make_guide("plain")
    assert parse_guide("plain:strength=2") == make_guide("plain", strength=2.0)


def test_several_texts_add_up() -> None:
    guide = sum(map(parse_guide, ["2*spot:center=0,1", "plain", "-1*plain"]))
    assert guide == 2 * Spot(center=HERE) + make_guide("plain") - make_guide("plain")


finite = st.floats(allow_nan=False, allow_infinity=False)


spots = st.builds(
    Spot,
    center=st.tuples(finite, finite),
    columns=st.text(),
    corners=st.lists(st.tuples(finite, finite), max_size=2).map(tuple),
    names=st.lists(st.text(), max_size=3).map(tuple),
    steps=st.none()
    | st.lists(st.integers(-(2**63) + 1, 2**63 - 1), max_size=3).map(tuple),
    inside=st.booleans(),
    power=finite | st.text() | st.booleans() | st.none(),
)


@settings(max_examples=50)
@given(guide=spots, weight=finite)
def test_every_guide_can_be_written_with_json(guide: Spot, weight: float) -> None:
    values = [f"{f.name}={json.dumps(getattr(guide, f.name))}" for f in fields(guide)]
    assert parse_guide(f"{weight}*spot:{';'.join(values)}") == weight * guide


@settings(max_examples=50)
@given(guide=spots)
@example(guide=Spot(center=(0.0, 1.0), columns="", names=("",), power=" a"))
@example(guide=Spot(center=(0.0, 1.0), columns="a\nb", names=('a"b', "c"), power='";'))
@example(guide=Spot(center=(0.0, 1.0), columns="NaN", names=("inf",), power="-Inf"))
def test_every_guide_is_read_back_from_its_own_text(guide: Spot) -> None:
    (saved,) = guide_to_json(guide)
    assert parse_guide(part_text(SavedPart(**saved))) == guide


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not of the form NAME:PARAMETER=VALUE"),
        ("spot=3", "not of the form NAME:PARAMETER=VALUE"),
        ("2*3*spot", "not of the form NAME:PARAMETER=VALUE"),
        ("two*spot:center=0,1", "its weight 'two' is not a number"),
        ("*spot:center=0,1", "its weight '' is not a number"),
        ("nan*spot:center=0,1", "its weight 'nan' is not a number"),
        ("spot", r"needs center\. Its parameters: center \(required\)"),
        ("spot:center", "'center' is not of the form PARAMETER=VALUE"),
        ("spot:center=", "'center=' is not of the form PARAMETER=VALUE"),
        ("spot:=3", "'=3' is not of the form PARAMETER=VALUE"),
        ("spot:center=0,1;center=0,1", "'center' is given twice"),
        ("spot:centre=0,1", "no parameter 'centre'. Did you mean 'center'"),
        ("spot:center=1", "'center' of the guide 'spot' must be 2 numbers, got 1"),
        ("spot:center=0,nan", r"must be 2 numbers, got \(0, nan\)"),
        ("spot:center=0,x", r"must be 2 numbers, got \(0, 'x'\)"),
        ("spot:center=[0,1", r"'\[0,1' begins like JSON but is not valid"),
        ("spot:center=0,1;inside=2", "must be true or false, got 2"),
        ("spot:center=0,1;power=inf", "must be a value that is finite, got inf"),
        ("spot:center=0,1;power=-1e400", "must be a value that is finite, got -inf"),
        ("spot:center=0,1;power=NaN", "must be a value that is finite, got nan"),
    ],
)
def test_texts_that_are_wrong_are_shown_with_one_that_is_right(
    text: str, reason: str
) -> None:
    with pytest.raises(GuideError, match=reason) as caught:
        parse_guide(text)
    message = str(caught.value)
    assert message.startswith(f"Cannot read the guide {text!r}: ")
    example = message.rpartition("Example: ")[2].strip("'")
    parse_guide(example)  # is right


def test_an_unknown_name_offers_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"'spott'\. Did you mean 'spot'"):
        parse_guide("spott:center=0,1")


def test_examples_are_those_of_the_documentation() -> None:
    documented = example_texts(find_guide("spot"))
    assert documented == ["2*spot:center=1,-2;columns=velocity"]
    assert example_texts(find_guide("plain")) == ["plain:strength=1.5"]


def test_defaults_that_texts_cannot_have_are_no_examples() -> None:
    assert example_texts(find_guide("capped")) == ["capped:number=3"]
    parse_guide("capped:number=3")


def test_a_guide_with_defaults_that_json_lacks_has_a_text() -> None:
    guide = make_guide("capped", limit=3.0)
    (saved,) = guide_to_json(guide)
    assert part_text(SavedPart(**saved)) == "capped:limit=3"


# --- in lists -----------------------------------------------------------------


@pytest.mark.parametrize("columns", [80, 120])
def test_guides_are_listed(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["guides"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns
    shown = "\n".join(lines)
    for words in ("keep-out", "center (required)", "power=2", "this process"):
        assert words in shown
    assert "diffuser-policy 0." in shown
    [spot] = [line for line in lines if line.startswith("spot")]
    assert "Stays near a spot" in spot
    assert lines.index(spot) < len(lines) - 7  # waypoint follows: sorted by name


def test_a_guide_is_explained(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["guides", "spot"]) == 0
    shown = capsys.readouterr().out
    assert "\nOr near another.\n" in shown  # flows again
    assert "\nJ = -x\n" in shown
    assert '\n    2 * make_guide("spot"' in shown
    assert "Attributes:" not in shown
    lines = {line.split()[0]: line for line in shown.splitlines() if line.strip()}
    assert lines["center"].split() == ["center", "required", "2", "numbers", "Meters."]
    assert "Where to look." in lines["columns"]
    assert shown.rstrip().endswith("--guide '2*spot:center=1,-2;columns=velocity'")


def test_a_guide_without_a_description_is_explained(capsys: Capture) -> None:
    assert main(["guides", "plain"]) == 0
    assert "It has no description." in capsys.readouterr().out


def test_formulas_are_plain_characters(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["guides", "waypoint"]) == 0
    shown = capsys.readouterr().out
    two = "J = -1/2 d(t)^2,\nJ = σ^2 log 1/N sum_t exp(-d_t^2 / 2σ^2)\n"
    assert two in shown
    assert "the distances d_t of the" in shown
    assert "for a larger σ." in " ".join(shown.split())


@pytest.mark.parametrize("name", sorted(p.name for p in GUIDES.offers()))
def test_no_explanation_of_a_guide_has_latex(name: str) -> None:
    guide = registered_guide(GUIDES.find(name))
    description, helps = guide.documentation()
    for text in (description, *helps.values()):
        assert not re.search(r"[$\\{}]|:math:", plain(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"$x_{t-1}$ and :math:`v_{max}`", "x_(t-1) and v_max"),
        (r"$\sum_{t \in W} \bigl(a\,b\bigr)$", "sum_(t in W) (a b)"),
        (r"$\frac{\sigma^2}{|W|}$", "σ^2 / |W|"),
        ("It costs $5, or $6.", "It costs $5, or $6."),
    ],
)
def test_formulas_are_read(text: str, expected: str) -> None:
    assert plain(text) == expected


def test_an_unknown_guide_is_explained(capsys: Capture) -> None:
    assert main(["guides", "spoot"]) == 2
    assert "Unknown guide 'spoot'. Did you mean 'spot'" in capsys.readouterr().err


# --- as options ---------------------------------------------------------------


def test_guides_are_given_to_the_policy(planner: str) -> None:
    options = PlanningOptions(
        guide=("2*spot:center=0,1", "plain"),
        settings={"guide_scale": 0.5, "ranking": "guide"},
    )
    policy = load_policy(planner, options, seed=3)
    assert policy.config.guide == 2 * Spot(center=HERE) + make_guide("plain")
    assert policy.config.planner.guide_scale == 0.5
    assert policy.seed == 3
    assert load_policy(planner, PlanningOptions(), seed=3).config.guide is None


def test_a_saved_guide_stays_unless_another_is_given(
    planner: str, tmp_path: Path
) -> None:
    saved = load_policy(planner, PlanningOptions(guide=("plain",)), seed=0)
    saved.save_pretrained(tmp_path)
    kept = load_policy(
        str(tmp_path), PlanningOptions(settings={"guide_scale": 0.1}), seed=0
    )
    assert kept.config.guide == make_guide("plain")
    other = PlanningOptions(guide=("spot:center=0,1",))
    assert load_policy(str(tmp_path), other, seed=0).config.guide == Spot(center=HERE)


@pytest.mark.parametrize(
    ("planning", "execution", "options"),
    [
        (  # a guide needs more denoising steps there
            {"num_sampling_steps": 1, "min_guided_steps": 1, "guide_placement": "mean"},
            {},
            PlanningOptions(guide=("plain",), settings={"guide_placement": "clean"}),
        ),
        (
            {},
            {"executor": "inverse-dynamics"},  # there is no such network
            PlanningOptions(settings={"executor": "tracking"}),
        ),
    ],
)
def test_a_planner_is_loaded_if_all_that_is_given_makes_it_work(
    planner: str,
    tmp_path: Path,
    planning: dict[str, Any],
    execution: dict[str, Any],
    options: PlanningOptions,
) -> None:
    policy = load_policy(planner, PlanningOptions(), seed=0)
    config = replace(
        policy.config,
        planner=replace(policy.config.planner, **planning),
        execution=replace(policy.config.execution, **execution),
    )
    write_planner(tmp_path, config, policy.networks)
    with pytest.raises(ConfigError):
        load_policy(str(tmp_path), replace(options, settings={}), seed=0)
    changed = load_policy(str(tmp_path), options, seed=0).config
    assert (changed.guide is not None) == bool(options.guide)


def test_a_saved_guide_is_dropped_by_none(
    planner: str, tmp_path: Path, capsys: Capture
) -> None:
    options = PlanningOptions(guide=("plain",), settings={"ranking": "guide"})
    load_policy(planner, options, seed=0).save_pretrained(tmp_path / "saved")
    path = tmp_path / "results.json"
    dropped = ["--guide", "none", "--json", str(path)]
    assert main(["evaluate", str(tmp_path / "saved"), "--episodes", "1", *dropped]) == 0
    capsys.readouterr()
    recorded = json.loads(path.read_text())["settings"]["policy"]
    assert "guide" not in recorded
    assert recorded["planner"]["ranking"] != "guide"


def test_evaluate_takes_guides(planner: str, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "results.json"
    arguments = ["evaluate", planner, "--episodes", "1", "--json", str(path)]
    guides = ["--guide", "plain", "--guide=-2*spot:center=0,1", "--guide-scale", "0.1"]
    assert main([*arguments, *guides]) == 0
    capsys.readouterr()
    recorded = json.loads(path.read_text())["settings"]["policy"]
    assert recorded["planner"]["guide_scale"] == 0.1
    assert [part["guide"] for part in recorded["guide"]] == ["plain", "spot"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--guide", "spott"], "Unknown guide 'spott'. Did you mean 'spot'"),
        (["--guide", "spot:centre=0,1"], "no parameter 'centre'"),
        (["--guide", "none", "--guide", "plain"], "Leave out --guide none: guides"),
        (["--guide", "none", "--guide-scale", "2"], "guide_scale has no effect with"),
        (
            ["--guide", "plain", "--guide-scale", "nan"],
            "'guide_scale' of PlannerConfig must be a fin",
        ),
        (["--guide", "plain", "--guide-steps", "0"], "guide_steps must be positive"),
        (["--guide", "spot:center=0,1;columns=spin"], "trajectory column 'spin'"),
        (["--ranking", "guide"], "ranking='guide' needs a guide"),
        (["--guide-scale", "2"], "guide_scale has no effect without a guide"),
        (["--warm-start", "1.5"], "warm_start must be in (0, 1]"),
        (["--temperature", "-1"], "temperature must be 0 or more"),
    ],
)
def test_mistakes_are_explained(
    planner: str, arguments: list[str], message: str, tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "results.json"
    command = ["evaluate", planner, "--episodes", "1", "--json", str(path)]
    assert main([*command, *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not path.exists()


def test_no_weights_are_read_for_a_guide_that_is_wrong(tmp_path: Path) -> None:
    options = PlanningOptions(guide=("plain:strength=nan",))
    with pytest.raises(GuideError, match="finite"):
        load_policy(str(tmp_path / "nothing"), options, seed=0)


def test_scales_that_are_no_number_are_refused(planner: str) -> None:
    options = PlanningOptions(guide=("plain",), settings={"guide_scale": math.nan})
    with pytest.raises(ConfigError, match="must be a finite number, got nan"):
        load_policy(planner, options, seed=0)
