"""The example that measures how fast block stacking is."""

from __future__ import annotations

import runpy
import time
from pathlib import Path
from typing import Any

import pytest

EXAMPLE = Path(__file__).parents[1] / "examples/experiments" / "block_stacking_speed.py"


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLE))


def test_a_part_does_not_count_what_runs_within_it(
    example: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One second passes between any two looks at the clock."""
    seconds = iter(range(100))
    monkeypatch.setattr(time, "process_time", lambda: float(next(seconds)))
    clock = example["Clock"]()
    with clock.part("planning"):  # looks at 0
        for _ in range(2):  # 1 and 2, 3 and 4
            assert clock.timed("network", lambda x: x + 1)(1) == 2
    with clock.part("environment"):  # 5 closes planning; 6 and 7
        pass
    assert clock.seconds == {"planning": 3.0, "network": 2.0, "environment": 1.0}


def test_a_part_that_fails_is_counted_and_closed(example: dict[str, Any]) -> None:
    clock = example["Clock"]()
    with pytest.raises(RuntimeError), clock.part("network"):
        raise RuntimeError
    assert clock.running == []
    assert "network" in clock.seconds


def test_shares_of_an_episode_add_up(example: dict[str, Any]) -> None:
    seconds = dict(zip(example["PARTS"], (5.0, 2.0, 1.0, 1.0, 1.0), strict=True))
    lines = example["report"](
        {
            "rates": {"moving freely": 2000.4},
            "plans": {"16": {"8": 0.2134}},
            "episodes": {
                "Conditional": {**seconds, "on the clock": 12.0, "plans": 39.0}
            },
        }
    )
    assert "| moving freely | 2000 |" in lines
    assert "| 16 candidates | 213 |" in lines
    shares = "50 % | 20 % | 10 % | 10 % | 10 % |"
    assert lines[-1] == f"| Conditional | 10.0 | 12.0 | 39 | {shares}"
