"""`diffuser-policy benchmark report`: tables and pictures of a benchmark's results."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from diffuser_policy.cli.options import shown_as


@dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """Write the report of a benchmark: Markdown, and one self-contained HTML page.

    Cells without a result are listed, and take no part in any figure.
    """

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
    """Folder of the benchmark."""
    output: Annotated[Path | None, shown_as("FOLDER")] = None
    """Where to write report.md, report.html and figures/ (default: DIR/report)."""
    mixed_versions: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Accept cells that different versions made; the report names them."""


def run(settings: ReportSettings) -> int:
    """Write the report and print its tables of scores.

    Returns:
        The exit status.
    """
    from diffuser_policy.benchmark.report import compact_tables, write_report

    report = write_report(
        settings.folder, settings.output, mixed=settings.mixed_versions
    )
    print(compact_tables(report.study))
    for cell in report.study.open_cells:
        detail = f": {cell.detail}" if cell.detail else ""
        print(f"No result: {cell.name} ({cell.kind}{detail})")
    print(f"Wrote {report.markdown}")
    print(f"Wrote {report.html}")
    return 0
