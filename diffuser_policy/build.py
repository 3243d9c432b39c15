"""The one module that turns settings into objects.

    PolicyConfig → PlannerNetworks (weights) → Planner, Executor

The columns, networks, diffusion and planning take plain arguments. Policies, trainings
and checkpoints hold the settings, and have their parts built here.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, assert_never

import torch
from torch import Tensor, nn

from diffuser_policy.choices import ExecutorName, SamplerName
from diffuser_policy.columns.features import (
    Featurizer,
    FeaturizerError,
    Identity,
    make_featurizer,
    who_lacks_it,
)
from diffuser_policy.columns.normalizers import NORMALIZERS, Normalizer
from diffuser_policy.config import (
    ClassifierConfig,
    CriticConfig,
    InverseDynamicsConfig,
    LandmarksConfig,
    PlannerConfig,
    PolicyConfig,
    TimeToGoalConfig,
    ValueConfig,
)
from diffuser_policy.diffusion.denoiser import Denoiser
from diffuser_policy.diffusion.guidance import PLACEMENTS, Guidance
from diffuser_policy.diffusion.sampler import (
    DDIMSampler,
    DDPMSampler,
    DPMSolverSampler,
    Sampler,
)
from diffuser_policy.diffusion.schedule import NoiseSchedule, share_of
from diffuser_policy.errors import ConfigError
from diffuser_policy.guides.guide import Guide
from diffuser_policy.needs import PLANNING_NEEDS
from diffuser_policy.networks.classifiers import PairClassifier, StateClassifier
from diffuser_policy.networks.critic import Critic
from diffuser_policy.networks.inverse_dynamics import InverseDynamics
from diffuser_policy.networks.landmarks import Landmarks
from diffuser_policy.networks.mlp import ResidualMLP
from diffuser_policy.networks.objects import ObjectTransformer
from diffuser_policy.networks.time_to_goal import TimeToGoal
from diffuser_policy.networks.transformer import TemporalTransformer
from diffuser_policy.networks.unet import StartConditionedUNet, TemporalUNet
from diffuser_policy.networks.value import ValueNetwork
from diffuser_policy.numerics import within_memory
from diffuser_policy.planning.executors import (
    Executor,
    FeaturesExecutor,
    InverseDynamicsExecutor,
    PathExecutor,
    PlannedActions,
    PursuitExecutor,
    TrackingExecutor,
)
from diffuser_policy.planning.horizons import Horizons
from diffuser_policy.planning.planner import Planner
from diffuser_policy.planning.ranking import (
    CriticRanking,
    FeasibilityRanking,
    FirstRanking,
    GuideRanking,
    Ranking,
    SmoothnessRanking,
    SumRanking,
    TimeToGoalRanking,
    has_feasibility,
)
from diffuser_policy.planning.routes import Routes

SAMPLERS: dict[SamplerName, type[Sampler]] = {
    "ddim": DDIMSampler,
    "ddpm": DDPMSampler,
    "dpm": DPMSolverSampler,
}
STEERING: dict[ExecutorName, type[TrackingExecutor]] = {
    "tracking": TrackingExecutor,
    "pursuit": PursuitExecutor,
    "path": PathExecutor,
}


class PlannerNetworks(nn.Module):
    """All weights of a planner, which model.safetensors holds."""

    def __init__(
        self,
        denoiser: Denoiser,
        normalizer: Normalizer,
        *,
        time_to_goal: TimeToGoal | None = None,
        value: ValueNetwork | None = None,
        classifier: StateClassifier | None = None,
        inverse_dynamics: InverseDynamics | None = None,
        critic: Critic | None = None,
        landmarks: Landmarks | None = None,
    ) -> None:
        """Combine the parts."""
        super().__init__()
        self.denoiser = denoiser
        self.normalizer = normalizer
        self.time_to_goal = time_to_goal
        self.value = value
        self.classifier = classifier
        self.inverse_dynamics = inverse_dynamics
        self.critic = critic
        self.landmarks = landmarks

    def with_denoiser(self, denoiser: Denoiser) -> PlannerNetworks:
        """Return networks that share all but the denoiser."""
        shared: dict[str, Any] = dict(self.named_children())
        return PlannerNetworks(**shared | {"denoiser": denoiser})

    @property
    def fingerprint(self) -> int:
        """A number that differs between planners with different weights.

        Computed anew, in a few milliseconds: training changes weights in place.
        """
        return weight_checksum(self.normalizer, self.denoiser)


def weight_checksum(*modules: nn.Module) -> int:
    """Return a checksum of weights, which tells one planner from another."""
    checksum = 0
    for module in modules:
        for tensor in module.state_dict().values():
            # As bytes: NumPy has no bfloat16.
            data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            checksum = zlib.crc32(data.numpy(), checksum)
    return checksum


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's global CPU generator, and restore it afterwards.

    Networks are built in it: they draw their initial weights from that generator. They
    are made on the CPU and in single precision, whatever the user's defaults are.
    """
    usual = torch.get_default_dtype()
    with (
        torch.random.fork_rng(devices=[]),
        torch.device("cpu"),
        torch.inference_mode(False),  # such weights could not be trained
    ):
        torch.default_generator.manual_seed(seed)
        try:
            torch.set_default_dtype(torch.float32)
            yield
        finally:
            torch.set_default_dtype(usual)


