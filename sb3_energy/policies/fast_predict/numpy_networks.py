"""Ensembles of equal networks on numpy, with gradients with respect to their last inputs, the actions.

A layer stands for the same layer of all ``C`` members: it maps ``(C, R, D)``, for ``R`` rows, to ``(C, R, O)`` and a function
that pulls a gradient with respect to these, which it may overwrite, back to the input. The derivatives are those of
:mod:`sb3_energy.networks.by_hand.layers`. Matrices are views of the parameters; vectors of several members lie side by
side in copies, which are refreshed before each use.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch as th
from torch import nn

from sb3_energy.networks import BatchNorm, CategoricalMean, ScaledLinear, ValueScale, is_untouched
from sb3_energy.networks.backbones import BroBlock, FlashBlock, SimbaBlock

Array = np.ndarray
Pull = Callable[[Array], Array]
Layer = Callable[[Array], tuple[Array, Pull]]
BoundNetwork = Callable[[Array], tuple[Array, Pull]]
"""``(B, N, A)`` actions -> ``(C, B N, O)`` outputs and ``pull``, which maps what broadcasts to these to ``(B, N, A)``."""

_Copies = list[Callable[[], None]]
_ONE, _ZERO = np.full((), 1.0, np.float32), np.full((), 0.0, np.float32)  # numpy converts a Python number at each call


class NumpyNetwork:
    """
    ``C`` networks with equal layers, of which the first is linear, ``W_s s + W_a a + b``, or is after a batch norm, which
    is multiplied into it: :meth:`bind` computes the share of an observation, ``W_s s + b``, once for all actions. Made by
    :meth:`of`.

    :param networks: the members
    :param n_actions: how many of the last inputs are actions
    """

    def __init__(self, networks: Sequence[nn.Module], n_actions: int):
        self._copies: _Copies = []
        self._layers = _layers_of(networks, self._copies)
        norms: Any
        firsts: Any
        norms, firsts = zip(*map(_first, networks), strict=True)
        self._rest = self._layers[1 if norms[0] is None else 2 :]
        n_features = firsts[0].in_features - n_actions
        weights = [first.weight.detach().numpy() for first in firsts]
        self._encoders = [weight[:, :n_features].T for weight in weights]
        self._bias = _stacked([first.bias for first in firsts], self._copies)
        self._action_weights = np.empty((len(weights), len(weights[0]), n_actions), np.float32)
        self._norms = [] if norms[0] is None else norms
        for copy, weight in zip(self._action_weights, weights, strict=True):
            self._copies.append(partial(np.copyto, copy, weight[:, n_features:]))

    @classmethod
    def of(cls, *networks: nn.Module, n_actions: int = 0) -> "NumpyNetwork | None":
        """
        Convert an ensemble of torch networks.

        :param networks: the members: ``nn.Linear``, or ``nn.Sequential`` of ``nn.Linear`` (the first, or after a batch norm)
            and :data:`LAYERS`, equal in everything but their parameters
        :param n_actions: how many of the last inputs are actions
        :return: the ensemble, or ``None`` where they are anything else, have hooks, or a parameter is not 32-bit on the CPU
        """
        known = len({repr(network) for network in networks}) == 1 and type(_first(networks[0])[1]) is nn.Linear
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
        inputs = [features] * len(self._encoders)
        weights, (c, _, n_actions) = self._action_weights, self._action_weights.shape
        shifts: list[Array] = []
        for i, norm in enumerate(self._norms):
            scale, shift = _scale_and_shift(norm)
            inputs[i] = features * scale[:-n_actions] + shift[:-n_actions]
            shifts.append(weights[i].dot(shift[-n_actions:]))
            weights[i] *= scale[-n_actions:]
        shares = _products(inputs, self._encoders)
        if shifts:
            np.add(shares, np.stack(shifts)[:, None], shares)
        if self._bias is not None:
            np.add(shares, self._bias, shares)
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
            outputs, pull = _through(self._rest, hidden)

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
        for copy in self._copies:
            copy()


def _first(network: nn.Module) -> tuple[BatchNorm | None, Any]:
    """The first layer of a network, and the batch norm before it."""
    first, second, *_ = [*network.children(), network, network]
    return (first, second) if type(first) is BatchNorm else (None, first)


def _is_known(module: nn.Module) -> bool:
    """Whether a module computes what its class says, and numpy can do it on views of its parameters."""
    own = module._parameters
    sizes = (module.out_features, module.in_features) if isinstance(module, nn.Linear) else None
    if sizes is not None and getattr(own.get("weight"), "shape", None) != sizes:
        return False
    flat = type(module) not in (nn.LayerNorm, nn.RMSNorm) or (len(module.normalized_shape) == 1 and module.eps is not None)  # type: ignore[arg-type]
    owner = module.scale if type(module) is ScaledLinear else module
    buffers = [owner._buffers[name] for name in _BUFFERS.get(type(owner), ())]
    return (
        flat
        and type(module) in LAYERS
        and is_untouched(module)
        and all(
            type(p) in (nn.Parameter, th.Tensor)
            and p.dtype == th.float32
            and p.device.type == "cpu"
            and p.layout == th.strided
            for p in (*own.values(), *buffers)
            if p is not None
        )
        and all(buffer is not None for buffer in buffers)
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
    copies += [partial(np.copyto, copy, view) for copy, view in zip(stack[:, 0], views, strict=True)]
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


def _scale_and_shift(norm: BatchNorm) -> tuple[Array, Array]:
    """A batch norm in evaluation mode as it is now, ``y = scale x + shift``; its buffers may have moved."""
    buffers, parameters = norm._buffers, norm._parameters
    scale = np.sqrt(buffers["running_var"].numpy() + np.float32(norm.eps))  # type: ignore[union-attr]
    np.reciprocal(scale, scale)
    if (weight := parameters["weight"]) is not None:
        scale *= weight.detach().numpy()
    shift = buffers["running_mean"].numpy() * -scale  # type: ignore[union-attr]
    return scale, shift if (bias := parameters["bias"]) is None else shift + bias.detach().numpy()


def _batch_norm(modules: Sequence[BatchNorm], copies: _Copies) -> Layer:
    scale, shift = np.empty((2, len(modules), 1, modules[0].num_features), np.float32)

    def refresh() -> None:
        for i, module in enumerate(modules):
            scale[i], shift[i] = _scale_and_shift(module)

    copies.append(refresh)

    def layer(x: Array) -> tuple[Array, Pull]:
        y = x * scale
        return np.add(y, shift, y), lambda g: np.multiply(g, scale, g)

    return layer


def _rms_norm(modules: Sequence[nn.RMSNorm], copies: _Copies) -> Layer:
    """``y = w n`` with ``n = x / s`` and ``s = sqrt(mean(x²) + eps)``."""
    weight = _stacked([module._parameters["weight"] for module in modules], copies)
    assert modules[0].eps is not None
    eps, width = np.full((), modules[0].eps, np.float32), modules[0].normalized_shape[0]
    average = np.full(width, 1.0 / width, np.float32)

    def layer(x: Array) -> tuple[Array, Pull]:
        rows = x.reshape(-1, width)
        inverse = np.sqrt((rows * rows).dot(average) + eps)[:, None]
        np.reciprocal(inverse, inverse)
        normed = rows * inverse
        y = normed.reshape(x.shape)

        def pull(g: Array) -> Array:
            h = (g if weight is None else np.multiply(g, weight, g)).reshape(-1, width)
            h -= normed * (h * normed).dot(average)[:, None]
            h *= inverse
            return g

        return y if weight is None else y * weight, pull

    return layer


def _value_scale(modules: Sequence[ValueScale], copies: _Copies) -> Layer:
    """``y = σ x``, with ``σ`` as it is now."""
    sigma = np.empty((len(modules), 1, 1), np.float32)

    def refresh() -> None:
        for i, module in enumerate(modules):
            sigma[i] = module.sigma.numpy()

    copies.append(refresh)
    return lambda x: (x * sigma, lambda g: np.multiply(g, sigma, g))


def _scaled_linear(modules: Sequence[ScaledLinear], copies: _Copies) -> Layer:
    """``y = σ (W x + b)``."""
    layers = [_linear(modules, copies), _value_scale([module.scale for module in modules], copies)]
    return partial(_through, layers)


def _categorical_mean(modules: Sequence[CategoricalMean], copies: _Copies) -> Layer:
    """``y = p z`` with ``p = softmax(x)``."""
    support = modules[0].support.numpy()  # which members share

    def layer(x: Array) -> tuple[Array, Pull]:
        p = np.exp(x - x.max(axis=-1, keepdims=True))
        p /= p.sum(axis=-1, keepdims=True)
        y = p.dot(support)[..., None]
        return y, lambda g: (support - y) * p * g

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
_BUFFERS: dict[type[nn.Module], tuple[str, ...]] = {
    BatchNorm: ("running_mean", "running_var"),
    ValueScale: ("sigma",),
    CategoricalMean: ("support",),
}
MAKERS: dict[type[nn.Module], Callable[..., Layer]] = {
    nn.Linear: _linear,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _rms_norm,
    BatchNorm: _batch_norm,
    ScaledLinear: _scaled_linear,
    ValueScale: _value_scale,
    CategoricalMean: _categorical_mean,
}
BLOCKS = (SimbaBlock, BroBlock, FlashBlock)
LAYERS: tuple[type, ...] = (nn.Sequential, nn.Identity, *MAKERS, *BLOCKS, *ACTIVATIONS)
"""By their exact type: a subclass may compute something else."""


def _layers_of(members: Sequence[Any], copies: _Copies) -> list[Layer]:
    first = members[0]
    if type(first) is nn.Sequential:
        return [layer for place in zip(*members, strict=True) for layer in _layers_of(place, copies)]
    if type(first) in BLOCKS:
        return [_residual(_layers_of([member.layers for member in members], copies))]
    if type(first) in MAKERS:
        return [MAKERS[type(first)](members, copies)]
    return [ACTIVATIONS[type(first)]] if type(first) in ACTIVATIONS else []
