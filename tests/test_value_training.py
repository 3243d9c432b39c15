"""What a value network is taught, and what its training leaves behind."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from diffuser_policy.checkpoint import read_planner, shipped_planners
from diffuser_policy.columns.layout import TrajectoryLayout
from diffuser_policy.columns.normalizers import IdentityNormalizer
from diffuser_policy.config import (
    OptimizationConfig,
    PolicyConfig,
    ValueConfig,
    WindowConfig,
)
from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.data.returns import return_scale, returns_to_go
from diffuser_policy.data.windows import WindowDataset
from diffuser_policy.errors import ConfigError, DatasetError, SpaceMismatchError
from diffuser_policy.policy import DiffuserPolicy
from diffuser_policy.testing import toy_config, toy_dataset, toy_policy
from tests.training_helpers import (
    has_batches_of_its_own,
    is_fixed_by_its_seed,
    weights,
)
from tests.value_helpers import (
    fixed_length,
    make_trainer,
    rewarded,
    with_rewards,
)

FLATTEN = ValueConfig(dim=16, multipliers=(1, 4), pooling="flatten", discount=0.9)


# --- returns to go ----------------------------------------------------------------


def summed(flat: FlatDataset, discount: float, penalty: float) -> np.ndarray:
    """Return returns-to-go by their definition, one sum for each row."""
    rewards, terminated = flat.fields["reward"], flat.fields["terminated"]
    returns = np.zeros(flat.num_rows)
    for begin, end in zip(flat.run_starts[:-1], flat.run_starts[1:], strict=True):
        for row in range(begin, end):
            for k, later in enumerate(range(row, end)):
                reward = rewards[later] - penalty * terminated[later]
                returns[row] += discount**k * reward
                if terminated[later]:
                    break
    return returns


@pytest.mark.parametrize("discount", [0.5, 0.97, 1.0])
@pytest.mark.parametrize("penalty", [0.0, 100.0])
@pytest.mark.parametrize("ends", [(), (6, 20, 29), (29,)])
def test_returns_are_discounted_sums_to_the_end_of_the_run(
    discount: float, penalty: float, ends: tuple[int, ...]
) -> None:
    rewards = np.random.default_rng(0).normal(size=30)
    flat = with_rewards(rewards, ends=ends)
    found = returns_to_go(flat, discount, penalty)
    np.testing.assert_allclose(found, summed(flat, discount, penalty), rtol=1e-4)
    assert found.dtype == np.float32


@pytest.mark.parametrize("rows", [1, 7, 10, 1000])
@pytest.mark.parametrize("ends", [(), (6, 20, 29)])
def test_returns_are_the_same_however_many_rows_are_read_at_a_time(
    rows: int, ends: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    flat = with_rewards(np.random.default_rng(0).normal(size=30), ends=ends)
    whole = returns_to_go(flat, 0.97, 0.1)
    monkeypatch.setattr("diffuser_policy.data.returns.ROWS", rows)
    np.testing.assert_array_equal(returns_to_go(flat, 0.97, 0.1), whole)


def test_returns_of_much_data_take_little_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Little beside the result itself, of 4 bytes a row."""
    count = 200_000
    monkeypatch.setattr("diffuser_policy.data.returns.ROWS", 1000)
    columns = {"observation": np.zeros((count, 1)), "action": np.zeros((count, 1))}
    ended = np.zeros(count, np.bool_)
    rewards = np.arange(count) % 7
    fields = {**columns, "reward": rewards, "terminated": ended}
    flat = FlatDataset(fields, np.arange(0, count + 1, 10_000))
    returns_to_go(flat, 0.9)  # whatever is imported or kept once
    tracemalloc.start()
    try:
        returns_to_go(flat, 0.9)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 1.6 * 4 * count


def test_a_cut_run_counts_as_over() -> None:
    """The release does not guess what a run that was cut would have earned."""
    found = returns_to_go(with_rewards(np.arange(6.0)), 1.0)
    np.testing.assert_array_equal(found, [1, 1, 5, 3, 9, 5])


