"""
Files with a checksum: the content is followed by its length and its CRC-32.

Reading a pickle stops at its end, so ``pickle.load`` and Stable-Baselines3 read these files as well.
"""

import os
import pickle
import struct
import zlib
from typing import Any

MAGIC = b"\nsb3_energy crc32"
_NUMBERS = struct.Struct("<QI")
TRAILER_BYTES = len(MAGIC) + _NUMBERS.size
CHUNK = 1 << 20

UNREADABLE = (
    AssertionError, AttributeError, EOFError, ImportError, IndexError, KeyError, MemoryError, OverflowError, RecursionError,
    RuntimeError, TypeError, ValueError, pickle.UnpicklingError, struct.error, zlib.error,
)  # fmt: skip
"""Errors that reading a damaged file, or one of another kind, may raise."""


class DamagedError(Exception):
    """A file cannot be read; the message says why."""


class CheckedWriter:
    """
    A file-like that counts what is written and computes its checksum.

    :param file: a file-like that is open for writing
    """

    def __init__(self, file: Any):
        self.file = file
        self.checksum, self.n_bytes = 0, 0

    def write(self, data: Any) -> int:
        """
        Write bytes.

        :param data: bytes
        :return: their number
        """
        view = memoryview(data)
        self.checksum = zlib.crc32(view, self.checksum)
        self.n_bytes += view.nbytes
        self.file.write(data)
        return view.nbytes

    def flush(self) -> None:
        """Flush the file."""
        self.file.flush()

    def finish(self) -> None:
        """Write length and checksum at the end."""
        self.file.write(MAGIC + _NUMBERS.pack(self.n_bytes, self.checksum))


def dump_checked(value: Any, file: Any) -> None:
    """
    Pickle a value, followed by a checksum.

    :param value: what to pickle
    :param file: a file-like that is open for writing
    """
    writer = CheckedWriter(file)
    pickle.dump(value, writer, protocol=pickle.HIGHEST_PROTOCOL)
    writer.finish()


def verify(file: Any) -> bool:
    """
    Compare the checksum at the end of a file, and restore the file's position.

    :param file: a file-like that is open for reading and seekable
    :return: whether there is a checksum
    :raises DamagedError: if a byte has changed
    """
    start = file.tell()
    end = file.seek(0, os.SEEK_END)
    n_bytes = end - start - TRAILER_BYTES
    file.seek(max(start, end - TRAILER_BYTES))
    expected = _checksum(file.read(TRAILER_BYTES), n_bytes)
    file.seek(start)
    if expected is not None:
        _compare(file, n_bytes, expected)
        file.seek(start)
    return expected is not None


def load_checked(file: Any, is_alone: bool) -> Any:
    """
    Unpickle what :func:`dump_checked` wrote, or a plain pickle.

    :param file: a file-like that is open for reading
    :param is_alone: whether nothing may follow; otherwise the file's position is behind the value and its checksum
    :return: the value
    :raises DamagedError: if a byte has changed
    :raises Exception: any error of unpickling
    """
    if not file.seekable():
        return pickle.load(file)
    is_verified = verify(file)
    start = file.tell()
    value = pickle.load(file)
    stop = file.tell()
    if is_verified:
        file.seek(stop + TRAILER_BYTES)
        return value
    trailer = file.read(TRAILER_BYTES)
    expected = _checksum(trailer, stop - start)
    if is_alone and trailer:
        raise DamagedError("its end has changed")
    file.seek(start)
    if expected is not None:
        _compare(file, stop - start, expected)
    file.seek(stop + (TRAILER_BYTES if expected is not None else 0))
    return value


def _checksum(trailer: bytes, n_bytes: int) -> int | None:
    if len(trailer) != TRAILER_BYTES or not trailer.startswith(MAGIC):
        return None
    length, checksum = _NUMBERS.unpack(trailer[len(MAGIC) :])
    return checksum if length == n_bytes else None


def _compare(file: Any, n_bytes: int, expected: int) -> None:
    found, left = 0, n_bytes
    while left > 0 and (chunk := file.read(min(CHUNK, left))):
        found, left = zlib.crc32(chunk, found), left - len(chunk)
    if found != expected:
        raise DamagedError("its checksum is wrong; take another copy")
