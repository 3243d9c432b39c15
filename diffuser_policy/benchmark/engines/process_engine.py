"""Cells as processes of this machine."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffuser_policy.benchmark.engines.base import Ended, Engine, Job, start_cell
from diffuser_policy.benchmark.lifeline import release, stop_children


class ProcessEngine(Engine):
    """Processes of this machine; they end when this process does."""

    name = "process"

    def __init__(self, workers: int, options: Mapping[str, Any], folder: Path) -> None:
        del options, folder
        super().__init__(workers)

    def _start(self, job: Job) -> subprocess.Popen[bytes]:
        return start_cell(job, {})

    def _ended(self, cell: str, handle: subprocess.Popen[bytes]) -> Ended | None:
        status = handle.poll()
        if status is None:
            return None
        release(handle)
        return Ended(cell, status)

    def _stop(self, handles: list[subprocess.Popen[bytes]]) -> None:
        stop_children(handles)
