"""Settings that are chosen for a dataset: what for which data, and why."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffuser_policy import DiffuserPolicy, defaults
from diffuser_policy.cli import main
from diffuser_policy.cli.train import TrainSettings
from diffuser_policy.config import (
    InverseDynamicsConfig,
    OptimizationConfig,
    TimeToGoalConfig,
    TrainConfig,
    ValueConfig,
    WindowConfig,
)
from diffuser_policy.data import minari
from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.data.minari import load_flat, write_minari
from diffuser_policy.defaults import choose
from diffuser_policy.errors import ConfigError, UnknownNameError
from diffuser_policy.testing import check_policy, toy_dataset
from diffuser_policy.training.derive import policy_config, space_spec
from diffuser_policy.training.trainer import Trainer, untrained
from tests.data_helpers import SpacesOnly, make_episode
from tests.policy_helpers import observe

SMALL: dict[str, Any] = {
    "network": {"dim": 16, "multipliers": (1, 2), "num_denoising_steps": 4},
    "optimization": {"num_steps": 2, "batch_size": 4},
}


def changed(flat: FlatDataset, **fields: Any) -> FlatDataset:
    """Return the dataset with other fields, or other facts."""
    facts = {**flat.metadata, **fields.pop("metadata", {})}
    return FlatDataset({**flat.fields, **fields}, flat.run_starts, facts)


def without_velocity(flat: FlatDataset) -> FlatDataset:
    seen = flat.fields["observation"][:, :2]
    return changed(
        flat,
        observation=seen,
        metadata={"observation_columns": {"position": [0, 1]}},
    )


def rewarded(flat: FlatDataset) -> FlatDataset:
    return changed(flat, reward=np.arange(flat.num_rows) % 7)


def lengthened(lengths: list[int], **settings: Any) -> FlatDataset:
    """Return runs of these lengths."""
    flat = toy_dataset(1, sum(lengths), **settings)
    return FlatDataset(flat.fields, np.cumsum([0, *lengths]), flat.metadata)


# --- what is chosen -----------------------------------------------------------------


def test_goals_that_actions_push_to_are_pursued() -> None:
    config = TrainConfig.for_dataset(toy_dataset(run_length=100))
    assert config.execution.executor == "pursuit"
    assert not config.window.actions
    assert config.window.hindsight_goal == "goal"
    assert (config.planner.horizon, config.planner.ranking) == (
        "predicted",
        "time_to_goal",
    )
    assert config.time_to_goal is not None
    assert config.time_to_goal.max_steps == config.window.horizon
    assert config.inverse_dynamics is None
    assert config.value is None


def test_gains_damp_critically() -> None:
    """Of the mass that the toy world pushes: 0.1 per action, 0.1 per velocity."""
    execution = TrainConfig.for_dataset(toy_dataset(run_length=100)).execution
    position, velocity = execution.position_gain, execution.velocity_gain
    # One step maps (off, velocity) to (off + 0.1 velocity', velocity').
    dynamics = np.array([[1.0, 0.1], [0.0, 1.0]])
    push = 0.1 * np.array([[0.1, 0.1], [1.0, 1.0]]) * [[-position, -velocity]]
    poles = np.linalg.eigvals(dynamics + push)
    assert (np.abs(poles) < 1).all()
    assert (np.abs(poles.imag) < 0.3 * np.abs(1 - poles.real)).all()


@pytest.mark.parametrize(
    "change",
    [
        without_velocity,
        lambda flat: changed(flat, metadata={"observation_columns": {}}),
        lambda flat: changed(flat, action=flat.fields["action"][:, ::-1]),
        lambda flat: changed(flat, action=-flat.fields["action"]),
    ],
    ids=["no velocity", "no names", "crossed axes", "pulled back"],
)
def test_inverse_dynamics_follow_where_tracking_cannot(change: Any) -> None:
    config = TrainConfig.for_dataset(change(toy_dataset(run_length=100)))
    assert config.execution.executor == "inverse-dynamics"
    assert config.inverse_dynamics is not None
    reach = config.execution.lookahead + config.window.stride - 1
    assert config.inverse_dynamics.max_steps >= reach


@pytest.mark.parametrize("steps", [4, 12])
def test_plans_to_near_goals_are_followed_and_not_just_their_ends(steps: int) -> None:
    """Aimed at the end, a motion would ignore what guides did to the plan before it."""
    flat = without_velocity(toy_dataset(100, steps))
    config = TrainConfig.for_dataset(flat)
    assert config.execution.executor == "inverse-dynamics"
    assert config.execution.lookahead <= config.window.horizon / 2
    assert config.inverse_dynamics is not None
    assert config.inverse_dynamics.max_steps >= config.execution.lookahead


def test_plans_without_a_goal_are_followed_and_not_just_their_ends() -> None:
    flat = toy_dataset(run_length=100, goals=False)
    config = TrainConfig.for_dataset(flat, window={"actions": False})
    assert config.execution.executor == "inverse-dynamics"
    assert config.execution.lookahead <= config.window.horizon / 2
    assert config.inverse_dynamics is not None
    assert config.inverse_dynamics.max_steps == config.execution.lookahead


@pytest.mark.parametrize("value", [False, True])
def test_without_goals_short_plans_of_actions_are_replaced_often(value: bool) -> None:
    """A network of values needs several steps to look at."""
    flat = rewarded(toy_dataset(goals=False))
    config = TrainConfig.for_dataset(flat, value=value)
    assert (config.window.horizon > 1) == value
    assert config.window.actions
    assert config.window.stride == 1
    assert config.window.horizon <= 32
    assert config.window.hindsight_goal == "none"
    assert config.execution.executor == "actions"
    assert config.execution.replan_interval is not None
    assert config.execution.replan_interval <= max(1, config.window.horizon / 2)
    assert config.time_to_goal is None


def test_of_better_and_worse_episodes_the_best_are_learned_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Their share is a tenth, or what it takes to have enough env steps."""
    monkeypatch.setattr(defaults, "ENOUGH", 400)
    flat = toy_dataset(60, 20, goals=False)
    rewards = np.repeat(np.arange(60.0), 20)
    choice = choose(changed(flat, reward=rewards), {})
    config = choice.config
    assert config.window.best_share == pytest.approx(20 / 60, abs=1e-3)
    assert any("best 20 of 60" in line and "990" in line for line in choice.reasons)
    assert (config.critic, config.value) == (None, None)
    assert (config.planner.sampler, config.planner.temperature) == ("ddpm", 0.0)
    assert (config.window.horizon, config.execution.replan_interval) == (1, 1)
    assert config.planner.num_candidates == 1
    few = toy_dataset(2, 100, goals=False)  # too few to choose from
    rising = np.arange(few.num_rows, dtype=float)
    all_of_them = choose(changed(few, reward=rising), {})
    assert all_of_them.config.window.best_share == 1
    assert any("all 2: too few env steps" in line for line in all_of_them.reasons)
    many = changed(toy_dataset(1000, 5, goals=False), reward=np.arange(5000.0))
    assert TrainConfig.for_dataset(many).window.best_share == pytest.approx(0.1)


