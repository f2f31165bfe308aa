"""Checks of a model's file before a model is made from it: one sentence for each error."""

import base64
import binascii
import inspect
import io
import json
import numbers
import pickle
import zipfile
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import cloudpickle
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_energy.files.atomic import PathOrFile
from sb3_energy.files.checksums import UNREADABLE, DamagedError
from sb3_energy.files.errors import check_zip, explained, one_line, opened

SETTING_NAMES = "_setting_names"
"""Name under which a file lists the settings of the class that saved it."""

_FILES = ("data", "policy.pth")
_NEEDED = ("action_space", "observation_space", "policy_class")
_NUMBERS = (
    "batch_size", "buffer_size", "gamma", "gradient_steps", "learning_starts", "n_envs", "num_timesteps",
    "target_update_interval", "tau", "verbose", "_n_updates",
)  # fmt: skip


def check_model_file(algorithm: type[BaseAlgorithm], path: PathOrFile, custom_objects: dict[str, Any] | None = None) -> None:
    """
    Check a saved model before it is loaded.

    :param algorithm: class that loads the file
    :param path: path to the file (or a file-like)
    :param custom_objects: settings that will not be read from the file
    :raises ValueError: if the file was not written by the algorithm's ``save``, is damaged, needs a class that cannot be
        imported, or has unknown settings
    """
    with explained(path, algorithm.__name__), opened(path) as file:
        check_zip(file, _FILES, "model.save()")
        settings = _read_settings(file)
    settings |= {name: value for name, value in (custom_objects or {}).items() if name in settings}
    objects = {name: _deserialized(path, name, value) for name, value in settings.items()}
    _check_policy_class(algorithm, path, objects["policy_class"])
    _check_types(algorithm, path, objects)
    _check_known(algorithm, path, "settings", objects.get(SETTING_NAMES), set(own_settings(algorithm)))
    known, takes_any = _argument_names(objects["policy_class"].__mro__)
    if not takes_any:
        _check_known(algorithm, path, "policy_kwargs", objects.get("policy_kwargs"), known)


def read_parameters(what: str, path: PathOrFile) -> dict[str, Any]:
    """
    Read the state dicts in a saved model.

    :param what: what the file should be, for the message
    :param path: path to the file (or a file-like)
    :return: the states of networks and optimisers in it, by their names
    :raises ValueError: if it is no model's file, or damaged
    """
    with explained(path, what), opened(path) as file:
        check_zip(file, _FILES[1:], "model.save()")
        found = {name: _read_parameters(file, name) for name in _parameter_files(file)}
    variables = ("pytorch_variables", "tensors")
    return {name.removesuffix(".pth"): state for name, state in found.items() if name.removesuffix(".pth") not in variables}


@lru_cache
def own_settings(algorithm: type) -> list[str]:
    """
    List the constructor arguments that an algorithm adds to SB3's.

    :param algorithm: a class
    :return: the names of the arguments of its constructor that are not SB3's, those of the classes that it extends included
    """
    own = [parent for parent in algorithm.__mro__ if not parent.__module__.startswith("stable_baselines3.")]
    return sorted(_argument_names(own)[0])


def _argument_names(classes: Iterable[type]) -> tuple[set[str], bool]:
    """Argument names of their constructors, and whether one of the user's own has ``**kwargs``."""
    names: set[str] = set()
    takes_any = False
    for cls in classes:
        if "__init__" not in cls.__dict__ or cls is object:
            continue
        for parameter in list(inspect.signature(cls.__dict__["__init__"]).parameters.values())[1:]:
            if parameter.kind is parameter.VAR_KEYWORD:
                takes_any |= not cls.__module__.startswith(("sb3_energy.", "stable_baselines3.", "torch."))
            elif parameter.kind is not parameter.VAR_POSITIONAL:
                names.add(parameter.name)
    return names, takes_any


def _read_settings(file: Any) -> dict[str, Any]:
    with zipfile.ZipFile(file) as archive:
        try:
            settings = json.loads(archive.read("data"))
        except (ValueError, RecursionError) as error:
            raise DamagedError(f"it is damaged ({one_line(error)})") from error
    if not isinstance(settings, dict):
        raise DamagedError(f"its settings are no dictionary but {settings!r:.40}")
    missing = sorted(set(_NEEDED) - set(settings))
    if missing:
        raise DamagedError(f"its settings lack {missing}")
    return settings


def _parameter_files(file: Any) -> list[str]:
    with zipfile.ZipFile(file) as archive:
        return [name for name in archive.namelist() if name.endswith(".pth")]


def _read_parameters(file: Any, name: str) -> Any:
    with zipfile.ZipFile(file) as archive:
        content = io.BytesIO(archive.read(name))
    try:
        return th.load(content, map_location="cpu", weights_only=True)
    except (*UNREADABLE, OSError) as error:
        raise DamagedError(f"{name!r} in it is damaged ({one_line(error)})") from error


def _deserialized(path: PathOrFile, name: str, value: Any) -> Any:
    if not isinstance(value, dict) or ":serialized:" not in value:
        return value
    try:
        return cloudpickle.loads(base64.b64decode(value[":serialized:"].encode()))
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{path} needs a class that cannot be imported here ({one_line(error)}); make it importable, "
            f"or pass custom_objects={{{name!r}: ...}}"
        ) from error
    except (binascii.Error, pickle.UnpicklingError, EOFError, ValueError, KeyError, IndexError) as error:
        raise ValueError(f"{path} is damaged: its setting {name!r} cannot be read ({one_line(error)})") from error
    except (RuntimeError, TypeError):  # SB3 warns of these and goes on without the setting
        return None


def _check_policy_class(algorithm: type[BaseAlgorithm], path: PathOrFile, policy_class: Any) -> None:
    accepted = tuple(algorithm.policy_aliases.values())
    learns = getattr(algorithm, "learns_potential", False)
    known = isinstance(policy_class, type) and issubclass(policy_class, accepted)
    if not known or getattr(policy_class, "has_potential", False) != learns:  # only PGAC trains a potential
        name = getattr(policy_class, "__qualname__", repr(policy_class))
        raise ValueError(
            f"{path} is no saved {algorithm.__name__}: its policy is {name} of {getattr(policy_class, '__module__', None)}; "
            "load it with the algorithm that saved it"
        )


def _check_types(algorithm: type, path: PathOrFile, settings: dict[str, Any]) -> None:
    """Check types which SB3 does not check, so that it would fail in the middle of a training."""
    expected: dict[str, tuple[type, str]] = dict.fromkeys(_NUMBERS, (numbers.Real, "number"))
    expected |= dict.fromkeys(("policy_kwargs", "replay_buffer_kwargs"), (dict, "dictionary"))
    for name, (kind, called) in expected.items():
        if name in settings and not isinstance(settings[name], kind):
            raise ValueError(
                f"{path} is no saved {algorithm.__name__}: its {name} must be a {called}, got {settings[name]!r:.80}"
            )


def _check_known(algorithm: type, path: PathOrFile, where: str, found: Any, known: set[str]) -> None:
    unknown = sorted(set(map(str, found)) - known) if isinstance(found, (dict, list)) else []
    if unknown:
        raise ValueError(
            f"{path} has {where} that {algorithm.__name__} of this version does not know, {unknown}: "
            "load it with the class and the version that saved it"
        )
