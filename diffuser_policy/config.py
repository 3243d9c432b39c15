"""Settings of a planner and of its training, as plain data.

Frozen keyword-only dataclasses, written as JSON beside the weights. They name no class
of the package; only `diffuser_policy.build` turns them into objects. `PolicyConfig`
(config.json) holds everything of a saved planner except its weights. `SCHEMA` grows
when the meaning of a saved setting changes; a planner of another schema is refused with
both numbers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from diffuser_policy.choices import (
    Architecture,
    ClassifierArchitecture,
    ExecutorName,
    HindsightGoal,
    HorizonChoice,
    LearningRateSchedule,
    NormalizerName,
    Padding,
    Placement,
    Pooling,
    PredictionTarget,
    RankingName,
    SamplerName,
    Spacing,
)
from diffuser_policy.errors import CheckpointError, ConfigError
from diffuser_policy.settings import (
    from_json,
    json_data,
    positive,
    seed_or_drawn,
    to_json,
    typed,
)

if TYPE_CHECKING:
    from diffuser_policy.columns.layout import TrajectoryLayout
    from diffuser_policy.data.flat import FlatDataset
    from diffuser_policy.guides.guide import Guide
    from diffuser_policy.spaces import SpaceSpec

SCHEMA = 1
LARGEST_SCALE = 1e30  # gradients times it are still float32
MOST_LANDMARKS = 1_000  # whose shortest ways take seconds to find
NARROWEST_CRITIC = 4  # of two units or one, most are dead before they learn
LARGEST_SIZE, DEEPEST = 1_000_000, 1_000  # sizes; what is repeated layer by layer

RETIRED = {"horizon_offset": 0, "guide_variance": None}
"""Planner settings that earlier versions saved, and the only value that still loads."""


RUN_SETTINGS = ("num_steps", "run_length", "max_steps_per_goal")


@dataclass(frozen=True, kw_only=True)
class CollectSettings:
    """What to record, and how."""

    env_id: str
    """Environment, for example diffuser_envs/Multi2D-Large-v1, or module:function."""
    dataset_id: str | None = None
    """Minari id of the dataset; None: the demonstrator's or generator's own, or else
    diffuser/<name of the environment>."""
    num_steps: int | None = None
    """Runs: env steps in total; None: the demonstrator's own number, or a million."""
    run_length: int | None = None
    """Runs: env steps between two resets; None: 10,000. The last run may be shorter."""
    max_steps_per_goal: int | None = None
    """Runs: env steps after which a target is given up; None: the environment's step
    limit."""
    action_noise: float = 0.0
    """Runs: standard deviation of Gaussian noise added to every action."""
    num_episodes: int | None = None
    """Episodes: how many; None: the demonstrator's or generator's own number, or
    1,000."""
    generator: str | None = None
    """Episodes: how they are made, such as kinematic or physics for block stacking;
    None: the demonstrator's first."""
    demonstrator: str | None = None
    """The demonstrator by name, as module:Class or as file.py:Class; None: the
    environment's own."""
    demonstrator_options: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the demonstrator, or of its generator."""
    seed: int = 0
    """Fixes everything random, whatever the number of workers."""
    num_workers: int | None = None
    """Processes; None: one per core. The result does not depend on it."""
    overwrite: bool = False
    """Replace a dataset, or unfinished work, of the same id."""

    def __post_init__(self) -> None:
        """Check ranges, and draw a seed if there is none."""
        object.__setattr__(self, "seed", seed_or_drawn(self.seed))
        typed(self)
        positive(self, *RUN_SETTINGS, "num_episodes", "num_workers")
        if not 0 <= self.action_noise < math.inf:  # NaN is not
            raise ConfigError(
                f"action_noise must be finite and not negative, got "
                f"{self.action_noise}."
            )


@dataclass(frozen=True, kw_only=True)
class WindowConfig:
    """The slices of the data that a planner is trained on."""

    horizon: int = 128
    """Env steps of the longest plan: planning steps times stride."""
    min_horizon: int | None = None
    """Env steps of the shortest window; lengths up to `horizon` are drawn at random.
    None: all windows have the length `horizon`."""
    stride: int = 1
    """Env steps between two planning steps."""
    actions: bool = True
    """Plan actions as well as observations; if off, plans consist of states only."""
    padding: Padding = "none"
    """What follows the end of a run: nothing, or its last observation repeated."""
    hindsight_goal: HindsightGoal = "goal"
    """What training pins at the last planning step of a window. goal: the position that
    counts as the goal. observation: all columns. none: nothing."""
    normalizer: NormalizerName = "limits"
    """How each column is mapped to the network's units. limits: its range to [-1, 1].
    gaussian: to mean 0 and variance 1. identity: unchanged."""
    features: str | None = None
    """Featurizer whose columns plans are made of; None: the observation's columns."""
    position: tuple[int, ...] | None = None
    """Column numbers of the position in observations, if the data does not name it."""
    velocity: tuple[int, ...] | None = None
    """Column numbers of the velocity in observations, if the data does not name it."""
    best_share: float = 1.0
    """Share of the runs that plans are learned from: those with the highest returns. A
    critic learns from all runs."""

    def __post_init__(self) -> None:
        """Check names, and that the horizons are made of whole planning steps."""
        typed(self)
        if not 0 < self.best_share <= 1:
            raise ConfigError(f"best_share must be in (0, 1], got {self.best_share}.")
        positive(self, "horizon", "stride", most=LARGEST_SIZE)
        for name in ("horizon", "min_horizon"):
            value = getattr(self, name)
            if value is not None and value % self.stride:
                raise ConfigError(
                    f"{name} must be a multiple of the stride: got {value} env steps "
                    f"with stride {self.stride}."
                )
        if self.min_horizon is not None and not 0 < self.min_horizon <= self.horizon:
            raise ConfigError(
                f"min_horizon must be in 1..horizon, got {self.min_horizon} with "
                f"horizon {self.horizon}."
            )

    @property
    def num_planning_steps(self) -> int:
        """Rows of the longest window."""
        return self.horizon // self.stride

    @property
    def min_planning_steps(self) -> int:
        """Rows of the shortest window."""
        return (self.min_horizon or self.horizon) // self.stride


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The denoising network and its diffusion process."""

    architecture: Architecture = "unet"
    """unet: a temporal U-Net. mlp: a residual MLP, for windows of a few planning steps.
    transformer: attention between planning steps. objects: a transformer over the
    objects that the layout names."""
    dim: int = 32
    """Base width in channels (U-Net), or width."""
    multipliers: tuple[int, ...] = (1, 2, 4)
    """U-Net: width of each resolution, as a multiple of `dim`."""
    kernel_size: int = 5
    """U-Net: width of the temporal convolutions, in planning steps."""
    attention: bool = False
    """U-Net: use linear attention in every stage."""
    depth: int = 4
    """MLP, transformer and objects: number of blocks."""
    patch: int = 8
    """Objects: planning steps that share a token."""
    residual: bool = False
    """Give the network the current state, and let it predict deviations from it."""
    num_denoising_steps: int = 64
    """Denoising steps of the training schedule."""
    prediction_target: PredictionTarget = "clean"
    """What the network predicts: the clean trajectory, the noise, or their velocity."""
    clip: bool | None = None
    """Clamp denoised trajectories to [-1, 1]; None: only with the limits normalizer."""
    loss_floor: float | None = None
    """Weigh errors by 1 / (noise² + this number), which makes plans more precise. None:
    all errors weigh the same."""
    first_action_weight: float = 1.0
    """Weight of errors in the first action, the one that is executed next; the authors
    use 10."""

    def __post_init__(self) -> None:
        """Check names and ranges."""
        typed(self)
        positive(self, "dim", "num_denoising_steps", "patch", most=LARGEST_SIZE)
        positive(self, "kernel_size", "depth", most=DEEPEST)
        if not 0 < len(self.multipliers) <= DEEPEST or min(self.multipliers) < 1:
            raise ConfigError(
                f"multipliers must be 1 to {DEEPEST} positive numbers, got "
                f"{self.multipliers}."
            )
        positive(self, "loss_floor", "first_action_weight")
        if self.architecture == "objects" and not self.residual:
            raise ConfigError(
                "architecture='objects' predicts deviations from the current state: "
                "set residual=True."
            )
        if self.architecture in ("mlp", "transformer") and self.residual:
            raise ConfigError(
                f"architecture={self.architecture!r} is given the current state as the "
                f"first planning step: leave residual=False."
            )


@dataclass(frozen=True, kw_only=True)
class TimeToGoalConfig:
    """The network that predicts how many env steps a state is from a goal."""

    width: int = 256
    """Hidden units per layer."""
    max_steps: int = 450
    """Longest time between the state and the goal of a training pair, in env steps."""
    expectile: float = 0.05
    """Expectile that is learned; low values learn the shortest ways in the data instead
    of the average way."""
    batch_size: int = 512
    """Pairs per training step."""

    def __post_init__(self) -> None:
        """Check ranges."""
        typed(self)
        positive(self, "width", "max_steps", "batch_size", most=LARGEST_SIZE)
        if not 0 < self.expectile < 1:
            raise ConfigError(f"expectile must be in (0, 1), got {self.expectile}.")


@dataclass(frozen=True, kw_only=True)
class InverseDynamicsConfig:
    """The network that predicts the action between a state and a planned one."""

    width: int = 256
    """Hidden units per layer."""
    max_steps: int = 16
    """Longest time between the two states of a training pair, in env steps."""
    batch_size: int = 512
    """Pairs per training step."""

    def __post_init__(self) -> None:
        """Check ranges."""
        typed(self)
        positive(self, "width", "max_steps", "batch_size", most=LARGEST_SIZE)


@dataclass(frozen=True, kw_only=True)
class ValueConfig:
    """The network that predicts the return-to-go of noisy trajectories."""

    dim: int = 32
    """Base width in channels."""
    multipliers: tuple[int, ...] = (1, 2, 4)
    """Width of each stage, as a multiple of `dim`."""
    kernel_size: int = 5
    """Width of the temporal convolutions, in planning steps."""
    pooling: Pooling = "mean"
    """Average over any horizon, or flatten a fixed one, as the authors do."""
    discount: float = 0.997
    """Weight of a reward one env step later."""
    termination_penalty: float = 0.0
    """Subtracted from the reward of a step that terminates; the authors use 100."""

    def __post_init__(self) -> None:
        """Check names and ranges."""
        typed(self)
        positive(self, "dim", most=LARGEST_SIZE)
        positive(self, "kernel_size", most=DEEPEST)
        if not 0 < self.discount <= 1:
            raise ConfigError(f"discount must be in (0, 1], got {self.discount}.")


@dataclass(frozen=True, kw_only=True)
class CriticConfig:
    """The networks that value states and actions."""

    width: int = 256
    """Hidden units per layer, 4 or more."""
    discount: float = 0.99
    """Weight of a reward one env step later."""
    expectile: float = 0.7
    """Expectile of the action values that state values learn: 0.5 is their mean, values
    near 1 are those of the best actions in the data."""

    def __post_init__(self) -> None:
        """Check ranges."""
        typed(self)
        positive(self, "width", most=LARGEST_SIZE)
        if self.width < NARROWEST_CRITIC:
            raise ConfigError(
                f"The width of a critic must be {NARROWEST_CRITIC} or more, got "
                f"{self.width}: all units of a narrower layer are often zero for all "
                f"of the data, and it learns nothing."
            )
        for name in ("discount", "expectile"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(
                    f"{name} must be in (0, 1), got {getattr(self, name)}."
                )


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """The network that predicts which labels hold at a noisy planning step."""

    architecture: ClassifierArchitecture = "mlp"
    """A perceptron of the whole state, or log-odds that are quadratic in the offset
    between the two objects of each ordered pair."""
    width: int = 256
    """Perceptron: hidden units per layer."""
    depth: int = 3
    """Perceptron: hidden layers."""
    classes: tuple[str, ...] = ()
    """Labels to predict, in the order of the outputs; none: all of them."""

    def __post_init__(self) -> None:
        """Check names and ranges."""
        typed(self)
        positive(self, "width", most=LARGEST_SIZE)
        positive(self, "depth", most=DEEPEST)


@dataclass(frozen=True, kw_only=True)
class LandmarksConfig:
    """The coarse map of the data that routes to far goals follow."""

    num: int = 300
    """Places in the data. Too few, and the way from one to the next leads around
    corners; twice as many take four times the memory."""

    def __post_init__(self) -> None:
        """Check the range."""
        typed(self)
        positive(self, "num", most=MOST_LANDMARKS)


@dataclass(frozen=True, kw_only=True)
class PlannerConfig:
    """How a trained denoiser is used to plan."""

    sampler: SamplerName = "ddim"
    """Reverse process. ddim: deterministic, for few steps. ddpm: the paper's, with
    noise in every step; set num_sampling_steps=None with ddpm (the command line does
    that for you). dpm: like ddim, with a smaller error for the same number of steps."""
    num_sampling_steps: int | None = 5
    """Denoising steps of a plan; None: all steps of the training schedule."""
    min_guided_steps: int = 3
    """Fewest denoising steps of a guided plan, which needs some to settle after the
    guide has moved it; raises `num_sampling_steps` for guided plans."""
    step_spacing: Spacing = "linspace"
    """How the denoising steps are spread over the training schedule. linspace: evenly,
    both ends included. trailing: evenly from the noisy end, without the clean one.
    leading: evenly from the clean end, without the noisy one (DDIM as released; poor
    with few steps). quadratic: closer together near the clean end. log-snr: evenly in
    the logarithm of the signal-to-noise ratio."""
    temperature: float = 1.0
    """Scale of the noise that plans start from and of the noise that is added later; 0:
    the most likely plan, which is a single candidate."""
    num_candidates: int = 8
    """Trajectories sampled per plan; with `satisficing`, only where one is not
    enough."""
    satisficing: bool = True
    """Sample a single candidate, and all of `num_candidates` only where that one is not
    good enough by the ranking's own measure, or where execution strayed from the last
    plan, unless that led to a subgoal. Needs a ranking that can judge a single
    candidate: time_to_goal, feasibility or sum."""
    ranking: RankingName = "smoothness"
    """Which candidate becomes the plan. first: the first one. smoothness: the one with
    the smallest jumps. time_to_goal: the one whose states can best be reached in the
    planned time. critic: the one that begins with the best action. feasibility: the one
    that the featurizer can execute best. guide: the one that the guide prefers. sum:
    the best sum of feasibility and guide."""
    ranking_tolerance: float = 10.0
    """Ranking by a guide: how much less feasible than the most feasible candidate the
    chosen one may be. In env steps with a time-to-goal network, in the unit of
    feasibility with a featurizer; without either it has no effect."""
    ranking_weight: float = 1.0
    """Ranking by the sum: weight of the guide's value, in units of feasibility."""
    horizon: HorizonChoice = "fixed"
    """How many env steps a plan covers. fixed: the training horizon. shrinking: the
    rest of it. predicted: the predicted time to the goal."""
    horizon_scale: float = 1.0
    """Predicted horizon: factor of the predicted time; above 1 for guides that make the
    way longer or slower."""
    subgoal: float | None = None
    """How far ahead, in env steps on the way over landmarks, a plan leads; once the
    goal is nearer, it leads there. None: plans always lead to the goal."""
    goal_velocity: bool = False
    """Pin zero velocity at the goal, as well as the position."""
    guide_placement: Placement | None = None
    """Where the gradient of a guide is taken. clean: at the predicted clean plan. mean:
    at the mean of the next denoising step, as in the paper's Algorithm 1. noisy: at the
    noisy plan, as in the authors' code. None: mean for a learned value, clean for other
    guides and for sums with them."""
    guide_scale: float = 1.0
    """Step size along the gradient of a guide; 0 turns guidance off."""
    guide_steps: int | None = None
    """Gradient steps for each denoising step; None: 5 for clean, 1 for mean, 2 for
    noisy."""
    guide_cutoff: int = 0
    """Denoising steps below this number of the training schedule are not guided; if a
    plan visits only some of them, fewer are skipped."""
    warm_start: float | None = None
    """Replanning: a new plan starts from the rest of the running one, noised to this
    share of the schedule. A small share keeps most of it, 1 starts from pure noise;
    None: the running plan is not used."""
    warm_start_steps: int | None = None
    """Denoising steps of a warm start; None: the same share of `num_sampling_steps`,
    and at least `min_guided_steps` for guided plans, if `warm_start` leaves so many."""
    steadiness: float | None = None
    """Replanning: the running plan is kept unless a new one is better by this much, in
    the unit of the ranking: env steps for time_to_goal, squared normalized displacement
    for smoothness, else that of the featurizer, the guide or the returns; None: the two
    are not compared."""

    def __post_init__(self) -> None:
        """Check names and ranges."""
        typed(self)
        positive(self, "num_candidates", "min_guided_steps", most=LARGEST_SIZE)
        positive(self, "num_sampling_steps", "warm_start_steps", most=LARGEST_SIZE)
        positive(self, "guide_steps", most=LARGEST_SIZE)
        positive(self, "horizon_scale", "subgoal")
        if abs(self.guide_scale) > LARGEST_SCALE:
            raise ConfigError(
                f"guide_scale must be within ±{LARGEST_SCALE:g}, got "
                f"{self.guide_scale}."
            )
        for name in ("temperature", "ranking_tolerance", "guide_cutoff", "steadiness"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ConfigError(f"{name} must be 0 or more, got {value}.")
        if self.temperature == 0 and self.num_candidates > 1:
            raise ConfigError(
                f"With temperature=0, all num_candidates={self.num_candidates} would "
                "be identical. Use a temperature of 0.5 or 1, or num_candidates=1."
            )
        if self.warm_start is not None and not 0 < self.warm_start <= 1:
            raise ConfigError(f"warm_start must be in (0, 1], got {self.warm_start}.")


def with_all_steps(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return planner settings, with all denoising steps if they ask for ddpm.

    It is poor with few steps. A number of steps that is given as well is kept.
    """
    if given.get("sampler") == "ddpm":
        return {"num_sampling_steps": None, **given}
    return dict(given)


@dataclass(frozen=True, kw_only=True)
class ExecutionConfig:
    """How a plan is followed, and when it is replaced by a new one."""

    executor: ExecutorName = "tracking"
    """How plans become actions. tracking: steer to the next planned state. pursuit:
    follow the path as fast as actions allow. path: keep to the path, at the planned
    speed or slower. actions: apply the planned actions. inverse-dynamics: ask a network
    that has learned which action leads to a planned state. features: ask the
    featurizer."""
    position_gain: float = 1.0
    """Tracking and pursuit: action per meter of position error."""
    velocity_gain: float = 1.0
    """Tracking and pursuit: action per meter per second of velocity error; per meter
    per env step if velocities are not observed."""
    lookahead: float = 10.0
    """Pursuit and inverse dynamics: how far ahead to steer, in planned env steps."""
    tempo: float = 1.0
    """Path: planned env steps per env step, at most; below 1, slower than planned."""
    tolerance: float = 0.3
    """Path: distance from the path, in meters, at which progress almost stops."""
    seconds_per_step: float | None = None
    """Path: duration of an env step, which relates planned velocities to positions;
    this executor needs it."""
    replan_interval: int | None = None
    """Env steps between two plans; None: a new plan only when it is necessary."""
    replan_deviation: float | None = None
    """Distance from the plan, in meters, beyond which a new plan is made; None: any
    distance is fine."""

    def __post_init__(self) -> None:
        """Check names and ranges."""
        typed(self)
        positive(self, "lookahead", "tempo", "tolerance")
        positive(self, "seconds_per_step", "replan_interval", "replan_deviation")


@dataclass(frozen=True, kw_only=True)
class OptimizationConfig:
    """Optimizer and averaging of the weights."""

    num_steps: int = 20_000
    """Gradient steps."""
    batch_size: int = 32
    """Windows per gradient step and accumulation."""
    num_accumulations: int = 1
    """Batches that are summed into one gradient step."""
    learning_rate: float = 1e-3
    """Adam's step size."""
    learning_rate_schedule: LearningRateSchedule = "cosine"
    """Whether the step size decays to zero along a cosine, or stays constant."""
    max_gradient_norm: float | None = 1.0
    """Largest gradient norm of each network; None: gradients are not clipped."""
    ema_decay: float = 0.999
    """Decay of the moving average of the weights, which planning uses."""
    ema_interval: int = 1
    """Gradient steps between two updates of the average."""
    ema_start: int = 0
    """Up to this gradient step, the average is a copy of the weights."""

    def __post_init__(self) -> None:
        """Check names and ranges."""
        typed(self)
        positive(self, "num_steps", "batch_size", "num_accumulations", "learning_rate")
        positive(self, "ema_interval", "max_gradient_norm")
        if self.ema_start < 0:
            raise ConfigError(f"ema_start must be 0 or more, got {self.ema_start}.")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"ema_decay must be in [0, 1), got {self.ema_decay}.")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that determines a trained planner, besides the data."""

    dataset: str
    """Minari dataset id."""
    window: WindowConfig = field(default_factory=WindowConfig)
    """Slices of the data."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    """Denoiser."""
    time_to_goal: TimeToGoalConfig | None = None
    """Network for predicted horizons; None: none is trained."""
    inverse_dynamics: InverseDynamicsConfig | None = None
    """Network for the executor "inverse-dynamics"; None: none is trained."""
    landmarks: LandmarksConfig | None = None
    """Places on the way to goals beyond the reach of a plan; None: no landmarks."""
    value: ValueConfig | None = None
    """Network that ranks and guides plans by their return; None: none is trained."""
    critic: CriticConfig | None = None
    """Networks that rank plans by the value of their first action; None: none are
    trained."""
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)
    """Optimizer."""
    guide: tuple[str, ...] = ()
    """Guides that are saved with the planner, each as text, such as "stack-task"; they
    add up. Empty: the value network, if there is one."""
    planner: PlannerConfig = field(default_factory=PlannerConfig)
    """Saved with the weights as the planner's defaults."""
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)
    """Saved with the weights as the policy's defaults."""
    seed: int = 0
    """Fixes initial weights, windows and noise; None, in Python: drawn at random, and
    kept."""

    def __post_init__(self) -> None:
        """Check the types, and draw a seed where there is none."""
        object.__setattr__(self, "seed", seed_or_drawn(self.seed))
        typed(self)
        if self.network.first_action_weight != 1 and not self.window.actions:
            raise ConfigError(
                "first_action_weight has no effect on plans without actions. Leave it "
                "out, or plan actions (--window.actions)."
            )

    @classmethod
    def for_dataset(cls, flat: FlatDataset, **given: Any) -> TrainConfig:
        """Return settings that suit a dataset, as `diffuser-policy train` chooses them.

        Args:
            flat: The dataset.
            given: Fields to keep; the others are chosen to fit them. A part may be
                given by some of its settings, such as `window={"horizon": 64}`, and a
                network beside the denoiser as True or False, such as `value=False`.

        Raises:
            UnknownNameError: A field that does not exist.
            ConfigError: A given setting that is of another type or cannot work.
        """
        from diffuser_policy.defaults import choose

        return choose(flat, given).config