def test_rewards_that_say_nothing_are_refused() -> None:
    told = r"All 30 rewards .*point-v0.* are 1:.*`train --no-value"
    with pytest.raises(DatasetError, match=told):
        returns_to_go(with_rewards(np.ones(30)), 0.9)


def test_a_reward_for_staying_alive_is_something_to_learn() -> None:
    found = returns_to_go(with_rewards(np.ones(30), ends=(9,)), 1.0)
    np.testing.assert_array_equal(found[:10], np.arange(10, 0, -1))


def test_returns_that_differ_by_rounding_alone_are_refused() -> None:
    rewards = np.ones(30, np.float32)
    rewards[::2] += np.finfo(np.float32).eps
    flat = with_rewards(rewards)
    returns = returns_to_go(flat, 0.0)
    assert returns.std() > 0
    with pytest.raises(DatasetError, match="All returns"):
        return_scale(returns, flat)


def test_returns_that_overflow_are_refused() -> None:
    rewards = np.full(30, 3e38)
    rewards[0] = 0.0
    with pytest.raises(DatasetError, match=r"overflow with discount 1\."):
        returns_to_go(with_rewards(rewards), 1.0)
    rewards = np.arange(30, dtype=np.float32)
    flat = with_rewards(rewards)
    rewards[7] = np.nan  # later than it was checked
    with pytest.raises(DatasetError, match="reward is not finite in 1 of 30"):
        returns_to_go(flat, 1.0)


# --- windows ----------------------------------------------------------------------


@pytest.mark.parametrize("padding", ["none", "repeat"])
@pytest.mark.parametrize("stride", [1, 3])
def test_a_window_comes_with_the_return_of_its_first_row(
    padding: Any, stride: int
) -> None:
    flat = toy_dataset(num_runs=3, run_length=20, goals=False)
    rows = np.arange(60, dtype=np.float32)
    fields = {**flat.fields, "observation": np.repeat(rows[:, None], 4, axis=1)}
    windows = WindowDataset(
        FlatDataset(fields, flat.run_starts, flat.metadata),
        returns=10 * rows,
        layout=TrajectoryLayout(action_dim=0, observation_dim=4, aliases={}),
        normalizer=IdentityNormalizer.blank(4),
        stride=stride,
        padding=padding,
        max_planning_steps=4,
    )
    sampled, returns = windows.sample_valued(500, 4, torch.Generator().manual_seed(0))
    first = sampled[:, 0, 0]
    assert torch.equal(returns, 10 * first)
    expected = range(20 if padding == "repeat" else 20 - 3 * stride)
    starts = {int(row) % 20 for row in first}
    assert starts == set(expected)


def test_windows_are_those_that_the_planner_was_trained_on() -> None:
    flat, config = rewarded(), toy_policy().config
    settings: dict[str, Any] = {
        "layout": config.layout,
        "normalizer": IdentityNormalizer.blank(config.layout.transition_dim),
        "max_planning_steps": 16,
    }
    windows = WindowDataset(flat, returns=np.zeros(360, np.float32), **settings)
    found, _ = windows.sample_valued(9, 16, torch.Generator().manual_seed(1))
    plain = WindowDataset(flat, **settings)
    assert torch.equal(found, plain.sample(9, 16, torch.Generator().manual_seed(1)))
    with pytest.raises(ConfigError, match="returns=returns_to_go"):
        plain.sample_valued(9, 16, torch.Generator())


# --- the loss ---------------------------------------------------------------------


