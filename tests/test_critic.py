"""Critics against values that are known, and how they choose among candidates."""

from __future__ import annotations

import dataclasses
import tracemalloc
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from diffuser_policy import DiffuserPolicy
from diffuser_policy.build import num_weights, seeded
from diffuser_policy.checkpoint import read_planner
from diffuser_policy.cli import main
from diffuser_policy.columns.layout import TrajectoryLayout
from diffuser_policy.columns.normalizers import LimitsNormalizer
from diffuser_policy.config import (
    CriticConfig,
    CriticTrainConfig,
    OptimizationConfig,
    TrainConfig,
    WindowConfig,
)
from diffuser_policy.data.collection import collect_episodes
from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.data.returns import returns_to_go
from diffuser_policy.data.steps import StepDataset
from diffuser_policy.data.windows import WindowDataset
from diffuser_policy.errors import ConfigError, DatasetError, DivergedError
from diffuser_policy.networks.critic import Critic, Transitions
from diffuser_policy.testing import toy_config, toy_dataset, toy_policy
from diffuser_policy.training.critic_trainer import CriticTrainer
from diffuser_policy.training.trainer import Trainer
from tests.point_env import PointEnv
from tests.policy_helpers import observe
from tests.training_helpers import has_batches_of_its_own, is_fixed_by_its_seed

DATASET = "tests/critic-v0"


def rewarded(**changed: np.ndarray) -> FlatDataset:
    """Return toy data with random rewards."""
    flat = toy_dataset()
    rewards = np.random.default_rng(0).normal(size=flat.num_rows)
    fields = {**flat.fields, "reward": rewards, **changed}
    return dataclasses.replace(flat, fields=fields)


def steps_of(flat: FlatDataset) -> StepDataset:
    layout = TrajectoryLayout(action_dim=2, observation_dim=4)
    normalizer = LimitsNormalizer.blank(6)
    windows = WindowDataset(flat, layout=layout, normalizer=normalizer)
    return StepDataset(flat, windows, layout)


def trainer(
    folder: Path, flat: FlatDataset | None = None, *, seed: int = 0, **critic: Any
) -> CriticTrainer:
    """Return a trainer of a small critic for the toy policy."""
    policy = toy_policy()
    config = CriticTrainConfig(
        dataset="toy/point-v0",
        seed=seed,
        critic=CriticConfig(width=16, **critic),
        optimization=OptimizationConfig(num_steps=4, batch_size=8, ema_decay=0.9),
    )
    planner = policy.config, policy.networks
    return CriticTrainer(config, planner, flat or rewarded(), folder)


def test_values_of_a_known_process_are_found() -> None:
    torch.manual_seed(0)
    critic, slow = Critic(1, 1, width=32), Critic(1, 1, width=32)
    slow.load_state_dict(critic.state_dict())
    optimizer = torch.optim.Adam(critic.parameters(), lr=1e-2)
    # State 0 leads to state 1 without reward; there, the action is the reward, and the
    # process ends.
    observations = torch.tensor([[0.0], [0.0], [1.0], [1.0]])
    actions = torch.tensor([[0.0], [1.0], [0.0], [1.0]])
    batch = Transitions(
        observations,
        actions,
        rewards=torch.tensor([0.0, 0.0, 0.0, 1.0]),
        next_observations=torch.ones(4, 1),
        ended=torch.tensor([False, False, True, True]),
    )
    for _ in range(600):
        optimizer.zero_grad()
        loss = critic.loss(batch, slow, expectile=0.9, discount=0.5)
        torch.autograd.backward(loss)
        optimizer.step()
        with torch.no_grad():
            pairs = zip(slow.parameters(), critic.parameters(), strict=True)
            for mean, weight in pairs:
                mean.lerp_(weight, 0.05)
    with torch.no_grad():
        last = critic.of_actions(observations[2:], actions[2:])
        before = critic.of_actions(observations[:2], actions[:2])
        value = critic.of_states(torch.ones(1, 1)).item()
    np.testing.assert_allclose(last, [[0, 1], [0, 1]], atol=0.03)
    # The 0.9-expectile of 0 and 1: 0.1 v = 0.9 (1 - v).
    assert value == pytest.approx(0.9, abs=0.03)
    np.testing.assert_allclose(before, np.full((2, 2), 0.5 * 0.9), atol=0.03)