PARTS: Mapping[str, type[Any]] = {
    "window": WindowConfig,
    "network": NetworkConfig,
    "time_to_goal": TimeToGoalConfig,
    "inverse_dynamics": InverseDynamicsConfig,
    "landmarks": LandmarksConfig,
    "value": ValueConfig,
    "critic": CriticConfig,
    "optimization": OptimizationConfig,
    "planner": PlannerConfig,
    "execution": ExecutionConfig,
}
"""The parts of `TrainConfig` that have settings of their own."""

COMPANIONS = ("time_to_goal", "inverse_dynamics", "landmarks", "value", "critic")
"""Those of networks that may be trained beside the denoiser, and of landmarks."""


@dataclass(frozen=True, kw_only=True)
class CompanionTrainConfig:
    """Everything that determines a companion network, besides the planner."""

    dataset: str
    """Minari dataset id."""
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)
    """Optimizer."""
    seed: int = 0
    """Fixes initial weights, batches and noise; None, in Python: drawn at random, and
    kept."""

    def __post_init__(self) -> None:
        """Check the types, and draw a seed where there is none."""
        object.__setattr__(self, "seed", seed_or_drawn(self.seed))
        typed(self)


@dataclass(frozen=True, kw_only=True)
class ValueTrainConfig(CompanionTrainConfig):
    """Everything that determines a value network, besides the planner and the data."""

    optimization: OptimizationConfig = OptimizationConfig(
        num_steps=10_000, batch_size=64
    )
    """Optimizer."""
    value: ValueConfig = field(default_factory=ValueConfig)
    """Network and targets."""


