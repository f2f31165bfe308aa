"""Sequences of layers, with their derivatives written by hand.

``y = f_L(... f_1(x))`` for rows ``x (R, D)``. With ``dy`` for the derivative of a scalar with respect to ``y``, a layer gives

* linear, ``y = x Wᵀ + b``: ``dx = dy W``, ``dW = dyᵀ x``, ``db = Σ_rows dy``;
* an activation, ``y = σ(x)``: ``dx = dy ⊙ σ'(x)``;
* batch norm in evaluation mode, ``y = w ⊙ x̂ + b`` with constants in ``x̂ = (x - μ) / s``: ``dx = w ⊙ dy / s``,
  ``dw = Σ_rows dy ⊙ x̂``, ``db = Σ_rows dy``;
* RMS norm, ``y = w ⊙ x̂`` with ``x̂ = x / s``: ``dx = (g - x̂ ⊙ mean(g ⊙ x̂)) / s`` with ``g = w ⊙ dy``;
* the mean of bins ``z``, ``y = p · z`` with ``p = softmax(x)``: ``dx = dy p ⊙ (z - y)``;
* layer norm, ``y = w ⊙ x̂ + b`` with ``x̂ = (x - μ) / s``: ``dx = (g - mean g - x̂ ⊙ mean(g ⊙ x̂)) / s`` with ``g = w ⊙ dy``;
* a residual block, ``y = x + f(x)``: ``dx = dy + f'(x)ᵀ dy``;
* the scale of values, ``y = σ x``: ``dx = σ dy``.

What a layer needs for that, it puts on a tape on the way forward and takes off on the way back. Autograd does the same; what
it does not know is which derivatives are not needed. A chain of Langevin steps wants those of the actions alone: no product
for a weight, none for the observation, and none for a member of an ensemble that is not the lowest.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Protocol

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_energy.matmul import MatmulPrecision
from sb3_energy.networks.backbones import BroBlock, FlashBlock, SimbaBlock
from sb3_energy.networks.batch_norm import BatchNorm
from sb3_energy.networks.by_hand.untouched import Originals, calls_are_original, is_untouched
from sb3_energy.networks.categorical_mean import CategoricalMean
from sb3_energy.networks.value_scale import ScaledLinear, ValueScale

Tape = list[th.Tensor]
"""What layers have kept, the last layer's on top. All of it has one row for each row of the input."""

BLOCKS = (SimbaBlock, BroBlock, FlashBlock)
"""Residual blocks, whose ``layers`` are a sequence."""

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
        Store the gradient of a parameter.

        :param parameter: whose derivative it is
        :param gradient: of the same shape
        """
        self._found[id(parameter)] = gradient

    def of(self, parameters: Sequence[th.Tensor]) -> list[th.Tensor]:
        """
        Look up the gradients of parameters.

        :param parameters: in some order
        :return: their derivatives, in the same order
        """
        return [self._found[id(parameter)] for parameter in parameters]


class InGrad:
    """Derivatives in the parameters' ``grad``: new tensors, since those of the last update may still be in use."""

    def put(self, parameter: th.Tensor, gradient: th.Tensor) -> None:
        """
        Store the gradient in the parameter's ``grad``, replacing what was there.

        :param parameter: whose derivative it is
        :param gradient: of the same shape
        """
        parameter.grad = gradient


@dataclass(frozen=True)
class ParallelLinear:
    """
    Linear layers side by side, as one.

    :param layers: all of the same input
    """

    layers: tuple[nn.Linear, ...]

    @property
    def _parameters(self) -> dict[int, th.Tensor]:
        return dict(enumerate([layer.weight for layer in self.layers] + [layer.bias for layer in self.layers]))


class Affine:
    """
    A linear layer that is a value of other layers' parameters and has none itself.

    :param weight: ``(O, D)``
    :param bias: ``(O,)``
    """

    def __init__(self, weight: th.Tensor, bias: th.Tensor):
        self.weight, self.bias = weight, bias
        self._parameters = dict(weight=weight, bias=bias)


@dataclass(frozen=True)
class AffineBlock:
    """
    A residual block of such layers.

    :param layers: in sequence
    """

    layers: tuple[Any, ...]