STD = 2.5  # of returns


def unlike() -> tuple[Critic, Critic, Transitions]:
    """Return a critic, one of other weights, and steps, some of which end."""
    torch.manual_seed(0)
    critic, slow = Critic(2, 1, width=8), Critic(2, 1, width=8)
    for each in (critic, slow):
        each.set_scale(3.0, STD)
    ended = torch.arange(40) % 3 == 0
    batch = Transitions(
        observations=torch.randn(40, 2),
        actions=torch.randn(40, 1),
        rewards=torch.randn(40),
        next_observations=torch.randn(40, 2),
        ended=ended,
    )
    return critic, slow, batch


def test_the_loss_is_that_of_the_equations() -> None:
    critic, slow, batch = unlike()
    with torch.no_grad():
        slow_q = slow.of_actions(batch.observations, batch.actions).numpy()
        q = critic.of_actions(batch.observations, batch.actions).numpy()
        v = critic.of_states(batch.observations).numpy()
        next_v = critic.of_states(batch.next_observations).numpy()
    u = slow_q.min(axis=0) - v
    target = batch.rewards.numpy() + 0.9 * ~batch.ended.numpy() * next_v
    assert len({*slow_q.argmin(axis=0)}) == len({*(u < 0)}) == 2  # there are both
    of_states = np.abs(0.8 - (u < 0)) * u**2
    of_actions = ((target - q) ** 2).sum(axis=0)
    expected = (of_states + of_actions).mean() / STD**2
    found = critic.loss(batch, slow, expectile=0.8, discount=0.9)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_gradients_do_not_reach_the_slow_copy() -> None:
    critic, slow, batch = unlike()
    loss = critic.loss(batch, slow, expectile=0.5, discount=0.9)
    torch.autograd.backward(loss)
    assert all(parameter.grad is None for parameter in slow.parameters())
    assert all(parameter.grad is not None for parameter in critic.parameters())


def test_state_values_do_not_learn_from_the_step_before() -> None:
    """V(s') is a part of Q's target: its own gradient is the same without it."""
    critic, slow, batch = unlike()
    found = [
        torch.autograd.grad(
            critic.loss(batch, slow, expectile=0.8, discount=discount),
            [*critic.state_value.parameters()],
        )
        for discount in (0.0, 0.9)
    ]
    for alone, beside in zip(*found, strict=True):
        torch.testing.assert_close(alone, beside)


def test_steps_lead_to_the_next_row_of_their_run(tmp_path: Path) -> None:
    ended = np.zeros(180, np.bool_)
    ended[[59, 179]] = True  # the second run is cut off, the others terminate
    made = trainer(tmp_path, rewarded(terminated=ended))
    steps = made.steps.rows_of(torch.arange(len(made.steps))).tolist()
    assert {59, 179} <= {*steps}
    assert 119 not in steps
    assert len(steps) == 179
    generator, device = torch.Generator().manual_seed(0), torch.device("cpu")
    batch = made.steps.sample(2000, generator, device)
    layout = made.policy_config.layout
    rows = made.steps.windows.recorded(torch.arange(180))[:, layout.observations]
    drawn = set()
    for now, later, done in zip(
        batch.observations, batch.next_observations, batch.ended, strict=True
    ):
        index = int((rows == now).all(dim=1).nonzero()[0])
        drawn.add(index)
        assert bool(done) == (index in {59, 179})
        assert bool(done) or torch.equal(rows[index + 1], later)
    assert drawn == {*steps}


def test_the_steps_of_a_critic_are_all_that_are_known() -> None:
    rng = np.random.default_rng(0)
    flat = rewarded(terminated=rng.random(180) < 0.1)
    starts = np.unique([0, *rng.integers(1, 180, 60), 180])
    flat = FlatDataset(flat.fields, starts, flat.metadata)
    found = steps_of(flat)
    known = flat.followed | flat.fields["terminated"]
    rows = found.rows_of(torch.arange(len(found)))
    assert (
        rows.tolist() == np.flatnonzero(known).tolist() == flat.known_steps().tolist()
    )


