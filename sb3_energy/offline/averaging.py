"""The running average of a network's parameters, from which samples are drawn."""

import torch as th
from torch import nn


def update_average(average: nn.Module, network: nn.Module, decay: float, n_updates: int) -> None:
    """
    One step of an exponential moving average of parameters (Polyak and Juditsky 1992), after update ``n``:
    ``average ← d · average + (1 - d) · parameters`` with ``d = min(decay, n / (10 + n))``, so that a young average forgets the
    random initial parameters faster. Buffers are copied.

    :param average: a copy of the network, changed in place
    :param network: after the update
    :param decay: in (0, 1)
    :param n_updates: ``n``, number of updates, this one included
    """
    decay = min(decay, n_updates / (10 + n_updates))
    with th.no_grad():
        for mean, value in zip(average.parameters(), network.parameters(), strict=True):
            mean.lerp_(value, 1.0 - decay)
        for statistic, latest in zip(average.buffers(), network.buffers(), strict=True):
            statistic.copy_(latest)
