"""Methods of d3rlpy: each learns what can be learned, and resumes exactly."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffuser_policy.baselines import d3rlpy_methods
from diffuser_policy.baselines.learning import train_run
from diffuser_policy.benchmark import Problem
from diffuser_policy.benchmark.cells import Cell, CellFolder, EvaluationProtocol
from diffuser_policy.benchmark.context import MethodContext
from diffuser_policy.benchmark.methods import Method, find_method
from diffuser_policy.benchmark.suites import load_suite
from diffuser_policy.choices import Goals
from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.errors import CheckpointError, ConfigError, DivergedError
from diffuser_policy.networks.critic import Values
from tests.baseline_helpers import line_data

d3rlpy = pytest.importorskip(
    "d3rlpy", reason="needs the extra 'baselines', which pins Gymnasium 1.0"
)

LEARNERS = ("bc", "bcq", "cql", "iql", "td3-bc", "awac", "rebrac")
FAST = {"learning_rate": 3e-3}
FAST_ACTOR_CRITIC = {"actor_learning_rate": 3e-3, "critic_learning_rate": 3e-3}
PLAN = EvaluationProtocol(
    seeds=(1,), episodes=2, num_envs=2, curve_episodes=2, curve_points=2
)


def context_for(
    folder: Path,
    flat: FlatDataset,
    *,
    method: str,
    goals: Goals = "none",
    **budget: Any,
) -> MethodContext:
    """Return a training on data that are not on any disk."""
    env = {"none": "test/Line-none-v0", "hindsight": "test/Line-new-v0"}[goals]
    cell = Cell(
        problem=Problem(env=env, dataset="test/line-v0", goals=goals),
        method=method,
        evaluation=PLAN,
        **{"num_steps": 40, **budget},
    )
    files = CellFolder(folder, cell.id)
    files.prepare(cell)
    training = MethodContext(cell, files, {})
    training.dataset = flat
    return training


def trained(method: Method, training: MethodContext, **settings: Any) -> Any:
    return method.function(training, **{"width": 16, "batch_size": 32, **settings})


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize("goals", ["none", "hindsight"])
def test_every_method_makes_a_policy(name: str, goals: Goals, tmp_path: Path) -> None:
    flat = line_data(goals=goals != "none")
    training = context_for(tmp_path, flat, method=name, goals=goals, num_steps=6)
    policy = trained(find_method(name), training)
    env = training.make_env()
    observation, _ = env.reset(seed=0)
    action, state = policy.predict(observation)
    assert env.action_space.contains(action)
    assert state is None
    assert training.facts["num_steps"] == 6
    assert training.facts["num_parameters"] > 0
    assert (training.facts["values"] is None) == (name == "bc")
    assert [point["step"] for point in training.curve_points] == [3, 6]


def configured(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **settings: Any
) -> dict[str, Any]:
    """Return the configuration that a method hands to d3rlpy."""
    method = find_method(name)
    module = "diffuser_policy.baselines.d3rlpy_methods.train_d3rlpy"
    monkeypatch.setattr(module, lambda _, config, **__: config)
    training = context_for(tmp_path, line_data(goals=False), method=name)
    config: dict[str, Any] = vars(method.function(training, **settings))
    return config


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bc", {"learning_rate": 1e-3}),
        (
            "bcq",
            {
                "n_action_samples": 10,
                "action_flexibility": 0.05,
                "lam": 0.75,
                "actor_learning_rate": 1e-3,
                "critic_learning_rate": 1e-3,
            },
        ),
        (
            "cql",
            {
                "n_action_samples": 10,
                "conservative_weight": 10.0,
                "alpha_learning_rate": 3e-4,
                "alpha_threshold": 5.0,
                "actor_learning_rate": 3e-5,
                "critic_learning_rate": 3e-4,
            },
        ),
        (
            "iql",
            {"expectile": 0.7, "weight_temp": 3.0, "actor_learning_rate": 3e-4},
        ),
        ("td3-bc", {"alpha": 2.5, "update_actor_interval": 2}),
        ("awac", {"lam": 1.0, "actor_learning_rate": 3e-4}),
        ("rebrac", {"actor_beta": 0.01, "critic_beta": 0.01}),
    ],
)
def test_settings_are_those_of_the_table(
    name: str,
    expected: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    config = configured(name, monkeypatch, tmp_path)
    assert {key: config[key] for key in expected} == expected
    assert config["batch_size"] == 256
    assert config.get("gamma", 0.99) == 0.99


@pytest.mark.parametrize(
    ("suite", "name", "width"),
    [
        ("maze", "bcq", 256),
        ("maze", "cql", 128),
        ("kuka", "bcq", 128),
        ("kuka", "cql", 128),
    ],
)
def test_suites_set_what_their_comments_say(
    suite: str, name: str, width: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for number, cell in enumerate(load_suite(suite).cells(methods=[name])):
        folder = tmp_path / str(number)
        config = configured(name, monkeypatch, folder, **cell.settings)
        assert config["critic_encoder_factory"].hidden_units == [width, width]
        assert config["critic_learning_rate"] == 3e-4
        assert config["actor_learning_rate"] == (3e-4 if name == "bcq" else 3e-5)
        assert (cell.num_steps, cell.max_steps) == (50_000, 100_000)


@pytest.mark.parametrize(
    ("file", "name", "width", "num_steps"),
    [("narrow", "bcq", 128, 50_000), ("wide", "cql", 256, 20_000)],
)
def test_suites_of_other_widths_change_nothing_else(
    file: str, name: str, width: int, num_steps: int
) -> None:
    folder = Path(__file__).parents[1] / "examples"
    cells = load_suite(folder / f"benchmark_{file}.toml").cells()
    assert [cell.method for cell in cells] == [name] * 6
    mazes = load_suite("maze").cells(methods=[name])
    for cell, usual in zip(cells, mazes, strict=True):
        assert cell.settings == {**usual.settings, "width": width}
        assert usual.settings["width"] != width
        assert (cell.problem, cell.evaluation) == (usual.problem, usual.evaluation)
        assert cell.num_steps == num_steps


def test_rebrac_can_be_set_as_by_its_authors(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Their configuration for maze2d, in the CORL repository."""
    suite = load_suite(Path(__file__).parents[1] / "examples/benchmark_rebrac.toml")
    [cell] = suite.cells()
    config = configured("rebrac", monkeypatch, tmp_path, **cell.settings)
    assert (config["actor_beta"], config["critic_beta"]) == (0.003, 0.001)
    assert config["actor_learning_rate"] == config["critic_learning_rate"] == 3e-4
    for part in ("actor", "critic"):
        assert config[f"{part}_encoder_factory"].hidden_units == [256] * 3
    assert config["critic_encoder_factory"].use_layer_norm
    assert not config["actor_encoder_factory"].use_layer_norm


