"""Learned inverse dynamics: what it learns, where it steers to, how it is kept."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffuser_policy import DiffuserPolicy
from diffuser_policy.checkpoint import read_planner
from diffuser_policy.columns.layout import TrajectoryLayout
from diffuser_policy.columns.normalizers import IdentityNormalizer
from diffuser_policy.config import (
    ExecutionConfig,
    InverseDynamicsConfig,
    OptimizationConfig,
    TrainConfig,
    WindowConfig,
)
from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.data.windows import WindowDataset
from diffuser_policy.errors import ConfigError, DatasetError
from diffuser_policy.networks.inverse_dynamics import InverseDynamics
from diffuser_policy.planning.executors import InverseDynamicsExecutor
from diffuser_policy.planning.plan import Following
from diffuser_policy.testing import check_policy, toy_config, toy_dataset, toy_policy
from diffuser_policy.training.trainer import Trainer, untrained

INVERSE = InverseDynamicsConfig(width=16, max_steps=6, batch_size=16)


def inverse_config(**window: Any) -> TrainConfig:
    """Return settings of a planner of states only, followed by inverse dynamics."""
    return toy_config(
        window=WindowConfig(
            **{"horizon": 16, "min_horizon": 8, "stride": 2, "actions": False, **window}
        ),
        inverse_dynamics=INVERSE,
        execution=ExecutionConfig(executor="inverse-dynamics", lookahead=3.0),
    )


# --- the network --------------------------------------------------------------------


def trained(*, hidden_velocity: bool) -> tuple[InverseDynamics, WindowDataset, Any]:
    flat = toy_dataset(num_runs=8)
    fields = dict(flat.fields)
    if hidden_velocity:
        fields["observation"] = fields["observation"][:, :2]
    flat = type(flat)(fields, flat.run_starts, flat.metadata)
    size = flat.observation_size
    layout = TrajectoryLayout(action_dim=0, observation_dim=size)
    rows = fields["observation"]
    windows = WindowDataset(
        flat, layout=layout, normalizer=IdentityNormalizer.fit(rows)
    )
    torch.manual_seed(0)
    network = InverseDynamics(size, 2, width=64, max_steps=3)
    network.set_scale(*windows.transition_scales())
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        loss = network.loss(*windows.sample_transitions(64, 3, generator))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return network, windows, generator


@pytest.mark.parametrize("hidden_velocity", [False, True])
def test_it_learns_the_force_that_moves_a_mass(hidden_velocity: bool) -> None:
    """Without a velocity to see, from the last two positions."""
    network, windows, generator = trained(hidden_velocity=hidden_velocity)
    *states, actions = windows.sample_transitions(500, 3, generator)
    with torch.no_grad():
        off = (network(*states) - actions).square().mean()
        assert off < 0.05 * actions.var()
        blind = [states[1], *states[1:]]  # as if at rest
        assert (network(*blind) - actions).square().mean() > 2 * off


def test_actions_are_bit_equal_in_batches_of_any_size() -> None:
    torch.manual_seed(0)
    network = InverseDynamics(5, 3, width=256, max_steps=8)
    inputs = [torch.randn(70, 5) for _ in range(3)]
    steps = torch.randint(1, 9, (70,))
    with torch.inference_mode():
        before, states, later = inputs
        together = network.act(before, states, later, steps)
        torch.testing.assert_close(together, network(before, states, later, steps))
        for count in (1, 2, 3, 16, 33):
            part = slice(count)
            some = network.act(before[part], states[part], later[part], steps[part])
            assert torch.equal(some, together[:count])


def test_an_action_that_is_constant_is_predicted_exactly() -> None:
    network = InverseDynamics(2, 1, width=8, max_steps=1)
    network.set_scale(torch.tensor([0.7]), torch.zeros(1), torch.zeros(2))
    rows = torch.randn(4, 2)
    assert (
        network(rows, rows, rows, torch.ones(4)).tolist() == [[pytest.approx(0.7)]] * 4
    )


@pytest.mark.parametrize("jitter", [0.0, 1e-7, 1e-6, 1e-5])
def test_a_planned_error_in_a_column_that_only_jitters_does_no_harm(
    jitter: float,
) -> None:
    """Plans differ from data by more than such a column changes."""
    torch.manual_seed(0)
    network = InverseDynamics(3, 2, width=64, max_steps=4)
    network.set_scale(
        torch.zeros(2), torch.ones(2), torch.tensor([0.02, 0.005, jitter])
    )
    states, steps = torch.rand(100, 3), torch.full((100,), 4.0)
    planned = states + 0.01 * torch.tensor([0.0, 0.0, 1.0])
    with torch.no_grad():
        exact = network.act(states, states, states, steps)
        moved = network.act(states, states, planned, steps) - exact
    assert moved.abs().max() < 0.05


def test_columns_that_move_have_the_scale_of_their_change() -> None:
    """The change of the slowest columns that plans can tell is still their scale."""
    network = InverseDynamics(4, 1, width=8, max_steps=1)
    change = torch.tensor([0.5, 0.0052, 1e-3, 5e-4])
    network.set_scale(torch.zeros(1), torch.ones(1), change)
    assert torch.equal(network.change[:2], change[:2])
    torch.testing.assert_close(network.change[2:], torch.tensor([1e-3, 2e-3]))


# --- its data -----------------------------------------------------------------------


@pytest.mark.parametrize("padding", ["none", "repeat"])
def test_pairs_are_of_one_run_with_the_action_that_was_taken(padding: Any) -> None:
    flat = toy_dataset()
    windows = WindowDataset(
        flat,
        layout=TrajectoryLayout(action_dim=0, observation_dim=4),
        normalizer=IdentityNormalizer.fit(flat.fields["observation"]),
        padding=padding,
        max_planning_steps=5,
    )
    generator = torch.Generator().manual_seed(0)
    parts = windows.sample_transitions(400, 7, generator)
    before, states, later, times, actions = (part.numpy() for part in parts)
    seen = flat.fields["observation"]
    rows = np.array([np.flatnonzero((seen == s).all(axis=1))[0] for s in states])
    runs = np.searchsorted(flat.run_starts, rows, side="right") - 1
    first = flat.run_starts[runs]
    assert set(times) == set(range(1, 8))
    assert (rows + times < flat.run_starts[runs + 1]).all()
    np.testing.assert_array_equal(later, seen[rows + times])
    np.testing.assert_array_equal(before, seen[np.maximum(rows - 1, first)])
    np.testing.assert_array_equal(actions, flat.fields["action"][rows])


def test_episodes_of_a_single_step_have_nothing_to_learn_from() -> None:
    flat = toy_dataset(num_runs=4, run_length=1)
    windows = WindowDataset(
        flat,
        layout=TrajectoryLayout(action_dim=0, observation_dim=4),
        normalizer=IdentityNormalizer.fit(flat.fields["observation"]),
    )
    with pytest.raises(DatasetError, match="All episodes have a single step"):
        windows.sample_transitions(4, 3, torch.Generator())


def test_its_scales_are_those_of_the_runs_that_it_learns_from() -> None:
    """The second and third run earn less, and are left out."""
    flat = toy_dataset()
    first = slice(0, int(flat.run_starts[1]))
    fields = {name: np.array(values) for name, values in flat.fields.items()}
    fields["reward"][first] = 1.0
    fields["action"][first] *= 0.1
    layout = TrajectoryLayout(action_dim=0, observation_dim=flat.observation_size)
    windows = WindowDataset(
        FlatDataset(fields, flat.run_starts, flat.metadata),
        layout=layout,
        normalizer=IdentityNormalizer.fit(fields["observation"]),
        best_share=1 / 3,
    )
    mean, spread, _ = windows.transition_scales()
    used = fields["action"][first][:-1]
    np.testing.assert_allclose(mean, used.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(spread, used.std(axis=0), atol=1e-6)


def test_scales_of_much_data_are_those_of_steps_from_all_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Actions are 0, 1, 2, …, so that what a few successive ones say is wrong."""
    monkeypatch.setattr("diffuser_policy.data.windows.SCALE_PAIRS", 900)
    flat = toy_dataset(num_runs=2, run_length=501)
    size = (flat.num_rows, flat.action_size)
    numbers = np.broadcast_to(np.arange(flat.num_rows)[:, None], size)
    windows = WindowDataset(
        FlatDataset({**flat.fields, "action": numbers}, flat.run_starts),
        layout=TrajectoryLayout(action_dim=0, observation_dim=flat.observation_size),
        normalizer=IdentityNormalizer.fit(flat.fields["observation"]),
    )
    mean, spread, _ = windows.transition_scales()
    np.testing.assert_allclose(mean, flat.num_rows / 2, rtol=0.1)
    np.testing.assert_allclose(spread, flat.num_rows / math.sqrt(12), rtol=0.1)


