"""Energies of prefixes: one network for each number of coordinates but the last."""

from functools import partial

import torch as th
from torch import nn

from sb3_energy.keywords import plain_arguments
from sb3_energy.networks.backbones import make_backbone
from sb3_energy.networks.particles import evaluate_particles
from sb3_energy.types import PrefixEnergyFn


class PrefixEnergies(nn.Module):
    """
    ``E_j(s, x_{:j})`` for ``j = 1 .. D - 1``, a network each, as implicit behavioral cloning's autoregressive optimiser has
    them (Florence et al. 2021, appendix B.2). ``E_D`` is not among them: it is the energy itself. Of one coordinate there
    is no prefix, and no network.

    :param features_dim: ``F``
    :param event_dim: ``D``, coordinates of a flattened event
    :param net_arch: width of each layer
    :param activation_fn: activation function
    :param backbone: a name in :data:`sb3_energy.networks.BACKBONES`
    :raises ValueError: if there is no coordinate, or the backbone is unknown or cannot have these widths
    """

    @plain_arguments
    def __init__(
        self,
        features_dim: int,
        event_dim: int,
        net_arch: list[int],
        activation_fn: type[nn.Module] = nn.ReLU,
        backbone: str = "plain",
    ):
        super().__init__()
        if event_dim < 1:
            raise ValueError(f"event_dim must be at least 1, got {event_dim!r}")
        self.event_dim = event_dim
        self.networks = nn.ModuleList()
        for j in range(1, event_dim):
            trunk, trunk_dim = make_backbone(backbone, features_dim + j, net_arch, activation_fn)
            self.networks.append(nn.Sequential(*trunk, nn.Linear(trunk_dim, 1)))

    def forward(self, features: th.Tensor, prefix: th.Tensor) -> th.Tensor:
        """
        The energies of prefixes of one length, which says which network is asked.

        :param features: ``(B, F)``
        :param prefix: ``(B, N, j)``
        :return: ``(B, N)``
        :raises ValueError: if there is no network for ``j`` coordinates
        """
        length = prefix.shape[-1]
        if not 1 <= length < self.event_dim:
            raise ValueError(f"prefix must have shape (B, N, j) with 1 <= j < {self.event_dim}, got {tuple(prefix.shape)}")
        return evaluate_particles(self.networks[length - 1], features, prefix).squeeze(-1)

    def bind(self, features: th.Tensor) -> PrefixEnergyFn:
        """
        Fix the features, so that the energies are a function of action prefixes alone.

        :param features: ``(B, F)``
        :return: ``(B, N, j) -> (B, N)``
        """
        return partial(self, features)