def bandit(seed: int = 0, size: int = 2000) -> FlatDataset:
    """Return steps whose reward falls with the action's distance from 0.5."""
    rng = np.random.default_rng(seed)
    action = rng.uniform(-1, 1, (size, 1))
    observation = rng.uniform(-1, 1, (size, 2))
    fields: dict[str, np.ndarray] = {
        "observation": observation,
        "action": action,
        "reward": -np.abs(action[:, 0] - 0.5),
        "terminated": np.ones(size, np.bool_),
    }
    return FlatDataset(fields, np.arange(size + 1), {"dataset_id": "test/bandit-v0"})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("bcq", {"flexibility": 0.3, **FAST}),
        ("cql", {"conservative_weight": 0.1, **FAST_ACTOR_CRITIC}),
        ("iql", {"expectile": 0.9, "temperature": 10.0, **FAST}),
        ("td3-bc", {"alpha": 10.0, **FAST}),
        ("awac", {"temperature": 0.1, **FAST}),
        ("rebrac", {"actor_beta": 0.001, **FAST}),
    ],
)
def test_actions_that_pay_are_preferred(
    name: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    training = context_for(
        tmp_path, bandit(), method=name, num_steps=800 if name == "td3-bc" else 250
    )
    policy = trained(find_method(name), training, width=32, **settings)
    observations = np.random.default_rng(1).uniform(-1, 1, (200, 2)).astype(np.float32)
    actions, _ = policy.predict(observations)
    paid = np.abs(actions[:, 0] - 0.5) < 0.25
    assert paid.mean() > 0.6  # a random policy: 0.25; the data's mean action: 0


def test_cloning_finds_the_demonstrators_rule(tmp_path: Path) -> None:
    flat = line_data(num_runs=20)
    fields = dict(flat.fields)
    fields["action"] = -np.tanh(2 * fields["observation"][:, :1])
    rule = FlatDataset(fields, flat.run_starts)
    training = context_for(tmp_path, rule, method="bc", num_steps=600)
    policy = trained(find_method("bc"), training, width=32)
    actions, _ = policy.predict(fields["observation"])
    assert np.abs(actions - fields["action"]).mean() < 0.05


def test_cloning_the_best_episodes_finds_their_rule(tmp_path: Path) -> None:
    flat = line_data(num_runs=20)
    fields, best = dict(flat.fields), np.arange(20) % 10 == 3
    best_rows = np.repeat(best, flat.run_lengths)
    sign = np.where(best_rows, -1.0, 1.0)[:, None]
    fields["action"] = sign * np.tanh(2 * fields["observation"][:, :1])
    fields["reward"] = np.where(best_rows, 1.0, 0.5)
    rule = FlatDataset(fields, flat.run_starts)
    training = context_for(tmp_path, rule, method="bc-best", num_steps=600)
    policy = trained(find_method("bc-best"), training, width=32, best_share=0.1)
    actions, _ = policy.predict(fields["observation"][best_rows])
    assert np.abs(actions - fields["action"][best_rows]).mean() < 0.05


@pytest.mark.parametrize(
    ("name", "settings", "goals", "refusal"),
    [
        ("bc-best", {}, "hindsight", "best_share compares returns"),
        ("bc-best", {"best_share": 2.0}, "none", r"best_share must be in \(0, 1\]"),
        ("iql", {"return_range": 1000}, "hindsight", "return_range compares returns"),
        ("iql", {"return_range": 0}, "none", "return_range must be positive"),
        ("iql", {"width": -4}, "none", "width must be positive, got -4"),
        ("cql", {"actor_learning_rate": 0.0}, "none", "actor_learning_rate must be"),
        ("iql", {"return_range": "all"}, "none", "return_range must be"),
        ("iql", {"discount": 1.0}, "none", r"discount must be in \[0, 1\), got 1.0"),
        ("td3-bc", {"discount": -0.1}, "none", r"discount must be in \[0, 1\)"),
        ("iql", {"expectile": 1.0}, "none", r"expectile must be in \(0, 1\), got 1.0"),
        ("bc", {"goal_discount": 1.0}, "hindsight", r"goal_discount must be in \(0, 1"),
        ("cql", {"num_action_samples": 0}, "none", "num_action_samples must be positi"),
        ("rebrac", {"num_layers": 0}, "none", "num_layers must be positive, got 0"),
        ("awac", {"discount": 0.0}, "none", None),
        ("iql", {"return_range": 1000}, "none", None),
        ("iql", {}, "hindsight", None),
    ],
)
def test_settings_are_checked_before_anything_runs(
    name: str, settings: dict[str, Any], goals: Goals, refusal: str | None
) -> None:
    problem = Problem(
        env="diffuser_envs/Multi2D-UMaze-v1",
        dataset="diffuser/multi2d-umaze-v1",
        goals=goals,
    )
    if refusal is None:
        find_method(name).check(problem, settings)
        return
    with pytest.raises(ConfigError, match=refusal):
        find_method(name).check(problem, settings)


def test_returns_are_scaled_before_values_are_learned(tmp_path: Path) -> None:
    flat = line_data(goals=False)
    paid = flat.fields["observation"][:, 0]
    flat = FlatDataset({**flat.fields, "reward": paid}, flat.run_starts)
    returns = np.add.reduceat(paid, flat.run_starts[:-1])
    possible = {}
    for scale in (None, 1000.0):
        training = context_for(tmp_path / str(scale), flat, method="iql", num_steps=20)
        trained(find_method("iql"), training, width=32, return_range=scale)
        possible[scale] = np.array(training.facts["values"]["possible"])
    times = 1000 / np.ptp(returns)
    np.testing.assert_allclose(possible[1000.0], times * possible[None], rtol=1e-5)


def test_cloning_in_hindsight_goes_to_the_goal(tmp_path: Path) -> None:
    flat = line_data(num_runs=40, run_length=30)
    training = context_for(
        tmp_path, flat, method="bc", goals="hindsight", num_steps=800
    )
    policy = trained(find_method("bc"), training, width=32, goal_discount=0.7)
    states = np.zeros((2, 2), np.float32)
    goals = np.array([[-0.2], [0.2]], np.float32)
    observation = {"observation": states, "desired_goal": goals, "achieved_goal": goals}
    left, right = policy.predict(observation)[0][:, 0]
    assert left < -0.1
    assert right > 0.1


@pytest.mark.parametrize("name", ["bcq", "cql", "td3-bc"])
def test_a_training_that_was_killed_goes_on_to_the_same_weights(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = "diffuser_policy.baselines.d3rlpy_methods"
    monkeypatch.setattr(f"{module}.CHECKPOINT_STEPS", 10)
    method, flat = find_method(name), line_data(goals=False)
    whole = trained(method, context_for(tmp_path / "whole", flat, method=name))

    class Killed(BaseException):
        pass

    def die(*_: object, **__: object) -> None:
        raise Killed

    training = context_for(tmp_path / "killed", flat, method=name)
    with monkeypatch.context() as patch:
        update = type(whole.algorithm).update
        calls: list[None] = []

        def counted(self: Any, batch: Any) -> Any:
            calls.append(None)
            return die() if len(calls) == 27 else update(self, batch)

        patch.setattr(type(whole.algorithm), "update", counted)
        with pytest.raises(Killed):
            trained(method, training)
    resumed = trained(method, context_for(tmp_path / "killed", flat, method=name))
    for part, module in whole.algorithm.impl.modules.get_torch_modules().items():
        other = resumed.algorithm.impl.modules.get_torch_modules()[part]
        for key, value in module.state_dict().items():
            assert torch.equal(value, other.state_dict()[key]), f"{part}.{key}"


def test_a_checkpoint_of_other_data_is_refused(tmp_path: Path) -> None:
    method = find_method("bc")
    first = context_for(tmp_path, line_data(goals=False), method="bc", num_steps=4)
    trained(method, first)
    data = line_data(goals=False, seed=1)  # recorded anew under the same name
    again = context_for(tmp_path, data, method="bc", num_steps=4)
    with pytest.raises(CheckpointError, match="other data"):
        trained(method, again)


def test_a_checkpoint_of_another_method_is_refused(tmp_path: Path) -> None:
    flat = line_data(goals=False)
    first = context_for(tmp_path, flat, method="bc", num_steps=4)
    trained(find_method("bc"), first)
    other = context_for(tmp_path, flat, method="iql", num_steps=4)
    shutil.copytree(first.folder, other.folder, dirs_exist_ok=True)
    with pytest.raises(CheckpointError, match="another algorithm"):
        trained(find_method("iql"), other)


def test_a_critic_that_diverges_ends_the_training_with_its_last_good_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(d3rlpy_methods, "CHECKPOINT_STEPS", 3)
    flat, method = line_data(goals=False), find_method("iql")
    training = context_for(tmp_path / "good", flat, method="iql", num_steps=6)
    good = trained(method, training)
    steps = iter(range(3, 99, 3))

    def values(*_: object) -> Values:
        return Values(0.0, 1e9 if next(steps) > 6 else 0.0, 1.0, (0.0, 1.0))

    monkeypatch.setattr(d3rlpy_methods, "value_facts", values)
    training = context_for(tmp_path / "bad", flat, method="iql", num_steps=30)
    kept = trained(method, training)
    assert training.facts["num_steps"] == 6
    assert training.facts["diverged_at_step"] == 9
    for one, other in zip(parameters(good), parameters(kept), strict=True):
        assert torch.equal(one, other)
    steps = iter(range(9, 99, 3))
    training = context_for(tmp_path / "never good", flat, method="iql", num_steps=30)
    with pytest.raises(DivergedError, match="within the first 3 gradient steps"):
        trained(method, training)


def test_losses_that_are_not_finite_end_a_training_of_a_few_steps(
    tmp_path: Path,
) -> None:
    flat = line_data(goals=False)
    training = context_for(tmp_path, flat, method="bc", num_steps=20)
    with pytest.raises(ConfigError, match="losses are not finite after"):
        trained(find_method("bc"), training, learning_rate=1e30)


def parameters(policy: Any) -> list[torch.Tensor]:
    """Return the weights of all networks."""
    modules = policy.algorithm.impl.modules.get_torch_modules().values()
    return [weight for module in modules for weight in module.parameters()]


def test_a_single_episode_is_enough(tmp_path: Path) -> None:
    flat = line_data(num_runs=1, goals=False)
    for name in ("bc-best", "td3-bc"):
        training = context_for(tmp_path, flat, method=name, num_steps=2)
        trained(find_method(name), training)


def test_a_kill_during_a_curve_evaluation_loses_no_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes between the gradient step and its checkpoint."""
    module = "diffuser_policy.baselines.d3rlpy_methods"
    monkeypatch.setattr(f"{module}.CHECKPOINT_STEPS", 10)
    method, flat = find_method("bc"), line_data(goals=False)
    whole = context_for(tmp_path / "whole", flat, method="bc")
    trained(method, whole)
    expected = [point["step"] for point in whole.curve_points]
    assert expected

    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    for _ in range(2):
        killed = context_for(tmp_path / "killed", flat, method="bc")
        monkeypatch.setattr(killed, "curve", die)
        with pytest.raises(Killed):
            trained(method, killed)
    resumed = context_for(tmp_path / "killed", flat, method="bc")
    trained(method, resumed)
    assert [point["step"] for point in resumed.curve_points] == expected


def test_a_trainer_that_was_killed_in_its_last_evaluation_makes_it_up(
    tmp_path: Path,
) -> None:
    """Its checkpoint is written before."""
    context = context_for(tmp_path, line_data(goals=False), method="bc")
    whole = context.num_steps
    assert whole

    class Done:
        step = whole
        networks = torch.nn.Linear(1, 1)

        def run(self, **_: object) -> None:
            """All gradient steps are taken."""

    class Right:
        def predict(
            self, observation: Any, *_: object, **__: object
        ) -> tuple[np.ndarray, None]:
            return np.ones((len(observation), 1), np.float32), None

    for _ in range(2):
        train_run(context, Done(), whole, evaluated=Right)  # type: ignore[arg-type]
    assert [point["step"] for point in context.curve_points] == [whole]
