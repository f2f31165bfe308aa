"""The scale of the return in the last layer of value networks, which so learn numbers of about one at any scale of rewards."""

from collections.abc import Iterable
from typing import Any

import torch as th
from torch import nn


class ValueScale(nn.Module):
    """
    ``Q = σ q``: what goes in is in units of the scale ``σ`` of the return, what comes out is in the units of the reward
    (PopArt, van Hasselt et al. 2016, equation 1, without its shift: what differs between actions is what a policy sees, and a
    shift does not). One module for all networks of a critic.
    """

    sigma: th.Tensor
    """``σ``, a scalar above 0."""

    is_set: th.Tensor
    """1 if ``σ`` is that of returns, or of a network that has learned. Until then, at 0, it may be replaced as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("sigma", th.ones(()))
        self.register_buffer("is_set", th.zeros(()))

    def forward(self, values: th.Tensor) -> th.Tensor:
        """
        Convert values to the units of the reward.

        :param values: in units of ``σ``, any shape
        :return: the same shape
        """
        return values * self.sigma


class ScaledLinear(nn.Linear):
    """
    ``y = σ (W x + b)``: the last layer of a network of values, with the parameters of ``nn.Linear`` under their names. Its
    state has ``σ`` beside them, so that values stay what they are where another network loads it, whatever ``σ`` is there.

    :param linear: whose parameters it has
    :param scale: of all networks of a critic, which the layer looks up and does not own
    """

    def __init__(self, linear: nn.Linear, scale: ValueScale):
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self._scales = (scale,)  # in a tuple, where torch does not find the module

    @property
    def scale(self) -> ValueScale:
        """The critic's."""
        return self._scales[0]

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        Values in the units of the reward.

        :param x: ``(..., D)``
        :return: ``(..., O)``
        """
        return super().forward(x) * self.scale.sigma

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}sigma"] = self.scale.sigma.detach().clone()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        sigma = state_dict.pop(f"{prefix}sigma", 1.0)  # without one: in the units of the reward
        if float(sigma) != float(self.scale.sigma):
            for name in (f"{prefix}weight", f"{prefix}bias"):
                if name in state_dict:
                    state_dict[name] = state_dict[name] * (float(sigma) / float(self.scale.sigma))
        super()._load_from_state_dict(state_dict, prefix, *others)


class ScaledValues(nn.Module):
    """
    Mixin of critics, whose networks end with a :class:`ScaledLinear` of their ``value_scale``, or with ``nn.Linear`` where
    that is ``None``: then they learn in the units of the reward. The constructor sets it before it makes networks.
    """

    value_scale: ValueScale | None

    preserves_values: bool = True
    """Whether values stay what they are when ``σ`` changes, as :func:`rescale` does it. Else they change with ``σ``."""

    def with_scale(self, network: nn.Sequential) -> nn.Sequential:
        """
        Put the scale into the last layer of a network, if there is one.

        :param network: ends with a linear layer
        :return: the same network
        :raises TypeError: if it is none whose outputs can be rescaled
        """
        if self.value_scale is None:
            return network
        layers: list[Any] = list(network) if isinstance(network, nn.Sequential) else []
        if not (layers and _is_plain(layers[-1], nn.Linear)):
            raise TypeError(
                "value_scale='auto' needs networks that are nn.Sequential and end with nn.Linear, got "
                f"{type(network).__name__} of {[type(layer).__name__ for layer in layers]}; use value_scale='none'"
            )
        network[-1] = ScaledLinear(layers[-1], self.value_scale)
        return network

    def scaled(self, values: th.Tensor) -> th.Tensor:
        """
        Convert to the units of the reward.

        :param values: in units of the scale, any shape
        :return: the same shape; ``values`` themselves without a scale
        """
        return values if self.value_scale is None else values * self.value_scale.sigma

    def unscaled(self, values: th.Tensor) -> th.Tensor:
        """
        Convert to units of the scale, in which losses are computed.

        :param values: in the units of the reward, any shape
        :return: the same shape; ``values`` themselves without a scale
        """
        return values if self.value_scale is None else values / self.value_scale.sigma

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        names = {name: f"{prefix}value_scale.{name}" for name in ("sigma", "is_set")}
        if self.value_scale is None and names["sigma"] in state_dict:
            raise ValueError(  # torch would say that it has names which it did not expect
                f"{names['sigma']} was saved with value_scale='auto', and this model has value_scale='none': make one with "
                "policy_kwargs=dict(value_scale='auto')"
            )
        is_given = any(name.startswith(prefix) for name in state_dict)
        if self.value_scale is not None and is_given and names["sigma"] not in state_dict:
            # Saved without a scale: in the units of the reward, which are as good as any
            state_dict |= {name: th.ones(()) for name in names.values()}
        if self.value_scale is not None and names["sigma"] in state_dict:
            with th.no_grad():  # before the heads, which ask what they are loaded in units of
                self.value_scale.sigma.copy_(state_dict[names["sigma"]])
        super()._load_from_state_dict(state_dict, prefix, *others)


def scaled_heads(modules: Iterable[nn.Module]) -> list[ScaledLinear]:
    """
    Find the layers that have a scale.

    :param modules: critics
    :return: each layer once
    :raises TypeError: if the parameters of one are not its own by now, as under ``torch.nn.utils.parametrize``
    """
    layers = (part for module in modules for part in module.modules() if isinstance(part, ScaledLinear))
    found = list({id(layer): layer for layer in layers}.values())
    for layer in found:
        if not _is_plain(layer, ScaledLinear):
            raise TypeError(
                "value_scale='auto' rescales the last linear layer of each network, and needs its weight to be a parameter of "
                f"its own, got {type(layer).__name__}; use value_scale='none'"
            )
    return found


def _is_plain(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a layer's outputs are linear in parameters of its own: not those of a parametrization or weight norm."""
    return type(layer) is kind and layer._parameters.get("weight") is not None


@th.no_grad()
def set_scale(modules: Iterable[nn.Module], sigma: float, is_set: bool = True) -> None:
    """
    Declare what the networks' outputs are in units of. Their values change with it.

    :param modules: critics
    :param sigma: the new ``σ``, above 0
    :param is_set: whether it is to be preserved from now on
    """
    for scale in {part for module in modules for part in module.modules() if isinstance(part, ValueScale)}:
        scale.sigma.fill_(sigma)
        scale.is_set.fill_(is_set)


@th.no_grad()
def rescale(modules: Iterable[nn.Module], sigma: float) -> None:
    """
    Change the scale and preserve the networks' values (PopArt, van Hasselt et al. 2016, proposition 1): weights and bias of
    the layers that have the scale are multiplied by ``σ_old / σ_new``.

    :param modules: critics
    :param sigma: the new ``σ``, above 0
    :raises TypeError: if a layer cannot be rescaled
    """
    modules = list(modules)
    done: set[int] = set()
    for head in scaled_heads(modules):
        factor = head.scale.sigma / th.full_like(head.scale.sigma, sigma)
        for parameter in (head.weight, head.bias):
            if parameter is not None and id(parameter) not in done:
                done.add(id(parameter))
                parameter.mul_(factor)
    set_scale(modules, sigma)
