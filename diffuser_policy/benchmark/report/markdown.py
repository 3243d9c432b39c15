"""A report as Markdown, as GitHub shows it; its pictures are files beside it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from html import escape as html_escape
from pathlib import Path
from urllib.parse import quote

from diffuser_policy.benchmark.report.document import (
    Block,
    Bullets,
    Cell,
    Document,
    Paragraph,
    Picture,
    Remark,
    Table,
)

# What would be markup. An underscore within a word is none.
MARKUP = re.compile(r"[\\`*<>|~#$&]|(?<!\w)_|_(?!\w)|\](?=[(\[:])")
PUBLISHED = "Published on other data, by others: not to be compared with the above."


def to_markdown(document: Document, folder: Path) -> str:
    """Return a report as Markdown.

    Args:
        document: The report.
        folder: Where the text will be; pictures are named from there.
    """
    parts = [f"# {escape(document.title)}"]
    for block in document.lead:
        parts += _block(block, folder)
    for section in document.sections:
        parts.append(f"## {escape(section.title)}")
        for block in section.blocks:
            parts += _block(block, folder)
    return "\n\n".join(parts) + "\n"


def escape(text: str) -> str:
    """Return text that Markdown shows as it is, on one line."""
    return MARKUP.sub(lambda found: "\\" + found[0], " ".join(text.split()))


def table_lines(table: Table, *, line_break: str = "<br>") -> str:
    """Return the rows of a table.

    Args:
        table: The table.
        line_break: Between the lines of a cell.
    """
    lines = [
        "| " + " | ".join(map(escape, table.header)) + " |",
        "|" + "---|" * len(table.header),
    ]
    for row in table.rows:
        cells = [_cell(cell, table.kind, line_break) for cell in row]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(cell: Cell, kind: str, line_break: str) -> str:
    text = escape(cell.text)
    if text and cell.strong:
        text = f"**{text}**"
    elif text and (cell.italic or kind == "published"):
        text = f"*{text}*"
    return line_break.join([text, *map(escape, cell.small)])


def _block(block: Block, folder: Path) -> Iterator[str]:
    """Yield the paragraphs of a block."""
    if isinstance(block, Paragraph):
        yield escape(block.text)
    elif isinstance(block, Remark):
        yield f"> **Note.** {escape(block.text)}"
    elif isinstance(block, Bullets):
        yield "\n".join(f"- {escape(item)}" for item in block.items)
    else:
        yield f"### {escape(block.title)}"
        if isinstance(block, Table):
            if block.kind == "published":
                yield f"*{PUBLISHED}*"
            yield table_lines(block)
        else:
            yield _picture(block, folder)
        if block.notes:
            yield escape(" ".join(block.notes))
        if block.command:
            yield f"```sh\n{block.command}\n```"


def _picture(picture: Picture, folder: Path) -> str:
    """Return panels in a row: Markdown's own pictures have no width."""
    width = "49%" if picture.wide else "32%"
    lines = []
    for panel in picture.panels:
        place = Path(os.path.relpath(panel.path, folder)).as_posix()
        alt = html_escape(panel.alt, quote=True)
        lines.append(f'<img src="{quote(place)}" alt="{alt}" width="{width}">')
    captions = [escape(panel.caption) for panel in picture.panels if panel.caption]
    return "\n".join(lines) + "".join(f"\n\n{caption}" for caption in captions)