def config_featurizer(config: PolicyConfig) -> Featurizer:
    """Return the featurizer that makes a planner's planning columns.

    Raises:
        FeaturizerError: It is not registered here, is broken, or has changed since the
            planner was trained.
    """
    name, layout, spaces = config.window.features, config.layout, config.spaces
    if name is None:
        return Identity(spaces.planned_size)
    featurizer = make_featurizer(name, "This planner")
    sizes = featurizer.observation_size, featurizer.num_columns
    columns = {key: tuple(value) for key, value in featurizer.columns.items()}
    ours = {key: layout.aliases.get(key, value) for key, value in columns.items()}
    if (
        sizes != (spaces.observation_size, layout.observation_dim)
        or ours != columns
        or tuple(map(tuple, featurizer.objects)) != layout.objects
    ):
        raise FeaturizerError(
            f"The planner was trained with another version of the featurizer {name!r}: "
            f"from {spaces.observation_size} observed to {layout.observation_dim} "
            f"planning columns, {dict(layout.aliases)}; here it goes from {sizes[0]} "
            f"to {sizes[1]}, {columns}. Install the version that it was trained with, "
            f"or train it again."
        )
    return featurizer


def build_network(
    config: PolicyConfig,
) -> (
    TemporalUNet
    | StartConditionedUNet
    | ResidualMLP
    | TemporalTransformer
    | ObjectTransformer
):
    """Return the untrained denoising network that the settings describe.

    Raises:
        ConfigError: A layout without the columns that the architecture needs.
        HorizonError: The network cannot represent the horizon.
    """
    settings, layout = config.network, config.layout
    if settings.architecture == "objects":
        named = "position" in layout.aliases
        return ObjectTransformer(
            layout.transition_dim,
            objects=_object_columns(config),
            position=layout.columns("position") if named else (),
            num_planning_steps=config.window.num_planning_steps,
            dim=settings.dim,
            depth=settings.depth,
            patch=settings.patch,
        )
    if settings.architecture == "mlp":
        return ResidualMLP(
            layout.transition_dim,
            num_planning_steps=config.window.num_planning_steps,
            dim=settings.dim,
            depth=settings.depth,
        )
    if settings.architecture == "transformer":
        return TemporalTransformer(
            layout.transition_dim, dim=settings.dim, depth=settings.depth
        )
    unet = StartConditionedUNet if settings.residual else TemporalUNet
    network = unet(
        layout.transition_dim,
        dim=settings.dim,
        multipliers=settings.multipliers,
        kernel_size=settings.kernel_size,
        attention=settings.attention,
    )
    network.check_horizon(config.window.num_planning_steps)
    return network


def _object_columns(config: PolicyConfig) -> list[list[int]]:
    """Return the columns of each object in a trajectory."""
    first = config.layout.action_dim
    return [[first + column for column in each] for each in config.layout.objects]


