"""A search for NaN and infinity in what is saved and loaded."""

from collections.abc import Iterable, Iterator

import torch as th
from torch import nn

NamedTensor = tuple[str, th.Tensor]


def module_tensors(module: nn.Module, prefix: str = "") -> tuple[list[NamedTensor], list[NamedTensor]]:
    """
    The tensors of a module by name.

    :param module: whose state is saved
    :param prefix: of the names
    :return: the parameters, which must be finite, and the buffers, which may hold infinity on purpose (as masks do)
    """
    parameters, buffers = module.named_parameters(prefix), module.named_buffers(prefix)
    return list(parameters), list(buffers)


def optimizer_tensors(optimizer: th.optim.Optimizer, prefix: str) -> Iterator[NamedTensor]:
    """
    The tensors of an optimiser's state by name.

    :param optimizer: whose state is saved
    :param prefix: of the names
    :return: names and tensors
    """
    for index, state in enumerate(optimizer.state.values()):
        for name, value in state.items():
            if isinstance(value, th.Tensor):
                yield f"{prefix}.{name}[{index}]", value


def not_finite(finite: Iterable[NamedTensor], not_nan: Iterable[NamedTensor] = ()) -> str | None:
    """
    The first tensor that holds NaN or a forbidden infinity.

    :param finite: tensors that may hold neither NaN nor infinity, by name
    :param not_nan: tensors that may hold no NaN
    :return: its name, or ``None``
    """
    strict = [(name, tensor.detach()) for name, tensor in finite if tensor.is_floating_point()]
    lenient = [(name, tensor.detach()) for name, tensor in not_nan if tensor.is_floating_point()]
    # A sum takes a tenth of the time of isfinite. It misses nothing, but may overflow: suspects are looked at in full
    suspects = _where_not_finite(strict), _where_not_finite(lenient)
    for name, tensor in suspects[0]:
        if not th.isfinite(tensor).all():
            return name
    for name, tensor in suspects[1]:
        if th.isnan(tensor).any():
            return name
    return None


def _where_not_finite(tensors: list[NamedTensor]) -> list[NamedTensor]:
    """Those whose sum is not finite, with one synchronisation for each device."""
    found: list[NamedTensor] = []
    for device in {tensor.device for _, tensor in tensors}:
        there = [(name, tensor) for name, tensor in tensors if tensor.device == device]
        sums = th.stack([tensor.sum(dtype=th.float32) for _, tensor in there])
        found += [item for item, is_finite in zip(there, th.isfinite(sums).tolist(), strict=True) if not is_finite]
    return found
