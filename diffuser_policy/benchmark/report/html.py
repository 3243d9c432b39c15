"""A report as one HTML file: pictures inside, no scripts, nothing to be fetched."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from html import escape
from importlib.resources import files

from diffuser_policy.benchmark.report.document import (
    Block,
    Bullets,
    Cell,
    Document,
    Panel,
    Paragraph,
    Picture,
    Remark,
    Table,
)
from diffuser_policy.benchmark.report.markdown import PUBLISHED

PROSE = 40  # characters from which a cell is text
SIZE_AT = (16, 20)  # width and height in a PNG file, four bytes each


def to_html(document: Document) -> str:
    """Return a report as a page that needs no other file.

    Raises:
        OSError: A picture could not be read.
    """
    style = (files(__package__) / "page.css").read_text(encoding="utf-8")
    title = escape(document.title)
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{title}</title>",
            f"<style>\n{style}</style>",
            "</head>",
            "<body>",
            "<main>",
            f"<h1>{title}</h1>",
            *(line for block in document.lead for line in _block(block)),
            *_contents(document),
            *_sections(document),
            "</main>",
            "</body>",
            "</html>",
            "",
        ]
    )


def _contents(document: Document) -> Iterator[str]:
    yield '<nav aria-label="Contents"><ul>'
    for section in document.sections:
        yield f'<li><a href="#{section.anchor}">{escape(section.title)}</a></li>'
    yield "</ul></nav>"


def _sections(document: Document) -> Iterator[str]:
    for section in document.sections:
        anchor, title = section.anchor, escape(section.title)
        yield f'<section aria-labelledby="{anchor}">'
        yield f'<h2 id="{anchor}"><a href="#{anchor}">{title}</a></h2>'
        for block in section.blocks:
            yield from _block(block)
        yield "</section>"


def _block(block: Block) -> Iterator[str]:
    """Yield the lines of a block."""
    if isinstance(block, Paragraph):
        yield f"<p>{escape(block.text)}</p>"
    elif isinstance(block, Remark):
        yield f'<p class="remark" role="note">{escape(block.text)}</p>'
    elif isinstance(block, Bullets):
        yield "<ul>"
        yield from (f"<li>{escape(item)}</li>" for item in block.items)
        yield "</ul>"
    elif isinstance(block, Table):
        yield from _table(block)
    else:
        yield from _picture(block)


def _table(table: Table) -> Iterator[str]:
    title = escape(table.title)
    yield f'<div class="block {table.kind}">'
    yield f"<h3>{title}</h3>"
    if table.kind == "published":
        yield f'<p class="mark">{escape(PUBLISHED)}</p>'
    # The box scrolls by itself where the page is narrow; the keyboard can reach it.
    yield f'<div class="scroll" role="region" tabindex="0" aria-label="{title}">'
    yield "<table>"
    cells = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.header)
    yield f"<thead><tr>{cells}</tr></thead>"
    yield "<tbody>"
    for number, (name, *row) in enumerate(table.rows):
        summary = ' class="average"' if number in table.summary_rows else ""
        cells = "".join(_column(cell) for cell in row)
        yield f'<tr{summary}><th scope="row">{_lines(name)}</th>{cells}</tr>'
    yield "</tbody>"
    yield "</table>"
    yield "</div>"
    yield from _footer(table)
    yield "</div>"


def _column(cell: Cell) -> str:
    """Return a cell; long text wraps and reads from the left, unlike figures."""
    prose = ' class="prose"' if len(cell.text) > PROSE else ""
    return f"<td{prose}>{_lines(cell)}</td>"


def _lines(cell: Cell) -> str:
    first = escape(cell.text)
    lines = [f"<strong>{first}</strong>" if cell.strong else first]
    lines += [f"<small>{escape(line)}</small>" for line in cell.small]
    return "".join(lines)


def _picture(picture: Picture) -> Iterator[str]:
    yield '<div class="block">'
    yield f"<h3>{escape(picture.title)}</h3>"
    yield f'<div class="panels{" wide" if picture.wide else ""}">'
    for panel in picture.panels:
        caption = f"<figcaption>{escape(panel.caption)}</figcaption>"
        yield f"<figure>{_image(panel)}{caption if panel.caption else ''}</figure>"
    yield "</div>"
    yield from _footer(picture)
    yield "</div>"


def _image(panel: Panel) -> str:
    """Return a picture with its bytes and size, so that the page does not jump."""
    data = panel.path.read_bytes()
    width, height = (
        int.from_bytes(data[begin : begin + 4], "big") for begin in SIZE_AT
    )
    source = f"data:image/png;base64,{base64.b64encode(data).decode('ascii')}"
    return (
        f'<img src="{source}" alt="{escape(panel.alt)}" width="{width}" '
        f'height="{height}">'
    )


def _footer(block: Table | Picture) -> Iterator[str]:
    """Yield the notes of a table or picture, and the command that re-makes it."""
    if block.notes:
        yield f'<p class="notes">{escape(" ".join(block.notes))}</p>'
    if block.command:
        yield "<details><summary>How to make this again</summary>"
        yield f"<pre><code>{escape(block.command)}</code></pre></details>"
