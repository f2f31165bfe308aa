"""Layers of networks as functions of numpy arrays, with derivatives by hand.

An ensemble of ``C`` equal networks is computed layer by layer. Arrays have the shape ``(C, R, width)`` for ``R`` rows, and
``(C, width)`` for one row, where products with a matrix are products with a vector. Every layer keeps its results: what
:meth:`forward` left behind is what :meth:`pull` differentiates. Weights are views of the modules' parameters.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch as th
from torch import nn

Array = np.ndarray

FEW_ROWS = 4
"""So many products with a vector are faster than one with a matrix of as many rows."""


class Layer(Protocol):
    """One layer of all members, bound to the array it reads."""

    out: Array
    copies: list[tuple[Array, Array]]
    """Copies of parameters, each with its original: to be made anew where parameters may have changed in place."""

    def forward(self) -> None:
        """Compute ``out``."""
        ...

    def attach(self, gradient: Array) -> Array:
        """
        :param gradient: where the gradient with respect to ``out`` will be written; it may be overwritten by :meth:`pull`
        :return: where the gradient with respect to the input will be
        """
        ...

    def pull(self) -> None:
        """From the gradient with respect to ``out``, compute that with respect to the input."""
        ...


def view(parameter: th.Tensor) -> Array:
    """
    :param parameter: on the CPU
    :return: the same memory
    """
    return parameter.detach().numpy()


def by_rows(array: Array, few: int = FEW_ROWS) -> list[Array]:
    """
    :param array: ``(C, R, width)`` or ``(C, width)``
    :param few: up to how many rows are taken one by one
    :return: views of what a product takes at once: all rows of a member, or each row alone if there are few
    """
    if array.ndim == 3 and array.shape[1] <= few:
        return [row for member in array for row in member]
    return list(array)


def stacked(vectors: Sequence[th.Tensor], has_rows: bool) -> tuple[Array, list[tuple[Array, Array]]]:
    """
    The same vector of each member side by side: a view of the only one, a copy of several.

    :param vectors: one parameter for each member
    :param has_rows: whether it is used on ``(C, R, width)``
    :return: the vectors, and the copies among them with their originals
    """
    views = [view(vector) for vector in vectors]
    single = len(views) == 1
    stack = views[0][None] if single else np.empty((len(views), *views[0].shape), np.float32)
    return stack[:, None] if has_rows else stack, [] if single else list(zip(stack, views, strict=True))


class Linear(Layer):
    """
    ``y = W x + b``; the gradient of the input is ``Wᵀ g``.

    :param modules: of each member
    :param x: the input
    """

    def __init__(self, modules: Sequence[nn.Linear], x: Array):
        self._weights = [view(module.weight) for module in modules]
        self.out = np.empty((*x.shape[:-1], len(self._weights[0])), np.float32)
        rows = x.shape[1] if x.ndim == 3 else 1
        self._times = rows if 1 < rows <= FEW_ROWS else 1
        self._products = list(zip(by_rows(x), self._repeated([w.T for w in self._weights]), by_rows(self.out), strict=True))
        self.copies: list[tuple[Array, Array]] = []
        self._bias: Array | None = None
        if modules[0].bias is not None:
            self._bias, self.copies = stacked([module.bias for module in modules], x.ndim == 3)
        self._input_shape = x.shape

    def _repeated(self, matrices: list[Array]) -> list[Array]:
        return [matrix for matrix in matrices for _ in range(self._times)]

    def forward(self) -> None:
        for x, weight, out in self._products:
            x.dot(weight, out)
        if self._bias is not None:
            np.add(self.out, self._bias, self.out)

    def attach(self, gradient: Array) -> Array:
        result = np.empty(self._input_shape, np.float32)
        parts = by_rows(gradient), self._repeated(self._weights), by_rows(result)
        # The last member's matrix is still in the cache
        self._pulls = list(zip(*parts, strict=True))[::-1]
        return result

    def pull(self) -> None:
        for gradient, weight, result in self._pulls:
            gradient.dot(weight, result)


class LayerNorm(Layer):
    """
    ``y = w n + b`` with ``n = (x - mean(x)) / s`` and ``s = sqrt(var(x) + eps)``. With ``h = w g`` the gradient of the
    input is ``(h - mean(h) - n mean(h n)) / s``: what is left of ``h`` orthogonal to the ones and to ``n``.

    :param modules: of each member
    :param x: the input
    """

    def __init__(self, modules: Sequence[nn.LayerNorm], x: Array):
        width = x.shape[-1]
        self._x, self.out = x.reshape(-1, width), np.empty_like(x)
        self._normed, self._scratch = np.empty_like(self._x), np.empty_like(self._x)
        self._average = np.full(width, 1.0 / width, np.float32)
        self._eps = np.full((), modules[0].eps, np.float32)
        self._mean, self._inverse = np.empty(len(self._x), np.float32), np.empty(len(self._x), np.float32)
        self._mean_column, self._inverse_column = self._mean[:, None], self._inverse[:, None]
        self._normed_like_x = self._normed.reshape(x.shape)
        self.copies: list[tuple[Array, Array]] = []
        self._weight: Array | None = None
        self._bias: Array | None = None
        if modules[0].weight is not None:
            self._weight, self.copies = stacked([module.weight for module in modules], x.ndim == 3)
        if modules[0].bias is not None:
            self._bias, copies = stacked([module.bias for module in modules], x.ndim == 3)
            self.copies += copies

    def forward(self) -> None:
        normed, scratch, inverse = self._normed, self._scratch, self._inverse
        self._x.dot(self._average, self._mean)
        np.subtract(self._x, self._mean_column, normed)
        np.multiply(normed, normed, scratch)
        scratch.dot(self._average, inverse)
        np.add(inverse, self._eps, inverse)
        np.sqrt(inverse, inverse)
        np.reciprocal(inverse, inverse)
        np.multiply(normed, self._inverse_column, normed)
        result = self._normed_like_x
        if self._weight is not None:
            result = np.multiply(result, self._weight, self.out)
        if self._bias is not None:
            result = np.add(result, self._bias, self.out)
        if result is not self.out:
            np.copyto(self.out, result)

    def attach(self, gradient: Array) -> Array:
        self._gradient, self._flat_gradient = gradient, gradient.reshape(self._x.shape)
        return gradient

    def pull(self) -> None:
        h, normed, scratch = self._flat_gradient, self._normed, self._scratch
        if self._weight is not None:
            np.multiply(self._gradient, self._weight, self._gradient)
        np.multiply(h, normed, scratch)
        scratch.dot(self._average, self._mean)
        np.multiply(normed, self._mean_column, scratch)
        h.dot(self._average, self._mean)
        np.subtract(h, self._mean_column, h)
        np.subtract(h, scratch, h)
        np.multiply(h, self._inverse_column, h)


class Residual(Layer):
    """
    ``y = x + f(x)``; the gradient of the input is ``g`` and what ``f`` makes of it.

    :param layers: ``f``, the first of which reads ``x``
    :param x: the input
    """

    def __init__(self, layers: Sequence[Layer], x: Array):
        self._layers, self._x, self.out = layers, x, np.empty_like(x)
        self.copies = [copy for layer in layers for copy in layer.copies]

    def forward(self) -> None:
        for layer in self._layers:
            layer.forward()
        np.add(self._x, self._layers[-1].out, self.out)

    def attach(self, gradient: Array) -> Array:
        self._gradient, self._inner = gradient, np.empty_like(gradient)
        self._pulled = attach_all(self._layers, self._inner)
        return gradient

    def pull(self) -> None:
        np.copyto(self._inner, self._gradient)  # the layers write over theirs
        for layer in reversed(self._layers):
            layer.pull()
        np.add(self._gradient, self._pulled, self._gradient)


def attach_all(layers: Sequence[Layer], gradient: Array) -> Array:
    """
    :param layers: one after the other
    :param gradient: where the gradient with respect to the last one's ``out`` will be written
    :return: where that with respect to the first one's input will be
    """
    for layer in reversed(layers):
        gradient = layer.attach(gradient)
    return gradient