def test_a_critic_or_a_value_that_is_asked_for_learns_with_all_episodes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(defaults, "ENOUGH", 100)
    flat = rewarded(toy_dataset(30, 20, goals=False))
    choice = choose(flat, {"critic": True})
    assert any("all: a critic" in line for line in choice.reasons)
    critic = choice.config
    assert critic.planner.ranking == "critic"
    assert critic.planner.num_candidates > 1
    assert critic.planner.temperature == 1
    assert critic.window.best_share == 1
    value = TrainConfig.for_dataset(flat, value=True)
    assert value.critic is None
    assert value.value == ValueConfig()  # as in presets and `train-value`
    assert (value.planner.ranking, value.planner.guide_scale) == ("guide", 0.0)
    steered = TrainConfig.for_dataset(flat, value=True, guide=("action-effort",))
    assert (steered.planner.ranking, steered.planner.guide_scale) == ("first", 1.0)


@pytest.mark.parametrize("goals", [False, True])
def test_a_value_that_does_not_rank_is_no_guide_until_it_is_asked_for(
    goals: bool,
) -> None:
    """A scale of 0 that is saved would turn off whatever guide comes later."""
    flat = rewarded(toy_dataset(goals=goals))

    def chosen(**planner: Any) -> tuple[tuple[str, ...], float]:
        given = {"value": True, "critic": not goals, "planner": planner}
        config = TrainConfig.for_dataset(flat, **given)
        return config.guide, config.planner.guide_scale

    assert chosen() == (("none",), 1.0)
    assert chosen(ranking="guide") == ((), 0.0)
    assert chosen(guide_scale=0.5) == ((), 0.5)