@dataclass(frozen=True, kw_only=True)
class CriticTrainConfig(CompanionTrainConfig):
    """Everything that determines a critic, besides the planner and the data."""

    optimization: OptimizationConfig = OptimizationConfig(
        num_steps=25_000,
        batch_size=256,
        learning_rate=3e-4,
        learning_rate_schedule="constant",
        max_gradient_norm=None,
        ema_decay=0.995,
    )
    """Optimizer."""
    critic: CriticConfig = field(default_factory=CriticConfig)
    """Networks."""


@dataclass(frozen=True, kw_only=True)
class ClassifierTrainConfig(CompanionTrainConfig):
    """Everything that determines a classifier, besides the planner and the data."""

    labels: str
    """Function of labels, by name."""
    optimization: OptimizationConfig = OptimizationConfig(
        num_steps=4_000, batch_size=512
    )
    """Optimizer."""
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    """Network."""


OPTIONAL: dict[str, type[Any]] = {
    **{name: PARTS[name] for name in COMPANIONS},
    "classifier": ClassifierConfig,
}
"""Settings of what a planner may have beside its denoiser."""


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """Everything in a saved planner except its weights."""

    spaces: SpaceSpec
    """Spaces of the environment."""
    layout: TrajectoryLayout
    """Columns of a trajectory."""
    window: WindowConfig
    """Horizon, stride and normalizer of the training windows."""
    network: NetworkConfig
    """Denoiser."""
    time_to_goal: TimeToGoalConfig | None
    """Network for predicted horizons, if there is one."""
    planner: PlannerConfig
    """How to plan."""
    execution: ExecutionConfig
    """How to follow a plan."""
    value: ValueConfig | None = None
    """Network that predicts returns, if there is one."""
    critic: CriticConfig | None = None
    """Networks that value states and actions, if there are any."""
    classifier: ClassifierConfig | None = None
    """Network that predicts labels of states, if there is one."""
    inverse_dynamics: InverseDynamicsConfig | None = None
    """Network that predicts actions, if there is one."""
    landmarks: LandmarksConfig | None = None
    """Places on the way to far goals, if there are any."""
    guide: Guide | None = None
    """The guide that steers plans, if there is one."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Where the weights come from: dataset, its settings, seed, steps, versions."""

    def without_results(self) -> PolicyConfig:
        """Return the settings without the results of earlier evaluations."""
        kept = {k: v for k, v in self.provenance.items() if k != "results"}
        return replace(self, provenance=kept)

    def to_json(self) -> dict[str, Any]:
        """Return JSON data with the schema number first."""
        from diffuser_policy.guides.registry import guide_to_json

        own = {
            "layout": self.layout.to_json(),
            "guide": None if self.guide is None else guide_to_json(self.guide),
            "provenance": dict(self.provenance),
        }
        data: dict[str, Any] = {"schema": SCHEMA}
        for name in (item.name for item in fields(self)):
            part = getattr(self, name)
            data[name] = own[name] if name in own else part and to_json(part)
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PolicyConfig:
        """Rebuild from `to_json`'s data.

        Raises:
            CheckpointError: Another schema, or settings that are missing or foreign.
        """
        # Here, not above: the command line reads settings without torch.
        from diffuser_policy.columns.layout import TrajectoryLayout
        from diffuser_policy.guides.registry import guide_from_json
        from diffuser_policy.spaces import SpaceSpec

        if not isinstance(data, dict) or "schema" not in data:
            raise CheckpointError(
                "config.json was not written by this package: it has no 'schema'. "
                "Planners are written by save_pretrained or `diffuser-policy train`."
            )
        if data["schema"] != SCHEMA:
            raise CheckpointError(
                f"The planner has schema {data['schema']!r}, this version reads schema "
                f"{SCHEMA}. Install the version that wrote it, or train it again."
            )

        try:
            execution = {**data["execution"]}
            if execution.get("replan_deviation") == math.inf:
                execution["replan_deviation"] = None  # once allowed; the same
            # The other parts are younger than the schema: a file may lack them.
            saved = {name: data.get(name) for name in OPTIONAL}
            saved["time_to_goal"] = data["time_to_goal"]
            parts: dict[str, Any] = {
                name: None if part is None else from_json(OPTIONAL[name], part)
                for name, part in saved.items()
            }
            guide, provenance = data.get("guide"), data["provenance"]
            _check_provenance(provenance)
            config = cls(
                spaces=from_json(SpaceSpec, data["spaces"]),
                layout=from_json(TrajectoryLayout, data["layout"]),
                window=from_json(WindowConfig, data["window"]),
                network=from_json(NetworkConfig, data["network"]),
                planner=from_json(PlannerConfig, _current(data["planner"])),
                execution=from_json(ExecutionConfig, execution),
                guide=None if guide is None else guide_from_json(guide),
                # NaN and infinity, which files of early versions hold, become none.
                provenance=json_data(provenance),
                **parts,
            )
            _check_sizes(config)
            return config
        except (LookupError, TypeError, AttributeError, ConfigError) as error:
            raise CheckpointError(
                "config.json lacks settings, or has some that this version does not "
                f"know or that are impossible: {str(error) or repr(error)}"
            ) from error
        except RecursionError as error:
            raise CheckpointError(
                "config.json is nested too deeply: it was not written by this package."
            ) from error


