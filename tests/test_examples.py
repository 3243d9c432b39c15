"""Examples run by the commands in their docstrings, and end with a number."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from diffuser_policy.cli import main
from diffuser_policy.guides.registry import GUIDES
from tests.policy_helpers import untrained_policy

ROOT = Path(__file__).parents[1]
TEACHING = {
    "examples/01_plan_in_a_maze.py": "--picture plan.png",
    "examples/02_any_loop.py": "--episodes 2",
    "examples/03_collect_train_evaluate.py": (
        "--num-data-steps 2000 --num-gradient-steps 3 --episodes 2 --num-workers 1"
    ),
    "examples/04_your_own_env.py": (
        "--num-data-episodes 10 --num-gradient-steps 3 --episodes 4"
    ),
    "examples/05_tower_order.py": "--steps 60 --every 30",
    "examples/06_your_own_methods.py": (
        "--num-data-steps 2000 --num-gradient-steps 20 --num-env-steps 120 --episodes 2"
    ),
    "examples/07_walk.py": (
        "--num-data-episodes 2 --num-gradient-steps 3 --num-clone-steps 3 "
        "--episodes 2 --output planner"
    ),
}
EXPERIMENTS = {
    "examples/experiments/value_guidance.py": (
        "--num-data-episodes 5 --num-gradient-steps 3 --num-value-steps 3 "
        "--episodes 1 --num-candidates 2 --scales"
    ),
    "examples/experiments/keep_out.py": (  # a short way
        "--episodes 1 --seed 48 --fresh-episodes 0 --ablation-episodes 0"
    ),
    "examples/experiments/compose_guides.py": "--episodes 1 --seed 48",  # a short way
    "examples/experiments/warm_start.py": (
        "--planner multi2d-umaze --env-id diffuser_envs/Multi2D-UMaze-v1 "
        "--episodes 1 --executors pursuit --intervals 20 --num-steps 1 2 "
        "--timed-plans 2"
    ),
    "examples/experiments/long_horizon.py": "--episodes 1 --num-sequences 2",
    "examples/experiments/stitching.py": (
        "--num-trips 20 --num-gradient-steps 2 --num-pairs 2"
    ),
    "examples/experiments/growth.py": "--rounds 1 --only guides",
    "examples/experiments/long_plans.py": "--num-plans 3 --episodes 1",
    "examples/experiments/variable_length.py": "--lengths 48 --episodes 1",
    "examples/experiments/block_stacking.py": (
        "--episodes 1 --tasks Unconditional --methods paper demonstrator"
    ),
}
SMALL = TEACHING | EXPERIMENTS
STACKING = (
    "examples/experiments/block_stacking.py",
    "examples/05_tower_order.py",
)

Run = Callable[[list[str]], str]


def commands(example: str) -> list[list[str]]:
    """Return the command lines of an example's docstring, in words."""
    source = (ROOT / example).read_text()
    text = (ast.get_docstring(ast.parse(source)) or "").replace("\\\n", " ")
    lines = re.findall(r"^    python (examples/\S+.*)$", text, flags=re.MULTILINE)
    return [shlex.split(line) for line in lines]


@pytest.fixture
def run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Run]:
    """Run a command in an empty folder, in this process; return what it printed."""
    monkeypatch.chdir(tmp_path)
    # Examples set them themselves; this takes back whatever they do.
    for variable in ("MINARI_DATASETS_PATH", "DIFFUSER_POLICY_CACHE"):
        monkeypatch.setenv(variable, str(tmp_path))
    known = set(gymnasium.registry)

    def run_command(words: list[str]) -> str:
        monkeypatch.setattr(sys, "argv", words)
        runpy.run_path(str(ROOT / words[0]), run_name="__main__")
        return capsys.readouterr().out

    yield run_command
    for name in set(gymnasium.registry) - known:
        if name.startswith("examples/"):
            del gymnasium.registry[name]


def run_small(run: Run, example: str, index: int = 0) -> list[str]:
    """Run one of an example's commands with small numbers; return the lines."""
    if example in STACKING:
        pytest.importorskip("pybullet", reason="needs the extra 'kuka'")
    return run(commands(example)[index] + SMALL[example].split()).splitlines()


def test_every_numbered_example_is_run_here() -> None:
    """An example that no test runs stops working one day."""
    numbered = (ROOT / "examples").glob("[0-9]*.py")
    assert {f"examples/{path.name}" for path in numbered} == set(TEACHING)


@pytest.mark.parametrize("example", SMALL)
def test_an_example_states_how_to_run_it_and_how_to_make_it_bigger(
    example: str,
) -> None:
    """Two commands or more, of the example itself; the first needs no options."""
    first, second, *_ = commands(example)
    assert first == [example]
    assert second[0] == first[0]
    assert len(second) > 1


