"""Energies made of energies, after the observations are bound: composition reads like arithmetic.

Each function returns a ``functools.partial`` of a module-level function, so that what is built can be pickled.
"""

from functools import partial

import torch as th

from sb3_energy.autodiff import energy_and_grad, gradient_of
from sb3_energy.stats import log_tanh_jacobian
from sb3_energy.types import EnergyFn

Known = tuple[th.Tensor, th.Tensor]
"""Energies ``(B, N)`` and gradients ``(B, N, *E)``."""


def tempered(fn: EnergyFn, temperature: float | th.Tensor) -> EnergyFn:
    """
    ``E(x) / temperature``: the energy whose ``exp(-energy)`` is the Gibbs distribution at that temperature.

    :param fn: ``(B, N, *E) -> (B, N)``
    :param temperature: a number, or a tensor that broadcasts to ``(B, N)``, such as ``(B, 1)``
    :return: ``(B, N, *E) -> (B, N)``
    :raises ValueError: if the number is not positive
    """
    if not isinstance(temperature, th.Tensor) and not temperature > 0.0:
        raise ValueError(f"temperature must be positive, got {temperature!r}")
    return partial(_tempered, fn, temperature)


def _tempered(fn: EnergyFn, temperature: float | th.Tensor, x: th.Tensor) -> th.Tensor:
    return fn(x) / temperature


@gradient_of(_tempered, follows=True)
def _tempered_by_hand(fn: EnergyFn, temperature: float | th.Tensor, x: th.Tensor) -> Known:
    energies, gradients = energy_and_grad(fn, x)
    by = temperature
    if isinstance(by, th.Tensor) and by.dim() > 0:
        by = by.reshape(by.shape + (1,) * (x.dim() - 2))
    return energies / temperature, gradients / by


def squashed(fn: EnergyFn) -> EnergyFn:
    """
    An energy on the box ``[-1, 1]^d`` as one on ``R^d``, by ``a = tanh(u)``.

    Its Jacobian joins the energy, ``E(tanh u) - Σ log(1 - tanh² u)``, so that squashed draws from ``exp(-energy)``
    follow ``exp(-E)`` on the box (Haarnoja et al. 2018, appendix C; without it a flat energy has no density at all).
    Temper first and squash then: the Jacobian has no temperature.

    :param fn: ``(B, N, *E) -> (B, N)`` on the box
    :return: ``(B, N, *E) -> (B, N)`` on ``R^d``
    """
    return partial(_squashed, fn)


def _squashed(fn: EnergyFn, x: th.Tensor) -> th.Tensor:
    return fn(th.tanh(x)) - log_tanh_jacobian(x)


@gradient_of(_squashed, follows=True)
def _squashed_by_hand(fn: EnergyFn, x: th.Tensor) -> Known:
    actions = th.tanh(x)
    energies, gradients = energy_and_grad(fn, actions)
    # d tanh = 1 - tanh², and d log(1 - tanh²) = -2 tanh
    return energies - log_tanh_jacobian(x), th.addcmul(gradients, gradients, actions.square(), value=-1.0).add_(
        actions, alpha=2.0
    )


def on_box(fn: EnergyFn) -> EnergyFn:
    """
    An energy on the box as a function on ``R^d``, by ``a = tanh(u)``, without the Jacobian: what a descent
    follows, as opposed to a sampler.

    :param fn: ``(B, N, *E) -> (B, N)`` on the box
    :return: ``(B, N, *E) -> (B, N)`` on ``R^d``
    """
    return partial(_on_box, fn)


def _on_box(fn: EnergyFn, x: th.Tensor) -> th.Tensor:
    return fn(th.tanh(x))


@gradient_of(_on_box, follows=True)
def _on_box_by_hand(fn: EnergyFn, x: th.Tensor) -> Known:
    actions = th.tanh(x)
    energies, gradients = energy_and_grad(fn, actions)
    return energies, th.addcmul(gradients, gradients, actions.square(), value=-1.0)


def reflected(fn: EnergyFn) -> EnergyFn:
    """
    An energy on the box ``[-1, 1]^d`` as one on ``R^d``, which goes on behind the walls as its mirror image: a sampler
    of it, folded back, is one of the box with reflection at the walls.

    :param fn: ``(B, N, *E) -> (B, N)`` on the box
    :return: ``(B, N, *E) -> (B, N)`` on ``R^d``
    """
    return partial(_reflected, fn)


def _reflected(fn: EnergyFn, x: th.Tensor) -> th.Tensor:
    return fn(folded(x))