def test_the_network_sees_noise_and_conditions_as_when_planning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pinned entries are clean; the others have the variance of their step."""
    trainer = make_trainer(
        tmp_path,
        policy=toy_policy(fixed_length()),
        optimization=OptimizationConfig(batch_size=4000),
    )
    denoiser = trainer.planner_networks.denoiser
    seen: dict[str, Tensor] = {}

    def record(noisy: Tensor, i: Tensor, returns: Tensor) -> Tensor:
        seen.update(noisy=noisy, i=i, returns=returns)
        return returns.mean()

    clean: list[Tensor] = []
    sample = trainer.windows.sample_valued

    def sampled(*arguments: Any) -> tuple[Tensor, Tensor]:
        windows, returns = sample(*arguments)
        clean.append(windows)
        return windows, returns

    monkeypatch.setattr(trainer.networks, "loss", record)
    monkeypatch.setattr(trainer.windows, "sample_valued", sampled)
    trainer.loss(0, 0, 0)
    layout = trainer.policy_config.layout
    error = seen["noisy"] - clean[0]
    assert not error[:, 0, layout.observations].any()
    assert not error[:, -1, list(layout.columns("goal"))].any()
    schedule = denoiser.schedule
    for i in range(schedule.num_denoising_steps):
        rows = seen["i"] == i
        signal, sigma = (
            schedule.signal(torch.tensor(i)),
            schedule.noise(torch.tensor(i)),
        )
        residual = seen["noisy"][rows, 1:-1] - signal * clean[0][rows, 1:-1]
        assert residual.std() == pytest.approx(float(sigma), rel=0.05)


def test_steps_processes_and_accumulations_see_other_data(tmp_path: Path) -> None:
    assert has_batches_of_its_own(make_trainer(tmp_path).loss)


def test_the_seed_fixes_the_first_weights_and_the_batches(tmp_path: Path) -> None:
    assert is_fixed_by_its_seed(lambda seed: make_trainer(tmp_path, seed=seed))


def test_lengths_are_mixed_as_those_of_the_planner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tmp_path)  # windows of 8 to 16 steps
    lengths = set()

    def record(noisy: Tensor, _: Tensor, returns: Tensor) -> Tensor:
        lengths.add(noisy.shape[1])
        return returns.mean()

    monkeypatch.setattr(trainer.networks, "loss", record)
    for step in range(40):
        trainer.loss(step, 0, 0)
    assert lengths == {8, 10, 12, 14, 16}


@pytest.mark.slow
@pytest.mark.parametrize("value", [ValueConfig(dim=16, multipliers=(1, 4)), FLATTEN])
def test_the_return_of_plans_is_learned(tmp_path: Path, value: ValueConfig) -> None:
    """Most of the variance of clean windows is explained, and less under noise."""
    trainer = make_trainer(
        tmp_path,
        policy=toy_policy(fixed_length()),
        flat=rewarded(),
        value=value,
        optimization=OptimizationConfig(
            num_steps=70, batch_size=24, learning_rate=4e-3, ema_decay=0.9
        ),
    )
    trainer.run(progress=False)
    config, networks = read_planner(tmp_path)
    assert networks.value is not None
    windows = trainer.windows
    clean, returns = windows.sample_valued(300, 16, torch.Generator().manual_seed(5))
    explained = []
    for i in (0, config.network.num_denoising_steps - 1):
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(i))
        steps = torch.full((300,), i)
        given = windows.conditions(clean)
        noisy = given.apply(networks.denoiser.add_noise(clean, noise, steps))
        error = networks.value(noisy, steps) - returns
        explained.append(float(1 - error.square().mean() / returns.var()))
    assert explained[0] > 0.8
    assert explained[0] > explained[1]


# --- what is left behind ----------------------------------------------------------


def test_the_planner_is_kept_and_gets_a_value_network(tmp_path: Path) -> None:
    policy = toy_policy()
    before = {k: v.clone() for k, v in policy.networks.state_dict().items()}
    trainer = make_trainer(tmp_path, policy=policy)
    trainer.run(progress=False)
    assert policy.networks.value is None
    after = policy.networks.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    saved = weights(tmp_path)
    assert all(torch.equal(saved[name], before[name]) for name in before)
    added = {name for name in saved if name not in before}
    assert added == {f"value.{name}" for name in trainer.average.state_dict()}
    averaged, last = trainer.average.state_dict(), trainer.networks.state_dict()
    assert all(torch.equal(saved[f"value.{name}"], averaged[name]) for name in last)
    assert not torch.equal(averaged["head.2.weight"], last["head.2.weight"])
    config = read_planner(tmp_path)[0]
    assert config.value == trainer.config.value
    assert config.planner == policy.config.planner
    assert config.provenance["value"]["steps"] == 6
    assert config.provenance["value"]["training"]["seed"] == 0
    card = (tmp_path / "README.md").read_text()
    assert "Value network: return-to-go with discount 0.9, 6 gradient steps" in card
    DiffuserPolicy.from_pretrained(tmp_path)


def test_targets_set_the_scale(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    returns = returns_to_go(rewarded(), 0.9)
    assert float(trainer.average.return_mean) == pytest.approx(returns.mean(), rel=1e-4)
    assert float(trainer.average.return_std) == pytest.approx(returns.std(), rel=1e-4)


def test_other_rewards_are_other_data(tmp_path: Path) -> None:
    make_trainer(tmp_path).save()
    flat = rewarded()
    fields = {**flat.fields, "reward": 2 * flat.fields["reward"]}
    doubled = FlatDataset(fields, flat.run_starts, flat.metadata)
    with pytest.raises(ConfigError, match=r"data\.others"):
        make_trainer(tmp_path, flat=doubled)


def test_data_of_another_environment_is_refused(tmp_path: Path) -> None:
    stronger = rewarded(action_high=[2.0, 2.0])
    with pytest.raises(SpaceMismatchError, match=r"action_high: .* → \(2\.0, 2\.0\)"):
        make_trainer(tmp_path, flat=stronger)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("trained_on", "given", "fits"),
    [
        ("some/Robot-v0", "some/Robot-v1", False),
        ("some/Robot-v0", "some/Robot-v0", True),
        ("some/Robot-v0", "some/Goals-v1", True),  # environments share data
        ("some/Robot-v0", "module:some/Robot-v1", False),
        ("some/Robot", "some/Robot-v1", True),  # the newest, whichever that is
        (None, "some/Robot-v1", True),
    ],
)
def test_data_of_another_version_of_the_environment_is_refused(
    tmp_path: Path, trained_on: str | None, given: str, *, fits: bool
) -> None:
    flat = toy_dataset()
    flat = FlatDataset(
        flat.fields, flat.run_starts, {**flat.metadata, "env_id": trained_on}
    )
    policy = toy_policy(flat=flat)
    if fits:
        make_trainer(tmp_path, policy=policy, flat=rewarded(env_id=given))
        return
    with pytest.raises(
        SpaceMismatchError, match=r"some/Robot-v1, .* some/Robot-v0: another"
    ):
        make_trainer(tmp_path, policy=policy, flat=rewarded(env_id=given))
    assert not list(tmp_path.iterdir())


def test_flattening_needs_plans_of_one_length(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="8 to 16 planning steps"):
        make_trainer(tmp_path, value=FLATTEN)
    make_trainer(tmp_path, policy=toy_policy(fixed_length()), value=FLATTEN)


def test_windows_that_the_data_cannot_fill_are_refused(tmp_path: Path) -> None:
    policy = toy_policy(toy_config(window=WindowConfig(horizon=64)))
    with pytest.raises(DatasetError, match="spans 64 env steps"):
        make_trainer(tmp_path, policy=policy)


# --- planners without one ---------------------------------------------------------


@pytest.mark.parametrize("name", shipped_planners())
def test_shipped_planners_have_no_value_network_and_load(name: str) -> None:
    config, networks = read_planner(name)
    assert config.value is None
    assert networks.value is None


def test_settings_of_earlier_versions_have_no_value_network() -> None:
    data = toy_policy().config.to_json()
    config = PolicyConfig.from_json(data)
    assert data.pop("value") is None
    assert PolicyConfig.from_json(data) == config


def test_a_value_network_round_trips_with_its_planner(tmp_path: Path) -> None:
    make_trainer(tmp_path).run(progress=False)
    policy = DiffuserPolicy.from_pretrained(tmp_path)
    policy.save_pretrained(tmp_path / "copy")
    found, expected = weights(tmp_path / "copy"), weights(tmp_path)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
