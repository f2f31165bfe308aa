"""A refinement on numpy arrays: what :class:`sb3_energy.refinement.refinement.Refinement` does, for few particles at once.

Random numbers come from torch's global generator, by the same calls in the same order: a seeded program does not change.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch as th

from sb3_energy.policies.fast_predict.numpy_energy import (
    Array,
    ArrayGaussian,
    ArrayTarget,
    BoundArrayEnergy,
    Coordinates,
    log_tanh_jacobian,
)
from sb3_energy.refinement.bases import LARGEST_ACTION, Gaussian
from sb3_energy.refinement.boxes import BOXES
from sb3_energy.refinement.proposals import INITIAL_PARTICLES
from sb3_energy.refinement.refinement import Refinement
from sb3_energy.refinement.warm_start import Plans
from sb3_energy.refiners import MPPI, Identity, Langevin, importance_resample, normal_quantiles
from sb3_energy.refiners.loop import refuse_lost
from sb3_energy.schedules import value_at
from sb3_energy.types import Tick


class _Ends(NamedTuple):
    x: Array  # (B, N, A) coordinates
    raw: Array  # (B, N) the energy alone there
    raw_at_starts: Array  # (B, N)


_Trail = list[tuple[Array, Array]]
"""Coordinates ``(B, N, A)`` and the energy alone there ``(B, N)``, at the starts and after each step."""

_ONE = np.full((), 1.0, np.float32)


class ArrayRefinement:
    """
    The same refinement for arrays. Not for two threads at once.

    :param refinement: one that :meth:`supports`
    """

    def __init__(self, refinement: Refinement):
        self.refinement = refinement
        self._descending: Any = refinement.refiner.deterministic()
        self._mover = self._mppi if isinstance(refinement.refiner, MPPI) else self._langevin
        self._coordinates = Coordinates(refinement.box == BOXES["reflect"])
        longest = getattr(refinement.refiner, "max_displacement", None)
        self._bounds = None if longest is None else (np.full((), -longest, np.float32), np.full((), longest, np.float32))
        self._noise: dict[tuple[int, ...], tuple[th.Tensor, Array]] = {}
        self._normal_quantiles: dict[int, Array] = {}  # by the number of coordinates

    @staticmethod
    def supports(refinement: Refinement) -> bool:
        """
        :param refinement: any
        :return: whether it can be had for arrays: exactly Langevin or MPPI, or none
        """
        if type(refinement) is not Refinement or refinement.tolerance is not None:
            return False
        return type(refinement.refiner) in (Identity, Langevin, MPPI) and refinement.box in BOXES.values()

    def sample(self, base: ArrayGaussian, energy: BoundArrayEnergy, temperature: float, plans: Plans | None = None) -> Array:
        """
        :param base: ``B`` Gaussians before the squash
        :param energy: at the observations
        :param temperature: above 0
        :param plans: where to start from and where to write the plans, if the refiner has some
        :return: ``(B, A)``, a draw before the squash
        :raises FloatingPointError: as the refinement of tensors
        """
        particles, n_uniform = self._proposals(base)
        refiner, coordinates = self.refinement.refiner, self._coordinates
        if particles.shape[1] > 1 and not refiner.resamples:
            particles = self._resampled(base, energy, temperature, particles, n_uniform)
        particles = _warmed(plans, base, particles, quasi_random=False)
        ends = self._moved(refiner, base, particles, self._target(energy, temperature, particles), plans)
        return coordinates.end(ends.x[:, :1])[:, 0]

    def best(self, base: ArrayGaussian, energy: BoundArrayEnergy, plans: Plans | None = None) -> Array:
        """
        :param base: ``B`` Gaussians before the squash
        :param energy: at the observations
        :param plans: where to start from and where to write the plans, if the refiner has some
        :return: ``(B, A)`` before the squash, the lowest energy among starts and ends of a descent
        :raises FloatingPointError: as the refinement of tensors
        """
        starts = base.mean  # the first quantile
        if self.refinement.n_starts > 1:
            starts = base.mean + base.std * self._quantiles(base.mean)
        starts = _warmed(plans, base, starts, quasi_random=True)
        ends = self._moved(self._descending, base, starts, self._target(energy, None, starts), plans)
        places = self._coordinates.end(ends.x)
        if starts.shape[1] == 1:
            falls = ends.raw < ends.raw_at_starts
            if len(falls) == 1:
                return (places if falls[0, 0] else starts)[:, 0]
            return np.where(falls[:, :, None], places, starts)[:, 0]
        candidates = np.concatenate([starts, places], axis=1)
        lowest = np.concatenate([ends.raw_at_starts, ends.raw], axis=1).argmin(axis=1)
        return candidates[np.arange(len(lowest)), lowest]

    def _target(self, energy: BoundArrayEnergy, temperature: float | None, starts: Array) -> ArrayTarget:
        trust_region = self.refinement.trust_region
        anchor = None if trust_region is None else np.tanh(starts)
        return ArrayTarget(energy, self._coordinates, temperature, anchor, trust_region)

    def _moved(self, refiner: Any, base: ArrayGaussian, starts: Array, target: ArrayTarget, plans: Plans | None) -> _Ends:
        # In place of coordinates in units of the scale, steps and widths are multiplied by it
        scale = self._coordinates.scale(base) if self.refinement.precondition else _ONE
        trail = self._mover(refiner, self._coordinates.start(starts), scale, target)
        x, raw = trail[-1]
        if not (_is_finite(raw) and _is_finite(x)):  # one may be infinite where others are not
            wholes = [th.from_numpy(np.ascontiguousarray(target.whole(*point))) for point in trail]
            refuse_lost(self.refinement.refiner, wholes)
        if plans is not None:
            plans.keep(th.from_numpy(self._coordinates.end(self._plan)[:, 0]))
        return _Ends(x, raw, trail[0][1])

    def _proposals(self, base: ArrayGaussian) -> tuple[Array, int]:
        """``(B, N, A)`` before the squash, and how many of the ``N`` are uniform on the box."""
        n, (rows, _, width) = self.refinement.n_particles, base.mean.shape
        n_uniform = math.floor(n * INITIAL_PARTICLES[self.refinement.initial_particles])
        particles = base.mean + base.std * self._normal((rows, n - n_uniform, width))
        if n_uniform > 0:
            box = 2.0 * th.rand((rows, n_uniform, width), dtype=th.float32).numpy() - 1.0
            uniform = np.arctanh(np.clip(box, -LARGEST_ACTION, LARGEST_ACTION))
            particles = np.concatenate([particles, uniform], axis=1)
        return particles, n_uniform

    def _resampled(
        self, base: ArrayGaussian, energy: BoundArrayEnergy, temperature: float, particles: Array, n_uniform: int
    ) -> Array:
        log_jacobian = log_tanh_jacobian(particles)
        log_prob = _mixture_log_prob(base, particles, log_jacobian, n_uniform / particles.shape[1])
        log_weights = log_jacobian - energy.of_starts(np.tanh(particles)) / np.float32(temperature) - log_prob
        index = _draw(particles, log_weights, 1)
        return particles[np.arange(len(index))[:, None], index]

    def _langevin(self, refiner: Langevin, x: Array, scale: Array, target: ArrayTarget) -> _Trail:
        trail: _Trail = []
        before, bounds = None, self._bounds
        for step in self._schedule(refiner):
            if step != before:
                size, std = before = step
                factor = np.float32(-0.5 * size) * scale
                width = np.float32(std) * scale if std > 0.0 else scale
            raw, gradients = target.raw_with_gradients(x)
            trail.append((x, raw))
            if refiner.max_grad_norm is not None:
                gradients *= _shortening(gradients * scale, refiner.max_grad_norm)
            drift = np.multiply(gradients, factor, gradients)
            if bounds is not None:
                np.maximum(drift, bounds[0], out=drift)
                np.minimum(drift, bounds[1], out=drift)
            x = x + np.multiply(drift, scale, drift)  # a new array: the trail keeps the old one
            if std > 0.0:
                x += width * self._normal(x.shape)
        if refiner is self._descending or not trail:
            trail.append((x, target.raw(x)))
        else:  # as in the loop for tensors, nobody asks for the energy of a draw; no number where a particle is none
            trail.append((x, trail[-1][1] + 0.0 * x.sum(axis=2)))
        return trail

    def _schedule(self, refiner: Langevin) -> list[tuple[float, float]]:
        """Of each step, its size and the standard deviation of its noise."""
        n_steps, step_size, noise_scale = self.refinement.n_steps, refiner.step_size, refiner.noise_scale
        if not (callable(step_size) or callable(noise_scale)):
            return [(step_size, noise_scale * math.sqrt(step_size))] * n_steps
        remaining = [Tick(k, n_steps).remaining for k in range(n_steps)]
        sizes = [value_at(step_size, part) for part in remaining]
        return [(size, value_at(noise_scale, part) * math.sqrt(size)) for size, part in zip(sizes, remaining, strict=True)]

    def _mppi(self, refiner: MPPI, x: Array, scale: Array, target: ArrayTarget) -> _Trail:
        n_steps, n = self.refinement.n_steps, x.shape[1]
        trail = [(x, target.raw(x))]
        for k in range(n_steps):
            weights = _softmax(_elite_log_weights(refiner, target.whole(*trail[-1])))[:, :, None]
            self._plan = mean = (weights * x).sum(axis=1, keepdims=True)
            std = np.sqrt((weights * np.square(x - mean)).sum(axis=1, keepdims=True))
            std = np.minimum(np.maximum(std, refiner.min_std * scale), refiner.max_std * scale)
            x = mean + std * (self._quantiles(x) if refiner.quasi_random else self._normal(x.shape))
            raw = target.raw(x)
            if k == n_steps - 1 and not refiner.quasi_random:
                index = _draw(x, _elite_log_weights(refiner, target.whole(x, raw)), n)
                x, raw = np.take_along_axis(x, index[:, :, None], axis=1), np.take_along_axis(raw, index, axis=1)
            trail.append((x, raw))
        return trail

    def _normal(self, shape: tuple[int, ...]) -> Array:
        """What ``th.randn`` gives; overwritten by the next draw of this shape."""
        if shape not in self._noise:
            with th.inference_mode(False):  # a tensor of that mode may not be written outside of it
                tensor = th.empty(shape, dtype=th.float32, device="cpu")
            self._noise[shape] = tensor, tensor.numpy()
        tensor, array = self._noise[shape]
        tensor.normal_()
        return array

    def _quantiles(self, like: Array) -> Array:
        width = like.shape[2]
        if width not in self._normal_quantiles:
            self._normal_quantiles[width] = normal_quantiles(self.refinement.n_starts, th.empty(1, width)).numpy()
        return self._normal_quantiles[width]


def _warmed(plans: Plans | None, base: ArrayGaussian, particles: Array, quasi_random: bool) -> Array:
    if plans is None:
        return particles
    gaussian = Gaussian(*(th.from_numpy(part[:, 0]) for part in base))
    return plans.warmed(th.from_numpy(particles), gaussian, generator=None, quasi_random=quasi_random).numpy()


def _mixture_log_prob(base: ArrayGaussian, particles: Array, log_jacobian: Array, uniform_fraction: float) -> Array:
    if uniform_fraction == 1.0:
        return log_jacobian - particles.shape[-1] * math.log(2.0)
    z = (particles - base.mean) / base.std
    log_base = -(0.5 * z * z + np.log(base.std) + 0.5 * math.log(2.0 * math.pi)).sum(axis=-1)
    if uniform_fraction == 0.0:
        return log_base
    log_uniform = log_jacobian - particles.shape[-1] * math.log(2.0)
    return np.logaddexp(math.log1p(-uniform_fraction) + log_base, math.log(uniform_fraction) + log_uniform)


def _shortening(gradients: Array, max_norm: float) -> Array:
    """``(B, N, 1)``, what makes longer ones as long as ``max_norm``."""
    norm = np.sqrt(np.square(gradients).sum(axis=-1, keepdims=True))
    return max_norm / np.maximum(norm, max_norm)


def _elite_log_weights(refiner: MPPI, energies: Array) -> Array:
    n = energies.shape[1]
    n_elites = max(4, n // 8) if refiner.n_elites is None else refiner.n_elites
    if n_elites < n:
        threshold = np.partition(energies, n_elites - 1, axis=1)[:, n_elites - 1 : n_elites]
        energies = np.where(energies > threshold, np.float32(np.inf), energies)
    return energies / np.float32(-refiner.temperature)


def _softmax(log_weights: Array) -> Array:
    weights = np.exp(log_weights - log_weights.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    return weights


def _draw(particles: Array, log_weights: Array, n: int) -> Array:
    """Indices ``(B, n)`` in proportion to the weights."""
    if not np.isfinite(log_weights.max(axis=1)).all():  # says why
        importance_resample(th.from_numpy(particles), th.from_numpy(log_weights), n)
    return th.multinomial(th.from_numpy(_softmax(log_weights)), n, replacement=True).numpy()


def _is_finite(values: Array) -> bool:
    flat = values.reshape(-1)
    return math.isfinite(flat.dot(flat)) or bool(np.isfinite(values).all())
