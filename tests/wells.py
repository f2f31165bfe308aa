"""Products of wells: energies of any dimension whose laws are known by one-dimensional quadrature."""

import math

import torch as th

from sb3_energy.refinement.bases import Gaussian
from tests.laws import entropy, grid, log_normalizer, modes_energy


class Wells:
    """
    ``E(a) = Σ_j e(a_j)`` with the same well ``e`` in every coordinate: shares of modes, energies, normalisers and entropies of
    each coordinate are those of one dimension, however many there are.

    :param means: of the well's modes
    :param std: of each
    :param weights: of each
    """

    def __init__(self, means, std, weights):
        self.means, self.std = means, std
        self._well = modes_energy([[mean] for mean in means], std, weights)
        self.n_evaluations = 0

    def well(self, a):
        """``(...) -> (...)``: the energy of each coordinate."""
        return self._well(a.unsqueeze(-1))

    def __call__(self, actions):
        self.n_evaluations += actions.shape[1]
        return self.well(actions).flatten(2).sum(-1)

    @property
    def share(self):
        """Exact probability of a coordinate below 0."""
        points, _ = grid(2000, 1)
        return float(((-self._well(points)).softmax(1) * (points.squeeze(-1) < 0.0)).sum())

    @property
    def mean_energy(self):
        """Exact mean of the energy of one coordinate."""
        return self.entropy - self.log_normalizer

    @property
    def log_normalizer(self):
        """Exact ``log ∫ exp(-e)`` of one coordinate."""
        return log_normalizer(self._well, 1)

    @property
    def entropy(self):
        """Exact entropy of one coordinate."""
        return entropy(self._well, 1)

    def base(self, batch, event, std=None):
        """A Gaussian on the first mode, of its width, where SAC's actor settles."""
        mean = self.means[0]
        shape = (batch, *((event,) if isinstance(event, int) else event))
        return Gaussian(th.full(shape, math.atanh(mean)), th.full(shape, std or self.std / (1.0 - mean**2)))


def two_wells():
    """Two modes, of which the first weighs two thirds: P(a < 0) = .333, energy .43."""
    return Wells([0.6, -0.6], 0.15, [4.0 / 3.0, 2.0 / 3.0])
