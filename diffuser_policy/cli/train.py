"""The subcommand `train`, which makes a planner."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import shlex
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import tyro

from diffuser_policy.choices import GOAL_KEYS, RUNS
from diffuser_policy.cli import EXIT_OK
from diffuser_policy.cli.options import (
    Flag,
    GuideTexts,
    changed,
    dictionary,
    setting_options,
    shown_as,
)
from diffuser_policy.cli.training import carry_out, common_fields, evaluate_command
from diffuser_policy.config import (
    CriticConfig,
    ExecutionConfig,
    InverseDynamicsConfig,
    LandmarksConfig,
    NetworkConfig,
    OptimizationConfig,
    PlannerConfig,
    TimeToGoalConfig,
    TrainConfig,
    ValueConfig,
    WindowConfig,
    with_all_steps,
)
from diffuser_policy.errors import ConfigError, require_extra
from diffuser_policy.needs import NETWORK_NEEDS, PLANNING_NEEDS, REST_NEEDS, refuse_idle
from diffuser_policy.training.presets import PRESETS, preset
from diffuser_policy.words import counted

if TYPE_CHECKING:
    from diffuser_policy.data.flat import FlatDataset
    from diffuser_policy.defaults import Choice


TRAINED = {
    "time_to_goal": "Train a network that predicts the time to the goal, for horizons.",
    "inverse_dynamics": "Train a network that predicts actions, for that executor.",
    "landmarks": "Find places on the way to goals beyond the reach of a plan.",
    "value": "Train a network that predicts returns, for ranking and guidance.",
    "critic": "Train networks that value the first action, for ranking.",
}
SWITCHES = {
    name: Annotated[bool, shown_as("", help=text)] for name, text in TRAINED.items()
}
FIELD_OF = {
    "time_to_goal": "prediction",
    "inverse_dynamics": "inverse",
    "landmarks": "places",
    "value": "valuation",
    "critic": "criticism",
}
"""Networks that are trained with the planner, and the fields of their settings."""
DRY_RUN = ("--dry-run", "--dry_run")  # tyro takes both


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Train a planner on a Minari dataset.

    A preset gives all settings, and you can change any of them; `train PRESET --help`
    shows its values. Without a preset, name a --dataset of your own: the command
    chooses settings that suit it, and keeps those that you give. --dry-run shows the
    choice. Stop the training at any time: the same command resumes. Several processes
    share the work under `accelerate launch` or `torchrun`.
    """

    preset: Annotated[tyro.conf.Positional[str | None], shown_as("[PRESET]")] = None
    """Settings to start from."""
    dataset: Annotated[str | None, tyro.conf.arg(metavar="ID")] = None
    """Minari dataset."""
    goal_keys: tuple[str, str] = GOAL_KEYS
    """Observation keys of the achieved and of the desired goal; keys of nested
    dictionaries are joined by slashes."""
    output: Annotated[Path | None, shown_as("FOLDER")] = None
    """Where the planner and its checkpoints go (default: runs/ and the name of the
    preset or, without one, of the dataset)."""
    dry_run: Flag = False
    """Say what would be trained, and stop."""
    device: str = "auto"
    """Where to compute: cpu, cuda, or a GPU if there is one."""
    save_interval: int = 1000
    """Gradient steps between two checkpoints."""
    tensorboard: Flag = False
    """Log losses for TensorBoard, besides training/metrics.jsonl."""
    seed: int = 0
    """Fixes initial weights, windows and noise."""
    guide: GuideTexts = ()
    """Guides that are saved with the planner, as in `evaluate`; several add up. They
    change nothing in the training, and --guide none saves no guide. Default: the
    preset's, or the value network, if there is one. Without a preset, only if plans are
    ranked by it or --planner.guide-scale is given."""
    words: tyro.conf.Suppress[tuple[str, ...]] = field(default=(), compare=False)
    """The command line that gave the settings, after `train`."""

    @classmethod
    def parse(cls, args: list[str]) -> TrainSettings:
        """Read the command line, with the preset's settings as defaults.

        Raises:
            UnknownNameError: No preset of that name; the nearest are named.
        """
        description = inspect.cleandoc(TrainSettings.__doc__ or "")

        def parsed(default: TrainSettings) -> TrainSettings:
            return tyro.cli(
                type(default),
                prog="diffuser-policy train",
                description=f"{description}\n\nPresets: {', '.join(PRESETS)}.",
                args=args,
                default=default,
                use_underscores=False,
            )

        named = args and not args[0].startswith("-")
        default = PresetSettings.of_preset(args[0]) if named else DatasetSettings()
        settings = parsed(default)
        if settings.preset not in (None, default.preset):
            # The preset comes after options: it sets whatever they leave open.
            default = PresetSettings.of_preset(settings.preset)
            settings = parsed(default)
        if isinstance(settings, PresetSettings) and isinstance(default, PresetSettings):
            planner, usual = vars(settings.planner), vars(default.planner)
            given = {name: planner[name] for name in changed(planner, usual)}
            # As if the preset had all steps: a number that is given wins, also its own.
            if with_all_steps(given) != given:
                start = dataclasses.replace(default.planner, **with_all_steps(given))
                settings = parsed(dataclasses.replace(default, planner=start))
        return dataclasses.replace(settings, words=tuple(args))

    def check(self) -> None:
        """Refuse what cannot work with any data.

        Raises:
            ConfigError: Neither a preset nor a dataset, or a setting without effect.
        """
        if self.dataset is None:
            raise ConfigError(
                f"Name a preset or a dataset: diffuser-policy train PRESET, or "
                f"diffuser-policy train --dataset ID. Presets: {', '.join(PRESETS)}."
            )

    def choice(self, flat: FlatDataset) -> Choice:
        """Return what determines the trained planner, and why.

        Raises:
            ConfigError: A setting that has no effect, or cannot work.
        """
        raise NotImplementedError

    def folder(self) -> Path:
        """Return the output folder."""
        name = self.preset or str(self.dataset).replace("/", "-")
        return self.output or Path(RUNS) / name


