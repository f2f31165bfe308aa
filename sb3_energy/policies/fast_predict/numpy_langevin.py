"""Langevin refinements of few particles on numpy, with the random numbers that torch would have drawn.

Results are ``None`` where a number is not finite: torch says which. In a preconditioned chain, steps are scaled here, where
torch scales the coordinates.
"""

import math
from collections.abc import Callable
from typing import cast

import numpy as np
import torch as th

from sb3_energy.policies.fast_predict.numpy_energies import BoundEnergy, NumpyEnergyFn
from sb3_energy.policies.fast_predict.numpy_networks import Array
from sb3_energy.refinement.bases import LARGEST_ACTION, Gaussian
from sb3_energy.refinement.boxes import ReflectingBox, TanhBox
from sb3_energy.refinement.proposals import INITIAL_PARTICLES
from sb3_energy.refinement.refinement import Refinement
from sb3_energy.refiners import Langevin
from sb3_energy.schedules import value_at
from sb3_energy.stats import normal_log_prob
from sb3_energy.types import Tick

_ONE, _TWO, _FOUR = (np.full((), value, np.float32) for value in (1.0, 2.0, 4.0))


def is_plain(refinement: Refinement) -> bool:
    """Whether this module computes a refinement: Langevin's, without a trust region or a bound on the gradient."""
    refiner = refinement.refiner
    plain = type(refiner) is Langevin and refiner.max_grad_norm is None and refinement.n_steps > 0
    return plain and refinement.trust_region is None and type(refinement.box) in _PLACES


def sample(refinement: Refinement, base: Gaussian, energy: BoundEnergy, temperature: float) -> Array | None:
    """
    Sample actions by Langevin chains.

    :param refinement: which :func:`is_plain`
    :param base: ``B`` Gaussians, pre-tanh
    :param energy: at the observations
    :param temperature: above 0
    :return: ``(B, A)``, a draw, pre-tanh
    """
    starts = _drawn(refinement, base, energy, temperature)
    if starts is None:
        return None
    x, _, values = _chain(refinement, starts, base, energy.energy, 1.0 / temperature)
    if not math.isfinite(np.add.reduce(x, None) + np.add.reduce(values, None)):
        return None
    return refinement.box.end(th.from_numpy(x))[:, 0].numpy()


def best(refinement: Refinement, base: Gaussian, energy: BoundEnergy) -> Array | None:
    """
    Deterministic actions: minimize the energy by gradient descent.

    :param refinement: which :func:`is_plain`
    :param base: ``B`` Gaussians, pre-tanh
    :param energy: at the observations
    :return: ``(B, A)``, pre-tanh, the lowest energy among starts and ends of a descent
    """
    starts = (base.mean[:, None] if refinement.n_starts == 1 else base.quantiles(refinement.n_starts)).numpy()
    x, at_starts, _ = _chain(refinement, starts, base, energy.energy, None)
    values = np.concatenate([at_starts, energy.energy(_PLACES[type(refinement.box)](x)[0])[0]], axis=1)
    if not math.isfinite(np.add.reduce(values, None)):
        return None
    candidates = np.concatenate([starts, refinement.box.end(th.from_numpy(x)).numpy()], axis=1)
    return candidates[np.arange(len(values)), values.argmin(axis=1)]


def _drawn(refinement: Refinement, base: Gaussian, energy: BoundEnergy, temperature: float) -> Array | None:
    """``(B, 1, A)``, pre-tanh: one of the proposals, drawn by importance."""
    n, (mean, std) = refinement.n_particles, (part[:, None].numpy() for part in base)
    n_rows, _, width = mean.shape
    n_uniform = math.floor(n * INITIAL_PARTICLES[refinement.initial_particles])
    u = mean + std * th.randn((n_rows, n - n_uniform, width)).numpy()
    if n_uniform > 0:
        actions = 2.0 * th.rand((n_rows, n_uniform, width)).numpy() - 1.0
        u = np.concatenate([u, np.arctanh(np.clip(actions, -LARGEST_ACTION, LARGEST_ACTION))], axis=1)
    if n == 1:
        return u
    size, z = np.abs(u), (u - mean) / std
    log_jacobian = (2.0 * (math.log(2.0) - size - np.log1p(np.exp(-2.0 * size)))).sum(axis=-1)
    log_base, fraction = normal_log_prob(z, np.log(std)), n_uniform / n
    log_uniform = log_jacobian - width * math.log(2.0)
    log_prob = np.logaddexp(np.log1p(np.float32(-fraction)) + log_base, np.log(np.float32(fraction)) + log_uniform)
    log_weights = log_jacobian - energy.starts(np.tanh(u))[0] / np.float32(temperature) - log_prob
    highest = log_weights.max(axis=1, keepdims=True)
    if not np.isfinite(highest).all():
        return None
    weights = np.exp(log_weights - highest)
    weights /= weights.sum(axis=1, keepdims=True)
    index = th.multinomial(th.from_numpy(weights), 1, replacement=True)
    return np.take_along_axis(u, index.numpy()[:, :, None], axis=1)


def _chain(
    refinement: Refinement, starts: Array, base: Gaussian, energy: NumpyEnergyFn, inverse: float | None
) -> tuple[Array, Array, Array]:
    """
    The ends of chains from ``(B, N, A)``, in the coordinates of the box, and the energies at their starts and before their
    last step; without an inverse temperature, the chains are descents.
    """
    place, refiner = _PLACES[type(refinement.box)], cast(Langevin, refinement.refiner)
    x = starts if place is _squashed else np.tanh(starts)
    scale = refinement.box.frame(base).std.numpy() if refinement.precondition else _ONE
    longest, n_steps, energies = refiner.max_displacement, refinement.n_steps, list[Array]()
    changes = callable(refiner.step_size) or callable(refiner.noise_scale)
    for k in range(n_steps):
        if changes or k == 0:
            remaining = Tick(k, n_steps).remaining
            size = value_at(refiner.step_size, remaining)
            std = 0.0 if inverse is None else value_at(refiner.noise_scale, remaining) * math.sqrt(size)
            factor, width = np.float32(-0.5 * size) * scale, np.float32(std) * scale
        actions, slopes = place(x)
        values, gradients = energy(actions)
        energies.append(values)
        drift = np.multiply(gradients(), slopes, slopes)
        if inverse is not None:
            drift *= np.float32(inverse)
            if place is _squashed:
                drift += _TWO * actions  # the gradient of -log(1 - tanh² x)
        drift *= factor
        if longest is not None:
            drift = np.minimum(np.maximum(drift, np.float32(-longest)), np.float32(longest))
        drift *= scale
        x = x + drift
        if std > 0.0:
            x += width * th.randn(x.shape).numpy()
    return x, energies[0], energies[-1]


def _squashed(x: Array) -> tuple[Array, Array]:
    """Actions at coordinates, and their slopes."""
    actions = np.tanh(x)
    return actions, _ONE - actions * actions


def _reflected(x: Array) -> tuple[Array, Array]:
    folded = np.remainder(x - _ONE, _FOUR) - _TWO
    return np.abs(folded) - _ONE, np.sign(folded)


_PLACES: dict[type, Callable[[Array], tuple[Array, Array]]] = {TanhBox: _squashed, ReflectingBox: _reflected}
