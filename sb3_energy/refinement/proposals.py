"""Proposals from the base and the box with the density of their mixture, and the starts that are resampled from them."""

import math
from typing import NamedTuple

import torch as th

from sb3_energy.refinement.bases import Base, Gaussian, UniformBase
from sb3_energy.refiners.sequence import FLOW_HEADS, members_of
from sb3_energy.stats import importance_resample, log_tanh_jacobian, uniform_log_prob
from sb3_energy.types import EnergyFn, Refiner

INITIAL_PARTICLES = {"base": 0.0, "uniform": 1.0, "mixture": 0.5}
"""Where particles start: the part of them that is uniform on the box. The others are draws of the base."""


class Proposals(NamedTuple):
    """
    Proposals and their density.

    :param particles: ``(B, N, *E)``, pre-tanh
    :param log_prob: ``(B, N)`` log-density of the whole mixture there, in the same space
    """

    particles: th.Tensor
    log_prob: th.Tensor


def draw_proposals(
    base: Base, n: int, uniform_fraction: float, *, generator: th.Generator | None = None, n_groups: int = 1
) -> Proposals:
    """
    ``n`` draws from ``(1 - f) base + f Uniform(box)``, the first ones from the base.

    The share is stratified, ``f = floor(n * uniform_fraction) / n``, and each weight uses the density of the mixture:
    multiple importance sampling with the balance heuristic (Veach and Guibas 1995, section 3.3).

    :param base: at ``B`` observations
    :param n: how many draws for each observation
    :param uniform_fraction: part of them that is uniform on the box, in [0, 1]
    :param generator: source of the noise (``None``: torch's global one)
    :param n_groups: how many times that many draws, one after the other
    :return: ``N = n * n_groups`` particles and their log-densities
    :raises ValueError: if the base has no density
    """
    particles = draw_particles(base, n, uniform_fraction, generator=generator, n_groups=n_groups)
    return Proposals(particles, mixture_log_prob(base, particles, stratified_fraction(n, uniform_fraction)))


def stratified_fraction(n: int, uniform_fraction: float) -> float:
    """
    The part of ``n`` draws that is uniform on the box.

    :param n: how many draws
    :param uniform_fraction: what that part is meant to be
    :return: ``f`` of :func:`draw_proposals`
    """
    return math.floor(n * uniform_fraction) / n


def draw_particles(
    base: Base, n: int, uniform_fraction: float, *, generator: th.Generator | None = None, n_groups: int = 1
) -> th.Tensor:
    """
    The particles of :func:`draw_proposals` alone, which a base without a density has too.

    :param base: at ``B`` observations
    :param n: how many draws for each observation
    :param uniform_fraction: part of them that is uniform on the box, in [0, 1]
    :param generator: source of the noise (``None``: torch's global one)
    :param n_groups: how many times that many draws, one after the other
    :return: ``(B, n * n_groups, *E)``
    """
    n_uniform = math.floor(n * uniform_fraction)
    drawn = base.sample(n_groups * (n - n_uniform), generator)
    if n_uniform == 0:
        return drawn
    like = drawn.new_empty((len(drawn), *drawn.shape[2:]))
    parts = drawn, UniformBase(like).sample(n_groups * n_uniform, generator)
    if n_groups > 1:
        grouped = [part.unflatten(1, (n_groups, part.shape[1] // n_groups)) for part in parts]
        return th.cat(grouped, dim=2).flatten(1, 2)
    return th.cat(parts, dim=1)


def draw_coordinates(base: Gaussian, n: int, uniform_fraction: float, *, generator: th.Generator | None = None) -> Proposals:
    """
    ``n`` draws of each coordinate alone, from the mixture of :func:`draw_proposals` in one dimension.

    :param base: the Gaussian
    :param n: how many draws for each coordinate of each observation
    :param uniform_fraction: part of them that is uniform on the box, in [0, 1]
    :param generator: source of the noise (``None``: torch's global one)
    :return: ``(B, N, D)`` numbers and the log-density of each, ``(B, N, D)``
    """
    alone = Gaussian(base.mean.reshape(-1, 1), base.std.reshape(-1, 1))
    particles, log_prob = draw_proposals(alone, n, uniform_fraction, generator=generator)
    shape = (*base.mean.flatten(1).shape, n)
    return Proposals(particles.reshape(shape).transpose(1, 2), log_prob.reshape(shape).transpose(1, 2))


def mixture_log_prob(base: Base, particles: th.Tensor, uniform_fraction: float) -> th.Tensor:
    """
    Log-density of ``(1 - f) base + f Uniform(box)`` pre-tanh.

    :param base: at ``B`` observations
    :param particles: ``(B, N, *E)``, pre-tanh
    :param uniform_fraction: ``f``
    :return: ``(B, N)``
    :raises ValueError: if the base has no density
    """
    log_base = base.log_prob(particles)
    if uniform_fraction == 0.0:
        return log_base
    log_uniform = uniform_log_prob(particles)
    if uniform_fraction == 1.0:
        return log_uniform
    return th.logaddexp(math.log1p(-uniform_fraction) + log_base, math.log(uniform_fraction) + log_uniform)


def squashed_log_prob(base: Base, latent: th.Tensor) -> th.Tensor:
    """
    Log-density of events in the box (Haarnoja et al. 2018, equation 21).

    :param base: at ``B`` observations
    :param latent: ``(B, *E)``, the events pre-tanh
    :return: ``(B,)`` log-density of ``tanh(latent)`` in the box
    """
    particle = latent.unsqueeze(1)
    return (base.log_prob(particle) - log_tanh_jacobian(particle)).squeeze(1)


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
    Whether a refiner begins with a learned velocity from the base.

    :param refiner: any, or its class
    :return: whether it does
    """
    return getattr(refiner, "head", None) in FLOW_HEADS


def draws_unseen(refiner: Refiner) -> bool:
    """
    Whether a refiner moves particles without a look at the energy: a flow that no other refiner follows.

    :param refiner: any
    :return: whether it does
    """
    return all(is_flow(member) for member in members_of(refiner))


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
    fraction = stratified_fraction(n, uniform_fraction)
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