@dataclass(frozen=True, kw_only=True)
class PresetSettings(TrainSettings):
    """Settings that start from a preset."""

    optimization: tyro.conf.OmitArgPrefixes[OptimizationConfig] = field(
        default_factory=OptimizationConfig
    )
    window: WindowConfig = field(default_factory=WindowConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    time_to_goal: Annotated[bool, tyro.conf.arg(help=TRAINED["time_to_goal"])] = False
    prediction: Annotated[TimeToGoalConfig, tyro.conf.arg(name="time-to-goal")] = field(
        default_factory=TimeToGoalConfig
    )
    inverse_dynamics: Annotated[
        bool, tyro.conf.arg(help=TRAINED["inverse_dynamics"])
    ] = False
    inverse: Annotated[
        InverseDynamicsConfig, tyro.conf.arg(name="inverse-dynamics")
    ] = field(default_factory=InverseDynamicsConfig)
    landmarks: Annotated[bool, tyro.conf.arg(help=TRAINED["landmarks"])] = False
    places: Annotated[LandmarksConfig, tyro.conf.arg(name="landmarks")] = field(
        default_factory=LandmarksConfig
    )
    value: Annotated[bool, tyro.conf.arg(help=TRAINED["value"])] = False
    valuation: Annotated[ValueConfig, tyro.conf.arg(name="value")] = field(
        default_factory=ValueConfig
    )
    critic: Annotated[bool, tyro.conf.arg(help=TRAINED["critic"])] = False
    criticism: Annotated[CriticConfig, tyro.conf.arg(name="critic")] = field(
        default_factory=CriticConfig
    )
    planner: PlannerConfig = field(default_factory=PlannerConfig)
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)

    @classmethod
    def of_preset(cls, name: str) -> Self:
        """Return the settings of a preset.

        Raises:
            UnknownNameError: No preset of that name; the nearest are named.
        """
        config = preset(name)
        parts = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
        for part, settings in FIELD_OF.items():
            if parts[part] is not None:
                parts[settings] = parts[part]
            parts[part] = parts[part] is not None
        del parts["guide"]  # options would add to the preset's; see `config`
        return cls(preset=name, **parts)

    def config(self, *, goals: bool = True) -> TrainConfig:
        """Return what determines the trained planner.

        Args:
            goals: Whether the data has goals.

        Raises:
            ConfigError: A setting that differs from the preset's and has no effect.
        """
        default = self.of_preset(str(self.preset))
        planning = {**vars(self.planner), **vars(self.execution)}
        usual = {**vars(default.planner), **vars(default.execution)}
        _refuse_idle(changed(planning, usual), planning, self.window, goals=goals)
        network = vars(self.network)
        refuse_idle(changed(network, vars(default.network)), network, NETWORK_NEEDS)
        parts = common_fields(self, TrainConfig)
        for part, settings in FIELD_OF.items():
            own = getattr(self, settings)
            if not getattr(self, part) and own != getattr(default, settings):
                raise _without(part)
            parts[part] = own if getattr(self, part) else None
        parts["guide"] = self.guide or preset(str(self.preset)).guide
        return TrainConfig(**parts)

    def check(self) -> None:
        """Refuse what cannot work with any data, as `config` does."""
        super().check()
        self.config()

    def choice(self, flat: FlatDataset) -> Choice:
        """Return the preset's settings with the changes that were asked for."""
        from diffuser_policy.defaults import Choice

        return Choice(self.config(goals=flat.has_goals), ())


