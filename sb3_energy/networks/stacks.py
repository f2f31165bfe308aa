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
from dataclasses import dataclass
from typing import Any

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_energy.matmul import MatmulPrecision, prefers_mkl
from sb3_energy.networks.backbones import BroBlock, SimbaBlock

Tape = list[th.Tensor]
"""What layers have kept, the last layer's on top. All of it has one row for each row of the input."""

aten = th.ops.aten


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


def _linear(layer: nn.Linear, x: th.Tensor, tape: Tape) -> th.Tensor:
    tape.append(x)
    if layer.out_features == 1 and prefers_mkl(x):
        with MatmulPrecision("highest"):
            return F.linear(x, layer.weight, layer.bias)
    return F.linear(x, layer.weight, layer.bias)


def _linear_back(layer: nn.Linear, dy: th.Tensor, tape: Tape, grads: Tape | None, wants_dx: bool) -> th.Tensor | None:
    x = tape.pop()
    if layer.out_features == 1:  # outer products
        if grads is not None:
            grads += ([] if layer.bias is None else [dy.sum(0)]) + [(dy * x).sum(0, keepdim=True)]
        return dy * layer.weight if wants_dx else None
    if grads is not None:
        grads += ([] if layer.bias is None else [dy.sum(0)]) + [dy.t() @ x]
    return dy @ layer.weight if wants_dx else None


def _heads(heads: Heads, x: th.Tensor, tape: Tape) -> th.Tensor:
    tape.append(x)
    return F.linear(x, th.cat([layer.weight for layer in heads.layers]), th.cat([layer.bias for layer in heads.layers]))


def _heads_back(heads: Heads, dy: th.Tensor, tape: Tape, grads: Tape | None, wants_dx: bool) -> th.Tensor | None:
    x = tape.pop()
    widths = [layer.out_features for layer in heads.layers]
    if grads is not None:
        grads += reversed([*(dy.t() @ x).split(widths), *dy.sum(0).split(widths)])
    return dy @ th.cat([layer.weight for layer in heads.layers]) if wants_dx else None


def _layer_norm(layer: nn.LayerNorm, x: th.Tensor, tape: Tape) -> th.Tensor:
    y, mean, rstd = aten.native_layer_norm(x, layer.normalized_shape, layer.weight, layer.bias, layer.eps)
    tape += [x, mean, rstd]
    return y


def _layer_norm_back(layer: nn.LayerNorm, dy: th.Tensor, tape: Tape, grads: Tape | None, wants_dx: bool) -> th.Tensor | None:
    rstd, mean, x = tape.pop(), tape.pop(), tape.pop()
    has_weight, has_bias = layer.weight is not None, layer.bias is not None
    wanted = [True, grads is not None and has_weight, grads is not None and has_bias]
    dx, dw, db = aten.native_layer_norm_backward(dy, x, layer.normalized_shape, mean, rstd, layer.weight, layer.bias, wanted)
    if grads is not None:
        grads += [grad for grad, there in ((db, has_bias), (dw, has_weight)) if there]
    return dx


def _block(block: Any, x: th.Tensor, tape: Tape) -> th.Tensor:
    return x + _forward(block.layers, x, tape)


def _block_back(block: Any, dy: th.Tensor, tape: Tape, grads: Tape | None, wants_dx: bool) -> th.Tensor | None:
    inner = _backward(block.layers, dy, tape, grads, True)
    assert inner is not None
    return dy + inner


def _relu(layer: nn.ReLU, x: th.Tensor, tape: Tape) -> th.Tensor:
    # In place where nobody else has it: what stays small stays in the cache
    y = th.relu(x) if tape and tape[-1] is x else th.relu_(x)
    tape.append(y)
    return y


def _relu_back(layer: nn.ReLU, dy: th.Tensor, tape: Tape, grads: Tape | None, wants_dx: bool) -> th.Tensor | None:
    return aten.threshold_backward(dy, tape.pop(), 0)


@dataclass(frozen=True)
class Rule:
    """
    :param forward: ``(layer, x, tape) -> y``
    :param backward: ``(layer, dy, tape, grads, wants_dx) -> dx``, which appends the derivatives of the layer's parameters to
        ``grads``, the last one first, unless that is ``None``
    """

    forward: Callable[[Any, th.Tensor, Tape], th.Tensor]
    backward: Callable[[Any, th.Tensor, Tape, Tape | None, bool], th.Tensor | None]