def build_networks(config: PolicyConfig, seed: int = 0) -> PlannerNetworks:
    """Return untrained networks and an identity normalizer of the right sizes.

    Args:
        config: Settings of a planner.
        seed: Of the initial weights.

    Raises:
        HorizonError: The network cannot represent the horizon.
        MemoryLimitError: The network does not fit into memory.
    """
    advice = "Make the network smaller: dim, multipliers, width."
    with within_memory("The network", advice), seeded(seed):
        return _untrained(config)


def _untrained(config: PolicyConfig) -> PlannerNetworks:
    settings = config.network
    denoiser = Denoiser(
        build_network(config),
        NoiseSchedule(settings.num_denoising_steps),
        prediction_target=settings.prediction_target,
        clip=config.window.normalizer == "limits"
        if settings.clip is None
        else settings.clip,
        residual=settings.residual,
        state=config.layout.observations,
        loss_floor=settings.loss_floor,
        first_weights=_first_weights(config),
    )
    normalizer = NORMALIZERS[config.window.normalizer].blank(
        config.layout.transition_dim
    )
    return PlannerNetworks(denoiser, normalizer, **_companions(config))


def _first_weights(config: PolicyConfig) -> Tensor | None:
    """Return the weights of errors at the first planning step, if they differ."""
    weight, layout = config.network.first_action_weight, config.layout
    if weight == 1 or not layout.action_dim:
        return None
    weights = torch.ones(layout.transition_dim)
    weights[layout.actions] = weight
    return weights


def _companions(config: PolicyConfig) -> dict[str, Any]:
    """Return the untrained networks beside the denoiser, by name."""
    return {
        name: build(config, settings)
        for name, build in BUILDERS.items()
        if (settings := getattr(config, name)) is not None
    }


def num_weights(config: PolicyConfig) -> int:
    """Return how many weights the networks have, without allocating any.

    Raises:
        ConfigError: As `build_networks`.
    """
    with torch.device("meta"):
        parts: list[nn.Module] = [build_network(config), *_companions(config).values()]
    return num_parameters(*parts)


def num_parameters(*modules: nn.Module) -> int:
    """Return how many weights some networks have."""
    return sum(part.numel() for module in modules for part in module.parameters())


def build_time_to_goal(config: PolicyConfig, settings: TimeToGoalConfig) -> TimeToGoal:
    """Return an untrained time-to-goal network for a planner."""
    return TimeToGoal(
        config.layout.observation_dim,
        len(config.layout.columns("goal")),
        width=settings.width,
        max_steps=settings.max_steps,
    )


def build_inverse_dynamics(
    config: PolicyConfig, settings: InverseDynamicsConfig
) -> InverseDynamics:
    """Return an untrained inverse-dynamics network for a planner."""
    return InverseDynamics(
        config.layout.observation_dim,
        len(config.spaces.action_low),
        width=settings.width,
        max_steps=settings.max_steps,
    )


def build_critic(config: PolicyConfig, settings: CriticConfig) -> Critic:
    """Return an untrained critic for a planner."""
    layout = config.layout
    return Critic(layout.observation_dim, layout.action_dim, width=settings.width)


def build_landmarks(config: PolicyConfig, settings: LandmarksConfig) -> Landmarks:
    """Return landmarks for a planner that are not placed yet."""
    return Landmarks(settings.num, len(config.layout.columns("goal")))


def build_classifier(
    config: PolicyConfig, settings: ClassifierConfig
) -> StateClassifier:
    """Return an untrained classifier of a planner's states.

    Raises:
        ConfigError: Settings without labels to predict.
    """
    layout = config.layout
    if settings.architecture == "pairs":
        named = "position" in layout.aliases
        return PairClassifier(
            layout.transition_dim,
            settings.classes,
            objects=_object_columns(config),
            place=len(layout.columns("position")) if named else 3,
        )
    return StateClassifier(
        layout.transition_dim,
        settings.classes,
        width=settings.width,
        depth=settings.depth,
    )


