"""Nothing that is NaN or infinite goes into a file, or comes out of one."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch as th
from torch import nn

NamedTensor = tuple[str, th.Tensor]


def module_tensors(module: nn.Module, prefix: str = "") -> tuple[list[NamedTensor], list[NamedTensor]]:
    """
    :param module: whose state is stored
    :param prefix: of the names
    :return: the parameters, which must be finite, and the buffers, in which an infinity may be meant (a mask, say)
    """
    parameters, buffers = module.named_parameters(prefix), module.named_buffers(prefix)
    return list(parameters), list(buffers)


def optimizer_tensors(optimizer: th.optim.Optimizer, prefix: str) -> Iterator[NamedTensor]:
    """
    :param optimizer: whose state is stored
    :param prefix: of the names
    :return: the tensors of its state
    """
    for index, state in enumerate(optimizer.state.values()):
        for name, value in state.items():
            if isinstance(value, th.Tensor):
                yield f"{prefix}.{name}[{index}]", value


def not_finite(finite: Iterable[NamedTensor], not_nan: Iterable[NamedTensor] = ()) -> str | None:
    """
    :param finite: tensors that may hold neither NaN nor infinity, by name
    :param not_nan: tensors that may hold no NaN
    :return: the name of the first one that does, or ``None``. A device is waited for once.
    """
    names: dict[th.device, list[str]] = {}
    flags: dict[th.device, list[th.Tensor]] = {}
    for test, tensors in ((_is_finite, finite), (_has_no_nan, not_nan)):
        for name, tensor in tensors:
            if tensor.is_floating_point() and tensor.numel() > 0:
                names.setdefault(tensor.device, []).append(name)
                flags.setdefault(tensor.device, []).append(test(tensor.detach()))
    for device, found in flags.items():
        good: Any = th.stack(found)
        if not good.all():
            return names[device][good.tolist().index(False)]
    return None


def _is_finite(tensor: th.Tensor) -> th.Tensor:
    return th.isfinite(tensor).all()


def _has_no_nan(tensor: th.Tensor) -> th.Tensor:
    return ~th.isnan(tensor).any()
