"""Batch normalisation of the last axis, and which statistics its layers use: those of the batch, or running ones."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch as th
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

MOMENTUM = 0.01
"""Weight of a new batch in the running statistics: CrossQ's (Bhatt et al. 2024, table 2) and FlashSAC's."""


class BatchNorm(nn.BatchNorm1d):
    """
    Batch normalisation of the last axis of any number of axes (Ioffe and Szegedy 2015): torch's takes the second one.
    In training mode statistics are those of the batch, and running averages of them are kept; in evaluation mode the running
    ones are used, and the layer is affine.

    :param width: of the last axis
    """

    def __init__(self, width: int):
        super().__init__(width, momentum=MOMENTUM)

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        Normalise each column.

        :param x: ``(..., width)``
        :return: normalised, same shape
        :raises ValueError: in training mode, if there is one row alone, which has no variance
        """
        return super().forward(x if x.ndim == 2 else x.reshape(-1, x.shape[-1])).reshape(x.shape)


def batch_norms(*networks: nn.Module) -> list[_BatchNorm]:
    """
    Find the layers whose output depends on the other rows of a batch.

    :param networks: where to look, at any depth
    :return: layers of batch normalisation, torch's own among them
    """
    return [module for network in networks for module in network.modules() if isinstance(module, _BatchNorm)]


@contextmanager
def batch_statistics(*networks: nn.Module) -> Iterator[None]:
    """
    Within this context, layers of batch normalisation use the statistics of the batch and keep running averages of them.

    :param networks: whose layers
    """
    with _mode(batch_norms(*networks), True):
        yield


@contextmanager
def running_statistics(*networks: nn.Module) -> Iterator[None]:
    """
    Within this context, layers of batch normalisation use the running statistics and leave them as they are.

    :param networks: whose layers
    """
    with _mode(batch_norms(*networks), False):
        yield


@contextmanager
def _mode(layers: list[_BatchNorm], mode: bool) -> Iterator[None]:
    changed = [layer for layer in layers if layer.training != mode]
    for layer in changed:
        layer.training = mode
    try:
        yield
    finally:
        for layer in changed:
            layer.training = not mode
