"""What is seen of a run: a live table on a terminal, lines of text elsewhere."""

from __future__ import annotations

import abc
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from diffuser_policy.benchmark.cells import CellFolder
from diffuser_policy.errors import CheckpointError

ELSEWHERE = "in another process"
LINE_SECONDS = 60.0  # between two lines on the same cell


@dataclass
class Watched:
    """A cell that somebody works on.

    Attributes:
        folder: Of the cell.
        place: Where it runs, if not here.
        since: When that was seen, in seconds of the monotonic clock.
    """

    folder: CellFolder
    place: str = ""
    since: float = field(default_factory=time.monotonic)

    @property
    def elapsed(self) -> float:
        """Seconds that this run has seen it."""
        return time.monotonic() - self.since

    def read(self) -> Mapping[str, Any]:
        """Return what its process told last; empty before it told anything."""
        try:
            return self.folder.read("progress") or {}
        except CheckpointError:
            return {}

    def columns(self) -> tuple[str, str, str, str]:
        """Return stage, steps, figures and elapsed time as text."""
        told = self.read()
        stage = self.place or told.get("stage", "starting")
        return stage, steps(told), figures(told), as_clock(self.elapsed)


@dataclass
class Counts:
    """How many cells of a run are where.

    Attributes:
        total: All cells that were asked for.
        before: Finished before this run.
        finished: By this run.
        failed: In this run.
        waiting: Not begun.
    """

    total: int = 0
    before: int = 0
    finished: int = 0
    failed: int = 0
    waiting: int = 0

    def __str__(self) -> str:
        """Say it in a line."""
        done = self.before + self.finished
        parts = [f"{done} of {self.total} cells finished"]
        parts += [f"{self.waiting} waiting"] if self.waiting else []
        parts += [f"{self.failed} failed"] if self.failed else []
        return ", ".join(parts)


class Display(abc.ABC):
    """Shows a run; a context manager."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def say(self, text: str, *, style: str = "") -> None:
        """Write a line that stays."""
        self.console.print(Text(text, style), soft_wrap=True, highlight=False)

    @abc.abstractmethod
    def update(self, watched: Mapping[str, Watched], counts: Counts) -> None:
        """Show the state of affairs; called several times a second."""

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *_: object) -> None:
        return


class LineDisplay(Display):
    """A line a minute on each cell at work, for logs."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._told: dict[str, float] = {}

    def update(self, watched: Mapping[str, Watched], counts: Counts) -> None:
        """Write what was not written for a minute."""
        del counts
        now = time.monotonic()
        for name, cell in watched.items():
            if now - max(self._told.get(name, 0.0), cell.since) >= LINE_SECONDS:
                self._told[name] = now
                told = ", ".join(part for part in cell.columns() if part)
                self.say(f"{name}: {told}")


class LiveDisplay(Display):
    """A table of the cells at work that stays at the bottom of the terminal."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Display:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def update(self, watched: Mapping[str, Watched], counts: Counts) -> None:
        """Draw the table anew."""
        self._live.update(live_table(watched, counts), refresh=True)


def live_table(watched: Mapping[str, Watched], counts: Counts) -> RenderableType:
    """Return the cells at work as a table, and the counts below it."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for justify in ("left", "left", "right", "left", "right"):
        table.add_column(justify=justify)
    for name, cell in watched.items():
        table.add_row(*map(Text, (name, *cell.columns())))
    return Group(table, Text(str(counts), "bold"))


def make_display(console: Console | None = None) -> Display:
    """Return what suits standard output: a table on a terminal, else lines."""
    console = console or Console()
    return LiveDisplay(console) if console.is_terminal else LineDisplay(console)


def steps(told: Mapping[str, Any]) -> str:
    """Return "done/total" of a cell's progress."""
    done, total = told.get("done"), told.get("total")
    if done is None or not (done or total):
        return ""
    return f"{done:,}/{total:,}" if total else f"{done:,}"


def figures(told: Mapping[str, Any]) -> str:
    """Return the figures of a cell's progress, the score first."""
    shown = dict(told.get("figures") or {})
    first = {"score": shown.pop("score")} if "score" in shown else {}
    return " ".join(f"{name} {value:.4g}" for name, value in {**first, **shown}.items())


def as_clock(seconds: float) -> str:
    """Return a duration as "m:ss" or "h:mm:ss".

    >>> as_clock(65.4), as_clock(3725)
    ('1:05', '1:02:05')
    """
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
