"""Known answers for the laws: energies on the box, their Gibbs densities by quadrature, distances between densities."""

import math

import torch as th
from scipy.spatial import cKDTree
from scipy.special import digamma

from sb3_energy.energies import log_tanh_jacobian


def modes_energy(means, std, weights=None):
    """
    A mixture of Gaussians as an energy, ``-log Σ_k w_k exp(-|x - m_k|² / (2 std²))``.

    :param means: ``(K, A)``
    :param std: of every mode
    :param weights: ``K`` weights, equal ones by default
    :return: ``(B, N, A) -> (B, N)``
    """
    means = th.as_tensor(means, dtype=th.float32)
    log_weights = th.as_tensor(weights or [1.0] * len(means)).log()

    def energy(x):
        squares = (x.unsqueeze(-2) - means.to(x.dtype)).square().sum(-1)
        return -(log_weights.to(x.dtype) - 0.5 * squares / std**2).logsumexp(-1)

    return energy


def grid(n, dimension, low=-1.0, high=1.0):
    """
    :return: centres of ``n`` cells a dimension, ``(1, n^d, d)`` in float64, and the volume of a cell
    """
    edges = th.linspace(low, high, n + 1, dtype=th.float64)
    centres = 0.5 * (edges[1:] + edges[:-1])
    points = th.cartesian_prod(*[centres] * dimension).reshape(-1, dimension)
    return points.unsqueeze(0), ((high - low) / n) ** dimension


def log_normalizer(energy, dimension, n=400):
    """
    :return: ``log ∫ exp(-E(a)) da`` on the box, by the midpoint rule
    """
    points, volume = grid(n, dimension)
    return float((-energy(points)).logsumexp(1) + math.log(volume))


def entropy(energy, dimension, n=400):
    """
    :return: the entropy of ``exp(-E)`` on the box in nats, by the midpoint rule
    """
    points, _ = grid(n, dimension)
    energies = energy(points)
    return log_normalizer(energy, dimension, n) + float(((-energies).softmax(1) * energies).sum())


def bin_probabilities(energy, dimension, bins, per_bin=10):
    """
    :return: ``(bins^d,)``, the mass of ``exp(-E)`` on the box in each bin, by the midpoint rule inside of it
    """
    points, _ = grid(bins * per_bin, dimension)
    mass = (-energy(points)).softmax(1).reshape([bins, per_bin] * dimension)
    return mass.sum(dim=list(range(1, 2 * dimension, 2))).flatten()


def frequencies(actions, bins):
    """
    :return: ``(bins^d,)``, the share of the draws ``(n, d)`` on the box that fall into each bin
    """
    index = ((actions.double() + 1.0) / 2.0 * bins).long().clamp(0, bins - 1)
    flat = sum(index[:, j] * bins ** (index.shape[1] - 1 - j) for j in range(index.shape[1]))
    return th.bincount(flat, minlength=bins ** index.shape[1]).double() / len(actions)


def total_variation(actions, energy, bins):
    """
    :param actions: ``(n, d)`` draws on the box
    :param energy: whose Gibbs density they should follow
    :param bins: for each dimension
    :return: ``½ Σ |p - q|`` over the bins
    """
    return 0.5 * float((frequencies(actions, bins) - bin_probabilities(energy, actions.shape[1], bins)).abs().sum())


def exact_draws(energy, dimension, n, generator, cells=400):
    """
    :return: ``(n, d)`` draws from ``exp(-E)`` on the box: a cell of a fine grid by its probability, then a point inside of it
    """
    points, volume = grid(cells, dimension)
    probabilities = (-energy(points)).softmax(1).squeeze(0)
    index = th.searchsorted(probabilities.cumsum(0), th.rand(n, dtype=th.float64, generator=generator))
    within = th.rand((n, dimension), dtype=th.float64, generator=generator) - 0.5
    return points[0, index.clamp(max=len(probabilities) - 1)] + within * volume ** (1.0 / dimension)


def knn_entropy(points, k=4):
    """
    Kozachenko and Leonenko's estimate from the distances to the ``k``-th neighbour, without any density.

    :param points: ``(n, d)`` independent draws in ``R^d``
    :param k: which neighbour
    :return: the entropy in nats
    """
    n, dimension = points.shape
    points = points.double().numpy()
    # closer than that, 32-bit floats are the same
    distances = th.as_tensor(cKDTree(points).query(points, k + 1)[0][:, -1]).clamp(min=1e-7)
    ball = 0.5 * dimension * math.log(math.pi) - math.lgamma(0.5 * dimension + 1.0)
    return float(digamma(n) - digamma(k) + ball + dimension * distances.log().mean())


def knn_entropy_on_box(latent, k=4):
    """
    :param latent: ``(n, d)`` draws before the squash, where there is no wall that cuts a neighbourhood off
    :param k: which neighbour
    :return: the entropy of ``tanh(latent)`` in nats
    """
    return knn_entropy(latent, k) + float(log_tanh_jacobian(latent.double().unsqueeze(0)).mean())
