"""Settings: plain data that survives JSON, and refuses what it doesn't know."""

from __future__ import annotations

import json
import math
from typing import Any, get_args

import pytest

from diffuser_policy import choices
from diffuser_policy.benchmark.engines import ENGINES
from diffuser_policy.benchmark.report.tables import EXECUTORS
from diffuser_policy.build import SAMPLERS
from diffuser_policy.columns.normalizers import NORMALIZERS
from diffuser_policy.config import (
    RETIRED,
    ClassifierConfig,
    ExecutionConfig,
    NetworkConfig,
    OptimizationConfig,
    PlannerConfig,
    PolicyConfig,
    TimeToGoalConfig,
    TrainConfig,
    WindowConfig,
)
from diffuser_policy.diffusion.guidance import PLACEMENTS
from diffuser_policy.diffusion.schedule import SPACINGS
from diffuser_policy.errors import (
    CheckpointError,
    ConfigError,
    DiffuserPolicyError,
    UnknownNameError,
)
from diffuser_policy.networks.runtime import RUNNERS
from diffuser_policy.settings import from_json, to_json
from diffuser_policy.testing import toy_config, toy_policy
from diffuser_policy.training.presets import PRESETS, preset
from tests.policy_helpers import untrained_policy

EVERY = [*PRESETS]


@pytest.mark.parametrize("name", EVERY)
def test_presets_survive_json(name: str) -> None:
    config = preset(name)
    assert from_json(TrainConfig, json.loads(json.dumps(to_json(config)))) == config


@pytest.mark.parametrize(
    ("maze", "horizon", "num_denoising_steps"),
    [("umaze", 128, 64), ("medium", 256, 256), ("large", 384, 256)],
)
def test_the_papers_presets_are_the_released_hyperparameters(
    maze: str, horizon: int, num_denoising_steps: int
) -> None:
    config = preset(f"maze2d-{maze}-paper")
    window, network, optimization = config.window, config.network, config.optimization
    assert (window.horizon, window.stride, window.actions) == (horizon, 1, True)
    assert (window.normalizer, window.hindsight_goal) == ("limits", "observation")
    assert (network.dim, network.multipliers) == (32, (1, 4, 8))
    assert network.num_denoising_steps == num_denoising_steps
    assert network.prediction_target == "clean"
    assert network.clip is None  # with the limits normalizer: yes
    assert (optimization.batch_size, optimization.num_accumulations) == (32, 2)
    assert optimization.learning_rate == 2e-4
    assert optimization.learning_rate_schedule == "constant"
    assert (optimization.ema_decay, optimization.ema_interval) == (0.995, 10)
    assert (optimization.ema_start, optimization.num_steps) == (2000, 2_000_000)
    assert optimization.max_gradient_norm is None
    assert (config.planner.sampler, config.planner.horizon) == ("ddpm", "fixed")
    assert config.planner.num_sampling_steps is None
    assert config.planner.goal_velocity


@pytest.mark.parametrize(
    ("data", "horizon", "multipliers", "attention", "guidance"),
    [
        ("hopper-medium", 32, (1, 2, 4, 8), False, (0.1, 2)),
        ("walker2d-medium-expert", 32, (1, 2, 4, 8), False, (0.1, 2)),
        ("hopper-medium-expert", 32, (1, 2, 4, 8), False, (1e-4, 4)),
        ("halfcheetah-medium-replay", 4, (1, 4, 8), True, (1e-3, 4)),
    ],
)
def test_the_papers_robots_have_the_released_hyperparameters(
    data: str,
    horizon: int,
    multipliers: tuple[int, ...],
    attention: bool,
    guidance: tuple[float, int],
) -> None:
    config = preset(f"{data}-paper")
    window, network, planner = config.window, config.network, config.planner
    assert config.dataset == f"diffuser/{data}-v1"
    assert (window.horizon, window.normalizer, window.padding) == (
        (horizon, "gaussian", "repeat")
    )
    assert (network.dim, network.multipliers, network.attention) == (
        (32, multipliers, attention)
    )
    assert (network.num_denoising_steps, network.first_action_weight) == (20, 10)
    assert config.value is not None
    assert config.value.multipliers == multipliers
    assert (config.value.discount, config.value.termination_penalty) == (0.997, 100)
    assert (planner.sampler, planner.num_candidates) == ("ddpm", 64)
    assert (planner.guide_scale, planner.guide_cutoff) == guidance
    assert (planner.guide_placement, planner.guide_steps) == ("noisy", 2)
    assert config.execution.replan_interval == 1


@pytest.mark.parametrize("name", EVERY)
def test_every_presets_window_fits_its_network(name: str) -> None:
    config = preset(name)
    multiple = 2 ** (len(config.network.multipliers) - 1)
    if config.network.architecture == "objects":
        multiple = config.network.patch
    assert config.window.num_planning_steps % multiple == 0


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'multi2d-large'"):
        preset("multi2d-lage")


