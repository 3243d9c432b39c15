"""Learned dynamics, and a denoiser as dynamics, against systems that are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diffuser_policy.baselines.dynamics import (
    DiffuserDynamics,
    DynamicsConfig,
    DynamicsEnsemble,
    DynamicsRun,
    transitions,
)
from diffuser_policy.columns.layout import TrajectoryLayout
from diffuser_policy.columns.normalizers import IdentityNormalizer
from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.diffusion.conditions import Inpainting
from diffuser_policy.diffusion.denoiser import Denoiser
from diffuser_policy.diffusion.sampler import DDIMSampler, DDPMSampler, Sampler
from diffuser_policy.diffusion.schedule import NoiseSchedule
from diffuser_policy.errors import (
    ConditionError,
    ConfigError,
    DatasetError,
    SpaceMismatchError,
)
from diffuser_policy.planning.horizons import Horizons
from diffuser_policy.planning.planner import Planner
from tests.planner_helpers import LAYOUT, NORMALIZER, WhiteNoise, make_planner
from tests.training_helpers import has_batches_of_its_own, is_fixed_by_its_seed

MATRIX = np.array([[1.0, 0.1], [-0.1, 0.95]])
PUSH = np.array([[0.0], [0.2]])
EIGHT_STEPS = {"longest": 8, "shortest": 8, "stride": 1, "multiple": 1}
SMALL = DynamicsConfig(
    num_members=3, width=32, num_steps=800, batch_size=128, learning_rate=5e-3
)


def move(states: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """Return the states after one step of a damped spring."""
    following: np.ndarray = states @ MATRIX.T + actions @ PUSH.T
    return following


def truth(states: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """Return the states `[n, steps, 2]` after every action."""
    found = []
    for step in range(actions.shape[1]):
        states = move(states, actions[:, step])
        found.append(states)
    return np.stack(found, axis=1)


def spring_data(num_runs: int = 20, length: int = 100) -> FlatDataset:
    """Return runs of the spring under random pushes."""
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (num_runs, length, 1))
    first = rng.normal(size=(num_runs, 2))
    states = np.concatenate([first[:, None], truth(first, actions)], axis=1)[:, :-1]
    size = num_runs * length
    return FlatDataset(
        {
            "observation": states.reshape(size, 2),
            "action": actions.reshape(size, 1),
            "reward": np.zeros(size),
            "terminated": np.zeros(size, np.bool_),
        },
        np.arange(0, size + 1, length),
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> DynamicsRun:
    run = DynamicsRun(SMALL, spring_data(), tmp_path_factory.mktemp("dynamics"))
    run.run(progress=False)
    return run


# --- the learned ensemble -------------------------------------------------------------


def test_it_converges_to_the_true_dynamics(trained: DynamicsRun) -> None:
    rng = np.random.default_rng(1)
    states = rng.normal(size=(50, 2))
    actions = rng.uniform(-1, 1, (50, 15, 1))
    expected = truth(states, actions)
    imagined = trained.ensemble.simulate(states, actions)
    assert imagined.shape == (3, 50, 15, 2)
    assert np.abs(imagined[:, :, 0] - expected[:, 0]).mean() < 0.01
    moved = np.abs(expected[:, -1] - states).mean()
    assert np.abs(imagined[:, :, -1] - expected[:, -1]).mean() < 0.05 * moved


def test_members_of_an_ensemble_predict_differently(trained: DynamicsRun) -> None:
    imagined = trained.ensemble.simulate(np.ones((1, 2)), np.ones((1, 3, 1)))
    assert imagined[:, 0, -1].std(axis=0).min() > 0


def test_imagined_states_stay_within_twice_the_range_of_the_data(
    trained: DynamicsRun,
) -> None:
    following = transitions(spring_data())[2]
    low, high = following.min(axis=0), following.max(axis=0)
    slack = 0.5 * (high - low)
    far = np.array([[1e6, -1e6]], np.float32)
    imagined = trained.ensemble.simulate(far, np.ones((1, 30, 1)))
    assert (imagined >= low - slack - 1e-5).all()
    assert (imagined <= high + slack + 1e-5).all()
    assert (imagined[:, 0, 0] > high).any()


def test_the_range_of_imagination_is_that_of_the_states_that_follow() -> None:
    ensemble = DynamicsEnsemble(1, 1, DynamicsConfig(num_members=1, width=8))
    states = np.array([[0.0], [1.0]], np.float32)
    ensemble.fit_moments(states, states, np.array([[10.0], [14.0]], np.float32))
    far = torch.tensor([[[-1e6], [1e6]]])
    reached = ensemble.following(torch.zeros(1, 2, 1), far)
    assert reached.flatten().tolist() == [8.0, 16.0]


def test_each_member_imagines_by_itself() -> None:
    """One step at a time, by the networks' own output, is the same."""
    torch.manual_seed(0)
    ensemble = DynamicsEnsemble(2, 1, DynamicsConfig(num_members=2, width=8))
    rng = np.random.default_rng(0)
    rows = (
        rng.normal(size=(100, 2)),
        rng.normal(size=(100, 1)),
        rng.normal(size=(100, 2)),
    )
    ensemble.fit_moments(*rows)
    states, actions = rng.normal(size=(4, 2)), rng.normal(size=(4, 3, 1))
    imagined = ensemble.simulate(states, actions)
    change = rows[2] - rows[0]
    with torch.no_grad():
        x = torch.tensor(states, dtype=torch.float32).expand(2, 4, 2)
        for step in range(3):
            a = torch.tensor(actions[:, step], dtype=torch.float32).expand(2, 4, 1)
            scaled = ensemble(x, a).numpy() * change.std(axis=0) + change.mean(axis=0)
            x = torch.tensor(x.numpy() + scaled, dtype=torch.float32)
            np.testing.assert_allclose(imagined[:, :, step], x, atol=1e-5)


