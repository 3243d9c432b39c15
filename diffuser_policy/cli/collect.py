"""`diffuser-policy collect`: record a dataset of demonstrations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from diffuser_policy.cli.options import Flag, shown_as


@dataclass(frozen=True, kw_only=True)
class CollectCommand:
    """Record a Minari dataset of demonstrations, on all cores.

    Mazes are recorded by D4RL's maze2d recipe: a scripted expert chases one random
    target after another without a reset. Block stacking is recorded in whole episodes,
    each ending in a tower, and OGBench's point mazes by OGBench's recipes (--generator
    navigate or stitch). Stop it at any time; the same command resumes.
    """

    env_id: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="ENV")]
    """Environment, for example diffuser_envs/Multi2D-Large-v1, or module:function."""
    dataset_id: Annotated[str | None, shown_as("ID", name="dataset")] = None
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
    """Episodes: how many (default: the generator's own number, or 10,000)."""
    generator: Annotated[str | None, shown_as("NAME")] = None
    """Episodes: how they are made, such as kinematic or physics for block stacking
    (default: the expert's first)."""
    demonstrator: Annotated[str | None, shown_as("NAME")] = None
    """Expert: by name, as module:Class or as file.py:Class (default: the environment's
    own)."""
    demonstrator_options: Annotated[
        dict[str, float], shown_as("[NAME VALUE ...]", name="options")
    ] = field(default_factory=dict)
    """Settings of the expert (or generator) in pairs, for example: waypoint_jitter 0.1
    d_gain -2."""
    seed: int = 0
    """Fixes everything that is drawn, whatever the number of workers."""
    num_workers: Annotated[int | None, shown_as("N")] = None
    """Processes (default: one per core)."""
    overwrite: Flag = False
    """Replace a dataset, or unfinished work, of the same id."""


def collect(command: CollectCommand) -> int:
    """Record the dataset and say where it is; return the exit status."""
    from diffuser_policy.data import collection as data
    from diffuser_policy.data.minari import recorded_facts

    try:
        folder = data.collect(data.CollectSettings(**vars(command)))
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt("the same command resumes from here.") from stop
    facts = recorded_facts(folder)
    recorded, parts = facts["collection"], [f"{facts['total_steps']:,} steps"]
    if "num_episodes" in recorded:
        parts.insert(0, f"{facts['total_episodes']:,} episodes")
        parts.append(f"{recorded['failures']:,} failed attempts left out")
    if verified := recorded.get("verified"):
        parts.append("{confirmed} of {episodes} verified".format(**verified))
    print(f"Recorded {', '.join(parts)}: {folder}")
    return 0