@gradient_of(_reflected, follows=True)
def _reflected_by_hand(fn: EnergyFn, x: th.Tensor) -> Known:
    energies, gradients = energy_and_grad(fn, folded(x))
    return energies, gradients * (th.remainder(x - 1.0, 4.0) - 2.0).sign()  # backwards behind every other wall


def folded(x: th.Tensor) -> th.Tensor:
    """
    Where a ray ends that walked to ``x`` between mirrors at -1 and 1: a triangle wave, the identity between them.

    :param x: any shape
    :return: the same shape, in [-1, 1]
    """
    return (th.remainder(x - 1.0, 4.0) - 2.0).abs() - 1.0


def added(*fns: EnergyFn) -> EnergyFn:
    """
    The sum of energies: a product of experts (Hinton 2002).

    :param fns: each ``(B, N, *E) -> (B, N)``
    :return: ``(B, N, *E) -> (B, N)``
    :raises ValueError: if there is none
    """
    if not fns:
        raise ValueError("added needs at least one energy, got none")
    return partial(_added, fns)


def _added(fns: tuple[EnergyFn, ...], x: th.Tensor) -> th.Tensor:
    total = fns[0](x)
    for fn in fns[1:]:
        total = total + fn(x)
    return total


@gradient_of(_added, follows=True)
def _added_by_hand(fns: tuple[EnergyFn, ...], x: th.Tensor) -> Known:
    energies, gradients = energy_and_grad(fns[0], x)
    for fn in fns[1:]:
        more = energy_and_grad(fn, x)
        energies, gradients = energies + more[0], gradients + more[1]
    return energies, gradients


def near_proposal(fn: EnergyFn, proposal: th.Tensor, step: float) -> EnergyFn:
    """
    ``E(x) + |x - proposal|² / (2 step)``: a trust region around where each particle starts.
    It is the transport cost of the JKO scheme (Jordan, Kinderlehrer and Otto 1998, equation 3).

    :param fn: ``(B, N, *E) -> (B, N)``
    :param proposal: ``(B, N, *E)``, or ``(B, 1, *E)`` for one proposal for all particles
    :param step: the scheme's ``Δt``; small steps stay near
    :return: ``(B, N, *E) -> (B, N)``
    :raises ValueError: if the step is not positive
    """
    if not step > 0.0:
        raise ValueError(f"step must be positive, got {step!r}")
    return partial(_near_proposal, fn, proposal, step)


def _near_proposal(fn: EnergyFn, proposal: th.Tensor, step: float, x: th.Tensor) -> th.Tensor:
    return fn(x) + (x - proposal).square().flatten(2).sum(-1) / (2.0 * step)


@gradient_of(_near_proposal)
def _near_proposal_by_hand(fn: EnergyFn, proposal: th.Tensor, step: float, x: th.Tensor) -> Known:
    energies, gradients = energy_and_grad(fn, x)
    way = x - proposal
    return energies + way.square().flatten(2).sum(-1) / (2.0 * step), gradients + way / step


def standardized(fn: EnergyFn, loc: th.Tensor, scale: th.Tensor) -> EnergyFn:
    """
    The energy as a function of ``z = (x - loc) / scale``: steps are then measured in units of ``scale``.
    A constant preconditioner of the sampler (Roberts and Stramer 2002); the law of ``x`` stays the same.

    :param fn: ``(B, N, *E) -> (B, N)``
    :param loc: ``(B, 1, *E)``
    :param scale: ``(B, 1, *E)``, positive
    :return: ``(B, N, *E) -> (B, N)``
    """
    return partial(_standardized, fn, loc, scale)


def _standardized(fn: EnergyFn, loc: th.Tensor, scale: th.Tensor, z: th.Tensor) -> th.Tensor:
    loc, scale = _of_prefix(loc, z), _of_prefix(scale, z)
    return fn(loc + scale * z)


def _of_prefix(x: th.Tensor, like: th.Tensor) -> th.Tensor:
    """``(B, 1, *E)``, or ``(B, 1, j)`` of it for the energy of the first ``j`` coordinates of the flattened event."""
    return x if x.shape[2:] == like.shape[2:] else x.flatten(2)[..., : like.shape[-1]]


@gradient_of(_standardized, follows=True)
def _standardized_by_hand(fn: EnergyFn, loc: th.Tensor, scale: th.Tensor, z: th.Tensor) -> Known:
    loc, scale = _of_prefix(loc, z), _of_prefix(scale, z)
    energies, gradients = energy_and_grad(fn, loc + scale * z)
    return energies, gradients * scale
