"""Files: replaced as a whole, through links, and written to where they are devices."""

from __future__ import annotations

import ast
import contextlib
import ctypes
import errno
import os
import re
import stat
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from diffuser_policy import files
from diffuser_policy.errors import ConfigError, StorageError
from diffuser_policy.files import (
    NAME_BYTES,
    alone_in,
    check_writable,
    held,
    hidden_sibling,
    replaced_file,
    replaced_folder,
    user_folder,
    write_json,
    write_text,
)
from diffuser_policy.testing import toy_policy

ROOT = Path(__file__).parent.parent
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes")
POSIX = pytest.mark.skipif(os.name != "posix", reason="POSIX files")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- links ------------------------------------------------------------------------


def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "r.json").write_text("old")
    (tmp_path / "r.json").symlink_to("big/r.json")
    check_writable(tmp_path / "r.json")
    write_text(tmp_path / "r.json", "new")
    assert (tmp_path / "r.json").is_symlink()
    assert (tmp_path / "big" / "r.json").read_text() == "new"
    assert names(tmp_path) == ["big", "r.json"]


def test_a_link_to_nothing_yet_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "r.json").symlink_to(tmp_path / "later" / "r.json")
    write_text(tmp_path / "r.json", "new")
    assert (tmp_path / "later" / "r.json").read_text() == "new"


def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    for call in (check_writable, lambda path: write_text(path, "new")):
        with pytest.raises(StorageError, match="could not be written"):
            call(tmp_path / "a")


def test_a_folder_behind_a_link_stays_behind_it(tmp_path: Path) -> None:
    (tmp_path / "big" / "walk").mkdir(parents=True)
    (tmp_path / "big" / "walk" / "old.hdf5").write_text("old")
    (tmp_path / "walk").symlink_to("big/walk")
    with replaced_folder(tmp_path / "walk") as partial:
        (partial / "new.hdf5").write_text("new")
    assert (tmp_path / "walk").is_symlink()
    assert names(tmp_path / "big" / "walk") == ["new.hdf5"]
    assert names(tmp_path) == ["big", "walk"]
    assert names(tmp_path / "big") == ["walk"]


def test_a_folder_that_holds_links_is_not_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "walk"
    folder.mkdir()
    (folder / "data").symlink_to(tmp_path)
    lost = pytest.raises(StorageError, match="is a link, which would be lost")
    with lost, replaced_folder(folder):
        raise AssertionError("refused before the work")
    assert (folder / "data").is_symlink()


# --- devices and pipes --------------------------------------------------------------


@POSIX
def test_a_named_pipe_is_written_to(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    read: list[str] = []
    reader = threading.Thread(
        target=lambda: read.append((tmp_path / "pipe").read_text())
    )
    reader.start()
    while True:
        with contextlib.suppress(StorageError):  # the reader is not there yet
            check_writable(tmp_path / "pipe")
            break
    write_json(tmp_path / "pipe", {"a": 1})
    reader.join()
    assert read == ['{\n "a": 1\n}\n']
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


@POSIX
def test_a_pipe_that_nobody_reads_is_refused_instead_of_waited_for(
    tmp_path: Path,
) -> None:
    os.mkfifo(tmp_path / "pipe")
    for call in (check_writable, lambda path: write_text(path, "new")):
        with pytest.raises(StorageError, match="a pipe that nobody reads"):
            call(tmp_path / "pipe")


@POSIX
def test_devices_stay_devices() -> None:
    check_writable(Path(os.devnull))
    write_text(Path(os.devnull), "nothing")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)  # noqa: PTH116


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
def test_a_full_device_says_so() -> None:
    with pytest.raises(StorageError, match="No space left") as caught:
        write_text(Path("/dev/full"), "text")
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="Linux has it")
@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "out.txt"])
def test_standard_output_keeps_what_was_printed(name: str, tmp_path: Path) -> None:
    """Also when it goes into a file, which must neither be emptied nor replaced."""
    code = """
        import sys
        from pathlib import Path
        from diffuser_policy.files import write_text

        print("before")
        write_text(Path(sys.argv[1]), "written\\n")
        print("after")
    """
    with (tmp_path / "out.txt").open("w") as output:
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), name],
            stdout=output,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=True,
        )
    assert (tmp_path / "out.txt").read_text() == "before\nwritten\nafter\n"