def _activation(derivative: Callable[[Any, th.Tensor, th.Tensor], th.Tensor], keeps_output: bool = False) -> Rule:
    def forward(layer: nn.Module, x: th.Tensor, tape: Tape) -> th.Tensor:
        y = layer(x)
        tape.append(y if keeps_output else x)
        return y

    def backward(layer: nn.Module, dy: th.Tensor, tape: Tape, grads: Tape | None, wants_dx: bool) -> th.Tensor | None:
        return derivative(layer, dy, tape.pop())

    return Rule(forward, backward)


RULES: dict[type, Rule] = {
    nn.Linear: Rule(_linear, _linear_back),
    Heads: Rule(_heads, _heads_back),
    nn.LayerNorm: Rule(_layer_norm, _layer_norm_back),
    SimbaBlock: Rule(_block, _block_back),
    BroBlock: Rule(_block, _block_back),
    nn.Identity: Rule(lambda layer, x, tape: x, lambda layer, dy, tape, grads, wants_dx: dy),
    nn.ReLU: Rule(_relu, _relu_back),
    nn.Tanh: _activation(lambda layer, dy, y: aten.tanh_backward(dy, y), keeps_output=True),
    nn.Sigmoid: _activation(lambda layer, dy, y: aten.sigmoid_backward(dy, y), keeps_output=True),
    nn.SiLU: _activation(lambda layer, dy, x: aten.silu_backward(dy, x)),
    nn.GELU: _activation(lambda layer, dy, x: aten.gelu_backward(dy, x, approximate=layer.approximate)),
    nn.ELU: _activation(lambda layer, dy, x: aten.elu_backward(dy, layer.alpha, 1.0, 1.0, False, x)),
    nn.LeakyReLU: _activation(lambda layer, dy, x: aten.leaky_relu_backward(dy, x, layer.negative_slope, False)),
    nn.Softplus: _activation(lambda layer, dy, x: aten.softplus_backward(dy, x, layer.beta, layer.threshold)),
    nn.Mish: _activation(lambda layer, dy, x: aten.mish_backward(dy, x)),
}
"""By the exact type of a layer: a subclass may do something else, and what is not here is left to autograd."""


def _forward(layers: Sequence[Any], x: th.Tensor, tape: Tape) -> th.Tensor:
    for layer in layers:
        x = RULES[type(layer)].forward(layer, x, tape)
    return x


def _backward(layers: Sequence[Any], dy: th.Tensor, tape: Tape, grads: Tape | None, wants_dx: bool) -> th.Tensor | None:
    found: th.Tensor | None = dy
    for i in range(len(layers) - 1, -1, -1):
        assert found is not None
        found = RULES[type(layers[i])].backward(layers[i], found, tape, grads, wants_dx or i > 0)
    return found


def _parameters(layers: Sequence[Any]) -> list[th.Tensor]:
    # nn.Module.parameters() looks for modules in modules, which takes longer than some of these layers
    found: list[th.Tensor] = []
    for layer in layers:
        if isinstance(layer, SimbaBlock | BroBlock):
            found += _parameters(layer.layers)  # type: ignore[arg-type]
        else:
            found += [parameter for parameter in layer._parameters.values() if parameter is not None]
    return found


def _must_be_plain() -> bool:
    """Whether somebody looks at the layers one by one: an export, or autocast, which chooses their precision."""
    casts = th.is_autocast_enabled("cpu") or th.is_autocast_enabled("cuda")
    return casts or th.jit.is_tracing() or th.compiler.is_exporting()


def _is_known(layer: Any) -> bool:
    if type(layer) not in RULES:
        return False
    if isinstance(layer, Heads):
        return all(_is_known(head) and head.bias is not None for head in layer.layers)
    if layer.__dict__.get("inplace"):
        return False
    if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks:
        return False
    return all(_is_known(part) for part in layer.layers) if isinstance(layer, SimbaBlock | BroBlock) else True