@dataclass(frozen=True, kw_only=True)
class DatasetSettings(TrainSettings):
    """Settings that are chosen to suit a dataset, except those that are given."""

    optimization: Annotated[
        tyro.conf.OmitArgPrefixes[dict[str, Any]], setting_options(OptimizationConfig)
    ] = field(default_factory=dict)
    window: Annotated[dict[str, Any], setting_options(WindowConfig)] = field(
        default_factory=dict
    )
    network: Annotated[dict[str, Any], setting_options(NetworkConfig)] = field(
        default_factory=dict
    )
    companions: Annotated[
        tyro.conf.OmitArgPrefixes[dict[str, bool]], dictionary(SWITCHES)
    ] = field(default_factory=dict)
    prediction: Annotated[
        dict[str, Any], setting_options(TimeToGoalConfig, name="time-to-goal")
    ] = field(default_factory=dict)
    inverse: Annotated[
        dict[str, Any], setting_options(InverseDynamicsConfig, name="inverse-dynamics")
    ] = field(default_factory=dict)
    places: Annotated[
        dict[str, Any], setting_options(LandmarksConfig, name="landmarks")
    ] = field(default_factory=dict)
    valuation: Annotated[dict[str, Any], setting_options(ValueConfig, name="value")] = (
        field(default_factory=dict)
    )
    criticism: Annotated[
        dict[str, Any], setting_options(CriticConfig, name="critic")
    ] = field(default_factory=dict)
    planner: Annotated[dict[str, Any], setting_options(PlannerConfig)] = field(
        default_factory=dict
    )
    execution: Annotated[dict[str, Any], setting_options(ExecutionConfig)] = field(
        default_factory=dict
    )

    def choice(self, flat: FlatDataset) -> Choice:
        """Return settings that suit the dataset, with those that were given."""
        from diffuser_policy.defaults import choose

        given = {
            name: getattr(self, name)
            for name in ("optimization", "window", "network", "planner", "execution")
        }
        for part, settings in FIELD_OF.items():
            own = getattr(self, settings)
            if own and self.companions.get(part) is False:
                raise _without(part)
            if own:
                given[part] = own
            elif part in self.companions:
                given[part] = self.companions[part]
        for name in ("dataset", "guide", "seed"):
            given[name] = getattr(self, name)
        found = choose(flat, given)
        config = found.config
        _refuse_idle(
            [*self.planner, *self.execution],
            {**vars(config.planner), **vars(config.execution)},
            config.window,
            goals=flat.has_goals,
        )
        refuse_idle(self.network, vars(config.network), NETWORK_NEEDS)
        return found


def _refuse_idle(
    given: Collection[str],
    planning: Mapping[str, Any],
    window: WindowConfig,
    *,
    goals: bool,
) -> None:
    """Refuse planning settings that have no effect in any planner with them."""
    # What a guide needs is saved with the planner, for guides to come.
    present = {"guide": True, "goals": goals, "rest": window.num_planning_steps > 1}
    for needs in (REST_NEEDS, PLANNING_NEEDS):
        refuse_idle(given, {**planning, **present}, needs)