# --- what stays as it was -------------------------------------------------------------


@POSIX
def test_permissions_of_a_replaced_file_stay(tmp_path: Path) -> None:
    (tmp_path / "r.json").touch(mode=0o600)
    write_text(tmp_path / "r.json", "new")
    assert stat.S_IMODE((tmp_path / "r.json").stat().st_mode) == 0o600


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    for call in (check_writable, lambda path: write_text(path, "new")):
        with pytest.raises(StorageError, match="is a folder; name a file"):
            call(tmp_path)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("precious")
    (tmp_path / "link").symlink_to("notes")
    for name in ("notes", "link"):
        kept = pytest.raises(StorageError, match="is a file; name a folder")
        with kept, replaced_folder(tmp_path / name):
            raise AssertionError("refused before the work")
    assert (tmp_path / "notes").read_text() == "precious"
    assert names(tmp_path) == ["link", "notes"]


@pytest.mark.parametrize("place", ["notes", "notes/below", "notes/far/below"])
def test_a_file_in_the_place_of_a_folder_is_told(tmp_path: Path, place: str) -> None:
    (tmp_path / "notes").write_text("precious")
    for enter in (
        alone_in(tmp_path / place, "taken"),
        replaced_folder(tmp_path / place / "walk"),
        replaced_file(tmp_path / place / "r.json"),
    ):
        told = pytest.raises(StorageError, match="A file is in the place of a folder")
        with told, enter:
            raise AssertionError("nothing can be written there")
    with pytest.raises(StorageError, match="A file is in the place of a folder"):
        check_writable(tmp_path / place / "r.json")
    assert (tmp_path / "notes").read_text() == "precious"


