"""`diffuser-policy collect`: record a dataset of demonstrations."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from diffuser_policy.cli import EXIT_INTERRUPTED
from diffuser_policy.cli.options import shown_as


@dataclass(frozen=True, kw_only=True)
class CollectCommand:
    """Record a Minari dataset by D4RL's maze2d recipe, on all cores.

    A scripted expert chases one random target after another without a reset. Stop it
    at any time; the same command goes on where it was.
    """

    env_id: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="ENV")]
    """Environment, for example diffuser_envs/Multi2D-Large-v1."""
    dataset: Annotated[str | None, shown_as("ID")] = None
    """Minari id of the dataset (default: diffuser/<name of the environment>)."""
    num_steps: int = 1_000_000
    """Environment steps in total."""
    run_length: int = 10_000
    """Environment steps between two resets."""
    max_steps_per_goal: Annotated[int | None, shown_as("N")] = None
    """Steps after which a target is given up (default: the env's step limit)."""
    action_noise: float = 0.0
    """Standard deviation of Gaussian noise added to every action."""
    demonstrator: Annotated[str | None, shown_as("NAME")] = None
    """Registered expert, or module:Class (default: the environment's own)."""
    options: Annotated[dict[str, float], shown_as("[NAME VALUE ...]")] = field(
        default_factory=dict
    )
    """Settings of the expert in pairs, for example: waypoint_jitter 0.1 d_gain -2."""
    seed: int = 0
    """Fixes everything that is drawn, whatever the number of workers."""
    num_workers: Annotated[int | None, shown_as("N")] = None
    """Processes (default: one per core)."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace a dataset, or unfinished work, of the same id."""


def run(command: CollectCommand) -> int:
    """Record the dataset and say where it is.

    Returns:
        The exit status.
    """
    from diffuser_policy.data.collection import CollectSettings, collect

    settings = CollectSettings(
        env_id=command.env_id,
        dataset_id=command.dataset,
        num_steps=command.num_steps,
        run_length=command.run_length,
        max_steps_per_goal=command.max_steps_per_goal,
        action_noise=command.action_noise,
        demonstrator=command.demonstrator,
        demonstrator_options=command.options,
        seed=command.seed,
        num_workers=command.num_workers,
        overwrite=command.overwrite,
    )
    try:
        folder = collect(settings)
    except KeyboardInterrupt:
        print("Interrupted. The same command goes on from here.", file=sys.stderr)
        return EXIT_INTERRUPTED
    print(f"Recorded {command.num_steps:,} steps: {folder}")
    return 0
