"""Densities on the box ``[-1, 1]²`` with known answers, as energies."""

import math
from collections.abc import Mapping

import numpy as np
import torch as th
from torch.nn import functional as F

from benchmarks.sampler_critic import trained_critic
from sb3_energy.envs.soft_values import soft_value_iteration
from sb3_energy.types import EnergyFn

FOUR_GOALS_ALPHA = 3.0


def flat(a: th.Tensor) -> th.Tensor:
    """The uniform distribution."""
    return 0.0 * a.sum(-1)


def correlated(a: th.Tensor) -> th.Tensor:
    """A Gaussian of standard deviation .3 and correlation .8, cut off by the box."""
    x, y = a[..., 0] / 0.3, a[..., 1] / 0.3
    return 0.5 * (x.square() - 1.6 * x * y + y.square()) / (1.0 - 0.64)


def four_modes(std: float) -> EnergyFn:
    """
    Four Gaussians with the ratio of distance and width of S2AC's targets, ``4 (sin, cos)`` with ``std``.

    :param std: in the units in which the modes are at a distance of 4 from the middle
    :return: the energy
    """
    means = 0.6 * th.tensor([(1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0)])
    return lambda a: -(-0.5 * ((a.unsqueeze(-2) - means) / (0.15 * std)).square().sum(-1)).logsumexp(-1)


def ring(a: th.Tensor) -> th.Tensor:
    """A circle of radius .6 that is .1 wide."""
    return 0.5 * ((a.square().sum(-1) + 1e-6).sqrt() - 0.6).div(0.1).square()


def checkerboard(a: th.Tensor) -> th.Tensor:
    """Eight hills and eight valleys of six nats between them."""
    return -3.0 * th.sin(2.0 * math.pi * a[..., 0]) * th.sin(2.0 * math.pi * a[..., 1])


def four_goals() -> EnergyFn:
    """
    :return: ``-Q(0, a) / α`` of the four-goal environment, from its exact soft values
    """
    axis = np.linspace(-1.0, 1.0, 161)
    actions = np.stack(np.meshgrid(axis, axis, indexing="xy"), axis=-1)
    exact = soft_value_iteration(FOUR_GOALS_ALPHA, n_states=57, n_actions=21)
    table = th.as_tensor(-exact.q_value(np.zeros(2), actions) / FOUR_GOALS_ALPHA, dtype=th.float32)[None, None]
    table = table - table.min()

    def energy(a: th.Tensor) -> th.Tensor:
        points = a.reshape(1, 1, -1, 2).to(table.dtype)
        return F.grid_sample(table, points, mode="bilinear", padding_mode="border", align_corners=True).reshape(a.shape[:-1])

    return energy


def targets() -> Mapping[str, EnergyFn]:
    """
    :return: name -> energy
    """
    return {
        "flat": flat,
        "correlated Gaussian": correlated,
        "four modes, std .5": four_modes(0.5),
        "four modes, std 1": four_modes(1.0),
        "ring": ring,
        "checkerboard": checkerboard,
        "four goals": four_goals(),
        "trained critic": trained_critic(),
    }


class CellProbabilities:
    """
    What a density gives each of ``n × n`` cells of the box, by the midpoint rule with ``10 × 10`` points inside of each.

    :param energy: ``(B, N, 2) -> (B, N)``
    :param n_cells: for each dimension
    """

    def __init__(self, energy: EnergyFn, n_cells: int = 20):
        self.n_cells = n_cells
        n = 10 * n_cells
        axis = (th.arange(n) + 0.5) / n * 2.0 - 1.0
        points = th.stack(th.meshgrid(axis, axis, indexing="ij"), dim=-1).reshape(1, -1, 2)
        log_density = -energy(points)[0].double()
        self.log_normalizer = float(log_density.logsumexp(0)) + 2.0 * math.log(2.0 / n)
        weights = log_density.softmax(0)
        self.entropy = self.log_normalizer - float((weights * log_density).sum())
        self.fine = weights.reshape(n, n)
        self.probabilities = self.fine.reshape(n_cells, 10, n_cells, 10).sum(dim=(1, 3))

    def total_variation(self, draws: th.Tensor) -> float:
        """
        :param draws: ``(n, 2)`` on the box
        :return: ``½ Σ |p - q|`` over the cells
        """
        index = ((draws + 1.0) / 2.0 * self.n_cells).long().clamp(0, self.n_cells - 1)
        counts = th.bincount(index[:, 0] * self.n_cells + index[:, 1], minlength=self.n_cells**2).double()
        return 0.5 * float((counts / len(draws) - self.probabilities.flatten()).abs().sum())

    def exact_draws(self, n: int, generator: th.Generator) -> th.Tensor:
        """
        :param n: how many
        :param generator: source of the draws
        :return: ``(n, 2)``
        """
        index = th.multinomial(self.fine.flatten(), n, replacement=True, generator=generator)
        cells = th.stack([index // self.fine.shape[1], index % self.fine.shape[1]], dim=1)
        return (cells + th.rand((n, 2), generator=generator)) / len(self.fine) * 2.0 - 1.0
