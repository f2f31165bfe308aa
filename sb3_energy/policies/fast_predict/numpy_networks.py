"""Ensembles of equal networks on numpy, with gradients with respect to their last inputs, the actions.

A layer stands for the same layer of all ``C`` members: it maps ``(C, R, D)``, for ``R`` rows, to ``(C, R, O)`` and a function
that pulls a gradient with respect to these, which it may overwrite, back to the input. The derivatives are those of
:mod:`sb3_energy.networks.by_hand.layers`. Matrices are views of the parameters; vectors of several members lie side by
side in copies, which are refreshed before each use.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch as th
from torch import nn

from sb3_energy.networks import is_untouched
from sb3_energy.networks.backbones import BroBlock, SimbaBlock

Array = np.ndarray
Pull = Callable[[Array], Array]
Layer = Callable[[Array], tuple[Array, Pull]]
BoundNetwork = Callable[[Array], tuple[Array, Pull]]
"""``(B, N, A)`` actions -> ``(C, B N, O)`` outputs and ``pull``, which maps what broadcasts to these to ``(B, N, A)``."""

_Copies = list[tuple[Array, Array]]
_ONE, _ZERO = np.full((), 1.0, np.float32), np.full((), 0.0, np.float32)  # numpy converts a Python number at each call


class NumpyNetwork:
    """
    ``C`` networks with equal layers, of which the first is linear, ``W_s s + W_a a + b``: :meth:`bind` computes the share
    of an observation, ``W_s s + b``, once for all actions. Made by :meth:`of`.

    :param networks: the members
    :param n_actions: how many of the last inputs are actions
    """

    def __init__(self, networks: Sequence[nn.Module], n_actions: int):
        self._copies: _Copies = []
        self._layers = _layers_of(networks, self._copies)
        firsts: Any = [next(iter(network.children()), network) for network in networks]
        n_features = firsts[0].in_features - n_actions
        weights = [first.weight.detach().numpy() for first in firsts]
        self._encoders = [weight[:, :n_features].T for weight in weights]
        self._bias = _stacked([first.bias for first in firsts], self._copies)
        self._action_weights = np.empty((len(weights), len(weights[0]), n_actions), np.float32)
        self._copies += zip(self._action_weights, [weight[:, n_features:] for weight in weights], strict=True)

    @classmethod
    def of(cls, *networks: nn.Module, n_actions: int = 0) -> "NumpyNetwork | None":
        """
        Convert an ensemble of torch networks.

        :param networks: the members: ``nn.Linear``, or ``nn.Sequential`` of ``nn.Linear`` (the first) and :data:`LAYERS`,
            equal in everything but their parameters
        :param n_actions: how many of the last inputs are actions
        :return: the ensemble, or ``None`` where they are anything else, have hooks, or a parameter is not 32-bit on the CPU
        """
        first = next(iter(networks[0].children()), networks[0])
        known = len({repr(network) for network in networks}) == 1 and type(first) is nn.Linear
        known = known and all(_is_known(module) for network in networks for module in network.modules())
        return cls(networks, n_actions) if known else None

    def __call__(self, x: Array) -> Array:
        """Forward pass of all members at one input: ``(R, D) -> (C, R, O)``."""
        self._refresh()
        return _through(self._layers, x[None])[0]

    def bind(self, features: Array) -> BoundNetwork:
        """
        Precompute the features' share of the first layer, so that many actions can be evaluated at them.

        :param features: ``(B, F)`` of observations
        :return: the networks as a function of actions
        """
        self._refresh()
        shares = _products([features] * len(self._encoders), self._encoders)
        if self._bias is not None:
            np.add(shares, self._bias, shares)
        weights, (c, _, n_actions) = self._action_weights, self._action_weights.shape
        stack = weights.reshape(-1, n_actions)

        def network(actions: Array) -> tuple[Array, Pull]:
            is_single = actions.shape[0] * actions.shape[1] == 1  # one product serves all members
            if is_single:
                hidden = stack.dot(actions.reshape(-1)).reshape(shares.shape)
                np.add(hidden, shares, hidden)
            else:
                hidden = np.matmul(actions.reshape(-1, n_actions), weights.transpose(0, 2, 1))
                by_observation = hidden.reshape(c, *actions.shape[:2], -1)
                by_observation += shares[:, :, None]
            outputs, pull = _through(self._layers[1:], hidden)

            def pull_to_actions(gradient: Array) -> Array:
                cotangents = np.empty_like(outputs)
                np.copyto(cotangents, gradient)
                pulled = pull(cotangents)
                if is_single:
                    return pulled.reshape(-1).dot(stack).reshape(actions.shape)
                return np.add.reduce(np.matmul(pulled, weights)).reshape(actions.shape)

            return outputs, pull_to_actions

        return network

    def _refresh(self) -> None:
        for copy, original in self._copies:
            np.copyto(copy, original)


def _is_known(module: nn.Module) -> bool:
    """Whether a module computes what its class says, and numpy can do it on views of its parameters."""
    own = module._parameters
    if type(module) is nn.Linear and getattr(own.get("weight"), "shape", None) != (module.out_features, module.in_features):
        return False
    flat = type(module) is not nn.LayerNorm or len(module.normalized_shape) == 1
    return (
        flat
        and type(module) in LAYERS
        and is_untouched(module)
        and all(
            type(p) in (nn.Parameter, th.Tensor)
            and p.dtype == th.float32
            and p.device.type == "cpu"
            and p.layout == th.strided
            for p in own.values()
            if p is not None
        )
    )


def _through(layers: Sequence[Layer], x: Array) -> tuple[Array, Pull]:
    pulls: list[Pull] = []
    for layer in layers:
        x, pull = layer(x)
        pulls.append(pull)

    def pull_all(gradient: Array) -> Array:
        for pull in reversed(pulls):
            gradient = pull(gradient)
        return gradient

    return x, pull_all


def _stacked(vectors: Sequence[th.Tensor | None], copies: _Copies) -> Array | None:
    """``(C, 1, D)``, vectors of the members side by side: a view of a single one."""
    if vectors[0] is None:
        return None
    views = [vector.detach().numpy() for vector in vectors if vector is not None]
    if len(views) == 1:
        return views[0][None, None]
    stack = np.empty((len(views), 1, len(views[0])), np.float32)
    copies += zip(stack[:, 0], views, strict=True)
    return stack


def _linear(modules: Sequence[nn.Linear], copies: _Copies) -> Layer:
    """``y = W x + b``; members may share the input of a single one."""
    weights = [module.weight.detach().numpy() for module in modules]
    transposed, bias = [weight.T for weight in weights], _stacked([module.bias for module in modules], copies)

    def layer(x: Array) -> tuple[Array, Pull]:
        y = _products(x if len(x) == len(weights) else [x[0]] * len(weights), transposed)
        if bias is not None:
            np.add(y, bias, y)
        return y, lambda g: _products(g, weights)

    return layer


def _products(inputs: Any, matrices: Sequence[Array]) -> Array:
    out = np.empty((len(matrices), len(inputs[0]), matrices[0].shape[1]), np.float32)
    for i, matrix in enumerate(matrices):
        inputs[i].dot(matrix, out[i])
    return out


def _layer_norm(modules: Sequence[nn.LayerNorm], copies: _Copies) -> Layer:
    """``y = w n + b`` with ``n = (x - mean(x)) / s`` and ``s = sqrt(var(x) + eps)``."""
    weight, bias = (_stacked([m._parameters[name] for m in modules], copies) for name in ("weight", "bias"))
    eps, width = np.full((), modules[0].eps, np.float32), modules[0].normalized_shape[0]
    average = np.full(width, 1.0 / width, np.float32)

    def layer(x: Array) -> tuple[Array, Pull]:
        rows = x.reshape(-1, width)
        normed = rows - rows.dot(average)[:, None]
        inverse = np.sqrt((normed * normed).dot(average) + eps)[:, None]
        np.reciprocal(inverse, inverse)
        normed *= inverse
        y = normed.reshape(x.shape)
        y = y if weight is None else y * weight

        def pull(g: Array) -> Array:
            h = (g if weight is None else np.multiply(g, weight, g)).reshape(-1, width)
            inner = (h * normed).dot(average)[:, None]
            h -= h.dot(average)[:, None]
            h -= normed * inner
            h *= inverse
            return g

        return y if bias is None else y + bias, pull

    return layer


def _residual(layers: Sequence[Layer]) -> Layer:
    """``y = x + f(x)``."""

    def layer(x: Array) -> tuple[Array, Pull]:
        y, pull = _through(layers, x)
        return x + y, lambda g: g + pull(g.copy())

    return layer


def _relu(x: Array) -> tuple[Array, Pull]:
    y = np.maximum(x, _ZERO)
    return y, lambda g: np.multiply(g, np.sign(y), g)


def _silu(x: Array) -> tuple[Array, Pull]:
    s = np.exp(-x)
    s += _ONE
    np.reciprocal(s, s)
    y = x * s
    return y, lambda g: np.multiply(g, s * (_ONE + x - y), g)


def _tanh(x: Array) -> tuple[Array, Pull]:
    y = np.tanh(x)
    return y, lambda g: np.multiply(g, _ONE - y * y, g)


ACTIVATIONS: dict[type[nn.Module], Layer] = {nn.ReLU: _relu, nn.SiLU: _silu, nn.Tanh: _tanh}
LAYERS = (nn.Linear, nn.LayerNorm, nn.Sequential, nn.Identity, SimbaBlock, BroBlock, *ACTIVATIONS)
"""By their exact type: a subclass may compute something else."""


def _layers_of(members: Sequence[Any], copies: _Copies) -> list[Layer]:
    first = members[0]
    if type(first) is nn.Sequential:
        return [layer for place in zip(*members, strict=True) for layer in _layers_of(place, copies)]
    if type(first) in (SimbaBlock, BroBlock):
        return [_residual(_layers_of([member.layers for member in members], copies))]
    if type(first) in (nn.Linear, nn.LayerNorm):
        return [(_linear if type(first) is nn.Linear else _layer_norm)(members, copies)]
    return [ACTIVATIONS[type(first)]] if type(first) in ACTIVATIONS else []