def build_value_network(config: PolicyConfig, settings: ValueConfig) -> ValueNetwork:
    """Return an untrained value network for a planner.

    Raises:
        ConfigError: Widths that the architecture does not allow, or a flattening
            network for plans of several lengths.
    """
    window = config.window
    flatten, longest = settings.pooling == "flatten", window.num_planning_steps
    if flatten and window.min_planning_steps != longest:
        raise ConfigError(
            f"pooling='flatten' values plans of one length, and this planner makes "
            f"plans of {window.min_planning_steps} to {longest} "
            f"planning steps. Use pooling='mean'."
        )
    return ValueNetwork(
        config.layout.transition_dim,
        dim=settings.dim,
        multipliers=settings.multipliers,
        kernel_size=settings.kernel_size,
        num_planning_steps=longest if flatten else None,
    )


# In the order in which they draw their initial weights.
BUILDERS: dict[str, Callable[[PolicyConfig, Any], nn.Module]] = {
    "time_to_goal": build_time_to_goal,
    "value": build_value_network,
    "classifier": build_classifier,
    "inverse_dynamics": build_inverse_dynamics,
    "critic": build_critic,
    "landmarks": build_landmarks,
}


def build_planner(
    config: PolicyConfig, networks: PlannerNetworks, featurizer: Featurizer
) -> Planner:
    """Return the planner that the settings describe.

    Args:
        config: Settings.
        networks: Weights.
        featurizer: Makes its planning columns; see `config_featurizer`.

    Raises:
        ConfigError: A setting without the network, guide or setting that it needs.
    """
    settings, window = config.planner, config.window
    horizons = Horizons(
        window.horizon,
        layout=config.layout,
        normalizer=networks.normalizer,
        shortest=window.min_horizon,
        stride=window.stride,
        multiple=networks.denoiser.horizon_multiple,
        least=networks.denoiser.min_planning_steps,
        choice=settings.horizon,
        scale=settings.horizon_scale,
        time_to_goal=networks.time_to_goal,
    )
    routes = _routes(config, networks)
    if config.spaces.has_goal and config.execution.replan_interval is not None:
        _check_arrival(config, horizons)
    guide = config.guide.bind(networks) if config.guide is not None else None
    guided = guide is not None and settings.guide_scale != 0.0
    available = networks.denoiser.schedule.num_denoising_steps
    num_steps = settings.num_sampling_steps
    if guided and num_steps is not None:
        num_steps = max(num_steps, min(settings.min_guided_steps, available))
    sampler = SAMPLERS[settings.sampler](
        networks.denoiser,
        num_steps,
        temperature=settings.temperature,
        spacing=settings.step_spacing,
    )
    guidance = None
    if guide is not None:
        guidance = Guidance(
            guide=guide,
            placement=settings.guide_placement or guide.suited_placement,
            scale=settings.guide_scale,
            num_steps=settings.guide_steps,
            cutoff=settings.guide_cutoff,
        )
    if settings.steadiness is not None and settings.ranking == "first":
        raise ConfigError(
            "ranking='first' takes the first new candidate, and steadiness compares it "
            "with the rest of the plan. Use steadiness=None, or another ranking."
        )
    return Planner(
        sampler,
        layout=config.layout,
        normalizer=networks.normalizer,
        horizons=horizons,
        num_candidates=settings.num_candidates,
        ranking=build_ranking(config, networks, guide=guide, featurizer=featurizer),
        guidance=guidance,
        warm_start=settings.warm_start,
        warm_start_steps=_warm_start_steps(settings, sampler, guidance),
        steadiness=settings.steadiness,
        satisficing=settings.satisficing,
        routes=routes,
        pin_goal_velocity=settings.goal_velocity,
        fingerprint=zlib.crc32(
            repr((config.layout, window.stride, window.features)).encode(),
            networks.fingerprint,
        ),
    )


