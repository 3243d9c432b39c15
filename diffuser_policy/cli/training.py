"""What the subcommands that train share: the run, and a trained planner to extend."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar

import tyro

from diffuser_policy.cli import EXIT_INTERRUPTED, EXIT_OK
from diffuser_policy.cli.options import shown_as
from diffuser_policy.config import CompanionTrainConfig
from diffuser_policy.errors import ConfigError

if TYPE_CHECKING:
    from diffuser_policy.training.companion import CompanionTrainer
    from diffuser_policy.training.trainer import TrainingRun

Trainer = TypeVar("Trainer", bound="CompanionTrainer[Any]")


def carry_out(
    run: TrainingRun[Any], what: str, result: str, *, save_interval: int, **options: Any
) -> int:
    """Train to the end, or until Ctrl-C.

    Args:
        run: Begins where it stopped, if it had begun before.
        what: What is being trained, and on which data.
        result: What to say once it is trained.
        save_interval: Gradient steps between checkpoints.
        options: More of `TrainingRun.run`.

    Returns:
        The exit status.
    """
    say = print if run.processes.is_main else lambda *_, **__: None
    total, done = run.optimization.num_steps, run.step
    where = f"in {run.output}, on {run.processes.device}"
    if done >= total:
        say(f"{what}: all {total:,} gradient steps are done already, {where}.")
    elif done:
        say(f"{what}: resuming at gradient step {done:,} of {total:,} {where}.")
    else:
        say(f"{what}: {total:,} gradient steps {where}.")
    try:
        run.run(save_interval=save_interval, **options)
    except KeyboardInterrupt:
        from diffuser_policy.training.state import checkpoints

        saved = checkpoints(run.output / "training")
        if saved:
            step = int(saved[-1].name.rpartition("-")[2])
            say(
                f"Stopped; gradient step {step:,} is saved. The same command resumes "
                f"there.",
                file=sys.stderr,
            )
        else:
            say("Stopped before anything was saved.", file=sys.stderr)
        return EXIT_INTERRUPTED
    say(f"Trained: {run.output}\n{result}")
    return EXIT_OK


@dataclass(frozen=True, kw_only=True)
class CompanionSettings:
    """Which planner, on which data, and where to.

    Attributes:
        part: What is trained, as in the output folder's name.
        suitable: Of a dataset that one can name, in an error.
        config_type: Has the same fields as the settings, by name.
    """

    part: ClassVar[str]
    suitable: ClassVar[str]
    config_type: ClassVar[type[CompanionTrainConfig]]

    planner: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PLANNER")]
    """Folder of a planner, name of a shipped one, or hub id."""
    dataset: Annotated[str | None, shown_as("ID")] = None
    """Minari dataset (default: the one that the planner is from)."""
    output: Annotated[Path | None, shown_as("FOLDER")] = None
    """Where planner, network and checkpoints go (default: runs/PLANNER-value, or
    -classifier)."""
    device: str = "auto"
    """Where to compute: cpu, cuda, or a GPU if there is one."""
    save_interval: int = 1000
    """Gradient steps between two checkpoints."""
    seed: int = 0
    """Fixes initial weights, batches and noise."""

    def folder(self) -> Path:
        """Return the output folder."""
        return self.output or Path("runs") / f"{Path(self.planner).name}-{self.part}"

    def config(self, recorded: str | None) -> CompanionTrainConfig:
        """Return what determines the network.

        Args:
            recorded: Dataset that the planner was trained on, if it is known.

        Raises:
            ConfigError: Neither a dataset nor a planner that knows its own, or a
                setting that has no effect.
        """
        dataset = self.dataset or recorded
        if dataset is None:
            raise ConfigError(
                f"The planner {self.planner!r} does not say which dataset it is from. "
                f"Name one {self.suitable}: --dataset ID."
            )
        names = {item.name for item in dataclasses.fields(self.config_type)}
        parts = {name: value for name, value in vars(self).items() if name in names}
        return self.config_type(**{**parts, "dataset": dataset})


def train_companion(
    settings: CompanionSettings,
    trainer_class: Callable[..., Trainer],
    result: Callable[[Trainer], str],
) -> int:
    """Train, and say where the planner with its companion is.

    Args:
        settings: Of the command line.
        trainer_class: Takes config, planner, data and output folder.
        result: Returns the closing message for a trained network.

    Returns:
        The exit status.

    Raises:
        ConfigError: The output folder is the planner's, or holds another run.
    """
    from diffuser_policy.checkpoint import locate, read_planner
    from diffuser_policy.data.minari import load_flat
    from diffuser_policy.training.processes import Processes

    source, output = locate(settings.planner), settings.folder()
    if source.resolve() == output.resolve():
        raise ConfigError(
            f"{output} is the planner itself, which is not to be overwritten. Choose "
            f"another --output folder."
        )
    planner = read_planner(source)
    config = settings.config(planner[0].provenance.get("dataset", {}).get("dataset_id"))
    processes = Processes.launched(settings.device)
    flat = load_flat(config.dataset, progress=processes.is_main)
    trainer = trainer_class(config, planner, flat, output, processes=processes)
    return carry_out(
        trainer,
        f"{settings.part.capitalize()} of {settings.planner} on {config.dataset}",
        result(trainer),
        save_interval=settings.save_interval,
    )
