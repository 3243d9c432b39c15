"""Numbers with their nouns, as messages, tables and pictures say them."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """Return a number with its noun in singular or plural.

    Example: `counted(1, "env step")` is "1 env step", and of 2000, "2,000 env steps".
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def every(interval: int, noun: str) -> str:
    """Return how often something happens: "in every env step", "every 4 env steps"."""
    return f"in every {noun}" if interval == 1 else f"every {counted(interval, noun)}"
