"""Tensors and plain values in a file with a checksum, in torch's format."""

import pickle
from typing import Any

import torch as th

from sb3_energy.files.atomic import PathOrFile, write_whole
from sb3_energy.files.checksums import CheckedWriter, DamagedError, verify
from sb3_energy.files.errors import check_zip, existing, explained, opened

HAS_CHECKSUM = "has_checksum"
ANOTHER = "it was written by something else"


def write_tensors(path: PathOrFile, content: dict[str, Any], what: str) -> None:
    """
    Save what :func:`read_tensors` reads. The old file stays whole until the new one is complete.

    :param path: where to; ``.pt`` is appended to a path without suffix
    :param content: plain values and tensors
    :param what: name of the class whose file it is; it is stored in the file
    :raises OSError: if the file cannot be written
    """
    write_whole(path, "pt", lambda file: save_tensors(dict(content, format=f"sb3_energy.{what}"), file))


def read_tensors(path: PathOrFile, device: th.device, what: str) -> dict[str, Any]:
    """
    Read a file of :func:`write_tensors` with torch's ``weights_only=True``, which runs no code of the file.

    :param path: as it was written, with or without the suffix
    :param device: where to put the tensors
    :param what: name of the class whose file it must be
    :return: the content
    :raises FileNotFoundError: if there is no such file
    :raises ValueError: if it is another file, or damaged
    """
    found = existing(path, "pt", what)
    with explained(path, what), opened(found) as file:
        content = load_tensors(file, device, weights_only=True)
        if content.get("format") != f"sb3_energy.{what}":
            raise DamagedError(ANOTHER)
    return content


def save_tensors(content: dict[str, Any], file: Any) -> None:
    """
    ``torch.save`` followed by a checksum, because torch does not notice a changed name in the directory of its zip file.
    Bytes after the zip file are ignored by ``torch.load``, so torch and SB3 read these files as well.

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
    Load what :func:`save_tensors` or ``torch.save`` has written.

    :param file: a file-like that is open for reading
    :param device: where to put the tensors
    :param weights_only: whether nothing but tensors and plain values is read; otherwise reading runs code of the file
    :return: what was saved
    :raises DamagedError: if it is another file, or a byte in it has changed
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
            raise DamagedError(ANOTHER) from error
        raise
    if not isinstance(content, dict):
        raise DamagedError(ANOTHER)
    if content.get(HAS_CHECKSUM) and not is_verified:
        raise DamagedError("it is damaged (its checksum is missing)")
    return content
