"""The example that measures how far off models of the dynamics are."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffuser_policy import CollectSettings, collect
from diffuser_policy.baselines.dynamics import simulator_of
from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.envs import Env, make_env

EXAMPLE = Path(__file__).parents[1] / "examples/experiments" / "dynamics_error.py"
ENV = "diffuser_envs/Multi2D-UMaze-v1"
DATASET = "diffuser/multi2d-umaze-v1"


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLE))


def recorded(env: Env, run_lengths: list[int]) -> FlatDataset:
    """Push the ball about at random, env step by env step."""
    rng = np.random.default_rng(0)
    observations, actions = [], []
    for seed, length in enumerate(run_lengths):
        observation = env.reset(seed=seed)[0]
        for _ in range(length):
            action = rng.uniform(-1, 1, 2).astype(np.float32)
            observations.append(observation["observation"])
            actions.append(action)
            observation = env.step(action)[0]
    blank = np.zeros(len(actions))
    return FlatDataset(
        {
            "observation": np.array(observations),
            "action": np.array(actions),
            "reward": blank,
            "terminated": blank.astype(bool),
        },
        np.cumsum([0, *run_lengths]),
    )


def test_errors_are_against_what_the_environment_does(example: dict[str, Any]) -> None:
    """The simulator is right, and who stands still is off by the way that was gone."""
    env = make_env(ENV)
    flat = recorded(env, [64] * 12)
    simulator = simulator_of(env)
    models = {"right": simulator.simulate, "still": example["stand_still"]}
    errors = example["measure"](flat, simulator, models, 12)
    env.close()
    runs = flat.fields["observation"].reshape(12, 64, 4)[..., :2].astype(np.float64)
    for kind in ("of the data", "new every step", "kept for 9 steps"):
        assert errors[kind]["right"] == {step: [0, 0, 0] for step in (1, 8, 63)}
    for step, (mean, low, high) in errors["of the data"]["still"].items():
        gone = np.linalg.norm(runs[:, step] - runs[:, 0], axis=-1)
        assert mean == pytest.approx(gone.mean(), rel=1e-4)
        assert gone.min() <= low < mean < high <= gone.max()
    assert errors["of the data"]["the recording"][63][2] < 1e-4
    assert errors["new every step"]["still"] != errors["of the data"]["still"]


def test_starts_are_followed_by_enough_of_the_same_run(example: dict[str, Any]) -> None:
    columns = {"observation": np.zeros((193, 4)), "action": np.zeros((193, 2))}
    blank = {"reward": np.zeros(193), "terminated": np.zeros(193, bool)}
    flat = FlatDataset({**columns, **blank}, np.array([0, 63, 127, 193]))
    draws = [example["starts"](flat, 4, np.random.default_rng(s)) for s in range(5)]
    assert set(np.concatenate(draws)) == {63, 127, 128, 129}


def test_lasting_actions_change_every_ninth_step(example: dict[str, Any]) -> None:
    given = np.zeros((5, 63, 2))
    drawn = example["sequences"](given, np.random.default_rng(0))
    assert drawn["of the data"] is given
    changes = np.diff(drawn["kept for 9 steps"], axis=1).any(axis=(0, 2))
    assert (np.flatnonzero(changes) + 1).tolist() == [9, 18, 27, 36, 45, 54]
    assert np.diff(drawn["new every step"], axis=1).all()


def test_distances_are_of_positions(example: dict[str, Any]) -> None:
    truth = np.zeros((3, 63, 4))
    off = truth + np.array([0.3, 0.4, 100.0, 100.0])
    assert example["error"](off, truth)[8] == pytest.approx([0.5, 0.5, 0.5])


@pytest.mark.slow
def test_models_are_trained_and_compared(
    example: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for variable in ("MINARI_DATASETS_PATH", "DIFFUSER_POLICY_CACHE"):
        monkeypatch.setenv(variable, str(tmp_path))
    settings = CollectSettings(
        env_id=ENV, dataset_id=DATASET, num_steps=1000, run_length=500, num_workers=1
    )
    collect(settings, progress=False)
    results = tmp_path / "table.json"
    example["main"](
        num_starts=4,
        num_dynamics_steps=2,
        num_planner_steps=2,
        num_sampling_steps=(1, 2),
        folder=tmp_path / "work",
        results=results,
    )
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.search(r"off after 63 env steps .* 2 denoising steps \d\.\d\d m$", last)
    document = json.loads(results.read_text())
    assert document["settings"]["num_planner_steps"] == 2
    models = set(document["errors"]["kept for 9 steps"])
    assert {
        "standing still",
        "learned, mean of 5",
        "Diffuser, 1 denoising step",
    } < models
    table = results.with_suffix(".md").read_text()
    assert table.count("\n| kept for 9 steps | ") == len(models)
