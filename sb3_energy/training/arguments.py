"""SAC's own arguments, checked before SB3 takes them: each error is one sentence."""

import inspect
import math
from collections.abc import Mapping
from typing import Any

from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.noise import ActionNoise

from sb3_energy.checks import (
    check_bool,
    check_device,
    check_integer,
    check_keywords,
    check_unit_interval,
    check_verbose,
    plain,
)
from sb3_energy.training.guards import LARGEST

_NAMES = [name for name in inspect.signature(SAC.__init__).parameters if name not in ("self", "policy", "env")]
_BOOLS = ("optimize_memory_usage", "use_sde", "use_sde_at_warmup")
_DICTS = ("policy_kwargs", "replay_buffer_kwargs")
_INTEGERS = {"stats_window_size": 1, "sde_sample_freq": -1}
_TRAINING_INTEGERS = {"buffer_size": None, "batch_size": 1, "gradient_steps": None, "n_steps": 1}
"""Integers and their smallest values. SB3 takes any ``gradient_steps`` below 0 for as many as there were steps."""

LARGEST_SEED = 2**32 - 1
"""The largest seed that NumPy takes."""

SCALED = "_scaled"
"""Ending of an ``ent_coef`` whose number is in units of the scale of values."""

SMALLEST_ABOVE_0 = 1e-38
"""Smaller numbers may become 0 in single precision."""


