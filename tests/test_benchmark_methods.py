"""Methods and suites by name: found, described, refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from diffuser_policy.benchmark import MethodContext, Problem, register_method
from diffuser_policy.benchmark.methods import (
    METHODS,
    check_reachable,
    find_method,
    short_name,
)
from diffuser_policy.benchmark.suites import SUITES, Suite, load_suite
from diffuser_policy.errors import ConfigError, MissingExtraError, UnknownNameError

PROBLEM = Problem(env="diffuser_envs/Multi2D-UMaze-v1", dataset="x/y-v0")
SUITE = """
num_steps = 10
seeds = [0, 1]
[evaluation]
seeds = [7]
episodes = 3
[[problems]]
env = "diffuser_envs/Multi2D-UMaze-v1"
dataset = "diffuser/multi2d-umaze-v1"
goals = "hindsight"
[[problems]]
env = "diffuser_envs/Maze2D-UMaze-v1"
dataset = "diffuser/multi2d-umaze-v1"
methods = ["iql"]
[methods.iql]
width = 8
multi2d-umaze = { expectile = 0.9 }
[methods.demonstrator]
"""


def test_a_registered_function_is_found_with_its_settings() -> None:
    @register_method("test-slow", label="Slow", goals=("none",), needs_dataset=False)
    def slow(training: MethodContext, *, speed: float = 1.0) -> object:
        """Go slowly."""

    method = find_method("test-slow")
    assert method.label == "Slow"
    assert "test-slow" in METHODS.names()
    assert method.settings({}) == {"speed": 1.0}
    assert method.settings({"speed": 2.0}) == {"speed": 2.0}
    with pytest.raises(ConfigError, match=r"no setting 'sped'\. Did you mean 'speed'"):
        method.settings({"sped": 1.0})
    hindsight = Problem(env="a/B-v0", dataset="x/y-v0", goals="hindsight")
    with pytest.raises(ConfigError, match="Leave it out"):
        method.check(hindsight, {})


def test_every_keyword_argument_is_a_setting(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def fast(context, *, speed: float, seed=3): ...\n")
    method = find_method(f"{path}:fast")
    assert method.settings({"speed": 2}) == {"speed": 2.0, "seed": 3}
    assert method.settings({"speed": 2, "seed": 4})["seed"] == 4
    with pytest.raises(ConfigError, match=r"'fast' needs speed\..*speed \(required\)"):
        method.check(PROBLEM, {"seed": 4})
    with pytest.raises(ConfigError, match="no setting 'context'"):
        method.settings({"speed": 2, "context": 1})


@pytest.mark.parametrize("module", ["no_such_module", "no_such_package.part"])
def test_a_missing_module_is_told_before_anything_runs(module: str) -> None:
    def absent(training: MethodContext) -> object: ...

    register_method("test-absent", modules={module: "baselines"})(absent)
    with pytest.raises(MissingExtraError, match=r"pip install .\.\[baselines\]"):
        find_method("test-absent").check(PROBLEM, {})


def test_a_function_of_a_file_is_a_method(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def north(training): ...\ndef empty(): ...\n")
    assert find_method(f"{path}:north").label == "north"
    with pytest.raises(ConfigError, match=r"arguments of torch:.*sum cannot be read"):
        find_method("torch:sum")
    with pytest.raises(ConfigError, match="takes no argument"):
        find_method(f"{path}:empty")


OTHERS = """
import functools
from diffuser_policy.benchmark import register_method

@register_method("base", label="Base", goals=("none",))
def base(context, *, speed: float = 1.0):
    return "base"

@functools.wraps(base)
def tuned(context, *, speed: float = 1.0):
    return "tuned"

@register_method("first", label="First")
class First:
    def __init__(self, context): ...

class Second(First):
    def __init__(self, context, *, gain: float = 2.0): ...
