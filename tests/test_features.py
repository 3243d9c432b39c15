"""Featurizers: planning in columns that an environment's package derives."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffuser_policy.build import config_featurizer
from diffuser_policy.columns import features
from diffuser_policy.columns.features import (
    FEATURIZERS,
    FeaturizerError,
    Identity,
    make_featurizer,
    planning_columns,
    register_featurizer,
)
from diffuser_policy.columns.layout import TrajectoryLayout
from diffuser_policy.config import (
    PolicyConfig,
    ValueTrainConfig,
)
from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.data.windows import WindowDataset, in_planning_columns
from diffuser_policy.errors import ConfigError, SpaceMismatchError, UnknownNameError
from diffuser_policy.planning.executors import FeaturesExecutor
from diffuser_policy.planning.plan import Following
from diffuser_policy.planning.ranking import FeasibilityRanking
from diffuser_policy.policy import DiffuserPolicy
from diffuser_policy.testing import (
    toy_config,
    toy_dataset,
    toy_policy,
)
from diffuser_policy.training.derive import policy_config, space_spec
from diffuser_policy.training.trainer import Trainer
from diffuser_policy.training.value_trainer import ValueTrainer
from tests.features_helpers import Turned, config, register_known, turned_policy
from tests.policy_helpers import observe
from tests.value_helpers import rewarded


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    register_known(monkeypatch)


# --- by name ----------------------------------------------------------------------


def test_a_function_may_make_one() -> None:
    @register_featurizer("made")
    def make() -> Turned:
        return Turned()

    assert isinstance(make_featurizer("made"), Turned)


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"featurizer 'turne'.*mean 'turned'"):
        policy_config(config("turne"), toy_dataset())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_columns": 0}, "num_columns=0, expected a positive"),
        ({"observation_size": "4"}, "observation_size='4', expected a positive"),
        ({"columns": [("position", 0)]}, "needs `columns`"),
        ({"features": None}, "a method `features`"),
    ],
)
def test_a_featurizer_of_the_wrong_form_is_refused(
    change: dict[str, Any], message: str
) -> None:
    register_featurizer("wrong")(type("Wrong", (Turned,), change))
    with pytest.raises(FeaturizerError, match=message):
        make_featurizer("wrong")


def test_what_lacks_parts_is_no_featurizer() -> None:
    register_featurizer("empty")(dict)
    with pytest.raises(FeaturizerError, match="lacks observation_size, columns"):
        make_featurizer("empty")


def test_a_featurizer_that_cannot_be_made_is_named() -> None:
    @register_featurizer("needy")
    def make(size: int) -> Turned:
        raise AssertionError(size)

    with pytest.raises(FeaturizerError, match=r"'needy' .* cannot be made: TypeError"):
        make_featurizer("needy")


# --- columns ----------------------------------------------------------------------


def test_rows_are_mapped_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "CHUNK", 3)
    rows = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    found = planning_columns(Turned(), rows)
    np.testing.assert_array_equal(found, Turned().features(rows))
    assert found.dtype == np.float32


class Watched(Turned):
    """Notes how many observations it maps at a time."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def features(self, observations: np.ndarray) -> np.ndarray:
        self.counts.append(len(observations))
        found: np.ndarray = super().features(observations)
        return found