def by_name(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """
    Merge SAC's positional and keyword arguments into one dictionary.

    :param args: SAC's arguments after the environment, in SAC's order
    :param kwargs: SAC's keyword arguments
    :return: all of them by name
    """
    return dict(zip(_NAMES, args, strict=False)) | dict(kwargs)


def check_experience_arguments(given: Mapping[str, Any]) -> None:
    """
    Check SAC's arguments for collecting and storing experience.

    :param given: SAC's arguments by name, those that are given
    :raises ValueError: if a value is out of range
    :raises TypeError: if something has the wrong type
    """
    for name in _BOOLS:
        if name in given:
            check_bool(name, given[name])
    for name in _DICTS:
        value = given.get(name)
        if not isinstance(value, (dict, type(None))) or not all(isinstance(key, str) for key in value or {}):
            raise TypeError(f"{name} must be a dict of arguments by name or None, got {value!r}")
    for name, minimum in _INTEGERS.items():
        if name in given:
            check_integer(name, given[name], minimum)
    check_verbose(given.get("verbose", 0))
    _check_seed(given.get("seed"))
    check_device(given.get("device", "auto"))
    noise = given.get("action_noise")
    if noise is not None and not isinstance(noise, ActionNoise):
        raise TypeError(f"action_noise must be Stable-Baselines3's ActionNoise or None, got {noise!r}")


def _check_seed(seed: Any) -> None:
    if seed is not None:
        check_integer("seed", seed, 0, LARGEST_SEED)


def check_buffer(model: Any) -> None:
    """
    Check what SB3 checks of the replay buffer by assertions, or only when it is filled.

    :param model: an off-policy algorithm with its environment, not set up yet
    :raises ValueError: if the buffer and the other arguments do not go together
    :raises TypeError: if its class is no subclass of SB3's
    """
    chosen, kwargs = model.replay_buffer_class, model.replay_buffer_kwargs or {}
    is_dict = isinstance(model.observation_space, spaces.Dict)
    if chosen is not None and not (isinstance(chosen, type) and issubclass(chosen, ReplayBuffer)):
        raise TypeError(f"replay_buffer_class must be a class of Stable-Baselines3's ReplayBuffer or None, got {chosen!r}")
    if model.optimize_memory_usage and is_dict:
        raise ValueError("optimize_memory_usage=True needs observations that are no dictionary, got True with a Dict space")
    if model.optimize_memory_usage and kwargs.get("handle_timeout_termination", True):
        raise ValueError(
            "optimize_memory_usage=True needs replay_buffer_kwargs=dict(handle_timeout_termination=False), got True"
        )
    uses_n_steps = model.n_steps > 1 and (chosen is None or issubclass(chosen, NStepReplayBuffer))  # of the others SB3 warns
    if uses_n_steps and is_dict:
        raise ValueError(f"n_steps must be 1 with observations that are a dictionary, got {model.n_steps!r}")
    if uses_n_steps and model.optimize_memory_usage:
        raise ValueError(f"n_steps must be 1 with optimize_memory_usage=True, got {model.n_steps!r}")
    # A subclass of the user's may be for both kinds of observations
    sb3s = chosen if chosen is not None and chosen.__module__.startswith("stable_baselines3.") else None
    if sb3s is not None and issubclass(sb3s, DictReplayBuffer) != is_dict:
        needs = "a Dict observation space" if not is_dict else "DictReplayBuffer or another one for dictionaries"
        raise ValueError(f"replay_buffer_class={sb3s.__name__} and the observations do not fit: this needs {needs}")
    _check_buffer_kwargs(
        chosen or (DictReplayBuffer if is_dict else ReplayBuffer if model.n_steps == 1 else NStepReplayBuffer), kwargs
    )
    frequency = model.train_freq
    if isinstance(frequency, (tuple, list)) and len(frequency) == 2 and frequency[1] == "episode" and model.n_envs > 1:
        raise ValueError(f"train_freq={frequency!r} counts episodes and needs one environment, got {model.n_envs}")


def _check_buffer_kwargs(buffer: type[ReplayBuffer], kwargs: dict[str, Any]) -> None:
    accepted: list[str] = []
    for cls in buffer.__mro__:  # a class with **kwargs also takes its parents' arguments
        parameters = inspect.signature(cls.__init__).parameters  # type: ignore[misc]
        accepted += [name for name in parameters if name not in ("self", "args", "kwargs", *accepted)]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            break
    check_keywords(f"replay_buffer_kwargs of {buffer.__name__}", kwargs, accepted)


def check_training_arguments(model: Any) -> None:
    """
    Check SAC's training hyperparameters.

    :param model: an off-policy algorithm with SAC's arguments, not set up yet
    :raises ValueError: if a number is out of range
    :raises TypeError: if something has the wrong type
    """
    check_learning_rate(model.learning_rate)
    for name, minimum in _TRAINING_INTEGERS.items():
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
    Check a learning rate or a learning-rate schedule.

    :param learning_rate: a number, or a function of the part of the training that remains
    :raises ValueError: if it, or its value at the start, is NaN, infinite or negative
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
    Check one value of a learning-rate schedule.

    :param rate: learning rate from a schedule
    :param progress_remaining: part of the training that remains
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
    if isinstance(frequency, int) and frequency < 1:  # SB3 raises for other types
        raise ValueError(f"train_freq must be at least 1, got {train_freq!r}")


def _check_ent_coef(ent_coef: Any) -> None:
    is_auto = isinstance(ent_coef, str) and ent_coef.startswith("auto")
    if is_auto and "_" not in ent_coef:
        return
    try:
        value = float(ent_coef.removesuffix(SCALED).partition("_")[2] if is_auto else ent_coef)
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
    """A number, ``"auto"``, or ``"auto_0.15"``: that of a Gaussian of this standard deviation."""
    if isinstance(target_entropy, str) and target_entropy == "auto":
        return
    if isinstance(target_entropy, str) and target_entropy.startswith("auto_"):
        try:
            std = float(target_entropy.partition("_")[2])
        except ValueError:
            raise ValueError(f'target_entropy must be a number, "auto" or "auto_0.15", got {target_entropy!r}') from None
        if not SMALLEST_ABOVE_0 < std < math.inf:
            raise ValueError(f"target_entropy must be that of a finite standard deviation above 0, got {target_entropy!r}")
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
