"""Atomic writes: a path always holds a whole file, even if the process is killed while it writes."""

import errno
import hashlib
import io
import os
import pathlib
import platform
import re
import secrets
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any

try:
    import fcntl
except ImportError:  # no such locks on Windows
    fcntl = None  # type: ignore[assignment]

PathOrFile = str | pathlib.Path | io.BufferedIOBase

SHOWN_BYTES = 40
CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
ABANDONED_AFTER = 24 * 3600.0
"""Seconds after which a temporary file of another machine counts as left behind."""


def write_whole(path: PathOrFile, suffix: str, write: Callable[[Any], None]) -> None:
    """
    Write a file atomically: its path holds the old file until the new one is complete.

    The new file is written under a hidden name in the same folder, flushed to the disk, and renamed. A symbolic link stays and
    its target is replaced. The new file gets the mode of the old one, and its owner and group where that is allowed. Temporary
    files of killed processes are removed first (see :func:`remove_left_behind`).

    :param path: where to; a file-like, a device or a pipe is written to directly
    :param suffix: appended to a path that has none, as SB3 does; ``""`` for none
    :param write: writes to a file-like
    :raises OSError: if there is no space, or the folder or the file must not be written to; it names the path
    """
    if hasattr(path, "write"):
        write(path)
        return
    final = pathlib.Path(path)
    if final.suffix == "" and suffix:
        final = pathlib.Path(f"{final}.{suffix}")
    final = final.resolve()
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, "what should be its folder is a file", str(final)) from error
    old = _status(final)
    try:
        if old is not None and stat.S_ISDIR(old.st_mode):
            raise IsADirectoryError(errno.EISDIR, "it is a folder", str(final))
        if old is not None and not stat.S_ISREG(old.st_mode):
            with open(final, "wb") as file:  # nothing to be kept, and renaming would put a file in a device's place
                write(file)
        else:
            _replace(final, old, write)
    except BaseException as error:
        _raise_cause(error, final)
        raise


def _status(final: pathlib.Path) -> os.stat_result | None:
    try:
        old = final.stat()
    except FileNotFoundError:
        return None
    if stat.S_ISREG(old.st_mode) and not os.access(final, os.W_OK):
        raise PermissionError(errno.EACCES, "the file is read-only", str(final))  # as opening it would say
    return old


def _raise_cause(error: BaseException, final: pathlib.Path) -> None:
    """Raise the operating system's error with the path, where a library has raised its own error instead."""
    if not isinstance(error, Exception):
        return
    cause: BaseException | None = error
    while cause is not None and getattr(cause, "errno", None) not in CANNOT_WRITE:
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, OSError) and cause.filename is None:
        raise OSError(cause.errno, cause.strerror, str(final)) from error


def _replace(final: pathlib.Path, old: os.stat_result | None, write: Callable[[Any], None]) -> None:
    remove_left_behind(final.parent)
    file, temporary = _opened_beside(final, 0o666 if old is None else stat.S_IMODE(old.st_mode) & 0o777)
    try:
        with file:
            write(file)
            file.flush()
            if old is not None:
                _hand_on(file.fileno(), old)
            os.fsync(file.fileno())
            if fcntl is not None:  # under the lock, or it would look left behind
                os.replace(temporary, final)
        if fcntl is None:  # Windows renames no open file
            os.replace(temporary, final)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _opened_beside(final: pathlib.Path, mode: int) -> tuple[IO[bytes], pathlib.Path]:
    """A new file beside another, locked while it is open. Its mode is never wider than its final mode."""
    shown = os.fsencode(final.name)[:SHOWN_BYTES].decode(errors="ignore")  # a name may be as long as names can be
    while True:
        temporary = final.with_name(f".{shown}.{_machine()}.{secrets.token_hex(6)}.part")
        try:
            descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode | 0o200)
        except OSError as error:
            reason = f"no file can be written beside it ({error.strerror})"
            raise OSError(error.errno, reason, str(final)) from error
        if fcntl is None or _is_locked(descriptor, temporary):
            return os.fdopen(descriptor, "wb"), temporary
        os.close(descriptor)  # removed by another process between opening and locking


def _is_locked(descriptor: int, temporary: pathlib.Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks, where no process gets one to remove the file either
        return True
    return temporary.exists()


def _machine() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def _hand_on(descriptor: int, old: os.stat_result) -> None:
    if not hasattr(os, "fchown"):
        return
    mode, new = stat.S_IMODE(old.st_mode), os.fstat(descriptor)
    if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
        try:
            os.fchown(descriptor, old.st_uid, old.st_gid)
        except OSError:  # only root gives files away
            with suppress(OSError):
                os.fchown(descriptor, -1, old.st_gid)
    if os.fstat(descriptor).st_gid != old.st_gid:  # another group gets no more than others
        mode = mode & ~0o070 | (mode & 0o007) << 3
    os.fchmod(descriptor, mode)


def remove_left_behind(folder: pathlib.Path) -> None:
    """
    Remove the temporary files of processes that have ended.

    A writer holds a lock on its file (``flock``) until it is renamed, and the operating system releases the lock when the
    process ends for any reason. So a process that gets the lock knows that the file is not being written. Locks may not reach
    other machines of a network file system: the file's name contains a hash of the machine, and files of other machines are
    removed after a day without a change. Without such locks (Windows) nothing is removed.

    :param folder: whose temporary files are removed
    """
    if fcntl is None:
        return
    pattern = re.compile(r"\..*\.([0-9a-f]{8})\.[0-9a-f]{12}\.part")
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            found = pattern.fullmatch(entry.name) if entry.name.endswith(".part") else None
            if found is not None and entry.is_file(follow_symlinks=False):
                is_here = found[1] == _machine()
                if is_here or time.time() - entry.stat(follow_symlinks=False).st_mtime > ABANDONED_AFTER:
                    _remove_unlocked(entry.path)


def _remove_unlocked(path: str) -> None:
    with suppress(OSError):  # locked, or not ours to remove
        descriptor = os.open(path, os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)
        finally:
            os.close(descriptor)