def test_fewer_rows_are_mapped_at_a_time_where_they_are_wide(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An observation has 16 bytes here, and its planning columns have 12."""
    monkeypatch.setattr("diffuser_policy.columns.layout.PIECE", 3 * (16 + 12))
    rows, watched = np.ones((7, 4), np.float32), Watched()
    planning_columns(watched, rows)
    assert watched.counts == [3, 3, 1]


def test_without_a_featurizer_nothing_is_copied() -> None:
    rows, flat = np.ones((2, 4), np.float32), toy_dataset()
    assert planning_columns(Identity(4), rows) is rows
    assert in_planning_columns(flat, Identity(4)) is flat


class Wide(Turned):
    """Promises three columns and returns four."""

    def features(self, observations: np.ndarray) -> np.ndarray:
        return observations


class Holey(Turned):
    """Divides by the first column."""

    def features(self, observations: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            columns: np.ndarray = super().features(observations)
            return np.asarray(columns / observations[..., :1])


def test_wrong_columns_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.ones((2, 4), np.float32)
    with pytest.raises(FeaturizerError, match=r"takes observations of 4 columns"):
        planning_columns(Turned(), rows[:, :3])
    with pytest.raises(FeaturizerError, match=r"shape \[2, 4\] .* expected \[2, 3\]"):
        planning_columns(Wide(), rows)
    rows[1, 0] = 0
    monkeypatch.setattr(features, "CHUNK", 1)
    with pytest.raises(FeaturizerError, match=r"NaN or infinite .* 1 obs.*\[0.0, 1.0"):
        planning_columns(Holey(), rows)


def test_columns_that_are_not_finite_are_named_in_few_words() -> None:
    class Broken(Turned):
        observation_size = 1000

        def features(self, observations: np.ndarray) -> np.ndarray:
            return np.where([False, False, True], np.nan, observations[:, :3])

    told = r"2 obs.* of row 0, where planning column 2 is nan: \[1\.0, 1\.0.*…"
    with pytest.raises(FeaturizerError, match=told) as raised:
        planning_columns(Broken(), np.ones((2, 1000), np.float32))
    assert len(str(raised.value)) < 500


# --- settings and data --------------------------------------------------------------


class InPlace(Turned):
    """Computes in the arrays that it gets."""

    def features(self, observations: np.ndarray) -> np.ndarray:
        observations *= 2
        return super().features(observations)

    def act(self, plans: Any, observations: np.ndarray) -> np.ndarray:
        observations *= 2
        plans.observations[:] = 0
        return super().act(plans, observations)

    def feasibility(self, candidates: np.ndarray, stride: int) -> np.ndarray:
        candidates *= -1
        return super().feasibility(candidates, stride)


def test_a_featurizer_may_compute_in_place() -> None:
    rows = np.ones((2, 4), np.float32)
    found = planning_columns(InPlace(), rows)
    assert found[0].tolist() == [-2.0, -2.0, pytest.approx(8**0.5)]
    assert (rows == 1).all()


def test_observations_and_candidates_are_the_featurizers_own() -> None:
    rows = np.ones((2, 4), np.float32)
    planned = np.ones((2, 4, 3), np.float32)
    plans = Following(
        observations=planned,
        actions=np.zeros((2, 4, 0), np.float32),
        lengths=np.full(2, 4),
        progress=np.zeros(2),
        stride=1,
    )
    FeaturesExecutor(InPlace(), 2).act(plans, rows)
    assert (rows == 1).all()
    assert (planned == 1).all()
    candidates = torch.ones(2, 3, 3)
    trajectory: Any = Candidates(candidates)
    FeasibilityRanking(InPlace())(trajectory, 2)
    assert (candidates == 1).all()


class Candidates:
    """As much of a trajectory as a featurizer's ranking sees."""

    stride = 1

    def __init__(self, candidates: torch.Tensor) -> None:
        self.normalized = candidates

    def __getitem__(self, name: str) -> torch.Tensor:
        assert name == "observation"
        return self.normalized

    def __len__(self) -> int:
        return len(self.normalized)


def raise_inner(*_: Any) -> Any:
    raise RuntimeError("inner")


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (raise_inner, "Odd failed: RuntimeError: inner. Its `features`"),
        (lambda _: [[1.0], [1.0, 2.0]], "Odd failed: ValueError"),
        (lambda _: np.full((2, 3), "a"), "returned values of type <U1"),
        (lambda _: np.ones((2, 3)) + 1j, "returned values of type complex128"),
    ],
)
def test_what_a_featurizer_does_wrong_is_explained(returned: Any, message: str) -> None:
    odd = type("Odd", (Turned,), {"features": lambda _, rows: returned(rows)})
    with pytest.raises(FeaturizerError, match=message):
        planning_columns(odd(), np.ones((2, 4), np.float32))


def test_a_featurizer_whose_columns_fail_is_named() -> None:
    register_featurizer("odd")(
        type("Odd", (Turned,), {"columns": property(raise_inner)})
    )
    with pytest.raises(FeaturizerError, match=r"'odd' .* cannot be made: RuntimeError"):
        make_featurizer("odd")


def test_the_layout_is_that_of_the_planning_columns() -> None:
    made = policy_config(config(), toy_dataset())
    assert made.layout.observation_dim == 3
    assert made.layout.aliases == {"position": (0, 1), "speed": (2,)}
    assert made.layout.objects == ((0,), (1,))
    assert made.spaces.observation_size == 4
    again = PolicyConfig.from_json(json.loads(json.dumps(made.to_json())))
    assert dataclasses.replace(again, provenance={}) == dataclasses.replace(
        made, provenance={}
    )


def test_goals_count_only_where_the_featurizer_names_their_columns() -> None:
    flat = toy_dataset()
    assert not policy_config(config("turned"), flat).spaces.has_goal
    pinned = policy_config(config("pinned"), flat)
    assert (pinned.spaces.goal_size, pinned.layout.aliases["goal"]) == (2, (0, 1))
    without = policy_config(config("pinned"), toy_dataset(goals=False))
    assert not without.layout.goal_conditioned


def test_columns_that_the_featurizer_names_keep_their_names() -> None:
    def named(name: str, **columns: Any) -> TrajectoryLayout:
        train = config(name)
        window = dataclasses.replace(train.window, **columns)
        made = policy_config(dataclasses.replace(train, window=window), toy_dataset())
        config_featurizer(made)
        return made.layout

    with pytest.raises(ConfigError, match=r"\(1, 0\), and .*'turned' names \(0, 1\)"):
        named("turned", position=(1, 0))
    assert named("turned", position=(0, 1)) == named("turned")
    assert named("turned", velocity=(1, 2)).aliases["velocity"] == (1, 2)