@pytest.mark.parametrize("way", ["save_pretrained", "export"])
def test_a_planner_is_not_written_into_a_file(way: str, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("precious")
    with pytest.raises(StorageError, match="notes is a file; name a folder"):
        getattr(toy_policy(), way)(tmp_path / "notes")
    assert names(tmp_path) == ["notes"]


def test_names_as_long_as_the_system_allows_work(tmp_path: Path) -> None:
    path = tmp_path / ("ä" * 120 + "a.json")
    check_writable(path)
    write_text(path, "new")
    assert names(tmp_path) == [path.name]


@LINUX
def test_names_that_are_not_utf8_work(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    check_writable(tmp_path / f"{name}.json")
    write_text(tmp_path / f"{name}.json", f"Of {name}")
    assert (tmp_path / f"{name}.json").read_text() == "Of caf?"
    with replaced_folder(tmp_path / name) as partial:
        (partial / "data").touch()
    assert names(tmp_path) == [name, f"{name}.json"]
    assert names(tmp_path / name) == ["data"]


def test_everything_is_synced_before_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First the content, then the rename, then the folder that lists the name."""
    seen: list[tuple[str, bool]] = []

    def sync(descriptor: int) -> None:
        synced = Path(os.readlink(f"/proc/self/fd/{descriptor}"))  # noqa: PTH115
        seen.append((synced.name, (tmp_path / "r.json").exists()))

    monkeypatch.setattr(os, "fsync", sync)
    if not Path("/proc/self/fd").exists():
        pytest.skip("reads /proc")
    write_text(tmp_path / "r.json", "new")
    [(first, early), (second, late)] = seen
    assert first.startswith(".r.json.")
    assert (early, late) == (False, True)
    assert second == tmp_path.name
    seen.clear()
    write_text(tmp_path / "r.json", "new", durable=False)
    assert seen == []


def test_what_is_in_place_counts_where_its_folder_cannot_be_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error would say that nothing was written."""
    (tmp_path / "walk").mkdir()
    (tmp_path / "r.json").write_text("old")

    def sync(descriptor: int) -> None:
        if os.path.samestat(os.fstat(descriptor), tmp_path.stat()):
            raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "fsync", sync)
    write_text(tmp_path / "r.json", "new")
    with replaced_folder(tmp_path / "walk") as partial:
        (partial / "new").touch()
    assert (tmp_path / "r.json").read_text() == "new"
    assert names(tmp_path / "walk") == ["new"]
    assert names(tmp_path) == ["r.json", "walk"]


# --- what killed processes leave ------------------------------------------------------


def dead_process() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_the_next_writer_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    mine = hidden_sibling(tmp_path / "other.json", "partial")
    dead = Path(str(mine).replace(f".{os.getpid()}-", f".{dead_process()}-"))
    folder = dead.with_name(dead.name.replace("other.json", "step-1"))
    elsewhere = re.sub(r"-[0-9a-f]{8}", "-00000000", str(dead), count=1)
    for path in (mine, dead, Path(elsewhere)):
        path.touch()
    (folder / "inner").mkdir(parents=True)
    (tmp_path / ".hidden.json").touch()
    write_text(tmp_path / "r.json", "new")
    # Of processes that live, or may live on another machine, nothing is touched.
    kept = [".hidden.json", "r.json", mine.name, Path(elsewhere).name]
    assert names(tmp_path) == sorted(kept)


@pytest.mark.parametrize(("hours", "left"), [(23, True), (25, False)])
def test_what_another_machine_left_is_removed_after_a_day(
    tmp_path: Path, hours: int, left: bool
) -> None:
    mine = hidden_sibling(tmp_path / "other.json", "partial")
    elsewhere = Path(re.sub(r"-[0-9a-f]{8}", "-00000000", str(mine), count=1))
    elsewhere.touch()
    written = time.time() - 3600 * hours
    os.utime(elsewhere, (written, written))
    write_text(tmp_path / "r.json", "new")
    assert elsewhere.exists() is left


class Kernel:
    """The part of Windows that tells of processes: 4 runs, 8 is another user's."""

    def __init__(self) -> None:
        self.error, self.open = 0, 0
        self.OpenProcess = Mock(side_effect=self.opened)

    def opened(self, access: int, inherited: int, pid: ctypes.c_ulong) -> int | None:
        assert (access, inherited) == (0x1000, 0)
        if pid.value in (4, 12):
            self.open += 1
            return pid.value
        self.error = 5 if pid.value == 8 else 87
        return None

    def GetExitCodeProcess(self, handle: ctypes.c_void_p, code: Any) -> int:  # noqa: N802
        code._obj.value = 259 if handle.value == 4 else 1
        return 1

    def CloseHandle(self, handle: ctypes.c_void_p) -> int:  # noqa: N802
        assert handle.value in (4, 12)
        self.open -= 1
        return 1


@pytest.mark.parametrize(
    ("pid", "alive"), [(4, True), (8, True), (12, False), (16, False)]
)
def test_no_signal_is_sent_to_find_out_who_is_alive_on_windows(
    monkeypatch: pytest.MonkeyPatch, pid: int, alive: bool
) -> None:
    """There, `os.kill` sends Ctrl-C, or ends the process. 12 has ended, 16 is none."""
    kernel, kill = Kernel(), Mock()
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(os, "kill", kill)
    monkeypatch.setattr(ctypes, "WinDLL", lambda *_, **__: kernel, raising=False)
    monkeypatch.setattr(ctypes, "get_last_error", lambda: kernel.error, raising=False)
    assert files._is_alive(pid) is alive
    assert kernel.open == 0
    kill.assert_not_called()


@pytest.mark.parametrize(
    "name", ["walk", "w" * 200, "ä" * 107], ids=["4", "200", "214"]
)
def test_a_folder_between_two_renames_is_put_back(tmp_path: Path, name: str) -> None:
    """Where the system cannot exchange folders, a kill may come between the two."""
    left_between_renames(tmp_path / name)
    write_text(tmp_path / "r.json", "new")
    assert names(tmp_path) == sorted(["r.json", name])
    assert names(tmp_path / name) == ["data"]


@pytest.mark.parametrize(
    "name", ["w" * (NAME_BYTES + 1), "w" * 255, "😀" * 63], ids=["215", "255", "252"]
)
def test_a_folder_is_not_put_back_under_a_part_of_its_name(
    tmp_path: Path, name: str
) -> None:
    old = left_between_renames(tmp_path / name)
    write_text(tmp_path / "r.json", "new")
    assert names(tmp_path) == sorted([old.name, "r.json"])
    assert names(old) == ["data"]


def left_between_renames(folder: Path) -> Path:
    """Leave what a process leaves that is killed while it replaces a folder."""
    old = hidden_sibling(folder, "old")
    old = Path(str(old).replace(f".{os.getpid()}-", f".{dead_process()}-"))
    old.mkdir()
    (old / "data").touch()
    return old


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_folder_is_replaced_with_and_without_an_exchange(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool
) -> None:
    if not exchanges:
        monkeypatch.setattr(files, "_exchange", lambda *_: False)
    for content in ("first", "second"):
        with replaced_folder(tmp_path / "walk") as partial:
            (partial / content).touch()
    assert names(tmp_path) == ["walk"]
    assert names(tmp_path / "walk") == ["second"]


# --- locks, homes, encodings ----------------------------------------------------------


def test_a_lock_is_held_once(tmp_path: Path) -> None:
    with held(tmp_path / "lock") as first, held(tmp_path / "lock") as second:
        assert (first, second) == (True, False)
    with held(tmp_path / "lock") as third:
        assert third


def test_a_folder_is_entered_by_one_process_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "work"
    taken = pytest.raises(ConfigError, match="taken")
    with alone_in(folder, "taken"), taken, alone_in(folder, "taken"):
        raise AssertionError("two are in it")
    with alone_in(folder, "taken"):
        pass
    (folder / "file").touch()
    for place in (folder / "file" / "below", Path("/proc/self")):
        unwritable = pytest.raises(StorageError, match="could not be written")
        with unwritable, alone_in(place, "taken"):
            raise AssertionError("nothing can be written there")


@POSIX
@pytest.mark.parametrize("number", sorted(files.NO_LOCKS))
def test_a_folder_is_entered_where_the_file_system_has_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Some network disks have none: docs/limits.md says what that means."""
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(fcntl, "flock", Mock(side_effect=OSError(number, "no locks")))
    with alone_in(tmp_path, "taken"), alone_in(tmp_path, "taken"):
        assert names(tmp_path) == ["lock"]


@POSIX
def test_a_lock_on_a_broken_disk_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(fcntl, "flock", Mock(side_effect=OSError(errno.EIO, "broken")))
    broken = pytest.raises(StorageError, match="lock could not be written: broken")
    with broken, alone_in(tmp_path, "taken"):
        raise AssertionError("the lock is not held")


def test_a_variable_is_enough_where_the_home_folder_is_unknown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", unknown)
    monkeypatch.setenv("SOME_FOLDER", str(tmp_path))
    assert user_folder("SOME_FOLDER", ".cache", "x") == tmp_path
    monkeypatch.delenv("SOME_FOLDER")
    with pytest.raises(ConfigError, match=r"variable SOME_FOLDER .* ~/\.cache/x"):
        user_folder("SOME_FOLDER", ".cache", "x")


@pytest.mark.parametrize("folder", ["diffuser_policy", "envs", "examples", ".ci"])
def test_text_is_read_and_written_in_utf8_wherever_the_user_lives(folder: str) -> None:
    """Without `encoding`, Python takes that of the user's locale."""
    assert texts_without("encoding", folder, "rwax") == []


@pytest.mark.parametrize("folder", ["diffuser_policy", "envs"])
def test_lines_that_are_written_end_alike_on_every_system(folder: str) -> None:
    """Without `newline`, Windows adds carriage returns, and more at each rewrite."""
    assert texts_without("newline", folder, "wax") == []


def texts_without(argument: str, folder: str, modes: str) -> list[str]:
    """Return where files of text are opened without an argument, to read or write."""
    return [
        f"{path.relative_to(ROOT)}:{call.lineno}"
        for path in (ROOT / folder).rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call)
        and text_mode(call) in [*modes]
        and argument not in {keyword.arg for keyword in call.keywords}
    ]


def text_mode(call: ast.Call) -> str:
    """Return how a call opens a file of text, or nothing if it opens none."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
    values = [value.value for value in call.args if isinstance(value, ast.Constant)]
    opened = str(values[0]) if name == "open" and values else ""
    return {"read_text": "r", "write_text": "w"}.get(name, opened)
