"""What a report consists of, before it is Markdown or HTML.

All text is plain: the writers escape it, so nothing that a result file says can become
markup.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: First line.
        small: Further lines, less prominent.
        strong: Whether the first line stands out.
        italic: Whether it is of other people.
    """

    text: str
    small: tuple[str, ...] = ()
    strong: bool = False
    italic: bool = False


MISSING = Cell("–")


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table.

    Attributes:
        title: Above it.
        header: Of all columns, the first being that of the rows' names.
        rows: As many cells each as the header has; the first names the row.
        notes: Below it.
        command: That re-makes it.
        kind: `published` tables look different, so that nobody mixes them up.
        summary_rows: Indices of the rows that average others.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    command: str = ""
    kind: Literal["ours", "published"] = "ours"
    summary_rows: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Panel:
    """A picture in a file.

    Attributes:
        path: A PNG file.
        alt: What it shows, for those who cannot see it.
        caption: Below it.
    """

    path: Path
    alt: str
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure of one or more pictures, side by side where there is room.

    Attributes:
        title: Above it.
        panels: Its pictures.
        notes: Below it.
        command: That re-makes it.
        wide: Whether they need much room, two in a row at most.
    """

    title: str
    panels: tuple[Panel, ...]
    notes: tuple[str, ...] = ()
    command: str = ""
    wide: bool = False


@dataclass(frozen=True)
class Paragraph:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """A list of sentences."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Remark:
    """What must not be overlooked."""

    text: str


Block = Table | Picture | Paragraph | Bullets | Remark


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the report with a heading.

    Attributes:
        title: The heading.
        blocks: What is below it.
    """

    title: str
    blocks: tuple[Block, ...]

    @property
    def anchor(self) -> str:
        """Name to link to."""
        words = "".join(c if c.isalnum() else " " for c in self.title.lower()).split()
        return "-".join(words)


@dataclass(frozen=True, kw_only=True)
class Document:
    """A report.

    Attributes:
        title: Of the page.
        lead: Blocks before the first section: the summary.
        sections: The rest.
    """

    title: str
    lead: tuple[Block, ...]
    sections: Sequence[Section] = field(default_factory=tuple)
