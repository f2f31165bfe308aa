"""What is wrong with a model's file, said in one sentence before anything is loaded from it."""

import base64
import io
import json
import pathlib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cloudpickle
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.save_util import open_path

PathOrFile = str | pathlib.Path | io.BufferedIOBase

_FILES = ("data", "policy.pth")
_SETTINGS = ("action_space", "observation_space", "policy_class")


def check_model_file(algorithm: type[BaseAlgorithm], path: PathOrFile, custom_objects: dict[str, Any] | None = None) -> None:
    """
    :param algorithm: the class whose ``load`` is asked
    :param path: path to the file (or a file-like)
    :param custom_objects: settings that will not be read from the file
    :raises ValueError: if the file is none that the algorithm's ``save`` wrote, is damaged, or needs a class that cannot
        be imported
    """
    try:
        with _opened(path) as file:
            settings = _read_settings(file)
    except (zipfile.BadZipFile, EOFError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no saved {algorithm.__name__}: it is damaged ({error})") from error
    except _NoModelError as error:
        raise ValueError(f"{path} is no saved {algorithm.__name__}: {error}") from None
    settings |= {name: value for name, value in (custom_objects or {}).items() if name in settings}
    objects = {name: _deserialized(path, name, value) for name, value in settings.items()}
    _check_policy_class(algorithm, path, objects["policy_class"])


class _NoModelError(Exception):
    """Says why a file is no model."""


def _read_settings(file: Any) -> dict[str, Any]:
    if not zipfile.is_zipfile(file):
        raise _NoModelError("it is not a zip file as model.save() writes it")
    with zipfile.ZipFile(file) as archive:
        missing = sorted(set(_FILES) - set(archive.namelist()))
        if missing:
            raise _NoModelError(f"the zip file lacks {missing}")
        damaged = archive.testzip()
        if damaged is not None:
            raise _NoModelError(f"{damaged!r} in it is damaged; take another checkpoint")
        settings = json.loads(archive.read("data"))
    missing = sorted(set(_SETTINGS) - set(settings))
    if missing:
        raise _NoModelError(f"its settings lack {missing}")
    file.seek(0)
    return settings


def _deserialized(path: PathOrFile, name: str, value: Any) -> Any:
    if not isinstance(value, dict) or ":serialized:" not in value:
        return value
    try:
        return cloudpickle.loads(base64.b64decode(value[":serialized:"].encode()))
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{path} needs a class that cannot be imported here ({error}); make it importable, "
            f"or pass custom_objects={{{name!r}: ...}}"
        ) from error
    except (RuntimeError, TypeError):  # SB3 warns of these and goes on without the setting
        return None


def _check_policy_class(algorithm: type[BaseAlgorithm], path: PathOrFile, policy_class: Any) -> None:
    accepted = tuple(algorithm.policy_aliases.values())
    learns = getattr(algorithm, "learns_potential", False)
    known = isinstance(policy_class, type) and issubclass(policy_class, accepted)
    if not known or getattr(policy_class, "has_potential", False) != learns:  # a potential needs who teaches it
        name = getattr(policy_class, "__qualname__", repr(policy_class))
        raise ValueError(
            f"{path} is no saved {algorithm.__name__}: its policy is {name} of {getattr(policy_class, '__module__', None)}; "
            "load it with the algorithm that saved it"
        )


@contextmanager
def _opened(path: PathOrFile) -> Iterator[Any]:
    if isinstance(path, io.IOBase):
        yield path
        return
    with open_path(path, "r", verbose=0, suffix="zip") as file:
        yield file
