"""The arguments of a refined policy: those of its networks beside the refinement's, and SB3's own, checked before use."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import CombinedExtractor
from stable_baselines3.sac.policies import LOG_STD_MAX, LOG_STD_MIN
from torch import nn

from sb3_energy.checks import check_bool, check_ends, check_finite_number, check_integer, check_keywords, did_you_mean
from sb3_energy.keywords import accepted_keywords, argument, documented
from sb3_energy.networks import BACKBONES, backbone_beside, find_activation
from sb3_energy.policies.categorical_critic import MOST_BINS, check_support
from sb3_energy.policies.critics import TARGET_AGGREGATES, VALUE_SCALES
from sb3_energy.policies.heads import HEAD_ARGUMENTS, HEADS
from sb3_energy.refinement.arguments import RefinementArguments
from sb3_energy.refiners import Identity

LARGEST_LOG_STD = 20.0
"""The bound of SB3's learned standard deviations."""

LARGEST_WIDTH = 2**16
"""Of a layer: wider ones would need more memory than there is."""

MOST_QUANTILES = 2**16

_OF_CRITICS = {"quantile": ("n_quantiles", "top_quantiles_to_drop_per_net"), "categorical": ("n_bins", "support")}
"""Arguments that one kind of critics takes."""


def check_log_std_range(name: str, value: Any) -> tuple[float, float]:
    """
    Check bounds of log standard deviations.

    :param name: of the argument
    :param value: two numbers, a tuple or a list
    :return: as a tuple
    :raises ValueError: if they do not ascend within SB3's bounds
    :raises TypeError: if they are not two numbers
    """
    low, high = check_ends(name, value, "the lowest and the highest log standard deviation")
    if not (low >= LOG_STD_MIN and high <= LOG_STD_MAX):
        raise ValueError(f"{name} must lie in SB3's [{LOG_STD_MIN}, {LOG_STD_MAX}], got {value!r}")
    return low, high


