"""One network on many particles for each observation."""

from itertools import islice

import torch as th
from torch import nn
from torch.nn import functional as F


def evaluate_particles(network: nn.Module, features: th.Tensor, particles: th.Tensor) -> th.Tensor:
    """
    One network on ``N`` particles for each observation. The features' share of a first linear layer is the same for all
    of them and computed once; features of images are by far the larger part of its input.

    :param network: ``(..., F + A) -> (..., O)``
    :param features: ``(B, F)``
    :param particles: ``(B, N, A)``
    :return: ``(B, N, O)``
    """
    assert isinstance(network, nn.Sequential)
    first = network[0]
    if type(first) is not nn.Linear:  # a backbone of the user's own, or a single layer with a scale
        expanded = features.unsqueeze(1).expand(-1, particles.shape[1], -1)
        return network(th.cat([expanded, particles], dim=-1))
    n_features = features.shape[1]
    shared = F.linear(features, first.weight[:, :n_features], first.bias)
    hidden = shared.unsqueeze(1) + F.linear(particles, first.weight[:, n_features:])
    for layer in islice(network, 1, None):
        hidden = layer(hidden)
    return hidden
