"""`diffuser-policy train-classifier`: teach a planner to tell states apart by label."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from diffuser_policy.cli.options import shown_as
from diffuser_policy.cli.runs import announcement, farewell
from diffuser_policy.config import (
    ClassifierConfig,
    ClassifierTrainConfig,
    OptimizationConfig,
)
from diffuser_policy.errors import ConfigError

INTERRUPTED = 130  # what a shell reports for a command ended by Ctrl-C


@dataclass(frozen=True, kw_only=True)
class TrainClassifierSettings:
    """Train the classifier of a planner: which labels hold at a noisy planning step.

    Guides ask for labels: `evaluate --guide stack-match` for one block on another. The
    planner is not changed. The output folder holds a copy of it with the classifier.
    Stop it at any time: the same command goes on.
    """

    planner: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PLANNER")]
    """Folder of a planner, name of a shipped one, or hub id."""
    labels: Annotated[str, shown_as("NAME")]
    """What to learn: labels that a package offers, such as kuka-pairs (which block is
    on which), or module:function."""
    dataset: Annotated[str | None, shown_as("ID")] = None
    """Minari dataset (default: the one that the planner is from)."""
    output: Annotated[Path | None, shown_as("FOLDER")] = None
    """Where planner, classifier and checkpoints go (default:
    runs/PLANNER-classifier)."""
    device: str = "auto"
    """Where to compute: cpu, cuda, or a GPU if there is one."""
    save_interval: int = 1000
    """Gradient steps between two checkpoints."""
    seed: int = 0
    """Fixes initial weights, states and noise."""
    optimization: tyro.conf.OmitArgPrefixes[OptimizationConfig] = field(
        default_factory=lambda: OptimizationConfig(num_steps=4_000, batch_size=512)
    )
    classifier: tyro.conf.OmitArgPrefixes[ClassifierConfig] = field(
        default_factory=ClassifierConfig
    )

    def config(self, recorded: str | None) -> ClassifierTrainConfig:
        """Return what determines the classifier.

        Args:
            recorded: Dataset that the planner was trained on, if it is known.

        Raises:
            ConfigError: Neither a dataset nor a planner that knows its own.
        """
        dataset = self.dataset or recorded
        if dataset is None:
            raise ConfigError(
                f"The planner {self.planner!r} does not say which dataset it is from. "
                f"Name one of its environment: --dataset ID."
            )
        return ClassifierTrainConfig(
            dataset=dataset,
            labels=self.labels,
            classifier=self.classifier,
            optimization=self.optimization,
            seed=self.seed,
        )

    def folder(self) -> Path:
        """Return the output folder."""
        return self.output or Path("runs") / f"{Path(self.planner).name}-classifier"


def run(settings: TrainClassifierSettings) -> int:
    """Train, and say where the planner with its classifier is.

    Returns:
        The exit status.
    """
    from diffuser_policy.checkpoint import locate, read_planner
    from diffuser_policy.data.minari import load_flat
    from diffuser_policy.training.classifier_trainer import ClassifierTrainer
    from diffuser_policy.training.processes import Processes

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
    trainer = ClassifierTrainer(config, planner, flat, output, processes=processes)
    what = f"Classifier of {settings.planner} on {config.dataset}"
    if processes.is_main:
        print(announcement(trainer, what))
    try:
        trainer.run(save_interval=settings.save_interval)
    except KeyboardInterrupt:
        if processes.is_main:
            print(farewell(output), file=sys.stderr)
        return INTERRUPTED
    if processes.is_main:
        learned = ", ".join(trainer.classifier.labels)
        print(f"Trained: {output}\nIt tells: {learned}.")
    return 0