"""


def test_a_wrapper_or_subclass_of_a_method_is_a_method_of_its_own(
    tmp_path: Path,
) -> None:
    path = tmp_path / "others.py"
    path.write_text(OTHERS)
    base, tuned, first, second = (
        find_method(f"{path}:{name}") for name in ("base", "tuned", "First", "Second")
    )
    assert (base.label, base.function(None)) == ("Base", "base")
    assert (tuned.label, tuned.function(None)) == ("tuned", "tuned")
    assert tuned.goals == base.goals == ("none",)
    assert first.label == "First"
    assert second.label == "second"
    assert second.settings({}) == {"gain": 2.0}
    assert type(second.function(None)).__name__ == "Second"


def test_a_function_with_two_names_is_two_methods() -> None:
    @register_method("test-one", needs_dataset=False)
    @register_method("test-two", label="Two", goals=("none",))
    def both(training: MethodContext) -> object: ...

    one, two = find_method("test-one"), find_method("test-two")
    assert (one.label, one.needs_dataset) == ("test-one", False)
    assert (two.label, two.needs_dataset, two.goals) == ("Two", True, ("none",))


class Slim:
    """An object that takes no attributes."""

    __slots__ = ()

    def __call__(self, training: MethodContext) -> object: ...

    def go(self, training: MethodContext) -> object: ...


@pytest.mark.parametrize("method", [Slim(), Slim().go], ids=["object", "bound"])
def test_a_method_need_not_take_attributes(
    monkeypatch: pytest.MonkeyPatch, method: Any
) -> None:
    monkeypatch.setattr(METHODS, "registered", {})
    assert register_method("test-slim", label="Slim")(method) is method
    assert find_method("test-slim").label == "Slim"


def test_our_methods_are_offered_and_need_nothing_to_be_listed() -> None:
    for name in ("bc", "bcq", "cql", "iql", "td3-bc", "awac", "rebrac", "diffuser"):
        assert name in METHODS.names()
        assert find_method(name).name == name
    assert find_method("iql").settings({})["expectile"] == 0.7
    assert find_method("bcq").settings({})["num_action_samples"] == 10  # as the paper


def test_misspelled_names_get_suggestions() -> None:
    with pytest.raises(UnknownNameError, match=r"Did you mean 'td3-bc'"):
        find_method("td3bc")
    with pytest.raises(UnknownNameError, match=r"Did you mean 'maze'"):
        load_suite("mase")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("td3-bc", "td3-bc"), ("a/b/my file.py:North_East", "north-east"), ("m:f", "f")],
)
def test_names_fit_into_folders(name: str, expected: str) -> None:
    assert short_name(name) == expected


def test_a_suite_is_read_from_toml(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(SUITE)
    suite = load_suite(path)
    cells = suite.cells()
    assert suite.name == "mine"
    assert [cell.id for cell in cells] == [
        "multi2d-umaze--iql--seed-0",
        "multi2d-umaze--iql--seed-1",
        "multi2d-umaze--demonstrator--seed-0",
        "multi2d-umaze--demonstrator--seed-1",
        "maze2d-umaze--iql--seed-0",
        "maze2d-umaze--iql--seed-1",
    ]
    assert cells[0].settings == {"width": 8, "expectile": 0.9}
    assert cells[4].settings == {"width": 8}
    assert cells[0].num_steps == 10
    assert cells[0].evaluation.seeds == (7,)
    named = suite.cells(methods=["iql", "demonstrator"], seeds=[0])
    assert len(named) == 3  # the demonstrator has no place on the second problem
    chosen = suite.cells(methods=["bc"], problems=["Maze2D-UMaze"], seeds=[5])
    assert [cell.id for cell in chosen] == ["maze2d-umaze--bc--seed-5"]


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("num_steps = 10", "num_stps = 10", "num_stps"),
        ("seeds = [0, 1]", "seeds = [0, 0]", "seeds have to differ"),
        ('methods = ["iql"]', 'methods = ["cql"]', "cql"),
        ('goals = "hindsight"', 'goals = "foresight"', "foresight"),
        ("[methods.iql]", "[methods", "cannot be read"),
        ("episodes = 3", "episodes = 0", "episodes must be positive"),
        (
            "episodes = 3",
            'episodes = "3"',
            "'episodes' of .* must be a whole number",
        ),
        (
            "num_steps = 10",
            'num_steps = "many"',
            "'num_steps' of .* a whole number or none",
        ),
        ("seeds = [0, 1]", 'seeds = "01"', "must be a list of whole numbers, got '01'"),
        ("seeds = [0, 1]", "seeds = [0.5]", "must be a list of whole numbers"),
        ('methods = ["iql"]', 'methods = "iql"', "must be a list"),
        (
            "[methods.demonstrator]",
            "[methods]\nbc = 3",
            "at 'bc', must be a table, got 3",
        ),
        ('env = "diffuser_envs/Maze2D-UMaze-v1"', "", "Problem needs env"),
        (
            "multi2d-umaze = { expectile = 0.9 }",
            "multi2d-umaze = 3",
            "under the method 'iql', it must be a table .*, got 3",
        ),
        (
            "[methods.demonstrator]",
            "[num_steps_of]\niql = 0",
            "num_steps must be positive, got 0",
        ),
        ("seeds = [0, 1]", "seeds = []", "needs at least one seed"),
        (
            "[methods.demonstrator]",
            "[seeds_of]\niql = []",
            "needs at least one seed",
        ),
    ],
)
def test_bad_suites_are_explained(
    before: str, after: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "bad.toml"
    assert before in SUITE
    path.write_text(SUITE.replace(before, after))
    with pytest.raises((ConfigError, UnknownNameError), match=message):
        load_suite(path).cells()


def test_problems_are_a_list_of_tables(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text('problems = { env = "a" }\nmethods = { bc = {} }\n')
    with pytest.raises(ConfigError, match="problems are tables"):
        load_suite(path)


def test_seeds_and_problems_are_checked() -> None:
    suite = load_suite("maze")
    with pytest.raises(UnknownNameError, match="Did you mean 'multi2d-large'"):
        suite.cells(problems=["multi2d-lage"])
    with pytest.raises(ConfigError, match="have to differ"):
        suite.cells(seeds=[0, 0])
    with pytest.raises(ConfigError, match="needs at least one seed"):
        suite.cells(seeds=[])
    once = suite.cells(problems=["multi2d-large"])
    assert suite.cells(problems=["multi2d-large", "Multi2D-Large"]) == once
    with pytest.raises(ConfigError, match="A training seed must be"):
        suite.cells(seeds=[-1])


def test_the_suites_cover_the_papers_tables() -> None:
    assert len(load_suite("maze").cells()) == 6 * (8 + 8)  # four have three seeds
    assert len(load_suite("kuka").cells()) == 3 * 5
    for name in SUITES:
        for cell in load_suite(name).cells():
            method = find_method(cell.method)
            method.settings(cell.settings)
            assert cell.problem.goals in method.goals
        ids = [cell.id for cell in load_suite(name).cells()]
        assert len(set(ids)) == len(ids)


def test_two_problems_of_one_name_are_refused() -> None:
    other = Problem(env="other/Multi2D-UMaze-v3", dataset="x/y-v0")
    first = Problem(env="Hopper-v5", dataset="x/y-v0", goals="none")
    with pytest.raises(ConfigError, match=r'same name.*"Multi2D-UMaze-medium"'):
        Suite(name="twice", problems=(first, PROBLEM, other), methods={})


def test_a_method_that_cells_would_not_find_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])

    @register_method("test-mine", needs_dataset=False)
    def mine(training: MethodContext) -> Any:
        return training

    with pytest.raises(ConfigError, match=r"'tests.test_benchmark_methods\.py:mine'"):
        check_reachable("test-mine")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=re.escape(f"'{__file__}:mine'")):
        check_reachable("test-mine")

    class Called:
        def __call__(self, training: MethodContext) -> Any:
            return training

    register_method("test-called", needs_dataset=False)(Called())
    with pytest.raises(ConfigError, match=r"this process only.*'FILE\.py:NAME'"):
        check_reachable("test-called")
    check_reachable("bc")
    check_reachable(f"{Path(__file__)}:mine")  # whether it is there, is asked later


@pytest.mark.parametrize(
    ("given", "fits"),
    [
        ({"width": "a"}, False),
        ({"width": 0.5}, False),
        ({"width": True}, False),
        ({"learning_rate": "fast"}, False),
        ({"width": 64, "learning_rate": 1}, True),
    ],
)
def test_settings_are_of_the_type_of_their_default(
    given: dict[str, Any], fits: bool
) -> None:
    method = find_method("bc")
    if fits:
        assert method.settings(given).items() >= given.items()
        return
    [name] = given
    with pytest.raises(ConfigError, match=f"{name}' of the method 'bc' must be"):
        method.settings(given)


@pytest.mark.parametrize(
    ("settings", "refusal"),
    [
        ({}, None),
        ({"planner": "multi2d-umaze", "preset": "multi2d-umaze"}, "either planner"),
        ({"planner": "multi2d-large"}, "was trained on 'diffuser/multi2d-large-v1'"),
        ({"planner": "multi2d-umaze"}, None),
        ({"preset": "multi2d-umaze"}, None),
    ],
)
def test_diffuser_takes_one_planner_of_the_same_data(
    settings: dict[str, Any], refusal: str | None
) -> None:
    problem = Problem(
        env="diffuser_envs/Multi2D-UMaze-v1",
        dataset="diffuser/multi2d-umaze-v1",
        goals="hindsight",
    )
    if refusal is None:
        find_method("diffuser").check(problem, settings)
        return
    with pytest.raises(ConfigError, match=refusal):
        find_method("diffuser").check(problem, settings)
