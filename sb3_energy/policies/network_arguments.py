"""SB3's arguments of a policy's networks, checked one sentence each before anything is built."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import CombinedExtractor
from torch import nn

from sb3_energy.checks import check_bool, check_finite_number, check_integer, check_keywords
from sb3_energy.networks import find_activation

LARGEST_LOG_STD = 20.0
"""Of a standard deviation that a number of 32 bits can hold beside others; SB3 has the same bounds where it learns one."""

WIDEST = 2**16
"""Wider layers are a mistake, and would ask for more memory than there is."""


def check_net_arch(name: str, net_arch: Any, of_two: bool = True) -> None:
    """
    :param name: of the argument
    :param net_arch: widths, or a dict of those of actor (``pi``) and critic (``qf``), or ``None``
    :param of_two: whether it may be such a dict
    :raises ValueError: if a width is out of range
    :raises TypeError: if it is none of these
    """
    if net_arch is None:
        return
    is_dict = of_two and isinstance(net_arch, dict) and set(net_arch) == {"pi", "qf"}
    for part in net_arch.values() if is_dict else [net_arch]:
        if not isinstance(part, list):
            more = ", or a dict of those of 'pi' and 'qf'" if of_two else ""
            raise TypeError(f"{name} must be a list of widths{more}, got {net_arch!r}")
        for width in part:
            check_integer(f"a width of {name}", width, minimum=1, maximum=WIDEST)


def check_activation(name: str, value: Any) -> None:
    """
    :param name: of the argument
    :param value: what makes an activation when it is called without arguments, the name of a class of torch.nn, or ``None``
    :raises ValueError: if there is no such name
    :raises TypeError: if it makes none
    """
    if value is None:
        return
    make: Any = find_activation(value)
    with th.random.fork_rng(devices=[]):  # one of the user's own may draw its parameters
        try:
            made = make()
        except TypeError:
            made = None
    if not isinstance(made, nn.Module):
        raise TypeError(f"{name} must make a torch.nn.Module without arguments, such as nn.ReLU, got {value!r}")


def check_network_arguments(given: Mapping[str, Any]) -> None:
    """
    :param given: SB3's arguments of a policy, by name
    :raises ValueError: if a value is out of range
    :raises TypeError: if something has the wrong type
    """
    check_net_arch("net_arch", given["net_arch"])
    check_activation("activation_fn", given["activation_fn"])
    for name in ("use_sde", "use_expln", "normalize_images", "share_features_extractor"):
        check_bool(name, given[name])
    if not abs(check_finite_number("log_std_init", given["log_std_init"])) <= LARGEST_LOG_STD:
        raise ValueError(
            f"log_std_init must lie in [-{LARGEST_LOG_STD:g}, {LARGEST_LOG_STD:g}], got {given['log_std_init']!r}"
        )
    check_finite_number("clip_mean", given["clip_mean"])
    check_integer("n_critics", given["n_critics"], minimum=1)
    extractor = given["features_extractor_class"]
    if extractor is not None and not _may_make(extractor, nn.Module):
        raise TypeError(f"features_extractor_class must be a class of SB3's BaseFeaturesExtractor, got {extractor!r}")
    _check_combined(given["observation_space"], extractor or given["self"].default_features_extractor_class)
    optimizer = given["optimizer_class"]
    if not _may_make(optimizer, th.optim.Optimizer) or optimizer is th.optim.Optimizer:
        raise TypeError(f"optimizer_class must be a class of torch.optim, such as Adam, got {optimizer!r}")
    for name in ("features_extractor_kwargs", "optimizer_kwargs"):
        if not isinstance(given[name], (dict, type(None))):
            raise TypeError(f"{name} must be a dict or None, got {given[name]!r}")
    _check_kwargs("features_extractor_kwargs", given["features_extractor_kwargs"], extractor, ("observation_space",))
    _check_kwargs("optimizer_kwargs", given["optimizer_kwargs"], optimizer, ("params", "lr"))


def _check_combined(observation_space: spaces.Space, extractor: Any) -> None:
    if extractor is CombinedExtractor and not isinstance(observation_space, spaces.Dict):
        raise ValueError(
            f"CombinedExtractor, which MultiInputPolicy has, needs a Dict observation space, got {observation_space}: "
            "use MlpPolicy, or CnnPolicy for images"
        )


def _may_make(maker: Any, cls: type) -> bool:
    """Whether it is a subclass, or something else that is called in its place, such as a ``functools.partial``."""
    return issubclass(maker, cls) if isinstance(maker, type) else callable(maker)


def _check_kwargs(name: str, kwargs: dict[str, Any] | None, maker: Any, own: tuple[str, ...]) -> None:
    if not kwargs or not isinstance(maker, type):
        return
    parameters = inspect.signature(maker).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        check_keywords(f"{name} of {maker.__name__}", kwargs, [known for known in parameters if known not in own])