def _current(planner: Mapping[str, Any]) -> dict[str, Any]:
    """Return saved planner settings without those that were retired.

    Raises:
        ConfigError: A retired setting with a value that changes plans.
    """
    for name in planner.keys() & RETIRED.keys():
        if planner[name] != RETIRED[name]:
            raise ConfigError(
                f"{name}={planner[name]!r} is a setting of an earlier version; this "
                f"version plans as with {name}={RETIRED[name]!r}. Install the version "
                f"that wrote it, or set it to that value."
            )
    kept = {name: value for name, value in planner.items() if name not in RETIRED}
    if kept.get("temperature") == 0:  # once several were allowed, all the same
        kept["num_candidates"] = 1
    return kept


def _check_provenance(provenance: Any) -> None:
    """Refuse a saved planner's origin if others could not read it.

    Raises:
        ConfigError: Names the part.
        RecursionError: It is nested too deeply.
    """
    parts = {"provenance": provenance}
    if isinstance(provenance, dict):
        parts |= {name: provenance.get(name, {}) for name in ORIGINS}
    for name, part in parts.items():
        if not isinstance(part, dict):
            raise ConfigError(f"{name} must be a table, got {part!r}.")
    for name in ("env_id", "dataset_id"):
        known = parts["dataset"].get(name)
        if known is not None and not isinstance(known, str):
            raise ConfigError(f"{name} must be a text or none, got {known!r}.")
    json.dumps(provenance, indent=1)  # as it is when the planner is saved


def _check_sizes(config: PolicyConfig) -> None:
    """Refuse settings of a saved planner that contradict each other.

    Raises:
        ConfigError: Names the two.
    """
    spaces, layout = config.spaces, config.layout
    num_actions = len(spaces.action_low)
    if layout.action_dim not in (0, num_actions):
        raise ConfigError(
            f"Trajectories have {layout.action_dim} action columns, and the action "
            f"space has {num_actions}."
        )
    planned = spaces.planned_size
    if config.window.features is None and layout.observation_dim != planned:
        raise ConfigError(
            f"Trajectories have {layout.observation_dim} observation columns, and "
            f"observations have {planned}."
        )


ORIGINS = (
    *("dataset", "training", "versions", "results"),
    *("value", "critic", "classifier"),
)
"""Tables that a planner's provenance may have."""
