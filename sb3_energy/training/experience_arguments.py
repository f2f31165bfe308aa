"""SAC's arguments of collecting and keeping experience, checked one sentence each before SB3 takes them."""

import inspect
from collections.abc import Mapping
from typing import Any

from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.noise import ActionNoise

from sb3_energy.checks import check_bool, check_device, check_integer, check_keywords, check_verbose

_NAMES = [name for name in inspect.signature(SAC.__init__).parameters if name not in ("self", "policy", "env")]
_BOOLS = ("optimize_memory_usage", "use_sde", "use_sde_at_warmup")
_DICTS = ("policy_kwargs", "replay_buffer_kwargs")
_SMALLEST = {"stats_window_size": 1, "sde_sample_freq": -1}
LARGEST_SEED = 2**32 - 1
"""NumPy takes no larger one."""


def by_name(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """
    :param args: SAC's arguments after the environment, in SAC's order
    :param kwargs: those by name
    :return: all of them by name
    """
    return dict(zip(_NAMES, args, strict=False)) | dict(kwargs)


def check_experience_arguments(given: Mapping[str, Any]) -> None:
    """
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
    for name, minimum in _SMALLEST.items():
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
    What SB3 says of the replay buffer by assertions, or when it is filled.

    :param model: an algorithm of SB3's whose environment is there, not set up yet
    :raises ValueError: if the buffer and the other arguments do not go together
    :raises TypeError: if its class is none of SB3's
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
    uses_n_steps = model.n_steps > 1 and (chosen is None or issubclass(chosen, NStepReplayBuffer))  # SB3 warns of the others
    if uses_n_steps and is_dict:
        raise ValueError(f"n_steps must be 1 with observations that are a dictionary, got {model.n_steps!r}")
    if uses_n_steps and model.optimize_memory_usage:
        raise ValueError(f"n_steps must be 1 with optimize_memory_usage=True, got {model.n_steps!r}")
    # One of the user's own may be for either
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
    for cls in buffer.__mro__:  # those that hand keywords on take their parents', too
        parameters = inspect.signature(cls.__init__).parameters  # type: ignore[misc]
        accepted += [name for name in parameters if name not in ("self", "args", "kwargs", *accepted)]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            break
    check_keywords(f"replay_buffer_kwargs of {buffer.__name__}", kwargs, accepted)
