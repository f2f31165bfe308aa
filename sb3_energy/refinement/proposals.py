"""Draws from the base and uniform ones from the box, with the density of the mixture, pre-tanh."""

import math
from typing import NamedTuple

import torch as th

from sb3_energy.refinement.bases import Base, Gaussian, UniformBase
from sb3_energy.stats import log_tanh_jacobian, uniform_log_prob

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
    return Proposals(particles, mixture_log_prob(base, particles, math.floor(n * uniform_fraction) / n))


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