def test_equal_returns_tell_no_episode_from_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(defaults, "ENOUGH", 100)
    flat = toy_dataset(30, 20, goals=False)
    assert TrainConfig.for_dataset(flat).window.best_share == 1
    starts = flat.run_starts
    longer = np.concatenate([starts[:1], starts[2:]])  # the first two are one
    paid = changed(flat, reward=np.ones(flat.num_rows))
    assert TrainConfig.for_dataset(paid).window.best_share == 1
    lasting = FlatDataset(paid.fields, longer, paid.metadata)
    assert TrainConfig.for_dataset(lasting).window.best_share < 1


def test_short_plans_are_a_residual_mlps_unless_something_else_is_asked_for() -> None:
    flat = toy_dataset(goals=False)

    def architecture(**given: Any) -> str:
        return TrainConfig.for_dataset(flat, **given).network.architecture

    assert architecture() == "mlp"
    assert architecture(window={"horizon": 32}) == "unet"
    assert architecture(network={"multipliers": (1, 2)}) == "unet"
    assert architecture(network={"architecture": "unet"}) == "unet"
    assert architecture(network={"architecture": "transformer"}) == "transformer"
    assert TrainConfig.for_dataset(toy_dataset()).network.architecture == "unet"


@pytest.mark.parametrize("goals", [False, True])
@pytest.mark.parametrize("length", [2, 5, 9, 31, 50, 1000, 5000])
def test_horizons_fit_into_episodes_of_any_length(length: int, goals: bool) -> None:
    flat = toy_dataset(2, length, goals=goals)
    window = TrainConfig.for_dataset(flat).window
    assert window.num_planning_steps <= 64
    assert window.num_planning_steps % 4 == 0 or not goals  # as a U-Net needs
    assert window.horizon <= max(4, length)


def test_plans_are_as_long_as_the_chase_of_a_goal_needs() -> None:
    """A run without a reset has many goals; the run's length says nothing."""
    flat = toy_dataset(1, 6000)
    goals = np.repeat(np.arange(100.0), 60)[:, None].repeat(2, axis=1)
    window = TrainConfig.for_dataset(changed(flat, desired_goal=goals)).window
    assert 100 <= window.horizon <= 180
    assert window.min_horizon is not None
    assert window.min_horizon < 60


def test_several_candidates_are_drawn_at_random() -> None:
    flat = toy_dataset(goals=False)
    assert TrainConfig.for_dataset(flat).planner.temperature == 0.0
    several = TrainConfig.for_dataset(flat, planner={"num_candidates": 8}).planner
    assert several.num_candidates == 8
    assert several.temperature > 0


def test_landmarks_lead_to_places_that_are_further_than_plans_are_long() -> None:
    flat = without_velocity(toy_dataset(1, 6000))

    def chasing(steps: int, columns: int = 2) -> FlatDataset:
        goals = np.repeat(np.arange(6000 / steps), steps)[:, None]
        return changed(flat, desired_goal=goals.repeat(columns, axis=1))

    config = TrainConfig.for_dataset(chasing(300))
    assert config.landmarks is not None
    assert config.window.horizon == 160
    assert config.network.dim == defaults.NARROW
    wide = TrainConfig.for_dataset(chasing(300), network={"dim": 16})
    assert wide.landmarks is not None
    assert wide.network.dim == 16
    without = TrainConfig.for_dataset(chasing(300), landmarks=False)
    assert without.window.horizon > 160
    assert without.network.dim == 32
    assert TrainConfig.for_dataset(chasing(40)).landmarks is None  # near enough
    pursued = changed(
        toy_dataset(1, 6000), desired_goal=chasing(300).fields["desired_goal"]
    )
    assert TrainConfig.for_dataset(pursued).landmarks is None