def test_scales_of_much_data_are_those_of_all_steps_of_an_episode(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only the first action of each of many equally long episodes is 0, not 1."""
    monkeypatch.setattr("diffuser_policy.data.windows.SCALE_PAIRS", 100)
    flat = toy_dataset(num_runs=100, run_length=11)
    fields = {**flat.fields, "action": np.ones((flat.num_rows, 2), np.float32)}
    fields["action"][flat.run_starts[:-1]] = 0.0
    windows = WindowDataset(
        FlatDataset(fields, flat.run_starts),
        layout=TrajectoryLayout(action_dim=0, observation_dim=flat.observation_size),
        normalizer=IdentityNormalizer.fit(flat.fields["observation"]),
    )
    mean, spread, _ = windows.transition_scales()
    np.testing.assert_allclose(mean, 0.9, atol=0.1)
    np.testing.assert_allclose(spread, 0.3, atol=0.1)


def test_steps_without_a_next_one_have_no_scale() -> None:
    config = inverse_config(padding="repeat")
    with pytest.raises(DatasetError, match="have a single step"):
        untrained(config, toy_dataset(num_runs=20, run_length=1))


# --- the executor -------------------------------------------------------------------


class _Told(InverseDynamics):
    """Answers with all it is told: before, here, where to, and in which time."""

    def __init__(self) -> None:
        super().__init__(1, 2, width=1, max_steps=6)

    def act(self, before: Any, states: Any, later: Any, steps: Any) -> Any:
        return torch.cat([before, states, later, steps[:, None]], dim=1)


@pytest.mark.parametrize(
    ("progress", "lookahead", "state", "time"),
    [
        (0, 1.0, 3.0, 3.0),  # planning steps are three env steps apart
        (1, 1.0, 3.0, 2.0),
        (2, 1.0, 3.0, 1.0),
        (3, 1.0, 6.0, 3.0),
        (1, 4.0, 6.0, 5.0),
        (1, 99.0, 7.0, 6.0),  # not further than it has learned
        (0, 5.5, 6.0, 6.0),
        (8, 4.0, 9.0, 1.0),
        (9, 4.0, 9.0, 1.0),  # the end, where it stays
        (50, 4.0, 9.0, 1.0),
    ],
)
def test_it_steers_to_a_planning_step_that_is_far_enough_away(
    progress: int, lookahead: float, state: float, time: float
) -> None:
    executor = InverseDynamicsExecutor(
        _Told(),
        IdentityNormalizer.blank(1),
        TrajectoryLayout(action_dim=0, observation_dim=1),
        lookahead=lookahead,
    )
    plan = Following(
        observations=np.array([[[0.0], [3.0], [6.0], [9.0]]]),
        actions=np.zeros((1, 4, 0)),
        lengths=np.array([4]),
        progress=np.array([float(progress)]),
        stride=3,
    )
    here = np.array([[0.5]])
    assert executor.act(plan, here).tolist() == [[0.5, 0.5, state, time]]
    moved = dataclasses.replace(plan, previous=np.array([[0.25]]))
    assert executor.act(moved, here).tolist() == [[0.25, 0.5, state, time]]
    assert executor.holds_goal


# --- with a planner -----------------------------------------------------------------


@pytest.mark.parametrize("goals", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_policies_that_use_it_keep_the_contract(goals: bool, stride: int) -> None:
    config = inverse_config(stride=stride, hindsight_goal="goal" if goals else "none")
    if not goals:
        config = toy_config(**{**vars(config), "time_to_goal": None})
    policy = toy_policy(config, flat=toy_dataset(goals=goals))
    assert check_policy(policy, policy.observation_space, policy.action_space)


def test_its_weights_are_saved_loaded_and_resumed(tmp_path: Path) -> None:
    def make(name: str) -> Trainer:
        return Trainer(inverse_config(), toy_dataset(), tmp_path / name, device="cpu")

    make("whole").run(save_interval=2, progress=False)
    first = make("halves")
    first.optimization = OptimizationConfig(num_steps=6, batch_size=4)
    for _ in range(3):
        first._descend()
    first.save()
    make("halves").run(progress=False)
    config, whole = read_planner(tmp_path / "whole")
    halves = read_planner(tmp_path / "halves")[1].state_dict()
    assert config.inverse_dynamics == INVERSE
    for name, value in whole.state_dict().items():
        assert torch.equal(value, halves[name]), name
    assert any(name.startswith("inverse_dynamics.layers") for name in halves)
    policy = DiffuserPolicy.from_pretrained(tmp_path / "whole")
    assert policy.config.execution.executor == "inverse-dynamics"
    assert policy.accelerated("off").networks.inverse_dynamics is not None
    card = (tmp_path / "whole" / "README.md").read_text()
    assert "- Inverse dynamics: to states up to 6 env steps away" in card


def test_the_executor_asks_for_its_network() -> None:
    with pytest.raises(ConfigError, match=r"--inverse-dynamics \(TrainConfig\.inverse"):
        toy_policy(executor="inverse-dynamics")


def test_networks_beside_the_denoiser_leave_its_training_as_it_is(
    tmp_path: Path,
) -> None:
    """Their random numbers come last: the planner is the one it would be alone."""
    flat = toy_dataset()
    alone = Trainer(toy_config(), flat, tmp_path / "a", device="cpu")
    beside = Trainer(
        toy_config(inverse_dynamics=INVERSE), flat, tmp_path / "b", device="cpu"
    )
    for trainer in (alone, beside):
        trainer._descend()
    for (name, one), (_, other) in zip(
        alone.networks.denoiser.named_parameters(),
        beside.networks.denoiser.named_parameters(),
        strict=True,
    ):
        torch.testing.assert_close(one, other, msg=name)
