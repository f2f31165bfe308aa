"""Arguments that would have no effect beside the others raise an error, in one sentence each."""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from sb3_energy.checks import plain


def is_same(value: Any, other: Any) -> bool:
    """
    :param value: of any type, arrays included
    :param other: a number or a bool
    :return: whether they are equal
    """
    number = plain(value)
    return isinstance(number, (bool, int, float)) and number == other


def refuse_changed_fields(argument: str, settings: Any, names: Iterable[str], needs: str) -> None:
    """
    :param argument: name of the argument that gave the settings
    :param settings: a dataclass with a default for each field
    :param names: fields that would have no effect
    :param needs: end of the error message: what they need, and what was given
    :raises ValueError: if one of them is not its default
    """
    defaults = {field.name: field.default for field in fields(settings)}
    for name in names:
        if getattr(settings, name) != defaults[name]:
            raise ValueError(f"{argument}=dict({name}={getattr(settings, name)!r}) needs {needs}")


def refuse_changed(given: Mapping[str, Any], defaults: Mapping[str, Any], needs: str) -> None:
    """
    :param given: arguments
    :param defaults: defaults of those that would have no effect
    :param needs: end of the error message: what they need, and what was given
    :raises ValueError: if one of them is given and is not its default
    """
    for name, default in defaults.items():
        if name in given and not is_same(given[name], default):
            raise ValueError(f"{name}={given[name]!r} needs {needs}")