@pytest.mark.parametrize(
    "given",
    [
        {"planner": {"horizon": "shrinking"}},
        {"planner": {"horizon": "fixed"}},
        {"planner": {"subgoal": None}},
        {"network": {"architecture": "mlp"}},
    ],
)
def test_plans_that_lead_to_no_landmark_are_long_and_have_a_wide_network(
    given: dict[str, Any],
) -> None:
    flat = without_velocity(toy_dataset(20, 300))
    choice = choose(flat, given)
    assert choice.config.landmarks is None
    assert not any("landmarks" in line for line in choice.reasons)
    asked = TrainConfig.for_dataset(flat, **given, landmarks=True)
    for config in (choice.config, asked):
        assert config.window.horizon > defaults.FROM_PLACE
        assert config.network.dim > defaults.NARROW
        assert config.planner.subgoal is None


@pytest.mark.parametrize("goals", [False, True])
def test_short_episodes_are_padded_and_none_is_left_out(goals: bool) -> None:
    flat = lengthened([60, 60, 60, 7, 3], goals=goals)
    given = {} if goals else {"window": {"horizon": 4}}
    choice = choose(flat, given)
    assert choice.config.window.padding == "repeat"
    short = 2 if goals else 1  # than 4 env steps
    assert any(f"{short} of 5 episodes are sh" in line for line in choice.reasons)
    even = lengthened([60, 60, 60], goals=goals)
    assert choose(even, given).config.window.padding == "none"


@pytest.mark.parametrize("steps", [10, 500, 2_000, 20_000, 1_000_000])
def test_the_average_of_weights_forgets_where_it_began(steps: int) -> None:
    settings = {"num_steps": steps}
    chosen = TrainConfig.for_dataset(toy_dataset(), optimization=settings).optimization
    assert chosen.ema_decay**steps < 1e-6
    assert chosen.ema_decay <= OptimizationConfig().ema_decay
    kept = {**settings, "ema_decay": 0.5}
    given = TrainConfig.for_dataset(toy_dataset(), optimization=kept).optimization
    assert given.ema_decay == 0.5


def test_long_tails_are_scaled_by_their_spread() -> None:
    without = toy_dataset(goals=False)
    assert TrainConfig.for_dataset(without).window.normalizer == "gaussian"
    flat = toy_dataset()
    assert TrainConfig.for_dataset(flat).window.normalizer == "limits"
    seen = flat.fields["observation"].copy()
    seen[5, 3] = 300.0
    outlier = changed(flat, observation=seen)
    assert TrainConfig.for_dataset(outlier).window.normalizer == "gaussian"
    constant = np.concatenate([flat.fields["observation"], np.ones((180, 1))], axis=1)
    still = changed(flat, observation=constant)
    assert TrainConfig.for_dataset(still).window.normalizer == "limits"


def test_what_was_given_has_no_reason() -> None:
    given: dict[str, Any] = {
        "network": {"architecture": "mlp"},
        "planner": {"ranking": "smoothness"},
        "window": {"normalizer": "gaussian"},
    }
    lines = {
        line.split(maxsplit=1)[0]: line for line in choose(toy_dataset(), given).reasons
    }
    assert lines["network"].endswith("a residual MLP")
    assert lines["ranking"].endswith(" smoothness")
    assert lines["normalizer"].endswith(" gaussian")


def test_goals_that_a_wrapper_flattened_are_asked_after() -> None:
    flat = toy_dataset(goals=False)
    spec = {"additional_wrappers": [{"name": "FlattenObservation"}]}
    told = "record the environment without FlattenObservation"
    for facts, is_told in (({}, False), ({"env_spec": json.dumps(spec)}, True)):
        recorded = changed(flat, metadata=facts)
        assert (told in "\n".join(choose(recorded, {}).reasons)) == is_told