def test_the_steps_of_a_critic_keep_nothing_for_each_row() -> None:
    """What they keep is what runs have."""
    flat = toy_dataset(2, 50_000)
    tracemalloc.start()
    try:
        found = steps_of(flat)
        found.sample(2, torch.Generator().manual_seed(0), torch.device("cpu"))
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < flat.num_rows


def test_a_critic_says_the_lower_of_both_values_always_of_the_same_steps(
    tmp_path: Path,
) -> None:
    flat = rewarded()
    made = trainer(tmp_path, flat, discount=0.5)
    returns = returns_to_go(flat, 0.5)
    assert float(made.average.return_mean) == pytest.approx(returns.mean(), rel=1e-4)
    assert made.critic_values() == made.critic_values()
    made.average.set_scale(0.0, 1.0)
    with torch.no_grad():
        for network, value in zip(made.average.action_values, (5, -3), strict=True):
            *_, weight, bias = network.parameters()
            weight.fill_(0.0)
            bias.fill_(value)
    values, rewards = made.critic_values(), flat.fields["reward"]
    assert values[:3] == (-3.0, -3.0, -3.0)
    assert values.possible == pytest.approx((2 * rewards.min(), 2 * rewards.max()))


def test_steps_processes_and_accumulations_see_other_data(tmp_path: Path) -> None:
    assert has_batches_of_its_own(trainer(tmp_path).loss)


def test_the_seed_fixes_the_first_weights_and_the_batches(tmp_path: Path) -> None:
    assert is_fixed_by_its_seed(lambda seed: trainer(tmp_path, seed=seed))


def test_the_highest_action_value_is_chosen() -> None:
    policy = toy_policy(num_candidates=6)
    config = dataclasses.replace(policy.config, critic=CriticConfig(width=8))
    networks = policy.networks
    networks.critic = Critic(4, 2, width=8).requires_grad_(False)
    judged = DiffuserPolicy(config, networks).with_settings(ranking="critic")
    plan = judged.plan(observe())
    assert len(set(plan.values[0].tolist())) == 6
    assert plan.chosen[0] == plan.values[0].argmax()


def test_a_stopped_training_resumes_to_the_same_weights(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole")
    whole.run(progress=False)
    begun = trainer(tmp_path / "begun")
    for _ in range(2):
        begun._descend()
    begun.save()
    resumed = trainer(tmp_path / "begun")
    assert resumed.step == 2
    resumed.run(progress=False)
    expected, found = whole.average.state_dict(), resumed.average.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in found.items())


def test_figures_of_a_planner_do_not_stay_when_its_critic_is_replaced(
    tmp_path: Path,
) -> None:
    first = trainer(tmp_path / "first")
    facts = {"results": {"toy/Point-v0": {"episodes": 9}}}
    judged = dataclasses.replace(first.policy_config, provenance=facts)
    again = CriticTrainer(
        first.config, (judged, first.planner_networks), rewarded(), tmp_path / "again"
    )
    assert "results" not in again.policy_config.provenance
    unused = dataclasses.replace(toy_policy().config, provenance=facts)
    added = CriticTrainer(
        first.config, (unused, toy_policy().networks), rewarded(), tmp_path / "added"
    )
    assert added.policy_config.provenance == facts


