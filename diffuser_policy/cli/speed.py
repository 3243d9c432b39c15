"""`diffuser-policy speed`: how fast a planner plans, beside the paper's setting."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from diffuser_policy.cli.options import Flag, PlannerSettings, shown_as
from diffuser_policy.errors import ConfigError, require_extra

FIGURE = "speed.png"


@dataclass(frozen=True, kw_only=True)
class SpeedSettings(PlannerSettings):
    """Measure how fast a planner plans, beside the paper's setting and the floor.

    All cases take turns, so that other work on the machine slows them alike.
    """

    rounds: int = 7
    """Rounds, each of which runs every case once; medians are reported."""
    quick: Flag = False
    """Measure only a few cases, and extrapolate the paper's setting from 4 of its
    steps."""
    compiled: Flag = False
    """Also measure torch.compile, which may take minutes to start."""
    seed: int = 0
    """Fixes the observations to plan from."""
    out: Annotated[Path | None, shown_as("FOLDER")] = None
    """Folder for speed.png: latency against horizon, candidates and environments."""
    json: Annotated[Path | None, shown_as("FILE")] = None
    """File for all figures, the machine and versions."""


def replanning(settings: SpeedSettings) -> SpeedSettings:
    """Return settings with the interval at which `speed` replans, if it is needed.

    Raises:
        ConfigError: Another interval was given.
    """
    planning = settings.planning
    given = planning.settings
    if given.get("replan_interval", 1) != 1:
        raise ConfigError(
            f"--replan-interval has no effect in `speed`, which times a plan in every "
            f"env step; got {given['replan_interval']}. Leave it out."
        )
    if not {"warm_start", "steadiness"} & {*given}:
        return settings
    planning = replace(planning, settings={"replan_interval": 1, **given})
    return replace(settings, planning=planning)


def speed(settings: SpeedSettings) -> int:
    """Measure, write the files, and print the tables; return the exit status."""
    from rich.console import Console
    from rich.progress import Progress

    from diffuser_policy.files import check_writable, write_json
    from diffuser_policy.plotting import save_figure
    from diffuser_policy.speed import measure_speed
    from diffuser_policy.speed.report import facts, figure, tables, to_json

    if settings.out is not None:
        require_extra("matplotlib", "plot")
        check_writable(settings.out / FIGURE)
    if settings.json is not None:
        check_writable(settings.json)
    policy, env_id = replanning(settings).load()
    with Progress(transient=True, console=Console(stderr=True)) as bar:
        task = bar.add_task("measuring", total=1.0)
        measured = measure_speed(
            policy,
            env_id,
            rounds=settings.rounds,
            seed=settings.seed,
            quick=settings.quick,
            compiled=settings.compiled,
            progress=lambda share: bar.update(task, completed=share),
        )
    written = []  # first: what is printed may be lost
    if settings.json is not None:
        data = to_json(measured)
        data["settings"] = {"name": settings.planner, **data["settings"]}
        write_json(settings.json, data)
        written.append(settings.json)
    if settings.out is not None:
        written.append(settings.out / FIGURE)
        save_figure(figure(measured, title=settings.planner), written[-1])
    console = Console(highlight=False)
    for table in (*tables(measured), facts(measured)):
        console.print(table)
    for path in written:
        print(f"Wrote {path}")
    return 0
