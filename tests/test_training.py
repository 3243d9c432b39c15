"""Training: the loss falls, the average lags, and the settings mean what they say."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from diffuser_policy.choices import HindsightGoal, PredictionTarget
from diffuser_policy.config import (
    ExecutionConfig,
    NetworkConfig,
    OptimizationConfig,
    TimeToGoalConfig,
    WindowConfig,
)
from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.data.windows import ShortRunsWarning
from diffuser_policy.errors import ConfigError
from diffuser_policy.numerics import stream_generator
from diffuser_policy.policy import DiffuserPolicy
from diffuser_policy.testing import check_policy, toy_config, toy_dataset
from diffuser_policy.training.run import learning_rate, update_average
from diffuser_policy.training.trainer import (
    Trainer,
    draw_num_planning_steps,
)
from tests.training_helpers import trained


def optimization(**settings: Any) -> OptimizationConfig:
    return OptimizationConfig(**{"num_steps": 6, "batch_size": 4, **settings})


# --- it learns --------------------------------------------------------------------


def one_trajectory(output: Path, target: PredictionTarget) -> list[float]:
    """Train on two windows of one run, and return the loss of each gradient step."""
    config = toy_config(
        window=WindowConfig(horizon=16),
        network=NetworkConfig(
            dim=16, multipliers=(1, 2), num_denoising_steps=8, prediction_target=target
        ),
        time_to_goal=None,
        optimization=optimization(
            num_steps=60, batch_size=12, learning_rate=1e-2, ema_decay=0.9
        ),
    )
    trainer = Trainer(config, toy_dataset(1, 17), output, device="cpu")
    history: list[float] = []
    trainer.run(
        save_interval=15,
        progress=False,
        on_metrics=lambda _, metrics: history.append(metrics["denoiser"]),
    )
    return history


def test_settings_that_no_policy_can_act_with_are_refused_first(tmp_path: Path) -> None:
    config = dataclasses.replace(
        toy_config(), execution=ExecutionConfig(executor="path")
    )
    with pytest.raises(ConfigError, match="seconds_per_step"):
        Trainer(config, toy_dataset(), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("horizon", "goals", "found"),
    [
        (1, False, r"1 planning step without .*='none'.* Plan actions"),
        (2, True, r"2 planning steps without .*='observation'.*--window.hindsight"),
    ],
)
def test_windows_in_which_everything_is_pinned_are_refused(
    tmp_path: Path, horizon: int, goals: bool, found: str
) -> None:
    pinned: HindsightGoal = "observation" if goals else "none"
    window = WindowConfig(horizon=horizon, actions=False, hindsight_goal=pinned)
    network = NetworkConfig(architecture="mlp", dim=8, num_denoising_steps=8)
    config = toy_config(window=window, network=network, time_to_goal=None)
    with pytest.raises(ConfigError, match=found):
        Trainer(config, toy_dataset(goals=goals), tmp_path, device="cpu")


@pytest.mark.parametrize(("target", "share"), [("noise", 0.87), ("velocity", 0.87)])
def test_the_loss_falls(tmp_path: Path, target: PredictionTarget, share: float) -> None:
    history = one_trajectory(tmp_path, target)
    assert len(history) == 4
    assert history[-1] < share * history[0]


def test_the_loss_falls_and_plans_become_the_data(tmp_path: Path) -> None:
    history = one_trajectory(tmp_path, "clean")
    assert history[-1] < 0.2 * history[0]
    run = toy_dataset(1, 17).fields["observation"]
    policy = DiffuserPolicy.from_pretrained(tmp_path, num_sampling_steps=8)
    plan = policy.plan({"observation": run[0], "desired_goal": run[15, :2]})
    off = np.abs(plan.path()[:, :2] - run[:16, :2]).max()
    assert off < 0.2 * np.ptp(run[:, :2], axis=0).max()


def test_time_to_goal_learns_too(tmp_path: Path) -> None:
    config = toy_config(
        optimization=optimization(num_steps=60, learning_rate=1e-2, ema_decay=0.9),
        time_to_goal=TimeToGoalConfig(
            width=32, max_steps=59, batch_size=64, expectile=0.5
        ),
    )
    history: list[float] = []
    trained(
        tmp_path,
        config,
        save_interval=20,
        on_metrics=lambda _, metrics: history.append(metrics["time_to_goal"]),
    )
    assert history[-1] < 0.8 * history[0]


def test_a_trained_planner_is_a_policy(tmp_path: Path) -> None:
    trained(tmp_path)
    policy = DiffuserPolicy.from_pretrained(tmp_path)
    check_policy(policy)
    provenance = policy.config.provenance
    assert provenance["steps"] == 6
    assert provenance["processes"] == 1
    assert provenance["dataset"]["dataset_id"] == "toy/point-v0"
    assert provenance["training"]["optimization"]["num_steps"] == 6
    assert provenance["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize(
    "parts",
    [
        {"window": WindowConfig(horizon=16, actions=False, stride=2)},
        {"window": WindowConfig(horizon=80, padding="repeat")},
        {"window": WindowConfig(horizon=16, normalizer="gaussian")},
        {"window": WindowConfig(horizon=16, hindsight_goal="observation")},
        {"window": WindowConfig(horizon=16, hindsight_goal="none")},
        {"time_to_goal": None},
    ],
)
def test_every_kind_of_window_can_be_trained_on(
    tmp_path: Path, parts: dict[str, Any]
) -> None:
    config = toy_config(**{**parts, "optimization": optimization(num_steps=1)})
    trained(tmp_path, config)
    assert DiffuserPolicy.from_pretrained(tmp_path).config.window == config.window


def test_planning_uses_the_averaged_weights(tmp_path: Path) -> None:
    trainer = trained(tmp_path, toy_config(optimization=optimization(ema_decay=0.9)))
    saved = DiffuserPolicy.from_pretrained(tmp_path).networks.state_dict()
    average = trainer.average.state_dict()
    assert all(torch.equal(saved[name], average[name]) for name in saved)
    weights = trainer.networks.state_dict()
    assert not all(torch.equal(saved[name], weights[name]) for name in saved)


def test_a_planner_is_known_by_its_trained_weights(tmp_path: Path) -> None:
    config = toy_config(optimization=optimization())
    trainer = Trainer(config, toy_dataset(), tmp_path, device="cpu")
    before = trainer.planner_networks.fingerprint
    trainer.run(progress=False)
    after = trainer.planner_networks.fingerprint
    assert after != before
    assert after == DiffuserPolicy.from_pretrained(tmp_path).networks.fingerprint


def test_global_random_state_is_not_touched(tmp_path: Path) -> None:
    before = torch.random.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index] # noqa: NPY002
    trained(tmp_path)
    after = torch.random.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index] # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1] == after[1]


def test_the_seed_decides_and_nothing_else(tmp_path: Path) -> None:
    def weights(name: str, seed: int) -> bytes:
        config = toy_config(seed=seed, optimization=optimization(num_steps=2))
        trained(tmp_path / name, config)
        return (tmp_path / name / "model.safetensors").read_bytes()

    first = weights("first", 1)
    torch.randn(5)  # moves the global state
    assert weights("again", 1) == first
    assert weights("other", 2) != first


# --- one gradient step ------------------------------------------------------------


@pytest.mark.parametrize("num_accumulations", [1, 3])
def test_gradients_are_means_over_accumulated_batches(
    tmp_path: Path, num_accumulations: int
) -> None:
    config = toy_config(
        optimization=optimization(
            num_accumulations=num_accumulations, max_gradient_norm=None
        )
    )
    trainer = Trainer(config, toy_dataset(), tmp_path, device="cpu")
    batches = [trainer.loss(0, 0, number) for number in range(num_accumulations)]
    losses = [torch.stack(list(batch.values())).sum() for batch in batches]
    parameters = list(trainer.networks.parameters())
    expected = torch.autograd.grad(torch.stack(losses).mean(), parameters)
    metrics = trainer._descend()
    for parameter, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)
    mean = sum(loss.item() for loss in losses) / num_accumulations
    assert sum(metrics.values()) == pytest.approx(mean, rel=1e-4)


def test_gradients_are_clipped_network_by_network(tmp_path: Path) -> None:
    config = toy_config(optimization=optimization(max_gradient_norm=1e-3))
    trainer = Trainer(config, toy_dataset(), tmp_path, device="cpu")
    trainer._descend()
    for network in (trainer.networks.denoiser, trainer.networks.time_to_goal):
        assert network is not None
        norms = [p.grad.norm() for p in network.parameters() if p.grad is not None]
        assert torch.stack(norms).norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_learning_rates_follow_their_schedule() -> None:
    cosine = optimization(num_steps=100, learning_rate=0.2)
    assert learning_rate(cosine, 0) == 0.2
    assert learning_rate(cosine, 50) == pytest.approx(0.1)
    assert learning_rate(cosine, 25) == pytest.approx(0.1 * (1 + math.sqrt(0.5)))
    assert 0 < learning_rate(cosine, 99) < 1e-4
    constant = dataclasses.replace(cosine, learning_rate_schedule="constant")
    assert {learning_rate(constant, step) for step in (0, 50, 99)} == {0.2}


def test_the_optimizer_gets_the_schedules_rate(tmp_path: Path) -> None:
    trainer = Trainer(toy_config(), toy_dataset(), tmp_path, device="cpu")
    for step in range(3):
        trainer._descend()
        expected = learning_rate(trainer.config.optimization, step)
        assert trainer.optimizer.param_groups[0]["lr"] == expected


def test_the_average_is_a_copy_and_then_a_moving_mean() -> None:
    network, average = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    settings = OptimizationConfig(ema_decay=0.9, ema_interval=2, ema_start=3)
    expected = [1.0, 2.0, 3.0, 3.1, 3.1, 3.39, 3.39, 3.851]  # every even step moves it
    for step, mean in enumerate(expected, start=1):
        network.weight.data.fill_(step)
        update_average(average, network, step, settings)
        assert average.weight.item() == pytest.approx(mean), step


def test_the_trainer_averages_after_each_gradient_step(tmp_path: Path) -> None:
    config = toy_config(
        optimization=optimization(ema_interval=2, ema_start=2, ema_decay=0.75)
    )
    trainer = Trainer(config, toy_dataset(), tmp_path, device="cpu")
    weight = next(trainer.networks.parameters())
    average = next(trainer.average.parameters())
    expected = average.clone()
    for step in range(1, 7):
        trainer._descend()
        if step <= 2:
            expected = weight.detach().clone()
        elif step % 2 == 0:
            expected = 0.75 * expected + 0.25 * weight.detach()
        torch.testing.assert_close(average, expected)
    assert not torch.equal(average, weight)


def test_a_training_shorter_than_the_start_of_the_average_saves_its_weights(
    tmp_path: Path,
) -> None:
    """Also one that ends before the first interval does."""
    short = optimization(num_steps=3, ema_interval=10, ema_start=2000)
    trainer = Trainer(
        toy_config(optimization=short), toy_dataset(), tmp_path, device="cpu"
    )
    trainer.run(progress=False)
    saved = DiffuserPolicy.from_pretrained(tmp_path).networks
    for mine, theirs in zip(
        trainer.networks.parameters(), saved.parameters(), strict=True
    ):
        torch.testing.assert_close(theirs, mine, rtol=0, atol=0)


# --- batches ----------------------------------------------------------------------


def test_every_step_process_and_batch_has_its_own_noise() -> None:
    drawn = {
        float(torch.rand(1, generator=stream_generator(seed, step, process, batch)))
        for seed in range(2)
        for step in range(3)
        for process in range(2)
        for batch in range(2)
    }
    assert len(drawn) == 24
    again = float(torch.rand(1, generator=stream_generator(1, 2, 1, 1)))
    assert again in drawn


def test_mixed_horizons_are_multiples_and_all_occur() -> None:
    window = WindowConfig(horizon=48, min_horizon=9, stride=3)
    lengths = [draw_num_planning_steps(window, 0, step, 4) for step in range(200)]
    assert set(lengths) == {4, 8, 12, 16}
    fixed = WindowConfig(horizon=48, stride=3)
    assert {draw_num_planning_steps(fixed, 0, step, 4) for step in range(50)} == {16}


def test_the_seed_of_a_run_fixes_the_horizons_of_its_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toy_config(seed=1)
    trainer = Trainer(config, toy_dataset(), tmp_path, device="cpu")
    lengths: list[int] = []
    sample = trainer.windows.sample

    def sample_and_note(batch_size: int, length: int, *rest: Any) -> torch.Tensor:
        lengths.append(length)
        return sample(batch_size, length, *rest)

    monkeypatch.setattr(trainer.windows, "sample", sample_and_note)
    for step in range(20):
        trainer.losses(step, torch.Generator())
    multiple = trainer.networks.denoiser.horizon_multiple
    own, other = (
        [draw_num_planning_steps(config.window, seed, n, multiple) for n in range(20)]
        for seed in (1, 0)
    )
    assert lengths == own != other


def test_steps_processes_and_accumulations_see_other_windows(tmp_path: Path) -> None:
    config = toy_config(window=WindowConfig(horizon=16))
    trainer = Trainer(config, toy_dataset(), tmp_path, device="cpu")
    seen = []
    sample = trainer.windows.sample

    def spy(*arguments: Any, **more: Any) -> torch.Tensor:
        windows = sample(*arguments, **more)
        seen.append(windows.sum().item())
        return windows

    trainer.windows.sample = spy  # type: ignore[method-assign]
    batches = [(step, rank, n) for step in (0, 1) for rank in (0, 1) for n in (0, 1)]
    for batch in batches:
        trainer.loss(*batch)
    assert len(set(seen)) == len(batches)
    trainer.loss(*batches[3])
    assert seen[-1] == seen[3]


def test_half_of_the_times_to_learn_are_short(tmp_path: Path) -> None:
    """At most a tenth of the longest; the other half is drawn evenly."""
    settings = TimeToGoalConfig(width=8, max_steps=50, batch_size=400)
    config = toy_config(time_to_goal=settings)
    trainer = Trainer(config, toy_dataset(), tmp_path, device="cpu")
    network = trainer.networks.time_to_goal
    assert network is not None
    drawn: list[torch.Tensor] = []
    loss = network.loss

    def spy(observations: Any, goals: Any, times: torch.Tensor, **more: Any) -> Any:
        drawn.append(times)
        return loss(observations, goals, times, **more)

    network.loss = spy  # type: ignore[method-assign]
    trainer.loss(0, 0, 0)
    short = int((drawn[0] <= 5).sum())
    assert 200 < short < 300
    assert drawn[0].max() > 40


# --- episodes that are too short ----------------------------------------------------


def test_only_runs_of_the_best_share_can_be_left_out(tmp_path: Path) -> None:
    flat = toy_dataset(1, 60)
    fields = {**flat.fields, "reward": np.repeat([1.0, 1.0, 0.0], [40, 7, 13])}
    flat = FlatDataset(fields, np.array([0, 40, 47, 60]), flat.metadata)
    window = WindowConfig(horizon=16, min_horizon=8, best_share=2 / 3)
    with pytest.warns(ShortRunsWarning, match="1 of 2 runs are shorter"):
        Trainer(toy_config(window=window), flat, tmp_path)


def test_episodes_that_are_left_out_are_counted(tmp_path: Path) -> None:
    flat = toy_dataset(1, 60)
    flat = FlatDataset(flat.fields, np.array([0, 40, 47, 60]), flat.metadata)
    window = WindowConfig(horizon=16, min_horizon=8)
    with pytest.warns(ShortRunsWarning, match="1 of 3 runs .*--window.padding repeat"):
        Trainer(toy_config(window=window), flat, tmp_path / "some")
    padded = dataclasses.replace(window, padding="repeat")
    Trainer(toy_config(window=padded), flat, tmp_path / "all")  # without a warning
