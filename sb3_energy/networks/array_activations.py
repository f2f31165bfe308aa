"""Activation functions of arrays with their slopes, one class for each of torch's modules."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from sb3_energy.networks.array_layers import Array, Layer

# Scalars as arrays: numpy converts a Python number at each call, which takes as long as the sum itself
_ONE, _HALF = np.full((), 1.0, np.float32), np.full((), 0.5, np.float32)

LOWEST_THRESHOLD = 15.0
"""Above its threshold, torch's softplus is ``x``; from here on a 32-bit float does not tell the two from each other."""


class Activation(Layer):
    """
    ``y = f(x)``, number by number; the gradient of the input is ``f'(x) g``.

    :param module: of the first member, for its arguments
    :param x: the input
    """

    def __init__(self, module: Any, x: Array):
        self._module, self._x, self.out = module, x, np.empty_like(x)
        self.copies: list[tuple[Array, Array]] = []

    def attach(self, gradient: Array) -> Array:
        self._gradient = gradient
        return gradient

    def pull(self) -> None:
        np.multiply(self._gradient, self._slope(), self._gradient)

    def _slope(self) -> Array:
        raise NotImplementedError


class ReLU(Activation):
    """``max(x, 0)``; the slope is 1 above 0 and 0 elsewhere, as in torch."""

    def __init__(self, module: Any, x: Array):
        super().__init__(module, x)
        self._zeros = np.zeros_like(x)  # numpy is fast with an array of zeros only
        self._is_small = x.ndim == 2
        self._above: Array = np.empty(x.shape, np.float32 if self._is_small else bool)

    def forward(self) -> None:
        np.maximum(self._x, self._zeros, out=self.out)

    def _slope(self) -> Array:
        if self._is_small:  # a product with numbers is faster than one with bools, and the sign is slow for many
            return np.sign(self.out, self._above)
        return np.greater(self.out, self._zeros, self._above)


class SiLU(Activation):
    """``x s`` with ``s = sigmoid(x)``; the slope is ``s (1 + x - x s)``."""

    def __init__(self, module: Any, x: Array):
        super().__init__(module, x)
        self._sigmoid, self._scratch = np.empty_like(x), np.empty_like(x)

    def forward(self) -> None:
        np.multiply(self._x, sigmoid(self._x, self._sigmoid), self.out)

    def _slope(self) -> Array:
        slope = np.subtract(self._x, self.out, self._scratch)
        np.add(slope, _ONE, slope)
        return np.multiply(slope, self._sigmoid, slope)


class Sigmoid(Activation):
    """``s = 1 / (1 + exp(-x))``; the slope is ``s (1 - s)``."""

    def forward(self) -> None:
        sigmoid(self._x, self.out)

    def _slope(self) -> Array:
        return self.out * (_ONE - self.out)


class Tanh(Activation):
    """``t = tanh(x)``; the slope is ``1 - t²``."""

    def forward(self) -> None:
        np.tanh(self._x, self.out)

    def _slope(self) -> Array:
        return _ONE - self.out * self.out


class LeakyReLU(Activation):
    """``x`` above 0 and ``c x`` elsewhere; the slopes are 1 and ``c``."""

    def forward(self) -> None:
        np.multiply(self._x, self._slope(), self.out)

    def _slope(self) -> Array:
        return np.where(self._x > 0.0, _ONE, np.float32(self._module.negative_slope))


class ELU(Activation):
    """``x`` above 0 and ``α (exp(x) - 1)`` elsewhere; the slopes are 1 and ``y + α``."""

    def forward(self) -> None:
        below = np.float32(self._module.alpha) * np.expm1(np.minimum(self._x, 0.0))
        np.copyto(self.out, np.where(self._x > 0.0, self._x, below))

    def _slope(self) -> Array:
        return np.where(self._x > 0.0, _ONE, self.out + np.float32(self._module.alpha))


class Softplus(Activation):
    """``log(1 + exp(β x)) / β``; the slope is ``sigmoid(β x)``."""

    def forward(self) -> None:
        beta = np.float32(self._module.beta)
        np.divide(softplus(beta * self._x), beta, self.out)

    def _slope(self) -> Array:
        scaled = np.float32(self._module.beta) * self._x
        return sigmoid(scaled, scaled)


class Mish(Activation):
    """``x t`` with ``t = tanh(softplus(x))``; the slope is ``t + x sigmoid(x) (1 - t²)``."""

    def forward(self) -> None:
        self._tanh = np.tanh(softplus(self._x))
        np.multiply(self._x, self._tanh, self.out)

    def _slope(self) -> Array:
        t = self._tanh
        return t + self._x * sigmoid(self._x, np.empty_like(self._x)) * (_ONE - t * t)


class GELU(Activation):
    """
    ``x (1 + t) / 2`` with ``t = tanh(k (x + c x³))``, the approximation by ``tanh``; the slope is
    ``(1 + t) / 2 + x (1 - t²) k (1 + 3 c x²) / 2``.
    """

    _K, _C = np.float32(math.sqrt(2.0 / math.pi)), np.float32(0.044715)

    def forward(self) -> None:
        x = self._x
        self._tanh = np.tanh(self._K * (x + self._C * x * x * x))
        np.multiply(_HALF * x, _ONE + self._tanh, self.out)

    def _slope(self) -> Array:
        x, t = self._x, self._tanh
        inner = self._K * (_ONE + np.float32(3.0) * self._C * x * x)
        return _HALF * (_ONE + t) + _HALF * x * (_ONE - t * t) * inner


def sigmoid(x: Array, out: Array) -> Array:
    """
    :param x: any shape
    :param out: where to write it, may be ``x``
    :return: ``1 / (1 + exp(-x))``
    """
    np.negative(x, out)
    np.exp(out, out)
    np.add(out, _ONE, out)
    return np.reciprocal(out, out)


def softplus(x: Array) -> Array:
    """
    :param x: any shape
    :return: ``log(1 + exp(x))``, where ``exp`` never overflows
    """
    return np.log1p(np.exp(-np.abs(x))) + np.maximum(x, 0.0)


ACTIVATIONS: dict[type[nn.Module], type[Activation]] = {
    nn.ReLU: ReLU,
    nn.SiLU: SiLU,
    nn.Sigmoid: Sigmoid,
    nn.Tanh: Tanh,
    nn.LeakyReLU: LeakyReLU,
    nn.ELU: ELU,
    nn.Softplus: Softplus,
    nn.Mish: Mish,
    nn.GELU: GELU,
}
"""What stands for each module of torch. Only for exactly these types: a subclass may compute something else."""


def is_supported(modules: Sequence[nn.Module]) -> bool:
    """
    :param modules: the activations of the members at one place
    :return: whether they are one of ``ACTIVATIONS``, the same for all, with arguments that are implemented
    """
    first = modules[0]
    if type(first) not in ACTIVATIONS or len({repr(module) for module in modules}) > 1:
        return False
    if isinstance(first, nn.GELU):
        return first.approximate == "tanh"
    return not isinstance(first, nn.Softplus) or first.threshold >= LOWEST_THRESHOLD
