"""A trained potential in one file: plain values and tensors, so that reading it runs no code."""

import pathlib
import pickle
from typing import Any

import torch as th

from sb3_energy.common.model_files import PathOrFile
from sb3_energy.common.persistence import write_whole

FORMAT = "sb3_energy.EnergyMatching"


def write(path: PathOrFile, content: dict[str, Any]) -> None:
    """
    :param path: where to, ``.pt`` is appended to a path without suffix; the old file is whole until the new one is
    :param content: plain values and tensors
    """
    write_whole(path, "pt", lambda file: th.save(dict(content, format=FORMAT), file))


def read(path: PathOrFile, device: th.device) -> dict[str, Any]:
    """
    :param path: as it was written, with or without the suffix
    :param device: where to put the tensors
    :return: the content
    :raises FileNotFoundError: if there is no such file
    :raises ValueError: if it is another one, or damaged
    """
    try:
        content = th.load(_existing(path), map_location=device, weights_only=True)
    except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} is no saved EnergyMatching, or damaged ({str(error).splitlines()[0]})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} is no saved EnergyMatching: it was written by something else")
    return content


def _existing(path: PathOrFile) -> Any:
    if not isinstance(path, (str, pathlib.Path)):
        return path
    found = pathlib.Path(path)
    return found if found.exists() or found.suffix else found.with_name(f"{found.name}.pt")
