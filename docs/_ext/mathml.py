"""Formulas as MathML, which browsers draw themselves: no script, and no network."""

from __future__ import annotations

import html
import re
from typing import Any
from xml.etree import ElementTree

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

LOGGER = logging.getLogger(__name__)
MATHML = "{http://www.w3.org/1998/Math/MathML}"
ACCENTS = set("ˆˉ~˙_¯")
ElementTree.register_namespace("", MATHML[1:-1])


def setup(app: Any) -> dict[str, Any]:
    """Register the renderer, which conf.py chooses by name."""
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True}


def inline(translator: Any, node: nodes.math) -> None:
    """Write a formula within text."""
    translator.body.append(mathml(node, as_block=False))
    raise nodes.SkipNode


def block(translator: Any, node: nodes.math_block) -> None:
    """Write a formula on lines of its own."""
    translator.body.append(f'<div class="math">{mathml(node, as_block=True)}</div>')
    raise nodes.SkipNode


def mathml(node: nodes.Element, *, as_block: bool) -> str:
    """Return a formula's MathML; one that docutils cannot read is a warning."""
    formula = node.astext().replace("…", r"\ldots ")
    try:
        return with_accents(str(tex2mathml(formula, as_block=as_block)))
    except MathError as error:
        LOGGER.warning("formula %r: %s", formula, error, location=node)
        return formula


def with_accents(formula: str) -> str:
    """Return MathML in which subscripts of accented letters are subscripts.

    docutils writes them below the letter, like the limits of a sum.
    """
    # HTML's named signs, which XML does not know; its own five stay.
    known = re.sub(r"&(?!lt;|gt;|amp;|quot;|apos;)\w+;", _sign, formula)
    root = ElementTree.fromstring(known)
    for element in root.iter(f"{MATHML}munderover"):
        letter, below, above = element
        if above.tag == f"{MATHML}mo" and above.text in ACCENTS:
            accented = ElementTree.Element(f"{MATHML}mover", accent="true")
            accented.extend([letter, above])
            element[:] = [accented, below]
            element.tag = f"{MATHML}msub"
    return ElementTree.tostring(root, encoding="unicode")


def _sign(match: re.Match[str]) -> str:
    """Return the sign that HTML has a name for."""
    return html.unescape(match[0])
