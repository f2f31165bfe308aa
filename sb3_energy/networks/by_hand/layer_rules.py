"""Networks that are a sequence of layers, with their derivatives written by hand.

``y = f_L(... f_1(x))`` for rows ``x (R, D)``. With ``dy`` for the derivative of a scalar with respect to ``y``, a layer gives

* linear, ``y = x Wᵀ + b``: ``dx = dy W``, ``dW = dyᵀ x``, ``db = Σ_rows dy``;
* an activation, ``y = σ(x)``: ``dx = dy ⊙ σ'(x)``;
* layer norm, ``y = w ⊙ x̂ + b`` with ``x̂ = (x - μ) / s``: ``dx = (g - mean g - x̂ ⊙ mean(g ⊙ x̂)) / s`` with ``g = w ⊙ dy``;
* a residual block, ``y = x + f(x)``: ``dx = dy + f'(x)ᵀ dy``.

What a layer needs for that, it puts on a tape on the way forward and takes off on the way back. Autograd does the same; what
it does not know is which derivatives nobody asks for. A chain of Langevin steps wants those of the actions alone: no product
for a weight, none for the observation, and none for a member of an ensemble that is not the lowest.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_energy.matmul import MatmulPrecision
from sb3_energy.networks.backbones import BroBlock, SimbaBlock
from sb3_energy.networks.by_hand.untouched import Originals

Tape = list[th.Tensor]
"""What layers have kept, the last layer's on top. All of it has one row for each row of the input."""

aten = th.ops.aten


class Gradients(Protocol):
    """Where derivatives of parameters go."""

    def put(self, parameter: th.Tensor, gradient: th.Tensor) -> None:
        """One that has been computed."""
        ...


class Collected:
    """Derivatives for autograd, which wants them in the order of the parameters."""

    def __init__(self) -> None:
        self._found: dict[int, th.Tensor] = {}

    def put(self, parameter: th.Tensor, gradient: th.Tensor) -> None:
        """
        :param parameter: whose derivative it is
        :param gradient: of the same shape
        """
        self._found[id(parameter)] = gradient

    def of(self, parameters: Sequence[th.Tensor]) -> list[th.Tensor]:
        """
        :param parameters: in some order
        :return: their derivatives, in the same order
        """
        return [self._found[id(parameter)] for parameter in parameters]


class InGrad:
    """Derivatives in the parameters' ``grad``: new tensors, since somebody may have kept those of the update before."""

    def put(self, parameter: th.Tensor, gradient: th.Tensor) -> None:
        """
        :param parameter: whose derivative it is
        :param gradient: of the same shape
        """
        parameter.grad = gradient


@dataclass(frozen=True)
class Heads:
    """
    Linear layers side by side, as one.

    :param layers: all of the same input
    """

    layers: tuple[nn.Linear, ...]

    @property
    def _parameters(self) -> dict[int, th.Tensor]:
        return dict(enumerate([layer.weight for layer in self.layers] + [layer.bias for layer in self.layers]))


def prefers_mkl(x: th.Tensor) -> bool:
    """
    :param x: an operand of a product with few rows or columns
    :return: whether another library is set that would take longer for it
    """
    return x.device.type == "cpu" and not th.compiler.is_compiling() and th.get_float32_matmul_precision() != "highest"


def _linear(layer: nn.Linear, x: th.Tensor, tape: Tape) -> th.Tensor:
    tape.append(x)
    weight, bias = _weight_and_bias(layer)
    if weight.shape[0] == 1 and prefers_mkl(x):
        with MatmulPrecision("highest"):
            return F.linear(x, weight, bias)
    return F.linear(x, weight, bias)


def _weight_and_bias(layer: nn.Module) -> tuple[th.Tensor, th.Tensor | None]:
    parameters = layer._parameters  # where nn.Module looks last
    return parameters["weight"], parameters["bias"]  # type: ignore[return-value]


