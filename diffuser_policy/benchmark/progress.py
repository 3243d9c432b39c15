"""The display of a run: a live table on a terminal, lines of text elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from diffuser_policy.benchmark.cells import CellFolder
from diffuser_policy.errors import CheckpointError

LINE_SECONDS = 60.0  # between two lines about the same cell


@dataclass
class Watched:
    """A cell that a process works on.

    Attributes:
        folder: Of the cell.
        is_elsewhere: Whether the process is not one of this run.
        since: When this run first saw it, in seconds of the monotonic clock.
    """

    folder: CellFolder
    is_elsewhere: bool = False
    since: float = field(default_factory=time.monotonic)

    @property
    def elapsed(self) -> str:
        """How long this run has seen it, as "m:ss" or "h:mm:ss"."""
        minutes, second = divmod(int(time.monotonic() - self.since), 60)
        hours, minute = divmod(minutes, 60)
        return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"

    def columns(self) -> tuple[str, str, str, str]:
        """Return stage, steps, figures (the score first) and elapsed time as text."""
        report: Mapping[str, Any] = {}
        with contextlib.suppress(CheckpointError):  # its process writes it again
            report = self.folder.read("progress") or {}
        stage = report.get("stage", "starting")
        if self.is_elsewhere:
            stage = "in another process"
        done, total = report.get("done") or 0, report.get("total")
        steps = f"{done:,}/{total:,}" if total else f"{done:,}" if done else ""
        figures = dict(report.get("figures") or {})
        if "score" in figures:
            figures = {"score": figures.pop("score"), **figures}
        shown = " ".join(f"{name} {value:.4g}" for name, value in figures.items())
        return stage, steps, shown, self.elapsed


class Display:
    """Shows a run; a context manager.

    Args:
        console: By default standard output. A terminal gets a table of the cells at
            work, anything else a line a minute about each of them.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self._live: Live | None = None
        if self.console.is_terminal:
            self._live = Live(console=self.console, auto_refresh=False, transient=True)
        self._said: dict[str, float] = {}

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, text: str, *, style: str = "") -> None:
        """Write a line that stays."""
        self.console.print(Text(text, style), soft_wrap=True, highlight=False)

    def update(self, watched: Mapping[str, Watched], counts: str) -> None:
        """Show the cells at work and the counts; called several times a second."""
        if self._live is not None:
            self._live.update(live_table(watched, counts), refresh=True)
            return
        now = time.monotonic()
        for name, cell in watched.items():
            if now - max(self._said.get(name, 0.0), cell.since) >= LINE_SECONDS:
                self._said[name] = now
                self.say(
                    f"{name}: {', '.join(part for part in cell.columns() if part)}"
                )


def live_table(watched: Mapping[str, Watched], counts: str) -> RenderableType:
    """Return the cells at work as a table, and the counts below it."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for justify in ("left", "left", "right", "left", "right"):
        table.add_column(justify=justify)
    for name, cell in watched.items():
        table.add_row(*map(Text, (name, *cell.columns())))
    return Group(table, Text(counts, "bold"))
