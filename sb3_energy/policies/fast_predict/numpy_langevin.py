"""Langevin refinements of few particles on numpy, with or without a Metropolis test, by the random numbers of torch.

Results are ``None`` where a number is not finite: torch says which. In a preconditioned chain, steps are scaled here, where
torch scales the coordinates.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import numpy as np
import torch as th

from sb3_energy.policies.fast_predict.numpy_energies import BoundEnergy, NumpyEnergyFn
from sb3_energy.policies.fast_predict.numpy_networks import Array
from sb3_energy.refinement.bases import LARGEST_ACTION, Gaussian
from sb3_energy.refinement.boxes import ReflectingBox, TanhBox
from sb3_energy.refinement.proposals import INITIAL_PARTICLES
from sb3_energy.refinement.refinement import Refinement
from sb3_energy.refiners import Langevin, MetropolisAdjustedLangevin, RefinerSequence
from sb3_energy.refiners.sequence import members_of
from sb3_energy.schedules import value_at
from sb3_energy.stats import normal_log_prob
from sb3_energy.types import Tick

_ONE, _TWO, _FOUR = (np.full((), value, np.float32) for value in (1.0, 2.0, 4.0))


def is_plain(refinement: Refinement) -> bool:
    """Whether this module computes a refinement: Langevin's and MALA's steps without other options than sizes and noise."""
    members: tuple[Any, ...] = members_of(refinement.refiner)
    known = all(type(member) in (Langevin, MetropolisAdjustedLangevin) and member.max_grad_norm is None for member in members)
    known = known and (len(members) == 1 or type(refinement.refiner) is RefinerSequence)
    known = known and all(getattr(member, "target_acceptance", None) is None for member in members)
    known = known and all(member.max_displacement == members[0].max_displacement for member in members)
    return known and refinement.n_steps > 0 and refinement.trust_region is None and type(refinement.box) in _PLACES


def sample(refinement: Refinement, base: Gaussian, energy: BoundEnergy, temperature: float) -> Array | None:
    """A draw of each of ``B`` bases, ``(B, A)`` pre-tanh, by chains of a refinement which :func:`is_plain`."""
    starts = _drawn(refinement, base, energy, temperature)
    if starts is None:
        return None
    x, _, values = _chain(refinement, starts, _Steps(refinement, base, energy.energy, 1.0 / temperature))
    if not math.isfinite(np.add.reduce(x, None) + np.add.reduce(values, None)):
        return None
    return refinement.box.end(th.from_numpy(x))[:, 0].numpy()


def best(refinement: Refinement, base: Gaussian, energy: BoundEnergy) -> Array | None:
    """The lowest energy among starts and ends of a descent without noise, ``(B, A)`` pre-tanh."""
    starts = (base.mean[:, None] if refinement.n_starts == 1 else base.quantiles(refinement.n_starts)).numpy()
    x, at_starts, _ = _chain(refinement, starts, _Steps(refinement, base, energy.energy, None))
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
    log_jacobian = _log_jacobian(u)
    log_base, fraction = normal_log_prob((u - mean) / std, np.log(std)), n_uniform / n
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


class _Point(NamedTuple):
    """Particles ``(B, N, A)``, their energies ``(B, N)`` and gradients in the coordinates of the steps."""

    x: Array
    values: Array
    gradients: Array


class _Steps:
    """The pieces of a chain in the coordinates of the box. Without an inverse temperature, the energy itself is descended."""

    def __init__(self, refinement: Refinement, base: Gaussian, energy: NumpyEnergyFn, inverse: float | None):
        refiner: Any = members_of(refinement.refiner)[0]
        self.place, self.energy, self.longest = _PLACES[type(refinement.box)], energy, refiner.max_displacement
        self.scale = refinement.box.frame(base).std.numpy() if refinement.precondition else _ONE
        self.inverse = None if inverse is None else np.float32(inverse)

    def at(self, x: Array) -> _Point:
        actions, slopes = self.place(x)
        values, gradients = self.energy(actions)
        slope = np.multiply(gradients(), slopes, slopes)
        if self.inverse is not None:
            slope *= self.inverse
            if self.place is _squashed:
                slope += _TWO * actions  # the gradient of -log(1 - tanh² x)
        slope *= self.scale
        return _Point(x, values, slope)

    def drift(self, point: _Point, size: float) -> Array:
        drift, longest = np.float32(-0.5 * size) * point.gradients, self.longest
        return drift if longest is None else np.minimum(np.maximum(drift, np.float32(-longest)), np.float32(longest))

    def tested(self, old: _Point, move: Array, noise: Array, size: float) -> _Point:
        """The point after the Metropolis test of a move, NaN where its energy is."""
        new = self.at(old.x + self.scale * move)
        back = (-move - self.drift(new, size)) / np.float32(math.sqrt(size))
        log_ratio = self._energies(old) - self._energies(new) + normal_log_prob(back) - normal_log_prob(noise)
        new = new._replace(values=np.where(np.isnan(log_ratio), log_ratio, new.values))
        uniform = th.rand(log_ratio.shape).numpy()
        kept = ~((np.log(uniform) >= log_ratio) | np.isposinf(new.values))  # NaN is kept, to be found
        both = zip((kept[..., None], kept, kept[..., None]), new, old, strict=True)
        return new if kept.all() else _Point(*(np.where(*parts) for parts in both))

    def _energies(self, point: _Point) -> Array:
        energies = cast(np.float32, self.inverse) * point.values
        return energies - _log_jacobian(point.x) if self.place is _squashed else energies


def _chain(refinement: Refinement, starts: Array, steps: _Steps) -> tuple[Array, Array, Array]:
    """The ends of chains from ``(B, N, A)``, and the energies at their starts and before their last move."""
    refiner: Any = refinement.refiner
    point = first = steps.at(starts if steps.place is _squashed else np.tanh(starts))
    for k in range(refinement.n_steps):
        tick = Tick(k, refinement.n_steps)
        member, own = refiner.turn(tick)[1:] if isinstance(refiner, RefinerSequence) else (refiner, tick)
        size, tested = value_at(member.step_size, own.remaining), isinstance(member, MetropolisAdjustedLangevin)
        scale, move = 1.0 if tested else value_at(member.noise_scale, own.remaining), steps.drift(point, size)
        if steps.inverse is not None and scale > 0.0:
            noise = th.randn(move.shape).numpy()
            move = move + np.float32(scale * math.sqrt(size)) * noise
        if steps.inverse is not None and tested:
            point = steps.tested(point, move, noise, size)
        elif tick.is_last:
            return point.x + steps.scale * move, first.values, point.values
        else:
            point = steps.at(point.x + steps.scale * move)
    return point.x, first.values, point.values


def _log_jacobian(u: Array) -> Array:
    """``(B, N)``, of the tanh at ``(B, N, A)``."""
    size = np.abs(u)
    return (2.0 * (math.log(2.0) - size - np.log1p(np.exp(-2.0 * size)))).sum(axis=-1)


def _squashed(x: Array) -> tuple[Array, Array]:
    """Actions at coordinates, and their slopes."""
    actions = np.tanh(x)
    return actions, _ONE - actions * actions


def _reflected(x: Array) -> tuple[Array, Array]:
    folded = np.remainder(x - _ONE, _FOUR) - _TWO
    return np.abs(folded) - _ONE, np.sign(folded)


_PLACES: dict[type, Callable[[Array], tuple[Array, Array]]] = {TanhBox: _squashed, ReflectingBox: _reflected}
