"""`diffuser-policy train-value`: teach a planner which trajectories pay."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from diffuser_policy.cli.options import shown_as
from diffuser_policy.cli.runs import announcement, farewell
from diffuser_policy.config import OptimizationConfig, ValueConfig, ValueTrainConfig
from diffuser_policy.errors import ConfigError

if TYPE_CHECKING:
    pass

INTERRUPTED = 130  # what a shell reports for a command ended by Ctrl-C


@dataclass(frozen=True, kw_only=True)
class TrainValueSettings:
    """Train the value network of a planner: the return that its plans lead to.

    The planner is not changed. The output folder holds a copy of it with the value
    network: `evaluate --guide value` follows its gradient, with `--ranking guide` it
    chooses among candidates. Stop it at any time: the same command goes on.
    """

    planner: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PLANNER")]
    """Folder of a planner, name of a shipped one, or hub id."""
    dataset: Annotated[str | None, shown_as("ID")] = None
    """Minari dataset with rewards (default: the one that the planner is from)."""
    output: Annotated[Path | None, shown_as("FOLDER")] = None
    """Where planner, value network and checkpoints go (default: runs/PLANNER-value)."""
    device: str = "auto"
    """Where to compute: cpu, cuda, or a GPU if there is one."""
    save_interval: int = 1000
    """Gradient steps between two checkpoints."""
    seed: int = 0
    """Fixes initial weights, windows and noise."""
    optimization: tyro.conf.OmitArgPrefixes[OptimizationConfig] = field(
        default_factory=lambda: OptimizationConfig(num_steps=10_000, batch_size=64)
    )
    value: tyro.conf.OmitArgPrefixes[ValueConfig] = field(default_factory=ValueConfig)

    def config(self, recorded: str | None) -> ValueTrainConfig:
        """Return what determines the value network.

        Args:
            recorded: Dataset that the planner was trained on, if it is known.

        Raises:
            ConfigError: Neither a dataset nor a planner that knows its own.
        """
        dataset = self.dataset or recorded
        if dataset is None:
            raise ConfigError(
                f"The planner {self.planner!r} does not say which dataset it is from. "
                f"Name one with rewards: --dataset ID."
            )
        return ValueTrainConfig(
            dataset=dataset,
            value=self.value,
            optimization=self.optimization,
            seed=self.seed,
        )

    def folder(self) -> Path:
        """Return the output folder."""
        return self.output or Path("runs") / f"{Path(self.planner).name}-value"


def run(settings: TrainValueSettings) -> int:
    """Train, and say where the planner with its value network is.

    Returns:
        The exit status.
    """
    from diffuser_policy.checkpoint import locate, read_planner
    from diffuser_policy.data.minari import load_flat
    from diffuser_policy.training.processes import Processes
    from diffuser_policy.training.value_trainer import ValueTrainer

    source, output = locate(settings.planner), settings.folder()
    if source.resolve() == output.resolve():
        raise ConfigError(
            f"{output} is the planner itself, which is not to be overwritten. Choose "
            f"another --output folder."
        )
    planner = read_planner(source)
    recorded = planner[0].provenance.get("dataset", {}).get("dataset_id")
    config = settings.config(recorded)
    processes = Processes.launched(settings.device)
    flat = load_flat(config.dataset, progress=processes.is_main)
    trainer = ValueTrainer(config, planner, flat, output, processes=processes)
    if processes.is_main:
        print(
            announcement(
                trainer, f"Value of {settings.planner} on {trainer.config.dataset}"
            )
        )
    try:
        trainer.run(save_interval=settings.save_interval)
    except KeyboardInterrupt:
        if processes.is_main:
            print(farewell(output), file=sys.stderr)
        return INTERRUPTED
    if processes.is_main:
        print(
            f"Trained: {output}\nNext: diffuser-policy evaluate {output} "
            f"--guide value --guide-scale 0 --ranking guide --candidates 16"
        )
    return 0
