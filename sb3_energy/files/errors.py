"""Opening files that may be damaged or of another kind: one sentence says which file it is and what is wrong with it."""

import pathlib
import textwrap
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sb3_energy.files.atomic import PathOrFile
from sb3_energy.files.checksums import UNREADABLE, DamagedError

LONGEST = 300


def existing(path: PathOrFile, suffix: str, what: str) -> PathOrFile:
    """
    The path of a file whose suffix may have been left out, as in SB3.

    :param path: path to a file (or a file-like)
    :param suffix: that may be missing from the path
    :param what: kind of the file, for the message
    :return: the path of an existing file; a file-like as it is
    :raises FileNotFoundError: if there is none
    :raises ValueError: if it is a folder
    """
    if hasattr(path, "read"):
        return path
    given = pathlib.Path(path)
    candidates = [given, pathlib.Path(f"{given}.{suffix}")] if suffix else [given]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    if given.is_dir():
        raise ValueError(f"{path} is no saved {what}: it is a folder")
    if not candidates[-1].exists():
        raise FileNotFoundError(2, "No such file or directory", str(candidates[-1]))
    return candidates[-1]


@contextmanager
def opened(path: PathOrFile) -> Iterator[Any]:
    """
    A file that is open for reading within this context. A file-like is put back to its position afterwards.

    :param path: what :func:`existing` returned
    :return: the file
    """
    if isinstance(path, (str, pathlib.Path)):
        with open(path, "rb") as file:
            yield file
        return
    start = path.tell()
    try:
        yield path
    finally:
        path.seek(start)


@contextmanager
def explained(path: Any, what: str) -> Iterator[None]:
    """
    Within this context errors of reading a damaged file, or one of another kind, become one sentence.

    :param path: to the file
    :param what: expected kind of the file
    :raises ValueError: instead of the original error
    :raises PermissionError: if the file must not be read, which says nothing about its content
    """
    try:
        yield
    except PermissionError:
        raise
    except DamagedError as error:
        raise ValueError(f"{path} is no saved {what}: {error}") from error.__cause__
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is no saved {what}: it is damaged ({one_line(error)})") from error
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{path} needs a class that cannot be imported here ({one_line(error)}); make it importable"
        ) from error
    except (*UNREADABLE, OSError) as error:
        raise ValueError(f"{path} is no saved {what}, or it is damaged ({one_line(error)})") from error


def one_line(error: BaseException) -> str:
    """
    The message of an error in one line.

    :param error: any
    :return: its message, shortened, preceded by its class where the message alone says little
    """
    words = textwrap.shorten(str(error), LONGEST, placeholder=" ...")
    says_little = not words or isinstance(error, (KeyError, IndexError, AssertionError))
    return f"{type(error).__name__}: {words}" if says_little else words


def check_zip(file: Any, entries: tuple[str, ...] = (), written_by: str = "save()") -> None:
    """
    Read a zip file to its end and compare its checksums.

    :param file: a file-like that is open for reading
    :param entries: names of entries that must be in it
    :param written_by: for the message
    :raises DamagedError: if it is not a zip file, an entry is missing, or a byte in it has changed
    """
    if not zipfile.is_zipfile(file):
        raise DamagedError(f"it is not a zip file as {written_by} writes it")
    try:
        with zipfile.ZipFile(file) as archive:
            missing = sorted(set(entries) - set(archive.namelist()))
            damaged = None if missing else archive.testzip()
    except (*UNREADABLE, zipfile.BadZipFile, OSError) as error:
        raise DamagedError(f"it is damaged ({one_line(error)})") from error
    if missing:
        raise DamagedError(f"the zip file lacks {missing}")
    if damaged is not None:
        raise DamagedError(f"{damaged!r} in it is damaged; take another checkpoint")
