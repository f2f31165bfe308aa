"""A scalar network of observations and actions whose gradient is a velocity: ``V(s, a)``."""

from itertools import pairwise
from typing import Any

import torch as th
from torch import nn

from sb3_energy.checks import check_bool, check_number
from sb3_energy.keywords import plain_arguments
from sb3_energy.networks.energy import ScalarNetwork, normalise_spectra

SMOOTH_ACTIVATIONS = (nn.SiLU, nn.GELU, nn.Softplus, nn.Mish, nn.Tanh)
"""Of a potential. What it learns by is the derivative of its own gradient, which is 0 where an activation is straight."""


class PotentialNetwork(ScalarNetwork):
    """
    ``(s, a) -> V``, a number for each particle, and 0 everywhere at first unless weights are normalised.

    :param features_dim: ``F``; 0 for a potential that depends on nothing else
    :param action_dim: ``A``
    :param net_arch: width of each layer, at least one
    :param activation_fn: one of :data:`SMOOTH_ACTIVATIONS`
    :param layer_norm: whether each hidden layer is normalised before its activation (Ba et al. 2016)
    :param spectral_norm: whether each layer's weights are divided by their largest singular value (Miyato et al. 2018), which
        bounds how steep the potential can be; needs ``input_gain=1.0``
    :param input_gain: by how much the first layer's initial weights of the actions are larger than torch's, under which a
        potential learns detail of a tenth of the box or of the data's spread very slowly
    :raises ValueError: if there is no hidden layer, the activation is not smooth or the gain is out of range
    :raises TypeError: if something has the wrong type
    """

    @plain_arguments
    def __init__(
        self,
        features_dim: int,
        action_dim: int,
        net_arch: list[int],
        activation_fn: type[nn.Module] = nn.SiLU,
        layer_norm: bool = False,
        spectral_norm: bool = False,
        input_gain: float = 1.0,
    ):
        _check(net_arch, activation_fn, layer_norm, spectral_norm)
        _check_gain(input_gain, spectral_norm)
        widths, layers = [features_dim + action_dim, *net_arch], list[nn.Module]()
        for n_inputs, n_outputs in pairwise(widths):
            layers.append(nn.Linear(n_inputs, n_outputs))
            layers += [nn.LayerNorm(n_outputs)] if layer_norm else []
            layers.append(activation_fn())
        with th.no_grad():
            layers[0].weight[:, features_dim:].mul_(input_gain)  # type: ignore[index]
            layers[0].bias.mul_(input_gain)  # type: ignore[operator]
        last = nn.Linear(widths[-1], 1)
        if not spectral_norm:  # of no weights there is no largest singular value
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        super().__init__(nn.Sequential(*layers, last))
        if spectral_norm:
            normalise_spectra(self.network)


def _check(net_arch: Any, activation_fn: Any, layer_norm: Any, spectral_norm: Any) -> None:
    widths = list(net_arch) if isinstance(net_arch, (list, tuple)) else []
    if not widths or not all(type(width) is int and width > 0 for width in widths):
        raise ValueError(f"net_arch of a potential must be a list of at least one positive integer, got {net_arch!r}")
    if not isinstance(activation_fn, type) or activation_fn not in SMOOTH_ACTIVATIONS:
        names = [smooth.__name__ for smooth in SMOOTH_ACTIVATIONS]
        got = getattr(activation_fn, "__name__", repr(activation_fn))
        raise ValueError(f"activation_fn of a potential must be smooth, one of torch.nn's {names}, got {got}")
    for name, value in (("layer_norm", layer_norm), ("spectral_norm", spectral_norm)):
        check_bool(name, value)


def _check_gain(input_gain: Any, spectral_norm: bool) -> None:
    check_number("input_gain", input_gain, strict=True)
    if spectral_norm and input_gain != 1.0:
        raise ValueError(f"input_gain must be 1.0 with spectral_norm, which divides it out again, got {input_gain!r}")
