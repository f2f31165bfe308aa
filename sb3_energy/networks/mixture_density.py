"""Mixture density networks: a mixture of Gaussians whose parameters depend on features."""

from typing import NamedTuple

import torch as th
from torch import nn

from sb3_energy.networks.backbones import make_backbone
from sb3_energy.stats import draw_indices, gaussian_log_prob, noise_like

LOG_STD_RANGE = (-5.0, 1.0)
"""Of actions in [-1, 1]. Without a lower bound the likelihood of a repeated action is unbounded."""


class GaussianMixture(NamedTuple):
    """
    ``K`` Gaussians for each of ``B`` rows, with independent coordinates.

    :param log_weights: ``(B, K)``, normalised
    :param means: ``(B, K, A)``
    :param stds: ``(B, K, A)``
    """

    log_weights: th.Tensor
    means: th.Tensor
    stds: th.Tensor

    def log_prob(self, x: th.Tensor) -> th.Tensor:
        """
        The log-density.

        :param x: ``(B, N, A)``
        :return: ``(B, N)``
        """
        parts = gaussian_log_prob(x.unsqueeze(2), self.means.unsqueeze(1), self.stds.unsqueeze(1))  # (B, N, K)
        return (parts + self.log_weights.unsqueeze(1)).logsumexp(dim=-1)

    def sample(self, n: int, generator: th.Generator | None = None) -> th.Tensor:
        """
        Draw from it.

        :param n: how many for each row
        :param generator: source of the draws (``None``: torch's global one)
        :return: ``(B, n, A)``, without a graph
        """
        with th.no_grad():
            index = draw_indices(self.log_weights.exp(), n, generator)
            rows = th.arange(len(index), device=index.device).unsqueeze(1)
            means, stds = self.means[rows, index], self.stds[rows, index]
            return means + stds * noise_like(means, generator)

    def mode(self) -> th.Tensor:
        """
        The mean of a component at which the density is highest, which is near its mode.

        :return: ``(B, A)``
        """
        best = self.log_prob(self.means).argmax(dim=1)
        return self.means[th.arange(len(best), device=best.device), best]


class MixtureDensityNetwork(nn.Module):
    """
    Features to a mixture of Gaussians (Bishop 1994). The means begin all over [-1, 1], so that components do not learn the
    same.

    :param features_dim: ``F``
    :param action_dim: ``A``
    :param net_arch: width of each layer
    :param activation_fn: activation function
    :param n_components: ``K``
    :param backbone: a name in :data:`BACKBONES`
    :raises ValueError: if the backbone is unknown or cannot have these widths
    """

    def __init__(
        self,
        features_dim: int,
        action_dim: int,
        net_arch: list[int],
        activation_fn: type[nn.Module] = nn.ReLU,
        n_components: int = 8,
        backbone: str = "plain",
    ):
        super().__init__()
        self.trunk, width = make_backbone(backbone, features_dim, net_arch, activation_fn)
        self.logits = nn.Linear(width, n_components)
        self.means = nn.Linear(width, n_components * action_dim)
        self.log_stds = nn.Linear(width, n_components * action_dim)
        nn.init.uniform_(self.means.bias, -1.0, 1.0)
        self.n_components = n_components

    def forward(self, features: th.Tensor) -> GaussianMixture:
        """
        The mixtures at features.

        :param features: ``(B, F)``
        :return: of ``B`` rows
        """
        latent = self.trunk(features)
        low, high = LOG_STD_RANGE
        log_stds = low + (high - low) * th.sigmoid(self.log_stds(latent))  # smooth: at a bound of a clamp nothing is learned
        means, stds = (part.unflatten(1, (self.n_components, -1)) for part in (self.means(latent), log_stds.exp()))
        return GaussianMixture(self.logits(latent).log_softmax(dim=1), means, stds)