OWN = ("01_plan_in_a_maze.py", "02_any_loop.py", "04_your_own_env.py")  # have own tests
LONG = (
    "06_your_own_methods.py",
    "block_stacking.py",
    "compose_guides.py",
    "keep_out.py",
    "long_horizon.py",
    "long_plans.py",
    "value_guidance.py",
    "warm_start.py",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "example",
    [
        pytest.param(name, marks=pytest.mark.proof if name.endswith(LONG) else ())
        for name in SMALL
        if not name.endswith(OWN)
    ],
)
def test_an_example_ends_with_a_number(run: Run, example: str) -> None:
    """The command with options runs, and the last line says what came of it.

    The other command is the same without options. The small numbers replace most
    defaults anyway, so running it as well would say nothing new.
    """
    assert re.search(r"\d", run_small(run, example, index=1)[-1])


@pytest.mark.slow
def test_the_planner_beats_the_demonstrator_across_the_large_maze(run: Run) -> None:
    """The first example arrives, earlier than the demonstrator, and draws it."""
    *_, demonstrator, planner = run_small(run, "examples/01_plan_in_a_maze.py")
    steps = [re.search(r"(\d+) env steps", line) for line in (demonstrator, planner)]
    reference, own = (int(found[1]) if found else None for found in steps)
    assert own is not None
    assert reference is None or own < reference
    assert Path("plan.png").stat().st_size > 10_000


@pytest.mark.slow
def test_four_loops_agree(run: Run) -> None:
    """The second example finds no difference; arithmetic may move an arrival by one."""
    last = run_small(run, "examples/02_any_loop.py")[-1]
    assert float(last.rpartition(" ")[2]) <= 1.0


@pytest.mark.slow
def test_a_policy_of_an_own_environment_keeps_the_contract(run: Run) -> None:
    """The fourth example checks every rule, even of a planner that learned nothing."""
    lines = run_small(run, "examples/04_your_own_env.py", index=1)
    assert lines[0] == "contract of predict: 16 rules kept"
    assert [line.partition(":")[0] for line in lines[1:]] == [
        "random actions",
        "the script",
        "the planner",
    ]
    assert "success 100%" in lines[2]


@pytest.mark.slow
def test_warm_starts_are_measured_of_robots_that_walk(run: Run) -> None:
    """Without goals there is no success to report."""
    untrained_policy("Walker2d-v5", horizon=4).save_pretrained("planner")
    words = commands("examples/experiments/warm_start.py")[2]
    files = "--results warm.json --picture warm.png"
    small = "--planner planner --num-steps 1 20 --episodes 1 --timed-plans 2"
    last = run([*words, *small.split(), *files.split()]).splitlines()[-1]
    assert last.startswith(("The warm start of", "No warm start surely"))
    assert "fingerprint" in json.loads(Path("warm.json").read_text())["settings"]
    table = Path("warm.md").read_text()
    assert "| start | steps | score | difference | plans an episode |" in table
    assert table.count("| last K | 20 |") == 2  # temperatures
    assert "| from 0.3 | 20 |" not in table  # three tenths of the schedule are 6 steps
    assert Path("warm.png").stat().st_size > 10_000


def test_warm_starts_of_another_planner_are_not_taken_from_the_file(
    tmp_path: Path,
) -> None:
    made = runpy.run_path(str(ROOT / "examples/experiments/warm_start.py"))
    path = tmp_path / "warm.json"
    earlier = {"planner": "runs/one", "env_id": "Walker2d-v5", "episodes": 1}
    settings = {**earlier, "fingerprint": 7}
    for saved, current, kept in (
        (settings, settings, True),
        (settings, {**settings, "fingerprint": 8}, False),
        (settings, {**settings, "episodes": 2}, False),
        (earlier, settings, True),  # a file of an earlier version
    ):
        made["Results"](saved, {"cell": [(1.0, None, 1)]}).save(path)
        assert bool(made["load"](path, current).episodes) == kept


def test_value_guidance_says_how_many_rows_the_best_was_chosen_from() -> None:
    made = runpy.run_path(str(ROOT / "examples/experiments/value_guidance.py"))
    means = {"demonstrators": 9.0, "unguided": 1.0, "a": 2.0, "b": 4.0, "c": 3.0}
    rows = [
        made["Row"].of(name, np.full(5, mean), [True] * 5)
        for name, mean in means.items()
    ]
    first, second = made["conclusion"](rows).splitlines()
    assert first.startswith("b (highest mean of 3 guided rows) and unguided: ")
    assert first.endswith("don't overlap:")
    assert second == "4.0 [4.0, 4.0] and 1.0 [1.0, 1.0]"


