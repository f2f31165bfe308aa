"""
Patches of the zoo's scripts for the Hugging Face Hub, whose dependencies have renamed functions and errors. Each is applied in
the process of that script alone, and only where it is needed.
"""

import importlib
from functools import wraps
from typing import Any


def mend(script: str | None) -> None:
    """
    Patch the modules that a script of the zoo will import.

    :param script: ``rl_zoo3.push_to_hub``, ``rl_zoo3.load_from_hub``; nothing is done for others
    """
    if script == "rl_zoo3.push_to_hub":
        _mend_push()
    elif script == "rl_zoo3.load_from_hub":
        _mend_load()


def _mend_push() -> None:
    """sb3-team-hf-integration 3 calls ``generate_metadata`` with an underscore."""
    # the package has a function of the same name
    module: Any = importlib.import_module("huggingface_sb3.push_to_hub")
    if not hasattr(module, "generate_metadata"):
        module.generate_metadata = module._generate_metadata


def _mend_load() -> None:
    """
    An agent without ``VecNormalize`` has no file of its statistics. The zoo expects an error of ``requests`` then, which
    newer versions of huggingface_hub do not raise.
    """
    import huggingface_sb3
    from huggingface_hub.errors import EntryNotFoundError
    from requests.exceptions import HTTPError

    original = huggingface_sb3.load_from_hub
    if issubclass(EntryNotFoundError, HTTPError) or hasattr(original, "__sb3_energy__"):
        return

    @wraps(original)
    def load_from_hub(*args: Any, **kwargs: Any) -> str:
        try:
            return original(*args, **kwargs)
        except EntryNotFoundError as error:
            raise HTTPError(str(error)) from error

    load_from_hub.__sb3_energy__ = True  # type: ignore[attr-defined]
    huggingface_sb3.load_from_hub = load_from_hub