def _without(part: str) -> ConfigError:
    option = part.replace("_", "-")
    return ConfigError(f"The settings --{option}.… have no effect without --{option}.")


def train(settings: TrainSettings) -> int:
    """Train, and say where the planner is; return the exit status."""
    from diffuser_policy.data.minari import load_flat
    from diffuser_policy.files import usable_folder
    from diffuser_policy.training.processes import Processes
    from diffuser_policy.training.run import check_interval
    from diffuser_policy.training.trainer import Trainer, untrained, usable_policy

    settings.check()
    check_interval(settings.save_interval)
    output = usable_folder(settings.folder())
    log = _tensorboard(output) if settings.tensorboard else None
    processes = Processes.launched(settings.device)
    flat = load_flat(
        str(settings.dataset),
        goal_keys=settings.goal_keys,
        progress=processes.is_main,
    )
    if processes.is_main and settings.preset is not None:
        _note_environment(settings.preset, flat)
    choice = settings.choice(flat)
    if processes.is_main and choice.reasons:
        _show(choice, flat)
    if settings.dry_run:
        with _noted():
            made, networks, _ = untrained(choice.config, flat)
        policy = usable_policy(choice.config, made, networks)
        if processes.is_main:
            typed = [word for word in settings.words if word not in DRY_RUN]
            command = shlex.join(["diffuser-policy", "train", *typed])
            print(f"To train it: {command}\nThe planner: {policy}")
        return EXIT_OK
    with _noted():
        trainer = Trainer(
            choice.config, flat, output, device=settings.device, processes=processes
        )
    return carry_out(
        trainer,
        f"{settings.preset or 'A planner'} on {trainer.config.dataset}",
        f"Next: {evaluate_command(trainer)}",
        save_interval=settings.save_interval,
        on_metrics=log,
    )


def _note_environment(name: str, flat: FlatDataset) -> None:
    """Note on standard error if a dataset is not of the preset's environment."""
    from diffuser_policy.data.minari import recorded_by
    from diffuser_policy.envs import split_version

    dataset, env_id = preset(name).dataset, flat.metadata.get("env_id")
    if env_id is None or flat.metadata.get("dataset_id") == dataset:
        return
    meant = recorded_by(dataset)
    if meant is not None and split_version(meant[0])[0] != split_version(env_id)[0]:
        print(
            f"note: the preset {name} is meant for data of {meant[0]}, and this data "
            f"is of {env_id}. Without a preset, `diffuser-policy train --dataset ID` "
            f"chooses settings that suit the dataset.",
            file=sys.stderr,
        )


@contextlib.contextmanager
def _noted() -> Iterator[None]:
    """Print a warning of short runs as a note, and all others unchanged."""
    from diffuser_policy.data.windows import ShortRunsWarning

    with warnings.catch_warnings():
        warnings.simplefilter("always", ShortRunsWarning)
        usual = warnings.showwarning

        def show(message: Any, category: Any, *where: Any, **options: Any) -> None:
            if issubclass(category, ShortRunsWarning):
                print(f"note: {message}", file=sys.stderr)
            else:
                usual(message, category, *where, **options)

        warnings.showwarning = show
        yield


def _show(choice: Choice, flat: FlatDataset) -> None:
    """Print what was chosen for a dataset, and why."""
    lengths = flat.run_lengths
    name = flat.metadata.get("dataset_id", "unnamed")
    print(
        f"{name}: {counted(flat.num_rows, 'step')} in {counted(flat.num_runs, 'run')} "
        f"of {lengths.min():,} to {lengths.max():,}, "
        f"{counted(flat.observation_size, 'observed column')}, "
        f"{counted(flat.action_size, 'action')}, "
        f"{'goals' if flat.has_goals else 'no goals'}. Chosen to suit them:"
    )
    for line in choice.reasons:
        print(f"  {line}")


def _tensorboard(output: Path) -> Callable[[int, dict[str, float]], None]:
    """Return a function that logs losses for TensorBoard, creating files when called.

    The trainer calls it on the main process only, and not before there are losses.
    """
    require_extra("tensorboard", "tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    folder = str(output / "training" / "tensorboard")
    writer = functools.cache(lambda: SummaryWriter(folder))

    def log(step: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            writer().add_scalar(f"loss/{name}", value, step)
        writer().flush()

    return log