@documented
@dataclass(frozen=True)
class PolicyArguments(RefinementArguments):
    """
    The arguments of a refined policy that are not SB3's.

    :raises ValueError: if a name or a number is not one of those that are accepted
    :raises TypeError: if an argument has the wrong type
    """

    backbone: str = argument(
        "layer_norm", f"Of actor and critics: {', '.join(f'``{name!r}``' for name in BACKBONES)}; ``'plain'`` is SB3's"
    )
    log_std_range: tuple[float, float] | None = argument(
        None,
        "Lowest and highest log standard deviation of the Gaussian, between which it is a tanh of what the actor gives "
        "(``None``: SB3's -20 and 2, at which it is clamped)",
        check_log_std_range,
    )
    critic: str = argument(
        "scalar",
        "``'scalar'`` Q-values (SAC), ``'quantile'`` (TQC), or ``'categorical'``, distributions on fixed bins (C51, FlashSAC)",
        choices=("scalar", "quantile", "categorical"),
    )
    target_aggregate: str | None = argument(
        None,
        "How a target joins values of scalar and categorical critics: ``'min'``, clipped double Q as in SAC, or ``'mean'``, "
        "which is not pessimistic where little was seen (``None``: ``'mean'``, and ``'min'`` in SB3's SAC, which is "
        "``refiner='none', backbone='plain'``)",
        choices=TARGET_AGGREGATES,
    )
    n_quantiles: int | None = argument(
        None, "Quantiles of each quantile critic (``None``: 25)", partial(check_integer, minimum=1, maximum=MOST_QUANTILES)
    )
    top_quantiles_to_drop_per_net: int | None = argument(
        None, "Largest quantiles of each critic that the target leaves out (``None``: 2)", check_integer
    )
    value_scale: str | None = argument(
        None,
        "``'auto'``: critics learn in units of a running scale of the return, so that the scale of rewards does not matter to "
        "them; ``'none'``: in the units of the reward, as in SAC (``None``: ``'auto'``, and ``'none'`` in SB3's SAC, which is "
        "``refiner='none', backbone='plain'``, and with a ``support``)",
        choices=VALUE_SCALES,
    )
    n_bins: int | None = argument(
        None, "Bins of each categorical critic (``None``: 101)", partial(check_integer, minimum=2, maximum=MOST_BINS)
    )
    support: tuple[float, float] | None = argument(
        None,
        "Centres of the lowest and the highest bin of categorical critics, in units of the reward, or of the scale where "
        "``value_scale='auto'`` is given (``None``: (-5, 5) of these)",
        check_support,
    )

    @property
    def is_sb3s(self) -> bool:
        """Whether updates are those of SB3's SAC, or of sb3-contrib's TQC: settings that are not given are SB3's, too."""
        return self.backbone == "plain" and self.refiner in ("none", Identity)

    @property
    def scale_of_values(self) -> str:
        """:attr:`value_scale`, or what stands for ``None``."""
        if self.value_scale is not None:
            return self.value_scale
        return "none" if self.is_sb3s or self.support is not None else "auto"

    def critic_settings(self) -> dict[str, Any]:
        """
        Collect and check the keyword arguments of the chosen kind of critics.

        :return: what the class of critics takes beside SB3's arguments and the backbone
        :raises ValueError: if an argument is given that another kind takes, or a categorical critic does not know its support
        """
        for kind, names in _OF_CRITICS.items():
            given = {name: getattr(self, name) for name in names}
            if self.critic != kind and any(value is not None for value in given.values()):
                raise ValueError(
                    f"{' and '.join(given)} need critic={kind!r}, "
                    f"got {' and '.join(map(repr, given.values()))} with critic={self.critic!r}"
                )
        found = {name: value for name in _OF_CRITICS.get(self.critic, ()) if (value := getattr(self, name)) is not None}
        if self.critic == "quantile":
            if self.target_aggregate is not None:
                raise ValueError(
                    "target_aggregate needs critic='scalar' or 'categorical', since a target of quantile critics takes all "
                    "but the largest, "
                    f"got {self.target_aggregate!r}"
                )
            return found
        if self.critic == "categorical" and self.support is None and self.scale_of_values == "none":
            raise ValueError(
                "critic='categorical' needs value_scale='auto', or a support that returns lie in, such as (-100, 100), "
                f"got {self.value_scale!r} and None"
            )
        return found | dict(target_aggregate=self.target_aggregate or ("min" if self.is_sb3s else "mean"))

    def head_settings(self, head: str) -> dict[str, Any]:
        """
        Check the keyword arguments of the refiner's learned head.

        :param head: a name in :data:`sb3_energy.policies.heads.HEADS`
        :return: ``head_kwargs`` without those that are ``None``
        :raises ValueError: if there is no such head, or a value is out of range
        :raises TypeError: if the head does not take an argument, or one has the wrong type
        """
        if head not in HEADS:
            near = did_you_mean(head, HEADS)
            raise ValueError(f"the head of refiner={self.refiner!r} must be one of {sorted(HEADS)}, got {head!r}{near}")
        given = self.head_kwargs or {}
        own = HEAD_ARGUMENTS.get(head) or set(accepted_keywords(HEADS[head]) or ()) - {"features_dim", "action_dim"}
        check_keywords(f"head_kwargs of refiner={self.refiner!r}", given, sorted(own))
        check_backbone_of_head(given.get("backbone"))
        check_net_arch("net_arch of head_kwargs", given.get("net_arch"), of_two=False)
        check_activation("activation_fn of head_kwargs", given.get("activation_fn"))
        settings = {name: value for name, value in given.items() if value is not None}
        return settings | ({"activation_fn": find_activation(given["activation_fn"])} if "activation_fn" in settings else {})


def check_backbone_of_head(name: Any) -> None:
    """
    Check that a head's backbone has no batch normalisation, whose statistics nothing would keep.

    :param name: of a backbone, or ``None``
    :raises ValueError: if it has
    """
    if isinstance(name, str) and name in BACKBONES and backbone_beside(name) != name:
        raise ValueError(
            f"backbone of head_kwargs must be one without batch normalisation, such as {backbone_beside(name)!r}, got {name!r}"
        )


def check_sb3_arguments(given: Mapping[str, Any]) -> None:
    """
    Check the policy arguments that are inherited from SB3.

    :param given: SB3's arguments of a policy by name
    :raises ValueError: if a value is out of range
    :raises TypeError: if an argument has the wrong type
    """
    check_network_arguments(given, of_two=True)
    for name in ("use_sde", "use_expln", "share_features_extractor"):
        check_bool(name, given[name])
    if not abs(check_finite_number("log_std_init", given["log_std_init"])) <= LARGEST_LOG_STD:
        raise ValueError(
            f"log_std_init must lie in [-{LARGEST_LOG_STD:g}, {LARGEST_LOG_STD:g}], got {given['log_std_init']!r}"
        )
    check_finite_number("clip_mean", given["clip_mean"])
    check_integer("n_critics", given["n_critics"], minimum=1)