@dataclass(frozen=True)
class Stack:
    """
    A sequence of layers whose derivatives are known.

    :param layers: each of a type in :data:`RULES`
    """

    layers: tuple[Any, ...]

    @classmethod
    def of(cls, network: nn.Module, *heads: nn.Module) -> "Stack | None":
        """
        :param network: an ``nn.Sequential``, or anything else
        :param heads: linear layers that all see what comes out of it
        :return: the stack, or ``None`` where a layer is unknown, works in place, or has hooks, where the first one is an
            activation, which might work in place on what it is given, and in exports and under ``torch.autocast``
        """
        if type(network) is not nn.Sequential or network._forward_hooks or network._forward_pre_hooks or _must_be_plain():
            return None
        layers = (*network, *([Heads(heads)] if heads else []))  # type: ignore[arg-type]
        begins = bool(layers) and type(layers[0]) in (nn.Linear, nn.LayerNorm, Heads)
        return cls(layers) if begins and all(_is_known(layer) for layer in layers) else None

    def parameters(self) -> list[th.Tensor]:
        """
        :return: those of the layers, in their order
        """
        return _parameters(self.layers)

    def forward(self, x: th.Tensor, tape: Tape) -> th.Tensor:
        """
        :param x: ``(R, D)``
        :param tape: what :meth:`backward` will need is appended
        :return: ``(R, O)``
        """
        return _forward(self.layers, x, tape)

    def backward(self, dy: th.Tensor, tape: Tape, grads: Tape | None = None, wants_dx: bool = True) -> th.Tensor | None:
        """
        :param dy: ``(R, O)`` derivatives with respect to what came out
        :param tape: of the way forward; it is empty then
        :param grads: derivatives of the parameters are appended, the last one first (``None``: they are not computed)
        :param wants_dx: whether those of the input are computed
        :return: ``(R, D)`` derivatives with respect to the input
        """
        return _backward(self.layers, dy, tape, grads, wants_dx)

    def __call__(self, x: th.Tensor) -> th.Tensor:
        """
        As ``nn.Sequential``, for autograd to go through: once, not twice.

        :param x: ``(R, D)``
        :return: ``(R, O)``
        """
        return _Run.apply(self, len(x), x, *self.parameters())[0]

    def split(self, x: th.Tensor, n: int) -> tuple[th.Tensor, th.Tensor]:
        """
        One pass for rows whose derivatives are wanted and others whose are not.

        :param x: ``(R, D)``
        :param n: how many rows autograd goes through
        :return: ``(n, O)`` with a graph and ``(R - n, O)`` without
        """
        return _Run.apply(self, n, x, *self.parameters())


class _Run(th.autograd.Function):
    """The way forward on all rows, and back on the first ``n``."""

    @staticmethod
    def forward(ctx: Any, stack: Stack, n: int, x: th.Tensor, *parameters: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        tape: Tape = []
        y = stack.forward(x, tape)
        ctx.stack, ctx.n_rows = stack, len(x)
        # The parameters are saved too: autograd then notices if one has changed before the way back
        ctx.save_for_backward(*(kept[:n] for kept in tape), *parameters)
        ctx.n_kept = len(tape)
        first, rest = y[:n], y[n:]
        ctx.mark_non_differentiable(rest)
        return first, rest

    @staticmethod
    def backward(ctx: Any, dy: th.Tensor, _: th.Tensor) -> tuple[th.Tensor | None, ...]:
        if th.is_grad_enabled():
            raise RuntimeError(
                "derivatives by hand have none of their own; set by_hand=False on the network for create_graph=True"
            )
        tape = list(ctx.saved_tensors[: ctx.n_kept])
        wants_dx, wants_parameters = ctx.needs_input_grad[2], any(ctx.needs_input_grad[3:])
        grads: Tape | None = [] if wants_parameters else None
        dx = ctx.stack.backward(dy, tape, grads, wants_dx)
        if not wants_dx:
            dx = None
        elif len(dy) < ctx.n_rows:
            dx = th.cat([dx, dx.new_zeros(ctx.n_rows - len(dy), dx.shape[1])])
        found: list[Any] = [None] * (len(ctx.needs_input_grad) - 3) if grads is None else list(reversed(grads))
        return None, None, dx, *found
