"""Opening files that may be no such files: one sentence says which file it is and what is wrong with it."""

import pathlib
import pickle
import textwrap
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch as th

from sb3_energy.files.atomic import PathOrFile
from sb3_energy.files.checksums import UNREADABLE, CheckedWriter, DamagedError, verify

LONGEST = 300
HAS_CHECKSUM = "has_checksum"


def existing(path: PathOrFile, suffix: str, what: str) -> PathOrFile:
    """
    :param path: path to a file (or a file-like)
    :param suffix: which may be left out of the path, as in SB3
    :param what: the file should be, for the message
    :return: the path of the file that is meant; a file-like as it is
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
    :param path: what :func:`existing` returned
    :return: a context with the file, open for reading; a file-like is where it was afterwards
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
    What reading a file that is another one or damaged may end in becomes one sentence.

    :param path: to the file
    :param what: the file should be
    :raises ValueError: in its place
    :raises PermissionError: if the file must not be read, which says nothing of what is in it
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
    :param error: what happened
    :return: its message in one line, cut where torch goes on and on; its name where it says little
    """
    words = textwrap.shorten(str(error), LONGEST, placeholder=" ...")
    says_little = not words or isinstance(error, (KeyError, IndexError, AssertionError))
    return f"{type(error).__name__}: {words}" if says_little else words


def check_zip(file: Any, entries: tuple[str, ...] = (), written_by: str = "save()") -> None:
    """
    Read a zip file through and compare its checksums.

    :param file: a file-like that is open for reading
    :param entries: what must be in it
    :param written_by: for the message
    :raises DamagedError: if it is no zip file, lacks something, or a byte in it has changed
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


def save_tensors(content: dict[str, Any], file: Any) -> None:
    """
    ``torch.save``, followed by a checksum: torch does not notice a changed name in the directory of its zip file. Nor does it
    mind what follows the zip file, so ``torch.load`` and SB3 read these files too.

    :param content: what to save
    :param file: a file-like that is open for writing
    """
    before = th.serialization.get_crc32_options()
    th.serialization.set_crc32_options(True)  # or unzipping would call the file damaged
    writer: Any = CheckedWriter(file)
    try:
        th.save(content | {HAS_CHECKSUM: True}, writer)
    finally:
        th.serialization.set_crc32_options(before)
    writer.finish()


def load_tensors(file: Any, device: th.device | str, weights_only: bool) -> dict[str, Any]:
    """
    :param file: a file-like that :func:`save_tensors` or ``torch.save`` has written to
    :param device: where to put the tensors
    :param weights_only: whether nothing but tensors and plain values is read; otherwise reading runs what the file says
    :return: what was saved
    :raises DamagedError: if it is no such file, or a byte in it has changed
    """
    start = file.tell()
    is_verified = verify(file)
    if not is_verified:
        check_zip(file, written_by="torch.save")
        file.seek(start)
    try:
        content = th.load(file, map_location=device, weights_only=weights_only)
    except pickle.UnpicklingError as error:
        if weights_only:  # torch's own message advises to run whatever is in there
            raise DamagedError("it was written by something else") from error
        raise
    if not isinstance(content, dict):
        raise DamagedError("it was written by something else")
    if content.get(HAS_CHECKSUM) and not is_verified:
        raise DamagedError("it is damaged (its checksum is missing)")
    return content
