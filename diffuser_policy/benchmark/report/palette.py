"""The same color and marker for a method in every figure.

Colors are Okabe and Ito's, told apart with any color vision, but for their yellow,
which is faint on white; markers tell methods apart without color.
"""

from __future__ import annotations

from collections.abc import Sequence

KNOWN = {
    "diffuser": ("#0072b2", "o"),
    "bcq": ("#56b4e9", "s"),
    "cql": ("#009e73", "^"),
    "iql": ("#e69f00", "D"),
    "td3-bc": ("#cc79a7", "v"),
    "rebrac": ("#d55e00", "P"),
    "bc": ("#8c8c8c", "X"),
    "demonstrator": ("#111111", "*"),
}
OTHERS = (
    ("#882255", "<"),
    ("#44aa99", ">"),
    ("#332288", "p"),
    ("#aa8800", "h"),
    ("#aa4499", "d"),
    ("#117733", "8"),
    ("#661100", "s"),
    ("#6699cc", "^"),
)


def styles(methods: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return the color and marker of each method of a report."""
    others = [method for method in methods if method not in KNOWN]
    given = {
        method: OTHERS[number % len(OTHERS)] for number, method in enumerate(others)
    }
    return {method: KNOWN.get(method) or given[method] for method in methods}
