"""Runs of a benchmark: kills, repetitions, failures, and folders that are taken."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from diffuser_policy.benchmark.cells import CellFolder
from diffuser_policy.benchmark.engines import Ended
from diffuser_policy.benchmark.runner import _ended_early
from diffuser_policy.benchmark.suites import load_suite
from diffuser_policy.benchmark.suites import write_suite as write_suite_file
from diffuser_policy.cli import main
from tests.benchmark_helpers import (
    in_this_process,
    is_alive,
    results,
    start,
    steps,
    until,
    write_suite,
)

Capture = pytest.CaptureFixture[str]
TOTAL = 12  # steps of a "slow" cell


def run(suite: Path, output: Path, *options: str, workers: int = 2) -> int:
    """Run a benchmark in this process; its cells have their own."""
    return main(
        [
            *("benchmark", "run", str(suite), "--output", str(output)),
            *("--workers", str(workers), *options),
        ]
    )


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that end with the test, whatever happens."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


WITHOUT_POSIX = """
import os, signal, sys, warnings

warnings.simplefilter("ignore")  # filelock says what it lacks
sys.modules["fcntl"] = None
for name in ("EX_TEMPFAIL", "killpg", "getpgrp"):
    delattr(os, name)
for name in ("SIGHUP", "SIGKILL", "pthread_sigmask"):
    delattr(signal, name)
from diffuser_policy.benchmark import register_method
import diffuser_policy.benchmark.cell_process
import diffuser_policy.benchmark.runner
import diffuser_policy.cli.benchmark
"""


def test_everything_can_be_imported_where_posix_is_missing() -> None:
    """As on Windows, where methods are registered and reports are read."""
    subprocess.run([sys.executable, "-c", WITHOUT_POSIX], check=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A suite that was run, and its folder."""
    folder = tmp_path_factory.mktemp("finished")
    suite = write_suite(folder, "straight")
    assert run(suite, folder / "out") == 0
    return suite, folder / "out"


def copied(finished: tuple[Path, Path], folder: Path) -> tuple[Path, Path]:
    """Return the suite, and a copy of its folder that a test may change."""
    suite, output = finished
    return suite, Path(shutil.copytree(output, folder / "out"))


