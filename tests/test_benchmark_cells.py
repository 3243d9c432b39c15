"""Cells: what one process does, leaves, refuses, and does not do twice."""

from __future__ import annotations

import inspect
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffuser_policy.benchmark import Problem, cell_process, cells
from diffuser_policy.benchmark.cell_process import draw_plan, main, run_cell
from diffuser_policy.benchmark.cells import (
    CURVE_SEED,
    Cell,
    CellFolder,
    EvaluationProtocol,
    load_results,
    read_result,
)
from diffuser_policy.benchmark.engines import BUSY
from diffuser_policy.benchmark.methods import Method
from diffuser_policy.benchmark.suites import SUITES, load_suite
from diffuser_policy.checkpoint import CONFIG
from diffuser_policy.errors import CheckpointError, ConfigError
from diffuser_policy.evaluation import evaluate
from diffuser_policy.evaluation.loop import PlannedEpisode, planned_episode
from diffuser_policy.planning.plan import Plan
from diffuser_policy.plotting import Scene, plan_figure
from diffuser_policy.policy import DiffuserPolicy
from diffuser_policy.settings import from_json
from diffuser_policy.testing import toy_policy
from tests.point_env import POINT, PointEnv
from tests.training_helpers import pendulum_policy

PLAN = EvaluationProtocol(
    seeds=(5, 50), episodes=3, num_envs=2, curve_episodes=2, curve_points=4
)
METHODS = '''
import numpy as np

class Constant:
    def __init__(self, value, shape=(1,)):
        self.value, self.shape = value, shape

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return np.full((len(observation), *self.shape), self.value, np.float32), None

def right(training, *, push=1.0):
    """Push to the right."""
    with (training.folder / "calls.txt").open("a") as file:
        file.write("called\\n")
    return Constant(push)

def too_far(training):
    return Constant(1.5)

def no_number(training):
    return Constant(float("nan"))

def wrong_shape(training):
    return Constant(0.0, shape=(3,))

def no_state(training):
    class Alone(Constant):
        def predict(self, observation, **rest):
            return super().predict(observation)[0]
    return Alone(0.0)

def nothing(training):
    pass

def no_policy(training):
    return object()

def bare_predict(training):
    class Bare:
        def predict(self, observation):
            return observation
    return Bare()

def fails(training):
    raise RuntimeError("the optimizer is on fire")

def steered(training, *, planner=None):
    return Constant(0.5)

def noisy(training):
    class Noisy:
        def predict(self, observation, **rest):
            return np.random.uniform(-1, 1, (len(observation), 1)).astype("f4"), None
    return Noisy()
'''


@pytest.fixture
def methods(tmp_path: Path) -> Path:
    path = tmp_path / "methods.py"
    path.write_text(METHODS)
    return path


def make_cell(method: str, **changes: Any) -> Cell:
    problem = Problem(env="test/Line-none-v0", dataset="test/line-v0")
    settings: dict[str, Any] = {"problem": problem, "evaluation": PLAN, **changes}
    return Cell(method=method, **settings)


def prepared(folder: Path, cell: Cell) -> CellFolder:
    import tests.baseline_helpers  # noqa: F401 (registers the environments)

    files = CellFolder(folder, cell.id)
    files.prepare(cell)
    return files


def test_a_cell_leaves_every_episode(methods: Path, tmp_path: Path) -> None:
    cell = make_cell(f"{methods}:right", settings={"push": 0.5})
    result = run_cell(cell, prepared(tmp_path, cell))
    assert result["training"]["settings"] == {"push": 0.5}
    [read] = load_results(tmp_path)
    assert read.cell == cell
    assert [item["seed"] for item in read.evaluations] == [5, 50]
    assert [episode["seed"] for episode in read.episodes] == [5, 6, 7, 50, 51, 52]
    assert read.timing["attempts"] == 1
    assert read.versions["gymnasium"]


def test_a_finished_cell_is_not_run_again(methods: Path, tmp_path: Path) -> None:
    cell = make_cell(f"{methods}:right")
    files = prepared(tmp_path, cell)
    assert main([str(tmp_path), cell.id]) == 0
    before = (files.path / "result.json").read_bytes()
    assert main([str(tmp_path), cell.id]) == 0
    assert (files.path / "result.json").read_bytes() == before
    assert (files.work / "calls.txt").read_text() == "called\n"


