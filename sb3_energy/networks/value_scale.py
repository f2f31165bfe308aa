"""The scale of the return as the last layer of value networks, which so learn numbers of about one at any scale of rewards."""

from collections.abc import Iterable
from typing import Any

import torch as th
from torch import nn


class ValueScale(nn.Module):
    """
    ``Q = σ q``: the last layer of each network of a critic, one module for all of them. What goes in is in units of the scale
    ``σ`` of the return, what comes out is in the units of the reward (PopArt, van Hasselt et al. 2016, equation 1, without its
    shift: what differs between actions is what a policy sees, and a shift does not).

    :param out_features: number of outputs of each network
    """

    sigma: th.Tensor
    """``σ``, a scalar above 0."""

    is_set: th.Tensor
    """Whether ``σ`` is that of returns, or of a network that has learned. Until then it may be replaced as it is."""

    def __init__(self, out_features: int = 1):
        super().__init__()
        self.out_features = out_features
        self.register_buffer("sigma", th.ones(()))
        self.register_buffer("is_set", th.zeros((), dtype=th.bool))

    def forward(self, values: th.Tensor) -> th.Tensor:
        """
        Convert values to the units of the reward.

        :param values: ``(..., O)``, in units of ``σ``
        :return: ``(..., O)``
        """
        return values * self.sigma

    def extra_repr(self) -> str:
        """
        Describe the layer's size, as torch's layers do.

        :return: what ``print`` shows of it
        """
        return str(self.out_features)


class ScaledValues(nn.Module):
    """
    Mixin of critics, whose ``value_scale`` is the last layer of their networks, or ``None``: then they learn in the units of
    the reward. The constructor sets it before it makes networks.
    """

    value_scale: ValueScale | None

    preserves_values: bool = True
    """Whether values stay what they are when ``σ`` changes, as :func:`rescale` does it. Else they change with ``σ``."""

    def with_scale(self, network: nn.Sequential) -> nn.Sequential:
        """
        Append the scale to a network, if there is one.

        :param network: ends with a linear layer
        :return: the same network
        :raises TypeError: if it is none whose outputs can be rescaled
        """
        if self.value_scale is None:
            return network
        layers = list(network) if isinstance(network, nn.Sequential) else []
        if not (layers and _is_plain(layers[-1])):
            raise TypeError(
                "value_scale='auto' needs networks that are nn.Sequential and end with nn.Linear, got "
                f"{type(network).__name__} of {[type(layer).__name__ for layer in layers]}; use value_scale=None"
            )
        return network.append(self.value_scale)

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
        scales = {name for name, part in self.named_modules(remove_duplicate=False) if isinstance(part, ValueScale)}
        found = [name for name in state_dict if name.startswith(prefix) and name.endswith("value_scale.sigma")]
        if found and not scales:
            raise ValueError(  # torch would say that it has names which it did not expect
                f"{found[0]} was saved with value_scale='auto', and this model has value_scale=None: make one with "
                "policy_kwargs=dict(value_scale='auto')"
            )
        networks = {f"{prefix}{name.rpartition('.')[0]}." for name in scales if "." in name} or {prefix}
        if scales and not found and any(name.startswith(network) for name in state_dict for network in networks):
            # Saved without a scale: in the units of the reward, which are as good as any
            for name in scales:
                state_dict[f"{prefix}{name}.sigma"] = th.ones(())
                state_dict[f"{prefix}{name}.is_set"] = th.ones((), dtype=th.bool)
        super()._load_from_state_dict(state_dict, prefix, *others)


def scaled_heads(modules: Iterable[nn.Module]) -> list[tuple[nn.Linear, ValueScale]]:
    """
    Find the linear layers before a scale.

    :param modules: critics
    :return: each layer once, with its scale
    :raises TypeError: if the layer before a scale is no plain linear layer, by now
    """
    found: dict[int, tuple[nn.Linear, ValueScale]] = {}
    for network in (part for module in modules for part in module.modules() if isinstance(part, nn.Sequential)):
        layers = list(network)
        if layers and isinstance(layers[-1], ValueScale):
            head = layers[-2] if len(layers) > 1 else None
            if not _is_plain(head):
                raise TypeError(
                    "value_scale='auto' rescales the linear layer before the scale, and needs a plain nn.Linear there, got "
                    f"{type(head).__name__}; use value_scale=None"
                )
            found[id(head)] = head, layers[-1]  # type: ignore[assignment]
    return list(found.values())


def _is_plain(layer: Any) -> bool:
    """Whether a layer's outputs are linear in parameters of its own: not those of a parametrization or weight norm."""
    return type(layer) is nn.Linear and layer._parameters.get("weight") is not None


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
    the linear layer before the scale are multiplied by ``σ_old / σ_new``.

    :param modules: critics
    :param sigma: the new ``σ``, above 0
    :raises TypeError: if a layer cannot be rescaled
    """
    modules = list(modules)
    heads = scaled_heads(modules)
    done: set[int] = set()
    for head, scale in heads:
        factor = scale.sigma / th.full_like(scale.sigma, sigma)
        for parameter in (head.weight, head.bias):
            if parameter is not None and id(parameter) not in done:
                done.add(id(parameter))
                parameter.mul_(factor)
    set_scale(modules, sigma)