def _routes(config: PolicyConfig, networks: PlannerNetworks) -> Routes | None:
    """Return the routes that find subgoals, if plans lead to some.

    Raises:
        ConfigError: There are no landmarks, or a setting does not go with subgoals.
    """
    settings = config.planner
    if settings.subgoal is None:
        return None
    if networks.landmarks is None:
        raise ConfigError(
            "subgoal needs landmarks, and this planner was trained without them. Use "
            "subgoal=None, or train with --landmarks (TrainConfig.landmarks)."
        )
    if settings.horizon != "predicted":
        raise ConfigError(
            f"subgoal needs horizon='predicted', got {settings.horizon!r}: other "
            "horizons cannot cover a part of the way. Use horizon='predicted', or "
            "subgoal=None."
        )
    if settings.goal_velocity:
        fits = "velocity" in config.layout.aliases
        raise ConfigError(
            f"goal_velocity would stop at every subgoal. Use goal_velocity=False"
            f"{', or subgoal=None' if fits else ''}."
        )
    return Routes(
        networks.landmarks,
        layout=config.layout,
        normalizer=networks.normalizer,
        ahead=settings.subgoal,
    )


def _check_arrival(config: PolicyConfig, horizons: Horizons) -> None:
    """Refuse to replan at intervals with plans that never become shorter.

    Raises:
        ConfigError: All plans have one length, by choice or because the network makes
            no others.
    """
    if not horizons.can_shrink:
        cause = f"plans of {horizons.max_planning_steps} planning steps and no others"
        remedy = "a planner that makes shorter plans"
        if config.network.architecture != "mlp":
            remedy += " (a longer horizon, or a smaller min_horizon)"
    elif config.planner.horizon == "fixed":
        cause, remedy = "horizon='fixed'", "horizon='shrinking'"
        remedy += " or 'predicted'" if horizons.time_to_goal is not None else ""
    else:
        return
    raise ConfigError(
        f"replan_interval with {cause} would keep the goal a full horizon away "
        f"forever. Use {remedy}, or no replan_interval."
    )


def _warm_start_steps(
    settings: PlannerConfig, sampler: Sampler, guidance: Guidance | None
) -> int:
    """Return the denoising steps of a warm start; 1 where there is none.

    Raises:
        ConfigError: More steps than its share of the schedule has, or guidance without
            effect: a single denoising step has no variance to scale a gradient by.
    """
    level, asked, taken = settings.warm_start, settings.warm_start_steps, 1
    guided = guidance is not None and guidance.scale != 0.0
    counts = {"num_sampling_steps": sampler.num_steps}
    if level is not None:
        every = sampler.denoiser.schedule.num_denoising_steps
        left, share = share_of(level, every), share_of(level, sampler.num_steps)
        least = settings.min_guided_steps if guided else 1
        taken = min(max(share, least), left) if asked is None else asked
        if taken > left:
            raise ConfigError(
                f"warm_start={level} leaves {left} of {every} denoising steps: "
                f"warm_start_steps must be 1 to {left}, got {taken}."
            )
        counts[f"warm_start={level}, warm_start_steps"] = taken
    few = [f"{name}={count}" for name, count in counts.items() if count < 2]
    if guidance is None or not guided or not few:
        return taken
    if PLACEMENTS[guidance.placement].scaled_by_variance:
        raise ConfigError(
            f"Guided with guide_placement={guidance.placement!r}, plans need at "
            f"least 2 denoising steps: gradients are scaled by the variance of a step, "
            f"and the last has none. Got {few[0]}. Take more, or "
            f"guide_placement='clean'."
        )
    return taken