def prefers_mkl(x: th.Tensor) -> bool:
    """
    Check whether a narrow product needs a switch from oneDNN to MKL, which is faster there.

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


def _heads(heads: ParallelLinear, x: th.Tensor, tape: Tape) -> th.Tensor:
    tape.append(x)
    return F.linear(x, th.cat([layer.weight for layer in heads.layers]), th.cat([layer.bias for layer in heads.layers]))


def _heads_back(heads: ParallelLinear, dy: th.Tensor, tape: Tape, grads: Gradients | None, wants_dx: bool) -> th.Tensor | None:
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


def scale_and_shift(layer: BatchNorm) -> tuple[th.Tensor, th.Tensor]:
    """
    A batch norm in evaluation mode as an affine function, ``y = scale ⊙ x + shift``.

    :param layer: with running statistics
    :return: ``(D,)`` each
    """
    buffers, (weight, bias) = layer._buffers, _weight_and_bias(layer)
    scale = th.rsqrt(buffers["running_var"] + layer.eps)  # type: ignore
    scale = scale if weight is None else scale * weight
    shift = -buffers["running_mean"] * scale  # type: ignore[operator]
    return scale, shift if bias is None else shift + bias


def _batch_norm(layer: BatchNorm, x: th.Tensor, tape: Tape) -> th.Tensor:
    tape.append(x)
    scale, shift = scale_and_shift(layer)
    return th.addcmul(shift, x, scale)


def _batch_norm_back(layer: BatchNorm, dy: th.Tensor, tape: Tape, grads: Gradients | None, wants_dx: bool) -> th.Tensor | None:
    x, (weight, bias), buffers = tape.pop(), _weight_and_bias(layer), layer._buffers
    if grads is not None and weight is not None:
        normed = (x - buffers["running_mean"]) * th.rsqrt(buffers["running_var"] + layer.eps)  # type: ignore
        grads.put(weight, (dy * normed).sum(0))
    if grads is not None and bias is not None:
        grads.put(bias, dy.sum(0))
    return dy * scale_and_shift(layer)[0] if wants_dx else None


def _rms_norm(layer: nn.RMSNorm, x: th.Tensor, tape: Tape) -> th.Tensor:
    assert layer.eps is not None
    inverse = th.rsqrt(x.square().mean(dim=-1, keepdim=True) + layer.eps)
    tape += [x, inverse]
    weight = layer._parameters["weight"]
    return x * inverse if weight is None else x * inverse * weight


def _rms_norm_back(layer: nn.RMSNorm, dy: th.Tensor, tape: Tape, grads: Gradients | None, wants_dx: bool) -> th.Tensor | None:
    inverse, x = tape.pop(), tape.pop()
    normed, weight = x * inverse, layer._parameters["weight"]
    if grads is not None and weight is not None:
        grads.put(weight, (dy * normed).sum(0))
    if not wants_dx:
        return None
    g = dy if weight is None else dy * weight
    return (g - normed * (g * normed).mean(dim=-1, keepdim=True)) * inverse


def _categorical_mean(layer: CategoricalMean, x: th.Tensor, tape: Tape) -> th.Tensor:
    probabilities = th.softmax(x, dim=-1)
    mean = (probabilities @ layer.support).unsqueeze(-1)
    tape += [probabilities, mean]
    return mean


def _categorical_mean_back(
    layer: CategoricalMean, dy: th.Tensor, tape: Tape, grads: Gradients | None, wants_dx: bool
) -> th.Tensor | None:
    mean, probabilities = tape.pop(), tape.pop()
    return (layer.support - mean).mul_(probabilities).mul_(dy) if wants_dx else None


def _block(block: Any, x: th.Tensor, tape: Tape) -> th.Tensor:
    return x + forward_through(block.layers, x, tape)


def _block_back(block: Any, dy: th.Tensor, tape: Tape, grads: Gradients | None, wants_dx: bool) -> th.Tensor | None:
    inner = backward_through(block.layers, dy, tape, grads, True)
    assert inner is not None
    return dy + inner


def _relu(layer: nn.ReLU, x: th.Tensor, tape: Tape) -> th.Tensor:
    # In place where nothing else refers to it: what stays small stays in the cache
    y = th.relu(x) if tape and tape[-1] is x else th.relu_(x)
    tape.append(y)
    return y


def _relu_back(layer: nn.ReLU, dy: th.Tensor, tape: Tape, grads: Gradients | None, wants_dx: bool) -> th.Tensor | None:
    return aten.threshold_backward(dy, tape.pop(), 0)


def _relu_back_in_place(dy: th.Tensor, tape: Tape) -> th.Tensor:
    return aten.threshold_backward.grad_input(dy, tape.pop(), 0, grad_input=dy)


def _silu_back_in_place(dy: th.Tensor, tape: Tape) -> th.Tensor:
    return aten.silu_backward.grad_input(dy, tape.pop(), grad_input=dy)


def _value_scale(layer: ValueScale, x: th.Tensor, tape: Tape) -> th.Tensor:
    return x * layer.sigma


def _value_scale_back(
    layer: ValueScale, dy: th.Tensor, tape: Tape, grads: Gradients | None, wants_dx: bool
) -> th.Tensor | None:
    return dy * layer.sigma


@dataclass(frozen=True)
class Rule:
    """
    Hand-written forward and backward pass of one layer type.

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
    ParallelLinear: Rule(_heads, _heads_back),
    nn.LayerNorm: Rule(_layer_norm, _layer_norm_back),
    ScaledLinear: Rule(_linear, _linear_back),  # a stack has its scale as a layer of its own
    ValueScale: Rule(_value_scale, _value_scale_back),
    BatchNorm: Rule(_batch_norm, _batch_norm_back),
    nn.RMSNorm: Rule(_rms_norm, _rms_norm_back),
    CategoricalMean: Rule(_categorical_mean, _categorical_mean_back),
    Affine: Rule(_linear, _linear_back),
    **dict.fromkeys((*BLOCKS, AffineBlock), Rule(_block, _block_back)),
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


