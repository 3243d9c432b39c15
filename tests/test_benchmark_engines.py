"""Engines: the same job on each of them, its exit, and its end with the parent."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from diffuser_policy.benchmark.cells import CellFolder
from diffuser_policy.benchmark.engines import (
    BUSY,
    ENGINES,
    Ended,
    Engine,
    EngineError,
    Job,
    ProcessEngine,
    _Resumable,
    check_engine,
    run_job,
    start_child,
    stop_children,
)
from diffuser_policy.benchmark.runner import Display, Runner
from diffuser_policy.benchmark.suites import load_suite
from diffuser_policy.choices import EngineName
from diffuser_policy.errors import ConfigError, MissingExtraError, UnknownNameError
from tests.benchmark_helpers import (
    in_this_process,
    is_alive,
    results,
    until,
    write_suite,
)

SBATCH = """#!/bin/bash
cp "${@: -1}" "$FAKE/submitted.sh"
export SLURM_JOB_ID=7 SLURM_NTASKS=1 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0
export SLURM_JOB_NUM_NODES=1 SLURM_JOB_NODELIST=here
setsid bash "${@: -1}" > /dev/null 2>&1 &
echo $! > "$FAKE/pid"
echo "Submitted batch job 7"
"""
SRUN = """#!/bin/bash
while [[ "$1" == -* ]]; do
    [[ "$1" == *=* || "$1" == --unbuffered ]] || shift
    shift
done
exec "$@"
"""
SACCT = """#!/bin/bash
echo "JobID|State|NodeList"
kill -0 $(cat "$FAKE/pid") 2> /dev/null && echo "7|RUNNING|here" || echo "7|FAILED|here"
"""
SCANCEL = """#!/bin/bash
kill -KILL -- -$(cat "$FAKE/pid")
"""
REPORT = """
    import os, sys
    print("threads", os.environ["OMP_NUM_THREADS"], os.environ["MKL_NUM_THREADS"])
    print("folder", os.getcwd(), os.environ["DIFFUSER_POLICY_MARK"])
    sys.exit(int(sys.argv[1]))
"""
SLEEP = """
    from diffuser_policy.benchmark.engines import end_with_parent
    end_with_parent()
    import os, pathlib, sys, time
    try:
        pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))
        time.sleep(60)
    except KeyboardInterrupt:
        pathlib.Path(sys.argv[1] + ".saved").touch()
        sys.exit(130)
"""
STUBBORN = """
    import pathlib, signal, subprocess, sys, time
    {first}
    signal.signal(signal.SIGINT, lambda *_: None)
    helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    pathlib.Path(sys.argv[1]).write_text(str(helper.pid))
    while True:
        time.sleep(60)