@pytest.mark.slow
def test_kills_change_nothing(
    tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    suite = write_suite(tmp_path, "slow", "straight", seeds=(0, 1))
    in_this_process(suite, tmp_path / "whole")
    output = tmp_path / "killed"
    command = ("run", suite, "--output", output, "--workers", "2")
    runner = start(*command, SLOW_SECONDS="0.5")
    started.append(runner)
    cells = ["point--slow--seed-0", "point--slow--seed-1"]
    until(lambda: all(len(steps(output, cell)) >= 2 for cell in cells))
    os.kill(steps(output, cells[0])[-1], signal.SIGKILL)
    until(lambda: results(output).keys() >= {"point--straight--seed-0"})
    runner.kill()
    runner.wait()
    before = {path: path.stat().st_ino for path in output.glob("cells/*/result.json")}
    assert cells[0] not in results(output), "it was killed too late"
    again = start(*command)
    started.append(again)
    told = again.communicate(timeout=150)[0]
    assert again.returncode == 0, told
    assert {path: path.stat().st_ino for path in before} == before, "repeated"
    assert results(output) == results(tmp_path / "whole")
    assert [len(steps(output, cell)) for cell in cells] == [TOTAL, TOTAL]
    assert f"{len(before)} of them finished before" in told


def test_finished_cells_are_not_run_again(
    finished: tuple[Path, Path], tmp_path: Path, capsys: Capture
) -> None:
    suite, output = copied(finished, tmp_path)
    log = output / "cells/point--straight--seed-0/log.txt"
    before = log.stat().st_mtime_ns
    assert run(suite, output, workers=1) == 0
    assert log.stat().st_mtime_ns == before
    told = capsys.readouterr().out
    assert "1 of them finished before" in told
    assert "Next: diffuser-policy benchmark report" in told


def test_a_failure_is_told_and_the_others_go_on(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite, output = write_suite(tmp_path, "unlucky", "straight"), tmp_path / "out"
    assert run(suite, output, workers=1) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "1 of 2 cells failed; the same command runs them again."
    assert "point--unlucky--seed-0 failed: RuntimeError: no luck [today]" in lines
    log = output / "cells/point--unlucky--seed-0/log.txt"
    assert lines[-2] == f"  log: {log}"
    assert "RuntimeError: no luck" in log.read_text()
    assert set(results(output)) == {"point--straight--seed-0"}

    monkeypatch.setenv("LUCK", "1")
    assert run(suite, output, "--no-retry", workers=1) == 1
    told = capsys.readouterr().out
    assert "not run again: RuntimeError: no luck" in told
    assert "the same command without --no-retry runs them again." in told
    assert run(suite, output, workers=1) == 0
    assert set(results(output)) == {
        "point--straight--seed-0",
        "point--unlucky--seed-0",
    }


def test_a_killed_cell_is_told(
    tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    suite, output = write_suite(tmp_path, "slow"), tmp_path / "out"
    started.append(start("run", suite, "--output", output, SLOW_SECONDS="60"))
    cell = CellFolder(output, "point--slow--seed-0")
    until((cell.path / "clock.json").exists)
    children = f"/proc/{started[0].pid}/task/{started[0].pid}/children"
    [pid] = map(int, Path(children).read_text().split())
    os.kill(pid, signal.SIGKILL)
    told = started[0].communicate(timeout=150)[0]
    assert started[0].returncode == 1
    assert "SIGKILL ended the process" in told
    assert "fewer --workers" in told


def test_a_cell_that_a_nameless_signal_ended_is_told() -> None:
    ended = _ended_early(Ended("point--slow--seed-0", -40), Path("log.txt"))
    assert ended["message"] == "signal 40 ended the process; see log.txt"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_the_cells(
    tmp_path: Path, started: list[subprocess.Popen[str]], number: int
) -> None:
    suite, output = write_suite(tmp_path, "slow"), tmp_path / "out"
    started.append(start("run", suite, "--output", output, SLOW_SECONDS="0.5"))
    until(lambda: len(steps(output, "point--slow--seed-0")) >= 2)
    started[0].send_signal(number)
    told = started[0].communicate(timeout=150)[0]
    assert started[0].returncode == 130
    assert "The same command resumes" in told
    assert not is_alive(steps(output, "point--slow--seed-0")[-1])
    in_this_process(suite, output)
    assert len(steps(output, "point--slow--seed-0")) == TOTAL


def test_a_closed_terminal_ends_no_run_under_nohup(
    tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    suite, output = write_suite(tmp_path, "slow"), tmp_path / "out"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # inherited, as of `nohup`
    try:
        started.append(start("run", suite, "--output", output, SLOW_SECONDS="0.1"))
    finally:
        signal.signal(signal.SIGHUP, before)
    until(lambda: steps(output, "point--slow--seed-0"))
    started[0].send_signal(signal.SIGHUP)
    told = started[0].communicate(timeout=150)[0]
    assert started[0].returncode == 0, told
    assert len(steps(output, "point--slow--seed-0")) == TOTAL


def test_a_cell_that_is_at_work_elsewhere_is_waited_for(
    tmp_path: Path, capsys: Capture, started: list[subprocess.Popen[str]]
) -> None:
    toml, output = write_suite(tmp_path, "slow"), tmp_path / "out"
    suite, name = load_suite(str(toml)), "point--slow--seed-0"
    [cell] = suite.cells()
    CellFolder(output, name).prepare(cell)
    write_suite_file(output, suite, "mine.toml")
    orphan = subprocess.Popen(  # what a killed runner may leave behind
        [sys.executable, "-m", "diffuser_policy.benchmark.cell_process", output, name],
        env={**os.environ, "SLOW_SECONDS": "0.5"},
        text=True,
    )
    started.append(orphan)
    until(lambda: steps(output, name))
    assert run(toml, output) == 0
    assert "another process is working on it" in capsys.readouterr().out
    assert steps(output, name) == [orphan.pid] * TOTAL
    assert not (output / "cells" / name / "log.txt").exists(), "it was run again"


def test_cells_end_with_a_runner_that_is_killed(
    tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    suite, output = write_suite(tmp_path, "slow"), tmp_path / "out"
    started.append(start("run", suite, "--output", output, SLOW_SECONDS="0.2"))
    until(lambda: steps(output, "point--slow--seed-0"))
    started[0].kill()
    until(lambda: not is_alive(steps(output, "point--slow--seed-0")[-1]), 15)
    assert len(steps(output, "point--slow--seed-0")) < TOTAL


def test_two_runs_in_one_folder(
    tmp_path: Path, capsys: Capture, started: list[subprocess.Popen[str]]
) -> None:
    suite, output = write_suite(tmp_path, "slow"), tmp_path / "out"
    first = start("run", suite, "--output", output, SLOW_SECONDS="0.4")
    started.append(first)
    until(lambda: steps(output, "point--slow--seed-0"))
    assert run(suite, output) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert f"Another benchmark is running in {output}" in error
    assert f"process {first.pid} on" in error
    told = first.communicate(timeout=150)[0]
    assert first.returncode == 0, told
    assert len(steps(output, "point--slow--seed-0")) == TOTAL


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        (["--budget", "50"], "num_steps: 100 → 50"),
        (["--episodes", "7"], "evaluation.episodes: 4 → 7"),
    ],
)
def test_other_settings_in_one_folder(
    finished: tuple[Path, Path], capsys: Capture, options: list[str], difference: str
) -> None:
    suite, output = finished
    before = sorted(path.stat().st_mtime_ns for path in output.rglob("*.json"))
    assert run(suite, output, *options) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert difference in error
    assert str(output) in error
    assert before == sorted(path.stat().st_mtime_ns for path in output.rglob("*.json"))


def test_settings_of_one_method_in_one_folder(
    finished: tuple[Path, Path], tmp_path: Path, capsys: Capture
) -> None:
    suite, output = finished
    other = tmp_path / "toy.toml"
    other.write_text(suite.read_text() + "speed = 2.0\n")
    assert run(other, output) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "settings.speed: not set → 2.0" in error
    assert "point--straight--seed-0" in error


def test_an_equal_number_of_another_type_in_one_folder(
    tmp_path: Path, capsys: Capture
) -> None:
    suite, output = write_suite(tmp_path, "straight"), tmp_path / "out"
    text = suite.read_text()
    suite.write_text(f"{text}speed = 2\n")
    in_this_process(suite, output)
    write_suite_file(output, load_suite(str(suite)), "mine.toml")
    before = results(output)
    suite.write_text(f"{text}speed = 2.0\n")
    assert run(suite, output) == 0
    assert "1 of them finished before" in capsys.readouterr().out
    assert results(output) == before


def test_another_suite_in_one_folder(
    finished: tuple[Path, Path], tmp_path: Path, capsys: Capture
) -> None:
    suite, output = finished
    other = tmp_path / "other.toml"
    other.write_text(suite.read_text().replace('name = "toy"', 'name = "other"'))
    assert run(other, output) == 2
    assert "name: toy → other" in " ".join(capsys.readouterr().err.split())


def test_results_of_other_versions(
    finished: tuple[Path, Path], tmp_path: Path, capsys: Capture
) -> None:
    suite, output = copied(finished, tmp_path)
    path = output / "cells/point--straight--seed-0/result.json"
    data = json.loads(path.read_text())
    data["versions"] |= {"numpy": "1.0.0", "d3rlpy-of-yore": "1"}
    path.write_text(json.dumps(data))
    assert run(suite, output) == 2
    error = " ".join(capsys.readouterr().err.split())
    for part in ("point--straight--seed-0", "numpy 1.0.0; installed is", "--output"):
        assert part in error
    assert run(suite, output, "--mixed-versions") == 0


def test_work_of_other_versions_is_not_gone_on_with(
    tmp_path: Path, capsys: Capture
) -> None:
    toml, output = write_suite(tmp_path, "slow"), tmp_path / "out"
    suite, name = load_suite(str(toml)), "point--slow--seed-0"
    [cell] = suite.cells()
    files = CellFolder(output, name)
    files.prepare(cell)
    write_suite_file(output, suite, "mine.toml")
    files.write("versions", {"numpy": "1.0.0"})
    files.work.mkdir()
    (files.work / "steps.txt").write_text("1\n2\n")
    assert run(toml, output) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert f"The work on {name} in {output} was done with numpy 1.0.0" in error
    assert run(toml, output, "--mixed-versions") == 0
    made = results(output)[name]["versions"]
    assert made["numpy"].startswith("1.0.0, then ")
    assert made["numpy"].endswith(np.__version__)
    capsys.readouterr()
    assert run(toml, output) == 2  # it was accepted for that run alone
    error = " ".join(capsys.readouterr().err.split())
    assert f"numpy 1.0.0, then {np.__version__}; installed is" in error
    assert "with --output, or accept it with --mixed-versions" in error


def test_versions_do_not_matter_before_any_work(tmp_path: Path) -> None:
    toml, output = write_suite(tmp_path, "straight"), tmp_path / "out"
    files = CellFolder(output, "point--straight--seed-0")
    suite = load_suite(str(toml))
    [cell] = suite.cells()
    files.prepare(cell)
    write_suite_file(output, suite, "mine.toml")
    files.write("versions", {"numpy": "1.0.0"})
    assert run(toml, output) == 0
    assert results(output)[cell.id]["versions"]["numpy"] == np.__version__
    assert files.read("versions")["numpy"] == np.__version__


def test_a_damaged_result(
    finished: tuple[Path, Path], tmp_path: Path, capsys: Capture
) -> None:
    suite, output = copied(finished, tmp_path)
    path = output / "cells/point--straight--seed-0/result.json"
    path.write_text(path.read_text()[:100])
    assert run(suite, output) == 2
    assert "Delete it" in capsys.readouterr().err


def test_a_folder_of_something_else(tmp_path: Path, capsys: Capture) -> None:
    suite, output = write_suite(tmp_path, "straight"), tmp_path / "out"
    output.mkdir()
    (output / "thesis.txt").write_text("all of it")
    assert run(suite, output) == 2
    assert "is not empty and holds no benchmark" in capsys.readouterr().err
    assert [path.name for path in output.iterdir()] == ["thesis.txt"]
