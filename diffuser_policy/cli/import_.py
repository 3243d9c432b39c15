"""`diffuser-policy import`: a Minari dataset from a file of D4RL, OGBench or others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from diffuser_policy.cli.options import Flag, shown_as
from diffuser_policy.words import counted

Name = Annotated[str | None, shown_as("NAME")]


@dataclass(frozen=True, kw_only=True)
class ImportCommand:
    """Make a Minari dataset from D4RL's HDF5, OGBench's .npz, or similar arrays.

    The file holds a row for every env step, in arrays that D4RL calls observations,
    actions, rewards, terminals and timeouts. The options below name arrays that are
    called differently.
    """

    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]
    """HDF5 or .npz."""
    env: Annotated[str, tyro.conf.arg(metavar="ID")]
    """Environment that the data is from."""
    dataset_id: Annotated[str | None, shown_as("ID", name="dataset")] = None
    """Minari id of the dataset (default: diffuser/<name of the file>)."""
    observations: Name = None
    """Array of the observations before each step."""
    actions: Name = None
    """Array of the actions."""
    rewards: Name = None
    """Array of the rewards."""
    terminals: Name = None
    """Array that is 1 where an episode terminated."""
    timeouts: Name = None
    """Array that is 1 where an episode was cut."""
    next_observations: Name = None
    """Array of the observations after each step."""
    achieved_goals: Name = None
    """Array of the achieved goals (default: the observation columns that hold them)."""
    desired_goals: Name = None
    """Array of the goals (default: infos/goal, desired_goals, or what an episode
    achieved in the end)."""
    overwrite: Flag = False
    """Replace a dataset of the same id."""


def import_(command: ImportCommand) -> int:
    """Import the file and report the result; return the exit status."""
    from dataclasses import fields

    from diffuser_policy.data.arrays import ArrayNames
    from diffuser_policy.data.foreign import import_file

    given = {field.name: getattr(command, field.name) for field in fields(ArrayNames)}
    names = ArrayNames(**given)
    made = import_file(
        command.file,
        command.env,
        dataset_id=command.dataset_id,
        names=names,
        overwrite=command.overwrite,
    )
    for remark in made.remarks:
        print(remark)
    print(
        f"Imported {counted(made.num_episodes, 'episode')}, "
        f"{counted(made.num_steps, 'step')} of {counted(made.num_rows, 'row')}: "
        f"{made.folder}"
    )
    print(f"Train on them: diffuser-policy train --dataset {made.dataset_id}")
    return 0
