"""`diffuser-policy export`: a planner as ONNX files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from diffuser_policy.cli.options import (
    Planner,
    PlanningOptions,
    load_policy,
    setting_options,
    shown_as,
)
from diffuser_policy.config import PlannerConfig

# Settings that the files hold: how a first plan is made, without a guide.
HELD = (
    *("sampler", "num_sampling_steps", "step_spacing", "temperature"),
    *("num_candidates", "satisficing", "ranking"),
    *("horizon", "horizon_scale", "subgoal", "goal_velocity"),
)
# Of those that they do not hold, settings that could stand in the way of these.
NOT_HELD = ("steadiness", "warm_start", "warm_start_steps", "replan_interval")


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """Write a planner as ONNX files, which plan without PyTorch.

    The files hold how a plan is made. How plans are followed and replaced is up to the
    program that reads them.
    """

    planner: Planner
    """Name of a shipped planner, folder, or hub id (NAME/REPOSITORY@REVISION)."""
    guide: tyro.conf.UseAppendAction[Annotated[tuple[str, ...], shown_as("none")]] = ()
    """--guide none drops the planner's own guide, which ONNX files cannot hold."""
    settings: Annotated[
        tyro.conf.OmitArgPrefixes[dict[str, Any]],
        setting_options(PlannerConfig, only=HELD, name="planning", prefix_name=False),
    ] = field(default_factory=dict)
    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("exported")
    """Folder for the files."""


def export(settings: ExportSettings) -> int:
    """Write the files; return the exit status."""
    from diffuser_policy.checkpoint import read_planner

    config, _ = read_planner(settings.planner)
    saved = {**vars(config.planner), **vars(config.execution)}
    given = {name: None for name in NOT_HELD if saved[name] is not None}
    given |= settings.settings
    options = PlanningOptions(guide=settings.guide, settings=given)
    load_policy(settings.planner, options, seed=0).export(settings.out)
    print(f"Wrote {settings.out}")
    return 0
