"""`diffuser-policy guides`: what plans can be steered by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

if TYPE_CHECKING:
    from rich.console import RenderableType

    from diffuser_policy.guides.registered import RegisteredGuide


@dataclass(frozen=True, kw_only=True)
class GuidesSettings:
    """List the guides of all installed packages, or explain one.

    evaluate and plan take them: --guide 'keep-out:center=3,4;radius=0.6'.
    """

    name: Annotated[
        tyro.conf.Positional[str | None],
        tyro.conf.arg(metavar="NAME", help_behavior_hint=""),
    ] = None
    """The guide to explain."""


def run(settings: GuidesSettings) -> int:
    """Print the list, or the explanation.

    Returns:
        The exit status.
    """
    from rich.console import Console

    from diffuser_policy.guides.registry import find_guide

    console = Console(highlight=False)
    found = None if settings.name is None else find_guide(settings.name)
    for part in _listed() if found is None else _explained(found):
        console.print(part)
    return 0


def _listed() -> Iterator[RenderableType]:
    """Yield every guide that is offered, one a row, and what is wrong with some."""
    from rich.table import Table
    from rich.text import Text

    from diffuser_policy.guides.registry import guide_entries

    table = Table(box=None, pad_edge=False, padding=(0, 2, 1, 0))
    for header in ("guide", "parameters", "what it is for", "origin"):
        table.add_column(header, no_wrap=header == "guide", overflow="fold")
    errors = []
    for entry in guide_entries():
        parameters, summary = "–", "cannot be used, see below"
        if entry.guide is not None:
            parameters = "\n".join(map(str, entry.guide.parameters)) or "none"
            summary = entry.guide.summary
        else:
            errors.append(Text(f"{entry.error}\n", style="red"))
        style = "bold" if entry.guide is not None else "bold red"
        cells = (Text(cell) for cell in (parameters, summary, entry.origin))
        table.add_row(Text(entry.name, style=style), *cells)
    yield table
    yield from errors


def _explained(guide: RegisteredGuide) -> Iterator[RenderableType]:
    """Yield what a guide is, what it takes, and how it is given."""
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    from diffuser_policy.guides.parameters import split_docstring, value_text
    from diffuser_policy.guides.text import example_texts

    yield Text.assemble((guide.name, "bold"), f"  {guide.origin}\n")
    described = split_docstring(guide.target)[0] or "It has no description."
    yield Text(f"{_reflowed(described)}\n")
    if guide.parameters:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for header in ("parameter", "default", "is", ""):
            table.add_column(header, no_wrap=header == "parameter", overflow="fold")
        for parameter in guide.parameters:
            table.add_row(
                Text(parameter.name, style="bold"),
                "required" if parameter.required else value_text(parameter.default),
                Text(parameter.kind),
                Text(parameter.help),
            )
        yield Padding(table, (0, 0, 1, 0))
    for text in example_texts(guide):
        yield Text(f"--guide '{text}'", style="bold")


def _reflowed(text: str) -> str:
    """Return paragraphs as one line each, so that they fill any terminal."""
    blocks = text.split("\n\n")
    return "\n\n".join(
        block if block.startswith((" ", "$$")) else " ".join(block.split())
        for block in blocks
    )
