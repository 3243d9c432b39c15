"""`diffuser-policy train`: train a planner, or resume its training."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from diffuser_policy.cli.options import changed, shown_as
from diffuser_policy.cli.training import carry_out
from diffuser_policy.config import (
    NETWORK_NEEDS,
    PLANNING_NEEDS,
    ExecutionConfig,
    NetworkConfig,
    OptimizationConfig,
    PlannerConfig,
    TimeToGoalConfig,
    TrainConfig,
    WindowConfig,
    refuse_idle,
)
from diffuser_policy.errors import ConfigError, require_extra
from diffuser_policy.training.presets import PRESETS, preset


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Train a planner on a Minari dataset.

    A preset gives all settings, and every one can be changed; `train PRESET --help`
    shows its values. Without a preset, name a --dataset of your own. Stop it at any
    time: the same command resumes. Several processes share the work under
    `accelerate launch` or `torchrun`.
    """

    preset: Annotated[
        tyro.conf.Positional[str | None],
        tyro.conf.arg(metavar="PRESET", help_behavior_hint=""),
    ] = None
    """Settings to start from."""
    dataset: Annotated[str | None, tyro.conf.arg(metavar="ID")] = None
    """Minari dataset."""
    output: Annotated[Path | None, shown_as("FOLDER")] = None
    """Where the planner and its checkpoints go (default: runs/ and the preset)."""
    device: str = "auto"
    """Where to compute: cpu, cuda, or a GPU if there is one."""
    save_interval: int = 1000
    """Gradient steps between two checkpoints."""
    tensorboard: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Log losses for TensorBoard, besides training/metrics.jsonl."""
    seed: int = 0
    """Fixes initial weights, windows and noise."""
    optimization: tyro.conf.OmitArgPrefixes[OptimizationConfig] = field(
        default_factory=OptimizationConfig
    )
    window: WindowConfig = field(default_factory=WindowConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    time_to_goal: bool = False
    """Also train a network that predicts the time to the goal, for horizons."""
    prediction: Annotated[TimeToGoalConfig, tyro.conf.arg(name="time-to-goal")] = field(
        default_factory=TimeToGoalConfig
    )
    planner: PlannerConfig = field(default_factory=PlannerConfig)
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)

    @classmethod
    def of_preset(cls, name: str) -> TrainSettings:
        """Return the settings of a preset.

        Raises:
            UnknownNameError: No preset of that name; the nearest are named.
        """
        config = preset(name)
        parts = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
        prediction = parts.pop("time_to_goal")
        return cls(
            preset=name,
            time_to_goal=prediction is not None,
            prediction=prediction or TimeToGoalConfig(),
            **parts,
        )

    def config(self) -> TrainConfig:
        """Return what determines the trained planner.

        Raises:
            ConfigError: Neither a preset nor a dataset, or a setting that differs from
                the preset's and has no effect.
        """
        if self.dataset is None:
            raise ConfigError(
                f"Name a preset or a dataset: diffuser-policy train PRESET, or "
                f"diffuser-policy train --dataset ID. Presets: {', '.join(PRESETS)}."
            )
        default = TrainSettings.of_preset(self.preset) if self.preset else type(self)()
        planning = {**vars(self.planner), **vars(self.execution)}
        usual = {**vars(default.planner), **vars(default.execution)}
        # Saved with the planner, for guides to come and goals of the data.
        to_come = {"guide": True, "goals": True}
        refuse_idle(changed(planning, usual), planning | to_come, PLANNING_NEEDS)
        network = vars(self.network)
        refuse_idle(changed(network, vars(default.network)), network, NETWORK_NEEDS)
        names = {item.name for item in dataclasses.fields(TrainConfig)}
        parts = {name: value for name, value in vars(self).items() if name in names}
        prediction = self.prediction if self.time_to_goal else None
        return TrainConfig(**{**parts, "time_to_goal": prediction})

    def folder(self) -> Path:
        """Return the output folder."""
        name = self.preset or str(self.dataset).replace("/", "-")
        return self.output or Path("runs") / name


def parse(arguments: list[str]) -> TrainSettings:
    """Read the command line, with the preset's settings as defaults.

    Raises:
        UnknownNameError: No preset of that name; the nearest are named.
    """
    default = TrainSettings()
    if arguments and not arguments[0].startswith("-"):
        default = TrainSettings.of_preset(arguments[0])
    settings = _parse(arguments, default)
    if settings.preset is not None and settings.preset != default.preset:
        # The preset comes after options: it sets whatever they leave open.
        settings = _parse(arguments, TrainSettings.of_preset(settings.preset))
    return settings


def _parse(arguments: list[str], default: TrainSettings) -> TrainSettings:
    return tyro.cli(
        TrainSettings,
        prog="diffuser-policy train",
        description=(
            f"{inspect.cleandoc(TrainSettings.__doc__ or '')}\n\n"
            f"Presets: {', '.join(PRESETS)}."
        ),
        args=arguments,
        default=default,
        use_underscores=False,
    )


def run(settings: TrainSettings) -> int:
    """Train, and say where the planner is.

    Returns:
        The exit status.
    """
    from diffuser_policy.data.minari import load_flat
    from diffuser_policy.policy import DiffuserPolicy
    from diffuser_policy.training.processes import Processes
    from diffuser_policy.training.trainer import Trainer

    config, output = settings.config(), settings.folder()
    log = _tensorboard(output) if settings.tensorboard else None
    processes = Processes.launched(settings.device)
    flat = load_flat(config.dataset, progress=processes.is_main)
    trainer = Trainer(config, flat, output, device=settings.device, processes=processes)
    # What would be saved has to work: find out now, not when training is over.
    DiffuserPolicy(trainer.policy_config, trainer.planner_networks)
    return carry_out(
        trainer,
        f"{settings.preset or 'A planner'} on {trainer.config.dataset}",
        f"Next: diffuser-policy evaluate {output}",
        save_interval=settings.save_interval,
        on_metrics=log,
    )


def _tensorboard(output: Path) -> Callable[[int, dict[str, float]], None]:
    """Return a function that logs losses for TensorBoard, creating files when called.

    The trainer calls it on the main process only, and not before there are losses.
    """
    require_extra("tensorboard", "tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    @functools.cache
    def writer() -> Any:
        return SummaryWriter(str(output / "training" / "tensorboard"))

    def log(step: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            writer().add_scalar(f"loss/{name}", value, step)
        writer().flush()

    return log
