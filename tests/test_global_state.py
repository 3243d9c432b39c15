"""Global state is the user's: it neither changes results nor is changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffuser_policy import DiffuserPolicy, make_guide
from diffuser_policy.cli import main
from diffuser_policy.config import (
    ClassifierConfig,
    ClassifierTrainConfig,
    OptimizationConfig,
    ValueConfig,
    ValueTrainConfig,
)
from diffuser_policy.evaluation import evaluate
from diffuser_policy.speed.cases import Subject, paper_cases
from diffuser_policy.speed.measurement import throughput
from diffuser_policy.testing import toy_config, toy_dataset, toy_policy
from diffuser_policy.training.classifier_trainer import ClassifierTrainer
from diffuser_policy.training.trainer import Trainer
from diffuser_policy.training.value_trainer import ValueTrainer
from tests.classifier_helpers import SIDES
from tests.global_state_helpers import USERS_SETTINGS, float64, untouched
from tests.policy_helpers import observe
from tests.value_helpers import rewarded

SHORT = OptimizationConfig(num_steps=3, batch_size=4)
PLANNER = "multi2d-umaze"
GUIDE = {
    "ranking": "guide",
    "horizon": "shrinking",
    "warm_start": 0.5,
    "replan_interval": 2,
}


def seen(policy: DiffuserPolicy) -> list[np.ndarray]:
    """Return everything that a few calls of a policy return."""
    guided = policy.with_guide(make_guide("waypoint", position=(0.1, 0.2)), **GUIDE)
    found = []
    for each in (policy, guided):
        state: Any = None
        for deterministic in (False, True, False):
            action, state = each.predict(observe(2), state, deterministic=deterministic)
            found += [action, *state]
    plan = policy.plan(observe(2), keep_chain=True)
    assert plan.chain is not None
    return [*found, plan.candidates, plan.values, plan.chain]


def trained(folder: Path) -> list[np.ndarray]:
    """Return the weights of a planner and its companions, trained for a few steps."""
    flat = rewarded()
    config = toy_config(optimization=SHORT)
    planner = Trainer(config, flat, folder / "planner", device="cpu")
    planner.run(progress=False)
    made = planner.policy_config, planner.planner_networks
    value = ValueTrainer(
        ValueTrainConfig(
            dataset="toy/point-v0",
            value=ValueConfig(dim=16, multipliers=(1, 4)),
            optimization=SHORT,
        ),
        made,
        flat,
        folder / "value",
    )
    value.run(progress=False)
    classifier = ClassifierTrainer(
        ClassifierTrainConfig(
            dataset="toy/point-v0",
            labels=SIDES,
            classifier=ClassifierConfig(width=8, depth=1),
            optimization=SHORT,
        ),
        made,
        flat,
        folder / "classifier",
    )
    classifier.run(progress=False)
    networks = planner.average, value.average, classifier.average
    return [v.numpy() for n in networks for v in n.state_dict().values()]


@pytest.mark.parametrize("name", USERS_SETTINGS)
def test_plans_are_the_same_whatever_the_user_has_set(name: str) -> None:
    expected = seen(toy_policy(ranking="time_to_goal"))
    with USERS_SETTINGS[name](), untouched():
        found = seen(toy_policy(ranking="time_to_goal"))
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("name", USERS_SETTINGS)
def test_a_planner_that_was_loaded_before_plans_the_same(name: str) -> None:
    policy = DiffuserPolicy.from_pretrained(PLANNER)
    expected, _ = policy.predict(observe(2), deterministic=True)
    with USERS_SETTINGS[name](), untouched():
        action, _ = policy.predict(observe(2), deterministic=True)
        again = DiffuserPolicy.from_pretrained(PLANNER)
        other, _ = again.predict(observe(2), deterministic=True)
    np.testing.assert_array_equal(action, expected)
    np.testing.assert_array_equal(other, expected)


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> list[np.ndarray]:
    """The weights of trainings by a user who has set nothing."""
    return trained(tmp_path_factory.mktemp("usual"))


@pytest.mark.parametrize("name", USERS_SETTINGS)
def test_trainings_end_with_the_same_weights_whatever_the_user_has_set(
    name: str, usual: list[np.ndarray], tmp_path: Path
) -> None:
    with USERS_SETTINGS[name](), untouched():
        found = trained(tmp_path)
    for mine, theirs in zip(found, usual, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def exported(folder: Path) -> None:
    pytest.importorskip("onnx", reason="needs the extra export")
    DiffuserPolicy.from_pretrained(PLANNER).export(folder)


def timed_as_in_the_paper() -> None:
    policy = DiffuserPolicy.from_pretrained(PLANNER)
    subject = Subject(policy, "diffuser_envs/Multi2D-UMaze-v1", quick=True)
    assert sum(case.run() for case in paper_cases(subject)) > 1


CALLS: dict[str, Callable[[Path], object]] = {
    "load": lambda _: DiffuserPolicy.from_pretrained(PLANNER),
    "save": lambda folder: toy_policy().save_pretrained(folder),
    "settings": lambda _: toy_policy().with_settings(num_candidates=3),
    "accelerated": lambda _: toy_policy().accelerated("off").predict(observe()),
    "evaluate": lambda _: evaluate(
        DiffuserPolicy.from_pretrained(PLANNER),
        "diffuser_envs/Multi2D-UMaze-v1",
        episodes=1,
        progress=False,
    ),
    "export": exported,
    "paper's setting": lambda _: timed_as_in_the_paper(),
    "floating-point operations": lambda _: throughput(),
    "command": lambda _: main(["info", PLANNER]),
    "command with threads": lambda _: main(
        ["evaluate", PLANNER, "--episodes", "1", "--threads", "2"]
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_leave_global_state_alone(name: str, tmp_path: Path) -> None:
    torch.get_num_threads()  # PyTorch decides at the first call
    with untouched():
        CALLS[name](tmp_path)


@pytest.mark.parametrize("name", ["export", "paper's setting"])
def test_calls_work_in_double_precision(name: str, tmp_path: Path) -> None:
    with float64():
        CALLS[name](tmp_path)


def test_the_toy_planner_is_trained_without_moving_any_generator(
    tmp_path: Path,
) -> None:
    with untouched():
        Trainer(
            toy_config(optimization=SHORT), toy_dataset(), tmp_path, device="cpu"
        ).run(progress=False)