@pytest.mark.parametrize("parts", [{}, {"time_to_goal": None}, {"seed": 5}])
def test_optional_parts_survive_json(parts: dict[str, Any]) -> None:
    config = toy_config(**parts)
    data = json.loads(json.dumps(to_json(config)))
    rebuilt = from_json(TrainConfig, data)
    assert rebuilt == config
    assert isinstance(rebuilt.network.multipliers, tuple)


def test_settings_left_out_take_their_defaults() -> None:
    assert from_json(NetworkConfig, {"dim": 16}) == NetworkConfig(dim=16)


def test_integers_are_accepted_as_floats() -> None:
    assert from_json(ExecutionConfig, {"position_gain": 10}).position_gain == 10


@pytest.mark.parametrize(
    ("cls", "data", "message"),
    [
        (NetworkConfig, {"dims": 8}, "Did you mean 'dim'"),
        (NetworkConfig, {"dim": "wide"}, "must be a whole number, got 'wide'"),
        (NetworkConfig, {"dim": 8.5}, "must be a whole number"),
        (NetworkConfig, {"dim": True}, "must be a whole number"),
        (NetworkConfig, {"clip": 1}, "must be true or false"),
        (NetworkConfig, {"multipliers": [1, "2"]}, "must be a list of whole"),
        (NetworkConfig, {"prediction_target": "cleen"}, "Did you mean 'clean'"),
        (PlannerConfig, {"num_sampling_steps": "all"}, "must be a whole number"),
        (PlannerConfig, {"horizon": None}, "must be '"),
        (TrainConfig, {"dataset": "x/y-v0", "window": {"horizont": 8}}, "'horizon'"),
    ],
)
def test_foreign_settings_are_refused(
    cls: type[Any], data: dict[str, Any], message: str
) -> None:
    with pytest.raises(DiffuserPolicyError, match=message):
        from_json(cls, data)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WindowConfig(horizon=0), "horizon must be positive"),
        (lambda: WindowConfig(stride=0), "stride must be positive"),
        (lambda: WindowConfig(horizon=10, stride=3), "multiple of the stride: got 10"),
        (
            lambda: WindowConfig(horizon=12, min_horizon=10, stride=3),
            "min_horizon must be a multiple of the stride",
        ),
        (lambda: WindowConfig(horizon=12, min_horizon=16), r"in 1\.\.horizon, got 16"),
        (lambda: WindowConfig(horizon=12, min_horizon=0), r"in 1\.\.horizon, got 0"),
        (lambda: NetworkConfig(architecture="objects"), "set residual=True"),
        (lambda: NetworkConfig(loss_floor=0.0), "loss_floor must be positive"),
        (lambda: NetworkConfig(loss_floor=float("nan")), "loss_floor must be a finite"),
        (lambda: NetworkConfig(depth=0), "depth must be positive"),
        (lambda: NetworkConfig(patch=0), "patch must be positive"),
        (lambda: PlannerConfig(ranking_weight=float("nan")), "ranking_weight must be"),
        (lambda: PlannerConfig(ranking_weight=float("inf")), "ranking_weight must be"),
        (lambda: PlannerConfig(guide_scale=float("inf")), "guide_scale must be a fini"),
        (lambda: TimeToGoalConfig(expectile=1.0), "expectile"),
        (lambda: TimeToGoalConfig(max_steps=0), "max_steps must be positive"),
        (lambda: OptimizationConfig(batch_size=0), "batch_size must be positive"),
        (lambda: OptimizationConfig(learning_rate=-1), "learning_rate must be"),
        (lambda: OptimizationConfig(ema_decay=1.0), "ema_decay"),
        (lambda: OptimizationConfig(ema_interval=0), "ema_interval must be positive"),
    ],
)
def test_impossible_settings_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_planning_steps_are_counted_in_strides() -> None:
    window = WindowConfig(horizon=24, min_horizon=6, stride=3)
    assert (window.num_planning_steps, window.min_planning_steps) == (8, 2)
    assert WindowConfig(horizon=24, stride=3).min_planning_steps == 8


def test_architectures_that_there_are_not_are_refused() -> None:
    """They would be built as the one that is left over."""
    with pytest.raises(UnknownNameError, match="Did you mean 'objects'"):
        NetworkConfig(architecture="object")  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="Did you mean 'pairs'"):
        ClassifierConfig(architecture="pair")  # type: ignore[arg-type]


