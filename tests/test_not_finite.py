"""NaN and infinity never leave: an error says where they came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffuser_policy import DiffuserPolicy
from diffuser_policy.columns.normalizers import LimitsNormalizer
from diffuser_policy.config import (
    NetworkConfig,
    OptimizationConfig,
    WindowConfig,
)
from diffuser_policy.diffusion.conditions import Conditions
from diffuser_policy.errors import (
    CheckpointError,
    ConfigError,
    DatasetError,
    NotFiniteError,
    ObservationError,
)
from diffuser_policy.testing import toy_config, toy_dataset, toy_policy
from diffuser_policy.training.processes import Processes
from diffuser_policy.training.run import TrainingRun
from diffuser_policy.training.state import checkpoints
from diffuser_policy.training.trainer import Trainer
from tests import classifier_helpers, value_helpers
from tests.policy_helpers import observe

ON_CPU = Processes.single("cpu")
WILD = OptimizationConfig(
    num_steps=60, batch_size=8, learning_rate=1e30, learning_rate_schedule="constant"
)


def streams(policy: DiffuserPolicy) -> str:
    return repr(policy._streams.bit_generator.state)


# --- plans and actions --------------------------------------------------------------


@pytest.mark.parametrize("exponent", [*range(0, 39, 2), 38])
@pytest.mark.parametrize("key", ["observation", "desired_goal"])
def test_far_observations_give_an_action_or_an_error(exponent: int, key: str) -> None:
    policy = toy_policy()
    seen = observe()
    seen[key][0] = 10.0**exponent
    before = streams(policy)
    try:
        action, state = policy.predict(seen)
    except ObservationError:
        assert streams(policy) == before
    else:
        assert policy.action_space.contains(action)
        assert all(np.isfinite(part).all() for part in state)


def test_a_goal_out_of_this_world_is_named() -> None:
    policy = DiffuserPolicy.from_pretrained("multi2d-large")
    seen = {**observe(), "desired_goal": np.full(2, 1e30)}
    with pytest.raises(
        ObservationError, match=r"The goal is too far.*column 1.*1e\+30"
    ):
        policy.predict(seen)
    with pytest.raises(ObservationError, match="The goal is too far"):
        policy.plan(seen)


def test_predicted_times_that_overflow_blame_the_observation() -> None:
    policy = toy_policy(horizon="predicted")
    seen = observe(2)
    seen["desired_goal"][1, 0] = -3e38
    policy.planner.horizons.scale = 1e30
    with pytest.raises(
        ObservationError, match=r"times to the goal.*too far.*column 0 is -3e\+38"
    ):
        policy.predict(seen)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e38])
def test_damaged_weights_are_named(value: float) -> None:
    policy = toy_policy().accelerated("off")
    policy.networks.denoiser.clip = False
    weights: Any = policy.networks.denoiser.network.mid
    with torch.no_grad():
        weights.first.conv_out.norm.weight.fill_(value)
    with pytest.raises(CheckpointError, match=r"denoiser\.network\.mid\.first"):
        policy.predict(observe())


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1e300},
        {"temperature": 1e38},
        {"position_gain": 1e308, "velocity_gain": -1e308},
        {"horizon": "predicted", "horizon_scale": 1e308},
        {"horizon": "predicted", "horizon_scale": 1e-300},
        {"executor": "pursuit", "lookahead": 1e308},
        {"executor": "path", "seconds_per_step": 1e-308},
        {"executor": "path", "seconds_per_step": 1e308, "tolerance": 1e-300},
        {"executor": "path", "seconds_per_step": 1.0, "tempo": 1e308},
        {"replan_deviation": 1e308},
    ],
    ids=str,
)
def test_settings_that_overflow_never_give_nan(settings: dict[str, Any]) -> None:
    policy = toy_policy(**settings)
    before, state = streams(policy), None
    try:
        for _ in range(3):
            action, state = policy.predict(observe(3), state)
            assert np.isfinite(action).all()
            assert all(np.isfinite(part).all() for part in state)
    except NotFiniteError:
        assert state is not None or streams(policy) == before


def test_actions_that_would_be_nan_name_the_executor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy = toy_policy()
    monkeypatch.setattr(
        policy.executor, "act", lambda *_: np.array([[np.nan, 0.0]], np.float32)
    )
    before = streams(policy)
    with pytest.raises(NotFiniteError, match="executor 'tracking'"):
        policy.predict(observe())
    assert streams(policy) == before


def test_actions_that_would_be_nan_are_those_of_the_first_such_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy = toy_policy()
    actions = np.zeros((300, 2))
    actions[200:, 1] = np.nan
    monkeypatch.setattr(policy.executor, "act", lambda *_: actions)
    told = r"plan of row 200: its action would be \[0\.0, nan\], at a progress of 0 env"
    with pytest.raises(NotFiniteError, match=told) as raised:
        policy.predict(observe(300))
    assert len(str(raised.value)) < 400


def test_times_that_are_not_finite_are_those_of_the_first_such_row() -> None:
    horizons = toy_policy(horizon="predicted").planner.horizons
    horizons.scale = 1e30
    goals = np.zeros((300, 2), np.float32)
    goals[200:] = 3e38
    told = r"not finite: that of row 200 is (inf|nan) env steps\.$"
    with pytest.raises(NotFiniteError, match=told):
        horizons.predict_time(np.zeros((300, 4), np.float32), goals)


def test_rankings_that_are_nan_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = toy_policy()
    unknown = torch.full((1, 2), torch.nan)
    monkeypatch.setattr(type(policy.planner.ranking), "__call__", lambda *_: unknown)
    with pytest.raises(NotFiniteError, match="values some plans as NaN"):
        policy.predict(observe())


def test_conditions_that_overflow_are_an_error() -> None:
    given = Conditions().pin(3, "position", [3e38, -3e38])
    with pytest.raises(
        NotFiniteError, match=r"states or actions are NaN.* a condition,"
    ):
        toy_policy().plan(observe(), conditions=given)


# --- trainings ----------------------------------------------------------------------


def planner_trainer(
    output: Path, optimization: OptimizationConfig, *, normalizer: Any = "identity"
) -> Trainer:
    config = toy_config(
        optimization=optimization,
        window=WindowConfig(horizon=16, min_horizon=8, normalizer=normalizer),
        network=NetworkConfig(dim=8, multipliers=(1, 2), num_denoising_steps=8),
    )
    return Trainer(config, toy_dataset(), output, device="cpu")


TRAINERS: dict[str, Any] = {
    "denoiser": planner_trainer,
    "value": value_helpers.make_trainer,
    "classifier": classifier_helpers.make_trainer,
}


@pytest.mark.parametrize("part", TRAINERS)
def test_a_training_that_diverges_stops_and_keeps_what_was_good(
    part: str, tmp_path: Path
) -> None:
    trainer: TrainingRun[Any] = TRAINERS[part](tmp_path, optimization=WILD)
    trainer.save()  # good: nothing has been trained yet
    saved = {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
    with pytest.raises(NotFiniteError, match=r"--learning-rate, now 1e\+30"):
        trainer.run(save_interval=1, progress=False)
    kept = checkpoints(tmp_path / "training")
    assert trainer.step < WILD.num_steps
    for path in (kept[-1] / "tensors.safetensors", tmp_path / "model.safetensors"):
        assert_finite(path)
    assert len(saved) == 2
    DiffuserPolicy.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["identity", "limits", "gaussian"])
def test_scaling_is_advised_where_data_are_not_scaled(
    name: Any, tmp_path: Path
) -> None:
    trainer = planner_trainer(tmp_path, WILD, normalizer=name)
    with pytest.raises(NotFiniteError) as caught:
        trainer.run(progress=False)
    assert ("--window.normalizer" in str(caught.value)) == (name == "identity")


def assert_finite(path: Path) -> None:
    from safetensors.numpy import load_file

    assert [k for k, v in load_file(path).items() if not np.isfinite(v).all()] == []


@pytest.mark.parametrize("part", TRAINERS)
def test_a_loss_that_is_not_finite_changes_no_weight(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer: TrainingRun[Any] = TRAINERS[part](
        tmp_path, optimization=OptimizationConfig(num_steps=5, batch_size=4)
    )
    usual = trainer.prepared

    def spoiled(step: int, *rest: Any) -> dict[str, torch.Tensor]:
        losses = usual(step, *rest)
        return {k: v * (torch.nan if step == 3 else 1) for k, v in losses.items()}

    monkeypatch.setattr(trainer, "prepared", spoiled)
    message = f"The loss of {part} is nan at gradient step 4.*of gradient step 2 are"
    with pytest.raises(NotFiniteError, match=message) as caught:
        trainer.run(save_interval=2, progress=False)
    # Advice that this command can follow.
    assert ("--window.normalizer" in str(caught.value)) == (part == "denoiser")
    assert trainer.step == 3
    assert all(bool(torch.isfinite(w).all()) for w in trainer.networks.parameters())


@pytest.mark.parametrize("part", ["networks", "average"])
def test_weights_that_are_not_finite_are_not_saved(part: str, tmp_path: Path) -> None:
    trainer = planner_trainer(tmp_path, OptimizationConfig(num_steps=5, batch_size=4))
    with torch.no_grad():
        next(iter(getattr(trainer, part).parameters())).fill_(torch.nan)
    trainer.step = 3
    message = "NaN or infinite at gradient step 3: .*Nothing had been saved"
    with pytest.raises(NotFiniteError, match=message):
        trainer.save()
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("bound", [3e38, 1e300])
def test_data_too_large_for_single_precision_are_refused(bound: float) -> None:
    rows = np.array([[-bound, 0.0], [bound, 1.0]])
    with pytest.raises(DatasetError, match=r"Columns \[0\].*too large"):
        LimitsNormalizer.fit(rows if bound > 1e38 * 4 else rows.astype(np.float32))


def test_a_normalizer_is_finite() -> None:
    one = torch.ones(1)
    for shift, scale in ((one * torch.nan, one), (one, one * torch.inf)):
        with pytest.raises(ConfigError, match="finite"):
            LimitsNormalizer(shift, scale)
