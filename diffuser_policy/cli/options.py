"""Options that the subcommands `evaluate` and `plan` share."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from diffuser_policy.errors import ConfigError

if TYPE_CHECKING:
    from diffuser_policy.policy import DiffuserPolicy


def shown_as(metavar: str) -> Any:
    """Name the values of an option in its help, and say nothing of its default."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="")


@dataclass(frozen=True, kw_only=True)
class PlanningOptions:
    """How to plan and to execute; what is not given is as the planner was saved."""

    guide: tyro.conf.UseAppendAction[
        Annotated[tuple[str, ...], shown_as("[W*]NAME:KEY=VALUE;…")]
    ] = ()
    """Steer plans by a guide; several add up. `diffuser-policy guides` lists them.
    For example --guide 'keep-out:center=3,4;radius=0.6'."""
    guide_scale: Annotated[float | None, shown_as("X")] = None
    """How hard the guides are followed; 0: not at all."""
    guide_placement: Annotated[
        Literal["clean", "mean", "noisy"] | None, shown_as("clean|mean|noisy")
    ] = None
    """Where their gradient is taken."""
    guide_steps: Annotated[int | None, shown_as("N")] = None
    """Gradient steps for each denoising step."""

    sampler: Annotated[
        Literal["ddim", "ddpm", "dpm"] | None, shown_as("ddim|ddpm|dpm")
    ] = None
    """Reverse process; ddpm takes all denoising steps unless told otherwise."""
    steps: Annotated[int | Literal["all"] | None, shown_as("N|all")] = None
    """Denoising steps."""
    temperature: Annotated[float | None, shown_as("X")] = None
    """Scales the noise that plans start from and are denoised with."""
    warm_start: Annotated[float | Literal["never"] | None, shown_as("X|never")] = None
    """Share of the schedule that a plan is noised to when it is made anew."""
    warm_start_steps: Annotated[int | None, shown_as("N")] = None
    """Denoising steps from there."""
    horizon: Annotated[
        Literal["fixed", "shrinking", "predicted"] | None,
        shown_as("fixed|shrinking|predicted"),
    ] = None
    """How many env steps a plan covers."""
    horizon_scale: Annotated[float | None, shown_as("X")] = None
    """Factor of the predicted time to the goal, for ways around or slower ones."""
    candidates: Annotated[int | None, shown_as("N")] = None
    """Trajectories sampled per plan."""
    ranking: Annotated[
        Literal["first", "smoothness", "time_to_goal", "feasibility", "guide", "sum"]
        | None,
        shown_as("first|smoothness|time_to_goal|feasibility|guide|sum"),
    ] = None
    """How the plan is chosen among the candidates."""
    steadiness: Annotated[float | Literal["never"] | None, shown_as("X|never")] = None
    """How much better a new plan has to be than what is left of the running one, in
    the unit of the ranking; never: that one is not kept."""
    executor: Annotated[
        Literal["tracking", "pursuit", "path", "actions", "features"] | None,
        shown_as("tracking|pursuit|path|actions|features"),
    ] = None
    """How the plan is followed."""
    position_gain: Annotated[float | None, shown_as("X")] = None
    """Tracking: action per meter of position error."""
    velocity_gain: Annotated[float | None, shown_as("X")] = None
    """Tracking: action per meter per second of velocity error."""
    lookahead: Annotated[float | None, shown_as("X")] = None
    """Pursuit: how far ahead to steer, in planned env steps."""
    tempo: Annotated[float | None, shown_as("X")] = None
    """Path: planned env steps per env step; below 1, slower than planned."""
    tolerance: Annotated[float | None, shown_as("X")] = None
    """Path: meters off it at which progress almost stops."""
    replan_interval: Annotated[int | Literal["never"] | None, shown_as("N|never")] = (
        None
    )
    """Env steps after which a plan is made anew."""
    replan_deviation: Annotated[
        float | Literal["never"] | None, shown_as("X|never")
    ] = None
    """Distance from the plan in meters beyond which it is made anew."""

    acceleration: Annotated[
        Literal["auto", "off", "fused", "compile", "cuda-graphs"],
        tyro.conf.arg(metavar="auto|off|fused|compile|cuda-graphs"),
    ] = "auto"
    """How the network is run; plans stay the same up to rounding."""
    threads: Annotated[int, tyro.conf.arg(metavar="N")] = 1
    """CPU threads of PyTorch. The shipped planners are small: one is fastest, and two
    on a busy machine are many times slower."""

    def settings(self) -> dict[str, Any]:
        """Return those that were given, as `DiffuserPolicy.with_settings` takes them.

        The guides are none of them: `DiffuserPolicy.with_guide` takes their sum.
        Options with a word for "no limit" stand for a setting that may be None.
        """
        given = {name: value for name, value in vars(self).items() if value is not None}
        del given["threads"], given["guide"], given["acceleration"]
        if given.get("sampler") == "ddpm":
            given.setdefault("steps", "all")
        named = {"steps": "num_sampling_steps", "candidates": "num_candidates"}
        return {
            named.get(name, name): None if value in ("all", "never") else value
            for name, value in given.items()
        }


