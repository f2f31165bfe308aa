"""
Files that notice when a byte of theirs has changed: what stands in them is followed by its length and its checksum (CRC-32).

Whoever reads a pickle stops where the pickle does, so a checked file is read by ``pickle.load`` as well, and by
Stable-Baselines3.
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
"""What reading bytes that mean something else may end in."""


class DamagedError(Exception):
    """Says why a file cannot be read."""


class CheckedWriter:
    """
    Passes on what is written and counts it.

    :param file: a file-like that is open for writing
    """

    def __init__(self, file: Any):
        self.file = file
        self.checksum, self.n_bytes = 0, 0

    def write(self, data: Any) -> int:
        """
        :param data: bytes
        :return: how many they are
        """
        view = memoryview(data)
        self.checksum = zlib.crc32(view, self.checksum)
        self.n_bytes += view.nbytes
        self.file.write(data)
        return view.nbytes

    def flush(self) -> None:
        """Hand everything to the operating system."""
        self.file.flush()

    def finish(self) -> None:
        """Write the trailer."""
        self.file.write(MAGIC + _NUMBERS.pack(self.n_bytes, self.checksum))


def dump_checked(value: Any, file: Any) -> None:
    """
    :param value: what to pickle
    :param file: a file-like that is open for writing
    """
    writer = CheckedWriter(file)
    pickle.dump(value, writer, protocol=pickle.HIGHEST_PROTOCOL)
    writer.finish()


def verify(file: Any) -> bool:
    """
    Look at the checksum, and come back to where the file was.

    :param file: a file-like that is open for reading and can be sought in
    :return: whether there is a checksum at its end
    :raises DamagedError: if it says that a byte has changed
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
    :param is_alone: whether nothing else may follow; otherwise the file is left behind the value
    :return: the value
    :raises DamagedError: if a byte has changed
    :raises Exception: whatever unpickling ends in
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
