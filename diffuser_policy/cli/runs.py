"""What the subcommands that train say of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffuser_policy.training.trainer import TrainingRun


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