FORWARDS = Originals({layer: ["forward"] for layer in RULES if issubclass(layer, nn.Module)})
"""What these classes do, for as long as it is not replaced."""


MAKERS = (nn.Linear, ScaledLinear, ParallelLinear, Affine, nn.LayerNorm, nn.RMSNorm, BatchNorm, CategoricalMean)
"""Layers whose derivatives are new tensors."""


def forward_through(layers: Sequence[Any], x: th.Tensor, tape: Tape) -> th.Tensor:
    """
    Forward pass through a sequence of layers, recorded on a tape.

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
    Backward pass through a sequence of layers, from the tape of their forward pass.

    :param layers: of types in ``RULES``
    :param dy: ``(R, O)``
    :param tape: of the way forward
    :param grads: where derivatives of the parameters go (``None``: they are not computed)
    :param wants_dx: whether those of the input are computed
    :return: ``(R, D)``
    """
    found: th.Tensor | None = dy
    is_ours = False  # whether a layer here allocated it, so that nothing else refers to it
    for i in range(len(layers) - 1, -1, -1):
        rule = RULES[type(layers[i])]
        assert found is not None
        if is_ours and rule.in_place is not None:
            found = rule.in_place(found, tape)
        else:
            found = rule.backward(layers[i], found, tape, grads, wants_dx or i > 0)
            is_ours = type(layers[i]) in MAKERS
    return found


def _unscaled(layers: Sequence[Any]) -> tuple[Any, ...]:
    """The scale of a linear layer as a layer that follows it, which can be left out where values are wanted in units of it."""
    pairs = [(layer, layer.scale) if type(layer) is ScaledLinear else (layer,) for layer in layers]
    return tuple(chain.from_iterable(pairs))


def _modules(layers: Sequence[Any]) -> list[nn.Module]:
    """Layers, and the modules inside of blocks and heads."""
    found: list[nn.Module] = []
    for layer in layers:
        if isinstance(layer, ParallelLinear):
            found += layer.layers
        elif isinstance(layer, BLOCKS):
            found += [layer, layer.layers, *_modules(layer.layers)]  # type: ignore[arg-type]
        else:
            found.append(layer)
    return found


def _parameters(layers: Sequence[Any]) -> list[th.Tensor]:
    # nn.Module.parameters() looks for modules in modules, which takes longer than some of these layers
    found: list[th.Tensor] = []
    for layer in layers:
        if isinstance(layer, BLOCKS):
            found += _parameters(layer.layers)  # type: ignore[arg-type]
        else:
            found += [parameter for parameter in layer._parameters.values() if parameter is not None]
    return found


