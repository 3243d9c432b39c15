"""Exported planners: the documentation's program plans like `policy.plan`."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffuser_policy.cli import main
from diffuser_policy.cli.export import HELD
from diffuser_policy.columns.features import Identity
from diffuser_policy.config import (
    ExecutionConfig,
    LandmarksConfig,
    NetworkConfig,
    PlannerConfig,
)
from diffuser_policy.envs import make_env
from diffuser_policy.errors import ConfigError, MissingExtraError, StorageError
from diffuser_policy.export import description, refuse_python
from diffuser_policy.planning.ranking import Ranking, TimeToGoalRanking
from diffuser_policy.policy import DiffuserPolicy
from diffuser_policy.testing import toy_config, toy_dataset, toy_policy
from tests.documentation_helpers import ROOT, blocks
from tests.file_helpers import full_disk
from tests.policy_helpers import observe

ROUNDING = 1e-3  # of plans that reach 10; other forms of the network differ as much
[PROGRAM] = [
    block
    for block in blocks(ROOT / "docs" / "export.md", "python")
    if "class ExportedPlanner" in block
]


@pytest.fixture
def onnx() -> None:
    for module in ("onnx", "onnxruntime"):
        pytest.importorskip(module, reason="needs the extra export")


def same_noise(policy: DiffuserPolicy) -> Any:
    """Return the noise of `policy.plan`, for the program."""
    generator = torch.Generator().manual_seed(policy.seed)
    return lambda size: torch.randn(size, generator=generator).numpy()


def program(folder: Path) -> Any:
    """Return the documentation's planner, with the files of a folder."""
    script = folder / "program.py"
    script.write_text(PROGRAM)
    return runpy.run_path(str(script))["ExportedPlanner"](folder)


def largest_difference(policy: DiffuserPolicy, folder: Path, seen: Any) -> float:
    """Return by how much plans of the same noise differ, row by row."""
    policy.export(folder)
    planner, most = program(folder), 0.0
    rows, goals = policy.read(seen)
    expected = policy.plan(seen)
    for row, observation in enumerate(rows):
        goal = None if goals is None else goals[row]
        path, actions = planner.plan(observation, goal, noise=same_noise(policy))
        assert path.shape == expected.path(row).shape
        planned = expected.actions[row, : len(path)]
        for found, right in ((path, expected.path(row)), (actions, planned)):
            most = max(most, float(np.abs(found - right).max(initial=0)))
    return most


PLANNERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "smooth": ({}, {"temperature": 0.5}),
    "predicted": (
        {},
        {"horizon": "predicted", "ranking": "time_to_goal", "num_candidates": 4},
    ),
    "all candidates": ({}, {"ranking": "time_to_goal", "satisficing": False}),
    "residual, with attention": (
        {"residual": True, "attention": True, "prediction_target": "velocity"},
        {"sampler": "dpm", "num_sampling_steps": 4, "goal_velocity": True},
    ),
    "ancestral": (
        {"prediction_target": "noise", "num_denoising_steps": 3},
        {"sampler": "ddpm", "num_sampling_steps": None, "ranking": "first"},
    ),
    "MLP": ({"architecture": "mlp", "depth": 1}, {}),
    "transformer": ({"architecture": "transformer", "depth": 2}, {}),
}


@pytest.mark.slow
@pytest.mark.usefixtures("onnx")
@pytest.mark.parametrize("kind", PLANNERS)
def test_the_program_plans_like_the_planner(kind: str, tmp_path: Path) -> None:
    network, settings = PLANNERS[kind]
    small = {"dim": 8, "multipliers": (1, 2), "num_denoising_steps": 8}
    config = toy_config(network=NetworkConfig(**{**small, **network}))
    policy = toy_policy(config, **settings)
    assert largest_difference(policy, tmp_path, observe(8)) < ROUNDING


@pytest.mark.usefixtures("onnx")
def test_short_plans_are_good_enough_for_the_program_as_well(tmp_path: Path) -> None:
    """All plans are shorter than the reach, and some are good enough."""
    policy = toy_policy(ranking="time_to_goal", num_candidates=4)
    ranking = policy.planner.ranking
    assert isinstance(ranking, TimeToGoalRanking)
    ranking.reach = 50
    ranking.time_to_goal.max_steps *= 43  # to need about half as much time again
    counts = policy.plan(observe(8)).num_candidates
    assert {*counts.tolist()} == {1, 4}
    assert largest_difference(policy, tmp_path, observe(8)) < ROUNDING


@pytest.mark.usefixtures("onnx")
def test_a_planner_without_goals_is_exported(tmp_path: Path) -> None:
    config = toy_config(time_to_goal=None)
    policy = toy_policy(config, flat=toy_dataset(goals=False))
    seen = observe(3)["observation"]
    assert largest_difference(policy, tmp_path, seen) < ROUNDING


@pytest.mark.proof
@pytest.mark.usefixtures("onnx")
@pytest.mark.parametrize("name", ["large", "medium", "umaze"])
def test_shipped_planners_plan_alike_1000_times(name: str, tmp_path: Path) -> None:
    """In meters and meters per second."""
    title = {"large": "Large", "medium": "Medium", "umaze": "UMaze"}[name]
    env = make_env(f"diffuser_envs/Multi2D-{title}-v1")
    drawn = [env.reset(seed=seed)[0] for seed in range(1000)]
    seen = {key: np.stack([each[key] for each in drawn]) for key in drawn[0]}
    policy = DiffuserPolicy.from_pretrained(f"multi2d-{name}")
    assert largest_difference(policy, tmp_path, seen) < ROUNDING


