"""The classifier of states: its numbers, its labels, and what its training leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from diffuser_policy.checkpoint import read_planner
from diffuser_policy.columns.labels import LABELS, NamedColumns, labelled
from diffuser_policy.columns.layout import TrajectoryLayout
from diffuser_policy.config import ClassifierConfig, OptimizationConfig, PolicyConfig
from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.errors import (
    ConfigError,
    DatasetError,
    MissingColumnsError,
    SpaceMismatchError,
    UnknownNameError,
)
from diffuser_policy.networks.classifiers import StateClassifier
from diffuser_policy.policy import DiffuserPolicy
from diffuser_policy.testing import toy_dataset, toy_policy
from tests.classifier_helpers import SIDES, make_trainer, sides
from tests.training_helpers import weights

HERE = "tests.classifier_helpers"
LAYOUT = TrajectoryLayout(
    action_dim=1, observation_dim=2, aliases={"position": (1,), "velocity": (0,)}
)


# --- the network --------------------------------------------------------------------


def test_planning_steps_are_judged_one_by_one() -> None:
    torch.manual_seed(0)
    network = StateClassifier(5, ("a", "b", "c"), width=16)
    states, i = torch.randn(4, 7, 5), torch.tensor([0, 3, 3, 9])
    logits = network(states, i)
    assert logits.shape == (4, 7, 3)
    for step in range(7):
        torch.testing.assert_close(network(states[:, [step]], i)[:, 0], logits[:, step])
    assert not torch.allclose(network(states, i + 5), logits)


def test_the_loss_weighs_a_rare_label_as_much_as_its_absence() -> None:
    """By hand: the mean loss over those where it holds, and over the others."""
    torch.manual_seed(0)
    network = StateClassifier(2, ("rare", "frequent"))
    states, i = torch.randn(40, 1, 2), torch.zeros(40)
    targets = torch.zeros(40, 1, 2)
    targets[:4, 0, 0], targets[:30, 0, 1] = 1.0, 1.0
    network.set_balance(torch.tensor([4 / 40, 30 / 40]))
    signed = network(states, i) * (2 * targets - 1)
    each = torch.nn.functional.softplus(-signed)
    halves = [
        0.5
        * (each[targets[..., k] > 0, k].mean() + each[targets[..., k] == 0, k].mean())
        for k in range(2)
    ]
    expected = torch.stack(halves).mean()
    torch.testing.assert_close(network.loss(states, i, targets), expected)


@pytest.mark.parametrize("labels", [(), ("a", "a")])
def test_labels_are_named_once(labels: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="without duplicates"):
        StateClassifier(3, labels)


# --- labels -------------------------------------------------------------------------


def test_columns_go_by_their_names() -> None:
    rows = np.arange(12.0).reshape(4, 3)
    columns = NamedColumns(rows, LAYOUT)
    assert list(columns) == ["action", "observation", "position", "velocity"]
    assert len(columns) == 4
    np.testing.assert_array_equal(columns["position"], rows[:, [2]])
    np.testing.assert_array_equal(columns["action"], rows[:, [0]])
    assert "position" in columns
    assert "goal" not in columns
    with pytest.raises(MissingColumnsError, match="goal"):
        columns["goal"]


def test_labels_are_found_by_name_and_by_address() -> None:
    assert LABELS.find(SIDES).target is sides
    assert LABELS.find("kuka-pairs").target.__module__ == "diffuser_envs.kuka.stages"
    for name, nearest in (("kuka-pears", "kuka-pairs"), (f"{HERE}:side", "sides")):
        with pytest.raises(UnknownNameError, match=f"Did you mean '{nearest}'"):
            LABELS.find(name)


def test_labels_that_are_not_one_a_row_are_refused() -> None:
    layout = toy_policy().config.layout
    rows = np.zeros((5, layout.transition_dim), np.float32)
    with pytest.raises(DatasetError, match=r"one array of shape \(5,\).*\(5, 2\)"):
        labelled(f"{HERE}:misshapen", rows, layout)
    with pytest.raises(MissingColumnsError, match="altitude"):
        labelled(f"{HERE}:elsewhere", rows, layout)
    names, found = labelled(SIDES, rows, layout)
    assert names == ("right", "above", "slow")
    assert found.tolist() == [[False, False, True]] * 5


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ([[1], [1, 2]], ConfigError, "ragged' failed: ValueError"),
        ([None, "a", 1, 0, 1], DatasetError, "true or false.* holds .None, 'a', 1"),
        (["a"] * 5, DatasetError, "true or false.* holds .'a', 'a', 'a'"),
    ],
)
def test_labels_that_are_no_rows_of_flags_are_refused(
    monkeypatch: pytest.MonkeyPatch,
    value: Any,
    error: type[Exception],
    message: str,
) -> None:
    monkeypatch.setattr(LABELS, "registered", {})
    LABELS.register("ragged")(lambda _: {"a": value})
    layout = toy_policy().config.layout
    with pytest.raises(error, match=message):
        labelled("ragged", np.zeros((5, layout.transition_dim), np.float32), layout)


# --- the loss -----------------------------------------------------------------------


def test_labels_are_those_of_the_clean_state_and_noise_is_the_schedules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tmp_path, optimization=OptimizationConfig(batch_size=6000))
    layout = trainer.policy_config.layout
    clean: list[Tensor] = []
    seen: list[Tensor] = []
    denoiser = trainer.planner_networks.denoiser
    add_noise = denoiser.add_noise

    def noised(x: Tensor, *others: Tensor) -> Tensor:
        clean.append(x)
        return add_noise(x, *others)

    def record(noisy: Tensor, i: Tensor, targets: Tensor) -> Tensor:
        seen.extend([noisy, i, targets])
        return noisy.mean()

    monkeypatch.setattr(denoiser, "add_noise", noised)
    monkeypatch.setattr(trainer.networks, "loss", record)
    trainer.loss(0, 0, 0)
    noisy, i, targets = seen
    rows = trainer.planner_networks.normalizer.unnormalize(clean[0][:, 0]).numpy()
    expected = np.stack(list(sides(NamedColumns(rows, layout)).values()), axis=1)
    # A row at the very edge may fall to its other side when it is normalized and back.
    assert (targets[:, 0].numpy() == expected).mean() > 0.999
    schedule = denoiser.schedule
    for step in range(schedule.num_denoising_steps):
        those = i == step
        signal, sigma = (
            float(scale(torch.tensor(step)))
            for scale in (schedule.signal, schedule.noise)
        )
        residual = noisy[those] - signal * clean[0][those]
        assert residual.std().item() == pytest.approx(sigma, rel=0.1)


@pytest.mark.slow
def test_labels_are_learned(tmp_path: Path) -> None:
    """Clean states are told apart, and the noisier ones the less."""
    trainer = make_trainer(
        tmp_path,
        optimization=OptimizationConfig(
            num_steps=300, batch_size=256, learning_rate=1e-2, ema_decay=0.95
        ),
        classifier=ClassifierConfig(width=32, depth=2),
    )
    trainer.run(progress=False)
    config, networks = read_planner(tmp_path)
    assert networks.classifier is not None
    denoiser, targets = networks.denoiser, trainer.targets
    rows = trainer.read(torch.arange(len(targets)))
    right = []
    for i in (0, config.network.num_denoising_steps - 1):
        clean = rows[:, None]
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(i))
        steps = torch.full((len(rows),), i)
        noisy = denoiser.add_noise(clean, noise, steps)
        told = networks.classifier(noisy, steps)[:, 0] > 0
        right.append(float((told == targets).float().mean()))
    assert right[0] > 0.85
    assert right[0] > right[1] + 0.1


# --- what is left behind ------------------------------------------------------------


def test_the_planner_is_kept_and_gets_a_classifier(tmp_path: Path) -> None:
    policy = toy_policy()
    before = {k: v.clone() for k, v in policy.networks.state_dict().items()}
    trainer = make_trainer(tmp_path, policy=policy)
    trainer.run(progress=False)
    assert policy.networks.classifier is None
    saved = weights(tmp_path)
    assert all(torch.equal(saved[name], before[name]) for name in before)
    averaged = trainer.average.state_dict()
    added = {name: saved[name] for name in saved if name not in before}
    assert set(added) == {f"classifier.{name}" for name in averaged}
    assert all(torch.equal(added[f"classifier.{k}"], v) for k, v in averaged.items())
    config, networks = read_planner(tmp_path)
    assert config.classifier == ClassifierConfig(
        width=16, depth=2, classes=("right", "above", "slow")
    )
    assert networks.classifier is not None
    assert networks.classifier.labels == ("right", "above", "slow")
    assert config.provenance["classifier"]["steps"] == 6
    assert "Classifier: 3 labels" in (tmp_path / "README.md").read_text()
    loaded = DiffuserPolicy.from_pretrained(tmp_path)
    assert loaded.accelerated("off").networks.classifier is not None
    loaded.save_pretrained(tmp_path / "copy")
    assert all(torch.equal(v, saved[k]) for k, v in weights(tmp_path / "copy").items())


def test_the_balance_is_that_of_the_data(tmp_path: Path) -> None:
    flat = toy_dataset()
    position = flat.fields["observation"][:, :2]
    share = float((position[:, 0] > 0).mean())
    balance = make_trainer(tmp_path, flat=flat).average.balance
    assert balance[0].item() == pytest.approx((1 - share) / share, rel=1e-4)


def test_some_of_the_labels_can_be_asked_for(tmp_path: Path) -> None:
    chosen = ClassifierConfig(width=16, classes=("slow", "right"))
    trainer = make_trainer(tmp_path, classifier=chosen)
    assert trainer.average.labels == ("slow", "right")
    every = make_trainer(tmp_path / "every")
    torch.testing.assert_close(trainer.average.balance, every.average.balance[[2, 0]])
    unknown = ClassifierConfig(classes=("rihgt",))
    with pytest.raises(UnknownNameError, match="right"):
        make_trainer(tmp_path / "other", classifier=unknown)
    pairs = ClassifierConfig(architecture="pairs", classes=("slow", "right"))
    with pytest.raises(ConfigError, match="in their own order"):
        make_trainer(tmp_path / "other", classifier=pairs)


def test_labels_that_never_hold_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"'far' holds in none.*--classes"):
        make_trainer(tmp_path, labels=f"{HERE}:never")


def test_data_of_another_environment_are_refused(tmp_path: Path) -> None:
    flat = toy_dataset()
    facts = {**flat.metadata, "action_high": [2.0, 2.0]}
    with pytest.raises(SpaceMismatchError, match=r"in other spaces") as caught:
        make_trainer(tmp_path, flat=FlatDataset(flat.fields, flat.run_starts, facts))
    said = "trained in: action_high: (1.0, 1.0) → (2.0, 2.0). Use data"
    assert said in str(caught.value)


def test_settings_of_earlier_versions_have_no_classifier() -> None:
    data = toy_policy().config.to_json()
    config = PolicyConfig.from_json(data)
    assert data.pop("classifier") is None
    assert PolicyConfig.from_json(data) == config


def test_rows_are_labelled_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)
    layout = TrajectoryLayout(
        action_dim=0, observation_dim=3, aliases={"position": (0, 1), "velocity": (2,)}
    )
    names, whole = labelled(SIDES, rows, layout)
    monkeypatch.setattr("diffuser_policy.columns.labels.CHUNK", 7)
    some, parts = labelled(SIDES, rows, layout)
    assert some == names
    np.testing.assert_array_equal(parts, whole)
    assert len(whole) == 100


def test_fewer_rows_are_labelled_at_a_time_where_they_are_wide(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts = []

    def noted(rows: np.ndarray, layout: TrajectoryLayout) -> NamedColumns:
        counts.append(len(rows))
        return NamedColumns(rows, layout)

    monkeypatch.setattr("diffuser_policy.columns.labels.NamedColumns", noted)
    monkeypatch.setattr("diffuser_policy.columns.layout.PIECE", 3 * 12)
    layout = TrajectoryLayout(
        action_dim=0, observation_dim=3, aliases={"position": (0, 1), "velocity": (2,)}
    )
    labelled(SIDES, np.ones((7, 3), np.float32), layout)
    assert counts == [3, 3, 1]
