"""Formulas as MathML, which browsers draw themselves: no script, and no network."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

LOGGER = logging.getLogger(__name__)


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
        return str(tex2mathml(formula, as_block=as_block))
    except MathError as error:
        LOGGER.warning("formula %r: %s", formula, error, location=node)
        return formula
