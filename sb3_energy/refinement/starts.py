"""Where chains start: proposals, resampled by weight where a refiner moves each particle alone."""

import math
from typing import NamedTuple

import torch as th

from sb3_energy.refinement.bases import Base
from sb3_energy.refinement.proposals import draw_particles, mixture_log_prob
from sb3_energy.stats import importance_resample
from sb3_energy.types import EnergyFn, Refiner


class Starts(NamedTuple):
    """
    Where chains start.

    :param particles: ``(B, M, *E)``, pre-tanh
    :param log_prob: ``(B, M)`` log-density of the proposals there (``None``: the base has none)
    :param log_weights: ``(B M, N)`` of the resampling, if there was one
    """

    particles: th.Tensor
    log_prob: th.Tensor | None
    log_weights: th.Tensor | None = None


def is_flow(refiner: Refiner) -> bool:
    """
    Whether a refiner follows a learned velocity from the base.

    :param refiner: any
    :return: whether it does
    """
    return getattr(refiner, "head", None) in ("velocity", "average_velocity")


def energy_of_starts(energy: EnergyFn) -> EnergyFn:
    """
    The energy that chooses between places to start at: ``energy.of_starts()`` where there is such a method, else the energy.

    :param energy: ``(B, N, *E) -> (B, N)`` in the box, which chains follow
    :return: ``(B, N, *E) -> (B, N)``
    """
    other = getattr(energy, "of_starts", None)
    return energy if other is None else other()


def draw_starts(
    base: Base, n: int, uniform_fraction: float, *, n_chains: int = 1, generator: th.Generator | None = None
) -> Starts:
    """
    ``n`` proposals for each chain, of known density where the base has one.

    :param base: at ``B`` observations
    :param n: how many for each chain
    :param uniform_fraction: part of them that is uniform on the box, in [0, 1]
    :param n_chains: how many chains for each observation
    :param generator: source of the noise (``None``: torch's global one)
    :return: the ``n`` of each chain one after the other
    """
    particles = draw_particles(base, n, uniform_fraction, n_groups=n_chains, generator=generator)
    fraction = math.floor(n * uniform_fraction) / n
    return Starts(particles, mixture_log_prob(base, particles, fraction) if base.has_density else None)


def resampled(starts: Starts, n_chains: int, energy_fn: EnergyFn, *, generator: th.Generator | None) -> Starts:
    """
    One of the proposals of each chain, drawn by importance.

    :param starts: those of :func:`draw_starts`
    :param n_chains: how many chains for each observation
    :param energy_fn: ``(B, N, *E) -> (B, N)``, pre-tanh
    :param generator: source of the draws (``None``: torch's global one)
    :return: one for each chain, and the log-weights
    :raises ValueError: if the density of the proposals is not known
    """
    if starts.log_prob is None:
        raise ValueError("n_particles above 1 weighs proposals by their density, which this base has not; use n_particles=1")
    n_rows, n, *event = starts.particles.shape
    by_chain = (n_rows * n_chains, n // n_chains)
    with th.no_grad():
        log_weights = (-energy_fn(starts.particles) - starts.log_prob).reshape(by_chain)
    chosen, index = importance_resample(starts.particles.reshape(*by_chain, *event), log_weights, 1, generator=generator)
    log_prob = starts.log_prob.reshape(by_chain).gather(1, index)
    return Starts(chosen.reshape(n_rows, n_chains, *event), log_prob.reshape(n_rows, n_chains), log_weights)