def test_a_critic_trained_beside_its_planner_learns_from_the_average(
    tmp_path: Path,
) -> None:
    window = WindowConfig(horizon=64, padding="repeat")  # longer than the runs
    config = toy_config(
        critic=CriticConfig(width=8),
        window=window,
        optimization=OptimizationConfig(num_steps=4, batch_size=8, ema_decay=0.9),
    )
    whole = Trainer(config, rewarded(), tmp_path / "whole")
    whole.run(progress=False)
    begun = Trainer(config, rewarded(), tmp_path / "begun")
    losses = [begun._descend()["critic"] for _ in range(2)]
    assert np.isfinite(losses).all()
    begun.save()
    resumed = Trainer(config, rewarded(), tmp_path / "begun")
    at_first = resumed.loss(2, 0, 0)["critic"]
    moved = Trainer(config, rewarded(), tmp_path / "begun")
    slow = moved.average.critic
    assert slow is not None
    with torch.no_grad():
        for weight in slow.parameters():
            weight.add_(0.5)
    assert moved.loss(2, 0, 0)["critic"] != at_first
    resumed.run(progress=False)
    expected, found = whole.average.state_dict(), resumed.average.state_dict()
    assert any(key.startswith("critic.") for key in found)
    assert all(torch.equal(value, expected[key]) for key, value in found.items())
    planner = DiffuserPolicy(*read_planner(tmp_path / "whole"))
    planner.with_settings(ranking="critic").plan(observe())


def test_plans_of_states_have_no_critic(tmp_path: Path) -> None:
    window = WindowConfig(horizon=16, actions=False)
    config = toy_config(critic=CriticConfig(), window=window)
    with pytest.raises(DatasetError, match="values actions"):
        Trainer(config, rewarded(), tmp_path)


def test_data_without_rewards_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no trajectory is better"):
        trainer(tmp_path, rewarded(reward=np.zeros(180)))


def test_ranking_needs_a_critic() -> None:
    with pytest.raises(ConfigError, match="train-critic"):
        toy_policy().with_settings(ranking="critic")


def test_the_command_trains_and_the_planner_ranks_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = toy_policy()
    env = gym.wrappers.TimeLimit(PointEnv(terminate=False), 20)
    collect_episodes(env, policy, num_episodes=2, dataset_id=DATASET, progress=False)
    planner, output = tmp_path / "planner", tmp_path / "well judged"
    policy.save_pretrained(planner)
    command = ["train-critic", str(planner), "--dataset", DATASET, "--num-steps", "3"]
    assert main([*command, "--width", "8", "--output", str(output)]) == 0
    next_command = (
        f"diffuser-policy evaluate '{output}' --env MODULE:toy/Point-v0 "
        f"--ranking critic"
    )
    assert next_command in capsys.readouterr().out
    config, networks = read_planner(output)
    assert config.critic == CriticConfig(width=8)
    assert networks.critic is not None
    DiffuserPolicy.from_pretrained(output).with_settings(ranking="critic")


def test_another_way_to_run_the_network_keeps_every_other_network() -> None:
    policy = toy_policy()
    networks = policy.networks
    networks.critic = Critic(4, 2, width=8)
    changed = policy.accelerated("off").networks
    ours, theirs = dict(networks.named_children()), dict(changed.named_children())
    assert ours.keys() == theirs.keys()
    assert all(ours[name] is theirs[name] for name in ours if name != "denoiser")


def test_weights_of_the_critic_are_counted_before_they_are_allocated() -> None:
    config = toy_policy().config
    small = num_weights(dataclasses.replace(config, critic=CriticConfig(width=8)))
    large = num_weights(dataclasses.replace(config, critic=CriticConfig(width=10**6)))
    assert num_weights(config) < small < 10**6 < 10**12 < large


def spoil(critic: Critic) -> None:
    """Make a critic value everything far beyond what any reward allows."""
    critic.set_scale(1e6, 1.0)


def test_a_critic_that_diverges_stops_its_training_and_the_last_good_one_stays(
    tmp_path: Path,
) -> None:
    made = trainer(tmp_path)
    made.run(save_interval=2, progress=False)
    before = (tmp_path / "model.safetensors").read_bytes()
    longer = dataclasses.replace(made.config.optimization, num_steps=8)
    made.optimization = longer
    spoil(made.average)
    told = r"The critic diverged.*gradient step 6.*checkpoint of gradient step 4 are"
    with pytest.raises(DivergedError, match=told):
        made.run(save_interval=2, progress=False)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_a_planner_is_not_saved_with_a_critic_that_diverged(tmp_path: Path) -> None:
    config = dataclasses.replace(toy_config(), critic=CriticConfig(width=16))
    made = Trainer(config, rewarded(), tmp_path, device="cpu")
    values = made.critic_values()
    assert values is not None
    assert not values.diverged
    critic = made.average.critic
    assert critic is not None
    spoil(critic)
    with pytest.raises(DivergedError, match="Nothing had been saved"):
        made.run(progress=False)


