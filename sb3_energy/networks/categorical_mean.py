"""From a distribution on fixed bins to its mean: the last layer between a categorical critic's network and its value."""

import torch as th
from torch import nn


class CategoricalMean(nn.Module):
    """
    ``Σ_j softmax(x)_j z_j``, the mean of a distribution on ``n`` bins with the centres ``z`` (C51, Bellemare, Dabney and Munos
    2017, section 4).

    :param low: centre of the lowest bin
    :param high: centre of the highest one
    :param n_bins: number of bins
    """

    support: th.Tensor
    out_features: int = 1

    def __init__(self, low: float, high: float, n_bins: int):
        super().__init__()
        self.register_buffer("support", th.linspace(low, high, n_bins))

    def forward(self, logits: th.Tensor) -> th.Tensor:
        """
        Take the mean.

        :param logits: ``(..., n)``
        :return: ``(..., 1)``
        """
        return (th.softmax(logits, dim=-1) @ self.support).unsqueeze(-1)

    def extra_repr(self) -> str:
        """
        Describe the bins, as torch's layers describe themselves.

        :return: what ``print`` shows of it
        """
        return f"{self.support[0].item():g} to {self.support[-1].item():g}, n_bins={len(self.support)}"