def test_steps_processes_and_accumulations_see_other_data(trained: DynamicsRun) -> None:
    assert has_batches_of_its_own(trained.loss)


def test_the_seed_fixes_the_first_weights_and_the_batches(tmp_path: Path) -> None:
    assert is_fixed_by_its_seed(
        lambda seed: DynamicsRun(replace(SMALL, seed=seed), spring_data(), tmp_path)
    )


def test_a_run_goes_on_where_it_was(tmp_path: Path) -> None:
    """StoppedError in the middle, it ends with the same weights, bit for bit."""
    config = DynamicsConfig(num_members=2, width=8, num_steps=20, batch_size=16)
    whole = DynamicsRun(config, spring_data(), tmp_path / "whole")
    whole.run(save_interval=5, progress=False)

    class StoppedError(Exception):
        pass

    def stop(step: int, _: Any) -> None:
        if step == 10:
            raise StoppedError

    broken = DynamicsRun(config, spring_data(), tmp_path / "broken")
    with pytest.raises(StoppedError):
        broken.run(save_interval=5, progress=False, on_metrics=stop)
    resumed = DynamicsRun(config, spring_data(), tmp_path / "broken")
    assert resumed.step == 10
    resumed.run(save_interval=5, progress=False)
    one, two = whole.ensemble.state_dict(), resumed.ensemble.state_dict()
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_folder_of_other_settings_is_refused(trained: DynamicsRun) -> None:
    other = DynamicsConfig(num_members=3, width=16, num_steps=800)
    with pytest.raises(ConfigError, match="other settings"):
        DynamicsRun(other, spring_data(), trained.output)


def test_transitions_cross_neither_runs_nor_ends() -> None:
    states = np.arange(6.0)[:, None]
    ended = np.array([False, True, False, False, False, False])
    flat = FlatDataset(
        {
            "observation": states,
            "action": 10 * states,
            "reward": np.zeros(6),
            "terminated": ended,
        },
        np.array([0, 4, 6]),
    )
    before, actions, after = transitions(flat)
    np.testing.assert_array_equal(before[:, 0], [0, 2, 4])
    np.testing.assert_array_equal(actions[:, 0], [0, 20, 40])
    np.testing.assert_array_equal(after[:, 0], [1, 3, 5])


def test_data_without_successive_states_and_other_sizes_are_refused(
    trained: DynamicsRun,
) -> None:
    single = FlatDataset(
        {
            "observation": np.zeros((2, 1)),
            "action": np.zeros((2, 1)),
            "reward": np.zeros(2),
            "terminated": np.zeros(2, np.bool_),
        },
        np.array([0, 1, 2]),
    )
    with pytest.raises(DatasetError, match="no two successive states"):
        transitions(single)
    with pytest.raises(SpaceMismatchError, match="states with 2"):
        trained.ensemble.simulate(np.zeros((1, 3)), np.zeros((1, 5, 1)))
    with pytest.raises(ConfigError, match="num_members must be positive"):
        DynamicsConfig(num_members=0)


