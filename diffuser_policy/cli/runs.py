"""What the subcommands that train share: they run it, and say what became of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffuser_policy.cli import EXIT_INTERRUPTED, EXIT_OK

if TYPE_CHECKING:
    from diffuser_policy.training.trainer import TrainingRun


def carry_out(
    run: TrainingRun[Any], what: str, result: str, *, save_interval: int, **options: Any
) -> int:
    """Train to the end, or until Ctrl-C.

    Args:
        run: Restored, if it had begun before.
        what: Is trained on what.
        result: Said of a run that came to its end.
        save_interval: Gradient steps between checkpoints.
        options: More of `TrainingRun.run`.

    Returns:
        The exit status.
    """
    say = print if run.processes.is_main else _nothing
    say(announcement(run, what))
    try:
        run.run(save_interval=save_interval, **options)
    except KeyboardInterrupt:
        say(farewell(run.output), file=sys.stderr)
        return EXIT_INTERRUPTED
    say(f"Trained: {run.output}\n{result}")
    return EXIT_OK


def announcement(run: TrainingRun[Any], what: str) -> str:
    """Return what is about to happen.

    Args:
        run: Restored, if it had begun before.
        what: Is trained on what.
    """
    total, done = run.optimization.num_steps, run.step
    where = f"in {run.output}, on {run.processes.device}"
    if done >= total:
        return f"{what}: all {total:,} gradient steps are done already, {where}."
    if done:
        return f"{what}: resuming at gradient step {done:,} of {total:,} {where}."
    return f"{what}: {total:,} gradient steps {where}."


def farewell(output: Path) -> str:
    """Return where an interrupted run will go on."""
    from diffuser_policy.training.state import checkpoints

    saved = checkpoints(output / "training")
    if not saved:
        return "Stopped before anything was saved."
    step = int(saved[-1].name.rpartition("-")[2])
    return f"Stopped; gradient step {step:,} is saved. The same command goes on there."


def _nothing(*_: object, **__: object) -> None:
    """Say nothing: another process does the talking."""
