"""Distributions of returns on fixed bins, as C51 learns them."""

import torch as th
from torch.nn import functional as F


def categorical_projection(values: th.Tensor, probabilities: th.Tensor, support: th.Tensor) -> th.Tensor:
    """
    Divide the probability of each value between the two bins beside it, in inverse proportion to how far they are; what lies
    outside of the support goes to its ends (Bellemare, Dabney and Munos 2017, equation 7). The mean stays what it is, but for
    what lies outside.

    :param values: ``(B, M)`` possible returns
    :param probabilities: ``(B, M)`` of them
    :param support: ``(n,)`` centres of the bins, evenly spaced and ascending
    :return: ``(B, n)`` probabilities of the bins
    """
    n_bins, lowest = len(support), support[0]
    width = (support[-1] - lowest) / (n_bins - 1)
    place = ((values - lowest) / width).clamp(0.0, n_bins - 1.0)
    below = place.floor().clamp(max=n_bins - 2.0)
    part = place - below
    index = th.nan_to_num(below).long()  # what is NaN stays so in its part
    found = probabilities.new_zeros(len(values), n_bins)
    found.scatter_add_(1, index, probabilities * (1.0 - part))
    return found.scatter_add_(1, index + 1, probabilities * part)


def categorical_loss(logits: th.Tensor, targets: th.Tensor) -> th.Tensor:
    """
    Cross-entropy to the target's distribution, in the mean over critics and batch.

    :param logits: ``(B, C, n)``
    :param targets: ``(B, n)`` probabilities, held fixed
    :return: scalar
    """
    return -(targets.unsqueeze(1) * F.log_softmax(logits, dim=-1)).sum(dim=-1).mean()
