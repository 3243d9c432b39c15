"""Collecting that is interrupted, killed, or runs out of disk, and goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffuser_policy.config import CollectSettings
from diffuser_policy.data.collection import ShardFolder, collect_episodes
from diffuser_policy.data.minari import (
    COLLECTION,
    local_dataset_ids,
    recorded_facts,
)
from diffuser_policy.envs import make_env
from diffuser_policy.errors import (
    ConfigError,
    DatasetError,
    StorageError,
)
from tests.data_helpers import COLLECTED, EXPERT, SMALL, assert_same, record
from tests.file_helpers import full_disk

pytest.importorskip("gymnasium_robotics")
minari = pytest.importorskip("minari")

pytestmark = pytest.mark.usefixtures("datasets")


def shards(datasets: Path) -> list[Path]:
    return sorted(datasets.rglob(".*.collecting/shard-*.npz"))


# --- interrupted work ---------------------------------------------------------------


def stop_after(
    num_saved: int, failure: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let saving fail once some runs are saved."""
    save = ShardFolder.save
    saved: list[int] = []

    def failing(self: ShardFolder, index: int, *shard: Any) -> None:
        if len(saved) == num_saved:
            raise failure
        saved.append(index)
        save(self, index, *shard)

    monkeypatch.setattr(ShardFolder, "save", failing)