@pytest.mark.usefixtures("onnx")
def test_the_command_exports_with_settings(tmp_path: Path) -> None:
    toy_policy().save_pretrained(tmp_path / "toy")
    out = tmp_path / "out"
    options = ["--num-candidates", "5", "--ranking", "first"]
    assert main(["export", str(tmp_path / "toy"), *options, "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        *("denoiser.onnx", "planner.json", "time_to_goal.onnx")
    ]
    facts = json.loads((out / "planner.json").read_text())
    assert facts["candidates"] == [5]
    assert facts["ranking"] == {"name": "first"}


@pytest.mark.parametrize(
    ("saved", "option"),
    [
        ({"steadiness": 0.1, "replan_interval": 4}, ["--ranking", "first"]),
        ({"replan_interval": 4, "warm_start": 0.5}, ["--horizon", "fixed"]),
    ],
)
def test_saved_settings_that_the_files_do_not_hold_are_in_nobodys_way(
    saved: dict[str, Any], option: list[str], tmp_path: Path
) -> None:
    usual: Any = {"horizon": "shrinking", "ranking": "time_to_goal", **saved}
    toy_policy(**usual).save_pretrained(tmp_path / "toy")
    out = tmp_path / "onnx"
    assert main(["export", str(tmp_path / "toy"), *option, "--out", str(out)]) == 0
    assert (out / "planner.json").is_file()


@pytest.mark.parametrize("name", HELD)
def test_every_setting_that_can_be_given_changes_the_files(name: str) -> None:
    changed: Any = {
        "sampler": "ddpm",
        "num_sampling_steps": 4,
        "step_spacing": "leading",
        "temperature": 0.5,
        "num_candidates": 5,
        "satisficing": False,
        "ranking": "first",
        "horizon": "fixed",
        "horizon_scale": 1.5,
        "goal_velocity": True,
    }
    usual: Any = {"horizon": "predicted", "ranking": "time_to_goal"}
    policy = toy_policy(toy_config(landmarks=LandmarksConfig(num=4)), **usual)
    if name == "subgoal":  # it can only be switched off
        with pytest.raises(ConfigError, match="Subgoals are looked up in Python"):
            refuse_python(policy.with_settings(subgoal=6).planner, policy.featurizer)
        return
    other = policy.with_settings(**{name: changed[name]})
    assert description(other.planner) != description(policy.planner)


@pytest.mark.parametrize(
    "idle",
    [
        *(name for name in PlannerConfig.__dataclass_fields__ if name not in HELD),
        *ExecutionConfig.__dataclass_fields__,
    ],
)
def test_a_setting_that_the_files_do_not_hold_is_no_option(
    idle: str, capsys: pytest.CaptureFixture[str]
) -> None:
    option = f"--{idle.replace('_', '-')}"
    with pytest.raises(SystemExit, match="2"):
        main(["export", "multi2d-umaze", option, "1"])
    assert f"Unrecognized options: {option}" in capsys.readouterr().err


def test_what_takes_python_is_refused(tmp_path: Path) -> None:
    policy = toy_policy()
    guided = policy.with_guide(lambda t: t.position.sum(dim=(1, 2)))
    with pytest.raises(ConfigError, match=r"with_guide\(None\)"):
        guided.export(tmp_path)
    chosen = guided.with_settings(ranking="guide", guide_scale=0)
    with pytest.raises(ConfigError, match="guide is a function in Python"):
        chosen.export(tmp_path)
    guided.planner.ranking = Ranking()
    with pytest.raises(ConfigError, match=r"--guide none .* choose one of 'first'"):
        guided.export(tmp_path)
    policy.planner.ranking = Ranking()
    with pytest.raises(ConfigError, match="'smoothness', 'time_to_goal' with"):
        policy.export(tmp_path)
    policy.featurizer = type("Polar", (Identity,), {})(4)
    with pytest.raises(ConfigError, match="columns of Polar"):
        policy.export(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("onnx")
@pytest.mark.parametrize("name", ["denoiser.onnx", "time_to_goal.onnx", "planner.json"])
def test_networks_of_two_planners_are_never_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever file cannot be replaced: planner.json is empty."""
    toy_policy().export(tmp_path)
    other, replace = toy_policy(seed=1), Path.replace
    emptied = False

    def broken(path: Path, target: Path) -> Path:
        nonlocal emptied
        if target.name == name and emptied:
            full_disk()
        emptied = True
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", broken)
        with pytest.raises(StorageError, match="Free some space"):
            other.export(tmp_path)
    with pytest.raises(json.JSONDecodeError):
        program(tmp_path)
    seen = observe(1)
    assert largest_difference(other, tmp_path, seen) < ROUNDING


@pytest.mark.usefixtures("onnx")
def test_an_export_that_fails_before_its_files_are_complete_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy_policy().export(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    export = torch.onnx.export

    def full(*arguments: Any, **settings: Any) -> Any:
        times = settings["output_names"] == ["times"]
        return full_disk() if times else export(*arguments, **settings)

    monkeypatch.setattr(torch.onnx, "export", full)
    with pytest.raises(StorageError, match="Free some space"):
        toy_policy(seed=1).export(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError, match="export"):
        toy_policy().export(tmp_path)