def test_data_of_another_environment_are_refused() -> None:
    flat = toy_dataset(goals=False)
    fields = {**flat.fields, "observation": flat.fields["observation"][:, :3]}
    other = FlatDataset(fields, flat.run_starts, flat.metadata)
    with pytest.raises(FeaturizerError, match=r"of 4 columns, and .* has 3"):
        policy_config(config(), other)
    register_featurizer("long")(type("Long", (Turned,), {"columns": {"goal": (0,)}}))
    with pytest.raises(FeaturizerError, match=r"1 column that a goal pins.*have 2"):
        policy_config(config("long"), toy_dataset())


def test_windows_are_of_planning_columns() -> None:
    flat = toy_dataset()
    made = policy_config(config(), flat)
    policy = toy_policy(config(), flat=flat)
    windows = WindowDataset(
        in_planning_columns(flat, Turned()),
        layout=made.layout,
        normalizer=policy.networks.normalizer,
    )
    expected = Turned().features(flat.fields["observation"])
    every = windows.read(torch.arange(flat.num_rows))
    rows = policy.networks.normalizer.unnormalize(every).numpy()
    np.testing.assert_allclose(rows, expected, atol=1e-6)
    # The limits of the data are those of the normalized columns; tied ones share them.
    assert made.layout.ties == ((0, 0, 1),)
    for columns in ([0, 1], [2]):
        normalized = every[:, columns]
        assert normalized.min().item() == pytest.approx(-1.0)
        assert normalized.max().item() == pytest.approx(1.0)


def test_a_planner_is_trained_saved_and_loaded(tmp_path: Path) -> None:
    trainer = Trainer(config(), toy_dataset(), tmp_path, device="cpu")
    trainer.run(progress=False)
    policy = DiffuserPolicy.from_pretrained(tmp_path)
    assert policy.config.window.features == "turned"
    action, _ = policy.predict(observe()["observation"])
    assert action.shape == (2,)
    Trainer(config(), toy_dataset(), tmp_path, device="cpu")  # resumes
    with pytest.raises(ConfigError, match=r"window.features: turned → pinned"):
        Trainer(config("pinned"), toy_dataset(), tmp_path, device="cpu")


def test_a_value_network_sees_planning_columns(tmp_path: Path) -> None:
    flat = rewarded()
    policy = toy_policy(config(), flat=flat)
    settings = ValueTrainConfig(
        dataset="toy/point-v0", optimization=toy_config().optimization
    )
    trainer = ValueTrainer(settings, (policy.config, policy.networks), flat, tmp_path)
    trainer.run(progress=False)
    valued = DiffuserPolicy.from_pretrained(tmp_path)
    assert valued.networks.value is not None
    planner = (policy.config, policy.networks)
    fields = {**flat.fields, "observation": flat.fields["observation"][:, :2]}
    short = FlatDataset(fields, flat.run_starts, flat.metadata)
    with pytest.raises(FeaturizerError, match="takes observations of 4 columns"):
        ValueTrainer(settings, planner, short, tmp_path)
    bounds = {**flat.metadata, "action_low": [-2.0, -2.0]}
    other = FlatDataset(flat.fields, flat.run_starts, bounds)
    with pytest.raises(SpaceMismatchError, match="recorded in"):
        ValueTrainer(settings, planner, other, tmp_path)


# --- checkpoints --------------------------------------------------------------------


def test_a_checkpoint_says_which_featurizer_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turned_policy().save_pretrained(tmp_path)
    monkeypatch.setattr(FEATURIZERS, "registered", {})
    with pytest.raises(FeaturizerError, match=r"'turned', which is not registered"):
        DiffuserPolicy.from_pretrained(tmp_path)
    # What it is can be read all the same.
    found = PolicyConfig.from_json(json.loads((tmp_path / "config.json").read_text()))
    assert found.window.features == "turned"


@pytest.mark.parametrize(
    "change",
    [
        {"num_columns": 4},
        {"observation_size": 5},
        {"columns": {"position": (1, 0), "speed": (2,)}},
        {"objects": ()},
    ],
)
def test_a_featurizer_that_has_changed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    turned_policy().save_pretrained(tmp_path)
    changed = type("Turned", (Turned,), change)
    monkeypatch.setattr(FEATURIZERS, "registered", {})
    register_featurizer("turned")(changed)
    with pytest.raises(FeaturizerError, match="another version of the featurizer"):
        DiffuserPolicy.from_pretrained(tmp_path)


def test_older_checkpoints_are_read(tmp_path: Path) -> None:
    """Without the settings and fields that came with featurizers."""
    policy = toy_policy()
    policy.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    data = json.loads(file.read_text())
    assert "objects" not in data["layout"]
    del data["window"]["features"]
    file.write_text(json.dumps(data))
    older = DiffuserPolicy.from_pretrained(tmp_path)
    assert older.config.window == policy.config.window
    for observation in (observe(), observe(2)):
        a, _ = policy.predict(observation, deterministic=True)
        b, _ = older.predict(observation, deterministic=True)
        np.testing.assert_array_equal(a, b)


def test_spaces_are_the_environments_own() -> None:
    flat = toy_dataset()
    assert space_spec(flat, Turned()).observation_space().shape == (4,)
    assert space_spec(flat).goal_size == 2
