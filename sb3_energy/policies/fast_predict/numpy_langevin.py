"""Langevin chains of few particles on numpy: :class:`sb3_energy.refiners.Langevin` in a refinement without a trust region.

Proposals and their resampling are torch's own, and random numbers come from torch's global generator, by the same calls in the
same order. Steps of a preconditioned chain are scaled here, where torch scales the coordinates.
"""

import math
from collections.abc import Callable
from typing import cast

import numpy as np
import torch as th

from sb3_energy.energies import squashed, tempered
from sb3_energy.policies.fast_predict.numpy_energies import BoundEnergy, NumpyEnergyFn
from sb3_energy.policies.fast_predict.numpy_networks import Array
from sb3_energy.refinement.bases import Gaussian
from sb3_energy.refinement.boxes import ReflectingBox, TanhBox
from sb3_energy.refinement.proposals import INITIAL_PARTICLES, draw_starts, resampled
from sb3_energy.refinement.refinement import Refinement
from sb3_energy.refiners import Langevin
from sb3_energy.schedules import value_at
from sb3_energy.types import Tick

_ONE, _TWO, _FOUR = (np.full((), value, np.float32) for value in (1.0, 2.0, 4.0))


def is_plain_langevin(refinement: Refinement) -> bool:
    """
    :param refinement: any
    :return: whether this module computes it
    """
    refiner = refinement.refiner
    plain = type(refiner) is Langevin and refiner.max_grad_norm is None and refinement.n_steps > 0
    return plain and refinement.trust_region is None and type(refinement.box) in _PLACES


def sample(refinement: Refinement, base: Gaussian, energy: BoundEnergy, temperature: th.Tensor) -> th.Tensor | None:
    """
    :param refinement: a plain Langevin's
    :param base: ``B`` Gaussians, pre-tanh
    :param energy: at the observations
    :param temperature: scalar
    :return: ``(B, A)``, a draw, pre-tanh; ``None`` if it is not finite
    :raises FloatingPointError: if the energy of a proposal is not finite
    """
    starts = draw_starts(base, refinement.n_particles, INITIAL_PARTICLES[refinement.initial_particles])
    if refinement.n_particles > 1:
        starts = resampled(starts, 1, squashed(tempered(energy.of_starts().__call__, temperature)), generator=None)
    x = refinement.box.start(starts.particles).numpy()
    x, _, values = _chain(refinement, x, base, energy.energy, 1.0 / temperature.item())
    if not math.isfinite(np.add.reduce(x, None) + np.add.reduce(values, None)):
        return None
    return refinement.box.end(th.from_numpy(x))[:, 0]


def best(refinement: Refinement, base: Gaussian, energy: BoundEnergy) -> th.Tensor | None:
    """
    :param refinement: a plain Langevin's
    :param base: ``B`` Gaussians, pre-tanh
    :param energy: at the observations
    :return: ``(B, A)``, pre-tanh, the lowest energy among starts and ends of a descent; ``None`` if one is not finite
    """
    starts = base.mean[:, None] if refinement.n_starts == 1 else base.quantiles(refinement.n_starts)
    x, at_starts, _ = _chain(refinement, refinement.box.start(starts).numpy(), base, energy.energy, None)
    values = np.concatenate([at_starts, energy.energy(_PLACES[type(refinement.box)](x)[0])[0]], axis=1)
    if not math.isfinite(np.add.reduce(values, None)):
        return None
    candidates = np.concatenate([starts.numpy(), refinement.box.end(th.from_numpy(x)).numpy()], axis=1)
    return th.from_numpy(candidates[np.arange(len(values)), values.argmin(axis=1)])


def _chain(
    refinement: Refinement, x: Array, base: Gaussian, energy: NumpyEnergyFn, inverse: float | None
) -> tuple[Array, Array, Array]:
    """The ends of chains of coordinates ``(B, N, A)``, and the energies at their starts and before their last step; without an
    inverse temperature, the chains are descents."""
    place, refiner = _PLACES[type(refinement.box)], cast(Langevin, refinement.refiner)
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