_NAMES = {
    **dict.fromkeys((nn.Linear, ScaledLinear, nn.LayerNorm, BatchNorm), ("weight", "bias")),
    nn.RMSNorm: ("weight",),
}


def _must_be_plain() -> bool:
    """Whether all layers are looked at or changed: exports, autocast, which chooses their precision, replaced classes."""
    casts = th.is_autocast_enabled("cpu") or th.is_autocast_enabled("cuda")
    is_changed = not (calls_are_original() and FORWARDS.are_in_place())
    return casts or is_changed or th.jit.is_tracing() or th.compiler.is_exporting()


def _is_known(layer: Any) -> bool:
    if type(layer) not in RULES:
        return False
    if isinstance(layer, ParallelLinear):
        return all(_is_known(head) and head.bias is not None for head in layer.layers)
    if layer.__dict__.get("inplace"):
        return False
    if isinstance(layer, BLOCKS):
        return type(layer.layers) is nn.Sequential and all(map(_is_known, layer.layers))
    if type(layer) is BatchNorm and (layer.training or layer.running_mean is None or layer.running_var is None):
        return False  # its rows are not alone
    if type(layer) is nn.RMSNorm and (len(layer.normalized_shape) != 1 or layer.eps is None):
        return False
    # They may be None, but where they are gone a tensor of another kind has been put in their place
    return all(name in layer._parameters for name in _NAMES.get(type(layer), ()))


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
        Build a stack from a network's layers, if all of them have hand-written gradients.

        :param network: an ``nn.Sequential``, or anything else
        :param heads: linear layers that all see what comes out of it
        :return: the stack, or ``None`` where a layer is unknown, works in place, has hooks or a replaced method, where a
            parameter is used twice, where the first layer is an activation, which might work in place on what it is given,
            where a batch norm is in training mode, and in exports and under ``torch.autocast``
        """
        if type(network) is not nn.Sequential:
            return None
        layers = (*network, *([ParallelLinear(heads)] if heads else []))  # type: ignore[arg-type]
        begins = bool(layers) and type(layers[0]) in (nn.Linear, ScaledLinear, nn.LayerNorm, BatchNorm, ParallelLinear)
        if not (begins and all(map(_is_known, layers))):
            return None
        modules = [network, *_modules(layers)]
        if _must_be_plain() or not all(map(is_untouched, modules)):
            return None
        parameters = _parameters(layers)
        return cls(_unscaled(layers)) if len(set(map(id, parameters))) == len(parameters) else None

    def parameters(self) -> list[th.Tensor]:
        """
        Parameters of the stack.

        :return: those of the layers, in their order
        """
        return _parameters(self.layers)

    def forward(self, x: th.Tensor, tape: Tape) -> th.Tensor:
        """
        Forward pass through the stack, recorded on a tape.

        :param x: ``(R, D)``
        :param tape: what :meth:`backward` will need is appended
        :return: ``(R, O)``
        """
        return forward_through(self.layers, x, tape)

    def backward(self, dy: th.Tensor, tape: Tape, grads: Gradients | None = None, wants_dx: bool = True) -> th.Tensor | None:
        """
        Backward pass through the stack, from the tape of its forward pass.

        :param dy: ``(R, O)`` derivatives with respect to what came out
        :param tape: of the way forward; it is empty then
        :param grads: where derivatives of the parameters go (``None``: they are not computed)
        :param wants_dx: whether those of the input are computed
        :return: ``(R, D)`` derivatives with respect to the input
        """
        return backward_through(self.layers, dy, tape, grads, wants_dx)

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
        grads = Collected() if wants_parameters else None
        dx = ctx.stack.backward(dy, tape, grads, wants_dx)
        if not wants_dx:
            dx = None
        elif len(dy) < ctx.n_rows:
            dx = th.cat([dx, dx.new_zeros(ctx.n_rows - len(dy), dx.shape[1])])
        n_parameters = len(ctx.needs_input_grad) - 3
        return None, None, dx, *([None] * n_parameters if grads is None else grads.of(ctx.stack.parameters()))