def load_policy(planner: str, options: PlanningOptions, *, seed: int) -> DiffuserPolicy:
    """Load a planner with the options that were given.

    Raises:
        CheckpointNotFoundError: Nothing of that name; the nearest are named.
        CheckpointError: Truncated, foreign, or of another schema.
        UnknownNameError: No guide of a name; the nearest are named.
        GuideError: A guide that cannot be read.
        ConfigError: Options that contradict each other or the planner.
    """
    import torch

    from diffuser_policy.guides.text import parse_guides
    from diffuser_policy.policy import DiffuserPolicy

    if options.threads < 1:
        raise ConfigError(f"--threads must be at least 1, got {options.threads}.")
    torch.set_num_threads(options.threads)
    guide, settings = parse_guides(options.guide), options.settings()
    policy = DiffuserPolicy.from_pretrained(planner, seed=seed)
    policy = policy.accelerated(options.acceleration)
    if guide is not None:
        policy = policy.with_guide(guide)
    policy = policy.with_settings(**settings)
    _refuse_idle(options, policy)
    return policy


def _refuse_idle(options: PlanningOptions, policy: DiffuserPolicy) -> None:
    """Refuse options that would have no effect.

    Raises:
        ConfigError: Guidance without a guide, or a warm start or steadiness of plans
            that are never made anew.
    """
    for name in ("guide_scale", "guide_placement", "guide_steps"):
        if getattr(options, name) is not None and policy.guide is None:
            option = name.replace("_", "-")
            raise ConfigError(f"--{option} has no effect without --guide.")
    for name in ("warm_start", "steadiness"):
        given = getattr(options, name) not in (None, "never")
        if given and policy.config.execution.replan_interval is None:
            option = name.replace("_", "-")
            raise ConfigError(f"--{option} has no effect without --replan-interval.")


def parse_assignments(texts: Iterable[str], *, option: str) -> dict[str, Any]:
    """Return the settings that `KEY=VALUE` texts name.

    Args:
        texts: Values are read as JSON if they are, and as plain text if not.
        option: That they were given with.

    Raises:
        ConfigError: No `=`, no key, or a key that was given before.
    """
    settings: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise ConfigError(
                f"{option} takes KEY=VALUE, such as joint_noise=0.01; got {text!r}."
            )
        if key in settings:
            raise ConfigError(f"{option} {key} was given twice.")
        try:
            settings[key] = json.loads(value)
        except ValueError:
            settings[key] = value
    return settings


def env_of(policy: DiffuserPolicy, env: str | None) -> str:
    """Return the environment to use: by default that of the planner's data.

    Raises:
        ConfigError: None was given and the planner doesn't know its own.
    """
    if env is not None:
        return env
    recorded = policy.config.provenance.get("dataset", {}).get("env_id")
    if not recorded:
        raise ConfigError(
            "The planner's data does not name its environment. Name one: --env ID."
        )
    return str(recorded)