def test_evaluations_that_are_there_are_kept(methods: Path, tmp_path: Path) -> None:
    cell = make_cell(f"{methods}:noisy")
    files = prepared(tmp_path, cell)
    first = run_cell(cell, files)
    files.remove("result")
    files.remove("evaluation-50")  # as if killed in the second evaluation
    marked = files.read("evaluation-5")
    marked["episodes"][0]["return"] = 123.0
    files.write("evaluation-5", marked)
    second = run_cell(cell, files)
    assert second["evaluations"][0]["columns"]["return"][0] == 123.0
    assert second["evaluations"][1] == first["evaluations"][1]  # same seeds, same noise


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("too_far", "outside of the action space"),
        ("no_number", "not numbers"),
        ("wrong_shape", "actions of shape"),
        ("no_state", "must return (action, state)"),
        ("nothing", "returned nothing"),
        ("no_policy", "has no predict"),
        ("bare_predict", "contract is predict"),
        ("fails", "the optimizer is on fire"),
    ],
)
def test_what_goes_wrong_is_written_down(
    name: str, message: str, methods: Path, tmp_path: Path
) -> None:
    cell = make_cell(f"{methods}:{name}")
    files = prepared(tmp_path, cell)
    assert main([str(tmp_path), cell.id]) == 1
    error = files.read("error")
    assert message in error["message"]
    assert files.read("result") is None


def test_a_failure_is_forgotten_when_it_is_repaired(
    methods: Path, tmp_path: Path
) -> None:
    cell = make_cell(f"{methods}:right")
    files = prepared(tmp_path, cell)
    for _ in range(2):  # also of a cell that was killed after its result was written
        files.write("error", {"message": "of another day"})
        assert main([str(tmp_path), cell.id]) == 0
        assert files.read("error") is None


def test_a_cell_that_another_process_holds_is_left_alone(
    methods: Path, tmp_path: Path
) -> None:
    cell = make_cell(f"{methods}:right")
    files = prepared(tmp_path, cell)
    with files.lock():
        assert main([str(tmp_path), cell.id]) == BUSY
    assert all(files.read(name) is None for name in ("versions", "result", "error"))
    assert main([str(tmp_path), cell.id]) == 0


def test_a_cell_is_a_process(methods: Path, tmp_path: Path) -> None:
    cell = make_cell(f"{methods}:right")
    cell = from_json(
        Cell,
        {**cell.to_json(), "problem": {**cell.problem.to_json(), "env": "CartPole-v1"}},
    )
    prepared(tmp_path, cell)
    command = [sys.executable, "-m", "diffuser_policy.benchmark.cell_process"]
    done = subprocess.run(
        [*command, str(tmp_path), cell.id], capture_output=True, text=True, check=False
    )
    # CartPole's actions are numbers, not arrays of one: explained, not crashed.
    assert done.returncode == 1
    assert "actions of shape" in done.stderr


def test_other_settings_in_the_same_folder_are_refused(
    methods: Path, tmp_path: Path
) -> None:
    files = prepared(tmp_path, make_cell(f"{methods}:right"))
    (files.work / "checkpoint").mkdir(parents=True)
    before = (files.path / "cell.json").read_bytes()
    other = make_cell(f"{methods}:right", settings={"push": 0.5}, num_steps=7)
    with pytest.raises(ConfigError, match=r"num_steps: None → 7.*push: not set → 0\.5"):
        CellFolder(tmp_path, other.id).prepare(other)
    assert (files.path / "cell.json").read_bytes() == before


def test_an_equal_number_of_another_type_is_no_other_setting(
    methods: Path, tmp_path: Path
) -> None:
    whole, real = (
        make_cell(f"{methods}:right", settings={"push": push}, suite=suite)
        for push, suite in ((1, "a"), (1.0, "b"))
    )
    files = prepared(tmp_path, whole)
    assert main([str(tmp_path), whole.id]) == 0
    before = (files.path / "result.json").read_bytes()
    files.prepare(real)
    assert files.cell().digest == whole.digest  # that of the work
    assert files.cell().suite == "b"
    assert main([str(tmp_path), real.id]) == 0
    assert (files.path / "result.json").read_bytes() == before


def test_a_setting_that_is_none_is_not_one_that_is_missing(tmp_path: Path) -> None:
    files = prepared(tmp_path, make_cell("diffuser"))
    files.write("curve", [])
    with pytest.raises(ConfigError, match=r"settings\.planner: not set → None\."):
        files.prepare(make_cell("diffuser", settings={"planner": None}))


