"""`diffuser-policy collect`: record a dataset of demonstrations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import tyro

from diffuser_policy.cli.options import Assignments, Flag, parse_assignments
from diffuser_policy.config import CollectSettings
from diffuser_policy.words import counted


@dataclass(frozen=True, kw_only=True)
class CollectCommand(CollectSettings):
    """Record a Minari dataset of demonstrations, on all cores.

    Mazes are recorded by D4RL's maze2d recipe: a scripted expert chases one random
    target after another without a reset. Block stacking is recorded in whole episodes,
    each ending in a tower, and OGBench's point mazes by OGBench's recipes (--generator
    navigate or stitch). Other demonstrators, such as hopper-medium, act from reset to
    end. Stop it at any time; the same command resumes.
    """

    env_id: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="ENV")]
    dataset_id: Annotated[str | None, tyro.conf.arg(metavar="ID", name="dataset")] = (
        None
    )
    demonstrator_options: tyro.conf.Suppress[Mapping[str, Any]] = field(
        default_factory=dict
    )
    option: Assignments = ()
    """Setting of the demonstrator, or of its generator; may be given several times. For
    example waypoint_jitter=0.1 or d_gain=-2."""
    overwrite: Flag = False


def collect(command: CollectCommand) -> int:
    """Record the dataset and say where it is; return the exit status."""
    from diffuser_policy.data.collection import collect as record
    from diffuser_policy.data.minari import recorded_facts

    options = parse_assignments(command.option, option="--option")
    given = {**command.demonstrator_options, **options}
    try:
        folder = record(replace(command, demonstrator_options=given))
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt("the same command resumes from here.") from stop
    facts = recorded_facts(folder)
    recorded, parts = facts["collection"], [counted(facts["total_steps"], "step")]
    if "num_episodes" in recorded:
        parts.insert(0, counted(facts["total_episodes"], "episode"))
        parts.append(f"{counted(recorded['failures'], 'failed attempt')} left out")
    if verified := recorded.get("verified"):
        parts.append("{confirmed} of {episodes} verified".format(**verified))
    print(f"Recorded {', '.join(parts)}: {folder}")
    return 0
