"""Draws from the base policy and from the box, with their densities, in the space before the squash."""

import math
from typing import NamedTuple

import torch as th

from sb3_energy.stats import gaussian_log_prob, log_tanh_jacobian, uniform_log_prob

INITIAL_PARTICLES = {"base": 0.0, "uniform": 1.0, "mixture": 0.5}
"""Where particles start: the part of them that is uniform on the box. The others are the base's own draws."""

LARGEST_ACTION = 1.0 - 1e-6
"""The largest one whose atanh a 32-bit float still tells from its neighbours."""


class Gaussian(NamedTuple):
    """
    The base before the squash.

    :param mean: ``(B, A)``
    :param std: ``(B, A)``
    """

    mean: th.Tensor
    std: th.Tensor


class Proposals(NamedTuple):
    """
    :param particles: ``(B, N, A)``, before the squash
    :param log_prob: ``(B, N)`` log-density of the whole mixture there, in the same space
    """

    particles: th.Tensor
    log_prob: th.Tensor


def draw_proposals(base: Gaussian, n: int, uniform_fraction: float, generator: th.Generator | None = None) -> Proposals:
    """
    ``n`` draws from ``(1 - f) base + f Uniform(box)``, the first ones from the base.

    The share is stratified, ``f = floor(n * uniform_fraction) / n``, and each weight uses the density of the mixture:
    multiple importance sampling with the balance heuristic (Veach and Guibas 1995, section 3.3).

    :param base: the Gaussian
    :param n: how many draws for each observation
    :param uniform_fraction: part of them that is uniform on the box, in [0, 1]
    :param generator: source of the noise (``None``: torch's global one)
    :return: particles and their log-densities
    """
    mean, std = base.mean.unsqueeze(1), base.std.unsqueeze(1)
    n_uniform = math.floor(n * uniform_fraction)
    shape = (mean.shape[0], n - n_uniform, mean.shape[2])
    noise = th.randn(shape, generator=generator, device=mean.device, dtype=mean.dtype)
    particles = mean + std * noise
    if n_uniform > 0:
        shape = (mean.shape[0], n_uniform, mean.shape[2])
        box = 2.0 * th.rand(shape, generator=generator, device=mean.device, dtype=mean.dtype) - 1.0
        particles = th.cat([particles, th.atanh(box.clamp(-LARGEST_ACTION, LARGEST_ACTION))], dim=1)
    return Proposals(particles, mixture_log_prob(base, particles, n_uniform / n))


def draw_coordinates(base: Gaussian, n: int, uniform_fraction: float, generator: th.Generator | None = None) -> Proposals:
    """
    ``n`` draws of each coordinate alone, from the mixture of :func:`draw_proposals` in one dimension.

    :param base: the Gaussian
    :param n: how many draws for each coordinate of each observation
    :param uniform_fraction: part of them that is uniform on the box, in [0, 1]
    :param generator: source of the noise (``None``: torch's global one)
    :return: ``(B, N, A)`` numbers and the log-density of each, ``(B, N, A)``
    """
    alone = Gaussian(base.mean.reshape(-1, 1), base.std.reshape(-1, 1))
    particles, log_prob = draw_proposals(alone, n, uniform_fraction, generator)
    shape = (*base.mean.shape, n)
    return Proposals(particles.reshape(shape).transpose(1, 2), log_prob.reshape(shape).transpose(1, 2))


def mixture_log_prob(base: Gaussian, particles: th.Tensor, uniform_fraction: float) -> th.Tensor:
    """
    Log-density of ``(1 - f) base + f Uniform(box)`` before the squash, where the uniform's is its Jacobian over ``2^A``.

    :param base: the Gaussian
    :param particles: ``(B, N, A)``, before the squash
    :param uniform_fraction: ``f``
    :return: ``(B, N)``
    """
    log_base = gaussian_log_prob(particles, base.mean.unsqueeze(1), base.std.unsqueeze(1))
    if uniform_fraction == 0.0:
        return log_base
    log_uniform = uniform_log_prob(particles)
    if uniform_fraction == 1.0:
        return log_uniform
    return th.logaddexp(math.log1p(-uniform_fraction) + log_base, math.log(uniform_fraction) + log_uniform)


def latent(actions: th.Tensor) -> th.Tensor:
    """
    :param actions: on the box, any shape
    :return: the same before the squash, finite at its walls too
    """
    return th.atanh(actions.clamp(-LARGEST_ACTION, LARGEST_ACTION))


def squashed_log_prob(base: Gaussian, latent: th.Tensor) -> th.Tensor:
    """
    Log-density of actions under the squashed base (Haarnoja et al. 2018, equation 21).

    :param base: the Gaussian
    :param latent: ``(B, A)``, the actions before the squash
    :return: ``(B,)`` log-density of ``tanh(latent)`` on the box
    """
    particle = latent.unsqueeze(1)
    return (mixture_log_prob(base, particle, 0.0) - log_tanh_jacobian(particle)).squeeze(1)
