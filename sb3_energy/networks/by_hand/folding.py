"""Batch norms in evaluation mode, folded into the linear layers beside them: a chain of many steps does not pay for them."""

from collections.abc import Sequence
from typing import Any

import torch as th
from torch import nn

from sb3_energy.networks.batch_norm import BatchNorm
from sb3_energy.networks.by_hand.layers import BLOCKS, Affine, AffineBlock, Stack, scale_and_shift
from sb3_energy.networks.value_scale import ScaledLinear


def begins_linear(stack: Stack) -> bool:
    """
    Check whether a stack begins with a linear layer, once it is :func:`folded`.

    :param stack: layers
    :return: whether it does
    """
    first, *others = stack.layers
    return isinstance(first, nn.Linear) or (type(first) is BatchNorm and bool(others) and isinstance(others[0], nn.Linear))


@th.no_grad()
def folded(stack: Stack) -> Stack:
    """
    Multiply the scales of batch norms into the weights of linear layers before or after them. The result has no parameters:
    its derivatives are those with respect to its input, and it is of the layers as they are now.

    :param stack: layers; a batch norm is in evaluation mode
    :return: the same function, or the stack itself where there is no batch norm
    """
    return Stack(_folded(stack.layers)) if _has_batch_norm(stack.layers) else stack


def _has_batch_norm(layers: Sequence[Any]) -> bool:
    inner = [layer.layers for layer in layers if type(layer) in BLOCKS]
    return any(type(layer) is BatchNorm for layer in layers) or any(map(_has_batch_norm, inner))


def _folded(layers: Sequence[Any]) -> tuple[Any, ...]:
    found: list[Any] = []
    for layer in layers:
        last = found[-1] if found else None
        if type(layer) is BatchNorm and type(last) in (nn.Linear, Affine):
            found[-1] = _then_normed(last, layer)
        elif type(layer) in (nn.Linear, ScaledLinear) and type(last) is BatchNorm:
            found[-1] = _of_normed(last, layer)
        elif type(layer) in BLOCKS:
            found.append(AffineBlock(_folded(layer.layers)))
        else:
            found.append(layer)
    return tuple(found)


def _then_normed(linear: Any, norm: BatchNorm) -> Affine:
    scale, shift = scale_and_shift(norm)
    return Affine(linear.weight * scale.unsqueeze(1), shift if linear.bias is None else shift + linear.bias * scale)


def _of_normed(norm: BatchNorm, linear: nn.Linear) -> Affine:
    scale, shift = scale_and_shift(norm)
    bias = linear.weight @ shift
    return Affine(linear.weight * scale, bias if linear.bias is None else bias + linear.bias)
