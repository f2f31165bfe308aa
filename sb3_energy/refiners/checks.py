"""Checks of refiners' arguments, one sentence each."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch as th

from sb3_energy.deferred import require
from sb3_energy.types import Refiner, Tick


def check_schedule(name: str, value: Any, minimum: float, strict: bool = False) -> None:
    """
    :param name: of the argument
    :param value: a number, or a schedule (which is asked at the start, the middle and the end of a refinement)
    :param minimum: smallest number that is allowed
    :param strict: whether the number must be above the minimum
    :raises TypeError: if it is neither number nor schedule
    :raises ValueError: if a number is out of range
    """
    if isinstance(value, Callable):  # type: ignore[arg-type]
        for remaining in (1.0, 0.5, 0.0):
            check_schedule(f"{name}({remaining})", value(remaining), minimum)
        return
    _check_number(name, value, "a number or a schedule")
    if not (value > minimum if strict else value >= minimum):
        raise ValueError(f"{name} must be {'above' if strict else 'at least'} {minimum:g}, got {value!r}")


def check_positive(name: str, value: Any) -> None:
    """
    :param name: of the argument
    :param value: a number, or ``None`` for no limit
    :raises TypeError: if it is neither
    :raises ValueError: if it is not positive
    """
    if value is None:
        return
    _check_number(name, value, "a number or None")
    if not value > 0.0:
        raise ValueError(f"{name} must be above 0, got {value!r}")


def check_tolerance(name: str, value: Any) -> None:
    """
    :param name: of the argument
    :param value: a number of at least 0, or ``None``
    :raises TypeError: if it is neither
    :raises ValueError: if it is negative
    """
    if value is None:
        return
    _check_number(name, value, "a number or None")
    if value < 0.0:
        raise ValueError(f"{name} must be at least 0, got {value!r}")


def check_number(name: str, value: Any, strict: bool = False) -> None:
    """
    :param name: of the argument
    :param value: a number of at least 0
    :param strict: whether it must be above 0
    :raises TypeError: if it is no number
    :raises ValueError: if it is out of range
    """
    _check_number(name, value, "a number")
    if not (value > 0.0 if strict else value >= 0.0):
        raise ValueError(f"{name} must be {'above' if strict else 'at least'} 0, got {value!r}")


def check_part(name: str, value: Any) -> None:
    """
    :param name: of the argument
    :param value: a number in (0, 1]
    :raises TypeError: if it is no number
    :raises ValueError: if it lies outside
    """
    _check_number(name, value, "a number")
    if not 0.0 < value <= 1.0:
        raise ValueError(f"{name} must lie in (0, 1], got {value!r}")


def check_integer(name: str, value: Any, minimum: int) -> None:
    """
    :param name: of the argument
    :param value: an integer
    :param minimum: smallest one that is allowed
    :raises TypeError: if it is no integer
    :raises ValueError: if it is below the minimum
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value!r}")


def refuse_diverged(refiner: Refiner, tick: Tick | None, diverged: th.Tensor) -> None:
    """
    :param refiner: which one was at work
    :param tick: at which step, ``None`` before the first one
    :param diverged: ``(B, ...)`` what has left the numbers
    :raises FloatingPointError: if anything has, with a sentence that says where and what to try
    """
    require(~diverged.any(), partial(diverged_error, refiner, tick, diverged))


def diverged_error(refiner: Refiner, tick: Tick | None, diverged: th.Tensor) -> FloatingPointError:
    """
    :param refiner: which one was at work
    :param tick: at which step, ``None`` before the first one
    :param diverged: ``(B, ...)`` what has left the numbers
    :return: a sentence that says where and what to try
    """
    step = "before the first step" if tick is None else f"at step {tick.step + 1} of {tick.n_steps}"
    observation = int(diverged.reshape(len(diverged), -1).any(dim=1).nonzero()[0])
    return FloatingPointError(
        f"a non-finite energy appeared {step} while {type(refiner).__name__} refined the actions of observation "
        f"{observation} of a batch of {len(diverged)}; try a lower learning_rate, a smaller step_size, "
        "or backbone='layer_norm'"
    )


def _check_number(name: str, value: Any, what: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be {what}, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value!r}")
