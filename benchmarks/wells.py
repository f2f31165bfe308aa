"""Products of wells: energies of any dimension whose laws are known by one-dimensional quadrature."""

import math

import torch as th

from sb3_energy.refinement.bases import Gaussian

CELLS = 4000
"""Of the box, in the quadrature."""


class Wells:
    """
    ``E(a) = Σ_j e(a_j)`` with the same well ``e = -log Σ_k w_k exp(-(a - m_k)² / (2 std²))`` in every coordinate: shares of
    modes, energies, normalisers and entropies of a coordinate are those of one dimension, however many there are.

    :param means: of the well's modes
    :param std: of each
    :param weights: of each
    """

    def __init__(self, means: list[float], std: float, weights: list[float]):
        self.means, self.std, self.weights = means, std, weights
        self.n_evaluations = 0
        centres = (th.arange(CELLS, dtype=th.float64) + 0.5) / CELLS * 2.0 - 1.0
        energies = self.well(centres)
        mass = (-energies).softmax(0)
        self.share = float(mass[centres < 0.0].sum())
        self.mean_energy = float((mass * energies).sum())
        self.log_normalizer = float((-energies).logsumexp(0)) + math.log(2.0 / CELLS)
        self.entropy = self.log_normalizer + self.mean_energy

    def well(self, a: th.Tensor) -> th.Tensor:
        """
        :param a: any shape, in the box
        :return: the energy of each coordinate
        """
        means, weights = a.new_tensor(self.means), a.new_tensor(self.weights)
        return -(weights.log() - 0.5 * ((a.unsqueeze(-1) - means) / self.std).square()).logsumexp(-1)

    def __call__(self, actions: th.Tensor) -> th.Tensor:
        """
        :param actions: ``(B, N, *E)``
        :return: ``(B, N)``
        """
        self.n_evaluations += actions.shape[1]
        return self.well(actions).flatten(2).sum(-1)

    def base(self, batch: int, event: int | tuple[int, ...], std: float | None = None) -> Gaussian:
        """
        :param batch: how many observations
        :param event: shape of an event
        :param std: of the Gaussian, pre-tanh (``None``: about the well's)
        :return: a Gaussian on the first mode, where SAC's actor settles
        """
        shape, mean = (batch, *((event,) if isinstance(event, int) else event)), self.means[0]
        width = self.std / (1.0 - mean**2) if std is None else std
        return Gaussian(th.full(shape, math.atanh(mean)), th.full(shape, width))


def two_wells(std: float = 0.15) -> Wells:
    """
    :param std: width of each mode
    :return: two modes, of which the first weighs two thirds: ``P(a < 0)`` is .333 and, at .15, the energy of a coordinate .43
    """
    return Wells([0.6, -0.6], std, [4.0 / 3.0, 2.0 / 3.0])
