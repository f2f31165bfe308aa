"""SAC's own arguments, checked one sentence each where SB3 would go on with them."""

import math
from typing import Any

from sb3_energy.checks import check_integer, check_unit_interval, plain
from sb3_energy.training.guards import LARGEST

SMALLEST = {"buffer_size": None, "batch_size": 1, "gradient_steps": None, "n_steps": 1}
"""Integers, and what they must be at least; SB3 takes any ``gradient_steps`` below 0 for as many as there were steps."""


SMALLEST_ABOVE_0 = 1e-38
"""Of single precision: what is smaller may become 0."""


def check_training_arguments(model: Any) -> None:
    """
    :param model: SB3's off-policy algorithm with SAC's arguments, not set up yet
    :raises ValueError: if a number is out of range
    :raises TypeError: if something has the wrong type
    """
    check_learning_rate(model.learning_rate)
    for name, minimum in SMALLEST.items():
        check_integer(name, getattr(model, name), minimum)
    check_unit_interval("tau", model.tau)
    check_unit_interval("gamma", model.gamma)
    if math.isnan(_number("learning_starts", model.learning_starts)):
        raise ValueError("learning_starts must be a number of steps, got nan")
    if not _number("target_update_interval", model.target_update_interval) > 0.0:
        raise ValueError(f"target_update_interval must be above 0, got {model.target_update_interval!r}")
    _check_train_freq(model.train_freq)
    _check_ent_coef(model.ent_coef)
    _check_target_entropy(model.target_entropy)


def check_learning_rate(learning_rate: Any) -> None:
    """
    :param learning_rate: a number, or a schedule of the part of the training that remains
    :raises ValueError: if it is NaN, infinite or negative, or the schedule is at the start
    :raises TypeError: if it is neither
    """
    if callable(learning_rate) and not isinstance(learning_rate, type):
        rate = learning_rate(1.0)
        if not hasattr(rate, "__float__"):
            raise TypeError(f"learning_rate must return a number, got {rate!r} at progress_remaining=1.0")
        check_rate(float(rate), 1.0)
    elif not 0.0 <= _number("learning_rate", learning_rate, "a number or a schedule") < math.inf:
        raise ValueError(f"learning_rate must be finite and at least 0, got {learning_rate!r}")


def check_rate(rate: float, progress_remaining: float) -> None:
    """
    :param rate: what a schedule of learning rates returned
    :param progress_remaining: for which part of the training
    :raises ValueError: if it is NaN, infinite or negative
    """
    if not 0.0 <= rate < math.inf:
        raise ValueError(
            f"learning_rate must be finite and at least 0, got {rate!r} at progress_remaining={progress_remaining:g}; "
            "no network was changed by it"
        )


def _check_train_freq(train_freq: Any) -> None:
    if isinstance(train_freq, tuple) and len(train_freq) != 2:
        raise ValueError(f"train_freq must be a number of steps, or a tuple such as (1, 'episode'), got {train_freq!r}")
    frequency = plain(train_freq[0] if isinstance(train_freq, tuple) else train_freq)
    if isinstance(frequency, int) and frequency < 1:  # SB3 says what is wrong with other types
        raise ValueError(f"train_freq must be at least 1, got {train_freq!r}")


def _check_ent_coef(ent_coef: Any) -> None:
    is_auto = isinstance(ent_coef, str) and ent_coef.startswith("auto")
    if is_auto and "_" not in ent_coef:
        return
    try:
        value = float(ent_coef.split("_")[1] if is_auto else ent_coef)
    except (TypeError, ValueError):
        error = ValueError if isinstance(ent_coef, str) else TypeError
        raise error(f'ent_coef must be a number, "auto" or "auto_0.1", got {ent_coef!r}') from None
    if is_auto and not SMALLEST_ABOVE_0 < value < math.inf:
        raise ValueError(f"ent_coef must start at a finite value above 0, got {ent_coef!r}")
    if not math.isfinite(value):
        raise ValueError(f"ent_coef must be finite, got {ent_coef!r}")
    if value > LARGEST:
        raise ValueError(f"ent_coef must be finite in single precision, got {ent_coef!r}")
    if value < 0.0:
        raise ValueError(f"ent_coef must be at least 0, got {ent_coef!r}")


def _check_target_entropy(target_entropy: Any) -> None:
    if isinstance(target_entropy, str) and target_entropy == "auto":
        return
    try:
        value = float(target_entropy)
    except (TypeError, ValueError):
        raise TypeError(f'target_entropy must be a number or "auto", got {target_entropy!r}') from None
    if not math.isfinite(value):
        raise ValueError(f'target_entropy must be finite or "auto", got {target_entropy!r}')


def _number(name: str, value: Any, what: str = "a number") -> float:
    number = plain(value)
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise TypeError(f"{name} must be {what}, got {value!r}")
    return float(number)