@pytest.mark.parametrize("setting", ["horizon_offset", "guide_variance"])
def test_retired_settings_load_only_with_the_value_that_changes_nothing(
    setting: str,
) -> None:
    config = toy_policy().config
    saved = json.loads(json.dumps(config.to_json()))
    saved["planner"][setting] = RETIRED[setting]
    assert PolicyConfig.from_json(saved).planner == config.planner
    saved["planner"][setting] = 6
    with pytest.raises(CheckpointError, match=f"{setting}=6 is a setting of an earl"):
        PolicyConfig.from_json(saved)


def test_equal_candidates_that_were_saved_load_as_one() -> None:
    saved = json.loads(json.dumps(toy_policy().config.to_json()))
    saved["planner"] |= {"temperature": 0.0, "num_candidates": 4}
    assert PolicyConfig.from_json(saved).planner.num_candidates == 1


@pytest.mark.parametrize(
    ("table", "names"),
    [
        (NORMALIZERS, choices.NormalizerName),
        (SAMPLERS, choices.SamplerName),
        (SPACINGS, choices.Spacing),
        (PLACEMENTS, choices.Placement),
        (RUNNERS, choices.Acceleration),
        (EXECUTORS, choices.ExecutorName),  # of reports
        (ENGINES, choices.EngineName),
    ],
)
def test_every_choice_has_its_class(table: dict[str, Any], names: Any) -> None:
    assert table.keys() == {*get_args(names)}


def test_infinity_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"learning_rate must be a finite number.*inf"
    ):
        OptimizationConfig(learning_rate=math.inf)


def test_names_that_settings_do_not_offer_are_refused() -> None:
    with pytest.raises(UnknownNameError, match=r"value of executor.*'pursuit'"):
        ExecutionConfig(executor="persuit")  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="value of step_spacing"):
        PlannerConfig(step_spacing="even")  # type: ignore[arg-type]


IDLE: list[tuple[dict[str, Any], str]] = [
    ({"tempo": 0.7}, "tempo has no effect with executor='tracking'.*executor='path'"),
    ({"executor": "path", "position_gain": 4.0}, "position_gain .*'tracking' or exec"),
    ({"executor": "actions", "lookahead": 3.0}, "lookahead has no effect with exec"),
    ({"steadiness": 0.1}, "steadiness .* replan_interval=None.*set replan_interval"),
    ({"warm_start": 0.5}, "warm_start has no effect with replan_interval=None"),
    ({"warm_start_steps": 2}, "warm_start_steps has no effect with warm_start=None"),
    ({"horizon_scale": 2.0}, "horizon_scale has no effect with horizon='fixed'"),
    ({"ranking_weight": 2.0}, "ranking_weight has no effect with ranking='smoothness'"),
    ({"ranking_tolerance": 2.0}, "ranking_tolerance .*set ranking='guide'"),
    ({"guide_scale": 2.0}, r"guide_scale has no effect without a guide.*with_guide\("),
    ({"min_guided_steps": 2}, "min_guided_steps has no effect without a guide"),
    ({"guide_scale": 0.0}, "guide_scale has no effect without a guide"),
    ({"guide_cutoff": 0}, "guide_cutoff has no effect without a guide"),
    ({"executor": "path", "position_gain": 0.0}, "position_gain .*'tracking' or exec"),
]


@pytest.mark.parametrize(("settings", "message"), IDLE)
def test_settings_without_an_effect_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        toy_policy(horizon="fixed", ranking="smoothness", **settings)


@pytest.mark.parametrize(
    "settings", [{"warm_start": 0.5}, {"steadiness": 0.1}, {"replan_deviation": 0.5}]
)
def test_settings_for_the_rest_of_a_plan_are_refused_where_there_is_none(
    settings: dict[str, Any],
) -> None:
    single = untrained_policy("Pendulum-v1", horizon=1)
    with pytest.raises(ConfigError, match="has no effect where plans are a single act"):
        single.with_settings(replan_interval=1, **settings)
    single.with_settings(replan_interval=1, **dict.fromkeys(settings))


def test_to_keep_a_plan_of_a_single_action_for_longer_is_refused() -> None:
    single = untrained_policy("Pendulum-v1", horizon=1)
    message = "replan_interval has no effect where plans are a single action"
    with pytest.raises(ConfigError, match=message):
        single.with_settings(replan_interval=4)
    for happens_anyway in (1, None):
        single.with_settings(replan_interval=happens_anyway)
    untrained_policy("Pendulum-v1", horizon=4).with_settings(replan_interval=4)


def test_saved_settings_without_an_effect_are_no_mistake() -> None:
    execution = ExecutionConfig(executor="tracking", lookahead=30.0, tempo=0.7)
    policy = toy_policy(toy_config(execution=execution))
    assert policy.with_settings(executor="pursuit").config.execution.lookahead == 30.0
    assert (
        policy.with_settings(warm_start=None, steadiness=None).config == policy.config
    )
