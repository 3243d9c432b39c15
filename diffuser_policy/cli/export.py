"""`diffuser-policy export`: a planner as ONNX files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from diffuser_policy.cli.options import Planner, PlanningOptions, load_policy


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """Write a planner as ONNX files, which plan without PyTorch."""

    planner: Planner
    """Name of a shipped planner, folder, or hub id (NAME/REPOSITORY@REVISION)."""
    planning: tyro.conf.OmitArgPrefixes[PlanningOptions] = field(
        default_factory=PlanningOptions
    )
    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("exported")
    """Folder for the files."""


def export(settings: ExportSettings) -> int:
    """Write the files; return the exit status."""
    policy = load_policy(settings.planner, settings.planning, seed=0)
    policy.export(settings.out)
    print(f"Wrote {settings.out}")
    return 0
