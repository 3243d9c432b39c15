"""What `train-value` and `train-classifier` share: a network for a trained planner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar

import tyro

from diffuser_policy.cli.options import shown_as
from diffuser_policy.cli.runs import carry_out
from diffuser_policy.config import CompanionTrainConfig
from diffuser_policy.errors import ConfigError

if TYPE_CHECKING:
    from diffuser_policy.training.companion import CompanionTrainer

Trainer = TypeVar("Trainer", bound="CompanionTrainer[Any]")


@dataclass(frozen=True, kw_only=True)
class CompanionSettings:
    """Which planner, on which data, and where to.

    Attributes:
        part: What is trained, as in the output folder's name.
        suitable: Of a dataset that one can name, in an error.
    """

    part: ClassVar[str]
    suitable: ClassVar[str]

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

    def data(self, recorded: str | None) -> str:
        """Return the dataset to train on.

        Args:
            recorded: The one that the planner was trained on, if it is known.

        Raises:
            ConfigError: Neither a dataset nor a planner that knows its own.
        """
        dataset = self.dataset or recorded
        if dataset is None:
            raise ConfigError(
                f"The planner {self.planner!r} does not say which dataset it is from. "
                f"Name one {self.suitable}: --dataset ID."
            )
        return dataset

    def config(self, recorded: str | None) -> CompanionTrainConfig:
        """Return what determines the network.

        Args:
            recorded: As in `data`.

        Raises:
            ConfigError: As `data` does.
        """
        raise NotImplementedError


def train_companion(
    settings: CompanionSettings,
    trainer_class: Callable[..., Trainer],
    result: Callable[[Trainer], str],
) -> int:
    """Train, and say where the planner with its companion is.

    Args:
        settings: Of the command line.
        trainer_class: Takes config, planner, data and output folder.
        result: Returns what to say of a trained network.

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
