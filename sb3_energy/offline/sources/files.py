"""Columns of data sets in NPZ and HDF5 files. Reading them runs no code."""

from typing import Any

import numpy as np

from sb3_energy.files.atomic import PathOrFile
from sb3_energy.files.checksums import DamagedError
from sb3_energy.files.errors import check_zip, explained, opened
from sb3_energy.offline.offline_dataset import SPACES
from sb3_energy.offline.space_files import space_from_json

WHAT = "data set"


def read_npz(path: PathOrFile) -> dict[str, Any]:
    """
    Read the arrays of an NPZ file, such as ``OfflineDataset.save`` and OGBench write.

    :param path: path to the file (or a file-like)
    :return: arrays by name; dictionaries of observations as such, and spaces, if the file has them
    :raises ValueError: if it is another file, or damaged
    """
    with explained(path, WHAT), opened(path) as file:
        start = file.tell()
        check_zip(file, written_by="numpy.savez")
        file.seek(start)
        with np.load(file, allow_pickle=False) as archive:
            if not hasattr(archive, "files"):
                raise DamagedError("it holds one array without a name")
            found = {name: archive[name] for name in archive.files}
        for name in SPACES:
            if name in found:
                found[name] = space_from_json(str(found[name]))
    return _grouped(found)


def read_hdf5(path: PathOrFile) -> dict[str, Any]:
    """
    Read the arrays of an HDF5 file, such as D4RL's.

    :param path: path to the file (or a file-like)
    :return: arrays by name; a group ``observations`` is a dictionary of observations, other groups are not read
    :raises ImportError: without h5py
    :raises ValueError: if it is another file, or damaged
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError(f"{path} is an HDF5 file and needs h5py: pip install 'sb3-energy[offline]'") from error
    with explained(path, WHAT), opened(path) as opened_file, h5py.File(opened_file, "r") as file:
        if "episode_0" in file:
            raise DamagedError("it is a part of a Minari data set: pass the data set's folder, or its id")
        found: dict[str, Any] = {}
        for name, part in file.items():
            if isinstance(part, h5py.Dataset):
                found[name] = part[()]
            elif name in ("observations", "next_observations"):
                found[name] = {key: inner[()] for key, inner in part.items() if isinstance(inner, h5py.Dataset)}
    return found


def kind_of(path: PathOrFile) -> str | None:
    """
    Look at how a file begins.

    :param path: path to the file (or a file-like)
    :return: ``"npz"``, ``"hdf5"``, ``"pickle"``, or ``None``
    """
    with opened(path) as file:
        start = file.read(8)
    if start[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return "npz"
    if start == b"\x89HDF\r\n\x1a\n":
        return "hdf5"
    return "pickle" if start[:1] == b"\x80" else None


def _grouped(found: dict[str, Any]) -> dict[str, Any]:
    """``observations/key`` in dictionaries."""
    columns: dict[str, Any] = {}
    for name, part in found.items():
        column, slash, key = name.partition("/")
        if slash and column in ("observations", "next_observations"):
            columns.setdefault(column, {})[key] = part
        else:
            columns[name] = part
    return columns
