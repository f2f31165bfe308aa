"""Sequences of layers whose derivatives are written by hand; which and how: :mod:`sb3_energy.networks.by_hand.layer_rules`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch as th
from torch import nn

from sb3_energy.networks.backbones import BroBlock, SimbaBlock
from sb3_energy.networks.by_hand.layer_rules import (
    FORWARDS,
    RULES,
    Collected,
    Gradients,
    Heads,
    Tape,
    backward_through,
    forward_through,
)
from sb3_energy.networks.by_hand.untouched import calls_are_original, is_untouched


def _modules(layers: Sequence[Any]) -> list[nn.Module]:
    """Layers, and the modules inside of blocks and heads."""
    found: list[nn.Module] = []
    for layer in layers:
        if isinstance(layer, Heads):
            found += layer.layers
        elif isinstance(layer, SimbaBlock | BroBlock):
            found += [layer, layer.layers, *_modules(layer.layers)]  # type: ignore[arg-type]
        else:
            found.append(layer)
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
    """Whether all layers are looked at or changed: exports, autocast, which chooses their precision, replaced classes."""
    casts = th.is_autocast_enabled("cpu") or th.is_autocast_enabled("cuda")
    is_changed = not (calls_are_original() and FORWARDS.are_in_place())
    return casts or is_changed or th.jit.is_tracing() or th.compiler.is_exporting()


def _is_known(layer: Any) -> bool:
    if type(layer) not in RULES:
        return False
    if isinstance(layer, Heads):
        return all(_is_known(head) and head.bias is not None for head in layer.layers)
    if layer.__dict__.get("inplace"):
        return False
    if isinstance(layer, SimbaBlock | BroBlock):
        return type(layer.layers) is nn.Sequential and all(map(_is_known, layer.layers))
    # They may be None, but where they are gone somebody has put a tensor of another kind in their place
    return type(layer) not in (nn.Linear, nn.LayerNorm) or ("weight" in layer._parameters and "bias" in layer._parameters)


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
        :return: the stack, or ``None`` where a layer is unknown, works in place, has hooks or a replaced method, where a
            parameter is used twice, where the first layer is an activation, which might work in place on what it is given,
            and in exports and under ``torch.autocast``
        """
        if type(network) is not nn.Sequential:
            return None
        layers = (*network, *([Heads(heads)] if heads else []))  # type: ignore[arg-type]
        begins = bool(layers) and type(layers[0]) in (nn.Linear, nn.LayerNorm, Heads)
        if not (begins and all(map(_is_known, layers))):
            return None
        modules = [network, *_modules(layers)]
        if _must_be_plain() or not all(map(is_untouched, modules)):
            return None
        parameters = _parameters(layers)
        return cls(layers) if len(set(map(id, parameters))) == len(parameters) else None

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
        return forward_through(self.layers, x, tape)

    def backward(self, dy: th.Tensor, tape: Tape, grads: Gradients | None = None, wants_dx: bool = True) -> th.Tensor | None:
        """
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