def test_interrupted_and_resumed_is_never_interrupted(
    datasets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = record(replace(SMALL, dataset_id="test/whole-v0"))
    with monkeypatch.context() as patch:
        stop_after(2, KeyboardInterrupt(), patch)
        with pytest.raises(KeyboardInterrupt):
            record()
    assert len(shards(datasets)) == 2
    assert local_dataset_ids() == ["test/whole-v0"]
    stamps = [path.stat().st_mtime_ns for path in shards(datasets)]
    with monkeypatch.context() as patch:
        stop_after(0, KeyboardInterrupt(), patch)
        with pytest.raises(KeyboardInterrupt):
            record()
    assert [path.stat().st_mtime_ns for path in shards(datasets)] == stamps
    assert_same(record(), whole)
    assert not list(datasets.rglob("*.collecting"))


def test_an_interrupt_while_writing_the_dataset_loses_nothing(
    datasets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ShardFolder, "load", interrupted)
        with pytest.raises(KeyboardInterrupt):
            record()
    assert len(shards(datasets)) == 3
    assert local_dataset_ids() == []
    assert len(record()) == 3


def test_a_kill_before_the_shards_are_removed_is_made_good(
    datasets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(ShardFolder, "remove", lambda _: None)
        whole = record()
    assert len(shards(datasets)) == 3
    assert_same(record(), whole)
    assert not list(datasets.rglob(".*"))
    with pytest.raises(DatasetError, match="already exists"):
        record()


def test_a_damaged_dataset_is_replaced(datasets: Path) -> None:
    whole = record()
    [file] = datasets.rglob("main_data.hdf5")
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(DatasetError, match="already exists"):
        record()
    assert_same(record(replace(SMALL, overwrite=True)), whole)


def test_two_collections_of_one_dataset_are_refused(
    datasets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, refused = ShardFolder.save, []

    def during(self: ShardFolder, index: int, *shard: Any) -> None:
        for overwrite in (False, True):
            with pytest.raises(ConfigError, match="Another process is writing"):
                record(replace(SMALL, overwrite=overwrite))
            refused.append(index)
        save(self, index, *shard)

    with monkeypatch.context() as patch:
        patch.setattr(ShardFolder, "save", during)
        whole = record(replace(SMALL, overwrite=True))
    assert len(refused) == 6
    assert len(whole) == 3
    assert not list(datasets.rglob(".*"))


def test_an_interrupted_collection_of_episodes_leaves_nothing(datasets: Path) -> None:
    class Interrupted:
        def predict(self, *_: Any) -> Any:
            raise KeyboardInterrupt

    with closing(make_env(SMALL.env_id)) as env:
        settings: Any = {"num_episodes": 2, "dataset_id": "test/x-v0"}
        with pytest.raises(KeyboardInterrupt):
            collect_episodes(env, Interrupted(), progress=False, **settings)
    assert not [path for path in datasets.rglob("*") if path.is_file()]
    assert not list(datasets.rglob(".*"))


@pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")
def test_ctrl_c_stops_the_command_and_its_workers(datasets: Path) -> None:
    settings = replace(SMALL, num_steps=100_000, num_workers=2)
    process = start_command(settings)
    wait_until(lambda: len(shards(datasets)) >= 3, process)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command resumes" in stderr
    assert "Traceback" not in stderr
    assert wait_for_silence(process.pid)
    kept = len(shards(datasets))
    assert 3 <= kept < 250
    for path in shards(datasets):
        np.load(path)["actions"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_killing_the_command_ends_its_workers_and_keeps_its_runs(
    datasets: Path,
) -> None:
    process = start_command(replace(SMALL, num_steps=100_000, num_workers=2))
    wait_until(lambda: len(shards(datasets)) >= 3, process)
    process.kill()
    process.communicate(timeout=60)
    assert wait_for_silence(process.pid)
    for path in shards(datasets):
        np.load(path)["actions"]


def start_command(settings: CollectSettings) -> subprocess.Popen[str]:
    """Start `diffuser-policy collect` as the leader of its own process group."""
    options = {
        "--demonstrator": settings.demonstrator,
        "--num-steps": settings.num_steps,
        "--run-length": settings.run_length,
        "--seed": settings.seed,
        "--num-workers": settings.num_workers,
    }
    given = [str(part) for pair in options.items() for part in pair]
    code = (
        "import signal, sys; from diffuser_policy.cli import main; "
        # A shell's background jobs ignore Ctrl-C, and so would this one in turn.
        "signal.signal(signal.SIGINT, signal.default_int_handler); "
        f"sys.exit(main({['collect', settings.env_id, *given]!r}))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_until(condition: Any, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def wait_for_silence(group: int) -> bool:
    """Return whether all processes of a group end within two minutes."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if not is_at_work(group):
            return True
        time.sleep(0.05)
    return False


def is_at_work(group: int) -> bool:
    """Return whether a process of a group runs.

    One that is dead and not collected does not: workers that outlive the command are
    collected by the first process of the system, and that of a container may not do it.
    """
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    if not Path("/proc/self/stat").exists():
        return True
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has just ended
            state, _, its_group, *_ = path.read_text().rpartition(")")[2].split()
            if int(its_group) == group and state != "Z":
                return True
    return False


def test_work_with_other_settings_is_not_mixed_in(
    datasets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(1, KeyboardInterrupt(), patch)
        with pytest.raises(KeyboardInterrupt):
            record()
    with pytest.raises(ConfigError) as caught:
        record(replace(SMALL, action_noise=0.5))
    text = str(caught.value)
    assert "recipe.action_noise: 0.0 → 0.5" in text
    assert "--overwrite" in text
    assert len(shards(datasets)) == 1
    noisy = record(replace(SMALL, action_noise=0.5, overwrite=True))
    assert len(noisy) == 3


@pytest.fixture
def expert(tmp_path: Path) -> Path:
    """A file with a demonstrator, the class `Expert`."""
    path = tmp_path / "expert.py"
    module, _, name = EXPERT.partition(":")
    path.write_text(f"from {module} import {name} as Expert\n")
    return path


def test_work_of_a_demonstrator_that_was_edited_is_not_mixed_in(
    datasets: Path, expert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, before = (
        replace(SMALL, demonstrator=f"{expert}:Expert"),
        expert.read_text(),
    )
    with monkeypatch.context() as patch:
        stop_after(1, KeyboardInterrupt(), patch)
        with pytest.raises(KeyboardInterrupt):
            record(settings)
    expert.write_text(f"{before}# edited\n")
    with pytest.raises(ConfigError, match=r"unfinished work.*code: \w+ → \w+"):
        record(settings)
    expert.write_text(before)
    assert len(record(settings)) == 3
    assert len(recorded_facts(datasets / COLLECTED)[COLLECTION]["code"]) == 16


def test_a_demonstrator_that_is_edited_while_it_records_ends_the_work(
    datasets: Path, expert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, before = (
        replace(SMALL, demonstrator=f"{expert}:Expert"),
        expert.read_text(),
    )
    save = ShardFolder.save

    def save_and_edit(self: ShardFolder, *shard: Any) -> None:
        save(self, *shard)
        expert.write_text(f"{before}# edited\n")

    with monkeypatch.context() as patch:
        patch.setattr(ShardFolder, "save", save_and_edit)
        with pytest.raises(ConfigError, match="edited while it recorded"):
            record(settings)
    assert len(shards(datasets)) == 1
    expert.write_text(before)
    assert len(record(settings)) == 3


def test_a_full_disk_keeps_the_finished_runs(
    datasets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full_disk)
        with pytest.raises(StorageError, match="No space left on device"):
            record()
    assert shards(datasets) == []
    assert not list(datasets.rglob("*.partial"))
    assert len(record()) == 3


def test_a_damaged_shard_is_named(
    datasets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(2, KeyboardInterrupt(), patch)
        with pytest.raises(KeyboardInterrupt):
            record()
    path = shards(datasets)[1]
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DatasetError, match=r"shard-00001.npz is damaged.*Delete it"):
        record()
    path.unlink()
    assert len(record()) == 3


def test_a_shard_packed_by_an_unknown_method_is_damaged(
    datasets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(2, KeyboardInterrupt(), patch)
        with pytest.raises(KeyboardInterrupt):
            record()
    path = shards(datasets)[1]
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(b"PK\x01\x02") + 10] = 99
    path.write_bytes(damaged)
    with pytest.raises(DatasetError, match=r"shard-00001.npz is damaged: \w.*Delete"):
        record()


@pytest.mark.parametrize("text", ["{", "[1]", "", "\xff"])
def test_unfinished_work_with_damaged_settings_is_refused_or_discarded(
    datasets: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    with monkeypatch.context() as patch:
        stop_after(1, KeyboardInterrupt(), patch)
        with pytest.raises(KeyboardInterrupt):
            record()
    [settings] = datasets.rglob(".*.collecting/settings.json")
    settings.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"settings.json is damaged.*--overwrite"):
        record()
    assert len(shards(datasets)) == 1
    assert len(record(replace(SMALL, overwrite=True))) == 3
