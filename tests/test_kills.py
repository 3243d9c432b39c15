"""Commands that are killed at any moment and repeated end as if they never had been."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from diffuser_policy.files import HIDDEN
from tests.point_env import save_planner

pytest.importorskip("minari")
ENV = "diffuser_envs/Multi2D-UMaze-v1"
PASSING = re.compile(  # what differs from run to run: times, and whose process it was
    r'"(plan_ms|plan_call_ms|control_rate)": (\{.*?\}|null|[\d.e-]+)', re.S
)
LOCKS = {"lock", "metrics.jsonl"}  # empty; how many steps lie between two lines


COMMANDS = {
    "collect": ("collect", ENV, "--num-steps", "2000", "--run-length", "200"),
    "train": (
        *("train", "--dataset", "toy/point-v0", "--output", "out"),
        *("--num-steps", "60", "--save-interval", "5", "--batch-size", "4"),
        *("--window.horizon", "16", "--network.dim", "8", "--device", "cpu"),
        *("--network.multipliers", "1", "2", "--execution.executor", "actions"),
    ),
    "evaluate": ("evaluate", "planner", "--episodes", "20", "--json", "results.json"),
    "plan": ("plan", "planner", "--out", "pictures"),
}


def environment(folder: Path) -> dict[str, str]:
    """Return variables that keep datasets and caches in a folder."""
    return {
        **os.environ,
        "MINARI_DATASETS_PATH": str(folder / "datasets"),
        "DIFFUSER_POLICY_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }


def begin(command: tuple[str, ...], folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", WITH_DATA, *command],
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


# The toy environment is registered by its test module; its data are a saved dataset.
WITH_DATA = textwrap.dedent(
    """
    import sys
    import tests.point_env
    from diffuser_policy.cli import main
    from diffuser_policy.data import minari
    from diffuser_policy.testing import toy_dataset

    read = minari.load_flat
    minari.load_flat = lambda name, **rest: (
        toy_dataset() if name == "toy/point-v0" else read(name, **rest)
    )
    sys.exit(main(sys.argv[1:]))
    """
)


def finish(command: tuple[str, ...], folder: Path) -> None:
    process = begin(command, folder)
    _, errors = process.communicate(timeout=250)
    complete = b"already exists" in errors  # a dataset: killed after the last step
    assert process.returncode == 0 or complete, errors.decode()


def left(folder: Path) -> dict[str, str]:
    """Return a digest of every file, without what is different each time."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        assert not HIDDEN.fullmatch(path.name), f"left behind: {name}"
        assert not path.name.endswith(".collecting"), f"left behind: {name}"
        if path.is_file() and path.name not in LOCKS and not name.startswith("cache/"):
            found[name] = hashlib.sha256(content(path)).hexdigest()
    return found


def content(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".hdf5":  # has times of writing
        return json.dumps(arrays_of(path)).encode()
    if path.name == "metadata.json":
        known = {k: v for k, v in json.loads(data).items() if "size" not in k}
        return json.dumps(known).encode()
    if path.suffix == ".json":
        return PASSING.sub("", data.decode()).encode()
    return data


def arrays_of(path: Path) -> dict[str, Any]:
    import h5py

    found = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, node: (
                found.update({name: node[()].tobytes().hex()})
                if isinstance(node, h5py.Dataset)
                else None
            )
        )
    return found


def kill_and_repeat(name: str, folder: Path, num_kills: int) -> None:
    """Compare the files of a command with those of one that is killed all the time."""
    command, chance = COMMANDS[name], random.Random(name)
    whole, killed = folder / "whole", folder / "killed"
    for place in (whole, killed):
        place.mkdir()
        save_planner(place / "planner")
    began = time.monotonic()
    finish(command, whole)
    seconds = time.monotonic() - began
    for _ in range(num_kills):
        process = begin(command, killed)
        try:
            process.wait(timeout=chance.uniform(0.2, 1.0) * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        process.communicate()
    finish(command, killed)
    assert left(killed) == left(whole)


@pytest.mark.proof
@pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")
def test_an_evaluation_is_killed_and_repeated(tmp_path: Path) -> None:
    kill_and_repeat("evaluate", tmp_path, 1)


@pytest.mark.proof
@pytest.mark.timeout(7200)
@pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")
@pytest.mark.parametrize("name", COMMANDS)
def test_twenty_five_kills_of_every_command(name: str, tmp_path: Path) -> None:
    """A hundred kills in all."""
    for attempt in range(5):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        kill_and_repeat(name, folder, 5)
