"""What a refinement of particles returns: the states of its last step, checked."""

from functools import partial
from typing import Any

import torch as th

from sb3_energy.checks import plain
from sb3_energy.deferred import NonFiniteError, require
from sb3_energy.steps import lean, steps
from sb3_energy.types import Refiner, RefinerInfo, RefinerState, Target, Tick


def refine(
    refiner: Any,
    particles: th.Tensor,
    target: Target,
    *,
    n_steps: int,
    generator: th.Generator | None = None,
    infos: list[RefinerInfo] | None = None,
) -> RefinerState:
    """
    Move particles toward ``exp(-energy)``, in ``R^d``.

    :param refiner: how to move; of a :class:`sb3_energy.refiners.RefinerSequence`, ``n_steps`` is its own or 0
    :param particles: ``(B, N, *E)`` where to start
    :param target: what to draw from
    :param n_steps: how many steps; with 0 the particles stay where they are
    :param generator: source of the noise (``None``: torch's global one)
    :param infos: a list to which one ``RefinerInfo`` a step is appended
    :return: particles and their energies, without a graph unless the refiner is ``differentiable`` and gradients are enabled
    :raises ValueError: if the shapes or the number of steps are wrong
    :raises FloatingPointError: if an energy is NaN or minus infinity, or plus infinity (which forbids
        a particle) for all particles of an observation
    """
    check_start(particles, n_steps)
    keeps_graph = th.is_grad_enabled() and getattr(refiner, "differentiable", False)
    particles = particles if keeps_graph else particles.detach()
    trail: list[th.Tensor] = []
    with th.set_grad_enabled(keeps_graph):
        state = RefinerState(particles, target.energy(particles)) if n_steps == 0 else None
        for before, state, info, _ in steps(refiner, particles, target, n_steps=n_steps, generator=generator):
            trail.append(before.energies.detach())
            if infos is not None and info is not None:
                infos.append(info._replace(energy_drop=(trail[-1] - state.energies.detach()).mean(dim=1)))
    assert state is not None
    check_energies(state)
    refuse_lost(refiner, [*trail, state.energies.detach()])
    return state


def refined_particles(
    refiner: Refiner, particles: th.Tensor, target: Target, *, n_steps: int, generator: th.Generator | None = None
) -> th.Tensor:
    """
    The particles of :func:`refine`, for callers that need no energies at the end. A step of a refiner with a ``kernel`` is a
    draw from that Gaussian, so nothing is evaluated after the last one.

    :param refiner: how to move
    :param particles: ``(B, N, *E)`` where to start
    :param target: what to draw from; its energy must be finite wherever its parameters are, since the last one is not checked
    :param n_steps: how many steps
    :param generator: source of the noise (``None``: torch's global one)
    :return: ``(B, N, *E)``, without a graph, and the same as :func:`refine`'s
    :raises ValueError: if the shapes or the number of steps are wrong
    :raises FloatingPointError: if an energy or a particle is not finite
    """
    with th.no_grad():
        return refine(lean(refiner), particles, target, n_steps=n_steps, generator=generator).particles


def check_start(particles: th.Tensor, n_steps: int) -> None:
    """
    Check where a refinement starts.

    :param particles: ``(B, N, *E)``
    :param n_steps: how many steps
    :raises ValueError: if the shape or the number is wrong
    """
    if particles.dim() < 3:
        raise ValueError(f"particles must have shape (B, N, *event), got {tuple(particles.shape)}")
    number = plain(n_steps)
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise ValueError(f"n_steps must be an integer of at least 0, got {n_steps!r}")


def check_energies(state: RefinerState) -> None:
    """
    Check the shape of the energies.

    :param state: of a refinement
    :raises ValueError: if they are not ``(B, N)``
    """
    if state.energies.shape != state.particles.shape[:2]:
        raise ValueError(f"an energy of {tuple(state.particles.shape)} must be (B, N), got {tuple(state.energies.shape)}")


def refuse_lost(refiner: Any, trail: list[th.Tensor]) -> None:
    """
    Raise if an observation is lost at the last step, with the step since when it is.

    :param refiner: for the message
    :param trail: energies ``(B, N)`` at the starts and after each step
    :raises FloatingPointError: if one is
    """
    # An observation that is lost stays lost, so the last step alone tells whether to look for the first
    require(~is_lost(trail[-1]).any(), partial(_lost_error, refiner, trail))


def _lost_error(refiner: Any, trail: list[th.Tensor]) -> FloatingPointError:
    first = next(k for k, energies in enumerate(trail) if is_lost(energies).any())
    return _diverged_error(refiner, Tick(first - 1, len(trail) - 1) if first > 0 else None, is_lost(trail[first]))


def is_lost(energies: th.Tensor) -> th.Tensor:
    """
    Whether no particle of an observation can be used.

    :param energies: ``(B, N)``
    :return: ``(B,)`` whether one is NaN or minus infinity, or all are plus infinity
    """
    return ~th.isfinite(energies.amin(dim=1))  # the minimum of anything and NaN is NaN


def refuse_diverged(refiner: Any, tick: Tick | None, diverged: th.Tensor) -> None:
    """
    Raise if an energy has diverged, and say where and what to try.

    :param refiner: for the message
    :param tick: at which step, ``None`` before the first one
    :param diverged: ``(B, ...)`` where the energy is not finite
    :raises FloatingPointError: if it is anywhere
    """
    require(~diverged.any(), partial(_diverged_error, refiner, tick, diverged))


def _diverged_error(refiner: Any, tick: Tick | None, diverged: th.Tensor) -> FloatingPointError:
    step = "before the first step" if tick is None else f"at step {tick.step + 1} of {tick.n_steps}"
    observation = int(diverged.reshape(len(diverged), -1).any(dim=1).nonzero()[0])
    return NonFiniteError(
        f"a non-finite energy appeared {step} while {_name(refiner, tick)} refined the actions of observation "
        f"{observation} of a batch of {len(diverged)}",
        "a lower learning_rate, a smaller step_size, or backbone='layer_norm'",
    )


def _name(refiner: Any, tick: Tick | None) -> str:
    """Of the class that took a step: of a sequence, of the member whose turn it was."""
    if hasattr(refiner, "turn"):
        refiner = refiner.members[0] if tick is None else refiner.turn(tick).refiner
    return type(getattr(refiner, "refiner", refiner)).__name__


def select(state: RefinerState, deterministic: bool) -> th.Tensor:
    """
    One particle for each observation: the lowest energy (inference with verification, Gladstone et al. 2025,
    section 3.2), or a draw. Particles are exchangeable after the last step, so the first one is a draw.

    :param state: ``N`` particles for each observation
    :param deterministic: whether to take the lowest energy
    :return: ``(B, *E)``
    """
    if not deterministic:
        return state.particles[:, 0]
    best = state.energies.argmin(dim=1)
    return state.particles[th.arange(len(best), device=best.device), best]
