"""Planners whose network is told the current state: built, trained, saved, loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffuser_policy.build import build_network, build_networks
from diffuser_policy.checkpoint import CARD
from diffuser_policy.cli import main
from diffuser_policy.config import (
    NetworkConfig,
    OptimizationConfig,
    TrainConfig,
    WindowConfig,
)
from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.errors import ConfigError, HorizonError
from diffuser_policy.networks.objects import ObjectTransformer
from diffuser_policy.networks.unet import StartConditionedUNet, TemporalUNet
from diffuser_policy.policy import DiffuserPolicy
from diffuser_policy.settings import from_json, to_json
from diffuser_policy.testing import check_policy, toy_dataset, toy_policy
from diffuser_policy.training.derive import policy_config
from diffuser_policy.training.presets import preset
from diffuser_policy.training.trainer import Trainer
from tests.features_helpers import Scene, config, register_known
from tests.policy_helpers import observe

UNET = NetworkConfig(
    dim=8, multipliers=(1, 2), num_denoising_steps=8, residual=True, loss_floor=0.1
)
OBJECTS = NetworkConfig(
    architecture="objects",
    residual=True,
    dim=16,
    depth=1,
    patch=4,
    num_denoising_steps=8,
    loss_floor=0.1,
)
ROBOT, FLAGS = [0, 1], [4, 7]


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    register_known(monkeypatch)


def scene(network: NetworkConfig = OBJECTS, **parts: Any) -> TrainConfig:
    return config("scene", network=network, **parts)


def learnt(output: Path, network: NetworkConfig, num_steps: int = 6) -> list[float]:
    """Train on two windows of one run; return the loss of each quarter of the steps."""
    optimization = OptimizationConfig(
        num_steps=num_steps, batch_size=16, learning_rate=1e-2, ema_decay=0.5
    )
    settings = scene(network, optimization=optimization)
    trainer = Trainer(settings, toy_dataset(1, 17), output, device="cpu")
    history: list[float] = []
    trainer.run(
        save_interval=max(num_steps // 4, 1),
        progress=False,
        on_metrics=lambda _, metrics: history.append(metrics["denoiser"]),
    )
    return history


# --- building ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "kind"),
    [
        (NetworkConfig(dim=8), TemporalUNet),
        (UNET, StartConditionedUNet),
        (OBJECTS, ObjectTransformer),
    ],
)
def test_settings_choose_the_network(network: NetworkConfig, kind: type[Any]) -> None:
    made = policy_config(scene(network), toy_dataset())
    networks = build_networks(made)
    assert type(build_network(made)) is type(networks.denoiser.network) is kind
    assert networks.denoiser.residual is network.residual
    assert networks.denoiser.loss_floor == network.loss_floor


def test_all_settings_of_an_object_transformer_arrive() -> None:
    made = build_network(policy_config(scene(), toy_dataset()))
    assert isinstance(made, ObjectTransformer)
    assert (made.num_objects, made.size, made.place) == (2, 3, 2)
    assert made.robot_columns == ROBOT
    assert made.object_columns == [2, 3, 4, 5, 6, 7]
    assert (made.patch, made.num_planning_steps, len(made.blocks)) == (4, 16, 1)
    assert made.norm.normalized_shape == (16,)


def test_action_columns_are_the_robots() -> None:
    window = WindowConfig(horizon=16, features="scene", hindsight_goal="none")
    made = build_network(policy_config(scene(window=window), toy_dataset()))
    assert isinstance(made, ObjectTransformer)
    assert made.robot_columns == [2, 3, 0, 1]  # the position comes first
    assert made.object_columns == [4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("missing", ["objects", "position"])
def test_objects_without_what_they_are_read_from_are_refused(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing: Any = () if missing == "objects" else {"flags": (4, 7)}
    name = "objects" if missing == "objects" else "columns"
    monkeypatch.setattr(Scene, name, nothing)
    made = policy_config(scene(), toy_dataset())
    with pytest.raises(ConfigError, match="architecture 'unet'"):
        build_networks(made)


def test_objects_of_plain_observations_are_refused() -> None:
    window = WindowConfig(horizon=16, actions=False, hindsight_goal="none")
    made = policy_config(config(None, network=OBJECTS, window=window), toy_dataset())
    with pytest.raises(ConfigError, match="Plan in the columns of a featurizer"):
        build_networks(made)


def test_a_horizon_of_no_whole_patches_is_refused() -> None:
    window = WindowConfig(
        horizon=18, features="scene", actions=False, hindsight_goal="none"
    )
    with pytest.raises(HorizonError, match="multiple of 4"):
        build_networks(policy_config(scene(window=window), toy_dataset()))


@pytest.mark.parametrize("network", [UNET, OBJECTS])
def test_settings_survive_json(network: NetworkConfig) -> None:
    data = json.loads(json.dumps(to_json(scene(network))))
    assert from_json(TrainConfig, data) == scene(network)


# --- training and sampling --------------------------------------------------------


@pytest.mark.parametrize("network", [UNET, OBJECTS])
def test_plans_become_the_data(tmp_path: Path, network: NetworkConfig) -> None:
    """Two windows are learnt by heart: the loss falls, and plans are the run."""
    history = learnt(tmp_path, network, 80)
    assert history[-1] < 0.3 * history[0]
    flat = toy_dataset(1, 17)
    run = Scene().features(flat.fields["observation"])
    policy = DiffuserPolicy.from_pretrained(
        tmp_path, num_sampling_steps=8, num_candidates=1
    )
    plan = policy.plan(flat.fields["observation"][:2])
    np.testing.assert_allclose(plan.observations[:, 0], run[:2], atol=1e-5)
    for row in range(2):
        off = np.abs(plan.path(row) - run[row : row + 16])[:, ROBOT]
        assert off.max() < 0.2 * np.ptp(run[:, ROBOT], axis=0).max()


@pytest.mark.parametrize("network", [UNET, OBJECTS])
def test_what_is_trained_is_what_is_loaded(
    tmp_path: Path, network: NetworkConfig
) -> None:
    learnt(tmp_path / "run", network)
    policy = DiffuserPolicy.from_pretrained(tmp_path / "run")
    policy.save_pretrained(tmp_path / "copy")
    again = DiffuserPolicy.from_pretrained(tmp_path / "copy")
    assert again.config.network == network
    assert again.config.layout == policy.config.layout
    rows = observe(3)["observation"]
    mine, theirs = policy.plan(rows), again.plan(rows)
    np.testing.assert_array_equal(mine.observations, theirs.observations)
    np.testing.assert_array_equal(mine.values, theirs.values)
    before, after = policy.networks.state_dict(), again.networks.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(part, after[name]) for name, part in before.items())


@pytest.mark.parametrize("network", [UNET, OBJECTS])
def test_the_contract_of_predict_is_kept(network: NetworkConfig) -> None:
    check_policy(toy_policy(scene(network), replan_interval=4, steadiness=0.1))


def test_ties_of_the_layout_are_one_map_of_the_normalizer(tmp_path: Path) -> None:
    """Positions of objects and robot are compared, so they share their unit."""
    flat = toy_dataset()
    trainer = Trainer(scene(), flat, tmp_path, device="cpu")
    ties, normalizer = trainer.policy_config.layout.ties, trainer.networks.normalizer
    assert ties == ((0, 2, 5), (1, 3, 6), (4, 7))
    rows = Scene().features(flat.fields["observation"])
    for group in ties:
        pooled = rows[:, list(group)]
        low, high = pooled.min(), pooled.max()
        ends = torch.tensor([[low, high]] * len(group)).T
        mapped = normalizer.normalize(ends, list(group))
        expected = torch.tensor([[-1.0], [1.0]]).expand(2, len(group))
        torch.testing.assert_close(mapped, expected)
    untied = [np.ptp(rows[:, c]) for c in ties[0]]
    assert max(untied) > 1.5 * min(untied)


def test_a_planner_says_what_it_plans_in_and_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    learnt(tmp_path, OBJECTS, 1)
    card = (tmp_path / CARD).read_text()
    assert "- Plans: columns of the featurizer `scene`\n" in card
    assert "- Network: residual, architecture `objects`, width 16\n" in card
    assert main(["info", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "0 action and 8 scene columns" in shown
    assert "transformer over objects, width 16, residual" in shown


# --- presets ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "count"),
    [
        ("kuka-stack", ObjectTransformer, 1_030_936),
        # The authors' has 68,096,807: it is also told, by a network of its own, which
        # rows are given.
        ("kuka-stack-paper", TemporalUNet, 65_084_839),
    ],
)
def test_presets_of_block_stacking_can_be_built(
    name: str, kind: type[Any], count: int
) -> None:
    num = 300
    flat = FlatDataset(
        {
            "observation": np.zeros((num, 39), np.float32),
            "action": np.zeros((num, 8), np.float32),
            "reward": np.zeros(num),
            "terminated": np.zeros(num, np.bool_),
        },
        np.array([0, num]),
        {"action_low": [-1.0] * 8, "action_high": [1.0] * 8},
    )
    settings = preset(name)
    made = policy_config(settings, flat)
    with torch.device("meta"):  # sizes without memory
        network = build_network(made)
    assert type(network) is kind
    assert sum(weight.numel() for weight in network.parameters()) == count