@pytest.mark.parametrize(("left", "shown"), [(2, "5000"), (0, "–")])
def test_a_training_that_resumes_is_timed_by_the_steps_it_takes(
    left: int, shown: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Ten seconds for two steps of a hundred."""
    path = ROOT / "examples/experiments/block_stacking_planners.py"
    pytest.importorskip("pybullet", reason="needs the extra 'kuka'")
    made = runpy.run_path(str(path))
    clock = iter([3.0, 13.0])

    class Training:
        def __init__(self, *_: Any, **__: Any) -> None:
            self.step = 100 - left

        def run(self) -> None:
            self.step = 100

    class Policy:
        @staticmethod
        def from_pretrained(*_: Any, **__: Any) -> None: ...

    class Time:
        @staticmethod
        def process_time() -> float:
            return next(clock)

    stubs = {"Trainer": Training, "DiffuserPolicy": Policy, "time": Time}
    for name, stub in {**stubs, "load_flat": lambda _: None}.items():
        monkeypatch.setitem(made["trained"].__globals__, name, stub)
    name = "objects, 19 columns, residual (shipped)"
    _, milliseconds = made["trained"](made["PLANNERS"][name], 100, name)
    assert milliseconds == (5000.0 if left else None)
    row = {"parameters": 1, "ms": milliseconds, "usable": 0.5}
    row |= {"sideways": [], "upwards": [], "drift": []}
    made["write"](tmp_path / "table", {name: row})
    assert f"| 1 | {shown} | no grasp |" in (tmp_path / "table.md").read_text()


@pytest.fixture
def first_try(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    made = runpy.run_path(str(ROOT / "examples/experiments/first_try.py"))
    monkeypatch.setitem(made["run"].__globals__, "newest", lambda env_id: env_id)
    return made


def test_a_first_try_ends_if_its_data_cannot_be_collected(
    first_try: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    called = []

    def fails(words: list[str]) -> int:
        called.append(words[0])
        return 2

    monkeypatch.setitem(first_try["run"].__globals__, "command", fails)
    with pytest.raises(SystemExit, match="collect failed"):
        first_try["run"]("diffuser_envs/Multi2D-UMaze-v1", 1, 1, tmp_path)
    assert called == ["collect"]


def test_first_tries_of_other_lengths_are_made_anew_and_said(
    first_try: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = []

    def run(env_id: str, episodes: int, steps: int, _: Path) -> dict[str, Any]:
        made.append(episodes)
        sizes = {"steps": steps, "episodes": episodes}
        return {"env": env_id, **sizes, "chosen": "", "seconds": 1.0}

    monkeypatch.setitem(first_try["main"].__globals__, "run", run)
    words = ["first_try.py", "--out", str(tmp_path), "--envs"]
    for env_id, episodes in (
        ("Pendulum-v1", 10),
        ("Hopper-v5", 3),
        ("Pendulum-v1", 3),
        ("Pendulum-v1", 3),
    ):
        monkeypatch.setattr(sys, "argv", [*words, env_id, "--episodes", str(episodes)])
        first_try["main"]()
    assert made == [10, 3, 3]
    first, second, _, last = capsys.readouterr().out.split("# First try\n\n")[1:]
    page = ROOT / "examples/results/first_try.md"
    assert text_of(first)[:6] == text_of(page.read_text())[2:8]
    assert "mean return of 3 episodes" in second
    assert "| Pendulum-v1 |" not in second  # its row is of other evaluations
    assert last.count("\n| Pendulum-v1 |") == last.count("\n| Hopper-v5 |") == 1


def test_the_locomotion_experiment_asks_for_what_there_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its options exist, and a result makes a row of its table."""
    monkeypatch.setattr(GUIDES, "registered", {})
    path = ROOT / "examples/experiments/locomotion.py"
    spec = importlib.util.spec_from_file_location("locomotion", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "locomotion", module)  # annotations are looked up
    spec.loader.exec_module(module)
    made = vars(module)
    calls = [
        ["train", "--dataset", "none/none-v0", *options.split()]
        for options in made["NETWORKS"].values()
    ]
    calls += [["evaluate", "no-planner", *way.split()] for way in made["WAYS"].values()]
    for call in calls:
        assert main(call)
        error = capsys.readouterr().err
        assert "none/none-v0" in error or "no-planner" in error
    interval = {"mean": 7.0, "low": 6.0, "high": 8.0}
    data = {
        "summary": {"score": interval, "return": interval, "plan_ms": interval},
        "settings": {"episodes": 20},
        "versions": {},
    }
    for network, options in made["NETWORKS"].items():
        ways = made["ways_of"](network)
        assert ways["one step"] is None
        horizon = options.split()[1]
        assert ("value of the end, of 8" in ways) <= (horizon != "1")
    assert made["ways_of"]("H 4")["value of the end, of 8"] == "critic"
    assert made["ways_of"]("H 1")["critic of 8"] == "critic"
    slower = {"summary": {"plan_ms": {**interval, "mean": 9.0}}}
    folder = tmp_path / "walker2d-medium-v1"
    folder.mkdir()
    (folder / "H 4, one step.json").write_text(json.dumps(data))
    assert made["collected"](tmp_path) == []  # its time alone is still to be measured
    (folder / "H 4, one step, alone.json").write_text(json.dumps(slower))
    table = made["as_markdown"](made["collected"](tmp_path), 8000)
    assert "trained for 8,000 gradient steps: 20 episodes" in table
    assert "| network | way | walker2d-medium | ms, alone | ms, together |" in table
    assert "| H 4 | one step | 7.0 [6.0, 8.0] | 9.0 | 7.0 |" in table


def text_of(page: str) -> list[str]:
    """Return the lines of a page outside of its tables."""
    return [line for line in page.splitlines() if not line.startswith("|")]


def test_the_page_of_composed_guides_has_the_text_of_its_script(tmp_path: Path) -> None:
    made = runpy.run_path(str(ROOT / "examples/experiments/compose_guides.py"))
    results = ROOT / "examples/results/compose_guides.json"
    episodes = json.loads(results.read_text())["episodes"]
    outcomes = {
        frozenset(name.split(" + ")) - {"none of them"}: [
            made["Outcome"](**episode["outcomes"][name]) for episode in episodes
        ]
        for name in episodes[0]["outcomes"]
    }
    made["save"](outcomes, episodes, tmp_path / "made.json")
    page = results.with_suffix(".md").read_text()
    assert text_of((tmp_path / "made.md").read_text()) == text_of(page)


@pytest.mark.parametrize(
    "change", [{}, {"gap": -0.01}, {"miss": 0.2}, {"too_fast": 0.1}, {"success": False}]
)
def test_composed_guides_are_obeyed_by_every_measure(change: dict[str, Any]) -> None:
    made = runpy.run_path(str(ROOT / "examples/experiments/compose_guides.py"))
    good = {"gap": 0.1, "miss": 0.01, "too_fast": 0.02, "success": True, "score": 150.0}
    assert made["Outcome"](**{**good, **change}).as_asked == (not change)


def test_the_page_of_kept_out_discs_has_the_text_of_its_script() -> None:
    made = runpy.run_path(str(ROOT / "examples/experiments/keep_out.py"))
    results = ROOT / "examples/results/keep_out.json"
    data = json.loads(results.read_text())

    def trials(rows: list[dict[str, Any]]) -> list[Any]:
        return [
            made["Trial"](
                seed=row.pop("seed"),
                discs=made["Discs"](
                    centers=np.array(row.pop("centers")), radius=row.pop("radius")
                ),
                goal=np.array(row.pop("goal")),
                paths={},
                outcomes={name: made["Outcome"](**kept) for name, kept in row.items()},
            )
            for row in rows
        ]

    first, *others = map(trials, (data["trials"], data["fresh"], data["ablations"]))
    titles = (
        "Fresh episodes: 100 from seed 3000",
        "One thing changed: 20 from seed 1000",
    )
    tables = [made["table"](part, header="plans") for part in (first, *others)]
    tables[-1] += ["", made["TWO_THINGS"]]
    parts = dict(zip(("The same episodes", *titles), tables, strict=True))
    page = results.with_suffix(".md").read_text()
    assert text_of(made["report"](parts, first, data["skipped"])) == text_of(page)


@pytest.mark.slow
def test_a_robot_is_filmed_with_its_planned_states(tmp_path: Path) -> None:
    """In a process of its own: where MuJoCo renders is settled when it is imported."""
    image = pytest.importorskip("PIL.Image")
    robot = "HalfCheetah-v5"
    untrained_policy(robot, horizon=4).save_pretrained(tmp_path / "planner")
    example = ROOT / "examples/experiments/locomotion_pictures.py"
    words = f"--env-id {robot} --planner planner --picture robot.gif --start 2"
    small = "--size 60 40 --num-ghosts 2 --every 2 --seconds 0.3"
    done = subprocess.run(
        [sys.executable, str(example), *words.split(), *small.split()],
        cwd=tmp_path,
        env={**os.environ, "MUJOCO_GL": "egl"},
        capture_output=True,
        text=True,
        check=False,
    )
    if "OpenGL" in done.stderr or "EGL" in done.stderr:
        pytest.skip("nothing can be rendered here")
    assert done.returncode == 0, done.stderr
    assert "4 env steps ahead, coordinates are off by" in done.stdout
    with image.open(tmp_path / "robot.gif") as film:
        assert (film.format, film.size) == ("GIF", (60, 40))
        assert film.n_frames == 6  # one for each of its env steps