# --- a denoiser as dynamics -----------------------------------------------------------


class Capturing(WhiteNoise):
    """Keeps what it was asked to pin."""

    def sample(self, inpainting: Inpainting, generators: Any, **settings: Any) -> Any:
        self.asked = inpainting
        return super().sample(inpainting, generators, **settings)


def test_the_first_state_and_all_given_actions_are_pinned() -> None:
    sampler = Capturing()
    model = DiffuserDynamics(make_planner(sampler, horizon=EIGHT_STEPS))
    rng = np.random.default_rng(0)
    states, actions = rng.normal(size=(3, 4)), rng.uniform(-1, 1, (3, 5, 2))
    predicted = model.simulate(states, actions)
    expected = torch.zeros(8, 6, dtype=torch.bool)
    expected[0, 2:] = True
    expected[:5, :2] = True
    assert torch.equal(sampler.asked.mask[0], expected)
    pinned = NORMALIZER.unnormalize(sampler.asked.values).numpy()
    np.testing.assert_allclose(pinned[:, 0, 2:], states, atol=1e-5)
    np.testing.assert_allclose(pinned[:, :5, :2], actions, atol=1e-5)
    assert predicted.shape == (3, 5, 4)
    np.testing.assert_array_equal(predicted, model.simulate(states, actions))
    for row in range(3):  # the noise is the same too, wherever the row is
        part = slice(row, row + 1)
        alone = model.simulate(states[part], actions[part])
        np.testing.assert_allclose(alone, predicted[part], atol=1e-5)


class Spring(nn.Module):
    """A network that believes the first state and the actions that it sees."""

    def forward(self, noisy: Tensor, _: Tensor) -> Tensor:
        """Return the trajectory that they lead to, clean."""
        first, actions = noisy[:, 0, 1:].double().numpy(), noisy[..., :1]
        states = truth(first, actions.double().numpy())[:, :-1]
        states = np.concatenate([first[:, None], states], axis=1)
        return torch.cat([actions, torch.from_numpy(states).float()], dim=-1)


@pytest.mark.parametrize("kind", [DDIMSampler, DDPMSampler])
def test_a_denoiser_that_believes_the_actions_is_the_true_dynamics(
    kind: type[Sampler],
) -> None:
    """State t + 1 is where action t leads; in environment units."""
    normalizer = IdentityNormalizer.blank(3)
    denoiser = Denoiser(Spring(), NoiseSchedule(10), clip=False, acceleration="off")
    layout = TrajectoryLayout(action_dim=1, observation_dim=2)
    planner = Planner(
        kind(denoiser, 5),
        layout=layout,
        normalizer=normalizer,
        horizons=Horizons(6, layout=layout, normalizer=normalizer, multiple=1),
    )
    model = DiffuserDynamics(planner)
    rng = np.random.default_rng(0)
    first, pushes = rng.normal(size=(4, 2)), rng.normal(size=(4, 3, 1))
    expected = truth(first, pushes)
    np.testing.assert_allclose(model.simulate(first, pushes), expected, atol=1e-5)


def test_what_is_no_model_of_the_dynamics_is_refused() -> None:
    states_only = TrajectoryLayout(action_dim=0, observation_dim=4)
    for layout, stride in ((states_only, 1), (LAYOUT, 4)):
        planner = make_planner(layout=layout, horizon={**EIGHT_STEPS, "stride": stride})
        with pytest.raises(ConfigError, match="an action for every env step"):
            DiffuserDynamics(planner)
    model = DiffuserDynamics(make_planner(horizon=EIGHT_STEPS))
    assert model.max_steps == 7
    with pytest.raises(ConditionError, match="1 to 7 actions"):
        model.simulate(np.zeros((1, 4)), np.zeros((1, 8, 2)))
    with pytest.raises(SpaceMismatchError, match="states with 4"):
        model.simulate(np.zeros((1, 3)), np.zeros((1, 5, 2)))
