"""
Checks of arguments, which raise errors of one sentence.

Beside Python's numbers, NumPy's scalars and arrays and tensors without axes are accepted. Every check returns the plain Python
value, which is the one to store, so that files hold no others.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Iterable
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch as th

LARGEST_INTEGER = 2**31 - 1
"""Upper bound of sizes and counts."""

_PLAIN = (bool, int, float, str, type(None))


def plain(value: Any) -> Any:
    """
    Python's own numbers for those of NumPy and torch, also in lists, tuples and dicts. Other values stay as they are.

    :param value: anything
    :return: the same with plain numbers
    """
    if type(value) in _PLAIN:  # the most frequent case
        return value
    if type(value) in (list, tuple):
        return type(value)(plain(part) for part in value)
    if type(value) is dict:
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, np.generic) or (isinstance(value, (np.ndarray, th.Tensor)) and value.ndim == 0):
        number = value.item()
        return number if type(number) in (bool, int, float) else value
    return value


def plain_fields(instance: Any) -> None:
    """
    Make the numbers of a dataclass plain, frozen or not, at the beginning of its ``__post_init__``.

    :param instance: of a dataclass
    """
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        number = plain(value)
        if number is not value:
            object.__setattr__(instance, field.name, number)


def check_number(name: str, value: Any, strict: bool = False, what: str = "a number") -> float:
    """
    Check that an argument is a finite number of at least (or above) 0.

    :param name: of the argument
    :param value: a number of at least 0
    :param strict: whether it must be above 0
    :param what: what is accepted, for the error message
    :return: the plain number
    :raises TypeError: if it is not a number
    :raises ValueError: if it is out of range
    """
    number = check_finite_number(name, value, what)
    if not (number > 0.0 if strict else number >= 0.0):
        raise ValueError(f"{name} must be {'above' if strict else 'at least'} 0, got {value!r}")
    return number


def check_finite_number(name: str, value: Any, what: str = "a number") -> float:
    """
    Check that an argument is a finite number.

    :param name: of the argument
    :param value: a number
    :param what: what is accepted, for the error message
    :return: the plain number
    :raises TypeError: if it is not a number
    :raises ValueError: if it is NaN or infinity
    """
    number = _number(name, value, what)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {value!r}")
    return number


def _number(name: str, value: Any, what: str = "a number") -> float:
    number = plain(value)
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise TypeError(f"{name} must be {what}, got {value!r}")
    return number


def check_ends(name: str, value: Any, what: str) -> tuple[float, float]:
    """
    Check the two ends of an interval.

    :param name: name of the argument, for error messages
    :param value: the value, a tuple or a list
    :param what: what the two are
    :return: both, as a tuple
    :raises ValueError: if they do not ascend, or one is NaN or infinity
    :raises TypeError: if they are not two numbers
    """
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"{name} must be two numbers, {what}, got {value!r}")
    low, high = (float(check_finite_number(f"{name}[{i}]", end)) for i, end in enumerate(value))
    if not low < high:
        raise ValueError(f"{name} must ascend, got {value!r}")
    return low, high


def check_positive(name: str, value: Any) -> float | None:
    """
    Check that an argument is a positive number or ``None``.

    :param name: of the argument
    :param value: a number above 0, or ``None`` for no limit
    :return: the plain number
    :raises TypeError: if it is neither
    :raises ValueError: if it is not above 0
    """
    return None if value is None else check_number(name, value, strict=True, what="a number or None")


def check_tolerance(name: str, value: Any) -> float | None:
    """
    Check that an argument is a non-negative number or ``None``.

    :param name: of the argument
    :param value: a number of at least 0, or ``None``
    :return: the plain number
    :raises TypeError: if it is neither
    :raises ValueError: if it is negative
    """
    return None if value is None else check_number(name, value, what="a number or None")


def check_part(name: str, value: Any) -> float:
    """
    Check that an argument is a number in (0, 1].

    :param name: of the argument
    :param value: a number in (0, 1]
    :return: the plain number
    :raises TypeError: if it is not a number
    :raises ValueError: if it is outside
    """
    return _inside("(0, 1]", name, value)


def check_fraction(name: str, value: Any, strict: bool = False) -> float:
    """
    Check that an argument is a number in [0, 1) or (0, 1).

    :param name: of the argument
    :param value: a number in [0, 1)
    :param strict: whether it must be above 0
    :return: the plain number
    :raises TypeError: if it is not a number
    :raises ValueError: if it is outside
    """
    return _inside("(0, 1)" if strict else "[0, 1)", name, value)


def check_unit_interval(name: str, value: Any) -> float:
    """
    Check that an argument is a number in [0, 1].

    :param name: of the argument
    :param value: a number in [0, 1]
    :return: the plain number
    :raises TypeError: if it is not a number
    :raises ValueError: if it is outside
    """
    return _inside("[0, 1]", name, value)


def _inside(interval: str, name: str, value: Any) -> float:
    number = _number(name, value)
    if not (0.0 <= number <= 1.0) or (number == 0.0 and "(" in interval) or (number == 1.0 and ")" in interval):
        raise ValueError(f"{name} must lie in {interval}, got {value!r}")
    return number


def check_schedule(name: str, value: Any, minimum: float, strict: bool = False) -> Any:
    """
    Check that an argument is a number or a schedule that is no smaller than a minimum.

    :param name: of the argument
    :param value: a number, or a schedule (which is evaluated at the start, the middle and the end of a refinement)
    :param minimum: smallest number that is allowed
    :param strict: whether the number must be above the minimum
    :return: the plain number, or the schedule
    :raises TypeError: if it is neither number nor schedule
    :raises ValueError: if a number is out of range
    """
    if isinstance(value, Callable) and not isinstance(value, type):  # type: ignore[arg-type]
        for remaining in (1.0, 0.5, 0.0):
            check_schedule(f"{name}({remaining})", value(remaining), minimum)
        return value
    number = check_finite_number(name, value, "a number or a schedule")
    if not (number > minimum if strict else number >= minimum):
        raise ValueError(f"{name} must be {'above' if strict else 'at least'} {minimum:g}, got {value!r}")
    return number


def check_integer(name: str, value: Any, minimum: int | None = None, maximum: int = LARGEST_INTEGER) -> int:
    """
    Check that an argument is an integer in a range.

    :param name: of the argument
    :param value: an integer
    :param minimum: smallest one that is allowed, or ``None``
    :param maximum: largest one that is allowed
    :return: the plain integer
    :raises TypeError: if it is not an integer
    :raises ValueError: if it is below the minimum or above the maximum
    """
    number = plain(value)
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if minimum is not None and number < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value!r}")
    if number > maximum:
        raise ValueError(f"{name} must be at most {maximum}, got {value!r}")
    return number


def check_bool(name: str, value: Any) -> bool:
    """
    Check that an argument is a bool.

    :param name: of the argument
    :param value: ``True`` or ``False``
    :return: the plain bool
    :raises TypeError: if it is neither
    """
    number = plain(value)
    if not isinstance(number, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return number


def check_verbose(value: Any) -> int:
    """
    Check the verbosity level.

    :param value: how much is printed, an integer of at least 0; ``True`` is 1, which SB3 takes as well
    :return: the plain integer
    :raises TypeError: if it is neither
    :raises ValueError: if it is negative
    """
    number = plain(value)
    return check_integer("verbose", int(number) if isinstance(number, bool) else number, minimum=0)


def check_device(device: Any) -> None:
    """
    Check that an argument is a valid device.

    :param device: ``"auto"``, or what ``torch.device`` takes
    :raises ValueError: if it is neither
    """
    try:
        th.device("cpu" if isinstance(device, str) and device == "auto" else device)
    except (RuntimeError, TypeError, ValueError):
        raise ValueError(f"device must be 'auto' or one of torch's, such as 'cpu' or 'cuda:0', got {device!r}") from None


def check_choice(name: str, value: Any, choices: Collection[Any]) -> Any:
    """
    Check that an argument is one of several strings.

    :param name: of the argument
    :param value: one of the choices
    :param choices: strings, of which ``None`` may be one
    :return: the value
    :raises ValueError: if it is none of them
    """
    if not (value is None or isinstance(value, str)) or value not in choices:
        names = [choice for choice in choices if choice is not None]
        accepted = f"{names} or None" if None in choices else f"{names}"
        raise ValueError(f"{name} must be one of {accepted}, got {value!r}{did_you_mean(value, names)}")
    return value


def check_keywords(name: str, given: Iterable[str], accepted: Collection[str]) -> None:
    """
    Check that all argument names are known.

    :param name: of the argument that holds them
    :param given: names of arguments
    :param accepted: those that are known
    :raises TypeError: if one is not known
    """
    unknown = sorted(set(given) - set(accepted), key=str)
    if unknown:
        raise TypeError(f"{name} must be among {list(accepted)}, got {unknown}{did_you_mean(unknown[0], accepted)}")


def did_you_mean(word: Any, words: Iterable[Any]) -> str:
    """
    Suggest the known word that is closest to a misspelled one.

    :param word: an unknown one
    :param words: known ones
    :return: the end of an error message that names the most similar of them, or nothing
    """
    known = [known for known in words if isinstance(known, str)]
    near = get_close_matches(word.lower(), [known.lower() for known in known], n=1) if isinstance(word, str) else []
    return next((f"; did you mean {known!r}?" for known in known if known.lower() in near), "")
