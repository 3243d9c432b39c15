"""Pictures of plans, which cells left in `cells/<id>/pictures/*.png`.

A caption is in a JSON file of the same name, `{"caption": "…"}`, or else the picture's
file name in words.
"""

from __future__ import annotations

import json
from pathlib import Path

from diffuser_policy.benchmark.cells import CellFolder
from diffuser_policy.benchmark.report.document import Panel, Picture
from diffuser_policy.benchmark.report.study import Study
from diffuser_policy.benchmark.report.wording import run_command
from diffuser_policy.files import replaced_file

MOST = 4  # pictures of each cell
PNG_HEADER = b"\x89PNG\r\n\x1a\n"
PICTURES = "pictures"


def plan_pictures(study: Study, folder: Path) -> list[Picture]:
    """Return the pictures of plans by method, copied beside the report.

    Args:
        study: The benchmark.
        folder: For the copies.

    Raises:
        StorageError: They could not be written.
    """
    found = []
    for method in study.methods:
        rows = [row for row in study.rows if study.entry(row, method)]
        panels = [
            panel
            for row in rows
            for entry in [study.entry(row, method)]
            if entry is not None
            for result in entry.results
            for panel in _copies(study, result.cell.id, row.title, folder)
        ]
        if panels:
            found.append(
                Picture(
                    title=f"{study.label(method)}: plans",
                    panels=tuple(panels),
                    wide=True,
                    command=run_command(study, rows, [method]),
                )
            )
    return found


def _copies(study: Study, cell_id: str, title: str, folder: Path) -> list[Panel]:
    """Copy what is a PNG file; anything else is left where it is."""
    source = CellFolder(study.folder, cell_id).path / PICTURES
    found = []
    for path in sorted(source.glob("*.png"))[:MOST]:
        data = path.read_bytes()
        if not data.startswith(PNG_HEADER):
            continue
        copy = folder / f"{cell_id}-{path.name}"
        with replaced_file(copy) as partial:
            partial.write_bytes(data)
        caption = f"{title}: {_caption(path)}"
        found.append(Panel(copy, caption, caption))
    return found


def _caption(path: Path) -> str:
    try:
        data = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        return str(data["caption"])
    except (OSError, ValueError, KeyError, TypeError):
        return path.stem.replace("-", " ").replace("_", " ")
