"""Small benchmarks of scripted methods, for the tests of runs and engines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffuser_policy.benchmark.cell_process import run_cell
from diffuser_policy.benchmark.cells import CellFolder
from diffuser_policy.benchmark.suites import load_suite
from diffuser_policy.interrupts import hear_interrupts

METHODS = '''
import os, pathlib, time
import numpy as np
from diffuser_policy.benchmark import register_method

class Straight:
    """Steers at the goal."""

    def __init__(self, speed):
        self.speed = speed

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        way = observation["desired_goal"] - observation["achieved_goal"]
        return np.clip(self.speed * way, -1, 1).astype(np.float32), state


@register_method("straight", label="Straight ahead", needs_dataset=False)
def straight(training, *, speed=1.0):
    return Straight(speed + training.seed)


@register_method("slow", needs_dataset=False)
def slow(training, *, total=12, seconds=0.0):
    """Counts in a file, and goes on there after a kill."""
    path = training.folder / "steps.txt"
    done = len(path.read_text().splitlines()) if path.exists() else 0
    for step in range(done, total):
        time.sleep(float(os.environ.get("SLOW_SECONDS", seconds)))
        with path.open("a") as file:
            file.write(f"{os.getpid()}\\n")
        training.progress(step + 1, total, figures={"loss": 1 / (step + 1)})
    training.facts["num_steps"] = total
    return Straight(1 + training.seed)


@register_method("unlucky", needs_dataset=False)
def unlucky(training):
    if "LUCK" not in os.environ:
        raise RuntimeError("no luck [today]")
    return Straight(1)


@register_method("goalless", goals=("none",), needs_dataset=False)
def goalless(training):
    return Straight(1)


@register_method("learner")
def learner(training):
    return Straight(1)


@register_method("luxury", needs_dataset=False, modules={"no_such_module": "baselines"})
def luxury(training):
    return Straight(1)


@register_method("opulent", modules={"no_such_module": "baselines"})
def opulent(training):
    return Straight(1)
'''
POINT = "tests.point_env:test/Point-v0"
SUITE = """
name = "toy"
num_steps = 100
seeds = {seeds}

[evaluation]
seeds = [100, 200]
episodes = 4
num_envs = 4

[[problems]]
env = "{env}"
dataset = "test/missing-v0"
goals = "hindsight"

{methods}
"""


def write_suite(
    folder: Path, *methods: str, seeds: tuple[int, ...] = (0,), env: str = POINT
) -> Path:
    """Write a suite of methods from `METHODS`; returns its TOML file."""
    source = folder / "methods.py"
    source.write_text(METHODS)
    path = folder / "toy.toml"
    tables = "\n".join(f'[methods."{source}:{name}"]' for name in methods)
    path.write_text(SUITE.format(seeds=list(seeds), env=env, methods=tables))
    return path


def results(output: Path) -> dict[str, dict[str, Any]]:
    """Return every result without what differs between two runs of the same."""
    found = {}
    for path in output.glob("cells/*/result.json"):
        data = json.loads(path.read_text())
        del data["timing"]
        found[path.parent.name] = data
    return found


def steps(output: Path, cell: str) -> list[int]:
    """Return the process that took each step of a "slow" cell."""
    path = output / "cells" / cell / "work" / "steps.txt"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def in_this_process(suite: Path, output: Path) -> None:
    """Run all cells one after the other, without a runner and its processes."""
    for cell in load_suite(str(suite)).cells():
        folder = CellFolder(output, cell.id)
        folder.prepare(cell)
        run_cell(cell, folder)


def start(*arguments: str | Path, **variables: str) -> subprocess.Popen[str]:
    """Start the command line in a process of its own, which hears Ctrl-C."""
    hear_interrupts()  # inherited; a shell lets what is in the background ignore it
    return subprocess.Popen(
        [sys.executable, "-m", "diffuser_policy", "benchmark", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **variables},
    )


def until(condition: Callable[[], Any], seconds: float = 120) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    """Return whether a process runs; one that is dead and not collected does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
