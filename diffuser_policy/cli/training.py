"""Code that the training subcommands share.

`train` makes a planner; `train-value`, `train-critic` and `train-classifier` extend a
trained one by a companion network.
"""

from __future__ import annotations

import dataclasses
import datetime
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from diffuser_policy.choices import RUNS
from diffuser_policy.cli import EXIT_INTERRUPTED, EXIT_OK
from diffuser_policy.cli.options import (
    Planner,
    note_unfinished,
    shown_as,
    unregistered,
    writes_log,
)
from diffuser_policy.config import CompanionTrainConfig
from diffuser_policy.errors import ConfigError

if TYPE_CHECKING:
    from diffuser_policy.training.run import TrainingRun

OnMetrics = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True, kw_only=True)
class CompanionSettings:
    """Which planner to extend, on which data, and where to save it."""

    part: ClassVar[str]  # what is trained, as in the output folder's name
    suitable: ClassVar[str]  # of a dataset that one can name, in an error
    config_type: ClassVar[type[CompanionTrainConfig]]  # has fields of the same names

    planner: Planner
    """Folder of a planner, name of a shipped one, or hub id."""
    dataset: Annotated[str | None, shown_as("ID")] = None
    """Minari dataset (default: the planner's own)."""
    output: Annotated[Path | None, shown_as("FOLDER")] = None
    """Where planner, network and checkpoints go (default: runs/ and the planner's name,
    then -value, -critic or -classifier)."""
    device: str = "auto"
    """Where to compute: cpu, cuda, or a GPU if there is one."""
    save_interval: int = 1000
    """Gradient steps between two checkpoints."""
    seed: int = 0
    """Fixes initial weights, batches and noise."""

    def folder(self) -> Path:
        """Return the output folder."""
        if self.output is not None:
            return self.output
        source = Path(self.planner)
        if not source.name.strip("."):  # `.` and `..` are no names
            source = source.resolve()
        return Path(RUNS) / f"{source.name}-{self.part}"

    def config(self, recorded: str | None) -> CompanionTrainConfig:
        """Return what determines the network; `recorded` is the planner's dataset.

        Raises:
            ConfigError: No dataset, or a setting that has no effect.
        """
        dataset = recorded if self.dataset is None else self.dataset
        if dataset is None:
            raise ConfigError(
                f"The planner {self.planner!r} does not name its dataset. Name one "
                f"{self.suitable}: --dataset ID."
            )
        return self.config_type(
            **common_fields(self, self.config_type) | {"dataset": dataset}
        )


def train_companion(
    settings: CompanionSettings,
    trainer_class: Callable[..., Any],
    result: Callable[[Any], str],
) -> int:
    """Train a companion, say the result; return the exit status.

    Raises:
        ConfigError: The output folder is the planner's, or holds another run.
    """
    from diffuser_policy.checkpoint import locate, read_planner
    from diffuser_policy.data.minari import load_flat
    from diffuser_policy.files import usable_folder
    from diffuser_policy.training.processes import Processes
    from diffuser_policy.training.run import check_interval

    check_interval(settings.save_interval)
    source, output = locate(settings.planner), usable_folder(settings.folder())
    if source.resolve() == output.resolve():
        raise ConfigError(
            f"{output} is the folder of the planner itself, which is never "
            "overwritten. Choose another --output folder."
        )
    planner = read_planner(source)
    note_unfinished(settings.planner, planner[0].provenance)
    config = settings.config(planner[0].provenance.get("dataset", {}).get("dataset_id"))
    processes = Processes.launched(settings.device)
    flat = load_flat(
        config.dataset,
        goal_keys=planner[0].spaces.parts.goal_keys,
        progress=processes.is_main,
    )
    trainer = trainer_class(config, planner, flat, output, processes=processes)
    return carry_out(
        trainer,
        f"{settings.part.capitalize()} of {settings.planner} on {config.dataset}",
        result(trainer),
        save_interval=settings.save_interval,
    )


def carry_out(
    run: TrainingRun[Any],
    what: str,
    result: str,
    *,
    save_interval: int,
    on_metrics: OnMetrics | None = None,
) -> int:
    """Train `what` to the end, from where it stopped, and say the result.

    A terminal shows a progress bar; a log gets a line at every checkpoint.
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
    told = [on_metrics] if on_metrics is not None else []
    if writes_log():
        told.append(_lines(run))

    def tell(step: int, means: dict[str, float]) -> None:
        for function in told:
            function(step, means)

    try:
        run.run(save_interval=save_interval, on_metrics=tell)
    except KeyboardInterrupt as stop:
        if not run.processes.is_main:
            return EXIT_INTERRUPTED
        from diffuser_policy.training.state import checkpoints, step_of

        saved = checkpoints(run.output / "training")
        if not saved:
            raise KeyboardInterrupt("stopped before anything was saved.") from stop
        raise KeyboardInterrupt(
            f"gradient step {step_of(saved[-1]):,} is saved. The same command resumes "
            f"there."
        ) from stop
    say(f"Trained: {run.output}\n{result}")
    return EXIT_OK


def _lines(run: TrainingRun[Any]) -> OnMetrics:
    """Return a function that says in one line how far a training is."""
    began, start, total = time.monotonic(), run.step, run.optimization.num_steps

    def line(step: int, means: dict[str, float]) -> None:
        losses = ", ".join(f"{name} {mean:.5f}" for name, mean in means.items())
        seconds = (time.monotonic() - began) / (step - start) * (total - step)
        left = datetime.timedelta(seconds=round(seconds))
        print(
            f"gradient step {step:,} of {total:,}: {losses}; {left} left",
            file=sys.stderr,
        )

    return line


def evaluate_command(trainer: Any) -> str:
    """Return the command that evaluates a trained planner, as a shell reads it."""
    words = ["diffuser-policy", "evaluate", str(trainer.output)]
    recorded = trainer.policy_config.provenance.get("dataset", {})
    if named := _env_to_name(recorded):
        words += ["--env", named]
    return shlex.join(words)


def _env_to_name(recorded: Mapping[str, Any]) -> str:
    """Return what the user has to name as the environment of data; empty if nothing.

    That is one that only the user can make, or whose module only the user knows.
    """
    import gymnasium as gym

    from diffuser_policy.envs import imported_by, is_trusted, split_version

    env_id = recorded.get("env_id")
    if not env_id:
        return "MODULE:FUNCTION"
    if is_trusted(env_id):
        if unregistered(recorded.get("env_spec"), env_id)[1]:
            return "MODULE:FUNCTION"
        names = {split_version(known)[0] for known in gym.registry}
        if imported_by(env_id) or split_version(env_id)[0] in names:
            return ""
    return f"MODULE:{env_id}"


def candidate_options(trainer: Any, number: int) -> str:
    """Return the options for candidates that differ."""
    likely = trainer.policy_config.planner.temperature == 0
    return f"--num-candidates {number}{' --temperature 1' * likely}"


def common_fields(settings: Any, config_type: type[Any]) -> dict[str, Any]:
    """Return the settings that are fields of a config, by name."""
    names = {item.name for item in dataclasses.fields(config_type)}
    return {name: value for name, value in vars(settings).items() if name in names}
