"""Settings that contradict each other or the data are refused before any work."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, NoReturn, get_args

import numpy as np
import pytest
import torch

from diffuser_policy import choices
from diffuser_policy.build import build_executor, build_networks, build_ranking
from diffuser_policy.columns.features import Identity
from diffuser_policy.columns.layout import TrajectoryLayout
from diffuser_policy.config import (
    ExecutionConfig,
    InverseDynamicsConfig,
    NetworkConfig,
    PlannerConfig,
    PolicyConfig,
    TrainConfig,
    WindowConfig,
)
from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.diffusion.sampler import DDIMSampler, DDPMSampler
from diffuser_policy.diffusion.schedule import step_grid
from diffuser_policy.errors import (
    CheckpointError,
    ConfigError,
    HorizonError,
    MemoryLimitError,
)
from diffuser_policy.guides.builtin import ActionEffort
from diffuser_policy.networks.critic import Critic
from diffuser_policy.numerics import find_device
from diffuser_policy.planning.executors import (
    PlannedActions,
    PursuitExecutor,
    TrackingExecutor,
)
from diffuser_policy.policy import DiffuserPolicy
from diffuser_policy.settings import to_json
from diffuser_policy.testing import toy_config, toy_dataset, toy_policy
from diffuser_policy.training.derive import policy_config
from diffuser_policy.training.trainer import untrained
from tests.policy_helpers import observe


def unnamed(**metadata: Any) -> FlatDataset:
    """Return toy data that does not name its columns."""
    flat = toy_dataset()
    kept = {k: v for k, v in flat.metadata.items() if k != "observation_columns"}
    return FlatDataset(flat.fields, flat.run_starts, {**kept, **metadata})


@pytest.mark.parametrize(
    ("settings", "executor", "sampler"),
    [
        ({"executor": "actions", "sampler": "ddim"}, PlannedActions, DDIMSampler),
        ({"executor": "tracking", "sampler": "ddpm"}, TrackingExecutor, DDPMSampler),
        ({"executor": "pursuit"}, PursuitExecutor, DDIMSampler),
    ],
)
def test_names_in_settings_choose_the_parts(
    settings: dict[str, Any], executor: type[object], sampler: type[object]
) -> None:
    policy = toy_policy().with_settings(**settings)
    assert type(policy.executor) is executor
    assert type(policy.planner.sampler) is sampler


class Judge(Identity):
    """Judges plans, and turns them into actions."""

    def feasibility(self, candidates: np.ndarray, _: int) -> np.ndarray:
        return np.zeros(len(candidates))

    def act(self, plans: np.ndarray, _: np.ndarray) -> np.ndarray:
        return np.zeros((len(plans), 2))


def test_every_ranking_that_settings_name_is_another_class() -> None:
    policy = toy_policy()
    networks = policy.networks
    networks.critic = Critic(4, 2)
    names = get_args(choices.RankingName)
    made = {
        type(
            build_ranking(
                dataclasses.replace(policy.config, planner=PlannerConfig(ranking=name)),
                networks,
                guide=ActionEffort(),
                featurizer=Judge(4),
            )
        )
        for name in names
    }
    assert len(made) == len(names)


def test_every_executor_that_settings_name_is_another_class() -> None:
    policy = toy_policy(toy_config(inverse_dynamics=InverseDynamicsConfig()))
    config, networks = policy.config, policy.networks
    names = get_args(choices.ExecutorName)
    made = set()
    for name in names:
        seconds = 0.1 if name == "path" else None
        execution = ExecutionConfig(executor=name, seconds_per_step=seconds)
        changed = dataclasses.replace(config, execution=execution)
        made.add(type(build_executor(changed, networks, Judge(4))))
    assert len(made) == len(names)


def test_all_settings_of_an_executor_arrive() -> None:
    policy = toy_policy(
        executor="pursuit", position_gain=3.0, velocity_gain=0.5, lookahead=7.0
    )
    executor = policy.executor
    assert isinstance(executor, PursuitExecutor)
    assert (executor.position_gain, executor.velocity_gain) == (3.0, 0.5)
    assert executor.ahead == 7.0


def test_all_settings_of_a_sampler_arrive() -> None:
    policy = toy_policy(step_spacing="trailing", temperature=0.5, num_sampling_steps=3)
    sampler, schedule = policy.planner.sampler, policy.networks.denoiser.schedule
    first = schedule.num_denoising_steps - 1
    assert sampler.grid == step_grid(schedule, 3, spacing="trailing", first=first)
    assert sampler.grid != step_grid(schedule, 3, spacing="linspace", first=first)
    assert sampler.temperature == 0.5


def test_columns_are_those_of_the_data_with_the_goal() -> None:
    layout = policy_config(toy_config(), toy_dataset()).layout
    assert layout == TrajectoryLayout(
        action_dim=2,
        observation_dim=4,
        aliases={"position": (0, 1), "velocity": (2, 3), "goal": (0, 1)},
    )


def test_a_column_called_goal_is_no_goal_of_an_environment_without_any() -> None:
    flat = toy_dataset(goals=False)
    names = {**flat.metadata["observation_columns"], "goal": [2, 3]}
    facts = {**flat.metadata, "observation_columns": names}
    flat = dataclasses.replace(flat, metadata=facts)
    window = WindowConfig(horizon=16, hindsight_goal="none")
    policy = toy_policy(toy_config(window=window, time_to_goal=None), flat=flat)
    assert set(policy.planner.layout.aliases) == {"position", "velocity"}
    with pytest.raises(ConfigError, match="planner without goals"):
        policy.with_settings(horizon="shrinking")


def test_columns_can_be_named_by_the_user() -> None:
    window = WindowConfig(horizon=16, position=(1, 0), velocity=(3, 2))
    layout = policy_config(toy_config(window=window), unnamed()).layout
    assert layout.aliases["position"] == (1, 0)
    assert layout.aliases["velocity"] == (3, 2)


def test_tracking_without_names_says_how_to_give_them() -> None:
    with pytest.raises(ConfigError, match=r"--window\.position"):
        toy_policy(flat=unnamed())


def test_tracking_needs_a_column_per_action() -> None:
    flat = unnamed(observation_columns={"position": [0, 1, 2], "velocity": [2, 3]})
    with pytest.raises(ConfigError, match=r"every column of 'position'.*\(2\)"):
        toy_policy(flat=flat)
    toy_policy(toy_config(execution=ExecutionConfig(executor="actions")), flat=flat)


@pytest.mark.parametrize(
    ("normalizer", "clip", "expected"),
    [
        ("limits", None, True),
        ("gaussian", None, False),
        ("limits", False, False),
        ("gaussian", False, False),
    ],
)
def test_clipping_goes_with_the_limits_normalizer(
    normalizer: Any, clip: bool | None, expected: bool
) -> None:
    window = WindowConfig(horizon=16, normalizer=normalizer)
    config = toy_config(
        window=window, network=NetworkConfig(dim=8, multipliers=(1, 2), clip=clip)
    )
    networks = build_networks(policy_config(config, toy_dataset()))
    assert networks.denoiser.clip is expected


def test_clipping_with_another_normalizer_is_refused() -> None:
    config = toy_config(
        window=WindowConfig(horizon=16, normalizer="gaussian"),
        network=NetworkConfig(clip=True),
    )
    with pytest.raises(ConfigError, match="Leave clip out"):
        policy_config(config, toy_dataset())


def test_time_to_goal_needs_goals() -> None:
    with pytest.raises(ConfigError, match="needs goals"):
        policy_config(toy_config(), toy_dataset(goals=False))


@pytest.mark.parametrize("window", [{"horizon": 1}, {"horizon": 5, "stride": 5}])
def test_plans_to_a_goal_need_two_planning_steps(window: dict[str, Any]) -> None:
    """The goal would be pinned where the current observation is."""
    config = toy_config(
        window=WindowConfig(**window),
        network=NetworkConfig(multipliers=(1,)),
        time_to_goal=None,
    )
    with pytest.raises(ConfigError, match=r"2 planning steps or more, .*horizon="):
        policy_config(config, toy_dataset())
    aimless = dataclasses.replace(config.window, hindsight_goal="none")
    config = dataclasses.replace(config, window=aimless)
    assert policy_config(config, toy_dataset(goals=False))


@pytest.mark.parametrize("choice", ["fixed", "shrinking"])
def test_the_shortest_windows_of_a_training_are_long_enough_for_the_network(
    choice: Any,
) -> None:
    planner = PlannerConfig(horizon=choice)
    for shortest in (1, 2):
        window = WindowConfig(horizon=16, min_horizon=shortest)
        with pytest.raises(HorizonError, match=r"plans of 4 planning .*min_horizon"):
            untrained(toy_config(window=window, planner=planner), toy_dataset())
    for shortest in (3, 4, 16):
        window = WindowConfig(horizon=16, min_horizon=shortest)
        assert untrained(toy_config(window=window, planner=planner), toy_dataset())


def test_no_plan_is_shorter_than_the_network_takes() -> None:
    """Where training had windows of one length, plans may still be shorter."""
    window = WindowConfig(horizon=16)
    policy = toy_policy(toy_config(window=window), horizon="shrinking")
    assert policy.planner.horizons.min_planning_steps == 4
    wide = NetworkConfig(dim=16, multipliers=(1, 2), num_denoising_steps=8)
    config = toy_config(window=window, network=wide)
    policy = toy_policy(config, horizon="shrinking")
    assert policy.planner.horizons.min_planning_steps == 2


@pytest.mark.parametrize("gain", [float("nan"), float("inf")])
def test_gains_are_finite(gain: float) -> None:
    with pytest.raises(ConfigError, match="position_gain must be a finite"):
        ExecutionConfig(position_gain=gain)


@pytest.mark.parametrize(
    ("timed", "advice"),
    [(True, "Use horizon='shrinking' or 'predicted',"), (False, "='shrinking', or no")],
)
def test_replanning_at_intervals_needs_a_horizon_that_shrinks(
    timed: bool, advice: str
) -> None:
    config = toy_config()
    if not timed:
        config = dataclasses.replace(config, time_to_goal=None)
    with pytest.raises(ConfigError, match=f"a full horizon away forever.*{advice}"):
        toy_policy(config, horizon="fixed", replan_interval=5)
    toy_policy(config, horizon="shrinking", replan_interval=5)


def of_states(policy: DiffuserPolicy, **aliases: tuple[int, ...]) -> PolicyConfig:
    """Return settings of a planner of states alone, with these names of columns."""
    layout = policy.config.layout
    named = {name: layout.aliases[name] for name in ("goal",)} | aliases
    states = dataclasses.replace(layout, action_dim=0, aliases=named)
    return dataclasses.replace(policy.config, layout=states)


def test_a_critic_is_not_advised_where_plans_have_no_actions() -> None:
    policy = toy_policy()
    planner = PlannerConfig(ranking="critic")
    config = dataclasses.replace(of_states(policy), planner=planner)
    with pytest.raises(ConfigError, match=r"plans only states.*'first', or train"):
        build_ranking(config, policy.networks, guide=None, featurizer=Judge(4))


def test_only_executors_that_work_are_advised() -> None:
    policy = toy_policy()
    config = of_states(policy, position=(0,))  # and there are two actions
    config = dataclasses.replace(config, execution=ExecutionConfig(executor="tracking"))
    with pytest.raises(ConfigError, match="as many as there are actions") as caught:
        build_executor(config, policy.networks, Identity(4))
    end = "Use the executor 'inverse-dynamics' (train with --inverse-dynamics, or "
    assert str(caught.value).endswith(end + "TrainConfig.inverse_dynamics).")
    with pytest.raises(ConfigError, match=r"inverse_dynamics\) or 'features'\.$"):
        build_executor(config, policy.networks, Judge(4))
    actions = dataclasses.replace(config, execution=ExecutionConfig(executor="actions"))
    with pytest.raises(ConfigError, match="'tracking' where every action pushes"):
        build_executor(actions, policy.networks, Identity(4))


def test_a_goal_velocity_says_which_columns_it_needs() -> None:
    config = toy_config()
    flat = toy_dataset()
    named = {"observation_columns": {"position": [0, 1]}}
    data = FlatDataset(flat.fields, flat.run_starts, {**flat.metadata, **named})
    with pytest.raises(ConfigError, match=r"--window\.velocity.*goal_velocity=False"):
        toy_policy(config, flat=data, goal_velocity=True)


@pytest.mark.parametrize("horizon", ["fixed", "shrinking", "predicted"])
def test_replanning_at_intervals_needs_a_network_of_several_lengths(
    horizon: Any,
) -> None:
    mlp = NetworkConfig(architecture="mlp", dim=8, depth=1, num_denoising_steps=4)
    config = dataclasses.replace(toy_config(), network=mlp)
    toy_policy(config, horizon=horizon)
    with pytest.raises(ConfigError, match=r"planning steps and no others .* forever"):
        toy_policy(config, horizon=horizon, replan_interval=5)


@pytest.mark.parametrize("seed", [-1, 1.5, "1", True, 2**63])
def test_seeds_are_whole_numbers_from_zero(seed: Any) -> None:
    policy = toy_policy()
    with pytest.raises(ConfigError, match="seed must be a whole number from 0"):
        policy.set_random_seed(seed)
    assert policy.seed == 0  # nothing changed
    with pytest.raises(ConfigError, match="seed must be a whole number from 0"):
        TrainConfig(dataset="toy/point-v0", seed=seed)
    with pytest.raises(ConfigError, match="seed must be a whole number from 0"):
        toy_policy(seed=seed)


@pytest.mark.parametrize(
    "seed", [3, np.int8(3), np.uint64(3), np.array(3), torch.tensor(3)]
)
def test_seeds_are_of_any_kind_of_whole_number(seed: Any) -> None:
    expected = toy_policy(seed=3).initial_state(2).streams
    policy = toy_policy()
    policy.set_random_seed(seed)
    np.testing.assert_array_equal(policy.initial_state(2).streams, expected)
    config = TrainConfig(dataset="toy/point-v0", seed=seed)
    assert json.loads(json.dumps(to_json(config)))["seed"] == 3


def test_no_seed_is_a_random_one() -> None:
    """As in Stable-Baselines3: only a policy that is made takes another one."""
    policy = toy_policy()
    config, networks = policy.config, policy.networks
    seeds = {DiffuserPolicy(config, networks, seed=None).seed for _ in range(5)}
    assert len(seeds) == 5
    policy.set_random_seed(None)
    assert policy.seed == 0
    none: Any = None
    drawn = {TrainConfig(dataset="toy/point-v0", seed=none).seed for _ in range(5)}
    assert len(drawn) == 5


@pytest.mark.parametrize(
    "device",
    ["cuda:99", "cpu:200", "cpu:256", torch.device("cpu:200"), "gpu", "", "meta", None],
)
def test_devices_that_are_not_there_are_refused(device: Any) -> None:
    policy = toy_policy()
    with pytest.raises(ConfigError, match="There is no device"):
        policy.to(device)
    assert policy.to("cpu") is policy


def test_a_device_has_the_number_that_the_text_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """PyTorch makes "cuda:0" of "cuda:256", and "cuda" of "cuda:255"."""
    accelerator = torch.accelerator
    monkeypatch.setattr(accelerator, "is_available", lambda: True)
    monkeypatch.setattr(accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(
        accelerator, "current_accelerator", lambda: torch.device("cuda")
    )
    for name in ("cuda", "cuda:0", "cuda:1", torch.device("cuda:1")):
        assert find_device(name) == torch.device(name)
    for name in ("cuda:2", "cuda:255", "cuda:256", "cuda:1000", torch.device("cuda:2")):
        with pytest.raises(ConfigError, match=r"have: cpu, cuda \(2 of them\)"):
            find_device(name)


def test_without_an_accelerator_nothing_more_is_asked_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """PyTorch 2.6 has no answer then, and raises."""

    def ask() -> NoReturn:
        raise RuntimeError("Cannot access accelerator device when none is available.")

    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", ask)
    assert find_device("cpu") == torch.device("cpu")


def test_networks_without_room_on_a_device_stay_together_where_they_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy = toy_policy()
    moves: list[torch.device] = []

    def fail_at_first(device: torch.device) -> None:
        moves.append(device)
        if len(moves) == 1:
            raise torch.OutOfMemoryError

    monkeypatch.setattr(policy.networks, "to", fail_at_first)
    there = torch.device("meta")
    monkeypatch.setattr("diffuser_policy.policy.find_device", lambda _: there)
    with pytest.raises(MemoryLimitError, match="The planner on meta"):
        policy.to("meta")
    assert moves == [there, torch.device("cpu")]


@pytest.mark.parametrize("data", [[], 5, None, {}])
def test_what_is_no_config_is_refused(data: Any) -> None:
    with pytest.raises(CheckpointError, match="no 'schema'"):
        PolicyConfig.from_json(data)


# --- the policy's plan --------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_plan_is_the_plan_that_predict_follows(sampler: str) -> None:
    policy = toy_policy(sampler=sampler)
    _, state = policy.predict(observe(2), deterministic=True)
    plan = policy.plan(observe(2))
    np.testing.assert_array_equal(plan.observations, state.observations)
    initial = policy.initial_state(2, np.array([5, 6]))
    _, state = policy.predict(observe(2), initial)
    plan = policy.plan(observe(2), state=initial)
    np.testing.assert_array_equal(plan.observations, state.observations)


@pytest.mark.cuda
def test_on_a_gpu_the_plan_is_the_same() -> None:
    expected = toy_policy().plan(observe(3))
    plan = toy_policy().to("cuda").plan(observe(3))
    np.testing.assert_allclose(
        plan.observations, expected.observations, rtol=1e-3, atol=1e-3
    )