def test_large_data_are_looked_at_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same result, whatever the size of a block."""
    rng = np.random.default_rng(0)
    flat = lengthened([70, 40, 50])
    goals = np.repeat(rng.normal(size=(32, 2)), 5, axis=0)
    rewards = np.zeros(160)
    rewards[-1] = 1
    seen = 1e3 + rng.normal(size=(160, 4)) * [1, 10, 0.1, 0]
    flat = changed(flat, desired_goal=goals, reward=rewards, observation=seen)
    whole = choose(flat, {})
    spread = seen[:, :3].std(axis=0)
    reach = (np.ptp(seen[:, :3], axis=0) / 2 / spread).max()
    assert any(f"up to {reach:.1f} standard" in line for line in whole.reasons)
    assert any("chased for 5 steps" in line for line in whole.reasons)
    restless = choose(changed(flat, desired_goal=rng.normal(size=(160, 2))), {})
    assert any("chased for 1 step in" in line for line in restless.reasons)
    for size in (1, 100, 1000):  # bytes
        monkeypatch.setattr("diffuser_policy.columns.layout.PIECE", size)
        assert choose(flat, {}) == whole


SMAPS = Path("/proc/self/smaps")


def resident(folder: Path) -> int:
    """Return the bytes of the mapped files of a folder that are in memory."""
    total, mine = 0, False
    for line in SMAPS.read_text(encoding="utf-8").splitlines():
        if not line.split()[0].endswith(":"):
            mine = str(folder) in line
        elif mine and line.startswith("Rss:"):
            total += 1024 * int(line.split()[1])
    return total


@pytest.mark.skipif(not SMAPS.exists(), reason="asks Linux what is in memory")
@pytest.mark.parametrize("look", [lambda flat: choose(flat, {}), space_spec])
def test_a_mapped_dataset_is_not_kept_in_memory(
    look: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flat = toy_dataset(20, 5000)
    more = np.tile(flat.fields["observation"], (1, 8))  # 12.8 MB
    flat = changed(flat, observation=more, metadata={"observation_columns": {}})
    flat.save(tmp_path / "it")
    flat = FlatDataset.load(tmp_path / "it")
    monkeypatch.setattr("diffuser_policy.columns.layout.PIECE", 2**18)
    look(flat)
    assert resident(tmp_path / "it") < 2e6


# --- what is given ------------------------------------------------------------------


def test_given_settings_are_kept_and_the_others_fit_them() -> None:
    flat = toy_dataset(run_length=400)
    assert TrainConfig.for_dataset(flat).window.stride > 1
    config = TrainConfig.for_dataset(flat, window={"horizon": 100})
    assert config.window.horizon == 100
    assert config.time_to_goal is not None
    assert config.time_to_goal.max_steps == 100
    slow = TrainConfig.for_dataset(flat, window={"stride": 7})
    assert (slow.window.stride, slow.window.horizon % 28) == (7, 0)
    acts = TrainConfig.for_dataset(
        without_velocity(flat), window={"actions": True, "stride": 1}
    )
    assert (acts.execution.executor, acts.inverse_dynamics) == ("actions", None)
    asked = TrainConfig.for_dataset(flat, execution={"executor": "inverse-dynamics"})
    assert asked.inverse_dynamics is not None
    timeless = TrainConfig.for_dataset(flat, time_to_goal=False)
    assert timeless.time_to_goal is None
    assert (timeless.planner.horizon, timeless.planner.ranking) == (
        "shrinking",
        "smoothness",
    )
    ignored = TrainConfig.for_dataset(flat, window={"hindsight_goal": "none"})
    assert ignored.execution.executor == "actions"
    assert ignored.time_to_goal is None


@pytest.mark.parametrize("goals", [False, True])
@pytest.mark.parametrize("length", [100, 300])
@pytest.mark.parametrize(
    "window",
    [
        {"min_horizon": 32},
        {"min_horizon": 200},
        {"min_horizon": 30},
        {"min_horizon": 24, "horizon": 96},
        {"min_horizon": 7, "stride": 7},
        {"min_horizon": 2},
    ],
)
def test_other_lengths_fit_a_shortest_window_that_is_given(
    window: dict[str, Any], length: int, goals: bool
) -> None:
    flat = without_velocity(toy_dataset(20, length, goals=goals))
    config = TrainConfig.for_dataset(flat, window=window, network={"dim": 16})
    assert window.items() <= vars(config.window).items()
    long = goals or config.window.horizon > defaults.LONGEST_MLP
    assert config.network.architecture == ("unet" if long else "mlp")
    assert untrained(config, flat)


@pytest.mark.parametrize("goals", [False, True])
def test_the_most_likely_plan_is_a_single_candidate(goals: bool) -> None:
    flat = rewarded(toy_dataset(goals=goals))
    for given in ({}, {"value": True}, {"critic": not goals}):
        planner = {"temperature": 0.0}
        chosen = TrainConfig.for_dataset(flat, planner=planner, **given).planner
        assert (chosen.temperature, chosen.num_candidates) == (0.0, 1)
    several = {"temperature": 0.0, "num_candidates": 8}
    with pytest.raises(ConfigError, match="num_candidates=8 would be identical"):
        TrainConfig.for_dataset(flat, planner=several)


def test_whole_parts_and_other_networks_can_be_given() -> None:
    window = WindowConfig(horizon=20, stride=5, actions=False)
    config = TrainConfig.for_dataset(
        toy_dataset(),
        dataset="my/name-v0",
        seed=3,
        window=window,
        time_to_goal=TimeToGoalConfig(width=8),
        inverse_dynamics=True,
        value={"discount": 0.5},
        optimization=OptimizationConfig(num_steps=7),
    )
    assert (config.dataset, config.seed, config.window) == ("my/name-v0", 3, window)
    assert config.time_to_goal == TimeToGoalConfig(width=8)
    assert isinstance(config.inverse_dynamics, InverseDynamicsConfig)
    assert config.value == ValueConfig(discount=0.5)
    assert config.optimization.num_steps == 7


def test_settings_that_do_not_exist_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'window'"):
        TrainConfig.for_dataset(toy_dataset(), windows={})
    with pytest.raises(ConfigError, match="Did you mean 'horizon'"):
        TrainConfig.for_dataset(toy_dataset(), window={"horizn": 4})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"optimization": {"num_steps": 0}}, "num_steps must be positive"),
        ({"window": {"stride": 0}}, "stride must be positive"),
        ({"window": {"stride": -3}}, "stride must be positive"),
        ({"window": {"stride": 4, "min_horizon": 6}}, "min_horizon must be a multiple"),
        ({"window": {"horizon": "64"}}, "'horizon' .* must be a whole number"),
        ({"window": {"position": (98, 99)}}, r"position .*columns \(98, 99\).*0\.\.5"),
        ({"window": {"velocity": (-1, 2)}}, "velocity .*columns"),
        ({"network": {"patch": 0}}, "patch must be positive"),
        ({"network": {"multipliers": ()}}, "multipliers must be 1 to"),
        ({"execution": {"lookahead": float("inf")}}, "lookahead"),
        ({"execution": {"lookahead": float("nan")}}, "lookahead"),
        ({"window": True}, "window must be a mapping .* WindowConfig, got True"),
        ({"window": 5}, "window must be a mapping"),
        ({"window": None}, "window must be a mapping"),
        ({"window": TimeToGoalConfig()}, "window must be a mapping"),
        ({"planner": "x"}, "planner must be a mapping"),
        ({"value": "no"}, "value must be True, False, a mapping"),
        ({"value": 1}, "value must be True, False, a mapping"),
        ({"value": WindowConfig()}, "value must be True, False, a mapping"),
    ],
)
@pytest.mark.parametrize("goals", [False, True])
def test_given_settings_are_checked_before_they_are_used(
    given: dict[str, Any], said: str, goals: bool
) -> None:
    if "position" in said and not goals:
        said = said.replace("5", "3")  # no goal is appended
    with pytest.raises(ConfigError, match=said):
        TrainConfig.for_dataset(toy_dataset(goals=goals), **given)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"position": [0, 99]}, r"position \(--window.position\) names columns"),
        ({"tool": [99]}, "tool names columns"),
        ({"tool": [0.5]}, "at 'tool', must be a list of whole numbers"),
        ({"tool": 5}, "at 'tool', must be a list of whole numbers"),
        ("ab", "must be a table"),
    ],
)
def test_names_of_columns_are_checked_with_the_data(columns: Any, said: str) -> None:
    flat = changed(toy_dataset(), metadata={"observation_columns": columns})
    with pytest.raises(ConfigError, match=said):
        TrainConfig.for_dataset(flat)


def test_columns_that_only_the_appended_goal_has_are_no_place_to_push_from() -> None:
    window = {"position": (4, 5), "velocity": (2, 3)}
    config = TrainConfig.for_dataset(toy_dataset(), window=window)
    assert config.execution.executor == "inverse-dynamics"


def test_given_numbers_become_of_the_annotated_type() -> None:
    given = {"stride": np.int64(2), "position": [0, 1]}
    window = TrainConfig.for_dataset(toy_dataset(), window=given).window
    assert (window.stride, window.position) == (2, (0, 1))
    assert type(window.stride) is int


@pytest.mark.parametrize("companion", [None, False])
def test_companions_can_be_switched_off(companion: Any) -> None:
    flat = rewarded(toy_dataset(goals=False))
    assert TrainConfig.for_dataset(flat, value=companion).value is None
    assert TrainConfig.for_dataset(flat, value={}).value is not None


def test_goals_that_training_does_not_pin_leave_a_planner_that_works() -> None:
    flat = toy_dataset(run_length=100)
    config = TrainConfig.for_dataset(
        flat, window={"hindsight_goal": "none"}, network={"dim": 8}
    )
    policy = DiffuserPolicy(*untrained(config, flat)[:2])
    seen = observe()
    plan = policy.plan(seen)
    np.testing.assert_allclose(plan.observations[0, 0], seen["observation"], atol=1e-5)


@pytest.mark.parametrize("goals", [False, True])
def test_plans_of_a_narrow_network_are_long_enough_for_its_norms(goals: bool) -> None:
    flat = toy_dataset(3, 3, goals=goals)
    for dim, steps in ((8, 4), (16, 2)):
        network = {"architecture": "unet", "dim": dim, "multipliers": (1, 2)}
        config = TrainConfig.for_dataset(flat, network=network)
        assert config.window.num_planning_steps == steps
        assert untrained(config, flat)


@pytest.mark.parametrize("length", [2, 3, 40])
@pytest.mark.parametrize("architecture", ["unet", "mlp", "transformer"])
@pytest.mark.parametrize("window", [{}, {"stride": 7}, {"hindsight_goal": "none"}])
def test_plans_to_a_goal_have_two_planning_steps_or_more(
    window: dict[str, Any], architecture: str, length: int
) -> None:
    """However short the episodes are."""
    network: dict[str, Any] = {"architecture": architecture}
    if architecture == "unet":
        network["multipliers"] = (1,)
    flat = toy_dataset(3, length)
    config = TrainConfig.for_dataset(flat, window=window, network=network)
    assert config.window.min_planning_steps >= 2
    assert policy_config(config, flat)


def test_data_without_bounds_of_actions_get_settings() -> None:
    """Training says what is missing."""
    flat = toy_dataset(run_length=100)
    facts = {k: v for k, v in flat.metadata.items() if k != "action_low"}
    config = TrainConfig.for_dataset(
        FlatDataset(flat.fields, flat.run_starts, facts), network={"dim": 8}
    )
    assert config.execution.executor == "inverse-dynamics"


@pytest.mark.parametrize("goals", [False, True])
def test_a_transformer_is_small_and_makes_plans_of_any_length(goals: bool) -> None:
    flat = toy_dataset(run_length=100, goals=goals)
    network = {"architecture": "transformer"}
    choice = choose(flat, {"network": network})
    config = choice.config
    assert (config.network.dim, config.network.depth) == (128, 3)
    assert "network     a temporal transformer" in choice.reasons
    assert (config.window.min_horizon is not None) == goals
    assert config.planner.temperature == (1.0 if goals else 0.0)
    odd = TrainConfig.for_dataset(flat, network=network, window={"horizon": 37})
    assert odd.window.horizon == 37
    assert untrained(odd, flat)


def test_a_network_of_one_length_gets_plans_of_one_length() -> None:
    flat = toy_dataset(run_length=100)
    network = {"architecture": "mlp", "dim": 16, "num_denoising_steps": 4}
    config = TrainConfig.for_dataset(flat, network=network)
    assert config.planner.horizon == "fixed"
    assert config.window.min_horizon is None
    odd = TrainConfig.for_dataset(flat, network=network, window={"horizon": 37})
    assert odd.window.horizon == 37
    made, networks, _ = untrained(config, flat)
    assert DiffuserPolicy(made, networks)
    stuck = TrainConfig.for_dataset(
        flat, network=network, execution={"replan_interval": 5}
    )
    with pytest.raises(ConfigError, match="a full horizon away forever"):
        DiffuserPolicy(*untrained(stuck, flat)[:2])


# --- it works -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "flat",
    [
        toy_dataset(),
        toy_dataset(goals=False),
        rewarded(toy_dataset(goals=False)),
        without_velocity(toy_dataset()),
        lengthened([30, 3, 2], goals=True),
        lengthened([5, 3, 2], goals=False),
        toy_dataset(2, 300),
    ],
    ids=["goals", "none", "rewards", "position", "short", "shorter", "long"],
)
def test_what_is_chosen_trains_and_acts(flat: FlatDataset, tmp_path: Path) -> None:
    config = TrainConfig.for_dataset(flat, **SMALL)
    Trainer(config, flat, tmp_path, device="cpu").run(progress=False)
    policy = DiffuserPolicy.from_pretrained(tmp_path)
    assert check_policy(policy, policy.observation_space, policy.action_space)


@pytest.fixture(scope="module")
def recorded() -> str:
    rng = np.random.default_rng(0)
    episode = make_episode(rng.normal(size=(21, 4)), rng.normal(size=(21, 2)))
    name = "test/chosen-v0"
    write_minari(name, [episode] * 3, env=SpacesOnly(), collection={}, overwrite=True)
    return name


def test_the_command_line_says_what_it_chose_and_can_stop_there(
    recorded: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    arguments = ["train", "--dataset", recorded, "--output", str(out), "--dry-run"]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "60 steps in 3 runs of 20 to 20" in shown
    for subject in ("plans", "normalizer", "training", "ranking", "executor"):
        assert f"\n  {subject} " in shown
    assert not out.exists()


@pytest.mark.parametrize("way", [["--dry-run"], []])
def test_short_runs_are_noted_and_other_warnings_left_alone(
    way: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flat = lengthened([30, 3], goals=False)
    monkeypatch.setattr(minari, "load_flat", lambda *_, **__: flat)

    def warned(*arguments: Any) -> Any:
        warnings.warn("of somebody else", DeprecationWarning, stacklevel=1)
        return policy_config(*arguments)

    monkeypatch.setattr("diffuser_policy.training.trainer.policy_config", warned)
    words = ["train", "--dataset", "my/short-v0", "--output", str(tmp_path / "out")]
    words += ["--window.padding", "none", "--window.horizon", "8", *way]
    words += ["--num-steps", "1", "--batch-size", "2", "--network.dim", "8"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert main(words) == 0
    said = capsys.readouterr().err
    assert said.count("note: 1 of 2 runs are shorter than a window") == 1
    assert "somebody else" not in said
    assert "of somebody else" in [str(each.message) for each in caught]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DeprecationWarning):
            main([*words[:-6], "--output", str(tmp_path / "other")])


def test_options_win_over_what_is_chosen(recorded: str) -> None:
    words = [
        *(
            "--dataset",
            recorded,
            "--batch-size",
            "3",
            "--window.normalizer",
            "gaussian",
        ),
        *("--window.no-actions", "--planner.num-candidates", "2", "--seed", "9"),
        *("--inverse-dynamics.width", "8", "--execution.executor", "inverse-dynamics"),
        *("--network.dim", "16", "--no-time-to-goal", "--value.discount", "0.5"),
    ]
    config = TrainSettings.parse(words).choice(load_flat(recorded)).config
    assert config.optimization.batch_size == 3
    assert config.window.normalizer == "gaussian"
    assert not config.window.actions
    assert config.planner.num_candidates == 2
    assert config.seed == 9
    assert config.inverse_dynamics is not None
    assert config.inverse_dynamics.width == 8
    assert config.network.dim == 16
    assert config.time_to_goal is None
    assert config.value is not None
    assert config.value.discount == 0.5


def test_options_without_effect_are_refused(recorded: str) -> None:
    flat = load_flat(recorded)

    def choice(*words: str) -> Any:
        return TrainSettings.parse(["--dataset", recorded, *words]).choice(flat)

    with pytest.raises(ConfigError, match="no effect without --time-to-goal"):
        choice("--no-time-to-goal", "--time-to-goal.width", "8")
    with pytest.raises(ConfigError, match="depth has no effect with architecture"):
        choice("--network.depth", "2")
    with pytest.raises(ConfigError, match="tempo has no effect"):
        choice("--execution.tempo", "0.5")


@pytest.mark.parametrize("preset", [(), ("walker2d-medium-paper",)])
@pytest.mark.parametrize(
    "words", ["--planner.horizon shrinking", "--planner.goal-velocity"]
)
def test_settings_for_goals_are_refused_on_data_without_any(
    preset: tuple[str, ...], words: str
) -> None:
    flat = toy_dataset(goals=False)
    settings = TrainSettings.parse([*preset, "--dataset", "my/own-v0", *words.split()])
    with pytest.raises(ConfigError, match="has no effect on a planner without goals"):
        settings.choice(flat)
