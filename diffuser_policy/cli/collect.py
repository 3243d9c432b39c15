"""`diffuser-policy collect`: record a dataset of demonstrations."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import tyro

from diffuser_policy.cli import EXIT_INTERRUPTED
from diffuser_policy.cli.options import shown_as


@dataclass(frozen=True, kw_only=True)
class CollectCommand:
    """Record a Minari dataset of demonstrations, on all cores.

    Mazes are recorded by D4RL's maze2d recipe: a scripted expert chases one random
    target after another without a reset. Block stacking is recorded in whole episodes,
    each ending in a tower. Stop it at any time; the same command resumes.
    """

    env_id: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="ENV")]
    """Environment, for example diffuser_envs/Multi2D-Large-v1."""
    dataset: Annotated[str | None, shown_as("ID")] = None
    """Minari id of the dataset (default: diffuser/<name of the environment>, or the
    generator's own)."""
    num_steps: Annotated[int | None, shown_as("N")] = None
    """Runs: environment steps in total (default: a million)."""
    run_length: Annotated[int | None, shown_as("N")] = None
    """Runs: environment steps between two resets (default: 10,000)."""
    max_steps_per_goal: Annotated[int | None, shown_as("N")] = None
    """Runs: steps after which a target is given up (default: the env's step limit)."""
    action_noise: float = 0.0
    """Runs: standard deviation of Gaussian noise added to every action."""
    num_episodes: Annotated[int | None, shown_as("N")] = None
    """Episodes: how many (default: 10,000)."""
    generator: Annotated[str | None, shown_as("NAME")] = None
    """Episodes: how they are made, such as kinematic or physics for block stacking
    (default: the expert's first)."""
    demonstrator: Annotated[str | None, shown_as("NAME")] = None
    """Expert: by name, as module:Class or as file.py:Class (default: the environment's
    own)."""
    options: Annotated[dict[str, float], shown_as("[NAME VALUE ...]")] = field(
        default_factory=dict
    )
    """Settings of the expert (or generator) in pairs, for example: waypoint_jitter 0.1
    d_gain -2."""
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
    from diffuser_policy.data.minari import recorded_facts

    settings = CollectSettings(
        env_id=command.env_id,
        dataset_id=command.dataset,
        num_steps=command.num_steps,
        run_length=command.run_length,
        max_steps_per_goal=command.max_steps_per_goal,
        action_noise=command.action_noise,
        num_episodes=command.num_episodes,
        generator=command.generator,
        demonstrator=command.demonstrator,
        demonstrator_options=command.options,
        seed=command.seed,
        num_workers=command.num_workers,
        overwrite=command.overwrite,
    )
    try:
        folder = collect(settings)
    except KeyboardInterrupt:
        print("Interrupted. The same command resumes from here.", file=sys.stderr)
        return EXIT_INTERRUPTED
    print(f"Recorded {_summary(recorded_facts(folder))}: {folder}")
    return 0


def _summary(facts: Mapping[str, Any]) -> str:
    """Say how much was recorded, what failed, and what was verified."""
    parts = [f"{facts['total_steps']:,} steps"]
    collection = facts["collection"]
    if "num_episodes" in collection:
        parts.insert(0, f"{facts['total_episodes']:,} episodes")
        parts.append(f"{collection['failures']:,} failed attempts left out")
    if collection.get("verified"):
        parts.append(
            "{confirmed} of {episodes} verified".format(**collection["verified"])
        )
    return ", ".join(parts)