"""


def make_engine(
    name: EngineName, *, workers: int, options: dict[str, Any], folder: Path
) -> Engine:
    """Return an engine as the command line makes it."""
    check_engine(name, workers=workers, options=options)
    return ENGINES[name](workers, options, folder)


def job(tmp_path: Path, name: str, code: str, *arguments: str) -> Job:
    return Job(
        cell=name,
        arguments=("-c", textwrap.dedent(code), *arguments),
        log=str(tmp_path / f"{name}.txt"),
        folder=str(tmp_path),
    )


def finish(engine: Engine, jobs: list[Job], seconds: float = 120) -> dict[str, Ended]:
    """Run jobs to their ends, as many at a time as the engine takes."""
    ended: dict[str, Ended] = {}
    deadline, waiting = time.monotonic() + seconds, list(jobs)
    while waiting or engine.running:
        assert time.monotonic() < deadline, "the jobs take too long"
        while waiting and engine.has_room:
            engine.start(waiting.pop(0))
        assert len(engine.running) <= engine.workers
        ended |= {end.cell: end for end in engine.wait(1.0)}
    return ended


@pytest.fixture(params=["process", "submitit", "ray"])
def engine(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Engine]:
    monkeypatch.setenv("DIFFUSER_POLICY_MARK", "passed on")
    options = {}
    if request.param != "process":
        pytest.importorskip(request.param, reason="needs the engine's library")
    if request.param == "submitit":
        options = {"cluster": "local"}
    if request.param == "ray":
        request.getfixturevalue("socket_enabled")
    made = make_engine(request.param, workers=2, options=options, folder=tmp_path)
    with made:
        yield made


def test_a_job_is_the_same_on_every_engine(engine: Engine, tmp_path: Path) -> None:
    names = {"good": 0, "bad": 3, "also-good": 0}
    jobs = [job(tmp_path, name, REPORT, str(code)) for name, code in names.items()]
    ended = finish(engine, jobs)
    assert {name: end.status for name, end in ended.items()} == names
    for name in names:
        lines = (tmp_path / f"{name}.txt").read_text().splitlines()
        assert lines == ["threads 1 1", f"folder {tmp_path} passed on"]


def test_a_worker_of_a_runner_in_the_background_can_be_interrupted(
    tmp_path: Path,
) -> None:
    """Shells let background processes ignore interrupts, and workers inherit that."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert run_job(job(tmp_path, "idle", "pass")) == 0
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_leaving_an_engine_ends_its_jobs(engine: Engine, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with engine:
        engine.start(job(tmp_path, "long", SLEEP, str(pid)))
        until(lambda: pid.is_file() and pid.read_text())
    until(lambda: not is_alive(int(pid.read_text())), 20)
    assert (tmp_path / "pid.saved").exists(), "it was killed before it could save"
    assert not engine.running


@pytest.mark.parametrize(
    "first",
    [
        "",
        "import diffuser_policy.benchmark.engines as e; e.GRACE=1; e.end_with_parent()",
    ],
    ids=["killed by its parent", "killed by itself"],
)
def test_what_does_not_end_is_killed_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    grace = 20 if first else 0.2
    monkeypatch.setattr("diffuser_policy.benchmark.engines.GRACE", grace)
    pid = tmp_path / "pid"
    code = textwrap.dedent(STUBBORN).format(first=first)
    child = start_child(job(tmp_path, "stubborn", code, str(pid)))
    until(lambda: pid.is_file() and pid.read_text())
    stop_children([child])
    assert child.returncode == -signal.SIGKILL
    until(lambda: not is_alive(int(pid.read_text())), 10)


def test_without_a_lifeline_nothing_is_watched() -> None:
    code = (
        "from diffuser_policy.benchmark.engines import end_with_parent\n"
        "end_with_parent()\n"
        "import time; time.sleep(0.5); print(input())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input="still there",
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "still there\n"


@pytest.mark.parametrize(
    ("name", "workers", "options", "error", "told"),
    [
        ("process", 0, {}, ConfigError, "--workers must be at least 1, got 0"),
        ("process", 1, {"mem_gb": 4}, ConfigError, "takes no options, got 'mem_gb'"),
        ("submitit", 1, {"slurm_partitoin": "x"}, ConfigError, "partitoin"),
        ("submitit", 1, {"cluster": "lsf"}, ConfigError, "lsf"),
        ("submitit", 1, {"mem_gb": "four"}, ConfigError, "four"),
        ("ray", 1, {"num_cpu": 2}, UnknownNameError, "Did you mean 'num_cpus'"),
        ("ray", 1, {"num_cpus": "abc"}, ConfigError, "Ray rejects .*num_cpus"),
        ("ray", 1, {"num_gpus": "all"}, ConfigError, "Ray rejects .*num_gpus"),
        ("ray", 1, {"max_retries": 0.5}, ConfigError, "Ray rejects .*retries"),
        ("ray", 1, {"address": 5}, ConfigError, "address of .* must be a text or none"),
    ],
)
def test_settings_that_an_engine_does_not_take_are_refused(
    tmp_path: Path,
    *,
    name: EngineName,
    workers: int,
    options: dict[str, Any],
    error: type[Exception],
    told: str,
) -> None:
    if name in ("submitit", "ray"):
        pytest.importorskip(name, reason="needs the engine's library")
    with pytest.raises(error, match=told):
        make_engine(name, workers=workers, options=options, folder=tmp_path)


def test_no_ray_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="needs the engine's library")

    def init(**_: Any) -> None:  # another test's cluster may be there
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(EngineError, match=r"No Ray cluster at 'auto'.*ray start"):
        make_engine("ray", workers=1, options={"address": "auto"}, folder=tmp_path)


@pytest.mark.parametrize(
    ("num_cpus", "cores"), [(1, 3), (1.5, 5), (0.5, 3), (None, 3), (2, 6)]
)
def test_ray_is_started_with_whole_cores(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    num_cpus: float | None,
    cores: int,
) -> None:
    ray = pytest.importorskip("ray", reason="needs the engine's library")
    given: list[Any] = []
    monkeypatch.setattr(ray, "init", lambda **rest: given.append(rest["num_cpus"]))
    make_engine("ray", workers=3, options={"num_cpus": num_cpus}, folder=tmp_path)
    assert given == [cores]
    assert isinstance(given[0], int)


@pytest.mark.parametrize(("name", "extra"), [("submitit", "cluster"), ("ray", "ray")])
def test_a_missing_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: EngineName, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=rf"pip install .\.\[{extra}\]"):
        make_engine(name, workers=1, options={}, folder=tmp_path)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Slurm cluster of one place, as far as submitit sees; returns its folder."""
    pytest.importorskip("submitit", reason="needs the engine's library")
    folder = tmp_path / "slurm"
    folder.mkdir()
    commands = {"sbatch": SBATCH, "srun": SRUN, "sacct": SACCT, "scancel": SCANCEL}
    for name, text in commands.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("DIFFUSER_POLICY_MARK", "passed on")
    monkeypatch.setenv("FAKE", str(folder))
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return folder


def test_jobs_of_slurm(slurm: Path, tmp_path: Path) -> None:
    options = {"slurm_partition": "cpu", "timeout_min": 90, "mem_gb": 3}
    with make_engine("submitit", workers=1, options=options, folder=tmp_path) as engine:
        ended = finish(engine, [job(tmp_path, "bad", REPORT, "3")])
        assert ended["bad"] == Ended("bad", 3)
        assert "threads 1 1" in (tmp_path / "bad.txt").read_text()
    asked = (slurm / "submitted.sh").read_text()
    for line in ("--partition=cpu", "--time=90", "--mem=3GB", "--cpus-per-task=1"):
        assert f"#SBATCH {line}\n" in asked


def test_a_cluster_that_takes_no_job(slurm: Path, tmp_path: Path) -> None:
    (slurm / "sbatch").write_text("#!/bin/bash\necho QOSMaxSubmit >&2\nexit 1\n")
    with make_engine("submitit", workers=1, options={}, folder=tmp_path) as engine:
        with pytest.raises(EngineError, match="rejects the job of one: QOSMax"):
            engine.start(job(tmp_path, "one", REPORT, "0"))
        assert not engine.running


class Picky(ProcessEngine):
    """Takes one job at a time, whatever it says, or none at all."""

    places = 1

    def _start(self, job: Job) -> subprocess.Popen[bytes]:
        if len(self.running) >= self.places:
            raise EngineError("full")
        return super()._start(job)


class Late(Picky):
    """Picky as well; and its first job finds that another process has the cell."""

    late = False

    def _start(self, job: Job) -> subprocess.Popen[bytes]:
        if not self.late:
            self.late = True
            status = f"raise SystemExit({BUSY})"
            job = dataclasses.replace(job, arguments=("-c", status))
        return super()._start(job)


def run_on(engine: Engine, tmp_path: Path) -> dict[str, str]:
    """Run a suite of two cells; return the failures."""
    cells = load_suite(str(write_suite(tmp_path, "straight", "slow"))).cells()
    with Display(Console(quiet=True)) as display, engine:
        runner = Runner(tmp_path / "out", engine, display)
        runner.run(cells)
    return runner.failures


def test_cells_that_are_not_taken_at_once_are_run_later(tmp_path: Path) -> None:
    assert not run_on(Late(2, {}, tmp_path), tmp_path)
    assert len(results(tmp_path / "out")) == 2


def test_an_engine_that_takes_nothing_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Picky, "places", 0)
    with pytest.raises(EngineError, match="full"):
        run_on(Picky(2, {}, tmp_path), tmp_path)


def test_jobs_of_slurm_are_cancelled(slurm: Path, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with make_engine("submitit", workers=1, options={}, folder=tmp_path) as engine:
        engine.start(job(tmp_path, "long", SLEEP, str(pid)))
        until(lambda: pid.is_file() and pid.read_text())
    until(lambda: not is_alive(int(pid.read_text())), 20)
    assert (tmp_path / "submitit").exists(), "its logs are kept"
    assert "#SBATCH --time=1440\n" in (slurm / "submitted.sh").read_text()


def test_a_job_whose_time_is_up_goes_on_with_the_same_arguments() -> None:
    pytest.importorskip("submitit", reason="needs the engine's library")
    given = job(Path(), "one", "1")
    left = _Resumable().checkpoint(given)
    assert isinstance(left.function, _Resumable)
    assert left.args == (given,)


def test_the_same_results_on_every_engine(tmp_path: Path, engine: Engine) -> None:
    """Compares with cells that were run in this process, one after the other."""
    path = write_suite(tmp_path, "slow")
    in_this_process(path, tmp_path / "by-hand")
    suite = load_suite(str(path))
    for cell in suite.cells():
        CellFolder(tmp_path / "out", cell.id).prepare(cell)
    with Display(Console(quiet=True)) as display:
        runner = Runner(tmp_path / "out", engine, display)
        runner.run(suite.cells())
    assert not runner.failures
    assert len(results(tmp_path / "out")) == 1
    assert results(tmp_path / "out") == results(tmp_path / "by-hand")
