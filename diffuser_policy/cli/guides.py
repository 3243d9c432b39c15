"""`diffuser-policy guides`: the guides that can steer plans."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from diffuser_policy.cli.options import print_table, shown_as, table

if TYPE_CHECKING:
    from rich.console import RenderableType

FORMULA = re.compile(
    r"(?s:\$\$(.+?)\$\$)|(?<!\w)\$(?!\s)([^$]+?)(?<!\s)\$(?!\w)|:math:`([^`]+)`"
)
LATEX = (
    (r"\\[td]?frac(\w)(\w)", r"\1/\2"),
    (r"\\[td]?frac\{([^{}]*)\}\{([^{}]*)\}", r"\1 / \2"),
    (r"\\(?:mathrm|text)\{([^{}]*)\}", r"\1"),
    (r"\\(?:[bB]igg?[lr]?|left|right)(?![A-Za-z])", ""),
    (r"\\q?quad", " "),
    (r"\\cdot", " · "),
)
"""What formulas of docstrings are made of, and the same in plain characters."""


@dataclass(frozen=True, kw_only=True)
class GuidesSettings:
    """List the guides of all installed packages, or explain one.

    Pass them to any command that plans: --guide 'keep-out:center=3,4;radius=0.6'.
    """

    name: Annotated[tyro.conf.Positional[str | None], shown_as("[NAME]")] = None
    """The guide to explain."""


def guides(settings: GuidesSettings) -> int:
    """Print the list, or the explanation; return the exit status."""
    for part in _listed() if settings.name is None else _explained(settings.name):
        print_table(part, highlight=False)
    return 0


def _listed() -> Iterator[RenderableType]:
    """Yield every guide that is offered, one a row, and what is wrong with some."""
    from rich.table import Table
    from rich.text import Text

    from diffuser_policy.guides.registry import GUIDES, registered_guide

    listed = Table(box=None, pad_edge=False, padding=(0, 2, 1, 0))
    for header in ("guide", "parameters", "what it is for", "origin"):
        listed.add_column(header, no_wrap=header == "guide", overflow="fold")
    errors = []
    for plugin, error in GUIDES.entries():
        if error is None:
            guide, style = registered_guide(plugin), "bold"
            parameters = "\n".join(map(str, guide.parameters)) or "none"
            summary = plain(guide.documentation()[0].partition("\n")[0])
        else:
            parameters, summary, style = "–", "cannot be used, see below", "bold red"
            errors.append(Text(f"{error}\n", style="red"))
        cells = (Text(cell) for cell in (parameters, summary, plugin.origin))
        listed.add_row(Text(plugin.name, style=style), *cells)
    yield listed
    yield from errors


def _explained(name: str) -> Iterator[RenderableType]:
    """Yield what a guide does, what it takes, and how to pass it."""
    from rich.text import Text

    from diffuser_policy.guides.registry import GUIDES, example_texts, registered_guide
    from diffuser_policy.settings import in_words, value_text

    plugin = GUIDES.find(name)
    guide = registered_guide(plugin)
    description, helps = guide.documentation()
    yield Text.assemble((guide.name, "bold"), f"  {plugin.origin}\n")
    yield Text(f"{_reflowed(description or 'It has no description.')}\n")
    if guide.parameters:
        rows = (
            (
                parameter.name,
                "required" if parameter.required else value_text(parameter.default),
                in_words(parameter.hint),
                plain(helps.get(parameter.name, "")),
            )
            for parameter in guide.parameters
        )
        yield table("parameter", "default", "is", "", rows=rows)
    for text in example_texts(guide):
        yield Text(f"--guide '{text}'", style="bold")


def _reflowed(text: str) -> str:
    """Return paragraphs as one line each, so that they fill any terminal."""
    return "\n\n".join(map(_reflowed_block, text.split("\n\n")))


def _reflowed_block(block: str) -> str:
    if block.startswith(" "):  # code
        return block
    if block.startswith("$$"):  # lines of a formula stay
        return plain(block)
    return plain(" ".join(block.split()))


def plain(text: str) -> str:
    r"""Return text with plain formulas: "1/2 d_t^2" for "$\tfrac12 d_t^2$"."""
    return FORMULA.sub(lambda found: _plain_formula(found[found.lastindex or 0]), text)


def _plain_formula(formula: str) -> str:
    for pattern, replacement in LATEX:
        formula = re.sub(pattern, replacement, formula)
    formula = re.sub(r"\\([A-Za-z]+)", lambda found: _word(found[1]), formula)
    formula = re.sub(r"\\.", " ", formula)  # spaces of several widths
    formula = re.sub(r"\{(\w*)\}", r"\1", formula)
    formula = formula.replace("{", "(").replace("}", ")")
    return "\n".join(" ".join(line.split()) for line in formula.splitlines())


def _word(command: str) -> str:
    """Return what stands for a command of LaTeX: a Greek letter, or its name."""
    try:
        return unicodedata.lookup(f"GREEK SMALL LETTER {command}")
    except KeyError:
        return command
