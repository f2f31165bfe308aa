"""A trained potential in one file: plain values and tensors, and a checksum."""

from typing import Any

import torch as th

from sb3_energy.files.atomic import PathOrFile, write_whole
from sb3_energy.files.checksums import DamagedError
from sb3_energy.files.errors import existing, explained, load_tensors, opened, save_tensors

FORMAT = "sb3_energy.EnergyMatching"
WHAT = "EnergyMatching"


def write(path: PathOrFile, content: dict[str, Any]) -> None:
    """
    :param path: where to, ``.pt`` is appended to a path without suffix; the old file is whole until the new one is
    :param content: plain values and tensors
    :raises OSError: if the file cannot be written
    """
    write_whole(path, "pt", lambda file: save_tensors(dict(content, format=FORMAT), file))


def read(path: PathOrFile, device: th.device) -> dict[str, Any]:
    """
    :param path: as it was written, with or without the suffix
    :param device: where to put the tensors
    :return: the content
    :raises FileNotFoundError: if there is no such file
    :raises ValueError: if it is another one, or damaged
    """
    found = existing(path, "pt", WHAT)
    with explained(path, WHAT), opened(found) as file:
        content = load_tensors(file, device, weights_only=True)
        if content.get("format") != FORMAT:
            raise DamagedError("it was written by something else")
    return content