def build_ranking(
    config: PolicyConfig,
    networks: PlannerNetworks,
    *,
    guide: Guide | None,
    featurizer: Featurizer,
) -> Ranking:
    """Return the ranking that the settings name.

    A guide chooses among the candidates that the featurizer, or else the time-to-goal
    network, finds feasible. Without a guide, the sum is feasibility alone.

    Raises:
        ConfigError: "time_to_goal" or "critic" without such a network, "guide" without
            a guide, "feasibility" or "sum" without a featurizer that judges it.
    """
    settings, in_time = config.planner, None
    if networks.time_to_goal is not None:
        in_time = TimeToGoalRanking(networks.time_to_goal)
    match settings.ranking:
        case "first":
            return FirstRanking()
        case "smoothness":
            return SmoothnessRanking()
        case "time_to_goal":
            if in_time is None:
                raise ConfigError(
                    "ranking='time_to_goal' needs a time-to-goal network, and this "
                    "planner was trained without one. Use 'smoothness' or 'first'."
                )
            return in_time
        case "critic":
            if not config.layout.action_dim:
                raise ConfigError(
                    "ranking='critic' values planned actions, and this planner plans "
                    "only states. Use 'smoothness' or 'first', or train with "
                    "--window.actions and --critic."
                )
            if networks.critic is None:
                raise ConfigError(
                    "ranking='critic' needs a critic, and this planner has none. Train "
                    "one with --critic of `train` (TrainConfig.critic), or with "
                    "`diffuser-policy train-critic PLANNER`."
                )
            return CriticRanking(networks.critic)
        case "feasibility" | "sum":
            if not has_feasibility(featurizer):
                raise ConfigError(
                    f"ranking={settings.ranking!r} needs a featurizer with a method "
                    f"`feasibility` (--window.features when training), and "
                    f"{who_lacks_it(featurizer)}. Use 'smoothness' or 'first'."
                )
            feasibility = FeasibilityRanking(featurizer)
            if guide is None or settings.ranking == "feasibility":
                return feasibility
            return SumRanking(guide, feasibility, settings.ranking_weight)
        case "guide":
            if guide is None:
                raise ConfigError(
                    "ranking='guide' needs a guide: policy.with_guide(…), --guide, or "
                    "a value network (--value of `train`). To plan without one, name "
                    "another ranking."
                )
            judged = has_feasibility(featurizer)
            among = FeasibilityRanking(featurizer) if judged else in_time
            return GuideRanking(guide, among, settings.ranking_tolerance)
    assert_never(settings.ranking)


def build_executor(
    config: PolicyConfig, networks: PlannerNetworks, featurizer: Featurizer
) -> Executor:
    """Return the executor that the settings describe.

    Args:
        config: Settings.
        networks: Weights.
        featurizer: Makes its planning columns; see `config_featurizer`.

    Raises:
        ConfigError: The plans lack the columns it needs, or the planner the network.
    """
    settings = config.execution
    if settings.executor == "actions":
        return PlannedActions(config.layout, config.window.stride)
    if settings.executor == "features":
        return FeaturesExecutor(featurizer, len(config.spaces.action_low))
    if settings.executor == "inverse-dynamics":
        if networks.inverse_dynamics is None:
            raise ConfigError(
                "executor='inverse-dynamics' needs a network that predicts actions, "
                "and this planner was trained without one. Train with "
                "--inverse-dynamics (TrainConfig.inverse_dynamics), or use another "
                "executor."
            )
        return InverseDynamicsExecutor(
            networks.inverse_dynamics,
            networks.normalizer,
            config.layout,
            lookahead=settings.lookahead,
        )
    others = "'inverse-dynamics'"
    if networks.inverse_dynamics is None:
        others += " (train with --inverse-dynamics, or TrainConfig.inverse_dynamics)"
    if config.layout.action_dim and config.window.stride == 1:
        others += " or 'actions'"
    if callable(getattr(featurizer, "act", None)):
        others += " or 'features'"
    for name in ("position", "velocity"):
        columns = config.layout.aliases.get(name)
        if columns is not None and len(columns) != len(config.spaces.action_low):
            raise ConfigError(
                f"Tracking pushes along every column of {name!r}: it needs as many as "
                f"there are actions ({len(config.spaces.action_low)}), got {columns}. "
                f"Use the executor {others}."
            )
    if settings.executor == "path" and settings.seconds_per_step is None:
        raise ConfigError(
            "executor='path' relates planned velocities to positions: it needs "
            "seconds_per_step, the duration of an env step."
        )
    # An executor takes the settings that have an effect on it, by the same names.
    parts = {
        name: getattr(settings, name)
        for name, (other, values) in PLANNING_NEEDS.items()
        if other == "executor" and settings.executor in values
    }
    return STEERING[settings.executor](config.layout, **parts)