def test_settings_can_be_corrected_before_anything_was_done(tmp_path: Path) -> None:
    files = prepared(tmp_path, make_cell("bc", settings={"width": 0}))
    files.write("error", {"type": "ConfigError", "message": "width must be positive"})
    right = make_cell("bc", settings={"width": 8})
    files.prepare(right)
    assert files.cell() == right


@pytest.mark.parametrize("place", ["{methods}", "{methods.stem}"])
def test_results_of_code_that_was_edited_are_refused(
    methods: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    methods = methods.rename(tmp_path / "edited_methods.py")
    monkeypatch.syspath_prepend(tmp_path)
    cell = make_cell(f"{place.format(methods=methods)}:right")
    files = prepared(tmp_path, cell)
    files.write("curve", [])
    files.prepare(cell)
    methods.write_text(methods.read_text() + "\n# changed\n")
    with pytest.raises(ConfigError, match=r"code: \w+ → \w+.*begin the cell anew"):
        files.prepare(cell)
    sys.modules.pop("edited_methods", None)


def test_results_from_before_code_was_recorded_are_kept(
    methods: Path, tmp_path: Path
) -> None:
    cell = make_cell(f"{methods}:right")
    files = prepared(tmp_path, cell)
    files.write("curve", [])
    recorded = files.read("cell")
    files.write("cell", {k: v for k, v in recorded.items() if k != "code"})
    assert files.prepare(cell) == recorded


def test_a_result_says_which_code_made_it(methods: Path, tmp_path: Path) -> None:
    cell = make_cell(f"{methods}:right")
    files = prepared(tmp_path, cell)
    before = files.read("cell")["code"]
    methods.write_text(methods.read_text() + "\n# while the cell waited for its turn\n")
    run_cell(cell, files)
    [result] = load_results(tmp_path)
    assert result.code == files.read("cell")["code"] != before


def test_another_planner_under_the_same_name_is_refused(
    methods: Path, tmp_path: Path
) -> None:
    planner, runs = tmp_path / "planner", tmp_path / "runs"
    toy_policy(seed=0).save_pretrained(planner)
    cell = make_cell(f"{methods}:steered", settings={"planner": str(planner)})
    files = prepared(runs, cell)
    files.write("curve", [])
    config = json.loads((planner / CONFIG).read_text())
    config["provenance"]["results"] = {}  # as `evaluate --card` does
    (planner / CONFIG).write_text(json.dumps(config))
    files.prepare(cell)
    for other in (toy_policy(seed=1), toy_policy(seed=0, num_candidates=3)):
        other.save_pretrained(planner)
        with pytest.raises(ConfigError, match=r"\): planner: \w+ → \w+\..*anew"):
            files.prepare(cell)
    planner.rename(tmp_path / "elsewhere")
    assert files.prepare(cell)["planner"] == files.read("cell")["planner"]
    (tmp_path / "elsewhere").rename(planner)
    saved = files.read("cell")
    del saved["planner"]  # as earlier versions wrote it
    files.write("cell", saved)
    assert files.prepare(cell)["planner"]


def test_a_result_says_which_planner_made_it(methods: Path, tmp_path: Path) -> None:
    planner, runs = tmp_path / "planner", tmp_path / "runs"
    toy_policy(seed=0).save_pretrained(planner)
    cell = make_cell(f"{methods}:steered", settings={"planner": str(planner)})
    files = prepared(runs, cell)
    before = files.read("cell")["planner"]
    toy_policy(seed=1).save_pretrained(planner)  # while the cell waited for its turn
    run_cell(cell, files)
    [result] = load_results(runs)
    assert result.planner == files.read("cell")["planner"] != before
    assert files.cell() == cell


def test_a_setting_named_planner_may_be_no_planner(
    methods: Path, tmp_path: Path
) -> None:
    cell = make_cell(f"{methods}:steered", settings={"planner": "rrt"})
    assert "planner" not in prepared(tmp_path, cell).read("cell")


def test_a_cell_survives_json() -> None:
    cell = make_cell(
        "iql", seed=3, settings={"width": 64}, num_steps=10, max_steps=20, suite="mine"
    )
    again = from_json(Cell, json.loads(json.dumps(cell.to_json())))
    assert again == cell
    assert again.digest == cell.digest
    assert cell.id == "line-none--iql--seed-3"


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"settings": {"width": 8}},
        {"num_steps": 11},
        {"evaluation": EvaluationProtocol(seeds=(5, 50), episodes=4)},
        {"problem": Problem(env="test/Line-new-v0", dataset="test/line-v0")},
    ],
)
def test_whatever_changes_results_changes_the_digest(change: dict[str, Any]) -> None:
    assert make_cell("iql").digest != make_cell("iql", **change).digest
    assert make_cell("iql", suite="a").digest == make_cell("iql", suite="b").digest


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ((), "needs at least one seed"),
        ((-1,), "An evaluation seed must be"),
        ((0, 2), "share episodes"),
        ((900_019,), "shares episodes with the learning curves"),
    ],
)
def test_evaluation_seeds_do_not_overlap(seeds: tuple[int, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EvaluationProtocol(seeds=seeds, episodes=3)


def test_no_suite_is_evaluated_on_episodes_of_the_curves() -> None:
    for name in SUITES:
        plan = load_suite(name).evaluation
        curve = set(range(CURVE_SEED, CURVE_SEED + plan.curve_episodes))
        for seed in plan.seeds:
            assert not curve & set(range(seed, seed + plan.episodes))


@pytest.mark.parametrize(
    "budget", [{"max_steps": 5}, {"num_steps": 5, "max_steps": 4}, {"num_steps": 0}]
)
def test_budgets_make_sense(budget: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="num_steps"):
        make_cell("iql", **budget)


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Changes which settings the method "right" has, and their defaults."""

    def settings(**defaults: Any) -> None:
        def right(training: Any, **_: Any) -> None: ...

        positional = inspect.Parameter("training", inspect.Parameter.POSITIONAL_ONLY)
        keywords = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
            for name, default in defaults.items()
        ]
        right.__signature__ = inspect.Signature([positional, *keywords])  # type: ignore[attr-defined]
        method = Method(name="right", function=right, label="right")
        monkeypatch.setattr(cells, "find_method", lambda _: method)

    return settings


def test_a_default_that_changed_is_noticed(
    tmp_path: Path, offer: Callable[..., None]
) -> None:
    cell = make_cell("right")
    files = CellFolder(tmp_path, cell.id)
    offer(push=0.1)
    files.prepare(cell)
    files.write("curve", [])
    files.prepare(cell)
    offer(push=0.9)
    with pytest.raises(ConfigError, match=r"push: 0.1 → 0.9"):
        files.prepare(cell)


def test_a_setting_that_is_new_is_no_difference_unless_it_is_set(
    tmp_path: Path, offer: Callable[..., None]
) -> None:
    cell = make_cell("right", settings={"push": 0.1})
    files = CellFolder(tmp_path, cell.id)
    offer(push=0.0)
    files.prepare(cell)
    files.write("curve", [])
    offer(push=0.0, pull=0.0)
    files.prepare(cell)
    files.write("cell", {**files.read("cell"), "all_settings": {"push": 0.1}})
    pulling = make_cell("right", settings={"push": 0.1, "pull": 0.0})
    with pytest.raises(ConfigError, match=r"settings\.pull: not set → 0\.0"):
        files.prepare(pulling)
    offer(pull=0.0)
    with pytest.raises(ConfigError, match=r"all_settings\.push: 0\.1 → not set"):
        files.prepare(make_cell("right"))


def test_a_setting_that_a_method_lost_is_no_difference_at_its_old_default(
    tmp_path: Path, offer: Callable[..., None]
) -> None:
    cell = make_cell("right", settings={"push": 0.1})
    files = CellFolder(tmp_path, cell.id)
    offer(push=0.0, clip_values=False)
    files.prepare(cell)
    files.write("curve", [])
    offer(push=0.0)
    files.prepare(cell)
    files.prepare(cell)  # which has rewritten cell.json
    files.write("cell", {**files.read("cell"), "all_settings": {"clip_values": True}})
    with pytest.raises(ConfigError, match=r"clip_values: True → not set"):
        files.prepare(cell)


@pytest.mark.parametrize("default", [math.inf, (1.0, math.nan), object()])
def test_a_default_that_has_no_form_in_json_is_named(
    tmp_path: Path, offer: Callable[..., None], default: Any
) -> None:
    offer(push=0.1, cap=default)
    cell = make_cell("right")
    told = r"^The setting 'cap' of the method 'right' must be a value that is finite"
    with pytest.raises(ConfigError, match=told):
        CellFolder(tmp_path, cell.id).prepare(cell)


def test_damaged_results_say_so(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    for text, message in (
        ("{", "cannot be read"),
        ('{"schema": 7}', "schema 7"),
        ('{"schema": "1"}', "schema '1', this version reads 1"),
        ('{"schema": 1}', "lacks"),
        ("[]", "schema None"),
    ):
        path.write_text(text)
        with pytest.raises(CheckpointError, match=message):
            read_result(path)
    with pytest.raises(ConfigError, match="holds no benchmark"):
        load_results(tmp_path)


def test_names_of_problems_lose_their_version_alone() -> None:
    problem = Problem(env="my/Half-velocity-Env-v12", dataset="x-v0")
    assert problem.title == "Half-velocity-Env"
    assert problem.name == "half-velocity-env"


def test_unknown_fields_of_problems_are_refused() -> None:
    with pytest.raises(ConfigError, match="datset"):
        from_json(Problem, {"env": "a/B-v0", "datset": "x-v0"})
    with pytest.raises(ConfigError, match="hindsigt"):
        from_json(Problem, {"env": "a/B-v0", "dataset": "x-v0", "goals": "hindsigt"})


@pytest.mark.parametrize("options", [{"noise": float("nan")}, {"noise": object()}])
def test_options_of_environments_are_plain_and_finite(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="env_options must be plain, finite values"):
        Problem(env="toy/Point-v0", dataset="toy/point-v0", env_options=options)


def test_an_option_that_the_environment_does_not_take_is_told() -> None:
    problem = Problem(
        env="CartPole-v1", dataset="toy/point-v0", env_options={"noize": 1}
    )
    with pytest.raises(ConfigError, match=r"CartPole-v1 cannot be made with .*noize"):
        problem.make_env()


def test_tasks_have_episodes_of_their_own() -> None:
    """In OGBench, five times as many seeds are in use."""
    protocol = EvaluationProtocol(seeds=(30_000, 30_100), episodes=50)
    protocol.check_tasks(0)
    protocol.check_tasks(2)
    with pytest.raises(ConfigError, match="at least 150 apart"):
        protocol.check_tasks(3)
    with pytest.raises(ConfigError, match="shares episodes with the learning"):
        EvaluationProtocol(seeds=(899_900,), episodes=50).check_tasks(3)


def test_pictures_tell_returns_where_there_is_no_success(tmp_path: Path) -> None:
    problem = Problem(env="Pendulum-v1", dataset="test/pendulum-v0")
    picture = draw_plan(pendulum_policy(), problem, 3, tmp_path)
    assert picture is not None
    assert picture.read_bytes().startswith(b"\x89PNG")
    caption = json.loads(picture.with_suffix(".json").read_text())["caption"]
    assert caption.startswith("first plan and path, seed 3: return -")
    assert "there" not in caption


def test_pictures_are_of_the_first_evaluated_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = {"near": {"goal": (0.1, 0.2)}, "far": {"goal": (2.0, 1.0)}}
    monkeypatch.setitem(PointEnv.metadata, "evaluation_tasks", tasks)
    policy, drawn = toy_policy(), []

    def episode(*given: Any, **rest: Any) -> PlannedEpisode:
        found = planned_episode(*given, **rest)
        drawn.append(found.record)
        return found

    monkeypatch.setattr(cell_process, "planned_episode", episode)
    problem = Problem(env=POINT, dataset="test/point-v0", goals="hindsight")
    assert draw_plan(policy, problem, 3, tmp_path) is not None
    [record] = drawn
    first, _ = evaluate(policy, POINT, episodes=1, seed=3, progress=False).episodes
    assert record.goal == first.goal == (0.1, 0.2)
    assert record.start == first.start
    assert record.episode_return == pytest.approx(first.episode_return, rel=1e-5)


def test_pictures_show_the_way_over_landmarks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, way = toy_policy(), np.array([[0.5, 0.5], [1.0, 1.0]])
    drawn: list[Any] = []

    def figure(plan: Plan, scene: Scene, **rest: Any) -> Any:
        drawn.append(scene.route)
        return plan_figure(plan, scene, **rest)

    monkeypatch.setattr(DiffuserPolicy, "routes", lambda *_: [way])
    monkeypatch.setattr("diffuser_policy.plotting.plan_figure", figure)
    problem = Problem(env=POINT, dataset="test/point-v0", goals="hindsight")
    assert draw_plan(policy, problem, 3, tmp_path) is not None
    np.testing.assert_array_equal(drawn[0], way)
