"""Docstrings in Markdown for autodoc, which reads reStructuredText.

The docstrings of this project use a little Markdown: `code`, $formulas$, tables, and
indented blocks of code. They are translated here, before napoleon reads the sections
("Args:", "Returns:", ...). Everything else means the same in both languages.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from typing import Any

from docutils import nodes

SECTION = re.compile(r"(Args|Attributes|Example|Examples|Note|Raises|Returns|Yields):$")
DISPLAY = re.compile(r"^( *)\$\$(.+?)\$\$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"\$(?P<math>[^$]+)\$|`(?P<code>[^`]+)`|(?P<bar>\|)", re.DOTALL)
OURS = re.compile(r"diffuser_(policy|envs)(\.\w+)+|([A-Z]+[a-z0-9]+)+")
CELL = re.compile(r"(?<!\\)\|")


def setup(app: Any) -> dict[str, Any]:
    """Register the translation; napoleon's own runs at priority 500."""
    app.connect("autodoc-process-docstring", process, priority=400)
    app.connect("doctree-read", remove_object_bases)
    return {"parallel_read_safe": True}


def process(
    _app: Any, _what: str, _name: str, _obj: Any, _options: Any, lines: list[str]
) -> None:
    """Translate a docstring in place."""
    lines[:] = translate("\n".join(lines)).splitlines()


def remove_object_bases(_app: Any, doctree: nodes.document) -> None:
    """Say nothing of bases where a class has none."""
    for paragraph in list(doctree.findall(nodes.paragraph)):
        if paragraph.astext() == "Bases: object":
            paragraph.parent.remove(paragraph)


def translate(text: str) -> str:
    """Return a Markdown docstring in reStructuredText."""
    blocks, in_section = [], False
    for block in re.split(r"\n\s*\n", text):
        first = block.lstrip("\n").splitlines()[:1]
        indent = len(first[0]) - len(first[0].lstrip()) if first else 0
        if indent == 0 and first:
            in_section = bool(SECTION.match(first[0]))
        if indent >= 4 and not in_section:
            blocks.append(_code(block))
        elif ">>>" in block:
            blocks.append(block)
        elif re.match(r" *\|", block):
            blocks.append(_table(block))
        else:
            blocks.append(_paragraph(block))
    return "\n\n".join(blocks) + "\n"


def _paragraph(block: str) -> str:
    """Return text with its formulas and code marked up."""
    text = []
    for indent, formula in _formulas(block):
        if formula is None:
            text.append(INLINE.sub(_inline, indent))
        else:
            inner = textwrap.indent(textwrap.dedent(formula), indent + "   ")
            text.append(f"\n\n{indent}.. math::\n\n{inner}\n\n")
    return "".join(text)


def _formulas(block: str) -> Iterator[tuple[str, str | None]]:
    """Split a block into texts, and formulas that have lines of their own.

    Yields:
        A text and none, or the indentation of a formula and the formula.
    """
    end = 0
    for match in DISPLAY.finditer(block):
        yield block[end : match.start()], None
        yield match[1], match[2]
        end = match.end()
        while block[end : end + 1] in (" ", "."):  # a full stop after a formula
            end += 1
    yield block[end:], None


def _inline(match: re.Match[str]) -> str:
    """Return a role or a literal; escaped blanks separate it from letters around it."""
    if match["bar"]:
        return "\\|"
    if match["math"]:
        marked = f":math:`{' '.join(match['math'].split())}`"
    elif OURS.fullmatch(code := " ".join(match["code"].split())):
        target = code if "." in code else f".{code}"
        marked = f":py:obj:`{code} <{target}>`"
    else:
        marked = f"``{code}``"
    before, after = match.string[: match.start()][-1:], match.string[match.end() :][:1]
    start = "\\ " if before.isalnum() else ""
    return f"{start}{marked}" + ("\\ " if after.isalnum() else "")


def _code(block: str) -> str:
    """Return an indented block as code."""
    code = textwrap.dedent(block)
    try:
        compile(code, "docstring", "exec")
        language = "python"
    except SyntaxError:
        language = "text"
    return f".. code-block:: {language}\n\n{textwrap.indent(code, '   ')}"


def _table(block: str) -> str:
    """Return a Markdown table as a list-table."""
    indent = " " * (len(block) - len(block.lstrip()))
    rows = [
        [
            INLINE.sub(_inline, cell.strip())
            for cell in CELL.split(line.strip().strip("|"))
        ]
        for number, line in enumerate(block.splitlines())
        if number != 1  # the rule below the heading
    ]
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in rows:
        lines += [f"   {'-' if n else '* -'} {cell}" for n, cell in enumerate(row)]
    lines = [re.sub(r"^   - ", "     - ", line) for line in lines]
    return textwrap.indent("\n".join(lines), indent)