def check_network_arguments(given: Mapping[str, Any], of_two: bool = False) -> None:
    """
    Check the arguments that SB3's policies have in common: spaces, networks, features extractor and optimiser.

    :param given: these arguments by name
    :param of_two: whether ``net_arch`` may be a dict of those of actor and critic
    :raises ValueError: if a value is out of range
    :raises TypeError: if an argument has the wrong type
    """
    check_action_bounds(given["action_space"])
    check_net_arch("net_arch", given["net_arch"], of_two)
    check_activation("activation_fn", given["activation_fn"])
    check_bool("normalize_images", given["normalize_images"])
    extractor, optimizer = given["features_extractor_class"], given["optimizer_class"]
    if not _may_make(extractor, nn.Module):
        raise TypeError(f"features_extractor_class must be a class of SB3's BaseFeaturesExtractor, got {extractor!r}")
    if extractor is CombinedExtractor and not isinstance(given["observation_space"], spaces.Dict):
        raise ValueError(
            "CombinedExtractor, which MultiInputPolicy has, needs a Dict observation space, "
            f"got {given['observation_space']}: use MlpPolicy, or CnnPolicy for images"
        )
    if not _may_make(optimizer, th.optim.Optimizer) or optimizer is th.optim.Optimizer:
        raise TypeError(f"optimizer_class must be a class of torch.optim, such as Adam, got {optimizer!r}")
    _check_kwargs("features_extractor_kwargs", given["features_extractor_kwargs"], extractor, ("observation_space",))
    _check_kwargs("optimizer_kwargs", given["optimizer_kwargs"], optimizer, ("params", "lr"))


def check_action_bounds(space: Any) -> None:
    """
    Check that a ``Box`` action space has finite bounds and no empty dimension.

    :param space: an action space; SB3 raises for those that are no ``Box``
    :raises ValueError: if the width of a dimension is not finite and above 0
    """
    if not isinstance(space, spaces.Box):
        return
    low, high = np.asarray(space.low), np.asarray(space.high)
    with np.errstate(all="ignore"):
        fits = np.isfinite(low) & np.isfinite(high) & (low < high) & np.isfinite(high - low)
    if fits.all():
        return
    index = tuple(int(i) for i in np.argwhere(~fits)[0])
    name = index[0] if len(index) == 1 else index
    raise ValueError(
        f"the action space must have finite bounds with low < high in each dimension, got low={low[index].item()!r} and "
        f"high={high[index].item()!r} in dimension {name}; bound it, or leave it out, by a wrapper of the environment"
    )


def check_net_arch(name: str, net_arch: Any, of_two: bool = True) -> None:
    """
    Check the widths of hidden layers.

    :param name: of the argument
    :param net_arch: a list of widths, a dict of those of actor (``pi``) and critic (``qf``), or ``None``
    :param of_two: whether such a dict is accepted
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
            check_integer(f"a width of {name}", width, minimum=1, maximum=LARGEST_WIDTH)


def check_activation(name: str, value: Any) -> None:
    """
    Check that an activation function can be constructed.

    :param name: of the argument
    :param value: a callable that makes an activation, the name of a class of ``torch.nn``, or ``None``
    :raises ValueError: if there is no class of this name
    :raises TypeError: if the callable makes no ``nn.Module`` without arguments
    """
    if value is None:
        return
    make: Any = find_activation(value)
    with th.random.fork_rng(devices=[]):  # a user's class may draw its parameters
        try:
            made = make()
        except TypeError:
            made = None
    if not isinstance(made, nn.Module):
        raise TypeError(f"{name} must make a torch.nn.Module without arguments, such as nn.ReLU, got {value!r}")


def _may_make(maker: Any, cls: type) -> bool:
    """Whether it is a subclass, or a callable in its place, such as a ``functools.partial``."""
    return issubclass(maker, cls) if isinstance(maker, type) else callable(maker)


def _check_kwargs(name: str, kwargs: Any, maker: Any, own: tuple[str, ...]) -> None:
    if not isinstance(kwargs, (dict, type(None))):
        raise TypeError(f"{name} must be a dict or None, got {kwargs!r}")
    if not kwargs or not isinstance(maker, type):
        return
    parameters = inspect.signature(maker).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        check_keywords(f"{name} of {maker.__name__}", kwargs, [known for known in parameters if known not in own])