def _linear_back(layer: nn.Linear, dy: th.Tensor, tape: Tape, grads: Gradients | None, wants_dx: bool) -> th.Tensor | None:
    x, (weight, bias) = tape.pop(), _weight_and_bias(layer)
    if grads is not None:
        if bias is not None:
            grads.put(bias, dy.sum(0))
        if weight.shape[0] == 1:
            grads.put(weight, (dy * x).sum(0, keepdim=True))
        else:
            grads.put(weight, dy.t() @ x)
    if not wants_dx:
        return None
    return dy * weight if weight.shape[0] == 1 else dy @ weight  # an outer product is no matter for a library


def _heads(heads: Heads, x: th.Tensor, tape: Tape) -> th.Tensor:
    tape.append(x)
    return F.linear(x, th.cat([layer.weight for layer in heads.layers]), th.cat([layer.bias for layer in heads.layers]))


def _heads_back(heads: Heads, dy: th.Tensor, tape: Tape, grads: Gradients | None, wants_dx: bool) -> th.Tensor | None:
    x = tape.pop()
    widths = [layer.out_features for layer in heads.layers]
    if grads is not None:
        for layer, weight, bias in zip(heads.layers, (dy.t() @ x).split(widths), dy.sum(0).split(widths), strict=True):
            grads.put(layer.weight, weight)
            grads.put(layer.bias, bias)
    return dy @ th.cat([layer.weight for layer in heads.layers]) if wants_dx else None


def _layer_norm(layer: nn.LayerNorm, x: th.Tensor, tape: Tape) -> th.Tensor:
    y, mean, rstd = aten.native_layer_norm(x, layer.normalized_shape, layer.weight, layer.bias, layer.eps)
    tape += [x, mean, rstd]
    return y


def _layer_norm_back(
    layer: nn.LayerNorm, dy: th.Tensor, tape: Tape, grads: Gradients | None, wants_dx: bool
) -> th.Tensor | None:
    rstd, mean, x = tape.pop(), tape.pop(), tape.pop()
    has_weight, has_bias = layer.weight is not None, layer.bias is not None
    wanted = [True, grads is not None and has_weight, grads is not None and has_bias]
    dx, dw, db = aten.native_layer_norm_backward(dy, x, layer.normalized_shape, mean, rstd, layer.weight, layer.bias, wanted)
    if wanted[1]:
        grads.put(layer.weight, dw)  # type: ignore[union-attr]
    if wanted[2]:
        grads.put(layer.bias, db)  # type: ignore[union-attr]
    return dx


def _block(block: Any, x: th.Tensor, tape: Tape) -> th.Tensor:
    return x + forward_through(block.layers, x, tape)


def _block_back(block: Any, dy: th.Tensor, tape: Tape, grads: Gradients | None, wants_dx: bool) -> th.Tensor | None:
    inner = backward_through(block.layers, dy, tape, grads, True)
    assert inner is not None
    return dy + inner


def _relu(layer: nn.ReLU, x: th.Tensor, tape: Tape) -> th.Tensor:
    # In place where nobody else has it: what stays small stays in the cache
    y = th.relu(x) if tape and tape[-1] is x else th.relu_(x)
    tape.append(y)
    return y


def _relu_back(layer: nn.ReLU, dy: th.Tensor, tape: Tape, grads: Gradients | None, wants_dx: bool) -> th.Tensor | None:
    return aten.threshold_backward(dy, tape.pop(), 0)


def _relu_back_in_place(dy: th.Tensor, tape: Tape) -> th.Tensor:
    return aten.threshold_backward.grad_input(dy, tape.pop(), 0, grad_input=dy)


def _silu_back_in_place(dy: th.Tensor, tape: Tape) -> th.Tensor:
    return aten.silu_backward.grad_input(dy, tape.pop(), grad_input=dy)


@dataclass(frozen=True)
class Rule:
    """
    :param forward: ``(layer, x, tape) -> y``
    :param backward: ``(layer, dy, tape, grads, wants_dx) -> dx``, which puts the derivatives of the layer's parameters into
        ``grads``, unless that is ``None``
    :param in_place: ``(dy, tape) -> dx`` in the place of ``dy``, for layers without parameters
    """

    forward: Callable[[Any, th.Tensor, Tape], th.Tensor]
    backward: Callable[[Any, th.Tensor, Tape, "Gradients | None", bool], th.Tensor | None]
    in_place: Callable[[th.Tensor, Tape], th.Tensor] | None = None