def kill(network: Any) -> None:
    """Push the first layer so far that no input reaches any unit."""
    torch.nn.init.constant_(network[0].bias, -1e6)


@pytest.mark.parametrize("which", ["action value", "state value"])
def test_a_network_that_says_the_same_of_all_inputs_is_dead(which: str) -> None:
    torch.manual_seed(0)
    critic, steps = Critic(2, 1), (torch.randn(500, 2), torch.randn(500, 1))
    assert not critic.dead(*steps)
    assert not critic.dead(torch.zeros(9, 2), torch.zeros(9, 1))  # they are the same
    kill(critic.action_values[1] if which == "action value" else critic.state_value)
    assert critic.dead(*steps)


def test_critics_too_narrow_to_live_are_refused() -> None:
    with pytest.raises(ConfigError, match="must be 4 or more, got 3"):
        CriticConfig(width=3)
    source = torch.Generator().manual_seed(0)
    states = 2 * torch.rand(500, 4, generator=source) - 1
    actions = 2 * torch.rand(500, 2, generator=source) - 1
    for seed in range(40):
        with seeded(seed):
            critic = Critic(4, 2, width=4)
        assert not critic.dead(states, actions)


@pytest.mark.parametrize("averaged", [False, True])
def test_a_critic_that_died_within_the_possible_range_stops_its_training(
    tmp_path: Path, *, averaged: bool
) -> None:
    made = trainer(tmp_path)
    kill((made.average if averaged else made.networks).action_values[0])
    assert not made.critic_values().diverged
    with pytest.raises(DivergedError, match=r"critic is dead.*Nothing had been saved"):
        made.run(progress=False)


@pytest.mark.parametrize("rate", [0.3, 10.0])
def test_a_planner_is_not_saved_with_a_critic_that_huge_steps_have_killed(
    tmp_path: Path, rate: float
) -> None:
    fields = {k: v for k, v in rewarded().fields.items() if "goal" not in k}
    flat = dataclasses.replace(rewarded(), fields=fields)
    config = TrainConfig.for_dataset(
        flat,
        critic=True,
        network={"dim": 8},
        optimization={"num_steps": 150, "learning_rate": rate},
    )
    made = Trainer(config, flat, tmp_path, device="cpu")
    with pytest.raises(DivergedError, match=r"critic is dead.*smaller learning_rate"):
        made.run(progress=False)


def test_one_episode_is_enough_for_a_critic(tmp_path: Path) -> None:
    flat = rewarded()
    rows = {name: field[:60] for name, field in flat.fields.items()}
    one = FlatDataset(rows, np.array([0, 60]), flat.metadata)
    made = trainer(tmp_path, one)
    made.run(progress=False)
    assert not made.steps.values(made.average, 0.99).diverged


def test_actions_outside_of_the_space_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffuser_policy.columns.layout.PIECE", 160)  # 20 actions
    actions = rewarded().fields["action"].copy()
    actions[77, 0] = 1e3
    flat = rewarded(action=actions)
    with pytest.raises(DatasetError, match=r"action of row 77 is \[1000\.0"):
        trainer(tmp_path, flat)
    with pytest.raises(DatasetError, match="Clip the actions"):
        Trainer(toy_config(), flat, tmp_path, device="cpu")


@pytest.mark.parametrize("ends", [False, True])
def test_data_without_rewards_are_refused_with_what_to_do(
    tmp_path: Path, *, ends: bool
) -> None:
    nothing, ended = np.zeros(180), np.zeros(180, np.bool_)
    ended[59] = ends
    flat = rewarded(reward=nothing, terminated=ended)
    with pytest.raises(DatasetError, match=r"no value to learn.*--no-critic"):
        trainer(tmp_path, flat)
    paid = rewarded(reward=np.ones(180), terminated=ended)
    if ends:  # how long an episode lasts is worth learning
        trainer(tmp_path, paid).run(progress=False)
