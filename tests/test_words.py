"""Numbers and their nouns."""

from __future__ import annotations

from diffuser_policy.words import counted, every


def test_one_is_singular_and_thousands_are_grouped() -> None:
    assert [counted(number, "env step") for number in (0, 1, 2, 1000)] == [
        "0 env steps",
        "1 env step",
        "2 env steps",
        "1,000 env steps",
    ]


def test_an_interval_of_one_is_every_step() -> None:
    assert every(1, "env step") == "in every env step"
    assert every(4, "env step") == "every 4 env steps"