def _activation(derivative: Callable[[Any, th.Tensor, th.Tensor], th.Tensor], keeps_output: bool = False) -> Rule:
    def forward(layer: nn.Module, x: th.Tensor, tape: Tape) -> th.Tensor:
        y = layer(x)
        tape.append(y if keeps_output else x)
        return y

    def backward(layer: nn.Module, dy: th.Tensor, tape: Tape, grads: Gradients | None, wants_dx: bool) -> th.Tensor | None:
        return derivative(layer, dy, tape.pop())

    return Rule(forward, backward)


RULES: dict[type, Rule] = {
    nn.Linear: Rule(_linear, _linear_back),
    Heads: Rule(_heads, _heads_back),
    nn.LayerNorm: Rule(_layer_norm, _layer_norm_back),
    SimbaBlock: Rule(_block, _block_back),
    BroBlock: Rule(_block, _block_back),
    nn.Identity: Rule(lambda layer, x, tape: x, lambda layer, dy, tape, grads, wants_dx: dy),
    nn.ReLU: Rule(_relu, _relu_back, _relu_back_in_place),
    nn.Tanh: _activation(lambda layer, dy, y: aten.tanh_backward(dy, y), keeps_output=True),
    nn.Sigmoid: _activation(lambda layer, dy, y: aten.sigmoid_backward(dy, y), keeps_output=True),
    nn.SiLU: replace(_activation(lambda layer, dy, x: aten.silu_backward(dy, x)), in_place=_silu_back_in_place),
    nn.GELU: _activation(lambda layer, dy, x: aten.gelu_backward(dy, x, approximate=layer.approximate)),
    nn.ELU: _activation(lambda layer, dy, x: aten.elu_backward(dy, layer.alpha, 1.0, 1.0, False, x)),
    nn.LeakyReLU: _activation(lambda layer, dy, x: aten.leaky_relu_backward(dy, x, layer.negative_slope, False)),
    nn.Softplus: _activation(lambda layer, dy, x: aten.softplus_backward(dy, x, layer.beta, layer.threshold)),
    nn.Mish: _activation(lambda layer, dy, x: aten.mish_backward(dy, x)),
}
"""By the exact type of a layer: a subclass may do something else, and what is not here is left to autograd."""


FORWARDS = Originals({layer: ["forward"] for layer in RULES if layer is not Heads})
"""What these classes do, for as long as nobody replaces it."""


MAKERS = (nn.Linear, Heads, nn.LayerNorm)
"""Layers whose derivatives are new tensors."""


def forward_through(layers: Sequence[Any], x: th.Tensor, tape: Tape) -> th.Tensor:
    """
    :param layers: of types in ``RULES``
    :param x: ``(R, D)``
    :param tape: what the way back needs is appended
    :return: ``(R, O)``
    """
    for layer in layers:
        x = RULES[type(layer)].forward(layer, x, tape)
    return x


def backward_through(
    layers: Sequence[Any], dy: th.Tensor, tape: Tape, grads: Gradients | None, wants_dx: bool
) -> th.Tensor | None:
    """
    :param layers: of types in ``RULES``
    :param dy: ``(R, O)``
    :param tape: of the way forward
    :param grads: where derivatives of the parameters go (``None``: they are not computed)
    :param wants_dx: whether those of the input are computed
    :return: ``(R, D)``
    """
    found: th.Tensor | None = dy
    is_ours = False  # what comes from a layer that has made it, and nobody else has
    for i in range(len(layers) - 1, -1, -1):
        rule = RULES[type(layers[i])]
        assert found is not None
        if is_ours and rule.in_place is not None:
            found = rule.in_place(found, tape)
        else:
            found = rule.backward(layers[i], found, tape, grads, wants_dx or i > 0)
            is_ours = type(layers[i]) in MAKERS
    return found
