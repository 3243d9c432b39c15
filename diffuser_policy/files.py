"""Files that exist completely or not at all.

Everything is written beside its destination under a hidden name, synced to the disk,
and moved into place with one rename. An interrupt, a full disk, a power cut or a second
process doing the same leaves either the old state or the new one.

    .NAME.PID-HOST+RANDOM.partial       being written
    .NAME.PID-HOST+RANDOM.old           what a folder held, being deleted

A killed process leaves such a file behind; the next process that writes into the same
folder deletes it. Symbolic links stay, and their targets are replaced. Devices and
pipes are written to, as `open` would.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import hashlib
import io
import json
import os
import platform
import re
import secrets
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock

from diffuser_policy.errors import (
    ConfigError,
    DiffuserPolicyError,
    StorageError,
    require_extra,
    shown,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HIDDEN = re.compile(
    r"\.(?P<name>.+)\.(?P<pid>\d+)-(?P<host>[0-9a-f]{8})[0-9a-f]{8}"
    r"\.(?P<suffix>partial|old|probe|pending)"
)
LEFT_BY_SYSTEMS = {".DS_Store", "Thumbs.db", "desktop.ini"}  # not the user's files
LOCK_FILE = "lock"  # held by the process that is alone in a folder
# What locking a file raises where the file system has no locks.
NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}
LONGEST_NAME, LONGEST_PATH = 255, 4095  # bytes
NAME_BYTES = 214  # of a name that hidden ones repeat: with all else, 255 at most
ABANDONED = 24 * 3600.0  # seconds after which a file of another machine has no writer
DESCRIPTORS = (Path("/dev/fd"), Path("/proc/self/fd"))
PNG_DPI, PNG_COLORS = 140, 128  # a palette halves the size and changes nothing


def usable_path(given: Any, error: type[DiffuserPolicyError] = StorageError) -> Path:
    """Return a user's text or path as a path that a file may have.

    Args:
        given: Text or path.
        error: Raised for anything else.

    Raises:
        DiffuserPolicyError: `error`.
    """
    try:
        path = Path(given)
        written = os.fsencode(path)
    except (TypeError, UnicodeEncodeError):
        raise error(
            f"A path is a text that names a file, got {shown(given)}."
        ) from None
    longest = max(map(len, written.split(os.sep.encode())))
    if b"\0" in written or longest > LONGEST_NAME or len(written) > LONGEST_PATH:
        raise error(
            f"No file can have the path {shown(str(given))}. Names have at most "
            f"{LONGEST_NAME} bytes and paths {LONGEST_PATH:,}, without the character "
            f"NUL: choose another."
        )
    return path


def usable_folder(given: Any) -> Path:
    """Return a user's text or path as a path that a folder may have.

    Raises:
        StorageError: A file is there, no folder can have the path, or it cannot be
            looked at.
    """
    path = usable_path(given)
    try:
        is_file = path.exists() and not path.is_dir()
    except OSError as error:
        raise storage_error(path, error) from error
    if is_file:
        raise StorageError(errno.ENOTDIR, f"{path} is a file; name a folder.")
    return path


@contextlib.contextmanager
def replaced_folder(folder: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield an empty folder that replaces `folder` when the block succeeds.

    Args:
        folder: Destination; what it held before is deleted in the end. If it is a link,
            the folder that it points to is replaced.
        durable: Sync the files: they survive a power cut.

    Raises:
        StorageError: It is a file, the files could not be written, or links in the
            folder would be lost; `folder` is as it was.
    """
    real = Path(os.path.realpath(folder))
    partial = hidden_sibling(real, "partial")
    try:
        usable_folder(folder)
        _refuse_links(folder, real)
        real.parent.mkdir(parents=True, exist_ok=True)
        _tidy_once(real.parent)
        partial.mkdir()
        yield partial
        if durable:
            _sync_tree(partial)
        _swap(partial, real)
        if durable:
            _sync_names(real.parent)
    except OSError as error:
        raise storage_error(folder, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def replaced_file(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a path to write to that replaces `path` when the block succeeds.

    A device, a pipe, and a file in a folder that does not allow new files are written
    to when the block succeeds.

    Args:
        path: Destination. If it is a link, the file that it points to is replaced.
        durable: Sync the file: it survives a power cut.

    Raises:
        StorageError: The file could not be written; `path` is as it was.
    """
    try:
        real = _real_file(path)
        if _is_written_to(path, real):
            with tempfile.TemporaryDirectory() as folder:
                yield Path(folder) / "content"
                _pour(Path(folder) / "content", path)
            return
        partial = hidden_sibling(real, "partial")
        try:
            real.parent.mkdir(parents=True, exist_ok=True)
            _tidy_once(real.parent)
            yield partial
            if real.exists():
                partial.chmod(stat.S_IMODE(real.stat().st_mode))
            if durable:
                _sync(partial)
            partial.replace(real)
            if durable:
                _sync_names(real.parent)
        finally:
            with contextlib.suppress(OSError):  # such as a parent that is no folder
                partial.unlink()
    except OSError as error:
        raise storage_error(path, error) from error


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Write text in UTF-8, as `replaced_file` does, with the same bytes everywhere.

    What UTF-8 cannot express, of a file's name that is not UTF-8, becomes "?".

    Raises:
        StorageError: It could not be written; what was there before is intact.
    """
    with replaced_file(path, durable=durable) as partial:
        partial.write_bytes(text.encode(errors="replace"))


def write_json(path: Path, data: Any) -> None:
    """Write JSON data, atomically.

    Raises:
        StorageError: It could not be written, or the data holds NaN or infinity; what
            was there before is intact.
    """
    write_text(path, json_text(path, data))


def json_text(path: Path, data: Any) -> str:
    """Return JSON data as the text of a file.

    Args:
        path: The file, for the error.
        data: `json_data` makes such data of anything.

    Raises:
        StorageError: The data holds NaN or infinity.
    """
    try:
        return json.dumps(data, indent=1, allow_nan=False) + "\n"
    except ValueError as error:
        raise StorageError(
            f"{path} was not written: the data holds NaN or infinity, which JSON "
            f"cannot express."
        ) from error


def save_png(figure: Figure, path: Path, **options: Any) -> None:
    """Write a picture as a PNG file with a palette, which is small.

    The options are those of `Figure.savefig`.

    Raises:
        StorageError: The file could not be written; what was there before is intact.
        MissingExtraError: Pillow is not installed.
    """
    image = require_extra("PIL.Image", "plot")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=PNG_DPI, **options)
    pixels = image.open(buffer).convert("RGB")
    with replaced_file(path) as partial:
        reduced = pixels.quantize(PNG_COLORS, dither=image.Dither.NONE)
        reduced.save(partial, format="PNG", optimize=True)


def check_writable(path: Path) -> None:
    """Find out now, instead of after long work, whether a file can be written.

    Leaves nothing behind: folders that are missing are not created yet.

    Raises:
        StorageError: It cannot.
    """
    try:
        real = _real_file(path)
        if _is_written_to(path, real):
            if path.is_fifo() and _descriptor(path) is None:
                _pipe(path)  # stays open: its reader ends when the last writer does
            return
        folder = real.parent
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        probe = hidden_sibling(folder / real.name, "probe")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise storage_error(path, error) from error


@contextlib.contextmanager
def held(path: Path) -> Iterator[bool]:
    """Hold a file's lock if no other process does; yield whether it is held.

    The end of the process releases it, however it ends. The file may stay. Where the
    file system refuses locks, every process holds it.

    Raises:
        StorageError: The file cannot be made or written.
    """
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        if not path.exists():  # filelock takes other errors for a lock that is held
            check_writable(path)
        yield False
        return
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise storage_error(path, error) from error
    try:
        yield True
    finally:
        lock.release()


@contextlib.contextmanager
def alone_in(folder: Path, refusal: str, *, lock: str = LOCK_FILE) -> Iterator[None]:
    """Create a folder, and keep other processes that do the same out of it.

    Args:
        folder: May exist already.
        refusal: Message of the error while another process is in it.
        lock: Name of the file in it that is held; it stays.

    Raises:
        ConfigError: Another process is.
        StorageError: The folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(folder, error) from error
    with held(folder / lock) as is_held:
        if not is_held:
            raise ConfigError(refusal)
        yield


def hidden_sibling(path: Path, suffix: str) -> Path:
    """Return an unused hidden name beside `path`, of this process alone."""
    name = path.name
    while len(os.fsencode(name)) > NAME_BYTES + 4:  # bytes of the longest character
        name = name[:-1]
    mark = f"{os.getpid()}-{_host()}{secrets.token_hex(4)}"
    return path.with_name(f".{name}.{mark}.{suffix}")


def is_abandoned(path: Path) -> bool:
    """Return whether a path with a hidden name has no writer any more.

    Its process has ended or, if it is one of another machine, it is a day old.
    """
    found = HIDDEN.fullmatch(path.name)
    if found is None:
        return False
    if found["host"] != _host():
        with contextlib.suppress(OSError):
            return time.time() - path.lstat().st_mtime > ABANDONED
        return False
    return not _is_alive(int(found["pid"]))


def remove(path: Path) -> None:
    """Delete a file or a folder, if that is possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def user_folder(variable: str, *parts: str) -> Path:
    """Return the folder that an environment variable names, or else one at home.

    Args:
        variable: Name of the variable.
        parts: Of the path below the home folder.

    Raises:
        ConfigError: The variable is not set, and the home folder is unknown.
    """
    if named := os.environ.get(variable):
        return Path(named)
    try:
        return Path.home().joinpath(*parts)
    except RuntimeError as error:
        raise ConfigError(
            f"The home folder of this user is unknown. Set the environment variable "
            f"{variable} to the folder to use instead of ~/{'/'.join(parts)}."
        ) from error


def storage_error(path: Path, error: OSError) -> StorageError:
    """Return an error that explains why `path` could not be written."""
    if isinstance(error, StorageError):
        return error
    reason = error.strerror or str(error)
    no_folder = "A file is in the place of a folder: move it, or choose another place."
    advice = {
        errno.EEXIST: no_folder,
        errno.ENOTDIR: no_folder,
        errno.ENOSPC: "Free some space or choose another place.",
        errno.EDQUOT: "Your quota is used up: free some space.",
        errno.EACCES: "You may not write there: choose another place.",
        errno.EROFS: "That file system is read-only: choose another place.",
    }.get(error.errno or 0, "")
    return StorageError(
        error.errno, f"{path} could not be written: {reason}. {advice}".rstrip()
    )


def synced(path: Path) -> None:
    """Make sure that a file survives a power cut, and that its folder lists it."""
    _sync(path)
    _sync(path.parent)


# --- where --------------------------------------------------------------------------


def _real_file(path: Path) -> Path:
    """Return the file that a path leads to, through all links.

    Raises:
        StorageError: It is a folder.
        OSError: The links lead nowhere, or the file may not be written.
    """
    real = Path(os.path.realpath(path))
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return real
    if stat.S_ISDIR(mode):
        raise StorageError(errno.EISDIR, f"{path} is a folder; name a file.")
    if not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return real


def _is_written_to(path: Path, real: Path) -> bool:
    """Return whether a path can only be written to, not replaced."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    if not stat.S_ISREG(mode) or _descriptor(path) is not None:
        return True
    return not os.access(real.parent, os.W_OK)


def _descriptor(path: Path) -> int | None:
    """Return the open descriptor of this process that a path stands for, if any.

    Standard output may be redirected into that same file. Opening it again would empty
    it; replacing it would lose what is printed later.
    """
    numbers = [1, 2]
    if path.parent in DESCRIPTORS and path.name.isdecimal():
        numbers.append(int(path.name))
    for number in numbers:
        with contextlib.suppress(OSError):
            if os.path.samestat(path.stat(), os.fstat(number)):
                return number
    return None


def _pour(source: Path, path: Path) -> None:
    """Copy a file into an open descriptor, a device, a pipe, or over another file."""
    number = _descriptor(path)
    if number in (1, 2):
        for stream in (sys.stdout, sys.stderr):
            stream.flush()  # in the order in which it was written
    if number is None and path.is_fifo():
        number = _pipe(path)
    opened = path.open("wb") if number is None else os.fdopen(os.dup(number), "wb")
    with source.open("rb") as content, opened as sink:
        shutil.copyfileobj(content, sink)
    if path in _PIPES:
        os.close(_PIPES.pop(path))


_PIPES: dict[Path, int] = {}  # opened by `check_writable`, until they are written to


def _pipe(path: Path) -> int:
    """Return a descriptor of a named pipe, opened.

    Raises:
        StorageError: Nobody reads it: writing would wait forever.
    """
    if path not in _PIPES:
        try:
            _PIPES[path] = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            raise StorageError(
                errno.ENXIO, f"{path} is a pipe that nobody reads: start its reader."
            ) from error
        os.set_blocking(_PIPES[path], True)
    return _PIPES[path]


def _refuse_links(folder: Path, real: Path) -> None:
    """Refuse to replace a folder with links in it, which would be lost.

    Raises:
        StorageError: Names one of them.
    """
    for place, folders, files in os.walk(real):
        for name in (*folders, *files):
            if (Path(place) / name).is_symlink():
                raise StorageError(
                    errno.EEXIST,
                    f"{folder} was not replaced: {Path(place) / name} is a link, which "
                    f"would be lost. Delete the link, or choose another name.",
                )


# --- what interrupted processes left ------------------------------------------------


@functools.cache
def _host() -> str:
    """Return eight digits that tell this machine, or container, from others."""
    name = platform.node()
    with contextlib.suppress(OSError):
        name += str(Path("/proc/self/ns/pid").readlink())
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:8]


def _is_alive(pid: int) -> bool:
    if sys.platform == "win32":  # where `os.kill` sends Ctrl-C, or ends the process
        query_limited, no_such_process, still_active = 0x1000, 87, 259
        kernel = ctypes.WinDLL("kernel32", use_last_error=True)
        kernel.OpenProcess.restype = ctypes.c_void_p
        number = kernel.OpenProcess(query_limited, 0, ctypes.c_ulong(pid))
        if number is None:  # it may be of another user
            return ctypes.get_last_error() != no_such_process
        handle, code = ctypes.c_void_p(number), ctypes.c_ulong(still_active)
        kernel.GetExitCodeProcess(handle, ctypes.byref(code))
        kernel.CloseHandle(handle)
        return code.value == still_active
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # of another user, or no process of this system
        return True
    return True


def tidy(folder: Path) -> None:
    """Delete what killed processes left in a folder, if it exists.

    A folder that was replaced in two steps, and is missing because the second was never
    taken, is put back. One whose name is too long to be repeated whole stays hidden.
    """
    for path in [*folder.iterdir()] if folder.is_dir() else []:
        found = HIDDEN.fullmatch(path.name)
        if found is None or found["suffix"] == "pending" or not is_abandoned(path):
            continue
        target = path.with_name(found["name"])
        is_old = found["suffix"] == "old"
        if is_old and len(os.fsencode(found["name"])) > NAME_BYTES:
            continue  # perhaps the only copy, of a folder whose name may be longer
        if is_old and not target.exists():
            with contextlib.suppress(OSError):
                path.rename(target)
        else:
            remove(path)


_tidy_once = functools.lru_cache(maxsize=256)(tidy)  # in every process


# --- the last step ------------------------------------------------------------------


def _swap(partial: Path, folder: Path) -> None:
    """Move `partial` to `folder`; what was there before is in `partial`, or deleted."""
    if folder.exists() and _exchange(partial, folder):
        return
    old = hidden_sibling(folder, "old")
    try:
        with contextlib.suppress(FileNotFoundError):
            folder.rename(old)
        try:
            partial.rename(folder)
        except OSError as error:
            # Another process was faster: its result is as good as this one.
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                raise
    finally:
        if old.exists() and not folder.exists():
            with contextlib.suppress(OSError):  # filled by another process meanwhile
                old.rename(folder)
        shutil.rmtree(old, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two folders in one step, and return whether the system can do that."""
    if sys.platform != "linux":
        return False
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except AttributeError:  # a C library without it
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    paths = os.fsencode(first), os.fsencode(second)
    return bool(renameat2(here, paths[0], here, paths[1], exchange) == 0)


def _sync(path: Path) -> None:
    """Write what the system still holds of a file, or of a folder's names, to disk."""
    if os.name == "nt" and path.is_dir():  # folders cannot be opened there
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_names(folder: Path) -> None:
    """Sync the names in a folder after a rename, if that is possible.

    By then, the new content is in place and synced. An error would say that nothing was
    written, and callers would delete what belongs to the new content.
    """
    with contextlib.suppress(OSError):
        _sync(folder)


def _sync_tree(folder: Path) -> None:
    """Sync everything in a folder."""
    for place, _, files in os.walk(folder, topdown=False):
        for name in files:
            _sync(Path(place) / name)
        _sync(Path(place))
